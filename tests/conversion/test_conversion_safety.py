"""A conversion is whole or did not happen: bad sources, full disks, interruptions, existing folders."""

import json
import os
import random
import shutil
import subprocess
import sys
import weakref
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conversion_sources import golden_source, native_source, remote_code_source, write_json
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pvc import CHECKPOINT, cli
from pvc.conversion.files import TensorInfo, atomic_directory, check_free_disk, write_shards
from pvc.conversion.verify import verify
from pvc.convert_weights import Conversion, Options

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "InternVL2-Test"
    remote_code_source(folder, "internlm2")
    return folder


@pytest.fixture
def source(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "InternVL2-Test"))


def plan(source: Path, **options) -> Conversion:
    return Conversion(source, source.parent / "PVC", Options(**{"temporal_layers": 2} | options))


def edit_json(file: Path, edit):
    values = json.loads(file.read_text())
    edit(values)
    write_json(file, values)


# ---- bad sources: each changes a folder, and says what the error must name


def cut_shard(folder):
    with open(folder / SHARD, "r+b") as file:
        file.truncate(5000)
    return SHARD, "damaged", "again"


def garbled_shard(folder):
    (folder / SHARD).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return SHARD, "damaged", "again"


def missing_shard(folder):
    (folder / SHARD).unlink()
    return "lacks", SHARD


def extra_shard(folder):
    shutil.copy(folder / SHARD, folder / "model-00003-of-00003.safetensors")
    return "model-00003-of-00003.safetensors", "does not name"


def no_index(folder):
    (folder / INDEX).unlink()
    return INDEX, "index"


def index_that_is_no_json(folder):
    (folder / INDEX).write_text("{")
    return INDEX, "not an index"


def index_of_another_shard(folder):
    edit_json(
        folder / INDEX,
        lambda index: index["weight_map"].update({"mlp1.0.bias": SHARD, "mlp1.0.weight": SHARD}),
    )
    return "mlp1.0.", SHARD


def index_without_a_tensor(folder):
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop("mlp1.1.weight"))
    return "mlp1.1.weight", "no file"


def change_weights(folder, change):
    weights = load_file(folder / "model-00001-of-00002.safetensors") | load_file(folder / SHARD)
    for file in folder.glob("model*"):
        file.unlink()
    change(weights)
    save_file(weights, folder / "model.safetensors")


def missing_tensor(folder):
    change_weights(folder, lambda weights: weights.pop("vision_model.encoder.layers.3.attn.qkv.bias"))
    return "nothing for", "layers.3.attn.qkv.bias", "(96,)"


def missing_head(folder):
    change_weights(folder, lambda weights: weights.pop("language_model.output.weight"))
    return "nothing for lm_head.weight", "tie_word_embeddings"


def missing_projector(folder):
    change_weights(folder, lambda weights: weights.pop("mlp1.0.weight"))
    return ("nothing for the projector's norm.weight",)


def unknown_tensor(folder):
    change_weights(folder, lambda weights: weights.update({"vision_model.router.weight": torch.ones(1)}))
    return "vision_model.router.weight", "not supported"


def wrong_shape(folder):
    change_weights(
        folder, lambda weights: weights.update({"language_model.model.norm.weight": torch.ones(47)})
    )
    return "language_model.model.norm.weight", "(47,)", "(48,)"


def wrong_projector_shape(folder):
    change_weights(folder, lambda weights: weights.update({"mlp1.1.weight": torch.ones(48, 64)}))
    return "mlp1.1.weight", "(48, 64)", "(48, 128)"


def quantised_tensors(folder):
    change_weights(
        folder, lambda weights: weights.update({"mlp1.1.weight": torch.ones(48, 128, dtype=torch.int8)})
    )
    return "mlp1.1.weight", "I8", "quantised"


def quantised_configuration(folder):
    edit_json(folder / "config.json", lambda config: config.update(quantization_config={"bits": 4}))
    return ("quantised",)


def pickles(folder):
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    return "pickles", "pytorch_model.bin", "safetensors"


def no_weights(folder):
    for file in folder.glob("model*"):
        file.unlink()
    return "no weights", "model.safetensors"


def no_config(folder):
    (folder / "config.json").unlink()
    return ("no config.json",)


def config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    return ("config.json is not JSON",)


def another_model(folder):
    edit_json(folder / "config.json", lambda config: config.update(model_type="llava"))
    return "'llava'", "internvl_chat"


def a_pvc(folder):
    edit_json(folder / "config.json", lambda config: config.update(model_type="pvc"))
    return ("PVC already",)


def another_llm(folder):
    edit_json(folder / "config.json", lambda config: config["llm_config"].update(model_type="gpt_oss"))
    return "gpt_oss", "internlm2", "qwen3"


def no_template(folder):
    edit_json(folder / "config.json", lambda config: config.pop("template"))
    return ("--template",)


def unknown_template(folder):
    edit_json(folder / "config.json", lambda config: config.update(template="vicuna"))
    return "'vicuna'", "internlm2-chat"


def incomplete_vision_config(folder):
    edit_json(folder / "config.json", lambda config: config["vision_config"].pop("hidden_size"))
    return ("vision_config lacks hidden_size",)


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()
    return "no tokenizer", "--no-tokenizer"


def damaged_tokenizer(folder):
    (folder / "tokenizer.model").write_bytes(b"no")
    return "tokenizer", "cannot be read"


def small_vocabulary(folder):
    def change(weights):
        for name in ("language_model.model.tok_embeddings.weight", "language_model.output.weight"):
            weights[name] = weights[name][:128].clone()

    change_weights(folder, change)
    edit_json(folder / "config.json", lambda config: config["llm_config"].update(vocab_size=128))
    return "2048 tokens", "128"


BAD_SOURCES = [
    cut_shard, garbled_shard, missing_shard, extra_shard, no_index, index_that_is_no_json,
    index_of_another_shard, index_without_a_tensor, missing_tensor, missing_head, missing_projector,
    unknown_tensor, wrong_shape, wrong_projector_shape, quantised_tensors, quantised_configuration,
    pickles, no_weights, no_config, config_that_is_no_json, another_model, a_pvc, another_llm,
    no_template, unknown_template, incomplete_vision_config, no_tokenizer, damaged_tokenizer,
    small_vocabulary,
]  # fmt: skip
BAD_OPTIONS = {
    "ratio": ({"downsample_ratio": 1.0}, ["1.0", "0.5", "random"]),
    "ratio that fits no grid": ({"downsample_ratio": 1 / 3}, ["0.33"]),
    "projector": ({"projector_init": "zeros"}, ["'zeros'", "average"]),
    "order": ({"tile_repeat_order": "rows"}, ["tile_repeat_order", "'rows'", "raster"]),
    "temporal layers": ({"temporal_layers": 5}, ["5", "4"]),
    "repeats": ({"image_repeats": 0}, ["image_repeats", "0"]),
    "key map": ({"key_map": "map.json"}, ["--key-map", "released PVC"]),
    "no image token": ({"tokenizer": False}, ["--image-token-id"]),
}


@pytest.mark.parametrize("damage", BAD_SOURCES, ids=lambda damage: damage.__name__)
def test_bad_source_is_refused_by_name_before_anything_is_written(damage, source):
    said = damage(source)
    with pytest.raises(ValueError) as error:
        plan(source).run()
    assert all(text in str(error.value) for text in said), str(error.value)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_option_is_refused_with_what_fits(options, said, original):
    with pytest.raises(ValueError) as error:
        plan(original, **options)
    assert all(text in str(error.value) for text in said), str(error.value)


@pytest.mark.parametrize("target", [".", "..", "../InternVL2-Test"])
def test_target_that_is_or_holds_the_source_is_refused(target, source):
    with pytest.raises(ValueError, match="is, or holds, the source"):
        Conversion(source, source / target, Options(temporal_layers=2))


# ---- files


def test_shards_hold_what_they_were_given_and_are_within_their_limit(tmp_path):
    tensors = {
        "a": torch.randn(100, 3), "scalar": torch.tensor(2.0), "half": torch.randn(7).to(torch.bfloat16),
        "large": torch.randn(900), "transposed": torch.randn(4, 5).T, "empty": torch.empty(0, 3),
    }  # fmt: skip
    infos = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in tensors.items()}
    write_shards(tmp_path, infos, tensors.__getitem__, shard_bytes=1300)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    assert [file.name for file in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    read = {name: value for file in files for name, value in load_file(file).items()}
    assert read.keys() == tensors.keys() == index["weight_map"].keys()
    for name, value in tensors.items():
        assert torch.equal(read[name], value) and read[name].dtype == value.dtype
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors.values())
    sizes = {file.name: sum(value.nbytes for value in load_file(file).values()) for file in files}
    assert sorted(sizes.values())[-1] == 3600 and sorted(sizes.values())[-2] <= 1300  # the large one alone


def test_one_tensor_is_held_at_a_time(tmp_path):
    infos = {str(i): TensorInfo((10,), torch.float32) for i in range(5)}
    made = []

    def make(name):
        assert all(earlier() is None for earlier in made)
        tensor = torch.full((10,), float(name))
        made.append(weakref.ref(tensor))
        return tensor

    write_shards(tmp_path, infos, make)
    assert len(made) == 5


def test_full_disk_is_told_before_writing(original, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    conversion = Conversion(original, tmp_path / "deep" / "PVC", Options(temporal_layers=2))
    with pytest.raises(OSError, match=r"needs 0.1 GB, but the disk has 0.0 GB free"):
        conversion.run()
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    check_free_disk(tmp_path / "deep" / "PVC", 1)


# ---- the folder


def test_existing_folder_is_replaced_only_when_told_and_only_a_models(original, tmp_path):
    target = tmp_path / "PVC"
    target.mkdir()  # empty: nothing is lost
    conversion = Conversion(original, target, Options(temporal_layers=2))
    conversion.run()
    (target / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        conversion.run()
    assert (target / "README.md").read_text() == "mine"
    conversion.options.overwrite = True
    conversion.run()
    assert (target / "README.md").read_text() != "mine" and (target / "config.json").exists()
    (target / "config.json").unlink()
    with pytest.raises(FileExistsError, match="no model's folder"):
        conversion.run()
    assert [path.name for path in tmp_path.iterdir()] == ["PVC"]


def test_failure_while_writing_leaves_the_old_folder_and_nothing_else(original, tmp_path):
    target = tmp_path / "PVC"
    target.mkdir()
    (target / "config.json").write_text("{}")

    def fail(name, nbytes):
        raise OSError("no space left on device")

    conversion = Conversion(original, target, Options(temporal_layers=2, overwrite=True))
    with pytest.raises(OSError, match="no space"):
        conversion.run(progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["PVC"]
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_interruption_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    (tmp_path / ".PVC.replaced").mkdir()
    (tmp_path / ".PVC.replaced" / "config.json").write_text("old")
    with pytest.raises(FileExistsError), atomic_directory(tmp_path / "PVC"):
        pass
    assert (tmp_path / "PVC" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["PVC"]


def test_two_conversions_to_one_target_do_not_mix(tmp_path):
    script = (
        "import sys; from pvc.conversion.files import atomic_directory\n"
        "try:\n    with atomic_directory(sys.argv[1]): print('wrote')\n"
        "except BlockingIOError as error: print(error)"
    )
    with atomic_directory(tmp_path / "PVC") as unfinished:
        (unfinished / "config.json").write_text("{}")
        other = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "PVC"], capture_output=True, text=True
        )
    assert "another process is writing" in other.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["PVC"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from pvc.convert_weights import Conversion, Options

source, target, *moments = sys.argv[1:]
target = Path(target)

def run(progress=lambda name, nbytes: time.sleep(0.004)):
    Conversion(source, target, Options(temporal_layers=2)).run(progress=progress)

start = time.monotonic()
run()
seconds = time.monotonic() - start
whole = {path.name: path.stat().st_size for path in target.iterdir()}
for moment in map(float, moments):
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    time.sleep(moment * seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    there = {path.name: path.stat().st_size for path in target.iterdir()} if target.exists() else None
    print("whole" if there == whole else "absent" if there is None else "half", flush=True)
    if there is None:
        run(lambda name, nbytes: None)
    assert {path.name: path.stat().st_size for path in target.iterdir()} == whole
    assert [path.name for path in target.parent.iterdir()] == [target.name]
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_the_target_is_absent_or_whole_and_a_rerun_succeeds(original, tmp_path):
    moments = [str(random.Random(i).uniform(0, 1.2)) for i in range(10)]
    command = [sys.executable, "-c", KILLED, original, tmp_path / "there" / "PVC", *moments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"absent", "whole"} and len(done.stdout.split()) == 10
    assert "absent" in done.stdout


# ---- the command


def pvc_convert(*arguments):
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments), "--temporal-layers", "2"])


def test_dry_run_prints_the_plan_and_writes_nothing(original, tmp_path):
    done = pvc_convert(original, tmp_path / "PVC", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "model.projector.mlp.0.weight [48, 512] <- mlp1.1.weight + mlp1.0.weight" in done.stdout
    assert "temporal_gate [32] x2 <- (new)" in done.stdout
    assert "dropped: language_model.model.layers.0.attention.rotary_emb.inv_freq" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["remote code", "native"])
def test_verify_prints_how_source_and_result_differ(layout, tmp_path):
    (remote_code_source if layout == "remote code" else native_source)(tmp_path / "source", "qwen2")
    done = pvc_convert(tmp_path / "source", tmp_path / "PVC", "--verify")
    assert done.exit_code == 0, done.output
    vit, llm = done.stdout.strip().splitlines()
    assert vit.startswith("ViT's features: largest difference") and llm.startswith("LLM's logits")
    assert max(difference.largest for difference in verify(tmp_path / "source", tmp_path / "PVC")) < 2e-5


@pytest.mark.parametrize(
    "changed", ["vision_model.encoder.layers.0.norm1.bias", "language_model.layers.1.ffn_norm.weight"]
)
def test_verify_sees_a_single_wrong_tensor(changed, original, tmp_path):
    Conversion(original, tmp_path / "PVC", Options(temporal_layers=2)).run()
    weights = load_file(tmp_path / "PVC" / "model.safetensors")
    weights[f"model.{changed}"] += 0.1
    save_file(weights, tmp_path / "PVC" / "model.safetensors", {"format": "pt"})
    wrong = [difference.largest > 1e-3 for difference in verify(original, tmp_path / "PVC")]
    assert wrong == ["vision" in changed, "language" in changed]


def test_error_is_one_line(original, tmp_path):
    done = pvc_convert(original, tmp_path / "PVC", "--downsample-ratio", "1")
    assert done.exit_code == 1 and done.stderr.startswith("error: downsample_ratio 1.0")
    assert done.stderr.count("\n") == 1
    done = pvc_convert(tmp_path / "nowhere", tmp_path / "PVC")
    assert done.exit_code == 1 and "nowhere" in done.stderr


def test_script_is_the_command(original, tmp_path):
    script = CHECKPOINT / "convert_weights.py"
    command = [sys.executable, script, original, tmp_path / "PVC", "--temporal-layers", "2", "--no-tokenizer"]
    done = subprocess.run([*command, "--image-token-id", "2041"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "PVC" / "model.safetensors").exists()
    assert not (tmp_path / "PVC" / "tokenizer.model").exists()


def test_golden_source_without_a_tokenizer_takes_the_id_of_its_configuration(tmp_path):
    golden_source(tmp_path / "source")
    conversion = Conversion(
        tmp_path / "source", tmp_path / "PVC", Options(temporal_layers=2, tokenizer=False)
    )
    assert conversion.plan.config.image_token_id == 120
