"""MLVU: long videos. Choice questions (dev, test) and two tasks with open answers (gen)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvc.evaluation import choices
from pvc.evaluation.data_files import build_records, find_file, find_files, read_rows, video_finder
from pvc.evaluation.judge_protocols import (
    MLVU_MAX_TOKENS,
    MLVU_SCORES,
    mlvu_judge_messages,
    read_mlvu_scores,
)
from pvc.evaluation.parse import mlvu_correct, read_letter
from pvc.evaluation.prompts import frame_lines, lettered
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.task import (
    Judge,
    Metric,
    Protocol,
    Row,
    Settings,
    SubmissionFile,
    Task,
    keep_answer,
    no_score,
    percent,
)

CHOICE_FILES = (
    "1_plotQA",
    "2_needle",
    "3_ego",
    "4_count",
    "5_order",
    "6_anomaly_reco",
    "7_topic_reasoning",
)
OPEN_FILES = ("8_sub_scene", "9_summary")

NAMES = ("MLVU", "MVLU", "mlvu", "MLVU_dev")
TEST_NAMES = ("MLVU_Test", "mlvu_test", "MLVU")

WATCH = (
    "Carefully watch this video and pay attention to every detail. "
    "Based on your observations, select the best option that accurately addresses the question."
)
WATCH_AND_ANSWER = (
    "Carefully watch this video and pay attention to every detail. "
    "Based on your observations, answer the given questions."
)
BEST_OPTION = "Only give the best option."


def read(data: Path) -> list[Record]:
    """The seven choice tasks: `json/1_plotQA.json`, ...; or lmms-eval's parquet copy."""
    return _read_parts(data, CHOICE_FILES)


def read_generation(data: Path) -> list[Record]:
    """The two tasks with open answers: `json/8_sub_scene.json`, `json/9_summary.json`."""
    return _read_parts(data, OPEN_FILES)


def _read_parts(data: Path, parts: Sequence[str]) -> list[Record]:
    patterns = [
        pattern for part in parts for pattern in (f"*/{part}.json", f"{part}.json", f"*/json/{part}.json")
    ]
    if parts is CHOICE_FILES:
        patterns += ["*/test-*.parquet", "test-*.parquet"]
    folder, found = find_file(data, NAMES, patterns)
    if found.suffix == ".parquet":
        return _read_copy(folder)

    records = []
    for part in parts:
        path = found.parent / f"{part}.json"
        if path.exists():  # a part alone may be evaluated
            records += _read_part(path, part)
    return records


def _read_part(path: Path, part: str) -> list[Record]:
    base = path.parent.parent
    find_video = video_finder(
        [base / "video" / part, base / "videos" / part, base / "video", base / "videos"]
    )
    task = part.split("_", 1)[1]  # `question_type` has other names: findNeedle, subPlot
    counts: dict[str, int] = {}

    def build(row: Mapping) -> Record:
        counts[row["video"]] = counts.get(row["video"], 0) + 1
        options = tuple(row.get("candidates") or ())
        meta = {"task": task, "duration_s": row.get("duration"), "video": row["video"]}
        if row.get("scoring_points"):
            meta["scoring_points"] = tuple(row["scoring_points"])
        return Record(
            id=f"{part}/{row['video']}/{counts[row['video']]}",
            media=(Media("video", find_video(row["video"])),),
            question=row["question"],
            options=options,
            answer=_reference(row["answer"], options),
            meta=meta,
            group=f"{part}/{row['video']}",
        )

    return build_records(path, read_rows(path), build)


def _read_copy(folder: Path) -> list[Record]:
    """lmms-eval's: the options stand in the question, too."""
    _, tables = find_files(folder, (), ("*/test-*.parquet", "test-*.parquet"))
    find_video = video_finder([folder / "video", folder / "videos", folder])

    def build(row: Mapping) -> Record:
        options = tuple(row["candidates"])
        answer = str(row["answer"])
        return Record(
            id=str(row["question_id"]),
            media=(Media("video", find_video(row["video_name"])),),
            question=row["question"].split("\n(A) ")[0],
            options=options,
            answer=answer if re.fullmatch("[A-Z]", answer) else _reference(answer, options),
            meta={"task": row["task_type"], "duration_s": row.get("duration"), "video": row["video_name"]},
            group=row["video_name"],
        )

    return build_records(tables[0], [row for table in tables for row in read_rows(table)], build)


def _reference(answer: str, options: Sequence[str]) -> str:
    """The letter of the last candidate with that text, "@" where there is none; open answers as they are.

    Both as the official code has them: two needle answers are not among the candidates.
    """
    if not options:
        return answer
    same = [index for index, option in enumerate(options) if option == answer]
    return choices.letter(same[-1]) if same else "@"


def read_test(data: Path) -> list[Record]:
    """`test_question.json` with six candidates a question, whose answers are held back."""
    folder, path = find_file(data, TEST_NAMES, ("test_question.json", "*/test_question.json"))
    find_video = video_finder([folder / "video", folder / "videos", path.parent / "video", folder])

    def build(row: Mapping) -> Record:
        return Record(
            id=str(row["question_id"]),
            media=(Media("video", find_video(row["video"])),),
            question=row["question"],
            options=tuple(row["candidates"]),
            meta={"task": row["question_type"], "question_id": row["question_id"], "video": row["video"]},
            group=row["video"],
        )

    return build_records(path, read_rows(path), build)


def question_of(record: Record) -> str:
    """The question with its options in brackets."""
    return f"Question: {record.question}\nOptions:\n{lettered(record.options, '({letter}) {option}')}"


def prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The official one, whose primed answer `Best Option: (` `chat` cannot begin with."""
    return f"{frame_lines(shown[0].frames)}{WATCH}\n{question_of(record)}\n{BEST_OPTION}"


def vlmevalkit_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """VLMEvalKit's for InternVL: the first sentence runs into the question."""
    return choices.vlmevalkit_text(shown[0].frames, WATCH, f"{question_of(record)}\n{BEST_OPTION}")


def lmms_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's of the dev part: the question ends with the beginning of its answer."""
    return f"{lmms_test_prompt(record, shown)}\n{BEST_OPTION}\nBest option: ("


def lmms_test_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's of the test part: nothing follows the options."""
    return f"{record.question}\n{lettered(record.options, '({letter}) {option}')}"


def open_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """Of the tasks with open answers: the official first sentence and the question."""
    return f"{frame_lines(shown[0].frames)}{WATCH_AND_ANSWER}\n{record.question}"


def official_letter(answer: str, record: Record) -> str:
    """The offered letter that the official rule takes as the answer."""
    offered = [choices.letter(index) for index in range(len(record.options))]
    return next((name for name in offered if mlvu_correct(answer, name)), "")


def vlmevalkit_letter(answer: str, record: Record) -> str:
    """VLMEvalKit's: right by the official rule, or else what its general rules infer."""
    official = official_letter(answer, record)
    if official and official == record.answer:
        return official
    return read_letter(answer, record.options, "vlmevalkit_can_infer") or official


def others(rows: Sequence[Row]) -> dict[str, float]:
    """VLMEvalKit's M-Avg is pooled over all questions."""
    return {"pooled M-Avg (as VLMEvalKit has it)": percent(rows)}


METRIC = Metric(
    name="M-Avg",
    headline=choices.mean_of_groups("task"),
    labels=choices.labels_of("task"),
    others=others,
    is_proportion=False,
)


def submission(rows: Sequence[Row]) -> list[SubmissionFile]:
    """The list that the test's server takes. An answer without a readable letter has the option ""."""
    choices.check_submitted(rows, [row.record.id for row in rows])
    entries = [
        {
            "question_id": row.record.meta["question_id"],
            "question_type": row.record.meta["task"],
            "option": row.parsed or "",
        }
        for row in rows
    ]
    return [SubmissionFile("mlvu_test.json", entries)]


# --- the two tasks with open answers: only a judge rates them


def judge_messages(record: Record, answer: str) -> list[dict[str, str]]:
    """What the judge is asked about an answer."""
    return mlvu_judge_messages(
        record.meta["task"],
        answer,
        question=record.question,
        answer=record.answer,
        scoring_points=list(record.meta.get("scoring_points", ())),
    )


def read_judge(reply: str, record: Record) -> dict[str, float] | None:
    """Both scores by name; None where one is missing or no number."""
    names = MLVU_SCORES[record.meta["task"]]
    scores = read_mlvu_scores(reply, record.meta["task"]) or []
    return dict(zip(names, scores)) if len(scores) == len(names) else None


def judge_figures(rows: Sequence[Row], readings: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """G-Avg: the mean over the two tasks of the mean sum of both scores, up to 10.

    Answers without a reading add 0, as in the official code.
    """
    figures: dict[str, float] = {}
    totals = []
    for kind, names in MLVU_SCORES.items():
        ids = [row.record.id for row in rows if row.record.meta["task"] == kind]
        if not ids:
            continue

        for name in names:
            scores = [readings[id][name] for id in ids if id in readings]
            figures[f"{kind} {name}"] = sum(scores) / len(ids)
        totals.append(sum(figures[f"{kind} {name}"] for name in names))

    figures["G-Avg"] = sum(totals) / max(1, len(totals))
    return figures


JUDGE = Judge(judge_messages, read_judge, judge_figures, max_tokens=MLVU_MAX_TOKENS)


def _choice_protocols(lmms: choices.Prompt) -> dict[str, Protocol]:
    def protocol(
        text: choices.Prompt, parse: choices.Parse, settings: Settings = choices.SETTINGS
    ) -> Protocol:
        return Protocol(text, parse, choices.is_answer, settings, METRIC)

    return {
        "default": protocol(prompt, choices.read_as()),
        "official": protocol(prompt, official_letter),
        "lmms": protocol(lmms, choices.read_as("lmms_mcq"), choices.LMMS_SETTINGS),
        "vlmevalkit": protocol(vlmevalkit_prompt, vlmevalkit_letter, choices.VLMEVALKIT_SETTINGS),
        "dynamic-vlm": choices.dynamic_vlm(choices.ask_one_letter, METRIC),
    }


ALL = (
    Task(
        name="mlvu-dev",
        about="MLVU, the seven choice tasks of the dev part: json/1_plotQA.json, ... and video/",
        read=read,
        protocols=_choice_protocols(lmms_prompt),
        expected=2175,
        paper={"PVC-2B": 63.4, "PVC-8B": 72.4, "Dynamic-VLM-7B": 65.0, "Dynamic-VLM-14B": 70.1},
    ),
    Task(
        name="mlvu-test",
        about="MLVU, the choice tasks of the test part, whose answers are held back: test_question.json",
        read=read_test,
        protocols=_choice_protocols(lmms_test_prompt),
        submission=submission,
        has_answers=False,
    ),
    Task(
        name="mlvu-gen",
        about="MLVU, sub-scene captioning and summary: answers only, unless a judge is given",
        read=read_generation,
        protocols={
            "default": Protocol(
                open_prompt,
                keep_answer,
                no_score,
                Settings(generation={"max_new_tokens": 512}),
                Metric(name="G-Avg", labels=choices.labels_of("task"), is_proportion=False),
                judge=JUDGE,
                needs_judge=True,
            )
        },
        expected=418,
    ),
)
