"""Requests to an endpoint: several at a time, at most so many a minute, every reply kept.

Sending and trying again is `evaluation/chat_endpoint.py`'s. A reply is on the disk before the next request of
its thread; what a kill loses are the requests that no reply has come for.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from pvc.evaluation.chat_endpoint import (
    MOST_ERRORS,
    ChatEndpoint,
    EndpointError,
    ReplyCache,
    TemporaryError,
)
from pvc.training.data_construction.requests import Request

FILTERED = "content_filter"  # finish reason of a reply that the provider withheld
CUT_OFF = "length"  # and of one that was longer than allowed
BLOCKED = re.compile(r"content[_ ]?(filter|policy)|safety system|responsible ?ai", re.IGNORECASE)


class Completion(NamedTuple):
    """What a response holds. `text` may be empty, above all where it is `FILTERED` or `CUT_OFF`."""

    text: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    reported_model: str | None


class Failure(NamedTuple):
    """A request without a reply, after all tries."""

    video: str
    task: str
    error: str


class RateLimit:
    """Spaces requests evenly; `per_minute` None: at once."""

    def __init__(self, per_minute: float | None = None) -> None:
        if per_minute is not None and per_minute <= 0:
            raise ValueError(f"requests a minute: {per_minute}: expected more than 0")
        self._interval_s = 0.0 if per_minute is None else 60 / per_minute
        self._next_s = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when it is the caller's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_s)
            self._next_s = turn + self._interval_s
        time.sleep(turn - now)


class Asker:
    """Asks requests on several threads.

    Attributes:
        failures: requests without a reply.
        gave_up: nothing more was asked after `MOST_ERRORS` errors in a row.
    """

    def __init__(self, endpoint: ChatEndpoint, model: str, cache: ReplyCache, concurrency: int = 8) -> None:
        self.endpoint = endpoint
        self.model = model
        self.cache = cache
        self.concurrency = max(1, concurrency)

        self.failures: list[Failure] = []
        self.gave_up = False
        self._errors_in_a_row = 0
        self._is_stopped = False
        self._bugs: list[BaseException] = []
        self._lock = threading.Lock()

    def ask_all(self, requests: Iterable[Request], progress: Callable[[], None] = lambda: None) -> None:
        """Asks all requests that have no reply yet; `progress` is called after each.

        Ctrl-C returns at once, as a kill does: requests under way are given up.

        Raises:
            OSError: where a reply cannot be kept, or a frame cannot be read.
        """
        waiting = iter(requests)
        self._is_stopped = False
        workers = [
            threading.Thread(target=self._work, args=(waiting, progress), daemon=True)
            for _ in range(self.concurrency)
        ]
        for worker in workers:
            worker.start()

        try:
            for worker in workers:
                worker.join()
        finally:
            self._is_stopped = True
        if self._bugs:
            raise self._bugs[0]

    def _work(self, waiting: Iterator[Request], progress: Callable[[], None]) -> None:
        while True:
            try:
                with self._lock:
                    is_over = self.gave_up or self._is_stopped or self._bugs
                    request = None if is_over else next(waiting, None)
                if request is None:
                    return

                self._ask(request)
                with self._lock:
                    progress()
            except BaseException as error:  # a disk that is full, or a bug: the caller raises it
                self._bugs.append(error)
                return

    def _ask(self, request: Request) -> None:
        key = request.key
        if self.cache.entry(key, self.model) is not None:
            return

        # a request that would be refused again counts as answered
        try:
            completion = self.endpoint.ask(request.body(self.model), read_completion)
        except EndpointError as error:
            if not _is_blocked(error):
                self._fail(request, error)
                return
            completion = Completion("", FILTERED, None, None)

        self.cache.put(
            key,
            self.model,
            completion.text,
            completion.reported_model,
            finish_reason=completion.finish_reason,
            usage=completion.usage,
            video=request.video.name,
            task=request.task.name,
        )
        with self._lock:
            self._errors_in_a_row = 0

    def _fail(self, request: Request, error: EndpointError) -> None:
        with self._lock:
            self.failures.append(Failure(request.video.name, request.task.name, str(error)))
            self._errors_in_a_row += 1
            self.gave_up = self.gave_up or self._errors_in_a_row >= MOST_ERRORS


def _is_blocked(error: EndpointError) -> bool:
    """Whether the provider refuses this content: the same request would be refused again."""
    return error.status in (400, 403) and BLOCKED.search(error.body) is not None


def read_completion(response: dict[str, Any]) -> Completion:
    """The first choice of a response.

    Raises:
        TemporaryError: where it has neither a text nor a reason for having none.
    """
    try:
        choice = response["choices"][0]
        message = choice["message"]
        text, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError) as error:
        raise TemporaryError(f"the response has no text: {str(response)[:200]}") from error

    if not text and isinstance(refusal, str) and refusal:
        text, reason = refusal, FILTERED

    # withheld, or all tokens went into reasoning
    if text is None and reason in (FILTERED, CUT_OFF):
        text = ""
    if not isinstance(text, str):
        raise TemporaryError(f"the response has no text: {str(response)[:200]}")

    usage, model = response.get("usage"), response.get("model")
    return Completion(
        text.strip(),
        reason if isinstance(reason, str) else None,
        usage if isinstance(usage, dict) else None,
        model if isinstance(model, str) else None,
    )
