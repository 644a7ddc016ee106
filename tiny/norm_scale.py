"""How far an interlaced start is from InternVL's visual tokens: the scale of a LayerNorm.

    python -m pvc.tiny.norm_scale MODEL FILE...     on the ViT's features of images and videos

InternVL normalises each sub-block of 2x2 patches, PVC the block of 4x4 that holds four of them. With the
interlaced start (`conversion/interlaced.py`) a normalised sub-block comes out multiplied by

    ratio = std(sub-block) / std(block)

and all else is as InternVL has it. So |ratio - 1| is the relative error of what the projector's MLP is given.
The error of its output is that of an MLP with random weights, since a PVC no longer has InternVL's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from pvc.modeling_pvc import PVCForConditionalGeneration, pixel_shuffle
from pvc.preprocess import load_image, load_video
from pvc.reporting.markdown import markdown_table

BLOCK, SMALL = 4, 2  # patches along a side of PVC's block, of InternVL's
VIDEO_ENDINGS = (".mp4", ".avi", ".webm", ".mkv", ".mov")
HIDDEN = 512  # of the random MLP


def sub_block_ratios(patches: torch.Tensor) -> torch.Tensor:
    """Std of each sub-block over that of its block.

    Args:
        patches: `(R, h, w, C)` of a ViT.

    Returns:
        `(R, h / 2, w / 2)`.
    """
    small = pixel_shuffle(patches.double(), SMALL).std(-1, correction=0)  # (R, h / 2, w / 2)
    large = pixel_shuffle(patches.double(), BLOCK).std(-1, correction=0)  # (R, h / 4, w / 4)
    times = BLOCK // SMALL
    return small / large.repeat_interleave(times, 1).repeat_interleave(times, 2)


@torch.no_grad()
def token_error(patches: torch.Tensor, seed: int = 0) -> float:
    """Relative error of tokens of a random MLP, whose input is too large by the ratios."""
    exact = F.layer_norm(pixel_shuffle(patches, SMALL), (SMALL**2 * patches.shape[-1],))
    scaled = exact * sub_block_ratios(patches).to(exact)[..., None]

    torch.manual_seed(seed)
    width = exact.shape[-1]
    mlp = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
    for layer in (mlp[0], mlp[2]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    return ((mlp(scaled) - mlp(exact)).norm() / mlp(exact).norm()).item()


@torch.no_grad()
def patches_of(model: PVCForConditionalGeneration, path: Path) -> torch.Tensor:
    """Features `(R, h, w, C)` of the tiles of an image, or of frames of a video, shown once each."""
    vision = model.config.vision_config
    if path.suffix.lower() in VIDEO_ENDINGS:
        pixels = load_video(str(path), input_size=vision.image_size)[0]
    else:
        pixels = load_image(str(path), input_size=vision.image_size)
    states = model.model.vision_model(pixels).last_hidden_state[:, 1:]  # (R, h * w, C)
    return rearrange(states, "r (h w) c -> r h w c", h=vision.image_size // vision.patch_size)


def report(model: PVCForConditionalGeneration, files: Sequence[Path]) -> str:
    """A line for each file: the ratio's mean and standard deviation, and both errors."""
    lines = []
    for path in files:
        patches = patches_of(model, path)
        ratios = sub_block_ratios(patches)
        error = (ratios - 1).square().mean().sqrt().item()
        shown = f"{ratios.mean():.3f} ± {ratios.std():.3f}"
        lines.append([path.name, len(patches), shown, f"{error:.3f}", f"{token_error(patches):.3f}"])
    head = ["", "tiles", "ratio", "error of the MLP's input", "of its output"]
    return markdown_table(head, lines, align="lrrrr") + "\n"


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m pvc.tiny.norm_scale", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="images and videos")
    options = parser.parse_args(arguments)

    model = PVCForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
    print(report(model, options.files), end="")


if __name__ == "__main__":
    main()
