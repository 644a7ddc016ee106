"""What makes a step cheaper leaves losses and gradients as they are, and saves what it says."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from builders import random_clips
from torch.utils.flop_counter import FlopCounterMode
from training_runs import losses, new_model, rows, run
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pvc.training import attention
from pvc.training.announce import describe_run
from pvc.training.arguments import training_arguments
from pvc.training.attention import BLOCK_SPARSE, MASKED, VARLEN, packed_attention
from pvc.training.checkpointing import KeepActivations
from pvc.training.compiling import compile_layers, compiled_modules
from pvc.training.recipe import Recipe
from pvc.training.trainer import with_needed_logits


@pytest.fixture(scope="module")
def row(data) -> dict:
    """A row of several samples, of which one has media."""
    found = next(row for row in rows(data, 6) if "pixel_values" in row and num_samples(row) > 2)
    return with_needed_logits(found)


@pytest.fixture(scope="module")
def plain(model, data, tmp_path_factory):
    """A run of two steps with nothing that makes them cheaper."""
    return run(model, data, tmp_path_factory.mktemp("plain"), max_steps=2)


def num_samples(row: dict) -> int:
    return int((row["position_ids"] == 0).sum())


def loss_and_gradients(model, row) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**row).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_equal_gradients(found, expected, relative=1e-6):
    for name, gradient in expected[1].items():
        scale = gradient.abs().max().clamp(min=1e-12)
        assert (found[1][name] - gradient).abs().max() <= relative * scale, name
    assert (found[0] - expected[0]).abs() <= relative * expected[0].abs()


# ---- attention of packed rows


@pytest.mark.parametrize(
    "device, half, has_flash, has_triton, expected",
    [
        ("cuda", True, True, True, VARLEN),
        ("cuda", False, True, True, BLOCK_SPARSE),  # flash-attn has no float32
        ("cuda", True, False, True, BLOCK_SPARSE),
        ("cuda", True, False, False, MASKED),
        ("cpu", True, True, True, MASKED),
        ("mps", True, False, False, MASKED),
    ],
)
def test_packed_rows_have_the_fastest_attention_that_trains_there(
    device, half, has_flash, has_triton, expected, monkeypatch
):
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: has_flash)
    monkeypatch.setattr(attention, "is_triton_available", lambda: has_triton)
    arguments = SimpleNamespace(device=torch.device(device), bf16=half, fp16=False)
    assert packed_attention(arguments) == expected


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:_compile flag")
def test_flex_attention_of_a_packed_row_gives_the_loss_and_gradients_of_sdpa(row, monkeypatch):
    """Its meaning, not its compiled kernel, whose backward pass no CPU has."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    model = new_model()
    expected = loss_and_gradients(model, row)
    with torch.no_grad():
        logits = model(**row).logits

    model.set_attn_implementation({"llm_config": BLOCK_SPARSE})
    with torch.compiler.set_stance("force_eager"):
        assert_equal_gradients(loss_and_gradients(model, row), expected, relative=1e-5)
        with torch.no_grad():
            assert (model(**row).logits - logits).abs().max() < 1e-5

        # rotated queries are float32 then, values are not
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(**row).loss.detach() - expected[0]).abs() < 0.02


def test_a_run_trains_the_llm_with_the_chosen_attention_and_says_so(
    plain, model, data, monkeypatch, tmp_path
):
    """One that the recipe names wins, in `test_trainer.py`."""
    assert "attention   sdpa in the LLM, sdpa in the ViT" in describe_run(plain, Recipe())
    monkeypatch.setattr("pvc.training.run.packed_attention", lambda arguments: "eager")
    chosen = run(model, data, tmp_path / "chosen", max_steps=2)
    assert "attention   eager in the LLM, sdpa in the ViT" in describe_run(chosen, Recipe())
    assert losses(chosen) == pytest.approx(losses(plain), rel=1e-5)


def varlen_attention(module, q, k, v, attention_mask, cu_seq_lens_q, max_length_q, scaling, **kwargs):
    """What flash-attn computes, given the borders of samples; without them a TypeError."""
    parts = [slice(*ends) for ends in pairwise(cu_seq_lens_q.tolist())]
    assert max_length_q == max(part.stop - part.start for part in parts) and not attention_mask
    attend = partial(F.scaled_dot_product_attention, is_causal=True, scale=scaling, enable_gqa=True)
    samples = [attend(q[:, :, part], k[:, :, part], v[:, :, part]) for part in parts]
    return torch.cat(samples, dim=2).transpose(1, 2), None


class UseVarlen(TrainerCallback):
    """As if flash-attn were installed, while a step is taken: transformers looks for it elsewhere."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.config.llm_config._attn_implementation = VARLEN

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.config.llm_config._attn_implementation = MASKED


def test_flash_attention_gets_the_borders_of_a_rows_samples(plain, model, data, tmp_path, monkeypatch):
    """Found once a row, before it is on the device, where each layer would find them and wait."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, VARLEN, varlen_attention)
    found = run(model, data, tmp_path, max_steps=2, callbacks=[UseVarlen()])
    assert losses(found) == pytest.approx(losses(plain), rel=1e-6)


# ---- gradient checkpointing


def kept_bytes(model, row) -> int:
    """Bytes that a forward pass keeps for the backward pass, outside of checkpointed layers."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(**row).loss
    assert loss.requires_grad  # the graph is alive: no storage was used twice
    return sum(storages.values())


def checkpointed(**kept):
    """A model with gradient checkpointing, but for the last layers of parts."""
    model = new_model()
    model.gradient_checkpointing_enable()
    KeepActivations(model, kept).on_train_begin(None, None, None)
    return model


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_checkpointing_reaches_the_projector_and_leaves_loss_and_gradients_to_the_bit(row):
    plain, saving = new_model(), checkpointed()
    assert saving.model.projector.gradient_checkpointing
    expected, found = loss_and_gradients(plain, row), loss_and_gradients(saving, row)
    assert_equal_gradients(found, expected, relative=0)

    # the AdaLN of width D alone keeps its input, its norm, gamma and beta, with two hidden layers of each
    visual_tokens, width = int((row["input_ids"] == saving.config.image_token_id).sum()), 16 * 32
    saved = kept_bytes(checkpointed(projector=1), row) - kept_bytes(saving, row)
    assert saved > 8 * 4 * visual_tokens * width


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_layers_that_keep_their_activations_cost_bytes_and_change_no_gradient(row):
    expected = loss_and_gradients(new_model(), row)
    models = [checkpointed(language_model=number) for number in range(4)] + [new_model()]
    kept = [kept_bytes(model, row) for model in models]
    steps = [more - less for less, more in zip(kept, kept[1:])]
    assert min(steps) > 0 and max(steps[:2]) < 1.1 * min(steps[:2])  # layer by layer
    assert_equal_gradients(loss_and_gradients(models[2], row), expected, relative=0)

    flags = [layer.gradient_checkpointing for layer in models[2].model.language_model.layers]
    assert flags == [True] + [False] * 2


def test_a_recipe_keeps_layers_by_part(plain, model, data, tmp_path):
    kept = {"gradient_checkpointing": True, "kept_layers": {"language_model": 1, "vision_model": 3}}
    trainer = run(model, data, tmp_path / "kept", max_steps=2, **kept)
    assert losses(trainer) == losses(plain)
    layers = [x for x in trainer.model.modules() if isinstance(x, GradientCheckpointingLayer)]
    assert [x.gradient_checkpointing for x in layers] == [True] + [False] * 3 + [True] * 3 + [False]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"kept_layers": {"language_model": 1}}, "expected gradient_checkpointing true"),
        (
            {"kept_layers": {"llm": 1}, "gradient_checkpointing": True, "parallel": "fsdp2"},
            "and not fsdp2",
        ),
    ],
)
def test_kept_layers_need_checkpointing_of_layers(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        training_arguments(Recipe.from_values({"max_steps": 1} | changes), tmp_path)


@pytest.mark.parametrize("kept", [{"language_model": 4}, {"eyes": 1}, {"projector": "one"}])
def test_more_layers_than_there_are_cannot_be_kept(kept):
    with pytest.raises(ValueError, match="kept_layers has .* but the model has [013] layers of that part"):
        KeepActivations(new_model(), kept)


# ---- compiled layers


@pytest.mark.slow
def test_compiled_layers_are_few_graphs_and_leave_loss_and_gradients(row):
    """Layers that are checkpointed as a whole, the LLM's, and the parts of one with time."""
    model, graphs = checkpointed(), []
    expected = loss_and_gradients(model, row)
    for part in (model.model.language_model, model.model.vision_model.encoder.layers[3]):
        compile_layers(part, backend=lambda graph, inputs: graphs.append(graph) or graph)

    assert_equal_gradients(loss_and_gradients(model, row), expected)
    assert len(graphs) == 4  # of all the LLM's layers one; of attention, AdaLN and MLP one each
    torch._dynamo.reset()


def test_what_is_compiled_has_no_time_in_it():
    modules = [type(module).__name__ for module in compiled_modules(new_model())]
    spatial = ["InternVisionEncoderLayer"] * 2
    temporal = ["InternAttention", "AdaLN", "InternMLP"] * 2
    assert modules == [*spatial, *temporal, "AdaptiveCompression", *["InternLM2DecoderLayer"] * 3]


def test_a_recipe_compiles_the_layers_of_the_whole_run(model, data, monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr("pvc.training.run.compile_layers", compiled.append)
    trainer = run(model, data, tmp_path / "run", max_steps=1, compile_layers=True)
    assert compiled == [trainer.model]


# ---- a step's cost


def test_the_backward_pass_of_a_repeated_tile_computes_once_what_the_forward_pass_does():
    """FLOPs of three tiles shown 4 times over the same shown once; the first two layers have no time."""
    forward, once, four = flops_of_layers(1, backward=False), flops_of_layers(1), flops_of_layers(4)
    for name in ("0.attn", "1.mlp", "2.attn"):  # up to the first temporal attention
        assert four[name] == once[name] and once[name] == pytest.approx(3 * forward[name], rel=0.1)
    assert four["2.mlp"] == 4 * once["2.mlp"] and four["3.attn"] == 4 * once["3.attn"]


def flops_of_layers(repeats: int, backward=True) -> dict[str, int]:
    """Of attention and MLP of each layer of the ViT."""
    model = new_model().model
    with FlopCounterMode(display=False) as counter:
        features = model.get_image_features(*random_clips((1, 3, repeats))).last_hidden_state
        if backward:
            features.square().sum().backward()
    return {
        name.partition("encoder.layers.")[2]: sum(flops.values())
        for name, flops in counter.get_flop_counts().items()
        if name.endswith((".attn", ".mlp"))
    }
