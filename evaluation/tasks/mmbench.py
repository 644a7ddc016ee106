"""MMBench in English and Chinese. A question is asked several times, with its options rotated.

    circular   a question counts where all its rotations are right
    vanilla    the first rotation alone

Source: `eval/mmbench`; circular scoring without a judge as in VLMEvalKit.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pvc.evaluation.choices import check_submitted, is_answer, labels_of
from pvc.evaluation.data_files import build_records, fields_of, unique_ids
from pvc.evaluation.letter_protocols import internvl, vlmevalkit_can_infer
from pvc.evaluation.metrics import rows_together
from pvc.evaluation.prompts import ANSWER_LETTER, ANSWER_LETTER_CN
from pvc.evaluation.records import DataError, Media, Record, Shown
from pvc.evaluation.released_parsers import offered_letter
from pvc.evaluation.statistics import Additive, Part
from pvc.evaluation.tables import Base64Image, read_csv
from pvc.evaluation.task import Metric, Protocol, Row, Settings, SubmissionFile, Task, percent
from pvc.evaluation.tasks.released import greedy, released_settings

LETTERS = "ABCD"
ROTATIONS = 1_000_000  # index % this is the question, index // this its rotation

_SHORTEST_IMAGE = 64  # a shorter text in the column is the index of the row that holds the image


def read_mmbench(*files: str) -> Callable[[Path], list[Record]]:
    """A reader of the first of these tables that exists, in `mmbench` or in the root."""

    def read(data: Path) -> list[Record]:
        places = [folder / file for file in files for folder in (data / "mmbench", data)]
        table = next((path for path in places if path.exists()), None)
        if table is None:
            raise DataError("missing: one of " + ", ".join(map(str, places)))
        return table_records(table)

    return read


def table_records(table: Path) -> list[Record]:
    """The rows of a table. An empty option is not asked."""
    rows = read_csv(table, delimiter="\t")
    with fields_of(table):
        images = _images(table, rows)
    return unique_ids(build_records(table, rows, lambda row: _record(table, row, images)))


def _record(table: Path, row: Mapping[str, str], images: Mapping[str, Base64Image]) -> Record:
    offered = {letter: row[letter] for letter in LETTERS if row.get(letter)}
    number = int(row["index"])
    return Record(
        id=row["index"],
        media=(Media("image", _image(table, row, images)),),
        question=row["question"],
        options=tuple(offered.values()),
        answer=row.get("answer") or None,
        meta={**_facts(row), "index": number, "options": offered},
        group=str(number % ROTATIONS),
    )


def _facts(row: Mapping[str, str]) -> dict[str, str]:
    return {name: row.get(name, "") for name in ("hint", "category", "l2-category", "split")}


def _images(table: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, Base64Image]:
    """Index -> image. Rotations hold equal texts, and share one."""
    by_text: dict[str, Base64Image] = {}
    images = {}
    for row in rows:
        text = row["image"]
        if len(text) >= _SHORTEST_IMAGE:
            name = f"{table}, image of question {row['index']}"
            images[row["index"]] = by_text.setdefault(text, Base64Image(text, name))
    return images


def _image(table: Path, row: Mapping[str, str], images: Mapping[str, Base64Image]) -> Base64Image:
    """The row's own image, or that of the row whose index it holds."""
    for index in (row["index"], row["image"]):
        if index in images:
            return images[index]
    raise DataError(f"{table}: question {row['index']} has no image, nor the index of a row with one")


def question_with_hint(sentence: str) -> Callable[[Record, Sequence[Shown]], str]:
    """Hint where there is one, question, options, and the sentence that asks for a letter."""

    def prompt(record: Record, shown: Sequence[Shown]) -> str:
        hint = [record.meta["hint"]] if record.meta["hint"] else []
        options = [f"{letter}. {text}" for letter, text in record.meta["options"].items()]
        return "\n".join([*hint, record.question, *options, sentence])

    return prompt


def read_offered_letter(answer: str, record: Record) -> str:
    """The released rule, where it finds a letter that was offered."""
    return offered_letter(answer, record.meta["options"])


def read_inferred_letter(answer: str, record: Record) -> str:
    """VLMEvalKit's rule for answers that need no judge."""
    options = record.meta["options"]
    letter = vlmevalkit_can_infer(answer, options)
    return letter if letter in options else ""


def _right_questions(rows: Sequence[Row]) -> Mapping[str, Part]:
    questions = rows_together(rows, lambda record: record.group)
    right = [all(row.score for row in rotations) for rotations in questions]
    return {"": (100 * sum(right), len(right))}


circular = Additive(_right_questions)  # the share of questions of which all rotations are right, times 100


def vanilla(rows: Sequence[Row]) -> Mapping[str, float]:
    """The accuracy over first rotations."""
    first = [row for row in rows if row.record.meta["index"] < ROTATIONS]
    return {"vanilla accuracy": percent(first)}


CIRCULAR = Metric(
    name="circular accuracy",
    headline=circular,
    labels=labels_of("l2-category", "category"),
    sub_score=circular,
    others=vanilla,
    is_proportion=False,
)


def _table_row(row: Row) -> dict[str, Any]:
    """A line of the table that the released script writes."""
    meta = row.record.meta
    line: dict[str, Any] = {"index": meta["index"], "question": row.record.question}
    line.update({letter: meta["options"].get(letter) for letter in LETTERS})
    line["prediction"] = internvl(row.answer or "", meta["options"])
    if row.record.answer is not None:
        line["answer"] = row.record.answer
    return {**line, "split": meta["split"]}


def _submission(name: str) -> Callable[[Sequence[Row]], list[SubmissionFile]]:
    """The table under that name."""

    def files(rows: Sequence[Row]) -> list[SubmissionFile]:
        check_submitted(rows, [row.record.id for row in rows])
        return [SubmissionFile(name, [_table_row(row) for row in rows])]

    return files


def _task(name: str, released: str, others: tuple[str, ...], expected: int, paper: dict) -> Task:
    """A split in a language. `released`: the table's name in the released script."""
    sentence = ANSWER_LETTER_CN if "cn" in name else ANSWER_LETTER
    prompt = question_with_hint(sentence)
    settings = released_settings(6, 100, ("split_sizes",))
    is_test = "test" in name
    held_back = ", answers held back (server: mmbench.opencompass.org.cn)" if is_test else ""

    return Task(
        name=name,
        about=f"MMBench {name.removeprefix('mmbench-')}{held_back}: data/mmbench/{released}.tsv",
        read=read_mmbench(f"{released}.tsv", *others),
        protocols={
            "internvl": Protocol(prompt, read_offered_letter, is_answer, settings, CIRCULAR),
            "vlmevalkit": Protocol(
                prompt, read_inferred_letter, is_answer, Settings(6, generation=greedy(4096)), CIRCULAR
            ),
        },
        expected=expected,
        paper=paper,
        paper_protocol="internvl",
        released_names=(released,),
        submission=_submission(f"{released}.xlsx"),
        has_answers=not is_test,
    )


PAPER = {"PVC-2B": 75.8, "PVC-8B": 83.9}

ALL = (
    _task("mmbench-dev-en", "mmbench_dev_20230712", ("MMBench_DEV_EN.tsv",), 4329, {}),
    _task("mmbench-test-en", "mmbench_test_en_20231003", ("MMBench_TEST_EN.tsv",), 6666, PAPER),
    _task("mmbench-dev-cn", "mmbench_dev_cn_20231003", ("MMBench_DEV_CN.tsv",), 4329, {}),
    _task("mmbench-test-cn", "mmbench_test_cn_20231003", ("MMBench_TEST_CN.tsv",), 6666, {}),
)
