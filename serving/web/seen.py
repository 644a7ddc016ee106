"""What the model saw, as HTML beside the answer: tiles, frames with their times, visual tokens, seconds.

The images are the tiles that were encoded, scaled down: what is cut off or blurred here was so for the model.
All text is escaped; images are data: addresses, so that nothing is fetched.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pvc.clips import Clip
from pvc.preprocess import IMAGENET_MEAN, IMAGENET_STD

SHOWN_SIDE = 96  # pixels of a tile in the page
MOST_SHOWN = 64  # tiles of an image or video in the page
NOTHING_SEEN = "<p class='pvc-hint'>Tiles, frames, visual tokens and seconds of an answer appear here.</p>"


class SeenMedia(NamedTuple):
    """An image or video of a prompt."""

    name: str
    clip: Clip
    pixels: torch.Tensor  # (tiles, 3, S, S) as the model takes them
    tokens: int
    times_s: list[float] | None = None  # of the frames of a video
    mean: Sequence[float] = IMAGENET_MEAN  # that were subtracted from the pixels
    std: Sequence[float] = IMAGENET_STD


@dataclass(frozen=True)
class Seen:
    """What the model saw of a dialogue, and how long each stage took.

    Args:
        prompt_tokens: of the whole dialogue, visual tokens counted.
        media_s: for reading files and laying out the prompt.
        reused_tokens: of the prompt, known from an earlier turn.
        answer_tokens: of the answer; None: it is not complete.
        first_s: for encoding media and the prompt, up to the first text.
        tokens_per_s: after that; None where one piece was all.
        is_cut: whether the answer ended at the limit of tokens.
    """

    media: list[SeenMedia]
    prompt_tokens: int
    media_s: float
    reused_tokens: int = 0
    answer_tokens: int | None = None
    first_s: float | None = None
    tokens_per_s: float | None = None
    is_cut: bool = False


def seen_html(seen: Seen) -> str:
    """The panel beside the answer."""
    visual = sum(item.tokens for item in seen.media)
    rows = [
        ("Prompt", f"{seen.prompt_tokens} tokens, {visual} of them visual"),
        ("Files read", f"{seen.media_s:.2f} s" if seen.media else ""),
    ]
    if seen.first_s is not None:
        reused = f"; {seen.reused_tokens} tokens were known" if seen.reused_tokens else ""
        rows.append(("First text", f"after {seen.first_s:.2f} s{reused}"))
    if seen.answer_tokens is not None:
        rate = f", {seen.tokens_per_s:.1f} a second" if seen.tokens_per_s else ""
        cut = " (the limit)" if seen.is_cut else ""
        rows.append(("Answer", f"{seen.answer_tokens} tokens{cut}{rate}"))

    table = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows if text)
    # the newest first: that is what was asked about
    media = "".join(_media_html(item) for item in reversed(seen.media))
    return f"<div class='pvc-seen'><table>{table}</table>{media}</div>"


def _media_html(item: SeenMedia) -> str:
    clip = item.clip
    total = len(item.pixels)
    is_video = item.times_s is not None or clip.frames > 1
    unit = _plural(clip.frames, "frame") if is_video else _plural(total, "tile")
    summary = f"<b>{html.escape(item.name)}</b> {unit}, {_plural(item.tokens, 'visual token')}"

    shown = range(min(total, MOST_SHOWN))
    figures = "".join(
        f"<figure><img alt='{caption}' src='{tile_address(item.pixels[i], item.mean, item.std)}'>"
        f"<figcaption>{caption}</figcaption></figure>"
        for i, caption in ((i, _caption(item, i, is_video)) for i in shown)
    )
    rest = f"<p class='pvc-hint'>and {total - MOST_SHOWN} more</p>" if total > MOST_SHOWN else ""
    return f"<details open><summary>{summary}</summary><div class='pvc-tiles'>{figures}</div>{rest}</details>"


def _caption(item: SeenMedia, index: int, is_video: bool) -> str:
    """What stands under a tile: the time or number of its frame, or its number in the image."""
    frame, tile = divmod(index, item.clip.tiles)
    if not is_video:
        is_thumbnail = item.clip.tiles > 1 and tile == item.clip.tiles - 1
        return "thumbnail" if is_thumbnail else f"tile {tile + 1}"
    return f"{item.times_s[frame]:.2f} s" if item.times_s is not None else f"frame {frame + 1}"


def tile_address(
    tile: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> str:
    """A tile `(3, S, S)` as a data: address of a small JPEG; `mean` and `std` were taken from its pixels."""
    means, stds = (tile.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    pixels = ((tile * stds + means).clamp(0, 1) * 255).round()  # (3, S, S)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8))  # (S, S, 3)

    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _plural(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
