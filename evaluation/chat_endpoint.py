"""A chat model behind an OpenAI-compatible URL, and a file of its replies.

`ChatEndpoint` sends a request, and tries again where an error may be temporary. `ReplyCache` keeps replies,
so that no question is asked twice. What is asked, and how a reply is read, is left to `judge.py` and to
`training/data_construction/`.

The key comes from an environment variable. It is sent to that URL alone, and no message holds it.
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

T = TypeVar("T")

PATH = "/chat/completions"
KEY_VARIABLE = "OPENAI_API_KEY"
TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # status codes that may be temporary
LONGEST_WAIT_S = 60.0
LARGEST_RESPONSE = 10_000_000  # bytes
MOST_ERRORS = 20  # in a row, after all tries of each: then the server or the key must be at fault


class EndpointError(RuntimeError):
    """No reply: the server refused, could not be reached, or answered with something else.

    `status`: the HTTP status, None where there was none. `body`: the first bytes of the server's answer.
    """

    def __init__(self, message: str, status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class TemporaryError(EndpointError):
    """An error that may be gone at the next try; `wait_s`: as the server asks."""

    def __init__(
        self, message: str, wait_s: float | None = None, status: int | None = None, body: str = ""
    ) -> None:
        super().__init__(message, status, body)
        self.wait_s = wait_s


class ChatEndpoint:
    """Where chat requests are sent.

    Args:
        url: with or without `/chat/completions` at its end, such as "http://localhost:8000/v1".
        key_variable: environment variable that holds the key; none is sent where it is not set.
        timeout_s: of one try.
        attempts: tries of one request.
        wait_s: before the second try, doubled for each further one, at most a minute; a server's
            `Retry-After` takes precedence.
        before_each: called before each try, to keep to a rate.

    Attributes:
        failed_tries: how often a try failed for a temporary reason, by HTTP status or "no answer".

    Raises:
        ValueError: where the URL is not http or https, or holds a name and password.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str = KEY_VARIABLE,
        timeout_s: float = 60.0,
        attempts: int = 5,
        wait_s: float = 1.0,
        before_each: Callable[[], None] | None = None,
    ) -> None:
        self.url = endpoint(url)
        self.timeout_s = timeout_s
        self.attempts = max(1, attempts)
        self.wait_s = wait_s
        self.failed_tries: Counter[str] = Counter()

        self._before_each = before_each
        self._key = os.environ.get(key_variable, "")
        self._opener = build_opener(_NoRedirect)  # a redirect would take the key elsewhere

    def ask(self, body: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """What `read` makes of the response to a request.

        Args:
            read: raises TemporaryError for a response that it cannot use.

        Raises:
            EndpointError: where there is none after all tries, or at once where the server refuses it.
        """
        content = json.dumps(body).encode()
        for attempt in range(self.attempts):
            try:
                if self._before_each is not None:
                    self._before_each()
                return read(self._post(content))
            except TemporaryError as error:
                self.failed_tries[str(error.status or "no answer")] += 1
                if attempt == self.attempts - 1:
                    message = f"{error} ({self.attempts} tries)"
                    raise EndpointError(message, error.status, error.body) from error
                wait_s = self.wait_s * 2**attempt if error.wait_s is None else error.wait_s
                time.sleep(min(wait_s, LONGEST_WAIT_S))
        raise AssertionError("the last try returns or raises")

    def _post(self, content: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(self.url, content, headers, method="POST")

        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                answer = response.read(LARGEST_RESPONSE + 1)
        except HTTPError as error:
            raise self._refusal(error) from error
        except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
            raise TemporaryError(f"{self.url} cannot be reached: {error}") from error

        try:
            values = json.loads(answer) if len(answer) <= LARGEST_RESPONSE else None
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"{self.url} answered with no JSON: {answer[:200]!r}") from error
        if not isinstance(values, dict):
            raise TemporaryError(f"{self.url} answered with no JSON object: {answer[:200]!r}")
        return values

    def _refusal(self, error: HTTPError) -> EndpointError:
        with error:
            body = error.read(200).decode("utf-8", "replace")
        if self._key:  # servers quote a wrong key
            body = body.replace(self._key, "…")

        message = f"{self.url} answered {error.code} {error.reason}: {body}"
        if error.code not in TRY_AGAIN:
            return EndpointError(message, error.code, body)

        asked = error.headers.get("Retry-After", "")
        wait_s = float(asked) if asked.isdecimal() else None
        return TemporaryError(message, wait_s, error.code, body)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def endpoint(url: str) -> str:
    """The URL that requests are sent to. Raises ValueError as `ChatEndpoint` does."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"URL {url!r}: expected http://host/v1 or https://host/v1")
    if parts.username or parts.password:
        raise ValueError(f"URL at {parts.hostname}: put the key into an environment variable instead")

    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(PATH) else path + PATH, fragment="").geturl()


class ReplyCache:
    """Replies in a JSON-lines file, one a line; None: in memory alone.

    A reply is on the disk before it can be got. A last line that a killed process left unfinished is cut off,
    unless the file is `read_only`. Lines that are no replies are passed over.
    """

    def __init__(self, path: str | os.PathLike | None = None, *, read_only: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path, read_only)

    def get(self, prompt: str, model: str) -> str | None:
        """The reply of a model to the prompt of this hash."""
        entry = self.entry(prompt, model)
        return None if entry is None else entry["reply"]

    def entry(self, prompt: str, model: str) -> dict[str, Any] | None:
        """The whole line of a reply, with the details that were kept."""
        return self._entries.get((prompt, model))

    def put(
        self, prompt: str, model: str, reply: str, reported_model: str | None = None, **details: Any
    ) -> None:
        """Keep a reply.

        Args:
            reported_model: the name in the response, which can be a dated version.
            details: further values of the line, which JSON has.
        """
        line = {"prompt_hash": prompt, "model": model, "reported_model": reported_model, "reply": reply}
        line |= details
        with self._lock:
            if self.path is not None:
                self._append(self.path, line)
            self._entries[prompt, model] = line

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        content = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)

        with path.open("ab", buffering=0) as file:
            start = file.tell()
            written = file.write(content)
            if written != len(content):  # the disk is full: half a line would spoil the next one
                file.truncate(start)
                raise OSError(f"{path}: {written} of {len(content)} bytes of a reply could be written")
            os.fsync(file.fileno())

    def _read(self, path: Path, read_only: bool) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content) and not read_only:
            os.truncate(path, whole)

        for line in content[:whole].splitlines():
            try:
                entry = json.loads(line)
                entry["reply"] = str(entry["reply"])
                self._entries[entry["prompt_hash"], entry["model"]] = entry
            except (ValueError, TypeError, KeyError):
                continue
