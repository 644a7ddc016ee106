"""What the tests of vLLM share: the answers of `generate`, written before by `reference.py`."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def reference() -> dict:
    """By model: its path, frames of a video, new tokens, and cases with messages, ids and text."""
    return json.loads(Path(os.environ["REFERENCE"]).read_text())
