"""From videos to data that train: nothing lost and nothing asked twice, whatever ends a run."""

import base64
import hashlib
import io
import json
import re
import shutil
import threading
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from builders import golden
from chat_server import reply
from construction import (
    endpoint,
    good_reply,
    good_text,
    images_of,
    make_plan,
    run,
    task_of,
    text_of,
    video_of,
    write_list,
)
from numbered_videos import number_of, write_video
from PIL import Image
from transformers import AutoTokenizer

from pvc.evaluation.chat_endpoint import MOST_ERRORS
from pvc.processing_dynamic_vlm import DynamicVLMImageProcessor, DynamicVLMProcessor
from pvc.training.data.check import check
from pvc.training.data.encoding import Encoder
from pvc.training.data.loader import DataOptions
from pvc.training.data.meta import read_meta
from pvc.training.data_construction.construct import construct
from pvc.training.data_construction.frames import FrameOptions, save_frames
from pvc.training.data_construction.videos import Video


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    return write_list(tmp_path_factory.mktemp("videos"))


def asked(server) -> list[tuple[int, str]]:
    return [(video_of(body), task_of(body)) for _, _, body in server.requests]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(out: Path) -> dict[str, str]:
    """All files but the lock and the journal, whose order is that of replies."""
    paths = (path for path in sorted(out.rglob("*")) if path.is_file())
    kept = [path for path in paths if path.name not in (".lock", "replies.jsonl", "report.json")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def test_each_task_of_each_video_is_asked_once_with_its_frames_in_order(listed, server, tmp_path):
    plan = make_plan(listed)
    report = run(plan, tmp_path, server.url)

    expected = [(int(v.name[1:]), task.name) for v in plan.selection.videos for task in plan.tasks_of(v)]
    assert sorted(asked(server)) == sorted(expected) and len(expected) == 20
    assert report.is_complete and report.videos["used"] == 10 and report.replies == {"used": 20}

    for _, _, body in server.requests:
        frames = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in images_of(body)]
        seconds = 1 + video_of(body) % 4
        assert [number_of(np.asarray(frame)) for frame in frames] == [10 * s for s in range(seconds)]
        marks = re.findall(r"^<Frame (\d+)>$", text_of(body), re.MULTILINE)
        assert marks == [str(number) for number in range(1, seconds + 1)]


def test_a_second_run_asks_nothing_and_writes_the_same(listed, server, tmp_path):
    run(make_plan(listed), tmp_path, server.url)
    before, number = files_of(tmp_path), len(server.requests)
    replies = (tmp_path / "replies.jsonl").read_bytes()

    report = run(make_plan(listed), tmp_path, server.url)
    assert len(server.requests) == number and files_of(tmp_path) == before
    assert (tmp_path / "replies.jsonl").read_bytes() == replies
    assert report.replies == {"used": 20}


@pytest.mark.parametrize(("answered", "concurrency"), [(3, 1), (11, 4)])
def test_a_killed_run_loses_no_reply_and_repeats_none(listed, server, tmp_path, answered, concurrency):
    """The endpoint answers some requests and hangs on the next ones; then the process is killed."""
    hanging, all_hang, goes_on, lock = [], threading.Event(), threading.Event(), threading.Lock()

    def answer(body):
        with lock:
            hangs = not goes_on.is_set() and len(server.requests) - len(hanging) > answered
            if hangs:
                hanging.append((video_of(body), task_of(body)))
        if len(hanging) == concurrency:
            all_hang.set()
        if hangs:
            goes_on.wait(60)
        return good_reply(body)

    server.answer = answer
    out = tmp_path / "out"
    # forked: a process that imports all of this anew takes seconds
    arguments = (make_plan(listed), out, server.url)
    process = get_context("fork").Process(target=run, args=arguments, kwargs={"concurrency": concurrency})
    process.start()
    assert all_hang.wait(60)
    process.kill()
    process.join(10)
    replies = out / "replies.jsonl"
    assert len(lines(replies)) == answered

    with replies.open("ab") as file:  # as a kill in the middle of a line would leave it
        file.write(b'{"prompt_hash": "torn')
    goes_on.set()
    assert run(make_plan(listed), out, server.url).is_complete

    times = Counter(asked(server))
    assert len(times) == 20 and len(lines(replies)) == 20
    assert {request for request, number in times.items() if number > 1} == set(hanging)  # had no reply
    assert max(times.values()) == 2

    run(make_plan(listed), tmp_path / "whole", server.url)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_frames_of_a_killed_run_are_made_anew_where_they_are_not_whole(listed, server, tmp_path):
    run(make_plan(listed), tmp_path / "whole", server.url)
    out = tmp_path / "out"
    for name, file in ((".v3.partial", "000001.jpg"), ("v4", "000001.jpg")):
        (out / "frames" / name).mkdir(parents=True)
        (out / "frames" / name / file).write_bytes(b"half")

    run(make_plan(listed), out, server.url)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_errors_that_may_be_gone_are_tried_again_and_counted(listed, server, tmp_path):
    server.responses = [
        (429, b"slow down", {"Retry-After": "0"}),
        (503, b"busy", {}),
        b"<html>",
        {"choices": []},
        reply(None),
    ]
    report = run(make_plan(listed), tmp_path, server.url, concurrency=1, attempts=6)

    assert report.is_complete and not report.failures
    assert report.failed_tries == {"429": 1, "503": 1, "no answer": 3}
    assert len(server.requests) == 25 and len(lines(tmp_path / "replies.jsonl")) == 20


def test_a_timeout_is_tried_again(listed, server, tmp_path):
    def answer(body):
        if len(server.requests) == 1:
            time.sleep(0.6)
        return good_reply(body)

    server.answer = answer
    report = run(make_plan(listed), tmp_path, server.url, concurrency=1, timeout_s=0.3)
    assert report.is_complete and report.failed_tries == {"no answer": 1}


def test_a_request_without_a_reply_is_reported_and_asked_by_the_next_run(listed, server, tmp_path):
    server.responses = [(400, b"too long", {})] + [(500, b"down", {})] * 2
    report = run(make_plan(listed), tmp_path, server.url, concurrency=1, attempts=2)

    assert not report.is_complete and report.replies == {"used": 18, "missing": 2}
    errors = sorted(failure.error for failure in report.failures)
    assert "400 Bad Request: too long" in errors[0] and "(2 tries)" in errors[1]
    assert len(lines(tmp_path / "constructed.jsonl")) == 18  # what there is can be used

    assert run(make_plan(listed), tmp_path, server.url).replies == {"used": 20}
    assert len(server.requests) == 3 + 18 + 2


def test_an_endpoint_that_refuses_everything_is_not_asked_for_ever(listed, server, tmp_path):
    server.answer = lambda body: (401, b"wrong key", {})
    report = run(make_plan(listed, tasks_per_video=13), tmp_path, server.url, concurrency=1)
    assert report.gave_up and len(server.requests) == len(report.failures) == MOST_ERRORS
    assert report.replies == {"missing": 130}


def test_errors_between_replies_stop_nothing(listed, server, tmp_path):
    server.answer = lambda body: good_reply(body) if len(server.requests) % 2 else (400, b"no", {})
    report = run(make_plan(listed, tasks_per_video=6), tmp_path, server.url, concurrency=1)
    assert not report.gave_up and len(report.failures) == 30 > MOST_ERRORS


def test_a_question_is_asked_once_about_a_video(listed, server, tmp_path):
    pairs = {"pairs": [{"question": question, "answer": "the red one"} for question in ("Which?", "WHICH? ")]}
    server.answer = lambda body: reply(json.dumps(pairs))
    report = run(make_plan(listed, tasks=["reasoning_qa", "temporal_qa"]), tmp_path, server.url)
    assert report.replies == {"used": 10, "nothing left": 10}
    assert report.dropped == {"repeated question": 30} and sum(report.pairs.values()) == 10


def test_content_that_the_provider_refuses_is_kept_as_refused(listed, server, tmp_path):
    server.responses = [
        (400, b'{"error": {"code": "content_policy_violation"}}', {}),
        reply(None, refusal="I can't help with that."),
        reply(None, finish_reason="content_filter"),
    ]
    report = run(make_plan(listed), tmp_path, server.url, concurrency=1)
    assert report.is_complete and report.replies == {"used": 17, "refused": 3}
    run(make_plan(listed), tmp_path, server.url)
    assert len(server.requests) == 20


def test_bad_replies_are_kept_counted_and_left_out(listed, server, tmp_path):
    pair = {"question": "Which?", "answer": "The red one."}
    server.responses = [
        reply("Sorry, I cannot identify people."),
        reply('{"pairs": [{"question": "Wh', finish_reason="length"),
        reply(None, finish_reason="length"),
        reply(""),
        reply("Here are the pairs: 1. ..."),
        reply('{"pairs": []}'),
        reply(json.dumps({"pairs": [pair | {"answer": "A person."}, pair]})),
        reply(json.dumps({"pairs": [{"question": "Which?"}, "text"]})),
    ]
    plan = make_plan(listed, tasks=["main_entities"], tasks_per_video=1)
    report = run(plan, tmp_path, server.url, concurrency=1)

    expected = {"refused": 1, "cut off": 2, "broken": 2, "declined": 1, "nothing left": 1, "used": 3}
    assert report.replies == expected
    assert report.dropped == {"vague": 1, "ill-formatted": 2}
    assert report.pairs == {"main_entities": 3}
    assert len(lines(tmp_path / "replies.jsonl")) == 10  # every reply is kept, as it came
    assert json.loads((tmp_path / "report.json").read_text())["replies"] == expected


def test_a_video_that_cannot_be_read_is_reported_and_stops_no_other(listed, server, tmp_path):
    bad = tmp_path / "bad.txt"
    videos = [str(listed.parent / f"{i}.mp4") for i in range(2)]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    bad.write_text("\n".join([videos[0], str(tmp_path / "broken.mp4"), "missing.mp4", videos[1]]))
    server.answer = lambda body: reply(good_text(task_of(body)))

    report = run(make_plan(bad), tmp_path / "out", server.url)
    assert report.videos == {"listed": 4, "duplicates": 0, "thinned": 0, "unreadable": 2, "used": 2}
    assert [Path(path).name for path, _ in report.unreadable] == ["broken.mp4", "missing.mp4"]
    assert report.replies == {"used": 4}


def test_the_key_is_sent_and_stands_in_no_file_and_no_error(listed, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
    server.responses = [(401, b"Incorrect API key provided: sk-secret-key", {})]
    report = run(make_plan(listed), tmp_path, server.url, concurrency=1)

    assert server.requests[0][1]["Authorization"] == "Bearer sk-secret-key"
    assert len(report.failures) == 1 and "secret" not in report.failures[0].error
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-secret-key" in path.read_bytes() for path in files)


def test_no_more_requests_start_than_the_rate_allows(listed, server, tmp_path):
    from pvc.training.data_construction.asking import RateLimit

    limited = endpoint(server.url, before_each=RateLimit(60 / 0.02).wait)
    started = time.monotonic()
    construct(make_plan(listed), tmp_path, limited, "stand-in", concurrency=8)
    assert time.monotonic() - started >= 19 * 0.02 and len(server.requests) == 20


def test_frames_of_other_options_are_not_mixed(listed, server, tmp_path):
    run(make_plan(listed), tmp_path, server.url)
    other = make_plan(listed, frames=FrameOptions(max_frames=2, long_frames=2))
    with pytest.raises(ValueError, match="max_frames 128, now 2, long_frames 256, now 2: choose another OUT"):
        run(other, tmp_path, server.url)


def test_a_long_video_is_thinned_and_a_share_of_them_less(listed, server, tmp_path):
    options = FrameOptions(max_frames=2, long_frames=3, long_share=0.5, frame_size=32)
    run(make_plan(listed, frames=options), tmp_path, server.url)
    folders = {
        path.name: sorted(path.glob("*.jpg")) for path in (tmp_path / "frames").iterdir() if path.is_dir()
    }

    numbers = {len(folders[f"v{i}"]) for i in (2, 3, 6, 7)}  # of three and four seconds
    assert numbers == {2, 3} and len(folders["v0"]) == 1
    assert {Image.open(path).size for paths in folders.values() for path in paths} == {(32, 24)}


def test_other_frames_are_asked_about_anew(server, tmp_path):
    listed, out = write_list(tmp_path, 2), tmp_path / "out"
    run(make_plan(listed), out, server.url)
    write_video(tmp_path / "1.mp4", 4, "mpeg4", {}, times_ms=[0, 500, 1000, 1500])  # two seconds too
    run(make_plan(listed), out, server.url)
    assert len(server.requests) == 4  # the saved frames count, not the file

    shutil.rmtree(out / "frames" / "v1")
    run(make_plan(listed), out, server.url)
    assert [video for video, _ in asked(server)[4:]] == [1, 1]
    assert {len(images_of(body)) for _, _, body in server.requests[4:]} == {2}  # as many as before


def test_a_frame_that_stays_for_seconds_is_there_for_each(tmp_path):
    path = write_video(tmp_path / "slow.mkv", 3, "mpeg4", {}, times_ms=[0, 2500, 4000])
    saved = save_frames(Video("slow", str(path)), tmp_path / "frames", FrameOptions())
    shown = [number_of(np.asarray(Image.open(frame))) for frame in saved.paths()]
    assert shown[:5] == [0, 0, 0, 1, 2] and saved.num_frames == len(shown)


# ---- training


@pytest.fixture(scope="module")
def processor() -> DynamicVLMProcessor:
    images = DynamicVLMImageProcessor(image_size=84, max_video_tokens=60, max_frame_tokens=36)
    return DynamicVLMProcessor(images, AutoTokenizer.from_pretrained(golden("dynamic_vlm/tokenizer")))


def test_training_reads_every_line_and_shows_the_frames_that_are_named(listed, server, tmp_path, processor):
    run(make_plan(listed, tasks_per_video=4), tmp_path, server.url)
    found = check(
        tmp_path / "meta.json",
        processor,
        DataOptions(max_tokens=1024, min_frames=2, max_frames=4),
        decode=True,
    )
    assert not found.broken and not any("mean" in note for note in found.notes)
    assert sum(part.samples for part in found.parts) == 40

    (data,) = read_meta(tmp_path / "meta.json")
    encoder = Encoder(processor, max_tokens=1024, min_frames=2, max_frames=2)
    for index in range(len(data)):
        sample = data.read(index)
        text = "\n".join(text for turn in sample.turns for text in turn)
        assert sample.every_frame == ("frame of 1s" in text) and "<Frame" not in text
        frames = sample.video.num_frames()
        encoded = encoder.encode(sample, None, np.random.default_rng(0))
        assert encoded.media[0].clip.frames == (frames if sample.every_frame else 2)

        prompt = processor.tokenizer.decode([id for id in encoded.ids if id != 333])
        if sample.every_frame and frames > 1:
            assert f"{frames}s: " in prompt and f"{frames + 1}s: " not in prompt
            shown = encoder.load(encoded)
            singles = [
                encoder.images.image(str(path)).tiles
                for path in sorted(Path(sample.video.path).glob("*.jpg"))
            ]
            assert all((a == b[0]).all() for a, b in zip(shown, singles)) and len(shown) == len(singles)
