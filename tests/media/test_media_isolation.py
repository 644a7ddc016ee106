"""`MediaPolicy(isolate=True)`: files are decoded in another process; what happens there stays there."""

import io
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import logo, write_video
from PIL import Image

from pvc import CHECKPOINT, media_isolation
from pvc.media_policy import Budget, MediaPolicy, MediaRefused
from pvc.preprocess import read_frames, read_image
from pvc.processing_pvc import PVCImageProcessor

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI

linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and limits of processes as on Linux")


@pytest.fixture
def images() -> PVCImageProcessor:
    images = PVCImageProcessor(image_size=28, patch_size=14, downsample_ratio=0.5, max_tiles=2)
    images.media_policy = MediaPolicy(isolate=True)
    return images


def plain(**policy) -> Budget:
    return Budget(MediaPolicy(**policy))


def isolated(**policy) -> Budget:
    return Budget(MediaPolicy(isolate=True, **policy))


def test_images_and_frames_are_those_of_the_same_process(tmp_path, images):
    logo().save(tmp_path / "a.png")
    video = write_video(tmp_path / "a.mp4", frames=12)
    for source in (tmp_path / "a.png", io.BytesIO((tmp_path / "a.png").read_bytes())):
        expected = images.image(source, budget=plain()).tiles
        assert torch.equal(images.image(source).tiles, expected)
    choice = {"fps": 3, "max_frames": 7, "start_s": 0.5}
    for source in (video, io.BytesIO(video.read_bytes())):
        expected = images.video(source, **choice, frame_times=True, budget=plain())
        found = images.video(source, **choice, frame_times=True)
        assert torch.equal(found.tiles, expected.tiles) and found.segments == expected.segments


@pytest.mark.parametrize("isolate", [False, True])
def test_numbers_of_other_libraries_choose_frames_too(isolate, tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=12)
    budget = partial(plain, isolate=isolate, max_pixels=np.int64(10**6))
    expected = read_frames(path, num_frames=3).times_s
    for number in (np.int64(3), np.uint8(3), torch.tensor(3)):
        assert read_frames(path, num_frames=number, budget=budget()).times_s == expected
    start_s, fps = np.float32(0.5), torch.tensor(2.0)
    expected = read_frames(path, start_s=0.5, fps=2).times_s
    assert read_frames(path, start_s=start_s, fps=fps, budget=budget()).times_s == expected
    for wrong in (np.True_, np.array(3.5), torch.tensor(3.5), np.array([1, 2])):
        with pytest.raises(ValueError, match="num_frames=.*: expected a whole number"):
            read_frames(path, num_frames=wrong, budget=budget())
    for wrong in (np.array([2.0, 3.0]), torch.ones(2), "2", b"2"):
        with pytest.raises(ValueError, match="fps=.*: expected a number"):
            read_frames(path, fps=wrong, budget=budget())


def test_errors_are_those_of_the_same_process(tmp_path):
    (tmp_path / "words.png").write_text("no image")
    video = write_video(tmp_path / "a.mp4")
    for read, arguments, options, policy in (
        (read_image, (tmp_path / "words.png",), {}, {}),
        (read_frames, (tmp_path / "words.png",), {}, {}),
        (read_frames, (video,), {"start_s": 100}, {}),
        (read_frames, (video,), {}, {"max_duration_s": 0.5}),
        (read_image, (CHECKPOINT / "assets" / "picture1.png",), {}, {"max_pixels": 10}),
    ):
        with pytest.raises((OSError, ValueError)) as expected:
            read(*arguments, **options, budget=plain(**policy))
        with pytest.raises((OSError, ValueError)) as found:
            read(*arguments, **options, budget=isolated(**policy))
        assert str(found.value) == str(expected.value)
        assert isinstance(found.value, OSError) == isinstance(expected.value, OSError)


def replaced(monkeypatch, tmp_path, code: str):
    """Lets the process run other code at its start, as a decoder that was taken over might."""
    script = tmp_path / "taken_over.py"
    script.write_text(code)
    monkeypatch.setattr(media_isolation, "__file__", str(script))


PARENT = Path(media_isolation.__file__).parent


@linux
@pytest.mark.attack("F4")
@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 11)",
        "import sys; sys.exit(3)",
        "print('no JSON')",
        "print('[1]')",
        'print(\'{"index": 0, "width": 100000, "height": 100000}\')',
        'print(\'{"index": 0, "width": -5, "height": 5}\')',
        'print(\'{"index": 0, "width": 5, "height": "x"}\')',
        "print('{\"index\": 0}')",
        'print(\'{"indices": [0], "times_s": []}\')',
        'print(\'{"indices": [0, 1], "times_s": [0.0, 1.0]}\')',
        "import sys\nwhile True: sys.stdout.write('x' * 2**20)",
    ],
)
def test_a_process_that_ends_or_lies_is_an_error_of_the_prompt(code, monkeypatch, tmp_path):
    logo().save(tmp_path / "a.png")
    video = write_video(tmp_path / "a.mp4")
    replaced(monkeypatch, tmp_path, code)
    for read, source in ((read_image, tmp_path / "a.png"), (read_frames, video)):
        with pytest.raises(ValueError, match=r"cannot be read"):
            read(source, budget=isolated(deadline_s=20.0))


@linux
def test_a_process_that_does_not_end_is_killed_at_the_deadline(monkeypatch, tmp_path):
    logo().save(tmp_path / "a.png")
    replaced(monkeypatch, tmp_path, "import time; time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(MediaRefused, match="more than 0.5 seconds"):
        read_image(tmp_path / "a.png", budget=isolated(deadline_s=0.5))
    assert time.monotonic() - begun < 5


@linux
def test_a_process_has_limits_of_memory_time_and_files(monkeypatch, tmp_path):
    logo().save(tmp_path / "a.png")
    code = f"""
import json, resource, sys
sys.path.insert(0, {str(PARENT)!r})
import media_isolation
def report(request, policy):
    names = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_FSIZE")
    raise ValueError(str([resource.getrlimit(getattr(resource, name))[0] for name in names]))
media_isolation._read = report
media_isolation.main()
"""
    replaced(monkeypatch, tmp_path, code)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / "a.png", budget=isolated(max_pixels=10**6, max_bytes=10**6, deadline_s=9.5))
    assert str(error.value) == str([2 * 2**30 + 32 * 10**6, 10, 0, 10**6])


@linux
def test_a_process_sees_none_of_the_environment(monkeypatch, tmp_path):
    logo().save(tmp_path / "a.png")
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    code = """
import json, os
print(json.dumps({"error": "ValueError", "message": str(sorted(os.environ))}))
"""
    replaced(monkeypatch, tmp_path, code)
    with pytest.raises(ValueError) as error:
        read_image(tmp_path / "a.png", budget=isolated())
    assert "PYTHONPATH" in str(error.value) and "SECRET_TOKEN" not in str(error.value)


def test_a_damaged_file_of_every_kind_ends_the_process_at_most(tmp_path):
    image = Image.effect_noise((40, 30), 80)
    for kind in ("PNG", "WEBP", "AVIF"):
        image.convert("RGB").save(tmp_path / "a", kind)
        content = (tmp_path / "a").read_bytes()
        with pytest.raises(OSError, match="cannot be read"):
            read_image(io.BytesIO(content[: len(content) // 2]), budget=isolated())
