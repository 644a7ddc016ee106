"""Images and videos of digits, and questions about them, drawn as tensors.

A tile of 32 x 32 pixels has 4 x 4 patches of 8 x 8, and each patch is a digit. PVC merges the whole tile into
one visual token: 16 digits, 53 bits, in a token of 16 numbers. That is the bottleneck of the ablations.
Wide tiles have 8 x 8 patches, and each digit stands on 2 x 2 of them: four visual tokens of four digits. They
are for what the order of tokens in a tile does, where InternVL has 16 tokens of a digit each.

An image is shown several times. In a video each frame has digits of its own, and all questions are about the
first one: later visual tokens can help only where attention over time has carried its digits into them. So
the 16 questions, which digit is at a position at first, are the same for images and videos. An answer is one
token. Models and training are left to the other files.
"""

from dataclasses import dataclass

import numpy as np
import torch

SIDE, PATCH = 4, 8  # patches along a side of a tile, pixels along a side of a patch
WIDE = 8  # patches along a side of a wide tile
POSITIONS = SIDE**2  # of digits
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
QUESTION = 2  # + position
DIGIT = QUESTION + POSITIONS  # + digit
VOCABULARY = 32
QUESTIONS = torch.arange(QUESTION, QUESTION + POSITIONS)


@dataclass(frozen=True)
class Clips:
    """Images (`frames` 1) or videos.

    Attributes:
        pixels: `(clips * frames, 3, 32, 32)`, clip after clip; 64 x 64 where tiles are wide.
        digits: `(clips, 16)`: what is at each position of the first frame.
        frames: of each clip.
    """

    pixels: torch.Tensor
    digits: torch.Tensor
    frames: int

    def __len__(self) -> int:
        return len(self.digits)


def draw_clips(number: int, frames: int, rng: np.random.Generator, side: int = SIDE) -> Clips:
    """Clips of random digits, in tiles of `side` x `side` patches."""
    digits = rng.integers(DIGITS, size=(number, frames, SIDE, SIDE))
    first = torch.from_numpy(digits[:, 0]).flatten(1)  # (clips, 16)
    of_patches = digits.repeat(side // SIDE, axis=2).repeat(side // SIDE, axis=3)
    return Clips(render(of_patches, rng), first, frames)


def padding(side: int, visual_tokens: int) -> int:
    """Text tokens between visual tokens and questions.

    None, but of wide tiles as many as make the questions stand as far behind an image as behind a video.
    """
    return WIDE**2 - visual_tokens if side == WIDE else 0


def render(digits: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Digits of patches `(clips, frames, h, w)` -> pixels `(clips * frames, 3, 8 h, 8 w)`."""
    glyphs = np.zeros((DIGITS, PATCH, PATCH), np.float32)
    for glyph, bits in zip(glyphs, GLYPHS):
        glyph[1:6, 2:5] = np.reshape([int(bit) for bit in bits], (5, 3))

    patches = glyphs[digits]  # (clips, frames, h, w, 8, 8)
    side = digits.shape[-1] * PATCH
    pixels = patches.swapaxes(3, 4).reshape(*digits.shape[:2], side, side)

    contrast = rng.uniform(*CONTRAST, size=(len(digits), 1, 1, 1)).astype(np.float32)
    pixels = contrast * pixels + NOISE * rng.standard_normal(pixels.shape, np.float32)
    return torch.from_numpy(pixels).flatten(0, 1)[:, None].repeat(1, 3, 1, 1)  # (clips * frames, 3, 8 h, 8 w)


def sub_grids(side: int = SIDE) -> torch.Tensor:
    """`(16,)`: which of a tile's 2x2 sub-grids of patches the digit at each position is in."""
    if side == WIDE:
        return torch.arange(POSITIONS)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (row // 2 * 2 + column // 2).flatten()
