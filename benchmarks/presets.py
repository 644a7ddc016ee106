"""Sizes at which PVC is measured, and of its peers: configurations alone, nothing is built here.

"2B" and "8B" are the published models, "vit-l" is the 8B's ViT and projector without an LLM. "8b-eighth" has
an eighth of each of the 8B's widths, with all of its layers, tiles and tokens: a CPU shows the 8B's
proportions with it. "small" is the 2B with a quarter of its widths and of its layers and tiles of 224 pixels;
"tiny" is for tests. Native peers are the published models nearest in size, cut likewise.
"""

from dataclasses import dataclass, field
from typing import Any

from pvc.configuration_pvc import PVCConfig

Fields = dict[str, Any]  # of a configuration

PATCH = 14  # pixels, of all the ViTs here


@dataclass(frozen=True)
class Workload:
    """A question about one image (`frames` 1, cut into `tiles`) or one video (a tile a frame)."""

    frames: int = 1
    tiles: int = 1
    text_tokens: int = 64

    @property
    def is_image(self) -> bool:
        return self.frames == 1

    @property
    def name(self) -> str:
        if self.is_image:
            return f"image, {self.tiles} tile{'s' * (self.tiles > 1)}"
        return f"video, {self.frames} frames"


@dataclass(frozen=True)
class Preset:
    """One size of PVC (`vit`, `llm`: what differs from the 8B), its peers', and what it is asked.

    Attributes:
        internvl_text, qwen_text, qwen_vision: fields of the native peers' configurations; without them the
            peers are left out.
        side: pixels of a tile.
        image_tiles, frames: of the workloads whose first token is counted and timed.
        chunk_tiles: `max_encoder_tiles`.
        long_frames: of the clip whose peak memory is measured.
        video_s: seconds of the video file that frames are read from.
        new_tokens: decoded for the rate of decoding.
        compiles: whether decoding with compiled steps is timed too.
        has_llm: whether the LLM is measured; else ViT and projector alone are.
    """

    vit: Fields = field(default_factory=dict)
    llm: Fields = field(default_factory=dict)
    internvl_text: Fields = field(default_factory=dict)
    qwen_text: Fields = field(default_factory=dict)
    qwen_vision: Fields = field(default_factory=dict)
    side: int = 448
    image_tiles: int = 13
    frames: tuple[int, ...] = (8, 16, 32, 64, 96)
    chunk_tiles: int = 32
    long_frames: int = 1024
    video_s: int = 20
    new_tokens: int = 64
    compiles: bool = True
    has_llm: bool = True

    @property
    def patches(self) -> int:
        """Patches along a side of a tile."""
        return self.side // PATCH

    @property
    def workloads(self) -> list[Workload]:
        return [Workload(tiles=self.image_tiles), *(Workload(frames=n) for n in self.frames)]


LLM_8B = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
LLM_2B = LLM_8B | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}


def _qwen(width: int, layers: int, heads: int, key_value_heads: int, mlp: int, **more) -> Fields:
    """Fields of a Qwen2 LLM."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": mlp,
        "vocab_size": 151_674,
        "max_position_embeddings": 131_072,
    } | more


PRESETS = {
    "8B": Preset(
        llm=LLM_8B,
        internvl_text=_qwen(3584, 28, 28, 4, 18944),  # InternVL3-8B
        qwen_text=_qwen(3584, 28, 28, 4, 18944, rope_parameters=QWEN_ROPE),  # Qwen2.5-VL-7B
        qwen_vision=QWEN_VISION,
    ),
    "2B": Preset(
        llm=LLM_2B,
        internvl_text=_qwen(1536, 28, 12, 2, 8960),  # InternVL3-2B
        qwen_text=_qwen(2048, 36, 16, 2, 11008, rope_parameters=QWEN_ROPE),  # Qwen2.5-VL-3B
        qwen_vision=QWEN_VISION,
    ),
    # an eighth as many heads, as wide as they are: matrix products shrink to a 64th, attention to an eighth
    "8b-eighth": Preset(
        vit={
            "hidden_size": 128,
            "num_attention_heads": 2,
            "intermediate_size": 512,
            "time_embed_dim": 32,
        },
        llm=LLM_8B
        | {
            "hidden_size": 512,
            "intermediate_size": 1792,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
        frames=(8, 64),
        long_frames=128,
        new_tokens=16,
    ),
    "vit-l": Preset(
        llm={"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 64},
        has_llm=False,
        image_tiles=1,
        frames=(2, 4),
        chunk_tiles=2,
        long_frames=8,
    ),
    "small": Preset(
        vit={
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_temporal_layers": 2,
            "image_size": 224,
        },
        llm={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 10_000,
        },
        internvl_text=_qwen(384, 7, 3, 1, 2240, vocab_size=10_000),
        qwen_text=_qwen(512, 9, 4, 1, 2752, vocab_size=10_000, rope_parameters=QWEN_ROPE),
        qwen_vision={"depth": 8, "hidden_size": 320, "intermediate_size": 855, "num_heads": 4},
        side=224,
        chunk_tiles=8,
        frames=(8, 16, 32),
        long_frames=256,
    ),
    "tiny": Preset(
        vit={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_temporal_layers": 1,
            "time_embed_dim": 16,
            "image_size": 56,
        },
        llm={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 1_000,
        },
        internvl_text=_qwen(48, 2, 2, 1, 96, vocab_size=1_000),
        qwen_text=_qwen(
            32, 2, 2, 1, 96, vocab_size=1_000, rope_parameters=QWEN_ROPE | {"mrope_section": [2, 3, 3]}
        ),
        qwen_vision={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
        side=56,
        image_tiles=3,
        frames=(2, 4),
        chunk_tiles=2,
        long_frames=64,
        video_s=1,
        new_tokens=4,
        compiles=False,
    ),
}


def find_preset(name: str) -> Preset:
    """Raises a ValueError that lists the presets where there is none of this name."""
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def pvc_config(preset: Preset, **changes) -> PVCConfig:
    """PVC at a preset's size; `changes` are fields of `PVCConfig`, `vision_config` a dict of the ViT's."""
    vit = preset.vit | changes.pop("vision_config", {})
    config = {
        "force_image_size": preset.side,
        "max_encoder_tiles": preset.chunk_tiles,
        "image_token_id": preset.llm.get("vocab_size", 92553) - 7,
    }
    return PVCConfig(vision_config=vit, llm_config=preset.llm, **config | changes)


def internvl2_config(preset: Preset) -> PVCConfig:
    """This code as InternVL2: no temporal layers, 256 tokens a tile of 448 pixels, shown once."""
    return pvc_config(
        preset,
        vision_config={"num_temporal_layers": 0},
        adaptive_compression=False,
        downsample_ratio=0.5,
        image_repeats=1,
    )
