"""Every released task reads a data set in its own layout, and names what is missing."""

import json
import re
import shutil

import pytest
from benchmark_files import WRITERS, Sample, write_benchmark, write_mme_release
from PIL import Image

from pvc.evaluation.media import Tiling, prepare
from pvc.evaluation.records import DataError, Shown
from pvc.evaluation.tables import ParquetImage, filled_columns
from pvc.evaluation.task import Row
from pvc.evaluation.tasks import find_task
from pvc.evaluation.tasks.mme import TASK_NAMES

YES_NO = {"mme"}
OPEN = {"chartqa", "docvqa-val", "docvqa-test", "infovqa-val", "infovqa-test", "textvqa", "ocrbench"}
RELEASED = tuple(WRITERS)


def image(number):
    return Image.new("RGB", (60, 40), (number % 256, 90, 200))


def samples_for(name, folder, number=30):
    """Questions of the form that the task has."""
    samples = []
    for place in range(number):
        media = image(place)
        if name == "mvbench":
            media = folder / "frames"
            media.mkdir(parents=True, exist_ok=True)
            for frame in range(1, 5):
                Image.new("RGB", (40, 40), (frame, 0, 0)).save(media / f"{frame:05d}.jpg")
        if name in YES_NO:
            samples.append(
                Sample(media, f"Is this {place}? Please answer yes or no.", ["yes", "no"][place % 2])
            )
        elif name in OPEN:
            samples.append(Sample(media, f"What is {place}?", f"number {place}"))
        else:
            options = ("red", "green", "blue")
            samples.append(Sample(media, f"Which one is {place}?", options[place % 3], options))
    return samples


def written(name, root, number=30):
    write_benchmark(name, root, samples_for(name, root.parent / "sources", number))
    return find_task(name).read(root)


@pytest.mark.parametrize("name", RELEASED)
def test_data_sets_are_read_from_a_root_with_another_name(tmp_path, name):
    records = written(name, tmp_path / "benchmarks")
    rotations = 3 if name.startswith("mmbench") else 1

    assert len(records) == 30 * rotations
    assert len({record.id for record in records}) == len(records)
    assert not any(media.is_missing() for record in records for media in record.media)
    assert records == find_task(name).read(tmp_path / "benchmarks")


@pytest.mark.parametrize("name", RELEASED)
def test_reference_answers_score_and_others_do_not(tmp_path, name):
    task = find_task(name)
    records = written(name, tmp_path / "data")
    if not task.has_answers:
        assert {record.answer for record in records} == {None}
        return

    for protocol in task.protocols.values():
        for record in records:
            reference = record.answer[0] if isinstance(record.answer, list) else record.answer
            assert protocol.score(protocol.parse(reference, record), record) == 1
            assert protocol.score(protocol.parse("something else", record), record) == 0


@pytest.mark.parametrize("name", [name for name in RELEASED if name != "mvbench"])
def test_images_are_opened_and_cut(tmp_path, name):
    record = written(name, tmp_path / "data")[0]
    task = find_task(name)
    for protocol in task.protocols.values():
        unit = prepare([record], protocol, Tiling(56))
        assert unit.pixel_values.shape[0] == sum(unit.requests[0].num_patches_list) >= 1


def test_frames_of_an_episode_are_shown_as_many_as_asked(tmp_path):
    records = written("mvbench", tmp_path / "data", 2)
    unit = prepare(records[:1], find_task("mvbench").protocols["internvl"], Tiling(56))
    request = unit.requests[0]

    assert unit.pixel_values.shape[0] == 96
    assert request.question.count("<image>") == 96
    assert (request.split_sizes, request.data_flag) == ([96], [3])


@pytest.mark.parametrize("name", RELEASED)
def test_an_empty_folder_is_an_error_that_names_files(tmp_path, name):
    with pytest.raises(DataError, match="json|tsv|parquet|MME_Benchmark"):
        find_task(name).read(tmp_path)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mme", "mme"),
        ("mmmu-val", "MMMU"),
        ("mvbench", "MVBench"),
        ("seed", "SEED"),
        ("ocrbench", "OCRBench"),
    ],
)
def test_data_may_be_the_folder_of_the_benchmark(tmp_path, name, own):
    records = written(name, tmp_path / "data")

    assert find_task(name).read(tmp_path / "data" / own) == records


def test_mme_is_read_from_the_original_release(tmp_path):
    samples = samples_for("mme", tmp_path, 28)
    write_mme_release(tmp_path / "data", samples)
    records = find_task("mme").read(tmp_path / "data")

    assert len(records) == 28
    assert {record.meta["task"] for record in records} == set(TASK_NAMES)
    assert not any(record.media[0].is_missing() for record in records)
    assert [record.answer for record in records[:2]] == ["yes", "no"]


def test_mme_release_with_images_alone_reads_as_its_folder(tmp_path):
    write_mme_release(tmp_path / "data", samples_for("mme", tmp_path, 28))
    folder = tmp_path / "data/mme/MME_Benchmark_release_version"

    assert find_task("mme").read(folder) == find_task("mme").read(tmp_path / "data")


def test_all_absent_tasks_of_mme_are_named(tmp_path):
    written("mme", tmp_path / "data")
    for task in ("scene", "OCR"):
        (tmp_path / f"data/mme/Your_Results/{task}.txt").unlink()

    with pytest.raises(DataError, match=r"scene\.txt, .*OCR\.txt"):
        find_task("mme").read(tmp_path / "data")


def test_a_torn_line_of_mme_is_named(tmp_path):
    written("mme", tmp_path / "data")
    path = tmp_path / "data/mme/Your_Results/count.txt"
    path.write_text(path.read_text() + "0.png\tIs it?\n")

    with pytest.raises(DataError, match=r"count\.txt, line 3 has 2 fields"):
        find_task("mme").read(tmp_path / "data")


def test_all_absent_subjects_of_mmmu_are_named(tmp_path):
    written("mmmu-val", tmp_path / "data")
    for subject in ("Art", "Math"):
        shutil.rmtree(tmp_path / "data/MMMU" / subject)

    with pytest.raises(DataError) as error:
        find_task("mmmu-val").read(tmp_path / "data")
    assert "Art/validation-" in str(error.value)
    assert "Math/validation-" in str(error.value)
    assert "Design" not in str(error.value)


def test_all_absent_files_of_mvbench_are_named(tmp_path):
    written("mvbench", tmp_path / "data")
    for task in ("action_count", "state_change"):
        (tmp_path / f"data/MVBench/json/{task}.json").unlink()

    with pytest.raises(DataError, match=r"action_count\.json\n .*state_change\.json"):
        find_task("mvbench").read(tmp_path / "data")


def test_mmmu_takes_the_images_that_a_row_holds(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = [{"bytes": b"x", "path": None}, None, {"bytes": b"y", "path": "y.png"}]
    table = pa.table({"image_1": pa.array(named, struct), "image_2": pa.array([None, b"a", b"b"])})
    pq.write_table(table, tmp_path / "a.parquet")

    columns = ["image_1", "image_2"]
    assert filled_columns(tmp_path / "a.parquet", columns) == [["image_1"], ["image_2"], columns]
    assert ParquetImage(tmp_path / "a.parquet", 2, "image_1").read() == b"y"
    assert ParquetImage(tmp_path / "a.parquet", 1, "image_2").read() == b"a"


def test_mmmu_open_references_may_be_several_texts(tmp_path):
    samples = [Sample(image(1), "How many?", "['8', 'eight']", kind="Math")]
    write_benchmark("mmmu-val", tmp_path, samples)
    (record,) = find_task("mmmu-val").read(tmp_path)

    assert record.answer == ["8", "eight"]
    assert record.meta == {"type": "open", "subject": "Math", "domain": "Science"}
    assert find_task("mmmu-val").protocols["internvl"].prompt(record, [Shown()]).endswith("word or phrase.")


def test_ocrbench_copies_give_the_same_questions(tmp_path):
    import base64

    import pyarrow as pa
    import pyarrow.parquet as pq
    from benchmark_files import image_bytes

    samples = samples_for("ocrbench", tmp_path, 4)
    original = written("ocrbench", tmp_path / "original", 4)
    rows = []
    for record, sample in zip(original, samples):
        row = {"dataset": "IIIT5K", "question": record.question, "question_type": record.meta["type"]}
        rows.append({**row, "answer": record.answer, "image": {"bytes": image_bytes(sample.media)}})
    hub = tmp_path / "hub/OCRBench/data"
    hub.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), hub / "test-00000-of-00001.parquet")

    lines = ["index\timage\tquestion\tanswer\tcategory"]
    for number, row in enumerate(rows):
        text = base64.b64encode(row["image"]["bytes"]).decode()
        lines.append(f"{number}\t{text}\t{row['question']}\t{row['answer']!r}\t{row['question_type']}")
    (tmp_path / "tsv").mkdir()
    (tmp_path / "tsv/OCRBench.tsv").write_text("\n".join(lines) + "\n")

    def facts(root):
        return [
            (record.question, record.answer, record.meta["type"], read_image(record.media[0].source))
            for record in find_task("ocrbench").read(root)
        ]

    def read_image(source):
        return source.read_bytes() if hasattr(source, "read_bytes") else source.read()

    assert facts(tmp_path / "hub") == facts(tmp_path / "tsv") == facts(tmp_path / "original")


FAULTY = {  # file, what is made of it, what the message says
    "ai2d": ("ai2diagram/test_vlmevalkit.jsonl", {"image": "0.png"}, "record 1 has no field 'question_id'"),
    "scienceqa": (
        "scienceqa/scienceqa_test_img.jsonl",
        {"image": "0.png", "question": "q", "choices": ["x"], "answer": "B"},
        "record 1: ",
    ),
    "seed": ("SEED/seed.jsonl", {"question_id": 0, "text": "q"}, "record 1 has no field 'image'"),
    "docvqa-val": ("docvqa/val/val_v1.0.json", {"data": [{"question": "q"}]}, "no field 'questionId'"),
    "textvqa": ("textvqa/textvqa_val_annotations.json", {}, "no field 'annotations'"),
    "mvbench": ("MVBench/json/state_change.json", [{"video": "0.mp4"}], "record 1 has no field 'candidates'"),
    "ocrbench": ("OCRBench/OCRBench.json", [{"image_path": "0.png"}], "record 1 has no field 'dataset_name'"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_record_without_a_field_is_named_with_its_file(tmp_path, name):
    file, content, message = FAULTY[name]
    written(name, tmp_path / "data")
    (tmp_path / "data" / file).write_text(json.dumps(content))

    with pytest.raises(DataError, match=re.escape(message)) as error:
        find_task(name).read(tmp_path / "data")
    assert file.split("/")[-1] in str(error.value)


def test_mmbench_without_its_images_is_refused(tmp_path):
    written("mmbench-dev-en", tmp_path / "data")
    path = tmp_path / "data/mmbench/mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("\timage\t", "\tpicture\t"))

    with pytest.raises(DataError, match="no field 'image'"):
        find_task("mmbench-dev-en").read(tmp_path / "data")


def test_an_image_that_is_no_base64_is_refused_when_it_is_read(tmp_path):
    written("mmbench-dev-en", tmp_path / "data", 1)
    path = tmp_path / "data/mmbench/mmbench_dev_20230712.tsv"
    lines = path.read_text().splitlines()
    fields = lines[1].split("\t")
    fields[9] = "*" * 80
    path.write_text("\n".join([lines[0], "\t".join(fields)]) + "\n")
    (record,) = find_task("mmbench-dev-en").read(tmp_path / "data")

    with pytest.raises(DataError, match="image of question 0 is not base64"):
        record.media[0].source.read()


@pytest.mark.parametrize("name", [name for name in RELEASED if find_task(name).submission])
def test_files_for_servers_hold_one_line_a_record_and_refuse_repeated_ones(tmp_path, name):
    task = find_task(name)
    records = written(name, tmp_path / "data", 3)
    rows = [Row(record, None, None, 0.0) for record in records]
    (file,) = task.submission(rows)

    assert len(file.content) == len(records)
    with pytest.raises(ValueError, match="twice"):
        task.submission(rows + rows[:1])
