"""What turns other checkpoints into PVC's; `convert_weights.py` is the way in."""
