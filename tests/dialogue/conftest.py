"""Fixtures of the tests of dialogues and messages."""

import pytest
from processors import make_processor

from pvc.processing_pvc import PVCProcessor


@pytest.fixture(scope="module")
def processor() -> PVCProcessor:
    return make_processor("InternLM2")
