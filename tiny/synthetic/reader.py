"""The synthetic data as a data set of a meta JSON: scenes are drawn when a row needs them.

`training/data/meta.py` finds `read_entry` by the key "small_worlds" of an entry.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.scenes import Scene, draw
from pvc.tiny.synthetic.tasks import ALL_TASKS
from pvc.training.data.meta import MetaEntry
from pvc.training.data.samples import IMAGE, KINDS, VIDEO, Sample, SampleSet

KEY = "small_worlds"


@dataclass(frozen=True)
class SceneSource:
    """A scene as an image, or the scenes of a video as its frames."""

    scenes: Scene | list[Scene]

    def __str__(self) -> str:
        return "a synthetic scene"

    def size(self) -> tuple[int, int]:
        first = self.scenes if isinstance(self.scenes, Scene) else self.scenes[0]
        return first.size

    def open(self) -> Image.Image | list[Image.Image]:
        if isinstance(self.scenes, Scene):
            return draw(self.scenes)
        return [draw(scene) for scene in self.scenes]


class SceneDataSet(SampleSet):
    """The samples of a `SyntheticDataset` as training takes them."""

    def __init__(self, name: str, dataset: SyntheticDataset, **fields):
        super().__init__(name, **fields)
        self.dataset = dataset

    @cached_property
    def kinds(self) -> np.ndarray:
        media = [VIDEO if ALL_TASKS[task].media == "video" else IMAGE for task in self.dataset.tasks]
        return np.resize(np.array([KINDS.index(kind) for kind in media], np.int8), len(self.dataset))

    def read(self, index: int) -> Sample:
        sample = self.dataset.sample(index)
        where = f"synthetic data, seed {self.dataset.seed}:{index}"
        if ALL_TASKS[sample.task].media == "video":
            return Sample(where, sample.turns, video=SceneSource(sample.scenes))
        return Sample(where, sample.turns, images=tuple(map(SceneSource, sample.scenes)))


def read_entry(entry: MetaEntry) -> SceneDataSet:
    """The data set of an entry; a ValueError names what of it cannot be."""
    common = entry.common()
    settings, length = entry.fields[KEY], entry.fields.get("length")
    where = f"{entry.path}: {entry.name!r} has {KEY} {settings!r}"
    if not isinstance(settings, dict) or "annotation" in entry.fields:
        raise ValueError(f"{where}: expected an object, and no annotation beside it")
    try:
        dataset = SyntheticDataset(length, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} of length {length!r}: {error}") from error
    return SceneDataSet(dataset=dataset, **common)
