"""The one loop: records are read, asked about, written down one by one, scored, reported.

    outcome = evaluate(engine, "mvbench", Path("data"), out=Path("run"))
    outcome.result.headline.value, outcome.exit_code

An interrupted run is gone on with by the same call, with any number of ranks. Ranks share units out in turn
and do not wait for each other: whichever writes the last answer scores the whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from typing import Protocol as Interface

from pvc.evaluation.answer_file import AnswerFile, check_header, rank_files, read_answers, read_header
from pvc.evaluation.judge import Judge
from pvc.evaluation.records import DataError, Record, Shown
from pvc.evaluation.report import RESULT_FILES, write_result
from pvc.evaluation.scoring import Result, score_answers
from pvc.evaluation.submit import write_submission
from pvc.evaluation.task import SHOWING, Protocol, Settings, Task
from pvc.evaluation.tasks import find_task

if TYPE_CHECKING:
    from pvc.evaluation.engine import Answer
    from pvc.evaluation.media import Tiling, Unit

COMPLETE, SOME_FAILED, BAD_USAGE, INCOMPLETE = range(4)  # exit codes
MISSING_SHOWN = 20
SOME_FRAMES = Shown(tuple(range(0, 8000, 1000)), tuple(range(0, 320, 40)), fps=25.0, duration_s=320.0)


class Engine(Interface):
    """Who answers; see `engine.py`."""

    identity: Mapping[str, Any]
    tiling: "Tiling"
    reads_tiles: bool  # False: it takes images and frames, and cuts them itself

    def answer(self, units: Iterator["Unit"], settings: Settings) -> Iterator["Answer"]:
        """An answer or an error for each request, in order."""
        ...


class Rank(NamedTuple):
    """Which of several processes this one is."""

    number: int = 0
    total: int = 1


@dataclass(frozen=True)
class Options:
    """How a task is run.

    Attributes:
        protocol: its name; None: the task's default.
        limit: the first so many records alone. The result is marked as partial.
        frames, tiles, image_repeats, max_video_tokens, frame_tokens: in place of the protocol's.
        workers: processes that read media while the model answers.
        skip_missing: records whose media are missing are left out; the result says how many.
        fresh: answers that are there are deleted.
    """

    protocol: str | None = None
    limit: int | None = None
    frames: int | None = None
    tiles: int | None = None
    workers: int = 2
    skip_missing: bool = False
    fresh: bool = False
    image_repeats: int | None = None
    max_video_tokens: int | None = None
    frame_tokens: int | None = None


class Plan(NamedTuple):
    """A task made ready: what will be asked, and why that may not be the whole.

    `all_records` are those of the benchmark, of which `records` will be asked about.
    """

    task: Task
    protocol_name: str
    protocol: Protocol
    records: list[Record]
    partial: list[str]
    all_records: list[Record]

    @property
    def data_hash(self) -> str:
        """Of what the benchmark asks, whether all of it is asked or not."""
        return hash_of([hash_of([r.id, r.question, r.options, r.answer]) for r in self.all_records])


class Outcome(NamedTuple):
    """What a run came to. `result` is None on a rank that is done while others are not."""

    result: Result | None
    exit_code: int


Progress = Callable[[int, int], None]  # (answers done, answers in all) of this rank


# ---- plan


def make_plan(name: str, data: Path, options: Options, *, needs_media: bool = True) -> Plan:
    """Reads a task's records and checks that their media are there.

    Args:
        needs_media: False where the answers are there already: missing media do not matter.

    Raises:
        ValueError: unknown task or protocol.
        DataError: files or media are missing, or two records have one id.
    """
    task = find_task(name)
    protocol_name = options.protocol or next(iter(task.protocols))
    if protocol_name not in task.protocols:
        known = ", ".join(task.protocols)
        raise ValueError(f"{task.name} has no protocol {protocol_name!r}: choose one of {known}")

    records = read_records(task, data)
    check_ids(task, records)
    everything = records

    partial = []
    if options.limit is not None and options.limit < len(records):
        records = records[: options.limit]
        partial.append(f"the first {options.limit} records")

    missing = missing_media(records) if needs_media or options.skip_missing else {}
    if missing:
        if not options.skip_missing:
            raise DataError(missing_text(task, missing))
        records = [record for record in records if record.id not in missing]
        partial.append(f"{len(missing)} records left out: their media are missing")
    if not records:
        raise DataError(f"{task.name}: there is nothing to ask about in {data}")

    protocol = with_overrides(task.protocols[protocol_name], options)
    return Plan(task, protocol_name, protocol, records, partial, everything)


def read_records(task: Task, data: Path) -> list[Record]:
    """The records of a task. Whatever is wrong with its files is a DataError."""
    if not data.is_dir():
        raise DataError(
            f"there is no folder {data}: --data is the folder of all benchmarks, or the task's own"
        )
    try:
        return task.read(data)
    except DataError as error:
        raise DataError(f"{task.name}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{task.name}: the files in {data} are not in its layout ({problem})") from error


def check_ids(task: Task, records: Sequence[Record]) -> None:
    """Raises a DataError where two records have one id: answers could not be told apart."""
    seen: set[str] = set()
    for record in records:
        if record.id in seen:
            raise DataError(f"{task.name}: two records have the id {record.id!r}")
        seen.add(record.id)


def missing_media(records: Iterable[Record]) -> dict[str, list[str]]:
    """By id of a record, the names of its media that do not exist. Each file is looked for once."""
    known: dict[Any, bool] = {}
    missing: dict[str, list[str]] = {}
    for record in records:
        for media in record.media:
            if media.source not in known:
                known[media.source] = media.is_missing()
            if known[media.source]:
                missing.setdefault(record.id, []).append(media.name)
    return missing


def missing_text(task: Task, missing: Mapping[str, Sequence[str]]) -> str:
    """The message that lists missing media."""
    names = list(dict.fromkeys(name for names in missing.values() for name in names))
    more = f"\n  and {len(names) - MISSING_SHOWN} more" if len(names) > MISSING_SHOWN else ""
    listed = "".join(f"\n  {name}" for name in names[:MISSING_SHOWN])
    return (
        f"{task.name}: {len(names)} files are missing, of {len(missing)} records (--skip-missing leaves them "
        f"out):{listed}{more}"
    )


def with_overrides(protocol: Protocol, options: Options) -> Protocol:
    """The protocol with the frames, tiles, repeats and tokens that the caller wants."""
    changes: dict[str, Any] = {}
    if options.frames is not None:
        changes["frames"] = options.frames
    if options.tiles is not None:
        changes |= {"max_tiles": options.tiles, "plan_image": None}
    for name in SHOWING:
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    return replace(protocol, settings=replace(protocol.settings, **changes))


def units_of(records: Iterable[Record]) -> list[list[Record]]:
    """Records that share their media, side by side, in order of the first of each group."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group or ("record", record.id), []).append(record)
    return [
        list(unit) for group in groups.values() for _, unit in groupby(group, key=lambda record: record.media)
    ]


def hash_of(value: Any) -> str:
    """A short hash of a JSON value."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def settings_json(settings: Settings) -> dict[str, Any]:
    """Settings as JSON: functions by their names, and without what is the model's."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for name in SHOWING:
        if values[name] is None:
            del values[name]
    values["generation"] = dict(settings.generation)
    return {name: getattr(x, "__name__", None) or x for name, x in values.items()}


def prompts_hash(plan: Plan) -> str:
    """A hash of the prompts of all records, as they would be with some frames of a video.

    It changes with hints and subtitles, and with the code that writes the prompt.
    """
    digest = hashlib.sha256()
    for record in plan.all_records:
        shown = [Shown() if media.kind == "image" else SOME_FRAMES for media in record.media]
        try:
            prompt = plan.protocol.prompt(record, shown)
        except Exception as error:  # the record will be one of those that fail
            prompt = type(error).__name__
        digest.update(hash_of([record.id, prompt]).encode())
    return digest.hexdigest()[:16]


def make_header(plan: Plan, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the answers of a run."""
    header = {
        "task": plan.task.name,
        "protocol": plan.protocol_name,
        "model": dict(identity),
        "settings": settings_json(plan.protocol.settings),
        "data": plan.data_hash,
        "prompts": prompts_hash(plan),
        "format": 1,
    }
    return json.loads(json.dumps(header, default=list))


# ---- run


def evaluate(
    engine: Engine,
    task: str,
    data: Path,
    *,
    out: Path,
    options: Options | None = None,
    rank: Rank = Rank(),  # noqa: B008  # a tuple
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Asks all questions of a task that have no answer yet, and scores the whole.

    Args:
        task: its name, or its name in the released scripts.
        data: the folder of all benchmarks, or the task's own.
        out: the run's folder. Answers and results are written into `out / task`.
        judge: rates answers where the task has a use for one. The only thing that opens a connection.

    Raises:
        DataError, HeaderMismatch, ValueError: before the first question, where it cannot be run.
        OSError: an answer cannot be written; all answers before it stay.
    """
    options = options or Options()
    plan = make_plan(task, data, options)
    return run_plan(engine, plan, out=out, options=options, rank=rank, judge=judge, progress=progress)


def run_plan(
    engine: Engine,
    plan: Plan,
    *,
    out: Path,
    options: Options,
    rank: Rank = Rank(),  # noqa: B008  # a tuple
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """`evaluate` of a task that was made ready by `make_plan` with the same options."""
    folder = out / plan.task.name
    header = make_header(plan, engine.identity)
    if options.fresh:
        delete_answers(folder, rank)

    with AnswerFile(folder, rank.number, header, is_fresh=options.fresh) as file:
        # a fresh run: files of other ranks may be those of the run before, so this rank asks its whole share
        lines = {} if options.fresh else read_answers(folder)
        ask_all(engine, plan, file, unanswered_units(plan, lines, rank), options, progress)
    return finish(plan, folder, header, rank, judge)


def delete_answers(folder: Path, rank: Rank) -> None:
    """Removes the answers of this rank, and those of ranks that are no more; and the results of the run."""
    for path in rank_files(folder):
        number = int(path.stem.removeprefix("rank"))
        if number == rank.number or number >= rank.total:
            path.unlink(missing_ok=True)
    for name in RESULT_FILES:
        (folder / name).unlink(missing_ok=True)


def unanswered_units(plan: Plan, lines: Mapping[str, Mapping[str, Any]], rank: Rank) -> list[list[Record]]:
    """The share of this rank: every so many-th unit, without the records that any rank has answered."""
    done = {name for name, line in lines.items() if "error" not in line}
    mine = units_of(plan.records)[rank.number :: rank.total]
    rest = [[record for record in unit if record.id not in done] for unit in mine]
    return [unit for unit in rest if unit]


def ask_all(
    engine: Engine,
    plan: Plan,
    file: AnswerFile,
    units: Sequence[Sequence[Record]],
    options: Options,
    progress: Progress | None,
) -> None:
    """Asks the questions of the units and writes each answer down before the next."""
    from pvc.evaluation.media import Broken, Units, read_ahead, with_worker_advice

    total = sum(len(unit) for unit in units)
    done = 0

    def write(line: Mapping[str, Any]) -> None:
        nonlocal done
        file.append(line)
        done += 1
        if progress is not None:
            progress(done, total)

    def readable(source: Iterable["Unit | Broken"]) -> Iterator["Unit"]:
        """The units that can be asked about; what cannot be read is written down as failed."""
        for unit in source:
            if isinstance(unit, Broken):
                for record in unit.records:
                    write({"id": record.id, "error": unit.error})
            else:
                yield unit

    if progress is not None:
        progress(0, total)
    if units:
        source = read_ahead(Units(units, plan.protocol, engine.tiling, engine.reads_tiles), options.workers)
        with with_worker_advice():
            for answer in engine.answer(readable(source), plan.protocol.settings):
                write(answer_line(answer))


def answer_line(answer: "Answer") -> dict[str, Any]:
    """The line of an answer, or of an error."""
    request = answer.request
    line = {
        "id": request.record.id,
        "prompt": hash_of(request.question),
        "tiles": sum(request.num_patches_list),
        "seconds": round(answer.seconds, 4),
    }
    if answer.error is not None:
        return line | {"error": answer.error}
    return line | {"answer": answer.text, "new_tokens": answer.new_tokens}


def finish(
    plan: Plan, folder: Path, header: Mapping[str, Any], rank: Rank, judge: Judge | None = None
) -> Outcome:
    """Scores and reports where all records have a line; otherwise other ranks are still at work."""
    lines = read_answers(folder)
    if rank.total > 1 and any(record.id not in lines for record in plan.records):
        return Outcome(None, COMPLETE)

    result = score_answers(plan.task, plan.protocol_name, header, plan.records, lines, plan.partial, judge)
    if result.unanswered:
        return Outcome(result, INCOMPLETE)

    result.warnings += write_submission(plan.task, result.rows, folder, is_whole=not plan.partial)
    write_result(folder, result)
    has_failed = result.errors or (result.judgement is not None and result.judgement.failed)
    return Outcome(result, SOME_FAILED if has_failed else COMPLETE)


def rescore(
    task: str, data: Path, *, out: Path, options: Options | None = None, judge: Judge | None = None
) -> Outcome:
    """Scores the answers of a run again. Needs neither model nor torch, nor images and videos.

    The protocol is that of the run.

    Raises:
        DataError: no answers, or answers to other data or of another protocol.
    """
    folder = out / find_task(task).name
    header = header_of_run(folder)
    options = options or Options()
    protocol = options.protocol or header["protocol"]
    plan = make_plan(task, data, replace(options, protocol=protocol), needs_media=False)

    same = {"protocol": plan.protocol_name, "data": plan.data_hash}
    for name, value in same.items():
        if header[name] != value:
            raise DataError(f"{folder} was made with {name} {header[name]!r}, not {value!r}")
    return finish(plan, folder, header, Rank(), judge)


def header_of_run(folder: Path) -> dict[str, Any]:
    """What the answers in a folder were made with.

    Raises:
        DataError: there are none. HeaderMismatch: they are of different runs.
    """
    headers = [header for path in rank_files(folder) if (header := read_header(path)) is not None]
    if not headers:
        raise DataError(f"{folder} has no answers to score: is --out the folder of the run?")
    for path in rank_files(folder):
        check_header(path, headers[0])
    return headers[0]


# ---- dry run


def dry_run(task: str, data: Path, tiling: "Tiling", options: Options, number: int = 3) -> Iterator[str]:
    """Describes the first questions as they would be asked: prompt, tiles, frames, settings. No weights."""
    from pvc.evaluation.media import count_tiles, image_plan, layouts

    plan = make_plan(task, data, options)
    settings = plan.protocol.settings
    yield f"{plan.task.name}: {len(plan.records)} records, protocol {plan.protocol_name}"
    yield f"settings: {json.dumps(settings_json(settings), default=list)}"
    yield from (f"partial: {reason}" for reason in plan.partial)

    for record in plan.records[:number]:
        shown = layouts(record, settings)
        images = sum(media.kind == "image" for media in record.media)
        yield f"\n[{record.id}]"
        position = 0
        for media, frames in zip(record.media, shown):
            if media.kind == "image":
                tiles = count_tiles(media, image_plan(settings, position, images), tiling)
                position += 1
                yield f"image {media.name}: {tiles} tiles"
            else:
                yield f"{media.kind} {media.name}: {frames.frames} frames, {list(frames.indices)}"
        yield f"prompt: {plan.protocol.prompt(record, shown)!r}"
        if record.answer is not None:
            yield f"reference: {record.answer!r}"
