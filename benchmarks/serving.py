"""What `pvc serve` does under load: answers per second, time to the first token, memory.

    python -m pvc.benchmarks.serving throughput    batched over one at a time, under 1, 4 and 16 clients
    python -m pvc.benchmarks.serving memory        the server's memory over 1,000 mixed requests after as many

Servers are started by the command, in processes of their own, and asked over HTTP as clients ask. Each prints
a table in Markdown and exits with 1 where the claim does not hold. It needs the extra `[serve]`.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pvc import CHECKPOINT
from pvc.reporting.markdown import markdown_table

WORDS = ("red", "blue", "green", "circle", "square", "left", "right", "above", "small", "large", "one", "two")
PROMPT_WORDS = 60
GROWTH = 1.02  # of the memory, between half of the requests, when the allocator has settled, and the end
GAIN = 1.5  # of batches, under the most clients


class Timing(NamedTuple):
    """One request."""

    first_s: float  # to the first piece of the answer
    whole_s: float
    tokens: int


# ---- servers


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """`pvc serve` on a free port; yields its address and the id of its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pvc.cli", "serve", model, "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health").close()
                break
            if process.poll() is not None:
                raise OSError(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def random_model(preset: str) -> Iterator[str]:
    """A folder with PVC-Tiny's tokenizer and a model of random weights, which answers at length."""
    import torch
    from transformers import AutoTokenizer

    from pvc.benchmarks.models import build
    from pvc.benchmarks.presets import PRESETS, pvc_config
    from pvc.conversion.files import code_files
    from pvc.modeling_pvc import PVCForConditionalGeneration
    from pvc.processing_pvc import PVCImageProcessor, PVCProcessor

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)
    config = pvc_config(PRESETS[preset])
    config.llm_config.vocab_size = len(tokenizer)
    config.image_token_id = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")

    with tempfile.TemporaryDirectory() as folder:
        is_small = preset in ("tiny", "small")
        model = build(
            PVCForConditionalGeneration, config, "cpu", torch.float32 if is_small else torch.bfloat16
        )
        model.save_pretrained(folder)
        PVCProcessor(PVCImageProcessor.from_model_config(config), tokenizer).save_pretrained(folder)

        # what a checkpoint's folder has beside: its code
        for file in code_files(CHECKPOINT):
            shutil.copy(file, folder)
        own = json.loads((CHECKPOINT / "config.json").read_text())
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": own["auto_map"]}))
        yield folder


# ---- requests


def ask(url: str, messages: list[dict], max_tokens: int) -> Timing:
    """Asks for a streamed answer."""
    fields = {"messages": messages, "max_tokens": max_tokens, "stream": True}
    body = json.dumps(fields | {"stream_options": {"include_usage": True}}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})

    begun_s = time.monotonic()
    first_s = 0.0
    tokens = 0
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            first_s = first_s or time.monotonic() - begun_s
            chunk = json.loads(line[len("data: ") :])
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return Timing(first_s, time.monotonic() - begun_s, tokens)


def text(number: int) -> dict:
    """A message of which no two are alike from their first word on."""
    words = [WORDS[(number * (i + 1) + i) % len(WORDS)] for i in range(PROMPT_WORDS)]
    return {"role": "user", "content": f"{number} {' '.join(words)}"}


def with_media(kind: str, name: str, question: str) -> dict:
    """A message about a file of assets/."""
    content = base64.b64encode((CHECKPOINT / "assets" / name).read_bytes()).decode()
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/x;base64,{content}"}}
    return {"role": "user", "content": [part, {"type": "text", "text": question}]}


# ---- throughput


def measure_throughput(preset: str, clients: Sequence[int], requests: int, tokens: int, device: str) -> bool:
    """Prints a table; whether batches pay under the most clients."""
    common = ["--device", device, "--cache-mib", "0"]
    rates: dict[tuple[str, int], float] = {}
    rows = []
    with ExitStack() as stack:
        model = stack.enter_context(random_model(preset))
        urls = {
            "one at a time": stack.enter_context(server(model, *common, "--max-batch", "1"))[0],
            "batched": stack.enter_context(server(model, *common, "--max-batch", "16"))[0],
        }
        for url in urls.values():
            ask(url, [text(0)], 4)

        # side by side in one run: the machine is the same for both
        for number in clients:
            for name, url in urls.items():
                timings, seconds = _under(number, requests, lambda i, url=url: ask(url, [text(i)], tokens))
                rates[name, number] = sum(timing.tokens for timing in timings) / seconds
                rows.append([number, name, *_cells(timings, seconds)])

    header = [
        "clients",
        "server",
        "answers/s",
        "tokens/s",
        "first token, median s",
        "95 %",
        "answer, median s",
    ]
    print(f"{preset}, {device}, {requests} requests a row, {tokens} tokens an answer")
    print(markdown_table(header, rows, align="rlrrrrr"))
    most = max(clients)
    gain = rates["batched", most] / rates["one at a time", most]
    print(f"batched over one at a time, {most} clients: {gain:.2f}")
    return gain >= GAIN


def _under(clients: int, requests: int, act: Callable[[int], Timing]) -> tuple[list[Timing], float]:
    """Timings of requests by so many clients, each with one at a time, and the seconds of all."""
    begun_s = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        timings = list(pool.map(act, range(requests)))
    return timings, time.monotonic() - begun_s


def _cells(timings: Sequence[Timing], seconds: float) -> list[str]:
    firsts = sorted(timing.first_s for timing in timings)
    tokens = sum(timing.tokens for timing in timings)
    return [
        f"{len(timings) / seconds:.2f}",
        f"{tokens / seconds:.0f}",
        f"{statistics.median(firsts):.2f}",
        f"{firsts[int(0.95 * (len(firsts) - 1))]:.2f}",
        f"{statistics.median(timing.whole_s for timing in timings):.2f}",
    ]


# ---- memory


def measure_memory(requests: int, device: str) -> bool:
    """Prints the server's memory after each tenth of the requests; whether it stays."""
    marks = []
    with server(str(CHECKPOINT), "--device", device, "--cache-mib", "32") as (url, pid):
        tenth = max(1, requests // 10)
        for part in range(10):
            begun_s = time.monotonic()
            _under(4, tenth, lambda i, part=part: _mixed(url, part * tenth + i))
            marks.append([(part + 1) * tenth, _resident(pid), _cache(url), time.monotonic() - begun_s])

    rows = [[n, f"{memory:.0f}", f"{cache:.1f}", f"{s:.0f}"] for n, memory, cache, s in marks]
    print("PVC-Tiny, 4 clients: text, dialogues, images, videos, damaged images, clients that leave")
    print(markdown_table(["requests", "resident MB", "of it dialogues, MB", "s"], rows, align="rrrr"))
    growth = marks[-1][1] / marks[4][1]
    print(f"from {marks[4][0]} to {marks[-1][0]} requests: {100 * (growth - 1):+.1f} %")
    return growth <= GROWTH


def _mixed(url: str, number: int) -> Timing:
    """One of the kinds of requests, by its number."""
    kind = number % 20
    if kind < 10:
        return ask(url, [text(number)], 8)
    if kind < 14:
        history = [text(number), {"role": "assistant", "content": "red"}]
        return ask(url, [*history, {"role": "user", "content": "Why?"}], 8)
    if kind < 17:
        return ask(url, [with_media("image", "picture1.png", f"What colour is circle {number}?")], 8)
    if kind == 17:
        return ask(url, [with_media("video", "video.mp4", "Where does it move?")], 8)
    if kind == 18:
        with suppress(OSError):  # 422
            part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
            return ask(url, [{"role": "user", "content": [part]}], 8)
        return Timing(0, 0, 0)

    # a client that sends its request and leaves
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": [text(number)], "max_tokens": 500}).encode()
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.05)
    return Timing(0, 0, 0)


def _resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _cache(url: str) -> float:
    """What the server keeps of dialogues, in MB."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("pvc_cache_bytes ")) / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["throughput", "memory"])
    parser.add_argument("--preset", default="small", help="size of the model: small (for a CPU), 2B, 8B")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, help="default: 64 a row; memory: 2000 in all")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--device", default="cpu")
    given: Any = parser.parse_args(arguments)

    if given.what == "memory":
        holds = measure_memory(given.requests or 2000, given.device)
    else:
        requests = given.requests or 64
        holds = measure_throughput(given.preset, given.clients, requests, given.tokens, given.device)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
