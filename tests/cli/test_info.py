"""`pvc info`: parameters, tokens and memory against closed forms, and what it does not do."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pvc import CHECKPOINT
from pvc.cli import app
from pvc.cli.info import BYTES, QUANTIZED_BYTES, ModelSizes, load_config, memory_of
from pvc.configuration_pvc import PVCConfig

TILE_POSITIONS = 32 * 32 + 1  # patches of 14 pixels in a tile of 448, and the class token


@pytest.fixture(scope="module")
def sizes() -> ModelSizes:
    return ModelSizes.from_config(PVCConfig())  # the 8B


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_the_8b_has_its_published_number_of_parameters(sizes):
    assert sum(sizes.parameters.values()) == 9_549_843_456


def test_parameters_of_the_8b_are_those_of_the_formulas(sizes):
    hidden, width, layers, mlp, vocabulary = 4096, 4096, 32, 14336, 92553
    norm = linear(256, width) + linear(width, width) + 4 * linear(width, width)
    attention = hidden * (hidden + 2 * 1024) + hidden * hidden

    # a patch of 4 x 4 embeddings of 1,024 becomes a token of 16,384
    wide = 16 * 1024
    projector_norm = linear(256, wide) + 5 * linear(wide, wide)
    assert sizes.parameters["projector"] == projector_norm + linear(wide, hidden) + linear(hidden, hidden)
    assert norm < projector_norm

    llm = layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden
    assert sizes.parameters["LLM"] == llm + 2 * vocabulary * hidden
    assert sizes.linear_weights == layers * (attention + 3 * hidden * mlp)


def test_tokens_of_the_8b(sizes):
    assert (sizes.tile_size, sizes.tokens_per_tile, sizes.max_tiles) == (448, 64, 13)
    assert sizes.image_tokens == 13 * 4 * 64
    assert sizes.video_tokens(96) == 96 * 64


def test_memory_of_64_frames_on_the_8b(sizes):
    memory = memory_of(sizes, "bfloat16", sizes.video_tokens(64), 64)
    chunk = 32 * TILE_POSITIONS * (2 * 1024 + 2 * 4096) * 2

    assert memory.weights == 2 * 9_549_843_456
    assert memory.cache == (64 * 64 + 1024) * 131_072  # keys and values of 32 layers of 8 heads of 128
    assert memory.encoding == 64 * TILE_POSITIONS * 1024 * 2 + chunk
    assert memory.total == memory.weights + memory.cache + memory.encoding
    assert memory.card_gb == 24


def test_fewer_bits_need_less_memory(sizes):
    totals = [memory_of(sizes, dtype, 4096, 64).total for dtype in (*BYTES, *QUANTIZED_BYTES)]
    assert totals == sorted(totals, reverse=True)
    saved = totals[1] - totals[2]
    assert saved == sizes.linear_weights  # int8: one byte instead of two


def test_no_card_holds_what_is_larger_than_all(sizes):
    assert memory_of(sizes, "float32", 10**7, 64).card_gb is None


def test_a_clip_shorter_than_a_chunk_holds_its_own_tiles_alone(sizes):
    one, two = (memory_of(sizes, "bfloat16", 64 * n, n).encoding for n in (1, 2))
    assert two == 2 * one


def test_pvc_tiny_is_described_without_its_weights(tmp_path):
    config = (CHECKPOINT / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)

    result = CliRunner().invoke(app, ["info", str(tmp_path), "--frames", "5"])
    assert result.exit_code == 0, result.output

    lines = result.stdout.splitlines()
    assert "| all parameters | 10,604,160 |" in lines  # 10.6 M
    assert "| tile | 96 x 96 pixels |" in lines
    assert "| visual tokens, video of 5 frames | 45 |" in lines
    assert sum(line.startswith("| bfloat16 |") for line in lines) == 2


def test_parameters_are_those_of_the_loaded_model():
    from pvc.modeling_pvc import PVCForConditionalGeneration

    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT)
    counted = ModelSizes.from_config(load_config(str(CHECKPOINT))).parameters
    assert sum(counted.values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["./nowhere", __file__])
def test_what_is_no_model_is_reported_in_one_line(name):
    result = CliRunner().invoke(app, ["info", name])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_an_unknown_command_is_answered_with_the_nearest_or_all():
    near = CliRunner().invoke(app, ["inof"])
    assert near.exit_code == 2 and "did you mean 'info'?" in " ".join(near.stderr.split())

    far = CliRunner().invoke(app, ["xyz"])
    assert far.exit_code == 2
    assert all(name in far.stderr for name in ("chat", "info", "convert", "push", "train", "bench"))


def test_help_shows_examples():
    for name in ("chat", "info", "convert", "push", "train", "bench"):
        shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200).stdout
        assert "Examples" in shown and f"pvc {name} " in shown, name
    for name in ("run", "check"):
        shown = CliRunner().invoke(app, ["train", name, "--help"]).stdout
        assert "Examples" in shown and "pvc train " in shown, name


def test_help_does_not_import_torch():
    script = (
        "import sys\nfrom pvc.cli import app\n"
        "try: app(['info', '--help'])\nexcept SystemExit: print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n")
