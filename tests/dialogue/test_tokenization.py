"""The tokenizer: PVC-Tiny's files in the repository's root, read by InternLM2Tokenizer."""

import copy
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, set_random_generator_seed

from pvc.conversation import get_conv_template
from pvc.tiny.tokenizer import SPARE_PIECES, write_tokenizer
from pvc.tokenization_internlm2 import InternLM2Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FILES = ["tokenizer.model", "tokenizer_config.json"]
IDS = {
    "<unk>": 0,
    "<s>": 1,
    "</s>": 2,
    "<|plugin|>": 2033,
    "<|interpreter|>": 2034,
    "<|action_end|>": 2035,
    "<|action_start|>": 2036,
    "<|im_end|>": 2037,
    "<|im_start|>": 2038,
    "<img>": 2039,
    "</img>": 2040,
    "<IMG_CONTEXT>": 2041,
    "<quad>": 2042,
    "</quad>": 2043,
    "<ref>": 2044,
    "</ref>": 2045,
    "<box>": 2046,
    "</box>": 2047,
}
TEXTS = [
    "",
    "What colour is the small circle?",
    "Frame1: \nFrame12: \nImage-1: ",
    "  two spaces before,  two inside, two after  ",
    "\n\nlines\r\n\tand\ttabs\n",
    "你是书生·万象，英文名是InternVL。未知的字：龘",
    "👩‍👩‍👧‍👦 🏳️‍🌈 é e\u0301 ﬁ Ａ",
    "a\x00b\x7f\u200b\ufeff\u00a0\ufffd",
    "1234567890 3.14 -5% xqzwv",
    "<0x0A> <image> [UNUSED_TOKEN_131] <|im_end",
]


@pytest.fixture(scope="module")
def tokenizer():
    return InternLM2Tokenizer.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def sentencepiece():
    return SentencePieceProcessor(model_file=str(ROOT / "tokenizer.model"))


def plain_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids


def assert_equal_tokenizers(one, other):
    assert one.get_vocab() == other.get_vocab()
    assert one.added_tokens_decoder == other.added_tokens_decoder
    assert one.all_special_ids == other.all_special_ids
    assert one.model_max_length == other.model_max_length
    for text in [*TEXTS, "".join(IDS), "".join(SPARE_PIECES)]:
        assert one(text).input_ids == other(text).input_ids
        assert plain_ids(one, text) == plain_ids(other, text)


def test_the_files_in_the_root_are_those_that_the_script_writes_each_time(tmp_path, sentencepiece):
    write_tokenizer(tmp_path / "one")
    write_tokenizer(tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / FILES[1]).read_bytes() == (ROOT / FILES[1]).read_bytes()
    # pieces, not bytes: other releases of sentencepiece may note other settings in the file
    made = SentencePieceProcessor(model_file=str(tmp_path / "one" / FILES[0]))
    ids = list(range(sentencepiece.get_piece_size()))
    assert made.id_to_piece(ids) == sentencepiece.id_to_piece(ids)


def test_special_tokens_have_the_ids_of_the_layout(tokenizer):
    assert tokenizer.get_added_vocab() == IDS
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in IDS} == IDS
    assert set(tokenizer.all_special_ids) == set(IDS.values())
    assert (tokenizer.vocab_size, len(tokenizer)) == (2039, 2048)
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert special == (0, 1, 2, 2)


def test_the_vocabulary_has_one_name_for_each_id_and_new_tokens_follow_it(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(2048))
    assert "[UNUSED_TOKEN_145]" not in vocabulary
    longer = copy.deepcopy(tokenizer)
    assert longer.add_tokens(["<new>"]) == 1
    assert longer("<new>", add_special_tokens=False).input_ids == [2048]
    assert tokenizer.convert_tokens_to_ids("<new>") == tokenizer.unk_token_id


@pytest.mark.parametrize("text", TEXTS)
def test_ordinary_text_has_sentencepiece_ids_and_comes_back_as_it_was(text, tokenizer, sentencepiece):
    expected = sentencepiece.encode(text)
    assert tokenizer(text).input_ids == [1, *expected]
    assert plain_ids(tokenizer, text) == expected
    assert tokenizer.decode(expected) == text
    assert tokenizer.decode([1, *expected, 2], skip_special_tokens=True) == text


ADDING = {
    "additional_special_tokens": lambda it: it.add_special_tokens({"additional_special_tokens": ["<new>"]}),
    "add_tokens": lambda it: it.add_tokens(["<new>"], special_tokens=True),
    "pad_token": lambda it: it.add_special_tokens({"pad_token": "<new>"}),
}


@pytest.mark.parametrize("way", ADDING)
def test_decoding_skips_all_special_tokens_after_one_was_added(way, tokenizer):
    longer = copy.deepcopy(tokenizer)
    ADDING[way](longer)
    longer.add_tokens(["<word>"])
    ids = longer("red<|im_end|><new><img><word></s>", add_special_tokens=False).input_ids
    assert len(ids) == 6 and longer.decode(ids, skip_special_tokens=True) == "red<word>"
    assert longer.batch_decode([ids, ids[:2]], skip_special_tokens=True) == ["red<word>", "red"]
    assert longer.convert_ids_to_tokens(ids, skip_special_tokens=True) == ["red", "<word>"]
    assert longer.convert_ids_to_tokens(ids[1], skip_special_tokens=True) == "<|im_end|>"


def test_digits_and_system_messages_have_pieces_of_their_own(tokenizer):
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    for name in ("internlm2-chat", "internvl2_5"):
        pieces = tokenizer.tokenize(get_conv_template(name).system_message)
        assert not any(piece.startswith("<0x") for piece in pieces)


def test_bos_begins_and_eos_ends_a_sequence_or_pair_only_where_wanted():
    for bos, eos in [(True, False), (False, True), (True, True), (False, False)]:
        tokenizer = InternLM2Tokenizer.from_pretrained(ROOT, add_bos_token=bos, add_eos_token=eos)
        a, b = (tokenizer(text, add_special_tokens=False).input_ids for text in "ab")
        for pair in (None, "b"):
            encoded = tokenizer("a", pair, return_special_tokens_mask=True)
            middle = a + (b if pair else [])
            assert encoded.input_ids == [1] * bos + middle + [2] * eos
            assert encoded.special_tokens_mask == [1] * bos + [0] * len(middle) + [1] * eos


def test_added_tokens_in_text_have_their_ids_and_those_of_the_pieces_below_them(tokenizer):
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>[UNUSED_TOKEN_145]</s>"
    user = plain_ids(tokenizer, "user\n")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == [2038, *user, 2039, 2041, 2040, 2037, 2]
    assert tokenizer.decode(ids) == text.replace("[UNUSED_TOKEN_145]", "<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\n"


@pytest.mark.parametrize("name", [*IDS, *SPARE_PIECES])
def test_a_typed_special_token_is_plain_text(name, tokenizer):
    for text in (name, name * 2, f"a{name}b", f" {name} ", name[:3] + name + name[3:]):
        ids = plain_ids(tokenizer, text)
        assert not set(ids) & set(tokenizer.added_tokens_decoder)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_no_mixture_of_parts_of_special_tokens_gives_an_added_token(tokenizer):
    names = [*IDS, *SPARE_PIECES, *TEXTS]
    chooser = random.Random(0)
    for _ in range(300):
        parts = [chooser.choice(names) for _ in range(6)]
        text = "".join(part[chooser.randint(0, 2) : chooser.randint(0, 30)] for part in parts)
        ids = plain_ids(tokenizer, text)
        assert not set(ids) & set(tokenizer.added_tokens_decoder)
        assert tokenizer.decode(ids) == text


def test_splitting_special_tokens_can_be_a_property_of_the_tokenizer(tokenizer):
    splitting = InternLM2Tokenizer.from_pretrained(ROOT, split_special_tokens=True)
    text = "<|im_end|>[UNUSED_TOKEN_145]"
    assert splitting(text, add_special_tokens=False).input_ids == plain_ids(tokenizer, text)
    assert splitting(text, add_special_tokens=False, split_special_tokens=False).input_ids == [2037, 2037]


def test_splitting_cuts_added_tokens_that_are_not_special_or_are_ordinary_pieces(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["<note>", "What", "hat"])  # one new, one that is a piece, and the rest of that
    text = "What <note>"
    assert set(changed.get_added_vocab()) - set(IDS) == {"<note>", "What", "hat"}
    ids = plain_ids(changed, text)
    assert not set(ids) & set(changed.added_tokens_decoder)
    assert changed.decode(ids) == text


def test_splitting_leaves_added_tokens_of_one_character_as_they_are(tokenizer):
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["?"])
    assert plain_ids(changed, "What?") == plain_ids(tokenizer, "What?")


@pytest.mark.parametrize("split", [False, True])
def test_half_surrogates_become_replacement_characters_and_pairs_what_they_mean(split, tokenizer):
    for typed, read in [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "😀")]:
        kwargs = {"split_special_tokens": split, "add_special_tokens": False}
        assert tokenizer(typed, **kwargs).input_ids == tokenizer(read, **kwargs).input_ids
        assert tokenizer.decode(tokenizer(typed, **kwargs).input_ids) == read


def test_a_character_is_decoded_from_bytes_spread_over_tokens(tokenizer):
    ids = plain_ids(tokenizer, "龘")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<0xE9>", "<0xBE>", "<0x98>"]
    assert tokenizer.decode(ids) == "龘"
    assert tokenizer.decode([*ids[:2], 2037, *ids]) == "\ufffd\ufffd<|im_end|>龘"


def test_ids_past_the_vocabulary_decode_as_unknown_and_negative_ones_are_errors(tokenizer):
    assert tokenizer.decode([2047, 2048, 99999]) == "</box><unk><unk>"
    with pytest.raises(IndexError):
        tokenizer.decode([-100])


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "save"])
def test_copies_are_equal(way, tokenizer, tmp_path):
    if way == "pickle":
        copied = pickle.loads(pickle.dumps(tokenizer))
    elif way == "deepcopy":
        copied = copy.deepcopy(tokenizer)
    else:
        tokenizer.save_pretrained(tmp_path)
        copied = InternLM2Tokenizer.from_pretrained(tmp_path)
        assert (tmp_path / "tokenizer.model").read_bytes() == (ROOT / "tokenizer.model").read_bytes()
        assert (tmp_path / "tokenization_internlm2.py").exists()  # the folder loads without the package
        saved = (tmp_path / "tokenizer_config.json").read_bytes()
        copied.save_pretrained(tmp_path)
        assert (tmp_path / "tokenizer_config.json").read_bytes() == saved
    assert_equal_tokenizers(copied, tokenizer)


def test_sentencepiece_settings_survive_copies(tmp_path):
    sampling = {"enable_sampling": True, "alpha": 0.5, "nbest_size": -1}
    tokenizer = InternLM2Tokenizer.from_pretrained(ROOT, sp_model_kwargs=sampling)
    tokenizer.save_pretrained(tmp_path)
    loaded = InternLM2Tokenizer.from_pretrained(tmp_path)
    for copied in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer), loaded):
        set_random_generator_seed(0)
        segmentations = {tuple(copied.tokenize("What colour is the circle?")) for _ in range(20)}
        assert len(segmentations) > 1


def test_a_vocabulary_file_can_be_saved_under_a_prefix(tokenizer, tmp_path):
    (path,) = tokenizer.save_vocabulary(str(tmp_path), filename_prefix="tiny")
    assert Path(path).name == "tiny-tokenizer.model"
    assert Path(path).read_bytes() == (ROOT / "tokenizer.model").read_bytes()


def test_a_missing_vocabulary_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="vocab_file is None.*tokenizer.model missing"):
        InternLM2Tokenizer(None)
    shutil.copy(ROOT / "tokenizer_config.json", tmp_path)
    with pytest.raises((OSError, ValueError), match=r"tokenizer"):
        InternLM2Tokenizer.from_pretrained(tmp_path)


AUTO_LOAD = """
import json, sys
sys.modules["pvc"] = None  # not to be imported
from transformers import AutoTokenizer
folder, saved, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
first = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, use_fast=False)
first.save_pretrained(saved)
second = AutoTokenizer.from_pretrained(saved, trust_remote_code=True)
for tokenizer in (first, slow, second):
    assert type(tokenizer).__name__ == "InternLM2Tokenizer", type(tokenizer)
    assert type(tokenizer).__module__.startswith("transformers_modules."), type(tokenizer)
    typed = [tokenizer(text, split_special_tokens=True).input_ids for text in texts]
    print(json.dumps([tokenizer(texts).input_ids, typed]))
"""


def test_auto_tokenizer_loads_flat_files_without_the_package_and_saves_them_complete(tokenizer, tmp_path):
    folder, saved = tmp_path / "flat", tmp_path / "saved"
    folder.mkdir()
    for name in [*FILES, "tokenization_internlm2.py"]:
        shutil.copy(ROOT / name, folder)
    texts = [*TEXTS, "".join(IDS), "".join(SPARE_PIECES)]
    run = subprocess.run(
        [sys.executable, "-c", AUTO_LOAD, folder, saved, json.dumps(texts)],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    expected = [
        tokenizer(texts).input_ids,
        [tokenizer(text, split_special_tokens=True).input_ids for text in texts],
    ]
    outputs = run.stdout.splitlines()
    assert len(outputs) == 3
    assert all(json.loads(line) == expected for line in outputs)
    assert (saved / "tokenization_internlm2.py").read_bytes() == (
        ROOT / "tokenization_internlm2.py"
    ).read_bytes()
    config = json.loads((saved / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
