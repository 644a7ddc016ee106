"""What version 0.1 called otherwise is still found under its old name, with a warning."""

import importlib
import subprocess
import sys

import pytest

import pvc
from pvc.moved_names import MOVED


@pytest.mark.parametrize("old, new", MOVED.items())
def test_a_module_is_found_by_its_old_name_and_is_the_same(old, new):
    sys.modules.pop(f"pvc.{old}", None)
    moved = importlib.import_module(f"pvc.{new}")

    with pytest.warns(FutureWarning, match=f"pvc.{old} is pvc.{new} now"):
        assert importlib.import_module(f"pvc.{old}") is moved
    assert moved.__name__ == moved.__spec__.name == f"pvc.{new}"


def test_names_of_the_loader_are_found_in_the_package_of_the_data():
    from pvc.training.data import DataOptions, PackedDataset, PackLoader, loader

    assert (DataOptions, PackedDataset, PackLoader) == (
        loader.DataOptions,
        loader.PackedDataset,
        loader.PackLoader,
    )


def test_the_old_names_take_no_time_where_they_are_not_used():
    script = "import sys, pvc\nassert not {'torch', 'pvc.hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=pvc.CHECKPOINT.parent, check=True)
