"""Servers of `pvc serve` in a thread or process of their own, and what asks them."""

import base64
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from builders import FITS_TOKENIZER, tiny_model
from openai import OpenAI
from processors import make_processor
from transformers import AutoProcessor

from pvc import CHECKPOINT
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor
from pvc.serving.server import Server, ServerOptions

ASSETS = CHECKPOINT / "assets"
KINDS = {".png": "image", ".mp4": "video"}


# ---- servers


class Running:
    """A server that answers; `url` without `/v1`."""

    def __init__(self, url: str, server: Server | None = None) -> None:
        self.url = url
        self.server = server  # None: in another process
        self.process: subprocess.Popen[bytes] | None = None  # that process
        self.port = int(url.rpartition(":")[2])

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def post(self, body: dict | bytes, headers: dict | None = None, timeout: float = 60) -> tuple[int, dict]:
        """Status and JSON of a request to chat."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | (headers or {})
        return self.ask("/v1/chat/completions", data, headers, timeout)

    def ask(self, path: str, data: bytes | None = None, headers: dict | None = None, timeout: float = 60):
        """Status and JSON, or text, of a request."""
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, _content(answer)
        except urllib.error.HTTPError as error:
            return error.code, _content(error)

    def metric(self, name: str) -> float:
        """A number of /metrics, without labels."""
        _, text = self.ask("/metrics")
        lines = [line.split() for line in text.splitlines()]
        return next((float(line[1]) for line in lines if line[0] == f"pvc_{name}"), 0.0)

    def wait_for(self, name: str, value: float, seconds: float = 5.0) -> float:
        """Seconds until a metric has a value."""
        begun = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - begun < seconds, f"{name} is {self.metric(name)} and not {value}"
            time.sleep(0.02)
        return time.monotonic() - begun


def _content(answer):
    body = answer.read()
    return json.loads(body) if "json" in answer.headers["Content-Type"] else body.decode()


@contextmanager
def running(model, processor, **options) -> Iterator[Running]:
    """A server in a thread, on a port that is free."""
    server = Server(model, processor, ServerOptions(**{"model_name": "PVC", "port": 0} | options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)

    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", server)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def pvc_tiny() -> tuple[PVCForConditionalGeneration, PVCProcessor]:
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32").eval()
    return model, AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)


def talker() -> tuple[PVCForConditionalGeneration, PVCProcessor]:
    """A tiny model at random that answers at length, with long answers of about a hundred tokens a second."""
    llm = FITS_TOKENIZER["llm_config"] | {"max_position_embeddings": 65536}
    return tiny_model(**FITS_TOKENIZER | {"llm_config": llm}), make_processor("InternLM2")


# ---- requests


def data_url(name: str) -> str:
    """A file of assets/ as a data: address."""
    kind = KINDS[name[-4:]]
    return f"data:{kind}/x;base64,{base64.b64encode((ASSETS / name).read_bytes()).decode()}"


def media(url: str, kind: str = "image") -> dict:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def asset(name: str) -> dict:
    return media(data_url(name), KINDS[name[-4:]])


def user(*content) -> dict:
    """A message of media parts and texts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


@contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    """A connection on which nothing is sent yet."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        yield sock


def head(length: int | None, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """The head of a request; `length` None: in chunks."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{size}\r\n{more}\r\n"
    ).encode()


class HealthWatch:
    """Asks /health all the while, and keeps the longest time that it took.

    What the machine itself is late by does not count: a thread that sleeps is not woken in time, and one that
    works waits for a core where other processes have them.
    """

    def __init__(self, running: Running, limit_s: float = 1.0) -> None:
        self.worst_s = 0.0
        self.failed: list[str] = []
        self._running, self._limit_s = running, limit_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "HealthWatch":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        self._thread.join()

    def is_held_up(self) -> bool:
        """Whether an answer failed, or took longer than `limit_s`."""
        return bool(self.failed) or self.worst_s > self._limit_s

    def _watch(self) -> None:
        process = self._running.process
        processes = [os.getpid()] + ([process.pid] if process else [])
        late_s = 0.0
        while True:
            slept = time.monotonic()
            if self._is_over.wait(0.05):
                return
            begun, waited = time.monotonic(), waited_for_core_s(processes)
            late_s = max(late_s, begun - slept - 0.05)
            try:
                status, _ = self._running.ask("/health", timeout=10)
                if status != 200:
                    self.failed.append(str(status))
            except OSError as error:
                self.failed.append(repr(error))
            waited = max(waited_for_core_s(processes) - waited, 0.0)  # it falls where a thread has ended
            self.worst_s = max(self.worst_s, time.monotonic() - begun - waited - late_s)


def waited_for_core_s(processes: Iterable[int]) -> float:
    """Seconds that the threads of these processes have been ready to work and had no core; 0.0: not known."""
    waited_ns = 0
    for process in processes:
        for stat in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with suppress(OSError):  # the thread has ended
                waited_ns += int(stat.read_text().split()[1])
    return waited_ns / 1e9
