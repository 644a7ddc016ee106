"""Checkpoints on the Hub: the model card, the check of a folder, the upload."""
