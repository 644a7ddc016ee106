"""FLOPs and bytes of each part of a model, counted operation by operation while it runs.

At real sizes it runs on fake tensors, which have shapes and no memory, so that the 8B is counted on any
machine; on real tensors the count is the same. FLOPs are two for each multiply-add of matrix products,
convolutions and attention (causal attention: what lies under its mask); the rest counts by its bytes, each
operation reading its inputs and writing its results once.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers.initialization import no_init_weights

from pvc.benchmarks.models import PVC, BenchmarkModel, prefill
from pvc.benchmarks.peers import NativeInternVL, Peer
from pvc.benchmarks.presets import Preset, Workload

REST = "rest"
PARTS = {  # pattern of a module's name -> part; what runs in a module within a module is the inner one's
    r"(model\.)?(vision_model|vision_tower|visual)": "ViT: spatial",
    r".*\.temporal_attn": "ViT: temporal attention",
    r".*\.temporal_norm": "ViT: AdaLN",
    r"(model\.)?(projector|multi_modal_projector|connector|visual\.(merger|deepstack_merger_list\.\d+))": (
        "projector: rest"
    ),
    r"(model\.)?projector\.norm": "projector: norm",
    r"(model\.)?projector\.mlp": "projector: MLP",
    r"(model\.)?(language_model|text_model)": "LLM",
    r"lm_head": "head",
}
PREFILL = ("LLM", "head")
# operators that move no data, though torch does not call them views
FREE = {"_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "device", "detach"}
GATHERS = {"embedding", "index", "index_select", "gather"}  # read as much as they write


@contextmanager
def follow_parts(model: nn.Module, on_change: Callable[[str], None]) -> Iterator[None]:
    """Within: calls `on_change(part)` whenever what runs passes from one part of `model` to another."""
    running = [REST]

    def enter(part: str):
        running.append(part)
        on_change(part)

    def leave():
        running.pop()
        on_change(running[-1])

    hooks = []
    for name, module in model.named_modules():
        for part in [part for pattern, part in PARTS.items() if re.fullmatch(pattern, name)]:
            hooks.append(module.register_forward_pre_hook(lambda *_, part=part: enter(part)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Cost:
    """The cost of one part: `operations` counts its operations by (FLOPs, bytes)."""

    operations: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.operations + other.operations)

    @property
    def flops(self) -> int:
        return sum(flops * calls for (flops, _), calls in self.operations.items())

    @property
    def bytes(self) -> int:
        return sum(moved * calls for (_, moved), calls in self.operations.items())

    def lower_bound_s(self, flops_per_s: float, bytes_per_s: float) -> tuple[float, float]:
        """Roofline: the least seconds of the operations limited by arithmetic, and by memory."""
        arithmetic = memory = 0.0
        for (flops, moved), calls in self.operations.items():
            if flops / flops_per_s > moved / bytes_per_s:
                arithmetic += calls * flops / flops_per_s
            else:
                memory += calls * moved / bytes_per_s
        return arithmetic, memory


Costs = dict[str, Cost]  # by part


def group_of(part: str) -> str:
    return "prefill" if part in PREFILL else part.partition(":")[0]


def grouped(values: dict) -> dict:
    """Numbers or costs by part -> by what a first token is made of: "ViT", "projector", "prefill"."""
    groups = {}
    for part, value in values.items():
        group = group_of(part)
        groups[group] = groups[group] + value if group in groups else value
    return groups


class _OperationCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.part = REST
        self.costs: Costs = {}

    def enter(self, part: str):
        self.part = part

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(x.is_meta for x in _tensors((args, kwargs))):
            if function is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
                return True  # whether a mask hides nothing: none does here
            args, kwargs = tree_map_only(torch.Tensor, _without_memory, (args, kwargs))
        out = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if not function.is_view and name not in FREE:
            cost = flops_of(function, args, kwargs, out), bytes_of(name, args, kwargs, out)
            self.costs.setdefault(self.part, Cost()).operations[cost] += 1
        return out


def _without_memory(x: torch.Tensor) -> torch.Tensor:
    """What is computed with a tensor on the meta device has to be there too."""
    return x if x.is_meta else torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")


def flops_of(function, args, kwargs, out) -> int:
    """FLOPs of one call of an ATen operator; 0 for those that torch's own counter leaves out too."""
    packet = function.overloadpacket
    if packet.__name__.startswith("_scaled_dot_product") and "backward" not in packet.__name__:
        names = (argument.name for argument in function._schema.arguments)
        return attention_flops(**dict(zip(names, args)) | kwargs)
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    return 0


def attention_flops(query, key, value, is_causal: bool = False, **_) -> int:
    """Two products, `(B, heads, S, width)` each; causal: S (S + 1) / 2 pairs instead of S times S."""
    batch, heads, length, width = query.shape
    pairs = length * key.shape[2] - is_causal * length * (length - 1) // 2
    return 2 * batch * heads * pairs * (width + value.shape[3])


def bytes_of(name: str, args, kwargs, out) -> int:
    """Bytes that one operator reads and writes: each tensor once, an expanded one as it is stored."""
    written = sum(map(_size, _tensors(out)))
    if name in GATHERS:
        return 2 * written
    if name == "copy_":
        return written + _size(args[1])
    return written + sum(map(_size, {id(x): x for x in _tensors((args, kwargs))}.values()))


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _size(x: torch.Tensor) -> int:
    stored = [size for size, stride in zip(x.shape, x.stride()) if stride]
    return torch.Size(stored).numel() * x.element_size() if 0 not in x.shape else 0


def counted(model: nn.Module, function: Callable[[], object]) -> Costs:
    """What each part of `model` costs in one call of `function`, which runs without gradients."""
    counter = _OperationCounter()
    with torch.no_grad(), follow_parts(model, counter.enter), counter:
        function()
    return counter.costs


def count_first_token(spec: BenchmarkModel, workload: Workload, model: nn.Module | None = None) -> Costs:
    """The cost of a workload's first token: of `model`, or at the same size on fake tensors in bfloat16."""
    if model is not None:
        return _first_token(spec, workload, model, spec.media(workload, model.device, model.dtype))
    media = spec.media(workload, "meta", torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # what is on the CPU is read, and stays real
        media = {name: torch.empty_like(x, device="cpu") if x.is_meta else x for name, x in media.items()}
        return _first_token(spec, workload, spec.build("cpu", torch.bfloat16), media)


def _first_token(spec: BenchmarkModel, workload: Workload, model: nn.Module, media: dict) -> Costs:
    def run():
        spec.encode(model, media)
        if spec.preset.has_llm:
            prefill(model, spec.num_visual_tokens(workload) + workload.text_tokens)

    return counted(model, run)


def has_same_vit(spec: BenchmarkModel) -> bool:
    """Whether a model has the ViT of InternVL: `pvc bench count` compares these part by part."""
    return isinstance(spec, (PVC, NativeInternVL))


class SizedModel:
    """A model at its size without memory, whose encoding and prefill are counted apart, in bfloat16.

    It is on the meta device. Numbers that the code reads (grids, sizes) come from tensors on the CPU.
    """

    def __init__(self, spec: BenchmarkModel):
        self.spec = spec
        self.model = _built(spec, "meta")
        self.memory = memory_needs(self.model, spec.preset)

    def encoding_flops(self, workload: Workload) -> int:
        """FLOPs of the ViT and of what follows it up to the LLM."""
        spec, times = self.spec, 1
        if isinstance(spec, Peer):
            workload, times = spec.unit(workload)
        media = spec.media(workload, "meta", torch.bfloat16)
        return times * self._flops(partial(spec.encode, self.model, media))

    def prefill_flops(self, tokens: int) -> int:
        """FLOPs of the LLM for a prompt, and of its last position's logits."""
        return self._flops(partial(prefill, self.model, tokens))

    def _flops(self, function: Callable[[], object]) -> int:
        attention = _AttentionCounter()
        with attention:
            costs = counted(self.model, function)
        return attention.flops + sum(cost.flops for cost in costs.values())


class _AttentionCounter(TorchFunctionMode):
    """Counts attention on the meta device, where torch has no fused operator whose call could be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention or not args[0].is_meta:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3]
        self.flops += attention_flops(query, key, value, (kwargs or {}).get("is_causal", False))
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _built(spec: BenchmarkModel, device: str) -> Any:
    """A model without the start of its weights, which some draw by looking at values."""
    with no_init_weights():
        model = spec.build(device, torch.bfloat16)
    model.tie_weights()
    return model


# ---- memory, by formula


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a model needs.

    Attributes:
        weights: all weights.
        step_weights: the weights that a step of decoding reads.
        cache_a_token: KV cache of one token.
        hidden_a_tile: hidden states of the ViT for one tile.
    """

    weights: int
    step_weights: int
    cache_a_token: int
    hidden_a_tile: int

    def decode_step(self, context: int) -> int:
        """Bytes that a step of decoding reads after so many tokens: weights and cache, once each."""
        return self.step_weights + context * self.cache_a_token


def memory_needs(model: nn.Module, preset: Preset) -> MemoryNeeds:
    """The needs of a model (real or fake) in its own dtype."""
    llm, item = model.config.get_text_config(), model.dtype.itemsize
    sizes = {name: x.numel() * x.element_size() for name, x in model.named_parameters()}
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding

    body = sum(
        size
        for name, size in sizes.items()
        if re.match(r"(model\.)?(language_model|text_model)|lm_head", name)
    )
    head = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
    vit = preset.vit.get("hidden_size", 1024)

    return MemoryNeeds(
        weights=sum(sizes.values()),
        step_weights=body - (0 if tied else embedding.numel() * embedding.element_size()),
        cache_a_token=2 * llm.num_hidden_layers * llm.num_key_value_heads * head * item,
        hidden_a_tile=(preset.patches**2 + 1) * vit * item,
    )
