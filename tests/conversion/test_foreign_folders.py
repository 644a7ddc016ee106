"""Folders that somebody else made: what they name is read, run, sent or replaced only within them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conversion_sources import native_source, remote_code_source
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pvc import CHECKPOINT, cli
from pvc.configuration_pvc import PVCConfig
from pvc.conversion.files import CheckpointError, SourceWeights, atomic_directory, check_code_within
from pvc.conversion.printable import in_a_line, printable
from pvc.convert_weights import Conversion, Options
from pvc.hub import checked_files
from pvc.hub.card import write_card
from pvc.json_files import JSON_DEPTH, read_json_object
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor

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


# ---- JSON


def nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


NO_OBJECTS = {
    "a list": "[]",
    "a number": "5",
    "text": '"config"',
    "null": "null",
    "nothing": "",
    "nested deeply": nested(100_000),
    "nested less deeply": nested(JSON_DEPTH + 1),
    "a list nested deeply": "[" * 100_000,
    "another encoding": b'{"a": "\xff"}',
    "bytes": bytes(100),
    "a name twice": '{"model_type": "internvl_chat", "model_type": "pvc"}',
    "a number of many digits": '{"a": ' + "1" * 10_000 + "}",
}


def write_damaged(file: Path, content: str | bytes):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


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
def original(tmp_path_factory) -> Path:
    """An InternVL, and the PVC that it becomes, `PVC` beside it."""
    folder = tmp_path_factory.mktemp("original") / "InternVL2-Test"
    remote_code_source(folder, "internlm2")
    Conversion(folder, folder.parent / "PVC", Options(temporal_layers=2)).run()
    return folder


@pytest.fixture
def source(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "InternVL2-Test"))


@pytest.fixture
def checkpoint(original, tmp_path) -> Path:
    return Path(shutil.copytree(original.parent / "PVC", tmp_path / "checkpoint"))


def pvc(*arguments) -> str:
    """What a command that must fail prints on stderr: one line, without a traceback."""
    done = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def native_original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "InternVL3-Test"
    native_source(folder, "qwen2")
    return folder


@pytest.fixture
def native(native_original, tmp_path) -> Path:
    return Path(shutil.copytree(native_original, tmp_path / "InternVL3-Test"))


def edit_json(file: Path, edit):
    values = json.loads(file.read_text())
    edit(values)
    write_json(file, values)


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


# ---- a folder that is replaced


def convert(source: Path, target: Path, **options):
    Conversion(source, target, Options(temporal_layers=2, overwrite=True, **options)).run()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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
    "a script among pictures": (checkpoint_with("assets/draw.py"), "assets"),
    "a folder among pictures": (checkpoint_with("assets/mine/notes"), "assets"),
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
