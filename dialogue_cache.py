"""A dialogue's cache: what the model computed for earlier questions is kept for the next one.

    cache = model.dialogue_cache()
    answer, history = model.chat(tokenizer, pixel_values, question, cache=cache, return_history=True)
    answer = model.chat(tokenizer, pixel_values, another, history=history, cache=cache)    # its text alone

`DialogueCache` keeps the visual tokens of the clips of the last call, `PrefixCache` the LLM's keys and values
of prompt and answer. Of a new prompt the longest prefix that is the same, images included, is reused; the
rest is computed. Whatever changes (history, system message, images, tokenizer, weights), answers are those
without a cache. Encoding and generation themselves are left to the model.

Shapes: `L` positions of a prompt, `H` width of the LLM.
"""

import sys
import weakref
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from .clips import Clip, clip_grid_of, clips_of_grid
from .configuration_pvc import llm_family
from .fast_decode import as_dynamic, check_settings, fast_decode_options

SAMPLED_VALUES = 8  # of each parameter, see `_sample`
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value


class PrefixCache:
    """The LLM's keys and values of one prompt and its answer, and what stands at each of their positions.

    `prompt_keys (L,)`: the token's id for text, a unique negative number for each visual token. The first `L`
    positions of `past` are right at any time: interrupting an answer does no harm.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Forgets everything."""
        self.prompt_keys = torch.empty(0, dtype=torch.long)
        self.past = DynamicCache()  # made without a configuration, it keeps all positions of all layers
        self.lengths = range(0)  # of calls, see `rope_span`
        self.model = lambda: None
        self.state = None

    @torch.no_grad()
    def generate(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        visual_tokens: torch.Tensor | None = None,
        visual_token_keys: torch.Tensor | None = None,
        *,
        fast_decode: bool = False,
        **options,
    ):
        """`model.generate` of a prompt, computed from its first new position on.

        Args:
            input_ids: `(1, L)`, with `config.image_token_id` at the position of each visual token.
            visual_tokens: `(tokens, H)`.
            visual_token_keys: `(tokens,)`, negative; equal keys say that two tokens are equal.
            options: of `generate`.

        Returns:
            what `generate` does. A `past_key_values` in it is this object's own and goes on to change.

        Raises:
            ValueError: where the options ask for several beams or answers, or for another cache.
        """
        self.start(model, options)
        return self._generate(
            model, input_ids, visual_tokens, visual_token_keys, fast_decode=fast_decode, options=options
        )

    def _generate(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        visual_tokens: torch.Tensor | None = None,
        visual_token_keys: torch.Tensor | None = None,
        *,
        fast_decode: bool,
        options: dict,
    ):
        """`generate` of options that `start` has checked."""
        inputs_embeds = model.get_input_embeddings()(input_ids)  # (1, L, H)
        keys = input_ids
        if visual_tokens is not None:
            assert visual_token_keys is not None  # they come with the tokens
            inputs_embeds = model.model.merge_visual_tokens(input_ids, inputs_embeds, visual_tokens)
            keys = keys.masked_scatter(keys == model.config.image_token_id, visual_token_keys.to(keys))
        keys = keys[0].cpu()  # (L,)
        self._cut_to_common(keys, rope_span(model.config.llm_config, len(keys)))

        if fast_decode:
            options = fast_decode_options(model, input_ids, options, prefix=self.past)
        else:
            options = options | {"past_key_values": self.past}
        # the prompt is without padding: a pad token in it is text
        options = options | {"attention_mask": torch.ones_like(input_ids)}

        try:
            output = model.generate(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            keys = torch.cat([keys, sequences[0, len(keys) :].cpu()])
            if fast_decode:
                self.past = as_dynamic(options["past_key_values"])
        finally:
            self._keep(keys, model.config.llm_config.num_hidden_layers)
        return output

    def start(self, model: PreTrainedModel, options: dict):
        """Checks the options, and forgets what another model, or this one in another state, computed."""
        check_settings(model, options, "a cache of the dialogue", one=("num_beams", "num_return_sequences"))
        state = _state(model)
        if self.model() is not model or self.state != state:
            self.clear()
            self.model = weakref.ref(model)
            self.state = state

    def _cut_to_common(self, keys: torch.Tensor, lengths: range):
        """Cuts back to the prefix in common with `keys (L,)`.

        At least the last position remains to be computed: its logits are needed.
        """
        length = min(len(self.prompt_keys), len(keys) - 1)
        if lengths != self.lengths:  # the keys that are kept were rotated by other angles
            length = 0
        differ = (self.prompt_keys[:length] != keys[:length]).nonzero()
        if len(differ):
            length = int(differ[0])

        self.prompt_keys = self.prompt_keys[:length]
        if length == 0:
            self.past = DynamicCache()
            self.lengths = lengths
        for layer in self.past.layers:
            layer.keys = layer.keys[:, :, :length]
            layer.values = layer.values[:, :, :length]

    def _keep(self, keys: torch.Tensor, num_layers: int):
        """Keeps as many positions of `keys` as every layer has and as hold in a longer prompt."""
        kept = [x for layer in self.past.layers for x in (layer.keys, layer.values)]
        is_whole = len(kept) == 2 * num_layers and all(x.dim() == 4 for x in kept)
        if not is_whole:  # interrupted while the first were made
            return
        held = min(x.shape[2] for x in kept)
        self.prompt_keys = keys[: max(0, min(held, self.lengths.stop - 1))]


def rope_span(llm_config: PretrainedConfig, length: int) -> range:
    """The lengths of calls that rotate keys by the same angles as one that reaches `length` positions.

    Empty where no other call is known to: beyond its limit, dynamic NTK has a base for each length,
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


def _state(model: PreTrainedModel) -> tuple:
    """What changes where the weights or the configuration of a model change, in place or not."""
    weights = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    return weights, _sample(model), model.training, repr(model.config.to_dict())


def _sample(model: PreTrainedModel) -> tuple:
    """A few values of each parameter: what is written through `.data` does not count as a version."""
    alike: dict[tuple, list[torch.Tensor]] = {}  # by device and type, which are gathered by one operation
    for values in (values for parameter in model.parameters() for values in _plain_tensors(parameter)):
        is_readable = values.device.type != "meta" and values.is_contiguous() and values.numel() > 0
        if is_readable:
            step = -(-values.numel() // SAMPLED_VALUES)
            bits = values.view(-1).view(BITS[values.itemsize])
            alike.setdefault((bits.device, bits.dtype), []).append(bits[::step])
    return tuple(torch.cat(values).cpu().numpy().tobytes() for values in alike.values())


def _plain_tensors(parameter: torch.Tensor) -> list[torch.Tensor]:
    """A parameter as plain tensors: of a DTensor the rank's own part, of a quantised one its parts."""
    values = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    values = values.detach()
    if not is_traceable_wrapper_subclass(values):
        return [values]
    names, _ = values.__tensor_flatten__()
    return [getattr(values, name) for name in names]


class EncodedClip(NamedTuple):
    """A clip as it was given, and its visual tokens."""

    clip: Clip
    pixels: torch.Tensor  # (tiles, 3, H, W), in the ViT's dtype: a copy, which nobody else changes
    visual_tokens: torch.Tensor  # (tokens, H)
    keys: torch.Tensor  # (tokens,) negative, of no other token


class DialogueCache(PrefixCache):
    """What `chat`, `stream_chat` and `generate` take as `cache`: a dialogue's clips and its prefix.

    It is for one dialogue at a time and one thread; asked about another, it forgets the first. It holds the
    clips' pixels (to compare) and visual tokens, and the LLM's keys and values. After a change that leaves
    weights and configuration as they are (an adapter switched, a hook added), or of single values of weights
    through `.data` (of which a few are compared), call `clear`.
    """

    def clear(self):
        super().clear()
        self.clips: list[EncodedClip] = []
        self.num_keys = 0  # of visual tokens so far

    @torch.no_grad()
    def generate_from(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        *,
        fast_decode: bool = False,
        **options,
    ):
        """`model.generate(input_ids, pixel_values, clip_grid)`, which checks them; computes what is new.

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

        if pixel_values is None:
            self.clips = []
            return self._generate(model, input_ids, fast_decode=fast_decode, options=options)
        self.clips = self._encode(model, pixel_values, clip_grid)
        # only new clips went through the ViT; the LLM's cache compares keys
        visual_tokens = torch.cat([clip.visual_tokens for clip in self.clips])
        keys = torch.cat([clip.keys for clip in self.clips])
        return self._generate(model, input_ids, visual_tokens, keys, fast_decode=fast_decode, options=options)

    def _encode(
        self, model: PreTrainedModel, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None
    ) -> list[EncodedClip]:
        """The clips in prompt order; those that the last call did not have are encoded together."""
        pixel_values = pixel_values.to(model.model.vision_model.embeddings.patch_embedding.weight.dtype)
        if clip_grid is None:
            clip_grid = model.model.one_image_grid(len(pixel_values))

        encoded: dict[int, EncodedClip] = {}  # by the clip's position among all
        new: dict[int, tuple[Clip, torch.Tensor]] = {}
        for i, (first_tile, clip) in enumerate(clips_of_grid(clip_grid, len(pixel_values))):
            pixels = pixel_values[first_tile : first_tile + clip.frames * clip.tiles]
            known = next((old for old in self.clips if _is_same(old, clip, pixels)), None)
            if known is None:
                new[i] = (clip, pixels)
            else:
                encoded[i] = known

        if new:
            grid = clip_grid_of(clip for clip, _ in new.values())
            tiles = torch.cat([pixels for _, pixels in new.values()])
            features = model.get_image_features(tiles, grid).pooler_output
            for (i, (clip, pixels)), visual_tokens in zip(new.items(), features):
                keys = self._new_keys(len(visual_tokens))
                encoded[i] = EncodedClip(clip, pixels.clone(), visual_tokens, keys)
        return [encoded[i] for i in sorted(encoded)]

    def _new_keys(self, number: int) -> torch.Tensor:
        """Keys `(number,)` that no visual token has had."""
        first = -1 - self.num_keys
        self.num_keys += number
        return first - torch.arange(number)


def _is_same(known: EncodedClip, clip: Clip, pixels: torch.Tensor) -> bool:
    return known.clip == clip and torch.equal(known.pixels, pixels.to(known.pixels.device))
