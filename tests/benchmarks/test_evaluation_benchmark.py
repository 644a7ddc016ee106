"""The benchmark of evaluation: what is counted of two ways to ask, at the smallest size."""

import pytest
import torch

from pvc.benchmarks import evaluation
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.presets import find_preset
from pvc.benchmarks.reading import write_video
from pvc.evaluation.media import Tiling, Units, prepare

FRAMES = 4


@pytest.fixture(scope="module")
def loaded():
    return evaluation.load(find_preset("tiny"))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "0.mp4"
    write_video(path, 1)
    return path


@pytest.fixture(scope="module")
def unit(video):
    return prepare(evaluation.questions(video, 3), evaluation.protocol(FRAMES), Tiling(56))


def text_lengths(loaded, unit) -> list[int]:
    """Tokens of each question behind the frames."""
    texts = [request.question.rpartition("<image>\n")[2] for request in unit.requests]
    return [len(loaded.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def test_three_questions_encode_a_video_once_and_compute_their_own_text_alone(loaded, unit):
    settings = evaluation.protocol(FRAMES).settings
    with evaluation.counted_work(loaded.model) as together:
        evaluation.ask_as_unit(loaded, unit, settings)
    with evaluation.counted_work(loaded.model) as apart:
        evaluation.ask_apart(loaded, unit, settings)
    assert together["tiles encoded"] == FRAMES
    assert apart["tiles encoded"] == 3 * FRAMES

    # what two calls need not compute again: frames and all text before the questions
    saved = apart["LLM positions"] - together["LLM positions"]
    decoded = 3 * (evaluation.NEW_TOKENS - 1)
    shared = (apart["LLM positions"] - decoded - sum(text_lengths(loaded, unit))) / 3
    assert saved >= 2 * (shared - 10)  # the end of the template stands behind each question


def test_both_ways_give_the_same_answers(loaded, unit):
    settings = evaluation.protocol(FRAMES).settings
    answers = evaluation.ask_as_unit(loaded, unit, settings)
    assert len(answers) == 3
    assert answers == evaluation.ask_apart(loaded, unit, settings)


def test_the_tables_hold_counts_times_and_their_ratio(loaded, unit):
    timer = DeviceTimer(torch.device("cpu"), torch.float32)
    settings = evaluation.protocol(FRAMES).settings
    as_unit, apart, ratio = evaluation.shared_video_rows(loaded, unit, settings, timer, 1)
    assert ratio["tiles encoded"] == pytest.approx(1 / 3)
    assert ratio["LLM positions"] == as_unit["LLM positions"] / apart["LLM positions"] < 1
    assert ratio["s"] == pytest.approx(as_unit["s"] / apart["s"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_reads_the_same_videos(loaded, video, workers):
    units = Units([evaluation.questions(video, 1)] * 3, evaluation.protocol(2), Tiling(56))
    assert evaluation.answer_all(loaded.engine(), units, workers) == 3


@pytest.mark.slow
def test_the_command_prints_and_writes_its_tables(tmp_path, capsys):
    evaluation.main(["--preset", "tiny", "--runs", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "evaluation.md").read_text()
    assert "python -m pvc.benchmarks.evaluation --preset tiny" in printed
    assert "Three questions about a video of 4 frames" in printed
    assert "a wait as long as reading" in printed
