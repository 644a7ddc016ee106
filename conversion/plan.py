"""The plan of a conversion: for every tensor of the target, its source tensors, or that it is new.

A plan is made from names and shapes; a tensor is read when it is asked for. InternVL comes in two layouts,
the remote code's and transformers' own, which has q, k and v as separate tensors.

The projector's first Linear takes a 4x4 block of tokens where InternVL's took 2x2. `average` initialises it
to the mean of InternVL's outputs for the four 2x2 blocks, with its LayerNorm weight and bias folded in:

    W'[(p i q j) c] = W[(i j) c] w[(i j) c] / 4        b' = b + W beta        p, q: which 2x2 block

`interlaced` lets each repeat of an image give the tokens of one of these blocks: see `interlaced.py`. The
order of an image's tokens is then InternVL's too (`tile_repeat_order` "raster").

The names of the released PVC are unpublished; `matching.py` infers them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from einops import repeat
from torch import nn

from pvc.configuration_pvc import PVCConfig, VLMConfig
from pvc.conversion.files import CheckpointError, SourceWeights, TensorInfo, shard_names
from pvc.conversion.interlaced import InterlacedStart
from pvc.conversion.matching import internvl_name, match_parameters
from pvc.conversion.printable import in_a_line
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.modeling_pvc import INTERNVL_BLOCK, PVCForConditionalGeneration
from pvc.modeling_vlm import VLMForConditionalGeneration

INITIALISATION = "The result is an initialisation: its new parameters are untrained, fine-tune it before use."
INTERLACED = "images start with the source's own visual tokens, a video's frame with a quarter of them"
NEW_IN_LAYERS = ("temporal_attn", "temporal_norm", "temporal_gate")
PROJECTOR_NORM = "model.projector.norm."
REINITIALISED = "the projector starts anew"
MOST_TIMES = 32
PROJECTOR_INITS = ("average", "interlaced", "random")
DROPPED = {  # what sources carry and no model needs
    r"\.rotary_emb\.inv_freq$": "computed, no parameter",
    r"\.position_ids$": "computed, no parameter",
    r"\.mask_token$": "for masked image modelling alone",
}
NATIVE_PREFIXES = {  # transformers' InternVL, in the names of its earlier and of its later versions
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "language_model.": "model.language_model.",
    "vision_tower.embeddings.cls_token": "model.vision_model.embeddings.class_embedding",
    "vision_tower.embeddings.position_embeddings": "model.vision_model.embeddings.position_embedding",
    "vision_tower.embeddings.patch_embeddings.projection.": "model.vision_model.embeddings.patch_embedding.",
    "vision_tower.encoder.layer.": "model.vision_model.encoder.layers.",
    "multi_modal_projector.layer_norm.": "model.projector.norm.",
    "multi_modal_projector.linear_1.": "model.projector.mlp.0.",
    "multi_modal_projector.linear_2.": "model.projector.mlp.2.",
    "lm_head.": "lm_head.",
}
NATIVE_IN_LAYERS = {
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}


class Weights(Protocol):
    """What a plan reads of a source: `SourceWeights`, or those of several folders."""

    infos: dict[str, TensorInfo]

    @property
    def folder(self) -> Any: ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor `name`."""
        ...


@dataclass(frozen=True)
class TensorRecipe:
    """How one tensor of the target is made: from `sources`, or initialised where there are none."""

    info: TensorInfo
    make: Callable[[], torch.Tensor]
    sources: tuple[str, ...]
    reason: str


@dataclass
class Plan:
    """What a conversion does.

    Attributes:
        recipes: one for every tensor of the target, in its order.
        dropped: tensors of the source that are left out, with the reason.
        remarks: further lines of the summary.
    """

    config: VLMConfig
    recipes: dict[str, TensorRecipe]
    dropped: dict[str, str]
    remarks: list[str] = field(default_factory=list)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        return {name: recipe.info for name, recipe in self.recipes.items()}

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values())

    @property
    def new(self) -> list[str]:
        return [name for name, recipe in self.recipes.items() if not recipe.sources]

    @property
    def notice(self) -> str:
        """What the user must know of the result: new parameters are not trained."""
        return INITIALISATION if self.new else ""

    def make(self, name: str) -> torch.Tensor:
        return self.recipes[name].make()

    def summary(self) -> str:
        """Tensors, bytes and parameters of the target, and what is dropped, a line each."""
        used = sum(len(recipe.sources) for recipe in self.recipes.values())
        new_bytes = sum(self.recipes[name].info.nbytes for name in self.new)
        files = len(list(shard_names(self.infos)))

        parameters = {name: math.prod(info.shape) for name, info in self.infos.items()}
        new_parameters = sum(parameters[name] for name in self.new)
        copied_parameters = sum(parameters.values()) - new_parameters

        lines = [
            f"{len(self.recipes)} tensors, {self.nbytes / 1e9:.2f} GB in {files} file{'s' * (files > 1)}: "
            f"{len(self.recipes) - len(self.new)} from {used} of the source, {len(self.new)} new "
            f"({new_bytes / 1e9:.2f} GB)",
            f"{copied_parameters:,} parameters from the source, {new_parameters:,} new",
            *(f"dropped: {name} ({why})" for name, why in self.dropped.items()),
            *self.remarks,
        ]
        if self.notice:
            lines.append(self.notice)
        return "\n".join(map(in_a_line, lines))

    def by_kind(self) -> str:
        """How tensors are made: one line for all tensors whose names differ in the layer alone."""
        kinds: dict[tuple, list[str]] = {}
        for name, recipe in self.recipes.items():
            sources = " + ".join(map(_without_layer, recipe.sources)) or "(new)"
            kind = (_without_layer(name), sources, recipe.info.shape, recipe.reason)
            kinds.setdefault(kind, []).append(name)

        lines = []
        for (name, sources, shape, why), names in kinds.items():
            times = f" x{len(names)}" if len(names) > 1 else ""
            lines.append(f"{name} {list(shape)}{times} <- {sources}: {why}")
        return "\n".join(map(in_a_line, lines))

    def report(self) -> str:
        """A line for every tensor of the target and for what was dropped, as tab-separated text."""
        rows = [("target", "source", "why")]
        for name, recipe in self.recipes.items():
            rows.append((name, " + ".join(recipe.sources) or "(new)", recipe.reason))
        rows += [("(dropped)", name, why) for name, why in self.dropped.items()]
        return "".join("\t".join(map(in_a_line, row)) + "\n" for row in rows)


def _without_layer(name: str) -> str:
    return re.sub(r"\.(layers?|blocks?)\.\d+\.", r".\1.*.", name)


# ---- InternVL -> PVC


def plan_internvl(
    config: PVCConfig, weights: SourceWeights, source_ratio: float, projector_init: str = "average"
) -> Plan:
    """The plan that makes a PVC of `config` from InternVL's `weights`, in either of its two layouts.

    Args:
        source_ratio: the downsample ratio of the source.
        projector_init: "average", "interlaced", or "random" for the paper's new projector.

    Raises:
        CheckpointError: where tensors are missing, left over, or of other shapes than the configuration's.
        ValueError: where InternVL's projector cannot be kept: the source's ratio is not a multiple of the
            target's, or AdaLN has no time to select by.
    """
    if projector_init not in PROJECTOR_INITS:
        raise ValueError(f"projector_init is {projector_init!r}: expected one of {PROJECTOR_INITS}")

    sources = sources_by_target(weights)
    model = meta_model(config)
    new = NewParameters(model, main_dtype(weights))
    projector = interlaced = None
    if projector_init != "random":
        is_interlaced = projector_init == "interlaced"
        projector = FoldedProjector(config, weights, sources, source_ratio, interlaced=is_interlaced)
        interlaced = projector.start() if is_interlaced else None

    plan = Plan(config, {}, _dropped(weights))
    is_tied = _tie(config, weights, sources, plan)
    for name, shape in _target_shapes(model, is_tied).items():
        found = sources.pop(name, ())
        if name.startswith("model.projector.mlp.0.") and projector:
            plan.recipes[name] = projector.recipe(name)
        elif name.startswith("model.projector.") and projector_init == "random":
            plan.dropped |= dict.fromkeys(found, REINITIALISED)
            plan.recipes[name] = new.recipe(name)
        elif found:
            plan.recipes[name] = _joined(name, shape, found, weights)
        elif interlaced and name.startswith(PROJECTOR_NORM):
            plan.recipes[name] = _interlaced(new.recipe(name), interlaced, name.removeprefix(PROJECTOR_NORM))
        elif _is_new(name):
            plan.recipes[name] = new.recipe(name)
        else:
            raise CheckpointError(f"{weights.folder} has nothing for {name} {tuple(shape)}")

    # InternVL's LayerNorm has no counterpart: it is folded in, or dropped
    norm_names = [name for name in sources if name.startswith(PROJECTOR_NORM)]
    norm = [source for name in norm_names for source in sources.pop(name)]
    if projector_init == "random":
        plan.dropped |= dict.fromkeys(norm, REINITIALISED)
    if sources:
        _refuse_left_over([x for found in sources.values() for x in found])
    return plan


def choose_start(
    asked: str | None, *, image_repeats: int, downsample_ratio: float, source_ratio: float
) -> tuple[str, str]:
    """What the projector starts from, and the order of an image's tokens (`tile_repeat_order`).

    Args:
        asked: one of `PROJECTOR_INITS`; None: "interlaced" where an image is shown once for each of
            InternVL's blocks in a block of PVC, so that its repeats hold all of them, else "average".
    """
    # of InternVL's blocks along a side of PVC's
    times = next((times for times in range(2, MOST_TIMES) if times**2 == image_repeats), 0)
    is_whole = times > 0 and abs(times * downsample_ratio - source_ratio) < 1e-6
    start = asked or ("interlaced" if is_whole else "average")

    # the raster of the model is one of 2x2 patches
    has_raster = start == "interlaced" and is_whole and round(1 / source_ratio) == INTERNVL_BLOCK
    return start, "raster" if has_raster else "tile"


def meta_model(config: VLMConfig) -> VLMForConditionalGeneration:
    """The model of `config` without memory for its parameters."""
    classes = (PVCForConditionalGeneration, DynamicVLMForConditionalGeneration)
    with torch.device("meta"):
        return next(x for x in classes if isinstance(config, x.config_class))(config)


def new_parameters(projector_init: str) -> list[str]:
    """Parts of the names of new parameters, which the training reads in the configuration.

    The norm of an interlaced start is not among them: it is made to give InternVL's tokens, and a higher
    learning rate would undo that within a few steps.
    """
    parts = {"random": ["projector"], "average": ["projector.norm"]}
    return [*NEW_IN_LAYERS, *parts.get(projector_init, [])]


def _is_new(name: str) -> bool:
    return name.startswith(PROJECTOR_NORM) or any(part in name for part in NEW_IN_LAYERS)


def _target_shapes(model: VLMForConditionalGeneration, tied: bool) -> dict[str, torch.Size]:
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    if tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def _dropped(weights: SourceWeights) -> dict[str, str]:
    return {
        name: why for name in weights.infos for pattern, why in DROPPED.items() if re.search(pattern, name)
    }


def sources_by_target(weights: SourceWeights) -> dict[str, tuple[str, ...]]:
    """For names of ours, the tensors of the source: one, or the three that are packed into one."""
    is_native = any("vision_tower." in name for name in weights.infos)
    groups: dict[str, dict[int, str]] = {}
    left_over = []

    # a tensor of ours may be made from several, such as q, k and v
    for name in weights.infos.keys() - _dropped(weights).keys():
        ours, part = _native_name(name) if is_native else (internvl_name(name), 0)
        if ours is None:
            left_over.append(name)
        else:
            groups.setdefault(ours, {})[part] = name

    if left_over:
        _refuse_left_over(left_over)
    return {name: tuple(parts[i] for i in sorted(parts)) for name, parts in groups.items()}


def _refuse_left_over(names: list[str], of: str = "InternVL"):
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise CheckpointError(
        f"the source has tensors that are no {of}'s: {', '.join(names[:8])}{more}; "
        "this model is not supported"
    )


def _native_name(name: str) -> tuple[str | None, int]:
    """Our name of a tensor of transformers' own InternVL, and which part of it: 0, 1, 2 for q, k, v."""
    name = name.removeprefix("model.")
    prefix = next((prefix for prefix in NATIVE_PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return None, 0

    name = NATIVE_PREFIXES[prefix] + name.removeprefix(prefix)

    packed = re.fullmatch(r"(model\.vision_model\.encoder\.layers\.\d+)\.attention\.([qkv])_proj\.(.+)", name)
    if packed:
        return f"{packed[1]}.attn.qkv.{packed[3]}", "qkv".index(packed[2])

    if name.startswith("model.vision_model.encoder."):
        for native, ours in NATIVE_IN_LAYERS.items():
            name = name.replace(f".{native}", f".{ours}")
    return name, 0


def main_dtype(weights: Weights) -> torch.dtype:
    """The dtype of most bytes."""
    sizes: dict[torch.dtype, int] = {}
    for info in weights.infos.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _tie(config: VLMConfig, weights: Weights, sources: dict, plan: Plan) -> bool:
    """Whether embeddings and head are one tensor; sets it in the configuration.

    They are where the configuration ties them and there is no head, or an equal one, whose copy is dropped.
    """
    llm = config.llm_config
    is_embedding = re.compile(r"model\.language_model\.\w*embed\w*\.weight").fullmatch
    embeddings = next((found[0] for name, found in sources.items() if is_embedding(name)), None)
    head = sources.get("lm_head.weight")
    if head is None:
        tied = llm.tie_word_embeddings
        if not tied:
            raise CheckpointError(
                f"{weights.folder} has nothing for lm_head.weight, and its configuration does not tie it to "
                "the embeddings (tie_word_embeddings): is a file missing?"
            )
    elif llm.tie_word_embeddings and embeddings:
        tied = torch.equal(weights.get(head[0]), weights.get(embeddings))
        if tied:
            plan.dropped[head[0]] = f"the same as {embeddings}"
            del sources["lm_head.weight"]
    else:
        tied = False

    if tied != llm.tie_word_embeddings:
        plan.remarks.append(f"tie_word_embeddings is {tied}, by what the weights are")
    llm.tie_word_embeddings = config.tie_word_embeddings = tied
    return tied


def _joined(name: str, shape, sources: tuple[str, ...], weights: Weights) -> TensorRecipe:
    """The tensor `name` from one source tensor, or from several concatenated along the rows."""
    infos = [weights.infos[source] for source in sources]
    rows = sum(info.shape[0] for info in infos if info.shape)
    joined = (rows, *infos[0].shape[1:]) if infos[0].shape else ()
    if joined != tuple(shape):
        raise CheckpointError(
            f"{' + '.join(sources)} has shape {joined}, but the configuration wants {tuple(shape)} for {name}"
        )

    if len(sources) == 1:
        return TensorRecipe(infos[0], lambda: weights.get(sources[0]), sources, "renamed")
    info = TensorInfo(joined, infos[0].dtype)
    return TensorRecipe(info, lambda: torch.cat([weights.get(x) for x in sources]), sources, "packed")


class FoldedProjector:
    """The projector's first Linear from InternVL's LayerNorm and first Linear: see the file's docstring."""

    def __init__(
        self,
        config: PVCConfig,
        weights: SourceWeights,
        sources: dict,
        source_ratio: float,
        *,
        interlaced: bool = False,
    ):
        self.config = config
        self.weights = weights
        self.interlaced = interlaced
        self.small = round(1 / source_ratio)  # tokens along a side of InternVL's block
        self.block = round(1 / config.downsample_ratio)  # and of PVC's
        if self.block % self.small:
            raise ValueError(
                f"downsample_ratio {config.downsample_ratio} does not divide the source's {source_ratio} "
                "into whole blocks: choose another, or --projector-init random"
            )

        names = ("norm.weight", "norm.bias", "mlp.0.weight", "mlp.0.bias")
        missing = [name for name in names if f"model.projector.{name}" not in sources]
        if missing:
            raise CheckpointError(f"{weights.folder} has nothing for the projector's {', '.join(missing)}")
        found = [sources[f"model.projector.{name}"][0] for name in names]
        self.norm_weight, self.norm_bias, self.weight, self.bias = found

        width = config.vision_config.hidden_size * self.small**2
        hidden = config.llm_config.hidden_size
        for name, shape in zip(found, [(width,), (width,), (hidden, width), (hidden,)]):
            if weights.infos[name].shape != shape:
                raise CheckpointError(
                    f"{name} has shape {weights.infos[name].shape}, but the configuration wants {shape}"
                )

    def recipe(self, name: str) -> TensorRecipe:
        dtype = self.weights.infos[self.weight].dtype
        hidden, width = self.weights.infos[self.weight].shape
        if name.endswith("bias"):
            biases = (self.bias, self.weight, self.norm_bias)
            return TensorRecipe(
                TensorInfo((hidden,), dtype), self._bias, biases, "LayerNorm's bias folded in"
            )

        width = width * (self.block // self.small) ** 2
        sources = (self.weight, self.norm_weight)
        why = "LayerNorm's weight folded in"
        if self.block > self.small:
            how = "one of the" if self.interlaced else "mean over the"
            why += f", {how} blocks of {self.small}x{self.small} tokens"
        return TensorRecipe(TensorInfo((hidden, width), dtype), self._weight, sources, why)

    def _bias(self) -> torch.Tensor:
        weight, norm_bias, bias = (self.weights.get(x) for x in (self.weight, self.norm_bias, self.bias))
        return (bias.double() + _product(weight, norm_bias)).to(weight.dtype)

    def _weight(self) -> torch.Tensor:
        weight, norm_weight = self.weights.get(self.weight), self.weights.get(self.norm_weight)
        times = self.block // self.small
        folded = weight.float() * norm_weight.float()  # (H, 4 C)
        # W diag(w) (I - 11'/4C), or the mean over blocks
        folded = folded - folded.mean(dim=1, keepdim=True) if self.interlaced else folded / times**2
        folded = folded.to(weight.dtype)
        return repeat(folded, "h (i j c) -> h (p i q j c)", i=self.small, j=self.small, p=times, q=times)

    def start(self) -> InterlacedStart:
        """The start of AdaLN that lets each repeat have one of InternVL's tokens."""
        vision = self.config.vision_config
        if not self.config.adaptive_compression or vision.temporal_condition == "none":
            raise ValueError("an interlaced start selects by time: it needs adaptive compression")
        width = vision.hidden_size * self.block**2
        return InterlacedStart(width, vision.time_embed_dim, self.block, self.small)


def _interlaced(usual: TensorRecipe, start: InterlacedStart, name: str) -> TensorRecipe:
    """The recipe of a parameter of the projector's AdaLN: its usual start, and time's part written in."""
    return replace(usual, make=lambda: start.apply(name, usual.make()), reason="new, interlaced start")


def _product(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """`matrix @ vector` in float64, in chunks of rows, so that a large matrix is not copied whole."""
    return torch.cat([rows.double() @ vector.double() for rows in matrix.split(256)])


class NewParameters:
    """Initial values of parameters that no source has, by the model's own `_init_weights`."""

    def __init__(self, model: VLMForConditionalGeneration, dtype: torch.dtype):
        self.model = model
        self.dtype = dtype

    def recipe(self, name: str) -> TensorRecipe:
        module_name, _, parameter_name = name.rpartition(".")
        info = TensorInfo(tuple(self.model.get_parameter(name).shape), self.dtype)
        return TensorRecipe(info, lambda: self._make(module_name, parameter_name), (), "new")

    def _make(self, module_name: str, parameter_name: str) -> torch.Tensor:
        """One parameter with its initial value; the rest of its module stays on the meta device."""
        module = self.model.get_submodule(module_name)
        empty = module._parameters

        made = nn.Parameter(torch.empty(empty[parameter_name].shape, dtype=self.dtype))
        module._parameters = empty | {parameter_name: made}
        is_vision = module_name.startswith("model.vision_model.")
        owner = self.model.model.vision_model if is_vision else self.model
        owner._init_weights(module)

        module._parameters = empty
        return made.detach()


# ---- parts under names that are known


def plan_named(
    config: VLMConfig,
    weights: Weights,
    names: dict[str, str],
    dropped: dict[str, str],
    *,
    new: tuple[str, ...] = (),
    of: str,
) -> Plan:
    """The plan that gives tensors of the source our names, one for one.

    Args:
        names: our names, by those of the source that are neither dropped nor left over.
        dropped: names of the source, with the reason.
        new: beginnings of our names that the source need not have.
        of: whose tensors the source's are expected to be.

    Raises:
        CheckpointError: where tensors are missing, left over, or of other shapes than the configuration's.
    """
    sources = {ours: (theirs,) for theirs, ours in names.items()}
    if left_over := weights.infos.keys() - names.keys() - dropped.keys():
        _refuse_left_over(list(left_over), of)

    model = meta_model(config)
    made_anew = NewParameters(model, main_dtype(weights))
    plan = Plan(config, {}, dict(dropped))
    is_tied = _tie(config, weights, sources, plan)
    for name, shape in _target_shapes(model, is_tied).items():
        found = sources.pop(name, ())
        if found:
            plan.recipes[name] = _joined(name, shape, found, weights)
        elif name.startswith(new):
            plan.recipes[name] = made_anew.recipe(name)
        else:
            raise CheckpointError(f"{weights.folder} has nothing for {name} {tuple(shape)}")

    if sources:
        _refuse_left_over([x for found in sources.values() for x in found], of)
    return plan


# ---- the released PVC -> ours


def plan_released(config: PVCConfig, weights: SourceWeights, key_map: dict[str, str] | None = None) -> Plan:
    """The plan that gives the released PVC's tensors our names, matched by structure.

    Raises:
        UnmatchedParameters: where a match is ambiguous, or tensors are left over on either side.
    """
    dropped = _dropped(weights)
    shapes = {name: tuple(shape) for name, shape in _target_shapes(meta_model(config), False).items()}
    source = {name: info.shape for name, info in weights.infos.items() if name not in dropped}

    recipes = {}
    for match in match_parameters(source, shapes, key_map):
        recipe = _joined(match.target, shapes[match.target], (match.source,), weights)
        recipes[match.target] = TensorRecipe(recipe.info, recipe.make, recipe.sources, match.reason)

    return Plan(config, {name: recipes[name] for name in shapes}, dropped)
