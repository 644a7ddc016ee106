"""Attacks by servers: long, slow, packed and redirected answers, and addresses that are not public.

Servers are on this machine alone. The numbers of the attacks are those of docs/security.md.
"""

import gzip
import socket
import time
import zlib

import numpy as np
import pytest
from attacks import REFUSED, ask, within
from media_files import png
from media_server import send

from pvc import media_fetch
from pvc.media_policy import Budget, MediaPolicy, MediaRefused, is_public

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI

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
