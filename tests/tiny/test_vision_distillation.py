"""A ViT is taught to see varied scenes as a teacher sees the same ones drawn plainly."""

from itertools import islice

import pytest
import torch
from builders import tiny_model

from pvc.tiny.dense_labels import PAGE, LabelledClips
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.sampler import TILE, tiles_of
from pvc.tiny.synthetic.scenes import FACES, LETTER_HEIGHTS, Scene, Style, Text
from pvc.tiny.synthetic.variations import LIGHT, SHARES
from pvc.tiny.vision_distillation import Pairs, Student, distil, plain

PATCH = 8
ALL = dict.fromkeys(SHARES, 1.0)
TASKS = ("word", "name_all", "read_chart")


def scenes(variations: dict[str, float], count: int = 30) -> list[Scene]:
    dataset = SyntheticDataset(count, tasks=TASKS, variations=variations)
    return [dataset.sample(index).scenes[0] for index in range(count)]


def model_of_tiles(seed: int = 0):
    torch.manual_seed(seed)
    vit = {"image_size": TILE, "patch_size": PATCH, "num_temporal_layers": 1}
    model = tiny_model(vision_config=vit, force_image_size=TILE)
    for name, parameter in model.model.named_parameters():
        if "gate" in name or "projector.norm" in name:  # at their start they are inert
            parameter.data.normal_(std=0.2)
    return model


def middle(text: Text, size: tuple[int, int]) -> torch.Tensor:
    left, top, right, bottom = text.box
    return torch.tensor([(left + right) / 2 / size[0], (top + bottom) / 2 / size[1]])


def test_a_plain_scene_stays_as_it_is():
    assert all(plain(scene) == scene for scene in scenes({}))


def test_a_varied_scene_becomes_plain():
    for scene in scenes(ALL):
        same = plain(scene)
        assert same.style == Style() and min(same.background) >= LIGHT[0]
        assert same.size == tuple(TILE * tiles for tiles in tiles_of(scene.size))
        assert all(text.face == FACES[0] and not text.smooth for text in same.texts)
        assert [text.text for text in same.texts] == [text.text.lower() for text in scene.texts]


def test_what_is_in_a_scene_keeps_its_place_and_size_in_the_image():
    for scene in scenes(ALL):
        same = plain(scene)
        across, down = (new / old for new, old in zip(same.size, scene.size))
        for old, new in zip(scene.shapes, same.shapes, strict=True):
            assert (new.x, new.y, new.spec) == (old.x * across, old.y * down, old.spec)
            assert new.radius == pytest.approx(old.radius * (across * down) ** 0.5, abs=0.5)
        for old, new in zip(scene.bars, same.bars, strict=True):
            assert new.box == tuple(side * scale for side, scale in zip(old.box, (across, down) * 2))
        for old, new in zip(scene.texts, same.texts, strict=True):
            assert middle(new, same.size).allclose(middle(old, scene.size), atol=0.05)
            assert min(new.box) >= -1 and new.box[2] <= same.size[0] + 1 and new.box[3] <= same.size[1] + 1


@pytest.mark.parametrize("face", FACES[1:])
@pytest.mark.parametrize("letters", ["hunting", "HUNTING"])
def test_a_text_of_another_face_or_of_capitals_is_as_wide_as_it_was(face, letters):
    old = Text(letters, x=10, baseline=40, letter_height=11, face=face)
    new = plain(Scene((TILE, TILE), (250, 250, 250), texts=(old,))).texts[0]
    letter = (old.box[2] - old.box[0]) / len(letters)
    assert new.box[2] - new.box[0] == pytest.approx(old.box[2] - old.box[0], abs=letter)
    assert new.text == "hunting" and new.face == FACES[0]


def test_small_letters_grow_where_there_is_room():
    small = [Text("hunt", x=10, baseline=20 * row, letter_height=6) for row in range(1, 4)]
    scene = Scene((TILE, TILE), (250, 250, 250), texts=tuple(small))
    assert [text.letter_height for text in plain(scene).texts] == [6, 6, 6]
    alone = plain(scene._replace(texts=scene.texts[:1]))
    assert alone.texts[0].letter_height == LETTER_HEIGHTS[0]


def test_a_pair_shows_one_scene_twice_with_the_layout_of_its_clip():
    for variations in ({}, {"backgrounds": 1.0}):
        options = {"repeats": 4, "frames": 8, "variations": variations}
        tasks = ("word", "motion", PAGE)
        pairs, clips = Pairs(0, PATCH, tasks, **options), LabelledClips(0, PATCH, tasks, **options)
        for pair, clip in islice(zip(pairs, clips), 6):
            assert torch.equal(pair.tiles, clip.tiles) and torch.equal(pair.grid, clip.grid)
            assert torch.equal(pair.tiles, pair.plain) == (not variations)


def test_a_share_of_the_clips_is_plain_for_the_student_too():
    pairs = Pairs(0, PATCH, TASKS, variations={"backgrounds": 1.0})
    pairs.plain_share = 0.5
    are_plain = [torch.equal(pair.tiles, pair.plain) for pair in islice(pairs, 60)]
    assert 20 < sum(are_plain) < 40


def test_what_sees_plain_scenes_as_the_teacher_has_no_error():
    model = model_of_tiles().model
    pair = Pairs.collate(list(islice(Pairs.for_model(model, 0, TASKS), 4)))
    loss, errors = Student(model, model).loss(pair)
    assert loss == 0 and set(errors) == {"patches", "visual tokens"}
    varied = Pairs.collate(list(islice(Pairs.for_model(model, 0, TASKS, {"backgrounds": 1}), 4)))
    assert min(Student(model, model).loss(varied)[1].values()) > 0.05


@pytest.mark.slow
def test_errors_fall_and_only_the_vit_is_trained():
    teacher, model = model_of_tiles(), model_of_tiles()
    variations = {"backgrounds": 1.0}
    held_out = Pairs.collate(list(islice(Pairs.for_model(teacher.model, 9, TASKS, variations), 8)))
    before = Student(model.model, teacher.model).loss(held_out)[1]
    options = {"steps": 40, "batch": 4, "learning_rate": 1e-3, "tasks": TASKS, "variations": variations}
    distil(model.model, teacher.model, **options)
    after = Student(model.model, teacher.model).loss(held_out)[1]
    assert all(after[name] < 0.7 * before[name] for name in before)

    old, new = teacher.state_dict(), model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("model.vision_model.") for name in changed)


def test_a_teacher_with_another_projector_is_refused():
    with pytest.raises(ValueError, match="another projector"):
        distil(model_of_tiles(0).model, model_of_tiles(1).model, steps=1, batch=1, learning_rate=1e-3)
