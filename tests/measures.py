"""Measures how readable a checkout is, and prints a Markdown table with a column for each checkout.

    python tests/measures.py FOLDER [FOLDER ...] [--names before after]

FOLDER holds the files of a commit: `git archive COMMIT | tar -x -C FOLDER`. No count includes tests.

- Blank and comment lines: lines of function bodies without docstrings. A comment line is one that holds a
  comment, alone or behind code. Both are given as a share of the code lines.
- A function is a `def`, nested ones too. Its length counts its docstring.
- Summaries that wrap: docstrings whose first paragraph has more than one line.
- Hops: functions of this repository on the Python stack when temporal attention reaches transformers'
  attention interface, in a forward pass of the checkpoint's own configuration about an image. Frames of torch
  and transformers, comprehensions and lambdas are not counted. The forward of the whole model is the first.
- mypy: the root, `training/` and `conversion/`, and all packages; unannotated functions are checked too, and
  torch, transformers and their kin are `Any`.
"""

import argparse
import ast
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

NOT_THE_PRODUCT = {"build", "docs", "examples", "tests"}
UNTYPED = ["torch", "transformers", "huggingface_hub", "accelerate", "peft", "safetensors"]
IMPORTED_ALONE = [  # also without the package: as in pyproject.toml
    "frame_choice",
    "image_files",
    "media_fetch",
    "media_isolation",
    "media_policy",
    "media_sources",
    "video_readers",
]

COUNT_HOPS = """
import sys
from pathlib import Path
import torch
import pvc
from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

root = str(Path(pvc.__file__).resolve().parent)
config = PVCConfig.from_pretrained(root)
torch.manual_seed(0)
model = PVCForConditionalGeneration(config).eval()
stacks = []

def measured(module, query, key, value, *args, **kwargs):
    frame, names = sys._getframe(1), []
    while frame is not None:
        file = str(Path(frame.f_code.co_filename).resolve())
        name = frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name
        is_ours = file.startswith(root) and ".venv" not in file
        if is_ours and not name.endswith(">"):  # a comprehension or lambda is no hop
            names.append(name)
        frame = frame.f_back
    stacks.append(names[::-1])
    mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2), None

ALL_ATTENTION_FUNCTIONS.register("measured", measured)
model.model.vision_model.set_attn_implementation("measured")
size = config.vision_config.image_size
pixels = torch.zeros(1, 3, size, size)
with torch.no_grad():
    tokens = sum(len(clip) for clip in model.get_image_features(pixels).pooler_output)
    stacks.clear()
    model(input_ids=torch.full((1, tokens), config.image_token_id), pixel_values=pixels)
temporal = [names for names in stacks if any("emporal" in name for name in names)]
print(len(temporal[-1]), *temporal[-1])
"""


# ---- functions


@dataclass
class Counts:
    """Sums over the functions of some files."""

    lengths: list[int] = field(default_factory=list)
    code: int = 0
    blank: int = 0
    comments: int = 0
    long_functions: int = 0  # of 12 lines or more
    long_with_air: int = 0  # those of them with a blank line
    docstrings: int = 0
    wrapped_summaries: int = 0


def count(files: list[Path]) -> Counts:
    counts = Counts()
    for file in files:
        source = file.read_text(encoding="utf-8")
        tree, lines = ast.parse(source), source.splitlines()
        commented = comment_lines(source)

        for function in outermost(tree):
            body = body_lines(function, lines)
            blank = {i for i in body if not lines[i - 1].strip()}
            counts.blank += len(blank)
            counts.comments += len(body & commented)
            counts.code += sum(1 for i in body - blank if not lines[i - 1].lstrip().startswith("#"))

        for function in functions(tree):
            length = function.end_lineno - function.lineno + 1
            counts.lengths.append(length)
            if length >= 12:
                counts.long_functions += 1
                counts.long_with_air += any(not lines[i - 1].strip() for i in body_lines(function, lines))

        count_docstrings(tree, counts)
    return counts


def count_docstrings(tree: ast.Module, counts: Counts) -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, documented) else None
        if docstring:
            counts.docstrings += 1
            counts.wrapped_summaries += "\n" in docstring.split("\n\n")[0]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def outermost(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions that stand in no other function, so that no line is counted twice."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from outermost(node)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> set[int]:
    """Numbers of the lines of a function's body, without its docstring and those of functions within."""
    body = function.body
    first = body[0].lineno
    while lines[first - 2].lstrip().startswith("#") and first - 1 > function.lineno:
        first -= 1

    numbers = set(range(first, function.end_lineno + 1))
    for inner in [function, *functions(function)]:
        statement = inner.body[0]
        if ast.get_docstring(inner, clean=False) is not None:
            numbers -= set(range(statement.lineno, statement.end_lineno + 1))
            following = statement.end_lineno + 1
            if following <= len(lines) and not lines[following - 1].strip():
                numbers.discard(following)  # it belongs to the docstring
    return numbers


def comment_lines(source: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


# ---- the checkout


def product_files(root: Path) -> list[Path]:
    """All Python files but those of tests, docs and examples."""
    files = [path for path in root.rglob("*.py") if not path.is_symlink()]
    folders = {path: path.relative_to(root).parts[:-1] for path in files}
    return sorted(
        path
        for path, parts in folders.items()
        if not parts or not (parts[0] in NOT_THE_PRODUCT or any(part.startswith(".") for part in parts))
    )


def remote_code_files(root: Path) -> list[Path]:
    """The modules in the root, nearly all of which travel with a checkpoint."""
    return sorted(root.glob("*.py"))


def model_files(root: Path) -> list[Path]:
    return sorted(root.glob("modeling_*.py"))


def readme_measures(root: Path) -> tuple[int, str]:
    """Bytes of the README, and where its first block stands that runs on the checkpoint of the clone."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    size = len(readme.encode())
    for match in re.finditer(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        if runs_in_a_clone(match[1]):
            before = readme[: match.start()]
            return size, f"line {before.count(chr(10)) + 1}, byte {len(before.encode()):,}"
    return size, "none"


def runs_in_a_clone(block: str) -> bool:
    """Whether a block loads PVC-Tiny, and nothing that a reader must first get elsewhere."""
    paths = re.findall(r"from_pretrained\(\s*(\S+?)[,)]", block)
    paths += re.findall(r"^(?:path|model_id|checkpoint) = (\S+)", block, re.MULTILINE)
    here = [path for path in paths if path.strip("\"'") in {".", "./"} or "CHECKPOINT" in path]
    elsewhere = [path for path in paths if "/" in path.strip("\"'").lstrip("./")]
    return bool(here) and not elsewhere


def in_a_package(root: Path, act: Callable[[Path], str]) -> str:
    """What `act` gives of a folder in which the checkout has the package's name."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pvc").symlink_to(root.resolve(), target_is_directory=True)
        return act(Path(folder))


def mypy_errors(folder: Path, *, excluded: str = "tests|docs|examples|build") -> str:
    config = folder / "mypy.ini"
    sections = "".join(f"\n[mypy-{name}.*]\nfollow_imports = skip\n" for name in UNTYPED)
    sections += "".join(f"\n[mypy-{name}]\nfollow_imports = skip\n" for name in IMPORTED_ALONE)
    options = "check_untyped_defs = True\nignore_missing_imports = True\nfollow_imports = silent\n"
    options += "disable_error_code = no-redef\n"  # a name that is imported in one of two ways
    config.write_text(f"[mypy]\n{options}exclude = (?x)/({excluded})/\n{sections}")

    command = [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", os.devnull, "-p", "pvc"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = re.search(r"^Found (\d+) errors? in (\d+) files?", done.stdout, re.MULTILINE)
    if found:
        return f"{found[1]} in {found[2]} files"
    return "0" if done.returncode == 0 else "not measured"


def hops(folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COUNT_HOPS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else f"not measured: {done.stderr.strip()[-200:]}"


# ---- the table


def measures(root: Path, *, slow: bool = True) -> dict[str, str]:
    """Name of a measure -> its value. `slow`: those that need mypy and torch too."""
    everything = count(product_files(root))
    remote_code = count(remote_code_files(root))
    models = count(model_files(root))
    lengths = everything.lengths
    over = sum(length > 40 for length in lengths)
    size, first_block = readme_measures(root)

    rows = {
        "Python files, functions": f"{len(product_files(root))}, {len(lengths)}",
        "blank lines per code line in functions": f"{everything.blank / everything.code:.1%}",
        "the same, root": f"{remote_code.blank / remote_code.code:.1%}",
        "the same, `modeling_*.py`": f"{models.blank / models.code:.1%}",
        "comment lines per code line in functions": f"{everything.comments / everything.code:.1%}",
        "the same, root ": f"{remote_code.comments / remote_code.code:.1%}",
        "the same, `modeling_*.py` ": f"{models.comments / models.code:.1%}",
        "functions of 12 lines or more with a blank line": (
            f"{everything.long_with_air / everything.long_functions:.0%}"
        ),
        "median and longest function": f"{statistics.median(lengths):g}, {max(lengths)} lines",
        "functions over 40 lines": f"{over} ({over / len(lengths):.1%})",
        "docstring summaries that wrap": f"{everything.wrapped_summaries} of {everything.docstrings}",
        "README": f"{size:,} bytes",
        "first Python block that runs in a clone": first_block,
    }
    if slow:
        others = "tests|docs|examples|build|assets|benchmarks|cli|demo|evaluation|hub|reporting|tiny"
        rows |= {
            "mypy errors: root, `training/`, `conversion/`": in_a_package(
                root, partial(mypy_errors, excluded=others)
            ),
            "mypy errors: all packages": in_a_package(root, mypy_errors),
            "hops from `model(...)` to the kernel of temporal attention": in_a_package(root, hops).split(" ")[
                0
            ],
        }
    return rows


def table(columns: dict[str, dict[str, str]]) -> str:
    names = list(columns)
    lines = [f"| measure | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for row in columns[names[0]]:
        lines.append(f"| {row.strip()} | {' | '.join(columns[name][row] for name in names)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--names", nargs="+", help="the columns' names, as many as folders")
    parser.add_argument("--hops", action="store_true", help="print the functions of the forward pass instead")
    arguments = parser.parse_args()

    names = arguments.names or [folder.name for folder in arguments.folders]
    if len(names) != len(arguments.folders):
        parser.error(f"{len(names)} names for {len(arguments.folders)} folders")

    for folder in arguments.folders if arguments.hops else []:
        print(folder, in_a_package(folder, hops))
    if not arguments.hops:
        print(table({name: measures(folder) for name, folder in zip(names, arguments.folders)}))


if __name__ == "__main__":
    main()
