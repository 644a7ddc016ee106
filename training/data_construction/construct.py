"""From a list of videos to JSON lines for `pvc train`; what a run leaves in its folder.

    OUT/frames/NAME/        the frames of a video; settings.json: how they were chosen
    OUT/replies.jsonl       every reply, as it came, with its finish reason and usage
    OUT/constructed.jsonl   one dialogue a reply; `video` is the folder of frames
    OUT/meta.json           names them for `pvc train`
    OUT/report.json         what was kept and dropped, and why

The last three are written anew from the first two, in the order of the list: they do not depend on how often
a run was ended, nor on the order of replies.
"""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from pvc.evaluation.chat_endpoint import ChatEndpoint, ReplyCache
from pvc.training.data.encoding import UNREADABLE
from pvc.training.data_construction.asking import Asker, Failure
from pvc.training.data_construction.frame_marks import names_a_frame
from pvc.training.data_construction.frames import FrameOptions, FrameSet, check_settings, save_frames
from pvc.training.data_construction.replies import Pair, read_reply
from pvc.training.data_construction.requests import Request, RequestOptions
from pvc.training.data_construction.tasks import Prompts, Task, tasks_of
from pvc.training.data_construction.videos import Selection, Video, draw

FRAMES, REPLIES, DATA, META, REPORT = (
    "frames",
    "replies.jsonl",
    "constructed.jsonl",
    "meta.json",
    "report.json",
)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)  # not the video's fault
BATCH = 1024  # videos that are queued for decoding

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is done, how many are, of how many


@dataclass(frozen=True)
class Plan:
    """What is asked: a selection of videos, the tasks that they share, and how."""

    selection: Selection
    tasks: Sequence[Task]
    prompts: Prompts
    tasks_per_video: int = 3
    frames: FrameOptions = field(default_factory=FrameOptions)
    requests: RequestOptions = field(default_factory=RequestOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tasks_per_video <= len(self.tasks):
            raise ValueError(
                f"tasks a video: {self.tasks_per_video}: expected 1 to {len(self.tasks)}, the number of tasks"
            )

    def tasks_of(self, video: Video) -> list[Task]:
        """The tasks of a video."""
        return tasks_of(video, self.tasks, self.tasks_per_video, self.seed)

    def requests_of(self, video: Video, frames: FrameSet) -> list[Request]:
        """What is asked about a video."""
        return [Request(video, task, frames, self.prompts, self.requests) for task in self.tasks_of(video)]


@dataclass
class Report:
    """What came of a run.

    Attributes:
        videos: how many were listed, dropped as duplicates, thinned, unreadable, and used.
        replies: how many had each fate, "missing" among them.
        dropped: pairs that were dropped, by reason.
        pairs: that are in the data, by task.
        usage: tokens as the endpoint counts them, of all replies that are used here.
        failed_tries: of this run, by HTTP status.
        unreadable: videos and errors. failures: requests without a reply.
        gave_up: too many errors in a row.
    """

    videos: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    failed_tries: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    gave_up: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every request about a video that can be read has a reply."""
        return not self.replies["missing"]


def construct(
    plan: Plan,
    out: Path,
    endpoint: ChatEndpoint | None,
    model: str,
    *,
    concurrency: int = 8,
    workers: int = 2,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Makes, or goes on making, the training data of a plan in the folder `out`.

    Args:
        endpoint: None asks nothing: the data are written from the replies that are there.
        concurrency: requests at a time.
        workers: videos that are decoded at a time.

    Raises:
        ValueError: where `out` has frames of other options.
        BlockingIOError: where another run is writing there.
        OSError: where the disk is full.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        check_settings(out, plan.frames)
        report = Report()

        frames = _save_all_frames(plan, out / FRAMES, workers, report, progress)
        requests = [request for video, saved in frames for request in plan.requests_of(video, saved)]

        cache = ReplyCache(out / REPLIES)

        try:
            if endpoint is not None:
                _ask(requests, endpoint, model, cache, concurrency, report, progress)
        finally:  # what there is, whatever ends the run
            report.videos = counts_of_videos(plan.selection, len(report.unreadable))
            _write_data(requests, cache, model, plan, out, report)
    return report


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise BlockingIOError(f"another run is writing to {out}: wait until it is done") from error


def counts_of_videos(selection: Selection, unreadable: int) -> Counter[str]:
    """How many videos are listed, left out for each reason, and used."""
    return Counter(
        listed=selection.listed,
        duplicates=selection.duplicates,
        thinned=selection.thinned,
        unreadable=unreadable,
        used=len(selection.videos) - unreadable,
    )


def _save_all_frames(
    plan: Plan, folder: Path, workers: int, report: Report, progress: Progress
) -> list[tuple[Video, FrameSet]]:
    """The frames of all videos that can be read, in the order of the list."""
    videos = plan.selection.videos

    def save(video: Video) -> FrameSet | Exception:
        try:
            return save_frames(video, folder, plan.frames)
        except UNREADABLE as error:
            # a full disk ends the run, a damaged video does not
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            return error

    saved = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for video, found in _in_batches(pool, save, videos):
            if isinstance(found, Exception):
                report.unreadable.append((video.path, " ".join(str(found).split())))
            else:
                saved.append((video, found))
            progress("frames", len(saved) + len(report.unreadable), len(videos))
    return saved


def _in_batches(
    pool: ThreadPoolExecutor, save: Callable[[Video], T], videos: Sequence[Video]
) -> Iterator[tuple[Video, T]]:
    """What `save` makes of each video, in order; a list of millions is not queued at once."""
    for start in range(0, len(videos), BATCH):
        batch = videos[start : start + BATCH]
        yield from zip(batch, pool.map(save, batch))


def _ask(
    requests: Sequence[Request],
    endpoint: ChatEndpoint,
    model: str,
    cache: ReplyCache,
    concurrency: int,
    report: Report,
    progress: Progress,
) -> None:
    asker = Asker(endpoint, model, cache, concurrency)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("replies", done, len(requests))

    try:
        asker.ask_all(requests, advance)
    finally:
        report.failures = sorted(asker.failures)
        report.gave_up = asker.gave_up
        report.failed_tries = Counter(endpoint.failed_tries)


# ------------------------------------------------------------------------------------------------- the data


def _write_data(
    requests: Sequence[Request], cache: ReplyCache, model: str, plan: Plan, out: Path, report: Report
) -> None:
    lines = list(_dialogues(requests, cache, model, plan, report))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(out / DATA, text)

    fields = {"root": "", "annotation": DATA, "repeat_time": 1, "data_augment": False, "length": len(lines)}
    write_whole(out / META, json.dumps({"constructed": fields}, indent=2) + "\n")
    write_whole(out / REPORT, json.dumps(vars(report), indent=2, ensure_ascii=False) + "\n")


def _dialogues(
    requests: Sequence[Request], cache: ReplyCache, model: str, plan: Plan, report: Report
) -> Iterator[dict[str, Any]]:
    """A line of the data for each reply that has a pair left, in the order of the requests."""
    asked: dict[str, set[str]] = {}  # questions of each video, which are not asked twice
    for request in requests:
        entry = cache.entry(request.key, model)
        if entry is None:
            report.replies["missing"] += 1
            continue

        task = request.task
        read = read_reply(
            entry,
            task,
            plan.prompts,
            num_frames=request.frames.num_frames,
            question=question_of(request, plan.seed),
        )
        known = asked.setdefault(request.video.name, set())
        pairs = [pair for pair in read.pairs if _is_new(pair, known)]

        # what came of it
        report.usage.update(tokens_of(entry))
        report.dropped.update(read.dropped)
        if len(pairs) < len(read.pairs):
            report.dropped["repeated question"] += len(read.pairs) - len(pairs)
        report.replies["nothing left" if read.pairs and not pairs else read.fate] += 1
        report.pairs[task.name] += len(pairs)
        if pairs:
            yield dialogue(request, pairs)


def question_of(request: Request, seed: int) -> str:
    """The question of a task of format text, drawn from the task's own; else empty."""
    questions = request.task.questions
    if not questions:
        return ""
    return questions[int(draw(seed, "question", request.video.name, request.task.name) * len(questions))]


def _is_new(pair: Pair, asked: set[str]) -> bool:
    question = " ".join(pair.question.casefold().split())
    is_new = question not in asked
    asked.add(question)
    return is_new


def tokens_of(entry: dict[str, Any]) -> Counter[str]:
    """Tokens of a reply and of its prompt, as the endpoint counts them."""
    usage = entry.get("usage") or {}
    names = ("prompt_tokens", "completion_tokens")
    return Counter({name: usage[name] for name in names if isinstance(usage.get(name), int)})


def dialogue(request: Request, pairs: Sequence[Pair]) -> dict[str, Any]:
    """A line of the data, in InternVL's format; the first question has the placeholder of the video.

    Where the text names frames, all frames are shown, each once: `every_frame`.
    """
    messages = []
    for number, pair in enumerate(pairs):
        question = f"<video>\n{pair.question}" if number == 0 else pair.question
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": pair.answer}]

    line: dict[str, Any] = {
        "id": f"{request.video.name}:{request.task.name}",
        "video": f"{FRAMES}/{request.video.name}",
        "conversations": messages,
    }
    names_frames = any(names_a_frame(text) for pair in pairs for text in pair)
    return line | {"every_frame": True} if names_frames else line


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(text.encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
