"""Seconds that reading an image or a video takes: files are made for the purpose, decoding is the CPU's.

PyAV is imported only where a video is written, so that the other measurements run without it.
"""

import importlib
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pvc.benchmarks.presets import Preset, Workload
from pvc.preprocess import load_image, load_video


def read_media_s(preset: Preset, workload: Workload, trials: int = 3) -> float:
    """Seconds from a file to tiles on the CPU: an H.264 video of 360 lines, 30 frames a second, or a JPEG."""
    with tempfile.TemporaryDirectory() as folder:
        if workload.is_image:
            path = Path(folder, "image.jpg")
            in_a_row = max(1, workload.tiles - 1)  # and a thumbnail
            _image(in_a_row * preset.side, preset.side).save(path)
            read = partial(load_image, path, preset.side, max_num=in_a_row)
        else:
            path = Path(folder, "video.mp4")
            write_video(path, preset.video_s)
            read = partial(load_video, path, input_size=preset.side, num_segments=workload.frames)

        times = []
        for _ in range(trials):
            start = time.perf_counter()
            read()
            times.append(time.perf_counter() - start)

    return statistics.median(times)


def _image(width: int, height: int) -> Image.Image:
    """Smooth noise: about as hard to compress as a photograph."""
    rough = np.random.default_rng(0).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


def write_video(path: Path, seconds: int, rate: int = 30):
    """A window that moves over an image."""
    av = importlib.import_module("av")
    scenery = _image(640 + seconds * rate, 360)

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for frame in range(seconds * rate):
            window = scenery.crop((frame, 0, frame + 640, 360))
            container.mux(stream.encode(av.VideoFrame.from_image(window)))
        container.mux(stream.encode(None))
