"""Modules by their names of version 0.1: `import pvc.publish` gives `pvc.hub.push`, with a warning.

The table goes with version 0.3.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "chat_pvc": "chat",
    "dialogue_cache_pvc": "dialogue_cache",
    "fast_decode_pvc": "fast_decode",
    "live_pvc": "live_video",
    "publish": "hub.push",
    "training.check": "training.data.check",
    "training.claims": "tiny.ablations",
    "training.encoding": "training.data.encoding",
    "training.mixing": "training.data.mixing",
    "training.muon": "training.optimizer",
    "training.packing": "training.data.packing",
    "training.pvc_tiny": "tiny.build",
    "training.samples": "training.data.samples",
    "training.scoring": "tiny.scoring",
    "training.seeing": "tiny.vision_pretraining",
    "training.tiny_tokenizer": "tiny.tokenizer",
    "training.train": "training.run",
    "training.worlds": "tiny.synthetic.dataset",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`, below the package of that name."""

    def __init__(self, package: str):
        self.package = package

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != self.package or name not in MOVED:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"{self.package}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {new} now", FutureWarning, stacklevel=2)
        module = import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType):
        """Gives the module, which has run under its own name, its own spec back."""
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = spec.loader_state


def find_moved_modules(package: str):
    """Makes the old names importable."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules(package))
