"""TempCompass: five temporal aspects of a video, asked in four ways. Three have rules, captioning a judge."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_files, read_rows, video_finder
from pvc.evaluation.frames import linspace_frames
from pvc.evaluation.judge_protocols import (
    TEMPCOMPASS_MAX_TOKENS,
    captioning_judge_messages,
    read_captioning_reply,
    read_tempcompass_verdict,
    tempcompass_judge_messages,
)
from pvc.evaluation.prompts import dynamic_vlm_lines, frame_lines
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.tables import read_json
from pvc.evaluation.task import (
    Judge,
    Metric,
    Protocol,
    Row,
    Settings,
    Task,
    keep_answer,
    no_score,
    percent,
)
from pvc.evaluation.tempcompass import tempcompass_verdict

NAMES = ("TempCompass", "tempcompass")
RULE_TASKS = ("multi-choice", "yes_no", "caption_matching")
CAPTIONING = "captioning"

TAILS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
    CAPTIONING: "",
}
RIGHT, WRONG = "right", "wrong"  # what a rule reads


def read(data: Path, tasks: Sequence[str]) -> list[Record]:
    """`questions/<task>.json` or the Hub's `<task>/test-*.parquet`, `meta_info.json`, `videos/`."""
    patterns = [pattern for task in tasks for pattern in _patterns(task)]
    folder, _ = find_files(data, NAMES, patterns)
    find_video = video_finder([folder / "videos", folder / "video", folder])
    fine_types = _fine_types(folder)

    records = []
    for task in tasks:
        paths = _files(folder, task)
        if paths:  # a task alone may be evaluated
            rows = _rows(folder, paths, task)
            records += build_records(paths[0], rows, partial(_record, task, find_video, fine_types))
    return records


def _patterns(task: str) -> tuple[str, ...]:
    return f"questions/{task}.json", f"{task}/test-*.parquet", f"{task}.json"


def _files(folder: Path, task: str) -> list[Path]:
    found = (sorted(folder.glob(pattern)) for pattern in _patterns(task))
    return next((paths for paths in found if paths), [])


def _rows(folder: Path, paths: Sequence[Path], task: str) -> list[dict]:
    """The questions of a task as rows, each with its number among those of its video and aspect."""
    if paths[0].suffix == ".parquet":
        rows = [row for path in paths for row in read_rows(path)]
    else:
        rows = _original_rows(folder, paths[0], task)

    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        key = (str(row["video_id"]), row["dim"])
        counts[key] = counts.get(key, 0) + 1
        row["number"] = counts[key]
    return rows


def _original_rows(folder: Path, path: Path, task: str) -> list[dict]:
    """{video: {aspect: [{question, answer}]}} as rows.

    Captioning has the question that the judge answers, too.
    """
    rows = [
        {**question, "video_id": video, "dim": aspect}
        for video, aspects in read_json(path).items()
        for aspect, questions in aspects.items()
        for question in questions
    ]
    if task == CAPTIONING:
        _, (asked, *_) = find_files(folder, (), _patterns("multi-choice"))
        questions = read_json(asked)
        for row in rows:
            first = questions[row["video_id"]][row["dim"]][0]
            row |= {"mc_question": first["question"], "mc_answer": first["answer"]}
    return rows


def _fine_types(folder: Path) -> dict[str, dict[str, str]]:
    """video -> aspect -> its finer type, where `meta_info.json` is there."""
    path = folder / "meta_info.json"
    if not path.exists():
        return {}
    types = {}
    for video, entry in read_json(path).items():
        aspects = entry.get("eval_dim", entry)
        types[video] = {
            aspect: value["type"] if isinstance(value, dict) else value
            for aspect, value in aspects.items()
            if isinstance(value, str) or (isinstance(value, dict) and "type" in value)
        }
    return types


def _record(
    task: str,
    find_video: Callable[[str], Path],
    fine_types: Mapping[str, Mapping[str, str]],
    row: Mapping,
) -> Record:
    video, aspect = str(row["video_id"]), row["dim"]
    fine_type = "order" if aspect == "order" else fine_types.get(video, {}).get(aspect)
    meta: dict[str, Any] = {"task": task, "aspect": f"{task}: {aspect}"}
    if fine_type:
        meta["fine type"] = f"{task}: {fine_type}"
    if task == CAPTIONING:
        meta |= {"mc_question": row["mc_question"], "mc_answer": row["mc_answer"]}

    return Record(
        id=f"{task}/{video}/{aspect}/{row['number']}",
        media=(Media("video", find_video(video)),),
        question=row["question"],
        answer=row.get("answer"),
        meta=meta,
        group=video,
    )


def lmms_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The question and the sentence of its task; the frames are put in front."""
    return record.question + TAILS[record.meta["task"]]


def prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The same after the frames."""
    return frame_lines(shown[0].frames) + lmms_prompt(record, shown)


def dynamic_vlm_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """Dynamic-VLM's frames before the question and the sentence of its task, which the rules rest on."""
    return dynamic_vlm_lines(shown[0].frames) + lmms_prompt(record, shown)


def vlmevalkit_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """VLMEvalKit's for InternVL."""
    return choices.vlmevalkit_text(shown[0].frames, lmms_prompt(record, shown))


def read_by_rules(answer: str, record: Record) -> str:
    """The verdict of the official rules; "" where none matches."""
    verdict = tempcompass_verdict(record.meta["task"], answer, record.question, record.answer)
    return {1: RIGHT, 0: WRONG, None: ""}[verdict]


def is_right(parsed: str, record: Record) -> float:
    """1 where the rules read the right answer."""
    return float(parsed == RIGHT)


def others(rows: Sequence[Row]) -> dict[str, float]:
    """How often the rules matched at all, by task."""
    return {
        f"match rate {task}": 100 * sum(bool(row.parsed) for row in group) / len(group)
        for task, group in choices.rows_by(rows, "task").items()
    }


# --- the judge of answers that no rule matches


def judge_messages(record: Record, answer: str) -> list[dict[str, str]]:
    """What it is asked, where no rule matches."""
    if read_by_rules(answer, record):
        return []
    return tempcompass_judge_messages(record.meta["task"], answer, record.question, record.answer)


def read_judge(reply: str, record: Record) -> dict[str, int] | None:
    """Its verdict."""
    rating = read_tempcompass_verdict(reply)
    return None if rating is None else {"rating": rating}


def judge_figures(rows: Sequence[Row], readings: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy by task, where the judge's verdict counts for answers that no rule matches."""
    judged = [
        row._replace(score=max(row.score, readings.get(row.record.id, {}).get("rating", 0))) for row in rows
    ]
    figures = {
        f"judged_accuracy {task}": percent(group) for task, group in choices.rows_by(judged, "task").items()
    }
    figures["judged_accuracy"] = sum(figures.values()) / max(1, len(figures))
    return figures


# --- captioning: the judge answers a question with options from the caption


def captioning_messages(record: Record, answer: str) -> list[dict[str, str]]:
    """What the judge is asked about a caption."""
    return captioning_judge_messages(answer.replace("</s>", "").strip(), record.meta["mc_question"])


def read_captioning(reply: str, record: Record) -> dict[str, int] | None:
    """Whether the judge found the right option by the caption."""
    rating = read_captioning_reply(reply, record.meta["mc_answer"]).rating
    return None if rating < 0 else {"rating": rating}


def captioning_figures(rows: Sequence[Row], readings: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy over all captions and by aspect; one without a verdict is wrong."""
    rated = [row._replace(score=float(readings.get(row.record.id, {}).get("rating", 0))) for row in rows]
    return {"judged_accuracy": percent(rated), **choices.accuracies(rated, "aspect")}


LABELS = choices.labels_of("task", "aspect", "fine type")
METRIC = Metric(
    name="mean of the rule tasks",
    headline=choices.mean_of_groups("task"),
    labels=LABELS,
    others=others,
    is_proportion=False,
)
JUDGE = Judge(judge_messages, read_judge, judge_figures, max_tokens=TEMPCOMPASS_MAX_TOKENS)
CAPTIONING_JUDGE = Judge(
    captioning_messages, read_captioning, captioning_figures, max_tokens=TEMPCOMPASS_MAX_TOKENS
)
CAPTION_TOKENS = {"max_new_tokens": 128}


def _rule_protocol(text: choices.Prompt, settings: Settings) -> Protocol:
    return Protocol(text, read_by_rules, is_right, settings, METRIC, judge=JUDGE)


def _captioning_protocol(text: choices.Prompt, settings: Settings) -> Protocol:
    metric = Metric(labels=LABELS)
    return Protocol(text, keep_answer, no_score, settings, metric, judge=CAPTIONING_JUDGE, needs_judge=True)


ALL = (
    Task(
        name="tempcompass",
        about="TempCompass, its three tasks with rules: questions/*.json, meta_info.json and videos/",
        read=partial(read, tasks=RULE_TASKS),
        protocols={
            "default": _rule_protocol(prompt, choices.SETTINGS),
            "lmms": _rule_protocol(lmms_prompt, choices.LMMS_SETTINGS),
            "vlmevalkit": _rule_protocol(vlmevalkit_prompt, choices.VLMEVALKIT_SETTINGS),
            "dynamic-vlm": _rule_protocol(dynamic_vlm_prompt, choices.DYNAMIC_VLM_SETTINGS),
        },
        expected=1580 + 2453 + 1503,
        # which of the tasks the paper's single number means is not stated
        paper={"Dynamic-VLM-7B": 62.2, "Dynamic-VLM-14B": 66.2},
    ),
    Task(
        name="tempcompass-captioning",
        about="TempCompass, captions: answers only, unless a judge is given",
        read=partial(read, tasks=(CAPTIONING,)),
        protocols={
            "default": _captioning_protocol(prompt, Settings(generation=CAPTION_TOKENS)),
            "lmms": _captioning_protocol(
                lmms_prompt, Settings(choose_frames=linspace_frames, generation=CAPTION_TOKENS)
            ),
        },
        expected=2004,
    ),
)
