"""The protocol "dynamic-vlm": a frame a second up to 120, its prompt lines, its sentence, its pixels."""

import pytest

from pvc.evaluation.choices import ask_one_letter
from pvc.evaluation.frames import VideoFacts, dynamic_vlm_frames
from pvc.evaluation.records import Record, Shown
from pvc.evaluation.tasks import TASKS

NAMES = (
    *("videomme", "videomme-subs", "mlvu-dev", "mlvu-test", "tempcompass", "egoschema", "egoschema-subset"),
    *("perceptiontest-val", "perceptiontest-test", "muirbench", "mmiu"),
)


def test_the_papers_benchmarks_have_the_protocol():
    assert {name for name, task in TASKS.items() if "dynamic-vlm" in task.protocols} == set(NAMES)
    for name in NAMES:
        settings = TASKS[name].protocols["dynamic-vlm"].settings
        assert (settings.frames, settings.choose_frames) == (120, dynamic_vlm_frames)
        assert "do_sample" not in settings.generation  # greedy


@pytest.mark.parametrize(
    ("facts", "most", "expected"),
    [
        (VideoFacts(100, 10.0), 120, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (VideoFacts(101, 10.0), 120, [*range(0, 101, 10)]),
        (VideoFacts(3, 10.0), 120, [0]),
        (VideoFacts(75, 29.97), 120, [0, 29, 59]),
        (VideoFacts(100, 10.0, bound=(2.0, 5.0)), 120, [20, 30, 40]),
        (VideoFacts(50, 5.0, first=1), 120, [1, 6, 11, 16, 21, 26, 31, 36, 41, 46]),
        (VideoFacts(100, 10.0), 4, [0, 33, 66, 99]),
        (VideoFacts(100, 10.0), 10, [*range(0, 100, 10)]),
    ],
)
def test_a_frame_a_second_up_to_the_most_and_then_evenly(facts, most, expected):
    assert dynamic_vlm_frames(facts, most) == expected


def test_long_videos_have_so_many_frames():
    chosen = dynamic_vlm_frames(VideoFacts(108_000, 30.0), 120)  # an hour
    assert (len(chosen), chosen[0], chosen[-1]) == (120, 0, 107_999)
    steps = {b - a for a, b in zip(chosen, chosen[1:])}
    assert max(steps) - min(steps) <= 1


def test_the_prompt_is_that_of_the_paper():
    record = Record("x", (), "What happens?", ("A ball rolls", "A dog runs"))
    asked = "What happens?\nA. A ball rolls\nB. A dog runs\nAnswer with only one letter"
    two_frames = Shown((0, 10), (0.0, 1.0))
    assert ask_one_letter(record, [two_frames]) == f"1s: <image>; 2s: <image>; \n{asked}"
    assert ask_one_letter(record, [Shown()]).startswith("<image>What happens?")


def test_images_stand_where_their_marks_are():
    record = Record("x", (), "Is <image> like <image>?", ("yes", "no"))
    text = TASKS["muirbench"].protocols["dynamic-vlm"].prompt(record, [Shown(), Shown()])
    assert text == "Is <image> like <image>?\nA. yes\nB. no\nAnswer with only one letter"
