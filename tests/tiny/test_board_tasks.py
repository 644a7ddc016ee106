"""Boards: answers follow from what is drawn, four frames show all of a video, PVC-Tiny has no boards."""

import re

import pytest

from pvc.preprocess import get_index
from pvc.tiny.synthetic import tasks
from pvc.tiny.synthetic.board_tasks import (
    COLUMNS,
    HEIGHT,
    NUMBERS,
    ROWS,
    STATES,
    STEPS_A_STATE,
    WIDTH,
)
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.scenes import COLOURS, draw


def samples(task: str, *, held_out: bool = False, count: int = 40):
    dataset = SyntheticDataset(count, held_out=held_out, tasks=(task,))
    return [dataset.sample(index) for index in range(count)]


def cells(answer: str) -> list[str]:
    return answer.split()[1::2]


def cells_drawn(scene) -> list[str | None]:
    """The colour in the middle of each cell, read from the drawn image; None: there is no shape."""
    image = draw(scene)
    names = {rgb: name for name, rgb in COLOURS.items()} | {scene.background: None}
    return [
        names[image.getpixel((WIDTH * column + WIDTH // 2, HEIGHT * row + HEIGHT // 2))]
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]


@pytest.mark.parametrize("task", tasks.BOARD_TASKS)
def test_an_answer_is_of_the_stated_form_and_numbers_all_cells(task):
    for sample in samples(task):
        assert re.fullmatch(tasks.BOARD_TASKS[task].answers, sample.answer)
        assert sample.answer.split()[::2] == list(NUMBERS)


def test_an_image_is_told_as_it_is_drawn():
    for sample in samples("board"):
        assert cells(sample.answer) == cells_drawn(sample.scenes[0])


def test_four_frames_of_a_video_show_each_cell_once():
    for sample in samples("board_parts"):
        assert len(sample.scenes) == STATES * STEPS_A_STATE
        chosen = get_index(None, 1, len(sample.scenes) - 1, num_segments=STATES)
        by_cell = zip(*(cells_drawn(sample.scenes[frame]) for frame in chosen))
        assert [[colour for colour in seen if colour] for seen in by_cell] == [
            [colour] for colour in cells(sample.answer)
        ]


def test_held_out_boards_have_all_colours_and_those_of_training_often_few():
    def colours(held_out: bool) -> list[int]:
        return [len(set(cells(sample.answer))) for sample in samples("board", held_out=held_out)]

    assert min(colours(True)) > 2 and 1 in colours(False)


def test_the_data_of_pvc_tiny_have_no_boards():
    assert not tasks.BOARD_TASKS.keys() & tasks.TASKS.keys()
    assert not set(SyntheticDataset(1).tasks) & tasks.BOARD_TASKS.keys()
