"""Makes PVC-Tiny, the checkpoint in the repository's root, as the paper makes PVC: from an InternVL.

    python -m pvc.tiny.build all FOLDER

runs the stages below one after another, in one process, and goes on where it was killed; `stages.py` has the
numbers of steps. START, ANSWERS and so on are folders in FOLDER.

    python -m pvc.tiny.tokenizer START
    python -m pvc.tiny.build start START
    python -m pvc.tiny.vision_pretraining START --workers 1 --steps {steps}
    pvc train run tiny-internvl --model START --data RECIPES/tiny-internvl.json --output ANSWERS
        --set max_steps={steps} --resume
    python -m pvc.tiny.build internvl ANSWERS INTERNVL
    pvc convert INTERNVL PVC --temporal-layers 2 --projector-init interlaced
    python -m pvc.tiny.vision_pretraining PVC --heads START/heads.pt --learning-rate 1e-3 --seed 1
        --workers 1 --steps {steps}
    pvc train run tiny-pretrain --model PVC --data RECIPES/tiny-pretrain.json --output ONE
        --set max_steps={steps} --resume
    pvc train run tiny-tune --model ONE --data RECIPES/tiny-tune.json --output TWO
        --set max_steps={steps} --resume
    python -m pvc.tiny.build mean ONE TWO TINY

That is: the tokenizer; an InternVL of random weights; its ViT and projector on dense labels; its LLM on
questions about images; InternVL2's layout; a PVC, whose repeats of an image give InternVL's tokens; temporal
attention and the projector on dense labels of repeated images and videos; its LLM on all tasks; the same on
more of what is hard; the mean of the last two, which scores better than either.

    python -m pvc.tiny.build all FOLDER --base MODEL

trains a PVC-Tiny that is there on what it has not seen:

    python -m pvc.tiny.build base BASE ONE
    python -m pvc.tiny.vision_distillation ONE --teacher BASE --plain-share 0.4 --workers 1 --steps {steps}
    pvc train run tiny-tune --model ONE --data RECIPES/tiny-again.json --output TWO
        --set max_steps={steps} --set learning_rate=5e-4 --resume
    pvc train run tiny-tune --model TWO --data RECIPES/tiny-hard.json --output THREE
        --set max_steps={steps} --set learning_rate=5e-4 --resume
    python -m pvc.tiny.build mean TWO THREE TINY

That is: its weights in float32; its ViT on scenes of all looks, which it learns to see as BASE sees plain
ones, so that its LLM reads them at once; its LLM on both; the same on more of what it does not do well; the
mean of the last two.

What remains is

    python -m pvc.tiny.build install TINY ROOT      the result, in bfloat16, into a clone

The classes of PVC at a size that a CPU trains and a repository holds: tiles of 96 pixels, 9 visual tokens a
tile.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.configs import INTERNVL, INTERNVL_DEFAULTS
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tiny.stages import build_all
from pvc.tokenization_internlm2 import InternLM2Tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FILES = (CONFIG, "generation_config.json", WEIGHTS, "processor_config.json", "chat_template.jinja")
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")
INTERNVL_NAMES = {  # ours -> those of InternVL2's code
    "model.vision_model.": "vision_model.",
    "model.projector.norm.": "mlp1.0.",
    "model.projector.mlp.0.": "mlp1.1.",
    "model.projector.mlp.2.": "mlp1.3.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.output.",
}
TABLES = (  # of InternLM2, Qwen2, and either ViT
    "tok_embeddings.weight",
    "embed_tokens.weight",
    "position_embedding",
    "position_embedding.weight",
    "class_embedding",
)
TABLE_STD = 0.5
BRANCH_ENDS = (  # of InternViT, CLIP, InternLM2 and Qwen2
    *("attn.proj.weight", "fc2.weight", "out_proj.weight"),
    *("attention.wo.weight", "feed_forward.w2.weight", "o_proj.weight", "down_proj.weight"),
)
BEFORE_SHARE = 0.3  # of the weights that training went on from, in `mean`
NUM_FRAMES = 8  # of a video by default: as many as show every state of a synthetic one


def internvl_tiny_config(tokenizer: InternLM2Tokenizer) -> PVCConfig:
    """An InternVL2 as a configuration of this code, for the vocabulary of `tokenizer`.

    The ViT is narrow (80) because the AdaLN of PVC's projector grows with its width squared: `5 * (16 *
    80)^2`, more parameters than ViT and LLM together.
    """
    image_size = 96

    return PVCConfig(
        vision_config={
            "image_size": image_size,
            "patch_size": 8,
            "hidden_size": 80,
            "num_attention_heads": 5,
            "intermediate_size": 320,
            "num_hidden_layers": 8,
            "num_temporal_layers": 0,
        },
        llm_config={
            "model_type": "internlm2",
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 4096,
            "rope_theta": 10_000,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "pad_token_id": tokenizer.pad_token_id,
        },
        downsample_ratio=0.5,
        adaptive_compression=False,
        image_repeats=1,
        force_image_size=image_size,
        max_dynamic_patch=6,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )


def start(folder: Path, seed: int = 0):
    """Writes InternVL-Tiny with random weights, and the code, beside the tokenizer in `folder`."""
    tokenizer = InternLM2Tokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    model = PVCForConditionalGeneration(internvl_tiny_config(tokenizer))
    init_weights_by_width(model)
    model.generation_config = generation_config(tokenizer)
    model.save_pretrained(folder)
    _processor(model.config, tokenizer).save_pretrained(folder)


def generation_config(tokenizer: InternLM2Tokenizer) -> GenerationConfig:
    """Which tokens begin, end and pad the answers of a small model."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def init_weights_by_width(model: PreTrainedModel, table_std: float = TABLE_STD):
    """Initialises all weights anew, with a standard deviation that follows from the width.

    The usual 0.02 is for widths of thousands: from there a model so narrow learns nothing for long. Layers
    that end a branch start smaller, by their number. A selector of patches keeps its start.

    Args:
        table_std: of embeddings, of positions too.
    """
    depth = model.config.vision_config.num_hidden_layers + model.config.llm_config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "compressor" not in name:
            is_table = name.endswith(TABLES)
            std = table_std if is_table else parameter[0].numel() ** -0.5
            ends_branch = name.endswith(BRANCH_ENDS)
            parameter.normal_(std=std / (2 * depth) ** 0.5 if ends_branch else std)


def as_internvl(folder: Path, target: Path):
    """Writes InternVL-Tiny in `folder` as a new folder `target` in the layout of InternVL2's code.

    Raises:
        ValueError: where the model has something that InternVL2 has not.
    """
    config = PVCConfig.from_pretrained(folder)
    if config.vision_config.num_temporal_layers or config.adaptive_compression:
        raise ValueError(f"{folder} is a PVC: expected num_temporal_layers 0 and adaptive_compression false")

    target.mkdir(parents=True)
    vision, llm = config.vision_config.to_dict(), config.llm_config.to_dict()
    values = {name: getattr(config, name) for name in (*INTERNVL_DEFAULTS, "template", "force_image_size")}
    values |= {"model_type": INTERNVL, "vision_config": vision, "llm_config": llm}
    (target / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    weights = {_internvl_name(name): value for name, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})

    for name in (*TOKENIZER_FILES, "generation_config.json"):
        shutil.copyfile(folder / name, target / name)


def _internvl_name(name: str) -> str:
    prefix = next(prefix for prefix in INTERNVL_NAMES if name.startswith(prefix))
    return INTERNVL_NAMES[prefix] + name.removeprefix(prefix)


def base(model: Path, target: Path):
    """Writes a PVC-Tiny, with this code, as a new folder `target`, to be trained on in float32.

    Raises:
        ValueError: where `model` is not a PVC.
    """
    start = PVCForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    if not start.config.vision_config.num_temporal_layers:
        raise ValueError(f"{model} has no temporal layers: expected a PVC, as `pvc convert` makes one")
    start.save_pretrained(target)
    _processor(start.config, InternLM2Tokenizer.from_pretrained(model)).save_pretrained(target)


def _processor(config: PVCConfig, tokenizer: InternLM2Tokenizer) -> PVCProcessor:
    return PVCProcessor(PVCImageProcessor.from_model_config(config), tokenizer, num_frames=NUM_FRAMES)


def mean(before: Path, after: Path, target: Path):
    """Copies the model in `after`, which was trained on from `before`, to `target`, with the mean of both.

    The mean keeps some of what the later data asked for less (WiSE-FT, arXiv 2109.01903).

    Raises:
        ValueError: the weights of the two are not of the same names and shapes.
    """
    old, new = (load_file(folder / WEIGHTS) for folder in (before, after))
    if {name: old[name].shape for name in old} != {name: new[name].shape for name in new}:
        raise ValueError(f"{before} and {after} have weights of different names or shapes: no mean of them")
    shutil.copytree(after, target, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = {name: torch.lerp(new[name].float(), old[name].float(), BEFORE_SHARE) for name in new}
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})


def install(folder: Path, root: Path):
    """Copies the model in `folder`, in bfloat16, into `root`, where the code and the tokenizer lie."""
    model = PVCForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model.config.new_parameters = []
    processor = PVCProcessor.from_pretrained(
        folder,
        tokenizer=InternLM2Tokenizer.from_pretrained(folder),
        num_frames=NUM_FRAMES,
        trust_remote_code=True,
    )

    with tempfile.TemporaryDirectory() as saved:
        # not straight into the root: saving copies the code files, which there would be onto themselves
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
        for name in FILES:
            shutil.copyfile(Path(saved) / name, root / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for function, names in (
        (start, ["folder"]),
        (as_internvl, ["folder", "target"]),
        (base, ["model", "target"]),
        (mean, ["before", "after", "target"]),
        (install, ["folder", "root"]),
    ):
        summary = (function.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(function.__name__.removeprefix("as_"), help=summary)
        command.set_defaults(function=function)
        for name in names:
            command.add_argument(name, type=Path)

    command = commands.add_parser("all", help="All stages that make PVC-Tiny, or those that are left.")
    command.set_defaults(function=build_all)
    command.add_argument("folder", type=Path)
    command.add_argument("--base", type=Path, help="a PVC-Tiny to train on, instead of random weights")
    command.add_argument("--scale", type=float, default=1.0, help="share of the steps, to try it out")
    command.add_argument("--processes", type=int, default=1, help="that train together: one for each core")

    arguments = vars(parser.parse_args())
    arguments.pop("command")
    arguments.pop("function")(**arguments)


if __name__ == "__main__":
    main()
