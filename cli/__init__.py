"""The command `pvc`: a model asked about pictures and videos, in a terminal.

    pvc chat "What is this?" --image picture.png      one question
    pvc chat org/model --video clip.mp4               a dialogue
    pvc convert OpenGVLab/InternVL2-2B PVC-2B         an InternVL becomes a PVC
    pvc push PVC-2B org/PVC-2B                        and goes to the Hub
    pvc train check meta.json                         what is in training data, and what is broken
    pvc train tune-lora --model M --data meta.json --output run
    pvc bench count --preset 8B                       what it costs

Answers go to stdout, all else that is said to stderr. A dialogue is kept as messages; what they become is
left to the processor, and the answer to the model's `generate`; training is `training/train.py`'s. torch and
transformers are imported where they are used, so that `--help` and `--version` come at once.
"""

import os
import re
import shlex
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from typer import Argument, Exit, Option, Typer
from typer.core import TyperGroup

from pvc import ABOUT_CHECKPOINT, CHECKPOINT
from pvc.conversion.matching import UnmatchedParameters
from pvc.conversion.printable import CONTROL_CHARACTERS as CONTROL_CHARACTERS
from pvc.conversion.printable import printable

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
COMMANDS = """\
/image FILE   show a picture with the next question; may be repeated
/video FILE   show a video, or a folder of frames, likewise
/clear        forget the dialogue
/exit         end, as Ctrl-D does; Ctrl-C stops an answer"""
FAILURES = (OSError, ValueError, ImportError, RuntimeError)  # told in one line; all else is a bug
NOT_OF_A_STEP = (OSError, ValueError, ImportError)  # of training; what comes from a step has its traceback
DTYPES = Literal["auto", "bfloat16", "float16", "float32"]
PROJECTOR_INITS = Literal["average", "random"]

app = Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback(invoke_without_command=True)
def main(show_version: Annotated[bool, Option("--version", help="Print the version.")] = False):
    """PVC: a vision-language model for pictures and videos."""
    sys.stdout.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
    if show_version:
        print(f"pvc {version('pvc')}")
        raise Exit


@app.command()
def chat(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    question: Annotated[str | None, Argument(metavar="QUESTION", help="Left out: a dialogue.")] = None,
    image: Annotated[list[str], Option(metavar="FILE", help="Picture or its address; repeatable.")] = (),
    video: Annotated[list[str], Option(metavar="FILE", help="Video or folder of frames; repeatable.")] = (),
    stream: Annotated[bool, Option(help="Print an answer while it is made.")] = True,
    system: Annotated[str | None, Option(help="System message. Default: the model's own.")] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 1024,
    sample: Annotated[bool, Option("--sample", help="Draw tokens, not the likeliest each.")] = False,
    temperature: Annotated[float | None, Option(min=0, help="Of --sample, which it implies.")] = None,
    num_frames: Annotated[int | None, Option(min=1, help="Frames of a video. Default: the model's.")] = None,
    fps: Annotated[float | None, Option(help="Frames a second; --num-frames is then their limit.")] = None,
    max_tiles: Annotated[int | None, Option(min=1, help="Default: the model's; 1 for a frame.")] = None,
    device: Annotated[str | None, Option(help="cuda, cuda:1, mps, cpu, or auto: all of them.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: as saved.")] = "auto",
    quantize: Annotated[Literal["int8", "nf4"] | None, Option(help="Load the LLM in 8 or 4 bits.")] = None,
    attn: Annotated[str | None, Option(help="sdpa, flash_attention_2, eager. Default: sdpa.")] = None,
    trust: Annotated[bool, Option("--trust-remote-code", help="Of a Hub id: do not ask.")] = False,
):
    """Ask a model about pictures and videos: one QUESTION, or a dialogue where there is none.

    A single argument is the MODEL where it is a folder or looks like a Hub id (org/name), else the QUESTION.
    Of what is given by options, pictures come before videos.
    """
    is_model = os.path.exists(model) or HUB_ID.fullmatch(model) or model.startswith(("/", "./", "../", "~"))
    if question is None and not is_model:
        model, question = "", model or None
    frames = {"num_frames" if fps is None else "max_frames": num_frames}
    media_options = _given(**frames, fps=fps, max_tiles=max_tiles)
    sampling = _given(do_sample=sample or bool(temperature), temperature=temperature or None)
    with _failures_told():
        with Console(stderr=True).status("Loading") as status:
            attached = [read_media("image", x) for x in image] + [read_media("video", x) for x in video]
            folder = find_model(model or str(CHECKPOINT), trust, status)
            loaded = load_model(folder, device, dtype, quantize, attn)
        if os.path.samefile(folder, CHECKPOINT):
            _say(ABOUT_CHECKPOINT, style="yellow")
        start = [] if system is None else [{"role": "system", "content": system}]
        settings = {"max_new_tokens": max_new_tokens, **sampling}
        dialogue = Dialogue(*loaded, start, stream, media_options, settings, attached)
        dialogue.run() if question is None else dialogue.ask(question)


@app.command()
def convert(
    source: Annotated[
        str, Argument(metavar="SOURCE", help="Folder or Hub id of an InternVL, or the released PVC.")
    ],
    target: Annotated[str, Argument(metavar="TARGET", help="The folder to make.")],
    revision: Annotated[str | None, Option(help="Of a Hub id: branch, tag or commit.")] = None,
    temporal_layers: Annotated[int, Option(min=0, help="How many of the ViT's last layers look back.")] = 8,
    image_repeats: Annotated[int, Option(min=1, help="How often an image is shown.")] = 4,
    downsample_ratio: Annotated[float, Option(help="0.25: 64 visual tokens of 1024 patches.")] = 0.25,
    projector_init: Annotated[
        PROJECTOR_INITS, Option(help="From InternVL's, or anew as in the paper.")
    ] = "average",
    template: Annotated[str | None, Option(help="Prompt template. Default: the source's.")] = None,
    tokenizer: Annotated[
        bool, Option("--tokenizer/--no-tokenizer", help="Whether to convert it too.")
    ] = True,
    image_token_id: Annotated[int | None, Option(help="Of <IMG_CONTEXT>, without a tokenizer.")] = None,
    key_map: Annotated[
        str | None, Option(metavar="FILE", help="JSON: names in the released PVC to ours.")
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**63 - 1, help="Of the new parameters.")] = 0,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace TARGET once the new one is whole.")
    ] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would be done.")] = False,
    verify: Annotated[
        bool, Option("--verify", help="Run both on random input and print how they differ.")
    ] = False,
):
    """Make a PVC of an InternVL 2, 2.5, 3 or 3.5 (1B to 8B), or of the released PVC.

    TARGET is a folder that transformers loads; it appears whole or not at all.
    """
    with _failures_told(tell=_names_unmatched):
        with Console(stderr=True).status("Reading"):
            from pvc.conversion.convert import Conversion, Options, download

            is_hub_id = HUB_ID.fullmatch(source) and not os.path.exists(os.path.expanduser(source))
            folder = download(source, revision) if is_hub_id else os.path.expanduser(source)
            options = Options(
                temporal_layers=temporal_layers,
                image_repeats=image_repeats,
                downsample_ratio=downsample_ratio,
                projector_init=projector_init,
                template=template,
                tokenizer=tokenizer,
                image_token_id=image_token_id,
                key_map=key_map,
                seed=seed,
                overwrite=overwrite,
            )
            conversion = Conversion(folder, os.path.expanduser(target), options)
        if dry_run:
            print(printable(conversion.plan.by_kind()))
        _say(conversion.plan.summary())
        if not dry_run:
            with _bytes_bar("Writing", conversion.plan.nbytes) as advance:
                conversion.run(base_model=source if is_hub_id else None, progress=advance)
            _say(f"{target} is a PVC now: conversion.tsv there says what each tensor was made from")
        if verify and not dry_run:
            with Console(stderr=True).status("Comparing"):
                differences = conversion.verify()
            print(*map(printable, map(str, differences)), sep="\n")


@app.command()
def push(
    folder: Annotated[str, Argument(metavar="FOLDER", help="A checkpoint with its processor.")],
    repo_id: Annotated[str, Argument(metavar="REPO_ID", help="org/name; made where there is none.")],
    private: Annotated[bool, Option("--private", help="Others do not see it.")] = False,
    revision: Annotated[str | None, Option(help="Branch; made where there is none. Default: main.")] = None,
    message: Annotated[str | None, Option(help="Of the commit.")] = None,
):
    """Publish a checkpoint on the Hub, and print the commit's address.

    The folder is checked first, and of it only what makes the checkpoint is sent. After an interruption the
    same command sends what had not arrived. `hf auth login` or HF_TOKEN sets the token.
    """
    with _failures_told(tell=_in_one_line):  # the Hub's reason is in a later line
        with Console(stderr=True).status("Loading"):
            from pvc.hub import push as publish
        print(printable(publish.push(folder, repo_id, private=private, revision=revision, message=message)))


@app.command()
def bench(
    action: Annotated[
        Literal["count", "run", "train", "plot"], Argument(help="What to do.", show_default=False)
    ],
    preset: Annotated[str, Option(help="8B, 2B, vit-l, small (for a CPU) or tiny.")] = "8B",
    device: Annotated[str | None, Option(help="cuda, cuda:1 or cpu. Default: a GPU if there is one.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: bfloat16, on a CPU float32.")] = "auto",
    runs: Annotated[int, Option(min=1, help="Runs whose median is taken; of train: steps.")] = 5,
    out: Annotated[str, Option(metavar="DIR", help="Where files are written.")] = "bench-results",
):
    """Count or measure what PVC costs, beside InternVL2 and transformers' own models, with random weights.

    count: FLOPs and bytes, from sizes alone. run: time, rates and peak memory here. train: the same of
    training steps, with the MFU.

    They print their tables and write them; the first two with a plot, which plot draws again.
    """
    with _failures_told():
        with Console(stderr=True).status("Loading") as status:
            from pvc.benchmarks import report, suite

            command, say = f"pvc {shlex.join(sys.argv[1:])}", status.update
            text = ""
            if action == "count":
                text = suite.write_counts(out, preset, command, say)
            elif action == "run":
                text = suite.write_measurements(out, preset, device, dtype, runs, command, say)
            elif action == "train":
                from pvc.benchmarks.training import write_training

                text = write_training(out, preset, device, dtype, runs, command, say)
            drawn = [] if action == "train" else report.plot(out)
        print(printable(text), end="")
        if drawn:
            _say(f"plotted: {', '.join(map(str, drawn))}")


@contextmanager
def _bytes_bar(what: str, total: int):
    """Shows on stderr how many of `total` bytes are done; gives the function that is told of more."""
    columns = [*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda _, nbytes: progress.advance(task, nbytes)


def _given(**options) -> dict:
    return {name: value for name, value in options.items() if value is not None}


def _say(text: str, style: str = "dim"):
    Console(stderr=True).print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _failures_told(kinds: tuple[type[Exception], ...] = FAILURES, tell=None):
    """Ends the command with what `tell` says of a failure: its first line, where left out."""
    try:
        yield
    except kinds as error:
        _say(f"error: {(tell or _first_line)(error)}", style="red")
        raise Exit(1) from None


def _names_unmatched(error: Exception) -> str:
    return str(error) if isinstance(error, UnmatchedParameters) else _first_line(error)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_media(kind: str, file: str) -> dict:
    """A block of a message that shows an "image" or a "video"; OSError or ValueError where there is none."""
    is_address = file.startswith(("http://", "https://"))
    source = file if is_address else os.path.expanduser(file)
    if not is_address and not os.path.exists(source):
        raise FileNotFoundError(f"no such file: {file}")

    from pvc.preprocess import read_frames
    from pvc.processing_pvc import read_image

    if kind == "image":
        source = read_image(source)  # kept: it is read once, however long the dialogue
    elif not is_address:
        read_frames(source, num_frames=1)  # a trial: it is read anew with each question
    return {"type": kind, kind: source}


def find_model(name: str, trust_remote_code: bool, status) -> str:
    """The folder of the model `name`, which is downloaded where it is a Hub id.

    A folder is trusted, being named, with the code in it and none elsewhere; of a Hub id, transformers asks
    whether its code may run.
    """
    from huggingface_hub import snapshot_download
    from transformers import PreTrainedConfig
    from transformers.dynamic_module_utils import resolve_trust_remote_code

    from pvc.conversion.files import check_code_within, read_json

    folder = os.path.expanduser(name)
    is_folder = os.path.isdir(folder)
    if not is_folder and (os.path.exists(folder) or not HUB_ID.fullmatch(name)):
        raise ValueError(f"MODEL is {name!r}: expected a folder or a Hub id (pictures are given by --image)")
    try:
        if is_folder:
            config = read_json(os.path.join(folder, "config.json"))
        else:
            config, _ = PreTrainedConfig.get_config_dict(name)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is no model's folder: no config.json names a model_type") from error
    except OSError as error:
        raise ValueError(f"{name}: {_first_line(error)}") from error
    except (AttributeError, TypeError, RecursionError) as error:  # of the Hub's config.json
        raise ValueError(f"config.json of {name} is no object of JSON") from error
    if config.get("model_type") != "pvc":
        raise ValueError(f"{name} is no PVC: model_type in its config.json is {config.get('model_type')!r}")
    if is_folder:
        check_code_within(folder)
        return folder
    status.stop()  # what follows asks, and shows its own progress
    why = f"{name} has code of its own, which --trust-remote-code runs without asking."
    resolve_trust_remote_code(trust_remote_code or None, name, False, True, error_message=why)
    folder = snapshot_download(name)
    check_code_within(folder)
    status.start()
    return folder


def load_model(folder: str, device: str | None, dtype: str, quantize: str | None, attn: str | None) -> tuple:
    """The model of a folder on its device, ready to answer, and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    from pvc.conversion.checks import WRONG_VALUES, values_of
    from pvc.loading import quantization_config

    disable_progress_bar()
    device = checked_device(device)
    options = _given(dtype=dtype, attn_implementation=attn, trust_remote_code=True)
    if quantize:
        options["quantization_config"] = quantization_config(quantize)
    if quantize or device == "auto":
        options["device_map"] = device
    with values_of(folder, WRONG_VALUES):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(folder, **options).eval()
    return model if "device_map" in options else model.to(device), processor


def checked_device(name: str | None) -> str:
    """`name`, or the fastest device of this machine."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name != "auto":
            torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"--device is {name!r}, which this machine or this torch does not have") from error
    return name


@dataclass
class Dialogue:
    """A dialogue, kept as messages: `start` (the system's), those said, and media for the next question; with
    the model's `cache` of it, a question costs what is new.
    """

    model: Any
    processor: Any
    start: list[dict]
    stream: bool
    media_options: dict
    generate_options: dict
    attached: list[dict]
    messages: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.cache = self.model.dialogue_cache()

    def ask(self, question: str):
        """Prints the answer and keeps both; an answer that is interrupted is kept as far as it came."""
        from transformers import TextStreamer

        from pvc.conversation import AnswerTokenizer

        turn = {"role": "user", "content": [*self.attached, {"type": "text", "text": question}]}
        pieces = []
        status = Console(stderr=True).status("Thinking")

        def take(text: str, stream_end: bool = False):
            pieces.append(text)
            if self.stream:
                status.stop()
                _print_answer(text)

        streamer = TextStreamer(AnswerTokenizer(self.processor.tokenizer), skip_prompt=True)
        streamer.on_finalized_text = take
        try:
            status.start()  # within: an interruption at any moment of it must end it too
            self._generate([*self.start, *self.messages, turn], streamer)
        finally:
            status.stop()
            if streamer.token_cache:  # interrupted within a word
                streamer.end()
            if pieces:
                _print_answer("\n" if self.stream else "".join(pieces) + "\n")
                self.messages += [turn, {"role": "assistant", "content": "".join(pieces).strip()}]
                self.attached = []

    def _generate(self, messages: list[dict], streamer):
        from pvc.conversation import get_conv_template

        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **self.media_options
        )
        # weights that accelerate has offloaded are on "meta"; its hooks take inputs from anywhere
        device = "cpu" if self.model.device.type == "meta" else self.model.device
        stop = get_conv_template(self.processor.template).stop_token_ids(self.processor.tokenizer)
        options = self.generate_options | _given(eos_token_id=stop or None)
        self.model.generate(**inputs.to(device), streamer=streamer, cache=self.cache, **options)

    def run(self):
        """Asks for questions and commands until the end of the input."""
        with suppress(ImportError):
            import readline  # lets `input` edit its line, and go back to earlier ones

            readline.parse_and_bind("tab: complete")
            readline.set_completer_delims(" ")  # whole names of files
        _say("/help lists the commands, Ctrl-D ends.")
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                line = "/exit"
            if line == "/exit":
                return _say("")
            try:
                self.obey(line)
            except KeyboardInterrupt:
                _say("(stopped)")
            except FAILURES as error:
                _say(f"error: {_first_line(error)}", style="red")
                if self.attached and not line.startswith("/"):
                    self.attached = []  # it may be the reason, and would be so again
                    _say("What was to be shown with the question is left out.")

    def obey(self, line: str):
        """Does what a line says: a command, or a question."""
        command, _, rest = line.partition(" ")
        if command in ("/image", "/video") and rest:
            # a name with spaces as it is, or one or several as a shell reads them
            for file in [rest] if os.path.exists(os.path.expanduser(rest)) else shlex.split(rest):
                self.attached.append(read_media(command[1:], file))
            _say(f"{len(self.attached)} to be shown with the next question")
        elif command == "/clear":
            self.messages, self.attached = [], []
        elif re.fullmatch("/[a-z]+", command):  # /help, and what is no command or lacks its file
            _say(COMMANDS)
        elif line:
            self.ask(line)


def _print_answer(text: str):
    """Prints at once, with U+FFFD for control characters, which would command the terminal."""
    print(printable(text), end="", flush=True)


# ---- training


class _RunByDefault(TyperGroup):
    """`pvc train RECIPE …` is `pvc train run RECIPE …`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        is_said = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if is_said else ["run", *args])


training = Typer(cls=_RunByDefault, no_args_is_help=True)
app.add_typer(training, name="train", help="Train a model, or check training data.")

SETTINGS = Option("--set", metavar="NAME=VALUE", help="Change a value of the recipe; repeatable.")
TRUST = Option("--trust-remote-code", help="Of a Hub id: do not ask.")


@training.command(name="run")
def run_training(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="YAML file, or a name such as tune-lora.")],
    model: Annotated[str, Option(metavar="MODEL", help="Folder or Hub id to start from.")],
    data: Annotated[str, Option(metavar="DATA", help="Meta JSON of the data, as InternVL has it.")],
    output: Annotated[str, Option(metavar="FOLDER", help="For checkpoints and the trained model.")],
    settings: Annotated[list[str], SETTINGS] = (),
    resume: Annotated[bool, Option("--resume", help="Go on after the last checkpoint, if any.")] = False,
    trust: Annotated[bool, TRUST] = False,
):
    """Train MODEL by RECIPE. Several GPUs: torchrun --nproc-per-node N -m pvc.cli train …"""
    with _failures_told(NOT_OF_A_STEP):
        from pvc.training.train import Recipe, parse_changes, read_recipe, train

        changes = parse_changes(settings)
        planned = Recipe.from_values(read_recipe(recipe, changes), asked=changes)
        with Console(stderr=True).status("Loading") as status:
            folder = find_model(model, trust, status)
        trainer = train(planned, model=folder, data=data, output=output, resume=resume)
    trainer.accelerator.end_training()


@training.command(name="check")
def check_data(
    data: Annotated[str, Argument(metavar="DATA", help="Meta JSON of the data, as InternVL has it.")],
    model: Annotated[str, Option(help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    recipe: Annotated[str | None, Option(metavar="RECIPE", help="Its settings are used.")] = None,
    settings: Annotated[list[str], SETTINGS] = (),
    decode: Annotated[bool, Option("--decode", help="Decode pictures and videos too.")] = False,
    workers: Annotated[int, Option(min=0, help="Processes that read.")] = 0,
    trust: Annotated[bool, TRUST] = False,
):
    """Read DATA once, as training would: what is in them, and which samples are broken (then it exits 1)."""
    with _failures_told(NOT_OF_A_STEP):
        from pvc.training.data.check import check
        from pvc.training.data.loader import with_kinds_there_are
        from pvc.training.train import Recipe, load_processor, parse_changes, read_recipe

        changes = parse_changes(settings)
        planned = Recipe.from_values(read_recipe(recipe, changes) if recipe else changes, asked=changes)
        with Console(stderr=True).status("Loading") as status:
            processor = load_processor(find_model(model or str(CHECKPOINT), trust, status))
        report = with_kinds_there_are(
            lambda options: check(data, processor, options, decode=decode, num_workers=workers),
            planned.data,
            planned.asked,
        )
    print(printable(str(report)))
    if report.broken:
        raise Exit(1)
