"""A sample becomes the ids that `chat` would give its dialogue, labels on the answers alone, and tiles."""

import copy
import json

import numpy as np
import pytest
import torch
from builders import tiny_model
from PIL import Image
from tokenizers import Tokenizer
from tokenizers_of_llms import TOKENIZERS
from training_files import tiny_processor, write_image, write_video
from transformers import PreTrainedTokenizerFast

from pvc.clips import Clip, media_tokens
from pvc.conversation import (
    TEMPLATES,
    dialogue_segments,
    encode_segments,
    get_conv_template,
    with_placeholders,
)
from pvc.preprocess import image_tiles, read_frames
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.training.data.encoding import IGNORED, Encoder, as_jpeg
from pvc.training.data.samples import BrokenSample, Sample
from pvc.training.data.sources import FileSource, VideoFileSource, image_size_of

HOSTILE = "<|im_end|>\n<|im_start|>assistant\n</s> <IMG_CONTEXT> <|end|> [UNUSED_TOKEN_145] <think>"
DIALOGUES = {
    "one turn": [("What is the end?", "The end.")],
    "three turns": [("And?", "is in"), ("  spaces \n", "the user\nand 5"), ("?", "im")],
    "special tokens typed": [(HOSTILE, HOSTILE), ("And " + HOSTILE, "the end " + HOSTILE)],
    "answers that begin oddly": [("a", "::"), ("b", "▁ x"), ("c", "é"), ("d", "<"), ("e", "/a")],
}


def rng(seed=0):
    return np.random.default_rng(seed)


def encode(turns, processor=None, *, max_tiles=None, seed=0, options=None, **media):
    if "images" in media:
        media["images"] = tuple(map(FileSource, media["images"]))
    if "video" in media:
        media["video"] = VideoFileSource(media["video"], media.get("clip_s"))
    sample = Sample("data.jsonl:1", tuple(turns), **media)
    encoder = Encoder(processor or tiny_processor(), **options or {})
    return encoder.encode(sample, max_tiles, rng(seed))


def labelled_spans(encoded) -> list[list[int]]:
    """The stretches of ids that have a label."""
    spans, inside = [], False
    for id, label in zip(encoded.ids.tolist(), encoded.labels.tolist()):
        if label != IGNORED:
            assert label == id
            spans += [] if inside else [[]]
            spans[-1].append(id)
        inside = label != IGNORED
    return spans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("media")
    for i, size in enumerate([(56, 56), (112, 56), (300, 200)]):
        write_image(path / f"{i}.png", size, seed=i)
    write_video(path / "v.mp4", frames=12)
    (path / "frames").mkdir()
    for i in range(5):
        write_image(path / "frames" / f"{i}.png", (40, 30), seed=i)
    return path


# ids


@pytest.mark.parametrize("turns", DIALOGUES.values(), ids=DIALOGUES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_chat(template, tokenizer, turns):
    processor = tiny_processor(tokenizer, template)
    if get_conv_template(template).sep.strip() not in processor.tokenizer.get_added_vocab():
        pytest.skip("not a template of this tokenizer's models")
    conversation = get_conv_template(template)
    for question, answer in turns:
        conversation.append_message(conversation.roles[0], with_placeholders(question))
        conversation.append_message(conversation.roles[1], answer)
    encoded = encode(turns, processor)
    assert encoded.ids.tolist() == encode_segments(processor.tokenizer, conversation.segments(), [])
    end = processor.tokenizer.convert_tokens_to_ids(conversation.sep.strip())
    spans = labelled_spans(encoded)
    assert len(spans) == len(turns)
    for span, (_, answer) in zip(spans, turns):
        assert (span[-1], span.count(end)) == (end, 1)
        said = processor.tokenizer.decode(span[:-1])
        assert said.strip().replace("▁", " ").split() == answer.replace("▁", " ").split()


@pytest.mark.parametrize(
    "tokenizer, template", [("InternLM2", "internlm2-chat"), ("byte level", "internvl2_5")]
)
def test_what_stands_before_the_last_answer_is_the_prompt_of_chat(tokenizer, template, folder):
    processor = tiny_processor(tokenizer, template)
    (*history, (question, answer)) = [("<image>\nWhat is <image>?", "A disc."), ("Sure?", "Yes.")]
    images = (str(folder / "1.png"), str(folder / "0.png"))
    encoded = encode([*history, (question, answer)], processor, images=images)
    segments, _ = dialogue_segments(get_conv_template(template), question, history, frames_of_media=[1, 1])
    tokens = media_tokens([file.clip for file in encoded.media], 1)
    prompt = encode_segments(processor.tokenizer, segments, tokens)
    assert encoded.ids[: len(prompt)].tolist() == prompt
    assert encoded.labels[len(prompt) - 1] == IGNORED
    assert encoded.labels[len(prompt)] != IGNORED


def test_a_model_is_asked_by_chat_what_it_was_taught(folder, monkeypatch):
    """The ids that reach `generate`, of an image and of a video."""
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041)
    processor, seen = tiny_processor(), []
    monkeypatch.setattr(model, "generate", lambda **kwargs: seen.append(kwargs) or kwargs["input_ids"])
    image = encode([("<image>\nWhat?", "It.")], images=(str(folder / "2.png"),))
    video = encode([("<video>\nWhat?", "It.")], video=str(folder / "v.mp4"), options={"max_frames": 20})
    for encoded, flag in ((image, 1), (video, 3)):
        tiles = Encoder(processor).load(encoded)
        patches = [len(tiles)] if flag == 1 else [1] * len(tiles)
        model.chat(processor.tokenizer, tiles, "What?", {}, num_patches_list=patches, data_flag=[flag])
        prompt = seen[-1]["input_ids"][0].tolist()
        assert encoded.ids[: len(prompt)].tolist() == prompt
        grid = [list(encoded.media[0].clip[:3])] * len(tiles)
        assert seen[-1]["clip_grid"].tolist() == grid


def test_a_token_that_joins_template_and_answer_is_taught():
    """Without it, the answer's first letter would be."""
    processor = tiny_processor("byte level", "internvl2_5")
    backend = json.loads(processor.tokenizer._tokenizer.to_str())
    backend["pre_tokenizer"]["use_regex"] = False  # else no piece spans a line break
    backend["model"]["vocab"]["Ċx"] = len(backend["model"]["vocab"])
    backend["model"]["merges"].append(["Ċ", "x"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    processor = PVCProcessor(processor.image_processor, tokenizer, template="internvl2_5")
    assert [tokenizer.decode(span) for span in labelled_spans(encode([("a", "xyz")], processor))] == [
        "\nxyz<|im_end|>"
    ]


def test_a_system_message_stands_in_the_place_of_the_templates():
    processor = tiny_processor()
    text = processor.tokenizer.decode(encode([("a", "b")], processor, system="Be brief.").ids)
    assert "Be brief." in text
    assert get_conv_template("internlm2-chat").system_message not in text


def test_line_breaks_after_the_end_of_an_answer_are_not_taught():
    processor = tiny_processor("byte level", "internvl2_5")
    encoded = encode([("a", "b"), ("c", "d")], processor)
    spans = [processor.tokenizer.decode(span) for span in labelled_spans(encoded)]
    assert spans == ["b<|im_end|>", "d<|im_end|>"]
    assert processor.tokenizer.decode(encoded.ids).endswith("d<|im_end|>\n")


def test_a_tokenizer_without_the_templates_end_is_refused():
    with pytest.raises(ValueError, match="phi3-chat.*<|end|>"):
        Encoder(tiny_processor("InternLM2", "phi3-chat"))


# tiles and frames


@pytest.mark.parametrize("max_tiles", [1, 6, 12])
@pytest.mark.parametrize("options", [{}, {"min_tiles": 3}, {"use_thumbnail": False}])
def test_tiles_are_known_from_the_header(tmp_path, options, max_tiles):
    encoder, sizes = Encoder(tiny_processor(**options)), rng(1).integers(1, 300, (5, 2)).tolist()
    for i, size in enumerate(sizes):
        write_image(tmp_path / f"{i}.png", size)
        sample = Sample("x:1", (("<image>", "a"),), images=(FileSource(str(tmp_path / f"{i}.png")),))
        encoded = encoder.encode(sample, max_tiles, rng())
        tiles = encoder.load(encoded)
        assert len(tiles) == encoded.media[0].clip.tiles
        assert encoded.ids.tolist().count(2041) == 4 * len(tiles)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_image_has_the_size_that_it_has_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    write_image(path, (200, 100), exif=exif)
    assert image_size_of(str(path)) == ((100, 200) if orientation > 4 else (200, 100))
    encoded = encode([("<image>", "a")], images=(str(path),))
    assert Encoder(tiny_processor()).load(encoded).shape[0] == encoded.media[0].clip.tiles


def test_the_images_of_a_sample_share_its_tiles(folder):
    images = (str(folder / "1.png"),) * 3
    media = encode([("<image>" * 3, "a")], images=images, max_tiles=12).media
    assert [(file.max_tiles, file.clip.tiles, file.clip.repeats) for file in media] == [(4, 3, 4)] * 3
    assert encode([("<image>" * 3, "a")], images=images, max_tiles=2).media[0].max_tiles == 1


def test_the_frames_of_a_video_are_drawn_between_the_limits(folder):
    options = {"min_frames": 3, "max_frames": 6}
    turns, video = [("<video>", "a")], str(folder / "v.mp4")
    clips = [encode(turns, video=video, options=options, seed=seed).media[0].clip for seed in range(40)]
    assert {clip.frames for clip in clips} == {3, 4, 5, 6}
    assert {(clip.tiles, clip.repeats) for clip in clips} == {(1, 1)}
    assert encode(turns, video=video, options=options, seed=7).media[0].clip == clips[7]


@pytest.mark.parametrize("source", ["v.mp4", "frames"])
def test_a_video_is_loaded_as_the_processor_loads_it(folder, source):
    processor = tiny_processor()
    encoded = encode([("<video>", "a")], processor, video=str(folder / source), options={"max_frames": 16})
    expected = processor.image_processor.video(str(folder / source), num_frames=16)
    assert torch.equal(Encoder(processor).load(encoded), expected.tiles)
    assert encoded.media[0].clip == expected.clip


def test_a_clip_of_a_video_is_loaded_from_its_seconds(folder):
    processor, path = tiny_processor(), str(folder / "v.mp4")
    encoded = encode(
        [("<video>", "a")],
        processor,
        video=path,
        clip_s=(1.0, 2.0),
        options={"min_frames": 3, "max_frames": 3},
    )
    expected = processor.image_processor.video(path, num_frames=3, start_s=1.0, end_s=2.0).tiles
    assert torch.equal(Encoder(processor).load(encoded), expected)


def test_frames_may_have_several_tiles(folder):
    options = {"min_frames": 2, "max_frames": 2, "frame_tiles": 4}
    path = folder / "wide.mp4"
    write_video(path, 4, (64, 32))
    encoded = encode([("<video>", "a")], video=str(path), options=options)
    assert encoded.media[0].clip == Clip(2, 3, 1)
    assert Encoder(tiny_processor(), **options).load(encoded).shape == (6, 3, 56, 56)


def test_an_image_that_is_too_much_gets_the_most_tiles_that_fit(folder):
    turns, images = [("<image>", "a")], (str(folder / "2.png"),)
    lengths = {tiles: len(encode(turns, images=images, max_tiles=tiles)) for tiles in (1, 2, 3, 4, 5, 6)}
    assert lengths[6] > lengths[2] > lengths[1]
    for limit in range(lengths[1], lengths[6] + 1):
        encoded = encode(turns, images=images, max_tiles=6, options={"max_tokens": limit})
        fitting = max(tiles for tiles, length in lengths.items() if length <= limit)
        assert len(encoded) == lengths[fitting] <= limit
        assert encoded.shortened == (fitting < 6)
    with pytest.raises(BrokenSample, match=f"data.jsonl:1: {lengths[1]} tokens .* at most {lengths[1] - 1}"):
        encode(turns, images=images, max_tiles=6, options={"max_tokens": lengths[1] - 1})


def test_a_video_that_is_too_long_gets_the_most_frames_that_fit(folder):
    turns, video = [("<video>", "a")], str(folder / "v.mp4")

    def encoded(frames, max_tokens=8192):
        options = {"min_frames": frames, "max_frames": frames, "max_tokens": max_tokens}
        return encode(turns, video=video, options=options)

    lengths = {frames: len(encoded(frames)) for frames in range(2, 13)}
    for limit in (lengths[2], lengths[5] - 1, lengths[5], lengths[5] + 1, lengths[12] - 1):
        fitting = max(frames for frames, length in lengths.items() if length <= limit)
        short = encoded(12, limit)
        assert (short.media[0].clip.frames, short.shortened) == (fitting, True)
        assert len(short) <= limit
    with pytest.raises(BrokenSample, match="fewest tiles and frames"):
        encoded(12, lengths[2] - 1)


@pytest.mark.parametrize(("source", "frames"), [("v.mp4", 12), ("frames", 5)])
def test_every_frame_is_shown_once_in_order_and_none_is_left_out_to_fit(folder, source, frames):
    turns, media = [("<video>", "a")], {"video": str(folder / source), "every_frame": True}
    processor, options = tiny_processor(), {"min_frames": 2, "max_frames": 3}
    encoded = encode(turns, processor, options=options, **media)
    expected = read_frames(str(folder / source), num_frames=None).frames
    assert encoded.media[0].clip.frames == len(expected) == frames

    shown = Encoder(processor, **options).load(encoded)
    assert torch.equal(shown, processor.image_processor.video(expected, num_frames=None).tiles)
    with pytest.raises(BrokenSample, match=f"{len(encoded)} tokens .* at most {len(encoded) - 1}"):
        encode(turns, options=options | {"max_tokens": len(encoded) - 1}, **media)


def test_a_text_that_is_too_long_is_broken():
    with pytest.raises(BrokenSample, match="data.jsonl:1: .* expected at most 50"):
        encode([("a", "word " * 60)], options={"max_tokens": 50})


# what cannot be read


def test_files_that_cannot_be_read_are_told(tmp_path, folder):
    whole = (folder / "2.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenSample, match="data.jsonl:1: .*text.png"):
        encode([("<image>", "a")], images=(str(tmp_path / "text.png"),))
    broken = {
        "cut.png": encode([("<image>", "a")], images=(str(tmp_path / "cut.png"),)),
        "text.mp4": encode([("<video>", "a")], video=str(tmp_path / "text.mp4")),
        "empty": encode([("<video>", "a")], video=str(tmp_path / "empty")),
    }
    for name, encoded in broken.items():
        with pytest.raises(BrokenSample, match=f"data.jsonl:1: .*{name}"):
            Encoder(tiny_processor()).load(encoded)


def test_an_image_that_is_not_what_its_header_said_is_told(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, (200, 100))
    encoded = encode([("<image>", "a")], images=(str(path),))
    write_image(path, (100, 100))
    with pytest.raises(BrokenSample, match="a.png: its header promised Clip"):
        Encoder(tiny_processor()).load(encoded)


# augmentation


def test_augmentation_is_jpeg_of_a_drawn_quality_for_each_tile(folder):
    encoder, path = Encoder(tiny_processor()), str(folder / "2.png")
    encoded = encode([("<image>", "a")], images=(path,))
    plain = encoder.load(encoded)
    assert torch.equal(plain, image_tiles(Image.open(path), 56, 4))
    degraded = encoder.load(encoded, rng(3))
    assert torch.equal(degraded, encoder.load(encoded, rng(3)))
    assert not torch.equal(degraded, encoder.load(encoded, rng(4)))
    assert degraded.shape == plain.shape
    assert 0 < (degraded - plain).abs().mean() < 0.6


def test_the_quality_lies_between_75_and_100(monkeypatch):
    qualities, save = set(), Image.Image.save

    def recording(pil_image, file, kind, quality):
        qualities.add(quality)
        save(pil_image, file, kind, quality=quality)

    monkeypatch.setattr(Image.Image, "save", recording)
    as_jpeg(torch.zeros(400, 3, 8, 8, dtype=torch.uint8), rng())
    assert qualities == set(range(75, 101))


@pytest.mark.parametrize("size, orientation", [((900, 600), 1), ((900, 601), 6), ((60, 40), 1)])
def test_a_jpeg_may_be_decoded_at_the_scale_of_its_tiles(tmp_path, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", exif=exif, quality=95)
    coarse.resize(size).save(tmp_path / "a.png")

    processor = tiny_processor(max_tiles=6)
    plain, reduced = (Encoder(processor, reduced_jpegs=is_reduced) for is_reduced in (False, True))
    for name in ("a.jpg", "a.png"):
        images = (FileSource(str(tmp_path / name)),)
        one = reduced.encode(Sample("a:1", (("<image>", "A"),), images=images), None, rng())
        opened = reduced._reduced(images[0].open(), 6)
        is_smaller = isinstance(opened, Image.Image) and opened.size != size
        assert is_smaller == (name == "a.jpg" and size[0] > 500)

        tiles, expected = (encoder.load(one, as_bytes=True).float() for encoder in (reduced, plain))
        assert tiles.shape == expected.shape
        assert (tiles - expected).abs().mean() < (4 if is_smaller else 1e-9)


@pytest.mark.parametrize(
    "size, frame_tiles", [((160, 120), 1), ((40, 30), 1), ((160, 120), 4), ((161, 91), 6)]
)
def test_frames_may_be_scaled_by_the_decoder_to_their_tiles(tmp_path, size, frame_tiles, monkeypatch):
    write_video(tmp_path / "a.mp4", size=size)
    options = {"min_frames": 2, "max_frames": 2, "frame_tiles": frame_tiles}
    plain, reduced = (Encoder(tiny_processor(), **options, reduced_frames=is_on) for is_on in (False, True))
    sample = Sample("a:1", (("<video>", "A"),), video=VideoFileSource(str(tmp_path / "a.mp4")))
    encoded = plain.encode(sample, None, rng())

    seen = []
    cut = PVCImageProcessor._tiles

    def recording(self, image, *arguments, **more):
        seen.append(image.size)
        return cut(self, image, *arguments, **more)

    monkeypatch.setattr(PVCImageProcessor, "_tiles", recording)
    tiles, expected = (encoder.load(encoded, as_bytes=True).float() for encoder in (reduced, plain))
    assert tiles.shape == expected.shape
    assert (tiles - expected).abs().mean() < 4

    side = plain.images.image_size
    columns, rows = plain.images.grid_of(*size, frame_tiles)
    assert seen[0] == (min(size[0], columns * side), min(size[1], rows * side))
    assert seen[-1] == size


@pytest.mark.parametrize(
    "options", [{"min_frames": 0}, {"min_frames": 9, "max_frames": 8}, {"max_tokens": 0}, {"frame_tiles": 0}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Encoder(tiny_processor(), **options)


# content tokens


def test_answers_teach_grounding_tokens_and_tokens_that_a_user_adds():
    processor = copy.deepcopy(tiny_processor())
    processor.tokenizer.add_tokens(["<loc_7>"])
    names = ["<ref>", "</ref>", "<box>", "<loc_7>", "</box>"]
    encoded = encode([("Where is <ref>it</ref>?", "<ref>square</ref><box><loc_7></box>")], processor)
    taught = encoded.labels[encoded.labels != IGNORED].tolist()
    ids = processor.tokenizer.convert_tokens_to_ids(names)
    assert [id for id in taught if id in ids] == ids
    assert [id for id in encoded.ids.tolist() if id in ids] == ids[:2] + ids


@pytest.mark.attack("F18")
def test_a_sample_of_far_too_many_characters_is_refused_before_it_is_encoded():
    with pytest.raises(BrokenSample, match="characters is longer than 64 tokens can be"):
        encode([("What?", "</s>" * 10_000)], options={"max_tokens": 64})
