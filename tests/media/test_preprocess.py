"""preprocess.py against the released helpers' outputs, and its video readers on files of many kinds.

The videos are those of `numbered_videos.py`, whose frames carry their own numbers.
"""

import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
import wave
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from media_files import ASSETS, ROOT, SHARED
from numbered_videos import (
    GOP_OF_12,
    HEIGHT,
    WIDTH,
    copy_packets,
    number_of,
    numbered,
    packet_positions,
    write_video,
)
from PIL import Image

from pvc import video_readers
from pvc.assets import make_assets
from pvc.preprocess import (
    build_transform,
    dynamic_preprocess,
    find_closest_aspect_ratio,
    get_index,
    load_image,
    load_video,
    read_video,
)

GOLDEN = ROOT / "tests" / "golden"
needs_media = pytest.mark.skipif(
    not (SHARED / "media").is_dir(), reason="the released example media are not here"
)


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# pictures


def synthetic_cases():
    images = json.loads((GOLDEN / "load_image_synthetic.json").read_text())["images"]
    return [
        (name, case["max_num"], case["input_size"])
        for name, image in images.items()
        for case in image["cases"]
    ]


@pytest.mark.parametrize("name, max_num, input_size", synthetic_cases())
def test_load_image_equals_released_on_lossless_pictures(name, max_num, input_size):
    golden = np.load(GOLDEN / "load_image_synthetic.npz")
    png = io.BytesIO(golden[f"{name}.png_bytes"].tobytes())
    tiles = load_image(png, input_size=input_size, max_num=max_num)
    assert tiles.dtype == torch.float32
    assert np.array_equal(tiles.numpy(), golden[f"{name}.out_max{max_num}_size{input_size}"])


@needs_media
def test_load_image_equals_released_on_the_example_picture():
    golden = json.loads((SHARED / "golden" / "load_image.json").read_text())
    for case in golden["cases"]:
        tiles = load_image(SHARED / "media" / golden["file"], case["input_size"], case["max_num"])
        assert list(tiles.shape) == case["shape"]
        assert sha256(tiles.numpy()) == case["sha256_float32_le_c_order"]


class SizeOnly:
    """Stands in for a picture where only sizes count: remembers what it was resized to."""

    def __init__(self, width, height):
        self.size, self.resized_to = (width, height), []

    def resize(self, size, resample):
        self.resized_to.append(size)
        return self

    def crop(self, box):
        return self


def test_tile_grids_equal_released():
    golden = json.loads((GOLDEN / "dynamic_preprocess_grids.json").read_text())
    for case in golden["cases"] + golden["extra_cases"]:
        picture, image_size = SizeOnly(case["width"], case["height"]), case.get("image_size", 448)
        tiles = dynamic_preprocess(
            picture, case.get("min_num", 1), case["max_num"], image_size, use_thumbnail=True
        )
        columns, rows = case["columns"], case["rows"]
        assert picture.resized_to[0] == (columns * image_size, rows * image_size), case
        assert len(tiles) == case["num_tiles_with_thumbnail"], case


def test_an_equally_close_grid_wins_only_where_the_picture_fills_half_of_it():
    grids = [(1, 1), (2, 2)]
    assert find_closest_aspect_ratio(1.0, grids, 14, 14, image_size=10) == (1, 1)  # 196 of 400 pixels
    assert find_closest_aspect_ratio(1.0, grids, 15, 15, image_size=10) == (2, 2)  # 225 of 400


def test_tiles_come_row_by_row_and_the_thumbnail_last():
    cells = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40  # 2 rows, 3 columns
    picture = Image.fromarray(cells.repeat(32, axis=0).repeat(32, axis=1))
    *tiles, thumbnail = dynamic_preprocess(picture, max_num=6, image_size=32, use_thumbnail=True)
    assert [tile.getpixel((16, 16)) for tile in tiles] == cells.flatten().tolist()
    assert thumbnail.size == (32, 32)
    assert thumbnail.getpixel((0, 0)) == cells[0, 0] and thumbnail.getpixel((31, 31)) == cells[1, 2]


def test_a_single_tile_has_no_thumbnail():
    picture = Image.new("RGB", (50, 50))
    assert len(dynamic_preprocess(picture, max_num=1, image_size=28, use_thumbnail=True)) == 1
    assert load_image(picture, input_size=28, max_num=1).shape == (1, 3, 28, 28)


def test_dynamic_preprocess_leaves_its_picture_unchanged():
    picture = Image.effect_noise((90, 40), 50)
    before, size = picture.tobytes(), picture.size
    dynamic_preprocess(picture, max_num=6, image_size=28, use_thumbnail=True)
    assert (picture.tobytes(), picture.size) == (before, size)


@pytest.mark.parametrize("min_num, max_num", [(0, 6), (1, 0), (7, 6)])
def test_impossible_tile_limits_are_named(min_num, max_num):
    with pytest.raises(ValueError, match=f"min_num={min_num}, max_num={max_num}"):
        dynamic_preprocess(Image.new("RGB", (8, 8)), min_num=min_num, max_num=max_num)


def test_load_image_takes_a_path_a_file_object_and_a_picture(tmp_path):
    path = tmp_path / "noise.png"
    Image.effect_noise((90, 40), 50).save(path)
    tiles = load_image(path, input_size=28)
    with open(path, "rb") as file:
        assert torch.equal(load_image(file, input_size=28), tiles)
    with Image.open(path) as picture:
        assert torch.equal(load_image(picture, input_size=28), tiles)
        picture.load()  # still open: the caller's picture is the caller's to close
    assert torch.equal(load_image(str(path), input_size=28), tiles)


def test_exif_orientation_is_ignored(tmp_path):
    picture = Image.effect_noise((80, 40), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(tmp_path / "rotated.png", exif=exif)
    assert torch.equal(
        load_image(tmp_path / "rotated.png", input_size=28), load_image(picture, input_size=28)
    )


def test_a_missing_picture_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png"):
        load_image(tmp_path / "missing.png")


def test_the_transform_survives_pickling_and_takes_any_mode():
    transform = pickle.loads(pickle.dumps(build_transform(28)))
    grey = Image.effect_noise((40, 30), 50)
    assert transform(grey).shape == (3, 28, 28) and transform(grey).is_contiguous()
    assert torch.equal(transform(grey), transform(grey.convert("RGB")))


def test_a_clone_imports_preprocess_alone_and_no_video_package():
    code = "import sys, preprocess; print(sorted({'av', 'decord', 'transformers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# choice of frames


def test_get_index_equals_released():
    for case in json.loads((GOLDEN / "get_index.json").read_text()):
        expected = case.pop("indices")
        assert get_index(**case).tolist() == expected, case


def test_get_index_wants_a_frame():
    with pytest.raises(ValueError, match="num_segments=0"):
        get_index(None, 25.0, 99, num_segments=0)


# videos


def read(file, frames=None) -> dict[int, np.ndarray]:
    """The chosen frames of a video, or all of them, by index."""
    return dict(read_video(file, lambda num_frames, fps: range(num_frames) if frames is None else frames)[1])


def never_seek(monkeypatch):
    monkeypatch.setattr(video_readers, "SEEK_COST_FRAMES", float("inf"))


def frame_count_of_header(path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].frames


KINDS = {
    "b_frames.mp4": {},
    "all_key.mp4": {"options": {"g": "1"}},
    "tiny_gops.mp4": {"options": {"x264-params": "keyint=2:min-keyint=1:bframes=3:scenecut=0"}},
    "open_gop.mkv": {"options": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3"}},
    "intra_refresh.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "inexact_seek.ts": {},
    "inexact_seek_mpeg4.ts": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "inexact_seek_mpeg4.mpg": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "made_up_times.avi": {},
    "made_up_times.wmv": {},
    "no_times.h264": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10"}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "open-gop=1:keyint=12:log-level=none"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "no_keyframe_marked.swf": {"codec": "flv", "options": {"g": "12"}},
    "one_frame.mp4": {"num_frames": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_seeking_finds_the_same_frames_as_decoding_in_order(kind, tmp_path, monkeypatch):
    path = write_video(tmp_path / kind, **KINDS[kind])
    num_frames = KINDS[kind].get("num_frames", 60)
    choices = [[frame] for frame in range(num_frames)] + [list(range(3, num_frames, 17))]
    sought = [read(path, choice) for choice in choices]
    never_seek(monkeypatch)
    in_order = read(path)
    assert [number_of(picture) for picture in in_order.values()] == list(range(num_frames))
    for choice, pictures in zip(choices, sought):
        assert list(pictures) == choice
        assert all(np.array_equal(pictures[frame], in_order[frame]) for frame in choice)


def allow(*args, **kwargs):
    pass


def refuse(*args, **kwargs):
    raise av.error.InvalidDataError(22, "this container cannot seek")


@pytest.mark.parametrize(
    "is_keyframe, stamp, seek, is_used",
    [
        (True, 100, allow, True),
        (True, 80, allow, True),
        (True, 120, allow, False),  # frames before it would lack what they refer to
        (False, 90, allow, False),
        (True, None, allow, False),
        (True, 100, refuse, False),
    ],
)
def test_a_seek_counts_only_if_it_lands_on_a_keyframe_not_too_late(is_keyframe, stamp, seek, is_used):
    packets = [SimpleNamespace(is_keyframe=is_keyframe, pts=stamp, size=9), SimpleNamespace(pts=140, size=9)]
    container = SimpleNamespace(seek=seek, demux=lambda stream: iter(packets))
    assert list(video_readers._packets_from(100, container, stream=None)) == (packets if is_used else [])


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that the reader takes from the decoder."""
    taken, inner = [], video_readers._decoded_frames
    monkeypatch.setattr(
        video_readers, "_decoded_frames", lambda *args: (taken.append(p) or p for p in inner(*args))
    )
    return taken


@pytest.mark.parametrize("frames, num_decoded", [([59], 12), ([48], 1), ([2, 50], 3 + 3), ([11, 13], 14)])
def test_far_frames_are_sought_and_near_ones_decoded_on_the_way(frames, num_decoded, tmp_path, decoded):
    path = write_video(tmp_path / "gop12.mp4", options=GOP_OF_12 | {"bf": "0"})
    assert list(read(path, frames)) == frames
    assert len(decoded) == num_decoded


def test_no_frame_is_decoded_before_it_is_asked_for(tmp_path, decoded):
    path = write_video(tmp_path / "all_key.mp4", options={"g": "1", "bf": "0"})
    _, frames = read_video(path, lambda num_frames, fps: range(num_frames))
    assert len(decoded) == 0
    assert [next(frames)[0], next(frames)[0]] == [0, 1]
    assert len(decoded) == 2


def test_frames_are_counted_where_the_header_does_not_tell(tmp_path):
    path = write_video(tmp_path / "video.webm", codec="libvpx-vp9")
    assert frame_count_of_header(path) == 0
    assert len(read(path)) == 60


def test_frames_at_uneven_times_come_in_order(tmp_path):
    times_ms = np.random.default_rng(0).integers(1, 400, 60).cumsum().tolist()
    path = write_video(tmp_path / "uneven.mp4", times_ms=times_ms)
    assert {frame: number_of(picture) for frame, picture in read(path, [1, 20, 21, 58]).items()} == {
        frame: frame for frame in (1, 20, 21, 58)
    }


def test_frames_cut_by_an_edit_list_are_not_counted(tmp_path):
    whole = write_video(tmp_path / "whole.mp4")

    def start_later(packets):
        for packet in packets:
            shift = round(Fraction(8, 10) / packet.time_base)  # 8 frames
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            yield packet

    path = copy_packets(whole, tmp_path / "cut.mp4", start_later)
    assert frame_count_of_header(path) == 60
    assert [number_of(picture) for picture in read(path).values()] == list(range(8, 60))


def test_hidden_frames_of_vp8_are_not_counted(tmp_path):
    whole = write_video(tmp_path / "whole.webm", 20, "libvpx", {"g": "10", "lag-in-frames": "0"})

    def hide_copies(packets):
        for i, packet in enumerate(packets):
            if i in (5, 13):
                hidden = av.Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])
                hidden.pts, hidden.dts, hidden.time_base = packet.pts - 50, packet.dts - 50, packet.time_base
                yield hidden
            yield packet

    path = copy_packets(whole, tmp_path / "hidden.webm", hide_copies)
    assert len(packet_positions(path)) == 22
    assert [number_of(picture) for picture in read(path).values()] == list(range(20))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_empty_packet_does_not_end_the_video(codec, tmp_path):
    path = write_video(tmp_path / "video.mp4", 20, codec, options={"g": "1", "bf": "0"})
    place, size = packet_positions(path)[5]
    data = bytearray(path.read_bytes())
    sizes, mdat = data.find(b"stsz") + 16, data.find(b"mdat") - 4
    data[sizes + 4 * 5 : sizes + 4 * 6] = struct.pack(">I", 0)
    data[mdat : mdat + 4] = struct.pack(">I", struct.unpack_from(">I", data, mdat)[0] - size)
    del data[place : place + size]
    path.write_bytes(data)
    assert [number_of(picture) for picture in read(path).values()] == [*range(5), *range(6, 20)]


def test_metadata_that_is_no_text_is_ignored(tmp_path):
    path = write_video(tmp_path / "video.mkv", 3)
    data = path.read_bytes()
    assert data.count(b"Lavf") > 0
    path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    assert len(read(path)) == 3


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotated_videos_are_shown_upright(quarter_turns, tmp_path):
    path = write_video(tmp_path / "upright.mp4", 3)
    upright = read(path)
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 44
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    data[matrix : matrix + 36] = struct.pack(
        ">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30
    )
    rotated = read(io.BytesIO(data))
    for frame, picture in upright.items():
        assert np.array_equal(rotated[frame], np.rot90(picture, -quarter_turns))  # the matrix turns clockwise


def test_a_file_object_gives_the_frames_of_its_path(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    with open(path, "rb") as file:
        pixel_values, _ = load_video(file, input_size=28, num_segments=4)
        assert not file.closed
    assert torch.equal(pixel_values, load_video(str(path), input_size=28, num_segments=4)[0])


def test_load_video_gives_the_tiles_of_each_frame_in_the_chosen_order(tmp_path):
    path = write_video(tmp_path / "video.mp4", 5)
    pictures = read(path)
    pixel_values, num_patches_list = load_video(path, input_size=28, max_num=6, num_segments=9)
    tiles = [load_image(Image.fromarray(pictures[i]), 28, 6) for i in get_index(None, 10, 4, num_segments=9)]
    assert num_patches_list == [len(each) for each in tiles] and num_patches_list[0] > 1
    assert torch.equal(pixel_values, torch.cat(tiles))


def test_bounds_are_in_seconds(tmp_path):
    path = write_video(tmp_path / "video.mp4")  # 10 frames a second
    pixel_values, _ = load_video(path, bound=(2, 4), input_size=28, num_segments=2)
    transform = build_transform(28)
    expected = [transform(Image.fromarray(picture)) for picture in read(path, [25, 35]).values()]
    assert torch.equal(pixel_values, torch.stack(expected))


# files that cannot be read, or not wholly


def test_a_bound_past_the_end_names_file_frame_and_number_of_frames(tmp_path):
    path = write_video(tmp_path / "video.mp4")
    with pytest.raises(ValueError, match=r"video\.mp4: frame \d{3} cannot be read; 60 of its 60 frames"):
        load_video(path, bound=(100, 200), num_segments=4)


def test_negative_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match="frame -1 "):
        read_video(write_video(tmp_path / "video.mp4"), lambda num_frames, fps: [-1])


@pytest.fixture
def cut_short(tmp_path):
    """An mp4 of 60 frames with its index in front and half of its data."""
    whole = write_video(tmp_path / "whole.mp4")
    path = copy_packets(whole, tmp_path / "short.mp4", options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: (data.find(b"mdat") + len(data)) // 2])
    return path


def test_a_file_cut_short_gives_the_frames_it_has(cut_short):
    assert [number_of(picture) for picture in read(cut_short, [0, 3]).values()] == [0, 3]


@pytest.mark.skipif(not hasattr(av.stream.Stream, "index_entries"), reason="older PyAV cannot tell")
def test_a_file_cut_short_is_not_taken_for_a_shorter_video(cut_short):
    with pytest.raises(ValueError, match=r"short\.mp4: frame \d\d cannot be read; \d\d of its 60 frames can"):
        load_video(cut_short, num_segments=8)


def test_a_file_that_turns_to_garbage_gives_the_frames_before(tmp_path):
    planes = [numbered(i)[..., 0].tobytes() + b"\x80" * (WIDTH * HEIGHT // 2) for i in range(5)]
    header = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 C420jpeg\n".encode()
    path = tmp_path / "video.y4m"
    path.write_bytes(header + b"FRAME\n" + b"FRAME\n".join(planes) + b"GARBAGE" * 1000)
    assert [number_of(picture) for picture in read(path).values()] == list(range(5))


def test_a_damaged_frame_is_an_error_and_its_neighbours_are_not(tmp_path):
    path = write_video(tmp_path / "video.mp4", 20, options={"g": "1", "bf": "0"})
    place, size = packet_positions(path)[7]
    data = bytearray(path.read_bytes())
    data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    assert [number_of(picture) for picture in read(path, [6, 8]).values()] == [6, 8]
    with pytest.raises(ValueError, match=r"video\.mp4: frame 7 cannot be read; 19 of its 20 frames can"):
        read(path, [6, 7, 8])


@pytest.mark.parametrize("name", ["empty.mp4", "words.mp4", "words.txt", "sound.wav"])
def test_what_is_no_video_is_a_value_error_with_its_name(name, tmp_path):
    path = tmp_path / name
    if name == "sound.wav":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", "none"))
            sound.writeframes(bytes(16000))
    else:
        path.write_text("" if name == "empty.mp4" else "no pictures in here\n" * 50)
    with pytest.raises(ValueError, match=name):
        load_video(path)


@pytest.mark.skipif(int(av.__version__.split(".")[0]) < 17, reason="older PyAV cannot write a cover")
def test_a_sound_file_with_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(numbered(0)), format="rgb24")
        for stream, content in ((cover, picture), (sound, silence)):
            container.mux([*stream.encode(content), *stream.encode(None)])
    with pytest.raises(ValueError, match="song.m4a is not a video"):
        load_video(path)


def test_an_unknown_codec_is_a_value_error(tmp_path):
    path = write_video(tmp_path / "video.mp4", 3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xxxx"))
    with pytest.raises(ValueError, match="video.mp4 is in a video format that PyAV does not know"):
        load_video(path)


def test_a_folder_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="directory"):
        load_video(tmp_path)


def test_a_video_without_frames_is_a_value_error(tmp_path):
    path = copy_packets(write_video(tmp_path / "whole.mkv"), tmp_path / "none.mkv", lambda packets: [])
    with pytest.raises(ValueError, match="none.mkv"):
        load_video(path)


def test_a_missing_video_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        load_video(tmp_path / "missing.mp4")


def test_an_unknown_backend_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="backend='opencv': expected one of pyav, decord"):
        load_video(tmp_path / "video.mp4", backend="opencv")


@pytest.mark.parametrize(
    "backend, package, way_out", [("pyav", "av", "av"), ("decord", "decord", r"pvc\[decord\]")]
)
def test_a_backend_that_is_not_installed_says_how_to_install_it(backend, package, way_out, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {way_out}"):
        load_video(ASSETS / "video.mp4", backend=backend)


# the released example, and decord


def read_and_tell(path, frames=None):
    """(number of frames, frames a second) as told to the chooser, and the chosen frames, or all."""
    told = []

    def choose(num_frames, fps):
        told.append((num_frames, fps))
        return range(num_frames) if frames is None else frames

    pictures = dict(read_video(path, choose)[1])
    return told[0], pictures


@needs_media
def test_load_video_equals_released_on_the_example_video():
    golden = json.loads((SHARED / "golden" / "load_video.json").read_text())
    path = SHARED / "media" / golden["file"]
    told, pictures = read_and_tell(path, golden["frame_indices"]["8"])
    assert told == (golden["num_frames"], golden["avg_fps"])
    for num_segments, frames in golden["frame_indices"].items():
        assert get_index(None, told[1], told[0] - 1, num_segments=int(num_segments)).tolist() == frames
    for case in golden["load_video"]:
        for frame in case["frames"]:
            assert sha256(pictures[frame["index"]]) == frame["raw_sha256"]
        pixel_values, num_patches_list = load_video(path, **case["args"])
        assert num_patches_list == case["num_patches_list"]
        assert sha256(pixel_values.numpy()) == case["sha256_float32_le_c_order"]


@pytest.mark.parametrize(
    "path",
    [ASSETS / "video.mp4", pytest.param(SHARED / "media" / "example_video.mp4", marks=needs_media)],
    ids=str,
)
def test_pyav_and_decord_read_equal_frames(path):
    pytest.importorskip("decord")
    for num_segments in (8, 24):
        by_pyav, by_decord = (
            load_video(path, input_size=112, num_segments=num_segments, backend=backend)
            for backend in ("pyav", "decord")
        )
        assert torch.equal(by_pyav[0], by_decord[0]) and by_pyav[1] == by_decord[1]


def test_decord_names_what_it_cannot_read(tmp_path):
    pytest.importorskip("decord")
    (tmp_path / "words.mp4").write_text("no pictures in here")
    with pytest.raises(ValueError, match="words.mp4"):
        load_video(tmp_path / "words.mp4", backend="decord")
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        load_video(tmp_path / "missing.mp4", backend="decord")


# assets


def test_assets_are_what_the_script_draws():
    for name, drawn in (("picture1", make_assets.draw_picture1()), ("picture2", make_assets.draw_picture2())):
        with Image.open(ASSETS / f"{name}.png") as picture:
            assert picture.mode == "RGB" and picture.size == make_assets.PICTURE_SIZE
            shapes = (0, 0, picture.width, 60)  # the word below depends on the version of the renderer
            assert picture.crop(shapes).tobytes() == drawn.crop(shapes).tobytes()
    files = [ASSETS / name for name in ("picture1.png", "picture2.png", "video.mp4")]
    assert sum(file.stat().st_size for file in files) < 200_000


def test_the_pictures_of_the_assets_load_as_tiles():
    for name in ("picture1.png", "picture2.png"):
        assert load_image(ASSETS / name, input_size=96, max_num=6).shape == (3, 3, 96, 96)


def test_the_disc_of_the_video_moves_to_the_right():
    told, pictures = read_and_tell(ASSETS / "video.mp4")
    assert told == (make_assets.VIDEO_FRAMES, make_assets.VIDEO_FPS)
    centres = []
    for frame, picture in pictures.items():
        assert picture.shape == (make_assets.VIDEO_SIDE, make_assets.VIDEO_SIDE, 3)
        red, _, blue = picture.astype(int).transpose(2, 0, 1)
        y, x = np.nonzero(blue - red > 80)
        assert np.allclose((x.mean(), y.mean()), make_assets.disc_centre(frame), atol=1)
        centres.append(x.mean())
    assert centres == sorted(centres) and centres[-1] - centres[0] > 60
