"""MMMU, validation: 30 subjects, choices and short answers about one to seven images.

Source: `eval/mmmu` of the released code. There the first image alone is cut into tiles, after its sides were
doubled, and all tiles of all images stand in front of the question as one image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvc.evaluation.choices import labels_of
from pvc.evaluation.data_files import build_records
from pvc.evaluation.letter_protocols import letter_choices, muirbench
from pvc.evaluation.prompts import ANSWER_LETTER, SINGLE_WORD, lettered
from pvc.evaluation.records import DataError, Media, Record, Shown
from pvc.evaluation.released_parsers import (
    is_mmmu_answer,
    listed_texts,
    mmmu_open_values,
    offered_letter,
)
from pvc.evaluation.tables import ParquetImage, filled_columns, parquet_columns, read_parquet
from pvc.evaluation.task import ImagePlan, Metric, Protocol, Settings, Task
from pvc.evaluation.tasks.released import released_generation

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DOMAIN_OF = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects}

# in the order of the released script's table, which is that of their names
SUBJECTS = tuple(sorted(_DOMAIN_OF))

CHOICE = "multiple-choice"
_IMAGE_COLUMNS = tuple(f"image_{number}" for number in range(1, 8))


def read_mmmu(data: Path) -> list[Record]:
    """The validation files of all subjects: `<Subject>/validation-*.parquet`."""
    folders = [data / "mmmu", data / "MMMU", data]
    folder = next((place for place in folders if any(place.glob("*/validation-*.parquet"))), folders[0])
    files = {subject: sorted((folder / subject).glob("validation-*.parquet")) for subject in SUBJECTS}

    missing = [str(folder / subject / "validation-*.parquet") for subject in SUBJECTS if not files[subject]]
    if missing:
        raise DataError("missing:" + "".join(f"\n  {name}" for name in missing))
    return [record for subject in SUBJECTS for path in files[subject] for record in _records(path, subject)]


def _records(path: Path, subject: str) -> list[Record]:
    images = [name for name in parquet_columns(path) if name in _IMAGE_COLUMNS]
    rows = read_parquet(path, leave_out=images)
    filled = filled_columns(path, images)

    def build(number: int) -> Record:
        row = rows[number]
        media = [Media("image", ParquetImage(path, number, name)) for name in filled[number]]
        return Record(
            id=row["id"],
            media=tuple(media),
            question=row["question"].strip(),
            options=tuple(option.strip() for option in _texts(row["options"])),
            answer=_reference(row),
            meta={"type": row["question_type"], "subject": subject, "domain": _DOMAIN_OF[subject]},
        )

    return build_records(path, range(len(rows)), build)


def _texts(value: Any) -> list[str]:
    """The options: a list, or the text of one."""
    return listed_texts(value) if isinstance(value, str) else list(value)


def _reference(row: Mapping[str, Any]) -> str | list[str]:
    """A letter; of an open question a text, or several."""
    answer = row["answer"]
    is_list = row["question_type"] != CHOICE and isinstance(answer, str) and answer.startswith("[")
    if not is_list:
        return answer
    try:
        return listed_texts(answer)
    except ValueError:
        return answer


def mmmu_question(record: Record, shown: Sequence[Shown]) -> str:
    """Question, options, and the sentence for a letter or for a word. `<image 1>` stays a text."""
    sentence = ANSWER_LETTER if record.meta["type"] == CHOICE else SINGLE_WORD
    options = [lettered(record.options)] if record.options else []
    return "\n".join([record.question, *options, sentence]).strip()


def read_released(answer: str, record: Record) -> str:
    """The first letter of a choice; an open answer as it is."""
    return offered_letter(answer, letter_choices(record.options)) if record.options else answer


def read_official(answer: str, record: Record) -> str:
    """The letter in MMMU's own rule, which MuirBench took over, without its random draw."""
    return muirbench(answer, letter_choices(record.options)) if record.options else answer


def score_mmmu(parsed: str, record: Record) -> float:
    """Choices by their letter, of which there may be several right ones; open answers by their values."""
    if record.meta["type"] != CHOICE:
        return float(is_mmmu_answer(mmmu_open_values(parsed), record.answer))
    right = record.answer if isinstance(record.answer, list) else [record.answer]
    return float(parsed in right)


def first_image_doubled(position: int, images: int) -> ImagePlan:
    """The first image in up to six tiles after doubling, one tile of each other."""
    return ImagePlan(6, enlarge=2) if position == 0 else ImagePlan(1)


METRIC = Metric(labels=labels_of("domain", "subject"))
SETTINGS = Settings(
    max_tiles=6,
    plan_image=first_image_doubled,
    generation=released_generation(10),
    chat_lists=(),
)

MMMU = Task(
    name="mmmu-val",
    about="MMMU, validation, 30 subjects: data/MMMU/<Subject>/validation-*.parquet",
    read=read_mmmu,
    protocols={
        "internvl": Protocol(mmmu_question, read_released, score_mmmu, SETTINGS, METRIC),
        "official": Protocol(mmmu_question, read_official, score_mmmu, SETTINGS, METRIC),
    },
    expected=900,
    paper={"PVC-2B": 36.9, "PVC-8B": 50.9},
    paper_protocol="internvl",
)

ALL = (MMMU,)
