"""The forms in which PVC travels: a saved folder, a Hub repository, a clone, a wheel.

Each is used in a process of its own that finds nothing else of this repository.
"""

import ast
import inspect
import json
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from builders import tiny_model
from checkpoint_files import (
    AUTO_MAP,
    CHECKPOINT_FILES,
    DYNAMIC_VLM_FILES,
    MEDIA_FILES,
    MODEL_FILES,
    NEEDED,
    NEVER_NEEDED,
    ROOT,
    run,
    run_python,
)
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import pvc
from pvc import CHECKPOINT
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tokenization_internlm2 import InternLM2Tokenizer

OTHER_FILES = (
    "processor_config.json",
    "py.typed",
    "tiny/synthetic/board_tasks.yaml",
    "tiny/synthetic/tasks.yaml",
)
ROOT_FILES = [*MODEL_FILES, *DYNAMIC_VLM_FILES, *MEDIA_FILES]

# ---- the files themselves


@pytest.mark.parametrize("name", ROOT_FILES)
def test_root_file_asks_for_few_packages(name):
    packages = set(get_imports(ROOT / name)) - sys.stdlib_module_names
    assert packages <= NEEDED | ({"sentencepiece"} if name.startswith("tokenization") else set())


@pytest.mark.parametrize("name", ROOT_FILES)
def test_relative_imports_are_those_that_transformers_finds_and_copies(name):
    tree = ast.parse((ROOT / name).read_text())
    imported = {(n.level, n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level}
    assert imported == {(1, module) for module in get_relative_imports(ROOT / name)}
    assert all(f"{module}.py" in ROOT_FILES for _, module in imported)


def test_model_files_import_without_any_optional_package(tmp_path):
    (tmp_path / "pvc").mkdir()
    for file in ROOT.glob("*.py"):
        shutil.copy(file, tmp_path / "pvc")
    modules = [f"pvc.{name[:-3]}" for name in ROOT_FILES if "tokenization" not in name]
    script = "for name in sys.argv[1:]:\n    __import__(name)\nprint(sys.modules['pvc'].__file__)"
    printed = run_python(script, *modules, cwd=tmp_path, hidden=(*NEVER_NEEDED, "sentencepiece"))
    assert Path(printed.strip()).is_relative_to(tmp_path)


def test_import_of_the_package_imports_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "pvc").symlink_to(ROOT)
    script = "import pvc, dir_of_pvc\nprint({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    (tmp_path / "dir_of_pvc.py").write_text("import pvc\nassert 'modeling_pvc' in dir(pvc), dir(pvc)\n")
    assert run_python(script, cwd=tmp_path) == "set()\n"


def test_modules_and_public_names_are_reached_after_import_of_the_package_alone(tmp_path):
    (tmp_path / "pvc").symlink_to(ROOT)
    script = """
import pvc
names = ["PVCConfig", "PVCForConditionalGeneration", "PVCProcessor", "load_image", "load_video"]
assert all(getattr(pvc, name).__name__ == name for name in names), names
assert pvc.load_image is pvc.preprocess.load_image and pvc.conversion.__path__
assert pvc.quantization_config is pvc.loading.quantization_config
assert set(names) <= set(pvc.__all__) <= set(dir(pvc)) and {"modeling_pvc", "training"} <= set(dir(pvc))
assert not hasattr(pvc, "nothing") and not hasattr(pvc, "tests")
from pvc import *
print(PVCConfig.model_type)
"""
    assert run_python(script, cwd=tmp_path) == "pvc\n"


def test_version_is_that_of_the_installed_package():
    assert pvc.__version__ == version("pvc")


# ---- a saved folder, and a Hub repository


def ask(model, tokenizer) -> tuple[list[float], str]:
    """Visual tokens of an image of two tiles, and an answer about it. Runs here and in other processes."""
    pixel_values = torch.linspace(-1, 1, 2 * 3 * 56 * 56).view(2, 3, 56, 56)
    with torch.no_grad():
        tokens = model.get_image_features(pixel_values).last_hidden_state
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    return tokens.flatten().tolist(), model.chat(tokenizer, pixel_values, "What is this?", settings)


LOAD_ASK_SAVE = f"""
import json
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
)

{inspect.getsource(ask)}

path, save_to = sys.argv[1:]
config, tokenizer, *models = [
    auto.from_pretrained(path, trust_remote_code=True)
    for auto in (AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText)
]
models[0].save_pretrained(save_to)
tokenizer.save_pretrained(save_to)
objects = [config, tokenizer, *models]
print(json.dumps({{
    "classes": [type(o).__name__ for o in objects],
    "packages": sorted({{type(o).__module__.split(".")[0] for o in objects}}),
    "asked": [ask(model, tokenizer) for model in models],
}}))
"""


def assert_loaded_and_asked(printed: str, model, tokenizer):
    report = json.loads(printed)
    assert report["classes"] == ["PVCConfig", "InternLM2Tokenizer"] + ["PVCForConditionalGeneration"] * 3
    assert report["packages"] == ["transformers_modules"]
    tokens, answer = ask(model, tokenizer)
    assert answer and report["asked"] == [[tokens, answer]] * 3


def assert_same_files(folder: Path, other: Path, *names: str):
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def model() -> PVCForConditionalGeneration:
    return tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041)  # the vocabulary of PVC-Tiny


@pytest.fixture(scope="module")
def tokenizer() -> InternLM2Tokenizer:
    return InternLM2Tokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def saved(model, tokenizer, tmp_path_factory) -> Path:
    """What the classes of the package save."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved_again(saved, tmp_path_factory) -> tuple[Path, str]:
    """What a process without the package loaded from there and saved, and what it printed."""
    folder = tmp_path_factory.mktemp("saved-again")
    hidden = ("pvc", *NEVER_NEEDED)
    return folder, run_python(LOAD_ASK_SAVE, saved, folder, cwd=folder.parent, hidden=hidden)


def test_saved_folder_is_the_checkpoint_with_its_code(saved):
    written_for_old_readers = "added_tokens.json"
    files = {file.name for file in saved.iterdir()} - {written_for_old_readers}
    assert files == {*MODEL_FILES, *CHECKPOINT_FILES}
    assert_same_files(saved, ROOT, *MODEL_FILES)


@pytest.mark.parametrize("folder", ["saved", "saved again", "the root"])
def test_auto_classes_lead_to_files_of_the_same_folder(folder, saved, saved_again):
    folder = {"saved": saved, "saved again": saved_again[0], "the root": ROOT}[folder]
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    auto_map = json.loads((folder / "tokenizer_config.json").read_text())["auto_map"]
    assert auto_map == {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}


def test_saved_folder_answers_alike_where_pvc_is_not_installed(saved_again, model, tokenizer):
    assert_loaded_and_asked(saved_again[1], model, tokenizer)


def test_code_weights_and_vocabulary_are_the_same_files_when_saved_again(saved, saved_again):
    assert_same_files(saved, saved_again[0], *MODEL_FILES, "model.safetensors", "tokenizer.model")


def test_hub_repository_answers_alike_and_saves_what_it_holds(saved_again, model, tokenizer, tmp_path):
    repository = tmp_path / "hub" / "models--someone--PVC-Test"
    commit = "0123456789" * 4
    snapshot = shutil.copytree(saved_again[0], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    settings = {"cwd": tmp_path, "hidden": ("pvc", *NEVER_NEEDED), "HF_HOME": tmp_path}
    printed = run_python(LOAD_ASK_SAVE, "someone/PVC-Test", tmp_path / "saved", **settings)
    assert_loaded_and_asked(printed, model, tokenizer)
    assert_same_files(snapshot, tmp_path / "saved", "config.json", "generation_config.json")


# ---- a clone, and a wheel


def ask_about_files(model, tokenizer, load_image, load_video, assets) -> list[str]:
    """Answers about an image, two images and a video. Runs in other processes."""
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    size = {"input_size": model.config.force_image_size}
    first, second = (load_image(f"{assets}/picture{i}.png", max_num=2, **size) for i in (1, 2))
    both, lengths = torch.cat([first, second]), [len(first), len(second)]
    video, frames = load_video(f"{assets}/video.mp4", num_segments=4, **size)
    return [
        model.chat(tokenizer, first, "What is this?", settings),
        model.chat(tokenizer, both, "What differs?", settings, data_flag=[2], num_patches_list=lengths),
        model.chat(tokenizer, video, "What moves?", settings, data_flag=[3], num_patches_list=frames),
    ]


CHAT_IN_A_CLONE = f"""
import json
import torch
from preprocess import load_image, load_video
from transformers import AutoModel, AutoTokenizer

{inspect.getsource(ask_about_files)}

model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
print(json.dumps(ask_about_files(model, tokenizer, load_image, load_video, "assets")))
"""
CHAT_FROM_A_WHEEL = f"""
import json
import torch
import pvc
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.preprocess import load_image, load_video
from pvc.tokenization_internlm2 import InternLM2Tokenizer

{inspect.getsource(ask_about_files)}

model = PVCForConditionalGeneration.from_pretrained(pvc.CHECKPOINT).eval()
tokenizer = InternLM2Tokenizer.from_pretrained(pvc.CHECKPOINT)
answers = ask_about_files(model, tokenizer, load_image, load_video, pvc.CHECKPOINT / "assets")
print(json.dumps([answers, str(pvc.CHECKPOINT)]))
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("somewhere") / "PVC"
    made_later = (".*", "__pycache__", "build", "dist", "*.egg-info")
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*made_later)))


@pytest.fixture(scope="module")
def answers_in_the_clone(clone) -> list[str]:
    return json.loads(run_python(CHAT_IN_A_CLONE, cwd=clone, hidden=("pvc",)))


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, clone])
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_clone_answers_about_an_image_two_images_and_a_video(answers_in_the_clone):
    assert len(answers_in_the_clone) == 3 and all(answers_in_the_clone)


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_checkpoint_but_no_tests(wheel, clone):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("pvc/")}
    modules = {file.relative_to(clone) for file in clone.rglob("*.py")}
    modules = {file for file in modules if file.parts[0] not in (".ci", "build", "examples", "tests")}
    assets = {
        file.relative_to(clone) for kind in ("png", "mp4", "svg") for file in clone.glob(f"assets/*.{kind}")
    }
    recipes = {
        file.relative_to(clone) for kind in ("yaml", "json") for file in clone.glob(f"training/**/*.{kind}")
    }
    assert names == {f"pvc/{file}" for file in (*modules, *assets, *recipes, *CHECKPOINT_FILES, *OTHER_FILES)}


@pytest.mark.slow
def test_wheel_answers_outside_the_clone_as_the_clone_does(wheel, answers_in_the_clone, tmp_path):
    installed = tmp_path / "installed"
    flags = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "install", *flags, "--target", installed, wheel])
    answers, checkpoint = json.loads(run_python(CHAT_FROM_A_WHEEL, cwd=tmp_path, PYTHONPATH=installed))
    assert Path(checkpoint) == (installed / "pvc").resolve()
    assert answers == answers_in_the_clone


def test_every_module_that_can_be_imported_alone_in_a_clone_has_all_its_names():
    modules = [
        "preprocess",
        "image_files",
        "video_readers",
        "frame_choice",
        "media_sources",
        "media_isolation",
    ]
    code = "\n".join(f"from {module} import *" for module in modules)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKPOINT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
