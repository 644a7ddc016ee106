"""Processors, messages and tiles for the tests of messages."""

from functools import cache

import torch
from builders import tiny_model
from tokenizers_of_llms import make_tokenizer

from pvc import CHECKPOINT
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.preprocess import load_image, load_video
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor

ASSETS = CHECKPOINT / "assets"
IMAGE, OTHER, VIDEO = (str(ASSETS / name) for name in ("picture1.png", "picture2.png", "video.mp4"))
SIDE, FRAMES, MAX_TILES = 56, 4, 4
# the tokenizers of InternLM2, Qwen2 and Phi3 with the templates they are used with
KINDS = {"InternLM2": "internlm2-chat", "byte level": "internvl2_5", "prefix space everywhere": "phi3-chat"}


@cache
def make_processor(kind: str, template: str | None = None) -> PVCProcessor:
    """A processor with one of the tokenizers of `KINDS`, in its own template unless another is named."""
    images = PVCImageProcessor(image_size=SIDE, max_tiles=MAX_TILES)
    return PVCProcessor(images, make_tokenizer(kind), template=template or KINDS[kind], num_frames=FRAMES)


@cache
def make_model(kind: str) -> PVCForConditionalGeneration:
    """A tiny model for that tokenizer."""
    tokenizer = make_tokenizer(kind)
    return tiny_model(
        llm_config={"vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        template=KINDS[kind],
    )


# ---- messages


def image(source=IMAGE) -> dict:
    return {"type": "image", "image": source}


def video(source=VIDEO, **options) -> dict:
    return {"type": "video", "video": source, **options}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*content) -> dict:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(words: str) -> dict:
    return {"role": "assistant", "content": words}


# ---- tiles


@cache
def tiles_of(file: str) -> tuple[torch.Tensor, list[int]]:
    """Tiles as the released helpers cut them, and how many each image or frame has."""
    if file == VIDEO:
        return load_video(file, input_size=SIDE, num_segments=FRAMES)
    tiles = load_image(file, input_size=SIDE, max_num=MAX_TILES)
    return tiles, [len(tiles)]
