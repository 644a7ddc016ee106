"""Answers are read as the released functions read them; where those raise or draw, they are unparsed."""

import json
import math

import pytest
from builders import golden

from pvc.evaluation.letter_protocols import muirbench
from pvc.evaluation.released_parsers import (
    is_mmmu_answer,
    is_number,
    is_option,
    listed_texts,
    mmmu_numbers,
    mmmu_open_values,
    mmmu_values,
    offered_letter,
    plain_yes_no,
    yes_or_no,
)


def load(name):
    return json.loads(golden(name).read_text(encoding="utf-8"))


def as_values(values):
    """Numbers that JSON has no words for."""
    return [float(value["__float__"]) if isinstance(value, dict) else value for value in values]


def same_values(ours, theirs):
    ours = sorted(map(repr, ours))
    return ours == sorted(map(repr, as_values(theirs)))


def test_only_offered_letters_count_as_parsed():
    for case in load("eval_post_process.json")["post_process"]:
        letter = case.get("expected", "")
        expected = letter if letter in case["option"] else ""
        assert offered_letter(case["pred"], case["option"]) == expected, case


def test_mme_answers_are_made_plain_and_read():
    data = load("eval_mme.json")
    for case in data["post_processing"]:
        assert plain_yes_no(case["response"]) == case["expected"], case
    for case in data["parse_pred_ans"]:
        expected = "" if case["expected"] == "other" else case["expected"]
        assert yes_or_no(case["pred"]) == expected, case


def test_mvbench_options():
    for case in load("eval_mvbench.json")["check_ans"]:
        assert is_option(case["pred"], case["gt"]) == case.get("expected", False), case


def test_mmmu_letters_are_never_drawn():
    for case in load("eval_mmmu.json")["parse_multi_choice_response"]:
        expected = "" if case["used_random_fallback"] else case["expected"]
        assert muirbench(case["response"], case["index2ans"]) == expected, case


def test_mmmu_open_answers():
    for case in load("eval_mmmu.json")["parse_open_response"]:
        text = case["response"]
        assert mmmu_numbers(text) == case["extract_numbers"], case
        assert is_number(text) == case["check_is_number"], case
        assert same_values(mmmu_values(text), case["normalize_str"]), case
        assert same_values(mmmu_open_values(text), case["expected"]), case


def test_mmmu_open_answers_are_scored():
    for case in load("eval_mmmu.json")["eval_open"]:
        values = mmmu_open_values(case["response"])
        assert is_mmmu_answer(values, case["gold"]) == case["expected"], case


def test_not_a_number_equals_nothing():
    (value,) = mmmu_open_values("nan")

    assert math.isnan(value)
    assert not is_mmmu_answer([value], "nan")


@pytest.mark.parametrize("text", ["('a', 'b')", "3", "[a, b", ""])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(ValueError, match="not a list"):
        listed_texts(text)


def test_lists_of_texts():
    assert listed_texts("['a', \"it's\", 3]") == ["a", "it's", "3"]
