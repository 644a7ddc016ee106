"""Attacks by images and videos: what a stranger's message, file or server tries, and what comes of it.

Servers are on this machine alone. The numbers of the attacks are those of docs/security.md.
"""

import base64
import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from pvc import CHECKPOINT, media_fetch, video_readers
from pvc.frame_choice import FrameChoice
from pvc.media_policy import Budget, MediaPolicy, MediaRefused, is_public
from pvc.preprocess import dynamic_preprocess, load_image, load_video, read_frames, read_image, tile_grid
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

REFUSED = (OSError, ValueError)  # what is documented


@pytest.fixture(scope="module")
def images() -> PVCImageProcessor:
    return PVCImageProcessor(image_size=28, patch_size=14, downsample_ratio=0.5, max_tiles=2)


@pytest.fixture
def processor() -> PVCProcessor:
    images = PVCImageProcessor(image_size=28, patch_size=14, downsample_ratio=0.5, max_tiles=2)
    return PVCProcessor(images, InternLM2Tokenizer.from_pretrained(CHECKPOINT), num_frames=4)


def ask(processor: PVCProcessor, *blocks: dict, **options):
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": "What?"}]}]
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


class Server(ThreadingHTTPServer):
    """Answers by `answer(handler)`; `asked` has the paths, `headers` those of the requests."""

    daemon_threads = True

    def __init__(self, answer):
        self.asked, self.headers = [], []
        asked, headers = self.asked, self.headers

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                asked.append(self.path)
                headers.append(dict(self.headers))
                try:
                    answer(self)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts a server with an answer."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler, body: bytes, status: int = 200, **headers):
    handler.send_response(status)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def png(size=(40, 30), colour="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_video(path: Path, frames=8, size=(64, 48), codec="mpeg4", container=None) -> Path:
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * i % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def within(seconds: float, action, *arguments, **options):
    """The error that an action raises within so many seconds, or None."""
    done = []

    def act():
        try:
            action(*arguments, **options)
            done.append(None)
        except Exception as error:  # any: the test judges it
            done.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"no outcome within {seconds} seconds"
    return done[0]


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


# ---- F6: fetching


def fetch(address: str, **policy) -> bytes:
    return media_fetch.fetch(address, Budget(MediaPolicy(**policy))).read()


@pytest.mark.attack("F6")
def test_an_answer_is_read_to_the_limit_and_no_further(serve):
    sent = []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(2**16))
            sent.append(2**16)

    server = serve(endless)
    with pytest.raises(MediaRefused, match="more than 1000000 bytes"):
        fetch(server.address, max_bytes=10**6)
    assert sum(sent) < 20 * 10**6


@pytest.mark.attack("F6")
def test_an_answer_that_says_it_is_too_long_is_not_read(serve):
    server = serve(lambda handler: send(handler, b"", Content_Length=str(10**12)))
    begun = time.monotonic()
    with pytest.raises(MediaRefused, match="more than 1000 bytes"):
        fetch(server.address, max_bytes=1000)
    assert time.monotonic() - begun < 5


@pytest.mark.attack("F6")
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_decoded_bytes_count(encoding, serve):
    content = bytes(20 * 10**6)
    packed = gzip.compress(content) if encoding == "gzip" else zlib.compress(content)
    server = serve(lambda handler: send(handler, packed, Content_Encoding=encoding))
    assert fetch(server.address, max_bytes=len(content)) == content
    with pytest.raises(MediaRefused, match="more than 1000000 bytes"):
        fetch(server.address, max_bytes=10**6)


@pytest.mark.attack("F6")
@pytest.mark.parametrize("part", ["status", "headers", "body"])
def test_a_slow_answer_ends_at_the_deadline(part, serve):
    def drip(handler):
        start = {"status": b"", "headers": b"HTTP/1.1 200 OK\r\nX: ", "body": b"HTTP/1.1 200 OK\r\n\r\n"}[
            part
        ]
        handler.wfile.write(start)
        for _ in range(600):
            handler.wfile.write(b"1")
            time.sleep(0.1)

    server = serve(drip)
    begun = time.monotonic()
    with pytest.raises(REFUSED, match="deadline_s of the media policy"):
        fetch(server.address, deadline_s=1.0)
    assert time.monotonic() - begun < 5


@pytest.mark.attack("F6")
def test_an_answer_of_some_bytes_a_second_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(media_fetch, "SLOW_FOR_S", 0.5)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b"1")
            time.sleep(0.05)

    server = serve(drip)
    with pytest.raises(OSError, match="cannot be fetched: .* less than 1000 bytes a second"):
        fetch(server.address, deadline_s=None)


@pytest.mark.attack("F6")
@pytest.mark.parametrize(
    "address",
    [
        *(
            "http://[::1",
            "http://\0/",
            "http://\u2100.com/",
            "http://",
            "http:///a.png",
            "http://a..b/",
            "http://a b/",
        ),
        *(
            "http://x:99999/",
            "http://x:y/",
            "https://\udcff/",
            "http://" + "a" * 300,
            "http://[zz]/",
            "http://\r\nx/",
        ),
        "http://127.0.0.1:9/" + "a" * 70_000,
    ],
)
def test_what_is_no_address_is_an_os_error_with_its_text(address, monkeypatch, processor):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for kind in ("image", "video"):
        error = within(40, ask, processor, {"type": kind, kind: address})
        assert isinstance(error, OSError) and "cannot be fetched" in str(error) and len(str(error)) < 1000


@pytest.mark.attack("F6")
def test_an_answer_that_ends_early_or_is_packed_otherwise_is_an_os_error(serve):
    for headers in ({"Content_Length": "1000"}, {"Content_Encoding": "br"}):
        server = serve(lambda handler, headers=headers: send(handler, b"abc", **headers, Connection="close"))
        with pytest.raises(OSError, match="cannot be fetched"):
            fetch(server.address, deadline_s=3.0)


@pytest.mark.attack("F6")
def test_a_packed_answer_ends_where_its_content_does_and_not_before(serve):
    packed, sent = gzip.compress(b"abc"), []

    def endless(handler):
        send(handler, packed, Content_Encoding="gzip")
        for _ in range(1000):
            handler.wfile.write(bytes(2**17))
            sent.append(2**17)

    assert fetch(serve(endless).address, deadline_s=30.0) == b"abc"
    assert sum(sent) < 20 * 10**6

    cut = gzip.compress(np.random.default_rng(0).bytes(10**5))[:-5000]
    server = serve(lambda handler: send(handler, cut, Content_Encoding="gzip"))
    with pytest.raises(OSError, match="it ends after"):
        fetch(server.address)


@pytest.mark.attack("F6")
def test_cookies_and_tokens_are_not_sent(serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = serve(lambda handler: send(handler, png(), Set_Cookie="a=b; Path=/"))
    for _ in range(2):
        fetch(server.address)
    for headers in server.headers:
        assert headers.keys().isdisjoint({"Cookie", "Authorization"}) and "secret" not in str(headers)


@pytest.mark.attack("F6")
def test_redirects_are_followed_to_http_alone_and_not_for_ever(serve):
    places = {
        "/1": "/2",
        "/2": "/image",
        "/loop": "/loop",
        "/file": "file:///etc/hostname",
        "/ftp": "ftp://127.0.0.1/",
    }

    def answer(handler):
        if handler.path in places:
            send(handler, b"", 302, Location=places[handler.path])
        else:
            send(handler, png())

    server = serve(answer)
    assert fetch(f"{server.address}/1") == png()
    with pytest.raises(OSError, match="more than 10 redirects"):
        fetch(f"{server.address}/loop")
    for path in ("/file", "/ftp"):
        with pytest.raises(OSError, match="neither http nor https"):
            fetch(f"{server.address}{path}")


@pytest.mark.attack("F6")
def test_hosts_are_those_of_the_policy_at_each_redirect(serve):
    other = serve(lambda handler: send(handler, png()))
    moved = other.address.replace("127.0.0.1", "localhost")
    server = serve(lambda handler: send(handler, b"", 302, Location=moved))
    assert fetch(server.address) == png()
    for hosts in (["127.0.0.1"], lambda host: host == "127.0.0.1"):
        assert fetch(other.address, hosts=hosts) == png()
        with pytest.raises(MediaRefused, match="does not allow this host"):
            fetch(server.address, hosts=hosts)
    with pytest.raises(MediaRefused, match="does not allow this host"):
        fetch(other.address, hosts=False)
    assert len(other.asked) == 3


@pytest.mark.parametrize("name", ["Bücher.example", "xn--bcher-kva.example", "BÜCHER.EXAMPLE."])
def test_hosts_of_a_policy_may_be_spelt_as_people_do(name):
    assert MediaPolicy(hosts=[name]).allows_host("xn--bcher-kva.example")
    assert not MediaPolicy(hosts=[name]).allows_host("example")


PRIVATE = [
    *("127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "localhost", "[::1]", "[::]"),
    *(
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "100.64.0.1",
    ),
    *(
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[fc00::1]",
        "[fe80::1]",
    ),
]


@pytest.mark.attack("F6")
@pytest.mark.parametrize("host", PRIVATE)
def test_inner_addresses_are_refused_in_every_spelling(host, serve, monkeypatch):
    server = serve(lambda handler: send(handler, png()))
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connected.append(address))
    with pytest.raises(OSError):
        fetch(f"http://{host}:{server.server_port}/", public_only=True, deadline_s=5.0)
    assert connected == [] and server.asked == []


@pytest.mark.attack("F6")
def test_public_addresses_are_told_from_others():
    for address in ("8.8.8.8", "1.1.1.1", "151.101.1.69", "2606:4700::1111"):
        assert is_public(address)
    for address in (
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.9",
        "240.0.0.1",
        "2001:db8::1",
        "2001::1",
        "ff02::1",
        "fe80::1%1",
    ):
        assert not is_public(address)


@pytest.mark.attack("F6")
def test_a_name_is_resolved_once_and_connected_to_by_the_address_that_was_checked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    answers, connected = ["8.8.8.8", "127.0.0.1"], []

    def rebinding(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    def connect(self, address):
        connected.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(OSError, match="refused"):
        fetch("http://rebinding.example/a.png", public_only=True)
    assert connected == [("8.8.8.8", 80)] and answers == ["127.0.0.1"]


@pytest.mark.attack("F6")
def test_proxies_of_the_environment_are_used_by_default_alone(serve, monkeypatch):
    proxy = serve(lambda handler: send(handler, png()))
    monkeypatch.setenv("http_proxy", proxy.address)
    monkeypatch.setenv("no_proxy", "")
    assert fetch("http://images.example/a.png") == png()
    assert proxy.asked == ["http://images.example/a.png"]
    monkeypatch.setattr(media_fetch.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
    with pytest.raises(MediaRefused, match="not a public address"):
        fetch("http://images.example/a.png", public_only=True)
    assert len(proxy.asked) == 1


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


def grey16_png(side: int, level: int = 1) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(level), bytes(1 + 2 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


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


# ---- the policy


def test_a_policy_that_is_none_names_the_field():
    for wrong in (
        {"max_bytes": 0},
        {"max_pixels": "1"},
        {"max_frames": True},
        {"max_tiles": 1.5},
        {"deadline_s": 0},
        {"max_duration_s": "x"},
        {"files": 3},
        {"files": True},
        {"hosts": "a.example"},
        {"hosts": 3},
        {"hosts": [3]},
        {"backends": ()},
        {"backends": ("opencv",)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            MediaPolicy(**wrong)


def test_a_processor_takes_a_policy_alone_and_saves_none(tmp_path, processor):
    for wrong in (None, {}, "untrusted"):
        with pytest.raises(ValueError, match="media_policy="):
            processor.media_policy = wrong
    processor.media_policy = MediaPolicy.untrusted(max_frames=5)
    assert processor.image_processor.media_policy.max_frames == 5
    processor.save_pretrained(tmp_path)
    assert not any("policy" in file.read_text() for file in tmp_path.glob("*.json"))
    loaded = PVCProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert vars(loaded.media_policy) == vars(MediaPolicy())
    loaded.media_policy = MediaPolicy.untrusted()
    assert vars(loaded.media_policy) == vars(MediaPolicy.untrusted())


@pytest.mark.attack("F1", "F2")
def test_strangers_read_no_files_and_learn_nothing_of_them(tmp_path, processor):
    processor.media_policy = MediaPolicy.untrusted()
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    for kind in ("image", "video"):
        messages = set()
        for name in ("there.png", "missing.png", ""):
            for source in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}", tmp_path / name):
                error = within(5, ask, processor, {"type": kind, kind: source})
                assert isinstance(error, MediaRefused)
                messages.add(str(error).replace("there", "").replace("missing", "").replace(".png", ""))
        assert len({message.partition(":")[2][-60:] for message in messages}) <= 2
    for source in (
        [str(tmp_path / "there.png")],
        [tmp_path / "there.png"],
        {"bytes": None, "path": str(tmp_path)},
    ):
        with pytest.raises(MediaRefused):
            ask(processor, {"type": "video", "video": source})
    content = base64.b64encode((tmp_path / "there.png").read_bytes()).decode()
    for source in (content, f"data:image/png;base64,{content}"):
        assert ask(processor, {"type": "image", "image": source})["clip_grid"].shape[0] == 1


@pytest.mark.attack("F1", "F2")
def test_a_policy_of_a_folder_gives_what_is_in_it_and_nothing_else(tmp_path, processor):
    folder = tmp_path / "media"
    (folder / "frames").mkdir(parents=True)
    for path in (
        folder / "in.png",
        folder / "frames" / "1.png",
        tmp_path / "out.png",
        tmp_path / "mediaout.png",
    ):
        Image.new("RGB", (8, 8)).save(path)
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "frames" / "2.png").symlink_to(tmp_path / "out.png")
    processor.media_policy = MediaPolicy(files=folder)
    for source in (
        "in.png",
        f"{folder}/in.png",
        f"file://{folder}/in.png",
        folder / "in.png",
        "frames/../in.png",
    ):
        assert ask(processor, {"type": "image", "image": source})["clip_grid"].shape[0] == 1
    assert ask(processor, {"type": "video", "video": ["in.png"]})["clip_grid"].shape[0] == 1
    for source in (
        "../out.png",
        f"{tmp_path}/out.png",
        "link.png",
        "../mediaout.png",
        "/etc/hostname",
        f"file://{tmp_path}/out.png",
    ):
        with pytest.raises(MediaRefused, match="not in the folder"):
            ask(processor, {"type": "image", "image": source})
        with pytest.raises(MediaRefused, match="not in the folder"):
            ask(processor, {"type": "video", "video": [source]})
    with pytest.raises(MediaRefused, match="not in the folder"):
        ask(processor, {"type": "video", "video": "frames"})
    for kind in ("image", "video"):
        with pytest.raises(FileNotFoundError) as missing:
            ask(processor, {"type": kind, kind: "none.png"})
        assert str(tmp_path) not in str(missing.value)


@pytest.mark.attack("F1", "F2")
@pytest.mark.parametrize("source", ["f 1", "./f 1", "file:f 1", "file:f%201"])
def test_files_of_a_folder_are_named_as_the_message_names_the_folder(source, tmp_path, processor):
    (tmp_path / "f 1").mkdir()
    damaged = tmp_path / "f 1" / "100%25.png"
    processor.media_policy = MediaPolicy(files=tmp_path)
    for content in (b"x", png()):
        damaged.write_bytes(content)
        if content == png():
            assert ask(processor, {"type": "video", "video": source})["clip_grid"].shape[0] == 4
            continue
        with pytest.raises(OSError, match="cannot be read") as error:
            ask(processor, {"type": "video", "video": source})
        assert source in str(error.value) and str(tmp_path) not in str(error.value)


@pytest.mark.attack("F5")
@pytest.mark.parametrize("content", ["abc", 5, 0, [1], {"a": 1}])
def test_bytes_of_a_message_that_are_none_are_a_value_error(content, processor):
    for kind in ("image", "video"):
        with pytest.raises(ValueError, match="'bytes' of a dict"):
            ask(processor, {"type": kind, kind: {"bytes": content, "path": "a.png"}})


def test_reading_ends_at_the_deadline(tmp_path, images):
    path = write_video(tmp_path / "a.mp4")
    budget = Budget(MediaPolicy(deadline_s=0.01))
    time.sleep(0.02)
    for read, source in ((images.video, path), (images.image, Image.new("RGB", (8, 8)))):
        with pytest.raises(MediaRefused, match="more than 0.01 seconds"):
            read(source, budget=budget)


def test_base64_is_no_longer_than_the_policy_allows(images):
    budget = Budget(MediaPolicy(max_bytes=1000))
    with pytest.raises(MediaRefused, match="more than 1000 bytes"):
        images.image(base64.b64encode(bytes(2000)).decode(), budget=budget)
    with pytest.raises(MediaRefused, match="more than 1000 bytes"):
        images.image({"bytes": bytes(2000), "path": None}, budget=budget)


def test_containers_are_those_that_ffmpeg_knows():
    assert set(video_readers.CONTAINERS) <= av.formats_available
