"""`read_frames` and what it takes for a video, and images of every mode, turned and broken.

The videos are those of `numbered_videos.py`, whose frames carry their own numbers.
"""

import io
import struct
import sys
import wave
from functools import partial
from threading import Event
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from media_files import ASSETS, SHARED
from numbered_videos import HEIGHT, WIDTH, copy_packets, number_of, numbered, packet_positions, write_video
from PIL import Image

from pvc import preprocess, video_readers
from pvc.media_policy import Budget, MediaPolicy
from pvc.preprocess import (
    frame_tiles,
    get_index,
    image_tiles,
    load_image,
    load_video,
    load_video_ahead,
    open_frames,
    read_frames,
)

UNEVEN_MS = [0, 100, 200, 1500, 1600, 3100, 3200, 3300]  # when the frames of an uneven video are shown


def numbers(clip) -> list[int]:
    assert all(frame.mode == "RGB" for frame in clip.frames)
    return [number_of(np.asarray(frame)) for frame in clip.frames]


def numbered_image(frame: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(numbered(frame)))


def array(num_frames: int) -> np.ndarray:
    return np.stack([numbered(frame) for frame in range(num_frames)])


def write_gif(path, durations_ms):
    first, *others = (numbered_image(i) for i in range(len(durations_ms)))
    first.save(path, save_all=True, append_images=others, duration=durations_ms, loop=0)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """60 frames, 10 a second."""
    return write_video(tmp_path_factory.mktemp("even") / "video.mp4")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("uneven") / "uneven.mp4", len(UNEVEN_MS), times_ms=UNEVEN_MS)


# choice by number


@pytest.mark.parametrize("num_frames", [1, 7, 32, 60, 75])
def test_a_number_of_frames_is_chosen_as_load_video_chooses(num_frames, video):
    clip = read_frames(video, num_frames=num_frames)
    assert numbers(clip) == get_index(None, 10, 59, num_segments=num_frames).tolist()
    assert clip.times_s == pytest.approx([number / 10 for number in numbers(clip)])


@pytest.mark.parametrize(
    "span", [(2, 4), (0.5, 1), (0, 6), (2.44, 5.97), (0.05, 2.45), (5.98, 6), (None, 3), (3, None)]
)
def test_between_start_and_end_frames_are_those_of_the_released_bound(span, video):
    start, end = (0, 6) if span == (None, 3) else span
    bound = (span[0] or 0, 6 if span[1] is None else span[1])
    expected = np.clip(get_index(bound, 10, 59, num_segments=5), min(59, round(bound[0] * 10)), 59)
    assert numbers(read_frames(video, num_frames=5, start_s=span[0], end_s=span[1])) == expected.tolist()


def test_frames_of_an_uneven_video_lie_between_start_and_end(uneven):
    clip = read_frames(uneven, num_frames=4, start_s=1.4, end_s=3.2)
    assert numbers(clip) == [3, 4, 5, 5]
    assert clip.times_s == [1.5, 1.6, 3.1, 3.1]


def test_without_a_number_every_frame_comes(video):
    assert numbers(read_frames(video, num_frames=None)) == list(range(60))
    assert numbers(read_frames(video, num_frames=None, start_s=5)) == list(range(50, 60))
    assert numbers(read_frames(video, num_frames=None, max_frames=3)) == [0, 30, 59]
    assert len(read_frames(video, num_frames=9, max_frames=4).frames) == 4


# choice by rate


@pytest.mark.parametrize("fps, step", [(10, 1), (5, 2), (2, 5), (0.5, 20), (1e-9, 60)])
def test_a_rate_gives_a_frame_each_interval(fps, step, video):
    clip = read_frames(video, fps=fps)
    assert numbers(clip) == list(range(0, 60, step))
    assert clip.times_s == pytest.approx([number / 10 for number in numbers(clip)])


def test_a_rate_counts_from_the_start_to_before_the_end(video):
    assert numbers(read_frames(video, fps=2, start_s=1.2, end_s=2.7)) == [12, 17, 22]
    assert numbers(read_frames(video, fps=2, start_s=5.2)) == [52, 57]


def test_a_rate_shows_what_is_on_the_screen_at_each_moment(uneven):
    clip = read_frames(uneven, fps=1)
    assert numbers(clip) == [0, 2, 4, 4]  # at 0, 1, 2 and 3 seconds
    assert clip.times_s == [0, 0.2, 1.6, 1.6]
    assert numbers(read_frames(uneven, fps=1, start_s=1.55)) == [3, 4]


def test_a_rate_is_thinned_to_the_limit_from_first_to_last(video):
    assert numbers(read_frames(video, fps=5, max_frames=4)) == [0, 20, 38, 58]
    assert numbers(read_frames(video, fps=5, max_frames=30)) == list(range(0, 60, 2))
    assert numbers(read_frames(video, fps=5, max_frames=1)) == [0]


def test_times_rounded_to_milliseconds_lose_no_frame(tmp_path):
    times_ms = [round(frame * 1000 / 30) for frame in range(45)]
    path = write_video(tmp_path / "ntsc.webm", 45, "libvpx-vp9", {"g": "12"}, times_ms)
    clip = read_frames(path, fps=30, end_s=1.5)  # the file's last frame is said to last longer
    assert numbers(clip) == list(range(45))
    assert clip.times_s == pytest.approx([time_ms / 1000 for time_ms in times_ms])


# kinds of videos


def test_a_gif_tells_its_times(tmp_path):
    path = write_gif(tmp_path / "numbers.gif", [100, 200, 500, 100, 300])
    clip = read_frames(path, num_frames=None)
    assert numbers(clip) == list(range(5)) and clip.times_s == pytest.approx([0, 0.1, 0.3, 0.8, 0.9])
    assert numbers(read_frames(path, fps=5)) == [0, 1, 2, 2, 3, 4]
    numbered_image(7).save(tmp_path / "still.gif")
    still = read_frames(tmp_path / "still.gif", num_frames=2)
    assert numbers(still) == [7, 7] and still.times_s == [0, 0]


def test_times_begin_at_the_first_frame(tmp_path, video):
    def start_later(packets):
        for packet in packets:
            packet.pts, packet.dts = packet.pts + 50_000, packet.dts + 50_000
            yield packet

    path = copy_packets(video, tmp_path / "late.ts", start_later)
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time > 0
    clip = read_frames(path, num_frames=None)
    assert clip.times_s == pytest.approx([number / 10 for number in numbers(clip)], abs=1e-4)
    assert numbers(clip) == list(range(60))


@pytest.mark.parametrize("name", ["video.avi", "video.h264"])
def test_videos_without_times_are_timed_by_their_rate(name, tmp_path):
    clip = read_frames(write_video(tmp_path / name, 20), num_frames=None)
    gaps = np.diff(clip.times_s)
    assert numbers(clip) == list(range(20)) and gaps[0] > 0 and np.allclose(gaps, gaps[0])
    assert gaps[0] == pytest.approx(0.1) or name == "video.h264"  # raw H.264 may not even store a rate


def test_a_fragmented_mp4_is_read_whole(video, tmp_path):
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    path = copy_packets(video, tmp_path / "fragmented.mp4", options=fragments)
    assert path.read_bytes().count(b"moof") > 1
    clip = read_frames(path, fps=2)
    assert numbers(clip) == list(range(0, 60, 5)) and clip.times_s == pytest.approx(np.arange(12) / 2)


def test_a_webm_that_tells_no_duration_is_read_by_its_frames(tmp_path):
    with open(tmp_path / "live.webm", "wb") as file:
        stream = SimpleNamespace(write=file.write)  # cannot seek back to note the duration
        with av.open(stream, "w", format="webm") as container:
            if "libvpx" not in av.codecs_available:
                pytest.skip("this PyAV has no encoder libvpx")
            track = container.add_stream("libvpx", rate=10)
            track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for i in range(30):
                container.mux(track.encode(av.VideoFrame.from_image(numbered_image(i))))
            container.mux(track.encode(None))
    with av.open(str(tmp_path / "live.webm")) as container:
        assert container.duration is None
    clip = read_frames(tmp_path / "live.webm", fps=2)
    assert numbers(clip) == list(range(0, 30, 5)) and clip.times_s == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    with pytest.raises(ValueError, match=r"end_s <= 3\.0\d\d, the duration"):
        read_frames(tmp_path / "live.webm", end_s=9)


def test_a_10_bit_video_comes_in_8_bits(tmp_path):
    path = tmp_path / "deep.mkv"
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no encoder libx265")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p10le"
        for i in range(5):
            container.mux(
                stream.encode(av.VideoFrame.from_image(numbered_image(i)).reformat(format="yuv420p10le"))
            )
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"
    assert numbers(read_frames(path, num_frames=None)) == list(range(5))


def test_a_rotated_video_comes_upright(video):
    data = bytearray(video.read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    upright, turned = (read_frames(source, num_frames=2) for source in (video, io.BytesIO(data)))
    for before, after in zip(upright.frames, turned.frames):
        assert after.size == (HEIGHT, WIDTH)
        assert np.array_equal(np.asarray(after), np.rot90(np.asarray(before), -1))


def test_the_decoder_scales_frames_as_they_are_shown(video, tmp_path):
    asked = []

    def half(width, height):
        asked.append((width, height))
        return width // 2, height // 2

    rotated = write_rotated(tmp_path / "rotated.mp4", video)
    for path, size in ((video, (WIDTH, HEIGHT)), (rotated, (HEIGHT, WIDTH))):
        whole = read_frames(path, num_frames=1).frames[0]
        with open_frames(path, num_frames=1, scaled_size=half) as chosen:
            ((_, frame),) = chosen.frames
        assert asked[-1] == whole.size == size
        assert frame.size == (size[0] // 2, size[1] // 2)
        difference = np.asarray(frame, float) - np.asarray(whole.resize(frame.size, Image.Resampling.BOX))
        assert abs(difference).mean() < 6

    with pytest.raises(ValueError, match="backend='decord' does not scale frames"):
        open_frames(video, backend="decord", scaled_size=half)


def test_frames_cut_in_threads_are_those_cut_one_by_one(video):
    def tiles(threads, cut=partial(image_tiles, input_size=28)):  # noqa: B008
        with open_frames(video, num_frames=9) as chosen:
            return frame_tiles(chosen, cut, Budget(MediaPolicy()), threads)

    assert torch.equal(tiles(3), tiles(1))

    def fails(frame):
        raise ValueError("no tiles")

    with pytest.raises(ValueError, match="no tiles"):
        tiles(2, fails)


def test_a_file_object_gives_the_frames_of_its_path(video):
    with open(video, "rb") as file:
        file.read(100)
        clip = read_frames(file, num_frames=3)
    assert clip.times_s == read_frames(str(video), num_frames=3).times_s and numbers(clip) == [9, 29, 48]


def test_load_video_and_read_frames_see_the_same_frames(video):
    tiles = torch.cat([image_tiles(frame, 28, 1) for frame in read_frames(video, num_frames=4).frames])
    assert torch.equal(tiles, load_video(video, input_size=28, num_segments=4)[0])


# images that make a video


@pytest.mark.parametrize("frames_at_once", [1, 3, 100])
@pytest.mark.parametrize("num_segments", [7, 90])  # 90: more than there are frames, some come twice
def test_pieces_read_ahead_are_together_what_load_video_reads(num_segments, frames_at_once, video):
    settings = {"input_size": 28, "max_num": 2, "num_segments": num_segments}
    pieces = list(load_video_ahead(video, **settings, frames_at_once=frames_at_once))
    tiles, num_patches_list = load_video(video, **settings)
    assert torch.equal(torch.cat([x for x, _ in pieces]), tiles)
    assert [n for _, counts in pieces for n in counts] == num_patches_list
    assert all(len(counts) == frames_at_once for _, counts in pieces[:-1])


def test_the_next_piece_is_read_while_the_last_is_used(video, monkeypatch):
    read, enough = [], Event()

    def image_tiles(image, *settings):
        read.append(image)
        enough.set() if len(read) == 4 else None
        return torch.zeros(1, 3, 28, 28)

    monkeypatch.setattr(preprocess, "image_tiles", image_tiles)
    pieces = load_video_ahead(video, num_segments=6, frames_at_once=2)
    next(pieces)
    assert enough.wait(10)  # of the second piece both frames, though nobody asked for them
    pieces.close()
    assert len(read) == 4


def test_an_error_of_reading_ahead_is_load_videos(tmp_path, video):
    with pytest.raises(ValueError, match="frames_at_once is 0"):
        next(load_video_ahead(video, frames_at_once=0))
    with pytest.raises(FileNotFoundError):
        next(load_video_ahead(tmp_path / "none.mp4"))


def test_a_list_takes_images_arrays_and_paths(tmp_path):
    numbered_image(2).save(tmp_path / "2.png")
    with open(tmp_path / "2.png", "rb") as file:
        mixed = [
            numbered_image(0),
            numbered(1),
            tmp_path / "2.png",
            str(tmp_path / "2.png"),
            file,
            numbered_image(3).convert("L"),
        ]
        clip = read_frames(mixed, num_frames=None)
    assert numbers(clip) == [0, 1, 2, 2, 2, 3] and clip.times_s is None


@pytest.mark.parametrize(
    "form", [list, tuple, np.asarray, lambda frames: torch.tensor(frames).permute(0, 3, 1, 2)]
)
def test_images_are_chosen_as_frames_of_a_video(form):
    source = form(array(10))
    assert numbers(read_frames(source, num_frames=4)) == get_index(None, 1, 9, num_segments=4).tolist()
    assert numbers(read_frames(source, num_frames=None)) == list(range(10))
    assert len(read_frames(source).frames) == 32
    assert numbers(read_frames(source, num_frames=None, max_frames=2)) == [0, 9]


def test_a_folder_is_sorted_by_the_numbers_in_its_names(tmp_path):
    for frame, name in enumerate(
        ["frame1.PNG", "frame2.png", "frame10.png", "frame10b.png", "frame0011.png"]
    ):
        numbered_image(frame).save(tmp_path / name)
    for name in ("notes.txt", "._frame3.png", "frame²"):
        (tmp_path / name).write_text("no image")
    for folder in (tmp_path, str(tmp_path)):
        clip = read_frames(folder, num_frames=None)
        assert numbers(clip) == list(range(5)) and clip.times_s is None


def test_only_chosen_images_are_read(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    numbered_image(4).save(paths[4])
    assert numbers(read_frames(paths, num_frames=1)) == [4]


def test_images_of_a_list_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    numbered_image(5).save(tmp_path / "turned.png", exif=exif)
    (frame,) = read_frames([tmp_path / "turned.png"], num_frames=None).frames
    assert np.array_equal(np.asarray(frame), np.rot90(numbered(5), -1))


# what cannot be


@pytest.mark.parametrize(
    "span",
    [
        (-1, 3),
        (3, 3),
        (4, 3),
        (6, None),
        (7, 8),
        (0, 6.2),
        (None, 0),
        (float("nan"), 3),
        (0, float("nan")),
        (0, float("inf")),
    ],
)
@pytest.mark.parametrize("choice", [{"num_frames": 4}, {"fps": 2}], ids=str)
def test_a_span_that_is_not_there_names_the_duration(span, choice, video):
    expected = r"start_s=.*, end_s=.*: expected 0 <= start_s < end_s <= 6\.000, the duration of .*video\.mp4"
    with pytest.raises(ValueError, match=expected):
        read_frames(video, start_s=span[0], end_s=span[1], **choice)


def test_an_end_less_than_a_frame_late_is_the_end(video):
    assert numbers(read_frames(video, fps=1, end_s=6.05)) == numbers(read_frames(video, fps=1))


@pytest.mark.parametrize("option", ["fps", "start_s", "end_s"])
def test_images_without_times_are_not_chosen_by_time(option, tmp_path):
    numbered_image(0).save(tmp_path / "0.png")
    for source in (tmp_path, [numbered_image(0)], array(2)):
        with pytest.raises(
            ValueError, match=f"{option}=1: images have no times; choose among them by num_frames"
        ):
            read_frames(source, **{option: 1})


@pytest.mark.parametrize(
    "choice",
    [
        {"num_frames": 0},
        {"num_frames": -1},
        {"max_frames": 0},
        {"fps": 0},
        {"fps": -1},
        {"fps": 1e9},
        {"fps": float("nan")},
    ],
    ids=str,
)
def test_impossible_numbers_are_named(choice, video):
    ((name, value),) = choice.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected".replace("+", r"\+")):
        read_frames(video, **choice)


@pytest.mark.parametrize(
    "source, message",
    [
        ([], "a list is empty: expected at least 1 frame"),
        ((), "a tuple is empty"),
        (array(2)[:0], "is empty"),
        (array(2).astype(np.float32), r"a ndarray of float32 \(2, 48, 64, 3\): expected uint8"),
        (array(2)[0], r"uint8 \(48, 64, 3\): expected uint8, array \(T, H, W, 3\)"),
        (array(2)[..., :1], r"uint8 \(2, 48, 64, 1\)"),
        (np.uint8(3) * np.ones((), np.uint8), "expected"),
        (torch.zeros(2, 3, 4, 5), r"a Tensor of torch.float32 \(2, 3, 4, 5\): expected uint8"),
        (torch.zeros(2, 4, 5, 3, dtype=torch.uint8), r"tensor \(T, 3, H, W\)"),
        ([array(1)[0], np.zeros((4, 5, 3))], r"frame 1 is a ndarray of float64 \(4, 5, 3\): expected a PIL"),
        ([np.zeros((4, 5), np.uint8)], r"frame 0 is a ndarray of uint8 \(4, 5\)"),
        ([7], "frame 0 is a int: expected"),
        ([None], "frame 0 is a NoneType: expected"),
        ([Image.new("RGB", (0, 4))], "0x4 pixels"),
        (np.zeros((2, 0, 4, 3), np.uint8), "pixels|empty|size"),
        (7, "a int: expected a video, folder, list of images, array or tensor"),
        (None, "a NoneType: expected a video"),
        (numbered_image(0), "a Image: expected a video"),
    ],
)
def test_what_makes_no_video_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        read_frames(source, num_frames=None)


def test_frames_of_different_sizes_name_the_first_two(tmp_path):
    images = [Image.new("RGB", size) for size in ((8, 6), (8, 6), (6, 8), (4, 4))]
    with pytest.raises(ValueError, match=r"frame 0 is \(8, 6\), frame 2 \(6, 8\): resize"):
        read_frames(images, num_frames=None)


def test_a_folder_without_images_and_a_damaged_image_are_named(tmp_path):
    with pytest.raises(ValueError, match="no image here; expected .bmp"):
        read_frames(tmp_path)
    numbered_image(0).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="cut.png"):
        read_frames(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_frames([tmp_path / "missing.png"])


def test_files_that_are_no_videos_are_named(tmp_path, video):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "words.mp4").write_text("no images in here\n" * 50)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "none"))
        sound.writeframes(bytes(16000))
    copy_packets(video, tmp_path / "none.mkv", lambda packets: [])
    for name in ("empty.mp4", "words.mp4", "sound.wav", "none.mkv"):
        with pytest.raises(ValueError, match=name):
            read_frames(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        read_frames(tmp_path / "missing.mp4")


@pytest.mark.skipif(not hasattr(av.stream.Stream, "index_entries"), reason="older PyAV cannot tell")
def test_a_truncated_video_is_read_where_it_is_and_no_further(tmp_path, video):
    path = copy_packets(video, tmp_path / "short.mp4", options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: (data.find(b"mdat") + len(data)) // 2])
    for choice in ({"num_frames": 8}, {"fps": 2}):
        with pytest.raises(
            ValueError, match=r"short\.mp4: frame \d\d cannot be read; \d\d of its 60 frames can"
        ):
            read_frames(path, **choice)
    assert numbers(read_frames(path, fps=5, end_s=1)) == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match=r"end_s <= 6\.000, the duration"):
        read_frames(path, end_s=7)


def test_a_frame_damaged_in_the_middle_is_an_error_only_where_it_is_chosen(tmp_path):
    path = write_video(tmp_path / "video.mp4", 20, options={"g": "1", "bf": "0"})
    place, size = packet_positions(path)[7]
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    assert numbers(read_frames(path, fps=5)) == list(range(0, 20, 2))
    with pytest.raises(ValueError, match=r"video\.mp4: frame 7 cannot be read"):
        read_frames(path, fps=10)


def test_a_stream_that_the_header_does_not_tell_of_ends_the_video():
    def demux(stream):
        yield SimpleNamespace(size=9)
        raise IndexError("list index out of range")  # as PyAV on damaged SWF files

    assert len(list(video_readers._packets(SimpleNamespace(demux=demux), stream=None))) == 1


# torchcodec and decord


def write_rotated(path, video):
    data = bytearray(video.read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_other_backends_give_the_frames_and_times_of_pyav(backend, video, uneven, tmp_path):
    pytest.importorskip(backend, exc_type=(ImportError, OSError, RuntimeError))
    paths, rotated = [ASSETS / "video.mp4", video, uneven], write_rotated(tmp_path / "rotated.mp4", video)
    if backend == "decord":
        with pytest.raises(ValueError, match="rotated.mp4: frame 0 has 4 channels: use backend='pyav'"):
            read_frames(
                rotated, backend="decord"
            )  # 48 pixels wide: decord takes the rows' padding for pixels
    else:
        paths.append(rotated)
    paths += [SHARED / "media" / "example_video.mp4"] if (SHARED / "media").is_dir() else []
    for path in paths:
        for choice in ({"num_frames": 8}, {"fps": 2, "max_frames": 24}):
            expected, clip = (read_frames(path, **choice, backend=name) for name in ("pyav", backend))
            assert clip.times_s == pytest.approx(expected.times_s, abs=1e-3)
            assert all(np.array_equal(*pair) for pair in zip(clip.frames, expected.frames))
    with open(video, "rb") as file:
        assert numbers(read_frames(file, num_frames=3, backend=backend)) == [9, 29, 48]


@pytest.mark.parametrize("error", [OSError, RuntimeError, ImportError])
def test_a_torchcodec_that_does_not_load_is_an_import_error_with_its_reason(error, video, monkeypatch):
    def load(name):
        raise error("Could not load libtorchcodec\nlong traceback")

    monkeypatch.setattr(video_readers.importlib, "import_module", load)
    with pytest.raises(
        ImportError, match=r"pip install pvc\[torchcodec\].* \(Could not load libtorchcodec\)"
    ):
        read_frames(video, backend="torchcodec")


class TorchcodecStub:
    """Stands in for torchcodec's decoder: `frames` of them, of which the third cannot be read."""

    frames, arguments = 60, None

    def __init__(self, source, **arguments):
        TorchcodecStub.arguments = arguments

    def __len__(self):
        return self.frames

    def __getitem__(self, index):
        if index == 2:
            raise RuntimeError("no more frames")
        return torch.tensor(np.ascontiguousarray(numbered(index)))


def test_torchcodec_is_asked_for_its_exact_mode_and_its_errors_name_the_file(video, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=TorchcodecStub))
    assert numbers(read_frames(video, num_frames=3, backend="torchcodec")) == [9, 29, 48]
    assert TorchcodecStub.arguments["seek_mode"] == "exact"
    with pytest.raises(ValueError, match=r"video\.mp4: frame 2 cannot be read: no more frames"):
        read_frames(video, fps=10, backend="torchcodec")
    monkeypatch.setattr(TorchcodecStub, "frames", 59)
    with pytest.raises(
        ValueError, match=r"video\.mp4: torchcodec finds other frames \(59\): use backend='pyav'"
    ):
        read_frames(video, backend="torchcodec")


# images of every mode, turned, and broken


def ramp(dtype, top) -> np.ndarray:
    return np.linspace(0, top, 64 * 48).reshape(48, 64).astype(dtype)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_greys_of_16_bits_are_scaled_not_clipped(mode, tmp_path):
    deep = Image.fromarray(ramp({"I;16": np.uint16, "I;16B": ">u2", "I": np.int32}[mode], 65535))
    assert deep.mode == mode
    expected = Image.fromarray(np.round(ramp(np.float64, 65535).astype(np.uint16) / 257).astype(np.uint8))
    assert torch.equal(image_tiles(deep, 28, 6), image_tiles(expected, 28, 6))
    deep.save(tmp_path / "deep.tif")
    assert torch.equal(load_image(tmp_path / "deep.tif", 28, 6), image_tiles(expected, 28, 6))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "F"]
)
def test_other_modes_are_converted_as_released(mode):
    source = Image.effect_noise((60, 40), 80)
    if mode not in ("1", "L", "P", "F"):
        source = Image.merge(
            "RGB", [source, source.rotate(180), source.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
        )
    if mode == "RGBa":
        source = source.convert("RGBA")
    if mode == "LAB":
        source = Image.merge("LAB", source.split())
    source = source if source.mode == mode else source.convert(mode)
    assert source.mode == mode
    assert torch.equal(image_tiles(source, 28, 6), image_tiles(source.convert("RGB"), 28, 6))


def test_premultiplied_grey_is_converted_too():
    opaque = Image.merge("LA", [Image.effect_noise((60, 40), 80), Image.new("L", (60, 40), 255)])
    assert torch.equal(image_tiles(opaque.convert("La"), 28, 6), image_tiles(opaque, 28, 6))


@pytest.mark.parametrize("low, high", [(-1, 5), (0, 65536)])
def test_greys_beyond_16_bits_are_named(low, high):
    with pytest.raises(ValueError, match=f"mode I with values from {low} to {high}: expected 0 to 65535"):
        image_tiles(Image.fromarray(np.int32([[low, high]])), 28)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
def test_an_image_without_pixels_is_named(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels"):
        load_image(Image.new("RGB", size), 28)


def test_long_and_thin_images_are_cut_or_named(monkeypatch):
    assert image_tiles(Image.new("RGB", (1, 20000)), 28, 6).shape == (7, 3, 28, 28)
    assert image_tiles(Image.new("L", (20000, 1)), 28, 6).shape == (7, 3, 28, 28)

    def out_of_memory(
        *args,
    ):  # what PIL raises where its filter grows too long: of sides over 67 million pixels
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", out_of_memory)
    with pytest.raises(ValueError, match="1x70 pixels is too long and thin"):
        image_tiles(Image.new("RGB", (1, 70)), 28)


def test_limits_of_tiles_reach_the_grid():
    square = Image.new("RGB", (40, 40))
    assert image_tiles(square, 28, max_num=4, min_num=4).shape[0] == 5
    assert image_tiles(square, 28, max_num=4, min_num=4, use_thumbnail=False).shape[0] == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_image_turns_images_upright_where_asked(orientation, tmp_path):
    upright = Image.effect_noise((80, 40), 50)
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # the transposes that PIL numbers so
    stored = upright
    for turn in turns.get(orientation, []):
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    for source in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(load_image(source, 28, 6, exif=True), load_image(upright, 28, 6))
        assert torch.equal(load_image(source, 28, 6), load_image(stored, 28, 6))


def test_damaged_and_huge_images_name_their_file(tmp_path, monkeypatch):
    path = tmp_path / "noise.jpg"
    Image.effect_noise((80, 40), 50).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="noise.jpg cannot be read: .*decompression bomb"):
        load_image(path, 28)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match="noise.jpg cannot be read: .*truncated"):
        load_image(path, 28)
    path.write_text("no image")
    with pytest.raises(OSError, match="noise.jpg"):
        load_image(path, 28)
