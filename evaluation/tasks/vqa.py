"""Questions about images that are answered with a word: AI2D, ChartQA, DocVQA, InfographicVQA, TextVQA.

Source of prompts, settings and scores: `eval/vqa` of the released code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvc.evaluation.choices import check_submitted, labels_of, mean_of_groups
from pvc.evaluation.data_files import build_records, fields_of, image_named, own_folder, unique_ids
from pvc.evaluation.metrics import anls, equal_but_for_case, relaxed_correctness, relaxed_score, soft_accuracy
from pvc.evaluation.records import DataError, Record
from pvc.evaluation.tables import read_json, read_jsonl
from pvc.evaluation.task import Metric, Protocol, Row, SubmissionFile, Task, keep_answer
from pvc.evaluation.tasks.released import (
    bare_question,
    released_settings,
    single_word_question,
    stripped_answer,
)


def read_questions(folder: Path, file: str, prefix: str = "") -> list[Record]:
    """The lines of a jsonl file: image, question, question_id, answer (absent where it is held back)."""

    def build(line: Mapping[str, Any]) -> Record:
        return Record(
            id=f"{prefix}{line['question_id']}",
            media=(image_named(line["image"], folder),),
            question=line["question"],
            answer=line.get("answer"),
            meta={"question_id": line["question_id"]},
            group=line["image"],
        )

    path = folder / file
    return unique_ids(build_records(path, read_jsonl(path), build))


def _with(record: Record, answer: Any, **meta: Any) -> Record:
    """The record with another reference and more facts."""
    return replace(record, answer=answer, meta={**record.meta, **meta})


# AI2D


def read_ai2d(data: Path) -> list[Record]:
    """Questions with their options and the sentence that asks for a letter, all in one text."""
    file = "test_vlmevalkit.jsonl"
    return read_questions(own_folder(data, "ai2diagram", [file]), file)


def _score_equal(parsed: str, record: Record) -> float:
    return equal_but_for_case(parsed, record.answer)


AI2D = Task(
    name="ai2d",
    about="AI2D, test, with the questions of VLMEvalKit: data/ai2diagram",
    read=read_ai2d,
    protocols={
        "internvl": Protocol(bare_question, keep_answer, _score_equal, released_settings(6, 10)),
    },
    expected=3088,
    paper={"PVC-2B": 76.3, "PVC-8B": 83.8},
    paper_protocol="internvl",
    released_names=("vqa-ai2d-test",),
)


# ChartQA


def read_chartqa(data: Path) -> list[Record]:
    """Both sets: questions by people, then questions made by a program."""
    sets = {"human": "test_human.jsonl", "augmented": "test_augmented.jsonl"}
    folder = own_folder(data, "chartqa", list(sets.values()))

    records = []
    for name, file in sets.items():
        for record in read_questions(folder, file, prefix=f"{name}/"):
            answers = record.answer if isinstance(record.answer, list) else [record.answer]
            records.append(_with(record, [str(answer) for answer in answers], set=name))
    return records


def _score_relaxed(parsed: str, record: Record) -> float:
    return relaxed_score(parsed, record.answer)


def _with_tolerance_of_reference(rows: Sequence[Row]) -> Mapping[str, float]:
    """The same mean where numbers may differ by 5 % of the reference, as ChartQA's authors define it."""
    scored = []
    for row in rows:
        pairs = [(reference, row.parsed) for reference in row.record.answer] if row.parsed else []
        scored.append(row._replace(score=float(any(relaxed_correctness(*pair) for pair in pairs))))
    return {"with 5 % of the reference": mean_of_groups("set")(scored)}


CHARTQA = Task(
    name="chartqa",
    about="ChartQA, test, human and augmented: data/chartqa",
    read=read_chartqa,
    protocols={
        "internvl": Protocol(
            single_word_question,
            stripped_answer,
            _score_relaxed,
            released_settings(12, 100),
            Metric(
                name="relaxed accuracy, mean of human and augmented",
                headline=mean_of_groups("set"),
                labels=labels_of("set"),
                others=_with_tolerance_of_reference,
                is_proportion=False,
            ),
        ),
    },
    expected=2500,
    paper={"PVC-2B": 78.9, "PVC-8B": 84.1},
    paper_protocol="internvl",
    released_names=("vqa-chartqa-test",),
)


# DocVQA and InfographicVQA

_TYPES = {
    "answer type": (
        "answer_type",
        {
            "image span": "Image-Span",
            "question span": "Question-Span",
            "multiple spans": "Multi-Span",
            "non span": "None span",
        },
    ),
    "evidence": (
        "evidence",
        {
            "table/list": "Table/list",
            "textual": "Text",
            "photo/pciture/visual_objects": "Visual/Layout",
            "figure": "Figure",
            "map": "Map",
        },
    ),
    "operation": (
        "operation/reasoning",
        {"comparison": "Sorting", "arithmetic": "Arithmetic", "counting": "Counting"},
    ),
}


def annotation_types(annotation: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What kinds of answer, evidence and operation a question has, as InfographicVQA's script names them."""
    types = {}
    for kind, (field, names) in _TYPES.items():
        found = annotation.get(field) or []
        types[kind] = tuple(names.get(text.lower(), text) for text in found)
    return {kind: found for kind, found in types.items() if found}


def read_documents(folder: Path, questions: str, annotations: str | None = None) -> list[Record]:
    """Questions about documents; with an annotation file, all accepted answers from it.

    Raises:
        DataError: a question has no annotation.
    """
    records = read_questions(folder, questions)
    if annotations is None:
        return [_with(record, None, annotation=record.answer) for record in records]

    path = folder / annotations
    with fields_of(path):
        entries = {str(entry["questionId"]): entry for entry in read_json(path)["data"]}
        return [_annotated(record, entries, path) for record in records]


def _annotated(record: Record, entries: Mapping[str, Mapping[str, Any]], path: Path) -> Record:
    question = record.meta["question_id"]
    if str(question) not in entries:
        raise DataError(f"{path} has no question {question}")
    entry = entries[str(question)]
    return _with(record, entry["answers"], annotation=record.answer, **annotation_types(entry))


def read_docvqa_val(data: Path) -> list[Record]:
    """Validation, with the answers of `val/val_v1.0.json`."""
    files = ["val.jsonl", "val/val_v1.0.json"]
    return read_documents(own_folder(data, "docvqa", files), *files)


def read_docvqa_test(data: Path) -> list[Record]:
    """Test, without answers."""
    return read_documents(own_folder(data, "docvqa", ["test.jsonl"]), "test.jsonl")


def read_infovqa_val(data: Path) -> list[Record]:
    """Validation, with the answers and types of its annotation file."""
    files = ["val.jsonl", "infographicsVQA_val_v1.0_withQT.json"]
    return read_documents(own_folder(data, "infographicsvqa", files), *files)


def read_infovqa_test(data: Path) -> list[Record]:
    """Test, without answers."""
    return read_documents(own_folder(data, "infographicsvqa", ["test.jsonl"]), "test.jsonl")


def _score_anls(parsed: str, record: Record) -> float:
    return anls(parsed, record.answer) if record.answer else 0.0


ANLS = Metric(name="ANLS", labels=labels_of(*_TYPES), is_proportion=False)


def document_protocol(max_tiles: int) -> Protocol:
    """The word or phrase that answers a question about a document."""
    return Protocol(single_word_question, keep_answer, _score_anls, released_settings(max_tiles, 100), ANLS)


def _answers(rows: Sequence[Row]) -> list[tuple[Row, Any, str]]:
    """(row, its question's number, its answer). A failed row has an empty answer."""
    check_submitted(rows, [row.record.id for row in rows])
    return [(row, row.record.meta["question_id"], row.answer or "") for row in rows]


def _list_of(name: str) -> Callable[[Sequence[Row]], list[SubmissionFile]]:
    """A list of numbers and answers."""

    def files(rows: Sequence[Row]) -> list[SubmissionFile]:
        content = [{"questionId": number, "answer": answer} for _, number, answer in _answers(rows)]
        return [SubmissionFile(name, content)]

    return files


def _list_with_questions(name: str) -> Callable[[Sequence[Row]], list[SubmissionFile]]:
    """A list as the released script writes it where it keeps questions and annotations."""

    def files(rows: Sequence[Row]) -> list[SubmissionFile]:
        content = []
        for row, number, answer in _answers(rows):
            entry = {
                "question": single_word_question(row.record, ()),
                "questionId": number,
                "answer": answer,
                "annotation": row.record.meta["annotation"],
            }
            content.append(entry)
        return [SubmissionFile(name, content)]

    return files


DOCVQA_VAL = Task(
    name="docvqa-val",
    about="DocVQA, validation: data/docvqa",
    read=read_docvqa_val,
    protocols={"internvl": document_protocol(18)},
    expected=5349,
    released_names=("vqa-docvqa-val",),
    submission=_list_with_questions("docvqa_val.json"),
)

DOCVQA_TEST = Task(
    name="docvqa-test",
    about="DocVQA, test, answers held back (server: rrc.cvc.uab.es): data/docvqa",
    read=read_docvqa_test,
    protocols={"internvl": document_protocol(18)},
    expected=5188,
    paper={"PVC-2B": 87.7, "PVC-8B": 92.5},
    paper_protocol="internvl",
    released_names=("vqa-docvqa-test",),
    submission=_list_of("docvqa_test.json"),
    has_answers=False,
)

INFOVQA_VAL = Task(
    name="infovqa-val",
    about="InfographicVQA, validation: data/infographicsvqa",
    read=read_infovqa_val,
    protocols={"internvl": document_protocol(24)},
    expected=2801,
    released_names=("vqa-infovqa-val",),
    submission=_list_with_questions("infographicsvqa_val.json"),
)

INFOVQA_TEST = Task(
    name="infovqa-test",
    about="InfographicVQA, test, answers held back (server: rrc.cvc.uab.es): data/infographicsvqa",
    read=read_infovqa_test,
    protocols={"internvl": document_protocol(24)},
    expected=3288,
    paper={"PVC-2B": 59.9, "PVC-8B": 75.0},
    paper_protocol="internvl",
    released_names=("vqa-infovqa-test",),
    submission=_list_with_questions("infographicsvqa_test.json"),
    has_answers=False,
)


# TextVQA


def read_textvqa(data: Path) -> list[Record]:
    """Validation, with the ten answers of people to each question."""
    files = ["textvqa_val.jsonl", "textvqa_val_annotations.json"]
    folder = own_folder(data, "textvqa", files)
    path = folder / files[1]
    with fields_of(path):
        people = {
            entry["question_id"]: [given["answer"] for given in entry["answers"]]
            for entry in read_json(path)["annotations"]
        }

    records = []
    for record in read_questions(folder, files[0]):
        question = record.meta["question_id"]
        answers = people.get(question, [])
        if len(answers) != 10:
            raise DataError(f"{path}: question {question} has {len(answers)} answers: expected 10")
        records.append(_with(record, answers))
    return records


def _score_soft(parsed: str, record: Record) -> float:
    return soft_accuracy(parsed, record.answer)


TEXTVQA = Task(
    name="textvqa",
    about="TextVQA, validation: data/textvqa",
    read=read_textvqa,
    protocols={
        "internvl": Protocol(
            single_word_question,
            keep_answer,
            _score_soft,
            released_settings(6, 10),
            Metric(name="soft accuracy", is_proportion=False),
        ),
    },
    expected=5000,
    paper={"PVC-2B": 76.2, "PVC-8B": 80.0},
    paper_protocol="internvl",
    released_names=("vqa-textvqa-val",),
)

ALL = (AI2D, CHARTQA, DOCVQA_VAL, DOCVQA_TEST, INFOVQA_VAL, INFOVQA_TEST, TEXTVQA)
