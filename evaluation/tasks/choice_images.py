"""Multiple choice about one image: ScienceQA and SEED-Bench. Source: `eval/scienceqa`, `eval/seed`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pvc.evaluation.choices import is_answer, labels_of
from pvc.evaluation.data_files import build_records, fields_of, image_named, own_folder, unique_ids
from pvc.evaluation.letter_protocols import letter_choices
from pvc.evaluation.prompts import ANSWER_LETTER, lettered
from pvc.evaluation.records import DataError, Record, Shown
from pvc.evaluation.released_parsers import offered_letter
from pvc.evaluation.tables import read_json, read_jsonl
from pvc.evaluation.task import Metric, Protocol, Row, Task, keep_answer, percent
from pvc.evaluation.tasks.released import bare_question, released_settings

# ScienceQA


def read_scienceqa(data: Path) -> list[Record]:
    """The questions of the test split that have an image."""
    file = "scienceqa_test_img.jsonl"
    folder = own_folder(data, "scienceqa", [file])

    def build(line: Mapping[str, Any]) -> Record:
        image = line["image"]
        return Record(
            id=Path(image).parent.name or image,
            media=(image_named(image, folder),),
            question=line["question"],
            options=tuple(line["choices"]),
            answer=ascii_uppercase[line["answer"]],
            meta={"hint": line.get("hint") or ""},
        )

    path = folder / file
    return unique_ids(build_records(path, read_jsonl(path), build))


def scienceqa_question(record: Record, shown: Sequence[Shown]) -> str:
    """Hint where there is one, question, options, and the sentence that asks for a letter."""
    hint = record.meta["hint"]
    parts = [hint] if hint else []
    return "\n".join([*parts, record.question, lettered(record.options), ANSWER_LETTER])


def read_first_letter(answer: str, record: Record) -> str:
    """The released rule, where it finds a letter that was offered."""
    return offered_letter(answer, letter_choices(record.options))


SCIENCEQA = Task(
    name="scienceqa",
    about="ScienceQA, test, questions with an image: data/scienceqa",
    read=read_scienceqa,
    protocols={
        "internvl": Protocol(scienceqa_question, read_first_letter, is_answer, released_settings(6, 100)),
    },
    expected=2017,
    paper={"PVC-2B": 94.9, "PVC-8B": 97.7},
    paper_protocol="internvl",
)


# SEED-Bench

_QUESTIONS = ("seed.jsonl", "llava-seed-bench.jsonl")
_ANNOTATIONS = "SEED-Bench.json"
_VIDEO_FRAMES = "SEED-Bench-video"  # LLaVA's list has frames of the video questions too


def read_seed(data: Path) -> list[Record]:
    """The image questions; with `SEED-Bench.json`, its answers and types."""
    folder, file = _seed_files(data)
    path = folder / file
    annotations = _seed_annotations(folder / _ANNOTATIONS)
    lines = [line for line in read_jsonl(path) if not line.get("image", "").startswith(_VIDEO_FRAMES)]
    return unique_ids(build_records(path, lines, lambda line: _seed_record(line, folder, annotations)))


def _seed_files(data: Path) -> tuple[Path, str]:
    """(folder, name of the file of questions)."""
    folders = [data / "SEED", data / "seed", data]
    for folder in folders:
        for file in _QUESTIONS:
            if (folder / file).exists():
                return folder, file
    raise DataError(f"missing: {folders[0] / _QUESTIONS[0]} (or {_QUESTIONS[1]} with {_ANNOTATIONS})")


def _seed_annotations(path: Path) -> dict[str, tuple[str, str]] | None:
    """Question -> (answer, name of its type); None where the file is missing."""
    if not path.exists():
        return None
    content = read_json(path)
    with fields_of(path):
        names = {number: name for name, number in content["question_type"].items()}
        return {
            str(entry["question_id"]): (entry["answer"], names[entry["question_type_id"]])
            for entry in content["questions"]
        }


def _seed_record(
    line: Mapping[str, Any], folder: Path, annotations: Mapping[str, tuple[str, str]] | None
) -> Record:
    question = str(line["question_id"])
    if annotations is None and "answer" not in line:
        raise DataError(f"missing: {folder / _ANNOTATIONS}, since the file of questions has no answers")
    if annotations is not None and question not in annotations:
        raise DataError(f"{folder / _ANNOTATIONS} has no question {question}")

    meta = {"own_answer": line.get("answer")}
    answer = line.get("answer")
    if annotations is not None:
        answer, meta["type"] = annotations[question]

    image = image_named(line["image"], folder)
    return Record(question, (image,), line["text"], answer=answer, meta=meta, group=line["image"])


def score_seed(parsed: str, record: Record) -> float:
    """The first character with `SEED-Bench.json`, as `calculation.py`; without it, the whole answer."""
    found = parsed[:1] if "type" in record.meta else parsed
    return is_answer(found, record)


def _seed_whole_answers(rows: Sequence[Row]) -> Mapping[str, float]:
    """What `evaluate_seed.py` prints: the whole answer equals the one in the file of questions."""
    equal = [row._replace(score=float(row.parsed == row.record.meta["own_answer"])) for row in rows]
    return {"Acc@1 of whole answers": percent(equal)}


SEED = Task(
    name="seed",
    about="SEED-Bench, image questions: data/SEED; SEED-Bench.json gives types and the published score",
    read=read_seed,
    protocols={
        "internvl": Protocol(
            bare_question,
            keep_answer,
            score_seed,
            released_settings(6, 100),
            Metric(labels=labels_of("type"), others=_seed_whole_answers),
        ),
    },
    expected=14232,
    paper={"PVC-2B": 73.2, "PVC-8B": 77.2},
    paper_protocol="internvl",
)

ALL = (SCIENCEQA, SEED)
