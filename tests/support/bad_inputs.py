"""Writes files that are no good, or odd but fine: images, videos and folders of frames.

    python tests/support/bad_inputs.py FOLDER

What is said about each of them, and what of the odd ones is read, stands in `test_bad_inputs.py`. Model
folders are spoilt there, copies of a tiny model's.
"""

import struct
import sys
import wave
import zlib
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, FRAMES, RATE = 32, 24, 20, 10  # of the videos
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PAGE = "<!doctype html><html><body><h1>404 Not Found</h1></body></html>\n"


def write_all(folder: Path):
    """Writes all files into an existing, empty folder."""
    write_bad_images(folder)
    write_odd_images(folder)
    write_videos(folder)
    write_folders_of_frames(folder)


# -------------------------------------------------------------------------------------------------- images


def noise(width: int = 64, height: int = 64) -> Image.Image:
    """An image that does not compress, so that half of its file is half of its pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG of 8-bit grey that says it is so large, whatever its rows are."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_bad_images(folder: Path):
    (folder / "empty.png").touch()
    (folder / "words.png").write_text("no picture in here\n" * 20)
    (folder / "page.jpg").write_text(PAGE)
    (folder / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>')
    (folder / "header_only.png").write_bytes(png(64, 64)[:33])
    (folder / "no_rows.png").write_bytes(png(64, 64))
    (folder / "no_width.png").write_bytes(png(0, 64))
    (folder / "bomb.png").write_bytes(png(100_000, 100_000))
    (folder / "folder.png").mkdir()
    for name in ("cut.png", "cut.jpg", "cut.gif", "cut.webp", "cut.tiff"):
        file = BytesIO()
        noise().save(file, {"jpg": "jpeg"}.get(name[4:], name[4:]))
        (folder / name).write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    whole = BytesIO()
    noise().save(whole, "png")
    spoilt = bytearray(whole.getvalue())
    middle = len(spoilt) // 2
    spoilt[middle : middle + 100] = bytes(100)
    (folder / "spoilt.png").write_bytes(spoilt)


def write_odd_images(folder: Path):
    """Images that are read as red, green or blue, or as the grey that their test says."""
    red = Image.new("RGB", (40, 30), RED)
    red.resize((1, 1)).save(folder / "one_pixel.png")
    red.resize((1, 20_000)).save(folder / "thin.png")
    red.resize((20_000, 1)).save(folder / "flat.png")
    red.resize((80, 60)).save(folder / "large.png")
    red.convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    red.quantize(4).save(folder / "palette.png", transparency=0)
    red.convert("RGBA").save(folder / "alpha.png")
    Image.new("LA", (40, 30), (128, 0)).save(folder / "grey_alpha.png")
    Image.new("1", (40, 30), 1).save(folder / "one_bit.png")
    Image.fromarray(np.full((30, 40), 128 * 257, np.uint16)).save(folder / "grey16.png")
    Image.fromarray(np.full((30, 40), 128 * 257, np.uint16)).save(folder / "grey16.tiff")
    others = [Image.new("RGB", (40, 30), colour) for colour in (GREEN, BLUE)]
    for name in ("animated.gif", "animated.png", "animated.webp"):
        red.save(folder / name, save_all=True, append_images=others, lossless=True)
    upright = Image.new("RGB", (40, 60), RED)
    upright.paste(BLUE, (0, 30, 40, 60))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(folder / "turned.png", exif=exif)


# ---------------------------------------------------------------------------------------------------- videos


def write_video(path: Path, frames: int = FRAMES, codec: str = "libx264", **options) -> Path:
    """A video whose frames grow brighter, from 30 to 225; `options` are the container's."""
    grain = np.random.default_rng(0).integers(-20, 21, (HEIGHT, WIDTH, 1)).repeat(3, axis=2)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()  # writes the header even where no frame follows
        for i in range(frames):
            grey = 30 + 195 * i // max(frames - 1, 1) + grain
            image = av.VideoFrame.from_ndarray(grey.astype(np.uint8), format="rgb24")
            image.pts, image.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def write_videos(folder: Path):
    (folder / "empty.mp4").touch()
    (folder / "words.mp4").write_text("no video in here\n" * 50)
    (folder / "page.mp4").write_text(PAGE)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_sounds(folder)
    whole = write_video(folder / "whole.mp4").read_bytes()
    (folder / "index_lost.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "header_only.mp4").write_bytes(whole[:32])
    (folder / "unknown_codec.mp4").write_bytes(whole.replace(b"avc1", b"xxxx"))
    write_video(folder / "no_frames.mkv", frames=0)
    write_video(folder / "one_frame.mp4", frames=1)
    write_video(folder / "no_duration.webm", codec="libvpx", live="1")
    write_video(folder / "no_duration.h264")
    in_front = write_video(folder / "index_in_front.mp4", movflags="faststart").read_bytes()
    (folder / "cut_short.mp4").write_bytes(in_front[: (in_front.find(b"mdat") + len(in_front)) // 2])
    with av.open(str(folder / "whole.mp4")) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    spoilt = bytearray(whole)
    for place, size in packets[10:12]:
        spoilt[place : place + size] = b"\xff" * size
    (folder / "spoilt_middle.mp4").write_bytes(spoilt)


def write_sounds(folder: Path):
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "none"))
        sound.writeframes(bytes(16000))
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux([*stream.encode(silence), *stream.encode(None)])


def write_folders_of_frames(folder: Path):
    for name in ("no_files", "no_pictures", "mixed_sizes", "spoilt_frame", "frames"):
        (folder / name).mkdir()
    (folder / "no_pictures" / "notes.txt").write_text("the pictures are elsewhere\n")
    for i in range(12):  # frame 10 after frame 9
        Image.new("RGB", (WIDTH, HEIGHT), (20 * i,) * 3).save(folder / "frames" / f"frame{i}.png")
    for i in range(2):
        Image.new("RGB", (WIDTH + i, HEIGHT), RED).save(folder / "mixed_sizes" / f"{i}.png")
        Image.new("RGB", (WIDTH, HEIGHT), RED).save(folder / "spoilt_frame" / f"{i}.png")
    (folder / "spoilt_frame" / "1.png").write_text("no picture in here\n")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    write_all(target)
