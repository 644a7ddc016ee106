"""The interlaced start of the projector: four repeats of an image give InternVL's tokens before any training.

PVC merges blocks of 4x4 patches where InternVL merges 2x2. Repeat `r` of an image, whose time is r / 3,
takes the r-th 2x2 sub-block of each block: gamma is 1 on it and 0 on the other three.

    gamma(x + TE(t)) = h_r(t) on sub-block r        beta = 0
    W' = W diag(w) (I - 11'/4C) on every sub-block  b' = b + W beta

`w`, `beta` are of InternVL's LayerNorm. `h_r` is the hat function: 1 at the time of sub-block r, 0 at that
of every other, linear between. So a frame of a video has two neighbouring sub-blocks, weighed by its time.

`tile_repeat_order` "raster" puts the tokens of the repeats into InternVL's order.

LayerNorm runs over a whole block where InternVL's runs over 2x2. Its shift is undone by `I - 11'/4C`. Its
scale is not: sub-block r comes out multiplied by its own standard deviation over that of its block.

How AdaLN does it, with `k` sub-blocks in all:

- TE adds `LEVEL * h_r(t)` to `COMPONENTS` reserved components for each r. h_r is a sum of ramps: SiLU units
  far from 0, of the sinusoid that is nearly linear in t.
- Two units of gamma's hidden layer for each r take the mean of these components, shifted by LEVEL / 4 and by
  3 LEVEL / 4. Their difference is 0 below the first and 1 above the second: what x adds to the reserved
  components changes nothing as long as its mean stays below LEVEL / 4.
- The other units of all three MLPs start as usual and do not read reserved components.
"""

from dataclasses import dataclass

import torch

from pvc.modeling_intern_vit import sinusoid

COMPONENTS = 16  # of the projector's input that carry the time of one sub-block
LEVEL = 64.0  # what is added to them: far above the features of a ViT
SHARPNESS = 10.0  # of a ramp, at the distance of two times
LINEAR = 0.05  # largest sine at t = 1 that counts as linear in t


@dataclass(frozen=True)
class InterlacedStart:
    """Initial values of a projector's AdaLN.

    Attributes:
        width: of the projector's input: `block^2 * C`.
        time_embed_dim: of the sinusoid.
        block: patches along a side of PVC's block.
        small: patches along a side of InternVL's.

    Raises:
        ValueError: where the projector is too narrow, or there is one sub-block alone.
    """

    width: int
    time_embed_dim: int
    block: int
    small: int

    def __post_init__(self):
        if self.count < 2:
            raise ValueError("an interlaced start needs a block of several of InternVL's: choose average")
        if self.width < 4 * self.count or self.time_embed_dim < 4:
            raise ValueError(f"a projector of width {self.width} is too narrow for an interlaced start")

    @property
    def count(self) -> int:
        """Sub-blocks of a block, which are the repeats that show all of it."""
        return (self.block // self.small) ** 2

    def apply(self, name: str, usual: torch.Tensor) -> torch.Tensor:
        """The start of the parameter `name` of AdaLN, such as "gamma.0.weight", from its `usual` one.

        Args:
            usual: as the model initialises it; not changed.

        Returns:
            A tensor of its shape and dtype.
        """
        make = {
            "time_embed.0.weight": self._ramp_slopes,
            "time_embed.0.bias": self._ramp_starts,
            "time_embed.2.weight": self._hats,
            "time_embed.2.bias": self._first_hat,
            "gamma.0.weight": self._thresholds,
            "gamma.0.bias": self._threshold_levels,
            "gamma.2.weight": self._selection,
            "gamma.2.bias": torch.zeros_like,
            "beta.0.weight": self._without_reserved,
        }.get(name, torch.clone)

        return make(usual)

    # ---- TE: times to hats

    def _sine(self) -> int:
        """The component of the sinusoid that is nearly linear in t; cosines stand before the sines."""
        half = self.time_embed_dim // 2
        sines = sinusoid(torch.ones(1), self.time_embed_dim)[0, half:]
        return half + min(int((sines > LINEAR).sum()), half - 1)

    def _knots(self) -> torch.Tensor:
        """`(count,)` float64: sin(f t) / sin(f) at the times of the repeats; 0 first, 1 last."""
        sines = sinusoid(torch.linspace(0, 1, self.count), self.time_embed_dim)[:, self._sine()]
        return sines.double() / sines[-1].double()

    def _steepness(self) -> float:
        return SHARPNESS * (self.count - 1)

    def _ramp_slopes(self, usual: torch.Tensor) -> torch.Tensor:
        """Hidden unit `i` of TE is `steepness * (time - knot i)` where that is positive, else about 0."""
        sine, last = self._sine(), sinusoid(torch.ones(1), self.time_embed_dim)[0]
        weight = usual.clone()
        weight[: self.count - 1] = 0
        weight[: self.count - 1, sine] = self._steepness() / last[sine].item()
        return weight

    def _ramp_starts(self, usual: torch.Tensor) -> torch.Tensor:
        bias = usual.clone()
        bias[: self.count - 1] = (-self._steepness() * self._knots()[:-1]).to(usual.dtype)
        return bias

    def _hats(self, usual: torch.Tensor) -> torch.Tensor:
        """Reserved components are hats, as sums of ramps; no other component reads the ramps."""
        weight = usual.clone()
        weight[:, : self.count - 1] = 0
        slopes = 1 / self._knots().diff() / self._steepness()  # of the hats' sides, in units of a ramp

        for r, components in enumerate(self._reserved()):
            weight[components] = 0
            # up from the knot before, down from its own, level from the one behind
            if r > 0:
                weight[components, r - 1] += LEVEL * slopes[r - 1].item()
            if r < self.count - 1:
                rise = slopes[r - 1].item() if r > 0 else 0.0
                weight[components, r] -= LEVEL * (rise + slopes[r].item())
            if r < self.count - 2:
                weight[components, r + 1] += LEVEL * slopes[r].item()
        return weight

    def _first_hat(self, usual: torch.Tensor) -> torch.Tensor:
        """The first sub-block's hat starts at its top."""
        bias = usual.clone()
        for r, components in enumerate(self._reserved()):
            bias[components] = LEVEL if r == 0 else 0.0
        return bias

    # ---- gamma: hats to sub-blocks

    def _reserved(self) -> torch.Tensor:
        """`(count, m)` components of the projector's input, scattered, so that no channel is hit often."""
        each = min(COMPONENTS, self.width // (4 * self.count))
        scattered = torch.randperm(self.width, generator=torch.Generator().manual_seed(0))
        return scattered[: self.count * each].view(self.count, each)

    def _thresholds(self, usual: torch.Tensor) -> torch.Tensor:
        """Hidden units 2 r and 2 r + 1 of gamma are the mean of the components of sub-block r."""
        weight = self._without_reserved(usual)
        weight[: 2 * self.count] = 0
        for r, components in enumerate(self._reserved()):
            weight[2 * r : 2 * r + 2, components] = 1 / len(components)
        return weight

    def _threshold_levels(self, usual: torch.Tensor) -> torch.Tensor:
        bias = usual.clone()
        levels = torch.tensor([-LEVEL / 4, -3 * LEVEL / 4], dtype=usual.dtype)
        bias[: 2 * self.count] = levels.repeat(self.count)
        return bias

    def _selection(self, usual: torch.Tensor) -> torch.Tensor:
        """Gamma is the difference of the two units of a component's sub-block."""
        weight = torch.zeros_like(usual)
        rows = torch.arange(self.width)
        sub_block = self._sub_block_of_components()
        weight[rows, 2 * sub_block] = 2 / LEVEL
        weight[rows, 2 * sub_block + 1] = -2 / LEVEL
        return weight

    def _sub_block_of_components(self) -> torch.Tensor:
        """`(width,)`: the sub-block, row by row, of each component of `(bh bw c)`."""
        side = torch.arange(self.block) // self.small
        sub_blocks = side[:, None] * (self.block // self.small) + side  # (bh, bw)
        return sub_blocks.flatten().repeat_interleave(self.width // self.block**2)

    def _without_reserved(self, usual: torch.Tensor) -> torch.Tensor:
        weight = usual.clone()
        weight[:, self._reserved().flatten()] = 0
        return weight
