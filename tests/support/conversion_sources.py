"""Small InternVL checkpoints in both layouts, as people have them: what the converter is tested with."""

import json
import shutil
from pathlib import Path

import torch
from builders import TINY_LLM, TINY_VIT, golden, move_off_start, tiny_model
from naming_schemes import released_name
from safetensors.torch import save_file
from tokenizers_of_llms import byte_level_tokenizer, prefix_space_tokenizer
from transformers import InternVLConfig, InternVLForConditionalGeneration

from pvc import CHECKPOINT
from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tokenization_internlm2 import InternLM2Tokenizer

OFFICIAL = {  # ours -> the remote code's; the first that fits counts
    "model.projector.norm.": "mlp1.0.",
    "model.projector.mlp.0.": "mlp1.1.",
    "model.projector.mlp.2.": "mlp1.3.",
    "model.language_model.": "language_model.model.",
    "model.vision_model.": "vision_model.",
}
HEADS = {"internlm2": "language_model.output.", "other": "language_model.lm_head."}
ARCHITECTURES = {
    "internlm2": "InternLM2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
TEMPLATES = {"internlm2": "internlm2-chat", "phi3": "phi3-chat", "qwen2": "Hermes-2"}
# what transformers 4 wrote into the configuration of a part, and nobody needs today
LEFT_BY_TRANSFORMERS_4 = {
    "_name_or_path": "internlm/internlm2-chat-1_8b",
    "add_cross_attention": False,
    "attn_implementation": "flash_attention_2",
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "do_sample": False,
    "max_length": 20,
    "output_attentions": False,
    "pruned_heads": {},
    "temperature": 1.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.2",
    "use_bfloat16": True,
}
LLM_EXTRAS = {
    "internlm2": {"rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1000000, "bias": False},
    "qwen2": {"rope_theta": 1000000.0, "sliding_window": 32768, "use_sliding_window": False},
    "qwen3": {"rope_theta": 1000000.0, "head_dim": 16, "attention_bias": False},
    "phi3": {
        "original_max_position_embeddings": 64,
        "max_position_embeddings": 1024,
        "rope_scaling": {"long_factor": [1.5] * 6, "short_factor": [1.1] * 6, "type": "su"},
        "rope_theta": 10000.0,
    },
    "llama": {"rope_theta": 10000.0},
}


def llm_tokenizer(llm: str):
    if llm == "internlm2":
        return InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    return prefix_space_tokenizer(everywhere=True) if llm in ("phi3", "llama") else byte_level_tokenizer()


def remote_code_config(llm: str, **changes) -> dict:
    """config.json of an InternVL whose LLM is `llm`, as the remote code wrote it."""
    vit = {name: value for name, value in TINY_VIT.items() if "temporal" not in name and "time" not in name}
    vit |= {"qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm", "use_flash_attn": True}
    vocab_size = -(-len(llm_tokenizer(llm)) // 64) * 64
    llm_config = TINY_LLM | LLM_EXTRAS[llm] | {"vocab_size": vocab_size, "model_type": llm}
    llm_config |= {"architectures": [ARCHITECTURES[llm]], "tie_word_embeddings": False}
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 56,
        "llm_config": LEFT_BY_TRANSFORMERS_4 | llm_config,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": TEMPLATES.get(llm, "internvl2_5"),
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_thumbnail": True,
        "vision_config": LEFT_BY_TRANSFORMERS_4 | {"model_type": "intern_vit_6b"} | vit,
    } | changes


def internvl_in_this_code(config: dict) -> PVCForConditionalGeneration:
    """InternVL2 as a configuration of this code, no parameter at its start."""
    llm = {n: v for n, v in config["llm_config"].items() if n not in LEFT_BY_TRANSFORMERS_4}
    vision = {n: v for n, v in config["vision_config"].items() if n not in LEFT_BY_TRANSFORMERS_4}
    names = ("downsample_ratio", "ps_version", "select_layer", "template", "force_image_size")
    model = PVCForConditionalGeneration(
        PVCConfig(
            **{name: config[name] for name in names},
            vision_config=vision | {"num_temporal_layers": 0},
            llm_config=llm,
            adaptive_compression=False,
            image_repeats=1,
        )
    )
    return move_off_start(model.eval())


def official_name(name: str, llm: str) -> str:
    if name.startswith("lm_head."):
        return HEADS.get(llm, HEADS["other"]) + name.removeprefix("lm_head.")
    prefix = next(prefix for prefix in OFFICIAL if name.startswith(prefix))
    return OFFICIAL[prefix] + name.removeprefix(prefix)


def remote_code_source(
    folder: Path, llm: str, files: int = 2, dtype=torch.float32, tie: bool = False, **changes
) -> PVCForConditionalGeneration:
    """Writes an InternVL in the remote code's layout; returns the same model in this code.

    `tie`: embeddings and head are one tensor, and the files hold it once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = remote_code_config(llm, **changes)
    config["llm_config"]["tie_word_embeddings"] = tie
    model = internvl_in_this_code(config).to(dtype)
    weights = {official_name(name, llm): value for name, value in model.state_dict().items()}
    if tie:
        del weights[official_name("lm_head.weight", llm)]
    weights["language_model.model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(6)
    save_weights(folder, weights, files)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json", {"_from_model_config": True, "transformers_version": "4.37.2"}
    )
    llm_tokenizer(llm).save_pretrained(folder)
    return model


def golden_source(folder: Path, **changes) -> Path:
    """The golden weights as a checkpoint of the remote code, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    chat = json.loads(golden("chat_config.json").read_text())
    image_token_id = chat["meta"]["img_context_token_id"]
    config = (
        {"model_type": "internvl_chat", "img_context_token_id": image_token_id} | chat["config"] | changes
    )
    write_json(folder / "config.json", config)
    shutil.copyfile(golden("chat_weights.safetensors"), folder / "model.safetensors")
    return folder


def native_source(folder: Path, llm: str, earlier_names: bool = False) -> InternVLForConditionalGeneration:
    """Writes an InternVL in transformers' own layout; returns transformers' own model."""
    tokenizer = llm_tokenizer(llm)
    text = TINY_LLM | LLM_EXTRAS[llm] | {"model_type": llm, "vocab_size": -(-len(tokenizer) // 64) * 64}
    vision = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "image_size": [56, 56],
        "patch_size": [14, 14],
        "attention_bias": True,
        "use_qk_norm": llm == "qwen3",
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    model = move_off_start(InternVLForConditionalGeneration(config).eval())
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = ["InternVLForConditionalGeneration"]
    config.save_pretrained(folder)
    save_weights(folder, {native_name(n, earlier_names): v for n, v in model.state_dict().items()}, files=2)
    tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {"max_patches": 9, "min_patches": 1})
    return model


def native_name(name: str, earlier: bool) -> str:
    """As transformers wrote it before 4.52 too, when the LLM had its head within."""
    if not earlier:
        return name
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.")


def released_source(folder: Path, schemes, files: int = 2) -> PVCForConditionalGeneration:
    """Writes a PVC as released, its new parameters called as `schemes` has it; returns it in this code."""
    config = remote_code_config(
        "internlm2",
        architectures=["PVCInternVLModel"],
        downsample_ratio=0.25,
        image_repeat_time=3,
        mlp_add_ops="adaln",
        model_type="pvc_internvl",
        tile_repeat_way="tile",
        use_temporal=True,
        video_repeat_time=2,
    )
    llm = {n: v for n, v in config["llm_config"].items() if n not in LEFT_BY_TRANSFORMERS_4}
    model = tiny_model(vision_config={"time_embed_dim": 256}, llm_config=llm, image_token_id=2041)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, {released_name(n, *schemes): v for n, v in model.state_dict().items()}, files)
    write_json(folder / "config.json", config)
    llm_tokenizer("internlm2").save_pretrained(folder)
    return model


def save_weights(folder: Path, weights: dict[str, torch.Tensor], files: int):
    """Writes `weights` into so many files with an index, or one without."""
    if files == 1:
        return save_file(weights, folder / "model.safetensors", {"format": "pt"})
    names = sorted(weights)
    index = {}
    for i in range(files):
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = {name: weights[name].contiguous() for name in names[i::files]}
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    return write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def write_json(path: Path, values: dict):
    path.write_text(json.dumps(values, indent=2))
