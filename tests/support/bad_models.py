"""Cases of what a model is made of: tokenizers, configurations, folders of a checkpoint."""

from builders import tiny_config, tiny_model
from cases import CONTEXT, LLM, SETTINGS, SMALL, Bench, Case, generate, places, refused, right, tiles
from tokenizers_of_llms import byte_level_tokenizer
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from pvc.configuration_pvc import InternLM2Config, InternVisionConfig, PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor

CASES: list[Case] = []

# ---- tokenizers


def larger_tokenizer():
    """One of another model, with more ids than the LLM has."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([f"<fill {i}>" for i in range(2048)])
    tokenizer.add_tokens(["<|im_start|>assistant", "<last>"], special_tokens=True)
    return tokenizer


CASES += refused(
    "chat, tokenizer",
    lambda b, given: b.model.chat(given[0](b), given[1], "What?", SETTINGS),
    {
        "None": ((lambda b: None, None), "tokenizer is a NoneType: expected a tokenizer"),
        "a processor": ((lambda b: b.processor, None), "tokenizer is a PVCProcessor: expected a tokenizer"),
        "a name": ((lambda b: "internlm2", None), "tokenizer is a str: expected a tokenizer"),
        "other ids": (
            (lambda b: byte_level_tokenizer(), tiles(1)),
            r"id of <IMG_CONTEXT> is \d+, config.image_token_id 2041: use the model's own tokenizer",
        ),
        "more ids than the LLM": (
            (lambda b: larger_tokenizer(), None),
            r"input_ids run from \d+ to 2\d\d\d, but the LLM's vocabulary has 2048 ids: use the model's own",
        ),
    },
)

# ---- configurations

NO_CONFIGS = {
    "ratio above 1": (
        lambda: tiny_config(downsample_ratio=2),
        "downsample_ratio 2 is not above 0 and at most 1",
    ),
    "ratio 0": (lambda: tiny_config(downsample_ratio=0), "downsample_ratio 0 is not above 0 and at most 1"),
    "ratio 0.3": (
        lambda: tiny_config(downsample_ratio=0.3),
        "downsample_ratio 0.3 does not divide the grid of 4x4",
    ),
    "tiles off the patches": (
        lambda: tiny_config(force_image_size=60),
        "force_image_size 60 is not a multiple",
    ),
    "no repeats": (lambda: tiny_config(image_repeats=0), "image_repeats is 0: expected at least 1"),
    "-1 repeats": (lambda: tiny_config(video_repeats=-1), "video_repeats is -1: expected at least 1"),
    "more tiles than most": (
        lambda: tiny_config(min_dynamic_patch=13),
        "min_dynamic_patch 13 is above .* 12",
    ),
    "unknown order": (
        lambda: tiny_config(tile_repeat_order="row"),
        "tile_repeat_order is 'row': expected one of",
    ),
    "unknown template": (lambda: tiny_config(template="vicuna"), "template is 'vicuna': expected one of"),
    "unknown layer": (
        lambda: tiny_config(select_layer=9),
        "select_layer 9 is not among the ViT's 5 hidden states",
    ),
    "passes of nothing": (
        lambda: tiny_config(max_encoder_tiles=0),
        "max_encoder_tiles is 0: expected at least 1",
    ),
    "unknown LLM": (lambda: PVCConfig(llm_config={"model_type": "gpt2"}), "llm_config.model_type is 'gpt2'"),
    "too many temporal layers": (
        lambda: InternVisionConfig(num_temporal_layers=25),
        "num_temporal_layers 25 .* 24",
    ),
    "ViT's heads": (
        lambda: InternVisionConfig(hidden_size=100),
        "hidden_size 100 is not a multiple of .* 16",
    ),
    "unknown condition": (
        lambda: InternVisionConfig(temporal_condition="x"),
        "temporal_condition is 'x': expected",
    ),
    "LLM's heads": (lambda: InternLM2Config(num_key_value_heads=7), "num_attention_heads 32 is not .* 7"),
    "unknown RoPE": (
        lambda: InternLM2Config(rope_scaling={"type": "yarn"}),
        "rope_type is 'yarn': expected one of",
    ),
    "shrinking RoPE": (
        lambda: InternLM2Config(rope_scaling={"type": "linear", "factor": 0.5}),
        "factor of at least 1",
    ),
    "processor's template": (
        lambda: PVCProcessor(template="vicuna"),
        "template is 'vicuna': expected one of",
    ),
}
CASES += refused("configuration", lambda b, make: make(), NO_CONFIGS)
CASES += refused(
    "generate",
    lambda b, id: tiny_model(llm_config=LLM, image_token_id=id).generate(
        input_ids=places(4), pixel_values=tiles(1)
    ),
    {
        "an image token beyond the vocabulary": (
            9999,
            "config.image_token_id 9999 is not in the vocabulary of 2048",
        )
    },
)


def other_tiles(b: Bench, size: int):
    """A processor whose tiles are not the model's."""
    processor = PVCProcessor(PVCImageProcessor(image_size=size, max_tiles=1), b.tokenizer)
    return generate(b, **processor(text="<image>", images=SMALL))


CASES += refused(
    "generate, tiles of another processor",
    other_tiles,
    {"70 pixels": (70, "tiles are 70x70 pixels: expected multiples of 56")},
)

# ---- folders of a model

DAMAGED = "a file of weights or their index is damaged"
PARTS = {
    "missing": ("missing", "missing"),
    "empty": ("empty", "empty has no config.json"),
    "no config": ("no_config", "no_config has no config.json"),
    "config cut": ("config_cut", "config.json.* JSON"),
    "config of another model": (
        "config_of_bert",
        "config_of_bert has model_type 'bert': expected one of pvc",
        ValueError,
    ),
    "no weights": ("no_weights", "no file named model.safetensors.* in directory .*no_weights"),
    "weights empty": ("weights_empty", f"weights_empty: {DAMAGED} .*header"),
    "weights cut": ("weights_cut", f"weights_cut: {DAMAGED} .*incomplete"),
    "weights of words": ("weights_of_words", f"weights_of_words: {DAMAGED} .*header"),
    "weights of another size": ("weights_of_another_size", "ignore_mismatched_sizes", RuntimeError),
    "a shard missing": ("shard_missing", r"shard_missing.*model-00002-of-\d+\.safetensors"),
    "a shard cut": ("shard_cut", f"shard_cut: {DAMAGED} .*incomplete"),
    "index cut": ("index_cut", f"index_cut: {DAMAGED} .*line"),
}


def load(b: Bench, name: str, **options):
    return PVCForConditionalGeneration.from_pretrained(b.models / name, **options)


CASES += refused("from_pretrained", load, PARTS, OSError)
CASES += refused(
    "AutoModel",
    lambda b, name: AutoModel.from_pretrained(b.models / name, trust_remote_code=True),
    {name: PARTS[name] for name in ("missing", "no weights", "weights cut", "a shard missing", "index cut")},
    OSError,
)
CASES += refused(
    "AutoTokenizer",
    lambda b, name: AutoTokenizer.from_pretrained(b.models / name, trust_remote_code=True),
    {
        "missing": ("no_tokenizer", "(?i)tokenizer|vocab_file", (OSError, ValueError)),
        "cut": ("tokenizer_cut", "vocab_file .*tokenizer.model is not a SentencePiece model"),
    },
)
CASES += refused(
    "AutoProcessor",
    lambda b, name: AutoProcessor.from_pretrained(b.models / name, trust_remote_code=True),
    {"without its configuration": ("no_processor", "(?i)process", (OSError, ValueError))},
)
CASES += refused(
    "from_pretrained",
    lambda b, options: load(b, "good", **options),
    {
        "8 bits without bitsandbytes": ({"load_in_8bit": True}, "bitsandbytes", ImportError),
        "4 bits without bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes", ImportError),
        "flash-attn not installed": ({"attn_implementation": "flash_attention_2"}, "(?i)flash", ImportError),
        "unknown attention": ({"attn_implementation": "fast"}, "fast"),
    },
)
CASES += right(
    "from_pretrained",
    lambda b, name: load(b, name).config.image_token_id,
    {"the folder that the others spoil": ("good", CONTEXT), "in shards": ("shards", CONTEXT)},
)
