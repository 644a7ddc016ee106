"""Trains PVC: recipes, data, the Trainer, and the checkpoints of a run."""
