"""`fast_decode=True` gives the tokens of plain decoding, from one compiled step for answers of all lengths.

Dynamo's own backend compiles in a second and is traced like any other; the slow test goes through inductor.
"""

import pytest
import torch
from builders import IMAGE_TOKEN_ID, SLIDING_LLMS, random_clips, tiny_model
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, GenerationConfig
from watching import interrupted

from pvc.fast_decode import LENGTH_STEP, as_dynamic, fast_decode_options

GREEDY = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE_TOKEN_ID]}
SLIDING = {
    "InternLM2": {},
    **SLIDING_LLMS,
}


@pytest.fixture
def fast() -> dict:
    """Options of fast decoding, with dynamo's own backend."""
    torch._dynamo.reset()
    counters.clear()
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return {"fast_decode": True, "compile_config": config}


def prompts(*lengths: int) -> dict[str, torch.Tensor]:
    """A left-padded batch of prompts of a video of two frames each."""
    generator = torch.Generator().manual_seed(sum(lengths))
    width = max(lengths)
    ids = torch.randint(3, 100, (len(lengths), width), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        ids[row, : width - length], mask[row, : width - length] = 2, 0
        ids[row, width - length + 2 : width - length + 4] = IMAGE_TOKEN_ID
    pixels, grid = random_clips(*[(2, 1, 1)] * len(lengths))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "clip_grid": grid}


def test_tokens_are_those_of_plain_decoding_from_one_compiled_step(fast):
    model = tiny_model()
    for length, new in ((20, 4), (31, 12), (9, 30)):
        batch, settings = prompts(length), GREEDY | {"max_new_tokens": new}
        expected = model.generate(**batch, **settings)
        assert torch.equal(model.generate(**batch, **settings, **fast), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_what_it_compiles_with_by_itself_gives_the_tokens_of_plain_decoding():
    torch._dynamo.reset()
    counters.clear()
    model = tiny_model()
    for length, cache in ((20, None), (31, model.dialogue_cache())):
        batch, settings = prompts(length), GREEDY | {"max_new_tokens": 8}
        expected = model.generate(**batch, **settings)
        for _ in range(2):
            assert torch.equal(model.generate(**batch, **settings, fast_decode=True, cache=cache), expected)
    assert counters["stats"]["unique_graphs"] == 1


def test_padded_batches_and_sampled_answers_are_those_of_plain_decoding(fast):
    model = tiny_model()
    sampled = GREEDY | {"do_sample": True, "num_return_sequences": 2}
    for batch, settings in ((prompts(12, 25), GREEDY), (prompts(18), sampled)):
        answers = []
        for way in ({}, fast):
            torch.manual_seed(0)
            answers.append(model.generate(**batch, **settings, max_new_tokens=8, **way))
        assert torch.equal(*answers)


@pytest.mark.parametrize("llm", SLIDING)
def test_a_dialogue_cache_goes_on_after_fast_answers_and_before_them(llm, fast):
    model = tiny_model(llm_config=SLIDING[llm])
    cache, said = model.dialogue_cache(), prompts(30)
    for way in (fast, {}, fast, fast):
        settings = GREEDY | {"max_new_tokens": 6}
        expected = model.generate(**said, **settings)
        assert torch.equal(model.generate(**said, **settings, **way, cache=cache), expected)
        assert len(cache.prompt_keys) == expected.shape[1] - 1
        said |= {"input_ids": torch.cat([expected, expected[:, :2]], dim=1), "attention_mask": None}
    assert counters["stats"]["unique_graphs"] == 1


def test_an_interrupted_fast_answer_leaves_the_cache_right(fast):
    model, said, settings = tiny_model(), prompts(20), GREEDY | {"max_new_tokens": 6}
    cache = model.dialogue_cache()
    model.generate(**said, **settings, cache=cache)
    said["input_ids"][0, 15:] = 7
    with interrupted(model.lm_head, 0):
        model.generate(**said, **settings, **fast, cache=cache)
    expected = model.generate(**said, **settings)
    assert torch.equal(model.generate(**said, **settings, cache=cache), expected)


def test_lengths_are_rounded_up_and_hold_prompt_and_answer():
    model = tiny_model()
    for length, settings, places in (
        (20, {"max_new_tokens": 4}, LENGTH_STEP),
        (20, {"generation_config": GenerationConfig(max_new_tokens=LENGTH_STEP)}, 2 * LENGTH_STEP),
        (LENGTH_STEP, {"max_length": LENGTH_STEP + 1}, 2 * LENGTH_STEP),
        (LENGTH_STEP - 1, {}, 2 * LENGTH_STEP),
    ):
        ids = torch.zeros(1, length, dtype=torch.long)
        cache = fast_decode_options(model, ids, settings)["past_key_values"]
        assert {layer.max_cache_len for layer in cache.layers} == {places}


def test_a_prefix_is_copied_there_and_back():
    model = tiny_model()
    prefix = DynamicCache()
    model(torch.randint(3, 100, (1, 9)), past_key_values=prefix)
    static = fast_decode_options(model, torch.zeros(1, 12), {}, prefix)["past_key_values"]
    for there, back in zip(prefix.layers, as_dynamic(static).layers):
        assert torch.equal(there.keys, back.keys)
        assert torch.equal(there.values, back.values)


REFUSED = {
    "num_beams": 2,
    "cache_implementation": "static",
    "use_cache": False,
    "prompt_lookup_num_tokens": 2,
    "past_key_values": DynamicCache(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_fast_decoding_is_refused(name):
    with pytest.raises(ValueError, match=f"fast_decode does not go with {name}"):
        tiny_model().generate(torch.tensor([[5, 6]]), fast_decode=True, **{name: REFUSED[name]})
