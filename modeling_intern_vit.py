"""InternViT with the progressive encoding of PVC (section 3.2 of the paper).

The first layers are InternViT's. The last `num_temporal_layers` have causal temporal attention between
attention and MLP:

    x = x + S-MHA(LN(x))
    x = x + alpha * T-MHA(AdaLN(x; x + TE))      over the time steps of a clip, position by position
    x = x + FFN(LN(x))

`ProgressiveEncoderLayer.forward` is these lines; `ClipLayout` says which rows of x are the time steps of
which clip. A repeated frame is computed once up to the first T-MHA. Where no gradients are needed, each line
is computed in chunks of `max_encoder_tiles` tiles, which `chunked` adds around it: memory does not grow with
the clip beyond its hidden states, and results are the same.

Shapes: `R` rows (one time step of one tile each), `N` tokens of a row (class token, then patches), `C` width,
`T` time steps of a clip, `S` tile sequences. Preprocessing and the projector are left to the other files.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.utils import logging

from .chunks import apply_in_chunks, chunked
from .clips import Clip, ClipLayout, clip_grid_of
from .configuration_pvc import InternVisionConfig
from .modeling_internlm2 import eager_attention_forward
from .temporal_memory import TemporalMemory

logger = logging.get_logger(__name__)

MAX_SEQUENCES = 65_535  # of one attention call: CUDA's grid ends here on some versions


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while: no dropout, and layers with gradient checkpointing keep their cache."""
    modes = [(module, module.training) for module in model.modules() if module.training]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---- layers


class AdaLN(nn.Module):
    """`AdaLN(x; z) = gamma(z) * LN(x) + beta(z)` with `z = x + TE(t)`.

    `TE`, `gamma`, `beta` are MLPs with one hidden SiLU layer; `LN` has no affine of its own. `condition`
    "te" takes `z = TE(t)`; "none" leaves `LN(x)`, without parameters.
    """

    def __init__(self, width: int, time_embed_dim: int, condition: str, eps: float):
        super().__init__()
        self.width = width
        self.time_embed_dim = time_embed_dim
        self.condition = condition
        self.eps = eps

        if condition != "none":
            self.time_embed = self._mlp(time_embed_dim)
            self.gamma = self._mlp(width)
            self.beta = self._mlp(width)
            # starts as a plain LayerNorm and learns to depart from it
            self.gamma[2].constant_start, self.beta[2].constant_start = 1.0, 0.0

    def _mlp(self, width_in: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width_in, self.width), nn.SiLU(), nn.Linear(self.width, self.width))

    def forward(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        rows: torch.Tensor | None = None,
        *,
        source: torch.Tensor | None = None,
    ) -> torch.Tensor:  # (R, N, C), (R,) -> (R, N, C)
        """Normalises by the time of each row.

        Args:
            rows: where rows have different numbers of tokens, `x (tokens, C)`: the row of each token.
            source: `(R,)` the row of `x` that each row shows, where rows are shown more than once. What does
                not depend on time is then computed once for all that show it.
        """
        normed = shown(F.layer_norm(x, (self.width,), eps=self.eps), source)
        if self.condition == "none":
            return normed

        te = self.time_embed(sinusoid(times, self.time_embed_dim).to(x.dtype))  # (R, C)
        te = te[:, None] if rows is None else te[rows]  # (R, 1, C) or (tokens, C)
        if self.condition == "te":
            gamma, beta = self.gamma(te), self.beta(te)  # (R, 1, C)
        elif source is None:
            z = x + te
            gamma, beta = self.gamma(z), self.beta(z)
        else:
            gamma, beta = self._of_shown(x, te, source)
        return torch.addcmul(beta, gamma, normed)  # gamma * LN(x) + beta

    def _of_shown(self, x: torch.Tensor, te: torch.Tensor, source: torch.Tensor) -> list[torch.Tensor]:
        """`gamma(z)` and `beta(z)` of `z = x[source] + te`: `W x` is computed once for all that show a row.

        Each Linear `W z + b` is still called once, of the parts of the sum, and of a zero, which gives `b`.
        """
        parts = torch.cat([x.flatten(0, 1), te.flatten(0, 1), torch.zeros_like(te[0])])
        sizes = [x.shape[0] * x.shape[1], len(te), 1]

        results = []
        for linear, activation, last in (self.gamma, self.beta):
            of_x, of_te, bias = linear(parts).split(sizes)
            hidden = shown(of_x.view_as(x), source) + (of_te - bias)[:, None]  # (R, N, C)
            results.append(last(activation(hidden)))
        return results


def shown(x: torch.Tensor, source: torch.Tensor | None) -> torch.Tensor:
    """The row of `x` that each row shows; None: rows are as they are."""
    return x if source is None else x.index_select(0, source)


def sinusoid(times: torch.Tensor, dim: int) -> torch.Tensor:
    """Times `(R,)` -> `(R, dim)` float32: `cos`, then `sin`, of `t * 10000^(-i / (dim / 2))`.

    `i` runs from 0 to dim / 2 - 1.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    frequencies = torch.exp(-math.log(10_000) / half * steps)  # (dim / 2,)
    angles = times.float()[:, None] * frequencies  # (R, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (R, dim)


class InternAttention(nn.Module):
    """Multi-head attention with packed qkv: `S-MHA` over the tokens of a row."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: InternVisionConfig, qkv_bias: bool, qk_normalization: bool):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (width // self.num_heads) ** -0.5
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(config.dropout)
        self.q_norm = LlamaRMSNorm(width, config.layer_norm_eps) if qk_normalization else nn.Identity()
        self.k_norm = LlamaRMSNorm(width, config.layer_norm_eps) if qk_normalization else nn.Identity()

    def forward(self, x: torch.Tensor, recorder: list | None = None) -> torch.Tensor:  # (R, N, C)
        """`recorder`: a list that gets the attention weights `(R, heads, N, N)`."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (R, N, C) each
        out, weights = self.attend(self.q_norm(q), self.k_norm(k), v)
        if recorder is not None:
            recorder.append(weights)
        return self.proj_drop(self.proj(out))

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention within each of the sequences: `(sequences, length, C)` three times -> the same once.

        Also returns the weights `(sequences, heads, length, length)` where the attention function does.
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        heads = [rearrange(x, "s n (h d) -> s h n d", h=self.num_heads) for x in (q, k, v)]
        out, weights = attention(
            self,
            *heads,
            self.mask(q),
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            is_causal=self.is_causal,
        )
        return rearrange(out, "s n h d -> s n (h d)"), weights

    def mask(self, q: torch.Tensor):
        """None: every token attends to all tokens of its row."""


def _concatenated(parts: list[torch.Tensor]) -> torch.Tensor:
    """Concatenates tensors; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class TemporalAttention(InternAttention):
    """`T-MHA`: each token attends to this and earlier time steps of its position in its tile sequence."""

    is_causal = True

    def __init__(self, config: InternVisionConfig):
        super().__init__(config, qkv_bias=True, qk_normalization=config.temporal_qk_norm)

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        tile_sequences: dict[int, torch.Tensor],
        past: TemporalMemory | None = None,
        recorder: list | None = None,
    ) -> torch.Tensor:  # (R, N, C)
        """Attends along each tile sequence.

        Args:
            x: rows in the order of `ClipLayout.by_time_step`.
            tile_sequences: see `ClipLayout`.
            past: memory of the time steps before `x`, where a clip comes in pieces.
            recorder: a list that gets the weights `(S * N, heads, T, T)` of each of `tile_sequences`.
        """
        qkv = self.qkv(x)  # (R, N, 3 C)
        rows = [sequences.numel() for sequences in tile_sequences.values()]  # of each T
        attended = []
        for num_steps, part in zip(tile_sequences, qkv.split(rows)):
            part = rearrange(part, "(t s) n c -> (s n) t c", t=num_steps)  # (S * N, T, 3 C), a view
            q, k, v = part.chunk(3, dim=-1)  # (S * N, T, C) each
            q, k = self.q_norm(q), self.k_norm(k)
            if past is None:
                out = self.attend_in_groups(q, k, v, recorder)
            else:
                out = self.attend_with_past(q, k, v, past)
            attended.append(out.flatten(0, 1))  # (S * N * T, C)

        out = self.proj_drop(self.proj(_concatenated(attended)))  # (R * N, C)
        parts = out.split([x.shape[1] * number for number in rows])
        return _concatenated(
            [
                rearrange(part, "(s n t) c -> (t s) n c", t=num_steps, n=x.shape[1])
                for num_steps, part in zip(tile_sequences, parts)
            ]
        )  # (R, N, C)

    def attend_in_groups(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, recorder: list | None = None
    ) -> torch.Tensor:
        """`attend` for any number of sequences, at most `MAX_SEQUENCES` of them a call."""
        outs, weights = [], []
        for group in zip(q.split(MAX_SEQUENCES), k.split(MAX_SEQUENCES), v.split(MAX_SEQUENCES)):
            out, weights_of_group = self.attend(*group)
            outs.append(out)
            if recorder is not None:
                weights.append(weights_of_group)

        if recorder is not None:
            recorder.append(_concatenated(weights))
        return _concatenated(outs)

    def attend_with_past(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, past: TemporalMemory
    ) -> torch.Tensor:
        """New time steps `(sequences, t, C)`, one after another, each to what `past` then holds.

        That is itself and the time steps before it, so that no mask is needed.
        """
        out = torch.empty_like(q)
        for i in range(q.shape[1]):
            keys, values = past.add(k[:, i], v[:, i])
            out[:, i : i + 1] = self.attend_in_groups(q[:, i : i + 1], keys, values)
        return out

    def mask(self, q: torch.Tensor):
        """One causal mask for all sequences, or None.

        None where the attention function reads `is_causal`, or a single time step attends to all given.
        """
        if q.shape[1] == 1:
            return None
        return create_causal_mask(self.config, q[:1], attention_mask=None, past_key_values=None)


class AttentionWeights:
    """What the layers record where attention weights are asked for; not used otherwise."""

    def __init__(self):
        self.spatial: list[torch.Tensor] = []  # of each layer
        self.temporal: list[list[torch.Tensor]] = []  # of each temporal layer, of each number of time steps

    def new_temporal_layer(self) -> list[torch.Tensor]:
        self.temporal.append([])
        return self.temporal[-1]


@dataclass
class InternVisionOutput(BaseModelOutputWithPooling):
    """Adds the attention of the temporal layers to transformers' output.

    temporal_attentions: with `output_attentions`, each temporal layer's weights: for each number of
        time steps `T` (in the order of `ClipLayout.tile_sequences`) `(sequences * N, heads, T, T)`, one row
        for each token position of a tile sequence.
    """

    temporal_attentions: tuple[tuple[torch.Tensor, ...], ...] | None = None


class InternMLP(nn.Module):
    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for whole rows and scales the others up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep).div_(keep)


def add_scaled(x: torch.Tensor, scale: torch.Tensor, branch: torch.Tensor, in_place: bool) -> torch.Tensor:
    """`x + scale * branch` as one operation."""
    return x.addcmul_(scale, branch) if in_place else torch.addcmul(x, scale, branch)


class InternVisionEncoderLayer(GradientCheckpointingLayer):
    """A layer of InternViT: attention and MLP, each with LayerScale and drop path."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float):
        super().__init__()
        width = config.hidden_size
        norm = nn.LayerNorm if config.norm_type == "layer_norm" else LlamaRMSNorm
        self.initializer_factor = config.initializer_factor
        self.attn = InternAttention(config, config.qkv_bias, config.qk_normalization)
        self.mlp = InternMLP(config)
        self.norm1 = norm(width, eps=config.layer_norm_eps)
        self.norm2 = norm(width, eps=config.layer_norm_eps)
        self.ls1 = nn.Parameter(torch.empty(width))
        self.ls2 = nn.Parameter(torch.empty(width))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: torch.Tensor, weights: AttentionWeights | None = None) -> torch.Tensor:  # (R, N, C)
        x = self.spatial_attention(x, weights)
        return self.feed_forward(x)

    @chunked(dim=0)
    def spatial_attention(
        self, x: torch.Tensor, weights: AttentionWeights | None = None, in_place: bool = False
    ) -> torch.Tensor:
        recorder = None if weights is None else weights.spatial
        branch = self.drop_path(self.attn(self.norm1(x), recorder))
        return add_scaled(x, self.ls1, branch, in_place)  # x + ls1 * S-MHA(LN(x))

    @chunked(dim=0)
    def feed_forward(self, x: torch.Tensor, in_place: bool = False) -> torch.Tensor:
        branch = self.drop_path(self.mlp(self.norm2(x)))
        return add_scaled(x, self.ls2, branch, in_place)  # x + ls2 * FFN(LN(x))


class ProgressiveEncoderLayer(InternVisionEncoderLayer):
    """A layer of InternViT with causal temporal attention between attention and MLP: equations (1) to (3)."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float):
        super().__init__(config, drop_path_rate)
        width = config.hidden_size
        self.temporal_norm = AdaLN(
            width, config.time_embed_dim, config.temporal_condition, eps=config.layer_norm_eps
        )
        self.temporal_attn = TemporalAttention(config)
        self.temporal_gate = nn.Parameter(torch.empty(width))  # alpha

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        clips: ClipLayout,
        max_tiles: int | None = None,
        past: TemporalMemory | None = None,
        weights: AttentionWeights | None = None,
    ) -> torch.Tensor:  # (num_tiles or R, N, C) -> (R, N, C)
        """`clips` in the order of `by_time_step`; `x` may have a row a tile where tiles are repeated."""
        x = self.spatial_attention(x, weights, max_tiles=max_tiles)
        tiles, x = x, repeat_time_steps(x, clips)
        x = self.temporal_attention(x, tiles, clips, past, weights, max_tiles=max_tiles)
        return self.feed_forward(x, max_tiles=max_tiles)

    @chunked(dim=1)
    def temporal_attention(
        self,
        x: torch.Tensor,
        tiles: torch.Tensor,
        clips: ClipLayout,
        past: TemporalMemory | None = None,
        weights: AttentionWeights | None = None,
        in_place: bool = False,
    ) -> torch.Tensor:
        """`tiles`: `x` before it was repeated."""
        recorder = None if weights is None else weights.new_temporal_layer()
        source = clips.source if len(tiles) < len(x) else None
        normed = self.temporal_norm(tiles, clips.times, source=source)  # (R, N, C)
        branch = self.temporal_attn(normed, clips.tile_sequences, past, recorder)
        return add_scaled(x, self.temporal_gate, branch, in_place)  # x + alpha * T-MHA(AdaLN(x; x + TE))


def repeat_time_steps(x: torch.Tensor, clips: ClipLayout) -> torch.Tensor:
    """A row a tile, `(num_tiles, N, C)` -> a row a time step, `(R, N, C)`; unchanged if it has them."""
    return shown(x, clips.source if len(x) < len(clips.source) else None)


class InternVisionEmbeddings(nn.Module):
    """Tiles -> class token and patch tokens with their position embeddings."""

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.side = config.image_size // config.patch_size
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, self.patch_size, stride=self.patch_size)
        self.position_embedding = nn.Parameter(torch.empty(1, self.side**2 + 1, width))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:  # (R, 3, H, W) -> (R, N, C)
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))  # (R, C, h, w)
        patch_positions = self.patch_positions(*patches.shape[2:])
        positions = torch.cat([self.position_embedding[:, :1], patch_positions], dim=1)  # (1, N, C)

        patches = rearrange(patches, "r c h w -> r (h w) c")
        class_tokens = self.class_embedding.expand(len(patches), -1, -1)  # (R, 1, C)
        return torch.cat([class_tokens, patches], dim=1) + positions  # (R, N, C)

    def patch_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings `(1, rows * columns, C)` of a grid of patches.

        They are interpolated where the grid is not the trained one.
        """
        positions = self.position_embedding[:, 1:]
        if (rows, columns) == (self.side, self.side):
            return positions

        grid = rearrange(positions.float(), "1 (h w) c -> 1 c h w", h=self.side)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return rearrange(grid, "1 c h w -> 1 (h w) c").to(positions.dtype)


class InternVisionEncoder(nn.Module):
    """The layers, of which the last `num_temporal_layers` have temporal attention.

    It has no forward: it is here for the released parameter names, `InternVisionModel` calls the layers.
    """

    def __init__(self, config: InternVisionConfig):
        super().__init__()
        depth = config.num_hidden_layers
        self.first_temporal = depth - config.num_temporal_layers
        self.layers = nn.ModuleList()

        for i in range(depth):
            layer_class = ProgressiveEncoderLayer if i >= self.first_temporal else InternVisionEncoderLayer
            self.layers.append(layer_class(config, config.drop_path_rate * i / max(depth - 1, 1)))


# ---- model


class InternVisionModel(PreTrainedModel):
    """InternViT with progressive encoding: tiles and what they are -> hidden states, a row a time step."""

    config_class = InternVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternVisionEmbeddings", "InternVisionEncoderLayer", "ProgressiveEncoderLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: InternVisionConfig):
        super().__init__(config)
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_constant_start(module)
        if isinstance(module, InternVisionEmbeddings):
            nn.init.normal_(module.class_embedding, std=self.config.initializer_range)
            nn.init.normal_(module.position_embedding, std=self.config.initializer_range)
        if isinstance(module, InternVisionEncoderLayer):
            nn.init.constant_(module.ls1, module.initializer_factor)
            nn.init.constant_(module.ls2, module.initializer_factor)
        if isinstance(module, ProgressiveEncoderLayer):
            nn.init.zeros_(module.temporal_gate)  # a converted ViT equals InternViT exactly

    def get_input_embeddings(self):
        return self.embeddings

    def resize_pos_embeddings(self, old_size: int, new_size: int, patch_size: int):
        """Changes the trained input size for good, from `old_size` to `new_size` pixels."""
        embeddings = self.embeddings
        if old_size != embeddings.side * patch_size:
            raise ValueError(
                f"old_size is {old_size}, but the position embeddings are for {embeddings.side * patch_size}"
            )
        side = new_size // patch_size
        resized = torch.cat(
            [embeddings.position_embedding[:, :1], embeddings.patch_positions(side, side)], dim=1
        )
        embeddings.position_embedding = nn.Parameter(resized.detach())
        embeddings.side = side
        self.config.image_size = new_size

    def forward(
        self,
        pixel_values: torch.Tensor,
        clip_grid: torch.Tensor | None = None,
        *,
        clips: ClipLayout | None = None,
        num_layers: int | None = None,
        max_tiles: int | None = None,
        past: list[TemporalMemory] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool = True,
    ) -> InternVisionOutput | tuple:
        """Encodes tiles into hidden states.

        Args:
            pixel_values: `(num_tiles, 3, H, W)`, unrepeated; `H` and `W` multiples of the patch size.
            clip_grid: `(num_tiles, 3)` frames, tiles a frame and repeats of each tile's clip; None: every
                tile is an image shown once.
            clips: the layout of tiles that the caller has checked, in its own order of rows.
            num_layers: stop after so many layers; None: run all.
            max_tiles: tiles of one chunk; None: all. Not used where gradients, all hidden states or attention
                weights are asked for.
            past: one memory a temporal layer, where `clips` goes on with a clip that comes in pieces (no
                chunks then: pieces are small).

        Returns:
            `last_hidden_state (R, N, C)`, class token first; `pooler_output (R, C)`, the class token; with
            `output_hidden_states` the embeddings and every layer's output. Hidden states before the first
            temporal layer have a row a tile, not a row a time step. With `output_attentions`, for eager
            attention, `attentions`: every layer's spatial weights `(rows, heads, N, N)`, rows being tiles up
            to the first temporal layer and it, and `temporal_attentions`: see `InternVisionOutput`. None
            takes the configuration's settings.

        Raises:
            ValueError: where shapes are not as said.
        """
        output_hidden_states, output_attentions = self._recorded(output_hidden_states, output_attentions)
        if clips is None:
            clips = self._layout(pixel_values, clip_grid)
        clips = clips.to(pixel_values.device)
        if torch.is_grad_enabled() or output_hidden_states or output_attentions or past:
            max_tiles = None

        states: list[torch.Tensor] | None = [] if output_hidden_states else None
        weights = AttentionWeights() if output_attentions else None
        layers = list(self.encoder.layers)[:num_layers]
        spatial_layers = layers[: self.encoder.first_temporal]
        temporal_layers = layers[self.encoder.first_temporal :]

        encode_tiles = partial(self._encode_tiles, layers=spatial_layers, states=states, weights=weights)
        x = apply_in_chunks(encode_tiles, pixel_values, size=max_tiles)  # (num_tiles, N, C)
        x = self._encode_clips(x, clips, temporal_layers, max_tiles, past, states, weights)  # (R, N, C)

        output = InternVisionOutput(
            last_hidden_state=x,
            pooler_output=x[:, 0],
            hidden_states=None if states is None else (*states, x),
            attentions=tuple(weights.spatial) if weights else None,
            temporal_attentions=tuple(map(tuple, weights.temporal)) if weights else None,
        )
        return output if return_dict else output.to_tuple()

    def _encode_clips(
        self,
        x: torch.Tensor,
        clips: ClipLayout,
        layers: list[nn.Module],
        max_tiles: int | None,
        past: list[TemporalMemory] | None,
        states: list[torch.Tensor] | None,
        weights: AttentionWeights | None,
    ) -> torch.Tensor:
        """The layers with time, `(num_tiles, N, C) -> (R, N, C)`; what they give out is in prompt order."""
        if not layers:
            return repeat_time_steps(x, clips)
        if states is not None:
            states.append(x)

        # in an order in which temporal attention copies nothing
        by_time = clips.by_time_step()
        if not clips.repeated and clips.time_order is not None:
            x = x.index_select(0, clips.time_order)
        for i, layer in enumerate(layers):
            if states is not None and i > 0:
                states.append(clips.in_prompt_order(x))
            x = layer(x, by_time, max_tiles, past[i] if past else None, weights)  # (R, N, C)

        if weights is not None:
            # the first layer's rows are tiles where tiles are repeated
            first = len(weights.spatial) - len(layers) + int(clips.repeated)
            weights.spatial[first:] = map(clips.in_prompt_order, weights.spatial[first:])
        return clips.in_prompt_order(x)

    def _encode_tiles(
        self,
        pixel_values: torch.Tensor,
        layers: list[nn.Module],
        states: list[torch.Tensor] | None,
        weights: AttentionWeights | None,
    ) -> torch.Tensor:
        """Embeddings and the layers without time, which treat tiles separately: `-> (num_tiles, N, C)`."""
        x = self.embeddings(pixel_values)
        for layer in layers:
            if states is not None:
                states.append(x)
            x = layer(x, weights)
        return x

    def _layout(self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None) -> ClipLayout:
        """The layout of tiles, both checked; without a `clip_grid` every tile is an image shown once."""
        self.check_pixels(pixel_values)
        if clip_grid is None:
            clip_grid = clip_grid_of([Clip(1, 1, 1)] * len(pixel_values))
        return ClipLayout.from_grid(clip_grid, len(pixel_values))

    def _recorded(self, hidden_states: bool | None, attentions: bool | None) -> tuple[bool, bool]:
        """Whether hidden states and attention weights are recorded; None: as the configuration says."""
        hidden_states = self.config.output_hidden_states if hidden_states is None else hidden_states
        attentions = self.config.output_attentions if attentions is None else attentions

        if attentions and self.config._attn_implementation != "eager":
            logger.warning_once(
                f"output_attentions needs attn_implementation 'eager', but it is "
                f"{self.config._attn_implementation!r}: there are no attentions; call "
                "set_attn_implementation('eager') first"
            )
            attentions = False
        return hidden_states, attentions

    def check_pixels(self, pixel_values: torch.Tensor):
        """Raises a ValueError where `pixel_values` are not tiles that this ViT takes."""
        channels, patch = self.config.num_channels, self.config.patch_size
        if not isinstance(pixel_values, torch.Tensor):
            raise ValueError(
                f"pixel_values is a {type(pixel_values).__name__}: expected a tensor "
                f"(tiles, {channels}, H, W), as load_image makes"
            )
        shape = tuple(pixel_values.shape)
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values is {pixel_values.dtype}: expected normalised floats, as load_image makes"
            )
        if len(shape) != 4 or shape[1] != channels or min(shape) < 1 or shape[2] % patch or shape[3] % patch:
            raise ValueError(
                f"pixel_values has shape {shape}, expected (tiles, {channels}, H, W) with H and W "
                f"multiples of {patch}"
            )


def check_finite(pixel_values: torch.Tensor):
    """Raises a ValueError where pixels are infinite or NaN."""
    if not torch.stack(pixel_values.aminmax()).isfinite().all():  # no copy of a long video
        raise ValueError("pixel_values has values that are not finite: was an image normalised by a zero?")


def init_constant_start(module: nn.Module):
    """Gives the last layers of AdaLN's MLPs the values they start from: no weight, the bias alone."""
    if hasattr(module, "constant_start"):
        nn.init.zeros_(module.weight)
        nn.init.constant_(module.bias, module.constant_start)
