"""What the ViT is taught to see before there is an LLM: labels are where things are drawn, and are learnt."""

import math

import numpy as np
import torch
from builders import tiny_model

from pvc.training.seeing import CLASS, CLASSES, NOTHING, LabelledTiles, labels_of, teach
from pvc.training.worlds import SmallWorlds
from pvc.training.worlds_drawing import COLOURS, draw


def scenes(task: str, count: int = 20):
    worlds = SmallWorlds(count, tasks=[task])
    return [worlds.sample(index).scenes[0] for index in range(count)]


def test_each_shape_is_labelled_where_its_colour_is():
    for scene in scenes("name_all"):
        scene = scene._replace(texts=())
        labels, picture = labels_of(scene), np.asarray(draw(scene))
        for shape in scene.shapes:
            is_colour = (picture == COLOURS[shape.look.colour]).all(-1)
            same_colour = [
                CLASS[str(one.look)] for one in scene.shapes if one.look.colour == shape.look.colour
            ]
            assert CLASS[str(shape.look)] in labels[is_colour]
            assert (np.isin(labels, same_colour) == is_colour).all()


def test_each_letter_is_labelled_where_its_ink_is():
    for scene in scenes("read_all"):
        labels, picture = labels_of(scene), np.asarray(draw(scene)).mean(-1)
        ink = picture < 100
        assert (labels[ink] != NOTHING).mean() > 0.98  # letters overlap their neighbours by a pixel at most
        written = {CLASS[letter] for text in scene.texts for letter in text.text}
        assert set(np.unique(labels[ink])) - {NOTHING} == written


def test_a_bar_is_labelled_by_its_colour():
    for scene in scenes("read_chart"):
        labels = labels_of(scene)
        for bar in scene.bars:
            left, _, right, floor = (int(x) for x in bar.box)
            assert CLASSES[labels[floor - 1, (left + right) // 2]] == f"{bar.colour} bar"


def test_tiles_are_those_of_the_processor_and_differ_by_seed():
    tiles, labels = next(iter(LabelledTiles(0)))
    assert tiles.shape == (3, *labels.shape) and labels.max() < len(CLASSES)
    assert not torch.equal(tiles, next(iter(LabelledTiles(1)))[0])


def test_teaching_lowers_the_loss_and_changes_the_vit_alone():
    torch.manual_seed(0)
    vit = {"image_size": 96, "patch_size": 8, "num_temporal_layers": 0}
    model = tiny_model(vision_config=vit, force_image_size=96)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seer = teach(model.model.vision_model, steps=40, batch=4, learning_rate=3e-3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("model.vision_model.") for name in changed)
    pairs = [pair for pair, _ in zip(LabelledTiles(1), range(8))]
    tiles, labels = (torch.stack(x) for x in zip(*pairs))
    assert seer(tiles).shape == (8, len(CLASSES), 24, 48)  # cells of 4 by 2 pixels
    assert seer.loss(tiles, labels)[0] < 0.8 * math.log(len(CLASSES))
