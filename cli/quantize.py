"""`pvc quantize`: writes a checkpoint whose LLM has 8 or 4 bits a weight."""

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pvc.cli.shared import QUANTIZATIONS, examples, find_model, log, report_errors, show_status

EXAMPLES = examples(
    "pvc quantize org/PVC-InternVL2-8B PVC-8B-int8",
    "pvc quantize PVC-8B PVC-8B-nf4 --kind nf4",
)


def quantize(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id.")],
    target: Annotated[str, Argument(metavar="OUT", help="The folder to make.")],
    kind: Annotated[
        QUANTIZATIONS, Option(help="int8, nf4: bitsandbytes; int8-weight-only: torchao.")
    ] = "int8",
    device: Annotated[str | None, Option(help="cuda, cuda:1 or cpu. Default: the fastest.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace OUT once the new one is whole.")] = False,
    trust: Annotated[bool, Option("--trust-remote-code", help="Of a Hub id: do not ask.")] = False,
) -> None:
    """Write a checkpoint whose LLM has 8 or 4 bits a weight; ViT, projector and head stay as they are.

    OUT appears whole or not at all, and loads as any checkpoint where the library that made it is installed.
    """
    with report_errors(), show_status("Loading") as status:
        from pvc.cli.chat import load_model
        from pvc.conversion.files import atomic_directory

        folder = find_model(model, trust, status)
        loaded, processor = load_model(folder, device, "auto", kind, None)

        status.update("Writing")
        with atomic_directory(Path(os.path.expanduser(target)), overwrite) as unfinished:
            loaded.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
    log(f"{target} is written: {size_gb(target):.2f} GB, {model} has {size_gb(folder):.2f} GB")


def size_gb(folder: str) -> float:
    """Of the weights, in 10^9 bytes."""
    files = Path(os.path.expanduser(folder)).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) / 1e9
