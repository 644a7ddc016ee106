"""InternVL's meta JSON and JSONL files are read as people have them, and what is wrong in them is told."""

import json
import logging
import os

import pytest
from PIL import Image
from training_files import dialogue, write_image, write_meta

from pvc.training.data.meta import read_meta
from pvc.training.data.samples import KINDS, BrokenSample, parse
from pvc.training.data.sources import FileSource, VideoFileSource

TEXT = dialogue("Say it", "It.")


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    (tmp_path / "c.mp4").touch()
    return tmp_path


def read_one(folder, record):
    (data_set,) = read_meta(write_meta(folder, one=[{}, record]))
    return data_set.read(0)


def test_the_fields_of_a_meta_json_are_those_of_internvl(folder):
    fields = {"repeat_time": 0.5, "data_augment": True, "max_dynamic_patch": 6, "length": 1}
    one, two = read_meta(write_meta(folder, one=[fields, TEXT], two=[{}, TEXT, TEXT]))
    assert (one.name, one.repeat_time, one.augment, one.max_tiles, one.length) == ("one", 0.5, True, 6, 1)
    assert (two.repeat_time, two.augment, two.max_tiles, two.length) == (1, False, None, None)
    assert (len(one), len(two)) == (1, 2)


@pytest.mark.parametrize("image, names", [("a.png", ["a.png"]), (["b.png", "a.png"], ["b.png", "a.png"])])
def test_an_image_is_a_path_or_a_list_of_paths_under_the_root(folder, image, names):
    record = dialogue("<image>" * len(names), "Yes.", image=image)
    assert read_one(folder, record).images == tuple(FileSource(str(folder / name)) for name in names)


def test_a_video_may_have_a_clip_in_seconds(folder):
    sample = read_one(folder, dialogue("<video>\nWhat?", "That.", video="c.mp4", clip=[1, 2.5]))
    video = VideoFileSource(str(folder / "c.mp4"), (1.0, 2.5))
    assert (sample.video, sample.clip_s, sample.images) == (video, (1.0, 2.5), ())


@pytest.mark.parametrize("nothing", [{}, {"image": ""}, {"image": []}, {"image": None}, {"video": ""}])
def test_without_media_a_sample_is_text_alone(folder, nothing):
    sample = read_one(folder, TEXT | nothing)
    assert (sample.images, sample.video, sample.turns) == ((), None, (("Say it", "It."),))


def test_a_system_message_comes_first_and_answers_are_stripped(folder):
    record = dialogue("One", " first \n", "Two", "second")
    record["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    sample = read_one(folder, record)
    assert sample.system == "Be brief."
    assert sample.turns == (("One", "first"), ("Two", "second"))


def test_placeholders_that_were_left_out_come_before_the_first_question(folder):
    one = read_one(folder, dialogue("What?", "It.", "Sure?", "Yes.", image="a.png"))
    assert [question for question, _ in one.turns] == ["<image>\nWhat?", "Sure?"]
    two = read_one(folder, dialogue("", "Two.", image=["a.png", "b.png"]))
    assert two.turns[0][0] == "<image>\n<image>\n"
    assert read_one(folder, dialogue("What?", "It.", video="c.mp4")).turns[0][0] == "<video>\nWhat?"


def test_a_placeholder_may_stand_in_a_later_question(folder):
    record = dialogue("Hello", "Hi.", "And <image>?", "A disc.", image="a.png")
    assert read_one(folder, record).turns[0][0] == "Hello"


def test_what_answers_and_text_alone_say_of_media_is_text(folder):
    assert read_one(folder, dialogue("Use <video> in HTML", "Write <image> and <video>."))


def said(*roles):
    return {"conversations": [{"from": role, "value": "Some text"} for role in roles]}


BROKEN = {
    "no JSON": ('{"image": ', "Expecting value"),
    "no object": ("[1, 2]", "expected an object"),
    "no conversations": ({"image": "a.png"}, "conversations is None"),
    "an empty conversation": ({"conversations": []}, "at least one"),
    "a message without a value": ({"conversations": [{"from": "human"}]}, "message 0 is"),
    "a value that is no text": ({"conversations": [{"from": "human", "value": 3}]}, "message 0 is"),
    "an unknown role": (said("human", "observation"), "'observation'"),
    "a question without an answer": (said("human", "gpt", "human"), "gpt last"),
    "two questions in a row": (said("human", "human", "gpt"), "in turn"),
    "an answer first": (said("gpt", "human"), "in turn"),
    "a system message alone": (said("system"), "roles are"),
    "a system message later": (said("human", "system", "human", "gpt"), "in turn"),
    "an empty answer": (dialogue("What?", "It.", "And?", " \n"), "answer 2 is empty"),
    "an empty question": (dialogue(" ", "It."), "question 1 is empty"),
    "a missing image": (dialogue("<image>", "It.", image="no.png"), "no such file: "),
    "a missing video": (dialogue("<video>", "It.", video="no.mp4"), "no such file: "),
    "too many placeholders": (dialogue("<image><image>", "It.", image="a.png"), "2 <image> placeholders"),
    "too few placeholders": (dialogue("<image>", "It.", image=["a.png", "b.png"]), "1 <image> placeholders"),
    "a placeholder without image": (dialogue("<image>", "It."), "but 0 such media"),
    "an image in a video": (dialogue("<video> <image>", "It.", video="c.mp4"), "1 <image> placeholders"),
    "a video twice": (dialogue("<video>", "It.", "<video>", "It.", video="c.mp4"), "2 <video> placeholders"),
    "image and video": (dialogue("<image>", "It.", image="a.png", video="c.mp4"), "one of them"),
    "an image that is no path": (dialogue("<image>", "It.", image=[1]), "image is [1]"),
    "a video that is no path": (dialogue("<video>", "It.", video=["c.mp4"]), "video is ['c.mp4']"),
    "media under another key": (TEXT | {"images": ["a.png"]}, "'images': media are expected in 'image'"),
    "a video under another key": (dialogue("<video>\nx", "It.", videos=["c.mp4"]), "'videos': media are exp"),
    "a path under another key": (TEXT | {"image_path": "a.png"}, "'image_path': media are expected"),
    "a video's placeholder alone": (
        dialogue("<video>\nWhat?", "It."),
        "<video>, but the sample has no 'video'",
    ),
    "a video's placeholder last": (dialogue("What?\n<video>", "It.", image="a.png"), "has no 'video'"),
    "JSON that is nested too deeply": ('{"conversations": ' + "[" * 100_000, "RecursionError"),
    "a time too large": (
        json.dumps(dialogue("<video>", "It.", video="c.mp4"))[:-1] + ', "clip": [0, 1' + "0" * 400 + "]}",
        "OverflowError",
    ),
    "a clip that is none": (dialogue("<video>", "It.", video="c.mp4", clip=[1]), "clip is [1]"),
    "every frame by another word": (
        dialogue("<video>", "It.", video="c.mp4", every_frame="yes"),
        "every_frame is 'yes': expected true or false",
    ),
}


@pytest.mark.attack("F20")
@pytest.mark.parametrize("line, why", BROKEN.values(), ids=BROKEN)
def test_a_broken_sample_is_told_with_its_file_and_line(folder, line, why):
    (data_set,) = read_meta(write_meta(folder, one=[{}, TEXT, "", line, TEXT]))
    assert len(data_set) == 3  # blank lines are none
    with pytest.raises(BrokenSample) as error:
        data_set.read(1)
    assert error.value.where == f"{folder / 'one.jsonl'}:3"
    assert why in error.value.why
    assert data_set.read(2).turns == (("Say it", "It."),)


def test_a_line_that_is_no_utf8_is_broken(folder):
    (data_set,) = read_meta(write_meta(folder, one=[{}, TEXT]))
    (folder / "one.jsonl").write_bytes(b'{"conversations": "\xff"}\n')
    with pytest.raises(BrokenSample, match="one.jsonl:1: .*codec"):
        data_set.read(0)


def test_the_kind_of_a_line_is_known_without_reading_it(folder):
    records = [
        dialogue('What does "image": "x" mean?', '{"video": "y"}'),
        dialogue("<image>", "It.", image="a.png"),
        dialogue("<image><image>", "It.", image=["a.png", "b.png"], video=None),
        dialogue("<video>", "It.", image="", video="c.mp4"),
        TEXT | {"image": []},
    ]
    (data_set,) = read_meta(write_meta(folder, one=[{}, *records]))
    assert [KINDS[kind] for kind in data_set.lines.kinds] == ["text", "image", "image", "video", "text"]


@pytest.mark.parametrize("where", ["working directory", "folder of the meta JSON"])
def test_relative_paths_count_from_the_working_directory_or_the_meta_json(folder, where, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "sub" / "one.jsonl").write_text(json.dumps(dialogue("<image>", "It.", image="a.png")))
    (folder / "meta.json").write_text(json.dumps({"one": {"root": ".", "annotation": "sub/one.jsonl"}}))
    if where == "working directory":
        monkeypatch.chdir(folder)
        meta = "meta.json"
    else:
        monkeypatch.chdir(folder.parent)
        meta = os.path.join(folder.name, "meta.json")
    (data_set,) = read_meta(meta)
    assert os.path.samefile(data_set.read(0).images[0].path, folder / "a.png")


@pytest.mark.parametrize(
    "meta, why",
    [
        ("{", "is not JSON"),
        ("[]", "expected a JSON object"),
        ('{"conversations": []}\n{"conversations": []}\n', "is an annotation, a JSON object on each line"),
        ('{"conversations": []}\n', "is an annotation of one line: expected a meta JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"one": 1}', "'one' is 1"),
        ('{"one": {}}', "annotation None"),
        ('{"one": {"annotation": "META", "repeat_time": -1}}', "repeat_time -1"),
        ('{"one": {"annotation": "META", "repeat_time": "2"}}', "repeat_time '2'"),
        ('{"one": {"annotation": "META", "data_augment": "no"}}', "data_augment 'no'"),
        ('{"one": {"annotation": "META", "max_dynamic_patch": 0}}', "max_dynamic_patch 0"),
        ('{"one": {"annotation": "META", "root": 1}}', "root 1"),
    ],
)
def test_a_wrong_meta_json_is_told_with_its_data_set_and_field(tmp_path, meta, why):
    path = tmp_path / "meta.json"
    path.write_text(meta.replace("META", str(path)))
    with pytest.raises(ValueError, match="meta.json") as error:
        read_meta(path)
    assert why in str(error.value)


def test_a_missing_annotation_is_told(tmp_path):
    (tmp_path / "meta.json").write_text('{"one": {"annotation": "no.jsonl"}}')
    with pytest.raises(FileNotFoundError, match="'one' has annotation 'no.jsonl'"):
        read_meta(tmp_path / "meta.json")


def warnings_of(folder, caplog, *records, fields=None) -> list[str]:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        (data_set,) = read_meta(write_meta(folder, one=[fields or {}, *records]))
        for index in range(len(data_set)):
            data_set.read(index)
    finally:
        logger.removeHandler(caplog.handler)
    return [record.getMessage() for record in caplog.records]


def test_keys_beside_media_that_name_more_are_told_once_for_a_data_set(folder, caplog):
    record = dialogue("<image>", "It.", image="a.png", images=["b.png"], task="caption")
    (warning,) = warnings_of(folder, caplog, record, record)
    assert "one has images, which mean nothing here" in warning and "one.jsonl:1" in warning


@pytest.mark.attack("F21")
def test_codes_in_keys_do_not_reach_the_terminal_by_a_warning(folder, caplog):
    codes = "\x1b]0;evil\x07\n"
    record = dialogue("<image>", "It.", **{"image": "a.png", f"images{codes}": ["b.png"]})
    warnings = warnings_of(folder, caplog, record, fields={f"key{codes}": 1})
    assert len(warnings) == 2
    assert not any(sign in text for text in warnings for sign in "\x1b\x07\n")


@pytest.mark.parametrize(
    "fields",
    [{"id": 3}, {"task": "x"}, {"image_id": "a"}, {"num_frames": 0}, {"image_size": [3, 4]}, {"images": []}],
)
def test_keys_that_name_no_media_are_let_be(folder, caplog, fields):
    assert warnings_of(folder, caplog, TEXT | fields) == []


def test_media_of_a_record_are_found_in_a_list_of_folders(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Black."}]
    record = {"image": "a.png", "conversations": turns}
    (image,) = parse(record, ["elsewhere", str(tmp_path)], "line 1").images
    assert image.size() == (8, 8)
