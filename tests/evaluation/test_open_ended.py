"""Open answers and TempCompass's rules: without a judge, scored as the official code scores them."""

import json

import pytest
from builders import golden

from pvc.evaluation.open_ended import (
    QUESTION_TYPES,
    exact_accuracy,
    exact_match,
    normalise,
    normalised_match,
)
from pvc.evaluation.tempcompass import RULES, tempcompass_verdict

OPEN_ENDED = json.loads(golden("evaluation/openended_qa.json").read_text())
TEMPCOMPASS = json.loads(golden("evaluation/tempcompass.json").read_text())


def test_exact_match_by_type_is_the_official_one():
    result = exact_accuracy(OPEN_ENDED["rows"])

    assert {str(kind): n for kind, n in result.correct.items()} == OPEN_ENDED["exact_correct_by_type"]
    assert {str(kind): n for kind, n in result.questions.items()} == OPEN_ENDED["exact_count_by_type"]


def test_exact_accuracies_are_the_official_printed_ones():
    printed = [line.strip().split(": ") for line in OPEN_ENDED["exact_printed"] if line.startswith("\t")]
    accuracy = exact_accuracy(OPEN_ENDED["rows"]).accuracy

    assert {name: f"{value:.4f}" for name, value in accuracy.items()} == dict(printed)


def test_types_without_questions_have_no_accuracy():
    rows = [{"prediction": "yes", "answer": "yes", "type": "3"}]

    assert exact_accuracy(rows).accuracy == {"Yes/No": 1.0, "Free": 1.0, "All": 1.0}
    assert exact_accuracy([]).accuracy == {}
    assert len(QUESTION_TYPES) == 9


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  Man's hat.", "mans hat"),
        ("2,000", "2000"),
        ("1,200,000 people", "1200000 people"),
        ("red, blue", "red blue"),
        ("Two dogs", "2 dogs"),
        ("3.5 kg.", "3.5 kg"),
        ("ＹＥＳ！", "yes"),
        ("on-the_grass", "on grass"),
        ("a", ""),
        ("是", "是"),
    ],
)
def test_normalising_drops_case_articles_punctuation_and_number_words(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    "prediction, answer",
    [
        ("Yes.", "yes"),
        ("No, there is no dog, yes I am sure", "no"),
        ("It is two", "2"),
        ("The guitar", "guitar"),
        ("a red car", "Red"),
        ("ON THE GRASS.", "on grass"),
        ("2,000", "2000"),
    ],
)
def test_normalised_match_accepts_the_same_answer_in_other_words(prediction, answer):
    assert normalised_match(prediction, answer)


@pytest.mark.parametrize(
    "prediction, answer",
    [
        ("not sure", "no"),
        ("Yes, there is no dog", "no"),
        ("nobody", "no"),
        ("guitars", "guitar"),
        ("they are on the grass", "on the grass"),
        ("", "yes"),
        ("", ""),
        ("...", "?"),
        ("twenty one", "2"),
    ],
)
def test_normalised_match_refuses_parts_of_words_and_of_phrases(prediction, answer):
    assert not normalised_match(prediction, answer)


def test_every_exact_match_is_a_normalised_one():
    rows = [row for row in OPEN_ENDED["rows"] if exact_match(row["prediction"], row["answer"])]

    assert rows
    assert all(normalised_match(row["prediction"], row["answer"]) for row in rows)


@pytest.mark.parametrize("task", RULES)
def test_tempcompass_rules_rate_as_the_official_scripts_without_a_judge(task):
    for row in TEMPCOMPASS[task]["rows"]:
        verdict = tempcompass_verdict(task, row["prediction"], row["question"], row["answer"])

        assert (verdict is not None) == row["match_success"], row
        assert (verdict or 0) == row["rating"], row


def test_tempcompass_match_rate_is_the_printed_one():
    for task in RULES:
        rows = TEMPCOMPASS[task]["rows"]
        verdicts = [
            tempcompass_verdict(task, row["prediction"], row["question"], row["answer"]) for row in rows
        ]
        rate = round(100 * sum(verdict is not None for verdict in verdicts) / len(rows), 1)

        assert TEMPCOMPASS[task]["printed"][-1] == f"Match Success Rate={rate}"


def test_tempcompass_captioning_has_no_rules():
    with pytest.raises(ValueError, match="'captioning' has no rules: expected one of multi-choice, yes_no"):
        tempcompass_verdict("captioning", "a dog", "", "")
