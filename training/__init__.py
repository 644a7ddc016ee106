"""What trains PVC and makes the files of PVC-Tiny, the small checkpoint in the repository's root."""
