"""TempCompass's rules, which read a verdict where the answer has one of a few forms.

Three of its tasks have rules; captioning has none and needs a judge. Without a judge, an answer that no rule
reads is wrong (the official option `--disable_llm`), and the share of answers that rules read is the match
rate.
"""

from collections.abc import Callable

LETTERS = ("A", "B", "C", "D")
OPTION_NOUNS = ("Sentence ", "Option ", "Caption ")


def tempcompass_verdict(task: str, prediction: str | None, question: str, answer: str) -> int | None:
    """1 right, 0 wrong, None where no rule reads the prediction (or there is none).

    Args:
        task: "multi-choice", "yes_no" or "caption_matching".
        prediction: all that the model wrote.
        question: with its options, one a line after the first line.
        answer: the reference as the data have it: "B. running", "yes", "Caption A: a dog runs".

    Source: llyx97/TempCompass, `eval_multi-choice.py`, `eval_yes_no.py`, `eval_caption_matching.py`.

    Raises:
        ValueError: where the task has no rules.
    """
    if task not in RULES:
        raise ValueError(f"task {task!r} has no rules: expected one of {', '.join(RULES)}")
    if prediction is None:
        return None

    verdict = RULES[task](prediction.replace("</s>", "").strip(), question, answer)
    return None if verdict is None else int(verdict)


def _multi_choice(prediction: str, question: str, answer: str) -> bool | None:
    if prediction == answer:
        return True

    named = prediction in LETTERS or prediction[:1] in LETTERS and prediction[1:2] in (".", ")")
    return prediction[0] == answer[0] if named else None


def _yes_no(prediction: str, question: str, answer: str) -> bool | None:
    """Whatever word begins with "yes" or "no" is read."""
    for verdict in ("yes", "no"):
        if prediction.lower().startswith(verdict):
            return verdict == answer
    return None


def _caption_matching(prediction: str, question: str, answer: str) -> bool | None:
    """Of all names of an option that the prediction equals, the last that is tried counts.

    A name is the whole line, its caption, its label ("Caption A"), or the label without its noun ("A").
    """
    lines = [line for line in question.split("\n")[1:] if ": " in line]
    labels = [line.split(": ")[0] for line in lines]
    captions = [line.split(": ")[1] for line in lines]

    after_bracket = prediction.split(") ")[1] if ") " in prediction else prediction
    tried = [line for line in lines if line == prediction]
    tried += [caption for caption in captions if caption in (prediction, after_bracket)]
    tried += [
        label
        for label in (*labels, *map(_without_noun, labels))
        if label in (prediction, prediction.replace(".", ""))
    ]
    if not tried:
        return None

    label, caption = answer.split(": ")[:2]
    return tried[-1] in (answer, answer.split(":")[0], caption, label.split()[1])


def _without_noun(label: str) -> str:
    for noun in OPTION_NOUNS:
        label = label.replace(noun, "")
    return label


RULES: dict[str, Callable[[str, str, str], bool | None]] = {
    "multi-choice": _multi_choice,
    "yes_no": _yes_no,
    "caption_matching": _caption_matching,
}
