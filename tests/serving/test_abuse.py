"""Requests of somebody who means harm: the server stays up, and tells nothing.

Each case is counted at the end of a test run. All the while /health is asked, and answers within a second.
"""

import base64
import gzip
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import nullcontext, suppress

import pytest
from media_files import grey16_png, png
from media_server import Server as MediaServer
from media_server import send
from PIL import Image
from servers import (
    HealthWatch,
    Running,
    asset,
    connection,
    data_url,
    head,
    media,
    running,
    talker,
    user,
)

from pvc import CHECKPOINT
from pvc.serving.limits import Limits

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI

MEBI = 2**20
PUBLIC = "93.184.216.34"
SECRET = "the-secret-in-a-file-of-the-server"
REFUSED = {400, 401, 404, 405, 408, 413, 422, 429, 431, 503, 504}
LEAKS = re.compile(r"/(home|root|usr|work|tmp|etc|proc)/|site-packages|Traceback|\.py\b|0x[0-9a-f]{6,}")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """`pvc serve` with small limits, in a process of its own, watched by its /health."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limits = ["--max-request-mib", "8", "--timeout", "20"]
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "pvc.cli", "serve", "--port", str(port), "--device", "cpu", *limits],
        stderr=log,
        cwd=tmp_path_factory.getbasetemp(),
        env=os.environ | {"SECRET_TOKEN": SECRET},
    )

    served = Running(f"http://127.0.0.1:{port}")
    served.process, served.log = process, log
    ends = time.monotonic() + 120
    while True:
        try:
            served.ask("/health")
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.2)
    with HealthWatch(served) as served.health:
        yield served
    process.terminate()
    process.wait()


def check(served: Running, status: int, answer, allowed: set[int] = REFUSED) -> str:
    """The message of an error, in OpenAI's shape, that tells nothing of the server."""
    assert status in allowed
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    message = answer["error"]["message"]
    assert message and not LEAKS.search(message) and SECRET not in message
    return message


def check_up(served: Running) -> None:
    """The server answers, and has done so within a second all along."""
    assert served.ask("/health") == (200, {"status": "ok"})
    assert not served.health.is_held_up(), (served.health.worst_s, served.health.failed)


def attack(name: str, *values):
    return pytest.param(*values, id=name, marks=pytest.mark.attack(f"serve: {name}"))


def video(content: bytes) -> dict:
    return media("data:video/mp4;base64," + base64.b64encode(content).decode(), "video")


def image(content: bytes) -> dict:
    return media("data:image/png;base64," + base64.b64encode(content).decode())


# ---- the watch itself


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_the_watch_tells_a_server_that_one_request_holds_up(one_at_a_time):
    lock = threading.Lock()

    def answer(handler):
        with lock if one_at_a_time else nullcontext():
            time.sleep(1.5 if handler.path == "/slow" else 0.0)
        send(handler, b"", Content_Type="text/plain")

    with MediaServer(answer) as slow:
        with HealthWatch(Running(slow.address), limit_s=0.5) as health:
            assert Running(slow.address).ask("/slow") == (200, "")
        slow.shutdown()
    assert health.is_held_up() == one_at_a_time


# ---- addresses: the server reads data: alone

ADDRESSES = {
    "path": "/etc/passwd",
    "relative path": "../../etc/passwd",
    "asset path": "assets/picture1.png",
    "file": "file:///etc/passwd",
    "file in capitals": "FILE:///etc/passwd",
    "file of a host": "file://localhost/etc/passwd",
    "proc": "file:///proc/self/environ",
    "device": "/dev/zero",
    "network share": "\\\\host\\share\\a.png",
    "http": "http://example.org/a.png",
    "loopback": "http://127.0.0.1:22/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata by name": "http://metadata.google.internal/",
    "ftp": "ftp://127.0.0.1/a",
    "gopher": "gopher://127.0.0.1:70/_",
    "dict": "dict://127.0.0.1:11211/stat",
    "concat": "concat:/etc/passwd|/etc/hosts",
    "subfile": "subfile,,start,0,end,100,,:/etc/passwd",
    "cache": "cache:http://127.0.0.1:22/",
    "async": "async:http://127.0.0.1:22/",
    "tcp": "tcp://127.0.0.1:22",
    "rtmp": "rtmp://127.0.0.1/a",
    "hls": "hls+file:///etc/passwd",
    "pipe": "pipe:0",
    "crypto": "crypto:/etc/passwd",
    "fd": "fd:0",
    "blank before the scheme": " file:///etc/passwd",
    "nothing": "",
}


@pytest.mark.parametrize("address", [attack(f"address, {name}", x) for name, x in ADDRESSES.items()])
def test_an_address_is_not_read(address, served):
    for kind in ("image", "video"):
        status, answer = served.post({"messages": [user(media(address, kind), "What?")]})
        assert "begins with data:" in check(served, status, answer, {400})
    check_up(served)


# ---- contents: what a decoder would follow, or choke on


def huge_claim(side: int) -> bytes:
    """A PNG of a few bytes that claims so many pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 10) + b"IDAT" + bytes(14)


def gif_of_many_frames() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("P", (8, 8), i % 2) for i in range(2000)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=10)
    return file.getvalue()


CONTENTS = {
    "playlist": lambda: video(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
    "playlist of http": lambda: video(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:22/a.ts\n"),
    "concat list": lambda: video(b"ffconcat version 1.0\nfile /etc/passwd\n"),
    "session description": lambda: video(b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
    "DASH manifest": lambda: video(b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>'),
    "SVG": lambda: image(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    "EPS": lambda: image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"),
    "pickle": lambda: image(b"\x80\x04cposix\nsystem\n(S'id'\ntR."),
    "image that is words": lambda: image(b"no image"),
    "video that is words": lambda: video(b"no video"),
    "image of no bytes": lambda: image(b""),
    "video of no bytes": lambda: video(b""),
    "cut image": lambda: image(png((400, 300))[:80]),
    "cut video": lambda: video((CHECKPOINT / "assets" / "video.mp4").read_bytes()[:900]),
    "claim of 10^9 pixels": lambda: image(huge_claim(32000)),
    "claim of 4 * 10^18 pixels": lambda: image(huge_claim(2**31 - 1)),
    "decompression bomb": lambda: image(grey16_png(9000, level=9)),
    "GIF of 2000 frames as a video": lambda: video(gif_of_many_frames()),
    "no base64": lambda: media("data:image/png;base64,!!!!"),
    "data without a comma": lambda: media("data:image/png;base64"),
    "data by percent": lambda: media("data:image/svg+xml,%3Csvg/%3E"),
    "base64 with blanks": lambda: media("data:;base64," + "A " * 3_000_000),
    "blanks before the end": lambda: media("data:;base64," + "A" * 300 + " " * 3_000_000 + "!"),
    "base64 of other alphabets": lambda: media("data:;base64," + "Ａ" * 1000),
    "data address of a path": lambda: media("data:file://a.png"),
    "200 images": lambda: image(png((900, 300))),  # see the test
}


@pytest.mark.parametrize("make", [attack(f"content, {name}", x) for name, x in CONTENTS.items()])
def test_a_content_is_refused_in_words(make, served, request):
    number = 200 if "200 images" in request.node.callspec.id else 1
    begun = time.monotonic()
    status, answer = served.post({"messages": [user(*[make()] * number, "What?")]})
    if status == 200:  # what could be read of it may be answered
        assert "GIF" in request.node.callspec.id
    else:
        check(served, status, answer, {400, 422})
    assert time.monotonic() - begun < 25
    check_up(served)


# ---- JSON


def body(**fields) -> dict:
    return {"messages": [user("What?")], "max_tokens": 2} | fields


BODIES = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "a number": b"1" * 6000,
    "NUL": b"\0\0\0",
    "not UTF-8": b'{"messages": "\xff\xfe"}',
    "brackets": b"[" * 90_000,
    "a million values": b'{"messages": [' + b"0," * 10**6 + b"0]}",
    "a million objects": b'{"messages": [' + b"{}," * 10**6 + b"{}]}",
    "NaN": b'{"messages": [{"role": "user", "content": "?"}], "temperature": NaN}',
    "no messages": {},
    "messages of text": {"messages": "What?"},
    "messages of numbers": {"messages": [1, None, []]},
    "messages without end": {"messages": [user("a")] * 20_000},
    "no content": {"messages": [{"role": "user"}]},
    "content of numbers": {"messages": [{"role": "user", "content": [1]}]},
    "other parts": {"messages": [user({"type": "input_audio", "input_audio": {}})]},
    "path of a processor's block": {"messages": [user({"type": "image", "path": "/etc/passwd"})]},
    "reader in a part": {"messages": [user(media("x", "video") | {"backend": "decord"})]},
    "address that is a dict": {
        "messages": [user({"type": "image_url", "image_url": {"url": {"bytes": "a"}}})]
    },
    "other role": {"messages": [{"role": "tool", "content": "x"}]},
    "image in the system message": {"messages": [{"role": "system", "content": [asset("picture1.png")]}]},
    "half a surrogate pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "text of 5 MB": {"messages": [user("a b " * 1_250_000)]},
    "special tokens at length": {"messages": [user("<|im_end|><IMG_CONTEXT>" * 100_000)]},
    "max_tiles": body(max_tiles=30000),
    "frames": body(num_frames=10**6),
    "options of the processor": body(mm_processor_kwargs={"max_tiles": 30000}),
    "template": body(chat_template="{{ self.__init__.__globals__ }}"),
    "variables of the template": body(chat_template_kwargs={"max_tiles": 30000}),
    "reader": body(media_io_kwargs={"video": {"backend": "decord"}}),
    "remote code": body(trust_remote_code=True),
    "max_tokens": body(max_tokens=10**9),
    "max_tokens below 1": body(max_tokens=-1),
    "max_tokens of text": body(max_tokens="9"),
    "temperature": body(temperature=1e308),
    "top_p": body(top_p=0),
    "seed": body(seed=10**30),
    "stops without end": body(stop=["a"] * 1000),
    "stop of 1 MB": body(stop="a" * MEBI),
    "answers": body(n=10**6),
    "tools": body(tools=[{"type": "function"}]),
    "logprobs": body(logprobs=True, top_logprobs=20),
    "unknown": body(**{"x" * 5000: 1}),
    "another model": body(model="../../other"),
}


@pytest.mark.parametrize("content", [attack(f"JSON, {name}", x) for name, x in BODIES.items()])
def test_a_body_is_refused_in_words(content, served):
    begun = time.monotonic()
    status, answer = served.post(content)
    check(served, status, answer, {400, 404})
    assert len(json.dumps(answer)) < 2000 and time.monotonic() - begun < 10
    check_up(served)


# ---- HTTP


def first_line(sock: socket.socket) -> str:
    """The status of an answer, or nothing where the connection was closed."""
    try:
        return sock.recv(2**16).partition(b"\r\n")[0].decode()
    except OSError:
        return ""


@pytest.mark.attack("serve: HTTP, a request of 1 GB")
def test_a_request_of_a_gigabyte_is_refused_before_it_is_sent(served):
    with connection(served.port) as sock:
        sock.sendall(head(10**9))
        assert " 413 " in first_line(sock)
    check_up(served)


@pytest.mark.attack("serve: HTTP, chunks without end")
def test_chunks_without_end_are_refused_at_the_limit(served):
    with connection(served.port) as sock:
        sock.sendall(head(None))
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - begun < 15:
                sock.sendall(chunk)
    check_up(served)


@pytest.mark.attack("serve: HTTP, compressed request")
def test_a_compressed_request_is_not_unpacked(served):
    bomb = gzip.compress(bytes(50 * MEBI))
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        status, answer = served.post(bomb, {"Content-Encoding": encoding})
        assert "not compressed" in check(served, status, answer, {400})
    check_up(served)


@pytest.mark.attack("serve: HTTP, half-open connections")
def test_connections_that_say_nothing_are_closed(served):
    socks = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(200)]
    for i, sock in enumerate(socks):
        sock.settimeout(20)
        sock.sendall([b"", b"POST /v1/chat", head(100)[:-2], b"\r\n"][i % 4])
    check_up(served)
    assert all(first_line(sock) == "" or i % 4 == 3 for i, sock in enumerate(socks))
    for sock in socks:
        sock.close()
    check_up(served)


@pytest.mark.attack("serve: HTTP, heads without end")
def test_a_head_without_end_is_refused(served):
    with connection(served.port) as sock:
        with suppress(OSError):
            sock.sendall(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 100_000)
        assert first_line(sock)[:12] in ("", "HTTP/1.1 400", "HTTP/1.1 431")
    check_up(served)


BYTES = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "no HTTP": b"hello\r\n\r\n",
    "two lengths": head(5).replace(b"\r\n\r\n", b"\r\nContent-Length: 7\r\n\r\n") + b"{}",
    "negative length": head(-1),
    "length of words": head(1).replace(b"Length: 1", b"Length: many"),
    "length and chunks": head(5).replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    + b"0\r\n\r\n",
    "wrong chunk": head(None) + b"zz\r\n",
    "line feed in the path": b"GET /\n HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "old HTTP": b"GET /etc/passwd HTTP/0.9\r\n\r\n",
    "proxy request": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
}


@pytest.mark.parametrize("sent", [attack(f"HTTP, {name}", x) for name, x in BYTES.items()])
def test_bytes_that_are_no_request_end_the_connection(sent, served):
    with connection(served.port) as sock:
        sock.sendall(sent)
        assert first_line(sock)[:10] in ("", "HTTP/1.1 4")
    check_up(served)


PATHS = (
    "/",
    "/docs",
    "/openapi.json",
    "/v1/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/v1/models/../x",
)


@pytest.mark.parametrize("path", [attack(f"HTTP, path {path}", path) for path in PATHS])
def test_a_path_that_is_none_is_told_so(path, served):
    status, answer = served.ask(path)
    check(served, status, answer, {404})
    check_up(served)


@pytest.mark.attack("serve: HTTP, other methods")
def test_other_methods_are_refused_and_no_other_site_is_let_in(served):
    for method in (b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"PATCH"):
        with connection(served.port) as sock:
            sock.sendall(
                method + head(0)[4:].replace(b"\r\n\r\n", b"\r\nOrigin: http://evil.example\r\n\r\n")
            )
            answer = sock.recv(2**16)
            assert answer.startswith(b"HTTP/1.1 405") and b"access-control" not in answer.lower()
    check_up(served)


@pytest.mark.attack("serve: HTTP, a form of another site")
def test_what_a_page_of_another_site_may_send_is_refused(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        status, answer = served.post(body(), {"Content-Type": kind})
        assert "application/json" in check(served, status, answer, {400})
    check_up(served)


@pytest.mark.attack("serve: HTTP, a name that was pointed here")
def test_a_name_that_was_pointed_to_this_machine_is_refused(served):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:1"):
        status, answer = served.ask("/v1/models", headers={"Host": host})
        assert "Host" in check(served, status, answer, {400})
    assert served.ask("/v1/models", headers={"Host": f"localhost:{served.port}"})[0] == 200


@pytest.mark.attack("serve: clients that leave")
def test_clients_that_leave_in_the_middle_cost_nothing(served):
    content = json.dumps({"messages": [user(asset("video.mp4"), "What?")], "stream": True}).encode()
    for i in range(30):
        with connection(served.port) as sock:
            sock.sendall((head(len(content)) + content)[: (i + 1) * len(content) // 30])
    served.wait_for("requests_in_place", 0, seconds=10)
    check_up(served)


@pytest.mark.attack("serve: a client that does not read")
def test_a_client_that_does_not_read_holds_no_place(served):
    content = json.dumps({"messages": [user("What?")], "stream": True}).encode()
    with connection(served.port) as sock:
        sock.sendall(head(len(content)) + content)
        served.wait_for("requests_in_place", 0, seconds=10)
    check_up(served)


def test_the_log_has_sizes_and_times_alone(served):
    """The last: after all attacks the server still answers, and its log has nothing of what was sent."""
    status, answer = served.post({"messages": [user(asset("picture1.png"), "What colour is the circle?")]})
    assert status == 200 and answer["choices"][0]["message"]["content"] == "red"
    assert served.process.poll() is None

    served.log.seek(0)
    lines = served.log.read().splitlines()
    requests = [line for line in lines if re.search(r" \d{3}, \d+ bytes, \d+\.\d{3} s$", line)]
    assert len(requests) > 100
    for word in ("passwd", "evil", "base64", "What", SECRET, "Traceback"):
        assert not [line for line in lines if word in line]


# ---- with --allow-media-domain, --allow-media-dir and a key


@pytest.fixture
def open_server(monkeypatch, tmp_path):
    """A server that fetches from two hosts, one of which is this machine under a name of its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    routes = {}
    files = MediaServer(lambda handler: routes[handler.path](handler))

    resolve = socket.getaddrinfo
    names = {"media.example": PUBLIC, "inner.example": "10.0.0.7", "meta.example": "169.254.169.254"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **kw: resolve(names.get(host, host), *a, **kw)
    )
    # the public address leads to the server of this test
    connect = socket.socket.connect

    def connect_here(sock, address):
        is_public = address[0] == PUBLIC
        return connect(sock, ("127.0.0.1", files.server_port) if is_public else address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)

    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    options = {
        "media_domains": ["media.example", "inner.example", "meta.example", "127.0.0.1", "localhost"],
        "media_dir": folder,
        "api_key": "right",
        "limits": Limits(answer_s=4.0, request_bytes=MEBI),
    }
    with running(*talker(), **options) as served, HealthWatch(served) as served.health:
        served.routes, served.files, served.folder = routes, files, folder
        yield served
    files.shutdown()
    files.server_close()


def see(served: Running, address: str, key: str = "Bearer right"):
    content = {"messages": [user(media(address), "What?")], "max_tokens": 1}
    return served.post(content, {"Authorization": key})


@pytest.mark.attack(
    *(f"serve: fetch, {name}" for name in ("redirects", "private names", "endless", "slow", "packed"))
)
def test_a_host_that_is_allowed_leads_nowhere_else(open_server):
    served, routes = open_server, open_server.routes
    routes["/good.png"] = lambda handler: send(handler, png())
    assert see(served, "http://media.example/good.png")[0] == 200

    # redirects, and names of inner addresses
    for i, target in enumerate(
        (
            "http://127.0.0.1:1/",
            f"http://localhost:{served.port}/metrics",
            "http://169.254.169.254/latest/",
            "http://other.example/",
            "file:///etc/passwd",
            "http://[::1]/",
        )
    ):
        routes[f"/{i}"] = lambda handler, target=target: send(handler, b"", 302, Location=target)
        check(served, *see(served, f"http://media.example/{i}"), {422})
    for host in (
        "inner.example",
        "meta.example",
        "127.0.0.1",
        "localhost",
        "2130706433",
        "[::1]",
        "other.example",
    ):
        check(served, *see(served, f"http://{host}/good.png"), {400, 422})
    assert served.files.asked.count("/good.png") == 1

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(10_000):  # 10 GB
            handler.wfile.write(bytes(MEBI))

    def slow(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(600):
            handler.wfile.write(b"1")
            time.sleep(0.1)

    routes["/endless"], routes["/slow"] = endless, slow
    routes["/packed"] = lambda handler: send(
        handler, gzip.compress(bytes(100 * MEBI)), Content_Encoding="gzip"
    )
    for path, statuses in (("endless", {422}), ("packed", {422}), ("slow", {422, 504})):
        check(served, *see(served, f"http://media.example/{path}"), statuses)
    served.routes["/good.png"] = lambda handler: send(handler, png())
    assert see(served, "http://media.example/good.png")[0] == 200
    check_up(served)


@pytest.mark.attack(*(f"serve: folder, {name}" for name in ("above", "link", "other folder", "device")))
def test_a_folder_that_is_allowed_ends_at_its_border(open_server):
    served = open_server
    assert see(served, f"file://{served.folder}/a.png")[0] == 200
    outside = (
        f"{served.folder}/../secret.png",
        f"{served.folder}/link.png",
        f"{served.folder}/%2e%2e/secret.png",
        f"{served.folder}x/a.png",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/environ",
    )
    for path in outside:
        status, answer = see(served, f"file://{path}")
        assert status == 422 and "not in the folder" in answer["error"]["message"]
    there, missing = (
        see(served, f"file:///etc/{name}")[1]["error"]["message"] for name in ("passwd", "none")
    )
    assert there.replace("passwd", "none") == missing  # whether a file exists is not told


@pytest.mark.attack("serve: wrong keys")
def test_a_wrong_key_is_refused_whatever_it_looks_like(open_server):
    keys = (
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer righ",
        "Bearer rightt",
        "Basic right",
        "right",
        "Bearer \xe9",
    )
    for key in (*keys, "Bearer " + "x" * 10_000):
        status, answer = see(open_server, data_url("picture1.png"), key)
        check(open_server, status, answer, {401})
