"""InternLM2's tokenizer in transformers' common tests of tokenizers."""

import unittest

from tests.test_tokenization_common import TokenizerTesterMixin

from pvc import CHECKPOINT
from pvc.tokenization_internlm2 import InternLM2Tokenizer


class InternLM2TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = InternLM2Tokenizer
    test_tokenizer_from_extractor = False
    test_rust_tokenizer = False
    test_slow_tokenizer = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        InternLM2Tokenizer.from_pretrained(CHECKPOINT).save_pretrained(cls.tmpdirname)
