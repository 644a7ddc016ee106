"""vLLM's OpenAI server with the public client: answers of `generate`, streamed or not, several at once."""

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S = 900


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def tiny(reference) -> dict:
    return reference["PVC-Tiny"]


@pytest.fixture(scope="module")
def client(tiny, tmp_path_factory):
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny["path"]]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "pvc"]
    command += ["--trust-remote-code", "--dtype", "float32", "--enforce-eager", "--max-model-len", "2048"]
    command += ["--media-io-kwargs", f'{{"video": {{"num_frames": {tiny["frames"]}}}}}']
    command += ["--limit-mm-per-prompt", '{"image": 4, "video": 2}']
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ, cwd=log.parent)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        finally:
            server.terminate()
            server.wait(timeout=60)


def _wait(server: subprocess.Popen, address: str, log) -> None:
    for _ in range(START_S):
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def answer(client, case: dict, tokens: int, **options):
    return client.chat.completions.create(
        model="pvc", messages=case["messages"], temperature=0, max_tokens=tokens, **options
    )


def test_answers_are_those_of_generate(client, tiny):
    for name, case in tiny["cases"].items():
        done = answer(client, case, tiny["new_tokens"])
        assert done.choices[0].message.content == case["text"], name
        assert done.usage.prompt_tokens == len(case["prompt_ids"]), name
        assert done.usage.completion_tokens == len(case["new_ids"]), name


def test_a_streamed_answer_is_the_same(client, tiny):
    case = tiny["cases"]["an image and a video"]
    chunks = answer(client, case, tiny["new_tokens"], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == case["text"]


def test_several_at_once_get_the_answers_they_get_alone(client, tiny):
    cases = list(tiny["cases"].values()) * 2
    with ThreadPoolExecutor(len(cases)) as clients:
        done = list(clients.map(lambda case: answer(client, case, tiny["new_tokens"]), cases))
    assert [x.choices[0].message.content for x in done] == [case["text"] for case in cases]


def test_a_broken_image_and_a_prompt_that_is_too_long_are_the_clients_errors(client, tiny):
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    for content in ([broken], "word " * 5000):
        with pytest.raises(openai.BadRequestError):
            answer(client, {"messages": [{"role": "user", "content": content}]}, 1)
    assert answer(client, tiny["cases"]["text"], 1).choices


def test_the_block_of_the_documentation_prints_what_it_shows(client, monkeypatch):
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    code = next(x for x in re.findall(r"^```py\n(.*?)^```$", page, flags=re.M | re.S) if "OpenAI(" in x)
    shown = re.search(r"^```output\n(.*?)^```$", page, flags=re.M | re.S)[1]
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code.replace("http://localhost:8000/v1", str(client.base_url)), {})
    assert printed.getvalue() == shown
