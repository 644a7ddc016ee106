"""Copies of benchmarks on the Hub are read as the original files are; GIFs are videos."""

import json

import pytest
from PIL import Image
from video_benchmark_files import put_videos, write_open_ended, write_parquet

from pvc.evaluation.media import layouts
from pvc.evaluation.records import DataError
from pvc.evaluation.task import Settings
from pvc.evaluation.tasks import TASKS

FIVE = ["k", "l", "m", "n", "none"]
VIDEO = [{"video": "v1"}]


def read_one(name, folder):
    (record,) = TASKS[name].read(folder)
    assert not record.media[0].is_missing()
    return record


def test_lmms_evals_copy_of_mlvu(tmp_path):
    row = {"video_name": "v1.mp4", "duration": 8.0, "question": "What?\n(A) x\n(B) y", "question_id": "ego_1"}
    row |= {"candidates": ["x", "y"], "answer": "y", "task_type": "ego"}
    write_parquet(tmp_path / "MLVU_dev" / "data" / "test-00000-of-00001.parquet", [row])
    put_videos(tmp_path / "MLVU_dev" / "video", VIDEO)

    record = read_one("mlvu-dev", tmp_path)

    assert (record.id, record.question, record.options, record.answer) == ("ego_1", "What?", ("x", "y"), "B")


def test_the_parquet_copy_of_longvideobench_has_columns_of_options(tmp_path):
    row = {"id": "v1_0", "video_id": "v1", "video_path": "v1.mp4", "subtitle_path": "v1_en.json"}
    row |= {"question": "What?", "correct_choice": 2, "duration": 8.0, "duration_group": 15}
    row |= {"question_category": "S2E", "topic_category": "T", "starting_timestamp_for_subtitles": 0}
    row |= {"option0": "x", "option1": "y", "option2": "z", "option3": "N/A", "option4": "N/A"}
    write_parquet(tmp_path / "LongVideoBench" / "validation-00000-of-00001.parquet", [row])
    put_videos(tmp_path / "LongVideoBench" / "videos", VIDEO)

    record = read_one("longvideobench-val", tmp_path)

    assert (record.options, record.answer) == (("x", "y", "z"), "C")


def test_the_parquet_copy_of_nextqa(tmp_path):
    row = {f"a{number}": option for number, option in enumerate(FIVE)}
    row |= {"video": "v1", "question": "why", "answer": 4, "qid": 3, "type": "CW"}
    write_parquet(tmp_path / "NExTQA" / "MC" / "test-00000-of-00001.parquet", [row])
    put_videos(tmp_path / "NExTQA" / "NExTVideo", VIDEO)

    record = read_one("nextqa-mc", tmp_path)

    assert (record.id, record.options, record.answer) == ("v1_3", tuple(FIVE), "E")


def test_a_copy_of_activitynet_with_questions_and_answers_in_one_table(tmp_path):
    row = {"video_name": "v1", "question": "is it", "question_id": "v_v1_1", "answer": "yes", "type": "3"}
    write_parquet(tmp_path / "activitynetqa" / "data" / "test-00000-of-00001.parquet", [row])
    put_videos(tmp_path / "activitynetqa" / "videos", VIDEO, ".webm", "v_")

    record = read_one("activitynetqa", tmp_path)

    assert (record.answer, record.meta["type"]) == ("yes", ("Yes/No", "Free"))


def test_a_gif_is_a_video(tmp_path):
    frames = [Image.new("P", (32, 24), level) for level in range(0, 60, 10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    sample = {"video": "g", "question": "what", "answer": "ball", "source": tmp_path / "a.gif"}
    write_open_ended(tmp_path, [sample], "tgif-qa", suffix=".gif")

    record = read_one("tgif-qa", tmp_path)
    (shown,) = layouts(record, Settings(frames=3))

    assert record.media[0].source.suffix == ".gif"
    assert shown.frames == 3


def test_a_row_without_a_field_is_named_with_its_number(tmp_path):
    rows = [{"q_uid": "a", "question": "?", **{f"option {i}": "x" for i in range(5)}}, {"q_uid": "b"}]
    (tmp_path / "questions.json").write_text(json.dumps(rows), encoding="utf-8")

    with pytest.raises(DataError, match="record 2 has no field 'option 0'"):
        TASKS["egoschema"].read(tmp_path)


@pytest.mark.parametrize("task", ["videomme", "mlvu-test", "nextqa-mc", "egoschema", "muirbench", "mmiu"])
def test_an_empty_folder_is_refused_with_what_was_searched(task, tmp_path):
    with pytest.raises(DataError, match=f"expected one of .*{tmp_path.name}"):
        TASKS[task].read(tmp_path)
