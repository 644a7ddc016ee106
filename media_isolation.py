"""Decodes an image or video in a process of its own, for `MediaPolicy(isolate=True)`.

A decoder that crashes, or needs more memory or CPU time than allowed, is then an error of one prompt, and not
the end of the server. The process gets the open file as its standard input and sends raw RGB images back,
which are checked before they are used; it has none of the server's environment, and imports no torch.

    parent: isolated_image, isolated_frames        child: this file, run as a script

Protocol: the child writes lines of JSON. A line with an index, width and height is followed by the pixels.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from typing import Any, BinaryIO

from PIL import Image

try:
    from .frame_choice import ChosenFrames, FrameChoice, frames_of_video
    from .image_files import in_rgb, on_white, open_image
    from .media_policy import Budget, MediaPolicy, MediaRefused, check_pixels
    from .media_sources import file_name
except ImportError:  # in a clone, where this folder is not a package, and in the child
    from frame_choice import ChosenFrames, FrameChoice, frames_of_video
    from image_files import in_rgb, on_white, open_image
    from media_policy import Budget, MediaPolicy, MediaRefused, check_pixels
    from media_sources import file_name

BASE_BYTES = 2 * 2**30  # of address space, for libraries and threads
BYTES_PER_PIXEL = 32  # of address space, for copies of a frame
CPU_S = 600  # where the policy has no deadline
POLL_S = 0.1  # between two looks at whether the process must end
MAX_HEADER = 2**24  # bytes of a line
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "TEMP", "SYSTEMROOT")
LIMITS = ("max_bytes", "max_pixels", "max_frames", "max_duration_s", "backends")  # that the child gets


# ---------------------------------------------------------------------------------------------------- parent


def isolated_image(file: BinaryIO, budget: Budget) -> Image.Image:
    """An image file as RGB, upright and on white; raises as `image_files.open_image`."""
    with _child(file, {"kind": "image"}, budget) as child:
        return next(child.images([0]))[1]


@contextmanager
def isolated_frames(
    file: BinaryIO, choice: FrameChoice, backend: str, budget: Budget
) -> Iterator[ChosenFrames]:
    """`frames_of_video` in another process."""
    request = {"kind": "video", "choice": choice._asdict(), "backend": backend}
    with _child(file, request, budget) as child:
        header = child.header()
        indices: Any = header.get("indices")
        times_s: Any = header.get("times_s")
        if not _are(int, indices) or not _are(float, times_s) or len(indices) != len(times_s):
            raise child.broken()

        yield ChosenFrames(indices, times_s, child.images(sorted(set(indices))))


def _are(kind: type, values: Any) -> bool:
    """Whether the values are a list of one or more of that type."""
    return isinstance(values, list) and len(values) > 0 and all(type(value) is kind for value in values)


class _Child:
    """Reads and checks what the process sends."""

    def __init__(self, process: subprocess.Popen, name: str, budget: Budget) -> None:
        assert process.stdout is not None  # it is a pipe
        self.process = process
        self.output = process.stdout
        self.name = name  # of the file, for errors
        self.budget = budget

    def header(self) -> dict:
        """The next line; raises the error that it tells."""
        line = self.output.readline(MAX_HEADER)
        self.budget.remaining_s()
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            raise self.broken() from None
        if not isinstance(header, dict):
            raise self.broken()

        # the child's error becomes one of the same kind here
        if "error" in header:
            kinds = {"refused": MediaRefused, "OSError": OSError, "ImportError": ImportError}
            raise kinds.get(header["error"], ValueError)(str(header["message"]))
        return header

    def images(self, indices: list[int]) -> Iterator[tuple[int, Image.Image]]:
        """The images of these indices, in this order, and no others."""
        for index in indices:
            header = self.header()
            width: Any = header.get("width")
            height: Any = header.get("height")
            are_sizes = all(type(side) is int and side > 0 for side in (width, height))
            if header.get("index") != index or not are_sizes:
                raise self.broken()
            check_pixels(self.name, width, height, self.budget.policy.max_pixels)

            pixels = self.output.read(width * height * 3)
            if len(pixels) < width * height * 3:
                self.budget.remaining_s()  # raises its own error where the budget has run out
                raise self.broken()
            yield index, Image.frombytes("RGB", (width, height), pixels)

    def broken(self) -> ValueError:
        """Ends the process; the error for one that crashed, was stopped or sent nonsense."""
        self.process.kill()
        how = self.process.wait()
        reason = f"signal {-how}" if how < 0 else f"exit code {how}"
        return ValueError(f"{self.name} cannot be read: the process that decodes it ended with {reason}")


@contextmanager
def _child(file: BinaryIO, request: dict, budget: Budget) -> Iterator[_Child]:
    """Starts the process with the file as its input, and ends it when it is over, or after use."""
    name = file_name(file)
    seconds = budget.remaining_s()
    has_deadline = seconds != float("inf")
    request = request | {
        "name": name,
        "limits": {limit: getattr(budget.policy, limit) for limit in LIMITS},
        "cpu_s": int(seconds) + 1 if has_deadline else CPU_S,
    }

    with ExitStack() as stack:
        source = stack.enter_context(_on_disk(file))
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), json.dumps(request)],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )

        # called in reverse order: close the pipe, end the process, wait for its end
        stack.callback(process.wait)
        stack.callback(process.kill)
        child = _Child(process, name, budget)
        stack.callback(child.output.close)
        is_done = Event()
        stack.callback(is_done.set)
        Thread(target=_kill_when_over, args=(process, budget, is_done), daemon=True).start()
        yield child


def _kill_when_over(process: subprocess.Popen, budget: Budget, is_done: Event) -> None:
    """Ends the process at the deadline, or where reading is cancelled."""
    while not is_done.wait(POLL_S):
        try:
            budget.remaining_s()
        except MediaRefused:
            process.kill()
            return


def _environment() -> dict[str, str]:
    """The variables of the process: those that programs need to run, and none of the server's others."""
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    variables |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return variables


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file with a descriptor that a process can inherit; a file in memory is copied to the disk."""
    try:
        file.fileno()
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy)
            copy.flush()
            yield copy
    else:
        yield file


# ----------------------------------------------------------------------------------------------------- child


class _Input:
    """Standard input with a name for errors."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read = sys.stdin.buffer.read
        self.seek = sys.stdin.buffer.seek
        self.tell = sys.stdin.buffer.tell


def main() -> None:
    """Reads the request, limits the process, and sends what it decodes, or the error."""
    request = json.loads(sys.argv[1])
    limits = request["limits"] | {"backends": tuple(request["limits"]["backends"])}
    policy = MediaPolicy(**limits, deadline_s=None)

    # before the first byte of the media is read; the deadline is the parent's
    _limit_process(policy, request["cpu_s"])

    send = sys.stdout.buffer.write
    try:
        # a line of JSON, then the pixels: nothing that the parent would have to unpickle
        for header, image in _read(request, policy):
            send(json.dumps(header).encode() + b"\n")
            send(image.tobytes() if image else b"")
    except (OSError, ValueError, ImportError) as error:
        header = {"error": _kind(error), "message": str(error)}
        send(json.dumps(header).encode() + b"\n")
    sys.stdout.buffer.flush()


def _kind(error: Exception) -> str:
    """The name by which `_Child.header` knows the error."""
    if isinstance(error, MediaRefused):
        return "refused"
    return next(kind.__name__ for kind in (OSError, ImportError, ValueError) if isinstance(error, kind))


def _read(request: dict, policy: MediaPolicy) -> Iterator[tuple[dict, Image.Image | None]]:
    """Headers, and the image that follows each, if any."""
    source: Any = _Input(request["name"])
    if request["kind"] == "image":
        image = open_image(source, upright=True, max_pixels=policy.max_pixels)
        image = in_rgb(on_white(image))
        yield {"index": 0, "width": image.width, "height": image.height}, image
    else:
        choice = FrameChoice(**request["choice"])
        with frames_of_video(source, choice, request["backend"], Budget(policy)) as chosen:
            yield {"indices": list(map(int, chosen.indices)), "times_s": chosen.times_s}, None
            for index, image in chosen.frames:
                yield {"index": index, "width": image.width, "height": image.height}, image
    yield {"end": True}, None


def _limit_process(policy: MediaPolicy, cpu_s: int) -> None:
    """Limits memory, CPU time, written bytes and open files of this process, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows: there the process has no limits
        return

    limits = {
        "RLIMIT_AS": BASE_BYTES + BYTES_PER_PIXEL * policy.max_pixels,
        "RLIMIT_CPU": cpu_s,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": policy.max_bytes,
        "RLIMIT_NOFILE": 64,
    }
    for name, most in limits.items():
        _, hard = resource.getrlimit(getattr(resource, name))
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(getattr(resource, name), (most, most))


if __name__ == "__main__":
    main()
