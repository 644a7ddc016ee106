"""Folders that somebody else made: what they name is read, run, sent or replaced only within them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pvc import CHECKPOINT, cli
from pvc.conversion.files import CheckpointError, check_code_within

RUNS = "import os\nopen(os.environ['PVC_TEST_RAN'], 'w').close()\n\n\nclass Evil:\n    pass\n"


def write_json(path: Path, values) -> Path:
    path.write_text(json.dumps(values))
    return path


# ---- code


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint without weights, and code outside it that tells when it is run."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in [*CHECKPOINT.glob("*.py"), *CHECKPOINT.glob("*.json"), CHECKPOINT / "tokenizer.model"]:
        shutil.copy(file, folder)
    (tmp_path / "evil.py").write_text(RUNS)
    return folder


def tokenizer_of(reference):
    """Has the tokenizer's class elsewhere."""

    def change(folder: Path):
        values = json.loads((folder / "tokenizer_config.json").read_text())
        values["auto_map"] = {"AutoTokenizer": [reference.format(folder.parent), None]}
        write_json(folder / "tokenizer_config.json", values)

    return change


def image_processor_elsewhere(folder: Path):
    values = json.loads((folder / "processor_config.json").read_text())
    values["image_processor"]["auto_map"] = {"AutoImageProcessor": "../evil.Evil"}
    write_json(folder / "processor_config.json", values)


def linked_module(folder: Path):
    (folder / "modeling_pvc.py").unlink()
    (folder / "modeling_pvc.py").symlink_to(folder.parent / "evil.py")


def linked_import(folder: Path):
    (folder / "conversation.py").unlink()
    (folder / "conversation.py").symlink_to(folder.parent / "evil.py")


def links_in_a_ring(folder: Path):
    (folder / "conversation.py").unlink()
    (folder / "conversation.py").symlink_to("conversation.py")


def import_from_the_parent(folder: Path):
    with open(folder / "conversation.py", "a") as file:
        file.write("\nfrom ..evil import Evil\n")


def linked_custom_generate(folder: Path):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").symlink_to(folder.parent / "evil.py")


def configuration_of_another_version(folder: Path):
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", values | {"configuration_files": ["../config.4.0.0.json"]})


def code_named_by_another_version(folder: Path):
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", values | {"configuration_files": ["config.4.0.0.json"]})
    write_json(folder / "config.4.0.0.json", values | {"auto_map": {"AutoConfig": "../evil.Evil"}})


CODE_ELSEWHERE = {
    "absolute path": (tokenizer_of("{}/evil.Evil"), "tokenizer_config.json"),
    "parent": (tokenizer_of("../evil.Evil"), "tokenizer_config.json"),
    "subfolder and back": (tokenizer_of("x/../../evil.Evil"), "tokenizer_config.json"),
    "backslashes": (tokenizer_of("..\\evil.Evil"), "tokenizer_config.json"),
    "another repository": (tokenizer_of("other/repo--evil.Evil"), "other/repo"),
    "no reference": (tokenizer_of("evil"), "tokenizer_config.json"),
    "image processor": (image_processor_elsewhere, "processor_config.json"),
    "link": (linked_module, "modeling_pvc.py"),
    "link of an import": (linked_import, "conversation.py"),
    "ring of links": (links_in_a_ring, "conversation.py"),
    "import from the parent": (import_from_the_parent, "conversation.py"),
    "custom generate": (linked_custom_generate, "generate.py"),
    "file of another version elsewhere": (configuration_of_another_version, "configuration_files"),
    "file of another version": (code_named_by_another_version, "config.4.0.0.json"),
}


@pytest.mark.attack("F17")
@pytest.mark.parametrize("name", CODE_ELSEWHERE)
def test_chat_runs_no_code_that_lies_outside_the_folder_it_is_given(name, folder, tmp_path, monkeypatch):
    change, said = CODE_ELSEWHERE[name]
    change(folder)
    monkeypatch.setenv("PVC_TEST_RAN", str(tmp_path / "ran"))
    done = CliRunner().invoke(cli.app, ["chat", str(folder), "Hello?"])
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and said in done.stderr, done.output
    assert not (tmp_path / "ran").exists()


@pytest.mark.attack("F17")
@pytest.mark.parametrize("auto_map", [5, [], {"AutoConfig": 5}, {"AutoConfig": [[]]}, {"AutoConfig": {}}])
def test_auto_map_of_another_type_is_refused_by_its_file(auto_map, folder):
    values = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", values | {"auto_map": auto_map})
    with pytest.raises(CheckpointError, match="auto_map of .*config.json"):
        check_code_within(folder)


def test_code_of_the_package_and_of_a_snapshot_in_the_hub_cache_is_within(folder, tmp_path):
    check_code_within(CHECKPOINT)
    check_code_within(folder)
    repository = tmp_path / "models--someone--model"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(folder.iterdir()):
        blob = blobs / f"{i:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    check_code_within(snapshot)

    shutil.move(blobs, tmp_path / "elsewhere")  # a folder that pretends to be the cache
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        check_code_within(snapshot)
