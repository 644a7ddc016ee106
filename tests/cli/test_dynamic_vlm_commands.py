"""Every command takes a Dynamic-VLM where it takes a PVC; tried on a folder of a small one."""

import shutil

import pytest
import torch
from dynamic_vlm_models import save_small, small_config, small_model
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from pvc import CHECKPOINT
from pvc.cli import app
from pvc.cli.chat import load_model
from pvc.cli.info import ModelSizes
from pvc.configuration_dynamic_vlm import DynamicVLMConfig
from pvc.evaluation.engine import ChatEngine
from pvc.evaluation.media import Tiling, prepare
from pvc.evaluation.records import Media, Record
from pvc.evaluation.task import Protocol, Settings
from pvc.hub.card import model_card
from pvc.loading import UNQUANTIZED
from pvc.serving.limits import Limits
from pvc.serving.server import ServerOptions, restricted
from pvc.serving.web.assistant import Assistant
from pvc.serving.web.assistant import Settings as WebSettings
from pvc.serving.web.live import LiveCamera

IMAGE, VIDEO = (str(CHECKPOINT / "assets" / name) for name in ("picture1.png", "video.mp4"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("dynamic") / "small")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(str(folder), "cpu", "float32", None, None)


def run(*arguments) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    return result.stdout


# ---- info


def test_info_counts_parameters_and_tokens(folder):
    lines = run("info", folder, "--frames", 8).splitlines()
    total = sum(x.numel() for x in load_file(folder / "model.safetensors").values())
    assert f"| all parameters | {total:,} |" in lines
    assert "| visual tokens a tile, at most | 36 |" in lines
    assert "| visual tokens, video of 8 frames | 32 |" in lines  # 60 // 8 = 7: 4 a frame


def test_info_of_the_7b_is_that_of_the_paper():
    sizes = ModelSizes.from_config(DynamicVLMConfig())
    assert sum(sizes.parameters.values()) == 7_923_049_984
    assert sizes.image_tokens == 576
    assert [sizes.video_tokens(frames) for frames in (8, 64, 120, 256)] == [4608, 10816, 12000, 9216]


def test_a_selector_is_a_part_of_its_own():
    parts = ModelSizes.from_config(small_config("pruning")).parameters
    assert parts["compressor"] == 32 + 1 + 36 * 36 + 36
    assert "compressor" not in ModelSizes.from_config(small_config()).parameters


# ---- chat


def test_chat_answers_about_an_image_and_a_video(folder):
    shown = ("--image", IMAGE, "--video", VIDEO, "--frame-tokens", 4, "--max-new-tokens", 4)
    assert run("chat", folder, "What?", *shown, "--device", "cpu")


# ---- quantize


def test_the_llm_alone_is_quantised():
    model = small_model("pruning")
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {name for name in linears if not name.startswith(tuple(UNQUANTIZED))}
    assert any(name.startswith("model.compressor.") for name in linears)
    assert quantised and all(name.startswith("model.language_model.") for name in quantised)


# ---- serve and web


def test_a_server_takes_as_many_tiles_as_the_smallest_frames_allow(loaded):
    model, processor = loaded
    limited = restricted(processor, ServerOptions("x", limits=Limits()), 1000)
    most = limited.media_policy.max_tiles
    fixed = ServerOptions("x", limits=Limits(), processing={"frame_tokens": 36})
    assert restricted(processor, fixed, 1000).media_policy.max_tiles == 1000 // 36 < most


def test_the_page_reads_a_video_by_seconds_and_shows_its_colours(loaded, tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    video, image = uploads / "video.mp4", uploads / "grey.png"
    shutil.copy(VIDEO, video)
    Image.new("RGB", (40, 30), (128, 128, 128)).save(image)
    assistant = Assistant(*loaded, uploads)

    settings = WebSettings(num_frames=3, max_tiles=1, max_tokens=2)
    content = [{"type": kind, kind: path.as_uri()} for kind, path in (("video", video), ("image", image))]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}]
    last = list(assistant.ask(messages, settings))[-1]
    assert last.error is None
    shown, still = last.seen.media
    assert shown.clip.frames <= 3 and len(shown.times_s) == shown.clip.frames
    grey = still.pixels[0] * torch.tensor(still.std).view(3, 1, 1) + torch.tensor(still.mean).view(3, 1, 1)
    assert (grey - 128 / 255).abs().max() < 1e-5


def test_a_camera_has_a_fixed_number_of_tokens(loaded, tmp_path):
    image = tmp_path / "frame.png"
    shutil.copy(IMAGE, image)
    camera = LiveCamera(Assistant(*loaded, tmp_path))
    assert camera.add(image.as_uri()) and camera.num_frames == 1
    assert camera.ask("What?", WebSettings(1, 1, 2)) is not None


# ---- evaluate


def test_evaluation_shows_the_pixels_and_asks_as_chat(loaded):
    model, processor = loaded
    settings = Settings(frames=4, generation={"max_new_tokens": 4})
    protocol = Protocol(lambda record, shown: record.question, lambda a, r: a, lambda p, r: 0.0, settings)
    records = [
        Record("image", (Media("image", CHECKPOINT / "assets/picture1.png"),), "What?"),
        Record("video", (Media("video", CHECKPOINT / "assets/video.mp4"),), "What?"),
    ]
    engine = ChatEngine(model, processor.tokenizer, {}, batch=2)
    assert engine.tiling == Tiling(84, is_stretched=True)
    units = [prepare([record], protocol, engine.tiling) for record in records]
    assert [len(unit.pixel_values) for unit in units] == [1, 4]
    own = processor.image_processor.image(IMAGE).tiles
    assert torch.equal(units[0].pixel_values, own)

    answers = [answer.text for answer in engine.answer(iter(units), settings)]
    media = {"num_patches_list": [1], "data_flag": [1]}
    assert answers[0] == model.chat(processor.tokenizer, own, "What?", {"max_new_tokens": 4}, **media)
    assert answers[1] is not None


def test_a_dry_run_counts_its_tiles(folder, tmp_path):
    from whole_tasks import write

    write("chartqa", tmp_path)
    shown = run("evaluate", "chartqa", "--model", folder, "--data", tmp_path, "--dry-run")
    assert ": 1 tiles" in shown and ": 2 tiles" not in shown


# ---- push


def test_the_model_card_tells_the_budget():
    card = model_card(small_config("merging"), base_model=None, license=None, name="org/small")
    assert "60 visual tokens a video" in card and "merging" in card
