"""The readers that damaged files are given to, and the errors that these may raise.

Each takes the damaged content and the input's number, and a folder that is its own. Images and videos come
as paths, as file objects and within a message; what is read must have the form that it should have.
"""

import base64
import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.files import SourceWeights
from pvc.convert_weights import Conversion, Options
from pvc.hub import checked_files
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.preprocess import load_image, load_video, read_frames
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.data.meta import read_meta

from .paths import CHECKPOINT, GOLDEN
from .seeds import internvl_config

# OSError has FileNotFoundError and PIL's UnidentifiedImageError among its subclasses
DOCUMENTED = (OSError, ValueError)
SIDE = 56  # of a tile in pixels
IMAGE_PROCESSOR = PVCImageProcessor(image_size=SIDE, max_tiles=6)
MAX_FRAMES = 8

Target = Callable[[bytes, str, int, Path], None]


def read_image(content: bytes, name: str, number: int, folder: Path):
    way = number % 4
    if way == 0:
        tiles = IMAGE_PROCESSOR.preprocess(io.BytesIO(content))["pixel_values"]
    elif way == 1:
        tiles = load_image(io.BytesIO(content), SIDE)
    elif way == 2:
        path = _written(folder / name, content)
        tiles = IMAGE_PROCESSOR.preprocess(str(path))["pixel_values"]
    else:
        tiles = _asked(
            {"type": "image", "url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
        )

    _check_tiles(tiles)


def read_video(content: bytes, name: str, number: int, folder: Path):
    options = ({"num_frames": 4}, {"fps": 5.0, "max_frames": MAX_FRAMES}, {"num_frames": 3, "start_s": 0.2})
    choice, way = options[number % 3], number // 3 % 4

    if way == 0:
        frames, _ = read_frames(io.BytesIO(content), **choice)
        assert 1 <= len(frames) <= MAX_FRAMES, f"{len(frames)} frames"
        return
    if way == 1:
        tiles = IMAGE_PROCESSOR.video(str(_written(folder / name, content)), **choice).tiles
    elif way == 2:
        tiles, _ = load_video(str(_written(folder / name, content)), input_size=SIDE, num_segments=4)
    else:
        tiles = _asked({"type": "video", "path": str(_written(folder / name, content)), **choice})

    _check_tiles(tiles)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@cache
def _processor() -> PVCProcessor:
    return PVCProcessor(IMAGE_PROCESSOR, InternLM2Tokenizer.from_pretrained(CHECKPOINT))


def _asked(block: dict) -> torch.Tensor:
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "What is this?"}]}]
    inputs = _processor().apply_chat_template(messages, tokenize=True, return_dict=True)
    return inputs["pixel_values"]


def _check_tiles(tiles: torch.Tensor):
    assert tiles.dim() == 4, f"tiles {tuple(tiles.shape)}"
    assert tiles.shape[1] == 3, f"tiles {tuple(tiles.shape)}"
    assert torch.isfinite(tiles).all(), "tiles that are not finite"


# -------------------------------------------------------------------------------------------------- JSON


def read_config(content: bytes, name: str, number: int, folder: Path):
    _written(folder / "config.json", content)
    config = PVCConfig.from_pretrained(folder)
    PVCConfig(**config.to_dict())  # what was taken once is taken again


def read_processor(content: bytes, name: str, number: int, folder: Path):
    _written(folder / "processor_config.json", content)
    processor = PVCImageProcessor.from_pretrained(folder)
    _check_tiles(processor.preprocess(Image.new("RGB", (40, 30)))["pixel_values"])  # what is taken also works


def plan_conversion(content: bytes, name: str, number: int, folder: Path):
    _written(folder / "config.json", content)
    if not (folder / "model.safetensors").exists():
        shutil.copyfile(GOLDEN / "chat_weights.safetensors", folder / "model.safetensors")

    config = _plan(folder)
    model = PVCForConditionalGeneration(config).eval()  # what is taken must also run
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]), pixel_values=None)


def _plan(folder: Path) -> PVCConfig:
    options = Options(tokenizer=False, temporal_layers=1)
    return Conversion(folder, folder.parent / "converted", options).plan.config


def read_index(content: bytes, name: str, number: int, folder: Path):
    _written(folder / name, content)
    if not (folder / "model-1.safetensors").exists():
        shutil.copyfile(GOLDEN / "lm_weights.safetensors", folder / "model-1.safetensors")
    SourceWeights(folder)


def push_with(file: str) -> Target:
    """What `pvc push` checks of a folder in which one file is damaged."""

    def check(content: bytes, name: str, number: int, folder: Path):
        if not (folder / "config.json").exists():
            shutil.copytree(CHECKPOINT, folder, dirs_exist_ok=True, ignore=_no_root_file)
        _written(folder / file, content)
        checked_files(folder)

    return check


def _no_root_file(folder: str, names: list[str]) -> list[str]:
    """Of the repository, what is no file of the checkpoint: folders and hidden files."""
    return [name for name in names if name.startswith(".") or (Path(folder) / name).is_dir()]


def read_meta_json(content: bytes, name: str, number: int, folder: Path):
    (folder / "media").mkdir(exist_ok=True)
    _written(folder / "lines.jsonl", b'{"conversations": []}\n' * 3)
    for data_set in read_meta(_written(folder / "meta.json", content)):
        len(data_set)


def read_annotation(content: bytes, name: str, number: int, folder: Path):
    """A line that cannot be trained on is a BrokenSample, a ValueError."""
    media = folder / "media"
    media.mkdir(exist_ok=True)
    for file in ("a.png", "a.mp4"):
        (media / file).touch()

    _written(folder / "lines.jsonl", content)
    meta = f'{{"lines": {{"annotation": "lines.jsonl", "root": "{folder.as_posix()}"}}}}'
    (data_set,) = read_meta(_written(folder / "meta.json", meta.encode()))
    for index in range(len(data_set)):
        data_set.read(index)


# -------------------------------------------------------------------------------------------- safetensors


def read_safetensors(content: bytes, name: str, number: int, folder: Path):
    _written(folder / "model.safetensors", content)
    if number % 2 or name.startswith("small"):
        SourceWeights(folder)
        return

    if not (folder / "config.json").exists():
        _written(folder / "config.json", json.dumps(internvl_config()).encode())
    _plan(folder)


TARGETS: dict[str, Target] = {
    "image": read_image,
    "video": read_video,
    "config": read_config,
    "processor": read_processor,
    "convert": plan_conversion,
    "index": read_index,
    "push_config": push_with("config.json"),
    "push_processor": push_with("processor_config.json"),
    "push_tokenizer": push_with("tokenizer_config.json"),
    "meta": read_meta_json,
    "annotation": read_annotation,
    "safetensors": read_safetensors,
}
