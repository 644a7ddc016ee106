"""What the ViT is taught to see before there is an LLM: labels are where things are drawn, and are learnt."""

from itertools import combinations, groupby, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_model
from einops import rearrange
from torch import nn
from training_runs import in_processes

from pvc.modeling_pvc import pixel_shuffle
from pvc.preprocess import build_transform, image_tiles
from pvc.tiny import vision_steps
from pvc.tiny.dense_labels import (
    CLASS,
    CLASSES,
    DIRECTION_CLASSES,
    LETTERS,
    MAX_LETTERS,
    NOTHING,
    PAGE,
    PARTS,
    SHAPES,
    SMALL,
    UNKNOWN,
    VIDEO_TASKS,
    LabelledClip,
    LabelledClips,
    Labels,
    collate_clips,
    labels_of,
    maps_of,
    previous_classes,
    tile_boxes,
)
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.image_tasks import ONE_TILE, TILE, page
from pvc.tiny.synthetic.sampler import SceneSampler, are_apart
from pvc.tiny.synthetic.scenes import COLOURS, Scene, Shape, ShapeSpec, Text, draw
from pvc.tiny.synthetic.variations import SHARES
from pvc.tiny.vision_pretraining import (
    BY_FRAMES,
    BY_TOKENS,
    HEADS_RATE,
    NORM_RATE,
    DenseLabelModel,
    LinearHead,
    Told,
    make_optimizer,
    pretrain,
    to_unit_size,
)

HERE = Path(__file__).parent
PATCH = 8
WHITE = (255, 255, 255)


def scenes(task: str, count: int = 20):
    dataset = SyntheticDataset(count, tasks=[task])
    return [dataset.sample(index).scenes[0] for index in range(count)]


def vision_model(num_temporal_layers: int = 0, **config):
    torch.manual_seed(0)
    vit = {"image_size": TILE, "patch_size": PATCH, "num_temporal_layers": num_temporal_layers}
    return tiny_model(vision_config=vit, force_image_size=TILE, **config)


def classes_of(scene: Scene) -> np.ndarray:
    return np.asarray(maps_of(scene)[0])


def written(letters: torch.Tensor) -> set[str]:
    """The texts that the labels of some blocks spell."""
    known = [row for row in letters.flatten(0, -2).tolist() if row[0] != UNKNOWN]
    return {"".join(LETTERS[place] for place in row if place != UNKNOWN) for row in known}


def test_each_shape_is_labelled_where_its_colour_is():
    for scene in scenes("name_all"):
        scene = scene._replace(texts=())
        labels, image = classes_of(scene), np.asarray(draw(scene))
        for shape in scene.shapes:
            is_colour = (image == COLOURS[shape.spec.colour]).all(-1)
            same_colour = [
                CLASS[str(one.spec)] for one in scene.shapes if one.spec.colour == shape.spec.colour
            ]
            assert CLASS[str(shape.spec)] in labels[is_colour]
            assert (np.isin(labels, same_colour) == is_colour).all()


def test_each_letter_is_labelled_where_its_ink_is():
    varied = SyntheticDataset(
        30, tasks=["read_all"], variations=dict.fromkeys(("faces", "capitals", "smooth"), 0.6)
    )
    for scene in scenes("read_all") + [varied.sample(index).scenes[0] for index in range(30)]:
        labels, image = classes_of(scene), np.asarray(draw(scene)).mean(-1)
        ink = image < 100
        assert (labels[ink] != NOTHING).mean() > 0.96  # letters overlap their neighbours by a pixel at most
        drawn = {CLASS[letter] for text in scene.texts for letter in text.text}
        assert set(np.unique(labels[ink])) - {NOTHING} == drawn


def test_a_bar_is_labelled_by_its_colour():
    for scene in scenes("read_chart"):
        labels = classes_of(scene)
        for bar in scene.bars:
            left, _, right, floor = (int(x) for x in bar.box)
            assert CLASSES[labels[floor - 1, (left + right) // 2]] == f"{bar.colour} bar"


def test_patches_tell_where_the_middle_is_of_what_they_are_a_part_of():
    text = Text("hello", x=10, baseline=40, letter_height=12)
    labels = labels_of(Scene(ONE_TILE, WHITE, texts=(text,)), (0, 0, *ONE_TILE), PATCH)
    left, top, right, bottom = text.box
    middles = {tuple(place) for place in labels.middle.tolist()} - {(UNKNOWN, UNKNOWN)}
    assert middles == {(int((left + right) / 2 // PATCH), int((top + bottom) / 2 // PATCH))}
    is_drawn, is_told = (labels.cells != NOTHING).any(-1), labels.middle[:, 0] != UNKNOWN
    assert is_drawn.any() and not (is_drawn & ~is_told).any()


def test_the_patch_in_a_shapes_middle_tells_which_it_is():
    for scene in scenes("count"):
        labels = [labels_of(scene, box, PATCH) for box in tile_boxes(scene.size)]
        found = [[SHAPES[place] for place in one.shapes.tolist() if place] for one in labels]
        there = sorted(str(shape.spec) for shape in scene.shapes)
        assert sorted(found[-1]) == there  # in the whole image; and each in one of its tiles
        assert len(found) == 1 or sorted(sum(found[:-1], [])) == there
        for shape in scene.shapes if len(found) == 1 else ():
            patch = int(shape.y // PATCH) * (TILE // PATCH) + int(shape.x // PATCH)
            assert SHAPES[labels[0].shapes[patch]] == str(shape.spec)


def test_each_2x2_patches_tell_the_text_that_crosses_them():
    high, low = (Text(text, x=10, baseline=y, letter_height=8) for text, y in (("hello", 12), ("cat", 28)))
    labels = labels_of(Scene(ONE_TILE, WHITE, texts=(high, low)), (0, 0, *ONE_TILE), PATCH)
    letters = rearrange(labels.letters, "(h w) n -> h w n", h=TILE // PATCH // SMALL)
    assert written(letters[0]) == {"hello"} and written(letters[1]) == {"cat"}
    assert (letters[2:] == UNKNOWN).all() and (letters[:, -1] == UNKNOWN).all()


def test_of_a_text_across_tiles_each_tells_the_letters_that_it_shows():
    text = Text("ab", x=TILE - 12, baseline=40, letter_height=18)
    scene = Scene((2 * TILE, TILE), WHITE, texts=(text,))
    left, right, thumbnail = tile_boxes(scene.size)
    assert [written(labels_of(scene, box, PATCH).letters) for box in (left, right, thumbnail)] == [
        {"a"},
        {"b"},
        {"ab"},
    ]


def test_the_middle_of_what_goes_over_the_edge_is_inside():
    shape = Shape(ShapeSpec("red", "circle"), x=TILE - 0.4, y=20, radius=10)
    labels = labels_of(Scene(ONE_TILE, WHITE, (shape,)), (0, 0, *ONE_TILE), PATCH)
    assert labels.middle[20 // PATCH * (TILE // PATCH)].tolist() == [TILE // PATCH - 1, 20 // PATCH]


def test_tiles_of_an_image_of_any_size_are_those_of_the_processor():
    dataset = SyntheticDataset(40, tasks=["word"], variations={"sizes": 1.0})
    clips = LabelledClips(0, PATCH, ("word",), variations={"sizes": 1.0})
    for index, clip in zip(range(40), clips):
        (scene,) = dataset.sample(index).scenes
        tiles = image_tiles(draw(scene), TILE, max_num=6)
        shown = tiles[index % len(tiles)]
        assert len(tiles) == len(tile_boxes(scene.size))
        # at the edge of a tile, the processor's has seen the pixels beyond it
        assert (clip.tiles[0] - shown).abs().mean() < 0.02


def test_a_page_has_many_letters_whose_texts_do_not_touch():
    letters = {"word": [], PAGE: []}
    for task, numbers in letters.items():
        for clip, _ in zip(LabelledClips(0, PATCH, (task,)), range(20)):
            cells = clip.labels.cells
            numbers.append(((cells != NOTHING) & (cells < len(LETTERS))).sum().item())
    assert sum(letters[PAGE]) > 3 * sum(letters["word"])

    for index in range(20):
        scene = page(SceneSampler(str(index), held_out=False, shares=SHARES))
        boxes = [thing.box for thing in (*scene.shapes, *scene.texts)]
        assert scene.texts and all(are_apart(*pair, gap=1) for pair in combinations(boxes, 2))


def test_boxes_are_of_the_tiles_that_an_image_is_cut_into():
    for scene in {scene.size: scene for scene in scenes("read_all", 100)}.values():
        image, transform = draw(scene), build_transform(TILE)
        tiles = torch.stack([transform(image.crop(box)) for box in tile_boxes(scene.size)])
        assert torch.equal(tiles, image_tiles(image, TILE, max_num=6))


def test_tiles_are_those_of_the_processor_and_differ_by_seed():
    clip = next(iter(LabelledClips(0, PATCH)))
    patches = (TILE // PATCH) ** 2
    assert clip.tiles.shape == (1, 3, TILE, TILE) and clip.grid.tolist() == [[1, 1, 1]]
    places = [patches, patches // SMALL**2, patches, patches, patches, patches]
    assert [one.shape[:2] for one in clip.labels] == [(1, number) for number in places]
    assert not torch.equal(clip.tiles, next(iter(LabelledClips(1, PATCH))).tiles)


@pytest.mark.parametrize("task", ["motion", "moving_shape"])
def test_patches_of_frames_tell_the_way_that_their_shape_has_moved(task):
    predicted = set()
    clips = LabelledClips(0, PATCH, (task,), frames=8)
    dataset = SyntheticDataset(20, tasks=[task])
    for clip, index in zip(clips, range(20)):
        sample = dataset.sample(index)
        assert len(clip.tiles) == 8 and clip.grid.tolist() == [[8, 1, 1]] * 8
        assert (clip.labels.directions[0] == UNKNOWN).all()  # nothing was before
        directions = {
            DIRECTION_CLASSES[way] for way in clip.labels.directions.unique().tolist() if way != UNKNOWN
        }
        predicted |= directions
        if len(sample.scenes[0].shapes) == 1:
            assert directions == {sample.answer}
        is_shape = (clip.labels.cells[1:] != NOTHING).any(-1)
        assert (clip.labels.directions[1:] != UNKNOWN)[is_shape].all()
    assert predicted == set(DIRECTION_CLASSES)


def test_what_comes_and_goes_moves_nowhere():
    clips = LabelledClips(0, PATCH, ("tell_order", "colour_change"), frames=8)
    directions = torch.cat([clip.labels.directions for clip in islice(clips, 10)])
    assert {DIRECTION_CLASSES[way] for way in directions[directions != UNKNOWN].tolist()} == {"still"}


def test_patches_of_frames_tell_what_was_there_before_what_is():
    dataset = SyntheticDataset(20, tasks=["colour_change"])
    for index, clip in zip(range(20), LabelledClips(0, PATCH, ("colour_change",), frames=8)):
        scenes = dataset.sample(index).scenes
        specs = [specs for specs, _ in groupby(str(scene.shapes[0].spec) for scene in scenes)]
        before = dict(zip(specs, ["nothing", *specs]))
        is_shape = (clip.labels.cells != NOTHING).any(-1)
        for cells, previous in zip(clip.labels.cells[is_shape], clip.labels.previous[is_shape]):
            assert CLASSES[previous] == before[CLASSES[cells.max()]]
        assert (clip.labels.previous[~is_shape] == NOTHING).all()


def test_where_a_shape_is_gone_patches_tell_it_until_another_has_come_and_gone():
    red, blue = (Shape(ShapeSpec(colour, "square"), x=20, y=20, radius=10) for colour in ("red", "blue"))
    shown = [(), (red,), (), (), (blue,), ()]
    frames = [labels_of(Scene(ONE_TILE, WHITE, shapes), (0, 0, *ONE_TILE), PATCH) for shapes in shown]
    previous = previous_classes(torch.stack([labels.cells for labels in frames]))
    middle = 20 // PATCH * (TILE // PATCH) + 20 // PATCH
    predicted = [CLASSES[place] for place in previous[:, middle]]
    assert predicted == ["nothing", "nothing", "red square", "red square", "nothing", "blue square"]


def test_a_repeated_image_has_its_labels_once():
    clip = next(iter(LabelledClips(0, PATCH, repeats=PARTS)))
    assert clip.grid.tolist() == [[1, 1, PARTS]] and {len(labels) for labels in clip.labels} == {1}
    assert (clip.labels.directions == UNKNOWN).all() and (clip.labels.previous == UNKNOWN).all()


def test_a_vit_that_looks_back_in_time_is_shown_videos_and_taught_ways():
    model = vision_model(num_temporal_layers=1).model
    labeller = pretrain(model, steps=2, batch=2, learning_rate=1e-2, tasks=VIDEO_TASKS)
    vit = model.vision_model
    layer = vit.encoder.layers[-1]
    assert layer.temporal_gate.any()  # it was zero
    clip = next(iter(LabelledClips.for_model(model, 1, VIDEO_TASKS)))
    assert len(clip.tiles) == 8
    directions = labeller(clip.tiles, clip.grid)["directions"]
    torch.nn.functional.cross_entropy(directions.flatten(0, 1), clip.labels.directions.flatten()).backward()
    assert all(p.grad.any() for p in layer.temporal_attn.parameters())


def test_a_worker_draws_the_clips_that_would_be_drawn_here():
    weights = []
    for workers in (0, 1):
        model = vision_model().model
        pretrain(model, steps=2, batch=2, learning_rate=1e-3, workers=workers)
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.slow
def test_teaching_lowers_the_loss_and_leaves_the_llm():
    model = vision_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labeller = pretrain(model.model, steps=60, batch=6, learning_rate=3e-3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {".".join(name.split(".")[:3]) for name in changed} == {
        "model.vision_model.embeddings",
        "model.vision_model.encoder",
        "model.projector.norm",
        "model.projector.mlp",
    }
    clip = collate_clips(list(islice(LabelledClips(1, PATCH), 8)))
    logits = labeller(clip.tiles, clip.grid)
    for name, target in labeller.targets(clip, logits).items():
        assert logits[name].shape[:-1] == target.shape
    assert labeller.loss(clip)[0] < 0.75 * DenseLabelModel(vision_model().model).loss(clip)[0]


TOLD = {"letters", "directions", "shapes", "previous"}  # by visual tokens
INTERNVL = {"downsample_ratio": 0.5, "adaptive_compression": False}


def a_clip_of_both() -> LabelledClip:
    """An image that is shown four times, then a video."""
    image = next(iter(LabelledClips(0, PATCH, repeats=PARTS)))
    video = next(iter(LabelledClips(0, PATCH, VIDEO_TASKS, frames=8)))
    return collate_clips([image, video])


def test_tokens_of_repeats_tell_parts_of_blocks_as_internvls_do_and_frames_tell_all():
    labeller = DenseLabelModel(vision_model(num_temporal_layers=1).model)
    clip = a_clip_of_both()
    logits = labeller(clip.tiles, clip.grid)
    by_tokens, by_frames = {name + BY_TOKENS for name in TOLD}, {name + BY_FRAMES for name in TOLD}
    assert set(logits) == set(Labels._fields) | by_tokens | by_frames - {"letters" + BY_FRAMES}

    targets = labeller.targets(clip, logits)
    for name, predicted in logits.items():
        assert predicted.shape[:-1] == targets[name].shape, name
    assert torch.equal(targets["shapes" + BY_TOKENS], clip.labels.shapes[:1])
    assert torch.equal(targets["shapes" + BY_FRAMES], clip.labels.shapes[1:])

    of_internvl = DenseLabelModel(vision_model(**INTERNVL).model)
    image = next(iter(LabelledClips(0, PATCH)))
    assert set(of_internvl(image.tiles, image.grid)) == set(Labels._fields) | by_tokens
    shapes = {name: head.linear.weight.shape for name, head in labeller.token_heads.items()}
    assert {name: head.linear.weight.shape for name, head in of_internvl.token_heads.items()} == shapes


def test_repeat_r_is_asked_for_the_rth_part_of_each_block_alone():
    model = vision_model(num_temporal_layers=1).model
    side = TILE // PATCH
    labeller, clip = DenseLabelModel(model), a_clip_of_both()
    told = Told.from_grid(clip.grid, side)
    assert told.repeated.tolist() == [True] + [False] * 8
    parts = rearrange(told.rows[0], "(h bh w) -> h bh w", h=side // 4, w=side)[0]
    assert parts[:, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert (told.rows[1:] == torch.arange(4, 12)[:, None]).all()

    # a token that is its row and its block says where the logits of each 2x2 patches come from
    tokens = torch.stack([torch.full((9,), 1.0 * row) for row in range(12)])
    tokens = torch.stack([tokens, torch.arange(9.0).expand(12, -1)], dim=-1)  # (R, N, 2)
    labeller.token_heads, labeller.frame_heads = nn.ModuleDict({"at": nn.Identity()}), nn.ModuleDict()
    at = rearrange(labeller._by_tokens(tokens, told)["at" + BY_TOKENS][0], "(h w) c -> h w c", h=6)
    assert at[:2, :2].flatten(0, 1).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert at[2, 5].tolist() == [1, 5]


def test_a_run_that_was_stopped_ends_where_one_does_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(vision_steps, "SAVE_SECONDS", 0)
    options = {"batch": 2, "learning_rate": 1e-2, "variations": SHARES}

    def stop(step: int, steps: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return 1.0

    models = [vision_model(num_temporal_layers=1).model for _ in range(2)]
    for model, checkpoint in zip(models, (None, tmp_path / "run.pt")):
        if checkpoint:
            with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
                stopped.setattr(vision_steps, "_rate", stop)
                pretrain(model, steps=3, checkpoint=checkpoint, **options)
            model = models[1] = vision_model(num_temporal_layers=1).model
        with monkeypatch.context() as constant:
            constant.setattr(vision_steps, "_rate", lambda step, steps: 1.0)
            pretrain(model, steps=3, checkpoint=checkpoint, **options)

    whole, resumed = (model.state_dict() for model in models)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_eighth_letters_that_few_words_have_count_as_much_as_the_first(monkeypatch):
    clip = collate_clips(list(islice(LabelledClips(0, PATCH, ("read_all",)), 8)))
    known = (clip.labels.letters != UNKNOWN).sum((0, 1))
    assert 0 < known[-1] < known[0] / 2
    letters = torch.zeros(*clip.labels.letters.shape, len(LETTERS), requires_grad=True)
    monkeypatch.setattr(DenseLabelModel, "forward", lambda *_: {"letters": letters})
    DenseLabelModel(vision_model().model).loss(clip)[0].backward()
    of_places = letters.grad.abs().sum((0, 1, 3))
    torch.testing.assert_close(of_places, of_places[:1].expand(MAX_LETTERS))


def test_what_visual_tokens_tell_of_patches_stands_where_the_projector_took_them_from():
    side = TILE // PATCH
    patches = torch.randn(2, side, side, 5)
    blocks = pixel_shuffle(patches, 4).flatten(1, 2)
    head = LinearHead(16 * 5, (5,), side=4)
    head.linear = torch.nn.Identity()
    assert torch.equal(head(blocks), patches.flatten(1, 2))


def test_scaling_to_unit_size_changes_the_size_alone():
    vit = vision_model().model.vision_model
    for layer in vit.encoder.layers:
        layer.ls1.data.uniform_(1, 2)
    tiles = collate_clips(list(islice(LabelledClips(0, PATCH), 4))).tiles
    before = vit(tiles).last_hidden_state
    size = before[:, 1:].square().mean().sqrt()
    to_unit_size(vit, tiles)
    assert size > 1.5
    torch.testing.assert_close(vit(tiles).last_hidden_state, before / size, rtol=1e-3, atol=1e-4)


TAUGHT = """
import sys

import torch
from torch import distributed as dist

sys.path[:0] = {tests!r}
from test_vision_pretraining import vision_model, pretrain

dist.init_process_group("gloo")
model = vision_model().model
pretrain(model, steps=3, batch=2, learning_rate=1e-3)
torch.save(model.state_dict(), sys.argv[1] + str(dist.get_rank()))
"""


@pytest.mark.slow
def test_processes_train_one_model_on_clips_of_their_own(tmp_path):
    script = TAUGHT.format(tests=[str(HERE), str(HERE.parent / "support")])
    assert in_processes(2, "-c", script, str(tmp_path / "model")) == [0, 0]
    first, second = (torch.load(tmp_path / f"model{rank}") for rank in range(2))
    alone = vision_model().model
    pretrain(alone, steps=3, batch=1, learning_rate=1e-3)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert any(not torch.equal(first[name], value) for name, value in alone.state_dict().items())


def test_processes_share_the_clips_that_one_would_draw():
    alone = LabelledClips(0, PATCH)
    shares = []
    for rank in range(2):
        share = LabelledClips(0, PATCH)
        share.first, share.stride = rank, 2
        shares.append(iter(share))
    for index, clip in zip(range(6), alone):
        assert torch.equal(clip.tiles, next(shares[index % 2]).tiles)


def test_each_parameter_has_the_rate_of_its_part():
    labeller = DenseLabelModel(vision_model(num_temporal_layers=1).model)
    optimizer = make_optimizer(labeller, 1e-3)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    named = dict(labeller.named_parameters())
    assert len(rates) == len(named) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in named.items():
        if "_heads." in name:
            expected = HEADS_RATE
        elif name.startswith("projector.norm."):
            expected = NORM_RATE * 1e-3
        else:
            expected = 3e-3 if ".layers." in name and parameter.dim() == 2 else 1e-3
        assert rates[id(parameter)] == pytest.approx(expected), name
