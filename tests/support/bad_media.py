"""Cases of images, videos and frames: files, addresses, arrays, and how frames are chosen.

Left to others: what a call says of its media (`bad_calls.py`), and the values of good images and frames
(`test_preprocess.py`).
"""

import base64
import os
import warnings
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from bad_inputs import BLUE, GREEN, RED
from cases import (
    SIDE,
    SMALL,
    Bench,
    Case,
    block,
    colour,
    colours,
    greys,
    image,
    message,
    refused,
    right,
    video,
)
from PIL import Image, UnidentifiedImageError

from pvc import video_readers
from pvc.preprocess import dynamic_preprocess, get_index, load_image, load_video, read_frames

CASES: list[Case] = []
SHORT_BASE64 = base64.b64encode(b"no picture in here").decode()


# ---- images: files


def load(b: Bench, name: str):
    return load_image(b.files / name, SIDE)


NO_IMAGES = {
    "missing.png": ("missing.png", "missing.png", FileNotFoundError),
    "empty.png": ("empty.png", "empty.png", UnidentifiedImageError),
    "words.png": ("words.png", "words.png", UnidentifiedImageError),
    "page.jpg": ("page.jpg", "page.jpg", UnidentifiedImageError),
    "drawing.svg": ("drawing.svg", "drawing.svg", UnidentifiedImageError),
    "a video": ("whole.mp4", "whole.mp4", UnidentifiedImageError),
    "header_only.png": ("header_only.png", "header_only.png"),
    "no_rows.png": ("no_rows.png", r"no_rows\.png.* truncated"),
    "no_width.png": ("no_width.png", "no_width.png"),
    "spoilt.png": ("spoilt.png", r"spoilt\.png.* broken"),
    "cut.png": ("cut.png", r"cut\.png.* truncated"),
    "cut.jpg": ("cut.jpg", r"cut\.jpg.* truncated \(\d+ bytes not processed\)"),
    "cut.gif": ("cut.gif", r"cut\.gif.* truncated"),
    "cut.tiff": ("cut.tiff", r"cut\.tiff.* truncated"),
    "cut.webp": ("cut.webp", r"cut\.webp"),
    "bomb.png": ("bomb.png", r"bomb\.png.* \(10000000000 pixels\) exceeds limit of \d+ pixels"),
    "a folder": ("folder.png", "folder.png", IsADirectoryError),
}
CASES += refused("load_image", load, NO_IMAGES, OSError)
CASES += refused("image", lambda b, name: image(b, str(b.files / name)), NO_IMAGES, OSError)
CASES += refused(
    "processor", lambda b, name: b.processor(text="<image>", images=b.files / name), NO_IMAGES, OSError
)
CASES += refused(
    "read_frames, a list with", lambda b, name: read_frames([SMALL, b.files / name]), NO_IMAGES, OSError
)

ODD_IMAGES = {
    "of one pixel": ("one_pixel.png", pytest.approx(RED, abs=2)),
    "of 1x20000": ("thin.png", pytest.approx(RED, abs=2)),
    "of 20000x1": ("flat.png", pytest.approx(RED, abs=2)),
    "CMYK": ("cmyk.jpg", pytest.approx(RED, abs=2)),
    "palette, red transparent": ("palette.png", pytest.approx(RED, abs=2)),
    "alpha": ("alpha.png", pytest.approx(RED, abs=2)),
    "grey, transparent": ("grey_alpha.png", pytest.approx([128] * 3, abs=2)),
    "of one bit": ("one_bit.png", pytest.approx([255] * 3, abs=2)),
    "16-bit PNG": ("grey16.png", pytest.approx([128] * 3, abs=2)),
    "16-bit TIFF": ("grey16.tiff", pytest.approx([128] * 3, abs=2)),
    "animated GIF, first frame": ("animated.gif", pytest.approx(RED, abs=2)),
    "animated PNG, first frame": ("animated.png", pytest.approx(RED, abs=2)),
    "animated WebP, first frame": ("animated.webp", pytest.approx(RED, abs=2)),
}


def colour_of_image(b: Bench, source) -> list[float]:
    return colour(image(b, source)["pixel_values"])


CASES += right("load_image", lambda b, name: colour(load(b, name)), ODD_IMAGES)
ON_WHITE = {  # in messages what is transparent shows white
    "palette, red transparent": ("palette.png", pytest.approx([255] * 3, abs=2)),
    "grey, transparent": ("grey_alpha.png", pytest.approx([255] * 3, abs=2)),
}
CASES += right("image", lambda b, name: colour_of_image(b, b.files / name), ODD_IMAGES | ON_WHITE)


def upper_half(pixels: torch.Tensor) -> list[float]:
    """Colour of the upper half of the thumbnail, but for the blur at its edge."""
    return colour(pixels[-1:, :, : SIDE // 2 - 4])


CASES += right(
    "load_image, turned by EXIF",
    lambda b, options: upper_half(load_image(b.files / "turned.png", SIDE, **options)),
    {
        "ignored as released": ({}, pytest.approx(BLUE, abs=2)),
        "upright where asked": ({"exif": True}, pytest.approx(RED, abs=2)),
    },
)
CASES += right(
    "image",
    lambda b, name: upper_half(image(b, b.files / name)["pixel_values"]),
    {"turned by EXIF, upright": ("turned.png", pytest.approx(RED, abs=2))},
)


@contextmanager
def most_pixels(number: int, filter_warnings: str):
    with patch.object(Image, "MAX_IMAGE_PIXELS", number), warnings.catch_warnings():
        warnings.simplefilter(filter_warnings, Image.DecompressionBombWarning)
        yield


def read_large(b: Bench, given):
    """Reads an image of 80x60 pixels where PIL is told to expect so many."""
    read, number, *filter_warnings = given
    with most_pixels(number, *filter_warnings or ["ignore"]):
        return read(b, b.files / "large.png")


READ = {"load_image": lambda b, file: colour(load_image(file, SIDE)), "image": colour_of_image}
CASES += right(
    "an image larger than PIL expects, less than twice",
    read_large,
    {name: ((read, 3200), pytest.approx(RED, abs=2)) for name, read in READ.items()},
)
CASES += refused(
    "an image twice as large as PIL expects",
    read_large,
    {
        name: ((read, 2000), r"large.png.* \(4800 pixels\) exceeds limit of 4000 pixels", OSError)
        for name, read in READ.items()
    },
)
CASES += refused(
    "an image larger than PIL expects, warnings being errors",
    read_large,
    {
        name: ((read, 3200, "error"), r"\(4800 pixels\) exceeds limit of 3200 pixels")
        for name, read in READ.items()
    },
    (Image.DecompressionBombWarning, OSError),
)
TILE_LIMITS = {
    "no tiles": (0, "max_num=0: expected 1 <= min_num <= max_num"),
    "fewer than no tiles": (-1, "max_num=-1: expected 1 <= min_num <= max_num"),
}
CASES += refused("load_image", lambda b, most: load_image(SMALL, SIDE, most), TILE_LIMITS)
CASES += refused("dynamic_preprocess", lambda b, most: dynamic_preprocess(SMALL, max_num=most), TILE_LIMITS)
CASES += refused("image", lambda b, most: image(b, SMALL, max_tiles=most), TILE_LIMITS)
CASES += refused("video", lambda b, most: message(b, block("video", [SMALL]), max_tiles=most), TILE_LIMITS)


# ---- images: what is no file


def array(shape, dtype=np.uint8, value=0) -> np.ndarray:
    return np.full(shape, value, dtype)


NO_ARRAYS = {
    "an int64 array": (array((8, 8, 3), np.int64), r"int64 \(8, 8, 3\): expected"),
    "a bool array": (array((8, 8), bool), r"bool \(8, 8\): expected"),
    "a complex array": (array((8, 8), complex), r"complex128 \(8, 8\): expected"),
    "a uint16 array": (array((8, 8), np.uint16), r"uint16 \(8, 8\): expected"),
    "an array of one axis": (array(8), r"uint8 \(8,\): expected"),
    "an array of a batch": (array((1, 8, 8, 3)), r"uint8 \(1, 8, 8, 3\): expected"),
    "an array of five channels": (array((8, 8, 5)), r"uint8 \(8, 8, 5\): expected"),
    "an array without rows": (array((0, 8, 3)), r"uint8 \(0, 8, 3\): expected"),
    "an array with NaN": (array((8, 8, 3), np.float32, np.nan), "float32 has values outside 0 to 1"),
    "floats up to 255": (array((8, 8, 3), np.float64, 255), "float64 has values outside 0 to 1"),
    "a normalised tensor": (torch.full((3, 8, 8), -1.0), "float32 has values outside 0 to 1"),
    "a number": (5, "an image is int"),
    "bytes": (b"\x89PNG", "an image is bytes"),
}
CASES += refused("processor", lambda b, given: b.processor(text="<image>", images=[given]), NO_ARRAYS)
CASES += refused("image", image, NO_ARRAYS)
CASES += refused(
    "a dict for an image",
    lambda b, face: face(b, {"path": "a.png"}),
    {
        "processor": (lambda b, given: b.processor(text="<image>", images=given), "an image is dict"),
        "image": (image, r"an image block has keys \['image', 'type'\]: expected one of image, url, path"),
    },
)
NO_TEXTS = {
    "an empty text": ("", "'' cannot be read"),
    "base64 of words": (SHORT_BASE64, f"{SHORT_BASE64}' cannot be read"),
    "base64 cut": (
        "data:image/png;base64,iVBORw0",
        "'data:image/png;base64,iVBORw0': no file, http.s. address or",
    ),
    "a name with a null": ("a\0.png", r"'a\\x00\.png': no file, http.s. address or base64"),
    "a name of 100,000 letters, cut in the message": ("é" * 100_000, r"^.{0,400}$"),
    "base64 of 1,000,000 letters, cut in the message": ("A" * 1_000_000, r"^.{0,400}$"),
}
CASES += refused("image", image, NO_TEXTS, OSError)
CASES += right(
    "image",
    colour_of_image,
    {
        "floats, channels first": (torch.full((3, 8, 8), 0.5), pytest.approx([127] * 3, abs=2)),
        "bytes, channels last": (array((8, 8, 3), value=127), pytest.approx([127] * 3, abs=2)),
        "bytes without channels": (array((8, 8), value=127), pytest.approx([127] * 3, abs=2)),
    },
)


def as_base64(b: Bench, head: str) -> list[float]:
    return colour_of_image(b, head + base64.encodebytes((b.files / "alpha.png").read_bytes()).decode())


CASES += right(
    "image",
    as_base64,
    {
        "base64 in lines": ("", pytest.approx(RED, abs=2)),
        "a data address": ("data:image/png;base64,", pytest.approx(RED, abs=2)),
    },
)

# ---- addresses


def at(b: Bench, given):
    face, path = given
    return face(b, f"{b.address}/{path}")


CASES += refused(
    "an address",
    at,
    {
        "image, not found": ((image, "missing"), "http://.*/missing cannot be fetched.*404", OSError),
        "video, not found": ((video, "missing"), "http://.*/missing cannot be fetched.*404", OSError),
        "image, a page": ((image, "page.jpg"), "http://.*/page.jpg cannot be read", OSError),
        "video, a page": ((video, "page.mp4"), "http://.*/page.mp4 is not a video"),
        "image, a bomb": ((image, "bomb.png"), "http://.*/bomb.png cannot be read.* exceeds limit", OSError),
    },
)
CASES += refused(
    "an address that nobody answers",
    lambda b, face: face(b, "http://127.0.0.1:9/file"),
    {face.__name__: (face, "http://127.0.0.1:9/file cannot be fetched") for face in (image, video)},
    OSError,
)


def offline(b: Bench, face):
    with patch.dict(os.environ, HF_HUB_OFFLINE="1"):
        return face(b, f"{b.address}/alpha.png")


CASES += refused(
    "an address, offline mode being on",
    offline,
    {face.__name__: (face, "Cannot reach http://.*/alpha.png: offline mode") for face in (image, video)},
    OSError,
)
CASES += right(
    "an address",
    lambda b, path: colour_of_image(b, f"{b.address}/{path}"),
    {"image": ("alpha.png", pytest.approx(RED, abs=2))},
)
SPREAD = pytest.approx([55, 106, 158, 199], abs=6)  # greys of frames 2, 7, 12 and 16 of 20
CASES += right(
    "an address",
    lambda b, path: greys(video(b, f"{b.address}/{path}", num_frames=4)["pixel_values"]),
    {"video": ("whole.mp4", SPREAD)},
)

# ---- videos: files


def load_20(b: Bench, name: str):
    return load_video(b.files / name, input_size=SIDE, num_segments=20)


NO_VIDEOS = {
    "missing.mp4": ("missing.mp4", "missing.mp4", FileNotFoundError),
    "empty.mp4": ("empty.mp4", "empty.mp4 is not a video"),
    "words.mp4": ("words.mp4", "words.mp4 is not a video"),
    "page.mp4": ("page.mp4", "page.mp4 is not a video"),
    "noise.mp4": ("noise.mp4", "noise.mp4 is not a video"),
    "sound in mp4": ("sound.mp4", "sound.mp4 is not a video: it has no video stream"),
    "sound.wav": ("sound.wav", "sound.wav is not a video: it has no video stream"),
    "index lost": ("index_lost.mp4", "index_lost.mp4 is not a video"),
    "header only": ("header_only.mp4", "header_only.mp4 is not a video"),
    "an unknown codec": (
        "unknown_codec.mp4",
        "unknown_codec.mp4 is in a video format that PyAV does not know",
    ),
    "a stream without frames": ("no_frames.mkv", "no_frames.mkv"),
    "cut short": ("cut_short.mp4", r"cut_short\.mp4: frame \d+ cannot be read; \d+ of its 20 frames can"),
    "spoilt in the middle": (
        "spoilt_middle.mp4",
        r"spoilt_middle\.mp4: frame 1[01] cannot be read; 18 of its 20",
    ),
}
CASES += refused("load_video", load_20, NO_VIDEOS)
CASES += refused("read_frames", lambda b, name: read_frames(b.files / name, num_frames=None), NO_VIDEOS)
CASES += refused("video", lambda b, name: video(b, str(b.files / name), num_frames=20), NO_VIDEOS)
CASES += right(
    "load_video",
    lambda b, name: greys(load_video(b.files / name, input_size=SIDE, num_segments=4)[0]),
    {
        "index at the end": ("whole.mp4", SPREAD),
        "index in front": ("index_in_front.mp4", SPREAD),
        "WebM without a duration": ("no_duration.webm", SPREAD),
        "raw H.264 without a duration": ("no_duration.h264", SPREAD),
        "one frame, four times": ("one_frame.mp4", pytest.approx([30] * 4, abs=6)),
    },
)
CASES += right(
    "read_frames",
    lambda b, given: read_frames(b.files / given[0], **given[1]).times_s,
    {
        "one frame": (("one_frame.mp4", {"fps": 2}), [0.0]),
        "cut short, its first frames": (
            ("cut_short.mp4", {"fps": 10, "end_s": 0.3}),
            pytest.approx([0, 0.1, 0.2]),
        ),
        "spoilt, the frames before": (("spoilt_middle.mp4", {"fps": 1, "end_s": 1.0}), pytest.approx([0.0])),
        "spoilt, the frames behind": (
            ("spoilt_middle.mp4", {"fps": 2, "start_s": 1.2}),
            pytest.approx([1.2, 1.7]),
        ),
    },
)
CASES += right(
    "read_frames",
    lambda b, name: colours(read_frames(b.files / name, num_frames=None).frames),
    {"a GIF": ("animated.gif", [RED, GREEN, BLUE])},
)

# ---- videos: the choice of frames

NAN = float("nan")
NO_CHOICES = {
    "no frames": ({"num_frames": 0}, "num_frames=0: expected at least 1 frame"),
    "fewer than no frames": ({"num_frames": -4}, "num_frames=-4: expected at least 1 frame"),
    "a limit of no frames": ({"fps": 1, "max_frames": 0}, "max_frames=0: expected at least 1 frame"),
    "a rate of 0": ({"fps": 0}, "fps=0: expected more than 0"),
    "a rate below 0": ({"fps": -1.0}, "fps=-1.0: expected more than 0"),
    "a rate of NaN": ({"fps": NAN}, "fps=nan: expected more than 0"),
    "an endless rate": ({"fps": float("inf")}, "fps=inf: expected more than 0 and at most"),
    "an end before the start": (
        {"start_s": 1.5, "end_s": 0.5},
        "start_s=1.5, end_s=0.5: expected 0 <= start_s",
    ),
    "a start past the end": ({"start_s": 60.0}, "start_s=60.0, .*the duration of .*whole.mp4"),
    "an end past the end": ({"end_s": 60.0}, r"end_s=60.0: expected .* <= 2\.0"),
    "a start before 0": ({"start_s": -1.0}, "start_s=-1.0, .*expected 0 <= start_s"),
    "a start of NaN": ({"start_s": NAN}, "start_s=nan, .*expected 0 <= start_s"),
    "an end of NaN": ({"end_s": NAN}, "end_s=nan: expected 0 <= start_s"),
    "an unknown reader": ({"backend": "opencv"}, "backend='opencv': expected one of pyav, decord"),
}
CASES += refused("read_frames", lambda b, options: read_frames(b.files / "whole.mp4", **options), NO_CHOICES)
CASES += refused("video", lambda b, options: video(b, b.files / "whole.mp4", **options), NO_CHOICES)
CASES += refused(
    "load_video",
    lambda b, options: load_video(b.files / "whole.mp4", input_size=SIDE, **options),
    {
        "no segments": ({"num_segments": 0}, "num_segments=0: expected at least 1"),
        "a bound past the end": ({"bound": (5, 6)}, r"whole.mp4: frame \d+ cannot be read; 20 of its 20"),
        "a bound before 0": ({"bound": (-9, -8)}, r"whole.mp4: frame -\d+ cannot be read; 20 of its 20"),
        "an unknown reader": ({"backend": "cv2"}, "backend='cv2': expected one of pyav, decord"),
    },
)
CASES += refused(
    "get_index",
    lambda b, segments: get_index(None, 25.0, 99, num_segments=segments),
    {
        "no segments": (0, "num_segments=0: expected at least 1"),
        "-2 segments": (-2, "num_segments=-2: expected"),
    },
)


def without(b: Bench, given):
    """What a face does with a reader whose package is not installed."""
    face, reader, package = given
    import_module = video_readers.importlib.import_module

    def import_others(name, *arguments):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return import_module(name, *arguments)

    with patch.object(video_readers.importlib, "import_module", import_others):
        return face(b, b.files / "whole.mp4", backend=reader)


FRAME_FACES = {
    "read_frames": lambda b, *source, **options: read_frames(*source, **options),
    "load_video": lambda b, *source, **options: load_video(*source, **options),
    "video": lambda b, source, **options: message(b, block("video", source), **options),
}
CASES += refused(
    "not installed",
    without,
    {
        f"{package}, {name}": ((face, reader, package), way_out)
        for reader, package, way_out in [
            ("pyav", "av", "pip install av"),
            ("decord", "decord", r"pip install pvc\[decord\]"),
            ("torchcodec", "torchcodec", r"pip install pvc\[torchcodec\]"),
        ]
        for name, face in FRAME_FACES.items()
    },
    ImportError,
)

# ---- frames as a folder, a list, an array

LARGE = Image.new("RGB", (33, 24), RED)
NO_FRAMES = {
    "an empty folder": ("no_files", "no_files: no image"),
    "a folder without images": ("no_pictures", "no_pictures: no image"),
    "a folder of mixed sizes": ("mixed_sizes", "frame 0 .*32.*24.*, frame 1 .*33.*24"),
    "a folder with a broken image": ("spoilt_frame", "1.png", OSError),
    "a list without frames": ([], "expected at least 1 frame"),
    "a list of mixed sizes": ([SMALL, SMALL, LARGE], "frame 0 .*32.*24.*, frame 2 .*33.*24"),
    "a list with None": ([SMALL, None], "frame 1 is a NoneType: expected a PIL image"),
    "a list of grey arrays": ([array((8, 8))], r"frame 0 is a ndarray of uint8 \(8, 8\)"),
    "a list of float arrays": ([array((8, 8, 3), float)], r"frame 0 is a ndarray of float64 \(8, 8, 3\)"),
    "an array without frames": (array((0, 8, 8, 3)), "expected at least 1 frame"),
    "an array of floats": (array((2, 8, 8, 3), np.float32), r"float32 \(2, 8, 8, 3\): expected"),
    "an array of one image": (array((8, 8, 3)), r"uint8 \(8, 8, 3\): expected"),
    "a tensor of floats": (torch.zeros(2, 3, 8, 8), r"float32 \(2, 3, 8, 8\): expected"),
    "a tensor, channels last": (torch.zeros(2, 8, 8, 3).byte(), r"uint8 \(2, 8, 8, 3\): expected"),
    "a number": (5, "a int: expected a video"),
}


def source_of(b: Bench, source):
    return b.files / source if isinstance(source, str) else source


CASES += refused("read_frames", lambda b, source: read_frames(source_of(b, source)), NO_FRAMES)
CASES += refused("video", lambda b, source: video(b, source_of(b, source)), NO_FRAMES)
CASES += refused(
    "read_frames, a folder of frames",
    lambda b, option: read_frames(b.files / "frames", **{option: 1.0}),
    {option: (option, f"{option}=1.0: images have no times") for option in ("fps", "start_s", "end_s")},
)
CASES += refused(
    "video, times of frames in the prompt",
    lambda b, source: message(b, block("video", source_of(b, source)), frame_times=True),
    {
        "a folder": ("frames", "frame_times: the frames of a list or folder have no times"),
        "a list": ([SMALL], "frame_times: the frames of a list or folder have no times"),
    },
)
CASES += right(
    "read_frames",
    lambda b, name: [red for red, *_ in colours(read_frames(b.files / name, num_frames=None).frames)],
    {"a folder, frame 10 after frame 9": ("frames", [20 * i for i in range(12)])},
)
CASES += right(
    "read_frames",
    lambda b, source: read_frames(source, num_frames=2),
    {"a list of one frame, twice": ([SMALL], ([SMALL, SMALL], None))},
)
