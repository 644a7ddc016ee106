"""Answers several prompts at once, each row with settings of its own, piece by piece.

Rows are padded on the left. What of a row is known from an earlier dialogue (`prefixes.py`) is put into the
cache of `generate`, which computes the columns behind it:

    row 0   [pad pad pad | a a a a a b b]     a, c: known; b, d: new
    row 1   [c c c c c c | c c d d d d d]     |: the first column that is computed, for all rows

So rows with about as many new positions fit together.

Shapes: `B` rows of `L` columns, `H` width of the LLM.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from pvc.chat import answer_settings
from pvc.clips import clip_grid_of
from pvc.conversation import AnswerTokenizer
from pvc.dialogue_cache import rope_span
from pvc.serving.answers import AnswerText
from pvc.serving.prefixes import Prefix, PrefixStore
from pvc.serving.prompts import Prompt
from pvc.serving.requests import Sampling
from pvc.serving.sampling import RowSampler


class Abandoned(Exception):
    """Nobody waits any more for any row of the batch."""


class Row:
    """One prompt on its way to an answer.

    Args:
        give: called in the model's thread with each piece of text.
        max_positions: of the LLM; an answer ends there.
        stop_ids: tokens that end an answer.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampling: Sampling,
        text: AnswerText,
        give: Callable[[str], None],
        max_positions: int,
        stop_ids: Sequence[int],
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.tokens: list[int] = []  # of the answer
        self.max_tokens = min(sampling.max_tokens, max_positions - prompt.length)
        self.finish_reason: str | None = None
        self.known: tuple[Prefix | None, int] = (None, 0)  # what an earlier dialogue computed
        self.cancelled = threading.Event()

        self._text = text
        self._give = give
        self._stop_ids = frozenset(stop_ids)

    @property
    def is_done(self) -> bool:
        """Whether no more tokens are wanted."""
        return self.finish_reason is not None or self.cancelled.is_set()

    @property
    def num_new(self) -> int:
        """Positions of the prompt that are not known."""
        return self.prompt.length - self.known[1]

    def take(self, token: int) -> None:
        """Adds a token to the answer, and ends it where it must end."""
        self.tokens.append(token)
        is_end = token in self._stop_ids
        piece = "" if is_end else self._text.take(token)

        if is_end or self._text.is_stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            piece += self._text.end()
        if piece:
            self._give(piece)


class Watcher(StoppingCriteria):
    """Gives each row its token, and tells `generate` which rows are done."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs) -> torch.Tensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist()):
            if not row.is_done:
                row.take(token)
        return torch.tensor([row.is_done for row in self._rows], device=input_ids.device)


class BatchAnswerer:
    """The model with what is needed to answer batches; for one thread.

    Args:
        model, tokenizer: of one checkpoint.
        store: of prefixes.
    """

    def __init__(self, model: Any, tokenizer: Any, store: PrefixStore) -> None:
        self.model = model
        self.store = store
        self.max_positions: int = model.config.llm_config.max_position_embeddings
        self._tokenizer = tokenizer
        self._answer_tokenizer = AnswerTokenizer(tokenizer)
        self._rows: Sequence[Row] = ()  # that are being answered
        self._device = torch.device("cpu") if model.device.type == "meta" else model.device

        template = model.prompt_template()
        end = model.generation_config.eos_token_id
        own = [] if end is None else [end] if isinstance(end, int) else list(end)
        self._stop_ids = template.stop_token_ids(tokenizer) or own
        self._end = template.sep.strip()
        pad = tokenizer.pad_token_id
        self._pad_id = tokenizer.eos_token_id if pad is None else pad
        self._watch_layers()

    def row(self, prompt: Prompt, sampling: Sampling, give: Callable[[str], None]) -> Row:
        """A row for `answer`."""
        text = AnswerText(self._answer_tokenizer, (*sampling.stop, self._end))
        return Row(prompt, sampling, text, give, self.max_positions, self._stop_ids)

    def look_up(self, row: Row) -> None:
        """Finds what is known of a row's prompt."""
        row.known = self.store.longest(row.prompt.keys, self.span(row))

    def span(self, row: Row) -> range:
        """Lengths of prompts that rotate keys as this one: only those go together."""
        return rope_span(self.model.config.llm_config, row.prompt.length)

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row]) -> None:
        """Answers rows of one span; their pieces are given on the way.

        Raises:
            Abandoned: all rows were cancelled before the first token.
        """
        self._rows = rows
        try:
            self._answer(rows)
        finally:
            self._rows = ()

    def _answer(self, rows: Sequence[Row]) -> None:
        columns = max(row.prompt.length for row in rows)
        pads = [columns - row.prompt.length for row in rows]
        # columns that are padding or known in every row
        first = min(pad + row.known[1] for pad, row in zip(pads, rows))

        ids = torch.full((len(rows), columns), self._pad_id)  # (B, L)
        mask = torch.zeros_like(ids)
        for i, (pad, row) in enumerate(zip(pads, rows)):
            ids[i, pad:] = row.prompt.ids
            mask[i, pad:] = 1
        ids = ids.to(self._device)

        past = self._past(rows, pads, first)
        options = {
            "max_new_tokens": max(row.max_tokens for row in rows),
            "eos_token_id": self._stop_ids or None,
            "pad_token_id": self._pad_id,
            "do_sample": False,
            "num_beams": 1,
            "logits_processor": LogitsProcessorList([RowSampler([row.sampling for row in rows])]),
            "stopping_criteria": StoppingCriteriaList([Watcher(rows)]),
        }
        self.model.generate(
            input_ids=ids,
            inputs_embeds=self._embeddings(rows, pads, first, ids),
            attention_mask=mask.to(self._device),
            past_key_values=past,
            **answer_settings(self.model, self._tokenizer, options, columns),
        )
        self._keep(rows, pads, past)

    def _past(self, rows: Sequence[Row], pads: Sequence[int], columns: int) -> DynamicCache:
        """The keys and values of the first columns; where a row is padded, zeros that nobody sees."""
        past = DynamicCache()  # without a configuration it keeps all positions
        if columns == 0:
            return past

        some = next(row.known[0] for row in rows if row.known[0] is not None)
        for layer in range(len(some.layers)):
            parts = []
            for kind in (0, 1):  # keys, values
                like = some.layers[layer][kind]
                part = like.new_zeros(len(rows), like.shape[1], columns, like.shape[3])
                for i, (pad, row) in enumerate(zip(pads, rows)):
                    if row.known[0] is not None and columns > pad:
                        part[i, :, pad:] = row.known[0].layers[layer][kind][0, :, : columns - pad]
                parts.append(part)
            past.update(*parts, layer)
        return past

    def _embeddings(
        self, rows: Sequence[Row], pads: Sequence[int], first: int, ids: torch.Tensor
    ) -> torch.Tensor:
        """Embeddings `(B, L, H)`; clips before the first column that is computed are not encoded."""
        embeddings = self.model.get_input_embeddings()(ids)  # (B, L, H)
        clips = [(pad + clip.end > first, clip) for pad, row in zip(pads, rows) for clip in row.prompt.clips]
        if not clips:
            return embeddings

        new = [clip for is_new, clip in clips if is_new]
        encoded = iter(())
        if new:
            tiles = torch.cat([clip.pixels for clip in new]).to(self._device)
            grid = clip_grid_of(clip.clip for clip in new)
            encoded = iter(self.model.get_image_features(tiles, grid).pooler_output)

        visual_tokens = torch.cat(
            [
                next(encoded) if is_new else embeddings.new_zeros(clip.tokens, embeddings.shape[-1])
                for is_new, clip in clips
            ]
        )  # (visual tokens of all rows, H)
        return self.model.model.merge_visual_tokens(ids, embeddings, visual_tokens)

    def _keep(self, rows: Sequence[Row], pads: Sequence[int], past: DynamicCache) -> None:
        """Puts what was computed of each row into the store."""
        held = past.get_seq_length()
        for i, (pad, row) in enumerate(zip(pads, rows)):
            span = self.span(row)
            keys = torch.cat([row.prompt.keys, torch.tensor(row.tokens, dtype=torch.long)])
            length = max(0, min(held - pad, len(keys), span.stop - 1))
            own = slice(pad, pad + length)
            layers = [(x.keys[i : i + 1, :, own], x.values[i : i + 1, :, own]) for x in past.layers]

            prefix = Prefix(keys[:length], layers, span)
            if length and len(span) and prefix.num_bytes <= self.store.max_bytes:
                # one block of memory each: small ones of all sizes would leave gaps that nothing fits into
                copy = torch.stack([x for layer in layers for x in layer])  # (2 * layers, 1, heads, n, width)
                self.store.put(prefix._replace(layers=list(zip(copy[::2], copy[1::2]))))

    def _watch_layers(self) -> None:
        """Lets every layer end the batch where nobody waits any more: a long prompt takes seconds."""

        def check(*_: Any) -> None:
            if self._rows and all(row.cancelled.is_set() for row in self._rows):
                raise Abandoned

        lists = [module for module in self.model.modules() if isinstance(module, torch.nn.ModuleList)]
        for layer in (layer for layers in lists for layer in layers):
            layer.register_forward_pre_hook(check)
