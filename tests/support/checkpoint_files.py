"""The files of a checkpoint, and Python processes that find nothing else of this repository."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL_FILES = [
    "chat.py",
    "chunks.py",
    "clips.py",
    "compressors.py",
    "configuration_checks.py",
    "configuration_pvc.py",
    "conversation.py",
    "dialogue_cache.py",
    "fast_decode.py",
    "json_files.py",
    "live_video.py",
    "loading.py",
    "modeling_intern_vit.py",
    "modeling_internlm2.py",
    "modeling_pvc.py",
    "modeling_vlm.py",
    "temporal_memory.py",
    "tokenization_internlm2.py",
]
DYNAMIC_VLM_FILES = [  # beside those, where a model is a Dynamic-VLM
    "configuration_dynamic_vlm.py",
    "modeling_dynamic_vlm.py",
]
MEDIA_FILES = [  # those of the processor that also serve a clone, each importable by itself
    "frame_choice.py",
    "image_files.py",
    "media_fetch.py",
    "media_isolation.py",
    "media_policy.py",
    "media_sources.py",
    "preprocess.py",
    "video_readers.py",
]
CHECKPOINT_FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.model",
    "tokenizer_config.json",
]
AUTO_MAP = {
    "AutoConfig": "configuration_pvc.PVCConfig",
    "AutoModel": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_pvc.PVCForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_pvc.PVCForConditionalGeneration",
}
NEEDED = {
    "torch",
    "transformers",
    "einops",
    "numpy",
    "PIL",
    "safetensors",
}  # the last is transformers' own need
NEVER_NEEDED = ("accelerate", "av", "decord", "flash_attn", "timm", "torchvision")

# Runs before a script: the packages that its first argument names are not found, as if not installed.
HIDE_PACKAGES = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)

hidden = sys.argv.pop(1).split()
sys.meta_path[:] = map(Hiding, sys.meta_path)
for name in hidden:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} was found")
"""


def run_python(script: str, *arguments, cwd: Path, hidden=(), **environment) -> str:
    """What `script` prints in a new process that starts in `cwd` and does not find the `hidden` packages."""
    with tempfile.TemporaryDirectory() as modules:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            **{"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules, "OMP_NUM_THREADS": "1"},
            **{name: str(value) for name, value in environment.items()},
        }
        command = [sys.executable, "-c", HIDE_PACKAGES + script, " ".join(hidden), *map(str, arguments)]
        return run(command, cwd=cwd, env=environment)


def run(command: list, **where) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **where)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
