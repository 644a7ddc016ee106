"""A cache makes no answer different and every question cheap: each claim is about calls with and without."""

import copy

import pytest
import torch
from builders import FITS_TOKENIZER, IMAGE_TOKEN_ID, SLIDING_LLMS, random_clips, tiny_model
from test_chat import CONTEXT, SETTINGS, tiles
from torch.testing import assert_close
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from watching import interrupted, watched

from pvc import dialogue_cache
from pvc.dialogue_cache import DialogueCache

VIDEO = {"data_flag": [3], "num_patches_list": [1, 1, 1]}
TWO_IMAGES = {"data_flag": [1, 1], "num_patches_list": [2, 3]}
SWAPPED = {"data_flag": [1, 1], "num_patches_list": [3, 2]}
TURN, ANOTHER_TURN = ("<image>\nWhat?", "A cup."), ("<image>\nWhat?", "A cat in the sun.")
SECOND_IMAGE = ("What of <image>?", "It is near.")


@pytest.fixture
def cache(model) -> DialogueCache:
    return model.dialogue_cache()


# ---- what a question costs


def test_second_question_encodes_nothing_and_feeds_the_llm_its_text_alone(model, tokenizer, cache):
    history, before = [], 0
    for question in ("What happens in it?", "And then?", "Why?"):
        with watched(model) as alone:
            model.chat(tokenizer, tiles(3), question, SETTINGS, history, **VIDEO)
        with watched(model) as seen:
            _, history = model.chat(
                tokenizer, tiles(3), question, SETTINGS, history, True, **VIDEO, cache=cache
            )
        assert seen.tiles == ([] if before else [3])
        prompt = alone.rows[0]
        assert seen.rows[0] <= prompt - before  # the answer before it counts as text
        assert seen.rows[1:] == alone.rows[1:] == [1] * (SETTINGS["max_new_tokens"] - 1)
        before = prompt


def test_a_question_compares_the_models_state_once(model, tokenizer, cache, monkeypatch):
    compared, state = [], dialogue_cache._state
    monkeypatch.setattr(dialogue_cache, "_state", lambda model: compared.append(1) or state(model))
    model.chat(tokenizer, tiles(3), "What?", SETTINGS, **VIDEO, cache=cache)
    assert len(compared) == 1


def test_same_question_again_computes_one_place_of_its_prompt(model, tokenizer, cache):
    for _ in range(2):
        with watched(model) as seen:
            model.chat(tokenizer, tiles(3), "What?", SETTINGS, **VIDEO, cache=cache)
    assert seen.rows == [1] * SETTINGS["max_new_tokens"]


def test_generated_ids_that_come_back_as_history_are_not_computed_again(cache):
    model, ids = tiny_model(), torch.arange(3, 23)[None]
    greedy = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE_TOKEN_ID]}
    said = model.generate(ids, max_new_tokens=6, **greedy, cache=cache)
    with watched(model) as seen:
        ids = torch.cat([said, said[:, :5]], dim=1)
        model.generate(ids, max_new_tokens=1, cache=cache)
    assert seen.rows == [6]  # the last generated token was never fed, nor the five after it


def test_new_images_alone_are_encoded(model, tokenizer, cache):
    first, second = tiles(2), tiles(3)
    model.chat(tokenizer, first, TURN[0], SETTINGS, cache=cache)
    with watched(model) as seen:
        model.chat(
            tokenizer,
            torch.cat([first, second]),
            SECOND_IMAGE[0],
            SETTINGS,
            [TURN],
            cache=cache,
            **TWO_IMAGES,
        )
    assert seen.tiles == [3]
    with watched(model) as seen:  # the order changed: nothing new
        model.chat(
            tokenizer, torch.cat([second, first]), SECOND_IMAGE[0], SETTINGS, [TURN], cache=cache, **SWAPPED
        )
    assert seen.tiles == []


def test_images_that_left_the_dialogue_are_forgotten(model, tokenizer, cache):
    for seed in range(4):
        model.chat(tokenizer, torch.randn(2, 3, 56, 56) + seed, TURN[0], SETTINGS, cache=cache)
        assert [len(clip.pixels) for clip in cache.clips] == [2]
    model.chat(tokenizer, None, "Hello", SETTINGS, cache=cache)
    assert not cache.clips


# ---- answers are those without a cache

DIALOGUES = {
    "history goes on": [
        (2, TURN[0], [], {}),
        (2, "And?", [TURN], {}),
        (2, "Why?", [TURN, ("And?", "So.")], {}),
    ],
    "answer edited": [(2, "And?", [TURN], {}), (2, "And?", [ANOTHER_TURN], {}), (2, "And?", [TURN], {})],
    "question edited": [
        (2, "<image>\nWhat?", [], {}),
        (2, "<image>\nWho?", [], {}),
        (2, "Who <image>?", [], {}),
    ],
    "image exchanged": [(2, TURN[0], [], {}), (3, TURN[0], [], {}), (2, TURN[0], [], {})],
    "image added": [(2, TURN[0], [], {}), (5, SECOND_IMAGE[0], [TURN], TWO_IMAGES)],
    "images in another order": [
        (5, SECOND_IMAGE[0], [TURN], TWO_IMAGES),
        (5, SECOND_IMAGE[0], [TURN], SWAPPED),
    ],
    "one image, then frames": [(3, "What?", [], {}), (3, "What?", [], VIDEO), (3, "What?", [], {})],
    "no image any more": [(2, TURN[0], [], {}), (0, "What?", [], {}), (0, "And?", [("What?", "It.")], {})],
    "another dialogue": [(2, "And?", [TURN], {}), (3, "Where?", [], VIDEO), (2, "And?", [TURN], {})],
}


def logits_of(model, tokenizer, calls, **options) -> list[torch.Tensor]:
    """Logits of the new tokens of `chat` calls, each (tiles, question, history, media)."""
    logits, generate = [], model.generate

    def recording(**kwargs):
        if "past_key_values" in kwargs:  # the cache's own call
            return generate(**kwargs)
        output = generate(**kwargs, return_dict_in_generate=True, output_logits=True)
        logits.append(torch.stack(output.logits))
        return output.sequences

    model.generate = recording
    try:
        for count, question, history, media in calls:
            pixels = tiles(count) if count else None
            model.chat(tokenizer, pixels, question, SETTINGS, history, **media, **options)
    finally:
        del model.generate
    return logits


@pytest.mark.parametrize("name", DIALOGUES)
def test_logits_with_a_cache_are_those_without(name, model, tokenizer, cache):
    assert_same(
        logits_of(model, tokenizer, DIALOGUES[name], cache=cache),
        logits_of(model, tokenizer, DIALOGUES[name]),
    )


def assert_same(cached: list[torch.Tensor], alone: list[torch.Tensor]):
    for with_cache, without in zip(cached, alone):
        assert_close(with_cache, without, rtol=1e-5, atol=1e-5 * float(without.abs().max()))


def test_changed_system_message_changes_the_answer(tokenizer, cache):
    own = tiny_model(**FITS_TOKENIZER)
    call = DIALOGUES["history goes on"][:1]
    logits_of(own, tokenizer, call, cache=cache)
    own.system_message = "Be brief."
    assert_same(logits_of(own, tokenizer, call, cache=cache), logits_of(own, tokenizer, call))


CHANGES = {
    "a weight": lambda model: model.lm_head.weight.data.mul_(0.5),
    "a weight of the LLM": lambda model: model.model.language_model.layers[0].attention.wo.weight.mul_(2),
    "a weight of the ViT": lambda model: model.model.vision_model.embeddings.class_embedding.add_(1),
    "all weights": lambda model: model.load_state_dict(tiny_model(1, **FITS_TOKENIZER).state_dict()),
    "dtype there and back": lambda model: model.bfloat16().float(),
    "configuration": lambda model: setattr(model.config, "tile_repeat_order", "frame"),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_changed_model_is_noticed(change, tokenizer, cache):
    own, call = tiny_model(**FITS_TOKENIZER), DIALOGUES["history goes on"][:1]
    before = logits_of(own, tokenizer, call, cache=cache)
    CHANGES[change](own)
    after = logits_of(own, tokenizer, call)
    assert not torch.equal(before[0], after[0])
    assert_same(logits_of(own, tokenizer, call, cache=cache), after)


def test_one_cache_goes_with_two_models_one_after_the_other(model, tokenizer, cache):
    other, call = tiny_model(1, **FITS_TOKENIZER), DIALOGUES["history goes on"][:1]
    for asked in (model, other, model):
        assert_same(logits_of(asked, tokenizer, call, cache=cache), logits_of(asked, tokenizer, call))


def test_pixels_changed_in_place_are_noticed(model, tokenizer, cache):
    pixels = torch.randn(2, 3, 56, 56)
    model.chat(tokenizer, pixels, TURN[0], SETTINGS, cache=cache)
    pixels[1] += 1
    with watched(model) as seen:
        answer = model.chat(tokenizer, pixels, TURN[0], SETTINGS, cache=cache)
    assert seen.tiles == [2]
    assert answer == model.chat(tokenizer, pixels, TURN[0], SETTINGS)


def test_arguments_are_left_unchanged(model, tokenizer, cache):
    pixels, history, settings = tiles(2), [TURN], dict(SETTINGS)
    given = copy.deepcopy((pixels, history, settings))
    model.chat(tokenizer, pixels, "And?", settings, history, cache=cache)
    assert torch.equal(pixels, given[0])
    assert (history, settings) == given[1:]


def test_sampled_answers_with_a_cache_are_those_without(model, tokenizer, cache):
    for question in ("What?", "What then?", "What?"):
        answers = []
        for kept in (cache, None):
            torch.manual_seed(0)
            settings = SETTINGS | {"do_sample": True}
            answers.append(model.chat(tokenizer, tiles(2), question, settings, cache=kept))
        assert answers[0] == answers[1]


def test_streamed_answers_are_those_of_chat_also_after_one_that_was_left(model, tokenizer, cache):
    for question, pieces in (("What?", 1), ("What?", None), ("Who?", None)):
        stream = model.stream_chat(tokenizer, tiles(3), question, SETTINGS, **VIDEO, cache=cache)
        if pieces:
            next(stream)
            stream.close()
        else:
            assert "".join(stream) == model.chat(tokenizer, tiles(3), question, SETTINGS, **VIDEO)


# ---- what interrupts an answer does no harm


class Failing(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        raise RuntimeError("the caller's")


@pytest.mark.parametrize("call", [0, 1, 3], ids=["prefill", "first step", "third step"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_interrupted_answer_leaves_the_cache_right(layer, call, model, tokenizer, cache):
    calls = DIALOGUES["history goes on"]
    for i, (count, question, history, media) in enumerate(calls):
        with interrupted(model.model.language_model.layers[layer].attention, call):
            model.chat(tokenizer, tiles(count), question + " Now?", SETTINGS, history, **media, cache=cache)
        assert_same(
            logits_of(model, tokenizer, calls[i : i + 1], cache=cache),
            logits_of(model, tokenizer, calls[i : i + 1]),
        )


@pytest.mark.parametrize("allowed", [1, 5], ids=["the first layer's values", "the last layer's values"])
def test_memory_that_runs_out_while_keys_are_kept_does_no_harm(allowed, model, tokenizer, cache, monkeypatch):
    left = iter(range(allowed))
    cat = torch.cat

    def failing(tensors, dim=0):
        if dim == -2 and next(left, None) is None:
            raise MemoryError
        return cat(tensors, dim)

    monkeypatch.setattr(torch, "cat", failing)
    with pytest.raises(MemoryError):
        model.chat(tokenizer, tiles(2), "What?", SETTINGS, cache=cache)
    monkeypatch.undo()
    call = DIALOGUES["history goes on"][:1]
    assert_same(logits_of(model, tokenizer, call, cache=cache), logits_of(model, tokenizer, call))


def test_interrupted_answer_keeps_what_was_computed_of_its_prompt(model, tokenizer, cache):
    with pytest.raises(RuntimeError, match="the caller's"):
        model.chat(tokenizer, tiles(2), "What?", SETTINGS, cache=cache, stopping_criteria=[Failing()])
    with watched(model) as seen:
        model.chat(tokenizer, tiles(2), "What?", SETTINGS, cache=cache)
    assert not seen.tiles
    assert seen.rows[0] == 1


# ---- positions and windows of all LLMs

ROTATIONS = {
    "InternLM2, dynamic NTK": {
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000},
    },
    "InternLM2, linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000}},
    "Llama, dynamic NTK": {
        "model_type": "llama",
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000},
    },
    "Phi3, longrope": {
        "model_type": "phi3",
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000,
            "short_factor": [1.0] * 6,
            "long_factor": [4.0] * 6,
            "original_max_position_embeddings": 64,
        },
    },
    **SLIDING_LLMS,
    "Qwen3": {"model_type": "qwen3", "head_dim": 12},
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_dialogues_across_the_limits_of_positions_and_windows(name, cache):
    model = tiny_model(llm_config=ROTATIONS[name])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 100, (1, 100), generator=generator)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    settings |= {"suppress_tokens": [IMAGE_TOKEN_ID], "return_dict_in_generate": True}
    settings["output_logits"] = True
    for length in (20, 58, 62, 63, 64, 65, 70, 70, 50, 60):
        prompt = ids[:, :length].clone()
        prompt[0, 10:12] = IMAGE_TOKEN_ID
        pixels, grid = random_clips((2, 1, 1))
        media = {"pixel_values": pixels, "clip_grid": grid}
        for _ in range(2):  # the angles of transformers' own dynamic NTK depend on the call before
            alone = model.generate(prompt, **media, **settings)
        cached = model.generate(prompt, **media, **settings, cache=cache)
        assert_same([torch.stack(cached.logits)], [torch.stack(alone.logits)])
        assert torch.equal(cached.sequences, alone.sequences)
        ids = torch.cat(
            [cached.sequences, ids[:, cached.sequences.shape[1] :]], dim=1
        )  # the answer comes back


def test_cache_is_used_below_the_limit_of_dynamic_ntk_and_not_beyond(cache):
    model = tiny_model(llm_config=ROTATIONS["InternLM2, dynamic NTK"])
    ids = torch.randint(3, 100, (1, 80))
    fed = []
    for length in (40, 50, 64, 65, 66, 66, 55, 64):
        with watched(model) as seen:
            model.generate(ids[:, :length], max_new_tokens=1, cache=cache)
        fed += seen.rows
    assert fed == [40, 10, 14, 65, 66, 66, 55, 9]


# ---- what is refused


REFUSED = {
    "num_beams": 2,
    "num_return_sequences": 3,
    "cache_implementation": "static",
    "prompt_lookup_num_tokens": 2,
    "past_key_values": DynamicCache(),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", ["a dict", "an object", "the model's"])
def test_what_does_not_go_with_a_cache_is_refused(name, way, model, tokenizer, cache, monkeypatch):
    settings = SETTINGS | {name: REFUSED[name], "do_sample": True}
    if way == "an object" and name != "past_key_values":
        settings = GenerationConfig(**settings)
    if way == "the model's" and name != "past_key_values":
        settings, own = SETTINGS, GenerationConfig(**settings)
        monkeypatch.setattr(model, "generation_config", own)
    with pytest.raises(ValueError, match=f"a cache of the dialogue does not go with {name}"):
        model.chat(tokenizer, tiles(2), "What?", settings, cache=cache)


def test_batches_padding_and_embeddings_are_refused(cache):
    model, ids = tiny_model(), torch.randint(3, 100, (2, 5))
    with pytest.raises(ValueError, match="2 rows"):
        model.generate(ids, cache=cache)
    with pytest.raises(ValueError, match="with padding"):
        model.generate(ids[:1], attention_mask=torch.tensor([[0, 1, 1, 1, 1]]), cache=cache)
    with pytest.raises(ValueError, match="no inputs_embeds"):
        model.generate(inputs_embeds=torch.randn(1, 3, 48), cache=cache)


def test_a_prompt_without_its_images_is_refused_as_ever(model, cache):
    with pytest.raises(ValueError, match="pixel_values is None"):
        model.generate(torch.tensor([[5, CONTEXT, 6]]), cache=cache)


@pytest.mark.attack("F23")
def test_weights_changed_through_data_are_noticed(model, cache):
    model, ids = copy.deepcopy(model), torch.tensor([[5, 9, 7, 3, 4]])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    model.generate(ids, **settings, cache=cache)
    model.model.language_model.layers[0].attention.wqkv.weight.data.mul_(-3)
    assert torch.equal(model.generate(ids, **settings, cache=cache), model.generate(ids, **settings))
    assert len(cache.prompt_keys)
    before = cache.state
    model.lm_head.weight.data.add_(1)
    cache.start(model, {})
    assert cache.state != before
