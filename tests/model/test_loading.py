"""Loading and saving: what a checkpoint holds arrives as it is, what it lacks starts as designed."""

import re
from functools import partial
from pathlib import Path

import accelerate
import pytest
import torch
from builders import tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from pvc import CHECKPOINT
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel
from pvc.tokenization_internlm2 import InternLM2Tokenizer

INITIALIZER_FACTOR = 0.1  # of LayerScale: not 1, so that it is told from other starting values
TOKENIZER_FITS = {"llm_config": {"vocab_size": 2048}, "image_token_id": 2041}  # that of PVC-Tiny
OTHER_LLMS = {
    name: {"model_type": name, "architectures": None, "num_key_value_heads": 2}
    for name in ("llama", "qwen2", "qwen3", "phi3")
}

# Where a parameter starts that a checkpoint lacks; those that match nothing here are drawn.
STARTS = {
    r"temporal_gate$": 0.0,
    r"gamma\.2\.weight$": 0.0,
    r"gamma\.2\.bias$": 1.0,
    r"beta\.2\.(weight|bias)$": 0.0,
    r"ls[12]$": INITIALIZER_FACTOR,
    r"norm\d?\.weight$": 1.0,
    r"bias$": 0.0,
}
LACKS = {
    "all that PVC adds to InternVL": r"temporal|projector\.norm",
    "one gate": r"layers\.3\.temporal_gate",
    "weights of AdaLN, but no bias": r"(gamma|beta)\.2\.weight",
    "biases of AdaLN, but no weight": r"(gamma|beta)\.2\.bias",
    "half of LayerScale": r"layers\.\d\.ls1",
    "position embeddings": r"position_embedding",
    "the class token": r"class_embedding",
    "all but the head": r"^model\.",
}


@pytest.fixture(params=["package", "remote code"])
def load(request):
    if request.param == "package":
        return partial(PVCForConditionalGeneration.from_pretrained, allow_missing_parts=True)
    return partial(AutoModel.from_pretrained, trust_remote_code=True, allow_missing_parts=True)


@pytest.fixture(scope="module")
def original() -> PVCForConditionalGeneration:
    return tiny_model(vision_config={"initializer_factor": INITIALIZER_FACTOR})


@pytest.fixture(scope="module")
def saved(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    original.save_pretrained(folder)
    return folder


@pytest.fixture
def nan_for_memory_never_written():
    torch.use_deterministic_algorithms(True)  # torch.empty then gives NaN
    yield
    torch.use_deterministic_algorithms(False)


def media():
    """An image of two tiles shown four times, and a video of three frames."""
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(5, 3, 56, 56, generator=generator)
    return {
        "pixel_values": pixel_values,
        "clip_grid": torch.tensor([[1, 2, 4]] * 2 + [[3, 1, 1]] * 3),
    }


@torch.no_grad()
def features(model) -> torch.Tensor:
    return model.get_image_features(**media()).last_hidden_state


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=prompt(model), **media()).logits


def prompt(model) -> torch.Tensor:
    visual_tokens = 11 * model.model.tokens_per_tile(56, 56)  # 2 tiles four times, 3 frames
    return torch.tensor([[1, 5, *[model.config.image_token_id] * visual_tokens, 7, 8]])


def tensors(model) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_same_tensors(model, expected: dict[str, torch.Tensor]):
    found = tensors(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


# ---- what a checkpoint holds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_arrives_and_no_key_is_missing_or_unexpected(load, saved, original, dtype):
    model, info = load(saved, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_tensors(model, {name: value.to(dtype) for name, value in tensors(original).items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("llm", OTHER_LLMS)
def test_unsaved_buffers_of_other_llms_are_computed_anew(
    load, llm, dtype, tmp_path, nan_for_memory_never_written
):
    original = tiny_model(llm_config=OTHER_LLMS[llm])
    original.save_pretrained(tmp_path)
    model, info = load(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    buffers = dict(original.named_buffers())
    assert buffers and buffers.keys().isdisjoint(original.state_dict())
    parameters = {name: value.to(dtype) for name, value in original.named_parameters()}
    assert_same_tensors(model, parameters | buffers)


def test_pvc_tiny_is_whole_and_its_dtype_the_default(load):
    model, info = load(CHECKPOINT, output_loading_info=True)
    assert not any(info.values()), info
    held = load_file(CHECKPOINT / "model.safetensors")
    assert {value.dtype for value in held.values()} == {torch.bfloat16}
    assert_same_tensors(model, held)


def test_body_loads_from_the_checkpoint_of_the_whole(saved, original):
    body, info = PVCModel.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"]
    assert_same_tensors(body, tensors(original.model))


def test_tied_head_is_the_embedding_after_loading(load, tmp_path):
    original = tiny_model(llm_config={"tie_word_embeddings": True})
    original.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(logits(model), logits(original))


# ---- what a checkpoint lacks


def start(name: str) -> float | None:
    return next((value for pattern, value in STARTS.items() if re.search(pattern, name)), None)


def assert_started(name: str, value: torch.Tensor):
    expected = start(name)
    if expected is None:
        assert 0.5 < value.std() / 0.02 < 1.5, f"{name} is not drawn with initializer_range"
    else:
        assert torch.equal(value, torch.full_like(value, expected)), f"{name} does not start at {expected}"


@pytest.mark.parametrize("lacking", LACKS)
def test_what_a_checkpoint_lacks_starts_as_designed_and_the_rest_arrives(
    load, saved, lacking, tmp_path, nan_for_memory_never_written
):
    held = load_file(saved / "model.safetensors")
    lacked = {name for name in held if re.search(LACKS[lacking], name)}
    for file in saved.iterdir():
        if file.suffix in (".py", ".json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    held = {name: value for name, value in held.items() if name not in lacked}
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})

    model, info = load(tmp_path, output_loading_info=True)
    assert lacked and set(info["missing_keys"]) == lacked and not info["unexpected_keys"]
    for name, value in tensors(model).items():
        if name in lacked:
            assert_started(name, value)
        else:
            assert torch.equal(value, held[name]), name


def test_new_model_starts_as_designed(nan_for_memory_never_written):
    model = PVCForConditionalGeneration(tiny_config(vision_config={"initializer_factor": INITIALIZER_FACTOR}))
    for name, value in tensors(model).items():
        assert_started(name, value)


# ---- the meta device


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_config": {"temporal_condition": "none", "norm_type": "rms_norm", "qk_normalization": True}},
        {"vision_config": {"drop_path_rate": 0.1, "num_temporal_layers": 0}, "adaptive_compression": False},
        {"llm_config": {"rope_scaling": {"type": "dynamic", "factor": 2.0}}},
        *({"llm_config": llm} for llm in OTHER_LLMS.values()),
    ],
    ids=str,
)
def test_construction_needs_no_values(changes):
    with torch.device("meta"):
        model = PVCForConditionalGeneration(tiny_config(**changes))
    assert {value.device.type for value in model.parameters()} == {"meta"}


# ---- saving


@pytest.mark.parametrize("max_shard_size", ["1GB", "1MB"])
def test_saved_and_reloaded_model_computes_the_same_bits(load, original, max_shard_size, tmp_path):
    original.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    is_sharded = len(list(tmp_path.glob("*.safetensors"))) > 1
    assert is_sharded == (max_shard_size == "1MB")
    model = load(tmp_path)
    assert torch.equal(features(model), features(original))
    assert torch.equal(logits(model), logits(original))


# ---- offloading

PARTS = ("model.vision_model", "model.projector", "model.language_model", "lm_head")


def on_disk(*parts: str) -> dict[str, str]:
    return {part: "disk" if part in parts else "cpu" for part in PARTS}


@pytest.fixture(scope="module")
def whole_and_its_folder(tmp_path_factory):
    whole = tiny_model(downsample_ratio=0.5, **TOKENIZER_FITS)
    folder = tmp_path_factory.mktemp("whole")
    whole.save_pretrained(folder)
    return whole, folder


@pytest.fixture(scope="module")
def tokenizer():
    return InternLM2Tokenizer.from_pretrained(CHECKPOINT)


def assert_computes_the_same(model, whole, tokenizer):
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(features(model), features(whole))
    ids = [m.generate(input_ids=prompt(m), **media(), **greedy) for m in (model, whole)]
    assert torch.equal(*ids)
    tiles = media()["pixel_values"][:2]
    answers = [m.chat(tokenizer, tiles, "What is this?", greedy) for m in (model, whole)]
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize("kilobytes", [500, 600, 1200])  # full behind the embeddings, 2 layers, projector
def test_automatic_device_map_that_spills_to_disk_computes_the_same(
    whole_and_its_folder, tokenizer, kilobytes, tmp_path
):
    whole, folder = whole_and_its_folder
    limits = {"device_map": "auto", "max_memory": {"cpu": kilobytes * 1000}, "offload_folder": tmp_path}
    model = PVCForConditionalGeneration.from_pretrained(folder, **limits)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert_computes_the_same(model, whole, tokenizer)


@pytest.mark.parametrize("parts", [PARTS[:2], PARTS[2:]], ids=["vision", "language"])
def test_parts_on_disk_compute_the_same(load, whole_and_its_folder, tokenizer, parts, tmp_path):
    whole, folder = whole_and_its_folder
    model = load(folder, device_map=on_disk(*parts), offload_folder=tmp_path)
    assert any(value.is_meta for value in model.parameters())
    assert_computes_the_same(model, whole, tokenizer)


def test_model_whose_weights_wait_in_cpu_memory_computes_the_same(whole_and_its_folder, tokenizer):
    whole, folder = whole_and_its_folder
    model = PVCForConditionalGeneration.from_pretrained(folder)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(value.is_meta for value in model.parameters())
    assert_computes_the_same(model, whole, tokenizer)


# ---- embeddings and dtypes


def test_input_and_output_embeddings_are_those_of_the_llm():
    model = tiny_model()
    assert model.get_input_embeddings() is model.model.language_model.tok_embeddings
    assert model.model.get_input_embeddings() is model.model.language_model.tok_embeddings
    assert model.get_output_embeddings() is model.lm_head


def test_resized_vocabulary_reaches_configuration_head_and_checkpoint(load, tmp_path):
    model = tiny_model()
    before = logits(model)
    model.resize_token_embeddings(144)
    assert model.config.llm_config.vocab_size == 144
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (144, 48)
    assert torch.equal(logits(model)[..., :128], before)
    model.save_pretrained(tmp_path)
    reloaded, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(reloaded), logits(model))


def test_bfloat16_model_takes_float32_pixels(load, saved, original):
    model = load(saved, dtype=torch.bfloat16)
    exact, rounded = logits(original), logits(model).float()
    assert (rounded - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("part", ["vision", "language"])
def test_parts_of_the_model_may_differ_in_dtype(saved, original, part):
    model = PVCForConditionalGeneration.from_pretrained(saved)
    if part == "vision":
        model.model.vision_model.bfloat16()
        model.model.projector.bfloat16()
    else:
        model.model.language_model.bfloat16()
        model.lm_head.bfloat16()
    exact, mixed = logits(original), logits(model).float()
    assert (mixed - exact).norm() / exact.norm() < 0.05
