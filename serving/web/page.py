"""The page: gradio's components and events. State is gradio's history alone.

    build_page(assistant, title=..., examples=...).launch(**launch_options())

gradio keeps uploads in a folder of its own, which `upload_folder` makes; the assistant reads files of that
folder and of no other. Nothing is fetched from other hosts: fonts are the system's, and analytics are off.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read while gradio is imported

import gradio as gr

from pvc.serving.errors import ApiError
from pvc.serving.web.assistant import Assistant, Settings
from pvc.serving.web.dialogue import NOT_ANSWERED, messages_of
from pvc.serving.web.live import LiveCameras
from pvc.serving.web.seen import NOTHING_SEEN, seen_html

EXAMPLES = (  # question, files of assets/
    ("What is in the image?", ("picture1.png",)),
    ("Describe the two images in detail.", ("picture1.png", "picture2.png")),
    ("In which direction does the blue circle move?", ("video.mp4",)),
)
MOST_TILES = 40  # that the page lets choose
MOST_TOKENS = 4096
UPLOAD_SIZE = "64mb"
DELETE_S = (3600, 86400)  # how often files are looked at, and the age at which they go
QUEUE = 32  # questions that wait; one more is refused
LIVE_EVERY_S = 0.5  # between frames of a live camera
START_CAMERA = "Start the camera, and ask while it runs."
EMPTY_ANSWER = "(empty answer)"
PRIVATE: dict[str, Any] = {"api_visibility": "private"}

CSS = """
#pvc-dialogue {height: max(22rem, calc(100dvh - 18rem)) !important}
#pvc-dialogue .message img, #pvc-dialogue .message video {max-height: 14rem; width: auto; object-fit: contain}
#pvc-dialogue button[title=Share], footer .divider {display: none}
#pvc-dialogue .message video {margin: auto}
#pvc-question [data-testid=status-tracker] {display: none}
#pvc-dialogue .placeholder-content {padding: 0 1rem; text-align: center}
.pvc-hint {opacity: 0.7; font-size: 0.9em; margin: 0.25rem 0}
.pvc-seen table {width: 100%; font-size: 0.9em; margin: 0 0 0.5rem; border: none}
.pvc-seen tr {border: none; background: none}
.pvc-seen th, .pvc-seen td {border: none; text-align: left; vertical-align: top}
.pvc-seen th, .pvc-seen td {padding: 0.1rem 0.75rem 0.1rem 0}
.pvc-seen td {font-variant-numeric: tabular-nums}
.pvc-seen th {font-weight: 600; white-space: nowrap; width: 1%}
.pvc-seen details {margin: 0.5rem 0}
.pvc-seen summary {cursor: pointer; font-size: 0.9em; overflow-wrap: anywhere}
.pvc-tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); gap: 0.4rem}
.pvc-tiles {margin-top: 0.4rem; max-height: 22rem; overflow-y: auto}
.pvc-tiles figure {margin: 0}
.pvc-tiles img {width: 100%; aspect-ratio: 1; border-radius: 4px; display: block}
.pvc-tiles figcaption {font-size: 0.75em; text-align: center; font-variant-numeric: tabular-nums}
@media (max-width: 640px) {
    .gradio-container main {padding: 0.75rem !important}
    #pvc-dialogue {height: max(20rem, calc(100dvh - 22rem)) !important}
}
"""


def upload_folder() -> Path:
    """A new folder for uploads, which this process's gradio uses and which goes when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="pvc-web-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def example_messages(assets: Path, uploads: Path) -> list[list[dict]]:
    """The examples as gradio takes them; their files are copied to where the assistant may read."""
    folder = uploads / "examples"
    folder.mkdir(exist_ok=True)

    messages = []
    for question, names in EXAMPLES:
        files = [shutil.copy(assets / name, folder / name) for name in names]
        messages.append([{"text": question, "files": [str(file) for file in files]}])
    return messages


def build_page(
    assistant: Assistant, *, title: str, examples: Sequence[Sequence[dict]] = (), note: str = ""
) -> gr.Blocks:
    """The page of one model.

    Args:
        title: its heading, the model's name.
        examples: of `example_messages`.
        note: a line of Markdown below the title.
    """
    seen = gr.HTML(NOTHING_SEEN, render=False)
    settings = _settings(assistant.defaults, assistant.most_frames)
    chatbot = gr.Chatbot(
        elem_id="pvc-dialogue",
        show_label=False,
        scale=1,
        placeholder="Attach, drop or paste images and videos, and ask about them.",
        sanitize_html=True,
        render_markdown=False,  # what an answer holds is shown as it is
        buttons=["copy", "copy_all"],
    )
    textbox = gr.MultimodalTextbox(
        file_types=["image", "video"],
        file_count="multiple",
        placeholder="Question",
        stop_btn=True,
        autofocus=True,
        show_label=False,
        elem_id="pvc-question",
    )

    cameras = LiveCameras(assistant)

    with gr.Blocks(title=title, fill_width=True, delete_cache=DELETE_S, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n{note}")
        with gr.Row():
            left = gr.Column(scale=3, min_width=320)
            right = gr.Column(scale=2, min_width=300)

        # first, as gradio would otherwise put the settings below the dialogue
        with right:
            with gr.Accordion("What the model saw", open=True):
                seen.render()
            with gr.Accordion("Settings", open=False):
                for component in settings:
                    component.render()
            _camera(textbox)
            _live_camera(cameras, settings)

        with left:
            gr.ChatInterface(
                _answer_with(assistant),
                multimodal=True,
                chatbot=chatbot,
                textbox=textbox,
                additional_inputs=settings,
                additional_outputs=seen,
                examples=[list(example) for example in examples] or None,
                cache_examples=False,
                api_name="ask",
                show_progress="minimal",
            )

        for event in (chatbot.clear, chatbot.undo):
            event(lambda: NOTHING_SEEN, None, seen, queue=False, api_visibility="private")
        page.unload(_forgetter(cameras))
    return page.queue(max_size=QUEUE, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """Options of `launch`, beside host and port: no network, no folder of this machine, small uploads."""
    font = ["system-ui", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    return {
        "share": False,
        "quiet": True,
        "max_file_size": UPLOAD_SIZE,
        "footer_links": ["settings"],
        "ssr_mode": False,
        "enable_monitoring": False,
        "theme": gr.themes.Default(font=font, font_mono=mono, primary_hue="blue"),
        "css": CSS,
    }


def _settings(defaults: Settings, most_frames: int) -> list[Any]:
    """Components of the settings, in the order of `Settings` and the system message."""
    return [
        # what the model is shown
        gr.Slider(1, most_frames, defaults.num_frames, step=1, label="Frames of a video", render=False),
        gr.Slider(
            1,
            max(MOST_TILES, defaults.max_tiles),
            defaults.max_tiles,
            step=1,
            label="Tiles of an image",
            info="At most, the thumbnail not counted.",
            render=False,
        ),
        # how it answers
        gr.Slider(1, MOST_TOKENS, defaults.max_tokens, step=1, label="Tokens of an answer", render=False),
        gr.Slider(
            0,
            2,
            defaults.temperature,
            step=0.05,
            label="Temperature",
            info="0: always the likeliest token.",
            render=False,
        ),
        gr.Textbox(
            label="System message",
            placeholder="The model's own",
            lines=2,
            max_length=4000,
            render=False,
        ),
    ]


def _settings_of(values: Sequence[Any]) -> Settings:
    """The settings that the components of `_settings` have; the last value is the system message."""
    num_frames, max_tiles, max_tokens, temperature, _ = values
    return Settings(int(num_frames), int(max_tiles), int(max_tokens), float(temperature))


def _answer_with(assistant: Assistant) -> Any:
    """The function of the chat: yields the answer so far, and the panel of what was seen."""

    async def ask(
        message: dict,
        history: list[dict],
        *values: Any,
    ) -> AsyncIterator[tuple[Any, Any]]:
        settings, system = _settings_of(values), values[-1]
        try:
            messages = messages_of(history, message, system or "")
        except ValueError as error:
            yield _not_answered(str(error)), NOTHING_SEEN
            return

        async for update in assistant.stream(messages, settings):
            panel = gr.skip() if update.seen is None else seen_html(update.seen)
            if update.error is not None:
                yield _not_answered(update.error), NOTHING_SEEN
            else:
                yield update.text or (EMPTY_ANSWER if update.is_last else ""), panel

    return ask


def _not_answered(sentence: str) -> dict:
    """An error in place of an answer; `messages_of` knows it by its title."""
    return {"role": "assistant", "content": sentence, "metadata": {"title": NOT_ANSWERED}}


def _camera(textbox: gr.MultimodalTextbox) -> None:
    """A camera whose photos are attached to the question."""
    with gr.Accordion("Camera", open=False):
        photo = gr.Image(
            sources=["webcam"],
            type="filepath",
            format="jpeg",
            show_label=False,
            webcam_options=gr.WebcamOptions(mirror=False),  # what is written must stay readable
            elem_id="pvc-camera",
        )
        attach = gr.Button("Attach the photo", size="sm")

    def attached(value: dict | None, path: str | None) -> Any:
        value = value or {"text": "", "files": []}
        if path is None:
            raise gr.Error(
                "There is no photo yet: allow the camera, and press its button.", print_exception=False
            )
        return {"text": value["text"], "files": [*value["files"], path]}, None

    attach.click(attached, [textbox, photo], [textbox, photo], queue=False, api_visibility="private")


def _forgetter(cameras: LiveCameras) -> Any:
    """The function that is called when a page is closed."""

    def forget(request: gr.Request) -> None:
        cameras.forget(str(request.session_hash))

    return forget


def _live_camera(cameras: LiveCameras, settings: Sequence[Any]) -> None:
    """A camera that is watched frame by frame, with questions of its own."""
    with gr.Accordion("Live camera", open=False):
        video = gr.Image(
            sources=["webcam"],
            streaming=True,
            type="filepath",
            format="jpeg",
            show_label=False,
            webcam_options=gr.WebcamOptions(mirror=False),
            elem_id="pvc-live",
        )
        told = gr.Markdown(START_CAMERA)
        question = gr.Textbox(
            show_label=False, placeholder="Question about the video so far", submit_btn=True
        )
        answer = gr.Textbox(show_label=False, interactive=False, visible=False, elem_id="pvc-live-answer")
        again = gr.Button("Forget the video", size="sm")

    def watch(path: str | None, request: gr.Request) -> Any:
        if path is None:
            return gr.skip()
        camera = cameras.of(str(request.session_hash))
        try:
            camera.add(path)
        finally:
            Path(path).unlink(missing_ok=True)  # a camera would fill the disk
        return f"{camera.num_frames} frames"

    def ask(text: str, request: gr.Request, *values: Any) -> Any:
        try:
            said = cameras.of(str(request.session_hash)).ask(text, _settings_of(values))
        except ApiError as error:
            said = f"{NOT_ANSWERED}: {error.message}"
        return gr.update(value=said or EMPTY_ANSWER, visible=True)

    def forget(request: gr.Request) -> tuple[str, Any]:
        cameras.forget(str(request.session_hash))
        return START_CAMERA, gr.update(visible=False)

    video.stream(watch, video, told, stream_every=LIVE_EVERY_S, show_progress="hidden", **PRIVATE)
    question.submit(ask, [question, *settings], answer, show_progress="minimal", **PRIVATE)
    again.click(forget, None, [told, answer], **PRIVATE)
