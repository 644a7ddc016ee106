"""InternLM2's tokenizer in transformers' common tests of tokenizers."""

import tempfile
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
        """The mixin's own, which reads a text from fixtures that PyPI's source archive lacks."""
        cls.from_pretrained_id, cls.tokenizers_list = [], []
        cls._data = "This is a sample text.\n" * 100
        cls.tmpdirname = tempfile.mkdtemp()
        InternLM2Tokenizer.from_pretrained(CHECKPOINT).save_pretrained(cls.tmpdirname)
