"""The model card of a checkpoint: the metadata that the Hub reads, what the model is, how to use it."""

import json
from pathlib import Path
from string import Template

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.configuration_pvc import PVCConfig, VLMConfig, llm_family
from pvc.conversion.files import read_json
from pvc.processing_pvc import PVCImageProcessor
from pvc.reporting.markdown import markdown_table

README = "README.md"
TAGS = ["multimodal", "video-text-to-text", "conversational", "custom_code"]

CARD = Template("""\
# $name

$intro

$facts

## How to use it

The code comes with the weights; only the packages that it imports have to be installed.

```bash
pip install "torch>=2.6" "transformers>=5.12,<6" einops pillow av sentencepiece
```

```python
import torch
from transformers import AutoModel, AutoProcessor

path = $path  # this repository's id, or a folder
revision = "main"  # the hash of a commit pins the code that runs
device = "cuda" if torch.cuda.is_available() else "cpu"
processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=True)
model = AutoModel.from_pretrained(path, revision=revision, trust_remote_code=True).eval().to(device)


def ask(question, *media):
    content = [*media, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    output = model.generate(**inputs.to(device), max_new_tokens=128)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print(ask("What is in the image?", {"type": "image", "path": "image.jpg"}))
print(ask("What happens in the video?", {"type": "video", "path": "video.mp4"}))
```

## Where it comes from

$provenance
""")


INTROS = {  # by model_type
    "pvc": (
        "A vision-language model for images and videos with Progressive Visual Token Compression "
        "([PVC](https://arxiv.org/abs/2412.09613), CVPR 2025), which encodes every visual input as a video."
    ),
    "dynamic_vlm": (
        "A vision-language model for images and videos that compresses each frame's visual tokens to fit a "
        "budget ([Dynamic-VLM](https://arxiv.org/abs/2412.09530), ICCV 2025)."
    ),
}


def model_card(
    config: VLMConfig, *, base_model: str | None, license: str | None, name: str, notes: str = ""
) -> str:
    """The README.md of a checkpoint.

    Args:
        config: the checkpoint's configuration.
        base_model: Hub id of the checkpoint that its weights come from.
        license: of the weights, as the Hub abbreviates it ("mit", "apache-2.0", "other", ...).
        name: the model's name, or its Hub id: the title, and what the example loads.
        notes: Markdown on how it was made.

    Raises:
        ValueError: where `base_model` is no Hub id; a path would tell everybody a folder of this machine.
    """
    if base_model is not None:
        validate_repo_id(base_model)

    data = ModelCardData(
        base_model=base_model,
        library_name="transformers",
        license=license,
        pipeline_tag="image-text-to-text",
        tags=[config.model_type.replace("_", "-"), *TAGS],
    )
    text = CARD.substitute(
        name=name.rpartition("/")[2],
        path=json.dumps(name, ensure_ascii=False),
        intro=INTROS[config.model_type],
        facts=_facts(config) if isinstance(config, PVCConfig) else _dynamic_vlm_facts(config),
        provenance=_provenance(base_model, license, notes),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def write_card(folder: Path, repo_id: str) -> None:
    """Writes a card for the checkpoint in `folder` that names neither a base model nor a license."""
    config = read_model_config(folder)
    card = model_card(config, base_model=None, license=None, name=repo_id)
    (folder / README).write_text(card, encoding="utf-8")


def read_model_config(folder: Path) -> VLMConfig:
    """The configuration of the checkpoint in `folder`, of either system."""
    is_dynamic = read_json(folder / "config.json").get("model_type") == DynamicVLMConfig.model_type
    return (DynamicVLMConfig if is_dynamic else PVCConfig).from_pretrained(folder)


def _dynamic_vlm_facts(config: DynamicVLMConfig) -> str:
    vit = config.vision_config
    llm = config.llm_config
    size = vit.image_size
    rows = [
        ("LLM", f"{llm_family(llm).name}, {llm.num_hidden_layers} layers of width {llm.hidden_size}"),
        ("ViT", f"CLIP, {vit.num_hidden_layers} layers of width {vit.hidden_size}"),
        ("compressor", f"{config.compressor}, before the projector"),
        ("frame", f"{size} x {size} pixels, {config.num_patches} patches"),
        (
            "budget",
            f"{config.max_video_tokens} visual tokens a video, at most {config.max_frame_tokens} a frame",
        ),
    ]
    return markdown_table(("", ""), rows)


def _facts(config: PVCConfig) -> str:
    vit = config.vision_config
    llm = config.llm_config
    images = PVCImageProcessor.from_model_config(config)

    tokens = images.tokens_per_tile
    size = images.image_size
    block = round(1 / config.downsample_ratio)
    max_tiles = images.max_tiles + (images.use_thumbnail and images.max_tiles > 1)

    temporal = "none of them with temporal attention"
    if vit.num_temporal_layers:
        temporal = f"the last {vit.num_temporal_layers} with causal temporal attention"
    norm = "a time-conditioned LayerNorm (AdaLN)" if config.adaptive_compression else "a LayerNorm"
    image_repeats = _times(config.image_repeats)
    video_repeats = _times(config.video_repeats)

    rows = [
        ("LLM", f"{llm_family(llm).name}, {llm.num_hidden_layers} layers of width {llm.hidden_size}"),
        ("ViT", f"{vit.num_hidden_layers} layers of width {vit.hidden_size}, {temporal}"),
        ("projector", f"{block} x {block} patches become one visual token, after {norm}"),
        ("tile", f"{size} x {size} pixels, {tokens} visual tokens each time it is shown"),
        ("repeats", f"an image is shown {image_repeats}, a frame of a video {video_repeats}"),
        ("image", f"at most {max_tiles} tiles: {max_tiles * config.image_repeats * tokens} visual tokens"),
    ]
    return markdown_table(("", ""), rows)


def _times(repeats: int) -> str:
    return "once" if repeats == 1 else f"{repeats} times"


def _provenance(base_model: str | None, license: str | None, notes: str) -> str:
    base = base_model and f"Its weights come from [{base_model}](https://huggingface.co/{base_model})."
    weights = "the license of the weights is not named"
    if license:
        weights = f"the weights under the license {license}"

    paragraphs = [base, notes.strip(), f"The Python files are under the MIT license; {weights}."]
    return "\n\n".join(filter(None, paragraphs))
