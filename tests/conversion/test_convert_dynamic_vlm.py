"""The released ByteVideoLLM, and a CLIP with an LLM, become a Dynamic-VLM of this repository."""

import json
from pathlib import Path

import pytest
import torch
from builders import golden
from numbered_videos import write_video
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from typer.testing import CliRunner

from pvc.cli import app
from pvc.clips import Clip, clip_grid_of
from pvc.conversion.dynamic_vlm import DynamicVLMConversion, DynamicVLMOptions, is_released
from pvc.conversion.files import CheckpointError
from pvc.hub.check import checked_files
from pvc.modeling_dynamic_vlm import DynamicVLMForConditionalGeneration

OFFICIAL = json.loads(golden("dynamic_vlm/model_config.json").read_text())
TOKENIZER = golden("dynamic_vlm/tokenizer")
WEIGHTS = golden("dynamic_vlm/model_weights.safetensors")


def pvc(*arguments) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return f"{result.exit_code} {' '.join(result.output.split())}"


@pytest.fixture
def release(tmp_path) -> Path:
    """The tiny model as it was released: its LLM's configuration, official names, no tokenizer."""
    folder = tmp_path / "release"
    folder.mkdir()
    values = OFFICIAL["text_config"] | {"architectures": ["VideoLLMModel"], "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(load_file(WEIGHTS), folder / "model.safetensors")
    return folder


@pytest.fixture
def vit(tmp_path) -> Path:
    """The configuration of its ViT, whose heads are narrower than every real CLIP's."""
    folder = tmp_path / "vit"
    folder.mkdir()
    values = OFFICIAL["vision_config"] | {"model_type": "clip_vision_model"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def parts(tmp_path) -> tuple[Path, Path]:
    """A whole CLIP and an LLM with its tokenizer."""
    torch.manual_seed(0)
    vision, llm = tmp_path / "clip", tmp_path / "llm"
    text = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(**OFFICIAL["vision_config"]).to_dict(), text_config=text.to_dict()
    )
    CLIPModel(config).save_pretrained(vision)
    Qwen2ForCausalLM(Qwen2Config(**OFFICIAL["text_config"])).save_pretrained(llm)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(llm)
    return vision, llm


# ---- the release


def test_a_converted_release_gives_the_official_logits(release, vit, tmp_path):
    target = tmp_path / "dynamic"
    said = pvc("convert", release, target, "--tokenizer", TOKENIZER, "--vision", vit, "--verify")
    assert said.startswith("0 ") and "is a Dynamic-VLM now" in said
    assert said.count("largest difference 0,") == 2

    model = DynamicVLMForConditionalGeneration.from_pretrained(target).eval()
    assert model.config.vision_config.num_hidden_layers == 3
    assert (model.config.image_token_id, model.config.max_video_tokens) == (333, 10_000)
    assert model.generation_config.eos_token_id == [330]

    io = load_file(golden("dynamic_vlm/model_io.safetensors"))
    grid = clip_grid_of([Clip(4, 1, 1, 9)])
    with torch.no_grad():
        (tokens,) = model.get_image_features(io["pixel_values"][:4], grid).pooler_output
    torch.testing.assert_close(tokens, io["visual_tokens.0"].flatten(0, 1), atol=7e-6, rtol=0)

    report = (target / "conversion.tsv").read_text()
    assert report.count("the ViT's last layer") == 16
    processor = AutoProcessor.from_pretrained(target, trust_remote_code=True)
    assert processor.image_processor.max_video_tokens == 10_000


def test_a_converted_folder_can_be_pushed_with_its_card(release, vit, tmp_path):
    target = tmp_path / "dynamic"
    pvc("convert", release, target, "--tokenizer", TOKENIZER, "--vision", vit)
    files = checked_files(target)
    assert {"modeling_dynamic_vlm.py", "compressors.py", "processing_dynamic_vlm.py"} <= set(files)
    card = (target / "README.md").read_text()
    assert "Dynamic-VLM" in card and "10000 visual tokens a video" in card and "PVC" not in card


def test_a_release_needs_the_tokenizer_of_its_llm(release, tmp_path):
    assert is_released(release)
    said = pvc("convert", release, tmp_path / "dynamic")
    assert said.startswith("1 ") and "--tokenizer Qwen/Qwen2.5-14B-Instruct" in said
    assert not (tmp_path / "dynamic").exists()
    assert "--no-tokenizer" in pvc("convert", release, tmp_path / "dynamic", "--no-tokenizer")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(release, vit, tmp_path):
    said = pvc("convert", release, tmp_path / "a", "--tokenizer", TOKENIZER, "--vision", vit, "--dry-run")
    assert said.startswith("0 ") and "model.projector.0.weight [48, 32] <- llm_proj.0.weight" in said
    assert not (tmp_path / "a").exists()


def test_a_converted_model_is_asked_by_pvc_chat(release, vit, tmp_path):
    target, video = tmp_path / "dynamic", tmp_path / "video.mp4"
    pvc("convert", release, target, "--tokenizer", TOKENIZER, "--vision", vit)
    write_video(video, num_frames=30)
    command = ("chat", target, "What happens?", "--video", video, "--max-new-tokens", "3")
    assert pvc(*command, "--device", "cpu").startswith("0 ")


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda weights: weights.pop("llm_proj.0.bias"), "has nothing for model.projector.0.bias"),
        (lambda weights: weights.update(special_token=torch.ones(48)), "no Dynamic-VLM's: special_token"),
        (lambda weights: weights.update({"llm_proj.0.bias": torch.ones(7)}), r"has shape \(7,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(release, vit, tmp_path, change, says):
    weights = load_file(WEIGHTS)
    change(weights)
    save_file(weights, release / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        DynamicVLMConversion(
            tmp_path / "a", DynamicVLMOptions(tokenizer=TOKENIZER), released=release, vision=vit
        )


def test_a_target_that_is_a_source_is_refused(release, vit):
    for target in (release, vit):
        with pytest.raises(ValueError, match="is, or holds, the source"):
            DynamicVLMConversion(target, DynamicVLMOptions(tokenizer=TOKENIZER), released=release, vision=vit)


# ---- a start for training


@pytest.mark.parametrize("compressor", ["pooling", "pruning"])
def test_a_clip_and_an_llm_make_a_start_for_training(parts, tmp_path, compressor):
    vision, llm = parts
    target = tmp_path / "start"
    command = ("convert", "--system", "dynamic-vlm", "--vision", vision, "--llm", llm, target)
    said = pvc(*command, "--compressor", compressor, "--verify")
    assert said.startswith("0 ") and "untrained" in said
    assert said.count("largest difference 0,") == 2

    model = DynamicVLMForConditionalGeneration.from_pretrained(target)
    new = ["projector", "compressor"] if compressor == "pruning" else ["projector"]
    assert model.config.new_parameters == new
    assert model.config.max_video_tokens == 12_000
    assert model.model.projector[0].weight.std() > 0
    if compressor == "pruning":
        assert not model.model.compressor.mix.weight.any() and model.model.compressor.mix.bias.std() > 0

    report = (target / "conversion.tsv").read_text()
    assert "not of CLIP's ViT" in report and "vision/vision_model.encoder.layers.3." in report
    assert pvc(*command).startswith("1 ")  # it exists
    assert pvc(*command, "--overwrite").startswith("0 ")


def test_options_of_one_system_are_refused_for_the_other(tmp_path, parts):
    vision, llm = parts
    assert "--vision is for Dynamic-VLM" in pvc("convert", llm, tmp_path / "a", "--vision", vision)
    said = pvc("convert", "--system", "dynamic-vlm", "--llm", llm, tmp_path / "a")
    assert said.startswith("1 ") and "of --vision and --llm" in said
    assert pvc("convert", llm).startswith("2 ")


def test_an_llm_of_another_kind_than_a_clip_is_refused_as_the_vit(tmp_path, parts):
    _, llm = parts
    said = pvc("convert", "--system", "dynamic-vlm", "--vision", llm, "--llm", llm, tmp_path / "a")
    assert "model_type 'qwen2': expected a CLIP's" in said
