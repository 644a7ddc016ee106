"""`pvc info`: the size of a model, the visual tokens of its inputs, and the memory that it needs.

Only config.json is read: parameters are counted on the meta device. Memory is a formula, not a measurement:

    weights + KV cache (visual tokens + text) + encoding (hidden states of the clip + one chunk of tiles)
"""

import os
from dataclasses import dataclass
from typing import Annotated, Any

from typer import Argument, Option

from pvc import CHECKPOINT
from pvc.cli.shared import check_is_pvc, examples, report_errors, show_status
from pvc.conversion.printable import printable

EXAMPLES = examples("pvc info", "pvc info org/model --frames 64")
TEXT_TOKENS = 1024  # of the question and the answer, in the cache
BYTES = {"float32": 4.0, "bfloat16": 2.0}
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # a weight of the LLM; nf4: a float32 scale for each 64
CARDS_GB = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
RESERVE = 1.1  # for the allocator's fragments and small buffers
CONTEXT_GB = 0.5  # of CUDA


def info(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    frames: Annotated[int, Option(min=1, help="Frames of the video whose cost is shown.")] = 64,
) -> None:
    """Show a model's sizes, tiles, visual tokens and memory, without loading its weights.

    Memory is computed by formula, for one prompt and its answer; the card is the smallest that holds it.
    """
    with report_errors():
        with show_status("Reading"):
            sizes = ModelSizes.from_config(load_config(model or str(CHECKPOINT)))
        text = describe(sizes, frames)
    print(printable(text))


def load_config(name: str) -> Any:
    """The configuration of a folder or Hub id, of either system; no code of the model is run."""
    from pvc.configuration_dynamic_vlm import DynamicVLMConfig
    from pvc.configuration_pvc import PVCConfig
    from pvc.conversion.checks import values_of

    is_dynamic = check_is_pvc(name, others=("dynamic_vlm",)) == "dynamic_vlm"
    with values_of(name):
        return (DynamicVLMConfig if is_dynamic else PVCConfig).from_pretrained(os.path.expanduser(name))


def classes_of(config: Any) -> tuple[Any, Any]:
    """The classes of the model and of the image processor for a configuration."""
    if config.model_type == "dynamic_vlm":
        from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
        from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor

        return DynamicVLMForConditionalGeneration, DynamicVLMImageProcessor

    from pvc.modeling_pvc import PVCForConditionalGeneration
    from pvc.processing_pvc import PVCImageProcessor

    return PVCForConditionalGeneration, PVCImageProcessor


# ---- sizes


@dataclass(frozen=True)
class ModelSizes:
    """What a configuration makes of the model, in numbers.

    Attributes:
        parameters: by part: "ViT", "compressor" where it has any, "projector", "LLM" (its head included).
        linear_weights: weights of the LLM's linear layers, which quantisation stores in fewer bits.
        tile_size: pixels of a tile's side.
        tokens_per_tile: visual tokens of a tile shown once, where no budget limits them.
        budget: how the clips of a prompt share visual tokens.
        max_tiles: tiles of the largest image, its thumbnail included.
        cache_values: numbers that the KV cache holds for a token.
        tile_values: numbers in the ViT's hidden states of a tile shown once; 0 where those of a whole clip
            are never held.
        chunk_tiles: tiles that the ViT encodes at once; None: all.
        chunk_values_per_tile: numbers that a tile of a chunk holds within a layer, at its feed-forward.
    """

    parameters: dict[str, int]
    linear_weights: int
    tile_size: int
    tokens_per_tile: int
    budget: Any
    max_tiles: int
    image_repeats: int
    video_repeats: int
    context: int
    cache_values: int
    tile_values: int
    chunk_tiles: int | None
    chunk_values_per_tile: int

    @classmethod
    def from_config(cls, config: Any) -> "ModelSizes":
        """Counts the parameters on the meta device; the rest follows from the fields of `config`."""
        import torch

        model_class, image_processor = classes_of(config)
        with torch.device("meta"):
            model = model_class(config)
        images = image_processor.from_model_config(config)
        vit = config.vision_config
        llm = config.llm_config

        patches = (images.image_size // vit.patch_size) ** 2 + 1  # with the class token
        heads = getattr(llm, "num_key_value_heads", None) or llm.num_attention_heads
        head_dim = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads

        return cls(
            parameters=count_parameters(model),
            linear_weights=count_linear_weights(model.model.language_model),
            tile_size=images.image_size,
            tokens_per_tile=images.tokens_per_tile,
            budget=config.token_budget(),
            max_tiles=images.max_tiles + (images.use_thumbnail and images.max_tiles > 1),
            image_repeats=config.image_repeats,
            video_repeats=config.video_repeats,
            context=llm.max_position_embeddings,
            cache_values=2 * llm.num_hidden_layers * heads * head_dim,
            tile_values=patches * vit.hidden_size if hasattr(vit, "num_temporal_layers") else 0,
            chunk_tiles=config.max_encoder_tiles,
            chunk_values_per_tile=patches * (2 * vit.hidden_size + 2 * vit.intermediate_size),
        )

    @property
    def image_tokens(self) -> int:
        """Visual tokens of an image with the largest number of tiles."""
        return self._tokens_of(1, self.max_tiles, self.image_repeats)

    def video_tokens(self, frames: int) -> int:
        """Visual tokens of a video of so many frames, a tile each."""
        return self._tokens_of(frames, 1, self.video_repeats)

    def _tokens_of(self, frames: int, tiles: int, repeats: int) -> int:
        """Visual tokens of a clip that is alone in its prompt."""
        from pvc.clips import Clip, tokens_of_clip

        clip = Clip(frames, tiles, repeats)
        (shared,) = self.budget.share([clip])
        return tokens_of_clip(shared, self.tokens_per_tile)


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters of the ViT, the compressor if it has any, the projector and the LLM with its head.

    A tied head counts once.
    """
    parts = {"vision_model": "ViT", "compressor": "compressor", "projector": "projector"}
    counts = {"ViT": 0, "compressor": 0, "projector": 0, "LLM": 0}
    for name, parameter in model.named_parameters():
        part = parts.get(name.removeprefix("model.").partition(".")[0], "LLM")
        counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count or part != "compressor"}


def count_linear_weights(language_model: Any) -> int:
    """Weights of the linear layers of the LLM's body, biases not counted."""
    from torch import nn

    linears = [module for module in language_model.modules() if isinstance(module, nn.Linear)]
    return sum(linear.weight.numel() for linear in linears)


# ---- memory


@dataclass(frozen=True)
class Memory:
    """Bytes that a prompt with one image or video and its answer needs."""

    weights: float
    cache: float
    encoding: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.encoding

    @property
    def card_gb(self) -> int | None:
        """The smallest usual size of a card that holds it with a reserve; None where there is none."""
        needed = self.total / 1e9 * RESERVE + CONTEXT_GB
        return next((size for size in CARDS_GB if size >= needed), None)


def memory_of(sizes: ModelSizes, dtype: str, tokens: int, tile_steps: int) -> Memory:
    """Memory for `tokens` visual tokens from `tile_steps` tiles, each showing of a tile counted.

    `dtype` is a key of `BYTES` or of `QUANTIZED_BYTES`; the latter stand for a quantised LLM, and
    the rest is bfloat16.
    """
    size = BYTES.get(dtype, BYTES["bfloat16"])
    weights = sum(sizes.parameters.values()) * size
    if dtype in QUANTIZED_BYTES:
        weights -= sizes.linear_weights * (size - QUANTIZED_BYTES[dtype])

    chunk_tiles = min(tile_steps, sizes.chunk_tiles or tile_steps)
    hidden_states = tile_steps * sizes.tile_values
    chunk = chunk_tiles * sizes.chunk_values_per_tile

    return Memory(
        weights=weights,
        cache=(tokens + TEXT_TOKENS) * sizes.cache_values * size,
        encoding=(hidden_states + chunk) * size,
    )


# ---- report


def describe(sizes: ModelSizes, frames: int) -> str:
    """Sizes and memory as two Markdown tables, with a line that says what is counted."""
    from pvc.reporting.markdown import markdown_table

    is_limited = sizes.budget.max_video_tokens is not None
    image_steps = sizes.max_tiles * sizes.image_repeats
    video_steps = frames * sizes.video_repeats
    image = f"image of {sizes.max_tiles} tile{'s' * (sizes.max_tiles > 1)}"
    video = f"video of {frames} frame{'s' * (frames > 1)}"

    facts = [(f"{part}, parameters", f"{count:,}") for part, count in sizes.parameters.items()]
    facts += [
        ("all parameters", f"{sum(sizes.parameters.values()):,}"),
        ("tile", f"{sizes.tile_size} x {sizes.tile_size} pixels"),
        (f"visual tokens a tile{', at most' * is_limited}", f"{sizes.tokens_per_tile:,}"),
        (f"visual tokens, {image}, shown {sizes.image_repeats}x", f"{sizes.image_tokens:,}"),
        (f"visual tokens, {video}", f"{sizes.video_tokens(frames):,}"),
        ("context of the LLM, tokens", f"{sizes.context:,}"),
    ]

    rows = []
    for dtype in (*BYTES, *QUANTIZED_BYTES):
        rows.append(_memory_row(sizes, dtype, image, sizes.image_tokens, image_steps))
        rows.append(_memory_row(sizes, dtype, video, sizes.video_tokens(frames), video_steps))
    header = ("dtype", "input", "weights GB", "KV cache GB", "encoding GB", "total GB", "card GB")

    note = (
        f"By formula, not measured: one prompt, {TEXT_TOKENS:,} tokens of text and answer, encoded in chunks "
        f"of {sizes.chunk_tiles or 'all'} tiles. int8, nf4: the LLM's linear layers; the rest is bfloat16. "
        f"card: the total and {RESERVE - 1:.0%}, and {CONTEXT_GB} GB for CUDA."
    )
    return "\n\n".join(
        [
            markdown_table(("", ""), facts, align="lr"),
            markdown_table(header, rows, align="llrrrrr"),
            note,
        ]
    )


def _memory_row(sizes: ModelSizes, dtype: str, name: str, tokens: int, tile_steps: int) -> list[str]:
    memory = memory_of(sizes, dtype, tokens, tile_steps)
    parts = (memory.weights, memory.cache, memory.encoding, memory.total)
    card = "several" if memory.card_gb is None else str(memory.card_gb)
    return [dtype, name, *(f"{part / 1e9:.2f}" for part in parts), card]
