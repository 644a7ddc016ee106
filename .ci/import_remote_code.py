"""Imports each file of the remote code, as a package that holds nothing else of this repository.

Needs torch, transformers, einops, numpy and Pillow. Prints the modules that it imported.
"""

import importlib
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_ONLY = {"__init__", "convert_weights", "moved_names"}
NEEDS_SENTENCEPIECE = {"tokenization_internlm2"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "remote_code"
        package.mkdir()
        (package / "__init__.py").touch()

        modules = sorted({path.stem for path in ROOT.glob("*.py")} - PACKAGE_ONLY)
        for name in modules:
            shutil.copy(ROOT / f"{name}.py", package)

        sys.path.insert(0, folder)
        for name in modules:
            if name not in NEEDS_SENTENCEPIECE:
                importlib.import_module(f"remote_code.{name}")
                print(name)


if __name__ == "__main__":
    main()
