"""Options of `generate` that are passed to `chat`, which has the tokenizer and returns texts."""

import copy

import pytest
import torch
from test_chat import SETTINGS, tiles
from transformers import GenerationConfig
from watching import record_calls


def as_dict(**options) -> dict:
    return SETTINGS | options


def as_object(**options) -> GenerationConfig:
    return GenerationConfig(**SETTINGS | options)


FORMS = [as_dict, as_object]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cached", [False, True])
def test_stop_strings_need_no_tokenizer_of_their_own(cached, form, model, tokenizer):
    ask = [model, tokenizer, tiles(2), "What?"]
    whole = type(model).chat(*ask, form())
    stop = whole[len(whole) // 2]
    cache = model.dialogue_cache() if cached else None
    answer = type(model).chat(*ask, form(stop_strings=[stop]), cache=cache)
    assert whole.startswith(answer) and stop in answer and len(answer) < len(whole)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_dict_of_generate_gives_the_same_text(cached, form, model, tokenizer):
    expected = model.chat(tokenizer, tiles(2), "What?", form())
    asked_for = form(return_dict_in_generate=True, output_scores=True)
    cache = model.dialogue_cache() if cached else None
    assert model.chat(tokenizer, tiles(2), "What?", asked_for, cache=cache) == expected
    answers = model.batch_chat(tokenizer, tiles(2), ["What?", "Who?"], asked_for, num_patches_list=[1, 1])
    assert len(answers) == 2
    live = model.live_video(tokenizer)
    assert isinstance(live.ask("What?", asked_for), str)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("penalty", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 2}], ids=str)
@pytest.mark.parametrize("cached", [False, True])
def test_repetition_is_that_of_the_answer_alone_as_released(
    cached, penalty, form, model, tokenizer, monkeypatch
):
    calls = record_calls(model, monkeypatch)
    few = {"max_new_tokens": 12, "suppress_tokens": [i for i in range(2048) if i not in range(300, 306)]}
    settings, kept = form(**penalty, **few), form(**penalty, **few)
    cache = model.dialogue_cache() if cached else None
    answer = model.chat(tokenizer, tiles(2), "What? What?", settings, cache=cache)
    monkeypatch.undo()
    assert settings == kept

    # the released chat: embeddings alone, so that generate knows no prompt
    asked = calls[0]
    embeddings = model.model.embed(asked["input_ids"], asked["pixel_values"], asked["clip_grid"])
    released = SETTINGS | penalty | few | {"eos_token_id": [2037]}
    ids = model.generate(inputs_embeds=embeddings, **released)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).split("<|im_end|>")[0].strip() == answer

    plain = model.chat(tokenizer, tiles(2), "What? What?", form(**few))
    assert plain != answer


def test_generate_itself_penalises_the_prompt_too_as_transformers_does(model):
    ids, penalised = torch.tensor([[5, 9, 7]]), []
    hook = model.register_forward_hook(lambda _, __, out: penalised.append(out.logits[0, -1].clone()))
    out = model.generate(
        ids, max_new_tokens=1, do_sample=False, repetition_penalty=2.0, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    hook.remove()
    changed = (out.scores[0][0] != penalised[0]).nonzero().flatten().tolist()
    assert changed == [5, 7, 9]


def test_assisted_answers_of_chat_are_those_of_greedy(model, tokenizer):
    settings = SETTINGS | {"max_new_tokens": 12}
    expected = model.chat(tokenizer, tiles(2), "What? What?", settings)
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": copy.deepcopy(model)}):
        assert model.chat(tokenizer, tiles(2), "What? What?", settings, **options) == expected
        assert model.chat(tokenizer, tiles(2), "What? What?", settings | options) == expected
    config = GenerationConfig(**settings, prompt_lookup_num_tokens=3)
    assert model.chat(tokenizer, tiles(2), "What? What?", config) == expected


def test_a_forgotten_num_patches_list_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="all 3 tiles are one image; pass num_patches_list"):
        model.chat(tokenizer, tiles(3), "<image> and <image>: compare.", SETTINGS)
    with pytest.raises(ValueError, match="2 <image> placeholders .* pass num_patches_list"):
        model.chat(tokenizer, tiles(3), "<image> now?", SETTINGS, history=[("<image>", "A cat.")])
