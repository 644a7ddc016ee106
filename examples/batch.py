"""Scores a list of questions about images, in batches: `python examples/batch.py [MODEL]`.

Replace `SAMPLES` by those of a benchmark: an image, a question, and the right answer.
Prints:
hello: hello
blue: blue
red circle, blue square: red circle, blue square
3 of 3 correct
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from pvc import load_image

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "assets" / "picture1.png"
SAMPLES = [
    (IMAGE, "What word is written in the picture?", "hello"),
    (IMAGE, "What colour is the square?", "blue"),
    (IMAGE, "Name all shapes from left to right.", "red circle, blue square"),
]

path = sys.argv[1] if len(sys.argv) > 1 else ROOT
model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)

images, questions, expected = zip(*SAMPLES)  # larger lists: slices of 8
tiles = [load_image(str(image), input_size=model.config.force_image_size) for image in images]
media = {"num_patches_list": [len(each) for each in tiles], "data_flag": [1] * len(tiles)}
settings = {"max_new_tokens": 64, "do_sample": False}
answers = model.batch_chat(tokenizer, torch.cat(tiles), list(questions), settings, **media)

for right, answer in zip(expected, answers):
    print(f"{right}: {answer}")
print(sum(map(str.__eq__, expected, answers)), "of", len(SAMPLES), "correct")
