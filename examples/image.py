"""Asks about an image, with messages: `python examples/image.py [MODEL] [IMAGE] [QUESTION]`.

Without arguments it asks PVC-Tiny, the checkpoint in the clone.
Prints:
Name all shapes from left to right.
red circle, blue square
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor

ROOT = Path(__file__).resolve().parents[1]

given = sys.argv[1:]
path = given[0] if given else ROOT
image = given[1] if len(given) > 1 else ROOT / "assets" / "picture1.png"
question = given[2] if len(given) > 2 else "Name all shapes from left to right."

model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)

content = [{"type": "image", "path": str(image)}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
)
output = model.generate(**inputs, max_new_tokens=256)

print(question)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
