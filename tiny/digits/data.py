"""Images and videos of digits, and questions about them, drawn as tensors.

A tile of 32 x 32 pixels has 4 x 4 patches of 8 x 8, and each patch is a digit. PVC merges the whole tile into
one visual token: 16 digits, 53 bits, in a token of 16 numbers. That is the bottleneck of the ablations. Wide
tiles have 8 x 8 patches, four such tokens, for what the order of tokens in a tile does.

An image is shown several times. In a video each frame has digits of its own, and all questions are about the
first one: later visual tokens can help only where attention over time has carried its digits into them. So
the questions, which digit is at a position at first, are the same for images and videos, and as many as a
tile has positions. An answer is one token. Models and training are left to the other files.
"""

from dataclasses import dataclass

import numpy as np
import torch

SIDE, WIDE = 4, 8  # patches along a side of a tile, of a wide one
PATCH = 8  # pixels along a side of a patch
TIME_STEPS = 4  # repeats of an image, or frames of a video

GLYPHS = (  # 3 x 5 pixels each, row by row
    "111101101101111",
    "010110010010111",
    "111001111100111",
    "111001111001111",
    "101101111001001",
    "111100111001111",
    "111100111101111",
    "111001001001001",
    "111101111101111",
    "111101111001111",
)
DIGITS = len(GLYPHS)
CONTRAST = (0.7, 1.3)
NOISE = 0.1  # standard deviation beside a contrast of about 1

# ids of tokens
BEGIN, VISUAL = 0, 1
QUESTION = 2  # + position; digits follow


@dataclass(frozen=True)
class Clips:
    """Images (`frames` 1) or videos.

    Attributes:
        pixels: `(clips * frames, 3, 32, 32)`, clip after clip; of wide tiles 64 x 64.
        digits: `(clips, positions)`: what is at each position of the first frame.
        frames: of each clip.
    """

    pixels: torch.Tensor
    digits: torch.Tensor
    frames: int

    def __len__(self) -> int:
        return len(self.digits)


def questions(side: int) -> torch.Tensor:
    """`(side^2,)` ids of the questions about the positions of a tile."""
    return torch.arange(QUESTION, QUESTION + side**2)


def answers(side: int) -> slice:
    """The ids of the digits, where a tile has `side` patches along a side."""
    first = QUESTION + side**2
    return slice(first, first + DIGITS)


def vocabulary(side: int) -> int:
    """Number of ids, rounded up: 32, or 80 of wide tiles."""
    return -(-answers(side).stop // 16) * 16


def draw_clips(number: int, frames: int, rng: np.random.Generator, side: int = SIDE) -> Clips:
    """Clips of random digits, `side` x `side` of them in a tile."""
    digits = rng.integers(DIGITS, size=(number, frames, side, side))
    first = torch.from_numpy(digits[:, 0]).flatten(1)  # (clips, positions)
    return Clips(render(digits, rng), first, frames)


def render(digits: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Digits `(clips, frames, 4, 4)` -> pixels `(clips * frames, 3, 32, 32)`; a contrast for each clip."""
    glyphs = np.zeros((DIGITS, PATCH, PATCH), np.float32)
    for glyph, bits in zip(glyphs, GLYPHS):
        glyph[1:6, 2:5] = np.reshape([int(bit) for bit in bits], (5, 3))

    patches = glyphs[digits]  # (clips, frames, 4, 4, 8, 8)
    side = digits.shape[-1] * PATCH
    pixels = patches.swapaxes(3, 4).reshape(*digits.shape[:2], side, side)

    contrast = rng.uniform(*CONTRAST, size=(len(digits), 1, 1, 1)).astype(np.float32)
    pixels = contrast * pixels + NOISE * rng.standard_normal(pixels.shape, np.float32)
    return torch.from_numpy(pixels).flatten(0, 1)[:, None].repeat(1, 3, 1, 1)  # (clips * frames, 3, 32, 32)


def sub_grids(side: int = SIDE) -> torch.Tensor:
    """`(side^2,)`: which of a tile's 2x2 sub-grids each position is in, of four or, in wide tiles, 16."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (row // 2 * (side // 2) + column // 2).flatten()
