"""Asks two questions about a video with the released calls: `python examples/video.py [MODEL] [VIDEO]`.

The second question reuses the visual tokens and the KV cache of the first.
Prints:
Which shape moves? blue circle
In which direction does it move? right
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from pvc import load_video

ROOT = Path(__file__).resolve().parents[1]

path = sys.argv[1] if len(sys.argv) > 1 else ROOT
video = sys.argv[2] if len(sys.argv) > 2 else ROOT / "assets" / "video.mp4"
model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)

frames, tiles_of_frames = load_video(str(video), input_size=model.config.force_image_size, num_segments=8)
settings = {"max_new_tokens": 256, "do_sample": False}
media = {"data_flag": [3], "num_patches_list": tiles_of_frames, "cache": model.dialogue_cache()}

history = None
for question in ["Which shape moves?", "In which direction does it move?"]:
    print(question, end=" ")
    answer, history = model.chat(
        tokenizer, frames, question, settings, history=history, return_history=True, **media
    )
    print(answer)
