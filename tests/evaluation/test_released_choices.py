"""The released scripts of multiple choice: their calls, answers, files, printed values and aggregates."""

import base64
import hashlib
import io
import json

import pytest
from benchmark_answers import answered
from builders import golden
from PIL import Image
from released_runs import (
    call_of,
    default_protocol,
    golden_run,
    sub_scores,
    tiles_of,
    write_image,
    write_lines,
)

from pvc.evaluation.letter_protocols import internvl
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.task import Row
from pvc.evaluation.tasks import choice_images, find_task, mme, mmmu, mvbench, ocrbench

SHOWN = [Shown()]


def load(name):
    return json.loads(golden(name).read_text(encoding="utf-8"))


def printed_number(line):
    return float(line.split(": ")[1].rstrip("%"))


# ScienceQA


def write_scienceqa(root, run):
    write_lines(root / "scienceqa/scienceqa_test_img.jsonl", run["lines"])
    for line, call in zip(run["lines"], run["calls"]):
        write_image(root.parent / line["image"], call["tiles"])


def test_scienceqa_calls_and_accuracy(tmp_path):
    run = golden_run("scienceqa")
    write_scienceqa(tmp_path / "data", run)
    task, _, protocol = default_protocol("scienceqa")
    records = task.read(tmp_path / "data")
    rows = answered(protocol, records, run["answers"])

    assert [call_of(protocol, record) for record in records] == run["calls"]
    assert [record.answer for record in records] == [line["gt_answers"] for line in run["result_lines"]]
    assert protocol.metric.headline(rows) == pytest.approx(100 * printed_number(run["printed"][0]))


@pytest.mark.parametrize("place", range(3))
def test_scienceqa_questions(place):
    case = load("eval_misc.json")["prompts"]["scienceqa"][place]
    meta = {"hint": case["hint"] or ""}
    record = Record("0", (), case["question"], tuple(case["choices"]), meta=meta)

    assert choice_images.scienceqa_question(record, SHOWN) == case["expected_question"]


def test_scienceqa_result_lines_hold_what_the_letter_rule_returns():
    run = golden_run("scienceqa")
    for line, entry, answer in zip(run["result_lines"], run["lines"], run["answers"]):
        options = dict(zip("ABCDE", entry["choices"]))
        assert internvl(answer, options) == line["answer"], line


# SEED-Bench


def test_seed_call_and_whole_answers_without_annotations(tmp_path):
    run = golden_run("seed")
    root = tmp_path / "data"
    write_lines(root / "SEED/seed.jsonl", run["lines"])
    for line in run["lines"]:
        write_image(root / "SEED" / line["image"], run["first_call"]["tiles"])

    task, _, protocol = default_protocol("seed")
    records = task.read(root)
    rows = answered(protocol, records, run["answers"])

    assert call_of(protocol, records[0]) == run["first_call"]
    assert protocol.metric.headline(rows) == pytest.approx(100 * printed_number(run["printed"][0]))


@pytest.mark.parametrize("place", range(3))
def test_seed_accuracies_by_type_with_annotations(tmp_path, place):
    run = load("eval_seed.json")["runs"][place]
    lines = [
        {
            "question_id": line["question_id"],
            "image": "SEED-Bench-image/0",
            "text": "q",
            "answer": line["answer"],
        }
        for line in run["results"]
    ]
    write_lines(tmp_path / "SEED/seed.jsonl", lines)
    (tmp_path / "SEED/SEED-Bench.json").write_text(json.dumps(run["annotation"]))

    task, _, protocol = default_protocol("seed")
    rows = answered(protocol, task.read(tmp_path), [line["prediction"] for line in run["results"]])
    parts = {name: value for (_, name), value in sub_scores(protocol.metric, rows).items()}
    video = {"Action Recognition", "Action Prediction", "Procedure Understanding"}
    images = [row for row in rows if row.record.meta["type"] not in video]

    printed = {name: printed_number(f"x: {value}") for name, value in run["printed_percent"].items()}
    assert {name: round(value, 2) for name, value in parts.items()} == {name: printed[name] for name in parts}
    assert round(protocol.metric.headline(rows), 2) == printed["Total accuracy"]
    assert round(protocol.metric.headline(images), 2) == printed["Image accuracy"]


def test_seed_leaves_out_the_video_questions_of_llavas_list(tmp_path):
    lines = [
        {"question_id": 1, "image": "SEED-Bench-image/1", "text": "q"},
        {"question_id": 2, "image": "SEED-Bench-video-image/2_8.png", "text": "q"},
    ]
    write_lines(tmp_path / "SEED/llava-seed-bench.jsonl", lines)
    annotation = {
        "question_type": {"Scene Understanding": 1},
        "questions": [{"question_id": "1", "question_type_id": 1, "answer": "B"}],
    }
    (tmp_path / "SEED/SEED-Bench.json").write_text(json.dumps(annotation))
    (record,) = find_task("seed").read(tmp_path)

    assert (record.answer, record.meta["type"]) == ("B", "Scene Understanding")


# MMBench


def base64_image(tiles):
    content = io.BytesIO()
    Image.new("RGB", (100 * (tiles - 1), 100), (9, 90, 200)).save(content, format="JPEG")
    return base64.b64encode(content.getvalue()).decode()


def write_table(path, columns, rows, image):
    lines = ["\t".join(columns)]
    for row in rows:
        values = {**row, "image": image}
        lines.append("\t".join("" if values[name] is None else str(values[name]) for name in columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "table"),
    [("mmbench-dev-en", "mmbench_dev_20230712"), ("mmbench-test-en", "mmbench_test_en_20231003")],
)
def test_mmbench_calls_and_table_for_the_server(tmp_path, name, table):
    run = golden_run(table)
    image = base64_image(run["first_call"]["tiles"])
    write_table(tmp_path / f"mmbench/{table}.tsv", run["tsv_columns"], run["rows"], image)
    task, _, protocol = default_protocol(name)
    records = task.read(tmp_path)
    rows = answered(protocol, records, run["answers"])

    assert [protocol.prompt(record, SHOWN) for record in records] == run["questions"]
    assert call_of(protocol, records[0]) == run["first_call"]

    (submission,) = task.submission(rows)
    assert submission.name == f"{table}.xlsx"
    assert [list(line) for line in submission.content] == [run["xlsx_columns"]] * len(rows)
    assert [line["prediction"] for line in submission.content] == run["xlsx_predictions"]
    assert [line["index"] for line in submission.content] == [row["index"] for row in run["rows"]]
    assert [line["D"] for line in submission.content] == [row["D"] for row in run["rows"]]
    assert task.has_answers == ("answer" in run["tsv_columns"])


@pytest.mark.parametrize("place", range(4))
def test_mmbench_questions_in_both_languages(place):
    case = load("eval_misc.json")["prompts"]["mmbench"][place]
    _, _, protocol = default_protocol(f"mmbench-dev-{case['language']}")
    offered = {letter: case[letter] for letter in "ABCD" if case[letter] is not None}
    record = Record("3", (), case["question"], meta={"hint": case["hint"] or "", "options": offered})

    assert offered == case["expected_option"]
    assert protocol.prompt(record, SHOWN) == case["expected_question"]


def circular_rows(tmp_path):
    data = load("evaluation/mmbench_circular.json")
    columns = [*data["rows"][0], "image"]
    write_table(tmp_path / "mmbench/mmbench_dev_20230712.tsv", columns, data["rows"], "x" * 64)
    task = find_task("mmbench-dev-en")
    protocol = task.protocols["vlmevalkit"]
    rows = answered(protocol, task.read(tmp_path), [row["prediction"] for row in data["rows"]])
    return data, protocol, rows


def test_mmbench_letters_and_hits_without_a_judge(tmp_path):
    data, protocol, rows = circular_rows(tmp_path)
    hits = {}
    for row in rows:
        hits.setdefault(row.record.group, []).append(row.score)

    assert [row.parsed for row in rows] == [found["inferred"] or "" for found in data["vlmevalkit_inferred"]]
    assert {name: int(all(scores)) for name, scores in hits.items()} == data["vlmevalkit_hits"]
    assert data["vlmevalkit_hits"] == data["lmms_static_hits"]


def test_mmbench_circular_report(tmp_path):
    data, protocol, rows = circular_rows(tmp_path)
    report = {name: value[0] for name, value in data["vlmevalkit_report"].items() if name != "split"}
    short = {
        "coarse_perception": "CP",
        "finegrained_perception (instance-level)": "FP-S",
        "logic_reasoning": "LR",
    }
    parts = sub_scores(protocol.metric, rows)
    ours = {short.get(name, name): value / 100 for (_, name), value in parts.items()}

    assert protocol.metric.headline(rows) / 100 == pytest.approx(report.pop("Overall"))
    assert ours == pytest.approx(report)


def test_mmbench_vanilla_counts_first_rotations_alone(tmp_path):
    _, protocol, rows = circular_rows(tmp_path)
    first = [row for row in rows if int(row.record.id) < 1_000_000]

    assert len(first) == 14
    assert protocol.metric.others(rows) == {
        "vanilla accuracy": pytest.approx(100 * sum(row.score for row in first) / 14)
    }


def test_resampled_questions_are_counted_as_often_as_they_are_drawn(tmp_path):
    _, protocol, rows = circular_rows(tmp_path)
    right = [row for row in rows if row.record.group == "1"]
    wrong = [row for row in rows if row.record.group == "6"]

    assert protocol.metric.headline(right + right + wrong) == pytest.approx(200 / 3)
    assert protocol.metric.headline(wrong + right + wrong) == pytest.approx(100 / 3)


def test_mmbench_image_may_stand_in_another_row(tmp_path):
    columns = ["index", "question", "hint", *"ABCD", "answer", "category", "image", "l2-category", "split"]
    image = base64_image(2)
    rows = []
    for index, held in ((5, image), (1_000_005, "5")):
        rows.append("\t".join([str(index), "q", "", "x", "y", "", "", "A", "c", held, "l", "dev"]))
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n")
    first, second = find_task("mmbench-dev-en").read(tmp_path)

    assert first.media == second.media
    assert Image.open(io.BytesIO(first.media[0].source.read())).size == (100, 100)


# MME


def mme_rows(data):
    protocol = default_protocol("mme")[2]
    rows = []
    for task, lines in data["files"].items():
        fields = [line.rstrip("\n").split("\t") for line in lines]
        records = mme._records(task, golden("."), [line[:3] for line in fields])
        rows += answered(protocol, records, [line[3] for line in fields])
    return protocol.metric, rows


def test_mme_scores_by_task_and_in_total():
    data = load("eval_mme.json")["process_result"]
    metric, rows = mme_rows(data)
    parts = sub_scores(metric, rows)
    scores = data["scores"]

    for part in ("Perception", "Cognition"):
        assert parts[("part", part)] == pytest.approx(scores[part]["total"])
        for task, value in scores[part]["tasks"].items():
            assert parts[("task", task)] == pytest.approx(value)
            others = metric.others(rows)
            assert others[f"{task} acc"] + others[f"{task} acc_plus"] == pytest.approx(value)
    assert metric.headline(rows) == pytest.approx(sum(part["total"] for part in scores.values()))


@pytest.mark.parametrize("place", range(30))
def test_mme_accuracy_counts_other_answers_as_wrong(place):
    case = load("eval_mme.json")["compute_metric"][place]
    protocol = default_protocol("mme")[2]
    records = mme._records("count", golden("."), [["0.png", "q", gt] for gt in case["gts"]])
    rows = answered(protocol, records, case["preds"])
    expected = case["expected"].get("acc", 0.0)  # the public function raises where all are other

    assert protocol.metric.others(rows)["count acc"] == pytest.approx(100 * expected)


def test_mme_settings_are_those_of_its_script():
    settings = default_protocol("mme")[2].settings

    assert (settings.max_tiles, settings.chat_lists) == (6, ("split_sizes",))
    assert dict(settings.generation) == {
        "do_sample": False,
        "top_k": 50,
        "top_p": 0.9,
        "num_beams": 1,
        "max_new_tokens": 20,
    }


# MMMU


@pytest.mark.parametrize("place", range(3))
def test_mmmu_questions_and_tiles(tmp_path, place):
    case = load("eval_misc.json")["prompts"]["mmmu"][place]
    media = []
    for number, size in enumerate(case["image_sizes_wh"]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size).save(path)
        media.append(Media("image", path))
    options = tuple(text.strip() for text in mmmu.listed_texts(case["options"]))
    meta = {"type": case["question_type"]}
    record = Record("0", tuple(media), case["question"].strip(), options, meta=meta)
    settings = default_protocol("mmmu-val")[2].settings

    assert mmmu.mmmu_question(record, SHOWN * 2) == case["expected_question"]
    assert sum(tiles_of(record, settings, case["input_size"])) == case["pixel_values_shape"][0]
    assert settings.chat_lists == ()


def mmmu_rows(data):
    rows = []
    for name, entry in data["answer_dict"].items():
        subject = name.split("_", 1)[1].rsplit("_", 1)[0]
        kind = entry["question_type"]
        meta = {"type": kind, "subject": subject, "domain": mmmu._DOMAIN_OF[subject]}
        record = Record(name, (), "", answer=entry["ground_truth"], meta=meta)
        parsed = data["output_dict"][name]
        rows.append(Row(record, parsed, parsed, mmmu.score_mmmu(parsed, record)))
    return rows


def test_mmmu_accuracies_by_subject_and_domain():
    data = load("eval_mmmu.json")["main_eval_only"]
    metric = default_protocol("mmmu-val")[2].metric
    rows = mmmu_rows(data)
    parts = {
        f"Overall-{name}" if kind == "domain" else name: round(value / 100, 3)
        for (kind, name), value in sub_scores(metric, rows).items()
    }
    printed = {name: entry["acc"] for name, entry in data["printed_results"].items() if entry["num"]}

    assert round(metric.headline(rows) / 100, 3) == printed.pop("Overall")
    assert parts == printed


def test_mmmu_choices_with_several_right_letters():
    for case in load("eval_mmmu.json")["eval_multi_choice"]:
        record = Record("0", (), "", answer=case["gold"], meta={"type": mmmu.CHOICE})
        assert mmmu.score_mmmu(case["pred"], record) == case["expected"], case


# MVBench


def write_mvbench_json(root, run):
    for name, entries in run["json_files"].items():
        path = root / "MVBench/json" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def test_mvbench_calls_and_accuracies(tmp_path):
    run = golden_run("mvbench")
    write_mvbench_json(tmp_path / "data", run)
    task, _, protocol = default_protocol("mvbench")
    records = task.read(tmp_path / "data")
    frames = tuple(range(run["num_segments"]))
    shown = [Shown(frames, tuple(map(float, frames)))]
    rows = answered(protocol, records, run["answers"])

    assert call_of(protocol, records[0], shown) == run["first_call"]
    asked = [
        {
            "task_type": record.meta["task"],
            "gt": f"({record.answer}) {record.meta['answer_text']}",
            "question_sha": hashlib.sha256(protocol.prompt(record, shown).encode()).hexdigest()[:16],
        }
        for record in records
    ]
    assert asked == run["questions_and_gt"]

    final = dict(run["final"])
    assert protocol.metric.headline(rows) == pytest.approx(final.pop("Avg"))
    assert {name: value for (_, name), value in sub_scores(protocol.metric, rows).items()} == final
    assert protocol.metric.others(rows)["accuracy, empty answers wrong"] == pytest.approx(62.5 - 2 * 2.5)


def test_mvbench_media_are_bound_where_marked_and_frames_where_episodes(tmp_path):
    run = golden_run("mvbench")
    write_mvbench_json(tmp_path, run)
    media = {record.id: record.media[0] for record in find_task("mvbench").read(tmp_path)}
    videos = tmp_path / "MVBench/video"

    sequence = media["Action Sequence/0"]
    assert (sequence.kind, sequence.bound) == ("video", (1.36, 8.28))
    assert sequence.source == videos / "star/Charades_v1_480/acti0.mp4"
    assert media["Action Count/0"].bound is None
    episode = media["Episodic Reasoning/1"]
    assert (episode.kind, episode.fps, episode.bound) == ("frames", 3, (1.1, 4.72))
    assert episode.source == videos / "tvqa/frames_fps3_hq/clip1"


def test_mvbench_frames_beams_and_tokens():
    settings = default_protocol("mvbench")[2].settings

    assert (settings.frames, settings.frame_tiles) == (96, 1)
    assert settings.generation["num_beams"] == 5
    assert find_task("mvbench").protocols["internvl2"].settings.frames == 16


@pytest.mark.parametrize("place", range(2))
def test_mvbench_dataset_items(place):
    case = load("eval_mvbench.json")["dataset_items"][place]
    record = Record("0", (), case["data"]["question"], tuple(case["data"]["candidates"]))
    shown = [Shown(tuple(range(case["num_frames"])))]

    assert default_protocol("mvbench")[2].prompt(record, shown) == case["question"]


def test_mvbench_question_texts():
    for case in load("eval_mvbench.json")["qa_template"]:
        options = tuple(case["candidates"])
        record = Record("0", (), case["question"], options)
        letter = mvbench._right_letter(options, case["answer"])

        assert mvbench.question_text(record) == case["question_text"], case
        assert f"({letter}) {case['answer']}" == case["answer_text"], case


def test_mvbench_prompts_of_lmms():
    protocol = find_task("mvbench").protocols["lmms"]
    for case in load("evaluation/prompts.json")["mvbench_lmms"]:
        record = Record("0", (), case["doc"]["question"], tuple(case["doc"]["candidates"]))
        assert protocol.prompt(record, [Shown((0, 1))]) == "Frame1: <image>\nFrame2: <image>\n" + case["lmms"]


# OCRBench


def ocrbench_scores(protocol):
    data = load("evaluation/ocrbench.json")
    scores = []
    for entry in data["records"]:
        meta = {"type": entry["type"], "set": entry["dataset_name"]}
        record = Record("0", (), "", answer=ocrbench._references(entry["answers"]), meta=meta)
        scores.append(protocol.score(protocol.parse(entry["predict"], record), record))
    return data, scores


@pytest.mark.parametrize("name", ["official", "lmms", "vlmevalkit"])
def test_ocrbench_scores_of_three_protocols(name):
    data, scores = ocrbench_scores(find_task("ocrbench").protocols[name])
    assert scores == data[name]


def test_ocrbench_totals_by_type():
    protocol = find_task("ocrbench").protocols["vlmevalkit"]
    data, scores = ocrbench_scores(protocol)
    rows = [
        Row(Record(str(n), (), "", meta={"type": entry["type"], "set": ""}), "", "", score)
        for n, (entry, score) in enumerate(zip(data["records"], scores))
    ]
    parts = {
        name: value for (kind, name), value in sub_scores(protocol.metric, rows).items() if kind == "part"
    }
    expected = dict(data["vlmevalkit_scores"])

    assert protocol.metric.headline(rows) == expected.pop("Final Score")
    expected.pop("Final Score Norm")
    assert parts == expected


def test_ocrbench_prompts():
    protocols = find_task("ocrbench").protocols
    for case in load("evaluation/prompts.json")["ocrbench"]:
        record = Record("0", (), case["doc"]["question"])
        assert protocols["vlmevalkit"].prompt(record, SHOWN) == case["vlmevalkit_internvl"]
        assert protocols["lmms"].prompt(record, SHOWN) == case["lmms"]
