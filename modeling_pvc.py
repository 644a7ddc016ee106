"""PVC: a vision-language model that treats every visual input as a video (CVPR 2025).

    tiles -> ViT with progressive encoding -> adaptive compression -> visual tokens
    visual tokens in the places of <IMG_CONTEXT> among the text's embeddings -> LLM -> answer

`PVCModel` is the body and `PVCForConditionalGeneration` adds the head, `generate` and, from
`chat.py`, `chat`. The ViT is in `modeling_intern_vit.py`, InternLM2 in `modeling_internlm2.py`, prompts
in `conversation.py`.

Shapes: `num_tiles` tiles as they come, unrepeated; `R` rows (one moment of one tile each); `N` tokens of a
    row;
`C` width of the ViT, `D` of the projector's input, `H` of the LLM.
"""

from functools import partial
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, BitsAndBytesConfig, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
)
from transformers.utils import can_return_tuple, is_flash_attn_2_available, logging

from .chat import ChatMixin
from .clips import Clip, ClipLayout, clip_grid_of, tokens_of_tile
from .configuration_pvc import PVCConfig, llm_family
from .conversation import get_conv_template
from .dialogue_cache import DialogueCache
from .fast_decode import ASSISTED, fast_decode_options, generate_setting
from .json_files import check_json_files
from .live_video import LiveVideo
from .modeling_intern_vit import (
    AdaLN,
    InternVisionModel,
    InternVisionOutput,
    TemporalMemory,
    apply_in_chunks,
    eval_mode,
    init_constant_start,
)
from .modeling_internlm2 import InternLM2Model, causal_lm_output

logger = logging.get_logger(__name__)

PARTS = ("model.vision_model", "model.projector", "model.language_model", "lm_head")
OLD_ARGUMENTS = ("use_flash_attn", "load_in_8bit", "load_in_4bit")
DAMAGED = (SafetensorError, JSONDecodeError, RecursionError, UnpicklingError, EOFError)
DAMAGED_PICKLES = ("corrupt file", "PytorchStreamReader")  # in torch's RuntimeErrors
UNQUANTIZED = ["model.vision_model", "model.projector", "lm_head"]


class AdaptiveCompression(nn.Module):
    """The projector: `v = MLP(AdaLN(x~; x~ + TE))` with `x~ = PixelShuffle(x)` (section 3.2 of the paper).

    Stacks each block of tokens of the grid (4x4 at ratio 0.25) into one of width `D`. With
    `adaptive_compression` false the norm is InternVL's LayerNorm with an affine, blind to time.
    """

    def __init__(self, config: PVCConfig):
        super().__init__()
        vit = config.vision_config
        self.block = round(1 / config.downsample_ratio)
        self.ps_version = config.ps_version
        self.adaptive = config.adaptive_compression
        width_in, width_out = vit.hidden_size * self.block**2, config.llm_config.hidden_size
        if self.adaptive:
            self.norm = AdaLN(width_in, vit.time_embed_dim, vit.temporal_condition, eps=1e-5)
        else:
            self.norm = nn.LayerNorm(width_in, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out))

    def forward(self, x: torch.Tensor, times: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """`x (R, 1 + h * w, C)`, class token first, and `times (R,)` -> visual tokens `(R, h * w / block^2,
        H)`.
        """
        x = rearrange(x[:, 1:], "r (h w) c -> r h w c", h=grid[0], w=grid[1])
        x = rearrange(pixel_shuffle(x, self.block, self.ps_version), "r h w d -> r (h w) d")
        x = self.norm(x, times) if self.adaptive else self.norm(x)
        return self.mlp(x)


def pixel_shuffle(x: torch.Tensor, block: int, ps_version: str = "v2") -> torch.Tensor:
    """`(R, h, w, C)` -> `(R, h / block, w / block, block^2 * C)`; "v1" leaves the grid transposed, as
    InternVL 1 did.
    """
    out = "r h w (bh bw c)" if ps_version == "v2" else "r w h (bh bw c)"
    return rearrange(x, f"r (h bh) (w bw) c -> {out}", bh=block, bw=block)


class PVCPreTrainedModel(PreTrainedModel):
    config_class = PVCConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["AdaptiveCompression"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_constant_start(module)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """transformers' own, with weights that may be read by whom config.json may: safetensors writes files
        for their owner alone, whatever the umask.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        if (folder / "config.json").is_file():  # the process that saves
            mode = (folder / "config.json").stat().st_mode & 0o666
            for file in folder.glob("model*.safetensors"):
                file.chmod(mode)


class PVCModel(PVCPreTrainedModel):
    """The body of PVC: ViT, projector and the LLM without its head."""

    def __init__(self, config: PVCConfig):
        super().__init__(config)
        self.vision_model = InternVisionModel(config.vision_config)
        self.projector = AdaptiveCompression(config)
        if llm_family(config.llm_config).is_own_code:
            self.language_model = InternLM2Model(config.llm_config)
        else:
            self.language_model = AutoModel.from_config(config.llm_config)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs
    ) -> InternVisionOutput:
        """Encodes clips into visual tokens.

        Args:
            pixel_values: `(num_tiles, 3, H, W)`, unrepeated: clip after clip, frame after frame, tile after
                tile.
            clip_grid: `(num_tiles, 3)` long: frames, tiles a frame and repeats of each tile's clip; None:
                all tiles are one image.

        Returns:
            `pooler_output`: a tuple, the visual tokens `(tokens, H)` of each clip in prompt order;
            `last_hidden_state (R, tokens of a row, H)`: all of them, row after row; with
            `output_hidden_states` and `output_attentions` those of the ViT (see `InternVisionModel.forward`).

        Raises:
            ValueError: where shapes are not as said, or the grid of patches does not divide into blocks.
        """
        config = self.config
        self.vision_model.check_pixels(pixel_values)
        if clip_grid is None:
            clip_grid = self.one_image_grid(len(pixel_values))
        clips = ClipLayout.from_grid(clip_grid, len(pixel_values), config.tile_repeat_order)
        vision = self.run_vision_model(pixel_values, clips, **_recorded(kwargs))
        tokens = self.project(vision.last_hidden_state, clips, pixel_values.shape[2:])
        by_clip = tuple(rows.flatten(0, 1) for rows in tokens.split(clips.rows_per_clip))
        return InternVisionOutput(
            last_hidden_state=tokens,
            pooler_output=by_clip,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
            temporal_attentions=vision.temporal_attentions,
        )

    def encode(
        self, pixel_values: torch.Tensor, clips: ClipLayout, past: list[TemporalMemory] | None = None
    ) -> torch.Tensor:
        """Visual tokens `(R, tokens of a row, H)` of tiles `(num_tiles, 3, H, W)` laid out as `clips`.

        `past`: see `InternVisionModel.forward`.
        """
        hidden_states = self.run_vision_model(pixel_values, clips, past=past).last_hidden_state
        return self.project(hidden_states, clips, pixel_values.shape[2:])

    def run_vision_model(
        self, pixel_values: torch.Tensor, clips: ClipLayout, **options
    ) -> InternVisionOutput:
        """The ViT up to the hidden states that the projector takes; `options` of `InternVisionModel`."""
        config = self.config
        self.patch_grid(*pixel_values.shape[2:])
        return self.vision_model(
            pixel_values,
            clips=clips,
            num_layers=config.select_layer % (config.vision_config.num_hidden_layers + 1),
            max_tiles=config.max_encoder_tiles,
            **options,
        )

    def project(self, hidden_states: torch.Tensor, clips: ClipLayout, size: tuple[int, int]) -> torch.Tensor:
        """Visual tokens `(R, tokens of a row, H)` of the ViT's hidden states of tiles of `size` pixels."""
        return apply_in_chunks(
            partial(self.projector, grid=self.patch_grid(*size)),
            hidden_states,
            clips.times.to(hidden_states.device),
            size=None if torch.is_grad_enabled() else self.config.max_encoder_tiles,
        )

    def one_image_grid(self, num_tiles: int) -> torch.Tensor:
        """The `clip_grid (num_tiles, 3)` that takes all tiles for one image."""
        return clip_grid_of([Clip(1, num_tiles, self.config.image_repeats)])

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a tile of so many pixels, checked to divide into the projector's
        blocks.
        """
        patch, block = self.config.vision_config.patch_size, self.projector.block
        if height % (patch * block) or width % (patch * block):
            raise ValueError(
                f"tiles are {height}x{width} pixels: expected multiples of {patch * block} "
                f"(patch_size {patch} / downsample_ratio {self.config.downsample_ratio})"
            )
        return height // patch, width // patch

    def tokens_per_tile(self, height: int, width: int) -> int:
        """Visual tokens of one tile shown once: 64 for 448 x 448 pixels at ratio 0.25."""
        self.patch_grid(height, width)
        patch = self.config.vision_config.patch_size
        return tokens_of_tile((height, width), patch, 1 / self.projector.block)

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        clip_grid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings `(B, S, H)` of `input_ids (B, S)` with visual tokens in the places of `<IMG_CONTEXT>`.

        Raises:
            ValueError: where there are more or fewer places than visual tokens.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            if clip_grid is not None:
                raise ValueError(
                    "clip_grid says what the tiles of pixel_values are, but pixel_values is None"
                )
            trains = self.training and torch.is_grad_enabled()
            return self._with_unused_vision(embeddings) if trains else embeddings
        features = self.get_image_features(pixel_values, clip_grid).last_hidden_state.flatten(0, 1)
        return self.place(input_ids, embeddings, features)

    def place(
        self, input_ids: torch.Tensor, embeddings: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """`embeddings (B, S, H)` of `input_ids (B, S)` with the visual tokens `features (tokens, H)` in their
        places.

        Raises:
            ValueError: where there are more or fewer places than visual tokens.
        """
        places = input_ids == self.config.image_token_id
        if places.sum() != len(features):
            raise ValueError(
                f"input_ids have {int(places.sum())} places for visual tokens (image_token_id "
                f"{self.config.image_token_id}), but pixel_values and clip_grid make {len(features)}"
            )
        features = features.to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(places[..., None].to(embeddings.device), features)

    def _with_unused_vision(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Encodes one empty tile and adds nothing of it, so that every rank of a sharded run makes the same
        calls.
        """
        vit = self.config.vision_config
        tile = embeddings.new_zeros(1, vit.num_channels, vit.image_size, vit.image_size)
        return embeddings + 0 * self.get_image_features(tile).last_hidden_state.sum().to(embeddings)

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
            input_ids: `(B, S)` with `config.image_token_id` in the place of each visual token; or
                `inputs_embeds` `(B, S, H)` with the visual tokens in place already.
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


class PVCForConditionalGeneration(ChatMixin, PVCPreTrainedModel, GenerationMixin):
    """PVC with its head: answers about one image, several, or a video."""

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: PVCConfig):
        super().__init__(config)
        self.model = PVCModel(config)
        llm = config.llm_config
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        embedding = llm_family(llm).embedding
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embedding}.weight"}
        self.conv_template = get_conv_template(config.template)
        self.system_message = self.conv_template.system_message
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        allow_missing_parts: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ):
        """transformers' own; `use_flash_attn`, `load_in_8bit` and `load_in_4bit` of older releases still
        work.

        Args:
            allow_missing_parts: also load a checkpoint that has no weights at all of the ViT, the projector,
                the LLM or the head, which then start anew.

        Raises:
            ValueError: where a whole part has no weights, and this was not asked for.
            OSError: where a file is damaged.
        """
        kwargs = _translate_old_arguments(kwargs)
        check_json_files(pretrained_model_name_or_path, kwargs.get("subfolder"))
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except DAMAGED as error:
            raise OSError(
                f"{pretrained_model_name_or_path}: a file of weights or their index is damaged ({error}): "
                "copy or download it again"
            ) from error
        except RuntimeError as error:
            if not any(sign in str(error) for sign in DAMAGED_PICKLES):
                raise
            raise OSError(
                f"{pretrained_model_name_or_path}: a pickle of weights is damaged ({error})"
            ) from error
        if not allow_missing_parts:
            _check_parts(model, info["missing_keys"], pretrained_model_name_or_path)
        return (model, info) if output_loading_info else model

    def live_video(self, tokenizer, **settings) -> LiveVideo:
        """A new `LiveVideo(self, tokenizer, **settings)`: frames as they come, questions at any time."""
        return LiveVideo(self, tokenizer, **settings)

    def get_image_features(self, pixel_values: torch.Tensor, clip_grid: torch.Tensor | None = None, **kwargs):
        """See `PVCModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, clip_grid, **kwargs)

    @property
    def img_context_token_id(self) -> int:
        """The released name of `config.image_token_id`."""
        return self.config.image_token_id

    @img_context_token_id.setter
    def img_context_token_id(self, value: int):
        self.config.image_token_id = value

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
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As `PVCModel`, with `logits (B, S, vocabulary)` and, given `labels (B, S)` (-100: none), the loss.

        `logits_to_keep`: compute the logits of the last so many places alone (0: of all).
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
        return causal_lm_output(self, self.lm_head, outputs, labels, logits_to_keep, **kwargs)

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
        ids = model_inputs.get("input_ids")
        if prompt_embeds is None or ids is None:
            return model_inputs

        start = input_ids.shape[1] - ids.shape[1]  # position of the first of ids
        if input_ids.shape[1] < prompt_embeds.shape[1]:  # a chunk of a chunked prefill
            start = int(past_key_values.get_seq_length())
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
        **kwargs,
    ):
        """transformers' `generate`, with the images encoded once however many beams or sequences are
        asked for. The model is in eval mode meanwhile, so that a model in training answers as it should.

        Args:
            cache: what earlier calls computed of this dialogue, re-used and extended; for one row of
                `input_ids` and one answer.
            fast_decode: compile the LLM's steps (see `fast_decode.py`): pays for itself over many tokens.
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
        input_ids = inputs if input_ids is None else input_ids
        embeddings = kwargs.get("inputs_embeds")
        self._check_prompt(input_ids, pixel_values, clip_grid, kwargs)
        self._check_length(input_ids if embeddings is None else embeddings)
        options = kwargs | {"generation_config": generation_config}
        self._check_assisted(input_ids, options)

        with eval_mode(self):
            if cache is not None:
                if input_ids is None or embeddings is not None:
                    raise ValueError("a cache needs input_ids and pixel_values, and no inputs_embeds")
                return cache.generate_from(
                    self, input_ids, pixel_values, clip_grid, fast_decode=fast_decode, **options
                )

            if pixel_values is not None:
                options["prompt_embeds"] = self.model.embed(input_ids, pixel_values, clip_grid)
                options |= self._draft_embeds(input_ids, pixel_values, clip_grid, options)
            elif input_ids is not None and embeddings is not None:
                options["prompt_embeds"] = options.pop("inputs_embeds")
            if fast_decode:
                options = fast_decode_options(self, input_ids if embeddings is None else embeddings, options)
            return super().generate(input_ids=input_ids, **options)

    def _draft_embeds(self, input_ids, pixel_values, clip_grid, options: dict) -> dict:
        """The prompt's embeddings by an assistant that is a PVC too: it sees the images with its own ViT.

        Another assistant drafts from the ids alone: its drafts are worse, the answer is the same.
        """
        assistant = options.get("assistant_model")
        if not hasattr(getattr(assistant, "model", None), "embed"):
            return {}
        device = assistant.device
        ids, pixels = input_ids.to(device), pixel_values.to(device)
        with eval_mode(assistant):
            return {"draft_embeds": assistant.model.embed(ids, pixels, clip_grid)}

    def _check_assisted(self, input_ids, options: dict):
        """Raises a ValueError for assisted decoding that PVC has not."""
        if (layers := generate_setting(self, options, "assistant_early_exit")) is not None:
            raise ValueError(
                f"assistant_early_exit is {layers!r}, but PVC has no head after its first layers: use "
                "assistant_model or prompt_lookup_num_tokens"
            )
        for name in ASSISTED:
            if input_ids is None and generate_setting(self, options, name) is not None:
                raise ValueError(f"{name} needs input_ids: pass them beside, or instead of, inputs_embeds")

    def _check_prompt(self, input_ids, pixel_values, clip_grid, options: dict):
        """Raises a ValueError for ids that are none, and where ids, pixels and embeddings contradict each
        other.
        """
        image_token_id, vocab_size = self.config.image_token_id, self.config.llm_config.vocab_size
        inputs_embeds, mask = options.get("inputs_embeds"), options.get("attention_mask")
        if input_ids is not None:
            _check_ids(input_ids, vocab_size)
        _check_padding(mask, has_images=pixel_values is not None)
        if pixel_values is None:
            self._check_places_are_known(input_ids, options)
            if clip_grid is not None and options.get("past_key_values") is None:
                raise ValueError(
                    "clip_grid says what the tiles of pixel_values are, but pixel_values is None"
                )
            return

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
        self.model.vision_model.check_pixels(pixel_values)
        if not torch.stack(pixel_values.aminmax()).isfinite().all():  # no copy of a long video
            raise ValueError(
                "pixel_values has values that are not finite: was a picture normalised by a zero?"
            )

    def _check_places_are_known(self, input_ids, options: dict):
        """Raises a ValueError for visual tokens of which there are no pixels, embeddings or cache."""
        if input_ids is None or any(
            options.get(name) is not None for name in ("inputs_embeds", "prompt_embeds")
        ):
            return
        past, mask = options.get("past_key_values"), options.get("attention_mask")
        cached = 0 if past is None else int(past.get_seq_length())
        if mask is not None and mask.shape[1] > input_ids.shape[1]:  # ids are what is new alone
            cached = 0
        places = int((input_ids[:, cached:] == self.config.image_token_id).sum())
        if places:
            raise ValueError(f"input_ids have {places} places for visual tokens, but pixel_values is None")

    def _check_length(self, prompt: torch.Tensor | None):
        """Raises, or warns where RoPE is scaled, for a prompt `(B, S)` or `(B, S, H)` longer than the LLM
        was made for.
        """
        llm = self.config.llm_config
        if prompt is None or prompt.shape[1] <= llm.max_position_embeddings:
            return
        message = (
            f"the prompt has {prompt.shape[1]} tokens, the LLM was made for {llm.max_position_embeddings} "
            "(max_position_embeddings): use fewer frames or tiles"
        )
        if (llm.rope_parameters or {}).get("rope_type", "default") == "default":
            raise ValueError(message)
        logger.warning_once(f"{message}, or expect answers to suffer; RoPE is scaled")


def _recorded(options: dict) -> dict:
    """What is asked for of the ViT's inner states."""
    return {name: options.get(name) for name in ("output_hidden_states", "output_attentions")}


def _check_parts(model: PreTrainedModel, missing_keys, source):
    """Raises a ValueError where a checkpoint had no weights of a whole part of the model."""
    missing = set(missing_keys)
    for part in PARTS:
        names = {name for name, _ in model.named_parameters() if name.startswith(f"{part}.")}
        if names and names <= missing:
            raise ValueError(
                f"{source} has no weights of {part} ({len(names)} parameters), so it would start at random: "
                "is it a checkpoint of this model? Convert one of InternVL with `pvc convert`, or pass "
                "allow_missing_parts=True"
            )


def _check_padding(attention_mask: torch.Tensor | None, has_images: bool):
    """Raises where a prompt with images ends in padding, and warns for text, as transformers does."""
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask[:, -1].bool().all():
        return
    rows = (attention_mask[:, -1] == 0).nonzero().flatten().tolist()
    message = (
        f"attention_mask ends with 0 in rows {rows}: the prompt is padded on the right, but generation goes "
        "on after the last token: pad on the left (padding_side='left')"
    )
    if has_images:
        raise ValueError(message)
    logger.warning_once(message)


def _check_ids(input_ids: torch.Tensor, vocab_size: int):
    """Raises a ValueError for what are not ids `(B, S)` of the LLM's vocabulary, at least one."""
    is_tensor = isinstance(input_ids, torch.Tensor)
    if not is_tensor or input_ids.dim() != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
        kind = f"{input_ids.dtype} {tuple(input_ids.shape)}" if hasattr(input_ids, "shape") else input_ids
        raise ValueError(f"input_ids is {kind}: expected a tensor of integers (batch, length)")
    if not 0 <= input_ids.min() <= input_ids.max() < vocab_size:
        raise ValueError(
            f"input_ids run from {input_ids.min()} to {input_ids.max()}, but the LLM's vocabulary has "
            f"{vocab_size} ids: use the model's own tokenizer"
        )


def _translate_old_arguments(arguments: dict) -> dict:
    """Arguments of `from_pretrained` that transformers 4 took and 5 does not, in today's words."""
    arguments = dict(arguments)
    old = {name: arguments.pop(name) for name in OLD_ARGUMENTS if name in arguments}
    if old.get("use_flash_attn"):
        if is_flash_attn_2_available():
            arguments.setdefault("attn_implementation", "flash_attention_2")
        else:
            logger.warning("use_flash_attn: flash-attn is not installed, attention stays torch's sdpa")
    bits = [name for name in ("load_in_8bit", "load_in_4bit") if old.get(name)]
    if bits:
        arguments.setdefault(
            "quantization_config", quantization_config("int8" if "load_in_8bit" in bits else "nf4")
        )
    if old:
        logger.info(f"from_pretrained: {', '.join(old)} are translated; transformers 5 has them no more")
    return arguments


def quantization_config(kind: str) -> BitsAndBytesConfig:
    """bitsandbytes settings for the LLM alone, "int8" or "nf4": ViT, projector and head keep their dtype."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=UNQUANTIZED,
        )
    raise ValueError(f"quantisation is {kind!r}: expected 'int8' or 'nf4'")


# what is saved carries its code, whether it was loaded from the Hub or from this package
PVCConfig.register_for_auto_class()
PVCForConditionalGeneration.register_for_auto_class("AutoModel")
