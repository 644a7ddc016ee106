"""How PVC-Tiny is made: an InternVL-Tiny that becomes a PVC by the converter, as InternVL2 does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvc.convert_weights import Conversion, Options
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.build import as_internvl, install, mean, start
from pvc.tiny.tokenizer import write_tokenizer
from pvc.training.data.meta import read_meta
from pvc.training.recipe import RECIPES, Recipe, read_recipe


@pytest.fixture(scope="module")
def internvl_tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl-tiny")
    write_tokenizer(folder)
    start(folder)
    return folder


def test_it_starts_alike_from_a_seed_and_with_weights_spread_by_width(internvl_tiny, tmp_path):
    write_tokenizer(tmp_path)
    start(tmp_path)
    again, other = (x / "model.safetensors" for x in (tmp_path, internvl_tiny))
    assert again.read_bytes() == other.read_bytes()
    model = PVCForConditionalGeneration.from_pretrained(internvl_tiny)
    layer = model.model.language_model.layers[0].feed_forward
    assert layer.w1.weight.std().item() == pytest.approx(layer.w1.in_features**-0.5, rel=0.05)
    assert layer.w2.weight.std().item() < 0.5 * layer.w2.in_features**-0.5  # it ends a branch


def test_it_becomes_a_pvc_whose_features_are_its_own(internvl_tiny, tmp_path):
    as_internvl(internvl_tiny, tmp_path / "internvl")
    conversion = Conversion(tmp_path / "internvl", tmp_path / "pvc", Options(temporal_layers=2))
    conversion.run()
    assert all(difference.largest < 1e-4 for difference in conversion.verify())
    model = PVCForConditionalGeneration.from_pretrained(tmp_path / "pvc")
    assert model.config.vision_config.num_temporal_layers == 2 and model.config.image_repeats == 4
    with pytest.raises(ValueError, match="is a PVC: expected num_temporal_layers 0"):
        as_internvl(tmp_path / "pvc", tmp_path / "again")


def test_what_is_installed_is_the_model_in_bfloat16_without_new_parameters(internvl_tiny, tmp_path):
    write_tokenizer(tmp_path)
    install(internvl_tiny, tmp_path)
    before = PVCForConditionalGeneration.from_pretrained(internvl_tiny, dtype=torch.float32)
    after = PVCForConditionalGeneration.from_pretrained(tmp_path)
    assert after.dtype == torch.bfloat16 and after.config.new_parameters == []
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value.bfloat16())


def test_the_mean_is_three_parts_of_what_was_before_and_seven_of_what_came_after(internvl_tiny, tmp_path):
    after, weights = tmp_path / "after", load_file(internvl_tiny / "model.safetensors")
    shutil.copytree(internvl_tiny, after)
    save_file({name: value + 1 for name, value in weights.items()}, after / "model.safetensors")
    (after / "checkpoint-5").mkdir()
    mean(internvl_tiny, after, tmp_path / "mean")
    told = PVCForConditionalGeneration.from_pretrained(tmp_path / "mean", dtype=torch.float32).state_dict()
    assert all(torch.allclose(told[name], value + 0.7, atol=1e-5) for name, value in weights.items())
    assert not (tmp_path / "mean" / "checkpoint-5").exists()


def test_models_of_other_shapes_have_no_mean(internvl_tiny, tmp_path):
    shutil.copytree(internvl_tiny, tmp_path / "narrow")
    weights = load_file(internvl_tiny / "model.safetensors")
    narrow = {name: value[:1].clone() for name, value in weights.items()}
    save_file(narrow, tmp_path / "narrow" / "model.safetensors")
    with pytest.raises(ValueError, match="different names or shapes"):
        mean(internvl_tiny, tmp_path / "narrow", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize(
    "data, name",
    [
        ("tiny-internvl", "tiny-internvl"),
        ("tiny-pretrain", "tiny-pretrain"),
        ("tiny-tune", "tiny-tune"),
        ("tiny-again", "tiny-tune"),
        ("tiny-hard", "tiny-tune"),
    ],
)
def test_each_of_its_recipes_has_data_beside_it_that_can_be_drawn(data, name):
    recipe = Recipe.from_values(read_recipe(name))
    data_sets = read_meta(RECIPES / f"{data}.json")
    rows = recipe.arguments["max_steps"] * recipe.rows_per_step
    assert sum(map(len, data_sets)) > 40 * rows  # no sample is seen twice
    for data_set in data_sets:
        assert [data_set.read(index).turns for index in range(5)]
