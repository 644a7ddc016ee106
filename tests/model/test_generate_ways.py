"""Ways to generate that must not change an answer: assisted, from a cache, in chunks, while training."""

import copy

import pytest
import torch
from builders import random_clips, tiny_model
from test_generation import GREEDY, LLMS, SEED, embedded, inputs
from torch.testing import assert_close
from transformers import DynamicCache, GenerationConfig

from pvc.configuration_pvc import InternLM2Config
from pvc.modeling_internlm2 import InternLM2ForCausalLM, eager_attention_forward
from pvc.modeling_pvc import PVCForConditionalGeneration

ENDING = GREEDY | {"max_new_tokens": 12, "eos_token_id": 2}  # transformers 5.12's prompt lookup needs one
REPEATING = [5, 6, 9, 5, 6, 9, 5, 6]  # prompt lookup drafts 9, 5, ...
WITH_IMAGES = ["image", "two images", "video", "image and video"]


@pytest.fixture(scope="module", params=["internlm2", "qwen2"])
def model(request) -> PVCForConditionalGeneration:
    """Never changed by a test."""
    return tiny_model(SEED, llm_config=LLMS[request.param])


def ending(batch: dict, ids: list[int]) -> dict:
    """The batch of one row with `ids` after its prompt."""
    longer = torch.cat([batch["input_ids"], torch.tensor([ids])], dim=1)
    return batch | {"input_ids": longer, "attention_mask": torch.ones_like(longer)}


def text_assistant(model) -> InternLM2ForCausalLM:
    torch.manual_seed(0)
    config = InternLM2Config(**model.config.llm_config.to_dict() | {"hidden_size": 16, "rope_scaling": None})
    return InternLM2ForCausalLM(config).eval()


ASSISTED = {
    "prompt lookup": lambda model: {"prompt_lookup_num_tokens": 3},
    "prompt lookup in a config": lambda model: {
        "generation_config": GenerationConfig(**ENDING, prompt_lookup_num_tokens=3)
    },
    "the model itself": lambda model: {"assistant_model": copy.deepcopy(model)},
    "another model": lambda model: {
        "assistant_model": tiny_model(3, llm_config={"hidden_size": 24}, vision_config={"hidden_size": 16})
    },
    "a model of text": lambda model: {"assistant_model": text_assistant(model)},
}


# ---- assisted decoding


@pytest.mark.parametrize("name", [*WITH_IMAGES, "text"])
@pytest.mark.parametrize("way", ASSISTED)
def test_assisted_decoding_has_the_tokens_of_greedy_decoding(way, name, model):
    batch = ending(inputs(name), REPEATING)
    expected = model.generate(**batch, **ENDING)
    options = ASSISTED[way](model)
    settings = {} if "generation_config" in options else ENDING
    assert torch.equal(model.generate(**batch, **settings | options), expected)


def test_assisted_decoding_takes_embeddings_beside_their_ids(model):
    batch = ending(inputs("image"), REPEATING)
    given = embedded(model, batch) | {"input_ids": batch["input_ids"]}
    expected = model.generate(**batch, **ENDING)
    assert torch.equal(model.generate(**given, **ENDING, prompt_lookup_num_tokens=3), expected)


def test_an_assistant_that_sees_the_images_drafts_what_the_model_says():
    model = tiny_model(SEED)
    assistant, steps = copy.deepcopy(model), []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: steps.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model.generate(**inputs("image"), **GREEDY | {"max_new_tokens": 12}, assistant_model=assistant)
    assert len(steps) <= 6  # half as many as tokens: its drafts are taken


def test_images_are_encoded_once_by_each_model_in_assisted_decoding():
    model = tiny_model(SEED)
    assistant, calls = tiny_model(SEED), []
    for each in (model, assistant):
        each.model.vision_model.register_forward_hook(lambda module, *_: calls.append(module))
    model.generate(**inputs("image"), **GREEDY, assistant_model=assistant)
    assert len(calls) == len(set(calls)) == 2


@pytest.mark.parametrize("batch", ["image", "text"])
def test_early_exit_is_refused_with_a_way_out(batch, model):
    for options in (
        {"assistant_early_exit": 2},
        {"generation_config": GenerationConfig(assistant_early_exit=2)},
    ):
        with pytest.raises(ValueError, match="assistant_early_exit is 2.*prompt_lookup_num_tokens"):
            model.generate(**inputs(batch), **options)


def test_assisted_decoding_from_embeddings_alone_is_refused(model):
    with pytest.raises(ValueError, match="prompt_lookup_num_tokens needs input_ids"):
        model.generate(**embedded(model, inputs("image")), **GREEDY, prompt_lookup_num_tokens=3)


# ---- caches


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_a_second_question_goes_on_from_the_cache_with_or_without_pixels(name, model):
    first = model.generate(**inputs(name), **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[5, 9, 3]])], dim=1)
    batch = inputs(name) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**batch, **GREEDY)
    for left_out in ((), ("pixel_values",), ("pixel_values", "clip_grid")):
        given = batch | dict.fromkeys(left_out)
        past = copy.deepcopy(first.past_key_values)
        assert torch.equal(model.generate(**given, **GREEDY, past_key_values=past), expected)


def test_images_that_the_cache_has_not_need_pixels(model):
    batch = inputs("image")
    past = DynamicCache()
    model(batch["input_ids"][:, :3], past_key_values=past)
    with pytest.raises(ValueError, match="have 8 positions .* pixel_values is None"):
        model.generate(batch["input_ids"], past_key_values=past, **GREEDY)


def test_without_a_cache_none_is_made_and_the_answer_is_the_same(model):
    batch, caches = inputs("image", "video"), []
    expected = model.generate(**batch, **GREEDY)
    hook = model.register_forward_hook(lambda _, __, out: caches.append(out.past_key_values))
    assert torch.equal(model.generate(**batch, **GREEDY, use_cache=False), expected)
    hook.remove()
    assert caches == [None] * GREEDY["max_new_tokens"]


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_prefill_in_chunks_changes_nothing(size, model):
    batch = inputs("two images", "video")
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=size), expected)


# ---- padding, and a model that trains


def test_padding_on_the_right_of_images_is_refused(model):
    batch = inputs("image", "text")
    batch |= {name: batch[name].flip(1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match=r"ends with 0 in rows \[1\].*padding_side='left'"):
        model.generate(**batch, **GREEDY)


@pytest.mark.parametrize("name", ["image", "text"])
def test_a_model_that_trains_with_checkpointing_and_dropout_answers_as_in_eval(name):
    model = tiny_model(SEED, vision_config={"drop_path_rate": 0.5, "dropout": 0.5})
    expected = model.generate(**inputs(name), **GREEDY)
    model.train().gradient_checkpointing_enable()
    model.model.projector.eval()
    assert torch.equal(model.generate(**inputs(name), **GREEDY), expected)
    assert torch.equal(model.generate(**inputs(name), **GREEDY, cache=model.dialogue_cache()), expected)
    assert model.training and model.model.vision_model.training and not model.model.projector.training


def test_no_empty_tile_is_encoded_where_no_gradients_are_needed():
    model, calls = tiny_model().train(), []
    model.model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    ids = inputs("text")["input_ids"]
    with torch.no_grad():
        model(ids)
    model.generate(ids, **GREEDY)
    assert not calls
    model(ids)
    assert len(calls) == 1


# ---- float16


@torch.no_grad()
def test_eager_attention_in_float16_holds_beyond_its_range():
    pixels, grid = random_clips((3, 1, 1), (1, 2, 2))
    model = tiny_model(attn_implementation="eager").half()
    for layer in model.model.vision_model.encoder.layers[2:]:
        layer.temporal_attn.qkv.weight[:64] *= 200  # products of queries and keys beyond 65,504
    features = model.get_image_features(pixels.half(), grid).last_hidden_state
    assert features.isfinite().all()
    expected = model.float().get_image_features(pixels, grid).last_hidden_state
    assert_close(features.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def test_a_mask_outweighs_any_score_in_float16():
    module = tiny_model().model.vision_model.encoder.layers[2].temporal_attn
    query = torch.full((1, 4, 2, 8), 100.0, dtype=torch.float16)
    key = torch.stack([-query[:, :, 0], query[:, :, 0]], dim=2)  # the second, masked, scores highest
    mask = torch.tensor([[0.0, torch.finfo(torch.float16).min]] * 2, dtype=torch.float16)[None, None]
    _, weights = eager_attention_forward(module.eval(), query, key, key, mask, scaling=0.5)
    assert weights[..., 1].max() == 0


# ---- loading


@pytest.mark.attack("F22")
@pytest.mark.parametrize("part", ["model.vision_model", "model.projector", "model.language_model", "lm_head"])
def test_a_checkpoint_without_a_whole_part_is_refused_unless_asked_for(part, tmp_path):
    model = tiny_model()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{part}.")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=f"has no weights of {part} .*allow_missing_parts"):
        PVCForConditionalGeneration.from_pretrained(tmp_path)
    loaded, info = PVCForConditionalGeneration.from_pretrained(
        tmp_path, allow_missing_parts=True, output_loading_info=True
    )
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith(f"{part}.")}
    assert isinstance(loaded, PVCForConditionalGeneration)
