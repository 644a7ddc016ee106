"""MME: two yes-or-no questions about each image, in ten tasks of perception and four of cognition.

    score of a task   100 * share of right answers + 100 * share of images with both answers right

Source: `eval/mme` of the released code, and MME's `calculation.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pvc.evaluation.choices import is_answer, rows_by
from pvc.evaluation.data_files import unique_ids
from pvc.evaluation.metrics import rows_together
from pvc.evaluation.records import DataError, Media, Record
from pvc.evaluation.released_parsers import plain_yes_no, yes_or_no
from pvc.evaluation.statistics import Additive, Part
from pvc.evaluation.tables import first_existing
from pvc.evaluation.task import Metric, Protocol, Row, Settings, Task
from pvc.evaluation.tasks.released import single_word_question

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASK_NAMES = (*PERCEPTION, *COGNITION)

_IMAGES = "MME_Benchmark_release_version"
_QUESTIONS = "Your_Results"


def read_mme(data: Path) -> list[Record]:
    """The questions of `Your_Results`; where it is missing, of the text files beside the images."""
    folder = data / "mme" if (data / "mme").is_dir() else data
    images = folder if (folder / TASK_NAMES[0]).is_dir() else folder / _IMAGES
    questions = folder / _QUESTIONS

    has_files = questions.is_dir()
    lines = {
        task: _file_lines(questions / f"{task}.txt") if has_files else _folder_lines(images / task)
        for task in TASK_NAMES
    }
    _refuse_missing([task for task in TASK_NAMES if not lines[task]], questions if has_files else images)
    return [record for task in TASK_NAMES for record in _records(task, images / task, lines[task])]


def _refuse_missing(tasks: Sequence[str], folder: Path) -> None:
    if not tasks:
        return
    ending = ".txt" if folder.name == _QUESTIONS else ""
    missing = ", ".join(str(folder / f"{task}{ending}") for task in tasks)
    instead = "" if ending else f", nor is there a folder {folder.parent / _QUESTIONS}"
    raise DataError(f"missing (no questions found): {missing}{instead}")


def _file_lines(path: Path) -> list[list[str]]:
    """[image, question, answer] of each line of a file of `Your_Results`."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_fields(path, number, line, 3) for number, line in enumerate(lines, 1) if line.strip()]


def _fields(path: Path, number: int, line: str, expected: int) -> list[str]:
    fields = line.strip().split("\t")
    if len(fields) != expected:
        raise DataError(f"{path}, line {number} has {len(fields)} fields between tabs: expected {expected}")
    return fields


def _folder_lines(folder: Path) -> list[list[str]]:
    """[image, question, answer] from a folder of the original release.

    A text file with two lines for each image lies beside it, or in `questions_answers_YN`.
    """
    texts = sorted(folder.glob("*.txt")) or sorted(folder.glob("questions_answers_YN/*.txt"))
    names = {path.stem: path.name for path in _image_files(folder)}
    lines = []
    for path in texts:
        image = names.get(path.stem, f"{path.stem}.png")
        content = path.read_text(encoding="utf-8").splitlines()
        asked = [_fields(path, number, line, 2) for number, line in enumerate(content, 1) if line.strip()]
        lines += [[image, *fields] for fields in asked]
    return lines


def _image_files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "images"):
        if place.is_dir():
            yield from (path for path in place.iterdir() if path.suffix != ".txt" and path.is_file())


def _records(task: str, folder: Path, lines: Sequence[Sequence[str]]) -> list[Record]:
    """Two lines after one another are about one image."""
    records = []
    for number, (image, question, answer) in enumerate(lines):
        path = first_existing(folder / image, folder / "images" / image)
        record = Record(
            id=f"{task}/{image}",
            media=(Media("image", path),),
            question=question,
            answer=answer.lower(),
            meta={"task": task, "pair": (task, number // 2)},
            group=f"{task}/{image}",
        )
        records.append(record)
    return unique_ids(records)


def read_yes_or_no(answer: str, record: Record) -> str:
    """yes, no, or "" for anything else."""
    return yes_or_no(plain_yes_no(answer))


def _both_right(rows: Sequence[Row]) -> Part:
    """(100 times the number of images with two right answers, number of images)."""
    pairs = rows_together(rows, lambda record: record.meta["pair"])
    right = [len(pair) == 2 and all(row.score for row in pair) for pair in pairs]
    return 100 * sum(right), len(right)


def _task_parts(rows: Sequence[Row]) -> Mapping[str, Part]:
    """acc and acc_plus of each task."""
    parts: dict[str, Part] = {}
    for task, some in rows_by(rows, "task").items():
        parts[f"{task} acc"] = 100 * sum(row.score for row in some), len(some)
        parts[f"{task} acc_plus"] = _both_right(some)
    return parts


total = Additive(_task_parts, is_sum=True)  # the sum of the tasks' scores


def _values(rows: Sequence[Row]) -> Mapping[str, float]:
    """acc and acc_plus of each task, in percent."""
    return {name: value / number for name, (value, number) in _task_parts(rows).items()}


def _labels(record: Record) -> Mapping[str, str]:
    task = record.meta["task"]
    return {"part": "Perception" if task in PERCEPTION else "Cognition", "task": task}


MME = Task(
    name="mme",
    about="MME, perception and cognition: data/mme",
    read=read_mme,
    protocols={
        "internvl": Protocol(
            single_word_question,
            read_yes_or_no,
            is_answer,
            Settings(
                max_tiles=6,
                # sampling options without effect: the script hands them on
                generation={
                    "do_sample": False,
                    "top_k": 50,
                    "top_p": 0.9,
                    "num_beams": 1,
                    "max_new_tokens": 20,
                },
                chat_lists=("split_sizes",),
            ),
            Metric(
                name="perception + cognition",
                headline=total,
                labels=_labels,
                sub_score=total,
                others=_values,
                is_proportion=False,
            ),
        ),
    },
    expected=2374,
    paper={"PVC-2B": 1960, "PVC-8B": 2282},
    paper_protocol="internvl",
)

ALL = (MME,)
