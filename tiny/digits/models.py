"""The models of the digits' ablations: PVCs of some ten thousand parameters beside their projector.

All begin with the ViT and the LLM of one small InternVL, `base_configuration`, which is trained first. What
is new, the projector with it, starts as `start` says:

    random       at random by width; AdaLN as a plain LayerNorm, gates of temporal attention at 0
    random-adaln as random, but the last layers of AdaLN's MLPs at random, and TE times `TE_SCALE`
    average      the projector from InternVL's, mean over the 2x2 sub-blocks, as `pvc convert` makes it
    interlaced   the same, one sub-block a repeat
    reordered    interlaced, the sub-blocks in an order that the LLM does not know
    raster       interlaced, and the tokens of an image in the order of InternVL's (`tile_repeat_order`); the
                 same where a tile has one block

The models are the product's classes; training is left to `training.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pvc.clips import Clip, clip_grid_of
from pvc.configuration_pvc import PVCConfig
from pvc.conversion.files import TensorInfo
from pvc.conversion.plan import NEW_IN_LAYERS, FoldedProjector
from pvc.modeling_intern_vit import AdaLN, init_constant_start
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.build import init_weights_by_width
from pvc.tiny.digits import data

WIDTH = 16  # of a visual token and the LLM: the bottleneck
TEXT_RMS = 0.5  # of embeddings at the start, and so of new visual tokens
STATIC = {"adaptive_compression": False, "vision_config": {"num_temporal_layers": 0}}
PROJECTOR = "model.projector."
BASE = STATIC | {"downsample_ratio": 0.5, "image_repeats": 1}  # InternVL: 4 tokens of 2x2 patches
TE_SCALE, ADALN_STD = 8.0, 0.5
REORDERED = (2, 0, 3, 1)  # the repeat that shows each sub-block
ALL = 1_000_000  # tiles are encoded at once, so that hooks see each layer once
ROPE_THETA = {data.SIDE: 1e6, data.WIDE: 100.0}  # heads are 8 wide, and questions up to 80 tokens away
RASTER = {"tile_repeat_order": "raster"}


def configuration(changes: Mapping[str, Any], side: int = data.SIDE) -> PVCConfig:
    """A PVC that makes one visual token of 4x4 patches, with some fields changed.

    Args:
        side: patches along a side of a tile.
    """
    changes = dict(changes)
    vision = {
        "image_size": side * data.PATCH,
        "patch_size": data.PATCH,
        "hidden_size": 24,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_temporal_layers": 2,
        "time_embed_dim": 16,
    } | changes.pop("vision_config", {})

    llm = {
        "vocab_size": data.VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": ROPE_THETA[side],
        "pad_token_id": data.BEGIN,
    }
    return PVCConfig(
        vision_config=vision,
        llm_config=llm,
        force_image_size=side * data.PATCH,
        max_dynamic_patch=1,
        max_encoder_tiles=ALL,
        image_token_id=data.VISUAL,
        **changes,
    )


def random_model(changes: Mapping[str, Any], seed: int, side: int = data.SIDE) -> PVCForConditionalGeneration:
    """A model whose weights are random by width; AdaLN starts as a LayerNorm, gates at 0."""
    torch.manual_seed(seed)
    model = PVCForConditionalGeneration(configuration(changes, side))
    init_weights_by_width(model)
    for module in model.modules():
        init_constant_start(module)
    scale_visual_tokens(model)
    return model


def new_model(
    changes: Mapping[str, Any],
    seed: int,
    base: Mapping[str, torch.Tensor],
    start: str = "random",
    side: int = data.SIDE,
) -> PVCForConditionalGeneration:
    """The model before a run: with the ViT and the LLM of the weights `base`."""
    model = random_model({**changes, **(RASTER if start == "raster" else {})}, seed, side)
    kept = {name: value for name, value in base.items() if not name.startswith(PROJECTOR)}
    model.load_state_dict(kept, strict=False)

    if start in ("average", "interlaced", "reordered", "raster"):
        start_from_internvl(model, base, start)
    else:
        if start == "random-adaln":
            randomise_adaln(model)
        scale_visual_tokens(model)
    return model


@dataclass(frozen=True)
class BaseWeights:
    """Weights in memory, as a conversion reads them."""

    tensors: Mapping[str, torch.Tensor]
    folder: str = "the base"

    @property
    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(tuple(x.shape), x.dtype) for name, x in self.tensors.items()}

    def get(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@torch.no_grad()
def start_from_internvl(model: PVCForConditionalGeneration, base: Mapping[str, torch.Tensor], start: str):
    """The projector as `pvc convert --projector-init` makes it from the base's."""
    sources = {name: (name,) for name in base}
    folded = FoldedProjector(
        model.config,
        BaseWeights(base),
        sources,
        BASE["downsample_ratio"],
        interlaced=start != "average",
    )
    parameters = dict(model.named_parameters())
    for name in ("mlp.0.weight", "mlp.0.bias"):
        parameters[PROJECTOR + name].copy_(folded.recipe(PROJECTOR + name).make())
    for name in ("mlp.2.weight", "mlp.2.bias"):
        parameters[PROJECTOR + name].copy_(base[PROJECTOR + name])

    if start != "average":
        norm = model.model.projector.norm
        adaln = folded.start()
        for name, parameter in norm.named_parameters():
            parameter.copy_(adaln.apply(name, parameter.clone()))

        # gamma's rows of a sub-block are alike: each sub-block takes those of another
        if start == "reordered":
            sub_block = data.sub_grids().repeat_interleave(norm.width // data.POSITIONS)  # (width,)
            first_row = torch.stack([(sub_block == other).nonzero()[0, 0] for other in REORDERED])
            norm.gamma[2].weight.copy_(norm.gamma[2].weight[first_row[sub_block]])


@torch.no_grad()
def randomise_adaln(model: PVCForConditionalGeneration):
    """Lets time and tokens reach gamma and beta from the start."""
    for module in model.modules():
        if isinstance(module, AdaLN) and module.condition != "none":
            module.time_embed[2].weight *= TE_SCALE
            for mlp in (module.gamma, module.beta):
                mlp[2].weight.normal_(std=ADALN_STD * module.width**-0.5)


@torch.no_grad()
def scale_visual_tokens(model: PVCForConditionalGeneration):
    """Scales the projector's last layer, so that visual tokens are as large as text tokens."""
    clips = data.draw_clips(16, 1, np.random.default_rng(0), side_of(model))
    rms = visual_tokens(model, clips, 1).square().mean().sqrt()
    model.model.projector.mlp[2].weight *= TEXT_RMS / rms
    model.model.projector.mlp[2].bias *= TEXT_RMS / rms


def side_of(model: PVCForConditionalGeneration) -> int:
    """Patches along a side of the model's tiles."""
    return model.config.force_image_size // data.PATCH


def visual_tokens(model: PVCForConditionalGeneration, clips: data.Clips, repeats: int) -> torch.Tensor:
    """`(clips, time steps, tokens of a tile, width)`; each tile is shown `repeats` times."""
    grid = clip_grid_of([Clip(clips.frames, 1, repeats)] * len(clips))
    tokens = model.get_image_features(clips.pixels, grid).last_hidden_state  # (R, tokens, width)
    return tokens.unflatten(0, (len(clips), -1))


def answer_logits(model: PVCForConditionalGeneration, tokens: torch.Tensor, frames: int = 1) -> torch.Tensor:
    """Logits `(clips, 16, 10)` of the digits: those of the LLM at the questions behind the visual tokens.

    Args:
        tokens: `(clips, time steps, tokens of a tile, width)`, of clips of `frames` frames.
    """
    embed = model.get_input_embeddings()
    visual = in_prompt_order(model, tokens, frames)  # (clips, tokens, width)
    padding = data.padding(side_of(model), visual.shape[1])
    text = embed(torch.cat([torch.tensor([data.BEGIN] * (1 + padding)), data.QUESTIONS]))  # (…, width)
    text = text.expand(len(tokens), -1, -1)
    row = torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)  # (clips, S, width)

    outputs = model.model.language_model(inputs_embeds=row, use_cache=False)
    logits = model.lm_head(outputs.last_hidden_state[:, -data.POSITIONS :])  # (clips, 16, vocabulary)
    return logits[..., data.DIGIT : data.DIGIT + data.DIGITS]


def in_prompt_order(model: PVCForConditionalGeneration, tokens: torch.Tensor, frames: int) -> torch.Tensor:
    """Tokens `(clips, time steps, tokens of a tile, width)` as in a prompt, `(clips, tokens, width)`."""
    if model.config.tile_repeat_order != "raster":
        return tokens.flatten(1, 2)

    # the clips of a batch are alike: as the tiles of one
    clip = Clip(frames, len(tokens), tokens.shape[1] // frames)
    pixels = model.config.force_image_size
    ordered = model.model.in_prompt_order(tokens.flatten(0, 2), clip, (pixels, pixels))
    return ordered.view(len(tokens), -1, tokens.shape[-1])


def is_new(name: str) -> bool:
    """Whether a parameter is none of the base's: of the projector, or of temporal attention."""
    return "projector" in name or any(part in name for part in NEW_IN_LAYERS)
