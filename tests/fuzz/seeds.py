"""Small valid files to start from: images, videos, JSON and safetensors, the same in each run."""

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from .paths import CHECKPOINT, GOLDEN


class Seed(NamedTuple):
    target: str  # what reads it, in `targets.py`
    name: str  # also a file name, with the suffix of its format
    content: bytes


IMAGE_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "AVIF": ("RGB", "RGBA"),
    "MPO": ("RGB",),
    # formats that nobody needs here: read or refused, but harmless
    "EPS": ("RGB",),
    "ICO": ("RGBA",),
    "ICNS": ("RGBA",),
    "TGA": ("RGB",),
    "PCX": ("RGB",),
    "DDS": ("RGBA",),
    "JPEG2000": ("RGB",),
    "SGI": ("RGB",),
    "QOI": ("RGB",),
    "XBM": ("1",),
}
IMAGE_OPTIONS = {
    "WEBP": ({"lossless": True}, {"quality": 50}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}),
    "JPEG": ({}, {"progressive": True}),
    "PNG": ({}, {"compress_level": 0}),  # stored as it is: a changed byte is a changed pixel
}
ANIMATED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")

# container format, codec, pixel format
VIDEO_KINDS = (
    ("mp4", "libx264", "yuv420p"),
    ("mp4", "mpeg4", "yuv420p"),
    ("mov", "qtrle", "rgb24"),
    ("webm", "libvpx", "yuv420p"),
    ("webm", "libvpx-vp9", "yuv420p"),
    ("matroska", "ffv1", "yuv420p"),
    ("matroska", "libx264", "yuv420p"),
    ("avi", "mjpeg", "yuvj420p"),
    ("avi", "mpeg4", "yuv420p"),
    ("gif", "gif", "rgb8"),
    ("mpegts", "mpeg2video", "yuv420p"),
    ("flv", "flv", "yuv420p"),
    ("asf", "wmv2", "yuv420p"),
    ("ogg", "libtheora", "yuv420p"),
)
# texts that FFmpeg takes for lists of other files, or for a port to listen on
PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile /etc/hostname\nduration 1\n",
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 49170 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
}


def make(kind: str) -> list[Seed]:
    """The seeds of one of `KINDS`."""
    return list(KINDS[kind]())


# -------------------------------------------------------------------------------------------------- images


def _noise(mode: str, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)

    if mode in ("I;16", "I", "F"):
        values = rng.integers(0, 65536, (height, width))
        values = values / 65535 if mode == "F" else values
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(values.astype(dtype))

    values = rng.integers(0, 256, (height, width, 3), np.uint8)
    values[: height // 2] = values[0, 0]  # an even half: both runs and noise in what a format compresses
    return Image.fromarray(values).convert(mode)


def _images() -> Iterator[Seed]:
    for image_format, modes in IMAGE_MODES.items():
        for mode in modes:
            for i, options in enumerate(IMAGE_OPTIONS.get(image_format, ({},))):
                name = f"{mode.replace(';', '_')}_{i}.{image_format.lower()}"
                yield Seed("image", name, _encoded(_noise(mode, 40, 30), image_format, **options))

    for image_format in ANIMATED:
        frames = [_noise("RGB", 24 + i, 20).resize((24, 20)) for i in range(3)]
        content = _encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        yield Seed("image", f"animated.{image_format.lower()}", content)

    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"  # orientation, text
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        content = _encoded(_noise("RGB", 40, 30), image_format, exif=exif)
        yield Seed("image", f"exif.{image_format.lower()}", content)


def _encoded(image: Image.Image, image_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


# -------------------------------------------------------------------------------------------------- videos


def _videos() -> Iterator[Seed]:
    for container_format, codec, pixel_format in VIDEO_KINDS:
        if codec in av.codecs_available:
            content = _video(container_format, codec, pixel_format)
            yield Seed("video", f"{codec}.{container_format}", content)

    fragmented = _video("mp4", "libx264", "yuv420p", movflags="frag_keyframe+empty_moov")
    yield Seed("video", "fragmented.mp4", fragmented)

    frames = [_noise("RGB", 24 + i, 20).resize((24, 20)) for i in range(4)]
    for image_format in ("GIF", "WEBP", "PNG"):
        content = _encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=100)
        yield Seed("video", f"pil.{image_format.lower()}", content)

    for name, text in PLAYLISTS.items():
        yield Seed("video", name, text.encode())


def _video(container_format: str, codec: str, pixel_format: str, **options: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=10, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 32, 24, pixel_format
        stream.codec_context.thread_count = 1  # the same bytes in every run

        for i in range(8):
            image = _noise("RGB", 32 + i, 24).resize((32, 24))
            frame = av.VideoFrame.from_image(image).reformat(format=pixel_format)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


# ----------------------------------------------------------------------------------------- JSON, safetensors


def _json() -> Iterator[Seed]:
    for target in ("config", "push_config"):
        yield Seed(target, "config.json", (CHECKPOINT / "config.json").read_bytes())
    for target in ("processor", "push_processor"):
        yield Seed(target, "processor_config.json", (CHECKPOINT / "processor_config.json").read_bytes())

    yield Seed("push_tokenizer", "tokenizer_config.json", (CHECKPOINT / "tokenizer_config.json").read_bytes())

    internvl = json.dumps(internvl_config()).encode()
    yield Seed("convert", "internvl.json", internvl)
    released = internvl_config() | {"model_type": "pvc_internvl", "image_repeat_time": 4}
    yield Seed("convert", "released.json", json.dumps(released).encode())
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors"}}
    yield Seed("index", "model.safetensors.index.json", json.dumps(index).encode())

    meta = {
        "images": {"annotation": "lines.jsonl", "root": "media", "repeat_time": 0.5, "length": 3},
        "videos": {"annotation": "lines.jsonl", "data_augment": True, "max_dynamic_patch": 6},
    }
    yield Seed("meta", "meta.json", json.dumps(meta).encode())
    for name, line in ANNOTATIONS.items():
        yield Seed("annotation", f"{name}.jsonl", json.dumps(line).encode())


QUESTION = {"from": "human", "value": "What is this?"}
ANSWER = {"from": "gpt", "value": "A square."}
ANNOTATIONS = {
    "text": {"id": 1, "conversations": [{"from": "system", "value": "Be brief."}, QUESTION, ANSWER]},
    "image": {"image": "media/a.png", "width": 8, "height": 8, "conversations": [QUESTION, ANSWER]},
    "images": {"image": ["media/a.png", "media/a.png"], "conversations": [QUESTION, ANSWER] * 2},
    "video": {"video": "media/a.mp4", "clip": [0.5, 2], "conversations": [QUESTION, ANSWER]},
}


def internvl_config() -> dict:
    """config.json of a tiny InternVL2, whose weights are `golden/chat_weights.safetensors`."""
    chat = json.loads((GOLDEN / "chat_config.json").read_text())
    image_token_id = chat["meta"]["img_context_token_id"]
    return {"model_type": "internvl_chat", "img_context_token_id": image_token_id} | chat["config"]


def _safetensors() -> Iterator[Seed]:
    yield Seed("safetensors", "internvl.safetensors", (GOLDEN / "chat_weights.safetensors").read_bytes())

    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(3, dtype=torch.bfloat16)}
    yield Seed("safetensors", "small.safetensors", save(tensors, {"format": "pt"}))


KINDS = {"image": _images, "video": _videos, "json": _json, "safetensors": _safetensors}
