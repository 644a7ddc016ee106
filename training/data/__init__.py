"""Training data: meta JSON, samples, encoding, packing, mixing, and the loader (its names are found here)."""

from importlib import import_module

LOADER = ("DataOptions", "PackedDataset", "PackLoader", "with_kinds_there_are")


def __getattr__(name: str):
    if name not in LOADER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.loader"), name)
