"""ActivityNet-QA and its kin: files, prompts, matches without a judge, and the judge's figures."""

import pytest
from benchmark_answers import answered, choice, golden_evaluation, shown_frames
from video_benchmark_files import write_open_ended

from pvc.evaluation.records import DataError
from pvc.evaluation.task import Row, percent
from pvc.evaluation.tasks import open_ended

GOLDEN = golden_evaluation("openended_qa")
PROMPTS = golden_evaluation("prompts")
ACTIVITYNET, MSVD, MSRVTT, TGIF = open_ended.ALL
JUDGE = ACTIVITYNET.protocols["default"].judge

SAMPLES = [
    {"video": "abc", "question": "is it day", "answer": "yes", "type": 3},
    {"video": "abc", "question": "what moves", "answer": "ball", "type": 0},
    {"video": "def", "question": "where", "answer": "left", "type": 6},
]


def rows_under(protocol):
    records = [
        choice(
            row["question"], (), row["answer"], row["question_id"], type=open_ended.type_names(row["type"])
        )
        for row in GOLDEN["rows"]
    ]
    return answered(ACTIVITYNET.protocols[protocol], records, [row["prediction"] for row in GOLDEN["rows"]])


@pytest.mark.parametrize("case", PROMPTS["activitynetqa"], ids=lambda case: case["doc"]["question"])
def test_prompts_are_lmms_evals(case):
    record = choice(case["doc"]["question"], ())

    assert ACTIVITYNET.protocols["lmms"].prompt(record, shown_frames(1)) == case["lmms"]


@pytest.mark.parametrize(
    "question, asked",
    [("is it a DOG", "Is it a DOG?"), ("how many?", "How many?"), ("Where is it ??", "Where is it?")],
)
def test_a_question_begins_with_a_capital_and_ends_with_one_mark(question, asked):
    text = ACTIVITYNET.protocols["default"].prompt(choice(question, ()), shown_frames(1))

    assert text == f"Frame1: <image>\n{asked} Answer the question using a single word or phrase."


def test_exact_matches_by_type_are_the_official_ones():
    rows = rows_under("official")
    labels = ACTIVITYNET.protocols["official"].metric.labels
    printed = dict(line.strip().split(": ") for line in GOLDEN["exact_printed"] if not line.endswith(":"))

    shares = {
        name: f"{percent([row for row in rows if name in labels(row.record)['type']]) / 100:.4f}"
        for name in printed
        if name != "All"
    }
    assert {**shares, "All": f"{percent(rows) / 100:.4f}"} == printed


def test_both_matches_have_their_own_names_and_neither_is_called_accuracy():
    rows = rows_under("default")
    metric = ACTIVITYNET.protocols["default"].metric

    assert metric.name == "normalised match"
    assert metric.others(rows) == {"exact match": pytest.approx(percent(rows_under("official")))}
    assert percent(rows) > percent(rows_under("official"))
    assert ACTIVITYNET.paper == {}  # the papers' values are a judge's


@pytest.mark.parametrize("case", PROMPTS["qa_judge_messages"], ids=lambda case: case["answer"])
def test_the_judge_is_asked_as_in_the_papers(case):
    record = choice(case["question"], (), case["answer"])

    assert JUDGE.messages(record, case["prediction"]) == case["messages"]
    assert JUDGE.max_tokens == case["max_tokens"]


def test_the_judges_figures_count_unreadable_replies_and_show_the_official_value():
    replies = [case["reply"] for case in GOLDEN["judge_replies"]]
    rows = [Row(choice("", (), id=str(number)), "", "", 0.0) for number in range(len(replies))]
    read = {row.record.id: JUDGE.read(reply, row.record) for row, reply in zip(rows, replies)}
    readings = {name: reading for name, reading in read.items() if reading is not None}

    figures = JUDGE.figures(rows, readings)

    expected = GOLDEN["lmms_aggregate_over_readable"]
    assert figures["official_judged_accuracy"] == pytest.approx(expected["accuracy_percent"])
    assert figures["official_judged_score"] == pytest.approx(expected["average_score"])
    assert figures["without a verdict"] == len(rows) - len(readings) > 0
    assert figures["judged_accuracy"] < figures["official_judged_accuracy"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_files_of_activitynet_are_read_with_videos_of_any_format(tmp_path, suffix):
    write_open_ended(tmp_path, SAMPLES, "activitynetqa", suffix=suffix)

    records = ACTIVITYNET.read(tmp_path)

    assert [(r.question, r.answer, r.group) for r in records] == [
        (s["question"], s["answer"], s["video"]) for s in SAMPLES
    ]
    assert [record.meta["type"] for record in records] == [
        ("Yes/No", "Free"),
        ("Motion",),
        ("Location", "Free"),
    ]
    assert all(record.media[0].source.name.startswith("v_") for record in records)
    assert not any(record.media[0].is_missing() for record in records)


@pytest.mark.parametrize("task", [MSVD, MSRVTT, TGIF], ids=lambda task: task.name)
def test_the_other_sets_have_no_types_and_may_hold_gifs(tmp_path, task):
    write_open_ended(tmp_path, SAMPLES, task.name, suffix=".gif")

    records = task.read(tmp_path)

    assert not any(record.media[0].is_missing() for record in records)
    assert task.protocols["default"].metric.labels(records[0]) == {}


def test_a_question_without_an_answer_is_named(tmp_path):
    write_open_ended(tmp_path, SAMPLES, "msvd-qa")
    path = tmp_path / "MSVD_Zero_Shot_QA" / "test_a.json"
    path.write_text("[]", encoding="utf-8")

    with pytest.raises(DataError, match="no answer to question"):
        MSVD.read(tmp_path)
