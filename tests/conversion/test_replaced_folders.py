"""What a command replaces and prints: no folder but a checkpoint's, no control codes of names and values."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from foreign_folders import NO_OBJECTS, edit_json, names, pvc, write_damaged, write_json
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pvc import cli
from pvc.conversion.files import atomic_directory
from pvc.conversion.printable import in_a_line, printable
from pvc.convert_weights import Conversion, Options
from pvc.hub.card import write_card
from pvc.modeling_pvc import PVCForConditionalGeneration

# ---- a folder that is replaced


def convert(source: Path, target: Path, **options):
    Conversion(source, target, Options(temporal_layers=2, overwrite=True, **options)).run()


@pytest.mark.attack("F14b")
def test_target_that_is_a_link_stays_a_link_to_the_new_checkpoint_however_often(original, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "PVC-1").mkdir()
    (tmp_path / "PVC").symlink_to("disk/PVC-1")
    for _ in range(2):
        convert(original, tmp_path / "PVC")
        assert (tmp_path / "PVC").is_symlink() and (tmp_path / "disk" / "PVC-1" / "config.json").is_file()
        assert names(tmp_path) == {"PVC", "disk"} and names(tmp_path / "disk") == {"PVC-1"}


@pytest.mark.attack("F14b")
@pytest.mark.parametrize("link", ["nowhere", "PVC"])
def test_target_that_is_a_link_to_nowhere_is_refused_before_the_work(link, original, tmp_path):
    (tmp_path / "PVC").symlink_to(tmp_path / link)
    with pytest.raises(FileNotFoundError, match="leads nowhere"):
        Conversion(original, tmp_path / "PVC", Options(temporal_layers=2, overwrite=True))
    with (
        pytest.raises(FileNotFoundError, match="leads nowhere"),
        atomic_directory(tmp_path / "PVC", overwrite=True),
    ):
        pytest.fail("the work has begun")
    assert names(tmp_path) == {"PVC"}


def web_project(folder: Path):
    write_json(folder / "config.json", {"port": 80})
    (folder / "index.html").write_text("mine")


def project_with_a_model_type(folder: Path):
    write_json(folder / "config.json", {"model_type": "pickup truck"})


def empty_configuration_of_a_project(folder: Path):
    write_json(folder / "config.json", {})
    (folder / "app.py").write_text("mine")


def checkpoint_with(name: str):
    def make(folder: Path):
        write_json(folder / "config.json", {"model_type": "pvc"})
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")

    return make


FOREIGN = {
    "a web project": (web_project, "config.json"),
    "a model_type of no model": (project_with_a_model_type, "config.json"),
    "an empty config.json": (empty_configuration_of_a_project, "config.json"),
    "a thesis": (checkpoint_with("thesis.docx"), "thesis.docx"),
    "a script": (checkpoint_with("train.py"), "train.py"),
    "a history": (checkpoint_with(".git/HEAD"), ".git"),
    "another's package": (checkpoint_with("package.json"), "package.json"),
    "checkpoints of a training": (checkpoint_with("checkpoint-5/optimizer.pt"), "checkpoint-5"),
    "a script among images": (checkpoint_with("assets/draw.py"), "assets"),
    "a folder among images": (checkpoint_with("assets/mine/notes"), "assets"),
    "a folder called as weights are": (checkpoint_with("x.safetensors/notes"), "x.safetensors"),
}


@pytest.mark.attack("F14b")
@pytest.mark.parametrize("name", FOREIGN)
def test_folder_with_more_than_a_checkpoint_is_not_replaced(name, tmp_path):
    make, said = FOREIGN[name]
    (tmp_path / "PVC").mkdir()
    make(tmp_path / "PVC")
    there = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=said), atomic_directory(tmp_path / "PVC", overwrite=True):
        pytest.fail("the work has begun")
    assert sorted(path for path in tmp_path.rglob("*")) == there


@pytest.mark.attack("F14b")
def test_leftover_that_is_a_link_is_removed_and_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / "PVC").mkdir()
    for leftover in (".PVC.replaced", ".PVC.partial"):
        (tmp_path / leftover).symlink_to("mine")
    with atomic_directory(tmp_path / "PVC") as unfinished:
        (unfinished / "config.json").write_text("{}")
    assert names(tmp_path) == {"PVC", "mine"} and names(tmp_path / "mine") == {"file"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_of_a_checkpoint_have_the_modes_that_the_umask_gives(umask, original, tmp_path):
    before = os.umask(umask)
    try:
        convert(original, tmp_path / "PVC")
        model = PVCForConditionalGeneration.from_pretrained(tmp_path / "PVC")
        model.save_pretrained(tmp_path / "saved")
        model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
        (tmp_path / "PVC" / "README.md").unlink()
        write_card(tmp_path / "PVC", "someone/PVC")
    finally:
        os.umask(before)
    files = [file for folder in ("PVC", "saved", "shards") for file in (tmp_path / folder).iterdir()]
    assert any(file.name == "model-00002-of-00008.safetensors" for file in files)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == dict.fromkeys(
        (file.name for file in files), oct(0o666 & ~umask)
    )


# ---- what reaches a terminal

ESCAPE = "\x1b]0;evil\x07\x1b[2J\x9b1A\r\u202e"


def no_codes(text: str) -> bool:
    return not any(sign in text for sign in "\x1b\x07\x9b\r\u202e")


def test_text_keeps_its_lines_and_a_cell_has_none():
    assert printable("a\tb\nc\x1b[0m\x85\ud800") == "a\tb\nc\ufffd[0m\ufffd\ufffd"
    assert in_a_line("a\tb\nc\r") == "a\ufffdb\ufffdc\ufffd"
    assert printable("ä 漢 🙂 \u200d") == "ä 漢 🙂 \u200d"


def rename_a_tensor(folder: Path, old: str, new: str):
    files = sorted(folder.glob("*.safetensors"))
    weights = {name: value for file in files for name, value in load_file(file).items()}
    weights[new] = weights.pop(old)
    for file in folder.glob("model*"):
        file.unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.attack("F21")
def test_codes_in_the_name_of_a_tensor_do_not_reach_the_terminal_by_an_error(source, checkpoint):
    rename_a_tensor(source, "mlp1.1.weight", f"{ESCAPE}weight")
    assert no_codes(pvc("convert", source, source.parent / "PVC", "--temporal-layers", "2"))
    weights = load_file(checkpoint / "model.safetensors")
    weights[f"{ESCAPE}\n"] = torch.ones(1, dtype=torch.int8)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert no_codes(pvc("push", checkpoint, "someone/PVC"))


@pytest.mark.attack("F21")
def test_codes_in_what_is_dropped_reach_neither_terminal_nor_report(source):
    old = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    new = f"{ESCAPE}\n\tlanguage_model.rotary_emb.inv_freq"
    rename_a_tensor(source, old, new)
    target = source.parent / "PVC"
    for options in (["--dry-run"], []):
        arguments = ["convert", source, target, "--temporal-layers", "2", *options]
        done = CliRunner().invoke(cli.app, list(map(str, arguments)))
        assert done.exit_code == 0 and "dropped" in done.stderr and no_codes(done.output), done.output
    report = (target / "conversion.tsv").read_text(encoding="utf-8")
    assert no_codes(report) and {line.count("\t") for line in report.splitlines()} == {2}


@pytest.mark.attack("F21")
def test_license_of_the_source_is_a_name_or_left_out(source):
    (source / "README.md").write_text('---\nlicense: "mit\\e[2J\\n# evil"\n---\n')
    convert(source, source.parent / "PVC")
    card = (source.parent / "PVC" / "README.md").read_text()
    assert no_codes(card) and "evil" not in card and "not named" in card


@pytest.mark.attack("F13")
@pytest.mark.parametrize(
    "content", [b"\xff" * 50, b"---\n- [\n---", b"---\nlicense: [1]\n---", b"---\n[]\n---"]
)
def test_card_of_the_source_that_cannot_be_read_names_no_license(content, source):
    (source / "README.md").write_bytes(content)
    convert(source, source.parent / "PVC")
    assert "not named" in (source.parent / "PVC" / "README.md").read_text()


@pytest.mark.attack("F21")
def test_codes_in_names_of_files_and_values_reach_no_terminal(checkpoint, tmp_path):
    folder = tmp_path / f"evil{ESCAPE}"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text("[")
    for command in (["push", folder, "someone/PVC"], ["chat", folder, "Hello?"], ["convert", folder, "PVC"]):
        assert no_codes(pvc(*command))
    edit_json(checkpoint / "config.json", lambda values: values.update(model_type=ESCAPE))
    for command in (
        ["push", checkpoint, "someone/PVC"],
        ["chat", checkpoint, "?"],
        ["convert", checkpoint, "PVC"],
    ):
        assert no_codes(pvc(*command))


@pytest.mark.attack("F13")
@pytest.mark.parametrize(
    "content", [*NO_OBJECTS.values(), "{}", '{"tables": {"First token of a video": [5]}}']
)
def test_plot_of_damaged_results_names_their_file(content, tmp_path):
    write_damaged(tmp_path / "count.json", content)
    assert "count.json" in pvc("bench", "plot", "--out", tmp_path)
