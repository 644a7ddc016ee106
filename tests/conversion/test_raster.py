"""A converted InternVL sees images as InternVL does before any training: its tokens, in its order.

The ViT's features decide how exactly: only the standard deviation over a block of 4x4 patches, in place of
2x2, differs. The tiles here have the same four patches in each 2x2 block, in some order, and the ViT has no
position embeddings; so that both are equal, and all that is left is rounding.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conversion_sources import TINY_VIT, remote_code_source
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, AutoProcessor

from pvc import CHECKPOINT
from pvc.clips import Clip, clip_grid_of
from pvc.conversion.plan import INTERLACED
from pvc.convert_weights import Conversion, Options
from pvc.live_video import LiveVideo
from pvc.modeling_pvc import in_raster
from pvc.tokenization_internlm2 import InternLM2Tokenizer

SIDE = 112  # pixels of a tile: 8 x 8 patches, four blocks, 16 tokens
POSITIONS = "vision_model.embeddings.position_embedding"
SETTINGS = {"max_new_tokens": 6, "do_sample": False}
TWO_IMAGES = {"num_patches_list": [3, 2], "data_flag": [2]}
QUESTION = "<image> or <image>?"
CONTEXT = 2041
convert = partial(Options, temporal_layers=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> SimpleNamespace:
    """An InternVL in this code, and the PVC that its conversion makes."""
    folder = tmp_path_factory.mktemp("raster")
    vision = TINY_VIT | {"image_size": SIDE, "qkv_bias": True, "norm_type": "layer_norm"}
    vision |= {"qk_normalization": False, "num_temporal_layers": 0}
    internvl = remote_code_source(
        folder / "source", "internlm2", files=1, force_image_size=SIDE, vision_config=vision
    )
    file = folder / "source" / "model.safetensors"
    weights = load_file(file)
    weights[POSITIONS].zero_()
    save_file(weights, file, {"format": "pt"})
    internvl.model.get_parameter(POSITIONS).data.zero_()
    internvl.config.image_token_id = CONTEXT

    Conversion(folder / "source", folder / "pvc", convert(projector_init="interlaced")).run()
    pvc = AutoModel.from_pretrained(folder / "pvc", trust_remote_code=True).eval()
    tokenizer = InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    return SimpleNamespace(internvl=internvl, pvc=pvc, folder=folder / "pvc", tokenizer=tokenizer)


def tiles(count: int, seed: int = 0) -> torch.Tensor:
    """Tiles `(count, 3, 112, 112)`: in each 2x2 block of patches the tile's four, in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(count, 4, 3, 14, 14, generator=generator)
    order = torch.rand(count, 4, 4, 4, generator=generator).argsort(-1)  # (tiles, rows, columns, 4)
    chosen = patches[torch.arange(count)[:, None, None, None], order]  # (tiles, rows, columns, 4, 3, 14, 14)
    grid = chosen.unflatten(3, (2, 2)).permute(0, 5, 1, 3, 6, 2, 4, 7)
    return grid.reshape(count, 3, SIDE, SIDE)


@torch.no_grad()
def tokens_of(model, pixels: torch.Tensor, *clips: Clip) -> list[torch.Tensor]:
    return list(model.get_image_features(pixels, clip_grid_of(clips)).pooler_output)


# ---- the order of tokens


def test_repeat_r_stands_at_part_r_of_its_block():
    numbers = torch.arange(2 * 4 * 6).view(-1, 1)  # two tiles, four repeats, 2 x 3 blocks
    raster = in_raster(numbers, 2, (2, 3)).view(2, 4, 6)
    for tile in range(2):
        for repeat in range(4):
            own = numbers.view(2, 4, 2, 3)[tile, repeat]
            assert torch.equal(raster[tile, repeat // 2 :: 2, repeat % 2 :: 2], own)


@pytest.mark.parametrize("chunk", [None, 2])
def test_images_have_internvls_tokens_in_internvls_order(pair, chunk):
    pair.pvc.config.max_encoder_tiles = chunk
    pixels = tiles(5)
    theirs = tokens_of(pair.internvl, pixels, Clip(1, 3, 1), Clip(1, 2, 1))
    ours = tokens_of(pair.pvc, pixels, Clip(1, 3, 4), Clip(1, 2, 4))
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape == (len(other), 48)
        assert_close(one, other, atol=2e-3, rtol=0)
        assert not torch.allclose(one, other.roll(1, 0), atol=0.1)


def test_other_numbers_of_repeats_and_videos_keep_their_order(pair):
    clips = [Clip(1, 2, 1), Clip(1, 1, 2), Clip(1, 1, 3), Clip(4, 1, 1), Clip(2, 1, 4), Clip(1, 1, 4)]
    pixels = torch.randn(11, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = tokens_of(pair.pvc, pixels, *clips)
    pair.pvc.config.tile_repeat_order = "tile"
    by_tile = tokens_of(pair.pvc, pixels, *clips)
    pair.pvc.config.tile_repeat_order = "raster"
    assert [torch.equal(*tokens) for tokens in zip(found, by_tile)] == [True] * 5 + [False]


def test_pooled_tokens_have_a_raster_of_their_own(pair):
    pixels = tiles(2)
    (found,) = tokens_of(pair.pvc, pixels, Clip(1, 2, 4, 1))
    pair.pvc.config.tile_repeat_order = "tile"
    (by_tile,) = tokens_of(pair.pvc, pixels, Clip(1, 2, 4, 1))
    pair.pvc.config.tile_repeat_order = "raster"
    assert torch.equal(found, by_tile)  # one block: its four parts stand in a row


def test_a_live_video_of_one_frame_is_an_image(pair):
    pair.pvc.config.video_repeats = 4
    live = LiveVideo(pair.pvc, pair.tokenizer, horizon=1)
    (found,) = live.add(tiles(2), [2])
    pair.pvc.config.video_repeats = 1
    assert torch.equal(found, tokens_of(pair.pvc, tiles(2), Clip(1, 2, 4))[0])


# ---- answers


def test_every_way_to_ask_answers_as_internvl(pair):
    pixels, ask = tiles(5), (pair.tokenizer, tiles(5), QUESTION, SETTINGS)
    expected = pair.internvl.chat(*ask, **TWO_IMAGES)
    assert expected != pair.internvl.chat(pair.tokenizer, tiles(5, seed=1), QUESTION, SETTINGS, **TWO_IMAGES)
    assert pair.pvc.chat(*ask, **TWO_IMAGES) == expected
    assert "".join(pair.pvc.stream_chat(*ask, **TWO_IMAGES)) == expected

    cache = pair.pvc.dialogue_cache()
    for _ in range(2):
        assert pair.pvc.chat(*ask, **TWO_IMAGES, cache=cache) == expected

    batch = (pair.tokenizer, pixels, [QUESTION, "What?"], SETTINGS)
    lists = {"num_patches_list": [[3, 2], []], "data_flag": [2, 0]}
    assert pair.pvc.batch_chat(*batch, **lists) == pair.internvl.batch_chat(*batch, **lists)


def test_the_processors_inputs_answer_as_internvl(pair):
    processor = AutoProcessor.from_pretrained(pair.folder, trust_remote_code=True)
    image = torch.rand(3, SIDE, 2 * SIDE).numpy()
    inputs = processor(text=f"{QUESTION}", images=[image, image], return_tensors="pt")
    inputs["pixel_values"] = tiles(len(inputs["pixel_values"]))
    once = inputs["clip_grid"].clone()
    once[:, 2] = 1
    ours = pair.pvc.generate(**inputs, **SETTINGS)
    assert torch.equal(ours, pair.internvl.generate(**inputs | {"clip_grid": once}, **SETTINGS))


def test_a_packed_row_has_internvls_loss(pair):
    lengths = [40, 70]  # of samples of an image of one tile and of two
    ids = torch.randint(100, 1000, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    ids[0, 5:21] = ids[0, 50:82] = CONTEXT
    row = {
        "input_ids": ids,
        "labels": ids.where(ids != CONTEXT, -100),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "pixel_values": tiles(3),
        "use_cache": False,
    }
    losses = []
    for model, repeats in ((pair.internvl, 1), (pair.pvc, 4)):
        grid = clip_grid_of([Clip(1, 1, repeats), Clip(1, 2, repeats)])
        losses.append(model(**row, clip_grid=grid).loss)
    assert_close(losses[1], losses[0], atol=1e-4, rtol=0)
    losses[1].backward()
    assert pair.pvc.model.projector.norm.gamma[2].weight.grad.abs().max() > 0
    pair.pvc.zero_grad()


def test_a_saved_model_keeps_its_order(pair, tmp_path):
    pair.pvc.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    assert again.config.tile_repeat_order == "raster"
    (one,), (other,) = (tokens_of(model, tiles(2), Clip(1, 2, 4)) for model in (pair.pvc, again))
    assert torch.equal(one, other)


@pytest.mark.parametrize("asked, order", [(None, "raster"), ("tile", "tile"), ("frame", "frame")])
def test_a_conversion_takes_the_order_that_is_asked_for(asked, order, pair, tmp_path):
    """Untrained, InternVL's raster is what the LLM reads; a training on videos may want the paper's order."""
    options = convert(tile_repeat_order=asked)
    plan = Conversion(pair.folder.parent / "source", tmp_path / "target", options).plan
    assert plan.config.tile_repeat_order == order
    assert (INTERLACED in plan.remarks) == (order == "raster")
