"""The released script of visual question answering: its calls, answers, files and printed values."""

import json
import re
from dataclasses import replace

import pytest
from benchmark_answers import answered
from benchmark_files import put_json
from builders import golden
from released_runs import call_of, default_protocol, golden_run, sub_scores, write_image, write_lines

from pvc.evaluation.records import DataError, Record, Shown
from pvc.evaluation.tasks import TASKS, find_task

RUNS = {run["dataset"]: run for run in golden_run("vqa")}

LAYOUT = {
    "ai2diagram_test": ("ai2d", "ai2diagram/test_vlmevalkit.jsonl"),
    "docvqa_test": ("docvqa-test", "docvqa/test.jsonl"),
    "docvqa_val": ("docvqa-val", "docvqa/val.jsonl"),
    "infographicsvqa_test": ("infovqa-test", "infographicsvqa/test.jsonl"),
    "textvqa_val": ("textvqa", "textvqa/textvqa_val.jsonl"),
}

SETTINGS = {  # of the launch script: tiles, new tokens
    "ai2d": (6, 10),
    "chartqa": (12, 100),
    "docvqa-val": (18, 100),
    "docvqa-test": (18, 100),
    "infovqa-val": (24, 100),
    "infovqa-test": (24, 100),
    "textvqa": (6, 10),
}


def write_run(root, dataset):
    """Its lines and images under a root called `data`, and the annotations that it needs."""
    task, file = LAYOUT[dataset]
    lines = RUNS[dataset]["lines"]
    write_lines(root / file, lines)
    for line in lines:
        write_image(root.parent / line["image"])

    if task == "docvqa-val":
        entries = [{"questionId": line["question_id"], "answers": [line["answer"]]} for line in lines]
        put_json(root / "docvqa/val/val_v1.0.json", {"data": entries})
    if task == "textvqa":
        entries = [
            {"question_id": line["question_id"], "answers": [{"answer": line["answer"]}] * 10}
            for line in lines
        ]
        put_json(root / "textvqa/textvqa_val_annotations.json", {"annotations": entries})
    return task


def printed_value(run):
    return float(re.search(r"[\d.]+(?=\}?$)", run["printed"][0]).group())


@pytest.mark.parametrize("dataset", LAYOUT)
def test_chat_is_given_what_the_script_gives_it(tmp_path, dataset):
    task, _, protocol = default_protocol(write_run(tmp_path / "data", dataset))
    records = task.read(tmp_path / "data")

    assert len(records) == len(RUNS[dataset]["lines"])
    assert call_of(protocol, records[0]) == RUNS[dataset]["calls"][0]


@pytest.mark.parametrize("dataset", ["ai2diagram_test", "textvqa_val"])
def test_printed_accuracies(tmp_path, dataset):
    task, _, protocol = default_protocol(write_run(tmp_path / "data", dataset))
    rows = answered(protocol, task.read(tmp_path / "data"), RUNS[dataset]["answers"])

    assert protocol.metric.headline(rows) == pytest.approx(100 * printed_value(RUNS[dataset]))


@pytest.mark.parametrize("dataset", ["docvqa_test", "docvqa_val", "infographicsvqa_test"])
def test_submission_is_the_file_of_the_script(tmp_path, dataset):
    task, _, protocol = default_protocol(write_run(tmp_path / "data", dataset))
    rows = answered(protocol, task.read(tmp_path / "data"), RUNS[dataset]["answers"])

    (file,) = task.submission(rows)
    assert file.content == RUNS[dataset]["result_file"]
    assert file.name == f"{dataset}.json"


def test_documents_without_answers_have_no_score_to_show(tmp_path):
    task = find_task(write_run(tmp_path / "data", "docvqa_test"))

    assert not task.has_answers
    assert {record.answer for record in task.read(tmp_path / "data")} == {None}


def write_chartqa(root):
    for dataset in ("human", "augmented"):
        lines = RUNS[f"chartqa_test_{dataset}"]["lines"]
        write_lines(root / f"chartqa/test_{dataset}.jsonl", lines)
        for line in lines:
            write_image(root.parent / line["image"])


def test_chartqa_is_the_mean_of_two_sets_that_score_as_printed(tmp_path):
    write_chartqa(tmp_path / "data")
    task, _, protocol = default_protocol("chartqa")
    records = task.read(tmp_path / "data")
    human, augmented = RUNS["chartqa_test_human"], RUNS["chartqa_test_augmented"]
    rows = answered(protocol, records, human["answers"] + augmented["answers"])

    assert call_of(protocol, records[0]) == human["calls"][0]
    assert sub_scores(protocol.metric, rows) == pytest.approx(
        {("set", "human"): 100 * printed_value(human), ("set", "augmented"): 100 * printed_value(augmented)}
    )
    assert protocol.metric.headline(rows) == pytest.approx(100 * printed_value(human))
    assert protocol.metric.headline(rows[:6] + rows[6:7]) == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_chartqa_also_shows_the_tolerance_that_its_authors_mean(tmp_path):
    write_chartqa(tmp_path / "data")
    task, _, protocol = default_protocol("chartqa")
    record = replace(task.read(tmp_path / "data")[0], answer=["95"])
    rows = answered(protocol, [record], ["100"])  # 5 % of the answer, more than 5 % of the reference

    assert protocol.metric.headline(rows) == 100
    assert protocol.metric.others(rows) == {"with 5 % of the reference": 0}


@pytest.mark.parametrize("kind", ["base", "ai2d"])
def test_question_texts(kind):
    cases = json.loads(golden("eval_misc.json").read_text(encoding="utf-8"))["prompts"]["vqa"]
    (case,) = [case for case in cases if case["kind"] == kind]
    record = Record("0", (), case["question"])
    protocol = default_protocol({"base": "textvqa", "ai2d": "ai2d"}[kind])[2]

    assert protocol.prompt(record, [Shown()]) == case["expected"]


@pytest.mark.parametrize("name", SETTINGS)
def test_tiles_and_tokens_of_the_launch_script(name):
    settings = default_protocol(name)[2].settings

    assert (settings.max_tiles, settings.generation["max_new_tokens"]) == SETTINGS[name]
    assert settings.generation["num_beams"] == 1


def test_data_may_be_the_folder_of_the_benchmark_itself(tmp_path):
    write_run(tmp_path / "data", "ai2diagram_test")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    records = find_task("ai2d").read(tmp_path / "elsewhere" / "ai2diagram")

    assert not any(record.media[0].is_missing() for record in records)
    assert records == find_task("ai2d").read(tmp_path / "elsewhere")


def test_images_are_searched_from_the_working_folder_first(tmp_path, monkeypatch):
    write_run(tmp_path / "data", "ai2diagram_test")
    write_image(tmp_path / "here" / RUNS["ai2diagram_test"]["lines"][0]["image"])
    monkeypatch.chdir(tmp_path / "here")
    first, second = find_task("ai2d").read(tmp_path / "data")[:2]

    assert not first.media[0].source.is_absolute()
    assert second.media[0].source == tmp_path / "data/ai2diagram/AI2D_TEST/1.png"


def test_an_absent_image_is_reported_by_the_record_and_not_by_the_reader(tmp_path):
    write_run(tmp_path / "data", "ai2diagram_test")
    (tmp_path / "data/ai2diagram/AI2D_TEST/0.png").unlink()
    first, second = find_task("ai2d").read(tmp_path / "data")[:2]

    assert first.media[0].is_missing()
    assert first.media[0].source == tmp_path / "data/ai2diagram/AI2D_TEST/0.png"
    assert not second.media[0].is_missing()


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("ai2d", ["test_vlmevalkit.jsonl"]),
        ("chartqa", ["test_human.jsonl", "test_augmented.jsonl"]),
        ("docvqa-val", ["val.jsonl", "val_v1.0.json"]),
        ("infovqa-val", ["val.jsonl", "infographicsVQA_val_v1.0_withQT.json"]),
        ("textvqa", ["textvqa_val.jsonl", "textvqa_val_annotations.json"]),
    ],
)
def test_all_absent_annotation_files_are_named_at_once(tmp_path, name, files):
    with pytest.raises(DataError) as error:
        find_task(name).read(tmp_path)

    assert all(file in str(error.value) for file in files)


def test_a_question_without_its_annotation_is_refused(tmp_path):
    write_run(tmp_path / "data", "docvqa_val")
    put_json(tmp_path / "data/docvqa/val/val_v1.0.json", {"data": []})

    with pytest.raises(DataError, match="no question 40000"):
        find_task("docvqa-val").read(tmp_path / "data")


def test_names_of_tasks_and_of_the_released_scripts_are_found():
    assert find_task("ai2d") is find_task("vqa-ai2d-test") is TASKS["ai2d"]
    assert find_task("vqa-textvqa-val").name == "textvqa"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean vqa-chartqa-test or"):
        find_task("vqa-chartqa-tests")
