"""A small InternVL and the PVC that is made of it, for tests that damage them."""

import shutil
from pathlib import Path

import pytest
from conversion_sources import remote_code_source

from pvc.convert_weights import Conversion, Options


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
