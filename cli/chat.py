"""`pvc chat`: ask a model about images and videos, once or in a dialogue.

A dialogue is kept as messages. The processor turns them into the model's inputs, and `generate` answers.
"""

import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from typer import Argument, Option

from pvc import ABOUT_CHECKPOINT, CHECKPOINT
from pvc.cli.shared import (
    DTYPES,
    FPS,
    FRAME_TOKENS,
    HUB_ID,
    IMAGE_REPEATS,
    MAX_TILES,
    NUM_FRAMES,
    QUANTIZATIONS,
    USER_ERRORS,
    VIDEO_TOKENS,
    drop_none,
    examples,
    find_model,
    first_line,
    log,
    report_errors,
    show_status,
)
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc chat",
    'pvc chat "What is in the image?" --image image.png',
    'pvc chat org/model "What happens?" --video clip.mp4 --num-frames 16',
)
COMMANDS = """\
/image FILE   show an image with the next question; may be repeated
/video FILE   show a video, or a folder of frames, likewise
/clear        forget the dialogue
/exit         end, as Ctrl-D does; Ctrl-C stops an answer"""


def chat(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    question: Annotated[str | None, Argument(metavar="QUESTION", help="Without it: a dialogue.")] = None,
    image: Annotated[list[str], Option(metavar="FILE", help="Image or its address; repeatable.")] = (),  # type: ignore[assignment]
    video: Annotated[list[str], Option(metavar="FILE", help="Video or folder of frames; repeatable.")] = (),  # type: ignore[assignment]
    stream: Annotated[bool, Option(help="Print an answer while it is generated.")] = True,
    system: Annotated[str | None, Option(help="System message. Default: the model's own.")] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 1024,
    sample: Annotated[bool, Option("--sample", help="Sample tokens instead of greedy decoding.")] = False,
    temperature: Annotated[float | None, Option(min=0, help="Above 0 implies --sample.")] = None,
    num_frames: NUM_FRAMES = None,
    fps: FPS = None,
    max_tiles: MAX_TILES = None,
    image_repeats: IMAGE_REPEATS = None,
    max_video_tokens: VIDEO_TOKENS = None,
    frame_tokens: FRAME_TOKENS = None,
    device: Annotated[str | None, Option(help="cuda, cuda:1, mps, cpu, or auto: all GPUs.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: as saved.")] = "auto",
    quantize: Annotated[QUANTIZATIONS | None, Option(help="Load the LLM in 8 or 4 bits.")] = None,
    attn: Annotated[str | None, Option(help="sdpa, flash_attention_2, eager. Default: sdpa.")] = None,
    trust: Annotated[bool, Option("--trust-remote-code", help="Run a Hub model's code unasked.")] = False,
) -> None:
    """Ask a model about images and videos: one QUESTION, or a dialogue where there is none.

    A single argument is the MODEL where it is a folder or looks like a Hub id (org/name), else the QUESTION.
    Images given by options come before videos.
    """
    model, question = split_arguments(model, question)
    frames = {"num_frames" if fps is None else "max_frames": num_frames}
    shown = {"image_repeats": image_repeats, "max_video_tokens": max_video_tokens}
    media_options = drop_none(**frames, fps=fps, max_tiles=max_tiles, **shown, frame_tokens=frame_tokens)
    sampling = drop_none(do_sample=sample or bool(temperature), temperature=temperature or None)

    with report_errors():
        with show_status("Loading") as status:
            attached = [read_media("image", x) for x in image] + [read_media("video", x) for x in video]
            folder = find_model(model or str(CHECKPOINT), trust, status)
            loaded = load_model(folder, device, dtype, quantize, attn)

        if os.path.samefile(folder, CHECKPOINT):
            log(ABOUT_CHECKPOINT, style="yellow")

        start = [] if system is None else [{"role": "system", "content": system}]
        settings = {"max_new_tokens": max_new_tokens, **sampling}
        dialogue = ChatSession(*loaded, start, stream, media_options, settings, attached)
        dialogue.run() if question is None else dialogue.ask(question)


def split_arguments(model: str, question: str | None) -> tuple[str, str | None]:
    """MODEL and QUESTION: a single argument that names no model is the question."""
    is_model = os.path.exists(model) or HUB_ID.fullmatch(model) or model.startswith(("/", "./", "../", "~"))
    if question is None and not is_model:
        return "", model or None
    return model, question


# ---- media and model


def read_media(kind: str, file: str) -> dict:
    """The message block of an "image" or a "video"; OSError or ValueError where it cannot be read."""
    is_address = file.startswith(("http://", "https://"))
    source: Any = file if is_address else os.path.expanduser(file)
    if not is_address and not os.path.exists(source):
        raise FileNotFoundError(f"no such file: {file}")

    from pvc.preprocess import read_frames
    from pvc.processing_pvc import read_image

    if kind == "image":
        source = read_image(source)  # decoded once, however long the dialogue
    elif not is_address:
        read_frames(source, num_frames=1)  # a check: the video is read again with each question
    return {"type": kind, kind: source}


def load_model(
    folder: str, device: str | None, dtype: str, quantize: str | None, attn: str | None
) -> tuple[Any, Any]:
    """The model of a folder on its device, ready to answer, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    from pvc.conversion.checks import WRONG_VALUES, values_of
    from pvc.loading import quantization_config

    disable_progress_bar()
    device = checked_device(device)

    options = drop_none(dtype=dtype, attn_implementation=attn, trust_remote_code=True)
    if quantize:
        options["quantization_config"] = quantization_config(quantize)
    if quantize or device == "auto":
        options["device_map"] = device

    with values_of(folder, WRONG_VALUES):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    return model if "device_map" in options else model.to(device), processor


def checked_device(name: str | None) -> str:
    """`name`, or the fastest device of this machine where it is None."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"

    try:
        if name != "auto":
            torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"--device is {name!r}, which this machine or this torch does not have") from error
    return name


# ---- dialogue


@dataclass
class ChatSession:
    """A dialogue in the terminal, kept as messages.

    `start` holds the system message, `attached` the media for the next question. With the model's dialogue
    cache, a question computes only what is new.
    """

    model: Any
    processor: Any
    start: list[dict]
    stream: bool
    media_options: dict
    generate_options: dict
    attached: list[dict]
    messages: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = self.model.dialogue_cache()

    def ask(self, question: str) -> None:
        """Prints the answer and keeps question and answer, an interrupted answer as far as it came."""
        from transformers import TextStreamer

        from pvc.conversation import AnswerTokenizer

        turn = {"role": "user", "content": [*self.attached, {"type": "text", "text": question}]}
        pieces = []
        status = show_status("Thinking")

        def take(text: str, stream_end: bool = False) -> None:
            pieces.append(text)
            if self.stream:
                status.stop()
                print_answer(text)

        streamer = TextStreamer(AnswerTokenizer(self.processor.tokenizer), skip_prompt=True)
        streamer.on_finalized_text = take

        try:
            status.start()  # inside `try`: an interruption must stop it too
            self._generate([*self.start, *self.messages, turn], streamer)
        finally:
            status.stop()
            if streamer.token_cache:  # interrupted within a word
                streamer.end()
            if pieces:
                answer = "".join(pieces)
                print_answer("\n" if self.stream else answer + "\n")
                self.messages += [turn, {"role": "assistant", "content": answer.strip()}]
                self.attached = []

        if not "".join(pieces).strip():
            log("(empty answer)")

    def _generate(self, messages: list[dict], streamer: Any) -> None:
        from pvc.conversation import get_conv_template
        from pvc.loading import input_device

        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **self.media_options
        )

        device = input_device(self.model)
        stop = get_conv_template(self.processor.template).stop_token_ids(self.processor.tokenizer)
        options = self.generate_options | drop_none(eos_token_id=stop or None)
        self.model.generate(**inputs.to(device), streamer=streamer, cache=self.cache, **options)

    def run(self) -> None:
        """Reads questions and commands until the end of the input."""
        with suppress(ImportError):
            import readline  # gives `input` line editing and a history

            readline.parse_and_bind("tab: complete")
            readline.set_completer_delims(" ")  # complete whole file names
        log("/help lists the commands, Ctrl-D ends.")

        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                line = "/exit"
            if line == "/exit":
                return log("")

            try:
                self.obey(line)
            except KeyboardInterrupt:
                log("(stopped)")
            except USER_ERRORS as error:
                log(f"error: {first_line(error)}", style="red")
                if self.attached and not line.startswith("/"):
                    self.attached = []  # they may be the cause, and would be again
                    log("The attached images and videos are left out.")

    def obey(self, line: str) -> None:
        """Runs a line: a command, or a question."""
        command, _, rest = line.partition(" ")

        if command in ("/image", "/video") and rest:
            # a name with spaces as it is, or one or several names as a shell reads them
            for file in [rest] if os.path.exists(os.path.expanduser(rest)) else shlex.split(rest):
                self.attached.append(read_media(command[1:], file))
            log(f"{len(self.attached)} to be shown with the next question")
        elif command == "/clear":
            self.messages, self.attached = [], []
        elif re.fullmatch("/[a-z]+", command):  # /help, an unknown command, or one that lacks its file
            log(COMMANDS)
        elif line:
            self.ask(line)


def print_answer(text: str) -> None:
    """Prints at once, with U+FFFD for control characters, which could command the terminal."""
    print(printable(text), end="", flush=True)
