"""Tokenizers of the kinds that the LLMs of InternVL and PVC have, small enough to be made in a moment."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pvc import CHECKPOINT
from pvc.tokenization_internlm2 import InternLM2Tokenizer

TOKENIZERS = ["InternLM2", "byte level", "prefix space everywhere", "prefix space at the start"]
CHAT_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
MEDIA_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
WORDS = ["the", "and", "is", "in", "en", "end", "im", "<|", "|>", "</", "user", "Frame"]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As Qwen2's: bytes, no BOS, and added tokens that are not marked special."""
    backend = Tokenizer(bpe(sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    special = ["<|endoftext|>", "</s>", *CHAT_TOKENS, *MEDIA_TOKENS]
    tokenizer.add_tokens([added(token) for token in special], special_tokens=True)
    tokenizer.add_tokens([added(token, special=False) for token in ("<think>", "</think>", "<|box|>")])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def prefix_space_tokenizer(everywhere: bool) -> PreTrainedTokenizerFast:
    """As Phi3's and Llama 2's: a space before text, BOS, byte fallback, added tokens that strip spaces."""
    special, byte_pieces = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({letter for word in WORDS for letter in word} | set("▁abcdefghijklmnopqrstuvwxyz.:"))
    model = bpe([*special, *byte_pieces, *letters], "▁", unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    if everywhere:  # before each stretch of text between special tokens
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    stripping = [added(token, rstrip=True) for token in ("</s>", *CHAT_TOKENS[:4])]
    stripping.append(added("<|im_end|>", lstrip=True))
    plain = [added(token) for token in ("<|im_start|>", *MEDIA_TOKENS)]
    tokenizer.add_tokens(stripping + plain, special_tokens=True)
    return tokenizer


def bpe(symbols: list[str], space: str, **kwargs) -> models.BPE:
    """BPE over `symbols` that knows WORDS, with a space before them and without."""
    merges = dict.fromkeys((word[:i], word[i]) for word in WORDS for i in range(1, len(word)))
    merges |= dict.fromkeys((space, word) for word in WORDS)
    pieces = dict.fromkeys([*symbols, *("".join(pair) for pair in merges)])
    return models.BPE({piece: id for id, piece in enumerate(pieces)}, list(merges), **kwargs)


def added(token: str, special: bool = True, lstrip: bool = False, rstrip: bool = False) -> AddedToken:
    return AddedToken(token, special=special, lstrip=lstrip, rstrip=rstrip, normalized=False)


@cache
def make_tokenizer(kind: str):
    """Never changed by a test."""
    if kind == "InternLM2":
        return InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    if kind == "byte level":
        return byte_level_tokenizer()
    return prefix_space_tokenizer(everywhere=kind.endswith("everywhere"))
