"""LongVideoBench: questions that refer to a part of a long video, with subtitles in one protocol."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_files, read_rows, video_finder
from pvc.evaluation.frames import linspace_frames, longvideobench_frames
from pvc.evaluation.prompts import ANSWER_LETTER, lettered
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.subtitles import Subtitle, interleave, read_json_subtitles
from pvc.evaluation.task import Metric, Protocol, Row, Settings, SubmissionFile, Task

NAMES = ("LongVideoBench", "longvideobench")
VAL_FILES = ("lvb_val.json", "validation-*.parquet", "*/validation-*.parquet")
TEST_FILES = ("lvb_test_wo_gt.json", "test-*.parquet", "*/test-*.parquet")
LABELS = choices.labels_of("duration_group", "question_category")


def read(data: Path, files: Sequence[str]) -> list[Record]:
    """`lvb_val.json` or `lvb_test_wo_gt.json` (or their parquet copies), `videos/`, `subtitles/`."""
    folder, tables = find_files(data, NAMES, files)
    find_video = video_finder([folder / "videos", folder / "video"])

    @cache  # several questions are about one video
    def subtitles_of(name: str | None) -> tuple[Subtitle, ...]:
        path = folder / "subtitles" / (name or "none")
        return read_json_subtitles(path) if path.is_file() else ()

    def build(row: Mapping) -> Record:
        right = row.get("correct_choice")
        return Record(
            id=row["id"],
            media=(Media("video", find_video(row["video_path"])),),
            question=row["question"],
            options=_candidates(row),
            answer=None if right in (None, -1) else choices.letter(right),
            meta={
                "duration_group": row["duration_group"],
                "question_category": row["question_category"],
                "topic_category": row.get("topic_category"),
                "duration_s": row["duration"],
                "subtitles": subtitles_of(row.get("subtitle_path")),
                "subtitles_start_s": row.get("starting_timestamp_for_subtitles") or 0,
            },
            group=row["video_id"],
        )

    return build_records(tables[0], [row for table in tables for row in read_rows(table)], build)


def _candidates(row: Mapping) -> tuple[str, ...]:
    """A list; the parquet copy has five columns, filled with "N/A"."""
    if "candidates" in row:
        return tuple(row["candidates"])
    columns = [row[f"option{number}"] for number in range(5)]
    return tuple(option for option in columns if option != "N/A")


def lmms_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's ends with a new line."""
    return choices.ask_letter_of_text(record, shown) + "\n"


def vlmevalkit_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """VLMEvalKit's for InternVL."""
    return choices.vlmevalkit_text(shown[0].frames, choices.ask_letter_of_text(record, shown))


def interleaved_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The official one: frames and subtitle lines in the order of time, then the question."""
    meta = record.meta
    video = interleave(shown[0].times_s, meta["subtitles"], meta["subtitles_start_s"], meta["duration_s"])
    return f"{video}\nQuestion: {record.question}\n{lettered(record.options)}\n{ANSWER_LETTER}"


METRIC = Metric(labels=LABELS)


def submission(rows: Sequence[Row]) -> list[SubmissionFile]:
    """{id: answer}: the letter that was read, or else the answer itself."""
    choices.check_submitted(rows, [row.record.id for row in rows])
    answers = {row.record.id: row.parsed or row.answer or "" for row in rows}
    return [SubmissionFile("longvideobench_test.json", answers)]


def _protocol(text: choices.Prompt, parser: str, settings: Settings) -> Protocol:
    return Protocol(text, choices.read_as(parser), choices.is_answer, settings, METRIC)


PROTOCOLS = {
    "default": _protocol(choices.ask_letter, "default", choices.SETTINGS),
    "interleaved": _protocol(interleaved_prompt, "default", Settings(choose_frames=longvideobench_frames)),
    "lmms": _protocol(
        lmms_prompt,
        "lmms_longvideobench",
        Settings(choose_frames=linspace_frames, generation={"max_new_tokens": 32}),
    ),
    "vlmevalkit": _protocol(vlmevalkit_prompt, "vlmevalkit_longvideobench", choices.VLMEVALKIT_SETTINGS),
}

ALL = (
    Task(
        name="longvideobench-val",
        about="LongVideoBench, validation part without subtitles: lvb_val.json and videos/",
        read=partial(read, files=VAL_FILES),
        protocols=PROTOCOLS,
        expected=1337,
        paper={"PVC-2B": 51.6, "PVC-8B": 59.2},
    ),
    Task(
        name="longvideobench-test",
        about="LongVideoBench, test part, whose answers are held back: lvb_test_wo_gt.json and videos/",
        read=partial(read, files=TEST_FILES),
        protocols=PROTOCOLS,
        expected=5341,
        submission=submission,
        has_answers=False,
    ),
)
