"""Published sizes of the models that PVC's cost is compared with: fields of their configurations.

Each repository of the Hugging Face Hub is named beside its fields; its files were not at hand. What is not
here is the default of transformers' configuration class. `NUM_PARAMETERS` holds the published sizes, in 10^9;
tests hold that the fields give them to two decimals.
"""

from typing import Any

Fields = dict[str, Any]  # of a configuration
Peers = dict[str, dict[str, Fields]]  # name of a class of `peers.py` -> "text" and "vision" fields

INTERNVL3_VOCABULARY = 151_674
SMOLLM2_VOCABULARY = 49_280
QWEN25_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN3_ROPE = {
    "rope_type": "default",
    "rope_theta": 5e6,
    "mrope_section": [24, 20, 20],
    "mrope_interleaved": True,
}


def text(
    width: int, layers: int, heads: int, key_value_heads: int, mlp: int, vocab_size: int, **more: Any
) -> Fields:
    """Fields of an LLM."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab_size,
        "max_position_embeddings": 131_072,
    } | more


QWEN25_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
}

PEERS_8B: Peers = {
    # OpenGVLab/InternVL3-8B-hf; its ViT is that of InternVL2-8B
    "InternVL": {"text": text(3584, 28, 28, 4, 18944, INTERNVL3_VOCABULARY)},
    # Qwen/Qwen2.5-VL-7B-Instruct
    "Qwen2.5-VL": {
        "text": text(3584, 28, 28, 4, 18944, 152_064, rope_parameters=QWEN25_ROPE),
        "vision": QWEN25_VISION,
    },
    # Qwen/Qwen3-VL-8B-Instruct
    "Qwen3-VL": {
        "text": text(4096, 36, 32, 8, 12288, 151_936, head_dim=128, rope_parameters=QWEN3_ROPE),
        "vision": {"depth": 27, "deepstack_visual_indexes": [8, 16, 24]},
    },
    # llava-hf/llava-onevision-qwen2-7b-ov-hf
    "LLaVA-OneVision": {
        "text": text(3584, 28, 28, 4, 18944, 152_128),
        "vision": SIGLIP_SO400M | {"num_hidden_layers": 26},
    },
}
PEERS_2B: Peers = {
    # OpenGVLab/InternVL3-2B-hf
    "InternVL": {"text": text(1536, 28, 12, 2, 8960, INTERNVL3_VOCABULARY)},
    # Qwen/Qwen2.5-VL-3B-Instruct
    "Qwen2.5-VL": {
        "text": text(2048, 36, 16, 2, 11008, 151_936, rope_parameters=QWEN25_ROPE, tie_word_embeddings=True),
        "vision": QWEN25_VISION,
    },
    # Qwen/Qwen3-VL-2B-Instruct
    "Qwen3-VL": {
        "text": text(
            2048,
            28,
            16,
            8,
            6144,
            151_936,
            head_dim=128,
            rope_parameters=QWEN3_ROPE,
            tie_word_embeddings=True,
        ),
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    # HuggingFaceTB/SmolVLM2-2.2B-Instruct; LLaVA-OneVision has no model between 0.5B and 7B
    "SmolVLM2": {
        "text": text(2048, 24, 32, 32, 8192, SMOLLM2_VOCABULARY),
        "vision": SIGLIP_SO400M | {"num_hidden_layers": 27},
    },
}
NUM_PARAMETERS = {  # 10^9
    "8B": {"InternVL": 7.94, "Qwen2.5-VL": 8.29, "Qwen3-VL": 8.77, "LLaVA-OneVision": 8.03},
    "2B": {"InternVL": 2.09, "Qwen2.5-VL": 3.75, "Qwen3-VL": 2.13, "SmolVLM2": 2.25},
}
