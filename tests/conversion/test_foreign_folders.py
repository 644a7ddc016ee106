"""Folders that somebody else made: what they name is read, run, sent or replaced only within them."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conversion_sources import native_source
from foreign_folders import NO_OBJECTS, edit_json, names, nested, pvc, write_damaged, write_json
from typer.testing import CliRunner

from pvc import CHECKPOINT, cli
from pvc.configuration_pvc import PVCConfig
from pvc.conversion.files import CheckpointError, SourceWeights, check_code_within
from pvc.hub import checked_files
from pvc.json_files import JSON_DEPTH, read_json_object
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor

RUNS = "import os\nopen(os.environ['PVC_TEST_RAN'], 'w').close()\n\n\nclass Evil:\n    pass\n"


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


# ---- JSON


@pytest.mark.attack("F13")
@pytest.mark.parametrize("content", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_file_that_holds_no_object_is_refused_by_its_name(content, tmp_path):
    write_damaged(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match="x.json"):
        read_json_object(tmp_path / "x.json")


def test_object_is_read_as_json_reads_it(tmp_path):
    for text in ("{}", '{"ä": [1, {"b": null}]}', nested(JSON_DEPTH)):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert read_json_object(tmp_path / "x.json") == json.loads(text)


@pytest.fixture(scope="module")
def native_original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "InternVL3-Test"
    native_source(folder, "qwen2")
    return folder


@pytest.fixture
def native(native_original, tmp_path) -> Path:
    return Path(shutil.copytree(native_original, tmp_path / "InternVL3-Test"))


READ_BY_CONVERT = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer_config.json",
]
READ_BY_PUSH = [
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
]
SOME = ["a list", "null", "nested deeply", "another encoding"]


@pytest.mark.attack("F13")
@pytest.mark.parametrize("name", READ_BY_CONVERT)
@pytest.mark.parametrize("content", SOME)
def test_convert_says_which_file_is_no_object_before_anything_is_written(content, name, source):
    write_damaged(source / name, NO_OBJECTS[content])
    assert name in pvc("convert", source, source.parent / "PVC", "--temporal-layers", "2")
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.attack("F13")
@pytest.mark.parametrize("name", READ_BY_PUSH)
@pytest.mark.parametrize("content", SOME)
def test_push_says_which_file_is_no_object(content, name, checkpoint):
    write_damaged(checkpoint / name, NO_OBJECTS[content])
    assert name in pvc("push", checkpoint, "someone/PVC")


@pytest.mark.attack("F13")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", SOME)
def test_model_says_which_file_of_its_folder_is_no_object(content, name, checkpoint):
    write_damaged(checkpoint / name, NO_OBJECTS[content])
    with pytest.raises((ValueError, OSError), match=name):
        PVCForConditionalGeneration.from_pretrained(checkpoint)
    with pytest.raises((ValueError, OSError), match=name):
        PVCConfig.from_pretrained(checkpoint)


@pytest.mark.attack("F13")
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", SOME)
def test_processor_says_which_file_of_its_folder_is_no_object(content, name, checkpoint):
    write_damaged(checkpoint / name, NO_OBJECTS[content])
    with pytest.raises((ValueError, OSError), match=name):
        PVCProcessor.from_pretrained(checkpoint)


@pytest.mark.attack("F13")
@pytest.mark.parametrize("content", SOME)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_chat_says_which_file_of_its_folder_is_no_object(content, name, checkpoint):
    write_damaged(checkpoint / name, NO_OBJECTS[content])
    assert name in pvc("chat", checkpoint, "Hello?")


NO_INDEXES = {
    "no map": {},
    "map of another type": {"weight_map": []},
    "numbers": {"weight_map": {"a": 1}},
    "parent": {"weight_map": {"a": "../model.safetensors"}},
    "absolute": {"weight_map": {"a": "/model.safetensors"}},
    "subfolder": {"weight_map": {"a": "x/model.safetensors"}},
    "drive": {"weight_map": {"a": "C:model.safetensors"}},
    "backslash": {"weight_map": {"a": "..\\model.safetensors"}},
    "NUL": {"weight_map": {"a": "model.safetensors\0"}},
}


@pytest.mark.attack("F13")
@pytest.mark.parametrize("index", NO_INDEXES.values(), ids=NO_INDEXES)
def test_index_names_files_beside_it_and_nothing_else(index, checkpoint):
    write_json(checkpoint / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match="index.json is not an index of weights"):
        SourceWeights(checkpoint)
    with pytest.raises(ValueError, match="index.json is not an index of weights"):
        PVCForConditionalGeneration.from_pretrained(checkpoint)


@pytest.mark.attack("F13")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)], ids=["folder", "pipe"])
def test_weights_that_are_no_file_are_refused_and_not_waited_for(make, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    make(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors is no file of weights"):
        SourceWeights(checkpoint)


@pytest.mark.attack("F13")
def test_index_with_a_tensor_twice_is_refused(checkpoint):
    twice = '{"weight_map": {"a": "model.safetensors", "a": "other.safetensors"}}'
    (checkpoint / "model.safetensors.index.json").write_text(twice)
    with pytest.raises(CheckpointError, match="'a' is there twice"):
        SourceWeights(checkpoint)


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


NO_WEIGHTS = {
    "nothing": b"",
    "garbage": b"garbage" * 99,
    "a length beyond the file": b"\xff" * 8,
    "nested deeply": header('{"a":' * 100_000),
    "a list": header("[]"),
    "offsets of text": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":["0","4"]}}'),
    "a negative size": header('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'),
    "a size without data": header('{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'),
    "an unknown type": header('{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
    "a pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.attack("F13")
@pytest.mark.parametrize("content", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_damaged_header_is_told_by_the_name_of_its_file(content, checkpoint):
    (checkpoint / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in pvc("push", checkpoint, "someone/PVC")
    with pytest.raises(OSError, match="damaged"):
        PVCForConditionalGeneration.from_pretrained(checkpoint)


@pytest.mark.attack("F13")
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}q\x00."])
def test_damaged_pickle_is_told_as_damaged(content, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        PVCForConditionalGeneration.from_pretrained(checkpoint)


# ---- values of another type


NO_VALUES = {  # field, value, what the error names
    ("llm_config", "max_position_embeddings"): ["x", None, -1, 0, 1e400, []],
    ("llm_config", "rms_norm_eps"): ["x", [], None, -1e-6, 1e400],
    ("llm_config", "rope_theta"): ["x", 0, []],
    ("llm_config", "hidden_act"): ["x", 5, [], None],
    ("llm_config", "vocab_size"): ["x", 0, -1, 10**30, None],
    ("llm_config", "hidden_size"): ["x", 0, [], 10**30],
    ("llm_config", "num_hidden_layers"): ["x", 0, 10**9, 1.5, None],
    ("llm_config", "model_type"): [5, [], {}],
    ("llm_config", "eos_token_id"): ["x", {}, 1.5],
    ("vision_config", "layer_norm_eps"): ["x", [], None, 0],
    ("vision_config", "hidden_size"): ["x", 0, None, 1e400],
    ("vision_config", "num_hidden_layers"): ["x", 0, 10**9],
    ("vision_config", "image_size"): ["x", 0, [], 1.5],
    ("vision_config", "patch_size"): ["x", 0, None],
    ("vision_config", "drop_path_rate"): ["x", -1, None],
    ("vision_config", "qkv_bias"): ["x", None, 5],
    ("vision_config",): ["x", [], None, 5, {}],
    ("llm_config",): ["x", [], None, 5, {}],
    ("downsample_ratio",): ["x", 0, -1, None, [], 1e400],
    ("force_image_size",): ["x", -1, [1]],
    ("max_dynamic_patch",): ["x", 0, None, 10**9, 1.5],
    ("min_dynamic_patch",): ["x", 0, None, 10**9],
    ("select_layer",): ["x", None, 99],
    ("template",): [5, [1], {"a": 1}],
    ("ps_version",): [5, [], None],
    ("dynamic_image_size",): ["x", None],
}


@pytest.mark.attack("F13")
@pytest.mark.parametrize("field", NO_VALUES, ids=".".join)
def test_convert_refuses_values_of_another_type_or_size_before_anything_is_written(field, source):
    content = (source / "config.json").read_text()
    for value in NO_VALUES[field]:

        def change(values, value=value):
            part = values[field[0]] if len(field) > 1 else values
            part[field[-1]] = value

        edit_json(source / "config.json", change)
        pvc("convert", source, source.parent / "PVC", "--temporal-layers", "2")
        assert [path.name for path in source.parent.iterdir()] == [source.name]
        (source / "config.json").write_text(content)


@pytest.mark.attack("F19")
def test_convert_refuses_tiles_without_limit(source):
    edit_json(source / "config.json", lambda values: values.update(max_dynamic_patch=10**9))
    said = pvc("convert", source, source.parent / "PVC", "--temporal-layers", "2")
    assert "max_dynamic_patch" in said and "1000000000" in said


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "max_position_embeddings", "x"),
        ("text_config", "rms_norm_eps", []),
        ("text_config", "num_hidden_layers", 10**9),
        ("vision_config", "image_size", "x"),
        ("vision_config", "hidden_act", "x"),
        ("vision_config", "layer_norm_eps", -1),
    ],
)
@pytest.mark.attack("F13")
def test_native_configuration_of_another_type_is_refused(part, name, value, native):
    edit_json(native / "config.json", lambda values: values[part].update({name: value}))
    said = pvc("convert", native, native.parent / "PVC", "--temporal-layers", "2")
    assert "config.json" in said and names(native.parent) == {native.name}


@pytest.mark.attack("F19")
def test_tiles_without_limit_of_a_native_source_are_refused(native):
    write_json(native / "preprocessor_config.json", {"max_patches": 10**9})
    said = pvc("convert", native, native.parent / "PVC", "--temporal-layers", "2")
    assert "max_dynamic_patch" in said


def test_error_of_the_converter_names_its_option(source):
    said = pvc("convert", source, source.parent / "PVC")  # 8 layers by default, the ViT has 4
    assert "--temporal-layers is 8: expected 0 to 4" in said


# ---- links


def link_to_a_secret(name: str):
    def change(checkpoint: Path):
        secret = checkpoint.parent / "id_rsa"
        secret.write_text("PRIVATE")
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).unlink(missing_ok=True)
        (checkpoint / name).symlink_to(secret)

    return change


def linked_folder(checkpoint: Path):
    (checkpoint.parent / "photos").mkdir()
    (checkpoint.parent / "photos" / "me.png").write_text("PRIVATE")
    (checkpoint / "assets").symlink_to(checkpoint.parent / "photos")


def dangling_card(checkpoint: Path):
    """A card is made where there is none: here it would be made elsewhere."""
    (checkpoint / "README.md").unlink()
    (checkpoint / "README.md").symlink_to(checkpoint.parent / "new file")


def code_in_the_parent(checkpoint: Path):
    (checkpoint.parent / "other.py").write_text("class Other: pass\n")
    edit_json(
        checkpoint / "config.json",
        lambda values: values["auto_map"].update(AutoModelForSeq2SeqLM="../other.Other"),
    )


def absolute_code(checkpoint: Path):
    (checkpoint.parent / "other.py").write_text("class Other: pass\n")
    edit_json(
        checkpoint / "config.json",
        lambda values: values["auto_map"].update(AutoModelForSeq2SeqLM=f"{checkpoint.parent}/other.Other"),
    )


LEADING_OUT = {
    "license": (link_to_a_secret("LICENSE"), "LICENSE"),
    "asset": (link_to_a_secret("assets/a.png"), "a.png"),
    "merges": (link_to_a_secret("merges.txt"), "merges.txt"),
    "vocabulary": (link_to_a_secret("tokenizer.model"), "tokenizer.model"),
    "template": (link_to_a_secret("chat_template.jinja"), "chat_template.jinja"),
    "configuration": (link_to_a_secret("config.json"), "config.json"),
    "code": (link_to_a_secret("modeling_pvc.py"), "modeling_pvc.py"),
    "weights": (link_to_a_secret("model.safetensors"), "model.safetensors"),
    "folder": (linked_folder, "assets"),
    "dangling card": (dangling_card, "README.md"),
    "auto_map to the parent": (code_in_the_parent, "config.json"),
    "auto_map to an absolute path": (absolute_code, "config.json"),
}


@pytest.mark.attack("F14")
@pytest.mark.parametrize("name", LEADING_OUT)
def test_push_refuses_what_leads_out_of_the_folder(name, checkpoint):
    change, said = LEADING_OUT[name]
    change(checkpoint)
    with pytest.raises(CheckpointError, match=said):
        checked_files(checkpoint)
    assert said in pvc("push", checkpoint, "someone/PVC")
    assert not (checkpoint.parent / "new file").exists()


def test_push_takes_links_within_the_folder_and_into_the_hub_cache(checkpoint, tmp_path):
    (checkpoint / "LICENSE").write_text("MIT")
    (checkpoint / "LICENSE-too").symlink_to("LICENSE")
    assert {"LICENSE", "LICENSE-too"} <= set(checked_files(checkpoint))

    repository = tmp_path / "models--someone--PVC"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(checkpoint.iterdir()):
        shutil.copy(file, blobs / f"{i:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    assert checked_files(snapshot) == checked_files(checkpoint)
