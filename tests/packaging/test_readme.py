"""Every block of code in the README runs, on PVC-Tiny and the CPU, and those in Python of docs/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conversion_sources import remote_code_source
from hub_stand_in import StandIn, environment

ROOT = Path(__file__).resolve().parents[2]
RELEASED_README = ROOT.parent / "shared" / "papers" / "002_f26d69de4625a39e.txt"

# what the README says -> what stands in for it here: the released weights, a GPU, minutes of generation
SUBSTITUTIONS = {
    '"OpenGVLab/PVC-InternVL2-8B"': repr(str(ROOT)),
    ".cuda()": "",
    "max_new_tokens=1024": "max_new_tokens=4",
    "max_new_tokens=64": "max_new_tokens=4",
    "max_num=12)": "max_num=2, input_size=96)",
    "num_segments=64, max_num=1)": "num_segments=8, max_num=1, input_size=96)",
    "OpenGVLab/InternVL2-2B PVC-InternVL2-2B": '"$INTERNVL" "$CONVERTED" --temporal-layers 2',
    "push PVC-InternVL2-2B": 'push "$CONVERTED"',
    "--model PVC-InternVL2-2B": '--model "$CONVERTED"',
    "pretrain-2b": "tiny --set max_steps=2 --set new_parameter_lr_multiplier=10",
    "tune-2b": "tiny --set max_steps=2",
    "worlds/meta.json": '"$WORK"/worlds/meta.json',
    "dataset worlds --samples 20000": 'dataset "$WORK"/worlds --samples 44',
    "stage-one": '"$WORK"/stage-one',
    " PVC-2B": ' "$WORK"/PVC-2B',
    "python -m": f"{sys.executable} -m",
    "pvc train": f"{sys.executable} -m pvc.cli train",
    "pip install '.[train]'": ":",
    "pvc convert": f"{sys.executable} -m pvc.cli convert",
    "pvc push": f"{sys.executable} -m pvc.cli push",
    "pvc chat": f"{sys.executable} -m pvc.cli chat --max-new-tokens 4",
    "make demo": f"{sys.executable} -m pvc.demo",
    "make test": f"{sys.executable} -m pytest --collect-only --quiet tests/packaging/test_readme.py",
    "pip install .\n": f"{sys.executable} -m pip install --dry-run --no-deps --no-build-isolation .\n",
}


def stand_in(code: str, substitutions: dict[str, str]) -> str:
    for said, here in substitutions.items():
        code = code.replace(said, here)
    return code


def readme_blocks(language: str, file: Path = ROOT / "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(), flags=re.M | re.S)


def run(command: list[str], tmp_path: Path, **more: str) -> str:
    variables = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"} | more
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_block_is_of_a_language_that_is_run():
    languages = set(re.findall(r"^```(\w+)$", (ROOT / "README.md").read_text(), flags=re.M))
    assert languages <= {"python", "bash", "bibtex"}


def test_python_blocks_run_in_order(tmp_path):
    blocks = readme_blocks("python")
    assert len(blocks) >= 5
    code = stand_in("\n".join(blocks), SUBSTITUTIONS) + "\nprint(type(response), tokens.shape)"
    assert "<class 'str'> torch.Size([" in run([sys.executable, "-c", code], tmp_path)


@pytest.mark.parametrize("file", sorted((ROOT / "docs").glob("*.md")), ids=lambda file: file.name)
def test_python_blocks_of_docs_run_in_order(file, tmp_path):
    code = stand_in("\n".join(readme_blocks("python", file)), SUBSTITUTIONS)
    run([sys.executable, "-c", code], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    readme_blocks("bash"),
)
def test_bash_block_runs(block, tmp_path):
    remote_code_source(tmp_path / "InternVL2-2B", "internlm2")
    folders = {"INTERNVL": str(tmp_path / "InternVL2-2B"), "CONVERTED": str(tmp_path / "PVC-InternVL2-2B")}
    folders["WORK"] = str(tmp_path)
    with StandIn() as hub:
        more = folders | environment(hub, tmp_path / "home")
        printed = run(["bash", "-euc", stand_in(block, SUBSTITUTIONS)], tmp_path, **more)
    expected = {
        "make demo": "Answer:",
        "pip install .\n": "Would install pvc",
        "pvc chat --image": "PVC-Tiny knows small worlds alone",
        "--verify": "largest difference 0",
        "pvc train": "train_loss",
        "pvc push": "/your-name/PVC-",
    }
    assert all(words in printed for command, words in expected.items() if command in block)


@pytest.mark.skipif(not RELEASED_README.exists(), reason="the released README is not in this checkout")
def test_calls_of_the_released_readme_run_with_the_import_line_changed(tmp_path):
    text = RELEASED_README.read_text()
    code = text[text.index("import torch\n") : text.index("๐ Evaluation")]
    here = {
        "from utils.preprocess import": "from pvc.preprocess import",
        "'OpenGVLab/PVC-InternVL2-8B'": repr(str(ROOT)),
        ".cuda()": "",
        "max_new_tokens=1024": "max_new_tokens=4",
        "max_num=12)": "max_num=2, input_size=96)",
        "num_segments=64, max_num=1)": "num_segments=8, max_num=1, input_size=96)",
        "./assets/": str(RELEASED_README.parents[1] / "media") + "/",
    }
    assert all(said in code for said in here)
    printed = run([sys.executable, "-c", stand_in(code, here)], tmp_path)
    assert printed.count("Assistant:") == 3
