"""What the commands share: errors, messages on stderr, progress bars, and finding a model's folder."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.status import Status
from typer import Exit, Option
from typer.core import TyperGroup

from pvc.conversion.matching import UnmatchedParameters
from pvc.conversion.printable import printable

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
DTYPES = Literal["auto", "bfloat16", "float16", "float32"]
NUM_FRAMES = Annotated[int | None, Option(min=1, help="Frames of a video. Default: the model's.")]
FPS = Annotated[float | None, Option(help="Frames per second, at most --num-frames in all.")]
MAX_TILES = Annotated[
    int | None, Option(min=1, help="Tiles of an image. Default: the model's; 1 for a frame.")
]
IMAGE_REPEATS = Annotated[
    int | None, Option(min=1, help="How often an image is shown. Default: the model's.")
]
VIDEO_TOKENS = Annotated[int | None, Option(min=1, help="Visual tokens of a video. Default: the model's.")]
FRAME_TOKENS = Annotated[
    int | None, Option(min=1, help="Visual tokens of a frame of a video, in place of that.")
]
QUANTIZATIONS = Literal["int8", "nf4", "int8-weight-only"]  # of the LLM: see `loading.quantization_config`
USER_ERRORS = (OSError, ValueError, ImportError, RuntimeError)  # reported in one line; all else is a bug
STARTUP_ERRORS = (OSError, ValueError, ImportError)  # of training: a RuntimeError keeps its traceback


def examples(*commands: str) -> str:
    """The epilog of a command's `--help`: command lines, one a line."""
    return "\n\n".join(["Examples:", *commands])


class CommandGroup(TyperGroup):
    """A group of commands whose error for an unknown name suggests the nearest one, or lists them all."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        known = self.list_commands(ctx)
        is_option = name.startswith("-")  # the parser's own error names it

        if name not in known and not is_option:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"
            ctx.fail(f"No such command {name!r}: {hint}")
        return super().resolve_command(ctx, args)


# ---- messages


def log(text: str, style: str = "dim") -> None:
    """Prints a line on stderr: stdout is for answers and tables alone."""
    Console(stderr=True).print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def show_status(text: str) -> Status:
    """A spinner on stderr beside `text`, shown while the `with` block runs."""
    return Console(stderr=True).status(text)


@contextmanager
def bytes_progress(what: str, total: int) -> Iterator[Callable[[Any, int], None]]:
    """Shows on stderr how many of `total` bytes are done; yields the callback `(name, nbytes)`."""
    columns = [*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda _, nbytes: progress.advance(task, nbytes)


# ---- errors


@contextmanager
def report_errors(
    kinds: tuple[type[Exception], ...] = USER_ERRORS, describe: Callable[[Exception], str] | None = None
) -> Iterator[None]:
    """Turns an error of these `kinds` into one line on stderr and exit code 1.

    `describe` makes the text of the error; None: its first line.
    """
    try:
        yield
    except kinds as error:
        log(f"error: {(describe or first_line)(error)}", style="red")
        raise Exit(1) from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def full_message(error: Exception) -> str:
    """The whole message where it lists unmatched parameters; otherwise its first line."""
    return str(error) if isinstance(error, UnmatchedParameters) else first_line(error)


def in_one_line(error: Exception) -> str:
    """The whole message in one line."""
    return " ".join(str(error).split())


def drop_none(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


# ---- models


def find_model(name: str, trust_remote_code: bool, status: Status) -> str:
    """The folder of the model `name`; a Hub id is downloaded.

    The code in a folder that the user names is trusted, and code outside it is refused. For a Hub id,
    transformers asks whether its code may run.
    """
    from huggingface_hub import snapshot_download
    from transformers.dynamic_module_utils import resolve_trust_remote_code

    from pvc.conversion.files import check_code_within

    check_is_pvc(name, others=("dynamic_vlm",))
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        check_code_within(folder)
        return folder

    status.stop()  # the question and the download have the terminal to themselves
    why = f"{name} has code of its own, which --trust-remote-code runs without asking."
    resolve_trust_remote_code(trust_remote_code or None, name, False, True, error_message=why)
    folder = snapshot_download(name)
    check_code_within(folder)
    status.start()
    return folder


def check_is_pvc(name: str, others: Sequence[str] = ()) -> str:
    """The model type of a folder or Hub id; raises a ValueError unless its config.json is that of a PVC.

    `others`: model types that are taken too.
    """
    model_type = read_config(name).get("model_type")
    if model_type not in ("pvc", *others):
        raise ValueError(f"{name} is not a PVC: model_type in its config.json is {model_type!r}")
    return model_type


def read_config(name: str) -> dict:
    """The config.json of a folder or Hub id, as it is written there."""
    from transformers import PreTrainedConfig

    from pvc.conversion.files import read_json

    folder = os.path.expanduser(name)
    is_folder = os.path.isdir(folder)
    if not is_folder and (os.path.exists(folder) or not HUB_ID.fullmatch(name)):
        raise ValueError(f"MODEL is {name!r}: expected a folder or a Hub id (images are given by --image)")

    try:
        if is_folder:
            return read_json(os.path.join(folder, "config.json"))
        values, _ = PreTrainedConfig.get_config_dict(name)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is no model's folder: no config.json names a model_type") from error
    except OSError as error:
        raise ValueError(f"{name}: {first_line(error)}") from error
    except (AttributeError, TypeError, RecursionError) as error:  # of the Hub's config.json
        raise ValueError(f"config.json of {name} is not a JSON object") from error
    if not isinstance(values, dict):
        raise ValueError(f"config.json of {name} is not a JSON object")
    return values
