"""Every block of code in README.md, docs/ and examples/ runs, on PVC-Tiny and the CPU.

What a block prints is compared with the `output` block behind it. Python blocks of one file run in order in
one namespace. Commands of `pvc` run in this process, so that imports are paid once; others run in a shell.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conversion_sources import remote_code_source
from hub_stand_in import StandIn, connected_stand_in
from typer.testing import CliRunner

from pvc.cli import app

ROOT = Path(__file__).resolve().parents[2]
RELEASED_README = ROOT.parent / "shared" / "papers" / "002_f26d69de4625a39e.txt"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "finetune_lora.md"]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"

RUN = ("python", "bash")
SHOWN = ("output", "text", "json", "yaml", "bibtex", "sh", "py")  # sh, py: for what is not here, such as vLLM
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
README_BYTES = 14_000

SHORT = "--set max_steps=2 --set rows_per_step=2 --set max_tokens=1024 --set dataloader_num_workers=0"
# what a page says -> what stands in for it here: other weights, a GPU, a network, minutes of work
SUBSTITUTIONS = {
    "git clone": ": git clone",
    "cd pvc\n": "",
    "pip install '.[train]'": ":",
    "pip install .\n": f"{sys.executable} -m pip install --dry-run --no-deps --no-build-isolation {ROOT}\n",
    "make demo": f"{sys.executable} -m pvc.demo",
    "make test": f"{sys.executable} -m pytest --collect-only --quiet tests/packaging/test_readme.py",
    "python -m": f"{sys.executable} -m",
    '"follow_the_equations or': '"(follow_the_equations and x+te-None) or',
    "pytest -s tests/": f"cd {ROOT} && {sys.executable} -m pytest -p no:cacheprovider -s tests/",
    "OpenGVLab/InternVL2-2B PVC-": "InternVL2-2B --temporal-layers 2 PVC-",
    "train tiny": "train tiny --set max_steps=2",
    "pvc info . ": f"pvc info {ROOT} ",
    "--model . ": f"--model {ROOT} ",
    "train pretrain-2b": "train tiny --set max_steps=2 --set 'lr_multipliers={new_parameters: 10}'",
    "train tune-2b": "train tiny --set max_steps=2",
    "train tune-lora": f"train tune-lora {SHORT}",
    "--samples 20000": "--samples 44",
    '"PVC-8B"': repr(str(ROOT)),
    "--preset 8B": "--preset tiny",
    "--preset 2B": "--preset tiny",
    "--preset small": "--preset tiny",
}


def stand_in(code: str, substitutions: dict[str, str] = SUBSTITUTIONS) -> str:
    said = re.compile("|".join(map(re.escape, substitutions)))
    return said.sub(lambda match: substitutions[match[0]], code)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of the blocks of a page, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def is_printed(expected: str, printed: str) -> bool:
    """Whether the lines of `expected` are printed in this order; `...` stands for anything within a line."""
    lines = (line.strip() for line in printed.splitlines())
    patterns = [line.strip().replace("[", "[[]").replace("...", "*") for line in expected.splitlines()]
    return all(any(fnmatchcase(line, pattern) for line in lines) for pattern in patterns)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(kind == language for kind, _ in blocks(page))]


def test_the_readme_is_short_enough_to_be_read():
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_run_or_shown(page):
    assert {language for language, _ in blocks(page)} <= {*RUN, *SHOWN}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [x for x in links if not (page.parent / x).exists()] == []


@pytest.mark.parametrize("page", pages_with("python"), ids=name)
def test_python_blocks_print_what_the_page_shows(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for language, code in _of_language("python", page):
            if language == "python":
                exec(compile(stand_in(code), str(page), "exec"), namespace)
            else:
                assert printed.getvalue().strip() == code.strip()
                printed.seek(0)
                printed.truncate()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder as a clone looks, in which a page's commands may leave files; an InternVL lies in it."""
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name != "build":
            (tmp_path / entry.name).symlink_to(entry)
    remote_code_source(tmp_path / "InternVL2-2B", "internlm2")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch) -> Iterator[StandIn]:
    """A stand-in for the Hub, to which commands of this process push."""
    with connected_stand_in(monkeypatch) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("bash"), ids=name)
def test_bash_blocks_print_what_the_page_shows(page, folder, hub):
    printed = trained = ""
    for language, code in _of_language("bash", page):
        if language == "bash":
            printed = "".join(map(run, _commands(stand_in(code))))
            trained = "train_loss" if re.search("pvc train [pt]", code) else ""
            assert trained in printed
        elif not trained:  # the answers of two steps of training are not those of the page
            assert is_printed(code, printed), printed


def _of_language(language: str, page: Path) -> Iterator[tuple[str, str]]:
    """The blocks of a language, and the outputs that follow them."""
    last = ""
    for kind, code in blocks(page):
        if kind == language or (kind == "output" and last == language):
            yield kind, code
        last = kind if kind in RUN else last


def _commands(script: str) -> Iterator[str]:
    """The commands of `pvc` one by one, and what lies between them as it is."""
    others = []
    for line in script.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith("pvc "):
            yield "".join(others)
            yield line
            others = []
        else:
            others.append(line)
    yield "".join(others)


def run(command: str) -> str:
    """What a command prints; it must succeed."""
    if command.startswith("pvc "):
        done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert done.exit_code == 0, f"{command}{done.output}"
        return done.stdout + done.stderr
    if not command.strip():
        return ""
    variables = os.environ | {"PVC_URL": ROOT.as_uri()}
    done = subprocess.run(
        ["bash", "-euc", command], env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_example_prints_what_its_docstring_shows(script, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script)])
    module = runpy.run_path(str(script), run_name="__main__")
    expected = module["__doc__"].split("Prints:\n")[1]
    assert is_printed(expected.strip("\n"), capsys.readouterr().out)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_example_is_short_and_takes_a_model(script):
    text = script.read_text(encoding="utf-8")
    assert 15 <= len(text.splitlines()) <= 40
    assert "sys.argv" in text


def test_cells_of_the_notebook_print_what_it_shows(monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])

    monkeypatch.chdir(NOTEBOOK.parent)
    namespace = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("".join(cell["source"]), namespace)
        shown = "".join("".join(output["text"]) for output in cell["outputs"])
        assert printed.getvalue() == shown


@pytest.mark.skipif(not RELEASED_README.exists(), reason="the released README is not in this checkout")
def test_calls_of_the_released_readme_run_with_the_import_line_changed(monkeypatch):
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

    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(stand_in(code, here), {"__name__": "__main__"})
    assert printed.getvalue().count("Assistant:") == 3
