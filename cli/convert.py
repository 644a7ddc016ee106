"""`pvc convert`: makes a PVC of an InternVL or of the released PVC, by `conversion/convert.py`."""

import os
from typing import Annotated, Literal

from typer import Argument, Option

from pvc.cli.shared import HUB_ID, bytes_progress, examples, full_message, log, report_errors, show_status
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc convert OpenGVLab/InternVL2-2B PVC-2B",
    "pvc convert ./InternVL2-2B PVC-2B --dry-run",
    "pvc convert ./small ./small-pvc --temporal-layers 2 --verify",
)


def convert(
    source: Annotated[
        str, Argument(metavar="SOURCE", help="Folder or Hub id of an InternVL, or the released PVC.")
    ],
    target: Annotated[str, Argument(metavar="TARGET", help="The folder to make.")],
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a Hub id.")] = None,
    temporal_layers: Annotated[
        int, Option(min=0, help="How many of the ViT's last layers get temporal attention.")
    ] = 8,
    image_repeats: Annotated[int, Option(min=1, help="How often an image is shown.")] = 4,
    downsample_ratio: Annotated[float, Option(help="0.25: 64 visual tokens of 1024 patches.")] = 0.25,
    projector_init: Annotated[
        Literal["average", "random"], Option(help="Mean of InternVL's weights, or random as in the paper.")
    ] = "average",
    template: Annotated[str | None, Option(help="Prompt template. Default: the source's.")] = None,
    tokenizer: Annotated[
        bool, Option("--tokenizer/--no-tokenizer", help="Convert the tokenizer too.")
    ] = True,
    image_token_id: Annotated[int | None, Option(help="Of <IMG_CONTEXT>, for --no-tokenizer.")] = None,
    key_map: Annotated[
        str | None, Option(metavar="FILE", help="JSON from names in the released PVC to ours.")
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Seed of new parameters.")] = 0,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace TARGET once the new one is whole.")
    ] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would be done.")] = False,
    verify: Annotated[bool, Option("--verify", help="Compare both models on random input.")] = False,
) -> None:
    """Make a PVC of an InternVL 2, 2.5, 3 or 3.5 (1B to 8B), or of the released PVC.

    TARGET is a folder that transformers loads; it appears whole or not at all.
    """
    with report_errors(describe=full_message):
        with show_status("Reading"):
            from pvc.conversion.convert import Conversion, Options, download

            is_hub_id = HUB_ID.fullmatch(source) and not os.path.exists(os.path.expanduser(source))
            folder = download(source, revision) if is_hub_id else os.path.expanduser(source)
            options = Options(
                temporal_layers=temporal_layers,
                image_repeats=image_repeats,
                downsample_ratio=downsample_ratio,
                projector_init=projector_init,
                template=template,
                tokenizer=tokenizer,
                image_token_id=image_token_id,
                key_map=key_map,
                seed=seed,
                overwrite=overwrite,
            )
            conversion = Conversion(folder, os.path.expanduser(target), options)

        if dry_run:
            print(printable(conversion.plan.by_kind()))
        log(conversion.plan.summary())
        if dry_run:
            return

        with bytes_progress("Writing", conversion.plan.nbytes) as advance:
            conversion.run(base_model=source if is_hub_id else None, progress=advance)
        log(f"{target} is a PVC now: conversion.tsv there says what each tensor was made from")

        if verify:
            with show_status("Comparing"):
                differences = conversion.verify()
            print(*map(printable, map(str, differences)), sep="\n")
