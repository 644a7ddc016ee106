"""The web page in Chromium: `make test-web`, which installs gradio and playwright. Without them: skipped.

Screenshots go to the folder that SCREENSHOTS names, build/web by default.
"""

import base64
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from servers import ASSETS, talker

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
SHOTS = Path(os.environ.get("SCREENSHOTS", "build/web"))
TIMEOUT_MS = 60_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: Debian's package `chromium`"),
]


class Served:
    """A page that is served, and the assistant behind it."""

    def __init__(self, model, processor, uploads):
        from pvc.serving.web import page

        self.assistant = page.Assistant(model, processor, uploads)
        self.asked = []  # the messages of each question
        read = self.assistant.read
        self.assistant.read = lambda messages, *rest: (self.asked.append(messages), read(messages, *rest))[1]

        examples = page.example_messages(ASSETS, uploads)
        self.blocks = page.build_page(self.assistant, title="PVC-Tiny", examples=examples)
        _, self.url, _ = self.blocks.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, **page.launch_options()
        )

    def wait_until_free(self, seconds=5.0):
        begun = time.monotonic()
        while self.assistant.is_busy:
            assert time.monotonic() - begun < seconds, "the model goes on"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def uploads():
    from pvc.serving.web.page import upload_folder

    return upload_folder()


@pytest.fixture(scope="module")
def tiny_page(tiny, uploads):
    served = Served(*tiny, uploads)
    yield served
    served.blocks.close()


@pytest.fixture(scope="module")
def talking_page(uploads):
    served = Served(*talker(), uploads)
    yield served
    served.blocks.close()


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens a served page; at the end, that nothing was asked of other hosts and no script failed."""
    foreign, failures, contexts = [], [], []

    def opened(served, viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        own = (served.url.rstrip("/"), "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else foreign.append(r.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(served.url)
        page.wait_for_selector("#pvc-question textarea")
        expect(page.get_by_text("What the model saw")).to_be_visible(timeout=TIMEOUT_MS)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert foreign == []
    assert failures == []


# ---- what a person does


def attach(page, *files):
    page.set_input_files("#pvc-question input[type=file]", [str(file) for file in files])
    expect(page.locator("#pvc-question .thumbnail-item")).to_have_count(len(files), timeout=TIMEOUT_MS)


def send(page, question):
    page.fill("#pvc-question textarea", question)
    page.press("#pvc-question textarea", "Enter")


def ask(page, question, *files):
    """The answer to a question, once it is complete."""
    number = answers(page).count()
    if files:
        attach(page, *files)
    send(page, question)
    expect(answers(page)).to_have_count(number + 1, timeout=TIMEOUT_MS)
    wait_for_end(page)
    return answers(page).last.inner_text().strip()


def answers(page):
    return page.locator("[data-testid=bot]")


def wait_for_end(page):
    """Until the next question can be typed: gradio empties the box just before."""
    page.wait_for_selector("#pvc-question button[aria-label=Submit]")
    page.wait_for_selector("#pvc-question textarea:not([disabled])")


def set_number(page, label, value):
    page.get_by_label(f"number input for {label}").fill(str(value))
    page.keyboard.press("Tab")


def seen(page):
    return page.locator(".pvc-seen")


def shot(page, name):
    page.wait_for_timeout(500)  # until what moves stands still
    page.screenshot(path=SHOTS / f"{name}.png")


# ---- the claims


def test_an_image_a_second_question_and_a_video_are_one_dialogue(tiny_page, visit):
    page = visit(tiny_page)
    shot(page, "desktop-empty")
    assert ask(page, "What is in the image?", ASSETS / "picture1.png") == "red circle"
    expect(seen(page)).to_contain_text("picture1.png 3 tiles, 108 visual tokens")

    ask(page, "What colour is the square?")
    expect(seen(page)).to_contain_text("tokens were known")
    assert ask(page, "In which direction does the blue circle move?", ASSETS / "video.mp4") == "right"
    expect(seen(page)).to_contain_text("video.mp4 8 frames, 72 visual tokens")
    expect(seen(page)).to_contain_text("0.12 s")
    shot(page, "desktop")


def test_several_files_are_one_turn(tiny_page, visit):
    page = visit(tiny_page)
    ask(page, "Which images?", ASSETS / "picture1.png", ASSETS / "picture2.png", ASSETS / "video.mp4")
    for name in ("picture1.png", "picture2.png", "video.mp4"):
        expect(seen(page)).to_contain_text(name)


def test_retry_answers_again_and_undo_gives_the_question_back(tiny_page, visit):
    page = visit(tiny_page)
    first = ask(page, "What is in the image?", ASSETS / "picture1.png")
    page.click("button[aria-label=Retry]")
    page.wait_for_selector("#pvc-question button[aria-label=Stop]")
    wait_for_end(page)
    assert tiny_page.asked[-1] == tiny_page.asked[-2]
    assert answers(page).last.inner_text().strip() == first
    expect(seen(page)).to_contain_text("picture1.png")

    page.click("button[aria-label=Undo]")
    expect(answers(page)).to_have_count(0)
    expect(page.locator("#pvc-question textarea")).to_have_value("What is in the image?")
    expect(page.locator("#pvc-question .thumbnail-item")).to_have_count(1)


def test_clear_forgets_the_dialogue(tiny_page, visit):
    page = visit(tiny_page)
    ask(page, "What is in the image?", ASSETS / "picture1.png")
    page.click("button[aria-label=Clear]")
    expect(answers(page)).to_have_count(0)
    ask(page, "Hello?")
    expect(seen(page)).to_contain_text("0 of them visual")


def test_stop_ends_the_model_and_keeps_text_and_image(talking_page, visit):
    page = visit(talking_page)
    page.click("button:has-text('Settings')")
    set_number(page, "Tokens of an answer", 4096)  # half a minute or more
    attach(page, ASSETS / "picture1.png")
    send(page, "Tell me everything")
    page.wait_for_function("document.querySelector('[data-testid=bot]')?.innerText.trim().length > 5")
    page.click("#pvc-question button[aria-label=Stop]")
    talking_page.wait_until_free()
    wait_for_end(page)
    shot(page, "stopped")

    stopped = answers(page).first.inner_text()
    assert len(stopped.strip()) > 5
    send(page, "And the image?")
    page.wait_for_selector(".pvc-seen >> text=picture1.png")
    page.wait_for_function("document.querySelectorAll('[data-testid=bot]').length > 1")
    assert answers(page).first.inner_text() == stopped
    page.click("#pvc-question button[aria-label=Stop]")
    talking_page.wait_until_free()


def test_closing_the_page_ends_the_model(talking_page, visit):
    page = visit(talking_page)
    send(page, "Tell me everything")
    page.wait_for_function("document.querySelector('[data-testid=bot]')?.innerText.trim().length > 5")
    page.close()
    talking_page.wait_until_free()


def test_a_broken_file_is_named_and_the_dialogue_goes_on(tiny_page, visit, tmp_path, uploads):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page = visit(tiny_page)
    sentence = ask(page, "What is it?", broken)
    assert "Not answered" in sentence and "broken.png cannot be read" in sentence
    assert (
        "/" not in sentence.replace("and/or", "") and uploads.name not in page.content().split("<script")[0]
    )
    shot(page, "broken")
    assert ask(page, "What is in the image?", ASSETS / "picture1.png") == "red circle"


def test_a_file_of_another_kind_is_refused(tiny_page, visit, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("notes")
    page = visit(tiny_page)
    page.set_input_files("#pvc-question input[type=file]", str(notes))
    page.wait_for_timeout(500)
    expect(page.locator("#pvc-question .thumbnail-item")).to_have_count(0)


def test_a_pasted_image_is_attached(tiny_page, visit):
    page = visit(tiny_page)
    page.focus("#pvc-question textarea")
    page.evaluate(
        """base64 => {
            const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
            const event = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
            document.querySelector("#pvc-question textarea").dispatchEvent(event);
        }""",
        base64.b64encode((ASSETS / "picture1.png").read_bytes()).decode(),
    )
    expect(page.locator("#pvc-question .thumbnail-item")).to_have_count(1)
    assert ask(page, "What is in the image?") == "red circle"


def test_a_photo_of_the_camera_is_attached(tiny_page, visit):
    page = visit(tiny_page, permissions=["camera"])
    page.click("button:has-text('Camera')")
    page.locator("#pvc-camera").get_by_role("button").first.click()  # asks for the camera
    page.wait_for_selector("#pvc-camera video")
    page.wait_for_timeout(1000)
    page.click("#pvc-camera button[aria-label='capture photo']")
    page.wait_for_selector("#pvc-camera img")
    shot(page, "camera")

    page.click("button:has-text('Attach the photo')")
    expect(page.locator("#pvc-question .thumbnail-item")).to_have_count(1)
    ask(page, "What is in the image?")
    expect(seen(page)).to_contain_text("visual tokens")


def test_a_live_camera_is_watched_and_asked_about(tiny_page, visit, uploads):
    page = visit(tiny_page, permissions=["camera"])
    page.click("button:has-text('Live camera')")
    page.locator("#pvc-live").get_by_role("button").first.click()  # asks for the camera
    page.wait_for_selector("#pvc-live video")
    page.wait_for_timeout(1000)
    page.click("#pvc-live button[aria-label='start recording'], #pvc-live button[aria-label='capture photo']")
    page.wait_for_function("/([4-9]|[1-9][0-9]) frames/.test(document.body.innerText)")

    box = page.get_by_placeholder("Question about the video so far")
    box.fill("Which shape moves?")
    box.press("Enter")
    expect(page.locator("#pvc-live-answer textarea")).to_have_value(re.compile(r"\w+"))
    assert "Not answered" not in page.locator("#pvc-live-answer textarea").input_value()
    page.wait_for_function(  # it goes on
        "n => Number(document.body.innerText.match(/([0-9]+) frames/)[1]) > n + 3",
        arg=int(re.search(r"(\d+) frames", page.inner_text("body"))[1]),
    )
    shot(page, "live")
    page.click("#pvc-live button[aria-label='stop recording'], #pvc-live button:has-text('Stop')")
    page.click("button:has-text('Forget the video')")
    expect(page.get_by_text("Start the camera, and ask while it runs.")).to_be_visible()
    assert len(list(uploads.rglob("webcam*"))) < 5 and len(list(uploads.rglob("*.jpeg"))) < 5


def test_an_example_is_asked_by_a_click(tiny_page, visit):
    page = visit(tiny_page)
    page.click("text=In which direction does the blue circle move?")
    expect(seen(page)).to_contain_text("video.mp4")
    page.wait_for_selector(".pvc-seen >> text=Answer")
    assert answers(page).last.inner_text().strip() == "right"


def test_settings_are_those_of_the_answer(tiny_page, visit):
    page = visit(tiny_page)
    page.click("button:has-text('Settings')")
    set_number(page, "Tiles of an image", 1)
    set_number(page, "Tokens of an answer", 1)
    shot(page, "settings")
    ask(page, "What is in the image?", ASSETS / "picture1.png")
    expect(seen(page)).to_contain_text("1 tile, 36 visual tokens")
    expect(seen(page)).to_contain_text("1 tokens (the limit)")


def test_the_keyboard_alone_is_enough(tiny_page, visit):
    page = visit(tiny_page)
    page.keyboard.type("Hello")  # the question has the focus
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    expect(page.locator("#pvc-question textarea")).to_have_value("Hello\nthere")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(1)


def test_a_phone_shows_all_without_scrolling_sideways(tiny_page, visit):
    page = visit(tiny_page, PHONE, has_touch=True, is_mobile=True)
    shot(page, "phone-empty")
    box = page.locator("#pvc-question textarea").bounding_box()
    assert box["y"] + box["height"] <= PHONE["height"]

    ask(page, "In which direction does the blue circle move?", ASSETS / "video.mp4")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shot(page, "phone")
    page.screenshot(path=SHOTS / "phone-whole.png", full_page=True)


def test_a_dark_system_has_a_dark_page(tiny_page, visit):
    page = visit(tiny_page, color_scheme="dark")
    ask(page, "What is in the image?", ASSETS / "picture1.png")
    shot(page, "dark")
    colour = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 64


def test_nothing_can_be_shared_elsewhere(tiny_page, visit):
    page = visit(tiny_page)
    ask(page, "What is in the image?", ASSETS / "picture1.png")
    expect(page.locator("button[title=Share]:visible")).to_have_count(0)


@pytest.mark.parametrize("file", ["/etc/hostname", str(ASSETS.parent / "config.json")])
def test_files_of_the_machine_are_not_served(tiny_page, file):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{tiny_page.url}gradio_api/file={file}", timeout=10)
    assert refused.value.code in (403, 404)


def test_the_app_of_the_space_is_this_page(monkeypatch, uploads):
    import gradio

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))  # the app sets another: set back at the end
    monkeypatch.delenv("MODEL", raising=False)
    app = runpy.run_path(str(ASSETS.parent / "examples" / "space" / "app.py"), run_name="app")
    assert isinstance(app["page"], gradio.Blocks)
    assert app["assistant"].processor.media_policy.isolate


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_uploads_go_when_the_command_ends(ending, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pvc.cli", "web", "--port", str(port)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while not is_served(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        assert list(tmp_path.glob("pvc-web-*"))

        process.send_signal(ending)
        _, printed = process.communicate(timeout=30)
    finally:
        process.kill()
    assert list(tmp_path.glob("pvc-web-*")) == []
    assert "Traceback" not in printed and "Warning" not in printed


def is_served(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False
