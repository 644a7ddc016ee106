"""Makes PVC-Tiny, the checkpoint in the repository's root: `python -m pvc.training.pvc_tiny FOLDER`.

The classes of PVC at a size that a laptop runs and a repository holds: 112-pixel tiles, 16 visual tokens a
tile. Writes configuration, generation settings and weights; the tokenizer's files come from
`tiny_tokenizer.py`. The weights are random, from a seed: no training here.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig

from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "chat_template.jinja",
)


def pvc_tiny_config(tokenizer: InternLM2Tokenizer) -> PVCConfig:
    """The configuration of PVC-Tiny for the vocabulary of `tokenizer`.

    The ViT is narrow (64) because the projector's AdaLN grows with its width squared: `5 * (16 * 64)^2`,
    half of all parameters, as many as ViT and LLM together.
    """
    image_size = 112
    return PVCConfig(
        vision_config={
            "image_size": image_size,
            "patch_size": 7,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "num_hidden_layers": 12,
            "num_temporal_layers": 4,
        },
        llm_config={
            "model_type": "internlm2",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "pad_token_id": tokenizer.pad_token_id,
        },
        force_image_size=image_size,
        max_dynamic_patch=6,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )


def make(folder: Path, seed: int = 0):
    """Writes PVC-Tiny with random weights in bfloat16 into `folder`, where the tokenizer's files already
    lie.
    """
    tokenizer = InternLM2Tokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    model = PVCForConditionalGeneration(pvc_tiny_config(tokenizer)).to(torch.bfloat16)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    processor = PVCProcessor(PVCImageProcessor.from_model_config(model.config), tokenizer, num_frames=16)
    with tempfile.TemporaryDirectory() as saved:
        # not straight into the folder: saving copies the code files, which in a clone would be onto
        # themselves
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        for name in FILES:
            shutil.copyfile(Path(saved) / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.seed)
