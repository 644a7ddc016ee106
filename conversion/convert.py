"""Converts an InternVL 2, 2.5, 3 or 3.5 of 1B to 8B, or the released PVC, to a checkpoint of this repository.

The result is a folder that `AutoModel.from_pretrained(folder, trust_remote_code=True)` loads. Weights are
streamed tensor by tensor, so that memory holds the largest tensor and not the checkpoint, and the folder is
written atomically. The other modules hold the parts: the source's configuration (`configs.py`), how each
tensor is made (`plan.py`, `matching.py`), files (`files.py`), the comparison of both models (`verify.py`).
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, snapshot_download
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from pvc.configuration_pvc import LLM_FAMILIES, PVCConfig
from pvc.conversation import IMAGE_CONTEXT, get_conv_template
from pvc.conversion.checks import check_config, check_depth, values_of
from pvc.conversion.configs import (
    RELEASED,
    internvl_config,
    llm_fields,
    llm_values,
    read_config,
    released_config,
    source_ratio,
)
from pvc.conversion.files import (
    CheckpointError,
    SourceWeights,
    atomic_directory,
    check_free_disk,
    read_json,
    real_target,
    write_shards,
)
from pvc.conversion.matching import read_key_map
from pvc.conversion.plan import (
    INTERLACED,
    Plan,
    choose_start,
    main_dtype,
    meta_model,
    new_parameters,
    plan_internvl,
    plan_released,
)
from pvc.conversion.verify import Difference, verify
from pvc.hub.card import model_card
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

LICENSE_NAME = re.compile(r"[\w.+-]{1,64}", re.ASCII)  # as the Hub abbreviates licences
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")
NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
TOKENIZER_JSON = (
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
SMALL_FILES_BYTES = 64_000_000  # tokenizer, code, configuration: more than they are


@dataclass
class Options:
    """What `pvc convert` takes; see its help."""

    temporal_layers: int = 8
    image_repeats: int = 4
    downsample_ratio: float = 0.25
    projector_init: str | None = None
    tile_repeat_order: str | None = None
    template: str | None = None
    image_token_id: int | None = None
    tokenizer: bool = True
    key_map: str | None = None
    overwrite: bool = False
    seed: int = 0


def download(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a model of the Hub, without what a conversion does not read."""
    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=NEEDED_FILES))


class Conversion:
    """A planned conversion of the model in `source` into the new folder `target`; `run` carries it out.

    Planning reads only headers and small files.

    Raises:
        CheckpointError, ValueError: where the source, or what is asked for, does not allow it.
        OSError: where a file cannot be read, or `target` is a link that leads nowhere.
    """

    def __init__(self, source: Path | str, target: Path | str, options: Options):
        self.source = Path(source)
        self.target = Path(target)
        self.options = options

        check_target(self.target, self.source)
        values = read_config(self.source)
        self.tokenizer = load_tokenizer(self.source, values) if options.tokenizer else None
        with values_of(self.source / "config.json"):
            image_token_id = _image_token_id(values, self.tokenizer, options.image_token_id)
            self.plan = self._plan(values, image_token_id)
        self.generation = _generation_config(self.source, self.plan.config, self.tokenizer)

    def _plan(self, values: dict, image_token_id: int) -> Plan:
        options = self.options
        weights = SourceWeights(self.source)

        if values["model_type"] == RELEASED:
            if options.projector_init or options.tile_repeat_order:
                raise ValueError(
                    "--projector-init and --tile-repeat-order are for an InternVL: the released PVC has a "
                    "trained projector and an order of its own"
                )
            config = released_config(values, options.template, image_token_id, options.temporal_layers)
            self._check_config(config, weights)
            key_map = read_key_map(options.key_map) if options.key_map else None
            plan = plan_released(config, weights, key_map)
            if "mlp_add_ops" in values:
                said = values["mlp_add_ops"]
                plan.remarks.append(f"mlp_add_ops is {said!r} there: what it means is not known, nor used")
        elif options.key_map:
            raise ValueError("--key-map is for the released PVC: InternVL's names are known")
        else:
            tiles = self.source / "preprocessor_config.json"
            ratio = source_ratio(values)
            start, order = choose_start(
                options.projector_init,
                image_repeats=options.image_repeats,
                downsample_ratio=options.downsample_ratio,
                source_ratio=ratio,
            )
            config = internvl_config(
                values,
                template=options.template,
                image_token_id=image_token_id,
                temporal_layers=options.temporal_layers,
                image_repeats=options.image_repeats,
                downsample_ratio=options.downsample_ratio,
                new_parameters=new_parameters(start),
                tile_repeat_order=options.tile_repeat_order or order,
                tiles=read_json(tiles) if tiles.is_file() else None,
            )
            self._check_config(config, weights)
            plan = plan_internvl(config, weights, ratio, start)
            if start == "interlaced" and config.tile_repeat_order == "raster":
                plan.remarks.append(INTERLACED)

        config.dtype = main_dtype(weights)
        return plan

    def _check_config(self, config: PVCConfig, weights: SourceWeights):
        path = self.source / "config.json"
        vocab_size = config.llm_config.vocab_size
        check_depth(config, len(weights.infos), path)
        if self.tokenizer is not None and len(self.tokenizer) > vocab_size:
            raise CheckpointError(
                f"the tokenizer has {len(self.tokenizer)} tokens, but the LLM's vocabulary {vocab_size}"
            )
        check_config(config, path)

    def run(
        self,
        base_model: str | None = None,
        progress: Callable[[str, int], None] = lambda name, nbytes: None,
    ):
        """Writes the target, which appears whole or not at all.

        Args:
            base_model: Hub id of the source, for the model card.
            progress: called after each tensor with its name and bytes.

        Raises:
            OSError: where the target exists, or the disk is too small.
        """
        check_free_disk(self.target, self.plan.nbytes + SMALL_FILES_BYTES)
        torch.manual_seed(self.options.seed)
        with atomic_directory(self.target, self.options.overwrite) as unfinished:
            self._write_small_files(unfinished, base_model)
            write_shards(unfinished, self.plan.infos, self.plan.make, progress)

    def verify(self) -> list[Difference]:
        """How source and result differ on random input."""
        return verify(self.source, self.target)

    def _write_small_files(self, folder: Path, base_model: str | None):
        config = self.plan.config
        model = meta_model(config)
        config.architectures = [type(model).__name__]
        custom_object_save(model, folder, config=config)  # the code files
        config.save_pretrained(folder)

        if self.tokenizer is not None:
            self._processor().save_pretrained(folder)
        self.generation.save_pretrained(folder)

        card = model_card(
            config,
            base_model=base_model,
            license=self.license(),
            name=self.target.name,
            notes=self.plan.notice,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / "conversion.tsv").write_text(self.plan.report(), encoding="utf-8")

    def _processor(self) -> PVCProcessor:
        config = self.plan.config
        images = PVCImageProcessor.from_model_config(config)
        return PVCProcessor(images, self.tokenizer, template=config.template)

    def license(self) -> str | None:
        """The licence that the source's model card names."""
        return license_of(self.source)


def check_target(target: Path, *sources: Path):
    """Raises a ValueError where a conversion into `target` would replace a source."""
    for source in sources:
        real_source = Path(os.path.realpath(source))
        if real_target(target) in (real_source, *real_source.parents):
            raise ValueError(f"TARGET {target} is, or holds, the source: choose another")


def load_tokenizer(folder: Path, values: dict) -> PreTrainedTokenizerBase:
    """The tokenizer of the source: ours for InternLM2, transformers' own for the other LLMs.

    Raises:
        CheckpointError: where there is none, or it lacks `<IMG_CONTEXT>`.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}): copy its files there, or "
            "convert the weights alone with --no-tokenizer"
        )

    tokenizer = read_tokenizer(folder, llm_fields(llm_values(values))["model_type"])
    if IMAGE_CONTEXT not in tokenizer.get_added_vocab():
        raise CheckpointError(f"the tokenizer of {folder} has no {IMAGE_CONTEXT}: is it an InternVL's?")
    return tokenizer


def read_tokenizer(folder: Path, llm_type: str) -> PreTrainedTokenizerBase:
    """The tokenizer among the files of `folder`, without what they say of a model.

    Raises:
        CheckpointError: where it cannot be read.
    """
    with tempfile.TemporaryDirectory() as alone:  # without config.json, which names code and another class
        for file in folder.iterdir():
            if file.suffix in (".json", ".txt", ".model", ".jinja") and not _is_models(file.name):
                shutil.copyfile(file, Path(alone) / file.name)
        for name in TOKENIZER_JSON:
            if (Path(alone) / name).is_file():
                read_json(folder / name)
        try:
            if LLM_FAMILIES[llm_type].is_own_code and (folder / "tokenizer.model").is_file():
                tokenizer = InternLM2Tokenizer.from_pretrained(alone)
            else:
                tokenizer = AutoTokenizer.from_pretrained(alone)
        except Exception as error:  # of any type: tokenizers and sentencepiece raise their own
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the tokenizer of {folder} cannot be read: {reason:.500}") from error
    return tokenizer


def _is_models(name: str) -> bool:
    """Whether a file of a checkpoint belongs to the model or the processor, and not to the tokenizer."""
    return name in ("config.json", "processor_config.json", "preprocessor_config.json") or "index" in name


def _image_token_id(values: dict, tokenizer, given: int | None) -> int:
    if tokenizer is not None:
        return tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)
    known = (given, values.get("image_token_id"), values.get("img_context_token_id"))
    found = next((x for x in known if x is not None), None)
    if found is None:
        raise CheckpointError(f"without a tokenizer, --image-token-id must say the id of {IMAGE_CONTEXT}")
    return found


def _generation_config(source: Path, config: PVCConfig, tokenizer) -> GenerationConfig:
    """The source's, with the template's end tokens where it names none."""
    path = source / "generation_config.json"
    generation = GenerationConfig()
    if path.is_file():
        with values_of(path):
            generation = GenerationConfig.from_dict(read_json(path))

    if tokenizer is not None and generation.eos_token_id is None:
        stop = get_conv_template(config.template).stop_token_ids(tokenizer)
        generation.eos_token_id = stop or tokenizer.eos_token_id

    llm = config.llm_config
    if generation.pad_token_id is None:
        generation.pad_token_id = llm.pad_token_id if tokenizer is None else tokenizer.pad_token_id
    if generation.bos_token_id is None:
        generation.bos_token_id = llm.bos_token_id

    with values_of(path):
        generation.validate(strict=True)  # as saving it does
    return generation


def license_of(source: Path) -> str | None:
    """The licence that the source's model card names."""
    card = source / "README.md"
    if not card.is_file():
        return None
    try:
        license = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (yaml.YAMLError, ValueError, TypeError, AttributeError):  # not even text, or no metadata
        return None
    return license if isinstance(license, str) and LICENSE_NAME.fullmatch(license) else None
