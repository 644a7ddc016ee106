"""InternLM2: the LLM of InternVL2 and PVC, with its released parameter names.

A Llama-like decoder that differs in one thing: queries, keys and values come from one fused projection
`wqkv`, grouped by key/value head. RoPE is plain, linear or dynamic NTK, computed anew at every call from
the positions alone, so that a long input never changes a later one. Norm, rotation and eager attention are
those of transformers' Llama; masks, caches and attention kernels are transformers' own too.

Shapes: `B` rows, `S` tokens, `H` width, `d` width of a head.
"""

import torch
from einops import rearrange
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)
from transformers.models.llama.modeling_llama import eager_attention_forward as llama_eager_attention
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_pvc import ROPE_TYPES, InternLM2Config

ENGINE_ATTENTION = "vllm"  # of vLLM, which registers it under this name


@torch.no_grad()
def rotary_cos_sin(config: InternLM2Config, position_ids: torch.Tensor, dtype: torch.dtype):
    """Cosine and sine of RoPE's angles, `(B, S, d)` each, computed in float32.

    "linear" divides positions by the factor. "dynamic" (NTK) raises the base for rows longer than
    `max_position_embeddings`, by each row's own length: its largest position + 1. A row of a serving engine
    holds tokens of several prompts: there each token counts by its own position.
    """
    rope = config.rope_parameters
    if rope["rope_type"] not in ROPE_TYPES:  # set after the configuration was made and checked
        raise ValueError(
            f"rope_type is {rope['rope_type']!r}: expected one of {', '.join(map(repr, ROPE_TYPES))}"
        )

    dim = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=position_ids.device) / dim  # (d / 2,)
    positions = position_ids.float()  # (B, S)
    base = torch.full_like(positions[:, :1], rope["rope_theta"])  # (B, 1)

    if rope["rope_type"] == "linear":
        positions = positions / rope["factor"]
    elif rope["rope_type"] == "dynamic":
        is_engine = config._attn_implementation == ENGINE_ATTENTION
        length = positions + 1 if is_engine else positions.amax(dim=-1, keepdim=True) + 1  # (B, S or 1)
        stretch = rope["factor"] * length / config.max_position_embeddings - (rope["factor"] - 1)
        base = base * stretch.clamp(min=1) ** (dim / (dim - 2))

    angles = positions[..., None] * base[..., None] ** -exponents  # (B, S, d / 2)
    angles = torch.cat([angles, angles], dim=-1)  # (B, S, d)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Llama's eager attention, in float32 where the tensors are float16.

    float16 ends at 65,504: products of queries and keys reach beyond it, which is NaN, and its lowest value
    in a mask does not outweigh them.
    """
    if query.dtype != torch.float16:
        return llama_eager_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    if attention_mask is not None:
        masked = attention_mask == torch.finfo(torch.float16).min
        attention_mask = attention_mask.float().masked_fill(masked, torch.finfo(torch.float32).min)
    query, key, value = query.float(), key.float(), value.float()
    out, weights = llama_eager_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return out.to(torch.float16), weights.to(torch.float16)


class InternLM2Attention(nn.Module):
    """Grouped-query attention with one fused projection.

    `wqkv` packs, for each key/value head, its queries, then its key, then its value.
    """

    is_causal = True

    def __init__(self, config: InternLM2Config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        packed = (config.num_attention_heads + 2 * config.num_key_value_heads) * self.head_dim
        self.wqkv = nn.Linear(config.hidden_size, packed, bias=config.bias)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def forward(
        self,
        x: torch.Tensor,  # (B, S, H)
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        groups = self.num_key_value_groups
        # heads are counted by what is there: under tensor parallelism each rank has its share of the groups
        packed = rearrange(self.wqkv(x), "b s (kv g d) -> b kv g s d", g=groups + 2, d=self.head_dim)
        q = packed[:, :, :groups].flatten(1, 2)  # (B, heads, S, d)
        k = packed[:, :, groups]  # (B, key/value heads, S, d)
        v = packed[:, :, groups + 1]

        q, k = apply_rotary_pos_emb(q, k, *cos_sin)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attention(self, q, k, v, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        # (B, S, heads, d), or with the heads merged as serving engines return them
        out = out.reshape(*x.shape[:2], -1)  # (B, S, heads * d)
        return self.wo(out), weights


class InternLM2MLP(nn.Module):
    """`w2(act(w1 x) * w3 x)`, never with biases: `config.bias` is that of attention alone, as released."""

    def __init__(self, config: InternLM2Config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


class InternLM2DecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: InternLM2Config, layer_idx: int):
        super().__init__()
        self.attention = InternLM2Attention(config, layer_idx)
        self.feed_forward = InternLM2MLP(config)
        self.attention_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: torch.Tensor, **attention_inputs) -> torch.Tensor:  # (B, S, H)
        attended, _ = self.attention(self.attention_norm(x), **attention_inputs)
        x = x + attended
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2PreTrainedModel(PreTrainedModel):
    config_class = InternLM2Config
    base_model_prefix = "model"
    _input_embed_layer = "tok_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InternLM2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": InternLM2DecoderLayer, "attentions": InternLM2Attention}


class InternLM2Model(InternLM2PreTrainedModel):
    """The body of InternLM2: ids or embeddings -> hidden states after the final norm."""

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a sequence.

        Args:
            input_ids: `(B, S)`, or `inputs_embeds (B, S, H)`: one of the two.
            attention_mask: `(B, past + S)`, 1 for real tokens; padding on either side.
            position_ids: `(B, S)`; None counts on from the cache. Restarting positions without an
                `attention_mask` are packed samples, which do not see each other.

        Returns:
            `last_hidden_state (B, S, H)`, the cache, and with `output_hidden_states` every layer's input and
            the final norm's output.

        Raises:
            ValueError: where both or neither of ids and embeddings are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")

        x = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (B, S, H)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(x.shape[1], device=x.device)[None] + past

        # before a cache is made: beside one, restarting positions are not taken for packed samples
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )

        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        cos_sin = rotary_cos_sin(self.config, position_ids, x.dtype)
        for layer in self.layers:
            x = layer(
                x,
                cos_sin=cos_sin,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """InternLM2 with its head, under the released names (`model.…`, `output`)."""

    _tied_weights_keys = {"output.weight": "model.tok_embeddings.weight"}
    _tp_plan = {"output": "colwise_gather_output"}

    def __init__(self, config: InternLM2Config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, value):
        self.output = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As `InternLM2Model`, with `logits (B, S, vocabulary)` and the loss.

        The loss is that of `labels (B, S)` (-100: none), where they are given.

        `logits_to_keep`: compute the logits of the last so many positions alone (0: of all).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return causal_lm_output(self, self.output, outputs, labels, logits_to_keep, **kwargs)


def causal_lm_output(
    model, head, outputs, labels, logits_to_keep, head_loss=None, **kwargs
) -> CausalLMOutputWithPast:
    """Logits of the kept positions, and the loss of shifted labels as transformers computes it.

    With `head_loss` the loss is `head_loss(head, hidden states of the kept positions)`, and `logits` is None.
    """
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    states = outputs.last_hidden_state[:, keep]

    loss = logits = None
    if head_loss is not None:
        loss = head_loss(head, states)
    else:
        logits = head(states)
        if labels is not None:
            loss = model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
    return CausalLMOutputWithPast(
        loss=loss,
        logits=logits,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )
