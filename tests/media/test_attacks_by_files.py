"""Attacks by files: durations, pixels and memory that they claim, and decoders that start programs.

The numbers of the attacks are those of docs/security.md.
"""

import base64
import io
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from attacks import ask, within
from media_files import grey16_png, megabytes, write_video
from PIL import Image

from pvc.frame_choice import FrameChoice
from pvc.media_policy import Budget, MediaPolicy, MediaRefused
from pvc.preprocess import dynamic_preprocess, load_image, load_video, read_frames, read_image, tile_grid

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI

# ---- F7, F10, F11, F12, F19: what files claim


@pytest.mark.attack("F7")
def test_steps_are_counted_before_they_are_listed():
    video = SimpleNamespace(name="a", fps=1.0, times_s=[0.0, 1e15, 2e15], end_s=3e15)
    assert FrameChoice(fps=1000, max_frames=4).of_video(video) == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="frames are asked for, of at most 1048576"):
        FrameChoice(fps=1000).of_video(video)


@pytest.mark.attack("F7")
def test_a_duration_beyond_the_policy_is_refused(tmp_path, images):
    path = write_video(tmp_path / "a.mp4")  # of 2 seconds
    budget = Budget(MediaPolicy(max_duration_s=1.0))
    with pytest.raises(MediaRefused, match=r"lasts 2\.0 seconds, more than 1 "):
        images.video(path, num_frames=2, budget=budget)


@pytest.mark.attack("F10")
@pytest.mark.parametrize("read", [load_video, read_frames])
def test_a_gif_that_claims_many_pixels_is_refused_by_its_header(read, tmp_path):
    frames = [Image.new("P", (64, 48), i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 12000, 12000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(ValueError, match="exceeds limit of 67108864 pixels"):
        read(tmp_path / "a.gif")


@pytest.mark.attack("F10")
def test_the_limit_of_pixels_holds_for_images_and_frames(tmp_path, images):
    budget = Budget(MediaPolicy(max_pixels=3000))  # of 64 x 48 = 3072
    path = write_video(tmp_path / "a.mp4")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 48)).save(
        tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")]
    )
    for read, source in (
        (images.video, path),
        (images.video, tmp_path / "a.webp"),
        (images.video, [tmp_path / "a.png"]),
        (images.image, tmp_path / "a.png"),
        (images.image, tmp_path / "a.webp"),
        (images.image, Image.open(tmp_path / "a.png")),
    ):
        with pytest.raises(ValueError, match="exceeds limit of 3000 pixels"):
            read(source, budget=budget)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.attack("F11")
@pytest.mark.slow
def test_16_bit_greys_take_few_copies(tmp_path):
    (tmp_path / "13300.png").write_bytes(grey16_png(13300))
    (tmp_path / "5000.png").write_bytes(grey16_png(5000))
    assert megabytes(f"images.image({str(tmp_path / '13300.png')!r})") < 20
    assert megabytes(f"images.image({str(tmp_path / '5000.png')!r})") < 5 * 25 + 20  # 5 bytes a pixel


@linux
@pytest.mark.attack("F9")
@pytest.mark.slow
def test_one_frame_at_a_time_is_held_at_its_full_size(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", frames=24, size=(1920, 1080), codec="mpeg4"))
    one = megabytes(f"images.video({path!r}, num_frames=1)")
    assert megabytes(f"images.video({path!r}, num_frames=24)") < one + 60  # 24 frames have 149 MB


@pytest.mark.attack("F12")
def test_no_image_starts_ghostscript(tmp_path, monkeypatch, processor):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(eps)
    for source in (str(tmp_path / "a.png"), base64.b64encode(eps).decode(), io.BytesIO(eps)):
        with pytest.raises(OSError, match="cannot be read: no image of PNG"):
            ask(processor, {"type": "image", "image": source})
    with pytest.raises(OSError, match=r"a\.png cannot be read"):
        load_image(tmp_path / "a.png")
    assert started == []


@pytest.mark.attack("F12")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_a_damaged_image_is_an_os_error_with_its_name(kind, tmp_path):
    file = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(file, kind)
    whole = file.getvalue()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.img"
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.choice([1, 4, 16])):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data)
        try:
            read_image(str(path))
        except OSError as error:
            assert "damaged.img" in str(error)


@pytest.mark.attack("F19")
def test_the_table_of_grids_is_short_and_bounded():
    with pytest.raises(ValueError, match="max_num=100000000: expected 1 <= min_num <= max_num <= 1024"):
        dynamic_preprocess(Image.new("RGB", (30, 20)), max_num=10**8)
    assert isinstance(within(5, tile_grid, 30, 20, 1, 10**9, 28), ValueError)
    begun = time.monotonic()
    assert tile_grid(3000, 1000, 1, 1024, 28) == (54, 18)
    assert time.monotonic() - begun < 1
