"""Fixtures of the tests of dialogues and messages."""

import pytest
from builders import FITS_TOKENIZER, tiny_model
from processors import make_processor

from pvc import CHECKPOINT
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> InternLM2Tokenizer:
    return InternLM2Tokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model() -> PVCForConditionalGeneration:
    return tiny_model(**FITS_TOKENIZER)


@pytest.fixture(scope="module")
def processor() -> PVCProcessor:
    return make_processor("InternLM2")
