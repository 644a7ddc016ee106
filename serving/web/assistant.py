"""Messages -> an answer, piece by piece, with what the model saw.

    for update in assistant.ask(messages, settings): ...      # blocking; or, in an event loop:
    async for update in assistant.stream(messages, settings): ...

A question is answered in a thread of its own, one at a time on the model. Leaving the loop stops it: reading
ends, and the model stops at its next layer or token. Of an earlier turn only what is new is computed.
"""

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pvc.media_policy import Budget
from pvc.preprocess import open_frames
from pvc.serving.batch import Abandoned, BatchAnswerer
from pvc.serving.engine import log_error
from pvc.serving.errors import INTERNAL, ApiError
from pvc.serving.prefixes import PrefixStore
from pvc.serving.prompts import Prompt, PromptReader, with_policy
from pvc.serving.requests import Sampling
from pvc.serving.server import ServerOptions, restricted
from pvc.serving.web.dialogue import files_of, names_alone
from pvc.serving.web.seen import Seen, SeenMedia

CACHE_BYTES = 1024 * 2**20  # keys and values of earlier dialogues
TIMES_KEPT = 64  # videos whose frame times are remembered
UPDATE_S = 0.08  # between updates of a stream: browsers draw each, and fast models have hundreds a second


@dataclass(frozen=True)
class Settings:
    """What a question may change: the processor's options, and how tokens are chosen."""

    num_frames: int
    max_tiles: int
    max_tokens: int
    temperature: float = 0.0

    def processing(self, frame_choice: dict[str, Any]) -> dict[str, Any]:
        """Options of `apply_chat_template`, with the processor's choice of frames; a frame is one tile.

        Where the processor has frames a second, the number of frames is the most of them.
        """
        number = "max_frames" if "max_frames" in frame_choice else "num_frames"
        frames = frame_choice | {number: self.num_frames}
        return {**frames, "images_kwargs": {"max_tiles": self.max_tiles}}


@dataclass(frozen=True)
class Update:
    """The answer so far. `seen` comes once the media are read, and again with the last update."""

    text: str = ""
    seen: Seen | None = None
    error: str | None = None
    is_last: bool = False


class Assistant:
    """A model that answers questions about files of one folder.

    Args:
        model, processor: of one checkpoint.
        uploads: the folder whose files may be shown; no others are read, and nothing is fetched.
        isolate: whether files are decoded in processes of their own, which costs about half a second each.
    """

    def __init__(self, model: Any, processor: Any, uploads: Path, *, isolate: bool = False) -> None:
        max_positions = model.config.llm_config.max_position_embeddings
        options = ServerOptions(model_name="", media_dir=uploads)
        processor = restricted(processor, options, max_positions)
        self.processor = with_policy(processor, replace(processor.media_policy, isolate=isolate))

        self.model = model

        self._reader = PromptReader(self.processor, max_positions, {})
        self._answerer = BatchAnswerer(model, self.processor.tokenizer, PrefixStore(CACHE_BYTES))
        self.lock = threading.Lock()  # who uses the model has it
        self._times: OrderedDict[tuple[str, int], list[float] | None] = OrderedDict()

    @property
    def defaults(self) -> Settings:
        """The checkpoint's own settings."""
        return Settings(self.processor.num_frames, self.processor.image_processor.max_tiles, 1024)

    @property
    def most_frames(self) -> int:
        """Most frames of a video: those of the media policy."""
        return self.processor.media_policy.max_frames

    @property
    def is_busy(self) -> bool:
        """Whether a question is on the model."""
        return self.lock.locked()

    def ask(self, messages: Sequence[dict], settings: Settings) -> Iterator[Update]:
        """Yields the answer as it grows; the last update has all of it, or an error."""
        question = _Question(self, messages, settings)
        try:
            while not (update := question.updates.get()).is_last:
                yield update
            yield update
        finally:
            question.cancelled.set()

    async def stream(self, messages: Sequence[dict], settings: Settings) -> AsyncIterator[Update]:
        """`ask` for an event loop, with fewer updates; cancelling the task stops the model."""
        question = _Question(self, messages, settings)
        try:
            while not (update := await asyncio.to_thread(question.newest)).is_last:
                yield update
            yield update
        finally:
            question.cancelled.set()

    def read(self, messages: Sequence[dict], settings: Settings, cancelled: threading.Event) -> Prompt:
        """The prompt of messages; raises an ApiError where they or their files are wrong."""
        return self._reader.read(
            messages, cancelled.is_set, settings.processing(self.processor.frame_choice({}))
        )

    def seen(self, prompt: Prompt, messages: Sequence[dict], settings: Settings, media_s: float) -> Seen:
        """What a prompt shows of the files of messages."""
        media = []
        images = self.processor.image_processor
        for (kind, path), clip in zip(files_of(messages), prompt.clips):
            times_s = self._frame_times(path, settings) if kind == "video" else None
            mean, std = images.pixel_mean, images.pixel_std
            item = SeenMedia(os.path.basename(path), clip.clip, clip.pixels, clip.tokens, times_s, mean, std)
            media.append(item)
        return Seen(media, prompt.length, media_s)

    def _frame_times(self, path: str, settings: Settings) -> list[float] | None:
        """Seconds of the frames that the prompt shows; None where the file has none."""
        num_frames = settings.num_frames
        known = self._times.get((path, num_frames))
        if known is not None:
            return known

        budget = Budget(self.processor.media_policy)
        choice = settings.processing(self.processor.frame_choice({}))
        del choice["images_kwargs"]
        with open_frames(path, **choice, budget=budget) as chosen:
            times_s = chosen.times_s
        self._times[path, num_frames] = times_s
        if len(self._times) > TIMES_KEPT:
            self._times.popitem(last=False)
        return times_s

    def answer(self, question: "_Question", prompt: Prompt, seen: Seen) -> Seen:
        """Gives a question its pieces, and returns `seen` with tokens and seconds.

        Raises:
            Abandoned: it was cancelled before its first token.
        """
        sampling = Sampling(question.settings.max_tokens, question.settings.temperature)
        marks: list[tuple[float, int]] = []  # seconds and tokens at each piece

        def give(piece: str) -> None:
            marks.append((time.monotonic(), len(row.tokens)))
            question.give(piece)

        row = self._answerer.row(prompt, sampling, give)
        row.cancelled = question.cancelled
        with self.lock:
            if question.cancelled.is_set():
                raise Abandoned
            self._answerer.look_up(row)
            begun = time.monotonic()
            self._answerer.answer([row])
        ended = time.monotonic()

        first_s, first = marks[0] if marks else (ended, len(row.tokens))
        rate = (len(row.tokens) - first) / (ended - first_s) if len(row.tokens) > first else None
        return replace(
            seen,
            reused_tokens=row.known[1],
            answer_tokens=len(row.tokens),
            first_s=first_s - begun,
            tokens_per_s=rate,
            is_cut=row.finish_reason == "length",
        )


class _Question:
    """A question in its thread: `updates` come until one that is the last."""

    def __init__(self, assistant: Assistant, messages: Sequence[dict], settings: Settings) -> None:
        self.settings = settings
        self.cancelled = threading.Event()
        self.updates: SimpleQueue[Update] = SimpleQueue()
        self._assistant = assistant
        self._messages = messages
        self._text = ""
        threading.Thread(target=self._run, name="pvc-question", daemon=True).start()

    def give(self, piece: str) -> None:
        """Adds a piece to the answer."""
        self._text += piece
        self.updates.put(Update(self._text))

    def newest(self) -> Update:
        """Waits for an update, and joins those that come soon after into one."""
        update = self.updates.get()
        if not update.is_last:
            time.sleep(UPDATE_S)
        while not update.is_last and not self.updates.empty():
            later = self.updates.get()
            update = replace(later, seen=later.seen or update.seen)
        return update

    def _run(self) -> None:
        try:
            self.updates.put(self._answered())
        except Abandoned:
            self.updates.put(Update(self._text, is_last=True))
        except ApiError as error:
            self._fail(names_alone(error.message, self._messages))
        except (OSError, ValueError) as error:  # of the model, such as a prompt without room for an answer
            self._fail(names_alone(" ".join(str(error).split()), self._messages))
        except Exception as error:  # any: the page goes on
            log_error(error)
            self._fail(INTERNAL)

    def _answered(self) -> Update:
        begun = time.monotonic()
        prompt = self._assistant.read(self._messages, self.settings, self.cancelled)
        media_s = time.monotonic() - begun
        seen = self._assistant.seen(prompt, self._messages, self.settings, media_s)
        self.updates.put(Update(seen=seen))

        seen = self._assistant.answer(self, prompt, seen)
        return Update(self._text, seen, is_last=True)

    def _fail(self, sentence: str) -> None:
        self.updates.put(Update(self._text, error=sentence, is_last=True))
