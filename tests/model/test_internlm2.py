"""InternLM2 against the official code's logits and tokens, and against itself where ways must agree."""

import json
from functools import cache

import pytest
import torch
from builders import golden, move_off_start
from safetensors.torch import load_file
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pvc.configuration_pvc import InternLM2Config
from pvc.modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model, rotary_cos_sin

LM = json.loads(golden("lm_config.json").read_text())
ROPES = ["dynamic", "linear", "none"]
TOLERANCE = {"atol": 2e-5, "rtol": 0}  # official float32 and float64 differ by up to 4e-6
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
assert_close = torch.testing.assert_close


@cache
def official(rope: str) -> dict[str, torch.Tensor]:
    return load_file(golden(f"lm_{rope}_io.safetensors"))


@cache
def converted(rope: str) -> InternLM2ForCausalLM:
    """The official weights in this code; never changed by a test."""
    scaling = LM["rope_scaling_by_file"][f"lm_{rope}_io.safetensors"]
    model = InternLM2ForCausalLM(InternLM2Config(**LM["config"], rope_scaling=scaling)).eval()
    model.load_state_dict(load_file(golden("lm_weights.safetensors")))  # strict: the names are the same
    return model


@pytest.fixture(params=ROPES)
def rope(request) -> str:
    return request.param


@pytest.fixture
def model(rope) -> InternLM2ForCausalLM:
    return converted(rope)


@pytest.fixture
def io(rope) -> dict[str, torch.Tensor]:
    return official(rope)


def small_model(**changes) -> InternLM2ForCausalLM:
    return move_off_start(InternLM2ForCausalLM(InternLM2Config(**SMALL | HEADS | changes)).eval())


def generate(model, ids: torch.Tensor, **kwargs):
    """Greedy: tokens and the logits they were chosen from."""
    settings = GREEDY | {"eos_token_id": None, "attention_mask": torch.ones_like(ids)} | kwargs
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **settings)
    return out.sequences, torch.stack(out.logits)


# ---- the official code


@torch.no_grad()
def test_logits_and_hidden_states_are_the_official_ones_where_nothing_is_padded(model, io):
    out = model(io["input_ids"], attention_mask=io["attention_mask"], output_hidden_states=True)
    real = io["attention_mask"].bool()
    assert_close(out.logits[real], io["logits"][real], **TOLERANCE)
    assert len(out.hidden_states) == 4
    for i, states in enumerate(out.hidden_states):
        assert_close(states[real], io[f"hidden_states.{i}"][real], **TOLERANCE)


@torch.no_grad()
def test_logits_are_the_official_ones_with_positions_that_leave_padding_out(model, io):
    mask = io["attention_mask"]
    logits = model(
        io["input_ids"], attention_mask=mask, position_ids=io["position_ids_cumsum"], use_cache=False
    ).logits
    assert_close(logits[mask.bool()], io["logits_position_ids_cumsum"][mask.bool()], **TOLERANCE)


@torch.no_grad()
def test_cached_keys_and_values_are_the_official_ones(model, io):
    cache = model(io["input_ids"], attention_mask=io["attention_mask"], use_cache=True).past_key_values
    assert_close(cache.layers[0].keys, io["past_k0"], **TOLERANCE)
    assert_close(cache.layers[0].values, io["past_v0"], **TOLERANCE)


@torch.no_grad()
def test_right_padding_gives_the_official_logits_and_loss(model, io):
    mask = io["right_attention_mask"]
    out = model(io["right_input_ids"], attention_mask=mask, labels=io["labels_for_right"])
    assert_close(out.logits[mask.bool()], io["right_logits"][mask.bool()], **TOLERANCE)
    assert_close(out.loss, io["right_loss"], **TOLERANCE)


@torch.no_grad()
def test_input_past_the_trained_length_gives_the_official_logits_and_rotation(model, io):
    assert io["long_input_ids"].shape[1] > model.config.max_position_embeddings
    assert_close(model(io["long_input_ids"]).logits, io["long_logits"], **TOLERANCE)
    positions = torch.arange(io["long_input_ids"].shape[1])[None]
    cos, sin = rotary_cos_sin(model.config, positions, torch.float32)
    assert_close(cos[0], io["long_rope_cos"], **TOLERANCE)
    assert_close(sin[0], io["long_rope_sin"], **TOLERANCE)


@torch.no_grad()
def test_a_long_input_leaves_no_trace_in_later_ones_unlike_the_official_code(rope, model, io):
    before = model(io["input_ids"], attention_mask=io["attention_mask"]).logits
    model(io["long_input_ids"])
    after = model(io["input_ids"], attention_mask=io["attention_mask"]).logits
    assert torch.equal(after, before)
    real = io["attention_mask"].bool()
    assert_close(after[real], io["logits"][real], **TOLERANCE)
    trace = (io["short_after_long_logits"] - io["logits"])[real].abs().max()
    assert (trace > 1) == (rope == "dynamic")


def test_greedy_tokens_and_their_logits_are_the_official_ones(model, io):
    tokens, logits = generate(model, io["prompt_ids"])
    assert torch.equal(tokens, io["greedy_ids"])
    assert_close(logits, io["greedy_scores"], **TOLERANCE)


def test_generation_ends_with_the_official_end_token(rope, model, io):
    eos = LM["meta"][f"{rope}.eos_token_id_used"]
    tokens, _ = generate(model, io["prompt_ids"], eos_token_id=eos)
    assert torch.equal(tokens, io["greedy_eos_ids"])
    assert tokens[0, -1] == eos


def test_left_padded_batch_gives_the_official_tokens(model, io):
    tokens, _ = generate(model, io["input_ids"], attention_mask=io["attention_mask"])
    assert torch.equal(tokens, io["batch_greedy_ids"])


def test_a_row_that_ends_early_is_filled_with_padding_as_officially(rope, model, io):
    eos = LM["meta"][f"{rope}.batch_eos_token_id_used"]
    tokens, _ = generate(model, io["input_ids"], attention_mask=io["attention_mask"], eos_token_id=eos)
    assert torch.equal(tokens, io["batch_greedy_eos_ids"])


def test_generation_from_embeddings_gives_the_official_tokens_without_their_leading_one(model, io):
    embeddings = model.get_input_embeddings()(io["prompt_ids"])
    tokens = model.generate(inputs_embeds=embeddings, eos_token_id=None, **GREEDY)
    assert io["greedy_from_embeds_ids"][0, 0] == 1  # <s>, which older transformers put first
    assert torch.equal(tokens, io["greedy_from_embeds_ids"][:, 1:])


def test_generation_across_the_trained_length_is_the_official_cached_one(model, io):
    prompt, expected = io["cross_prompt_ids"], io["cross_greedy_ids"]
    assert prompt.shape[1] < model.config.max_position_embeddings < expected.shape[1]
    tokens, logits = generate(model, prompt)
    assert torch.equal(tokens, expected)
    assert_close(logits, io["cross_greedy_scores"], **TOLERANCE)


def test_norm_in_bfloat16_is_the_official_one_bit_for_bit():
    data = load_file(golden("rmsnorm_bf16.safetensors"))
    norm = LlamaRMSNorm(64, eps=1e-5)  # what the layers use
    norm.weight = torch.nn.Parameter(data["weight"])
    assert type(converted("none").model.norm) is LlamaRMSNorm
    assert torch.equal(norm(data["x"]), data["lm_out"])


# ---- ways that must agree


def test_cached_uncached_and_static_cache_generate_the_same_within_the_trained_length(model, io):
    cached, cached_logits = generate(model, io["prompt_ids"])
    for way in ({"use_cache": False}, {"cache_implementation": "static"}):
        tokens, logits = generate(model, io["prompt_ids"], **way)
        assert torch.equal(tokens, cached)
        assert_close(logits, cached_logits, **TOLERANCE)


def test_rows_of_a_left_padded_batch_generate_as_they_do_alone_also_past_the_trained_length(model, io):
    long, short = io["cross_prompt_ids"], io["prompt_ids"]
    padding = torch.zeros(1, long.shape[1] - short.shape[1], dtype=torch.long)
    ids = torch.cat([long, torch.cat([padding, short], dim=1)])
    _, logits = generate(model, ids, attention_mask=(ids != 0).long())
    for row, alone in enumerate((long, short)):
        assert_close(logits[:, row], generate(model, alone)[1][:, 0], **TOLERANCE)


@torch.no_grad()
def test_rotation_follows_each_rows_own_length():
    config = converted("dynamic").config
    limit = config.max_position_embeddings
    long, short = torch.arange(2 * limit), torch.arange(2 * limit).clamp(max=limit - 1)
    both = rotary_cos_sin(config, torch.stack([long, short]), torch.float32)
    for row, positions in enumerate((long, short)):
        alone = rotary_cos_sin(config, positions[None], torch.float32)
        for part, expected in zip(both, alone):
            assert torch.equal(part[row], expected[0])
    assert (both[0][0, :limit] - both[0][1, :limit]).abs().max() > 0.1  # the long row's base is another


def test_rotation_is_computed_in_float32_whatever_the_dtype():
    config = converted("none").config
    positions = torch.tensor([[0, 257, 32_767]])  # bfloat16 cannot tell 257 from 258
    exact = rotary_cos_sin(config, positions, torch.float32)
    for low, high in zip(rotary_cos_sin(config, positions, torch.bfloat16), exact):
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, high.bfloat16())


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [None, True, False])
def test_packed_samples_do_not_see_each_other(model, io, use_cache):
    ids, lengths = io["input_ids"][1:], (11, 2, 7)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids, position_ids=positions, use_cache=use_cache).logits
    alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    assert_close(packed, alone, **TOLERANCE)


@torch.no_grad()
def test_input_in_pieces_through_the_cache_gives_what_it_gives_at_once(model, io):
    ids = io["input_ids"][1:]
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split(7, dim=1)]
    assert len(pieces) == 3
    assert_close(torch.cat(pieces, dim=1), model(ids).logits, **TOLERANCE)
    assert cache.get_seq_length() == ids.shape[1]


@torch.no_grad()
def test_embeddings_in_the_place_of_ids_give_the_same_bits(model, io):
    embeddings = model.get_input_embeddings()(io["prompt_ids"])
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(io["prompt_ids"]).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    "implementation",
    ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)],  # it compiles
)
def test_attention_implementations_agree_on_a_padded_and_a_whole_row(implementation):
    sdpa, other = small_model(), small_model()
    assert sdpa.config._attn_implementation == "sdpa"
    other.set_attn_implementation(implementation)
    assert other.config._attn_implementation == implementation
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    expected, got = (m(ids, attention_mask=mask, use_cache=False).logits for m in (sdpa, other))
    assert_close(got[mask.bool()], expected[mask.bool()], **TOLERANCE)


def test_gradient_checkpointing_leaves_loss_and_gradients_as_they_are():
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    plain, saving = small_model().train(), small_model().train()
    saving.gradient_checkpointing_enable()
    assert saving.model.layers[0].gradient_checkpointing
    losses = [m(ids, labels=ids, use_cache=False).loss for m in (plain, saving)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), saving.named_parameters()):
        assert one.grad.abs().max() > 0, name
        assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-7)


# ---- what goes in and comes out


@torch.no_grad()
def test_hidden_states_attentions_and_cache_come_when_asked_for():
    model = small_model()
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    out = model(ids, output_hidden_states=True, output_attentions=True, use_cache=True)
    assert [tuple(states.shape) for states in out.hidden_states] == [(2, 9, 32)] * 3
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 4, 9, 9)] * 2
    assert_close(out.attentions[0].sum(-1), torch.ones(2, 4, 9))
    assert_close(model.output(out.hidden_states[-1]), out.logits)  # the last is after the final norm
    assert [tuple(layer.keys.shape) for layer in out.past_key_values.layers] == [(2, 2, 9, 8)] * 2
    plain = model(ids, use_cache=False)
    assert (plain.hidden_states, plain.attentions, plain.past_key_values, plain.loss) == (None,) * 4


@torch.no_grad()
def test_tuple_holds_the_same_as_the_named_outputs():
    model = small_model()
    ids = torch.arange(9)[None]
    named = model(ids, labels=ids, use_cache=False, output_hidden_states=True)
    loss, logits, states = model(
        ids, labels=ids, use_cache=False, output_hidden_states=True, return_dict=False
    )
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    assert len(states) == 3
    assert torch.equal(model.model(ids, return_dict=False)[0], named.hidden_states[-1])


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 5])])
def test_logits_are_computed_for_the_places_to_keep_alone(keep):
    model = small_model()
    ids = torch.arange(9)[None]
    places = keep if torch.is_tensor(keep) else slice(-keep, None)
    assert_close(model(ids, logits_to_keep=keep).logits, model(ids).logits[:, places])


@torch.no_grad()
def test_loss_is_the_mean_over_the_tokens_that_count_or_over_a_number_that_is_given():
    model = small_model()
    ids = torch.arange(9)[None]
    labels = ids.masked_fill(ids % 3 == 0, -100)
    out = model(ids, labels=labels)
    losses = torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:], reduction="none")
    assert_close(out.loss, losses.sum() / 6)
    assert_close(model(ids, labels=labels, num_items_in_batch=12).loss, losses.sum() / 12)


@pytest.mark.parametrize("inputs", [{}, {"input_ids": 1, "inputs_embeds": 1}], ids=["neither", "both"])
def test_ids_and_embeddings_exclude_each_other(inputs):
    model = small_model()
    values = {"input_ids": torch.arange(9)[None], "inputs_embeds": torch.zeros(1, 9, 32)}
    for module in (model, model.model):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            module(**{name: values[name] for name in inputs})


@torch.no_grad()
def test_every_bias_and_the_tied_head_take_part():
    model = small_model(bias=True, tie_word_embeddings=True)
    assert model.output.weight is model.model.tok_embeddings.weight
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 2  # wqkv and wo in both layers: the feed-forward never has any, as released
    ids = torch.arange(9)[None]
    expected = model(ids).logits
    for name in biases:
        bias = model.get_parameter(name)
        kept = bias.clone()
        bias.zero_()
        assert not torch.equal(model(ids).logits, expected), name
        bias.copy_(kept)


@pytest.mark.parametrize("rope", [{"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, {"rope_type": []}])
def test_an_unknown_rope_type_set_on_a_finished_configuration_is_an_error(rope):
    model = small_model()
    model.config.rope_parameters = rope
    with pytest.raises(ValueError, match="rope_type is .*: expected one of 'default', 'linear', 'dynamic'"):
        model(torch.arange(9)[None])


def test_body_alone_has_the_hidden_states_of_the_whole():
    whole = small_model()
    body = InternLM2Model(whole.config).eval()
    body.load_state_dict(whole.model.state_dict())
    ids = torch.arange(9)[None]
    assert torch.equal(whole.output(body(ids).last_hidden_state), whole(ids).logits)
