"""The forward pass and `generate`: visual tokens in their places, encoded once, in every way to generate."""

import copy

import pytest
import torch
from builders import IMAGE_TOKEN_ID, tiny_model
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StaticCache

from pvc.clips import Clip, clip_grid_of
from pvc.modeling_pvc import PVCForConditionalGeneration

PLACE = IMAGE_TOKEN_ID  # a tile of 56 x 56 pixels is one visual token each time it is shown
PROMPTS = {  # ids and the clips in them
    "image": ([1, 5, 6, *[PLACE] * 8, 7], [Clip(1, 2, 4)]),
    "two images": ([1, *[PLACE] * 4, 9, *[PLACE] * 12, 8, 5], [Clip(1, 1, 4), Clip(1, 3, 4)]),
    "text": ([1, 9, 10, 11], []),
    "video": ([1, *[12, PLACE, PLACE] * 3, 13, 14], [Clip(3, 2, 1)]),
    "image and video": ([1, *[PLACE] * 4, 7, *[12, PLACE] * 2, 8], [Clip(1, 1, 4), Clip(2, 1, 1)]),
}
MIXED = ["image", "text", "video", "two images"]
LLMS = {
    "internlm2": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "phi3": {"model_type": "phi3"},
}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
SEED = 10  # its answers are no token said over and over
TOLERANCE = {"atol": 5e-5, "rtol": 1e-5}
assert_close = torch.testing.assert_close


@pytest.fixture(scope="module")
def model() -> PVCForConditionalGeneration:
    """Never changed by a test."""
    return tiny_model(SEED)


@pytest.fixture(scope="module", params=LLMS)
def any_llm(request) -> PVCForConditionalGeneration:
    return tiny_model(SEED, llm_config=LLMS[request.param])


def tiles(name: str) -> list[torch.Tensor]:
    """Tiles of a prompt's clips, the same at each call."""
    generator = torch.Generator().manual_seed(list(PROMPTS).index(name))
    return [torch.randn(c.frames * c.tiles, 3, 56, 56, generator=generator) for c in PROMPTS[name][1]]


def inputs(*names: str) -> dict[str, torch.Tensor | None]:
    """The named prompts as one left-padded batch."""
    width = max(len(PROMPTS[name][0]) for name in names)
    rows = [[2] * (width - len(PROMPTS[name][0])) + PROMPTS[name][0] for name in names]
    mask = [[0] * (width - len(PROMPTS[name][0])) + [1] * len(PROMPTS[name][0]) for name in names]
    pixels = [clip for name in names for clip in tiles(name)]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.cat(pixels) if pixels else None,
        "clip_grid": clip_grid_of([clip for name in names for clip in PROMPTS[name][1]]),
    }


def embedded(model, batch: dict) -> dict[str, torch.Tensor]:
    """The batch with embeddings in the place of ids and images, put together place by place."""
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        clips = model.get_image_features(batch["pixel_values"], batch["clip_grid"]).pooler_output
    visual = iter(torch.cat(clips))
    for row, column in (batch["input_ids"] == PLACE).nonzero().tolist():
        embeddings[row, column] = next(visual)
    assert next(visual, None) is None
    return {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}


@torch.no_grad()
def generate(model, batch: dict, **kwargs):
    """New tokens and the logits they were chosen from."""
    settings = GREEDY | {"return_dict_in_generate": True, "output_logits": True} | kwargs
    out = model.generate(**batch, **settings)
    prompt = batch["input_ids"].shape[1] if "input_ids" in batch else 0
    return out.sequences[:, prompt:], torch.stack(out.logits)


# ---- visual tokens among the text


@torch.no_grad()
def test_visual_tokens_stand_in_prompt_order_in_the_places_for_them(model):
    batch = inputs("two images", "text", "image and video")
    expected = embedded(model, batch)["inputs_embeds"]
    got = model.model.embed(batch["input_ids"], batch["pixel_values"], batch["clip_grid"])
    assert_close(got, expected, **TOLERANCE)
    assert_close(model(**batch).logits, model(**embedded(model, batch)).logits, **TOLERANCE)


@torch.no_grad()
def test_tiles_without_a_clip_grid_are_one_image(model):
    batch = inputs("image")
    expected = model(**batch).logits
    assert torch.equal(model(**batch | {"clip_grid": None}).logits, expected)
    assert not torch.equal(model(**batch | {"pixel_values": -batch["pixel_values"]}).logits, expected)
    assert len(model.get_image_features(batch["pixel_values"]).pooler_output) == 1


@torch.no_grad()
def test_a_later_image_joins_a_dialogue_that_is_cached_already(model):
    ids, grid = inputs("two images")["input_ids"], inputs("two images")["clip_grid"]
    first, second = tiles("two images")
    whole = model(input_ids=ids, pixel_values=torch.cat([first, second]), clip_grid=grid).logits
    memory = DynamicCache(config=model.config)
    turns = [
        model(input_ids=ids[:, :6], pixel_values=first, clip_grid=grid[:1], past_key_values=memory),
        model(input_ids=ids[:, 6:], pixel_values=second, clip_grid=grid[1:], past_key_values=memory),
    ]
    assert_close(torch.cat([turn.logits for turn in turns], dim=1), whole, **TOLERANCE)


@torch.no_grad()
def test_packed_samples_with_images_equal_separate_ones(any_llm):
    batches = [inputs(name) for name in MIXED]
    ids = torch.cat([batch["input_ids"] for batch in batches], dim=1)
    positions = torch.cat([torch.arange(batch["input_ids"].shape[1]) for batch in batches])[None]
    packed = inputs(*MIXED) | {"input_ids": ids, "attention_mask": None}
    logits = any_llm(**packed, position_ids=positions, use_cache=False).logits
    alone = torch.cat([any_llm(**batch).logits for batch in batches], dim=1)
    assert_close(logits, alone, **TOLERANCE)


# ---- ways to generate


def test_cached_uncached_and_static_generation_give_the_logits_of_one_forward_pass(any_llm):
    batch, settings = inputs("image and video"), {"do_sample": True, "suppress_tokens": [PLACE]}
    torch.manual_seed(0)
    tokens, logits = generate(any_llm, batch, **settings)
    assert len(set(tokens[0].tolist())) > 2  # greedy, a tiny model says one token over and over
    ids = torch.cat([batch["input_ids"], tokens], dim=1)
    with torch.no_grad():
        whole = any_llm(**batch | {"input_ids": ids, "attention_mask": None}).logits
    assert_close(logits[:, 0], whole[0, batch["input_ids"].shape[1] - 1 : -1], **TOLERANCE)
    for way in ({"use_cache": False}, {"cache_implementation": "static"}):
        torch.manual_seed(0)
        other_tokens, other_logits = generate(any_llm, batch, **settings, **way)
        assert torch.equal(other_tokens, tokens)
        assert_close(other_logits, logits, **TOLERANCE)


def test_static_cache_is_what_it_says(model):
    out = model.generate(
        **inputs("image"), **GREEDY, cache_implementation="static", return_dict_in_generate=True
    )
    assert isinstance(out.past_key_values, StaticCache)


@pytest.mark.parametrize("way", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_rows_of_a_left_padded_batch_of_images_text_and_video_equal_each_alone(model, way):
    tokens, logits = generate(model, inputs(*MIXED), **way)
    for row, name in enumerate(MIXED):
        alone_tokens, alone_logits = generate(model, inputs(name))
        assert torch.equal(tokens[row], alone_tokens[0])
        assert_close(logits[:, row], alone_logits[:, 0], **TOLERANCE)


def test_left_padding_changes_nothing_with_any_llm(any_llm):
    _, logits = generate(any_llm, inputs("text", "video"))
    for row, name in enumerate(["text", "video"]):
        assert_close(logits[:, row], generate(any_llm, inputs(name))[1][:, 0], **TOLERANCE)


def test_beams_over_different_images_equal_beams_over_embeddings(any_llm):
    batch = inputs("two images", "image")
    beams = {"num_beams": 3, "num_return_sequences": 2}
    tokens, logits = generate(any_llm, batch, **beams)
    expected, expected_logits = generate(any_llm, embedded(any_llm, batch), **beams)
    assert tokens.shape == (4, GREEDY["max_new_tokens"])
    assert torch.equal(tokens, expected)
    assert_close(logits, expected_logits, **TOLERANCE)


@torch.no_grad()
def test_scores_of_beams_are_the_probabilities_of_their_answers_to_their_own_images(model):
    batch, names = inputs("two images", "image"), ["two images"] * 3 + ["image"] * 3
    out = model.generate(
        **batch,
        **GREEDY | {"num_beams": 3, "num_return_sequences": 3, "suppress_tokens": [PLACE]},
        return_dict_in_generate=True,
        output_scores=True,
    )
    answers = out.sequences[:, batch["input_ids"].shape[1] :]
    assert len({tuple(answer) for answer in answers.tolist()}) == 6
    for name, answer, score in zip(names, answers, out.sequences_scores):
        alone = inputs(name)
        ids = torch.cat([alone["input_ids"], answer[None]], dim=1)
        logits = model(**alone | {"input_ids": ids, "attention_mask": None}).logits
        places = slice(alone["input_ids"].shape[1] - 1, -1)
        chosen = logits[0, places].log_softmax(-1).gather(1, answer[:, None])
        assert_close(score, chosen.mean(), **TOLERANCE)  # length_penalty 1: the mean over the tokens


def test_several_sampled_answers_are_all_about_their_own_prompt(model):
    batch = inputs("two images", "text", "image")
    torch.manual_seed(0)
    tokens, logits = generate(model, batch, do_sample=True, num_return_sequences=2)
    assert len({tuple(row) for row in tokens.tolist()}) == 6
    with torch.no_grad():
        first = model(**batch).logits[:, -1]
    assert_close(logits[0], first.repeat_interleave(2, dim=0), **TOLERANCE)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_images_are_encoded_once(model, settings):
    calls = []
    parts = (model.model.vision_model, model.model.projector)
    hooks = [part.register_forward_hook(lambda part, *_: calls.append(part)) for part in parts]
    generate(model, inputs("two images", "text", "video"), **settings)
    for hook in hooks:
        hook.remove()
    assert calls == list(parts)


def test_logits_of_the_prompt_are_computed_for_its_last_place_alone(model):
    places = []
    hook = model.lm_head.register_forward_hook(lambda _, args, __: places.append(args[0].shape[1]))
    generate(model, inputs("image"))
    hook.remove()
    assert places == [1] * GREEDY["max_new_tokens"]


def test_prompt_and_new_tokens_come_with_ids_and_new_tokens_alone_with_embeddings(model):
    batch = inputs("image")
    whole = model.generate(**batch, **GREEDY)
    new = model.generate(**embedded(model, batch), **GREEDY)
    assert torch.equal(whole, torch.cat([batch["input_ids"], new], dim=1))
    assert new.shape == (1, GREEDY["max_new_tokens"])


def test_ids_may_be_given_by_place_and_the_settings_as_an_object(model):
    batch, config = inputs("image"), GenerationConfig(**GREEDY)
    expected = model.generate(**batch, generation_config=config)
    ids = batch.pop("input_ids")
    assert torch.equal(model.generate(ids, config, **batch), expected)
    text = inputs("text")["input_ids"]
    assert torch.equal(model.generate(text, **GREEDY), model.generate(input_ids=text, **GREEDY))


def test_max_length_counts_the_prompt_also_with_images(model):
    batch = inputs("image")
    length = batch["input_ids"].shape[1] + 2
    settings = {name: value for name, value in GREEDY.items() if name != "max_new_tokens"}
    tokens = model.generate(**batch, **settings, max_length=length)
    assert torch.equal(tokens, model.generate(**batch, **GREEDY)[:, :length])


def test_generation_ends_with_the_end_token(model):
    batch = inputs("image")
    tokens, _ = generate(model, batch)
    eos = int(tokens[0, 2])
    ended, _ = generate(model, batch, eos_token_id=eos)
    assert ended[0].tolist() == tokens[0, : tokens[0].tolist().index(eos) + 1].tolist()


def test_generate_leaves_its_arguments_unchanged(model):
    given = inputs(*MIXED) | {"generation_config": GenerationConfig(**GREEDY, num_beams=2)}
    kept, names = copy.deepcopy(given), list(given)
    own = copy.deepcopy(model.generation_config)
    model.generate(**given, num_return_sequences=2)
    assert list(given) == names
    for name, value in given.items():
        equal = torch.equal(value, kept[name]) if torch.is_tensor(value) else value == kept[name]
        assert equal, name
    assert model.generation_config == own


# ---- the LLM


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in LLMS if name != "internlm2"])
def test_llms_of_other_families_are_those_of_transformers(name):
    model = tiny_model(SEED, llm_config=LLMS[name])
    llm = AutoModelForCausalLM.from_config(model.config.llm_config).eval()
    weights = {f"model.{key}": value for key, value in model.model.language_model.state_dict().items()}
    llm.load_state_dict(weights | {"lm_head.weight": model.lm_head.weight})
    batch = inputs("image and video", "text")
    real = batch["attention_mask"].bool()
    expected = llm(**embedded(model, batch)).logits
    assert_close(model(**batch).logits[real], expected[real], **TOLERANCE)


def test_tied_embeddings_stay_tied_and_give_the_same_answer_after_saving(tmp_path):
    model = tiny_model(SEED, llm_config=LLMS["qwen2 tied"])
    model.save_pretrained(tmp_path)
    loaded = PVCForConditionalGeneration.from_pretrained(tmp_path)
    for each in (model, loaded):
        assert each.lm_head.weight is each.get_input_embeddings().weight
    expected, logits = generate(model, inputs("image"))
    tokens, loaded_logits = generate(loaded, inputs("image"))
    assert torch.equal(tokens, expected)
    assert_close(loaded_logits, logits, **TOLERANCE)


@torch.no_grad()
def test_eager_attention_gives_the_logits_of_sdpa(any_llm):
    eager = copy.deepcopy(any_llm)
    eager.set_attn_implementation("eager")
    for config in (eager.config.vision_config, eager.config.llm_config):
        assert config._attn_implementation == "eager"
    batch = inputs(*MIXED)
    real = batch["attention_mask"].bool()
    assert_close(eager(**batch).logits[real], any_llm(**batch).logits[real], **TOLERANCE)


@torch.no_grad()
def test_hidden_states_attentions_and_cache_come_when_asked_for(any_llm):
    eager = copy.deepcopy(any_llm)
    eager.set_attn_implementation("eager")
    batch = inputs("image", "video")
    out = eager(**batch, output_hidden_states=True, output_attentions=True)
    length = batch["input_ids"].shape[1]
    assert [tuple(states.shape) for states in out.hidden_states] == [(2, length, 48)] * 4
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 4, length, length)] * 3
    assert_close(eager.lm_head(out.hidden_states[-1]), out.logits, **TOLERANCE)
    assert out.past_key_values.get_seq_length() == length
    plain = eager(**batch, use_cache=False)
    assert (plain.hidden_states, plain.attentions, plain.past_key_values, plain.loss) == (None,) * 4


@torch.no_grad()
def test_tuple_holds_the_same_as_the_named_outputs(any_llm):
    batch = inputs("image") | {"use_cache": False}
    labels = batch["input_ids"]
    named = any_llm(**batch, labels=labels)
    loss, logits = any_llm(**batch, labels=labels, return_dict=False)
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    (states,) = any_llm.model(**batch, return_dict=False)
    assert torch.equal(any_llm.lm_head(states), named.logits)
    features = any_llm.get_image_features(batch["pixel_values"], batch["clip_grid"])
    rows, by_clip = any_llm.get_image_features(batch["pixel_values"], batch["clip_grid"], return_dict=False)
    assert torch.equal(rows, features.last_hidden_state)
    assert torch.equal(torch.cat(by_clip), torch.cat(features.pooler_output))


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 5])])
def test_logits_are_computed_for_the_places_to_keep_alone(model, keep):
    batch = inputs("image")
    places = keep if torch.is_tensor(keep) else slice(-keep, None)
    kept = model(**batch, logits_to_keep=keep).logits
    assert_close(kept, model(**batch).logits[:, places], **TOLERANCE)


@torch.no_grad()
def test_loss_is_the_mean_over_the_tokens_that_count_or_over_a_number_that_is_given(any_llm):
    batch = inputs("image", "text")
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == PLACE, -100)
    labels[batch["attention_mask"] == 0] = -100
    out = any_llm(**batch, labels=labels)
    targets = labels[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), targets, reduction="sum")
    assert_close(out.loss, losses / (targets != -100).sum(), **TOLERANCE)
    assert_close(any_llm(**batch, labels=labels, num_items_in_batch=40).loss, losses / 40, **TOLERANCE)


def test_gradient_checkpointing_leaves_loss_and_gradients_as_they_are(any_llm):
    batch = inputs("image", "video") | {"use_cache": False}
    plain, saving = copy.deepcopy(any_llm).train(), copy.deepcopy(any_llm).train()
    saving.gradient_checkpointing_enable()
    assert saving.model.language_model.layers[0].gradient_checkpointing
    losses = [each(**batch, labels=batch["input_ids"]).loss for each in (plain, saving)]
    assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), saving.named_parameters()):
        assert one.grad is not None, name
        assert_close(other.grad, one.grad, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    assert plain.model.projector.mlp[0].weight.grad.abs().max() > 0


# ---- errors


def test_number_of_places_must_be_that_of_the_visual_tokens(model):
    batch = inputs("image")
    for ids in (batch["input_ids"][:, :-2], torch.cat([batch["input_ids"], torch.tensor([[PLACE]])], dim=1)):
        places = int((ids == PLACE).sum())
        assert places != 8
        wrong = batch | {"input_ids": ids, "attention_mask": None}
        for call in (model, model.model, model.generate):
            with pytest.raises(ValueError, match=rf"have {places} positions .*token_id 120.* make 8$"):
                call(**wrong)


def test_places_without_images_cannot_be_generated_from(model):
    batch = inputs("image") | {"pixel_values": None}
    for grid in (batch["clip_grid"], None):
        with pytest.raises(ValueError, match="have 8 positions for visual tokens, but pixel_values is None"):
            model.generate(**batch | {"clip_grid": grid}, **GREEDY)


def test_images_need_ids_that_say_where_they_stand(model):
    batch = inputs("image")
    images = {"pixel_values": batch["pixel_values"], "clip_grid": batch["clip_grid"]}
    for arguments in (images | embedded(model, batch), images):
        with pytest.raises(ValueError, match="pixel_values need input_ids"):
            model.generate(**arguments)
    with pytest.raises(ValueError, match="pixel_values need input_ids"):
        model(**images | embedded(model, batch))


def test_ids_and_embeddings_exclude_each_other(model):
    text = inputs("text")
    embeddings = model.get_input_embeddings()(text["input_ids"])
    for module in (model, model.model):
        for wrong in ({"input_ids": text["input_ids"], "inputs_embeds": embeddings}, {}):
            with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
                module(**wrong)


def test_images_to_encode_and_embeddings_that_hold_them_exclude_each_other_in_generate(model):
    batch = inputs("image")
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(**batch | embedded(model, batch), **GREEDY)


@pytest.mark.parametrize("image_token_id", [-1, 128, 92546])
def test_image_token_must_be_in_the_vocabulary_where_images_are_used(image_token_id):
    model = tiny_model(image_token_id=image_token_id)
    with pytest.raises(ValueError, match=rf"image_token_id {image_token_id} is not in the vocabulary of 128"):
        model.generate(**inputs("image"), **GREEDY)
    assert model.generate(**inputs("text"), **GREEDY).shape == (1, 4 + GREEDY["max_new_tokens"])


def test_clip_grid_must_fit_the_images(model):
    batch = inputs("image")
    too_short, too_many_tiles = batch["clip_grid"][:1], torch.tensor([[1, 3, 4]] * 2)
    for grid, message in [(too_short, r"\(1, 3\).*\(2, 3\)"), (too_many_tiles, "clip_grid.* 3 ")]:
        with pytest.raises(ValueError, match=message):
            model.generate(**batch | {"clip_grid": grid}, **GREEDY)
