"""Images and videos as viewers and players show them: transparency, floats, pixels that are not square.

And what other libraries hand over: tensors of any precision, undecoded images of data sets.
"""

import base64
import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import RED, logo
from PIL import Image

from pvc.preprocess import image_tiles, load_image, load_video, read_frames, read_image

WHITE = (255, 255, 255)


# ---- transparency


def transparent(kind: str) -> Image.Image:
    picture = logo()
    if kind == "P":
        palette = Image.new("P", picture.size, 0)
        palette.putpalette([0, 0, 0, *RED])
        palette.paste(1, (10, 10, 20, 20))
        palette.info["transparency"] = 0
        return palette
    if kind == "RGB":  # with one colour that is transparent
        keyed = picture.convert("RGB")
        keyed.info["transparency"] = (0, 0, 0)
        return keyed
    return picture.convert(kind)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "La", "RGBa", "PA", "P", "RGB"])
def test_what_is_transparent_is_white_in_messages(kind):
    picture = transparent(kind) if kind != "La" else transparent("LA").convert("La")
    shown = read_image(picture).convert("RGB")
    assert shown.getpixel((0, 0)) == WHITE
    grey = 76 if kind in ("LA", "La") else None
    assert shown.getpixel((15, 15)) == ((grey,) * 3 if grey else RED)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_files_are_shown_on_white_in_messages_and_as_released_by_load_image(kind, images, tmp_path):
    path = tmp_path / f"logo.{kind.lower()}"
    logo().save(path, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    white = Image.new("RGB", (40, 30), WHITE)
    white.paste(RED, (10, 10, 20, 20))
    expected = image_tiles(white, 28, 2)
    assert torch.equal(images.image(path).tiles, expected)
    assert torch.equal(load_image(path, 28, 2, white_background=True), expected)
    assert torch.equal(load_image(path, 28, 2), image_tiles(Image.open(path).convert("RGB"), 28, 2))


def png_with_key(color_type: int, depth: int, row: bytes, key: bytes) -> io.BytesIO:
    """A PNG of 4 x 4 whose rows are `row`, with one transparent colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_of = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", sum_of)

    header = struct.pack(">IIBBBBB", 4, 4, depth, color_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * 4)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", pixels), (b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*x) for x in chunks))


@pytest.mark.parametrize(
    "color_type, depth, row, key, other",
    [
        (0, 1, b"\x30", b"\0\0", 255),
        (0, 2, b"\x5a", b"\0\1", 170),
        (0, 4, b"\x55\xaa", b"\0\5", 170),
        (0, 8, b"\5\5\xaa\xaa", b"\0\5", 170),
        (0, 16, b"\1\5\1\5\xaa\xaa\xaa\xaa", b"\1\5", 170),
        (2, 8, b"\5\6\7" * 2 + b"\xaa" * 6, b"\0\5\0\6\0\7", 170),
        (2, 16, b"\1\5\1\6\1\7" * 2 + b"\xaa" * 12, b"\1\5\1\6\1\7", 170),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_at_every_depth(color_type, depth, row, key, other):
    shown = read_image(png_with_key(color_type, depth, row, key)).convert("RGB")
    assert [shown.getpixel((x, 3)) for x in range(4)] == [WHITE, WHITE, (other,) * 3, (other,) * 3]


def test_half_transparent_is_mixed_with_white():
    assert read_image(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


def test_transparent_frames_of_a_gif_a_webp_and_a_list_are_on_white(tmp_path):
    frames = [logo(), logo().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for name in ("a.gif", "a.webp"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {"disposal": 2}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, **options)
        read = read_frames(tmp_path / name, num_frames=None)
        assert [frame.getpixel((0, 0)) for frame in read.frames] == [WHITE] * 2
        assert read_image(tmp_path / name).convert("RGB").getpixel((0, 0)) == WHITE
        assert read.frames[0].getpixel((15, 15)) == RED and read.frames[1].getpixel((25, 15)) == RED
    assert [frame.getpixel((0, 0)) for frame in read_frames(frames, num_frames=None).frames] == [WHITE] * 2


# ---- floats


def test_an_image_of_floats_is_scaled_from_0_to_1_or_255_and_refused_else(images, tmp_path):
    ramp = np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(28, 28)
    expected = images.image(ramp).tiles
    Image.fromarray(ramp).save(tmp_path / "ramp.tiff")
    for source in (Image.fromarray(ramp), tmp_path / "ramp.tiff"):
        assert torch.equal(images.image(source).tiles, expected)
    assert torch.allclose(images.image(Image.fromarray(ramp * 255)).tiles, expected, atol=0.02)
    for wrong in (ramp - 0.1, ramp * 300, np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(ValueError, match="mode F with values from .* expected 0 to 1, or 0 to 255"):
            images.image(Image.fromarray(wrong))


def test_a_grey_image_has_the_tiles_of_its_copy_in_rgb():
    grey = Image.effect_noise((90, 50), 80)
    assert torch.equal(image_tiles(grey, 28, 6), image_tiles(grey.convert("RGB"), 28, 6))


# ---- videos


def write(path: Path, sizes: list[tuple[int, int]], aspect: tuple[int, int] = (1, 1), codec="mpeg4") -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for i, size in enumerate(sizes):
            pixels = np.full((size[1], size[0], 3), 30 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("aspect, width", [((2, 1), 128), ((1, 2), 32), ((4, 3), 85), ((1, 1), 64)])
def test_pixels_of_frames_are_made_square_in_messages(aspect, width, backend, tmp_path):
    if backend != "pyav":
        pytest.importorskip(backend)
    path = write(tmp_path / "a.mkv", [(64, 48)] * 4, aspect)
    sizes = {frame.size for frame in read_frames(path, num_frames=2, backend=backend).frames}
    assert sizes == {(width, 48)}


def test_pixels_of_a_turned_video_are_made_square_along_its_height(tmp_path):
    path = write(tmp_path / "a.mp4", [(64, 48)] * 4, (2, 1))
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (frame,) = read_frames(io.BytesIO(data), num_frames=1).frames
    assert frame.size == (48, 128)


def test_load_video_shows_stored_pixels_as_released(tmp_path):
    square = write(tmp_path / "square.mkv", [(64, 48)] * 4)
    wide = write(tmp_path / "wide.mkv", [(64, 48)] * 4, (2, 1))
    settings = {"input_size": 28, "max_num": 6, "num_segments": 2}
    assert load_video(wide, **settings)[1] == load_video(square, **settings)[1]


def test_frames_that_change_size_are_scaled_to_the_first(tmp_path):
    with open(tmp_path / "both.mjpeg", "wb") as file:
        for size, colour in [((64, 48), "red")] * 3 + [((96, 80), "blue")] * 3:
            Image.new("RGB", size, colour).save(file, "JPEG")
    frames = read_frames(tmp_path / "both.mjpeg", num_frames=None).frames
    assert [frame.size for frame in frames] == [(64, 48)] * 6
    assert [frame.getpixel((9, 9))[0] > 200 for frame in frames] == [True] * 3 + [False] * 3


def test_an_animated_webp_is_a_video_with_its_times(tmp_path, images):
    frames = [Image.new("RGB", (40, 30), (0, 0, 60 * i)) for i in range(4)]
    durations = [100, 200, 300, 400]
    frames[0].save(
        tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=durations, lossless=True
    )
    read = read_frames(tmp_path / "a.webp", num_frames=None)
    assert [frame.getpixel((0, 0)) for frame in read.frames] == [(0, 0, 60 * i) for i in range(4)]
    assert read.times_s == pytest.approx([0, 0.1, 0.3, 0.6])
    blues = [frame.getpixel((0, 0))[2] for frame in read_frames(tmp_path / "a.webp", fps=5).frames]
    assert blues == [0, 60, 120, 180, 180]  # at 0, 0.2, 0.4, 0.6 and 0.8 seconds
    assert load_video(tmp_path / "a.webp", input_size=28, num_segments=4)[1] == [1] * 4
    assert images.video(io.BytesIO((tmp_path / "a.webp").read_bytes()), num_frames=2).clip.frames == 2
    frames[3].save(tmp_path / "still.webp", lossless=True)
    assert read_frames(tmp_path / "still.webp", num_frames=2).times_s == [0, 0]


def test_frames_of_an_animated_webp_without_durations_last_a_tenth_of_a_second(tmp_path):
    frames = [Image.new("RGB", (40, 30), (0, 0, 60 * i)) for i in range(4)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=0, lossless=True)
    read = read_frames(tmp_path / "a.webp", num_frames=None)
    assert [frame.getpixel((0, 0))[2] for frame in read.frames] == [0, 60, 120, 180]
    assert read.times_s == pytest.approx([0, 0.1, 0.2, 0.3])


class Stream(io.RawIOBase):
    """A stream that cannot seek."""

    def __init__(self, content: bytes):
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.content.read(size)


def test_streams_that_cannot_seek_are_read_whole(tmp_path, images):
    path = write(tmp_path / "a.mp4", [(64, 48)] * 8)
    assert torch.equal(
        images.video(Stream(path.read_bytes()), num_frames=4).tiles, images.video(path, num_frames=4).tiles
    )
    assert load_video(Stream(path.read_bytes()), input_size=28, num_segments=2)[1] == [1, 1]
    file = io.BytesIO()
    logo().save(file, "PNG")
    assert torch.equal(images.image(Stream(file.getvalue())).tiles, images.image(logo()).tiles)


# ---- what other libraries hand over


def test_tensors_of_any_precision_with_gradients_and_channels_first_arrays_are_taken(images):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    expected = images.image(Image.fromarray(pixels)).tiles
    floats = torch.tensor(pixels).permute(2, 0, 1) / 255
    for given in (floats.half(), floats.clone().requires_grad_(), floats.numpy().astype(np.float16)):
        assert torch.allclose(images.image(given).tiles, expected, atol=0.03)
    assert torch.allclose(images.image(floats.bfloat16()).tiles, expected, atol=0.05)

    video = np.stack([pixels, pixels[::-1]])
    expected = images.video(video, num_frames=None).tiles
    first = np.ascontiguousarray(video.transpose(0, 3, 1, 2))
    for given in (first, torch.tensor(first), list(first), [torch.tensor(x) for x in first]):
        assert torch.equal(images.video(given, num_frames=None).tiles, expected)


def test_undecoded_images_of_a_data_set_are_taken(images, tmp_path):
    file = io.BytesIO()
    logo().save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    expected = images.image(logo()).tiles
    for given in (
        {"bytes": file.getvalue(), "path": "a.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ):
        assert torch.equal(images.image(given).tiles, expected)
        assert images.video([given, given], num_frames=None).clip.frames == 2
    for wrong in ({}, {"path": "a.png"}, {"bytes": None, "path": None}, {"bytes": b"", "array": 1}):
        with pytest.raises(ValueError, match="an image is dict with keys"):
            images.image(wrong)


def test_file_addresses_and_base64_are_taken_for_images_and_videos_alike(images, tmp_path):
    picture, video = tmp_path / "a b.png", tmp_path / "a b.mp4"
    logo().save(picture)
    write(video, [(64, 48)] * 4)
    for read, path, expected in (
        (images.image, picture, images.image(picture).tiles),
        (lambda source: images.video(source, num_frames=2), video, images.video(video, num_frames=2).tiles),
    ):
        content = base64.b64encode(path.read_bytes()).decode()
        for source in (path.as_uri(), f"file://{path}", f"file:{path}", content, f"data:;base64,{content}"):
            assert torch.equal(read(source).tiles, expected)
