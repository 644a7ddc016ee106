"""Open questions about videos: ActivityNet-QA, MSVD-QA, MSRVTT-QA, TGIF-QA.

Without a judge there are an exact and a normalised match, which are not comparable with the papers' values:
those are a chat model's verdicts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pvc.evaluation.choices import LMMS_SETTINGS, Prompt, labels_of
from pvc.evaluation.data_files import build_records, find_file, read_rows, video_finder
from pvc.evaluation.judge_protocols import (
    QA_MAX_TOKENS,
    QAVerdict,
    qa_judge_messages,
    read_qa_verdict,
    summarise_qa,
)
from pvc.evaluation.open_ended import QUESTION_TYPES, exact_match, normalised_match
from pvc.evaluation.prompts import SINGLE_WORD, frame_lines
from pvc.evaluation.records import DataError, Media, Record, Shown
from pvc.evaluation.task import (
    Judge,
    Metric,
    Protocol,
    Row,
    Settings,
    Task,
    keep_answer,
)

FREE = "Free"  # types from 3 on, together


def read(data: Path, names: Sequence[str], prefix: str = "") -> list[Record]:
    """`test_q.json`, `test_a.json` (or one parquet table) and `videos/<prefix><video_name>.*`.

    Raises:
        DataError: a question has no answer in the other file.
    """
    tables = ("test_q.json", "*/test_q.json", "*.parquet", "data/*.parquet")
    folder, questions = find_file(data, names, tables)
    both = questions.suffix == ".parquet"  # a copy with questions and answers in one table
    answers_path = questions if both else questions.with_name("test_a.json")
    answers = {entry["question_id"]: entry for entry in read_rows(answers_path)}
    find_video = video_finder([folder / "videos", folder / "all_test", folder / "video", folder])

    def build(row: Mapping) -> Record:
        answer = answers.get(row["question_id"])
        if answer is None:
            raise DataError(f"{answers_path} has no answer to question {row['question_id']}")

        video = find_video(prefix + row["video_name"])
        if not video.exists() and find_video(row["video_name"]).exists():
            video = find_video(row["video_name"])
        return Record(
            id=str(row["question_id"]),
            media=(Media("video", video),),
            question=row["question"],
            answer=str(answer["answer"]),
            meta={"type": type_names(answer.get("type"))},
            group=row["video_name"],
        )

    return build_records(questions, read_rows(questions), build)


def type_names(kind: int | str | None) -> tuple[str, ...]:
    """ActivityNet-QA's name of a type, and whether it is one of the free ones; none in the other sets."""
    if kind in (None, ""):
        return ()
    name = QUESTION_TYPES[int(kind)]
    return (name, FREE) if int(kind) >= 3 else (name,)


def prompt(record: Record, shown: Sequence[Shown]) -> str:
    """After the frames: the question with its first letter upper and one question mark."""
    question = record.question.strip()
    question = question[:1].upper() + question[1:].rstrip(" ?") + "?"
    return f"{frame_lines(shown[0].frames)}{question} {SINGLE_WORD}"


def lmms_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's, which lowers all other letters and always adds a question mark."""
    return f"{record.question.capitalize()}? {SINGLE_WORD}"


def exact_score(parsed: str, record: Record) -> float:
    """1 where the answer is the reference, character by character: the official rule of ActivityNet-QA."""
    return float(exact_match(parsed, record.answer))


def normalised_score(parsed: str, record: Record) -> float:
    """1 where the answer says the reference in another form."""
    return float(normalised_match(parsed, record.answer))


def _mean(rows: Sequence[Row], score: Any) -> float:
    return 100 * sum(score(row.answer or "", row.record) for row in rows) / max(1, len(rows))


def exact_beside(rows: Sequence[Row]) -> dict[str, float]:
    """The exact match, beside the normalised one."""
    return {"exact match": _mean(rows, exact_score)}


def normalised_beside(rows: Sequence[Row]) -> dict[str, float]:
    """The normalised match, beside the exact one."""
    return {"normalised match": _mean(rows, normalised_score)}


# --- the judge


def judge_messages(record: Record, answer: str) -> list[dict[str, str]]:
    """What the judge of the papers is asked."""
    return qa_judge_messages(record.question, record.answer, answer)


def read_judge(reply: str, record: Record) -> dict[str, Any] | None:
    """Its verdict and score; None where the reply cannot be read."""
    verdict = read_qa_verdict(reply)
    return None if verdict is None else verdict._asdict()


def judge_figures(rows: Sequence[Row], readings: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Share of yes in percent and mean score over all answers; official: over those that could be read."""
    read_of = [readings.get(row.record.id) for row in rows]
    summary = summarise_qa([None if reading is None else QAVerdict(**reading) for reading in read_of])
    return {
        "judged_accuracy": 100 * summary.accuracy,
        "judged_score": summary.score,
        "official_judged_accuracy": 100 * summary.official_accuracy,
        "official_judged_score": summary.official_score,
        "without a verdict": float(summary.unreadable),
    }


def _task(
    name: str,
    title: str,
    folders: Sequence[str],
    expected: int | None,
    paper: Mapping[str, Mapping[str, float]],
    prefix: str = "",
) -> Task:
    judge = Judge(judge_messages, read_judge, judge_figures, max_tokens=QA_MAX_TOKENS, paper=paper)
    normalised = Metric("normalised match", labels=labels_of("type"), others=exact_beside)
    exact = Metric("exact match", labels=labels_of("type"), others=normalised_beside)
    tokens = {"max_new_tokens": 64}

    def protocol(text: Prompt, score: Any, metric: Metric, settings: Settings) -> Protocol:
        return Protocol(text, keep_answer, score, settings, metric, judge=judge)

    lmms_settings = Settings(choose_frames=LMMS_SETTINGS.choose_frames, generation=tokens)
    return Task(
        name=name,
        about=f"{title}: test_q.json, test_a.json and videos/; the papers' values need a judge",
        read=partial(read, names=folders, prefix=prefix),
        protocols={
            "default": protocol(prompt, normalised_score, normalised, Settings(generation=tokens)),
            "official": protocol(prompt, exact_score, exact, Settings(generation=tokens)),
            "lmms": protocol(lmms_prompt, exact_score, exact, lmms_settings),
        },
        expected=expected,
    )


ALL = (
    _task(
        "activitynetqa",
        "ActivityNet-QA, test part",
        ("ActivityNet-QA", "activitynetqa", "ActivityNetQA", "Activitynet_Zero_Shot_QA", "activitynet-qa"),
        8000,
        {
            "judged_accuracy": {"PVC-2B": 52.8, "PVC-8B": 57.1, "Dynamic-VLM-7B": 63.9},
            "judged_score": {"Dynamic-VLM-7B": 3.4},
        },
        prefix="v_",
    ),
    _task(
        "msvd-qa",
        "MSVD-QA",
        ("MSVD_Zero_Shot_QA", "MSVD-QA", "msvd-qa"),
        13157,
        {"judged_accuracy": {"Dynamic-VLM-7B": 76.0}, "judged_score": {"Dynamic-VLM-7B": 3.8}},
    ),
    _task(
        "msrvtt-qa",
        "MSRVTT-QA",
        ("MSRVTT_Zero_Shot_QA", "MSRVTT-QA", "msrvtt-qa"),
        72821,
        {"judged_accuracy": {"Dynamic-VLM-7B": 64.5}, "judged_score": {"Dynamic-VLM-7B": 3.7}},
    ),
    _task(
        "tgif-qa",
        "TGIF-QA, frame questions (copies have 25,751 or 13,691)",
        ("TGIF_Zero_Shot_QA", "TGIF-QA", "tgif-qa"),
        None,
        {"judged_accuracy": {"Dynamic-VLM-7B": 76.6}, "judged_score": {"Dynamic-VLM-7B": 3.8}},
    ),
)
