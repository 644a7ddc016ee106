"""MLVU: its files, prompts, scores, both averages, the judge's replies and the test's submission."""

import pytest
from benchmark_answers import answered, choice, golden_evaluation, shown_frames
from video_benchmark_files import write_mlvu, write_mlvu_generation, write_mlvu_test

from pvc.evaluation.records import DataError
from pvc.evaluation.task import Row
from pvc.evaluation.tasks import mlvu

GOLDEN = golden_evaluation("mlvu")
PROMPTS = golden_evaluation("prompts")["mlvu"]
DEV, TEST, GENERATION = mlvu.ALL

SAMPLES = [
    {"video": "ego_7", "question": "What?", "options": ["w", "x", "y", "z"], "answer": "B", "task": "3_ego"},
    {"video": "ego_7", "question": "Who?", "options": ["w", "x", "y", "z"], "answer": "D", "task": "3_ego"},
    {
        "video": "count_1",
        "question": "How?",
        "options": ["1", "2", "3", "4"],
        "answer": "A",
        "task": "4_count",
    },
]


def records():
    return [
        choice(
            row["question"],
            row["candidates"],
            "ABCD"[row["candidates"].index(row["answer"])],
            str(number),
            task=row["task_type"],
        )
        for number, row in enumerate(GOLDEN["rows"])
    ]


def rows_under(protocol):
    return answered(DEV.protocols[protocol], records(), [row["response"] for row in GOLDEN["rows"]])


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["doc"]["question"][:12])
def test_prompts_are_those_of_public_code(case):
    record = choice(case["doc"]["question"], case["doc"]["candidates"])
    shown = shown_frames(2)

    assert mlvu.question_of(record) == case["official_question"]
    assert DEV.protocols["vlmevalkit"].prompt(record, shown) == case["vlmevalkit_internvl_2_frames"]
    assert DEV.protocols["lmms"].prompt(record, shown) == case["lmms_dev"]
    assert TEST.protocols["lmms"].prompt(record, shown) == case["lmms_test"]


def test_the_default_prompt_is_the_official_one_without_its_primed_answer():
    text = DEV.protocols["default"].prompt(choice("What?", ["x", "y"]), shown_frames(1))

    assert text == (
        "Frame1: <image>\nCarefully watch this video and pay attention to every detail. Based on your "
        "observations, select the best option that accurately addresses the question.\n"
        "Question: What?\nOptions:\n(A) x\n(B) y\nOnly give the best option."
    )


def test_verdicts_are_those_of_public_code():
    official = [row.score == 1 for row in rows_under("official")]
    vlmevalkit = [row.score for row in rows_under("vlmevalkit")]

    assert official == [row["official_correct"] for row in GOLDEN["rows"]]
    assert vlmevalkit == [row["vlmevalkit_score"] for row in GOLDEN["rows"]]
    assert [row.parsed for row in rows_under("lmms")] == [row["lmms_pred"] for row in GOLDEN["rows"]]


def test_the_headline_is_the_mean_of_the_tasks_and_the_pooled_value_stands_beside_it():
    metric = DEV.protocols["official"].metric
    pooled = {entry["task"]: entry["acc"] for entry in GOLDEN["vlmevalkit"]}["M-Avg"]
    official = mlvu.choices.accuracies(rows_under("official"), "task")

    assert metric.headline(rows_under("official")) == pytest.approx(GOLDEN["official"]["Avg"])
    assert official == pytest.approx({k: v for k, v in GOLDEN["official"].items() if k != "Avg"})
    assert metric.headline(rows_under("lmms")) == pytest.approx(GOLDEN["lmms_average"])
    assert round(list(metric.others(rows_under("vlmevalkit")).values())[0], 1) == pooled


@pytest.mark.parametrize("case", GOLDEN["generation"], ids=lambda case: case["reply"][:24])
def test_the_judges_scores_are_read_as_by_public_code(case):
    for task, names in mlvu.MLVU_SCORES.items():
        reply = case["reply"]
        for old, new in zip(("accuracy", "relevance"), names):
            reply = reply.replace(old, new)
        # the public code raises where it finds no number
        expected = case[task] if isinstance(case[task], list) else []

        read = mlvu.read_judge(reply, choice("", [], task=task)) or {}

        assert [read[name] for name in names if read] == expected


def test_g_avg_is_the_mean_of_both_tasks_sums():
    rows = [
        Row(choice("", [], id="a", task="sub_scene"), "", "", 0.0),
        Row(choice("", [], id="b", task="sub_scene"), "", "", 0.0),
        Row(choice("", [], id="c", task="summary"), "", "", 0.0),
    ]
    readings = {
        "a": {"accuracy": 1.0, "relevance": 2.0},
        "b": {"accuracy": 3.0, "relevance": 4.0},
        "c": {"completeness": 4.0, "reliability": 5.0},
    }

    figures = GENERATION.protocols["default"].judge.figures(rows, readings)

    assert figures["G-Avg"] == (5 + 9) / 2
    assert GENERATION.protocols["default"].judge.figures(rows, {})["G-Avg"] == 0


def test_files_are_read_by_task_and_questions_about_a_video_stand_together(tmp_path):
    write_mlvu(tmp_path, SAMPLES)

    found = DEV.read(tmp_path)

    assert [(r.question, r.options, r.answer, r.meta["task"]) for r in found] == [
        (s["question"], tuple(s["options"]), s["answer"], s["task"][2:]) for s in SAMPLES
    ]
    assert found[0].group == found[1].group != found[2].group
    assert not any(record.media[0].is_missing() for record in found)


def test_an_answer_that_is_no_candidate_has_the_official_letter(tmp_path):
    write_mlvu(tmp_path, [{**SAMPLES[0], "answer": "other"}])

    assert DEV.read(tmp_path)[0].answer == "@"


def test_of_two_equal_candidates_the_last_is_right_as_officially(tmp_path):
    write_mlvu(tmp_path, [{**SAMPLES[0], "options": ["x", "y", "x", "z"], "answer": "A"}])

    assert DEV.read(tmp_path)[0].answer == "C"


def test_open_questions_and_scoring_points_are_read(tmp_path):
    sample = {"video": "s", "question": "What?", "answer": "a text", "task": "8_sub_scene", "points": ["p"]}
    write_mlvu_generation(tmp_path, [sample])

    (record,) = GENERATION.read(tmp_path)
    system, user = GENERATION.protocols["default"].judge.messages(record, "seen")

    assert record.answer == "a text"
    assert "accuracy" in system["content"]
    assert "['p']" in user["content"]
    assert "seen" in user["content"]


def test_the_tests_submission_lists_options(tmp_path):
    write_mlvu_test(tmp_path, SAMPLES)
    first, second, third = TEST.read(tmp_path)
    rows = [Row(first, "B", "B", 0.0), Row(second, "?", "", 0.0), Row(third, None, "", 0.0)]

    (file,) = TEST.submission(rows)

    assert file.content == [
        {"question_id": "q0", "question_type": "ego", "option": "B"},
        {"question_id": "q1", "question_type": "ego", "option": ""},
        {"question_id": "q2", "question_type": "count", "option": ""},
    ]


def test_what_was_searched_is_named_where_nothing_is_found(tmp_path):
    with pytest.raises(DataError, match="1_plotQA.json"):
        DEV.read(tmp_path)
