"""Attacks by sources and blocks: playlists, protocols, FIFOs, and options that a message may not set.

Servers are on this machine alone. The numbers of the attacks are those of docs/security.md.
"""

import io
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from attacks import REFUSED, ask, within
from media_files import write_video
from media_server import send
from PIL import Image

from pvc import video_readers
from pvc.media_policy import MediaPolicy, MediaRefused
from pvc.preprocess import load_image, load_video, read_frames, read_image

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI

# ---- F1 to F3: playlists, protocols, session descriptions


def hls(segment: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{segment}\n#EXT-X-ENDLIST\n".encode()


def concat(segment: str) -> bytes:
    return f"ffconcat version 1.0\nfile '{segment}'\n".encode()


def dash(segment: str) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'profiles="urn:mpeg:dash:profile:full:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/mp4"><Representation id="1">'
        f"<BaseURL>{segment}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ).encode()


def sdp(segment: str) -> bytes:
    return b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50000 RTP/AVP 96\n"


LISTS = {"m3u8": hls, "ffconcat": concat, "mpd": dash, "sdp": sdp}


@pytest.mark.attack("F1")
@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_playlist_opens_no_other_file_and_no_address(kind, backend, tmp_path, serve, images):
    if backend != "pyav":
        pytest.importorskip(backend)
    secret = write_video(tmp_path / "secret.ts", codec="mpeg2video", container="mpegts")
    inside = serve(lambda handler: send(handler, secret.read_bytes()))
    contents = {}
    outside = serve(lambda handler: send(handler, contents[handler.path]))
    for i, segment in enumerate((f"file://{secret}", str(secret), secret.name, f"{inside.address}/a.ts")):
        content = LISTS[kind](segment)
        path = f"/{i}.{kind}"
        contents[path] = content
        (tmp_path / path[1:]).write_bytes(content)
        upload = io.BytesIO(content)
        upload.name = f"upload.{kind}"
        for source in (f"{outside.address}{path}", upload, str(tmp_path / path[1:])):
            error = within(10, images.video, source, num_frames=2, backend=backend)
            assert isinstance(error, ValueError)
    assert inside.asked == []


@pytest.mark.attack("F1")
def test_a_transport_stream_behind_a_playlist_is_not_given_to_decord(tmp_path):
    pytest.importorskip("decord")
    stream = write_video(tmp_path / "a.ts", codec="mpeg2video", container="mpegts").read_bytes()
    (tmp_path / "both.m3u8").write_bytes(hls("/etc/hostname") + stream)
    with pytest.raises(ValueError, match="begins as a text"):
        read_frames(tmp_path / "both.m3u8", backend="decord")


@pytest.mark.attack("F2")
@pytest.mark.parametrize(
    "text",
    [
        *(
            "tcp://127.0.0.1:9",
            "udp://127.0.0.1:9999",
            "rtsp://127.0.0.1/a",
            "rtmp://127.0.0.1/a",
            "ftp://127.0.0.1/a",
        ),
        *(
            "concat:a.ts|b.ts",
            "subfile:a",
            "async:a.mp4",
            "cache:a.mp4",
            "crypto:a",
            "data://x",
            "pipe:0",
            "fd:0",
        ),
        *("gopher://x", "lavfi:testsrc", "HTTP+unix:/x", "jar:file:///a"),
    ],
)
def test_a_scheme_is_refused_by_its_name(text, processor):
    for kind in ("image", "video"):
        error = within(5, ask, processor, {"type": kind, kind: text})
        assert isinstance(error, REFUSED) and text.partition(":")[0] in str(error)
    for read in (load_image, load_video, read_frames):
        error = within(5, read, text)
        assert isinstance(error, REFUSED) and text.partition(":")[0] in str(error)


@pytest.mark.attack("F2")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifos_and_devices_are_refused_without_waiting(tmp_path, processor):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "link.png").symlink_to(tmp_path / "fifo.mp4")
    for path in (tmp_path / "fifo.mp4", tmp_path / "link.png", Path("/dev/zero")):
        for read in (load_image, load_video, read_frames, read_image, lambda x: read_frames([x])):
            error = within(5, read, str(path))
            assert isinstance(error, MediaRefused) and "expected a regular file" in str(error)
        for kind in ("image", "video"):
            assert isinstance(within(5, ask, processor, {"type": kind, kind: str(path)}), MediaRefused)


@pytest.mark.attack("F2")
def test_a_name_with_a_nul_is_not_read_as_what_stands_before_it(tmp_path, processor):
    write_video(tmp_path / "a.mp4")
    name = f"{tmp_path}/a.mp4\0.png"
    for read in (load_image, load_video, read_frames, read_image):
        with pytest.raises(REFUSED):
            read(name)
    for source in (name, f"file://{tmp_path}/a.mp4%00.png"):
        with pytest.raises(REFUSED):
            ask(processor, {"type": "video", "video": source})


@pytest.mark.attack("F3")
def test_a_session_description_opens_no_port(monkeypatch):
    begun = time.monotonic()
    with pytest.raises(ValueError, match="is not a video"):
        read_frames(io.BytesIO(sdp("")), num_frames=2)
    assert time.monotonic() - begun < 5


@pytest.mark.attack("F1", "F2", "F3")
def test_ffmpeg_sees_neither_a_name_nor_a_protocol(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    calls, opened = [], av.open
    monkeypatch.setattr(av, "open", lambda file, **x: calls.append((file, x)) or opened(file, **x))
    upload = io.BytesIO(path.read_bytes())
    upload.name = "http://127.0.0.1/a.m3u8"
    for source in (str(path), path, upload):
        read_frames(source, num_frames=2)
    for file, options in calls:
        assert not isinstance(file, (str, os.PathLike)) and not hasattr(file, "name")
        assert options["options"]["protocol_whitelist"] == "none" and options["timeout"]
        formats = options["options"]["format_whitelist"].split(",")
        assert not {
            "hls",
            "dash",
            "concat",
            "sdp",
            "rtsp",
            "image2",
            "lavfi",
            "tty",
            "applehttp",
            "imf",
        } & set(formats)


def test_containers_are_those_that_ffmpeg_knows():
    assert set(video_readers.CONTAINERS) <= av.formats_available


# ---- F4 and F5: what a block may say


@pytest.mark.attack("F4")
def test_a_block_does_not_choose_the_reader(tmp_path, processor):
    block = {"type": "video", "video": str(write_video(tmp_path / "a.mp4"))}
    for backend in ("decord", "torchcodec", "x", 1, None):
        with pytest.raises(ValueError, match="a block does not choose the reader"):
            ask(processor, block | {"backend": backend})
    assert ask(processor, block)["clip_grid"].shape == (4, 3)


@pytest.mark.attack("F4")
def test_a_policy_names_the_readers_that_a_call_may(tmp_path, processor):
    processor.media_policy = MediaPolicy(backends=("pyav",))
    block = {"type": "video", "video": str(write_video(tmp_path / "a.mp4"))}
    with pytest.raises(ValueError, match="backend='decord': expected one of pyav"):
        ask(processor, block, backend="decord")


@pytest.mark.attack("F4")
def test_decord_gets_files_alone(tmp_path, monkeypatch):
    given = []

    class Reader:
        def __init__(self, source, **options):
            given.append((source, Path(source).read_bytes()))

        def __len__(self):
            return 1

        def get_frame_timestamp(self, frames):
            return np.array([[0.0, 1.0]])

        def get_avg_fps(self):
            return 1.0

        def __getitem__(self, frame):
            return SimpleNamespace(asnumpy=lambda: np.zeros((4, 4, 3), np.uint8))

    stub = SimpleNamespace(VideoReader=Reader, cpu=lambda index: None, DECORDError=RuntimeError)
    monkeypatch.setitem(sys.modules, "decord", stub)
    content = write_video(tmp_path / "a.mp4").read_bytes()
    read_frames(io.BytesIO(content), num_frames=1, backend="decord")
    assert isinstance(given[0][0], str) and given[0][1] == content
    assert not os.path.exists(given[0][0])


NUMBERS = {
    "num_frames": (10**18, 8000, 0, -1, "4", [1], {}, 2.5, True, float("nan")),
    "max_frames": (10**18, 8000, 0, "4", [1], 1.0, False),
    "fps": (0, -1, 1001, 10**400, "4", [1], {}, True, float("nan"), float("inf")),
    "start_s": ("4", [1], {}, True, float("nan"), -1, 10**400),
    "end_s": ("4", [1], {}, True, float("nan"), 10**400),
}


@pytest.mark.attack("F5")
@pytest.mark.parametrize("name, value", [(name, value) for name in NUMBERS for value in NUMBERS[name]])
def test_a_number_of_a_block_is_checked_by_type_and_range(name, value, tmp_path, processor):
    block = {"type": "video", "video": str(write_video(tmp_path / "a.mp4")), name: value}
    error = within(10, ask, processor, block)
    assert isinstance(error, ValueError) and name in str(error) and len(str(error)) < 1000


@pytest.mark.attack("F5")
def test_a_block_may_lower_the_limit_of_frames_and_not_raise_it(tmp_path, processor):
    block = {"type": "video", "video": str(write_video(tmp_path / "a.mp4", frames=12))}

    def frames(block, **options) -> int:
        return len(ask(processor, block, **options)["clip_grid"])

    assert frames(block | {"fps": 4, "max_frames": 3}, max_frames=5) == 3
    assert frames(block | {"fps": 4, "max_frames": 9}, max_frames=5) == 5
    processor.media_policy = MediaPolicy(max_frames=6)
    with pytest.raises(ValueError, match="num_frames=8: expected at most 6"):
        frames(block | {"num_frames": 8})
    with pytest.raises(ValueError, match="max_frames=8: expected at most 6"):
        frames(block | {"fps": 4, "max_frames": 8})
    with pytest.raises(ValueError, match="12 frames are asked for, of at most 6"):
        frames(block | {"num_frames": None})


@pytest.mark.attack("F5")
def test_the_media_of_a_prompt_share_one_limit_of_tiles(processor):
    processor.media_policy = MediaPolicy(max_tiles=3)
    block = {"type": "image", "image": Image.new("RGB", (40, 40))}
    assert len(ask(processor, *[block] * 3)["clip_grid"]) == 3
    with pytest.raises(MediaRefused, match="more than 3 tiles"):
        ask(processor, *[block] * 4)
    with pytest.raises(MediaRefused, match="more than 3 tiles"):
        ask(processor, {"type": "video", "video": [block["image"]], "num_frames": 4})
