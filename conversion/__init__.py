"""Converts other checkpoints to PVC's; `convert.py` is the entry point."""
