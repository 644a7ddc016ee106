"""`pvc convert`: makes a PVC of an InternVL or of the released PVC, or a Dynamic-VLM, by `conversion/`."""

import os
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Option

from pvc.cli.shared import HUB_ID, bytes_progress, examples, full_message, log, report_errors, show_status
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc convert OpenGVLab/InternVL2-2B PVC-2B",
    "pvc convert ./InternVL2-2B PVC-2B --dry-run",
    "pvc convert ./small ./small-pvc --temporal-layers 2 --verify",
    "pvc convert Hon-Wong/ByteVideoLLM-14B Dynamic-14B --tokenizer Qwen/Qwen2.5-14B-Instruct",
    "pvc convert --system dynamic-vlm --vision ./clip-l-336 --llm Qwen/Qwen2.5-7B-Instruct Dynamic-7B",
)


def convert(
    source: Annotated[
        str,
        Argument(
            metavar="SOURCE", help="Folder or Hub id of an InternVL, the released PVC or a ByteVideoLLM."
        ),
    ],
    target: Annotated[str | None, Argument(metavar="TARGET", help="The folder to make.")] = None,
    system: Annotated[
        Literal["pvc", "dynamic-vlm"], Option(help="dynamic-vlm: of --vision and --llm, to be trained.")
    ] = "pvc",
    vision: Annotated[str | None, Option(help="Folder or Hub id of a CLIP, for dynamic-vlm.")] = None,
    llm: Annotated[str | None, Option(help="Folder or Hub id of an LLM, for dynamic-vlm.")] = None,
    compressor: Annotated[
        Literal["pooling", "merging", "pruning"], Option(help="Of a frame's tokens, for dynamic-vlm.")
    ] = "pooling",
    max_video_tokens: Annotated[
        int | None, Option(min=1, help="Budget of a video, for dynamic-vlm. Default: 12000; the 14B's 10000.")
    ] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a Hub id.")] = None,
    temporal_layers: Annotated[
        int, Option(min=0, help="How many of the ViT's last layers get temporal attention.")
    ] = 8,
    image_repeats: Annotated[int, Option(min=1, help="How often an image is shown.")] = 4,
    downsample_ratio: Annotated[float, Option(help="0.25: 64 visual tokens of 1024 patches.")] = 0.25,
    projector_init: Annotated[
        Literal["average", "interlaced", "random"] | None,
        Option(
            help="Mean of InternVL's tokens, each in one of the repeats, or random as in the paper. Default: "
            "interlaced, or average where an image is not shown once for each of InternVL's tokens."
        ),
    ] = None,
    tile_repeat_order: Annotated[
        Literal["raster", "tile", "frame"] | None,
        Option(
            help="Order of an image's tokens in the prompt (docs/messages.md). Default: raster where the "
            "interlaced start has it, which answers about images untrained, otherwise tile, which trains "
            "better on videos."
        ),
    ] = None,
    template: Annotated[str | None, Option(help="Prompt template. Default: the source's.")] = None,
    tokenizer: Annotated[
        str | None, Option(help="Folder or Hub id of a tokenizer, for a ByteVideoLLM, which has none.")
    ] = None,
    no_tokenizer: Annotated[bool, Option("--no-tokenizer", help="Convert the weights alone.")] = False,
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
    if target is None and system == "dynamic-vlm":
        source, target = "", source  # made of its parts
    if target is None:
        raise BadParameter("it is missing", param_hint="TARGET")
    target = os.path.expanduser(target)
    parts = {"vision": vision, "llm": llm, "tokenizer": tokenizer}

    with report_errors(describe=full_message):
        with show_status("Reading"):
            from pvc.conversion.convert import Conversion, Options
            from pvc.conversion.dynamic_vlm import DynamicVLMConversion, DynamicVLMOptions, is_released

            folder = _folder(source, revision) if source else None
            if folder is None or system == "dynamic-vlm" or is_released(folder):
                if no_tokenizer:
                    raise ValueError("--no-tokenizer: a Dynamic-VLM's prompts need the id of a token")
                found = {name: _folder(value) for name, value in parts.items() if value is not None}
                settings = DynamicVLMOptions(
                    tokenizer=found.pop("tokenizer", None),
                    compressor=compressor,
                    max_video_tokens=max_video_tokens,
                    overwrite=overwrite,
                    seed=seed,
                )
                conversion = DynamicVLMConversion(target, settings, released=folder, **found)
            else:
                _refuse(**parts, max_video_tokens=max_video_tokens)
                options = Options(
                    temporal_layers=temporal_layers,
                    image_repeats=image_repeats,
                    downsample_ratio=downsample_ratio,
                    projector_init=projector_init,
                    tile_repeat_order=tile_repeat_order,
                    template=template,
                    tokenizer=not no_tokenizer,
                    image_token_id=image_token_id,
                    key_map=key_map,
                    seed=seed,
                    overwrite=overwrite,
                )
                conversion = Conversion(folder, target, options)

        if dry_run:
            print(printable(conversion.plan.by_kind()))
        log(conversion.plan.summary())
        if dry_run:
            return

        hub_ids = [name for name in (source, llm) if name and _is_hub_id(name)]
        with bytes_progress("Writing", conversion.plan.nbytes) as advance:
            conversion.run(base_model=hub_ids[0] if hub_ids else None, progress=advance)
        kind = "Dynamic-VLM" if conversion.plan.config.model_type == "dynamic_vlm" else "PVC"
        log(f"{target} is a {kind} now: conversion.tsv there says what each tensor was made from")

        if verify:
            with show_status("Comparing"):
                differences = conversion.verify()
            print(*map(printable, map(str, differences)), sep="\n")


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not os.path.exists(os.path.expanduser(name))


def _folder(name: str, revision: str | None = None) -> Path:
    """The folder of that name, or of that Hub id once it is downloaded."""
    from pvc.conversion.convert import download

    return download(name, revision) if _is_hub_id(name) else Path(os.path.expanduser(name))


def _refuse(**options: object) -> None:
    """Raises a ValueError for an option of Dynamic-VLM where a PVC is made."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for Dynamic-VLM: use it with --system dynamic-vlm"
            )
