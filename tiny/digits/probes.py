"""What a trained model can answer, and what its repeats and its temporal attention do.

accuracy      share of right digits, of images by repeats and of videos by frames, on clips drawn anew
copies        the control: the tokens of the first repeat four times in place of four repeats'
cosine        of the tokens of later repeats to those of the first, less their mean over images
branch_share  rms(alpha * T-MHA) / rms(x) of each temporal layer
time_share    the share of the variance of the projector's gamma that is over time
logits        the largest logit of temporal attention, over images and videos
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from pvc.modeling_intern_vit import ProgressiveEncoderLayer
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.digits import data
from pvc.tiny.digits.models import answer_logits, in_prompt_order, new_model, side_of, visual_tokens
from pvc.training.runaway import LOGITS, largest_values

HELD_OUT_SEED = 2**31  # no training has it
PROBED = 128  # images that diagnostics are computed from


@torch.no_grad()
def scores(model: PVCForConditionalGeneration, clips: int) -> dict:
    """Accuracies in percent: "images" by repeats, "videos" by frames, "copies" of the first repeat."""
    most = model.config.image_repeats
    repeats = range(1, most + 1)
    frames = repeats if most > 1 else [data.TIME_STEPS]
    result: dict = {
        "images": {str(n): accuracy(model, 1, n, clips) for n in repeats},
        "videos": {str(n): accuracy(model, n, 1, clips) for n in frames},
    }
    if most > 1:
        result["copies"] = accuracy(model, 1, most, clips, copies=True)
    return result


@torch.no_grad()
def accuracy(
    model: PVCForConditionalGeneration, frames: int, repeats: int, number: int, *, copies: bool = False
) -> float:
    """Percent of right digits over `number` held-out clips."""
    clips = held_out(number, frames, side_of(model))
    tokens = visual_tokens(model, clips, repeats)  # (clips, time steps, tokens of a tile, width)
    if copies:
        tokens = tokens[:, :1].expand_as(tokens)
    is_right = answer_logits(model, tokens, frames).argmax(-1) == clips.digits
    return 100 * is_right.float().mean().item()


def held_out(number: int, frames: int, side: int = data.SIDE) -> data.Clips:
    return data.draw_clips(number, frames, np.random.default_rng([HELD_OUT_SEED, frames]), side)


@torch.no_grad()
def diagnostics(model: PVCForConditionalGeneration) -> dict[str, list[float]]:
    """`cosine`, `branch_share`, `time_share` of images with the model's own number of repeats; `logits`."""
    repeats = model.config.image_repeats
    with recorded(model) as (shares, gammas):
        clips = held_out(PROBED, 1, side_of(model))
        tokens = visual_tokens(model, clips, repeats).flatten(2)  # (n, T, tokens * width)

    centred = tokens - tokens.mean(0, keepdim=True)
    cosine = F.cosine_similarity(centred[:, :1], centred[:, 1:], dim=-1).mean(0)  # (T - 1,)
    return {
        "cosine": cosine.tolist(),
        "branch_share": shares,
        "time_share": [time_share(gamma.unflatten(0, (-1, repeats))) for gamma in gammas],
        "logits": largest_logits(model),
    }


@torch.no_grad()
def largest_logits(model: PVCForConditionalGeneration) -> list[float]:
    """The largest logit of each layer of temporal attention, of images and videos."""
    with largest_values(model) as largest:
        for frames, repeats in ((1, model.config.image_repeats), (data.TIME_STEPS, 1)):
            visual_tokens(model, held_out(PROBED, frames, side_of(model)), repeats)
    return [value.item() for (_, what), value in largest.items() if what == LOGITS]


@torch.no_grad()
def interlaced_error(internvl: PVCForConditionalGeneration) -> float:
    """Relative error of four repeats' tokens against InternVL's, at the interlaced start from it."""
    side = side_of(internvl)
    model = new_model({}, 0, internvl.state_dict(), "raster", side)
    clips = held_out(PROBED, 1, side)
    theirs = visual_tokens(internvl, clips, 1).flatten(1, 2)  # (n, tokens, width)
    ours = in_prompt_order(model, visual_tokens(model, clips, model.config.image_repeats), 1)
    return ((ours - theirs).norm() / theirs.norm()).item()


def time_share(gamma: torch.Tensor) -> float:
    """Of gamma `(n, T, tokens, D)`: variance of its mean at each time over all of its variance."""
    gamma = gamma.flatten(2)  # (n, T, values)
    over_time = gamma.mean(0).var(0, correction=0).sum()
    return (over_time / gamma.flatten(0, 1).var(0, correction=0).sum().clamp(min=1e-12)).item()


@contextmanager
def recorded(model: PVCForConditionalGeneration) -> Iterator[tuple[list[float], list[torch.Tensor]]]:
    """Lists that a forward pass fills: shares of temporal branches, and the projector's gamma."""
    shares: list[float] = []
    gammas: list[torch.Tensor] = []
    hooks = []

    for layer in model.model.vision_model.encoder.layers:
        if isinstance(layer, ProgressiveEncoderLayer):
            hooks += _record_branch(layer, shares)
    norm = model.model.projector.norm
    if hasattr(norm, "gamma"):
        hooks.append(norm.gamma.register_forward_hook(lambda module, args, out: gammas.append(out)))

    try:
        yield shares, gammas
    finally:
        for hook in hooks:
            hook.remove()


def _record_branch(layer: ProgressiveEncoderLayer, shares: list[float]) -> list:
    """Hooks of one layer: its norm is given x, its attention returns what the gate multiplies."""
    seen: list[torch.Tensor] = []

    def record(module, args, out):
        branch = layer.temporal_gate * out
        shares.append((branch.square().mean().sqrt() / seen.pop().square().mean().sqrt()).item())

    keep = layer.temporal_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return [keep, layer.temporal_attn.register_forward_hook(record)]
