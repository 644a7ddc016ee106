"""Parameters of a released PVC whose names are not known: under invented naming schemes whose names carry the
meaning all are matched, at sizes where shapes coincide too; all that leaves a doubt is refused by name, and a
key map settles it.
"""

import json
import random
import re
from collections import Counter

import pytest
from builders import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from naming_schemes import (
    COINCIDING,
    LAYER,
    LETTERS,
    OUR_LAYER,
    OURS_IN_LAYER,
    PLAIN,
    SCHEMES,
    SIZES,
    our_shapes,
    released,
    released_name,
    scheme,
    shapes_of,
)

from pvc.configuration_pvc import PVCConfig
from pvc.conversion.matching import UnmatchedParameters, internvl_name, match_parameters, read_key_map


def found(source, target, key_map=None) -> dict[str, str]:
    return {match.source: match.target for match in match_parameters(source, target, key_map)}


def renamed(source: dict[str, tuple[int, ...]], *renamings: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes under names in which parts are replaced, all at once."""
    new = dict(renamings)
    parts = re.compile("|".join(map(re.escape, new)))
    return {parts.sub(lambda part: new[part[0]], name): shape for name, shape in source.items()}


def refusal(source, target, key_map=None) -> UnmatchedParameters:
    with pytest.raises(UnmatchedParameters) as caught:
        match_parameters(source, target, key_map)
    return caught.value


def assert_named(error: UnmatchedParameters, source, *parts: str):
    """The error is about those names of the checkpoint that have one of the parts, and says their shapes."""
    expected = [name for name in source if any(part in f"{name}." for part in parts)]
    assert expected and sorted(error.sources) == sorted(expected)
    lines = str(error).splitlines()
    for name in expected:
        number = re.search(r"layers\.(\d+)|$", name)[1]
        alike = re.escape(name).replace(f"layers\\.{number}", r"layers\.\d+", 1)
        shape = re.escape(str(source[name]))
        patterns = (
            rf" +{re.escape(name)} {shape}.*",
            rf" +{alike} {shape}, and in layers [\d, ]*\b{number}\b.*",
        )
        assert any(re.fullmatch(pattern, line) for pattern in patterns for line in lines), name
    assert "--key-map" in str(error)


# ---- names that carry the meaning


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SCHEMES)
def test_names_that_carry_the_meaning_are_all_matched(name, size):
    source, target, truth = released(SCHEMES[name], size)
    assert found(source, target) == truth


def test_matches_keep_the_order_of_the_checkpoint_and_say_why():
    source, target, _ = released(SCHEMES["scale and shift"])
    matches = match_parameters(source, target)
    assert [match.source for match in matches] == list(source)
    reasons = {match.target: match.reason for match in matches}
    in_layer = f"{OUR_LAYER}3.temporal_"
    assert reasons[f"{in_layer}norm.gamma.2.bias"] == "gamma: its name says 'scale'"
    assert reasons[f"{in_layer}attn.qkv.weight"] == "qkv: its name says 'qkv'"
    assert reasons[f"{in_layer}gate"] == "gate: a vector, and its name says 'alpha'"
    assert (
        "mlp" in reasons["model.projector.mlp.0.weight"]
        and "shape" in reasons["model.projector.mlp.0.weight"]
    )
    assert reasons["lm_head.weight"] == "InternVL's name"


def test_letters_that_shapes_settle_are_matched():
    """The one Linear from the time embedding's width, what stands beside it, and the projector's MLP."""
    of_layer = {"time first": "t_0", "time second": "t_2", "out": "t_proj", "qkv": "t_a"}
    of_projector = {"mlp first": "compressor.reduce", "mlp second": "compressor.map"}
    for names in (of_projector, dict(zip(of_projector, reversed(of_projector.values())))):
        source, target, truth = released(with_names(of_layer, names))
        assert found(source, target) == truth


def test_what_is_matched_does_not_depend_on_the_order_of_the_names():
    for seed in range(10):
        source, target, truth = released(SCHEMES["flat"], "C = 256", seed)
        assert found(source, target) == truth


@pytest.mark.parametrize(
    "config",
    [
        PVCConfig(),  # the released size
        tiny_config(vision_config={"temporal_condition": "none"}),
        tiny_config(adaptive_compression=False),
        tiny_config(adaptive_compression=False, vision_config={"num_temporal_layers": 0}),
    ],
    ids=["8B", "no condition", "no adaptive compression", "InternVL2"],
)
def test_models_with_more_or_fewer_new_parameters_are_matched(config):
    target = shapes_of(config)
    truth = {released_name(name, *PLAIN): name for name in target}
    assert found({name: target[truth[name]] for name in truth}, target) == truth


PAIRS = [
    "0 2",
    "0 1",
    "1 3",
    "fc1 fc2",
    "linear_1 linear_2",
    "in_layer out_layer",
    "layers.0 layers.2",
    "up down",
    "9 10",
]
FLAT_PAIRS = ["_0 _2", "_fc1 _fc2", "_in _out"]


@st.composite
def composed_schemes(draw):
    """Any mixture of words that say what a module is."""

    def pick(*choices):
        return draw(st.sampled_from(choices))

    attention = pick(
        "temporal_attn.", "attn_t.", "time_attn.", "tmha_", "temporal.self_attention.", "TemporalMHA."
    )
    norm = pick(
        "temporal_norm.", "norm3.", "adaln.", "time_norm.", "AdaLN_t.", "temporal.ada_norm_", "te_norm."
    )
    embed = pick("", norm)
    numbers = pick(*PAIRS, *FLAT_PAIRS)
    of_layer = scheme(
        numbers,
        qkv=attention + pick("qkv", "to_qkv", "in_proj", "Wqkv", "qkv_proj"),
        out=attention + pick("proj", "out_proj", "to_out.0", "o", "dense", "outProj"),
        time=embed
        + pick("time_embed", "t_embedder.mlp", "timestep_embedder", "temb", "te_mlp", "timeEmbedding"),
        gamma=norm
        + pick("gamma", "scale", "gamma_mlp", "to_scale", "modulation_gamma", "weight_net", "mlpGamma"),
        beta=norm + pick("beta", "shift", "beta_mlp", "to_shift", "modulation_beta", "bias_net", "mlpBeta"),
        gate=pick("alpha", "gate_t", "temporal_gate", "time_gate", "ls3", "ls_t.gamma", "temporal_scale"),
    )
    holder = pick("mlp1.0.", "mlp1.norm.", "compressor.adaln.", "adaptive_norm.", "projector.norm_", "norm.")
    projector = scheme(
        numbers,
        pick(
            "mlp1.1 mlp1.3",
            "mlp1.fc1 mlp1.fc2",
            "compressor.mlp.0 compressor.mlp.2",
            "proj.linear_1 proj.linear_2",
        ),
        time=pick("", holder) + pick("time_embed", "t_embedder.mlp", "timestep_embedder", "temb_mlp"),
        gamma=holder + pick("gamma", "scale", "gamma_mlp"),
        beta=holder + pick("beta", "shift", "beta_mlp"),
    )
    return of_layer, projector


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(schemes=composed_schemes(), size=st.sampled_from(COINCIDING), seed=st.integers(0, 9))
def test_any_mixture_of_such_words_is_matched(schemes, size, seed):
    source, target, truth = released(schemes, size, seed)
    assert found(source, target) == truth


# ---- names that do not


def with_names(of_layer: dict[str, str] | None = None, of_projector: dict[str, str] | None = None):
    """The plain schemes, some modules called otherwise."""
    return PLAIN[0] | (of_layer or {}), PLAIN[1] | (of_projector or {})


def mlps(numbers: str = "0 2", **containers: str) -> dict[str, str]:
    """Names of MLPs alone, as `scheme` has them."""
    return {key: name for key, name in scheme(numbers, **containers).items() if key.split()[0] in containers}


NO_COMMON_NAME = {
    "time first": "1.l",
    "time second": "m",
    "gamma first": "2.n",
    "gamma second": "p.n",
}
DOUBTFUL = {  # what a scheme leaves in doubt: the scheme, and parts of the names that are refused
    "single letters": (LETTERS, ["y.a.", "y.b.", "mlp1.0.a.", "mlp1.0.b."]),
    "letters of MLPs that have layers": (
        with_names(mlps("layers.0 layers.2", gamma="norm_t.a", beta="norm_t.b")),
        ["norm_t.a.", "norm_t.b."],
    ),
    "letters in the projector alone": (
        with_names(None, mlps(gamma="mlp1.norm.a", beta="mlp1.norm.b")),
        ["mlp1.norm.a.", "mlp1.norm.b."],
    ),
    "one letter is not found by elimination": (with_names(mlps(beta="norm_t.b")), ["norm_t.b."]),
    "a letter for the gate": (with_names({"gate": "a"}), [".a."]),
    "roles nested in each other's": (
        with_names(mlps(gamma="norm_t.shift.gamma", beta="norm_t.scale.beta")),
        ["shift.gamma", "scale.beta"],
    ),
    "both words in one name": (with_names(mlps(gamma="norm_t.scale_shift_mlp")), ["scale_shift"]),
    "two candidates and none for beta": (
        with_names(mlps(gamma="norm_t.gamma", beta="norm_t.scale")),
        ["norm_t.gamma.", "norm_t.scale."],
    ),
    "scale on what has the shape of qkv": (
        with_names({"qkv": "attn_temporal.scale"}),
        ["attn_temporal.scale"],
    ),
    "qkv on what has not": (with_names({"out": "attn_temporal.qkv_2"}), ["attn_temporal.qkv_2"]),
    "gamma on what has the shape of the time embedding": (
        with_names(mlps(time="norm_t.embed_gamma")),
        ["embed_gamma", "norm_t.gamma_mlp"],
    ),
    "an embedding of gamma": (with_names(mlps(gamma="norm_t.gamma_embed")), ["gamma_embed"]),
    "half a word": (with_names(mlps(gamma="norm_t.timescale")), ["timescale"]),
    "no order in an MLP": (with_names(mlps("l m", gamma="norm_t.gamma")), ["norm_t.gamma."]),
    "numbers against shapes": (with_names(mlps("2 0", time="norm_t.time_embed")), ["time_embed"]),
    "numbers against shapes in the projector's MLP": (
        with_names(None, mlps("3 1", mlp="mlp1")),
        ["mlp1.1.", "mlp1.3."],
    ),
    "an MLP of two that are no siblings": (
        with_names({"time first": "norm_t.time_embed.0", "time second": "norm_t.second_embed"}),
        ["time_embed", "second_embed"],
    ),
    "numbers of names that share nothing": (with_names(NO_COMMON_NAME), [".1.l.", ".m.", ".2.n.", ".p.n."]),
    "six in a row": (
        with_names({key: f"norm_t.W{i + 1}" for i, key in enumerate(list(OURS_IN_LAYER.values())[2:8])}),
        ["norm_t.W"],
    ),
    "a word for the gate that a norm's affine has too": (
        with_names({"gate": "norm_t.scale"}),
        ["norm_t.scale"],
    ),
    "a gate that shifts": (with_names({"gate": "gate_shift"}), ["gate_shift"]),
    "a scale of time": (with_names({"gate": "time_scale"}), ["time_scale"]),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_doubt_is_refused_by_name_and_settled_by_hand(name):
    schemes, parts = DOUBTFUL[name]
    source, target, truth = released(schemes)
    error = refusal(source, target)
    assert_named(error, source, *parts)
    by_hand = {key: truth[key] for key in error.sources}
    assert found(source, target, by_hand) == truth


def test_the_refusal_lists_candidates_and_layers():
    of_layer = {"gate": "a"} | mlps(beta="norm_t.b")
    source, target, _ = released(with_names(of_layer, mlps(beta="mlp1.norm.b")))
    source["language_model.norm.weight"] = source.pop("language_model.model.norm.weight")
    text = str(refusal(source, target))
    beta = f"{OUR_LAYER}*.temporal_norm.beta"
    assert f"could be {OUR_LAYER}*.temporal_gate\n" in text
    assert f"could be {beta}.0, {beta}.2\n" in text
    assert "could be model.projector.norm.beta.0, model.projector.norm.beta.2\n" in text
    assert text.count("could be") == 3 and "taken for" not in text
    assert f"{LAYER}2.norm_t.b.0.weight (32, 32), and in layers 3\n" in text
    assert str(refusal(dict(sorted(source.items())), target)) == text  # whatever the order


def test_separate_q_k_and_v_are_not_put_together():
    source, target, _ = released()
    for key in [key for key in source if ".attn_temporal.qkv." in key]:
        shape = source.pop(key)
        for part in ("q_proj", "k_proj", "v_proj"):
            source[key.replace("qkv", part)] = (32, *shape[1:])
    error = refusal(source, target)
    assert_named(error, source, "attn_temporal.q_", "attn_temporal.k_", "attn_temporal.v_")
    assert "q, k and v are one Linear" in str(error)
    assert {name for name in target if "temporal_attn.qkv" in name} == set(error.targets)


def test_the_affine_of_an_inner_layer_norm_is_left_over_with_a_hint():
    source, target, _ = released()
    source |= {f"{LAYER}{layer}.norm_t.norm.{leaf}": (32,) for layer in (2, 3) for leaf in ("weight", "bias")}
    source |= {f"mlp1.norm.ln.{leaf}": (512,) for leaf in ("weight", "bias")}
    error = refusal(source, target)
    assert_named(error, source, "norm_t.norm.", "mlp1.norm.ln.")
    assert "affine" in str(error) and not error.targets


def test_an_affine_is_no_gate_even_where_there_is_no_other_vector():
    source, target, _ = released()
    gates = {key: key.replace("gate_t", "norm_t.weight") for key in source if "gate_t" in key}
    source = {gates.get(key, key): shape for key, shape in source.items()}
    assert_named(refusal(source, target), source, "norm_t.weight")


def test_two_gates_are_refused():
    source, target, _ = released()
    source |= {f"{LAYER}{layer}.alpha": (32,) for layer in (2, 3)}
    assert_named(refusal(source, target), source, "alpha", "gate_t")


def test_a_gate_with_a_bias_is_refused():
    source, target, _ = released()
    source |= {f"{LAYER}{layer}.gate_t.bias": (32,) for layer in (2, 3)}
    assert_named(refusal(source, target), source, "gate_t")


def test_a_gate_of_another_shape_is_refused():
    source, target, _ = released()
    source |= {f"{LAYER}{layer}.gate_t": (1, 1, 32) for layer in (2, 3)}
    assert_named(refusal(source, target), source, "gate_t")


def test_a_linear_without_its_bias_is_refused_by_the_name_of_the_bias():
    source, target, truth = released()
    gone = [key for key in source if "gamma_mlp.2.bias" in key]
    error = refusal({key: source[key] for key in source if key not in gone}, target)
    assert not error.sources and set(error.targets) == {truth[key] for key in gone}
    assert "norm_t.gamma_mlp.2.weight would fit, but it has no bias" in str(error)


def test_layers_must_call_a_role_the_same():
    source, target, truth = released()
    other = {key: key.replace("gamma_mlp", "scale_mlp") for key in source if "layers.3." in key}
    mixed = {other.get(key, key): shape for key, shape in source.items()}
    error = refusal(mixed, target)
    assert_named(error, mixed, "norm_t.gamma_mlp", "norm_t.scale_mlp")
    assert "layers differ" in str(error)
    by_hand = {"vision_model.encoder.layers.3.norm_t.scale_mlp.": f"{OUR_LAYER}3.temporal_norm.gamma."}
    assert found(mixed, target, by_hand) == {other.get(key, key): ours for key, ours in truth.items()}


def test_a_name_has_one_role_in_all_layers():
    """Numbers that lack a 0 in one layer alone: 2 is the second Linear there, the first elsewhere."""
    of_layer = with_names(mlps("2 4", gamma="norm_t.gamma"))
    source, target, _ = released(of_layer)
    shift = {"gamma.2.": "gamma.0.", "gamma.4.": "gamma.2."}
    source = {
        re.sub(r"gamma\.\d\.", lambda part: shift[part[0]], key) if "layers.3." in key else key: shape
        for key, shape in source.items()
    }
    assert_named(refusal(source, target), source, "norm_t.gamma.")


@pytest.mark.parametrize(
    "extra",
    [
        f"{LAYER}3.norm_t.extra.weight",
        f"{LAYER}1.attn_temporal.qkv.weight",  # no temporal layer of ours
        "vision_model.head.weight",
        "language_model.model.layers.0.attention.extra.weight",
        "mlp1.5.weight",
        "extra",
    ],
)
@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (48, 48), (512, 512), (32,)])
def test_what_is_left_over_is_refused_and_nothing_else_changes(extra, shape):
    source, target, truth = released()
    error = refusal(source | {extra: shape}, target)
    assert extra in error.sources and f"{extra} {shape}" in str(error)
    assert {truth.get(key) for key in error.sources} - {None} == set(error.targets)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_missing_is_refused(seed):
    source, target, truth = released()
    gone = random.Random(seed).choice(list(source))
    error = refusal({key: source[key] for key in source if key != gone}, target)
    assert truth[gone] in error.targets and truth[gone] in str(error)


def test_a_shape_that_does_not_fit_is_refused_whatever_the_name():
    source, target, truth = released()
    for name in (
        "vision_model.encoder.layers.0.attn.qkv.weight",
        "language_model.output.weight",
        "mlp1.3.bias",
    ):
        error = refusal(source | {name: (7, 7)}, target)
        assert name in error.sources and truth[name] in error.targets
        assert f"{name} (7, 7)" in str(error) and str(target[truth[name]]) in str(error)


def test_numbers_of_another_mlp_than_internvls_are_not_read_as_its():
    """Where all shapes of the projector coincide, `mlp1.1` may be the second Linear."""
    schemes = with_names(None, mlps("0 1", mlp="mlp1"))
    source, target, truth = released(schemes, "D = H")
    assert truth["mlp1.1.weight"] == "model.projector.mlp.2.weight"
    assert found(source, target) == truth


# ---- the key map


BY_HAND = {  # settles LETTERS
    "vision_model.encoder.layers.*.y.a.": "model.vision_model.encoder.layers.*.temporal_norm.gamma.",
    "vision_model.encoder.layers.*.y.b.": "model.vision_model.encoder.layers.*.temporal_norm.beta.",
    "mlp1.0.a.": "model.projector.norm.gamma.",
    "mlp1.0.b.0.": "model.projector.norm.beta.0.",
    "mlp1.0.b.2.weight": "model.projector.norm.beta.2.weight",  # its bias follows
}


@pytest.mark.parametrize("size", COINCIDING[:2])
def test_prefixes_and_numbers_of_the_key_map_settle_letters(size):
    source, target, truth = released(LETTERS, size)
    matches = match_parameters(source, target, BY_HAND)
    assert {match.source: match.target for match in matches} == truth
    reasons = {match.source: match.reason for match in matches}
    assert reasons["mlp1.0.a.2.bias"] == "key map: mlp1.0.a."
    assert reasons["mlp1.0.b.2.bias"] == "the bias of mlp1.0.b.2.weight"
    without = {entry: ours for entry, ours in BY_HAND.items() if "y.b" not in entry}
    assert_named(refusal(source, target, without), source, "y.b.")


def test_the_key_map_outranks_names():
    source, target, truth = released()
    swapped = {
        "vision_model.encoder.layers.*.ls1": "model.vision_model.encoder.layers.*.ls2",
        "vision_model.encoder.layers.*.ls2": "model.vision_model.encoder.layers.*.ls1",
        f"{LAYER}*.norm_t.gamma_mlp.": f"{OUR_LAYER}*.temporal_norm.beta.",
        f"{LAYER}*.norm_t.beta_mlp.": f"{OUR_LAYER}*.temporal_norm.gamma.",
    }
    exchange = {"ls1": "ls2", "ls2": "ls1", "norm.gamma": "norm.beta", "norm.beta": "norm.gamma"}

    def exchanged(ours: str) -> str:
        parts = re.compile("ls1|ls2|(?<=temporal_)norm.gamma|(?<=temporal_)norm.beta")
        return parts.sub(lambda part: exchange[part[0]], ours)

    assert found(source, target, swapped) == {key: exchanged(ours) for key, ours in truth.items()}


def test_what_is_settled_by_hand_is_no_candidate_for_words():
    """Two of "proj" and one place, where shapes coincide: the place is taken by hand, and "time" counts."""
    schemes = with_names(mlps(time="time_proj"))
    source, target, truth = released(schemes, "C = 256")
    assert_named(refusal(source, target), source, "time_proj", "attn_temporal.proj")
    by_hand = {f"{LAYER}*.attn_temporal.proj.": f"{OUR_LAYER}*.temporal_attn.proj."}
    assert found(source, target, by_hand) == truth


def test_the_longer_entry_goes_first():
    source, target, truth = released(LETTERS)
    general = {"mlp1.0.": "model.projector.norm.", "mlp1.0.t.": "model.projector.norm.time_embed."}
    general |= {"mlp1.0.b.2.bias": "model.projector.norm.beta.2.bias"}
    assert found(source, target, general | BY_HAND) == truth
    whole = {f"mlp1.0.a.{n}.weight": f"model.projector.norm.gamma.{2 - n}.weight" for n in (0, 2)}
    assert (
        found(source, target, BY_HAND | whole)["mlp1.0.a.0.weight"] == "model.projector.norm.gamma.2.weight"
    )


def test_what_the_key_map_settles_is_not_matched_again_by_its_name():
    source, target, _ = released()
    del source["vision_model.embeddings.patch_embedding.bias"]
    by_hand = {f"{LAYER}0.ls1": "model.vision_model.embeddings.patch_embedding.bias"}
    error = refusal(source, target, by_hand)
    assert not error.sources and error.targets == [f"{OUR_LAYER}0.ls1"]


@pytest.mark.parametrize(
    ("entry", "ours", "words"),
    [
        ("mlp1.0.z.", "model.projector.norm.gamma.", ["mlp1.0.z."]),
        ("mlp1.0.a", "model.projector.norm.gamma", ["no parameter", "mlp1.0.a"]),
        ("mlp1.0.a.0.weight", "model.projector.gamma.0.weight", ["mlp1.0.a.0.weight", "no such parameter"]),
        ("mlp1.0.a.0.weight", "model.projector.mlp.0.weight", ["(512, 512)", "(48, 512)"]),
        ("mlp1.0.*.0.weight", "model.projector.norm.gamma.0.weight", ["as many"]),
        ("mlp1.0.a.", "model.projector.norm.gamma", ["prefixes", "mlp1.0.a."]),
        ("mlp1.0.t.0.weight", "model.projector.norm.time_embed.2.weight", ["(512, 16)", "(512, 512)"]),
    ],
)
def test_an_entry_that_does_not_fit_is_an_error_that_names_it(entry, ours, words):
    source, target, _ = released(LETTERS)
    with pytest.raises(ValueError) as caught:
        match_parameters(source, target, {entry: ours})
    assert all(word in str(caught.value) for word in words)


def test_two_entries_for_one_of_ours_are_an_error_that_names_both():
    source, target, _ = released(LETTERS)
    twice = {f"mlp1.0.{letter}.0.weight": "model.projector.norm.gamma.0.weight" for letter in "ab"}
    with pytest.raises(ValueError, match="(?s)mlp1.0.[ab].0.weight .*and so is mlp1.0.[ab].0.weight"):
        match_parameters(source, target, twice)


def test_a_key_map_is_read_from_json(tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps(BY_HAND))
    assert read_key_map(file) == BY_HAND


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b'["a", "b"]', "not a JSON object"),
        (b'"a"', "not a JSON object"),
        (b'{"a": 1}', "not a JSON object of strings"),
        (b'{"a": {"b": "c"}}', "not a JSON object of strings"),
        (b'{"a": "x", "a": "y"}', "a more than once among its sources"),
        (b'{"a": "x", "b": "x"}', "x more than once among its targets"),
        (b'{"a.": "x"}', "prefixes"),
        (b'{"a.*.b": "x"}', "as many"),
    ],
)
def test_what_is_no_key_map_is_an_error_that_says_so(content, words, tmp_path):
    file = tmp_path / "map.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_key_map(file)


def test_the_table_of_internvls_names():
    official = released()[2]
    for name, ours in official.items():
        new = "temporal" in ours or "projector.norm" in ours
        assert internvl_name(name) == (None if new else ours)
    assert internvl_name("mlp1.0.weight") == "model.projector.norm.weight"
    assert internvl_name("language_model.lm_head.weight") == "lm_head.weight"
    # never a name of ours for a parameter that InternVL does not have
    for name in (
        "temporal_attn.qkv.weight",
        "temporal_norm.gamma.2.weight",
        "temporal_gate",
        "attn.extra.weight",
    ):
        assert internvl_name(f"{LAYER}3.{name}") is None


# ---- any names


NEUTRAL = [
    "a",
    "b",
    "x",
    "foo",
    "block",
    "net",
    "h",
    "timescale",
    "temporal",
    "W",
    "mlp",
    "time",
    "proj",
    "out",
    "fc",
]
RIGHT = {
    "qkv": ["qkv"],
    "out": ["proj"],
    "time": ["embed", "te"],
    "gamma": ["gamma", "scale"],
    "beta": ["beta", "shift"],
    "mlp": ["mlp"],
    "gate": ["alpha", "gate"],
}


def doubtful_schemes(chance: random.Random):
    """Names that say the right thing mostly, sometimes nothing, and sometimes another thing too."""

    def name(role: str) -> str:
        words = chance.choices(NEUTRAL, k=1)
        if chance.random() < 0.95:
            words.append(chance.choice(RIGHT[role]))
            if chance.random() < 0.05:
                words.append(chance.choice(sum(RIGHT.values(), [])))
        chance.shuffle(words)
        return "".join(word + chance.choice("._") for word in words)[:-1]

    def scope(*mlps: str) -> dict[str, str]:
        names = {role: name(role) for role in ("qkv", "out", "gate")}
        for role in mlps:
            numbers = chance.choice(["0 2", "1 3", "fc1 fc2", "_in _out", "l m"])
            names |= {key: part for key, part in scheme(numbers, **{role: name(role)}).items() if role in key}
        return names

    return scope("time", "gamma", "beta"), scope("time", "gamma", "beta", "mlp")


@pytest.mark.parametrize("size", ["different", "C = 256", "D = H = 256"])
def test_what_is_in_doubt_is_right_or_refused(size):
    outcomes = Counter()
    for seed in range(300):
        schemes = doubtful_schemes(random.Random(seed))
        if len({released_name(name, *schemes) for name in our_shapes(size)}) < len(our_shapes(size)):
            continue  # two of one name
        source, target, truth = released(schemes, size)
        try:
            assert found(source, target) == truth, schemes
            outcomes["right"] += 1
        except UnmatchedParameters as error:
            assert set(error.sources) <= set(source) and set(error.targets) <= set(target)
            outcomes["refused"] += 1
    assert min(outcomes["right"], outcomes["refused"]) > 20  # it tests both
