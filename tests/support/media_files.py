"""Image and video files for tests, and what reading them adds to the memory of a process."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
SHARED = ROOT.parent / "shared"  # the released example media, where they are
RED = (255, 0, 0)


def png(size=(40, 30), colour="red") -> bytes:
    """A PNG file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def logo(size=(40, 30)) -> Image.Image:
    """A red square on what is transparent, with black below."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((*RED, 255), (10, 10, 20, 20))
    return image


def grey16_png(side: int, level: int = 1) -> bytes:
    """A black PNG of 16 bits; it needs as little memory as its file."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(level), bytes(1 + 2 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write_video(path: Path, frames=8, size=(64, 48), codec="mpeg4", container=None) -> Path:
    """Writes a video of 4 frames a second, each brighter than the one before."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * i % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return path


# ---- memory


MEASURE = """
import io, sys
import numpy as np, torch
from PIL import Image
from pvc.preprocess import load_image, read_frames
from pvc.processing_pvc import PVCImageProcessor
images = PVCImageProcessor(image_size=96, patch_size=8)
images.image(Image.new("RGB", (96, 96)))
{warm}
def kilobytes(key):  # ru_maxrss would count what the parent had before this process began
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
try:
    {action}
except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
print((kilobytes("VmHWM") - before) * 1024 / 1e6)
"""


def megabytes(action: str, warm: str = "") -> float:
    """How much an action adds to the most resident memory of a process of its own."""
    code = MEASURE.format(action=action, warm=warm)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
