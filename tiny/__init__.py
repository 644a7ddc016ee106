"""PVC-Tiny: synthetic data, its tokenizer, vision pre-training, ablations and scoring."""
