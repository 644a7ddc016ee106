"""Writes frames as a video file, with PyAV."""

import importlib
from pathlib import Path

from PIL import Image

VIDEO_FPS = 8


def write_video(path: Path, images: list[Image.Image], fps: int = VIDEO_FPS) -> None:
    """Encodes images as H.264, or as MPEG-4 where PyAV was built without libx264."""
    av = importlib.import_module("av")  # only here: whoever draws scenes alone needs no PyAV
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # what x264 writes depends on the number of threads

        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
