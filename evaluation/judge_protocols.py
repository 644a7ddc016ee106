"""Judging by a chat model: messages, the reading of replies, and figures over them.

Pure functions; `judge.py` sends the messages. Public code skips unreadable replies or prints them; here they
are counted, as are calls that failed: `official_*` figures leave them out as the papers' code does, all
others count them as wrong.
"""

import ast
from collections.abc import Sequence
from math import isfinite
from textwrap import indent
from typing import NamedTuple

from pvc.evaluation.judge_prompts import (
    MLVU_SUB_SCENE_SYSTEM,
    MLVU_SUB_SCENE_USER,
    MLVU_SUMMARY_SYSTEM,
    MLVU_SUMMARY_USER,
    QA_SYSTEM,
    QA_USER,
    TEMPCOMPASS_CAPTIONING,
    TEMPCOMPASS_KINDS,
    TEMPCOMPASS_RULE_TASK,
    TEMPCOMPASS_SYSTEM,
)

Messages = list[dict[str, str]]

# longest reply that a judge is asked for, in tokens
QA_MAX_TOKENS = 64
MLVU_MAX_TOKENS = 1024  # the official code sets no limit; the rationale comes before the scores
TEMPCOMPASS_MAX_TOKENS = 128

MLVU_SCORES = {  # task -> the two scores of a reply, 1 to 5 each
    "sub_scene": ("accuracy", "relevance"),
    "summary": ("completeness", "reliability"),
}

# what `ast.literal_eval`, and access to its result, can raise
NO_LITERAL = (
    *(SyntaxError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RecursionError),
)


# ---------------------------------------------------------------- open questions, yes or no and 0 to 5


class QAVerdict(NamedTuple):
    """A judge's verdict: "yes", "no" or another word, and an integer score."""

    pred: str
    score: int


class QASummary(NamedTuple):
    """Figures of judged open answers.

    Attributes:
        n: all answers: `yes`, `no`, `other` words, `unreadable` replies, `failed` calls.
        accuracy: yes over n, from 0 to 1. score: mean of 0 to 5 over n, 0 where there is no verdict.
        official_accuracy: yes over yes and no. official_score: mean over the verdicts, whatever their word.
    """

    n: int
    yes: int
    no: int
    other: int
    unreadable: int
    failed: int
    accuracy: float
    score: float
    official_accuracy: float
    official_score: float


def qa_judge_messages(question: str, answer: str, prediction: str) -> Messages:
    """Messages about an open answer (ActivityNet-QA, MSVD-QA, MSRVTT-QA, TGIF-QA).

    Source: mbzuai-oryx/Video-ChatGPT, `quantitative_evaluation/evaluate_activitynet_qa.py`; lmms-eval's
    `tasks/activitynetqa/utils.py` sends the same.
    """
    user = QA_USER.format(question=question, answer=answer, prediction=prediction)
    return _messages(QA_SYSTEM, user)


def read_qa_verdict(reply: str) -> QAVerdict | None:
    """The verdict in the first braces of a reply; None where it cannot be read.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/activitynetqa/utils.py`, `parse_score`.
    """
    _, opened, rest = reply.partition("{")
    if not opened:
        return None
    inside = rest.split("{")[0].split("}")[0]
    return _qa_verdict("{" + inside + "}")


def read_video_chatgpt_verdict(reply: str) -> QAVerdict | None:
    """The verdict of a reply that is a Python dictionary and nothing else; None where it is not.

    Source: mbzuai-oryx/Video-ChatGPT, `quantitative_evaluation/evaluate_activitynet_qa.py`, which asks
    again for the others without end.
    """
    return _qa_verdict(reply)


def _qa_verdict(literal: str) -> QAVerdict | None:
    try:
        values = ast.literal_eval(literal)
        pred, score = values["pred"], int(values["score"])
        lowered = pred.lower()
    except NO_LITERAL:
        return None

    for word in ("yes", "no"):
        if word in lowered:
            return QAVerdict(word, score)
    return QAVerdict(pred, score)


def summarise_qa(verdicts: Sequence[QAVerdict | None], failed: int = 0) -> QASummary:
    """Figures of all verdicts (None: unreadable) and of `failed` further answers without a reply."""
    read = [verdict for verdict in verdicts if verdict is not None]
    yes = sum(verdict.pred == "yes" for verdict in read)
    no = sum(verdict.pred == "no" for verdict in read)
    score = sum(verdict.score for verdict in read)
    n = len(verdicts) + failed

    return QASummary(
        n=n,
        yes=yes,
        no=no,
        other=len(read) - yes - no,
        unreadable=len(verdicts) - len(read),
        failed=failed,
        accuracy=yes / max(1, n),
        score=score / max(1, n),
        official_accuracy=yes / max(1, yes + no),
        official_score=score / max(1, len(read)),
    )


# ---------------------------------------------------------------- MLVU's generation tasks


class MLVUSummary(NamedTuple):
    """Figures of one generation task of MLVU.

    Attributes:
        n: all answers, with `unreadable` replies and `failed` calls.
        scores: mean of each score over n, by name; an answer without scores adds 0, as in the official code.
        total: their sum, up to 10. G-Avg is the mean of the totals of both tasks.
    """

    n: int
    unreadable: int
    failed: int
    scores: dict[str, float]
    total: float


def mlvu_judge_messages(
    task: str, prediction: str, *, question: str = "", answer: str = "", scoring_points: Sequence[str] = ()
) -> Messages:
    """Messages about an answer of `sub_scene` (question and scoring points) or `summary` (reference answer).

    Source: JUNJIE99/MLVU, `evaluation/generation_evaluation/evaluate_ssc.py` and `evaluate_summary.py`, with
    the indentation that its texts have there.
    """
    _check_mlvu_task(task)
    if task == "sub_scene":
        system = MLVU_SUB_SCENE_SYSTEM
        user = MLVU_SUB_SCENE_USER.format(
            question=question.replace("\n", ""), scoring_points=scoring_points, prediction=prediction
        )
    else:
        system = MLVU_SUMMARY_SYSTEM
        user = MLVU_SUMMARY_USER.format(answer=answer, prediction=prediction)
    return _messages(_indented(system), _indented(user))


def read_mlvu_scores(reply: str, task: str) -> list[float] | None:
    """The two scores of a reply, less those that it does not name; None where one is no number.

    A score stands between ": " and "," (or the last character). Source: JUNJIE99/MLVU,
    `evaluation/generation_evaluation/calculate.py` and `calculate_sum.py`, `extract_scores`.
    """
    _check_mlvu_task(task)
    scores = []
    for name in MLVU_SCORES[task]:
        position = reply.find(f"score_{name}")
        if position == -1:
            continue

        start = reply.find(":", position) + 2
        end = reply.find(",", start)  # -1: all but the last character
        try:
            score = float(reply[start:end])
        except ValueError:
            return None
        if not isfinite(score):
            return None
        scores.append(score)
    return scores


def summarise_mlvu(replies: Sequence[str], task: str, failed: int = 0) -> MLVUSummary:
    """Figures of the replies of a task, and of `failed` further answers without a reply."""
    names = MLVU_SCORES[task]
    read = [read_mlvu_scores(reply, task) for reply in replies]
    pairs = [scores for scores in read if scores is not None and len(scores) == len(names)]
    n = len(replies) + failed

    sums = [sum(scores[index] for scores in pairs) for index in range(len(names))]
    means = {name: total / max(1, n) for name, total in zip(names, sums)}
    return MLVUSummary(n, len(replies) - len(pairs), failed, means, sum(means.values()))


def _check_mlvu_task(task: str) -> None:
    if task not in MLVU_SCORES:
        raise ValueError(f"task {task!r} is not judged: expected one of {', '.join(MLVU_SCORES)}")


def _indented(text: str) -> str:
    return "\n" + indent(text, " " * 28) + "\n" + " " * 24


# ---------------------------------------------------------------- TempCompass


class CaptionVerdict(NamedTuple):
    """A judge's answer from a caption: rating 1 (right), 0 (wrong), or -1 (no answer)."""

    rating: int
    answer: str | None
    reasoning: str | None


class RatingSummary(NamedTuple):
    """Figures of ratings: n answers, with `unreadable` replies and `failed` calls, which count as wrong."""

    n: int
    correct: int
    unreadable: int
    failed: int
    accuracy: float


def captioning_judge_messages(prediction: str, question: str) -> Messages:
    """Messages that let a judge answer a question with options from a caption.

    Source: llyx97/TempCompass, `eval_captioning.py`. It asks at temperature 1; here it is 0.
    """
    user = TEMPCOMPASS_CAPTIONING.format(prediction=prediction, question=question)
    return _messages(TEMPCOMPASS_SYSTEM, user)


def read_captioning_reply(reply: str, answer: str) -> CaptionVerdict:
    """Whether the judge's answer has the label of the reference ("B. running") and names one option.

    Source: llyx97/TempCompass, `eval_captioning.py`, `parse_llm_output`.
    """
    if not reply or reply == "invalid_request_error":
        return CaptionVerdict(-1, None, None)

    chosen, reasoning = reply, None
    for line in reply.split("\n"):
        if "Reasoning" in line:
            reasoning = line.strip().replace("Reasoning:", "").strip()
        if "Answer" in line:
            chosen = line.strip().replace("Answer:", "").strip()

    named = sum(chosen.count(label) for label in ("A.", "B.", "C.", "D."))
    is_right = chosen.split(". ")[0] == answer.split(". ")[0] and named == 1
    return CaptionVerdict(int(is_right), chosen, reasoning)


def tempcompass_judge_messages(task: str, prediction: str, question: str, answer: str) -> Messages:
    """Messages about an answer that no rule of `tempcompass.py` reads.

    Source: llyx97/TempCompass, `eval_multi-choice.py`, `eval_yes_no.py`, `eval_caption_matching.py`.
    """
    if task not in TEMPCOMPASS_KINDS:
        raise ValueError(f"task {task!r} has no such judge: expected one of {', '.join(TEMPCOMPASS_KINDS)}")

    kind, heading = TEMPCOMPASS_KINDS[task]
    user = TEMPCOMPASS_RULE_TASK.format(
        kind=kind, heading=heading, question=question, answer=answer, prediction=prediction
    )
    return _messages(TEMPCOMPASS_SYSTEM, user)


def read_tempcompass_verdict(reply: str) -> int | None:
    """1 for "Correct", 0 for "Incorrect", None where it says neither.

    Of both, the first word decides; without it, "Incorrect" does.

    Source: llyx97/TempCompass, `utils/eval_utils.py`, `llm_output_to_rating`.
    """
    if reply.startswith("Correct"):
        return 1
    if "Incorrect" in reply:
        return 0
    return 1 if "Correct" in reply else None


def summarise_ratings(ratings: Sequence[int | None], failed: int = 0) -> RatingSummary:
    """Figures of ratings (None or -1: unreadable) and of `failed` further answers without a reply."""
    n = len(ratings) + failed
    correct = sum(rating == 1 for rating in ratings)
    unreadable = sum(rating is None or rating == -1 for rating in ratings)
    return RatingSummary(n, correct, unreadable, failed, correct / max(1, n))


def _messages(system: str, user: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
