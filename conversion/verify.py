"""Source and result of a conversion, run on the same random input."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from pvc.conversion.configs import NATIVE, internvl_config, read_config, source_ratio
from pvc.conversion.files import CheckpointError, SourceWeights
from pvc.conversion.matching import internvl_name
from pvc.conversion.plan import main_dtype, meta_model
from pvc.modeling_pvc import PVCForConditionalGeneration


@dataclass
class Difference:
    """How far two models' outputs differ.

    Attributes:
        largest: largest absolute difference.
        size: root mean square of the outputs.
    """

    what: str
    largest: float
    size: float

    @classmethod
    def of(cls, what: str, ours: torch.Tensor, theirs: torch.Tensor) -> "Difference":
        """How `ours` differs from `theirs`."""
        difference = (ours.float() - theirs.float()).abs().max()
        return cls(what, difference.item(), theirs.float().square().mean().sqrt().item())

    def __str__(self):
        return f"{self.what}: largest difference {self.largest:.3g}, of values of size {self.size:.3g}"


@torch.no_grad()
def verify(folder: Path, target: Path, seed: int = 0) -> list[Difference]:
    """Compares the ViT's features and the LLM's logits of source and result on random pixels and ids.

    The result's temporal gates are set to zero, and one model is in memory at a time.

    A source in transformers' own layout is run by transformers' own class. The remote code's layout, whose
    code does not run on today's transformers, is run as InternVL2, a configuration of this code that tests
    hold equal to the official one.
    """
    generator = torch.Generator().manual_seed(seed)
    result = PVCForConditionalGeneration.from_pretrained(target).eval()
    vit, llm = result.config.vision_config, result.config.llm_config
    pixels = torch.randn(2, vit.num_channels, vit.image_size, vit.image_size, generator=generator)
    ids = torch.randint(min(1000, llm.vocab_size), (2, 16), generator=generator)
    ids[ids == result.config.image_token_id] = 0

    for name, parameter in result.named_parameters():
        if name.endswith("temporal_gate"):
            parameter.zero_()
    ours = [result.model.vision_model(pixels).last_hidden_state, result(input_ids=ids).logits]
    del result

    theirs = _run_source(folder, pixels, ids)
    pairs = zip(("ViT's features", "LLM's logits"), ours, theirs)
    return [Difference.of(what, a, b) for what, a, b in pairs]


def _run_source(folder: Path, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The source's ViT features `(tiles, N, C)` of `pixels` and logits of `ids`."""
    values = read_config(folder)
    if values["model_type"] == NATIVE:
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        features = model.model.vision_tower(pixels.to(model.dtype)).last_hidden_state
        return features, model(input_ids=ids).logits
    model = _as_internvl2(folder, values)
    return model.model.vision_model(pixels).last_hidden_state, model(input_ids=ids).logits


def _as_internvl2(folder: Path, values: dict) -> PVCForConditionalGeneration:
    """ViT and LLM of the source by the names that InternVL gives them, mapped from its files."""
    config = internvl_config(
        values,
        template=values.get("template") or "internvl2_5",
        image_token_id=0,
        temporal_layers=0,
        image_repeats=1,
        downsample_ratio=source_ratio(values),
        new_parameters=[],
    )
    config.adaptive_compression = False

    # the source's tensors under our names
    weights = SourceWeights(folder)
    names = {internvl_name(name): name for name in weights.infos}
    found = {ours: weights.get(names[ours]) for ours in meta_model(config).state_dict() if ours in names}
    config.tie_word_embeddings = config.llm_config.tie_word_embeddings = "lm_head.weight" not in found

    model, info = PVCForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=found, dtype=main_dtype(weights), output_loading_info=True
    )

    missing = [name for name in info["missing_keys"] if not name.startswith("model.projector.")]
    if missing:
        raise CheckpointError(
            f"{folder} has nothing by InternVL's names for {', '.join(sorted(missing)[:5])}"
        )
    return model.eval()
