"""NExT-QA, multiple choice: causal, temporal and descriptive questions with five options."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_file, read_rows, video_finder
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.tables import read_json
from pvc.evaluation.task import Metric, Protocol, Row, Settings, SubmissionFile, Task

GROUPS = {
    "CW": "Why",
    "CH": "How",
    "TN": "Bef&Aft",
    "TP": "Bef&Aft",
    "TC": "When",
    "DC": "Cnt",
    "DL": "Loc",
    "DO": "Other",
}
KINDS = {"C": "Acc_C", "T": "Acc_T", "D": "Acc_D"}  # by the first letter of a type


def read(data: Path) -> list[Record]:
    """`test.csv` (in `nextqa/` or beside it), and the videos: by `map_vid_vidorID.json`, or flat."""
    names = ("NExTQA", "NExT-QA", "nextqa", "NextQA")
    tables = ("test.csv", "*/test.csv", "MC/test-*.parquet", "test-*.parquet")
    folder, table = find_file(data, names, tables)
    find_video = video_finder([folder / "NExTVideo", folder / "videos", folder / "video", folder])
    paths = _mapping(folder, table)

    def build(row: Mapping) -> Record:
        video = str(row["video"])
        path = find_video(paths.get(video, video))
        if not path.exists():
            path = find_video(video)
        return Record(
            id=f"{video}_{row['qid']}",
            media=(Media("video", path),),
            question=row["question"],
            options=tuple(str(row[f"a{number}"]) for number in range(5)),
            answer=choices.letter(int(row["answer"])),
            meta={"type": row["type"], "group": GROUPS[row["type"]], "kind": KINDS[row["type"][0]]},
            group=video,
        )

    return build_records(table, read_rows(table), build)


def _mapping(folder: Path, table: Path) -> dict[str, str]:
    """video -> its file under `NExTVideo/`, where the map is there."""
    for place in (folder, table.parent):
        path = place / "map_vid_vidorID.json"
        if path.exists():
            return read_json(path)
    return {}


def question_alone(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's as released: nothing asks for a letter."""
    lines = [f"{choices.letter(index)}. {option}" for index, option in enumerate(record.options)]
    return "\n".join((record.question, *lines))


def others(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy on causal, temporal and descriptive questions."""
    return choices.accuracies(rows, "kind")


METRIC = Metric(labels=choices.labels_of("group", "type"), others=others)


def submission(rows: Sequence[Row]) -> list[SubmissionFile]:
    """The file that the official script scores: {video_qid: indices}, -1 where no letter was read."""
    choices.check_submitted(rows, [row.record.id for row in rows])
    results = {
        row.record.id: {
            "prediction": choices.index_of_letter(row.parsed, missing=-1),
            "answer": choices.index_of_letter(row.record.answer, missing=-1),
        }
        for row in rows
    }
    return [SubmissionFile("nextqa_mc.json", results)]


def _protocol(text: choices.Prompt, parser: str, settings: Settings) -> Protocol:
    return Protocol(text, choices.read_as(parser), choices.is_answer, settings, METRIC)


ALL = (
    Task(
        name="nextqa-mc",
        about="NExT-QA, multiple choice, test part: test.csv and NExTVideo/ or videos/",
        read=read,
        protocols={
            "default": _protocol(choices.ask_letter, "default", choices.SETTINGS),
            "lmms": _protocol(question_alone, "lmms_nextqa", choices.LMMS_SETTINGS),
        },
        expected=8564,
        paper={"PVC-2B": 73.4, "PVC-8B": 82.0},
        submission=submission,
    ),
)
