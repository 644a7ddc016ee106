"""Fetches images and videos from http(s) addresses, within a `MediaPolicy`.

Every host, the addresses it resolves to, and every redirect are checked; size and time are limited. Written
with the standard library alone, because the connection must go to the very address that was checked.

    fetch -> _fetch_hops -> _connected (socket, TLS, proxy) -> _ask -> _body
"""

import base64
import http.client
import importlib
import io
import os
import re
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

try:
    from .media_policy import Budget, MediaPolicy, MediaRefused, ascii_host, check_size, shown
except ImportError:  # in a clone, where this folder is not a package
    from media_policy import Budget, MediaPolicy, MediaRefused, ascii_host, check_size, shown

CHUNK = 2**16  # bytes
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
PORTS = {"http": 80, "https": 443}
ANSWER_TIMEOUT_S = 30  # until the first byte of an answer, and between two
POLL_S = 0.5  # between two looks at whether reading is cancelled
SLOWEST_BYTES_PER_S, SLOW_FOR_S = 1000, 10  # an answer that is slower for so long is given up
ENCODINGS = ("identity", "gzip", "x-gzip", "deflate")
GZIP_OR_ZLIB = 47  # zlib's window bits that detect the format by its header


class NamedBytes(io.BytesIO):
    """A file in memory with a name for errors."""

    def __init__(self, content: bytes = b"", name: str = "bytes") -> None:
        super().__init__(content)
        self.name = name


class _Target(NamedTuple):
    """The parts of an http(s) address."""

    scheme: str
    host: str  # in ASCII
    port: int
    path: str  # with its query
    user: str | None  # "name:password"

    @property
    def host_and_port(self) -> str:
        """The host, with its port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def fetch(address: str, budget: Budget) -> NamedBytes:
    """The content of an http(s) address, in memory, at most as large and for as long as the policy allows.

    Neither cookies nor the Hub's token are sent. Redirects are followed, each checked as the first address.

    Raises:
        OSError: it is not an address, or cannot be fetched; names the address.
        MediaRefused: the policy does not allow it.
    """
    if _is_offline():
        raise OSError(f"Cannot reach {shown_address(address)}: offline mode is enabled (HF_HUB_OFFLINE)")

    try:
        return _fetch_hops(address, budget)
    except MediaRefused:
        raise
    except (OSError, ValueError, http.client.HTTPException, zlib.error) as error:
        reason = str(error) or type(error).__name__
        raise OSError(f"{shown_address(address)} cannot be fetched: {shown_address(reason)}") from error


def shown_address(text: str, most: int = 200) -> str:
    """An address for an error, printable and cut to `most` characters."""
    text = "".join(x if x.isprintable() else repr(x)[1:-1] for x in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}..."


def _is_offline() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _fetch_hops(address: str, budget: Budget) -> NamedBytes:
    hop = address
    for _ in range(MAX_REDIRECTS + 1):
        target = _target(hop)
        # every hop is checked: a redirect may lead to another host
        if not budget.policy.allows_host(target.host):
            raise MediaRefused(f"{shown_address(hop)}: the media policy does not allow this host")

        with _connected(target, budget) as (connection, path):
            response = _ask(connection, target, path)
            location = response.getheader("Location")
            if response.status in REDIRECTS and location:
                hop = urljoin(hop, location)
                continue

            if response.status != 200:
                raise OSError(f"{response.status} {response.reason}")
            return _body(response, budget.policy, address)
    raise OSError(f"more than {MAX_REDIRECTS} redirects")


def _target(address: str) -> _Target:
    """The parts of an address, checked; raises a ValueError where it is not an address."""
    if re.search(r"[\x00-\x1f\x7f\\]", address):
        raise ValueError("the address has characters that none has")

    parts = urlsplit(address)
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise ValueError(f"the scheme {parts.scheme!r} is neither http nor https")

    host = ascii_host(parts.hostname or "")
    if ":" not in host and not re.fullmatch(r"[a-z0-9._-]+", host):
        raise ValueError(f"{host!r} is not the name of a host")

    port = parts.port or PORTS[scheme]
    # "%" is safe: what is quoted already stays as it is
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]") if parts.query else ""

    user = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return _Target(scheme, host, port, path + query, user)


class _Connection(http.client.HTTPConnection):
    """A connection that may go through a proxy which asks for a password."""

    proxy_authorization: str | None = None


class _TimedReader(io.RawIOBase):
    """Reads from a socket as long as the budget lasts, and the other side is not too slow."""

    def __init__(self, sock: socket.socket, budget: Budget) -> None:
        self._sock = sock
        self._budget = budget
        self._first_s: float | None = None  # when the first bytes came
        self._received = 0  # bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = 0 if self._first_s is None else time.monotonic() - self._first_s
        if seconds > SLOW_FOR_S and self._received < SLOWEST_BYTES_PER_S * seconds:
            raise TimeoutError(f"the answer comes at less than {SLOWEST_BYTES_PER_S} bytes a second")

        number = self._receive_into(buffer)
        if self._first_s is None:
            self._first_s = time.monotonic()
        self._received += number
        return number

    def _receive_into(self, buffer: Any) -> int:
        """Waits for bytes, no longer than the whole budget has left."""
        ends_s = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            self._sock.settimeout(min(POLL_S, self._budget.remaining_s()))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                self._budget.remaining_s()  # raises its own error where the budget has run out
                if time.monotonic() > ends_s:
                    raise


class _TimedSocket:
    """The part of a socket that http.client needs, within the budget."""

    def __init__(self, sock: socket.socket, budget: Budget) -> None:
        self._sock = sock
        self._budget = budget

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(min(ANSWER_TIMEOUT_S, self._budget.remaining_s()))
        self._sock.sendall(data)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._budget))

    def close(self) -> None:
        """Does nothing: `_connected` closes the socket."""


@contextmanager
def _connected(target: _Target, budget: Budget) -> Iterator[tuple[_Connection, str]]:
    """Yields a connection, and what to request: the path, or from a proxy the whole address."""
    proxy = None if budget.policy.public_only else _proxy(target)
    sock = _connect(proxy or target, budget)
    path = target.path
    try:
        if proxy and target.scheme == "https":
            _tunnel(sock, proxy, target, budget)
        elif proxy:
            path = f"http://{target.host_and_port}{target.path}"

        # TLS is with the host itself, through a proxy too
        if target.scheme == "https":
            sock.settimeout(min(ANSWER_TIMEOUT_S, budget.remaining_s()))
            sock = _tls().wrap_socket(sock, server_hostname=target.host)

        connection = _Connection(target.host, target.port)
        connection.sock = _TimedSocket(sock, budget)
        if proxy and target.scheme == "http" and proxy.user:
            connection.proxy_authorization = _basic(proxy.user)
        yield connection, path
    finally:
        sock.close()


def _connect(target: _Target, budget: Budget) -> socket.socket:
    """Connects to the first address of the host that answers, among those that the policy allows."""
    infos = _resolve(target, budget)
    allowed = [info for info in infos if budget.policy.allows_address(info[4][0])]
    if not allowed:
        raise MediaRefused(f"{target.host}: not a public address, and the media policy allows no others")

    failure: OSError | None = None
    for family, kind, protocol, _, address in allowed:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(min(ANSWER_TIMEOUT_S, budget.remaining_s()))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            if isinstance(error, MediaRefused):
                raise
            failure = error

    assert failure is not None  # at least one address was tried
    raise failure


def _resolve(target: _Target, budget: Budget) -> list[tuple]:
    """The addresses of a host, asked for in a thread: a silent name server must not block the prompt."""
    found: list = []  # the addresses, or the error

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(min(ANSWER_TIMEOUT_S, budget.remaining_s()))

    if not found:
        raise TimeoutError(f"no address of {target.host} within {ANSWER_TIMEOUT_S} seconds")
    if isinstance(found[0], Exception):
        raise OSError(f"{target.host}: {found[0]}")
    return found[0]


def _proxy(target: _Target) -> _Target | None:
    """The proxy that the environment names."""
    proxies = getproxies()
    address = proxies.get(target.scheme) or proxies.get("all")
    if not address or proxy_bypass(target.host):
        return None
    return _target(address if "://" in address else f"http://{address}")


def _tunnel(sock: socket.socket, proxy: _Target, target: _Target, budget: Budget) -> None:
    """Asks a proxy to pass the connection through to the target."""
    connection = http.client.HTTPConnection(proxy.host, proxy.port)
    connection.sock = _TimedSocket(sock, budget)

    host = f"{target.host}:{target.port}"
    headers = {"Host": host}
    if proxy.user:
        headers["Proxy-Authorization"] = _basic(proxy.user)
    connection.request("CONNECT", host, headers=headers)
    response = connection.getresponse()
    if response.status != 200:
        raise OSError(f"the proxy answers {response.status} {response.reason}")


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    with suppress(ImportError):  # without it, the system's certificates alone
        context.load_verify_locations(importlib.import_module("certifi").where())
    return context


def _basic(user: str) -> str:
    return "Basic " + base64.b64encode(user.encode()).decode()


def _ask(connection: _Connection, target: _Target, path: str) -> http.client.HTTPResponse:
    """Sends the request; returns the answer, whose body is not read yet."""
    # one request a connection; a compressed answer could unpack to far more than is sent
    headers = {
        "Host": target.host_and_port,
        "User-Agent": "pvc",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    if target.user:
        headers["Authorization"] = _basic(target.user)
    if connection.proxy_authorization:
        headers["Proxy-Authorization"] = connection.proxy_authorization

    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def _body(response: http.client.HTTPResponse, policy: MediaPolicy, address: str) -> NamedBytes:
    """The content of an answer, decompressed; raises an OSError for one that ends too early."""
    name = shown_address(address)
    length = response.length  # as it is sent; None: not told
    encoding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if encoding not in ENCODINGS:
        raise OSError(f"it is sent as {shown(encoding)}, though identity was asked for")
    check_size(length or 0, policy.max_bytes, name)

    file = NamedBytes(name=address)
    decoder = None if encoding == "identity" else zlib.decompressobj(GZIP_OR_ZLIB)
    received = 0
    while chunk := response.read(CHUNK):
        received += len(chunk)
        check_size(received, policy.max_bytes, name)

        for part in [chunk] if decoder is None else _decompressed(decoder, chunk):
            file.write(part)
            check_size(file.tell(), policy.max_bytes, name)
        if decoder is not None and decoder.eof:
            break  # bytes that may follow are not part of the content

    is_short = decoder is None and length is not None and received < length
    is_cut = decoder is not None and not decoder.eof
    if is_short or is_cut:
        raise OSError(f"it ends after {received} of {length or 'more'} bytes")
    file.seek(0)
    return file


def _decompressed(decoder: Any, chunk: bytes) -> Iterator[bytes]:
    """The content of a chunk in parts of at most `CHUNK` bytes, so that its size can be checked."""
    while chunk:
        yield decoder.decompress(chunk, CHUNK)
        chunk = decoder.unconsumed_tail
