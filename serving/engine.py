"""The queue, and the thread that answers: one model, several requests at once.

    prepare (threads: media, tokens) -> ready -> batch (the model's thread) -> events -> the event loop

The oldest request that is ready is answered next, together with those that fit: about as many new positions,
within the limits of a batch. A batch runs to its end; requests that arrive meanwhile wait for the next.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from pvc.serving.batch import Abandoned, BatchAnswerer, Row
from pvc.serving.errors import INTERNAL, ApiError
from pvc.serving.limits import Limits
from pvc.serving.metrics import SIZES, Metrics
from pvc.serving.prefixes import PrefixStore
from pvc.serving.prompts import Prompt, PromptReader
from pvc.serving.requests import ChatRequest

logger = logging.getLogger("pvc.serving")

FITS = 2.0  # rows go together where their numbers of new positions differ by no more than this factor
SMALL = 128  # or where both are below so many


class Usage(NamedTuple):
    """Tokens of a request."""

    prompt: int
    cached: int
    answer: int


class Event(NamedTuple):
    """What the model's thread tells of a request: a piece, the end, or an error."""

    piece: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    error: ApiError | None = None

    @property
    def is_last(self) -> bool:
        """Whether none follows."""
        return self.finish_reason is not None or self.error is not None


class Job:
    """A request on its way through the engine. Its methods are for the event loop's thread."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.body_stack = AsyncExitStack()  # holds what the request has in memory until its media are read
        self.row: Row | None = None
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Ends it wherever it is: while media are read, in the queue, or in its batch."""
        self.cancelled.set()

    def tell(self, event: Event) -> None:
        """Hands an event to the event loop; for any thread."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server ends
            self.cancelled.set()


class Engine:
    """Answers jobs in a thread of its own.

    Args:
        model, processor: of one checkpoint; the processor holds the media policy.
        options: of the processor, such as `max_tiles`.
    """

    def __init__(
        self, model: Any, processor: Any, limits: Limits, metrics: Metrics, options: dict[str, Any]
    ) -> None:
        self.limits = limits
        self.store = PrefixStore(limits.cache_bytes)
        self._metrics = metrics
        self._answerer = BatchAnswerer(model, processor.tokenizer, self.store)
        self._options = options
        self._reader = PromptReader(processor, self._answerer.max_positions, options)
        self._readers = ThreadPoolExecutor(limits.readers, thread_name_prefix="pvc-reader")
        self._ready: list[Job] = []
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="pvc-model", daemon=True)

    def start(self) -> None:
        """Starts the model's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the model's thread after its batch."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        self._readers.shutdown(wait=False, cancel_futures=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._is_stopped

    @property
    def num_ready(self) -> int:
        """Requests that wait for the model."""
        return len(self._ready)

    async def prepare(self, job: Job) -> None:
        """Reads the prompt of a job and puts it into the queue.

        Raises:
            ApiError: where messages or media are wrong.
        """
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._readers, self._read, job)
        if prompt is None:
            return

        job.row = self._answerer.row(prompt, job.request.sampling, lambda piece: job.tell(Event(piece)))
        job.row.cancelled = job.cancelled
        with self._changed:
            self._ready.append(job)
            self._changed.notify()

    def _read(self, job: Job) -> Prompt | None:
        """The prompt; None for a job that was cancelled meanwhile."""
        if job.cancelled.is_set():
            return None
        try:
            repeats = job.request.image_repeats
            own = {} if repeats is None else {"image_repeats": repeats}
            return self._reader.read(job.request.messages, job.cancelled.is_set, self._options | own)
        except ApiError:
            if job.cancelled.is_set():
                return None
            raise

    # ---- the model's thread

    def _run(self) -> None:
        while True:
            jobs = self._next()
            if jobs is None:
                return
            if jobs:
                self._metrics.observe("batch_size", len(jobs), SIZES)
                self._answer(jobs)

    def _next(self) -> list[Job] | None:
        """The jobs of the next batch; None where the engine was stopped."""
        with self._changed:
            while not self._ready and not self._is_stopped:
                self._changed.wait()
            if self._is_stopped:
                return None

            self._ready = [job for job in self._ready if not job.cancelled.is_set()]
            rows = [job.row for job in self._ready if job.row is not None]
            for row in rows[: 2 * self.limits.batch]:  # further ones are not for this batch
                self._answerer.look_up(row)

            chosen = choose(rows[: 2 * self.limits.batch], self.limits, self._answerer.span)
            jobs = [job for job in self._ready if job.row in chosen]
            self._ready = [job for job in self._ready if job.row not in chosen]
            return jobs

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answers jobs together; where that fails, those that have no piece yet one by one."""
        rows = [job.row for job in jobs if job.row is not None]
        try:
            self._answerer.answer(rows)
        except Abandoned:
            return
        except Exception as error:  # any: the server goes on with other requests
            log_error(error)
            self.store.clear()  # the memory may have run out
            self._answer_apart(jobs)
            return
        for job in jobs:
            self._finish(job)

    def _answer_apart(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            row = job.row
            assert row is not None  # it is ready
            if len(jobs) > 1 and not row.tokens and not job.cancelled.is_set():
                self._answerer.look_up(row)
                self._answer([job])
            elif row.finish_reason is not None:
                self._finish(job)
            else:
                job.tell(Event(error=ApiError(500, INTERNAL)))

    def _finish(self, job: Job) -> None:
        row = job.row
        assert row is not None  # it was answered
        usage = Usage(row.prompt.length, row.known[1], len(row.tokens))
        self._metrics.add("prompt_tokens_total", usage.prompt)
        self._metrics.add("cached_tokens_total", usage.cached)
        self._metrics.add("completion_tokens_total", usage.answer)
        job.tell(Event(finish_reason=row.finish_reason or "length", usage=usage))


def choose(rows: Sequence[Row], limits: Limits, span: Callable[[Row], range]) -> list[Row]:
    """The first row, and those behind it that fit into a batch with it."""
    chosen: list[Row] = []
    for row in rows:
        together = [*chosen, row]
        columns = max(r.prompt.length for r in together) + max(r.max_tokens for r in together)
        news = [r.num_new for r in together]
        is_alike = max(news) <= max(SMALL, FITS * min(news))
        is_within = len(together) <= limits.batch and columns * len(together) <= limits.batch_tokens
        if not chosen or (is_alike and is_within and span(row) == span(chosen[0])):
            chosen = together
    return chosen


def log_error(error: BaseException) -> None:
    """Logs where an error was raised, and none of its text, which may quote a request."""
    trace = error.__traceback__
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    logger.error("%s at %s", type(error).__name__, "; ".join(lines[-6:]))
