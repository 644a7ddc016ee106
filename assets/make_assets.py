"""Draws the two pictures and the video that demo and tests ask about. Run: python assets/make_assets.py

Each shows a few plain facts (which shape has which colour, a word, which way something moves), so that an
answer can be told right from wrong. Nothing in them is random. Reading them is the work of preprocess.py.
"""

from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent
BACKGROUND = (245, 245, 240)
RED, GREEN, BLUE, YELLOW = (214, 40, 40), (46, 160, 67), (40, 90, 214), (240, 190, 30)

PICTURE_SIZE = (640, 448)  # width, height
VIDEO_SIDE = 224
VIDEO_FRAMES = 24
VIDEO_FPS = 8
DISC_RADIUS = 32


def draw_picture1() -> Image.Image:
    """A red circle on the left, a blue square on the right, the word HELLO below them."""
    picture = Image.new("RGB", PICTURE_SIZE, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((80, 60, 280, 260), fill=RED)
    draw.rectangle((360, 60, 560, 260), fill=BLUE)
    _draw_word(draw, "HELLO")
    return picture


def draw_picture2() -> Image.Image:
    """A green triangle on the left, a red square on the right, the word WORLD below them."""
    picture = Image.new("RGB", PICTURE_SIZE, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.polygon([(180, 60), (80, 260), (280, 260)], fill=GREEN)
    draw.rectangle((360, 60, 560, 260), fill=RED)
    _draw_word(draw, "WORLD")
    return picture


def _draw_word(draw: ImageDraw.ImageDraw, word: str) -> None:
    font = ImageFont.load_default(size=96)
    draw.text((PICTURE_SIZE[0] // 2, 350), word, fill="black", font=font, anchor="mm")


def draw_video() -> list[Image.Image]:
    """A blue disc that moves from the left edge to the right edge, over a yellow floor."""
    return [_draw_frame(i) for i in range(VIDEO_FRAMES)]


def disc_centre(frame: int) -> tuple[int, int]:
    """Where the disc's centre is in a frame, as (x, y)."""
    way = VIDEO_SIDE - 2 * DISC_RADIUS
    return DISC_RADIUS + round(way * frame / (VIDEO_FRAMES - 1)), 110


def _draw_frame(frame: int) -> Image.Image:
    picture = Image.new("RGB", (VIDEO_SIDE, VIDEO_SIDE), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 160, VIDEO_SIDE, VIDEO_SIDE), fill=YELLOW)
    x, y = disc_centre(frame)
    draw.ellipse((x - DISC_RADIUS, y - DISC_RADIUS, x + DISC_RADIUS, y + DISC_RADIUS), fill=BLUE)
    return picture


def write_video(path: Path, pictures: list[Image.Image]) -> None:
    """Encodes pictures as H.264, or as MPEG-4 where PyAV was built without libx264."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=VIDEO_FPS)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # what x264 writes depends on the number of threads
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))


def main() -> None:
    draw_picture1().save(FOLDER / "picture1.png", optimize=True)
    draw_picture2().save(FOLDER / "picture2.png", optimize=True)
    write_video(FOLDER / "video.mp4", draw_video())


if __name__ == "__main__":
    main()
