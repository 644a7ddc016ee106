"""Training data: meta JSON, samples, encoding, packing, mixing, and the loader."""
