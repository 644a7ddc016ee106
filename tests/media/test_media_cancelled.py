"""A reader that is no longer wanted ends soon; base64 of any content is read, or refused, in linear time."""

import base64
import io
import socket
import sys
import threading
import time

import pytest
from attacks import ask, within
from media_files import png

from pvc import media_fetch, media_isolation, media_sources
from pvc.media_policy import Budget, MediaPolicy, MediaRefused
from pvc.preprocess import read_image


def test_a_cancelled_reading_opens_nothing(processor):
    processor.media_policy = MediaPolicy.untrusted(is_cancelled=lambda: True)
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    with pytest.raises(MediaRefused, match="was cancelled"):
        ask(processor, {"type": "image_url", "image_url": {"url": address}})


def test_a_policy_takes_a_function_and_nothing_else():
    with pytest.raises(ValueError, match="is_cancelled=True: expected None or a function"):
        MediaPolicy(is_cancelled=True)


@pytest.mark.skipif(sys.platform != "linux", reason="starts a script in place of the decoder")
def test_cancelling_kills_the_process_that_decodes(monkeypatch, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(media_isolation, "__file__", str(script))

    cancelled = threading.Event()
    budget = Budget(MediaPolicy(isolate=True, deadline_s=None, is_cancelled=cancelled.is_set))
    timer = threading.Timer(0.3, cancelled.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(MediaRefused, match="was cancelled"):
        read_image(io.BytesIO(png()), budget)
    assert time.monotonic() - begun < 1.3


def test_cancelling_leaves_a_server_that_says_nothing(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(media_fetch, "getproxies", dict)
    cancelled = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        budget = Budget(MediaPolicy(is_cancelled=cancelled.is_set))
        threading.Timer(0.2, cancelled.set).start()
        begun = time.monotonic()
        with pytest.raises(MediaRefused, match="was cancelled"):
            media_fetch.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/", budget)
        assert time.monotonic() - begun < 1.5


@pytest.mark.attack("F24")
@pytest.mark.parametrize("kind", ["image", "video"])
def test_white_space_in_base64_costs_neither_memory_nor_time(kind, processor):
    processor.media_policy = MediaPolicy.untrusted()
    blank_after_each = "data:;base64," + "A " * 5_000_000
    blanks_before_the_end = "A" * 300 + " " * 300_000 + "!"
    for source in (blank_after_each, blanks_before_the_end):
        error = within(5, ask, processor, {"type": kind, kind: source})
        assert isinstance(error, (OSError, ValueError))


def test_base64_in_lines_is_read():
    lines = base64.encodebytes(png()).decode()
    with media_sources.opened(lines.replace("\n", "\r\n\t"), Budget(MediaPolicy()), kind="image") as file:
        assert file.read() == png()
