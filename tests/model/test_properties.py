"""Properties of any input, drawn by hypothesis: grids of tiles, the choice of frames, the grouping of media,
places of media in a prompt, padding.
"""

import io

import av
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers_of_llms import byte_level_tokenizer

from pvc.clips import (
    Clip,
    ClipLayout,
    clip_grid_of,
    clip_rows,
    clips_of_grid,
    media_tokens,
    released_clips,
)
from pvc.conversation import (
    GROUNDING_TOKENS,
    TEMPLATES,
    Segment,
    dialogue_segments,
    encode_segments,
    get_conv_template,
    pad,
    video_segments,
    with_placeholders,
)
from pvc.preprocess import dynamic_preprocess, get_index, image_tiles, read_frames

settings.register_profile("tests", derandomize=True, max_examples=60, deadline=None, database=None)
settings.load_profile("tests")

# ---- grids of tiles

SIZES = st.integers(1, 400)
LIMITS = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(sorted)
SIDE = 8


def number_each_pixel(width: int, height: int) -> Image.Image:
    """An image whose red grows to the right and whose green grows downwards."""
    columns = np.linspace(0, 255, width).astype(np.uint8)
    rows = np.linspace(0, 255, height).astype(np.uint8)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = columns[None, :], rows[:, None]
    return Image.fromarray(pixels)


def grids_within(least: int, most: int) -> list[tuple[int, int]]:
    sides = range(1, most + 1)
    return [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]


def joined(tiles: list[Image.Image], columns: int) -> Image.Image:
    image = Image.new("RGB", (columns * SIDE, len(tiles) // columns * SIDE))
    for i, tile in enumerate(tiles):
        image.paste(tile, (i % columns * SIDE, i // columns * SIDE))
    return image


@given(SIZES, SIZES, LIMITS)
def test_tiles_put_together_are_the_image_in_a_grid_closest_to_its_shape(width, height, limits):
    least, most = limits
    image = number_each_pixel(width, height)
    tiles = dynamic_preprocess(image, least, most, SIDE)
    assert least <= len(tiles) <= most
    assert {tile.size for tile in tiles} == {(SIDE, SIDE)}

    def distance(columns, rows):
        return abs(width / height - columns / rows)

    closest = min(distance(*grid) for grid in grids_within(least, most))
    fitting = [grid for grid in grids_within(least, most) if grid[0] * grid[1] == len(tiles)]
    shown = [
        (columns, rows)
        for columns, rows in fitting
        if joined(tiles, columns).tobytes()
        == image.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC).tobytes()
    ]
    assert closest in [distance(*grid) for grid in shown]


@given(SIZES, SIZES, LIMITS, st.booleans())
def test_a_thumbnail_is_one_tile_more_and_only_where_there_are_several(width, height, limits, use_thumbnail):
    least, most = limits
    image = number_each_pixel(width, height)
    tiles = image_tiles(image, SIDE, most, least, use_thumbnail)
    plain = image_tiles(image, SIDE, most, least, False)
    has_thumbnail = use_thumbnail and len(plain) > 1
    assert tiles.shape == (len(plain) + has_thumbnail, 3, SIDE, SIDE)
    assert torch.equal(tiles[: len(plain)], plain)
    if has_thumbnail:
        assert torch.equal(tiles[-1:], image_tiles(image, SIDE, 1))


# ---- the choice of frames


@given(st.integers(0, 5000), st.floats(1, 120), st.integers(1, 100))
def test_frames_of_a_whole_video_rise_within_its_bounds(max_frame, fps, num_segments):
    indices = get_index(None, fps, max_frame, num_segments=num_segments)
    assert len(indices) == num_segments
    assert indices.tolist() == sorted(indices)
    assert indices[0] >= 0 and indices[-1] <= max_frame


@given(st.integers(1, 5000), st.floats(1, 120), st.integers(1, 100), st.floats(0, 1), st.floats(0, 1.5))
def test_frames_between_two_times_rise_within_them(max_frame, fps, num_segments, start, end):
    start_s, end_s = (share * max_frame / fps for share in sorted([start, end]))
    assume(start_s * fps <= max_frame)
    indices = get_index((start_s, end_s), fps, max_frame, num_segments=num_segments)
    assert indices.tolist() == sorted(indices)
    assert round(start_s * fps) <= indices[0] and indices[-1] <= min(round(end_s * fps), max_frame)


@given(st.integers(2, 1000), st.integers(1, 60))
def test_segments_have_equal_lengths_give_or_take_their_rounding(max_frame, num_segments):
    steps = np.diff(get_index(None, 25.0, max_frame, num_segments=num_segments))
    if num_segments > 1:
        assert steps.max() - max_frame / num_segments <= 1.5
        assert max_frame / num_segments - steps.min() <= 1.5


def numbered_frames(number: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), i, np.uint8) for i in range(number)]


def numbers(video) -> list[int]:
    return [frame.getpixel((0, 0))[0] for frame in video.frames]


@given(st.integers(1, 40), st.integers(1, 50), st.none() | st.integers(1, 50))
def test_frames_of_a_list_are_chosen_as_those_of_a_video(number, num_frames, max_frames):
    video = read_frames(numbered_frames(number), num_frames=num_frames, max_frames=max_frames)
    expected = get_index(None, 1.0, number - 1, num_segments=min(num_frames, max_frames or num_frames))
    assert numbers(video) == expected.tolist()
    assert video.times_s is None


@given(st.integers(1, 60), st.integers(1, 50))
def test_all_frames_under_an_upper_limit_are_thinned_evenly(number, max_frames):
    chosen = numbers(read_frames(numbered_frames(number), num_frames=None, max_frames=max_frames))
    assert len(chosen) == min(number, max_frames)
    assert chosen == sorted(set(chosen))
    if max_frames > 1:
        assert (chosen[0], chosen[-1]) == (0, number - 1)
        steps = np.diff(chosen)
        assert len(steps) == 0 or steps.max() - steps.min() <= 1


RATE, FRAMES = 8, 40
END_S = FRAMES / RATE


@pytest.fixture(scope="module")
def video_file() -> io.BytesIO:
    """Five seconds of frames that are as bright as their number says."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        for i in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 3), i, np.uint8))))
        container.mux(stream.encode(None))
    return file


@settings(max_examples=40)
@given(
    fps=st.sampled_from([0.3, 0.5, 1, 2, 3, 7.5, 8, 24]),
    max_frames=st.none() | st.integers(1, 20),
    span=st.tuples(st.floats(0, END_S), st.floats(0, END_S)).map(sorted),
)
def test_frames_by_rate_are_those_on_the_screen_at_their_moments(video_file, fps, max_frames, span):
    start_s, end_s = span
    assume(end_s - start_s > 0.01)
    video = read_frames(video_file, fps=fps, max_frames=max_frames, start_s=start_s, end_s=end_s)
    chosen, times_s = numbers(video), video.times_s
    assert times_s == pytest.approx([number / RATE for number in chosen], abs=2e-3)  # Matroska's milliseconds
    assert times_s == sorted(times_s)
    assert len(chosen) <= (max_frames or len(chosen))
    assert abs(chosen[0] - start_s * RATE) < 1.02 and chosen[0] <= start_s * RATE + 0.02
    assert times_s[-1] <= end_s + 2e-3
    if max_frames is None:
        assert len(chosen) == max(1, int(np.ceil((end_s - start_s) * fps - 1e-3)))
        moments = start_s + np.arange(len(chosen)) / fps
        assert np.abs(np.array(times_s) + 0.5 / RATE - moments).max() <= 0.5 / RATE + 4e-3


@settings(max_examples=40)
@given(
    num_frames=st.integers(1, 60),
    span=st.tuples(st.floats(0, END_S), st.floats(0, END_S)).map(sorted),
)
def test_frames_by_number_are_within_their_times(video_file, num_frames, span):
    start_s, end_s = span
    assume(end_s - start_s > 0.01)
    chosen = numbers(read_frames(video_file, num_frames=num_frames, start_s=start_s, end_s=end_s))
    assert len(chosen) == num_frames
    assert chosen == sorted(chosen)
    assert start_s * RATE - 0.52 <= chosen[0] and chosen[-1] <= end_s * RATE + 0.52


# ---- the grouping of media

IMAGE_REPEATS, VIDEO_REPEATS = 4, 1
TILES = st.integers(1, 5)
ONE_IMAGE = st.tuples(st.just(1), TILES.map(lambda tiles: [tiles]))
IMAGES = st.tuples(st.just(2), st.lists(TILES, min_size=1, max_size=4))
VIDEO = st.tuples(st.just(3), st.builds(lambda tiles, frames: [tiles] * frames, TILES, st.integers(1, 6)))
GROUPS = st.lists(ONE_IMAGE | IMAGES | VIDEO, min_size=1, max_size=6)


def clips_of(groups) -> list[Clip]:
    clips = []
    for flag, tiles in groups:
        if flag == 3:
            clips.append(Clip(len(tiles), tiles[0], VIDEO_REPEATS))
        else:
            clips += [Clip(1, count, IMAGE_REPEATS) for count in tiles]
    return clips


def flattened(groups) -> dict:
    return {
        "num_patches_list": [count for _, tiles in groups for count in tiles],
        "data_flag": [flag for flag, _ in groups],
        "split_sizes": [sum(tiles) for _, tiles in groups],
    }


def read_back(arguments: dict) -> list[Clip]:
    repeats = {"image_repeats": IMAGE_REPEATS, "video_repeats": VIDEO_REPEATS}
    return released_clips(sum(arguments["num_patches_list"]), **repeats, **arguments)


@given(GROUPS)
def test_media_flattened_to_the_released_lists_come_back(groups):
    assert read_back(flattened(groups)) == clips_of(groups)


@given(GROUPS)
def test_split_sizes_are_needed_only_where_several_groups_have_no_known_length(groups):
    arguments = flattened(groups)
    del arguments["split_sizes"]
    if sum(flag != 1 for flag, _ in groups) > 1:
        with pytest.raises(ValueError, match="pass split_sizes"):
            read_back(arguments)
    else:
        assert read_back(arguments) == clips_of(groups)


@given(GROUPS, st.data())
def test_lists_with_one_number_changed_are_refused_or_say_something_else(groups, data):
    arguments = flattened(groups)
    name = data.draw(st.sampled_from(sorted(arguments)))
    place = data.draw(st.integers(0, len(arguments[name]) - 1))
    arguments[name][place] += data.draw(st.sampled_from([-1, 1]))
    total = sum(tiles for _, group in groups for tiles in group)
    repeats = {"image_repeats": IMAGE_REPEATS, "video_repeats": VIDEO_REPEATS}
    try:
        clips = released_clips(total, **repeats, **arguments)
    except ValueError:
        return
    assert name == "data_flag"  # an image may be called several, and images of equal tiles a video
    assert sum(clip.frames * clip.tiles for clip in clips) == total


TOKENS = st.none() | st.integers(1, 600)  # of a tile; None: the model's own number
CLIPS = st.lists(
    st.builds(Clip, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), TOKENS), min_size=1, max_size=5
)


@given(CLIPS)
def test_clip_rows_are_one_a_tile_and_those_of_a_clip_stand_together(clips):
    rows = clip_rows(clips)
    assert len(rows) == sum(clip.frames * clip.tiles for clip in clips)
    has_tokens = any(clip.tokens for clip in clips)
    assert {len(row) for row in rows} == {4 if has_tokens else 3}
    read = []
    while rows:
        frames, tiles, repeats, *tokens = rows[0]
        read.append(Clip(frames, tiles, repeats, sum(tokens) or None))
        assert rows[: frames * tiles] == [rows[0]] * (frames * tiles)
        rows = rows[frames * tiles :]
    assert read == clips
    assert [clip for _, clip in clips_of_grid(clip_grid_of(clips), len(clip_rows(clips)))] == clips


@given(CLIPS, st.integers(1, 64))
def test_media_tokens_are_a_number_for_each_image_and_frame(clips, tokens_per_tile):
    counts = media_tokens(clips, tokens_per_tile)
    assert len(counts) == sum(clip.frames for clip in clips)
    shown = [(clip.frames * clip.tiles * clip.repeats, clip.tokens or tokens_per_tile) for clip in clips]
    assert sum(counts) == sum(times * tokens for times, tokens in shown)


@given(CLIPS, st.sampled_from(["tile", "frame", "raster"]))
def test_a_layout_shows_every_tile_of_every_clip_as_often_and_when_it_should(clips, order):
    rows = clip_rows(clips)
    layout = ClipLayout.from_grid(torch.tensor(rows), len(rows), order)
    num_rows = len(layout.source)
    assert layout.source.bincount().tolist() == [row[2] for row in rows]
    assert layout.rows_per_clip == [clip.frames * clip.tiles * clip.repeats for clip in clips]
    assert sum(layout.rows_per_clip) == num_rows == len(layout.times)
    assert layout.repeated == (num_rows > len(rows))
    assert layout.times.min() >= 0 and layout.times.max() <= 1
    tracks = torch.cat([track.flatten() for track in layout.tile_sequences.values()])
    assert tracks.sort().values.tolist() == list(range(num_rows))


@given(CLIPS, st.sampled_from(["tile", "frame", "raster"]))
def test_rows_by_time_step_are_strides_and_come_back_to_prompt_order(clips, order):
    rows = clip_rows(clips)
    layout = ClipLayout.from_grid(torch.tensor(rows), len(rows), order)
    by_time = layout.by_time_step()
    start = 0
    for moments, tracks in by_time.tile_sequences.items():
        expected = start + torch.arange(tracks.numel()).view(moments, -1).T
        assert torch.equal(tracks, expected)
        before = layout.tile_sequences[moments]
        assert torch.equal(layout.source[before], by_time.source[tracks])
        assert torch.equal(layout.times[before], by_time.times[tracks])
        start += tracks.numel()
    for name in ("source", "times"):
        assert torch.equal(layout.in_prompt_order(getattr(by_time, name)), getattr(layout, name))
    is_ordered = torch.equal(layout.source, by_time.source) and torch.equal(layout.times, by_time.times)
    assert is_ordered or layout.time_order is not None


@given(CLIPS, st.sampled_from(["tile", "frame", "raster"]))
def test_a_track_is_one_place_of_one_clip_from_its_first_moment_to_its_last(clips, order):
    rows = clip_rows(clips)
    layout = ClipLayout.from_grid(torch.tensor(rows), len(rows), order)
    first_tiles = np.cumsum([0] + [clip.frames * clip.tiles for clip in clips])
    for moments, tracks in layout.tile_sequences.items():
        expected = torch.arange(moments) / max(moments - 1, 1)
        for track in tracks:
            tiles = layout.source[track]
            clip_index = int(np.searchsorted(first_tiles, int(tiles[0]), side="right")) - 1
            clip, start = clips[clip_index], int(first_tiles[clip_index])
            place = (int(tiles[0]) - start) % clip.tiles
            frames = torch.arange(clip.frames).repeat_interleave(clip.repeats)
            assert moments == clip.frames * clip.repeats
            assert tiles.tolist() == (start + frames * clip.tiles + place).tolist()
            assert torch.allclose(layout.times[track], expected)


# ---- prompts

TEXTS = st.text(st.sampled_from("ab <|>/_imgIMG\n"), max_size=12) | st.sampled_from(
    ["<image>", "<img>", "</img>", "<IMG_CONTEXT>", "<|im_end|>", "<im", "age>"]
)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@given(st.lists(TEXTS, max_size=8).map("".join))
def test_segments_of_a_text_join_to_it_with_a_place_for_each_placeholder(text):
    segments = with_placeholders(text)
    assert "".join(segment.text for segment in segments) == text
    assert sum(segment.kind == "media" for segment in segments) == text.count("<image>")
    assert all(segment.text for segment in segments)


@given(st.integers(1, 20), st.booleans())
def test_a_video_has_a_line_and_a_place_for_each_frame(frames, with_times):
    segments = video_segments(frames, [i / 4 for i in range(frames)] if with_times else None)
    lines = "".join(segment.text for segment in segments).split("\n")
    assert sum(segment.kind == "media" for segment in segments) == len(lines) == frames
    times = [f" at {i / 4:.1f}s" if with_times else "" for i in range(frames)]
    assert lines == [f"Frame{i + 1}{time}: <image>" for i, time in enumerate(times)]


@given(st.sampled_from(sorted(TEMPLATES)), TURNS, TEXTS, st.data())
def test_a_prompt_has_exactly_the_media_asked_for_whatever_was_typed(
    tokenizer, name, history, question, data
):
    typed = [asked for asked, _ in history] + [question]
    number = sum(text.count("<image>") for text in typed)
    counts = data.draw(st.lists(st.integers(1, 9), min_size=number, max_size=number))
    segments, asked = dialogue_segments(
        get_conv_template(name), question, history, frames_of_media=[1] * number
    )
    ids = encode_segments(tokenizer, segments, counts)
    start, end, context = (tokenizer.convert_tokens_to_ids(t) for t in ("<img>", "</img>", "<IMG_CONTEXT>"))
    starts = [i for i, id in enumerate(ids) if id == start]
    assert [ids.index(end, i) - i - 1 for i in starts] == counts
    assert ids.count(context) == sum(counts) and ids.count(end) == number
    assert all(set(ids[i + 1 : ids.index(end, i)]) == {context} for i in starts)
    assert asked == question


@given(st.lists(st.integers(1, 5), max_size=4))
def test_a_first_question_gets_a_place_for_each_image_and_frame(frames_of_media):
    segments, asked = dialogue_segments(
        get_conv_template("internlm2-chat"), "What?", frames_of_media=frames_of_media
    )
    assert sum(segment.kind == "media" for segment in segments) == sum(frames_of_media)
    assert asked.endswith("What?")
    again, _ = dialogue_segments(get_conv_template("internlm2-chat"), asked, frames_of_media=frames_of_media)
    assert again == segments


@given(st.lists(TEXTS, max_size=6).map("".join))
def test_typed_text_alone_has_no_control_id(tokenizer, text):
    ids = encode_segments(tokenizer, [Segment("text", text)], [])
    grounding = {tokenizer.convert_tokens_to_ids(name) for name in GROUNDING_TOKENS}
    assert not set(ids) & (set(tokenizer.added_tokens_decoder) - grounding)
    assert tokenizer.decode(ids) == text


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
)
def test_padding_adds_to_one_side_what_its_mask_leaves_out(rows, side):
    padded, masks = pad(rows, -1, side)
    assert {len(row) for row in padded + masks} == {max(map(len, rows))}
    for row, filled, mask in zip(rows, padded, masks):
        gap = len(filled) - len(row)
        kept = slice(gap, None) if side == "left" else slice(len(row))
        assert filled[kept] == row and mask[kept] == [1] * len(row)
        assert filled.count(-1) == mask.count(0) == gap
