"""OCRBench: 1000 questions about text in images, scored by containment. Not released with PVC.

The values of the paper's table come from VLMEvalKit, whose prompt and score are the default.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvc.evaluation.data_files import build_records, find_files, read_rows, unique_ids
from pvc.evaluation.prompts import SINGLE_WORD
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.released_parsers import listed_texts
from pvc.evaluation.tables import Base64Image, ParquetImage, first_existing, read_parquet
from pvc.evaluation.task import Metric, Protocol, Row, Settings, Task, keep_answer
from pvc.evaluation.tasks.released import bare_question, greedy

FORMULAS = "Handwritten Mathematical Expression Recognition"
FORMULA_SET = "HME100k"
_FILES = ("OCRBench.json", "OCRBench/OCRBench.json", "test-*.parquet", "data/test-*.parquet", "OCRBench.tsv")
_FULL_WIDTH = {code + 0xFEE0: code for code in range(0x21, 0x7F)} | {0x3000: 0x20}


def read_ocrbench(data: Path) -> list[Record]:
    """The records of the original JSON, of the Hub's parquet file, or of VLMEvalKit's table."""
    _, paths = find_files(data, ["OCRBench", "ocrbench"], _FILES)
    read = {".json": _json_records, ".parquet": _parquet_records, ".tsv": _table_records}
    return unique_ids([record for path in paths for record in read[path.suffix](path)])


def _json_records(path: Path) -> list[Record]:
    folder = path.parent

    def build(entry: Mapping[str, Any]) -> Record:
        image = entry["image_path"]
        return Record(
            id=f"{entry['dataset_name']}/{entry.get('id', image)}",
            media=(Media("image", first_existing(folder / image, folder / "OCRBench_Images" / image)),),
            question=entry["question"],
            answer=_references(entry["answers"]),
            meta={"type": entry["type"], "set": entry["dataset_name"]},
        )

    return build_records(path, read_rows(path), build)


def _parquet_records(path: Path) -> list[Record]:
    rows = read_parquet(path, leave_out=["image"])

    def build(number: int) -> Record:
        entry = rows[number]
        return Record(
            id=str(number),
            media=(Media("image", ParquetImage(path, number, "image")),),
            question=entry["question"],
            answer=_references(entry["answer"]),
            meta={"type": entry["question_type"], "set": entry["dataset"]},
        )

    return build_records(path, range(len(rows)), build)


def _table_records(path: Path) -> list[Record]:
    def build(entry: Mapping[str, Any]) -> Record:
        name = f"{path}, image of question {entry['index']}"
        return Record(
            id=entry["index"],
            media=(Media("image", Base64Image(entry["image"], name)),),
            question=entry["question"],
            answer=_references(entry["answer"]),
            meta={
                "type": entry["category"],
                "set": FORMULA_SET if entry["category"] == FORMULAS else "",
            },
        )

    return build_records(path, read_rows(path), build)


def _references(answers: Any) -> list[str]:
    """The references: a text, a list, or the text of a list."""
    if not isinstance(answers, str):
        return [str(answer) for answer in answers]
    try:
        return listed_texts(answers)
    except ValueError:
        return [answers]


# prompts


def ask_for_word(record: Record, shown: Sequence[Shown]) -> str:
    """As VLMEvalKit asks an InternVL2."""
    return f"<image>\n{record.question}\n{SINGLE_WORD}"


def ask_stripped(record: Record, shown: Sequence[Shown]) -> str:
    """As lmms-eval asks: the question alone."""
    return record.question.strip()


# scores


def contains_reference(answer: str, references: Sequence[str], *, is_formula: bool) -> float:
    """1 where a reference is part of the answer. Case does not count; in formulas it does, spaces do not."""
    return float(any(_compared(text, is_formula) in _compared(answer, is_formula) for text in references))


def _compared(text: str, is_formula: bool) -> str:
    if is_formula:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


def score_vlmevalkit(parsed: str, record: Record) -> float:
    """The question's type decides what is a formula."""
    return contains_reference(parsed, record.answer, is_formula=record.meta["type"] == FORMULAS)


def score_official(parsed: str, record: Record) -> float:
    """The data set decides what is a formula."""
    return contains_reference(parsed, record.answer, is_formula=record.meta["set"] == FORMULA_SET)


def score_lmms(parsed: str, record: Record) -> float:
    """As the official score, after full-width letters and digits became plain ones."""
    references = [text.translate(_FULL_WIDTH) for text in record.answer]
    is_formula = record.meta["set"] == FORMULA_SET
    return contains_reference(parsed.translate(_FULL_WIDTH), references, is_formula=is_formula)


def number_right(rows: Sequence[Row]) -> float:
    """How many answers are right: of 1000 in the whole benchmark."""
    return sum(row.score for row in rows)


def _labels(record: Record) -> Mapping[str, str]:
    kind = record.meta["type"]
    return {"part": "Text Recognition" if kind.endswith("Recognition") and kind != FORMULAS else kind} | (
        {"type": kind}
    )


METRIC = Metric(
    name="right answers",
    headline=number_right,
    labels=_labels,
    sub_score=number_right,
    is_proportion=False,
)


def _settings(max_new_tokens: int) -> Settings:
    return Settings(max_tiles=24, generation=greedy(max_new_tokens))


OCRBENCH = Task(
    name="ocrbench",
    about="OCRBench, 1000 questions: OCRBench/OCRBench.json with its images, or its parquet or TSV copy",
    read=read_ocrbench,
    protocols={
        "vlmevalkit": Protocol(ask_for_word, keep_answer, score_vlmevalkit, _settings(4096), METRIC),
        "lmms": Protocol(ask_stripped, keep_answer, score_lmms, _settings(128), METRIC),
        "official": Protocol(bare_question, keep_answer, score_official, _settings(128), METRIC),
    },
    expected=1000,
    paper={"PVC-2B": 796, "PVC-8B": 807},
    paper_protocol="vlmevalkit",
)

ALL = (OCRBENCH,)
