"""EgoSchema: three minutes of egocentric video, one question. Answers of 500 of the 5031 are public."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_file, read_rows, video_finder
from pvc.evaluation.records import DataError, Media, Record
from pvc.evaluation.tables import read_json
from pvc.evaluation.task import Metric, Protocol, Row, Settings, SubmissionFile, Task

NAMES = ("EgoSchema", "egoschema")
NUMBER = 5031  # the server takes answers to all of them
UNREAD = 0  # what a submission says where no letter was read: the server takes 0 to 4 alone

logger = logging.getLogger(__name__)


def read(data: Path) -> list[Record]:
    """All questions: `questions.json`, or `MC/test-*.parquet` of the Hub's copy; `videos/<uid>.mp4`."""
    return _read(data, ("questions.json", "MC/test-*.parquet"))


def read_subset(data: Path) -> list[Record]:
    """Those with a public answer: `subset_answers.json`, or `Subset/test-*.parquet`."""
    records = _read(data, ("questions.json", "Subset/test-*.parquet"))
    answered = [record for record in records if record.answer is not None]
    if not answered:
        raise DataError(f"no question has a public answer: subset_answers.json is missing in {data}")
    return answered


def _read(data: Path, tables: Sequence[str]) -> list[Record]:
    folder, table = find_file(data, NAMES, tables)
    find_video = video_finder([folder / "videos", folder / "video", folder])
    answers: dict[str, Any] = {}
    if (table.parent / "subset_answers.json").exists():
        answers = read_json(table.parent / "subset_answers.json")

    def build(row: Mapping) -> Record:
        if "q_uid" in row:
            uid = row["q_uid"]
            options = [row[f"option {number}"] for number in range(5)]
            right = answers.get(uid)
        else:
            uid = row["video_idx"]
            options = [choices.without_letter(line) for line in row["option"]]
            right = row.get("answer")
        return Record(
            id=uid,
            media=(Media("video", find_video(uid)),),
            question=row["question"],
            options=tuple(options),
            answer=None if right in (None, "") else choices.letter(int(right)),
            group=uid,
        )

    return build_records(table, read_rows(table), build)


def submission(rows: Sequence[Row]) -> list[SubmissionFile]:
    """{uid: 0 to 4} for the server, and Kaggle's table of the same."""
    uids = [row.record.id for row in rows]
    choices.check_submitted(rows, uids)
    indices = [choices.index_of_letter(row.parsed or "", missing=-1) for row in rows]

    wrong = [uid for uid, row, index in zip(uids, rows, indices) if index >= len(row.record.options)]
    if wrong:
        raise ValueError(f"answers out of range, which the server refuses: {wrong[:5]}")
    unread = indices.count(-1)
    if unread:
        logger.warning("%d answers have no readable letter: submitted as %d", unread, UNREAD)
    if len(rows) != NUMBER:
        logger.warning("%d answers: the server takes all %d together", len(rows), NUMBER)

    submitted = [UNREAD if index < 0 else index for index in indices]
    table = [{"q_uid": uid, "answer": index} for uid, index in zip(uids, submitted)]
    return [
        SubmissionFile("egoschema.json", dict(zip(uids, submitted))),
        SubmissionFile("egoschema_kaggle.csv", table),
    ]


def _protocol(text: choices.Prompt, parser: str, settings: Settings) -> Protocol:
    return Protocol(text, choices.read_as(parser), choices.is_answer, settings, Metric())


PROTOCOLS = {
    "default": _protocol(choices.ask_letter, "default", choices.SETTINGS),
    "lmms": _protocol(choices.ask_letter_of_text, "lmms_egoschema", choices.LMMS_SETTINGS),
    "dynamic-vlm": choices.dynamic_vlm(choices.ask_one_letter),
}

ALL = (
    Task(
        name="egoschema",
        about="EgoSchema, all questions: a file for its server; questions.json and videos/",
        read=read,
        protocols=PROTOCOLS,
        expected=NUMBER,
        paper={"PVC-2B": 49.8, "PVC-8B": 59.6, "Dynamic-VLM-7B": 68.6, "Dynamic-VLM-14B": 75.2},
        submission=submission,
        has_answers=False,
    ),
    Task(
        name="egoschema-subset",
        about="EgoSchema, the 500 questions with public answers: and subset_answers.json",
        read=read_subset,
        protocols=PROTOCOLS,
        expected=500,
    ),
)
