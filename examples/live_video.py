"""Asks about a video while it arrives, frame by frame: `python examples/live_video.py [MODEL] [VIDEO]`.

Prints:
after 4 frames: blue circle
after 8 frames: right
"""

import sys
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from pvc import load_video

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = {  # number of frames -> what is asked then
    4: "Which shape moves?",
    8: "In which direction does the blue circle move?",
}

path = sys.argv[1] if len(sys.argv) > 1 else ROOT
video = sys.argv[2] if len(sys.argv) > 2 else ROOT / "assets" / "video.mp4"
model = AutoModel.from_pretrained(path, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)

frames, _ = load_video(str(video), input_size=model.config.force_image_size, num_segments=8)
live = model.live_video(tokenizer, horizon=len(frames))

for frame in frames:
    live.add(frame[None])  # encoded once, when it arrives
    if live.num_frames in QUESTIONS:
        answer = live.ask(QUESTIONS[live.num_frames], {"max_new_tokens": 256, "do_sample": False})
        print(f"after {live.num_frames} frames: {answer}")
