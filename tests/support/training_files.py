"""Small training data for tests: images, videos, annotations, and a processor for tiles of one token."""

import json
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tokenizers_of_llms import make_tokenizer

from pvc.processing_pvc import PVCImageProcessor, PVCProcessor


def tiny_processor(tokenizer="InternLM2", template="internlm2-chat", **options) -> PVCProcessor:
    """Tiles of 56 x 56 pixels and one visual token, 4 at most."""
    images = PVCImageProcessor(**{"image_size": 56, "patch_size": 14, "max_tiles": 4} | options)
    return PVCProcessor(images, make_tokenizer(tokenizer), template=template)


def write_image(path: Path, size=(56, 56), seed=0, **options) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.name


def write_video(path: Path, frames=12, size=(32, 32)) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            pixels = np.full((*size[::-1], 3), 20 * i % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path.name


def dialogue(*texts: str, **fields) -> dict:
    """A record in which human and gpt say `texts` in turn."""
    roles = ("human", "gpt") * len(texts)
    return fields | {"conversations": [{"from": role, "value": text} for role, text in zip(roles, texts)]}


def write_meta(folder: Path, **data_sets: list) -> Path:
    """A meta JSON of data sets: each the fields in it, then records, or texts that are lines as they are."""
    meta = {}
    for name, (fields, *records) in data_sets.items():
        lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
        meta[name] = {
            "root": str(folder),
            "annotation": str(folder / f"{name}.jsonl"),
            "repeat_time": 1,
        } | fields
    path = folder / "meta.json"
    path.write_text(json.dumps(meta), encoding="utf-8")
    return path


def write_mixed(folder: Path, **fields) -> Path:
    """Nine samples with an image, four with two, three with a video, eight of text alone."""
    names = [write_image(folder / f"{i}.png", (56 + 40 * (i % 3), 56 + 23 * i), i) for i in range(9)]
    videos = [write_video(folder / f"{i}.mp4", 6 + i) for i in range(3)]
    images = [
        dialogue(f"<image>\nWhat is {i}?", "word " * (i + 1), image=name) for i, name in enumerate(names)
    ]
    images += [dialogue("<image> and <image>?", f"These {i}.", image=names[i : i + 2]) for i in range(4)]
    clips = [
        dialogue(f"<video>\nWhat happens in {i}?", "It moves.", video=name) for i, name in enumerate(videos)
    ]
    texts = [dialogue(f"Say {i}", "so " * (3 * i + 1), "Again", f"{i} {i}") for i in range(8)]
    return write_meta(folder, images=[fields, *images], clips=[{}, *clips], texts=[{}, *texts])
