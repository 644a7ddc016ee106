"""Asks PVC about images of several sizes, two images and a video: `python -m pvc.demo [MODEL]`."""

import argparse
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from pvc import ABOUT_CHECKPOINT, CHECKPOINT
from pvc.assets.make_assets import draw_picture1
from pvc.preprocess import load_image, load_video

ASSETS = CHECKPOINT / "assets"
IMAGES = (ASSETS / "picture1.png", ASSETS / "picture2.png")
VIDEO = ASSETS / "video.mp4"
SIZES = ((96, 96), (300, 200), (640, 480))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument(
        "model", nargs="?", default=str(CHECKPOINT), help="folder or Hub id (default: PVC-Tiny)"
    )
    path = parser.parse_args().model

    model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    size, max_num = model.config.force_image_size, model.config.max_dynamic_patch
    generation_config = {"max_new_tokens": 24, "do_sample": False}

    def ask(question: str, right: str, pixel_values: torch.Tensor, **media: Any) -> None:
        answer = model.chat(tokenizer, pixel_values, question, generation_config, **media)
        mark = "right" if answer == right else f"wrong: {right}"
        print(f"  Question: {question}\n  Answer: {answer} ({mark})\n")

    if path == str(CHECKPOINT):
        print(f"{ABOUT_CHECKPOINT}\n")

    print(f"One image ({IMAGES[0].name})")
    first = load_image(IMAGES[0], input_size=size, max_num=max_num)
    ask("Name all shapes from left to right.", "red circle, blue square", first)
    ask("Is the blue square left, right, above or below, seen from the red circle?", "right", first)

    for width, height in SIZES:
        tiles = load_image(draw_picture1((width, height)), input_size=size, max_num=max_num)
        print(f"The same scene, {width} x {height} pixels: {len(tiles)} of {size} x {size} for the ViT")
        ask("What word is written?", "hello", tiles)

    print(f"Two images ({IMAGES[0].name}, {IMAGES[1].name})")
    second = load_image(IMAGES[1], input_size=size, max_num=max_num)
    both = {"data_flag": [2], "num_patches_list": [len(first), len(second)]}
    question = "Image-1: <image>\nImage-2: <image>\nIn which picture is the red circle?"
    ask(question, "first", torch.cat([first, second]), **both)

    frames, num_patches_list = load_video(VIDEO, input_size=size, num_segments=8)
    print(f"A video ({VIDEO.name}, {len(num_patches_list)} frames)")
    question = "In which direction does the blue circle move?"
    ask(question, "right", frames, data_flag=[3], num_patches_list=num_patches_list)


if __name__ == "__main__":
    main()
