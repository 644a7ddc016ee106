"""A folder that is trusted runs its own code, and none that its files lead to elsewhere."""

import json

import pytest
from training_runs import write_model

from pvc.conversion.files import check_code_within
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer
from pvc.training.run import load_processor

EVIL = "raise SystemExit('code from outside the folder has run')\n"


@pytest.fixture
def folder(tmp_path):
    model = write_model(tmp_path / "model")
    (tmp_path / "evil.py").write_text(EVIL)
    return model


def point(file, reference):
    """Makes a JSON file name `reference` for the tokenizer's class."""
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | {"auto_map": {"AutoTokenizer": [reference, None]}}))


def test_a_saved_model_leads_to_its_own_code_alone(folder):
    check_code_within(folder)


@pytest.mark.attack("F17")
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "reference", ["FOLDER/evil.Evil", "../evil.Evil", "other/repo--evil.Evil", "sub/evil.E"]
)
def test_code_outside_the_folder_is_refused(folder, file, reference):
    reference = reference.replace("FOLDER", str(folder.parent))
    point(folder / file, reference)
    for load in (check_code_within, load_processor):
        with pytest.raises(ValueError) as error:
            load(folder)
        assert reference in str(error.value) and file in str(error.value)


@pytest.mark.attack("F17")
@pytest.mark.parametrize(
    "value", [[{"auto_map": "../evil.E"}], {"a": {"auto_map": {"b": {"c": ["/evil.E"]}}}}]
)
def test_an_entry_is_found_at_any_depth(folder, value):
    (folder / "preprocessor_config.json").write_text(json.dumps({"deep": value}))
    with pytest.raises(ValueError, match="evil"):
        check_code_within(folder)


@pytest.mark.attack("F17")
def test_links_lead_nowhere_else_not_even_those_of_imported_modules(folder):
    (folder / "own.py").write_text("from .linked import X\n")
    (folder / "linked.py").symlink_to(folder.parent / "evil.py")
    point(folder / "tokenizer_config.json", "own.Own")
    with pytest.raises(ValueError, match="linked.py is a link that leads out of the folder"):
        check_code_within(folder)


def test_the_hub_caches_links_are_its_own(tmp_path):
    repository, blob = tmp_path / "models--org--name", "9f" * 20
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("01" * 20)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / blob).write_text("X = 1\n")
    (snapshot / "own.py").symlink_to(f"../../blobs/{blob}")
    point(snapshot / "tokenizer_config.json", "own.Own")
    check_code_within(snapshot)


def test_our_own_classes_need_no_code_of_the_folder(folder):
    for file in folder.glob("*.py"):
        file.write_text(EVIL)
    processor = load_processor(folder)
    assert type(processor) is PVCProcessor
    assert type(processor.tokenizer) is InternLM2Tokenizer
    assert type(processor.image_processor) is PVCImageProcessor


def test_a_tokenizer_of_the_folders_own_is_run(folder):
    (folder / "own.py").write_text((folder / "tokenization_internlm2.py").read_text())
    point(folder / "tokenizer_config.json", "own.InternLM2Tokenizer")
    tokenizer = load_processor(folder).tokenizer
    assert type(tokenizer) is not InternLM2Tokenizer and tokenizer("a")["input_ids"]
