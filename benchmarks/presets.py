"""Sizes at which PVC is measured, and of its peers: configurations alone, nothing is built here.

"2B" and "8B" are the published models, "vit-l" is the 8B's ViT and projector without an LLM. "8b-eighth" has
an eighth of each of the 8B's widths, with all of its layers, tiles and tokens: a CPU shows the 8B's
proportions with it. "small" is the 2B with a quarter of its widths and of its layers and tiles of 224 pixels;
"tiny" is for tests. Native peers are the published models nearest in size (`published.py`), cut likewise.
"""

from dataclasses import dataclass, field

from pvc.benchmarks.published import PEERS_2B, PEERS_8B, QWEN3_ROPE, QWEN25_ROPE, Fields, Peers, text
from pvc.configuration_pvc import PVCConfig
from pvc.preprocess import largest_grid

PATCH = 14  # pixels, of all the ViTs here


@dataclass(frozen=True)
class Workload:
    """A question about one image (`frames` 1, cut into `tiles`) or one video (a tile a frame).

    `pixels`: width and height of the image or of a frame; None: see `size`.
    """

    frames: int = 1
    tiles: int = 1
    text_tokens: int = 64
    pixels: tuple[int, int] | None = None

    @property
    def is_image(self) -> bool:
        return self.frames == 1

    @property
    def name(self) -> str:
        if self.is_image:
            return f"image, {self.tiles} tile{'s' * (self.tiles > 1)}"
        return f"video, {self.frames} frames"

    def size(self, side: int) -> tuple[int, int]:
        """Width and height of the image, or of a frame, that is cut into tiles of `side` pixels.

        The last of several tiles is the thumbnail, as an image of 12 tiles has 13.
        """
        if self.pixels is not None:
            return self.pixels
        cut = max(1, self.tiles - 1)
        columns, rows = largest_grid(cut, cut)
        return columns * side, rows * side


@dataclass(frozen=True)
class Preset:
    """One size of PVC (`vit`, `llm`: what differs from the 8B), its peers', and what it is asked.

    Attributes:
        peers: sizes of native peers, by name; those without are left out.
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
    peers: Peers = field(default_factory=dict)
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
PEERS_SMALL: Peers = {  # a quarter of the widths and layers of `PEERS_2B`
    "InternVL": {"text": text(384, 7, 3, 1, 2240, 10_000)},
    "Qwen2.5-VL": {
        "text": text(512, 9, 4, 1, 2752, 10_000, rope_parameters=QWEN25_ROPE),
        "vision": {"depth": 8, "hidden_size": 320, "intermediate_size": 855, "num_heads": 4}
        | {"fullatt_block_indexes": [7]},
    },
    "Qwen3-VL": {
        "text": text(512, 7, 4, 2, 1536, 10_000, head_dim=128, rope_parameters=QWEN3_ROPE),
        "vision": {"depth": 6, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 4}
        | {"deepstack_visual_indexes": [1, 2, 4]},
    },
    "SmolVLM2": {
        "text": text(512, 6, 8, 8, 2048, 10_000),
        "vision": {"hidden_size": 288, "intermediate_size": 1076, "num_attention_heads": 4}
        | {"num_hidden_layers": 7, "patch_size": 14, "image_size": 384},
    },
}
SIGLIP_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
PEERS_TINY: Peers = {
    "InternVL": {"text": text(48, 2, 2, 1, 96, 1_000)},
    "Qwen2.5-VL": {
        "text": text(32, 2, 2, 1, 96, 1_000, rope_parameters=QWEN25_ROPE | {"mrope_section": [2, 3, 3]}),
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
        | {"fullatt_block_indexes": [1]},
    },
    "Qwen3-VL": {
        "text": text(
            32, 2, 2, 1, 96, 1_000, head_dim=16, rope_parameters=QWEN3_ROPE | {"mrope_section": [2, 3, 3]}
        ),
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
        | {"deepstack_visual_indexes": [0]},
    },
    "LLaVA-OneVision": {
        "text": text(48, 2, 2, 1, 96, 1_000),
        "vision": SIGLIP_TINY | {"patch_size": 14, "image_size": 56},
    },
    "SmolVLM2": {
        "text": text(48, 2, 2, 2, 96, 1_000),
        "vision": SIGLIP_TINY | {"patch_size": 14, "image_size": 84},
    },
}

PRESETS = {
    "8B": Preset(
        llm=LLM_8B,
        peers=PEERS_8B,
    ),
    "2B": Preset(
        llm=LLM_2B,
        peers=PEERS_2B,
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
        peers=PEERS_SMALL,
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
        peers=PEERS_TINY,
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
