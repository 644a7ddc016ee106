"""The optional judge: a chat model behind an OpenAI-compatible URL, its replies kept in a file.

`judge_protocols.py` has the messages and reads the replies. Nothing is sent anywhere unless a URL is given.
Temperature is 0. A reply is kept with the hash of its prompt and the model's name; errors are never kept.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pvc.evaluation.judge_protocols import Messages

PATH = "/chat/completions"
KEY_VARIABLE = "OPENAI_API_KEY"
TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # status codes that may be temporary
LONGEST_WAIT_S = 60.0
MOST_ERRORS = 20  # in a row, after all tries of each
LARGEST_RESPONSE = 10_000_000  # bytes


class JudgeError(RuntimeError):
    """No reply: the server refused, could not be reached, or answered with something else."""


class TemporaryError(JudgeError):
    """An error that may be gone at the next try."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s  # as the server asks


class Reply(NamedTuple):
    """The text of a reply, or the error where there is none."""

    text: str | None
    error: str | None = None


def prompt_hash(messages: Messages, max_tokens: int) -> str:
    """SHA-256 of all that a reply depends on but the model."""
    asked = {"max_tokens": max_tokens, "messages": messages, "temperature": 0}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """Replies in a JSON-lines file, one a line; None: in memory alone.

    A last line that a killed process left unfinished is cut off. Lines that are no replies are passed over.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._replies: dict[tuple[str, str], str] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def get(self, prompt: str, model: str) -> str | None:
        """The reply of a model to the prompt of this hash."""
        return self._replies.get((prompt, model))

    def put(self, prompt: str, model: str, reply: str, reported_model: str | None = None) -> None:
        """Keep a reply. `reported_model`: the name in the response, which can be a dated version."""
        line = {"prompt_hash": prompt, "model": model, "reported_model": reported_model, "reply": reply}
        with self._lock:
            self._replies[prompt, model] = reply
            if self.path is None:
                return

            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)

        for line in content[:whole].splitlines():
            try:
                entry = json.loads(line)
                self._replies[entry["prompt_hash"], entry["model"]] = str(entry["reply"])
            except (ValueError, TypeError, KeyError):
                continue


class Judge:
    """A chat model behind an OpenAI-compatible URL.

    Args:
        url: with or without `/chat/completions` at its end, such as "http://localhost:8000/v1".
        model: the name that is sent, and under which replies are kept.
        cache: file of kept replies.
        key_variable: environment variable that holds the key; none is sent where it is not set.
        timeout_s: of one try. attempts: tries of one question. wait_s: before the second try, doubled for
            each further one, at most a minute; a server's `Retry-After` takes precedence.

    Raises:
        ValueError: where the URL is not http or https, or holds a name and password.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: str | os.PathLike | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout_s: float = 60.0,
        attempts: int = 5,
        wait_s: float = 1.0,
    ) -> None:
        self.url = endpoint(url)
        self.model = model
        self.cache = ReplyCache(cache)

        self.timeout_s = timeout_s
        self.attempts = max(1, attempts)
        self.wait_s = wait_s
        self._key = os.environ.get(key_variable, "")
        self._opener = build_opener(_NoRedirect)  # a redirect would take the key elsewhere

    def ask(self, messages: Messages, *, max_tokens: int = 128) -> str:
        """The reply, from the cache where it is kept.

        Raises:
            JudgeError: where there is none after all tries, or at once where the server refuses the request.
        """
        prompt = prompt_hash(messages, max_tokens)
        kept = self.cache.get(prompt, self.model)
        if kept is not None:
            return kept

        response = self._try_often(messages, max_tokens)
        reply, reported_model = _read_response(response)
        self.cache.put(prompt, self.model, reply, reported_model)
        return reply

    def ask_all(self, asked: Sequence[Messages], *, max_tokens: int = 128, workers: int = 8) -> list[Reply]:
        """A reply or an error for each, in order; with up to `workers` requests at a time.

        After so many errors in a row that the server or the key must be at fault, it is not asked any more.
        """
        in_a_row: list[str] = []  # errors since the last reply

        def ask(messages: Messages) -> Reply:
            is_kept = self.cache.get(prompt_hash(messages, max_tokens), self.model) is not None
            if len(in_a_row) >= MOST_ERRORS and not is_kept:
                return Reply(None, f"not asked after {MOST_ERRORS} errors in a row, such as: {in_a_row[0]}")
            try:
                reply = Reply(self.ask(messages, max_tokens=max_tokens))
            except JudgeError as error:
                in_a_row.append(str(error))
                return Reply(None, str(error))
            if not is_kept:
                in_a_row.clear()
            return reply

        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            return list(pool.map(ask, asked))

    def _try_often(self, messages: Messages, max_tokens: int) -> dict[str, Any]:
        for attempt in range(self.attempts):
            try:
                response = self._post(messages, max_tokens)
                _read_response(response)  # an empty reply is tried again
                return response
            except TemporaryError as error:
                if attempt == self.attempts - 1:
                    raise JudgeError(f"{error} ({self.attempts} tries)") from error
                wait_s = self.wait_s * 2**attempt if error.wait_s is None else error.wait_s
                time.sleep(min(wait_s, LONGEST_WAIT_S))
        raise AssertionError("the last try returns or raises")

    def _post(self, messages: Messages, max_tokens: int) -> dict[str, Any]:
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(self.url, json.dumps(body).encode(), headers, method="POST")

        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                content = response.read(LARGEST_RESPONSE + 1)
        except HTTPError as error:
            raise _refusal(self.url, error) from error
        except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
            raise TemporaryError(f"{self.url} cannot be reached: {error}") from error

        try:
            values = json.loads(content) if len(content) <= LARGEST_RESPONSE else None
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"{self.url} answered with no JSON: {content[:200]!r}") from error
        if not isinstance(values, dict):
            raise TemporaryError(f"{self.url} answered with no JSON object: {content[:200]!r}")
        return values


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def endpoint(url: str) -> str:
    """The URL that questions are sent to. Raises ValueError as `Judge` does."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"judge URL {url!r}: expected http://host/v1 or https://host/v1")
    if parts.username or parts.password:
        raise ValueError(f"judge URL at {parts.hostname}: put the key into an environment variable instead")

    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(PATH) else path + PATH, fragment="").geturl()


def _refusal(url: str, error: HTTPError) -> JudgeError:
    with error:
        said = error.read(200).decode("utf-8", "replace")
    message = f"{url} answered {error.code} {error.reason}: {said}"
    if error.code not in TRY_AGAIN:
        return JudgeError(message)

    asked = error.headers.get("Retry-After", "")
    return TemporaryError(message, float(asked) if asked.isdecimal() else None)


def _read_response(response: dict[str, Any]) -> tuple[str, str | None]:
    """The text of the first choice, stripped, and the model's name.

    Raises:
        TemporaryError: where there is no text.
    """
    try:
        text = response["choices"][0]["message"]["content"].strip()
    except (LookupError, TypeError, AttributeError) as error:
        raise TemporaryError(f"the judge's response has no text: {str(response)[:200]}") from error
    if not text:
        raise TemporaryError("the judge's reply is empty")

    model = response.get("model")
    return text, model if isinstance(model, str) else None
