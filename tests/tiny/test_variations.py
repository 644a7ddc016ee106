"""Scenes that vary: answers still follow, shares are kept, and nothing changes where they are 0."""

import hashlib

import numpy as np
import pytest
from test_synthetic_tasks import TRUTH, is_one_of

from pvc.tiny.synthetic.dataset import SAMPLERS, SyntheticDataset
from pvc.tiny.synthetic.sampler import SceneSampler, is_held_out, tiles_of
from pvc.tiny.synthetic.scenes import COLOURS, FACES, draw
from pvc.tiny.synthetic.tasks import TASKS
from pvc.tiny.synthetic.variations import (
    ALL_LETTER_HEIGHTS,
    CONTRAST,
    FROM_SHAPES,
    SHARES,
    Variations,
    luminance,
)

pytestmark = pytest.mark.slow  # no version of transformers changes it: one lane of CI

ALWAYS = dict.fromkeys(SHARES, 1.0)
IMAGES = [task for task in TASKS if TASKS[task].media == "image"]
PLAIN_PIXELS = "42e5786fdc1f"  # of two samples of each task, before there were variations


def varied(task: str, number: int, shares: dict[str, float] = ALWAYS, *, held_out: bool = False):
    samplers = (SceneSampler(f"{i}", held_out=held_out, shares=shares) for i in range(number))
    return [(rng, SAMPLERS[task](rng)) for rng in samplers]


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"same"}))
def test_the_answer_follows_from_scenes_that_vary(task):
    for _, sampled in varied(task, 12, dict.fromkeys(SHARES, 0.5)):
        assert TRUTH[task](sampled.scenes, sampled.slots) == sampled.answer, sampled


def test_plain_scenes_are_what_they_were():
    pixels = hashlib.sha256()
    data = SyntheticDataset(2 * len(TASKS), seed=3, turns=6)
    for item in data:
        images = item.get("video") or item["image"]
        for image in images if isinstance(images, list) else [images]:
            pixels.update(image.tobytes())
    assert pixels.hexdigest().startswith(PLAIN_PIXELS)


def test_each_variation_comes_as_often_as_its_share_says_and_apart_from_the_others():
    chosen = [Variations(f"{i}", SHARES).chosen for i in range(3000)]
    for name, share in SHARES.items():
        assert np.mean([name in one for one in chosen]) == pytest.approx(share, abs=0.04)
    both = np.mean([{"faces", "capitals"} <= one for one in chosen])
    assert both == pytest.approx(SHARES["faces"] * SHARES["capitals"], abs=0.02)
    assert not Variations("0", {}).chosen


def test_a_variation_leaves_what_is_asked_as_it_is():
    plain, styled = (
        SyntheticDataset(60, tasks=["count", "word"], variations=shares)
        for shares in ({}, {"backgrounds": 1.0, "jpeg": 1.0, "outlines": 1.0})
    )
    for index in range(60):
        one, other = plain.sample(index), styled.sample(index)
        assert (one.question, one.answer) == (other.question, other.answer)
        assert [scene.shapes for scene in one.scenes] == [scene.shapes for scene in other.scenes]


def test_shapes_and_ink_can_be_told_from_the_background():
    for i in range(300):
        variations = Variations(f"{i}", {"backgrounds": 1.0, "palettes": 0.5})
        background, style = variations.background, variations.style
        for colour in style.palette:
            assert np.linalg.norm(np.subtract(colour, background)) >= FROM_SHAPES
        assert abs(luminance(style.ink) - luminance(background)) >= 0.8 * CONTRAST


def test_backgrounds_are_dark_grey_and_of_colour():
    found = [Variations(f"{i}", {"backgrounds": 1.0}).background for i in range(300)]
    levels = [luminance(colour) for colour in found]
    assert min(levels) < 30 and max(levels) > 200
    assert any(max(colour) - min(colour) > 100 for colour in found)


def test_texts_of_any_face_case_and_height_lie_inside_images_of_any_size():
    heights, faces, sizes = set(), set(), set()
    for task in ("word", "read_all", "word_at"):
        for rng, sampled in varied(task, 25):
            scene = sampled.scenes[0]
            for text in scene.texts:
                left, top, right, bottom = text.box
                assert left >= 0 <= top and right <= scene.size[0] and bottom <= scene.size[1]
                assert not text.text.islower()
                heights.add(text.letter_height / rng.unit)
                faces.add(text.face)
            sizes.add(scene.size)
            drawn = draw(scene)
            assert drawn.size == scene.size and drawn.mode == "RGB"
    low, high = ALL_LETTER_HEIGHTS
    assert min(heights) < low + 2 and max(heights) > high - 6
    assert faces == set(FACES[1:]) and len(sizes) > 25
    assert {tiles_of(size) for size in sizes} >= {(1, 1), (2, 1), (2, 2)}


def test_shapes_of_images_of_any_size_are_as_large_on_their_tiles_as_plain_ones():
    for rng, sampled in varied("count", 60, {"sizes": 1.0}):
        for one in sampled.scenes[0].shapes:
            assert one.radius / rng.unit > 7.2
            assert is_one_of("shapes", one.spec)


def test_capitals_do_not_move_a_word_to_the_other_split():
    for held_out in (False, True):
        rng = SceneSampler("0", held_out=held_out, shares={"capitals": 1.0})
        words = [rng.word() for _ in range(50)]
        assert not any(word.islower() for word in words)
        assert {is_held_out(word) for word in words} == {held_out}
        assert {is_held_out(word.lower()) for word in words} == {held_out}


def test_wording_varies_and_slots_stay():
    data = SyntheticDataset(400, tasks=["colour", "relation", "count"], variations={"wording": 1.0})
    asked = [data.sample(i).question for i in range(400)]
    assert any("color " in text for text in asked) and any("image" in text for text in asked)
    assert any("to the left of" in text for text in asked)
    assert not any("{" in text for text in asked)
    names = [f" {colour} " for colour in COLOURS]
    assert all(any(name in text for name in names) for text in asked[1::3])


def test_a_sample_depends_on_seed_index_split_and_shares_alone():
    one, again, other = (
        SyntheticDataset(40, seed=seed, variations=SHARES, held_out=held_out)
        for seed, held_out in ((1, False), (1, False), (1, True))
    )
    assert [one.sample(i) for i in range(40)] == [again.sample(i) for i in range(40)]
    assert not any(one.sample(i).scenes == other.sample(i).scenes for i in range(40))


@pytest.mark.parametrize(("shares", "words"), [({"fonts": 0.5}, "'fonts'"), ({"faces": 2}, "faces=2")])
def test_shares_that_cannot_be_are_named(shares, words):
    with pytest.raises(ValueError, match=words):
        SyntheticDataset(1, variations=shares)
