"""The web page without its page: gradio's history as messages, answers that can be stopped, what was seen."""

import asyncio
import sys
import threading
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch
from servers import ASSETS, talker
from typer.testing import CliRunner

import pvc.serving.web
from pvc.cli import app
from pvc.clips import Clip
from pvc.preprocess import read_frames
from pvc.serving.errors import ApiError
from pvc.serving.web.assistant import Assistant, Settings
from pvc.serving.web.dialogue import NOT_ANSWERED, files_of, kind_of, messages_of, names_alone
from pvc.serving.web.live import LiveCamera, LiveCameras
from pvc.serving.web.seen import Seen, SeenMedia, seen_html

SPACE = ASSETS.parent / "examples" / "space"
HUB_COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
IMAGE, VIDEO = str(ASSETS / "picture1.png"), str(ASSETS / "video.mp4")
SETTINGS = Settings(num_frames=4, max_tiles=2, max_tokens=32)


def user(*content):
    return {"role": "user", "content": list(content), "metadata": None}


def assistant_says(text, title=None):
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "metadata": {"title": title}}


def texts(messages):
    """Role and typed text of each message."""
    contents = [m["content"] for m in messages]
    typed = [c if isinstance(c, str) else c[-1]["text"] for c in contents]
    return [(m["role"], text) for m, text in zip(messages, typed)]


# ---- history -> messages


@pytest.mark.parametrize(
    "file",
    [{"path": IMAGE}, {"type": "file", "file": {"path": IMAGE, "mime_type": "image/png"}, "alt_text": None}],
    ids=["as the page has just made it", "as the browser sends it back"],
)
def test_a_dialogue_with_files_comes_whole_from_the_history(file):
    history = [user(file, "What is it?"), assistant_says("red")]
    messages = messages_of(history, {"text": "And now?", "files": [VIDEO]}, "Be brief. ")

    assert texts(messages) == [
        ("system", "Be brief."),
        ("user", "What is it?"),
        ("assistant", "red"),
        ("user", "And now?"),
    ]
    assert files_of(messages) == [("image", IMAGE), ("video", VIDEO)]


def test_files_and_text_that_come_as_messages_of_their_own_are_one_turn():
    history = [user({"path": IMAGE}), user({"path": VIDEO}), user("Both?"), assistant_says("yes")]
    messages = messages_of(history, "Sure?")
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert [block["type"] for block in messages[0]["content"]] == ["image", "video", "text"]


def test_a_question_stopped_before_its_first_word_keeps_its_files_for_the_next():
    messages = messages_of([user({"path": IMAGE}, "What is it?")], "Which colour?")
    assert texts(messages) == [("user", "What is it?\nWhich colour?")]
    assert files_of(messages) == [("image", IMAGE)]


def test_a_turn_that_ended_in_an_error_is_left_out():
    history = [
        user({"path": "broken.png"}, "What?"),
        assistant_says("broken.png cannot be read", NOT_ANSWERED),
    ]
    assert messages_of(history, "Hello")[0]["content"] == [{"type": "text", "text": "Hello"}]


def test_an_answer_that_quotes_the_title_of_errors_stays():
    history = [user("What is written there?"), assistant_says(NOT_ANSWERED)]
    assert ("assistant", NOT_ANSWERED) in texts(messages_of(history, "Sure?"))


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_question_is_refused(text):
    with pytest.raises(ValueError, match="the question is empty"):
        messages_of([], {"text": text, "files": []})


@pytest.mark.parametrize(
    ("name", "kind"), [("a.PNG", "image"), ("a.webp", "image"), ("a.mp4", "video"), ("a.GIF", "video")]
)
def test_the_name_of_a_file_tells_its_kind(name, kind):
    assert kind_of(f"/tmp/{name}") == kind


def test_files_of_other_kinds_are_refused_by_their_name_alone():
    with pytest.raises(ValueError, match=r"^notes\.txt is neither an image nor a video$"):
        messages_of([], {"text": "What?", "files": ["/home/ann/notes.txt"]})


def test_errors_have_names_and_no_folders():
    messages = messages_of([], {"text": "What?", "files": ["/tmp/x/a.png"]})
    assert names_alone("/tmp/x/a.png cannot be read", messages) == "a.png cannot be read"


# ---- answers


@pytest.fixture(scope="module")
def assistant(tiny):
    return Assistant(*tiny, ASSETS)


def ask(assistant, messages, settings=SETTINGS):
    return list(assistant.ask(messages, settings))


def test_a_second_question_is_answered_as_without_the_first_ones_cache(tiny, assistant):
    question = {"text": "Which shape moves?", "files": [VIDEO]}
    first = ask(assistant, messages_of([], question))[-1]
    assert first.text and first.error is None

    history = [user({"path": VIDEO}, question["text"]), assistant_says(first.text)]
    messages = messages_of(history, "In which direction does it move?")
    again = ask(assistant, messages)[-1]
    alone = ask(Assistant(*tiny, ASSETS), messages)[-1]
    assert again.text == alone.text
    assert again.seen.reused_tokens > 0
    assert alone.seen.reused_tokens == 0


def test_what_was_seen_is_what_was_encoded(assistant):
    updates = ask(assistant, messages_of([], {"text": "What is it?", "files": [IMAGE, VIDEO]}))
    image, video = updates[-1].seen.media

    assert (image.name, image.clip.tiles, image.tokens) == ("picture1.png", 3, 3 * 4 * 9)
    assert (video.name, video.clip.frames, video.tokens) == ("video.mp4", 4, 4 * 9)
    assert video.times_s == sorted(video.times_s) and len(video.times_s) == 4
    assert updates[-1].seen.answer_tokens > 0
    assert updates[0].seen.answer_tokens is None  # told before the answer begins


def test_settings_change_tiles_frames_and_length(assistant):
    messages = messages_of([], {"text": "What is it?", "files": [IMAGE, VIDEO]})
    seen = ask(assistant, messages, Settings(num_frames=2, max_tiles=1, max_tokens=1))[-1].seen
    assert [item.clip.tiles * item.clip.frames for item in seen.media] == [1, 2]
    assert (seen.answer_tokens, seen.is_cut) == (1, True)


def test_files_outside_the_uploads_are_refused_without_their_folder(assistant, tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes((ASSETS / "picture1.png").read_bytes())
    (update,) = ask(assistant, messages_of([], {"text": "What?", "files": [str(outside)]}))
    assert "secret.png" in update.error
    assert str(tmp_path) not in update.error


def test_a_broken_file_is_an_error_with_its_name_alone(tiny, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    (update,) = ask(Assistant(*tiny, tmp_path), messages_of([], {"text": "What?", "files": [str(broken)]}))
    assert "broken.png cannot be read" in update.error
    assert str(tmp_path) not in update.error


def test_leaving_the_loop_stops_the_model():
    model, processor = talker()
    assistant = Assistant(model, processor, ASSETS)
    settings = Settings(num_frames=2, max_tiles=1, max_tokens=3000)

    updates = assistant.ask(messages_of([], "Tell me everything"), settings)
    texts = [next(updates).text for _ in range(3)]
    updates.close()

    begun = time.monotonic()
    while assistant.is_busy:
        assert time.monotonic() - begun < 2
        time.sleep(0.01)
    assert texts[-1]


def test_a_stream_in_an_event_loop_ends_with_the_whole_answer(assistant):
    async def collect():
        return [update async for update in assistant.stream(messages, SETTINGS)]

    messages = messages_of([], {"text": "What is it?", "files": [IMAGE]})
    updates = asyncio.run(collect())
    assert updates[-1].is_last
    assert updates[-1].text == ask(assistant, messages)[-1].text
    assert updates[0].seen is not None and len(updates) <= 4


def test_a_stream_that_is_cancelled_stops_the_model():
    assistant = Assistant(*talker(), ASSETS)

    async def leave():
        settings = Settings(num_frames=2, max_tiles=1, max_tokens=3000)
        async with aclosing(assistant.stream(messages_of([], "Tell me everything"), settings)) as updates:
            async for update in updates:
                if update.text:
                    return

    asyncio.run(leave())
    begun = time.monotonic()
    while assistant.is_busy:
        assert time.monotonic() - begun < 2
        time.sleep(0.01)


def test_a_question_that_is_stopped_while_it_waits_is_never_computed(assistant):
    with assistant.lock:  # another question is on the model
        updates = assistant.ask(messages_of([], "What?"), SETTINGS)
        assert next(updates).seen is not None
        updates.close()
    deadline = time.monotonic() + 5
    while any(t.name == "pvc-question" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name == "pvc-question" for t in threading.enumerate())


# ---- live camera


@pytest.fixture
def frames(tmp_path):
    """Frames of the video of assets/, as files."""
    paths = [tmp_path / f"frame{i}.png" for i in range(8)]
    for path, frame in zip(paths, read_frames(VIDEO, num_frames=8).frames):
        frame.save(path)
    return [str(path) for path in paths]


def test_a_camera_answers_about_the_frames_so_far(tiny, tmp_path, frames):
    camera = LiveCamera(Assistant(*tiny, tmp_path))
    assert all(camera.add(path) for path in frames)

    assert camera.num_frames == 8
    assert camera.ask("Which shape moves?", SETTINGS) == "blue circle"
    assert camera.history == [("Which shape moves?", "blue circle")]


def test_frames_that_come_while_the_model_answers_are_left_out(tiny, tmp_path, frames):
    assistant = Assistant(*tiny, tmp_path)
    camera = LiveCamera(assistant)
    with assistant.lock:
        assert camera.add(frames[0]) is False
    assert camera.num_frames == 0


@pytest.mark.parametrize(("question", "why"), [(" ", "the question is empty"), ("What?", "no frame yet")])
def test_a_camera_without_question_or_frame_is_refused(assistant, question, why):
    with pytest.raises(ApiError, match=why):
        LiveCamera(assistant).ask(question, SETTINGS)


def test_the_camera_used_longest_ago_goes_for_a_new_one(assistant):
    cameras = LiveCameras(assistant, most=2)
    a, b = cameras.of("a"), cameras.of("b")
    assert cameras.of("a") is a
    cameras.of("c")
    assert cameras.of("a") is a
    assert cameras.of("b") is not b


def test_a_forgotten_video_starts_anew(assistant):
    cameras = LiveCameras(assistant)
    camera = cameras.of("a")
    cameras.forget("a")
    assert cameras.of("a") is not camera


# ---- what was seen, as HTML


def seen_of(name, frames=1, tiles=1, times_s=None):
    pixels = torch.zeros(frames * tiles, 3, 8, 8)
    item = SeenMedia(name, Clip(frames, tiles, 1), pixels, 9 * frames * tiles, times_s)
    return Seen([item], prompt_tokens=100, media_s=0.25)


def test_frames_have_times_and_tiles_numbers():
    page = seen_html(seen_of("a.mp4", frames=2, times_s=[0.5, 1.5]))
    assert "0.50 s" in page and "1.50 s" in page and "2 frames, 18 visual tokens" in page

    page = seen_html(seen_of("a.png", tiles=3))
    assert "tile 2" in page and "thumbnail" in page and "tile 3" not in page


def test_names_of_files_cannot_write_html():
    assert "<script>" not in seen_html(seen_of("<script>alert(1)</script>.png"))


def test_stages_are_told_once_they_are_known():
    seen = seen_of("a.png")
    assert "First text" not in seen_html(seen)
    done = replace(seen, first_s=0.5, answer_tokens=11, tokens_per_s=20.0, is_cut=True)
    assert "after 0.50 s" in seen_html(done) and "11 tokens (the limit), 20.0 a second" in seen_html(done)


def test_a_long_video_shows_a_part_of_its_frames():
    page = seen_html(seen_of("a.mp4", frames=70, times_s=[float(i) for i in range(70)]))
    assert page.count("<img") == 64 and "and 6 more" in page


# ---- the command, and the Space


def run(*arguments):
    """Exit code, and all that `pvc web` prints, in one line."""
    result = CliRunner().invoke(app, ["web", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_other_machines_need_a_password(monkeypatch):
    monkeypatch.delenv("PVC_WEB_PASSWORD", raising=False)
    code, printed = run("--host", "0.0.0.0")
    assert code == 1
    assert "set PVC_WEB_PASSWORD, or pass --without-password" in printed


def test_without_gradio_the_command_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "pvc.serving.web.page", raising=False)
    monkeypatch.delattr(pvc.serving.web, "page", raising=False)
    code, printed = run()
    assert code == 1
    assert "the page needs gradio" in printed and "`web`" in printed


def test_the_space_says_what_the_hub_asks_for():
    head, _ = (SPACE / "README.md").read_text().removeprefix("---\n").split("\n---\n")
    metadata = dict(line.split(": ", 1) for line in head.splitlines())
    assert metadata["sdk"] == "gradio"
    assert (SPACE / metadata["app_file"]).exists()
    assert len(metadata["short_description"]) <= 60  # the Hub's limit
    assert metadata["colorFrom"] in HUB_COLOURS and metadata["colorTo"] in HUB_COLOURS
