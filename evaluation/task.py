"""What a task is: data and pure functions. `tasks/` lists them; the loop is `run.py`'s.

records = task.read(data)                           Record: a question, its media not opened
text = protocol.prompt(record, shown)               Shown: the frames of each of its media
parsed = protocol.parse(answer, record)             "" where nothing could be read
score = protocol.score(parsed, record)              0 to 1
value = protocol.metric.headline(rows)              Row: a record, its answer and its score
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pvc.evaluation.frames import FrameRule, middle_frames
from pvc.evaluation.records import Record, Shown
from pvc.evaluation.statistics import Additive, Part

SHOWING = ("image_repeats", "max_video_tokens", "frame_tokens")  # of settings; None where the model's count


class ImagePlan(NamedTuple):
    """How an image is cut: at most so many tiles, after its sides were multiplied by `enlarge`."""

    max_tiles: int
    enlarge: int = 1


@dataclass(frozen=True)
class Settings:
    """How media are shown and answers generated.

    Attributes:
        max_tiles: of an image, thumbnail not counted.
        plan_image: (position, number of images) -> ImagePlan, where images of a record differ; else None.
        frames: how many of a video are asked for. frame_tiles: largest number of tiles of each.
        choose_frames: which ones.
        generation: options of `generate`; greedy decoding unless they say otherwise.
        image_repeats, max_video_tokens, frame_tokens: of `chat`; None: as the model has them.
        chat_lists: which of `num_patches_list`, `split_sizes`, `data_flag` `chat` is given. The released
            scripts leave some out, where all tiles are then one image.
    """

    max_tiles: int = 12
    plan_image: Callable[[int, int], ImagePlan] | None = None
    frames: int = 96
    frame_tiles: int = 1
    choose_frames: FrameRule = middle_frames
    image_repeats: int | None = None
    max_video_tokens: int | None = None
    frame_tokens: int | None = None
    generation: Mapping[str, Any] = field(default_factory=lambda: {"max_new_tokens": 16})
    chat_lists: tuple[str, ...] = ("num_patches_list", "split_sizes", "data_flag")


class Row(NamedTuple):
    """A record and what became of it. A failed one has no answer, and the score 0."""

    record: Record
    answer: str | None
    parsed: Any
    score: float


def _scores_and_number(rows: Sequence[Row]) -> Mapping[str, Part]:
    return {"": (100 * sum(row.score for row in rows), len(rows))}


percent = Additive(_scores_and_number)  # the mean score times 100; 0 of no rows


def no_labels(record: Record) -> Mapping[str, str]:
    """No sub-scores."""
    return {}


def nothing_more(rows: Sequence[Row]) -> Mapping[str, float]:
    """No values beside the headline."""
    return {}


def keep_answer(answer: str, record: Record) -> str:
    """The parser of open answers: they stay as they are."""
    return answer


def no_score(parsed: Any, record: Record) -> float:
    """The score where only a judge gives one."""
    return 0.0


@dataclass(frozen=True)
class Metric:
    """How rows become figures.

    Attributes:
        name: of the headline, such as "accuracy".
        headline: the figure that is compared with the paper's, in the paper's unit. As an `Additive`, such as
            `percent`, its bootstrap takes no time.
        labels: of a record, what sub-scores it counts in: {"duration": "short"}, or several of one kind as
            a tuple. Each sub-score is the `sub_score` of its rows.
        others: further figures by name.
        is_proportion: the headline is 100 times the mean of scores that are 0 or 1: its interval is Wilson's
            (or clustered). Otherwise it comes from a bootstrap over groups.
    """

    name: str = "accuracy"
    headline: Callable[[Sequence[Row]], float] = percent
    labels: Callable[[Record], Mapping[str, str | tuple[str, ...]]] = no_labels
    sub_score: Callable[[Sequence[Row]], float] = percent
    others: Callable[[Sequence[Row]], Mapping[str, float]] = nothing_more
    is_proportion: bool = True


@dataclass(frozen=True)
class Judge:
    """A chat model that rates answers, where the user gives one.

    Attributes:
        messages: what it is asked about an answer: chat messages; none where the rules suffice.
        read: what its reply says, by name; None where it cannot be read.
        figures: all rows, and by record id what was read of the replies -> figures by name.
        max_tokens: of a reply.
        paper: published values by figure and model.
    """

    messages: Callable[[Record, str], list[dict[str, str]]]
    read: Callable[[str, Record], Mapping[str, Any] | None]
    figures: Callable[[Sequence[Row], Mapping[str, Mapping[str, Any]]], Mapping[str, float]]
    max_tokens: int = 128
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """One way to run a task.

    Attributes:
        prompt: the question's text. Media without a placeholder in it are put in front, as `chat` does;
            with placeholders, there is one `<image>` for each image or frame.
        parse: what is read from an answer; "" (or None) where nothing can be: counted as unparsed.
        score: of what was read, from 0 to 1.
        judge: rates answers where one is given. needs_judge: without it there are answers and no score.
    """

    prompt: Callable[[Record, Sequence[Shown]], str]
    parse: Callable[[str, Record], Any]
    score: Callable[[Any, Record], float]
    settings: Settings
    metric: Metric = Metric()
    judge: Judge | None = None
    needs_judge: bool = False


class SubmissionFile(NamedTuple):
    """A file for a benchmark's server: its name and its content.

    Content: a JSON value for `.json`; a list of dicts (one a line of the table) for `.tsv`, `.csv`, `.xlsx`.
    """

    name: str
    content: Any


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        read: the folder that holds its data (the common root or its own folder) -> its records, in order.
            Raises DataError with the names of all files that are missing.
        protocols: by name; the first is the default.
        expected: number of records of the published data; another number gives a warning.
        paper: published values of the headline, by model.
        paper_protocol: the one that they were made with; None: it was never released, so that no value of
            ours reproduces them.
        released_names: names in the released scripts.
        submission: rows -> the files that its server takes. Raises ValueError where they would be refused.
        has_answers: False where the references are held back: there is a submission, and no score.
        about: one line: the benchmark, its split, where its data come from.
    """

    name: str
    about: str
    read: Callable[[Path], list[Record]]
    protocols: Mapping[str, Protocol]
    expected: int | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    paper_protocol: str | None = None
    released_names: tuple[str, ...] = ()
    submission: Callable[[Sequence[Row]], Sequence[SubmissionFile]] | None = None
    has_answers: bool = True
