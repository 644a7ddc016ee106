"""Ask again for free: what the model computed for a dialogue so far, kept for its next question.

    cache = model.dialogue_cache()
    answer, history = model.chat(tokenizer, pixel_values, question, cache=cache, return_history=True)
    answer = model.chat(tokenizer, pixel_values, another, history=history, cache=cache)    # costs its text

`DialogueCache` keeps the visual tokens of the clips of the last call, `PrefixCache` the LLM's keys and values
of all that was said. Of a new prompt the longest prefix that is the same, pictures included, is taken over;
the rest is computed. Whatever changes (history, system message, pictures, tokenizer, weights), answers are
those without a cache. Encoding and generation themselves are left to the model.

Shapes: `L` places of a prompt, `H` width of the LLM.
"""

import sys
import weakref
from typing import NamedTuple

import torch
from transformers.cache_utils import DynamicCache

from .clips import Clip, clip_grid_of, clips_of_grid
from .configuration_pvc import llm_family
from .fast_decode import as_dynamic, check_settings, fast_decode_options

SAMPLED_VALUES = 8  # of each parameter, see `_sample`


class PrefixCache:
    """The LLM's keys and values of one prompt and its answer, and what stands in each of their places.

    `said (L,)` says it: the id of a token of text, or a negative number that no other visual token has. The
    first `L` places of `past` are right at any moment: whatever interrupts an answer does no harm.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Forgets everything."""
        self.said = torch.empty(0, dtype=torch.long)
        self.past = DynamicCache()  # made without a configuration, it keeps all places of all layers
        self.lengths = range(0)  # of calls, see `_rope_span`
        self.model, self.state = lambda: None, None

    @torch.no_grad()
    def generate(
        self,
        model,
        input_ids: torch.Tensor,
        tokens: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
        *,
        fast_decode: bool = False,
        **options,
    ):
        """`model.generate` of a prompt, computed from its first place on that is new.

        Args:
            input_ids: `(1, L)`, with `config.image_token_id` in the place of each visual token.
            tokens: the visual tokens `(tokens, H)`.
            numbers: `(tokens,)`, negative; equal numbers say that two tokens are equal.
            options: of `generate`.

        Returns:
            what `generate` does. A `past_key_values` in it is this object's own and goes on to change.

        Raises:
            ValueError: where the options ask for several beams or answers, or for another cache.
        """
        self.start(model, options)
        inputs_embeds, said = model.get_input_embeddings()(input_ids), input_ids
        if tokens is not None:
            inputs_embeds = model.model.merge_visual_tokens(input_ids, inputs_embeds, tokens)
            said = said.masked_scatter(said == model.config.image_token_id, numbers.to(said))
        said = said[0].cpu()
        self._cut_to_common(said, _rope_span(model.config.llm_config, len(said)))
        if fast_decode:
            options = fast_decode_options(model, input_ids, options, prefix=self.past)
        else:
            options["past_key_values"] = self.past
        try:
            # said to be without padding: a pad token in it is text
            mask = torch.ones_like(input_ids)
            output = model.generate(
                input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=mask, **options
            )
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            said = torch.cat([said, sequences[0, len(said) :].cpu()])
            self.past = as_dynamic(options["past_key_values"]) if fast_decode else self.past
        finally:
            self._keep(said, model.config.llm_config.num_hidden_layers)
        return output

    def start(self, model, options: dict):
        """Checks the options, and forgets what another model computed, or this one with other weights or
        another configuration.
        """
        check_settings(model, options, "a cache of the dialogue", one=("num_beams", "num_return_sequences"))
        state = _state(model)
        if self.model() is not model or self.state != state:
            self.clear()
            self.model, self.state = weakref.ref(model), state

    def _cut_to_common(self, said: torch.Tensor, lengths: range):
        """Cuts back to what `said` begins with, short of its last place: its logits are wanted."""
        length = min(len(self.said), len(said) - 1) if lengths == self.lengths else 0
        differ = (self.said[:length] != said[:length]).nonzero()
        length = int(differ[0]) if len(differ) else length
        self.said = self.said[:length]
        if length == 0:
            self.past, self.lengths = DynamicCache(), lengths
        for layer in self.past.layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]

    def _keep(self, said: torch.Tensor, num_layers: int):
        """Keeps as many places of `said` as every layer has and as hold in a longer prompt."""
        kept = [x for layer in self.past.layers for x in (layer.keys, layer.values)]
        whole = len(kept) == 2 * num_layers and all(x.dim() == 4 for x in kept)
        if whole:  # not interrupted while the first were made
            places = [x.shape[2] for x in kept]
            self.said = said[: max(0, min([self.lengths.stop - 1, *places]))]


def _rope_span(llm_config, length: int) -> range:
    """The lengths of calls that rotate keys by the same angles as one that reaches `length` places.

    Empty where no other call need do so: beyond its limit, dynamic NTK has a base of its own for each length,
    and transformers' own (all but InternLM2's) one that depends on the calls before.
    """
    rope = llm_config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind == "dynamic":
        span = range(llm_config.max_position_embeddings + 1)
        keeps_angles = length in span and llm_family(llm_config).rope_depends_on_call_alone
        return span if keeps_angles else range(0)
    if kind == "longrope":
        limit = rope["original_max_position_embeddings"]
        return range(limit + 1) if length <= limit else range(limit + 1, sys.maxsize)
    return range(sys.maxsize)


def _state(model) -> tuple:
    """What changes where the weights or the configuration of a model change, in place or not."""
    weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    return weights, _sample(model), model.training, repr(model.config.to_dict())


def _sample(model) -> tuple:
    """A few values of each parameter: what is written through `.data` does not count as a version."""
    of_device = {}
    for parameter in model.parameters():
        values = getattr(parameter, "to_local", lambda p=parameter: p)().detach()  # a rank's own of a DTensor
        if values.device.type != "meta" and values.is_contiguous() and values.numel():
            step = -(-values.numel() // SAMPLED_VALUES)
            of_device.setdefault(values.device, []).append(values.view(-1)[::step].float())
    return tuple(torch.cat(values).cpu().numpy().tobytes() for values in of_device.values())


class EncodedClip(NamedTuple):
    """A clip as it was given, and its visual tokens."""

    clip: Clip
    pixels: torch.Tensor  # (tiles, 3, H, W), in the ViT's dtype: a copy, which nobody else changes
    tokens: torch.Tensor  # (tokens, H)
    numbers: torch.Tensor  # (tokens,) negative, of no other token


class DialogueCache(PrefixCache):
    """What `chat`, `stream_chat` and `generate` take as `cache`: a dialogue's clips and its prefix.

    It is for one dialogue at a time and one thread; asked about another, it forgets the first. It holds the
    clips' pixels (to compare) and visual tokens, and the LLM's keys and values. After a change that leaves
    weights and configuration as they are (an adapter switched, a hook added), or of single values of weights
    through `.data` (of which a few are looked at), call `clear`.
    """

    def clear(self):
        super().clear()
        self.clips: list[EncodedClip] = []
        self.tokens_seen = 0

    @torch.no_grad()
    def generate_from(self, model, input_ids, pixel_values=None, clip_grid=None, **options):
        """`model.generate(input_ids, pixel_values, clip_grid)`, which checks them, as far as it is new.

        Raises:
            ValueError: where `input_ids` are not one row without padding, or as `PrefixCache.generate`.
        """
        mask = options.pop("attention_mask", None)
        if len(input_ids) != 1 or (mask is not None and not mask.all()):
            raise ValueError(
                f"a cache follows one dialogue, but input_ids have {len(input_ids)} rows"
                f"{'' if len(input_ids) > 1 else ' with padding'}: pass one without padding, or no cache"
            )
        self.start(model, options)
        self.clips = [] if pixel_values is None else self._encode(model, pixel_values, clip_grid)
        tokens = torch.cat([clip.tokens for clip in self.clips]) if self.clips else None
        numbers = torch.cat([clip.numbers for clip in self.clips]) if self.clips else None
        return self.generate(model, input_ids, tokens, numbers, **options)

    def _encode(self, model, pixel_values, clip_grid) -> list[EncodedClip]:
        """The clips in prompt order; those that the last call did not have are encoded together."""
        pixel_values = pixel_values.to(model.model.vision_model.embeddings.patch_embedding.weight.dtype)
        if clip_grid is None:
            clip_grid = model.model.one_image_grid(len(pixel_values))
        clips: list[EncodedClip | None] = []
        new: dict[int, tuple[Clip, torch.Tensor]] = {}  # by the clip's position among all

        for first_tile, clip in clips_of_grid(clip_grid, len(pixel_values)):
            pixels = pixel_values[first_tile : first_tile + clip.frames * clip.tiles]
            known = next((old for old in self.clips if _is_same(old, clip, pixels)), None)
            if known is None:
                new[len(clips)] = (clip, pixels)
            clips.append(known)
        if not new:
            return clips

        grid = clip_grid_of(clip for clip, _ in new.values())
        tiles = torch.cat([pixels for _, pixels in new.values()])
        encoded = model.get_image_features(tiles, grid).pooler_output
        for (i, (clip, pixels)), tokens in zip(new.items(), encoded):
            numbers = -1 - self.tokens_seen - torch.arange(len(tokens))
            self.tokens_seen += len(tokens)
            clips[i] = EncodedClip(clip, pixels.clone(), tokens, numbers)
        return clips


def _is_same(known: EncodedClip, clip: Clip, pixels: torch.Tensor) -> bool:
    return known.clip == clip and torch.equal(known.pixels, pixels.to(known.pixels.device))
