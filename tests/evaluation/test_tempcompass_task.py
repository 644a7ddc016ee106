"""TempCompass: its files, prompts, the tables of the official script, and its two judges."""

import ast

import pytest
from benchmark_answers import VIDEO, answered, golden_evaluation, shown_frames
from video_benchmark_files import write_tempcompass

from pvc.evaluation.records import Record
from pvc.evaluation.task import Row, percent
from pvc.evaluation.tasks import tempcompass

GOLDEN = golden_evaluation("tempcompass")
PROMPTS = golden_evaluation("prompts")["tempcompass"]
TASK, CAPTIONING = tempcompass.ALL

SAMPLES = [
    {"video": "7", "question": "What moves?", "options": ["ball", "box"], "answer": "A", "aspect": "action"},
    {"video": "7", "question": "Where to?", "options": ["left", "up"], "answer": "B", "aspect": "direction"},
    {"video": "8", "question": "When?", "options": ["first", "last"], "answer": "A", "aspect": "order"},
]


def record_of(task, question, answer="", id="q", **meta):
    return Record(id, VIDEO, question, (), answer, {"task": task, **meta})


def official_rows(task):
    """The golden rows; answers that the model refused become failed rows."""
    types = GOLDEN["fine_types"]
    rows = []
    for number, entry in enumerate(GOLDEN[task]["rows"]):
        aspect = entry["dim"]
        fine = types[aspect][int(entry["video"]) % len(types[aspect])] if aspect in types else aspect
        labels = {"aspect": f"{task}: {aspect}", "fine type": f"{task}: {fine}"}
        record = record_of(task, entry["question"], entry["answer"], str(number), **labels)
        if entry["prediction"] is None:
            rows.append(Row(record, None, None, 0.0))
        else:
            rows += answered(TASK.protocols["default"], [record], [entry["prediction"]])
    return rows


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["yes_no"])
def test_prompts_are_those_of_public_code(case):
    for task, expected in case["lmms"].items():
        question = case.get(task.replace("-", "_"), case["multi_choice"])
        record = record_of(task, question)

        assert TASK.protocols["lmms"].prompt(record, shown_frames(2)) == expected
        assert TASK.protocols["default"].prompt(record, shown_frames(1)) == "Frame1: <image>\n" + expected

    vlmevalkit = TASK.protocols["vlmevalkit"].prompt
    record = record_of("multi-choice", case["multi_choice"])
    assert vlmevalkit(record, shown_frames(2)) == case["vlmevalkit_internvl_2_frames"]


@pytest.mark.parametrize("task", tempcompass.RULE_TASKS)
def test_ratings_and_tables_are_those_of_the_official_script(task):
    rows = official_rows(task)
    metric = TASK.protocols["default"].metric
    _, aspects, fine, match_rate = GOLDEN[task]["printed"]

    assert [row.score for row in rows] == [entry["rating"] for entry in GOLDEN[task]["rows"]]
    assert [bool(row.parsed) for row in rows] == [entry["match_success"] for entry in GOLDEN[task]["rows"]]
    assert round(metric.headline(rows), 1) == ast.literal_eval(aspects)["avg"]
    assert f"Match Success Rate={metric.others(rows)[f'match rate {task}']:.1f}" == match_rate

    for kind, table in (("aspect", ast.literal_eval(aspects)), ("fine type", ast.literal_eval(fine))):
        for name, value in table.items():
            group = [row for row in rows if metric.labels(row.record)[kind] == f"{task}: {name}"]
            assert name == "avg" or round(percent(group), 1) == value


def test_the_headline_is_the_mean_of_the_three_tasks():
    rows = [row for task in tempcompass.RULE_TASKS for row in official_rows(task)]

    means = [percent(official_rows(task)) for task in tempcompass.RULE_TASKS]

    assert TASK.protocols["default"].metric.headline(rows) == pytest.approx(sum(means) / 3)


def test_the_judge_is_asked_about_unmatched_answers_alone():
    judge = TASK.protocols["default"].judge
    record = record_of("yes_no", "Is it?", "yes")

    assert judge.messages(record, "no") == []
    assert "It is so" in judge.messages(record, "It is so")[-1]["content"]


def test_the_judges_verdict_counts_where_no_rule_matches():
    judge = TASK.protocols["default"].judge
    rows = [
        Row(record_of("yes_no", "Is it?", "yes", "a"), "yes", "right", 1.0),
        Row(record_of("yes_no", "Is it?", "yes", "b"), "It is so", "", 0.0),
        Row(record_of("multi-choice", "?\nA. x", "A. x", "c"), "it", "", 0.0),
    ]

    figures = judge.figures(rows, {"b": {"rating": 1}})

    assert figures == {
        "judged_accuracy multi-choice": 0.0,
        "judged_accuracy yes_no": 100.0,
        "judged_accuracy": 50.0,
    }


@pytest.mark.parametrize("case", GOLDEN["captioning_judge_replies"], ids=lambda case: case["reply"][:20])
def test_replies_about_captions_are_read_as_by_the_official_script(case):
    judge = CAPTIONING.protocols["default"].judge
    record = record_of("captioning", "", mc_question="?", mc_answer=case["gt"])

    expected = None if case["parsed"]["rating"] < 0 else {"rating": case["parsed"]["rating"]}
    assert judge.read(case["reply"], record) == expected


@pytest.mark.parametrize("copy", [False, True])
def test_files_are_read_in_both_layouts(tmp_path, copy):
    write_tempcompass(tmp_path, SAMPLES, copy=copy)

    records = TASK.read(tmp_path)
    captions = CAPTIONING.read(tmp_path)

    assert len(records) == 3 * len(SAMPLES)
    assert records[0].question == "What moves?\nA. ball\nB. box"
    assert records[0].answer == "A. ball"
    assert {record.group for record in records} == {"7", "8"}
    assert captions[1].meta["mc_answer"] == "B. up"
    assert not any(record.media[0].is_missing() for record in records + captions)


def test_fine_types_come_from_the_file_of_meta_information(tmp_path):
    write_tempcompass(tmp_path, SAMPLES, fine_types={"7": {"action": {"type": "fine-grained action"}}})

    labels = [TASK.protocols["default"].metric.labels(record) for record in TASK.read(tmp_path)[:3]]

    assert labels[0]["fine type"] == "multi-choice: fine-grained action"
    assert "fine type" not in labels[1]
    assert labels[2]["fine type"] == "multi-choice: order"
