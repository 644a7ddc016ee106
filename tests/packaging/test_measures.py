"""The script that measures how readable the code is counts what its documentation says."""

import importlib.util
import sys

import pytest
from checkpoint_files import ROOT

SOURCE = '''"""Summary of the module."""


def first(a, b):
    """One line."""

    # a step
    total = a + b

    def inner():
        """A summary that
        wraps."""
        return total  # behind code

    return inner


class Kind:
    def method(self):
        return 1
'''


@pytest.fixture(scope="module")
def measures():
    spec = importlib.util.spec_from_file_location("measures", ROOT / "tests/measures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_lines_of_functions_are_counted_without_their_docstrings(measures, tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    counts = measures.count([tmp_path / "a.py"])

    assert (counts.code, counts.blank, counts.comments) == (5, 2, 2)
    assert sorted(counts.lengths) == [2, 4, 12]
    assert (counts.long_functions, counts.long_with_air) == (1, 1)
    assert (counts.docstrings, counts.wrapped_summaries) == (3, 1)


def test_tests_docs_and_environments_are_left_out(measures, tmp_path):
    for name in ("a.py", "training/b.py", "tests/c.py", "docs/d.py", ".venv/lib/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.name for path in measures.product_files(tmp_path)] == ["a.py", "b.py"]


@pytest.mark.parametrize(
    "block, runs",
    [
        ("model = AutoModel.from_pretrained('.', trust_remote_code=True)", True),
        ("model = AutoModel.from_pretrained(pvc.CHECKPOINT)", True),
        ('path = "."\nmodel = AutoModel.from_pretrained(path)', True),
        ('path = "OpenGVLab/PVC-InternVL2-8B"\nmodel = AutoModel.from_pretrained(path)', False),
        ("print(1)", False),
    ],
)
def test_a_block_runs_in_a_clone_where_it_loads_the_checkpoint_of_the_clone(measures, block, runs):
    assert measures.runs_in_a_clone(block) is runs


def test_a_checkout_has_a_value_for_each_measure(measures):
    rows = measures.measures(ROOT, slow=False)
    assert rows["README"].endswith(" bytes") and rows["first Python block that runs in a clone"] != "none"

    printed = measures.table({"now": rows})
    assert len(printed.splitlines()) == len(rows) + 2
