"""MuirBench and MMIU: files, prompts, tiles, scores, against what public code makes of them."""

import pytest
from benchmark_answers import answered, golden_evaluation
from PIL import Image
from video_benchmark_files import write_mmiu, write_muirbench

from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.task import Row, percent
from pvc.evaluation.tasks import several_images
from pvc.preprocess import dynamic_preprocess

MUIR = golden_evaluation("muirbench")
PROMPTS = golden_evaluation("prompts")["muirbench"]
RUNS = golden_evaluation("internvl_end_to_end")
MUIRBENCH, MMIU = several_images.ALL


def images(number):
    return tuple(Media("image", f"{index}.png") for index in range(number))


def shown(number):
    return [Shown()] * number


# --- MuirBench


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["question"][:40])
def test_prompts_of_muirbench_are_those_of_public_code(case):
    number = case["num_images"]
    record = Record("q", images(number), case["question"], tuple(case["options"]))

    for name, expected in [
        ("official", "official"),
        ("default", "official"),
        ("lmms", "lmms"),
        ("vlmevalkit", "vlmevalkit_internvl"),
    ]:
        assert MUIRBENCH.protocols[name].prompt(record, shown(number)) == case[expected]


@pytest.mark.parametrize("marks, images", [(1, 3), (3, 1), (2, 2)])
def test_there_is_a_placeholder_for_each_image(marks, images):
    record = Record("q", (), "<image> " * marks + "What?", ("x", "y"))

    text = MUIRBENCH.protocols["default"].prompt(record, shown(images))

    assert text.count("<image>") == images


def muirbench_rows(protocol):
    records = [
        Record(row["idx"], (), "", tuple(row["options"]), row["answer"], {"task": row["task"]})
        for row in MUIR["rows"]
    ]
    return answered(MUIRBENCH.protocols[protocol], records, [row["response"] for row in MUIR["rows"]])


def test_answers_of_muirbench_are_read_as_officially_but_for_random_letters():
    expected = [
        row["official_letter"] if isinstance(row["official_letter"], str) else "" for row in MUIR["rows"]
    ]

    assert [row.parsed for row in muirbench_rows("official")] == expected


def test_answers_of_muirbench_are_scored_as_by_lmms_eval():
    rows = muirbench_rows("lmms")
    accuracies = several_images.choices.accuracies(rows, "task")

    assert [row.score == 1 for row in rows] == [row["lmms_correct"] for row in MUIR["rows"]]
    assert percent(rows) / 100 == MUIR["lmms_overall"]
    printed = MUIR["lmms_printed"][1:-1]
    assert [f"{name} : {value / 100:.2f}" for name, value in accuracies.items()] == printed


def test_the_table_of_muirbench_is_read_with_its_images(tmp_path):
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (8 + index, 8)).save(paths[-1])
    samples = [
        {"images": paths[:2], "question": "<image> <image> Same?", "options": ["x", "y"], "answer": "A"},
        {"images": paths[2:], "question": "What?", "options": ["k", "l"], "answer": "B"},
    ]
    write_muirbench(tmp_path, samples)

    records = MUIRBENCH.read(tmp_path)

    assert [(r.question, r.options, r.answer, len(r.media)) for r in records] == [
        (s["question"], tuple(s["options"]), s["answer"], len(s["images"])) for s in samples
    ]
    assert records[0].media[1].source.read() == paths[1].read_bytes()


# --- MMIU


def mmiu_records():
    run = RUNS["mmiu"]
    return [
        Record(
            str(number),
            images(len(line["input"]["input_image_path"])),
            line["input"]["question"],
            several_images.options_of(line["options"]),
            line["output"]["output_text"],
            {"task": line["task"], "context": line["input"]["context"]},
        )
        for number, line in enumerate(run["lines"])
    ]


def test_mmiu_is_run_as_by_internvl():
    """What `chat` is called with: the question, and the tiles of each image."""
    run = RUNS["mmiu"]
    protocol = MMIU.protocols["internvl"]
    image = Image.new("RGB", run["image_size"])

    for record, call in zip(mmiu_records(), run["calls"], strict=True):
        number = len(record.media)
        plans = [protocol.settings.plan_image(position, number) for position in range(number)]
        tiles = [len(dynamic_preprocess(image, 1, plan.max_tiles, use_thumbnail=True)) for plan in plans]

        assert protocol.prompt(record, shown(number)) == call["question"]
        assert tiles == call["num_patches_list"]


def test_mmiu_has_the_accuracies_that_internvl_prints():
    rows = answered(MMIU.protocols["internvl"], mmiu_records(), RUNS["mmiu"]["answers"])
    metric = MMIU.protocols["internvl"].metric

    accuracies = several_images.choices.accuracies(rows, "task")
    printed = dict(line.split(" accuracy: ") for line in RUNS["mmiu"]["printed"])

    assert [row.parsed for row in rows] == RUNS["mmiu"]["preds"]
    assert {name: value / 100 for name, value in accuracies.items()} == {
        name: float(value) for name, value in printed.items() if name != "Overall"
    }
    assert metric.headline(rows) / 100 == pytest.approx(float(printed["Overall"]))


def test_the_official_aggregate_of_mmiu_has_its_quirks():
    golden = RUNS["mmiu_official_aggregate"]
    rows = [
        Row(Record("", (), "", (), entry["output"], {"task": task}), "", entry["InternVL2_choice"], 0.0)
        for task, entries in golden["choices"].items()
        for entry in entries
    ]

    assert several_images.official_mmiu_accuracy(rows) / 100 == pytest.approx(golden["accuracy"]["Overall"])


@pytest.mark.parametrize("nested", [False, True])
def test_files_of_mmiu_are_read_in_both_layouts(tmp_path, nested):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    samples = [
        {"images": [tmp_path / "0.png"] * 2, "question": "Same?", "options": ["x", "y: z"], "answer": "B"}
    ]
    write_mmiu(tmp_path, samples, nested=nested)

    (record,) = MMIU.read(tmp_path)

    assert (record.question, record.options, record.answer) == ("Same?", ("x", "y: z"), "B")
    assert "A: x\nB: y: z" in record.meta["context"]
    assert [media.is_missing() for media in record.media] == [False, False]
