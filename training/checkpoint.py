"""Checkpoints of a run: whole folders, each of which `AutoModel`, `pvc chat` and the Hub take as it is.

A folder has the weights, configuration, processor, code and a README. Weights come as a state dict, wherever
they were (sharded, wrapped, beside LoRA's matrices), and are written through a model of the same class
without any storage, since saving a wrapped model would copy the wrapper's code, not ours.

What a run needs to go on (optimizer, schedule, random numbers) is written beside them by transformers'
Trainer, and the position in the data by `trainer.py`.
"""

import copy
import json
import os
import re
import shutil
import stat
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from pvc.processing_pvc import PVCProcessor

ADAPTER = "adapter"  # the folder in a checkpoint that holds LoRA's matrices alone
PEFT_PREFIX = "base_model.model."
LAST_WRITTEN = "trainer_state.json"
PARTIAL = ".partial"  # the folder in a run's that holds what is not yet whole
CONFIG = "config.json"

README = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- {tag}
- custom_code
---
# {name}

A {system}, trained with `pvc train`{steps}.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
messages = [{{"role": "user", "content": [{{"type": "image", "image": "image.png"}},
                                        {{"type": "text", "text": "What is this?"}}]}}]
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1]:]
print(processor.tokenizer.batch_decode(answer, skip_special_tokens=True)[0])
```
"""

SYSTEMS = {  # model_type -> tag and name
    "pvc": ("pvc", "PVC model (Progressive Visual Token Compression)"),
    "dynamic_vlm": ("dynamic-vlm", "Dynamic-VLM"),
}


def save_folder(
    folder: str | Path,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    generation_config: GenerationConfig,
    state_dict: dict[str, torch.Tensor],
    processor: PVCProcessor,
    *,
    dtype: torch.dtype | None = None,
    steps: int = 0,
    name: str | None = None,
):
    """Writes a whole model, readable as the umask says; a README that is there already is left as it is.

    Args:
        state_dict: every parameter, by the names of `model_class`.
        dtype: of the weights as written; None: as they are.
        steps, name: for the README; None: the folder's name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    if dtype is not None:
        state_dict = {
            name: weight.to(dtype) if weight.is_floating_point() else weight
            for name, weight in state_dict.items()
        }

    config = copy.deepcopy(config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = _widest(state_dict)

    # on the meta device: only the weights of `state_dict` are written
    with torch.device("meta"):
        shell = model_class(config).to(config.dtype)
    shell.generation_config = copy.deepcopy(generation_config)
    shell.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)

    if not (folder / "README.md").exists():
        tag, system = SYSTEMS.get(config.model_type, SYSTEMS["pvc"])
        text = README.format(
            name=name or folder.resolve().name,
            tag=tag,
            system=system,
            steps=f" for {steps:,} steps" if steps else "",
        )
        (folder / "README.md").write_text(text, encoding="utf-8")

    follow_umask(folder)


def follow_umask(folder: Path):
    """Lets those who may read `config.json` read the weights: safetensors writes them for the user alone."""
    mode = stat.S_IMODE((folder / CONFIG).stat().st_mode)
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def place_result(partial: Path, folder: Path):
    """Moves a whole model from `partial` into the folder of its run, by renaming files.

    `config.json` goes first and comes last, so that at no time the folder passes for a model that is half of
    one and half of another. A README that is there already is left as it is.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    names = {path.name for path in partial.iterdir()}
    for path in folder.glob("*.safetensors*"):
        if path.name not in names:  # of an earlier result in other files
            path.unlink()

    for name in sorted(names, key=lambda name: name == CONFIG):
        target = folder / name
        if name == "README.md" and target.exists():
            continue
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(partial / name, target)
    shutil.rmtree(partial)


def place_checkpoint(partial: Path, target: Path):
    """Renames a checkpoint that is whole; replaces what an interruption has left in its place."""
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint, by name."""
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}


def _widest(state_dict: dict[str, torch.Tensor]) -> torch.dtype:
    """The dtype in which no weight loses a digit: what the configuration will say."""
    return max({x.dtype for x in state_dict.values() if x.is_floating_point()}, key=lambda x: x.itemsize)


def merged(state_dict: dict[str, torch.Tensor], scaling: float) -> dict[str, torch.Tensor]:
    """The weights of a model with LoRA as those of one without: `W + scaling * B A`, by the plain names.

    The model itself keeps its weights: merging in place and back would leave rounding in them.
    """
    plain = {}
    for name, weight in state_dict.items():
        if ".lora_" in name:
            continue
        layer, is_adapted, _ = name.partition(".base_layer.weight")
        if is_adapted:
            down, up = (state_dict[f"{layer}.lora_{x}.default.weight"].float() for x in "AB")
            weight = (weight.float() + scaling * (up @ down)).to(weight.dtype)
        plain[name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")] = weight
    return plain


def last_checkpoint(run: str | Path) -> Path | None:
    """The folder of the newest checkpoint of a run that was written to its end; None where there is none."""
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(run).glob("*/")]
    folders = sorted((int(match[1]), path) for match, path in numbered if match)
    return next((path for _, path in reversed(folders) if _is_whole(path)), None)


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / LAST_WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the process was killed before, or while, it was written
        return False
    return True


def trained_steps(checkpoint: Path) -> int:
    return json.loads((checkpoint / LAST_WRITTEN).read_text(encoding="utf-8"))["global_step"]
