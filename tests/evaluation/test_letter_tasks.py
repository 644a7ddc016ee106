"""LongVideoBench, NExT-QA, EgoSchema, Perception Test: files, prompts, scores, submissions."""

import json

import pytest
from benchmark_answers import answered, choice, golden_evaluation, shown_frames
from video_benchmark_files import (
    write_egoschema,
    write_longvideobench,
    write_nextqa,
    write_perceptiontest,
)

from pvc.evaluation.frames import longvideobench_indices
from pvc.evaluation.records import DataError
from pvc.evaluation.subtitles import Subtitle, interleave, read_json_subtitles
from pvc.evaluation.task import Row, percent
from pvc.evaluation.tasks import egoschema, longvideobench, nextqa, perceptiontest

PROMPTS = golden_evaluation("prompts")
LONG = golden_evaluation("longvideobench")
NEXT = golden_evaluation("nextqa")
EGO = golden_evaluation("egoschema")
PERCEPTION = golden_evaluation("perceptiontest")

LONG_VAL, LONG_TEST = longvideobench.ALL
(NEXT_MC,) = nextqa.ALL
EGO_ALL, EGO_SUBSET = egoschema.ALL
PERCEPTION_VAL, PERCEPTION_TEST = perceptiontest.ALL

FIVE = [
    {"video": "v1", "question": "what, then?", "options": ["none", "a, b", "c", "d", "e"], "answer": "B"},
    {"video": "v1", "question": "who", "options": ["k", "l", "m", "n", "none"], "answer": "E"},
    {"video": "v2", "question": "how", "options": ["k", "l", "m", "n", "o"], "answer": "A"},
]
THREE = [{**sample, "options": sample["options"][:3], "answer": "B"} for sample in FIVE]


def stripped(lines):
    return [line.partition(". ")[2] for line in lines]


@pytest.mark.parametrize("case", PROMPTS["longvideobench"], ids=lambda case: case["doc"]["question"][:12])
def test_prompts_of_longvideobench(case):
    record = choice(case["doc"]["question"], case["doc"]["candidates"])

    assert LONG_VAL.protocols["lmms"].prompt(record, shown_frames(2)) == case["lmms_v"]
    assert (
        LONG_VAL.protocols["vlmevalkit"].prompt(record, shown_frames(2))
        == case["vlmevalkit_internvl_2_frames"]
    )


@pytest.mark.parametrize("case", PROMPTS["nextqa"], ids=lambda case: case["doc"]["question"][:12])
def test_prompts_of_nextqa(case):
    record = choice(case["doc"]["question"], [case["doc"][f"a{number}"] for number in range(5)])

    assert NEXT_MC.protocols["lmms"].prompt(record, shown_frames(1)) == case["lmms_mc_default"]
    assert (
        NEXT_MC.protocols["default"].prompt(record, shown_frames(1))
        == "Frame1: <image>\n" + case["lmms_mc_with_letter_prompt"]
    )


@pytest.mark.parametrize("case", PROMPTS["egoschema"], ids=lambda case: case["doc"]["question"][:12])
def test_prompts_of_egoschema(case):
    record = choice(case["doc"]["question"], stripped(case["doc"]["option"]))

    assert EGO_ALL.protocols["lmms"].prompt(record, shown_frames(1)) == case["lmms"]


@pytest.mark.parametrize("case", PROMPTS["perceptiontest"], ids=lambda case: case["doc"]["question"][:12])
def test_prompts_of_perceptiontest(case):
    record = choice(case["doc"]["question"], case["doc"]["options"])

    assert PERCEPTION_VAL.protocols["lmms"].prompt(record, shown_frames(1)) == case["lmms"]


# --- LongVideoBench


def long_rows(protocol):
    records = [
        choice(
            row["question"],
            row["candidates"],
            "ABCDE"[row["correct_choice"]],
            row["id"],
            duration_group=row["duration_group"],
            question_category=row["question_category"],
        )
        for row in LONG["rows"]
    ]
    return answered(LONG_VAL.protocols[protocol], records, [row["response"] for row in LONG["rows"]])


def test_answers_of_longvideobench_are_read_and_scored_as_by_public_code():
    assert [row.parsed for row in long_rows("lmms")] == [row["lmms_pred"] for row in LONG["rows"]]
    assert percent(long_rows("lmms")) / 100 == pytest.approx(LONG["lmms_overall"])
    assert [row.score for row in long_rows("vlmevalkit")] == [row["vlmevalkit_score"] for row in LONG["rows"]]


def test_sub_scores_of_longvideobench_are_those_of_public_code():
    labels = LONG_VAL.protocols["lmms"].metric.labels
    groups = {}
    for row in long_rows("lmms"):
        for name in labels(row.record).values():
            groups.setdefault(name, []).append(row)

    found = {name: {"num": len(rows), "acc": round(percent(rows) / 100, 5)} for name, rows in groups.items()}
    printed = {name: group for name, group in LONG["lmms_printed"].items() if name != "Overall"}
    assert {name: found[name] for name in printed} == printed


@pytest.mark.parametrize("case", LONG["interleaved"], ids=lambda case: str(case["duration"]))
def test_frames_and_subtitles_are_interleaved_as_officially(case, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(case["subtitles"]), encoding="utf-8")
    subtitles = read_json_subtitles(tmp_path / "s.json")

    text = interleave(case["frame_timestamps"], subtitles, case["starting_timestamp"], case["duration"])

    assert text == case["interleaved"]


@pytest.mark.parametrize("case", LONG["frame_indices"], ids=lambda case: str(case["duration"]))
def test_frames_of_longvideobench_are_the_official_ones(case):
    indices = longvideobench_indices(case["duration"], case["fps"], case["max_frames"])

    # below a second the public code divides by zero
    assert indices == (case["indices"] if isinstance(case["indices"], list) else [0])


def test_the_interleaved_prompt_has_a_placeholder_for_each_frame(tmp_path):
    lines = [Subtitle(0.6, 1.7, "hello"), Subtitle(1.9, 3.0, "again")]
    record = choice("What?", ["x", "y"], subtitles=lines, subtitles_start_s=0, duration_s=3.0)

    text = LONG_VAL.protocols["interleaved"].prompt(record, shown_frames(3))

    assert text == (
        "<image>\n<image>\nhello\n<image>\nagain\nQuestion: What?\nA. x\nB. y\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_files_of_longvideobench_are_read_with_their_subtitles(tmp_path):
    write_longvideobench(tmp_path, FIVE, subtitles={"v1": [(0.5, 1.5, "hello")]})

    records = LONG_VAL.read(tmp_path)
    tests = LONG_TEST.read(tmp_path)

    assert [(r.question, r.options, r.answer, r.group) for r in records] == [
        (s["question"], tuple(s["options"]), s["answer"], s["video"]) for s in FIVE
    ]
    assert [len(record.meta["subtitles"]) for record in records] == [1, 1, 0]
    assert [record.answer for record in tests] == [None] * 3
    assert not any(record.media[0].is_missing() for record in records)


def test_a_submission_of_longvideobench_has_an_answer_for_each_id(tmp_path):
    write_longvideobench(tmp_path, FIVE)
    rows = [
        Row(record, answer, parsed, 0.0)
        for record, answer, parsed in zip(LONG_TEST.read(tmp_path), ["(B)", "?", None], ["B", "", ""])
    ]

    assert LONG_TEST.submission(rows)[0].content == {"v1_0": "B", "v1_1": "?", "v2_2": ""}


# --- NExT-QA


def next_rows():
    records = [
        choice(
            row["question"],
            [row[f"a{number}"] for number in range(5)],
            "ABCDE"[row["answer"]],
            f"{row['video']}_{row['qid']}",
            type=row["type"],
            group=nextqa.GROUPS[row["type"]],
            kind=nextqa.KINDS[row["type"][0]],
        )
        for row in NEXT["rows"]
    ]
    return answered(NEXT_MC.protocols["lmms"], records, [row["response"] for row in NEXT["rows"]])


def test_answers_of_nextqa_are_read_as_by_lmms_eval():
    assert ["ABCDE".index(row.parsed) for row in next_rows()] == [row["pred"] for row in NEXT["rows"]]
    assert percent(next_rows()) / 100 == NEXT["lmms_exact_match"]


def test_groups_of_nextqa_are_the_official_ones():
    rows = next_rows()
    names, values, overall = NEXT["official_printed"]
    printed = dict(zip(names.split("\t"), values.split("\t")))

    groups = nextqa.choices.accuracies(rows, "group") | NEXT_MC.protocols["lmms"].metric.others(rows)

    assert {name: f"{groups[name]:.2f}" for name in printed if name} == {
        k: v for k, v in printed.items() if k
    }
    assert f"Acc: {percent(rows):.2f}" == overall


@pytest.mark.parametrize("mapped", [True, False])
def test_files_of_nextqa_are_read_and_none_is_a_word(tmp_path, mapped):
    write_nextqa(tmp_path, FIVE, mapped=mapped)

    records = NEXT_MC.read(tmp_path)

    assert [(r.question, r.options, r.answer, r.group) for r in records] == [
        (s["question"], tuple(s["options"]), s["answer"], s["video"]) for s in FIVE
    ]
    assert not any(record.media[0].is_missing() for record in records)


def test_the_results_file_of_nextqa_has_indices(tmp_path):
    write_nextqa(tmp_path, FIVE)
    rows = [Row(record, "", parsed, 0.0) for record, parsed in zip(NEXT_MC.read(tmp_path), ["C", "", "A"])]

    assert NEXT_MC.submission(rows)[0].content == {
        "v1_0": {"prediction": 2, "answer": 1},
        "v1_1": {"prediction": -1, "answer": 4},
        "v2_2": {"prediction": 0, "answer": 0},
    }


# --- EgoSchema


def test_answers_of_egoschema_are_read_and_submitted_as_by_lmms_eval():
    records = [
        choice(row["question"], stripped(row["option"]), "ABCDE"[int(row["answer"])], row["video_idx"])
        for row in EGO["rows"]
    ]
    rows = answered(EGO_SUBSET.protocols["lmms"], records, [row["response"] for row in EGO["rows"]])

    expected = {}
    for row in EGO["rows"]:
        expected.update(row["submission"])
    assert EGO_ALL.submission(rows)[0].content == expected
    assert percent(rows) / 100 == EGO["subset_score"]


@pytest.mark.parametrize("copy", [False, True])
def test_files_of_egoschema_are_read_and_the_subset_is_what_has_answers(tmp_path, copy):
    samples = [{**sample, "video": f"u-{number}"} for number, sample in enumerate(FIVE)]
    write_egoschema(tmp_path, samples, answered=2, copy=copy)

    everything, subset = EGO_ALL.read(tmp_path), EGO_SUBSET.read(tmp_path)

    assert [(r.id, r.question, r.options) for r in everything] == [
        (s["video"], s["question"], tuple(s["options"])) for s in samples
    ]
    assert [(r.id, r.answer) for r in subset] == [("u-0", "B"), ("u-1", "E")]
    assert not any(record.media[0].is_missing() for record in everything)


def test_a_subset_without_its_answers_is_refused(tmp_path):
    write_egoschema(tmp_path, [FIVE[0]])
    (tmp_path / "EgoSchema" / "subset_answers.json").unlink()

    with pytest.raises(DataError, match="subset_answers.json is missing"):
        EGO_SUBSET.read(tmp_path)


def test_an_unread_answer_of_egoschema_is_submitted_as_zero_with_a_warning(caplog):
    rows = [Row(choice("q", "vwxyz", id=name), "", parsed, 0.0) for name, parsed in [("a", "D"), ("b", "")]]

    server, kaggle = EGO_ALL.submission(rows)

    assert server.content == {"a": 3, "b": 0}
    assert kaggle.content == [{"q_uid": "a", "answer": 3}, {"q_uid": "b", "answer": 0}]
    assert "1 answers have no readable letter" in caplog.text
    assert "all 5031" in caplog.text


# --- Perception Test


def perception_rows(task):
    records = [
        choice(
            row["question"],
            row["options"],
            "ABC"[int(row["answer_id"])],
            f"{row['video_name']}_{row['question_id']}",
            video_name=row["video_name"],
            question_id=row["question_id"],
        )
        for row in PERCEPTION["rows"]
    ]
    return answered(task.protocols["lmms"], records, [row["response"] for row in PERCEPTION["rows"]])


def test_answers_of_perceptiontest_are_scored_as_by_lmms_eval():
    rows = perception_rows(PERCEPTION_VAL)

    assert [row.score for row in rows] == [row["val"]["correct"] for row in PERCEPTION["rows"]]
    assert percent(rows) / 100 == PERCEPTION["val_accuracy"]


def test_the_submission_of_perceptiontest_is_lmms_evals():
    (file,) = PERCEPTION_TEST.submission(perception_rows(PERCEPTION_TEST))

    assert file.content == [row["test_submission"] for row in PERCEPTION["rows"]]


@pytest.mark.parametrize("original", [False, True])
def test_files_of_perceptiontest_are_read_in_both_layouts(tmp_path, original):
    write_perceptiontest(tmp_path, THREE, original=original)

    records = PERCEPTION_VAL.read(tmp_path)

    assert [(r.question, r.options, r.answer, r.group) for r in records] == [
        (s["question"], tuple(s["options"]), s["answer"], s["video"]) for s in THREE
    ]
    labels = PERCEPTION_VAL.protocols["default"].metric.labels(records[0])
    assert labels == {"area": "physics", "reasoning": "predictive", "tag": ("motion", "object")}
    assert not any(record.media[0].is_missing() for record in records)
