"""`MediaPolicy`: its fields, and what it allows of files, base64, bytes and time."""

import base64
import time

import pytest
from attacks import ask, within
from media_files import png, write_video
from PIL import Image

from pvc.media_policy import Budget, MediaPolicy, MediaRefused
from pvc.processing_pvc import PVCProcessor

# ---- the policy


def test_a_policy_that_is_none_names_the_field():
    for wrong in (
        {"max_bytes": 0},
        {"max_pixels": "1"},
        {"max_frames": True},
        {"max_tiles": 1.5},
        {"deadline_s": 0},
        {"max_duration_s": "x"},
        {"files": 3},
        {"files": True},
        {"hosts": "a.example"},
        {"hosts": 3},
        {"hosts": [3]},
        {"backends": ()},
        {"backends": ("opencv",)},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            MediaPolicy(**wrong)


def test_a_processor_takes_a_policy_alone_and_saves_none(tmp_path, processor):
    for wrong in (None, {}, "untrusted"):
        with pytest.raises(ValueError, match="media_policy="):
            processor.media_policy = wrong
    processor.media_policy = MediaPolicy.untrusted(max_frames=5)
    assert processor.image_processor.media_policy.max_frames == 5
    processor.save_pretrained(tmp_path)
    assert not any("policy" in file.read_text() for file in tmp_path.glob("*.json"))
    loaded = PVCProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert vars(loaded.media_policy) == vars(MediaPolicy())
    loaded.media_policy = MediaPolicy.untrusted()
    assert vars(loaded.media_policy) == vars(MediaPolicy.untrusted())


@pytest.mark.attack("F1", "F2")
def test_strangers_read_no_files_and_learn_nothing_of_them(tmp_path, processor):
    processor.media_policy = MediaPolicy.untrusted()
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    for kind in ("image", "video"):
        messages = set()
        for name in ("there.png", "missing.png", ""):
            for source in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}", tmp_path / name):
                error = within(5, ask, processor, {"type": kind, kind: source})
                assert isinstance(error, MediaRefused)
                messages.add(str(error).replace("there", "").replace("missing", "").replace(".png", ""))
        assert len({message.partition(":")[2][-60:] for message in messages}) <= 2
    for source in (
        [str(tmp_path / "there.png")],
        [tmp_path / "there.png"],
        {"bytes": None, "path": str(tmp_path)},
    ):
        with pytest.raises(MediaRefused):
            ask(processor, {"type": "video", "video": source})
    content = base64.b64encode((tmp_path / "there.png").read_bytes()).decode()
    for source in (content, f"data:image/png;base64,{content}"):
        assert ask(processor, {"type": "image", "image": source})["clip_grid"].shape[0] == 1


@pytest.mark.attack("F1", "F2")
def test_a_policy_of_a_folder_gives_what_is_in_it_and_nothing_else(tmp_path, processor):
    folder = tmp_path / "media"
    (folder / "frames").mkdir(parents=True)
    for path in (
        folder / "in.png",
        folder / "frames" / "1.png",
        tmp_path / "out.png",
        tmp_path / "mediaout.png",
    ):
        Image.new("RGB", (8, 8)).save(path)
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "frames" / "2.png").symlink_to(tmp_path / "out.png")
    processor.media_policy = MediaPolicy(files=folder)
    for source in (
        "in.png",
        f"{folder}/in.png",
        f"file://{folder}/in.png",
        folder / "in.png",
        "frames/../in.png",
    ):
        assert ask(processor, {"type": "image", "image": source})["clip_grid"].shape[0] == 1
    assert ask(processor, {"type": "video", "video": ["in.png"]})["clip_grid"].shape[0] == 1
    for source in (
        "../out.png",
        f"{tmp_path}/out.png",
        "link.png",
        "../mediaout.png",
        "/etc/hostname",
        f"file://{tmp_path}/out.png",
    ):
        with pytest.raises(MediaRefused, match="not in the folder"):
            ask(processor, {"type": "image", "image": source})
        with pytest.raises(MediaRefused, match="not in the folder"):
            ask(processor, {"type": "video", "video": [source]})
    with pytest.raises(MediaRefused, match="not in the folder"):
        ask(processor, {"type": "video", "video": "frames"})
    for kind in ("image", "video"):
        with pytest.raises(FileNotFoundError) as missing:
            ask(processor, {"type": kind, kind: "none.png"})
        assert str(tmp_path) not in str(missing.value)


@pytest.mark.attack("F1", "F2")
@pytest.mark.parametrize("source", ["f 1", "./f 1", "file:f 1", "file:f%201"])
def test_files_of_a_folder_are_named_as_the_message_names_the_folder(source, tmp_path, processor):
    (tmp_path / "f 1").mkdir()
    damaged = tmp_path / "f 1" / "100%25.png"
    processor.media_policy = MediaPolicy(files=tmp_path)
    for content in (b"x", png()):
        damaged.write_bytes(content)
        if content == png():
            assert ask(processor, {"type": "video", "video": source})["clip_grid"].shape[0] == 4
            continue
        with pytest.raises(OSError, match="cannot be read") as error:
            ask(processor, {"type": "video", "video": source})
        assert source in str(error.value) and str(tmp_path) not in str(error.value)


@pytest.mark.attack("F5")
@pytest.mark.parametrize("content", ["abc", 5, 0, [1], {"a": 1}])
def test_bytes_of_a_message_that_are_none_are_a_value_error(content, processor):
    for kind in ("image", "video"):
        with pytest.raises(ValueError, match="'bytes' of a dict"):
            ask(processor, {"type": kind, kind: {"bytes": content, "path": "a.png"}})


def test_reading_ends_at_the_deadline(tmp_path, images):
    path = write_video(tmp_path / "a.mp4")
    budget = Budget(MediaPolicy(deadline_s=0.01))
    time.sleep(0.02)
    for read, source in ((images.video, path), (images.image, Image.new("RGB", (8, 8)))):
        with pytest.raises(MediaRefused, match="more than 0.01 seconds"):
            read(source, budget=budget)


def test_base64_is_no_longer_than_the_policy_allows(images):
    budget = Budget(MediaPolicy(max_bytes=1000))
    with pytest.raises(MediaRefused, match="more than 1000 bytes"):
        images.image(base64.b64encode(bytes(2000)).decode(), budget=budget)
    with pytest.raises(MediaRefused, match="more than 1000 bytes"):
        images.image({"bytes": bytes(2000), "path": None}, budget=budget)
