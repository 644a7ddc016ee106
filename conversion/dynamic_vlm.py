"""The released ByteVideoLLM, or a CLIP and an LLM -> a Dynamic-VLM of this repository.

The release (Hon-Wong/ByteVideoLLM-14B) has the configuration of its LLM alone, so that transformers would
take it for a Qwen2, and neither tokenizer nor code. It is known by the name of its class and by the prefixes
of its tensors; its ViT is described by their shapes. A start for training takes the ViT of a CLIP and an LLM
as they are, and makes the projector (and a selector) anew.

The features are those before CLIP's last layer: that layer is left out.

Configurations are checked, weights streamed and the folder written as in `convert.py`.
"""

import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.conversation import get_conv_template
from pvc.conversion.checks import check_config, check_depth, values_of
from pvc.conversion.configs import llm_fields
from pvc.conversion.convert import Conversion, Options, check_target, license_of, read_tokenizer
from pvc.conversion.files import CheckpointError, SourceWeights, TensorInfo, read_json
from pvc.conversion.plan import DROPPED, Plan, Weights, main_dtype, plan_named
from pvc.conversion.verify import Difference
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor

RELEASED = "VideoLLMModel"  # the release's class
RELEASED_BUDGET = 10_000  # max_video_tokens of the 14B, which no file says (arXiv 2412.09530, section 5)
RELEASED_PREFIXES = {
    "llm.model.": "model.language_model.",
    "llm.lm_head.": "lm_head.",
    "visual_encoder.vision_model.": "model.vision_model.",
    "llm_proj.0.": "model.projector.0.",
    "llm_proj.2.": "model.projector.2.",
}
PARTS_PREFIXES = {  # of a CLIP, whole or its ViT alone, and of an LLM
    "vision/vision_model.": "model.vision_model.",
    "vision/": "model.vision_model.",
    "llm/model.": "model.language_model.",
    "llm/lm_head.": "lm_head.",
}
OTHERS_OF_CLIP = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
LAYER = re.compile(r"model\.vision_model\.encoder\.layers\.(\d+)\.")
UNUSED_LAYER = "the ViT's last layer: features are those before it"
CLIP_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("image_size", "patch_size", "projection_dim", "hidden_act", "layer_norm_eps"),
)
HEAD_WIDTH = 64  # of every CLIP


@dataclass
class DynamicVLMOptions:
    """What `pvc convert` takes for a Dynamic-VLM; see its help.

    `tokenizer`: the folder of one; None: the LLM's, where the source has it.
    """

    tokenizer: Path | None = None
    compressor: str = "pooling"
    max_video_tokens: int | None = None
    overwrite: bool = False
    seed: int = 0


def is_released(folder: Path | str) -> bool:
    """Whether `folder` holds a ByteVideoLLM as it was released."""
    path = Path(folder) / "config.json"
    return path.is_file() and read_json(path).get("architectures") == [RELEASED]


def released_name(name: str) -> str | None:
    """Our name of a parameter of the released ByteVideoLLM; None where it has none of that name."""
    return _renamed(name, RELEASED_PREFIXES)


def _renamed(name: str, prefixes: dict[str, str]) -> str | None:
    for prefix, ours in prefixes.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return None


class JoinedWeights:
    """The tensors of several folders as `SourceWeights` of one, each under the name of its part."""

    def __init__(self, folders: dict[str, Path]):
        self.parts = {part: SourceWeights(folder) for part, folder in folders.items()}
        self.folder = " and ".join(str(folder) for folder in folders.values())
        self.infos: dict[str, TensorInfo] = {
            f"{part}/{name}": info
            for part, weights in self.parts.items()
            for name, info in weights.infos.items()
        }

    def get(self, name: str) -> torch.Tensor:
        """The tensor `name`, mapped from its file."""
        part, _, inner = name.partition("/")
        return self.parts[part].get(inner)


class DynamicVLMConversion(Conversion):
    """A planned conversion into a Dynamic-VLM in the new folder `target`; `run` carries it out.

    Raises:
        CheckpointError, ValueError: where a source, or what is asked for, does not allow it.
        OSError: where a file cannot be read.
    """

    def __init__(
        self,
        target: Path | str,
        settings: DynamicVLMOptions,
        *,
        released: Path | str | None = None,
        vision: Path | str | None = None,
        llm: Path | str | None = None,
    ):
        """Plans it from the folder of a release, or from those of a CLIP and an LLM.

        With a release, `vision` may give the configuration of its ViT.
        """
        self.target = Path(target)
        self.settings = settings
        self.options = Options(overwrite=settings.overwrite, seed=settings.seed)
        self.released = None if released is None else Path(released)
        self.vision = None if vision is None else Path(vision)

        source = released if released is not None else llm
        if source is None or (released is None and self.vision is None):
            raise ValueError("a Dynamic-VLM is made of a release, or of --vision and --llm: name them")
        self.source = Path(source)
        check_target(self.target, *(x for x in (self.source, self.vision) if x is not None))

        values = _llm_values(self.source)
        self.tokenizer: PreTrainedTokenizerBase = self._load_tokenizer(llm_fields(values)["model_type"])
        with values_of(self.source / "config.json"):
            self.plan = self._plan_dynamic(values)
        self.generation = self._generation()

    def _load_tokenizer(self, llm_type: str) -> PreTrainedTokenizerBase:
        folder = self.settings.tokenizer or (self.source if self.released is None else None)
        if folder is None:
            raise CheckpointError(
                "the release has no tokenizer: name that of its LLM, --tokenizer Qwen/Qwen2.5-14B-Instruct"
            )

        tokenizer = read_tokenizer(folder, llm_type)
        context = get_conv_template("dynamic-vlm").marks.context
        if context not in tokenizer.get_added_vocab():
            raise CheckpointError(f"the tokenizer of {folder} has no {context}: is it of Qwen2 or later?")
        return tokenizer

    def _plan_dynamic(self, llm_values: dict) -> Plan:
        is_start = self.released is None
        new = ("model.projector.", "model.compressor.") if is_start else ()
        weights, prefixes = self._weights()
        names, dropped = _names(weights.infos, prefixes)
        vision = _vision_fields(self.vision) if self.vision else _described_vit(names, weights.infos)
        names, unused = _without_last_layer(names, vision["num_hidden_layers"])
        vision["num_hidden_layers"] -= 1

        config = self._config(llm_values, vision, is_start)
        path = self.source / "config.json"
        check_depth(config, len(weights.infos), path)
        check_config(config, path)

        plan = plan_named(config, weights, names, dropped | unused, new=new, of="Dynamic-VLM")
        config.dtype = main_dtype(weights)
        if not is_start and self.settings.max_video_tokens is None:
            plan.remarks.append(
                f"max_video_tokens {RELEASED_BUDGET:,}, the paper's for the 14B: no file says it"
            )
        return plan

    def _weights(self) -> tuple[Weights, dict[str, str]]:
        """The tensors of the source, and what their names begin with."""
        if self.released is not None:
            return SourceWeights(self.released), RELEASED_PREFIXES
        assert self.vision is not None  # one of both is given
        return JoinedWeights({"vision": self.vision, "llm": self.source}), PARTS_PREFIXES

    def _config(self, llm_values: dict, vision: dict, is_start: bool) -> DynamicVLMConfig:
        options = self.settings
        is_pruning = options.compressor == "pruning"
        budget = options.max_video_tokens or (12_000 if is_start else RELEASED_BUDGET)
        config = DynamicVLMConfig(
            vision_config=vision,
            llm_config=llm_fields(llm_values),
            compressor=options.compressor,
            max_video_tokens=budget,
            image_token_id=self.tokenizer.convert_tokens_to_ids(
                get_conv_template("dynamic-vlm").marks.context
            ),
            new_parameters=["projector", *(["compressor"] if is_pruning else [])] if is_start else [],
        )

        if len(self.tokenizer) > config.llm_config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {len(self.tokenizer)} tokens, but the LLM's vocabulary "
                f"{config.llm_config.vocab_size}"
            )
        return config

    def _generation(self) -> GenerationConfig:
        """Greedy, as in the paper, up to the template's end of an answer."""
        stop = get_conv_template("dynamic-vlm").stop_token_ids(self.tokenizer)
        return GenerationConfig(
            eos_token_id=stop or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.plan.config.llm_config.bos_token_id,
        )

    def _processor(self) -> DynamicVLMProcessor:
        images = DynamicVLMImageProcessor.from_model_config(self.plan.config)
        return DynamicVLMProcessor(images, self.tokenizer)

    def license(self) -> str | None:
        """The licence that the model card of the release, or of the LLM, names."""
        return license_of(self.source)

    @torch.no_grad()
    def verify(self) -> list[Difference]:
        """How features and logits of the result differ from those of transformers' own classes."""
        generator = torch.Generator().manual_seed(0)
        result = DynamicVLMForConditionalGeneration.from_pretrained(self.target).eval()
        config = result.config
        vit = config.vision_config
        pixels = torch.randn(2, vit.num_channels, vit.image_size, vit.image_size, generator=generator)
        ids = torch.randint(min(100, config.llm_config.vocab_size), (2, 16), generator=generator)
        ids[ids == config.image_token_id] = 0
        ours = [result.model.features(pixels), result(input_ids=ids).logits]
        del result

        theirs = [self._source_features(config, pixels), self._source_logits(config, ids)]
        pairs = zip(("ViT's features", "LLM's logits"), ours, theirs)
        return [Difference.of(what, a, b) for what, a, b in pairs]

    def _source_features(self, config: DynamicVLMConfig, pixels: torch.Tensor) -> torch.Tensor:
        """The last hidden state but one of the source's whole ViT."""
        fields = config.vision_config.to_dict() | {
            "num_hidden_layers": config.vision_config.num_hidden_layers + 1
        }
        vit = CLIPVisionModel(CLIPVisionConfig(**fields)).to(config.dtype).eval()
        self._load(vit, "model.vision_model.")
        return vit(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]

    def _source_logits(self, config: DynamicVLMConfig, ids: torch.Tensor) -> torch.Tensor:
        llm = AutoModelForCausalLM.from_config(config.llm_config).to(config.dtype).eval()
        self._load(llm.model, "model.language_model.")
        if not config.tie_word_embeddings:
            self._load(llm.lm_head, "lm_head.")
        return llm(input_ids=ids).logits

    def _load(self, module: torch.nn.Module, prefix: str):
        weights, prefixes = self._weights()
        names, _ = _names(weights.infos, prefixes)
        own = {ours.removeprefix(prefix): theirs for theirs, ours in names.items() if ours.startswith(prefix)}
        module.load_state_dict({name: weights.get(theirs) for name, theirs in own.items()})


def _llm_values(folder: Path) -> dict:
    """config.json of an LLM, or of a release, which is its LLM's."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: expected the folder of a model, or its Hub id")
    values = read_json(path)
    if values.get("quantization_config"):
        raise CheckpointError(f"{folder} is quantised: convert the checkpoint that it was made from")
    return values


def _vision_fields(folder: Path) -> dict:
    """The configuration of a CLIP's ViT: of a whole CLIP, or of its ViT alone."""
    path = folder / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise CheckpointError(f"{path} has model_type {kind!r:.100}: expected a CLIP's")

    fields = values.get("vision_config", {}) if kind == "clip" else values
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: vision_config is {fields!r:.100}: expected an object")
    with values_of(path):
        config = CLIPVisionConfig(**fields)
    return {name: getattr(config, name) for name in CLIP_FIELDS}


def _described_vit(names: dict[str, str], infos: dict[str, TensorInfo]) -> dict:
    """The configuration of a CLIP's ViT by the shapes of its tensors; heads are as wide as every CLIP's."""
    shapes = {ours: infos[theirs].shape for theirs, ours in names.items()}
    needed = ("embeddings.patch_embedding", "embeddings.position_embedding", "encoder.layers.0.mlp.fc1")
    try:
        patch, positions, mlp = (shapes[f"model.vision_model.{name}.weight"] for name in needed)
        (width, channels, patch_size, _), (tokens, _), (intermediate, _) = patch, positions, mlp
    except (KeyError, ValueError) as error:
        raise CheckpointError("the release's ViT has no shape of a CLIP's: name one with --vision") from error

    layers = [int(found[1]) for name in shapes if (found := LAYER.match(name))]
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_channels": channels,
        "image_size": isqrt(tokens - 1) * patch_size,
        "patch_size": patch_size,
    }


def _names(infos: dict[str, TensorInfo], prefixes: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Our names by those of the source, and what is dropped, with the reason."""
    names, dropped = {}, {}
    for name in infos:
        reasons = [why for pattern, why in DROPPED.items() if re.search(pattern, name)]
        if reasons:
            dropped[name] = reasons[0]
        elif name.partition("/")[0] == "vision" and name.partition("/")[2].startswith(OTHERS_OF_CLIP):
            dropped[name] = "not of CLIP's ViT"
        elif (ours := _renamed(name, prefixes)) is not None:
            names[name] = ours
    return names, dropped


def _without_last_layer(names: dict[str, str], layers: int) -> tuple[dict[str, str], dict[str, str]]:
    """The names without those of layer `layers - 1` of the ViT, and these with the reason."""
    if layers < 2:
        raise CheckpointError(
            f"the ViT has {layers} layers: expected at least 2, of which the last is left out"
        )
    prefix = f"model.vision_model.encoder.layers.{layers - 1}."
    unused = {theirs: UNUSED_LAYER for theirs, ours in names.items() if ours.startswith(prefix)}
    return {theirs: ours for theirs, ours in names.items() if theirs not in unused}, unused
