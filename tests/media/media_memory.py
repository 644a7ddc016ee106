"""Prints what images and videos add to the memory of a process, as docs/security.md has it.

python tests/media/media_memory.py
"""

import struct
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from media_files import grey16_png, megabytes, write_video  # noqa: E402

SIDE = 8192  # 64 Mi pixels, the default limit


def claiming_gif(path: Path, side: int):
    """A GIF of 64 x 48 pixels whose header claims another size."""
    frames = [Image.new("P", (64, 48), i) for i in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", side, side)
    path.write_bytes(content)


def write_files(folder: Path):
    (folder / "grey13300.png").write_bytes(grey16_png(13300, level=9))
    (folder / "grey8192.png").write_bytes(grey16_png(SIDE, level=9))
    Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 9)).save(folder / "transparent.png")
    Image.new("RGB", (SIDE, SIDE)).save(folder / "lossless.webp", lossless=True)
    claiming_gif(folder / "12000.gif", 12000)
    claiming_gif(folder / "8192.gif", SIDE)
    write_video(folder / "4k.mp4", frames=24, size=(3840, 2160))


CALLS = (
    ("grey13300.png", "load_image({path!r})"),
    ("grey13300.png", "images.image({path!r})"),
    ("grey8192.png", "images.image({path!r})"),
    ("transparent.png", "images.image({path!r})"),
    ("lossless.webp", "images.image({path!r})"),
    ("12000.gif", "images.video({path!r}, num_frames=4)"),
    ("8192.gif", "images.video({path!r}, num_frames=4)"),
    ("4k.mp4", "images.video({path!r}, num_frames=1)"),
    ("4k.mp4", "images.video({path!r}, num_frames=24)"),
)


def main():
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for name, call in CALLS:
            file = Path(folder, name)
            added = megabytes(call.format(path=str(file)))
            print(f"{name} ({file.stat().st_size} bytes), {call.format(path='file')}: {added:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
