"""Publishing: what goes to the Hub is a whole checkpoint and nothing else, and loads where `pvc` is not.

The Hub is `hub_stand_in`, on loopback. What must not depend on this process (loading back, transformers' own
`push_to_hub`, the environment's HF_ENDPOINT) runs in others; the rest here, where the client is told the
stand-in's address.
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import tiny_config, tiny_model
from checkpoint_files import MEDIA_FILES, MODEL_FILES, NEVER_NEEDED, run_python
from hub_stand_in import StandIn, connected_stand_in, environment
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file
from typer.testing import CliRunner

from pvc import CHECKPOINT, cli
from pvc.configuration_pvc import PVCConfig
from pvc.hub import checked_files, model_card, push
from pvc.hub.push import logger
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

IMAGE, VIDEO = (str(CHECKPOINT / "assets" / name) for name in ("picture1.png", "video.mp4"))
REPO = "someone/PVC-Test"
SHARD_SIZE = "200KB"
FILES = {  # of a pushed checkpoint, but for the weights
    *("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja", "README.md"),
    *("tokenizer.model", "tokenizer_config.json", "added_tokens.json"),
    *(*MODEL_FILES, *MEDIA_FILES, "processing_pvc.py"),
    *("chat_template.py", "engine_inputs.py", "processing_options.py", "processor_fields.py"),
}


@pytest.fixture(scope="module")
def original():
    """A model and its processor."""
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041)
    tokenizer = InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    return model, PVCProcessor(PVCImageProcessor.from_model_config(model.config), tokenizer, num_frames=4)


@pytest.fixture(scope="module")
def saved(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    original[0].save_pretrained(folder, max_shard_size=SHARD_SIZE)
    original[1].save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) >= 4
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "PVC"))


@pytest.fixture
def hub(monkeypatch):
    with connected_stand_in(monkeypatch) as server:
        yield server


def pvc_push(*arguments):
    return CliRunner().invoke(cli.app, ["push", *map(str, arguments)])


def files(hub: StandIn, branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[REPO]
    held = repository.commits[repository.branches[branch]]
    return {name: blob.content for name, blob in held.items() if name != ".gitattributes"}


# ---- pushed, and loaded back where pvc is not installed


def ask(model, processor, question: str, *media: dict) -> list:
    """The ids of an answer, and the visual tokens it was made from. Runs here and in other processes."""
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [*media, {"type": "text", "text": question}]}],
        **{"add_generation_prompt": True, "tokenize": True, "return_dict": True},
    )
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"], inputs["clip_grid"]).last_hidden_state
    output = model.generate(**inputs, max_new_tokens=128)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer, features.flatten().tolist()]


LOAD_AND_ASK = f"""
import contextlib, io, json, re
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

{inspect.getsource(ask)}

path, revision, picture, video = sys.argv[1:]
model = AutoModel.from_pretrained(path, revision=revision, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=True)
media = {{"type": "image", "path": picture}}, {{"type": "video", "path": video}}
asked = ask(model, processor, "What is the same?", *media)

card = ModelCard.load(path)
(example,) = re.findall("```python\\n(.*?)```", card.text, re.DOTALL)
with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(example.replace('"image.jpg"', repr(picture)).replace('"video.mp4"', repr(video)))
print(json.dumps({{
    "packages": sorted({{type(x).__module__.split(".")[0] for x in (model, processor, processor.tokenizer)}}),
    "asked": asked,
    "card": card.data.to_dict(),
    "printed": printed.getvalue(),
}}))
"""


@pytest.fixture(scope="module")
def published(saved, tmp_path_factory) -> tuple[list[str], dict]:
    """What was logged as `pvc push` ran, and what a process that has no `pvc` then saw of the result."""
    place = tmp_path_factory.mktemp("published")
    shutil.copytree(saved, place / "PVC")
    logged = []
    with pytest.MonkeyPatch.context() as monkeypatch, connected_stand_in(monkeypatch) as hub:
        monkeypatch.setattr(logger, "warning", logged.append)
        done = pvc_push(place / "PVC", REPO)
        commit = hub.repositories[REPO].branches["main"]
        assert done.stdout == f"{hub.endpoint}/{REPO}/commit/{commit}\n"
        arguments, hidden = (
            (REPO, commit, IMAGE, VIDEO),
            ("pvc", *(set(NEVER_NEEDED) - {"accelerate", "av"})),
        )
        settings = environment(hub, place / "home")
        printed = run_python(LOAD_AND_ASK, *arguments, cwd=place, hidden=hidden, **settings)
    return logged, json.loads(printed)


def test_pushed_checkpoint_answers_alike_where_pvc_is_not_installed(published, original):
    _, report = published
    media = {"type": "image", "path": IMAGE}, {"type": "video", "path": VIDEO}
    assert report["packages"] == ["transformers_modules"]
    assert report["asked"] == ask(*original, "What is the same?", *media)


def test_example_of_the_card_runs_and_prints_the_answers(published, original):
    image, video = {"type": "image", "path": IMAGE}, {"type": "video", "path": VIDEO}
    (about_image, _), (about_video, _) = (
        ask(*original, "What is in the image?", image),
        ask(*original, "What happens in the video?", video),
    )
    assert published[1]["printed"] == f"{about_image}\n{about_video}\n"


def test_missing_card_is_made_and_said_and_the_hub_reads_it(published):
    (logged,), report = published
    assert "had no README.md: one was made" in logged
    assert report["card"]["pipeline_tag"] == "image-text-to-text"
    assert "base_model" not in report["card"] and "license" not in report["card"]


PUSH_OBJECTS = """
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoProcessor
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor
from pvc.hub.push import checked_files
import sys
from pathlib import Path

saved, repo = sys.argv[1:]
model = PVCForConditionalGeneration.from_pretrained(saved)
processor = PVCProcessor.from_pretrained(saved, trust_remote_code=True)
assert type(processor) is PVCProcessor
model.push_to_hub(repo, max_shard_size="200KB")
commit = processor.push_to_hub(repo).oid
again = AutoModel.from_pretrained(repo, revision=commit, trust_remote_code=True)
assert type(again).__module__.startswith("transformers_modules")
assert type(AutoProcessor.from_pretrained(repo, revision=commit, trust_remote_code=True)) is not PVCProcessor
expected = model.state_dict()
assert again.state_dict().keys() == expected.keys()
assert all(value.equal(expected[name]) for name, value in again.state_dict().items())
print(*checked_files(Path(snapshot_download(repo, revision=commit))))
"""


@pytest.mark.slow
def test_push_to_hub_of_model_and_processor_makes_a_whole_checkpoint(saved, tmp_path):
    with StandIn() as hub:
        settings = os.environ | environment(hub, tmp_path)
        command = [sys.executable, "-c", PUSH_OBJECTS, saved, REPO]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= FILES


# ---- what is sent


def test_parts_of_the_checkpoint_are_sent_and_nothing_that_lies_beside_them(hub, folder, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning", said.append)
    sent = ("LICENSE", "conversion.tsv", "assets/picture.png")
    kept = (
        ".env",
        ".git/config",
        "__pycache__/x.pyc",
        "token.txt",
        "optimizer.pt",
        "runs/assets/x.png",
        "x.py",
    )
    for name in sent + kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    push(folder, REPO)
    weights = {file.name for file in folder.glob("model*")}
    assert files(hub).keys() == FILES | weights | set(sent)
    assert all(content == (folder / name).read_bytes() for name, content in files(hub).items())
    assert said[1] == "not part of the checkpoint, and not sent: optimizer.pt, runs, token.txt, x.py"


def test_card_that_is_there_is_sent_as_it_is(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    push(folder, REPO)
    assert files(hub)["README.md"] == b"---\nlicense: mit\n---\n\n# Mine\n"


def test_unchanged_checkpoint_makes_no_new_commit(hub, folder):
    address = push(folder, REPO)
    arrived, commits = list(hub.arrived), dict(hub.repositories[REPO].commits)
    assert push(folder, REPO) == address
    assert (hub.arrived, hub.repositories[REPO].commits) == (arrived, commits)


def test_one_changed_file_is_the_only_one_in_the_next_commit(hub, folder):
    push(folder, REPO, message="First")
    before, arrived = files(hub), len(hub.arrived)
    (folder / "generation_config.json").write_text("{}")
    address = push(folder, REPO, message="Second")
    assert {name for name, content in files(hub).items() if before[name] != content} == {
        "generation_config.json"
    }
    assert len(hub.arrived) == arrived
    assert hub.repositories[REPO].messages[1:] == ["First", "Second"]
    assert address.endswith(hub.repositories[REPO].branches["main"])


def test_weights_of_an_earlier_upload_do_not_stay_beside_the_new(hub, folder, original):
    push(folder, REPO)
    assert len(shards := [name for name in files(hub) if name.endswith(".safetensors")]) >= 4
    for name in (*shards, "model.safetensors.index.json"):
        (folder / name).unlink()
    original[0].save_pretrained(folder)
    push(folder, REPO)
    assert [name for name in files(hub) if name.startswith("model.")] == ["model.safetensors"]
    assert not set(shards) & files(hub).keys()


# ---- where it goes


def test_private_repository_and_branch_are_made_and_main_is_left_alone(hub, folder):
    address = push(folder, REPO, private=True, revision="v2")
    repository = hub.repositories[REPO]
    assert repository.private
    assert address == f"{hub.endpoint}/{REPO}/commit/{repository.branches['v2']}"
    assert files(hub, "main") == {} and files(hub, "v2").keys() > FILES
    push(folder, REPO, private=True, revision="v2")  # both are there now


def test_repository_is_public_unless_it_is_said_otherwise(hub, folder):
    push(folder, REPO)
    assert not hub.repositories[REPO].private


def test_nothing_private_is_sent_to_a_public_repository(hub, folder):
    push(folder, REPO)
    (folder / "generation_config.json").write_text("{}")
    before = files(hub)
    with pytest.raises(ValueError, match=f"{REPO} exists and is public"):
        push(folder, REPO, private=True)
    assert files(hub) == before


def test_name_alone_is_in_ones_own_namespace(hub, folder):
    assert push(folder, "PVC-Test").startswith(f"{hub.endpoint}/{hub.USER}/PVC-Test/")


# ---- where something goes wrong


def test_after_a_broken_connection_the_same_command_sends_only_what_had_not_arrived(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
    hub.breaks_after = 2
    failed = pvc_push(folder, REPO)
    assert failed.exit_code == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: the upload to") and "push again" in last
    assert files(hub) == {} and len(hub.arrived) == 2

    hub.breaks_after = None
    assert pvc_push(folder, REPO).exit_code == 0
    large = [name for name in files(hub) if name.endswith((".safetensors", ".model"))]
    assert len(hub.arrived) == len(set(hub.arrived)) == len(large) >= 5
    assert all(content == (folder / name).read_bytes() for name, content in files(hub).items())


def assert_one_line(result, *said: str):
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(x in line for x in said), line


@pytest.fixture
def with_card(folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def test_wrong_token_is_told_in_the_words_of_the_hub_in_one_line(hub, with_card, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = pvc_push(with_card, REPO)
    assert_one_line(refused, "401", "Invalid credentials in Authorization header", "HF_TOKEN")
    assert "hf_wrong" not in refused.stderr and not hub.repositories


def test_unreachable_hub_is_told_in_one_line(hub, with_card, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_one_line(pvc_push(with_card, REPO), "127.0.0.1:9")


def edit(name: str, **changes):
    """Changes values of a JSON file; None removes one."""

    def change(folder: Path):
        values = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({x: y for x, y in values.items() if y is not None}))

    return change


def write(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def remove(*patterns: str):
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def cut_a_shard(folder: Path):
    shard = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    os.truncate(shard, shard.stat().st_size - 4)


def deeper_llm(folder: Path):
    llm = json.loads((folder / "config.json").read_text())["llm_config"]
    edit("config.json", llm_config=llm | {"num_hidden_layers": 4})(folder)


def wider_llm(folder: Path):
    llm = json.loads((folder / "config.json").read_text())["llm_config"]
    edit("config.json", llm_config=llm | {"intermediate_size": 128})(folder)


def pickles(folder: Path):
    remove("model-*", "*.index.json")(folder)
    (folder / "pytorch_model.bin").touch()


AUTO_MAP = json.loads((CHECKPOINT / "config.json").read_text())["auto_map"]
MODEL = "modeling_pvc.PVCForConditionalGeneration"
INCOMPLETE = {
    "no folder": (shutil.rmtree, ["no folder"]),
    "no configuration": (remove("config.json"), ["lacks config.json"]),
    "another model": (edit("config.json", model_type="internvl_chat"), ["'internvl_chat'"]),
    "values that do not fit": (edit("config.json", image_repeats=0), ["image_repeats is 0"]),
    "quantised weights": (edit("config.json", quantization_config={}), ["quantised"]),
    "no auto_map": (
        edit("config.json", auto_map=None),
        ["auto_map of config.json", "AutoModel", "save_pretrained"],
    ),
    "no auto_map of the processor": (edit("processor_config.json", auto_map={}), ["AutoProcessor"]),
    "no auto_map of the image processor": (
        edit("processor_config.json", image_processor={}),
        ["AutoImageProcessor"],
    ),
    "no auto_map of the tokenizer": (edit("tokenizer_config.json", auto_map=None), ["AutoTokenizer"]),
    "code of another repository": (
        edit("config.json", auto_map=AUTO_MAP | {"AutoModel": f"org/x--{MODEL}"}),
        ["another repository", f"org/x--{MODEL}"],
    ),
    "weights without code": (remove("*.py"), ["chat.py", "preprocess.py", "copy", str(CHECKPOINT)]),
    "a module that another imports": (remove("conversation.py"), ["conversation.py", str(CHECKPOINT)]),
    "code of another class": (write("modeling_pvc.py", "x = 1"), ["PVCForConditionalGeneration"]),
    "code cut short": (write("preprocess.py", "def f("), ["preprocess.py is not Python"]),
    "no weights": (remove("model-*", "*.index.json"), ["has no weights"]),
    "pickled weights": (pickles, ["pickles"]),
    "no index": (remove("*.index.json"), ["no model.safetensors.index.json"]),
    "a shard missing": (remove("model-00002*"), ["lacks model-00002"]),
    "a shard cut short": (cut_a_shard, ["damaged"]),
    "an index of other files": (write("model.safetensors.index.json", "{}"), ["is not an index"]),
    "weights of fewer layers": (deeper_llm, ["lacks 7 of", "layers.3"]),
    "weights of another width": (wider_llm, ["feed_forward.w1.weight is (96, 48)", "(128, 48)"]),
    "no tokenizer": (
        remove("tokenizer_config.json"),
        ["lacks tokenizer_config.json", "tokenizer.save_pretrained"],
    ),
    "no vocabulary": (remove("tokenizer.model"), ["vocabulary"]),
    "no processor": (remove("processor_config.json"), ["processor_config.json", "PVCProcessor("]),
    "no chat template": (remove("chat_template.jinja"), ["lacks chat_template.jinja"]),
    "a file that is not JSON": (write("generation_config.json", "{"), ["generation_config.json is not JSON"]),
    "a list for an object": (write("processor_config.json", "[]"), ["a list"]),
    "a card that cannot be read": (write("README.md", "---\nlicense: [\n---\n"), ["README.md"]),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_folder_is_refused_in_one_line_before_any_request(name, hub, folder):
    damage, said = INCOMPLETE[name]
    damage(folder)
    assert_one_line(pvc_push(folder, REPO), *said)
    assert hub.requests == []
    assert name == "a card that cannot be read" or not (folder / "README.md").exists()


def test_impossible_repo_id_is_refused_before_any_request(hub, folder):
    assert_one_line(pvc_push(folder, "a/b/c"), "a/b/c")
    assert hub.requests == [] and not (folder / "README.md").exists()


def test_tied_head_is_no_missing_weight(original, folder):
    config = tiny_config(llm_config={"vocab_size": 2048, "tie_word_embeddings": True}, image_token_id=2041)
    config.save_pretrained(folder)
    remove("model*.safetensors", "*.index.json")(folder)
    weights = {name: value for name, value in original[0].state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")
    assert "model.safetensors" in checked_files(folder)


def test_pvc_tiny_is_whole():
    assert {"config.json", "model.safetensors", "preprocess.py", "LICENSE"} <= set(checked_files(CHECKPOINT))
    assert not {"cli.py", "hub/push.py", "pyproject.toml"} & set(checked_files(CHECKPOINT))


# ---- the card


def test_metadata_of_the_card_is_what_the_hub_reads():
    card = ModelCard(
        model_card(PVCConfig(), base_model="org/Base", license="apache-2.0", name="PVC-8B", notes="*So.*")
    )
    expected = {
        "base_model": "org/Base",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "license": "apache-2.0",
    }
    assert expected.items() <= card.data.to_dict().items()
    assert {"pvc", "custom_code", "video-text-to-text"} <= set(card.data.tags)
    said = (
        "# PVC-8B",
        "](https://huggingface.co/org/Base)",
        "*So.*",
        'path = "PVC-8B"',
        "license apache-2.0",
    )
    assert all(x in card.text for x in said)


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {},
            [
                "InternLM2, 32 layers",
                "last 8 with causal temporal attention",
                "64 visual tokens",
                "13 tiles: 3328",
                "4 times",
                "once",
            ],
        ),
        (
            {"image_repeats": 2, "video_repeats": 3},
            ["13 tiles: 1664", "an image is shown 2 times", "video 3 times"],
        ),
        (
            {"dynamic_image_size": False, "downsample_ratio": 0.5},
            ["at most 1 tiles: 1024", "256 visual tokens"],
        ),
        (
            {"vision_config": {"num_temporal_layers": 0}},
            ["24 layers of width 1024, none of them with temporal attention"],
        ),
        ({"adaptive_compression": False}, ["after a LayerNorm"]),
        ({"llm_config": {"model_type": "qwen3", "hidden_size": 1536}}, ["Qwen3", "width 1536"]),
    ],
)
def test_card_says_what_the_configuration_makes_of_the_model(changes, said):
    card = model_card(PVCConfig(**changes), base_model=None, license=None, name="PVC")
    assert all(x in card for x in said), card


def test_folder_is_no_base_model():
    with pytest.raises(ValueError, match="/home/me/InternVL"):
        model_card(PVCConfig(), base_model="/home/me/InternVL", license=None, name="PVC")
