"""The processor: where images and videos come from, and the options of a call."""

import base64
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from processors import (
    FRAMES,
    IMAGE,
    MAX_TILES,
    OTHER,
    SIDE,
    VIDEO,
    image,
    text,
    tiles_of,
    user,
    video,
)

from pvc import processing_options, processing_pvc
from pvc.preprocess import load_image, read_frames

# ---- where media come from


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds upright.png, and turned.jpg: the same kind of image lying on its side, as its EXIF says."""
    folder = tmp_path_factory.mktemp("media")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    pil_image = Image.fromarray(pixels)
    pil_image.save(folder / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    pil_image.save(folder / "turned.jpg", exif=exif)
    (folder / "video.mp4").write_bytes(Path(VIDEO).read_bytes())
    return folder


@pytest.fixture
def address(folder, monkeypatch):
    """Where a server on this machine serves `folder`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


SOURCES = {
    "path as text": str,
    "path": Path,
    "PIL": Image.open,
    "PIL with transparency": lambda path: Image.open(path).convert("RGBA"),
    "array, channels last": pixels_of,
    "array, channels first": lambda path: np.ascontiguousarray(pixels_of(path).transpose(2, 0, 1)),
    "array of floats": lambda path: pixels_of(path) / 255,
    "array of float32, channels first": lambda path: (pixels_of(path) / 255).astype("f4").transpose(2, 0, 1),
    "tensor, channels last": lambda path: torch.tensor(pixels_of(path)),
    "tensor, channels first": lambda path: torch.tensor(pixels_of(path)).permute(2, 0, 1),
    "tensor of floats": lambda path: torch.tensor(pixels_of(path)).permute(2, 0, 1) / 255,
    "base64": base64_of,
    "base64 with its type": lambda path: f"data:image/png;base64,{base64_of(path)}",
}


@pytest.mark.parametrize("source", SOURCES)
def test_images_may_come_as(source, folder, processor):
    path = folder / "upright.png"
    expected = load_image(path, input_size=SIDE, max_num=MAX_TILES)
    given = SOURCES[source](path)
    inputs = processor.apply_chat_template([user(image(given))], tokenize=True, return_dict=True)
    assert torch.equal(inputs["pixel_values"], expected)
    assert torch.equal(processor(images=given, text="<image>")["pixel_values"], expected)
    assert torch.equal(processor.image_processor(given)["pixel_values"], expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_array_of_floats_that_is_black_or_white_is_so(value, processor):
    pil_image = np.full((56, 56, 3), value, np.float32)
    expected = processor.image_processor(Image.fromarray((pil_image * 255).astype(np.uint8)))
    assert torch.equal(processor.image_processor(pil_image)["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_arrays_may_have_one_channel_or_four(mode, folder, processor):
    pil_image = Image.open(folder / "upright.png").convert(mode)
    expected = processor.image_processor(pil_image)["pixel_values"]
    array = np.asarray(pil_image)
    for given in (array, array.reshape(60, 100, -1), array.reshape(60, 100, -1).transpose(2, 0, 1)):
        assert torch.equal(processor.image_processor(given)["pixel_values"], expected)


def test_an_array_of_other_numbers_is_an_error_that_says_what_is_expected(processor):
    for wrong, message in [
        (np.full((8, 8, 3), 200.0), "float64 has values outside 0 to 1"),
        (np.full((8, 8, 3), np.nan), "float64 has values outside 0 to 1"),
        (np.full((8, 8, 3), 5, np.int64), r"ndarray int64 \(8, 8, 3\): expected a PIL image, a path"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"ndarray uint8 \(2, 8, 8, 3\): expected"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\): expected"),
        (None, "NoneType"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.image_processor(wrong)


@pytest.mark.parametrize("wrong", ["no/such/file.png", "file:///etc/hostname", "ftp://127.0.0.1/a.png"])
def test_a_text_that_is_no_image_is_an_error_that_quotes_it(wrong, processor):
    with pytest.raises(OSError, match=wrong):
        processor.apply_chat_template([user(image(wrong))], tokenize=True)


@pytest.mark.parametrize("name", ["upright.png", "turned.jpg"])
def test_images_are_fetched_from_an_address_in_all_spellings_of_a_block(name, folder, address, processor):
    expected = load_image(folder / name, input_size=SIDE, max_num=MAX_TILES, exif=True)
    url = f"{address}/{name}"
    for block in (
        {"type": "image", "image": url},
        {"type": "image", "url": url},
        {"type": "image", "path": str(folder / name)},
        {"type": "image", "base64": base64_of(folder / name)},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(folder / name)}"}},
    ):
        messages = [user(block, text("What?"))]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert torch.equal(inputs["pixel_values"], expected), block
        prompt = processor.apply_chat_template(messages)
        assert torch.equal(processor(text=prompt, images=url)["input_ids"], inputs["input_ids"]), block


def test_videos_are_fetched_from_an_address(address, processor):
    expected, _ = tiles_of(VIDEO)
    for block in (
        {"type": "video", "url": f"{address}/video.mp4"},
        {"type": "video_url", "video_url": {"url": f"{address}/video.mp4"}},
    ):
        messages = [user(block, text("What?"))]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert torch.equal(inputs["pixel_values"], expected)
        prompt = processor.apply_chat_template(messages)
        again = processor(text=prompt, videos=f"{address}/video.mp4")
        assert torch.equal(again["input_ids"], inputs["input_ids"])
    with pytest.raises(OSError, match="none.mp4 cannot be fetched: .*404"):
        processor.apply_chat_template([user(video(f"{address}/none.mp4"))], tokenize=True)


def test_images_are_upright_as_their_exif_says(folder, processor):
    path = folder / "turned.jpg"
    upright = load_image(Image.open(path).transpose(Image.Transpose.ROTATE_270), SIDE, MAX_TILES)
    lying = load_image(path, SIDE, MAX_TILES)
    assert not torch.equal(upright, lying)
    for source in (path, str(path), Image.open(path), base64_of(path)):
        assert torch.equal(processor.image_processor(source)["pixel_values"], upright)


def moving_pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 40, 64, 3), dtype=np.uint8)


def moving_frames() -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in moving_pixels()]


FRAME_LISTS = {
    "images": lambda folder: moving_frames(),
    "arrays": lambda folder: list(moving_pixels()),
    "one array": lambda folder: moving_pixels(),
    "paths": lambda folder: sorted(folder.glob("*.png")),
    "paths as text": lambda folder: sorted(map(str, folder.glob("*.png"))),
    "a folder": lambda folder: folder,
}


@pytest.mark.parametrize("source", FRAME_LISTS)
def test_videos_may_come_as_frames(source, tmp_path, processor):
    for i, frame in enumerate(moving_frames()):
        frame.save(tmp_path / f"{i}.png")
    given = FRAME_LISTS[source](tmp_path)
    expected = torch.cat([load_image(frame, SIDE, 1) for frame in moving_frames()])
    messages = [user(video(given, num_frames=None), text("What?"))]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert torch.equal(inputs["pixel_values"], expected)
    assert inputs["clip_grid"].tolist() == [[3, 1, 1]] * 3
    prompt = processor.apply_chat_template(messages)
    for videos in () if "paths" in source else (given, [given]):  # a list of paths would be several videos
        again = processor(text=prompt, videos=videos, num_frames=None)
        assert torch.equal(again["input_ids"], inputs["input_ids"])
        assert torch.equal(again["pixel_values"], expected)


def test_listed_frames_are_all_taken_where_no_number_is_asked_for(processor):
    frames = moving_frames()
    for given in (frames, moving_pixels(), frames[:1]):
        inputs = processor.apply_chat_template([user(video(given))], tokenize=True, return_dict=True)
        assert inputs["clip_grid"].tolist() == [[len(given), 1, 1]] * len(given)
    inputs = processor.apply_chat_template(
        [user(video(frames, num_frames=2))], tokenize=True, return_dict=True
    )
    assert inputs["clip_grid"].tolist() == [[2, 1, 1]] * 2


# ---- options


def test_number_of_frames_is_the_blocks_then_the_calls_then_the_processors(processor):
    def frames(block, **options):
        inputs = processor.apply_chat_template([user(block)], tokenize=True, return_dict=True, **options)
        assert set(inputs["clip_grid"][:, 0].tolist()) == {len(inputs["clip_grid"])}
        return len(inputs["clip_grid"])

    assert frames(video()) == FRAMES
    assert frames(video(), num_frames=3) == 3
    assert frames(video(), processor_kwargs={"num_frames": 3}) == 3
    assert frames(video(), processor_kwargs={"videos_kwargs": {"num_frames": 3}}) == 3
    assert frames(video(num_frames=2), num_frames=3) == 2


def test_options_of_a_video_reach_its_reader(processor, monkeypatch):
    calls, read = [], processing_pvc.open_frames

    def recording(source, **options):
        calls.append((source, options))
        return read(source, num_frames=2)

    monkeypatch.setattr(processing_pvc, "open_frames", recording)
    own = {"fps": 2.0, "max_frames": 5, "start_s": 0.25, "end_s": 1.5, "backend": "pyav"}
    processor.apply_chat_template(
        [user(video(**own), video(), text("?"))], tokenize=True, fps=1.0, max_frames=7
    )
    processor(text="<video>", videos=VIDEO, **own)
    assert [source for source, _ in calls] == [VIDEO] * 3
    first, second, third = (options for _, options in calls)
    assert {name: first[name] for name in own} == own
    assert (second["fps"], second["max_frames"]) == (1.0, 7)
    assert second.keys().isdisjoint({"start_s", "end_s", "backend"})
    assert {name: third[name] for name in own} == own


def test_start_end_and_rate_of_a_video_choose_its_frames(processor):
    def tiles(**options):
        messages = [user(video(**options))]
        return processor.apply_chat_template(messages, tokenize=True, return_dict=True)["pixel_values"]

    whole, start, end = tiles(num_frames=8), tiles(num_frames=2, end_s=0.5), tiles(num_frames=2, start_s=1.0)
    assert not torch.equal(start, end)
    assert len(tiles(fps=4, max_frames=3)) == 3
    assert (len(tiles(fps=2)), len(tiles(fps=4))) == (6, 12)  # of 3 seconds
    assert len(whole) == 8


def test_times_of_frames_are_said_on_request(processor):
    messages = [user(video(num_frames=2), text("When?"))]
    ids = processor.apply_chat_template(messages, tokenize=True, frame_times=True)
    said = processor.decode(ids[0]).replace("<IMG_CONTEXT>", "")
    times = read_frames(VIDEO, num_frames=2).times_s
    assert times[0] != times[1]
    lines = "".join(f"Frame{i + 1} at {time:.1f}s: <img></img>\n" for i, time in enumerate(times))
    assert lines + "When?" in said
    with pytest.raises(ValueError, match="frame_times: .* have no times"):
        processor.image_processor.video(moving_frames(), frame_times=True)


def test_tiles_of_images_and_frames_can_be_limited(processor):
    pil_image, frame = image(OTHER), tiles_of(OTHER)[0]
    assert len(frame) > 1
    for limit in (1, 2, MAX_TILES):
        inputs = processor.apply_chat_template(
            [user(pil_image)], tokenize=True, return_dict=True, max_tiles=limit
        )
        assert torch.equal(inputs["pixel_values"], load_image(OTHER, SIDE, limit))
    wide = [Image.new("RGB", (200, 100))] * 2
    for limit, tiles in ((None, 1), (1, 1), (2, 3)):  # the thumbnail is one more
        clip = processor.image_processor.video(wide, num_frames=None, max_tiles=limit).clip
        assert clip[:3] == (2, tiles, 1)


def test_images_alone_and_text_alone_are_processed(processor):
    inputs = processor(images=[IMAGE, OTHER])
    assert set(inputs) == {"pixel_values", "clip_grid"}
    assert torch.equal(inputs["pixel_values"], torch.cat([tiles_of(IMAGE)[0], tiles_of(OTHER)[0]]))
    assert set(processor(text="What?")) == {"input_ids", "attention_mask"}
    assert processor(text="What?")["input_ids"].tolist() == [processor.tokenizer("What?").input_ids]
    without = processor(text="What?", add_special_tokens=False)["input_ids"].tolist()
    assert without == [processor.tokenizer("What?", add_special_tokens=False).input_ids]


def test_special_tokens_of_a_finished_prompt_count(processor):
    prompt = "<|im_start|>user\nWhat?<|im_end|><|im_start|>assistant\n"
    assert processor(text=prompt)["input_ids"].tolist() == [processor.tokenizer(prompt).input_ids]


def test_options_of_transformers_pipelines_and_servers_are_accepted(processor):
    plain = processor(text="What?")
    given = processor(text=["What?"], padding=True, return_tensors="pt", images=None, videos=None)
    assert torch.equal(plain["input_ids"], given["input_ids"])
    ids = processor.apply_chat_template([user("What?")], tokenize=True)
    for return_tensors in (None, "pt"):
        assert torch.equal(
            processor.apply_chat_template([user("What?")], tokenize=True, return_tensors=return_tensors), ids
        )


def test_unknown_options_are_named_in_the_log(processor, monkeypatch):
    said = []
    monkeypatch.setattr(processing_options.logger, "warning_once", said.append)
    processor(text="What?", do_rescale=True, images_kwargs={"size": 3})
    assert said and "do_rescale, size" in said[0]
