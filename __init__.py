"""PVC: Progressive Visual Token Compression, a vision-language model for images and videos.

    import pvc
    model = pvc.PVCForConditionalGeneration.from_pretrained(pvc.CHECKPOINT)

The modules of this package are the files that travel with every checkpoint (`pvc.modeling_pvc`,
`pvc.preprocess`, ...). They, and the names of `EXPORTS`, are imported when they are first used, so that
`import pvc` is fast. `CHECKPOINT` is the folder of PVC-Tiny, the small model that comes with the package.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from .moved_names import find_moved_modules

CHECKPOINT = Path(__file__).resolve().parent
ABOUT_CHECKPOINT = (
    "PVC-Tiny was trained on synthetic images and videos only: coloured shapes, their positions and motion, "
    "and short words. Answers about several images are often wrong, and those about photographs are "
    "meaningless."
)
find_moved_modules(__name__)

EXPORTS = {  # name -> module
    "DynamicVLMConfig": "configuration_dynamic_vlm",
    "DynamicVLMForConditionalGeneration": "modeling_dynamic_vlm",
    "DynamicVLMProcessor": "processing_dynamic_vlm",
    "PVCConfig": "configuration_pvc",
    "PVCForConditionalGeneration": "modeling_pvc",
    "PVCProcessor": "processing_pvc",
    "load_image": "preprocess",
    "load_video": "preprocess",
    "quantization_config": "loading",
}

__all__ = ["ABOUT_CHECKPOINT", "CHECKPOINT", *EXPORTS]


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        value = getattr(import_module(f"{__name__}.{EXPORTS[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("pvc")
    elif name in _modules():
        return import_module(f"{__name__}.{name}")  # which sets it here
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS, *_modules(), "__version__"})


def _modules() -> set[str]:
    files = {path.stem for path in CHECKPOINT.glob("*.py")}
    packages = {path.parent.name for path in CHECKPOINT.glob("*/__init__.py")}
    return {name for name in files | packages if name.isidentifier() and not name.startswith("_")}
