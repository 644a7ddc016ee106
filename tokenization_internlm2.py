"""InternLM2's tokenizer: a SentencePiece model, with added tokens that overlay some of its pieces.

InternLM2 keeps spare pieces `[UNUSED_TOKEN_n]` at the end of its SentencePiece model and gives some of their
ids to chat tokens: `<|im_end|>` has the id of `[UNUSED_TOKEN_145]`. InternVL adds `<img>` and others behind
the model. The ids of added tokens are read from the checkpoint's tokenizer_config.json.

The ids equal those of the released slow tokenizer. One thing is new: with `split_special_tokens=True` no id
of an added token comes out of a text, whether the text has the token's name or that of the piece below it.

Prompts are made in `conversation.py`; the processor knows how many `<IMG_CONTEXT>` stand for an image.
"""

import os
from itertools import groupby

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, PreTrainedTokenizer


class InternLM2Tokenizer(PreTrainedTokenizer):
    """SentencePiece BPE with byte fallback; `<unk>`, `<s>`, `</s>` are 0, 1, 2.

    `tokenizer(text)` turns names of added tokens in the text, and of the pieces below them, into ids of
    added tokens; with `split_special_tokens=True` the whole text is plain. Half surrogates, which have no
    UTF-8 form, are read as U+FFFD. `decode` adds and removes no spaces.

    Args:
        vocab_file: path of the SentencePiece model.
        sp_model_kwargs: arguments of `SentencePieceProcessor`, e.g. `{"enable_sampling": True}`.
        add_bos_token, add_eos_token: whether a sequence, or a pair taken as one, begins with `<s>` and ends
            with `</s>`. transformers saves neither: a loaded tokenizer has the defaults, unless told.

    Raises:
        ValueError: without `vocab_file`, or where it is no SentencePiece model.
        OSError: where there is no such file.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"  # save_pretrained copies this file along

    def __init__(
        self,
        vocab_file: str,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken = "</s>",
        sp_model_kwargs: dict | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs,
    ) -> None:
        if not vocab_file:
            raise ValueError(
                f"vocab_file is {vocab_file!r}: expected the path of a SentencePiece model; "
                "is tokenizer.model missing in the checkpoint's folder?"
            )

        self.sp_model_kwargs = sp_model_kwargs or {}
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token

        # before the base class, which asks for the vocabulary while it is set up
        try:
            self.sp_model = SentencePieceProcessor(model_file=str(vocab_file), **self.sp_model_kwargs)
        except RuntimeError as error:
            raise ValueError(f"vocab_file {vocab_file} is not a SentencePiece model: {error}") from error

        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            sp_model_kwargs=self.sp_model_kwargs,
            **kwargs,
        )

    # a SentencePieceProcessor cannot be pickled: its model travels as bytes
    def __getstate__(self) -> dict:
        return self.__dict__ | {"sp_model": self.sp_model.serialized_model_proto()}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.sp_model = SentencePieceProcessor(model_proto=state["sp_model"], **self.sp_model_kwargs)

    @property
    def vocab_size(self) -> int:
        """Pieces of the SentencePiece model; `len(tokenizer)` counts the tokens added behind it too."""
        return self.sp_model.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        """One name an id; an id that an added token overlays has the added token's name."""
        names = self.convert_ids_to_tokens(list(range(self.vocab_size)))
        return {name: id for id, name in enumerate(names)} | self._added_tokens_encoder

    def tokenize(self, text: str, **kwargs) -> list[str]:
        """Pieces and added tokens of `text`.

        With `split_special_tokens=True` pieces alone, none of which has an added token's id.
        """
        # pairs of surrogates become the character they mean, halves U+FFFD
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        pieces = super().tokenize(text, **kwargs)

        if not kwargs.get("split_special_tokens", self.split_special_tokens):
            return pieces
        return [part for piece in pieces for part in self._cut(piece)]

    def _cut(self, piece: str) -> list[str]:
        """`piece`, or, where its id is an added token's, the pieces of its first character and of the rest.

        A single character cannot be cut: as an added token (some have a tab or a newline) it is text too.
        """
        is_added = self.convert_tokens_to_ids(piece) in self._added_tokens_decoder
        if len(piece) == 1 or not is_added:
            return [piece]

        parts = self._tokenize(piece[:1]) + self._tokenize(piece[1:])
        return [small for part in parts for small in self._cut(part)]

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return self.sp_model.encode(text, out_type=str)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        # embeddings are often padded: their spare rows have no piece
        return self.sp_model.id_to_piece(index) if index < self.vocab_size else self.unk_token

    def convert_ids_to_tokens(
        self, ids: int | list[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Names of ids; `skip_special_tokens` skips the special tokens of `added_tokens_decoder`.

        The base class skips `all_special_ids`, which loses tokens where `add_special_tokens` replaces them.
        """
        if skip_special_tokens and not isinstance(ids, int):
            special = {id for id, token in self._added_tokens_decoder.items() if token.special}
            ids = [id for id in map(int, ids) if id not in special]
        return super().convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins tokens; a character's bytes may be spread over several of them."""
        texts = []
        for is_added, run in groupby(tokens, key=self._added_tokens_encoder.__contains__):
            pieces = list(run)
            texts.append("".join(pieces) if is_added else self.sp_model.decode(pieces))
        return "".join(texts)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The sequence, or both as one, with `<s>` and `</s>` where these are to be added."""
        before = [self.bos_token_id] if self.add_bos_token else []
        after = [self.eos_token_id] if self.add_eos_token else []
        return before + token_ids_0 + (token_ids_1 or []) + after

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts `<s>` or `</s>`, 0 elsewhere."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, True)

        length = len(token_ids_0) + len(token_ids_1 or [])
        return [1] * self.add_bos_token + [0] * length + [1] * self.add_eos_token

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes the SentencePiece model as it was read. Returns its path."""
        name = self.vocab_files_names["vocab_file"]
        if filename_prefix:
            name = f"{filename_prefix}-{name}"

        path = os.path.join(save_directory, name)
        with open(path, "wb") as file:
            file.write(self.sp_model.serialized_model_proto())
        return (path,)
