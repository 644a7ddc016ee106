"""The file of tasks is checked when it is read, and every task in it has a sampler."""

import pytest

from pvc.tiny.synthetic import tasks
from pvc.tiny.synthetic.dataset import SAMPLERS
from pvc.tiny.synthetic.tasks import ALL_TASKS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("media: image\n", "media: sound\n"), "media 'sound': expected one of image, images, video"),
        (("<YES_NO>", "<MAYBE>"), "names <MAYBE>: expected one of COLOUR, KIND, WORD"),
        (("group: reading", "groups: reading"), "has fields groups"),
    ],
)
def test_what_is_wrong_in_the_file_of_tasks_is_named(change, words, tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text(tasks.FILE.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        tasks.read_tasks(path)


def test_every_task_has_a_sampler():
    assert set(SAMPLERS) == set(ALL_TASKS) == {*tasks.read_tasks(), *tasks.read_tasks(tasks.BOARD_FILE)}
    with pytest.raises(ValueError, match="'maze' is not in tasks.yaml or board_tasks.yaml"):
        tasks.task("maze")
