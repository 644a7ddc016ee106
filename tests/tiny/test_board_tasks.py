"""Boards: answers follow from the scenes, one board of a video is dark, PVC-Tiny is not trained on them."""

import re

import pytest

from pvc.tiny.synthetic import board_tasks, tasks
from pvc.tiny.synthetic.board_tasks import BOARDS, COLUMNS, HEIGHT, ROWS, STEPS_A_BOARD, WIDTH, is_dark
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.scenes import COLOURS, draw


def samples(task: str, *, held_out: bool = False, count: int = 40):
    dataset = SyntheticDataset(count, held_out=held_out, tasks=(task,))
    return [dataset.sample(index) for index in range(count)]


def pixels_of_cells(scene) -> list[str]:
    """What stands in the middle of each cell, read from the drawn image."""
    image = draw(scene)
    names = {rgb: name for name, rgb in COLOURS.items()} | {scene.background: "empty"}
    return [
        names[image.getpixel((WIDTH * column + WIDTH // 2, HEIGHT * row + HEIGHT // 2))]
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


def cells(answer: str) -> list[str]:
    return answer.split()[1::2]


@pytest.mark.parametrize("task", tasks.BOARD_TASKS)
def test_an_answer_is_of_the_stated_form_and_numbers_all_cells(task):
    for sample in samples(task):
        assert re.fullmatch(tasks.BOARD_TASKS[task].answers, sample.answer)
        assert sample.answer.split()[::2] == list(board_tasks.NUMBERS)


def test_an_image_is_told_as_it_is_drawn():
    for sample in samples("board"):
        assert cells(sample.answer) == pixels_of_cells(sample.scenes[0])


def test_a_video_is_told_at_its_dark_frames():
    for sample in samples("board_dark"):
        dark = [scene for scene in sample.scenes if is_dark(scene)]
        assert len(sample.scenes) == BOARDS * STEPS_A_BOARD and len(dark) == STEPS_A_BOARD
        assert [cells(sample.answer)] * STEPS_A_BOARD == list(map(pixels_of_cells, dark))


def test_the_dark_board_is_anywhere():
    firsts = {[is_dark(scene) for scene in sample.scenes].index(True) for sample in samples("board_dark")}
    assert firsts == set(range(0, BOARDS * STEPS_A_BOARD, STEPS_A_BOARD))


def test_held_out_boards_have_all_colours_and_those_of_training_often_few():
    def most_colours(held_out: bool) -> list[int]:
        answers = [cells(sample.answer) for sample in samples("board", held_out=held_out)]
        return [len(set(answer) - {board_tasks.EMPTY}) for answer in answers]

    assert min(most_colours(True)) > 2 and 1 in most_colours(False)


def test_the_data_of_pvc_tiny_have_no_boards():
    assert not tasks.BOARD_TASKS.keys() & tasks.TASKS.keys()
    assert not set(SyntheticDataset(1).tasks) & tasks.BOARD_TASKS.keys()
