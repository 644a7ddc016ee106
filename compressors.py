"""Token budget: how many visual tokens a frame gets, and the compressors that make so many of its patches.

    wanted = frame_tokens(frames, max_video_tokens)       # at most so many a frame
    tokens = compressor.tokens(wanted, patches)           # what the compressor makes of it
    compressor(features, tokens)                          # (F, N, C) -> (F, tokens, C)
    clips  = budget.share(clips)                          # `Clip.tokens` of the clips of a prompt

The three compressors of Dynamic-VLM (arXiv 2412.09530, equations 1 to 3) share this signature. All work on
each frame by itself, and on all frames of a call at once. Who lays out the prompt asks `tokens`, which is
plain arithmetic; the model asks `forward`.

Shapes: `F` frames, `N` patches of a frame in raster order, `M` tokens of a frame, `C` width.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from .clips import Clip

FIRST_BIAS = 0.02  # of the selector's logits, as in Elysium's
GOLDEN_RATIO = (5**0.5 - 1) / 2


def frame_tokens(frames: int, max_video_tokens: int, most: int = 576) -> int:
    """Tokens of each of `frames` frames that share a budget: an equal share, at most `most`, at least 1.

    So more frames than the budget has tokens exceed it. No frames share nothing: `most`.
    """
    if frames < 0 or max_video_tokens < 1 or most < 1:
        raise ValueError(
            f"{frames} frames, max_video_tokens {max_video_tokens}, at most {most} tokens a frame: expected "
            "no negative number of frames, and at least 1 of the others"
        )
    return max(1, min(max_video_tokens // max(frames, 1), most))


class AdaptivePooling(nn.Module):
    """The mean of each window of a square grid of windows (equation 1).

    Window `i` of `s` covers the rows from `floor(i * g / s)` to `ceil((i + 1) * g / s)` of a grid of `g`
    rows, so windows overlap where `s` does not divide `g`. The number of tokens is a square.
    """

    @staticmethod
    def tokens(wanted: int, patches: int) -> int:
        """The largest square up to `wanted`; all patches where that many are wanted."""
        return patches if wanted >= patches else isqrt(max(wanted, 1)) ** 2

    def forward(self, features: torch.Tensor, tokens: int) -> torch.Tensor:
        """`(F, N, C)` -> `(F, s * s, C)`, for `tokens` of at least `s * s`.

        Raises:
            ValueError: where `tokens` is not positive, or the patches are not a square grid.
        """
        patches = features.shape[1]
        side = isqrt(self.tokens(_checked(tokens), patches))
        if tokens >= patches:
            return features

        grid = isqrt(patches)
        if grid * grid != patches:
            raise ValueError(f"pooling needs a square grid of patches, but a frame has {patches}")

        # a view: a copy would cost more than the pooling
        x = features.transpose(1, 2).unflatten(2, (grid, grid))  # (F, C, g, g)
        x = functional.adaptive_avg_pool2d(x, side)  # (F, C, s, s)
        return x.flatten(2).transpose(1, 2).contiguous()  # (F, s * s, C), as engines' linear layers want it


class TokenMerging(nn.Module):
    """Every k-th token is a seed, and each other token joins the seed most like it (equation 2).

    This is ToMe's k-th bipartite soft matching with the features as metric. A token of the result is the
    plain mean of a seed and what joined it. The last `N mod k` tokens are dropped.
    """

    @staticmethod
    def tokens(wanted: int, patches: int) -> int:
        """`N // k` for the least `k` that makes at most `wanted`."""
        return patches // _stride(wanted, patches)

    def forward(self, features: torch.Tensor, tokens: int) -> torch.Tensor:
        """`(F, N, C)` -> `(F, N // k, C)`, for the least `k` that makes at most `tokens`.

        Raises:
            ValueError: where `tokens` is not positive.
        """
        return merge_kth(features, _stride(_checked(tokens), features.shape[1]))


def _stride(wanted: int, patches: int) -> int:
    """The least `k` with `patches // k <= wanted`."""
    return patches // (max(wanted, 1) + 1) + 1


def merge_kth(features: torch.Tensor, k: int) -> torch.Tensor:
    """`(F, N, C)` -> `(F, N // k, C)`: tokens `k - 1, 2k - 1, …` with what is most like each.

    Similarity is the cosine, computed in float32; of equal ones the first seed counts. Matching has no
    gradient, the mean has. A token of zeros is like nothing: all similarities to it are NaN, which count as
    the largest, as in ToMe.
    """
    if k <= 1:
        return features
    groups = features[:, : features.shape[1] // k * k].unflatten(1, (-1, k))  # (F, M, k, C)
    seeds = groups[:, :, -1]  # (F, M, C)
    others = groups[:, :, :-1].flatten(1, 2)  # (F, M * (k - 1), C)

    # in full precision whatever the surrounding autocast says: near ties decide who joins whom
    with torch.autocast(features.device.type, enabled=False):
        owners = _most_similar(others.detach(), seeds.detach())  # (F, M * (k - 1))
        joined = functional.one_hot(owners, seeds.shape[1]).transpose(1, 2)  # (F, M, M * (k - 1))

        exact = torch.promote_types(features.dtype, torch.float32)
        total = seeds.to(exact) + joined.to(exact) @ others.to(exact)  # (F, M, C)
        count = 1 + joined.sum(2, keepdim=True)  # (F, M, 1)
        return total.to(features.dtype) / count  # rounded before it is divided, as in ToMe


def _most_similar(others: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """For each of `others (F, O, C)` the index of the seed `(F, M, C)` of the largest cosine: `(F, O)`."""
    exact = torch.promote_types(others.dtype, torch.float32)
    others, seeds = others / others.norm(dim=-1, keepdim=True), seeds / seeds.norm(dim=-1, keepdim=True)
    similarity = others.to(exact) @ seeds.to(exact).transpose(1, 2)  # (F, O, M)
    return similarity.argmax(dim=2)


class TokenPruning(nn.Module):
    """The tokens that a small selector rates highest, unchanged and in raster order (equation 3).

    A frame's logits are `mix(score(x))`: one number a patch, then a map among the frame's patches. In
    training Gumbel noise is added, and the gradient passes as if kept tokens were multiplied by their
    softmax. The selector of Elysium, whose training is not published.

    Args:
        num_patches: of a frame; `mix` binds the module to it.
        width: of a patch's features.
    """

    def __init__(self, num_patches: int, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.mix = nn.Linear(num_patches, num_patches)
        self.mix.starts_even = True
        init_even_start(self.mix)

    @staticmethod
    def tokens(wanted: int, patches: int) -> int:
        """As many as are wanted, at most all."""
        return min(max(wanted, 1), patches)

    def forward(self, features: torch.Tensor, tokens: int) -> torch.Tensor:
        """`(F, N, C)` -> `(F, tokens, C)`.

        Raises:
            ValueError: where `tokens` is not positive, or a frame has another number of patches.
        """
        patches, expected = features.shape[1], self.mix.in_features
        if patches != expected:
            raise ValueError(f"the selector is for {expected} patches a frame, but a frame has {patches}")

        scores = self.logits(features)  # (F, N)
        if self.training:
            # softmax keeps the order, so that the noise alone changes what is kept
            scores = (scores + _gumbel_noise(scores)).softmax(dim=1)

        # the first of equals, the same on every device
        order = scores.argsort(dim=1, descending=True, stable=True)
        kept = order[:, : self.tokens(_checked(tokens), patches)].sort(dim=1).values  # (F, M)

        x = features.take_along_dim(kept[..., None], dim=1)  # (F, M, C)
        if self.training:
            weight = scores.take_along_dim(kept, dim=1)[..., None].to(x.dtype)  # (F, M, 1)
            x = x * (1 + (weight - weight.detach()))  # exactly x, with a gradient for the weight too
        return x

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """What patches `(F, N, C)` are rated: `(F, N)`, at least float32."""
        logits = self.mix(self.score(features).squeeze(2))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def init_even_start(module: nn.Module):
    """Gives a selector's `mix` its start: patches are kept by position alone, an even subset of any number.

    Multiples of the golden ratio, modulo 1, are spread evenly, however many of them are taken.
    """
    if not hasattr(module, "starts_even"):
        return
    nn.init.zeros_(module.weight)
    if getattr(module.bias, "_is_hf_initialized", False):
        return  # transformers has loaded it
    positions = torch.arange(len(module.bias), dtype=torch.float64, device=module.bias.device)
    module.bias.copy_(FIRST_BIAS * (1 - positions * GOLDEN_RATIO % 1))


def _gumbel_noise(like: torch.Tensor) -> torch.Tensor:
    return -torch.empty_like(like).exponential_().log()


def _checked(tokens: int) -> int:
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: expected at least 1 a frame")
    return tokens


COMPRESSORS: dict[str, Any] = {"pooling": AdaptivePooling, "merging": TokenMerging, "pruning": TokenPruning}


def make_compressor(name: str, num_patches: int, width: int) -> nn.Module:
    """The compressor of a name of `COMPRESSORS`; pruning alone has parameters."""
    return TokenPruning(num_patches, width) if name == "pruning" else COMPRESSORS[name]()


def by_number(
    compress: Callable[[torch.Tensor, int], torch.Tensor], features: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Tokens `(sum of tokens, C)` of frames `(F, N, C)`, as many of each as `tokens (F,)` says, in order.

    `compress (frames, N, C), M -> (frames, M, C)`: called once for each number.
    """
    numbers = tokens.unique().tolist()
    if len(numbers) == 1:
        return compress(features, numbers[0]).flatten(0, 1)  # (F * M, C)

    # frames of the same number together, each then to its position
    starts = tokens.cumsum(0) - tokens  # (F,)
    parts, positions = [], []
    for number in numbers:
        frames = (tokens == number).nonzero().flatten()  # (frames,)
        parts.append(compress(features[frames.to(features.device)], number).flatten(0, 1))
        positions.append((starts[frames, None] + torch.arange(number)).flatten())

    order = torch.cat(positions).argsort().to(features.device)
    return torch.cat(parts)[order]


class TokenBudget(NamedTuple):
    """How the clips of one prompt share visual tokens.

    Attributes:
        compressor: a name of `COMPRESSORS`.
        patches: of a tile: what the compressor makes tokens of.
        max_video_tokens: of all frames of a video; the images of a prompt together count as a video. None:
            no limit.
        most: of a tile; None: all patches.
        fixed: tokens of every tile, whatever the budget is; None: the budget decides.
        counts_images: whether images take part; else they keep the model's own number.
    """

    compressor: str
    patches: int
    max_video_tokens: int | None
    most: int | None = None
    fixed: int | None = None
    counts_images: bool = True

    def share(self, clips: Sequence[Clip]) -> list[Clip]:
        """The clips of one prompt with their numbers of tokens; without any limit as they are."""
        if self.max_video_tokens is None and self.fixed is None:
            return list(clips)

        num_images = sum(clip.tiles * clip.repeats for clip in clips if clip.frames == 1)
        shared = []
        for clip in clips:
            shown = num_images if clip.frames == 1 else clip.frames * clip.tiles * clip.repeats
            takes_part = clip.frames > 1 or self.counts_images
            shared.append(clip._replace(tokens=self.tokens(shown)) if takes_part else clip)
        return shared

    def tokens(self, tiles: int) -> int:
        """Tokens of each of `tiles` tiles, repeats counted, that share the budget."""
        wanted = self.fixed or self.most or self.patches
        if self.fixed is None and self.max_video_tokens is not None:
            wanted = frame_tokens(tiles, self.max_video_tokens, wanted)
        return COMPRESSORS[self.compressor].tokens(wanted, self.patches)

    def fewest(self, is_image: bool) -> int:
        """The fewest tokens that a tile of an image, or of a frame of a video, may get."""
        is_limited = self.max_video_tokens is not None or self.fixed is not None
        if not is_limited or (is_image and not self.counts_images):
            return self.patches
        return self.tokens(1) if self.fixed else 1
