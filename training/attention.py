"""The attention of packed rows: what trains the LLM where a recipe names nothing.

A row's samples do not see each other. flash-attn takes their borders (varlen); flex attention takes a block
mask and skips its empty blocks; sdpa computes all of a row and masks it, which runs everywhere. In the ViT
nothing is masked, so that it keeps sdpa.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, TrainingArguments
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import flex_attention_mask
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available
from transformers.utils.import_utils import is_triton_available

VARLEN, BLOCK_SPARSE, MASKED = "flash_attention_2", "packed_flex_attention", "sdpa"


def packed_attention(arguments: TrainingArguments) -> str:
    """The `attn_implementation` of an LLM for packed rows: the fastest that trains on this machine.

    flash-attn computes in half precision alone; flex attention's backward pass needs CUDA and Triton.
    """
    if arguments.device.type != "cuda":
        return MASKED
    if is_flash_attn_2_available() and (arguments.bf16 or arguments.fp16):
        return VARLEN
    if is_torch_flex_attn_available() and is_triton_available():
        return BLOCK_SPARSE
    return MASKED


def varlen_kwargs(position_ids: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """What flash-attn's varlen kernel asks of a row whose `position_ids (1, S)` start at 0 with each sample.

    Without it transformers finds the same in every layer, on the device, which the host then waits for.
    """
    starts = (position_ids[0] == 0).nonzero()[:, 0]
    sums = torch.cat([starts, starts.new_tensor([position_ids.shape[1]])]).int()  # (samples + 1,)
    longest = int(sums.diff().max())
    return {"cu_seq_lens_q": sums, "cu_seq_lens_k": sums, "max_length_q": longest, "max_length_k": longest}


def packed_flex_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' flex attention, under autocast in its dtype, as sdpa and flash-attn compute.

    Rotated queries and keys are float32 then and values are not, which flex attention refuses before torch
    2.13.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(BLOCK_SPARSE, packed_flex_attention)
AttentionMaskInterface.register(BLOCK_SPARSE, flex_attention_mask)
