"""Questions about several images: MuirBench and MMIU."""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_file, find_files, read_rows
from pvc.evaluation.prompts import ANSWER_LETTER, DYNAMIC_VLM_LETTER, image_lines, lettered
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.tables import ParquetImage, parquet_list_lengths, read_parquet
from pvc.evaluation.task import ImagePlan, Metric, Protocol, Row, Settings, Task

IMAGE = "<image>"
HINT = "Hint: Please provide the correct option letter, such as A, B, C, D, directly."


def as_list(value: Any) -> list:
    """A list, or the text of one."""
    return ast.literal_eval(value) if isinstance(value, str) and value.startswith("[") else list(value)


# --- MuirBench


def read_muirbench(data: Path) -> list[Record]:
    """The Hub's `data/test-*.parquet`, with the images in it."""
    names = ("MUIRBENCH", "MuirBench", "muirbench")
    _, tables = find_files(data, names, ("data/test-*.parquet", "test-*.parquet"))

    records = []
    for table in tables:
        numbers = parquet_list_lengths(table, "image_list")
        rows = read_parquet(table, leave_out=("image_list",))
        described = [
            {**row, "row": index, "images": number} for index, (row, number) in enumerate(zip(rows, numbers))
        ]
        records += build_records(table, described, lambda row, table=table: _muirbench_record(table, row))
    return records


def _muirbench_record(table: Path, row: Mapping) -> Record:
    images = [
        Media("image", ParquetImage(table, row["row"], "image_list", position))
        for position in range(row["images"])
    ]
    return Record(
        id=str(row["idx"]),
        media=tuple(images),
        question=row["question"],
        options=tuple(as_list(row["options"])),
        answer=row["answer"],
        meta={
            "task": row["task"],
            "image_relation": row.get("image_relation"),
            "image_type": row.get("image_type"),
            "counterpart": row.get("counterpart_idx"),
        },
    )


def placed(text: str, images: int) -> str:
    """A text with one mark for each image, or with none, where all are put in front.

    Marks stand in questions and options. Images without one come first, marks without an image go.
    """
    marks = text.count(IMAGE)
    if marks in (0, images):
        return text
    if marks < images:
        return f"{IMAGE}\n" * (images - marks) + text
    parts = text.split(IMAGE)
    return IMAGE.join(parts[: images + 1]) + "".join(parts[images + 1 :])


def muirbench_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The official one, with images where the question has their marks."""
    options = lettered(record.options, "({letter}) {option}")
    text = f"Question: {record.question}\nChoices:\n{options}\n{HINT}\nAnswer:"
    return placed(text, len(shown))


def lmms_muirbench_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's."""
    return placed(choices.ask_letter_of_text(record, shown), len(shown))


def vlmevalkit_muirbench_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """VLMEvalKit's for InternVL: all images in front, a new line where a mark stood."""
    text = choices.ask_letter_of_text(record, shown)
    if IMAGE not in text:
        return text
    pieces = [piece for piece in text.split(IMAGE) if piece]
    front = f"{IMAGE}\n" if len(shown) == 1 else image_lines(len(shown))
    return front + "\n".join(pieces)


def dynamic_vlm_muirbench_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """Dynamic-VLM's, with images where the question has their marks."""
    text = f"{record.question}\n{lettered(record.options)}\n{DYNAMIC_VLM_LETTER}"
    return placed(text, len(shown))


def lmms_muirbench_score(parsed: str, record: Record) -> float:
    """Equal but for case."""
    return float(parsed.lower() == record.answer.lower())


def plan_64(position: int, images: int) -> ImagePlan:
    """At most 6 tiles an image and 64 a question, as VLMEvalKit has it for InternVL."""
    return ImagePlan(max(1, min(6, 64 // images)))


MUIRBENCH_METRIC = Metric(labels=choices.labels_of("task", "image_relation", "image_type"))


def _muirbench_protocol(
    text: choices.Prompt, parser: str, tokens: int = 16, score: Any = choices.is_answer
) -> Protocol:
    settings = Settings(plan_image=plan_64, generation={"max_new_tokens": tokens})
    return Protocol(text, choices.read_as(parser), score, settings, MUIRBENCH_METRIC)


# --- MMIU


def read_mmiu(data: Path) -> list[Record]:
    """The Hub's table, or InternVL's `mmiu.jsonl` with nested input and output; images as files."""
    names = ("MMIU-Benchmark", "MMIU", "mmiu")
    folder, table = find_file(data, names, ("mmiu.jsonl", "all.parquet", "*.parquet", "all.json"))
    counts: dict[str, int] = {}

    def build(row: Mapping) -> Record:
        asked, answered = row.get("input", row), row.get("output", row)
        if isinstance(answered, Mapping):
            answered = answered["output_text"]
        task = row["task"]
        counts[task] = counts.get(task, 0) + 1
        return Record(
            id=f"{task}/{counts[task]}",
            media=tuple(
                Media("image", folder / path.removeprefix("./"))
                for path in as_list(asked["input_image_path"])
            ),
            question=asked["question"],
            options=options_of(row["options"]),
            answer=answered,
            meta={"task": task, "context": asked["context"]},
        )

    return build_records(table, read_rows(table), build)


def options_of(text: str) -> tuple[str, ...]:
    r"""The options of "A: x\nB: y"."""
    return tuple(part.strip() for part in re.split(r"(?:^|\n)\s*[A-Z]:", text)[1:])


def mmiu_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """InternVL's: lines of images where there are several; the context holds the options."""
    front = image_lines(len(shown)) if len(shown) > 1 else ""
    return f"{front}{record.question}\n{record.meta['context']}\n{ANSWER_LETTER}"


def dynamic_vlm_mmiu_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """Dynamic-VLM's: images in front; the context holds the options."""
    return f"{record.question}\n{record.meta['context']}\n{DYNAMIC_VLM_LETTER}"


def plan_12(position: int, images: int) -> ImagePlan:
    """12 tiles for all images together, at least one each."""
    return ImagePlan(max(1, 12 // images))


def official_mmiu_accuracy(rows: Sequence[Row]) -> float:
    """The mean of the tasks as the official script has it, with what was read for its judge's choice.

    There an empty choice is right, a record without an answer or with "GPT error" does not count.
    """
    hits: dict[str, list[bool]] = {}
    for row in rows:
        choice, answer = row.parsed or "", row.record.answer
        if answer is not None and choice != "GPT error":
            hits.setdefault(row.record.meta["task"], []).append(choice.lower() in answer.lower())
    means = [sum(values) / len(values) for values in hits.values()]
    return 100 * sum(means) / max(1, len(means))


def mmiu_others(rows: Sequence[Row]) -> dict[str, float]:
    """Figures beside the mean of the tasks."""
    return {"official_accuracy (an unread answer is right)": official_mmiu_accuracy(rows)}


MMIU_METRIC = Metric(
    name="mean of the tasks",
    headline=choices.mean_of_groups("task"),
    labels=choices.labels_of("task"),
    others=mmiu_others,
    is_proportion=False,
)
MMIU_SETTINGS = Settings(plan_image=plan_12, generation={"max_new_tokens": 100})


def _mmiu_protocol(parser: str) -> Protocol:
    return Protocol(mmiu_prompt, choices.read_as(parser), choices.is_answer, MMIU_SETTINGS, MMIU_METRIC)


ALL = (
    Task(
        name="muirbench",
        about="MuirBench: data/test-*.parquet of the Hub's MUIRBENCH, images inside",
        read=read_muirbench,
        protocols={
            "default": _muirbench_protocol(muirbench_prompt, "default"),
            "official": _muirbench_protocol(muirbench_prompt, "muirbench"),
            "lmms": _muirbench_protocol(lmms_muirbench_prompt, "lmms_muirbench", score=lmms_muirbench_score),
            "vlmevalkit": _muirbench_protocol(vlmevalkit_muirbench_prompt, "vlmevalkit_can_infer", 4096),
            "dynamic-vlm": choices.dynamic_vlm(dynamic_vlm_muirbench_prompt, MUIRBENCH_METRIC),
        },
        expected=2600,
        paper={"Dynamic-VLM-7B": 50.7, "Dynamic-VLM-14B": 52.5},
    ),
    Task(
        name="mmiu",
        about="MMIU: the Hub's MMIU-Benchmark (52 tasks), or InternVL's mmiu.jsonl (20 tasks)",
        read=read_mmiu,
        protocols={
            "default": _mmiu_protocol("default"),
            "internvl": _mmiu_protocol("internvl_mmiu_post_process"),
            "dynamic-vlm": choices.dynamic_vlm(dynamic_vlm_mmiu_prompt, MMIU_METRIC),
        },
        paper={"Dynamic-VLM-7B": 43.7, "Dynamic-VLM-14B": 51.7},
    ),
)
