"""The skeleton of a vision-language model: visual tokens among the text, the LLM, its head, `generate`.

    embeddings = merge_visual_tokens(input_ids, embeddings of input_ids, visual tokens)
    logits     = lm_head(LLM(embeddings))

`VLMModel` is the body and `VLMForConditionalGeneration` adds head, loss, `generate` and its checks. A system
subclasses both and brings what makes visual tokens: modules, and `get_image_features` and `check_pixels`.
What it does with tiles, and prompts, are left to the other files; loading's own is in `loading.py`.

Shapes: `B` rows of `S` tokens, a prompt of `L`; `H` width of the LLM.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging

from .chunks import compiled_steps
from .clips import Clip, clip_grid_of
from .configuration_pvc import llm_family
from .conversation import get_conv_template
from .dialogue_cache import DialogueCache
from .fast_decode import ASSISTED, fast_decode_options, generate_setting
from .json_files import check_json_files
from .loading import (
    check_parts,
    check_savable,
    damage_as_os_error,
    say_casts_once,
    translate_old_arguments,
)
from .modeling_intern_vit import InternVisionEncoderLayer, check_finite, eval_mode
from .modeling_internlm2 import ENGINE_ATTENTION, InternLM2Model, causal_lm_output

logger = logging.get_logger(__name__)


class VLMPreTrainedModel(PreTrainedModel):
    """What body and whole model have in common."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def save_pretrained(self, save_directory, *args, **kwargs):
        """transformers' own; the weights get the permissions of config.json.

        safetensors writes files for their owner alone, whatever the umask.

        Raises:
            ValueError: for a quantised model that would not load as it is; see `loading.check_savable`.
        """
        check_savable(self)
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        if (folder / "config.json").is_file():  # the process that saves
            mode = (folder / "config.json").stat().st_mode & 0o666
            for file in folder.glob("model*.safetensors"):
                file.chmod(mode)


def make_language_model(llm_config: PretrainedConfig) -> PreTrainedModel:
    """An LLM without its head, of the class that its configuration is for."""
    if llm_family(llm_config).is_own_code:
        return InternLM2Model(llm_config)
    return AutoModel.from_config(llm_config)


class VLMModel(VLMPreTrainedModel):
    """The body: the LLM without its head, and the merging of visual tokens into its input.

    A subclass makes `language_model` and the modules that encode tiles.
    """

    language_model: PreTrainedModel

    def check_pixels(self, pixel_values: torch.Tensor):
        """Raises a ValueError where `pixel_values` are not tiles that this model takes."""
        raise NotImplementedError

    def get_image_features(self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs):
        """`pooler_output`: a tuple, the visual tokens `(tokens, H)` of each clip in prompt order."""
        raise NotImplementedError

    def tokens_per_tile(self, height: int, width: int) -> int:
        """Visual tokens of one showing of a tile of so many pixels, where nobody says another number."""
        raise NotImplementedError

    def share_budget(
        self,
        clips: Sequence[Clip],
        tokens_per_tile: int | None = None,
        *,
        max_video_tokens: int | None = None,
        frame_tokens: int | None = None,
    ) -> list[Clip]:
        """The clips of one dialogue with their numbers of tokens.

        Args:
            tokens_per_tile: of tiles of their size, unlimited; None: of the configuration's tiles.
            max_video_tokens, frame_tokens: see the configuration's `token_budget`.
        """
        budget = self.config.token_budget(max_video_tokens, frame_tokens)
        if tokens_per_tile is not None:
            budget = budget._replace(patches=tokens_per_tile)
        return budget.share(clips)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, **kwargs
    ) -> Any:
        """`get_image_features` of videos alone, as serving engines pass them.

        Args:
            pixel_values_videos: `(num_tiles, 3, H, W)`, video after video.
            video_grid_thw: `(videos, 3)` long: frames, tiles a frame, and 1, for each video.
        """
        repeats = self.config.video_repeats
        own = self.tokens_per_tile(*pixel_values_videos.shape[2:])
        clips = [Clip(frames, tiles * more, repeats) for frames, tiles, more in video_grid_thw.tolist()]
        clips = [shared for clip in clips for shared in self.share_budget([clip], own)]
        return self.get_image_features(pixel_values_videos, clip_grid_of(clips), **kwargs)

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `(B, S, H)` of `input_ids (B, S)`, visual tokens merged in.

        Raises:
            ValueError: where there are more or fewer positions than visual tokens, or `clip_grid` alone.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            if clip_grid is not None:
                raise ValueError(
                    "clip_grid says what the tiles of pixel_values are, but pixel_values is None"
                )
            trains = self.training and torch.is_grad_enabled()
            return self._with_unused_vision(embeddings) if trains else embeddings

        visual_tokens = torch.cat(self.get_image_features(pixel_values, clip_grid).pooler_output)
        return self.merge_visual_tokens(input_ids, embeddings, visual_tokens)

    def merge_visual_tokens(
        self, input_ids: torch.Tensor, embeddings: torch.Tensor, visual_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Puts visual tokens `(tokens, H)` into `embeddings (B, S, H)` of `input_ids (B, S)`.

        Their positions are those of `config.image_token_id`, row after row.

        Raises:
            ValueError: where there are more or fewer positions than visual tokens.
        """
        is_visual = input_ids == self.config.image_token_id  # (B, S)
        if is_visual.sum() != len(visual_tokens):
            raise ValueError(
                f"input_ids have {int(is_visual.sum())} positions for visual tokens (image_token_id "
                f"{self.config.image_token_id}), but pixel_values and clip_grid make {len(visual_tokens)}"
            )

        # in the order of positions, as the visual tokens are
        is_visual = is_visual[..., None].to(embeddings.device)  # (B, S, 1)
        return embeddings.masked_scatter(is_visual, visual_tokens.to(embeddings.device, embeddings.dtype))

    def _with_unused_vision(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`embeddings`, after encoding one empty tile and adding nothing of it.

        So every rank of a sharded run makes the same calls, whether its batch has images or not.
        """
        vit = self.config.vision_config
        tile = embeddings.new_zeros(1, vit.num_channels, vit.image_size, vit.image_size)
        (visual_tokens,) = self.get_image_features(tile).pooler_output
        return embeddings + 0 * visual_tokens.sum().to(embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states `(B, S, H)` of the LLM.

        Args:
            input_ids: `(B, S)` with `config.image_token_id` at the position of each visual token; or
                `inputs_embeds` `(B, S, H)` with the visual tokens merged in already.
            pixel_values, clip_grid: see `get_image_features`.
            attention_mask, position_ids, past_key_values: as in transformers' LLMs.

        Raises:
            ValueError: where both or neither of ids and embeddings are given, or pixels without ids.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if pixel_values is not None and input_ids is None:
            raise ValueError("pixel_values need input_ids, which say where the visual tokens go")

        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, clip_grid)

        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class VLMForConditionalGeneration(VLMPreTrainedModel, GenerationMixin):
    """A body with its head: logits, loss, `generate` and its checks. A subclass names its `body_class`."""

    body_class: type[VLMModel]
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        llm = config.llm_config
        self.model = self.body_class(config)
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)

        # a tied head is the embedding, whose name differs by family
        embedding = llm_family(llm).embedding
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embedding}.weight"}

        # as the released model has them
        self.conv_template = get_conv_template(config.template)
        self.system_message = self.conv_template.system_message
        self.post_init()

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs) -> PreTrainedModel:
        """transformers' own; for a serving engine the body alone, since the engine has a head of its own."""
        if config.get_text_config()._attn_implementation == ENGINE_ATTENTION:
            return cls.body_class._from_config(config, **kwargs)
        return super()._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        allow_missing_parts: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """transformers' own.

        `use_flash_attn`, `load_in_8bit` and `load_in_4bit` of older releases still work.

        Args:
            allow_missing_parts: also load a checkpoint that has no weights at all of the ViT, the projector,
                the LLM or the head, which then start anew.

        Raises:
            ValueError: where a whole part has no weights, and this was not asked for.
            OSError: where a file is damaged.
        """
        kwargs = translate_old_arguments(kwargs)
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"))

        with damage_as_os_error(pretrained_model_name_or_path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        if getattr(model, "is_loaded_in_8bit", False):
            say_casts_once()
        if not allow_missing_parts:
            check_parts(model, info["missing_keys"], pretrained_model_name_or_path)
        return (model, info) if output_loading_info else model

    def get_image_features(self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs):
        """See `get_image_features` of the body."""
        return self.model.get_image_features(pixel_values, clip_grid, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        head_loss: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As the body, with `logits (B, S, vocabulary)` and, given `labels (B, S)` (-100: none), the loss.

        `logits_to_keep`: compute the logits of the last so many positions alone (0: of all).
        `head_loss`: makes the loss of head and hidden states, in place of logits (`training/losses.py`).
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            clip_grid=clip_grid,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

        return causal_lm_output(self, self.lm_head, outputs, labels, logits_to_keep, head_loss, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        prompt_embeds: torch.Tensor | None = None,
        draft_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> dict:
        """transformers' own, with the prompt's embeddings in place of its ids wherever a step computes them.

        Args:
            prompt_embeds: `(B, L, H)` of the prompt, visual tokens among them; what follows it in
                `input_ids` is text. Steps without a cache need it each time, steps with one at first.
            draft_embeds: those of an assistant, see `_get_candidate_generator`; not used here.
        """
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

        # nothing to put in: no embeddings, or transformers has taken its own
        ids = model_inputs.get("input_ids")
        if prompt_embeds is None or ids is None:
            return model_inputs

        start = input_ids.shape[1] - ids.shape[1]  # position of the first of ids
        if input_ids.shape[1] < prompt_embeds.shape[1]:  # a chunk of a chunked prefill
            start = int(past_key_values.get_seq_length())  # type: ignore[union-attr]

        # (B, known, H): what of the ids is prompt; the rest is text
        known = prompt_embeds[:, start : start + ids.shape[1]]
        if known.shape[1]:
            new = self.get_input_embeddings()(ids[:, known.shape[1] :])
            model_inputs["inputs_embeds"] = torch.cat([known.to(new), new], dim=1)
            model_inputs["input_ids"] = None
        return model_inputs

    def _get_candidate_generator(self, *, model_kwargs: dict, **kwargs):
        """transformers' own; an assistant gets its own embeddings of the prompt, or the ids alone."""
        draft = {name: value for name, value in model_kwargs.items() if name != "prompt_embeds"}
        draft_embeds = draft.pop("draft_embeds", None)
        if draft_embeds is not None:
            draft["prompt_embeds"] = draft_embeds
        return super()._get_candidate_generator(model_kwargs=draft, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
        cache: DialogueCache | None = None,
        fast_decode: bool = False,
        compile_encoder: bool = False,
        **kwargs,
    ):
        """transformers' `generate`, with the images encoded once for all beams and sequences.

        The model is in eval mode meanwhile, so that a model in training answers as it should.

        Args:
            cache: what earlier calls computed of this dialogue, re-used and extended; for one row of
                `input_ids` and one answer.
            fast_decode: compile the LLM's steps (see `fast_decode.py`): pays for itself over many tokens.
            compile_encoder: compile the steps of the ViT's layers, each number of time steps anew: pays for
                itself over many images, or videos of as many frames.
            kwargs: of transformers' `generate`. With `past_key_values` that hold the images already,
                `pixel_values` may be left out.

        Returns:
            prompt and new tokens where `input_ids` are given; new tokens alone where only `inputs_embeds`
            are.

        Raises:
            ValueError: where `input_ids` have positions for visual tokens but there are no pixels, or the
                reverse; where images come with padding on the right; or where other arguments do not go
                with `cache`, `fast_decode` or assisted decoding.
        """
        # checks of all that contradicts itself, before anything is computed
        input_ids = inputs if input_ids is None else input_ids
        embeddings = kwargs.get("inputs_embeds")
        self._check_prompt(input_ids, pixel_values, clip_grid, kwargs)
        self._check_length(input_ids if embeddings is None else embeddings)
        options = kwargs | {"generation_config": generation_config}
        self._check_assisted(input_ids, options)

        encoder = self._compiled_encoder(options) if compile_encoder else nullcontext()
        with eval_mode(self), encoder:
            if cache is not None:
                if input_ids is None or embeddings is not None:
                    raise ValueError("a cache needs input_ids and pixel_values, and no inputs_embeds")
                return cache.generate_from(
                    self, input_ids, pixel_values, clip_grid, fast_decode=fast_decode, **options
                )

            if pixel_values is not None:
                # images are encoded here, once for all beams and sequences
                options["prompt_embeds"] = self.model.embed(input_ids, pixel_values, clip_grid)
                options |= self._draft_embeds(input_ids, pixel_values, clip_grid, options)
            elif input_ids is not None and embeddings is not None:
                options["prompt_embeds"] = options.pop("inputs_embeds")
            if fast_decode:
                options = fast_decode_options(self, input_ids if embeddings is None else embeddings, options)
            return super().generate(input_ids=input_ids, **options)

    def _compiled_encoder(self, options: dict):
        """Within: the layers of the ViT run compiled, as `compile_config` of `options` of `generate` says.

        Raises:
            ValueError: where the model has no such layers.
        """
        layers = [module for module in self.modules() if isinstance(module, InternVisionEncoderLayer)]
        if not layers:
            raise ValueError("compile_encoder is for the layers of InternViT, of which this model has none")
        config = generate_setting(self, options, "compile_config")
        how = {} if config is None else {"backend": config.backend, "mode": config.mode}
        return compiled_steps(layers, dynamic=True, **how)

    def _draft_embeds(self, input_ids, pixel_values, clip_grid, options: dict) -> dict:
        """The prompt's embeddings by an assistant that is such a model too: it encodes the images itself.

        Another assistant drafts from the ids alone: its drafts are worse, the answer is the same.
        """
        assistant: Any = options.get("assistant_model")
        if not hasattr(getattr(assistant, "model", None), "embed"):
            return {}

        device = assistant.device
        ids, pixels = input_ids.to(device), pixel_values.to(device)
        with eval_mode(assistant):
            return {"draft_embeds": assistant.model.embed(ids, pixels, clip_grid)}

    def _check_assisted(self, input_ids, options: dict):
        """Raises a ValueError for assisted decoding that this model does not support."""
        if (layers := generate_setting(self, options, "assistant_early_exit")) is not None:
            raise ValueError(
                f"assistant_early_exit is {layers!r}, but the LLM has no head after its first layers: use "
                "assistant_model or prompt_lookup_num_tokens"
            )
        for name in ASSISTED:
            if input_ids is None and generate_setting(self, options, name) is not None:
                raise ValueError(f"{name} needs input_ids: pass them beside, or instead of, inputs_embeds")

    def _check_prompt(self, input_ids, pixel_values, clip_grid, options: dict):
        """Raises a ValueError for wrong ids, and where ids, pixels and embeddings contradict each other."""
        image_token_id, vocab_size = self.config.image_token_id, self.config.llm_config.vocab_size
        inputs_embeds, mask = options.get("inputs_embeds"), options.get("attention_mask")

        if input_ids is not None:
            _check_ids(input_ids, vocab_size)
        _check_padding(mask, has_images=pixel_values is not None)

        # without images
        if pixel_values is None:
            self._check_positions_are_known(input_ids, options)
            if clip_grid is not None and options.get("past_key_values") is None:
                raise ValueError(
                    "clip_grid says what the tiles of pixel_values are, but pixel_values is None"
                )
            return

        # with images
        if not 0 <= image_token_id < vocab_size:
            raise ValueError(
                f"config.image_token_id {image_token_id} is not in the vocabulary of {vocab_size}"
            )
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(
                "pixel_values need input_ids, which say where the visual tokens go, and no inputs_embeds"
            )
        if options.get("past_key_values") is not None and (
            generate_setting(self, options, "prefill_chunk_size") is not None
        ):
            raise ValueError(
                "pixel_values with past_key_values do not go with prefill_chunk_size: leave one out"
            )

        self.model.check_pixels(pixel_values)
        check_finite(pixel_values)

    def _check_positions_are_known(self, input_ids, options: dict):
        """Raises a ValueError for visual tokens of which there are no pixels, embeddings or cache."""
        if input_ids is None or any(
            options.get(name) is not None for name in ("inputs_embeds", "prompt_embeds")
        ):
            return

        # positions that the cache holds need no pixels
        past, mask = options.get("past_key_values"), options.get("attention_mask")
        cached = 0 if past is None else int(past.get_seq_length())
        if mask is not None and mask.shape[1] > input_ids.shape[1]:  # ids are what is new alone
            cached = 0

        positions = int((input_ids[:, cached:] == self.config.image_token_id).sum())
        if positions:
            raise ValueError(
                f"input_ids have {positions} positions for visual tokens, but pixel_values is None"
            )

    def _check_length(self, prompt: torch.Tensor | None):
        """Raises for a prompt `(B, S)` or `(B, S, H)` longer than the LLM's limit; warns with scaled RoPE."""
        llm = self.config.llm_config
        if prompt is None or prompt.shape[1] <= llm.max_position_embeddings:
            return

        message = (
            f"the prompt has {prompt.shape[1]} tokens, the LLM was made for {llm.max_position_embeddings} "
            "(max_position_embeddings): use fewer frames or tiles"
        )

        # scaled RoPE goes beyond its length, at a price
        if (llm.rope_parameters or {}).get("rope_type", "default") == "default":
            raise ValueError(message)
        logger.warning_once(f"{message}, or expect answers to suffer; RoPE is scaled")


def _check_padding(attention_mask: torch.Tensor | None, has_images: bool):
    """Raises where a prompt with images ends in padding, and warns for text, as transformers does."""
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask[:, -1].bool().all():
        return

    rows = (attention_mask[:, -1] == 0).nonzero().flatten().tolist()
    message = (
        f"attention_mask ends with 0 in rows {rows}: the prompt is padded on the right, but generation goes "
        "on after the last token: pad on the left (padding_side='left')"
    )

    # text alone: transformers warns too
    if has_images:
        raise ValueError(message)
    logger.warning_once(message)


def _check_ids(input_ids: torch.Tensor, vocab_size: int):
    """Raises a ValueError unless these are ids `(B, S)` of the LLM's vocabulary, at least one."""
    is_tensor = isinstance(input_ids, torch.Tensor)
    if not is_tensor or input_ids.dim() != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
        kind = f"{input_ids.dtype} {tuple(input_ids.shape)}" if hasattr(input_ids, "shape") else input_ids
        raise ValueError(f"input_ids is {kind}: expected a tensor of integers (batch, length)")

    if not 0 <= input_ids.min() <= input_ids.max() < vocab_size:
        raise ValueError(
            f"input_ids run from {input_ids.min()} to {input_ids.max()}, but the LLM's vocabulary has "
            f"{vocab_size} ids: use the model's own tokenizer"
        )
