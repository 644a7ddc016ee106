"""Scores of single answers and their normalisers equal the released functions."""

import json

import pytest
from builders import golden

from pvc.evaluation.answer_text import normalise, without_articles, without_punctuation
from pvc.evaluation.metrics import (
    anls,
    equal_but_for_case,
    levenshtein,
    relaxed_correctness,
    relaxed_score,
    soft_accuracy,
)
from pvc.evaluation.tasks.vqa import annotation_types


def load(name):
    return json.loads(golden(name).read_text(encoding="utf-8"))


def listed(value):
    return value if isinstance(value, list) else [value]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def test_anls_of_each_sample_and_of_all():
    data = load("eval_anls.json")
    scores = [anls(case["answer"], case["gt_answers"]) for case in data["cases"]]

    assert scores == [case["expected"] for case in data["cases"]]
    assert mean(scores) == pytest.approx(data["overall_score"], abs=1e-12)


def test_anls_with_another_threshold():
    data = load("eval_anls.json")
    scores = [anls(case["answer"], case["gt_answers"], 0.8) for case in data["cases"]]

    assert scores == [case["expected_threshold_0.8"] for case in data["cases"]]


def test_edit_distances():
    for case in load("eval_anls.json")["levenshtein"]:
        assert levenshtein(case["a"], case["b"]) == case["distance"], case


def test_anls_by_types_of_answer_evidence_and_operation():
    data = load("eval_anls.json")["with_answer_types"]
    answers = {entry["questionId"]: entry["answer"] for entry in data["submission"]}

    scores = {}
    for entry in data["ground_truth"]:
        score = anls(answers[entry["questionId"]], entry["answers"])
        for kind, names in annotation_types(entry).items():
            for name in names:
                scores.setdefault((kind, name), []).append(score)

    expected = data["scores_by_types"]
    kinds = {"answer type": "answer_types", "evidence": "evidence_types", "operation": "operation_types"}
    ours = {(kinds[kind], name): mean(found) for (kind, name), found in scores.items()}
    theirs = {(kind, name): value for kind, found in expected.items() for name, value in found.items()}
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("part", ["relaxed_correctness", "relaxed_correctness_other_tolerance"])
def test_relaxed_correctness(part):
    for case in load("eval_relaxed.json")[part]:
        tolerance = case.get("max_relative_change", 0.05)
        assert relaxed_correctness(case["target"], case["prediction"], tolerance) == case["expected"], case


def test_relaxed_accuracy_and_exact_match():
    data = load("eval_relaxed.json")
    relaxed = [relaxed_score(case["answer"], listed(case["annotation"])) for case in data["entries"]]
    exact = [
        max(equal_but_for_case(case["answer"], text) for text in listed(case["annotation"]))
        for case in data["entries"]
    ]

    assert relaxed == [case["relaxed"] for case in data["entries"]]
    assert exact == [case["exact_match"] for case in data["entries"]]
    assert mean(relaxed) == pytest.approx(data["relaxed_accuracy_all"])
    assert mean(exact) == pytest.approx(data["exact_match_all"])


def test_normalised_answers_step_by_step():
    for case in load("eval_textvqa.json")["normalise"]:
        assert without_punctuation(case["input"]) == case["process_punctuation"], case
        assert without_articles(case["input"]) == case["process_digit_article"], case
        assert normalise(case["input"]) == case["expected"], case


def test_each_answer_of_people_has_its_own_soft_accuracy():
    for case in load("eval_textvqa.json")["score"]:
        for text in case["gt_answers"]:
            expected = case["unique_answer_scores"][normalise(text)]
            assert soft_accuracy(text, case["gt_answers"]) == pytest.approx(expected, abs=1e-12), case


def test_soft_accuracy_of_ten_answers():
    data = load("eval_textvqa.json")
    scores = [soft_accuracy(case["pred_answer"], case["gt_answers"]) for case in data["score"]]

    assert scores == pytest.approx([case["expected"] for case in data["score"]], abs=1e-12)
    assert mean(scores) == pytest.approx(data["mean_score"], abs=1e-12)


def test_soft_accuracy_refuses_another_number_of_answers():
    with pytest.raises(ValueError, match="expected 10"):
        soft_accuracy("cat", ["cat"] * 9)
