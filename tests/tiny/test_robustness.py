"""The second renderer draws what its questions are about, and its table counts exact answers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from pvc.tiny import robustness
from pvc.tiny.robustness import HUES, LOOKS, PLAIN, TASKS, Scenes, cases, render, table
from pvc.tiny.synthetic.tasks import TASKS as STATED

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=float)


@pytest.mark.parametrize("look", LOOKS)
def test_every_look_has_images_of_its_sizes(look):
    look = LOOKS[look]
    sizes = {(round(w * look.zoom), round(h * look.zoom)) for w, h in look.canvas}
    task = look.tasks[0] if look.tasks else "count"
    (case,), (again,) = (list(cases(task, look, 1, seed=1)) for _ in range(2))
    assert case.image.size in sizes and case.image.mode == "RGB"
    assert (again.question, again.answer) == (case.question, case.answer)
    assert again.image.tobytes() == case.image.tobytes()


def test_a_shape_has_its_colour_around_its_middle_and_nothing_touches_another():
    for index in range(10):
        scenes = Scenes(PLAIN, f"{index}")
        things = scenes.things(scenes.names(4))
        image = pixels(render([*things], PLAIN, scenes.width, scenes.height))
        for one in things:
            expected = np.array(to_rgb(HUES[one.hue])) * 255
            assert np.abs(image[int(one.y), int(one.x)] - expected).max() < 2
            others = [other for other in things if other is not one]
            assert all(np.hypot(one.x - x.x, one.y - x.y) > one.reach + x.reach for x in others)


@pytest.mark.parametrize("look", ["base", "serif", "bold", "capitals", "letters of 22 to 30 pixels"])
def test_texts_lie_inside_the_image(look):
    look = LOOKS[look]
    for index in range(8):
        things, _, answer = TASKS["word"](Scenes(look, f"{index}"))
        assert things[0].text == answer and answer.isupper() == look.capitals
        image = pixels(render(things, look, 96, 96))
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edge == edge[0]).all() and (image != edge[0]).any()


def test_answers_follow_from_the_scenes():
    for index in range(40):
        things, question, answer = TASKS["relation"](Scenes(PLAIN, f"{index}"))
        right, down = things[0].x - things[1].x, things[0].y - things[1].y
        way = {"left": -right, "right": right, "above": -down, "below": down}
        assert max(way, key=way.get) == answer and str(things[0]) in question

        things, question, answer = TASKS["count"](Scenes(PLAIN, f"{index}"))
        asked = question.split()[2:-4]
        fits = [x for x in things if set(asked) <= {x.hue, f"{x.form}s", "shapes"}]
        assert len(fits) == int(answer)

        things, question, answer = TASKS["exists"](Scenes(PLAIN, f"{index}"))
        assert (answer == "yes") == any(str(thing) in question for thing in things)


def test_questions_are_held_out_forms():
    stated = {form.split("{")[0] for task in TASKS for form in STATED[task].held_out}
    for name, task in TASKS.items():
        _, question, _ = task(Scenes(PLAIN, "0"))
        assert any(question.startswith(start) for start in stated), name


def test_the_table_has_the_share_of_exact_answers(monkeypatch):
    monkeypatch.setattr(robustness, "score", lambda model, processor, asked, any_case: len(asked) / 4)
    lines = table(None, None, ["base", "capitals"], samples=2, seed=0).splitlines()
    assert lines[0].startswith("| images | word | number |")
    assert lines[3].startswith("| capitals | 50% |  |") and lines[3].endswith("| 50.0% |")


def test_an_answer_in_the_other_case_counts_where_a_look_says_so():
    asked = list(cases("word", LOOKS["capitals"], 3, seed=0))
    answers = [asked[0].answer, asked[1].answer.lower(), "other"]
    model = SimpleNamespace(dtype=torch.float32, batch_chat=lambda *_, **__: answers)
    tiles = SimpleNamespace(tiles=torch.zeros(1, 3, 96, 96))
    processor = SimpleNamespace(tokenizer=None, image_processor=SimpleNamespace(image=lambda image: tiles))
    assert robustness.score(model, processor, asked) == pytest.approx(1 / 3)
    assert robustness.score(model, processor, asked, any_case=True) == pytest.approx(2 / 3)
