"""Perception Test, multiple choice: memory, abstraction, physics and semantics; three options."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_files, read_rows, video_finder
from pvc.evaluation.parse import lmms_perceptiontest_index
from pvc.evaluation.records import Media, Record
from pvc.evaluation.tables import read_json
from pvc.evaluation.task import Metric, Protocol, Row, Settings, SubmissionFile, Task

NAMES = ("PerceptionTest", "perceptiontest", "perception_test")
VAL_NAMES = ("PerceptionTest_Val", *NAMES)
TEST_NAMES = ("PerceptionTest_Test", *NAMES)
VAL_FILES = (
    "mc_question_val/*.parquet",
    "*mc_question*val*.json",
    "*/*mc_question*val*.json",
    "all_valid.json",
)
TEST_FILES = (
    "mc_question/*.parquet",
    "mc_question_test/*.parquet",
    "*mc_question*test*.json",
    "*/*mc_question*test*.json",
    "all_test.json",
)


def read(data: Path, names: Sequence[str], files: Sequence[str]) -> list[Record]:
    """The Hub's parquet tables, or the original JSON keyed by video; `videos/<video_name>.mp4`."""
    folder, tables = find_files(data, names, files)
    find_video = video_finder([folder / "videos", folder / "video", folder])

    def build(row: Mapping) -> Record:
        video, number = row["video_name"], row["question_id"]
        right = row.get("answer_id")
        return Record(
            id=f"{video}_{number}",
            media=(Media("video", find_video(video)),),
            question=row["question"],
            options=tuple(row["options"]),
            answer=None if right in (None, "") else choices.letter(int(right)),
            meta={
                "video_name": video,
                "question_id": number,
                "area": str(row.get("area") or "").lower(),
                "reasoning": str(row.get("reasoning") or "").lower(),
                "tag": tuple(row.get("tag") or ()),
            },
            group=video,
        )

    if tables[0].suffix == ".json":
        tables = tables[:1]
        rows = _original_rows(read_json(tables[0]))
    else:
        rows = [row for table in tables for row in read_rows(table)]
    return build_records(tables[0], rows, build)


def _original_rows(videos: Mapping[str, Any]) -> list[dict]:
    """{video: {mc_question: [...]}} as rows, with `id` under the Hub's name."""
    return [
        {**question, "video_name": video, "question_id": question["id"]}
        for video, entry in videos.items()
        for question in entry.get("mc_question", ())
    ]


def lmms_val_letter(answer: str, record: Record) -> str:
    """lmms-eval's on the validation part: the first A to D that stands alone."""
    index = lmms_perceptiontest_index(answer)
    return "" if index < 0 else choices.letter(index)


def lmms_test_letter(answer: str, record: Record) -> str:
    """lmms-eval's on the test part: nothing but a bare letter."""
    return answer if answer in ("A", "B", "C") else ""


def submission(rows: Sequence[Row]) -> list[SubmissionFile]:
    """The list that the server takes: -1 where no letter was read."""
    choices.check_submitted(rows, [row.record.id for row in rows])
    entries = [
        {
            "video_name": row.record.meta["video_name"],
            "question": row.record.question,
            "question_id": row.record.meta["question_id"],
            "pred_id": choices.index_of_letter(row.parsed or "", missing=-1),
        }
        for row in rows
    ]
    return [SubmissionFile("perceptiontest_test.json", entries)]


METRIC = Metric(labels=choices.labels_of("area", "reasoning", "tag"))


def _protocols(lmms_letter: choices.Parse) -> dict[str, Protocol]:
    def protocol(text: choices.Prompt, parse: choices.Parse, settings: Settings) -> Protocol:
        return Protocol(text, parse, choices.is_answer, settings, METRIC)

    return {
        "default": protocol(choices.ask_letter, choices.read_as(), choices.SETTINGS),
        "lmms": protocol(choices.ask_letter_of_text, lmms_letter, choices.LMMS_SETTINGS),
        "dynamic-vlm": choices.dynamic_vlm(choices.ask_one_letter, METRIC),
    }


ALL = (
    Task(
        name="perceptiontest-val",
        about="Perception Test, multiple choice, validation part: mc_question_val/*.parquet and videos/",
        read=partial(read, names=VAL_NAMES, files=VAL_FILES),
        protocols=_protocols(lmms_val_letter),
        expected=19140,
        paper={"PVC-2B": 62.9, "PVC-8B": 68.4, "Dynamic-VLM-7B": 68.8, "Dynamic-VLM-14B": 72.1},
    ),
    Task(
        name="perceptiontest-test",
        about="Perception Test, multiple choice, test part, whose answers are held back",
        read=partial(read, names=TEST_NAMES, files=TEST_FILES),
        protocols=_protocols(lmms_test_letter),
        submission=submission,
        has_answers=False,
    ),
)
