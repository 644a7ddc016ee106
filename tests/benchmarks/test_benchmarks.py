"""What the figures rest on: counts equal closed forms and must not grow, meters measure what they say, the
command runs. Times themselves are asserted nowhere: machines are noisy.
"""

import json
import re
import sys
import time
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from builders import move_off_start, tiny_config, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from pvc.benchmarks import counting, first_token, report, suite
from pvc.benchmarks.counting import Cost, count_first_token, counted, grouped, memory_needs
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.peers import benchmark_models
from pvc.benchmarks.presets import PRESETS, Workload
from pvc.cli import app
from pvc.modeling_pvc import PVCModel
from pvc.reporting.plots import COLOURS, line_plot

pytestmark = pytest.mark.slow  # one lane of CI is enough for figures

CPU = DeviceTimer(torch.device("cpu"), torch.float32)
ONE_IMAGE = suite.ONE_IMAGE


def spec(preset: str, name: str):
    return next(each for each in benchmark_models(PRESETS[preset]) if each.name.startswith(name))


@pytest.fixture(scope="module")
def costs_8b() -> dict[str, dict[str, Cost]]:
    """Of one tile of 448 pixels and 2,048 tokens of text, by model and part."""
    return {
        each.name: count_first_token(each, ONE_IMAGE)
        for each in benchmark_models(PRESETS["8B"])
        if counting.has_same_vit(each)
    }


def flops(costs: dict[str, Cost], prefix: str = "") -> int:
    return sum(cost.flops for part, cost in costs.items() if part.startswith(prefix))


# ---- counts


def multiply_adds(repeats: int, reuse: bool, temporal: bool, text_tokens: int) -> dict[str, int]:
    """Closed form of one tile through the 8B, from the equations: InternVL2 where not `temporal`."""
    width, patches, layers, temporal_layers, hidden = 1024, 1024, 24, 8 * temporal, 4096
    tokens = patches + 1
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width  # qkv and proj; scores and sums
    mlp = 8 * tokens * width**2
    early = 1 if reuse else repeats  # rows up to the attention of the first temporal layer
    first = layers - temporal_layers
    rows = early * (first * (attention + mlp) + temporal * attention)
    rows += repeats * (temporal_layers * (attention + mlp) - temporal * attention)
    stacked, visual = (16 * width, 64) if temporal else (4 * width, 256)
    te = lambda out: 256 * out + out**2  # noqa: E731
    norm = repeats * (tokens * 4 * width**2 + te(width))
    saved = (repeats - 1) * tokens - repeats - 1  # of gamma's and beta's first products in the first layer
    first_norm = norm - (2 * saved * width**2 if reuse else 0)
    pairs = repeats * (repeats + 1) // 2  # of moments, causal
    length, key_values = repeats * visual + text_tokens, 1024
    llm_layer = hidden * (hidden + 2 * key_values) + hidden**2 + 3 * hidden * 14336
    return {
        "ViT: spatial": rows + early * patches * 3 * 14**2 * width,
        "ViT: temporal attention": temporal_layers * tokens * (repeats * 4 * width**2 + 2 * pairs * width),
        "ViT: AdaLN": (temporal_layers - 1) * norm + first_norm if temporal else 0,
        "projector: norm": temporal * repeats * (visual * 4 * stacked**2 + te(stacked)),
        "projector: MLP": repeats * visual * (stacked * hidden + hidden**2),
        "LLM": 32 * (length * llm_layer + 2 * hidden * length * (length + 1) // 2),
        "head": hidden * 92553,
    }


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("PVC", {"repeats": 4, "reuse": True, "temporal": True}),
        ("PVC, four full passes", {"repeats": 4, "reuse": False, "temporal": True}),
        ("InternVL2, this code", {"repeats": 1, "reuse": True, "temporal": False}),
    ],
)
def test_counted_flops_are_those_of_the_equations(name, how, costs_8b):
    expected = multiply_adds(**how, text_tokens=2048)
    got = {part: cost.flops for part, cost in costs_8b[name].items() if cost.flops}
    assert got == {part: 2 * number for part, number in expected.items() if number}


def test_an_image_costs_the_8b_little_more_than_internvl2(costs_8b):
    assert flops(costs_8b["PVC"]) / flops(costs_8b["InternVL2, this code"]) <= 1.0525


@pytest.mark.parametrize(
    ("part", "tera_flops"),
    [
        ("ViT: spatial", 1.4073),
        ("ViT: temporal attention", 0.2755),
        ("ViT: AdaLN", 0.2624),
        ("projector: norm", 0.5520),
        ("projector: MLP", 0.0430),
        ("LLM", 33.5529),
        ("", 36.0937),
    ],
)
def test_no_part_of_an_image_costs_more_than_it_did(part, tera_flops, costs_8b):
    assert 0.99 * tera_flops < flops(costs_8b["PVC"], part) / 1e12 <= tera_flops


def test_four_repeats_cost_the_vit_little_more_than_half_of_four_passes(costs_8b):
    assert flops(costs_8b["PVC"], "ViT") / flops(costs_8b["PVC, four full passes"], "ViT") <= 0.5660


def test_native_internvl_has_the_vit_of_this_code(costs_8b):
    native, own = (flops(costs_8b[name], "ViT") for name in ("InternVL, native", "InternVL2, this code"))
    assert native == own


@pytest.mark.parametrize("workload", [Workload(), Workload(tiles=3), Workload(frames=3)])
@pytest.mark.parametrize("name", ["PVC", "PVC, four full passes", "InternVL2", "InternVL,"])
def test_fake_and_real_tensors_count_alike(name, workload):
    each = spec("tiny", name)
    real = count_first_token(each, workload, each.build("cpu", torch.bfloat16))
    fake = count_first_token(each, workload)
    assert {part: (cost.flops, cost.bytes) for part, cost in fake.items()} == {
        part: (cost.flops, cost.bytes) for part, cost in real.items()
    }


@pytest.mark.parametrize("workload", [Workload(tiles=3), Workload(frames=3)])
def test_qwen_is_counted_where_it_runs(workload):
    each = spec("tiny", "Qwen")
    assert not counting.has_same_vit(each)
    groups = grouped(count_first_token(each, workload, each.build("cpu", torch.float32)))
    assert all(groups[name].flops > 0 for name in ("ViT", "projector", "prefill"))


def test_causal_attention_counts_what_its_mask_leaves():
    q = torch.randn(2, 3, 10, 8)
    for is_causal, pairs in ((False, 100), (True, 55)):
        run = lambda is_causal=is_causal: F.scaled_dot_product_attention(q, q, q, is_causal=is_causal)  # noqa: E731
        assert counted(nn.Identity(), run)["rest"].flops == 2 * 2 * (2 * 3 * pairs * 8)


def test_an_operation_moves_its_inputs_and_results_once_and_a_view_nothing():
    layer, x = nn.Linear(8, 16), torch.randn(4, 8)
    assert counted(layer, lambda: layer(x).view(2, 2, 16).transpose(0, 1))["rest"].bytes == 4 * (
        32 + 128 + 16 + 64
    )
    table = nn.Embedding(1000, 8)
    assert counted(table, lambda: table(torch.tensor([3, 5])))["rest"].bytes == 2 * (2 * 8 * 4)
    assert counted(table, lambda: x.expand(5, 4, 8) + 1)["rest"].bytes == 4 * (32 + 160)


def test_what_runs_in_a_part_within_a_part_is_the_inner_ones():
    model = tiny_model()
    x, rows = torch.randn(1, 17, 32), torch.zeros(1)
    layer = model.model.vision_model.encoder.layers[-1]
    costs = counted(model, lambda: layer.temporal_norm(x, rows))
    assert list(costs) == ["ViT: AdaLN"]
    grid = torch.tensor([[1, 1, 4]])
    assert set(counted(model, lambda: model.get_image_features(torch.randn(1, 3, 56, 56), grid))) >= {
        "ViT: spatial",
        "ViT: temporal attention",
        "projector: norm",
        "projector: MLP",
    }


def test_floor_is_each_operations_slower_resource():
    cost = Cost()
    cost.operations.update({(1000, 10): 2, (0, 300): 3, (50, 10): 1})
    assert cost.lower_bound_s(flops_per_s=100, bytes_per_s=10) == (20, 91)
    assert (cost.flops, cost.bytes) == (2050, 930)


def test_memory_needs_of_the_8b_are_known():
    each = spec("8B", "PVC")
    with FakeTensorMode():
        needs = memory_needs(each.build("cpu", torch.bfloat16), each.preset)
    assert needs.weights == 2 * 9_549_843_456
    assert needs.cache_a_token == 2 * 32 * 8 * 128 * 2
    assert needs.hidden_a_tile == 1025 * 1024 * 2
    embedding = 2 * 92553 * 4096
    assert needs.decode_step(1000) == 2 * 7_737_782_272 - embedding + 1000 * needs.cache_a_token


# ---- what is compared


def test_the_eighth_has_an_eighth_of_each_width_of_the_8b_and_all_else_of_it():
    whole, eighth = (spec(name, "PVC").config for name in ("8B", "8b-eighth"))
    for part, widths in (
        ("vision_config", ("hidden_size", "intermediate_size", "num_attention_heads", "time_embed_dim")),
        ("llm_config", ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")),
    ):
        large, small = (getattr(config, part).to_dict() for config in (whole, eighth))
        assert {name: 8 * small.pop(name) for name in widths} == {name: large.pop(name) for name in widths}
        assert small == large


def test_first_token_over_internvl2s_stands_beside_the_ratio_of_flops(capsys):
    first_token.main(["--preset", "tiny", "--runs", "1", "--only", "image"])
    printed = capsys.readouterr().out
    assert "| image, 13 tiles | 64 |" in printed and "counted FLOPs" in printed


def test_four_full_passes_give_what_re_use_gives():
    """The baseline computes the same: an image's rows stand tile by tile, its own moment by moment."""
    workload = Workload(tiles=3)
    pvc, again = spec("tiny", "PVC"), spec("tiny", "PVC, four")
    model = pvc.build("cpu", torch.float32)
    media, repeated = (each.media(workload, "cpu", torch.float32) for each in (pvc, again))
    repeated["pixel_values"] = media["pixel_values"].repeat(4, 1, 1, 1)
    with torch.no_grad():
        reused = pvc.encode(model, media).unflatten(0, (3, 4))
        computed = again.encode(model, repeated).unflatten(0, (4, 3)).transpose(0, 1)
    torch.testing.assert_close(reused, computed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(reused[:, 0], reused[:, 3], rtol=1e-2)  # time is seen


@pytest.mark.parametrize("workload", [Workload(tiles=3), Workload(frames=4)])
@pytest.mark.parametrize("each", benchmark_models(PRESETS["tiny"]), ids=lambda each: each.name)
def test_models_answer_with_finite_logits(each, workload):
    model = each.build("cpu", torch.float32)
    inputs = each.inputs(workload, "cpu", torch.float32)
    out = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert out.logits[0].isfinite().all() and out.logits[0].std() > 0


def test_no_matrix_stays_at_a_start_of_zero():
    for each in benchmark_models(PRESETS["tiny"]):
        for name, parameter in each.build("cpu", torch.float32).named_parameters():
            assert parameter.count_nonzero() > 0.9 * parameter.numel(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_every_presets_configurations_are_valid(preset):
    assert all(each.config for each in benchmark_models(PRESETS[preset]))


def test_presets_keep_the_published_sizes():
    sizes = {"8B": 9_549_843_456, "2B": 3_655_066_624}
    for preset, size in sizes.items():
        with FakeTensorMode():
            model = spec(preset, "PVC").build("cpu", torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) == size


# ---- meters


def test_peak_memory_is_the_most_that_is_held_at_a_time():
    def run():
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second + 1  # two are held
        return third.sum()

    assert 8000 <= CPU.peak_bytes(run) < 8200


def test_long_video_costs_its_hidden_states_and_one_pass():
    """1,024 frames of 112 pixels at width 32: peak over hidden states, and whole equals passes."""
    frames, width = 1024, 32
    vit = {"hidden_size": width, "num_attention_heads": 1, "intermediate_size": 4 * width, "image_size": 112}
    vit |= {"num_hidden_layers": 2, "num_temporal_layers": 1, "time_embed_dim": 16}
    config = tiny_config(vision_config=vit, force_image_size=112, max_encoder_tiles=32)
    model = move_off_start(PVCModel(config).eval())
    pixels, grid = torch.randn(frames, 3, 112, 112), torch.tensor([[frames, 1, 1]]).repeat(frames, 1)
    outputs = {}

    def encode():
        with torch.no_grad():
            outputs[model.config.max_encoder_tiles] = model.get_image_features(pixels, grid).last_hidden_state

    hidden_states = frames * 65 * width * 4
    assert 1 < CPU.peak_bytes(encode) / hidden_states <= 1.5
    model.config.max_encoder_tiles = None
    encode()
    whole, passes = outputs[None], outputs[32]
    assert (whole - passes).norm() / whole.norm() <= 1e-5


class _Nap(nn.Module):
    """Sleeps, then runs what it has within."""

    def __init__(self, seconds: float, **children: nn.Module):
        super().__init__()
        self.seconds = seconds
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self):
        time.sleep(self.seconds)
        for child in self.children():
            child()


def test_time_is_that_of_the_innermost_part_and_the_rest_is_what_no_part_takes():
    vit = _Nap(0.02, layer=_Nap(0, temporal_norm=_Nap(0.4)))
    model = _Nap(0.04, vision_model=vit, lm_head=_Nap(0.01))
    spent = CPU.seconds_by_part(model, model)
    naps = {"ViT: spatial": 0.02, "ViT: AdaLN": 0.4, "head": 0.01, "rest": 0.04}
    assert spent.keys() == naps.keys() and all(spent[part] >= nap for part, nap in naps.items())
    assert spent["ViT: AdaLN"] > spent["ViT: spatial"]


def test_pairs_are_taken_in_turns_after_one_that_does_not_count():
    calls = []
    times = CPU.interleaved(2, lambda: calls.append("a"), lambda: calls.append("b"))
    assert "".join(calls) in ("abbaab", "baabba") and [len(each) for each in times] == [2, 2]


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_without_a_peak_is_refused(device):
    with pytest.raises(ValueError, match=f"device is '{device}': expected cpu or cuda"):
        DeviceTimer(torch.device(device), torch.float32)


# ---- precision


class _Float32Results(TorchDispatchMode):
    """The largest float32 result of what runs in each class of modules. The statistics that fused norms and
    attention return beside their result are left out.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.running, self.largest = ["inputs"], {}
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, _: self.running.append(type(module).__name__))
            module.register_forward_hook(self._leave)

    def _leave(self, *_):
        self.running.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        result = out[0] if isinstance(out, tuple) else out
        if isinstance(result, torch.Tensor) and result.dtype in (torch.float32, torch.float64):
            name = self.running[-1]
            self.largest[name] = max(self.largest.get(name, 0), result.numel())
        return out


def test_in_bfloat16_only_norms_times_and_rope_are_computed_in_float32():
    model = tiny_model().bfloat16()
    grid, ids = torch.tensor([[3, 1, 1]]).repeat(3, 1), torch.tensor([[1, 120, 120, 120, 5]])
    pixels = torch.randn(3, 3, 56, 56).bfloat16()
    results = _Float32Results(model)
    with torch.no_grad(), results:
        model(input_ids=ids, pixel_values=pixels, clip_grid=grid)
    assert results.largest.pop("LlamaRMSNorm") == 5 * 48
    sinusoids, angles, times = 3 * 16, 5 * 12, 3
    allowed = {"AdaLN": sinusoids, "InternLM2Model": angles}
    too_large = {name: size for name, size in results.largest.items() if size > allowed.get(name, times)}
    assert not too_large


# ---- reports


def test_tables_render_with_three_digits_and_units_in_their_heads():
    rows = [{"model": "a", "n": 12345, "ms": 0.012345}, {"model": "b", "n": 1, "ms": 1234.5, "more": 0.0}]
    assert report.markdown({"command": "pvc bench", "commit": ""}, {"Times": rows}).splitlines() == [
        "command: `pvc bench`  ",
        "",
        "### Times",
        "",
        "| model | n | ms | more |",
        "|---|---:|---:|---:|",
        "| a | 12,345 | 0.0123 |  |",
        "| b | 1 | 1,234 | 0 |",
    ]


def test_a_plot_has_a_line_for_each_model(tmp_path):
    path = tmp_path / "plot.svg"
    line_plot({"a & b": [(1, 2), (3, 4)], "c": [(3, 1), (1, 5)]}, "Cost", path)

    root = ElementTree.parse(path).getroot()
    drawn = [e for e in root.iter() if e.get("clip-path") and "stroke: #" in e.get("style", "")]
    lines = [e for e in drawn if any(f"stroke: {colour}" in e.get("style") for colour in COLOURS[:2])]
    assert len(lines) == 2
    xs = [float(point.split()[0]) for point in re.split("[ML]", lines[1].get("d"))[1:]]
    assert xs == sorted(xs)

    comments = path.read_text()
    assert all(f"<!-- {words} -->" in comments for words in ("a &amp; b", "c", "Cost", "frames"))


def test_the_same_plot_has_the_same_bytes(tmp_path):
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        line_plot({"a": [(1, 2), (3, 4)]}, "Cost", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_without_matplotlib_tables_are_written_and_a_plot_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, said = bench("count", "--preset", "tiny", "--out", str(tmp_path))
    assert code == 0 and "pip install matplotlib" in said
    assert (tmp_path / "count.md").exists()

    code, said = bench("plot", "--out", str(tmp_path))
    assert code == 1 and "pip install matplotlib" in said


# ---- the command


def bench(*arguments) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", *arguments])
    return done.exit_code, done.output


def results_of(action: str, folder, *options) -> dict:
    """The tables of a run of the command on the tiny preset, whose files are there and agree."""
    code, said = bench(action, "--preset", "tiny", "--out", str(folder), *options)
    assert code == 0, said
    results = json.loads((folder / f"{action}.json").read_text())
    assert results["about"]["preset"] == "tiny" and (folder / f"{action}.md").read_text() in said
    assert len(list(ElementTree.parse(folder / f"{action}.svg").iter())) > 20
    return results["tables"]


def test_bench_counts_a_preset(tmp_path):
    parts, videos, memory = results_of("count", tmp_path).values()
    names = ["PVC", "PVC, four full passes", "InternVL2, this code", "InternVL, native"]
    assert [row["model"] for row in parts] == names
    assert {(row["model"], row["frames"]) for row in videos} == {
        (name, frames) for name in names for frames in (2, 4) if "passes" not in name
    }
    for row in videos:
        assert row["encoding TFLOP"] + row["prefill TFLOP"] == pytest.approx(row["TFLOP"])
    assert all(0 < row["a step reads GB"] < row["weights GB"] for row in memory)


def test_bench_measures_a_preset_beside_its_peers(tmp_path):
    tables = results_of("run", tmp_path, "--device", "cpu", "--runs", "1")
    names = {each.name for each in benchmark_models(PRESETS["tiny"])}
    assert {row["model"] for row in tables["Time to the first token"]} == names
    assert {row["model"] for row in tables["Roofline of each part"]} == names
    assert {row["model"] for row in tables["Decoding"]} == names - {"PVC, four full passes"}
    for row in tables["Roofline of each part"]:
        assert row["roofline / time"] > 0 and row["ms"] > 0
    for row in tables["Ratios, pairs in turns"]:
        assert row["min"] <= row["median"] <= row["max"] and row.get("relative difference", 0) <= 1e-5
    for row in tables["Time to the first token"]:
        assert row["ViT ms"] + row["projector ms"] + row["prefill ms"] < row["first token ms"]


def test_plot_alone_draws_what_was_written(tmp_path):
    rows = [{"model": "PVC", "frames": frames, "TFLOP": float(frames)} for frames in (2, 4)]
    report.write(tmp_path, "count", {}, {"First token of a video": rows})
    assert bench("plot", "--out", str(tmp_path))[0] == 0
    assert [file.name for file in tmp_path.glob("*.svg")] == ["count.svg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["count", "--preset", "9B"],
            "preset is '9B': expected one of 8B, 2B, 8b-eighth, vit-l, small, tiny",
        ),
        (["run", "--preset", "tiny", "--device", "meta"], "device is 'meta': expected cpu or cuda"),
        (["plot"], "no count.json, growth.json, run.json in"),
    ],
)
def test_a_wrong_call_is_said_in_one_line(arguments, said, tmp_path):
    code, output = bench(*arguments, "--out", str(tmp_path))
    assert code == 1 and said in output.replace("\n", " ") and "Traceback" not in output
