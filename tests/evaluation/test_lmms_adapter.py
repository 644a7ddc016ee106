"""The adapter for lmms-eval, beside a stand-in for the modules of lmms-eval that it imports.

The comparison with lmms-eval itself is a lane of its own: `make test-lmms-eval`.
"""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest
from PIL import Image

from pvc import CHECKPOINT
from pvc.evaluation.engine import Answer
from pvc.evaluation.media import Tiling
from pvc.evaluation.tasks import TASKS

ADAPTER = "pvc.evaluation.lmms_adapter"
VIDEO = str(CHECKPOINT / "assets/video.mp4")
IMAGES = [CHECKPOINT / f"assets/picture{i}.png" for i in (1, 2)]


class Lmms:
    """lmms-eval's base class, as far as the adapter needs it."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}


class ModelManifest(NamedTuple):
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@pytest.fixture
def adapter(monkeypatch):
    modules = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    yield importlib.import_module(ADAPTER)
    sys.modules.pop(ADAPTER, None)


class Echo:
    """An engine that answers with the id of the question's record, and keeps what it was asked."""

    tiling = Tiling(96)
    reads_tiles = True

    def __init__(self, ending="", failing=()):
        self.ending, self.failing, self.asked = ending, failing, []
        self.model = SimpleNamespace(device="cpu")

    def answer(self, units, settings):
        for unit in units:
            self.asked.append((unit, settings))
            for request in unit.requests:
                failed = request.record.question in self.failing
                text = None if failed else request.record.question.upper() + self.ending
                yield Answer(request, text, "OutOfMemoryError" if failed else None, 0.0)


def adapted(adapter, monkeypatch, engine, docs):
    """The adapter with this engine, over documents `(question, visuals)` of one split."""
    monkeypatch.setattr(adapter, "load_engine", lambda *arguments: engine)
    model = adapter.PVC(workers=0)
    model.task_dict = {task: {"test": docs} for task in ("ai2d", "videomme", "unheard_of")}
    return model


def request(docs, number, task="ai2d", **options):
    options = {"max_new_tokens": 5, "until": ["\n\n"]} | options
    return SimpleNamespace(args=(docs[number][0], options, lambda doc: doc[1], number, task, "test"))


def image(i=0):
    return Image.open(IMAGES[i])


def test_the_entry_point_names_the_model(adapter):
    text = (CHECKPOINT / "pyproject.toml").read_text()
    assert f'[project.entry-points."lmms_eval.models"]\npvc = "{ADAPTER}:manifest"\n' in text
    found = adapter.manifest()
    assert found.model_id == "pvc"
    module, _, name = found.simple_class_path.rpartition(".")
    assert getattr(importlib.import_module(module), name) is adapter.PVC


def test_answers_come_in_the_order_of_the_requests(adapter, monkeypatch):
    docs = [(f"question {i}", [image(i % 2)] if i % 3 else [VIDEO]) for i in range(8)]
    model = adapted(adapter, monkeypatch, Echo(), docs)
    monkeypatch.setattr(adapter, "WINDOW", 3)
    tasks = ("ai2d", "unheard_of")
    asked = [request(docs, i, tasks[i % 2], max_new_tokens=5 + i % 3) for i in range(8)]
    assert model.generate_until(asked) == [f"QUESTION {i}" for i in range(8)]


def test_each_task_has_its_own_tiles_frames_and_options(adapter, monkeypatch):
    docs = [("a", [image()]), ("b", [VIDEO]), ("c", [image()])]
    engine = Echo()
    model = adapted(adapter, monkeypatch, engine, docs)
    options = {"temperature": 0, "top_p": None, "num_beams": 2}
    model.generate_until(
        [
            request(docs, 0),
            request(docs, 1, "videomme", **options),
            request(docs, 2, "unheard_of", until=None, do_sample=True, temperature=0.5),
        ]
    )
    ai2d, videomme, unknown = sorted(engine.asked, key=lambda x: x[0].requests[0].record.question)
    own = {name: next(iter(TASKS[name].protocols.values())).settings for name in ("ai2d", "videomme")}
    assert ai2d[1].max_tiles == own["ai2d"].max_tiles == 6
    assert unknown[1].max_tiles == 12
    assert videomme[1].frames == own["videomme"].frames
    assert videomme[1].choose_frames is own["videomme"].choose_frames
    greedy = {"max_new_tokens": 5, "do_sample": False, "stop_strings": ["\n\n"]}
    assert ai2d[1].generation == greedy | {"num_beams": 1}
    assert videomme[1].generation == greedy | {"num_beams": 2}
    assert unknown[1].generation == {
        "max_new_tokens": 5,
        "num_beams": 1,
        "do_sample": True,
        "temperature": 0.5,
    }


def test_prompts_have_a_line_for_each_frame_and_each_of_several_images(adapter, monkeypatch):
    docs = [
        ("a", [VIDEO]),
        ("b", [image(0), image(1)]),
        ("c", [image()]),
        ("d", []),
        ("<image> e", [image()]),
    ]
    engine = Echo()
    model = adapted(adapter, monkeypatch, engine, docs)
    model.generate_until([request(docs, i) for i in range(5)])
    prompts = [unit.requests[0].question for unit, _ in engine.asked]
    frames = len(engine.asked[0][0].requests[0].frame_indices[0])
    assert prompts[0] == "".join(f"Frame{i}: <image>\n" for i in range(1, frames + 1)) + "a"
    assert prompts[1:] == ["Image-1: <image>\nImage-2: <image>\nb", "c", "d", "<image> e"]


def test_questions_about_one_video_are_one_unit(adapter, monkeypatch):
    docs = [("a", [VIDEO]), ("b", [VIDEO]), ("c", [image()]), ("d", [image()]), ("e", []), ("f", [])]
    engine = Echo()
    adapted(adapter, monkeypatch, engine, docs).generate_until([request(docs, i) for i in range(6)])
    assert [len(unit.requests) for unit, _ in engine.asked] == [2, 2, 1, 1]


@pytest.mark.parametrize("until", ["\n\n", ["\n\n", ""], ["x", "\n"]])
def test_an_answer_ends_at_a_stop_text(adapter, monkeypatch, until):
    docs = [("a", [image()])]
    model = adapted(adapter, monkeypatch, Echo(ending="\n\nmore x"), docs)
    assert model.generate_until([request(docs, 0, until=until)]) == ["A"]


def test_what_fails_is_an_error_and_no_answer(adapter, monkeypatch, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    docs = [("a", [image()]), ("b", [image()]), ("c", [str(tmp_path / "broken.mp4")]), ("d", [{"a": 1}])]
    model = adapted(adapter, monkeypatch, Echo(failing=("b",)), docs)
    with pytest.raises(RuntimeError, match="ai2d: question 1 was not answered: OutOfMemoryError"):
        model.generate_until([request(docs, i) for i in (0, 1)])
    with pytest.raises(RuntimeError, match="media of question 0 cannot be read"):
        model.generate_until([request(docs, 2)])
    with pytest.raises(TypeError, match="a visual is dict"):
        model.generate_until([request(docs, 3)])
    with pytest.raises(NotImplementedError, match="generate_until alone"):
        model.loglikelihood([])


def test_settings_are_those_of_tasks_that_exist(adapter):
    assert set(adapter.TASK_OF.values()) <= set(TASKS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_all_modes_can_be_handed_on(adapter, mode):
    from pvc.image_files import open_image

    file = adapter.media_of(Image.new(mode, (8, 6))).source.read()
    assert open_image(adapter.io.BytesIO(file), upright=False).size == (8, 6)
