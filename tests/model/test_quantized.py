"""A quantised LLM answers, is saved and loads as it was; with both libraries: `make test-quantized`."""

import importlib.util
import logging
from functools import partial

import pytest
import torch
from training_runs import write_dynamic_model
from transformers import AutoTokenizer
from typer.testing import CliRunner

from pvc import CHECKPOINT
from pvc.cli import app
from pvc.loading import _Once, check_savable, quantization_config, say_casts_once
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.preprocess import load_image

LIBRARIES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "int8-weight-only": "torchao"}
KINDS = [
    pytest.param(
        kind, marks=pytest.mark.skipif(not importlib.util.find_spec(library), reason=f"needs {library}")
    )
    for kind, library in LIBRARIES.items()
]
IMAGES = [str(CHECKPOINT / f"assets/picture{i}.png") for i in (1, 2)]
QUESTIONS = ("what is written?", "how many shapes are there?", "what colour is the circle?")


def load(folder, **options):
    return PVCForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, **options).eval()


def answers(model) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=True)
    settings = {"max_new_tokens": 8, "do_sample": False}
    return [
        model.chat(tokenizer, load_image(file, 96, 4).to(model.dtype), question, settings)
        for file in IMAGES
        for question in QUESTIONS
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_folder_loads_as_the_model_that_was_saved(kind, tmp_path):
    result = CliRunner().invoke(app, ["quantize", str(CHECKPOINT), str(tmp_path / "out"), "--kind", kind])
    assert result.exit_code == 0, result.stderr
    reloaded = load(tmp_path / "out")
    at_once = load(CHECKPOINT, quantization_config=quantization_config(kind))

    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, at_once(input_ids=ids).logits)
    assert answers(reloaded) == answers(at_once)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_dynamic_vlm_loads_as_it_was_saved(kind, tmp_path):
    load = partial(DynamicVLMForConditionalGeneration.from_pretrained, dtype=torch.bfloat16)
    model = write_dynamic_model(tmp_path / "model")
    load(model).save_pretrained(model)
    result = CliRunner().invoke(app, ["quantize", str(model), str(tmp_path / "out"), "--kind", kind])
    assert result.exit_code == 0, result.stderr

    reloaded, at_once = load(tmp_path / "out"), load(model, quantization_config=quantization_config(kind))
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        logits = [each.eval()(input_ids=ids).logits for each in (reloaded, at_once, load(model))]
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("kind", KINDS)
def test_most_answers_stay_and_the_vision_side_is_not_touched(kind):
    whole = load(CHECKPOINT)
    quantised = load(CHECKPOINT, quantization_config=quantization_config(kind))
    pixels = load_image(IMAGES[0], 96, 4).to(torch.bfloat16)
    with torch.no_grad():
        features = [model.get_image_features(pixels).last_hidden_state for model in (whole, quantised)]
    assert torch.equal(*features)
    same = [a == b for a, b in zip(answers(whole), answers(quantised))]
    assert sum(same) >= len(same) - 1


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_what_bitsandbytes_says_at_each_matrix_product_is_said_once(caplog):
    model = load(CHECKPOINT, quantization_config=quantization_config("int8"))
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    for once in [x for x in logger.filters if isinstance(x, _Once)]:
        once.seen.clear()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 20)[None])
    said = [record for record in caplog.records if "inputs will be cast" in record.getMessage()]
    assert len(said) <= 1


class PackedState:
    packing_format_for_cpu = True


def test_weights_that_would_load_wrong_are_not_saved(tmp_path):
    model = load(CHECKPOINT)
    check_savable(model)
    model.lm_head.weight.quant_state = PackedState()
    with pytest.raises(ValueError, match="save it before its first use"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_message_is_let_through_once_whatever_its_arguments(caplog):
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    say_casts_once()
    say_casts_once()
    assert sum(isinstance(x, _Once) for x in logger.filters) == 1
    for dtype in ("a", "b", "c"):
        logger.warning("a message of this test, %s", dtype)
        logger.warning("another of this test")
    assert len(caplog.records) == 2


def test_torchao_is_asked_for_by_name(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("pvc.loading.import_module", missing)
    with pytest.raises(ImportError, match="pip install torchao"):
        quantization_config("int8-weight-only")
