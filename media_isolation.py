"""Decodes an image or video in a process of its own, for `MediaPolicy(isolate=True)`.

A decoder that crashes, or wants more memory or CPU time than it may, is then an error of one prompt, and not
the end of the server. The process gets the open file as its standard input and sends raw RGB images back,
which are checked before they are used; it has none of the server's environment, and imports no torch.

    parent: isolated_image, isolated_frames        child: this file, run as a script
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Timer
from typing import BinaryIO

from PIL import Image

try:
    from .frame_choice import ChosenFrames, FrameChoice, frames_of_video
    from .image_files import in_rgb, on_white, open_image
    from .media_policy import Budget, MediaPolicy, MediaRefused, check_pixels
    from .media_sources import file_name
except ImportError:  # in a clone, where this folder is no package, and in the child
    from frame_choice import ChosenFrames, FrameChoice, frames_of_video
    from image_files import in_rgb, on_white, open_image
    from media_policy import Budget, MediaPolicy, MediaRefused, check_pixels
    from media_sources import file_name

BASE_BYTES, BYTES_PER_PIXEL = 2 * 2**30, 32  # of address space: libraries and threads, and copies of a frame
CPU_S = 600  # where the policy has no deadline
MAX_HEADER = 2**24
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR", "TEMP", "SYSTEMROOT")
LIMITS = ("max_bytes", "max_pixels", "max_frames", "max_duration_s", "backends")


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
        indices, times_s = header.get("indices"), header.get("times_s")
        if not _are(int, indices) or not _are(float, times_s) or len(indices) != len(times_s):
            raise child.broken()
        yield ChosenFrames(indices, times_s, child.images(sorted(set(indices))))


def _are(kind: type, values) -> bool:
    return isinstance(values, list) and len(values) > 0 and all(type(value) is kind for value in values)


class _Child:
    """What the process sends: lines of JSON, each of an image followed by its pixels."""

    def __init__(self, process: subprocess.Popen, name: str, budget: Budget):
        self.process, self.name, self.budget = process, name, budget

    def header(self) -> dict:
        line = self.process.stdout.readline(MAX_HEADER)
        self.budget.remaining_s()
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            raise self.broken() from None
        if not isinstance(header, dict):
            raise self.broken()
        if "error" in header:
            kinds = {"refused": MediaRefused, "OSError": OSError, "ImportError": ImportError}
            raise kinds.get(header["error"], ValueError)(str(header["message"]))
        return header

    def images(self, indices: list[int]) -> Iterator[tuple[int, Image.Image]]:
        """The images of these indices, in this order, and no others."""
        for index in indices:
            header = self.header()
            width, height = header.get("width"), header.get("height")
            are_sizes = all(type(side) is int and side > 0 for side in (width, height))
            if header.get("index") != index or not are_sizes:
                raise self.broken()
            check_pixels(self.name, width, height, self.budget.policy.max_pixels)
            pixels = self.process.stdout.read(width * height * 3)
            if len(pixels) < width * height * 3:
                self.budget.remaining_s()
                raise self.broken()
            yield index, Image.frombytes("RGB", (width, height), pixels)

    def broken(self) -> ValueError:
        self.process.kill()
        how = self.process.wait()
        reason = f"signal {-how}" if how < 0 else f"exit code {how}"
        return ValueError(f"{self.name} cannot be read: the process that decodes it ended with {reason}")


@contextmanager
def _child(file: BinaryIO, request: dict, budget: Budget) -> Iterator[_Child]:
    """Starts the process with the file as its input; it is killed at the deadline, and when all is done."""
    policy, name, seconds = budget.policy, file_name(file), budget.remaining_s()
    request |= {"name": name, "limits": {limit: getattr(policy, limit) for limit in LIMITS}}
    request["cpu_s"] = CPU_S if seconds == float("inf") else int(seconds) + 1
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    variables |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    with ExitStack() as stack:
        source = stack.enter_context(_on_disk(file))
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), json.dumps(request)],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        stack.callback(process.stdout.close)
        if seconds != float("inf"):
            timer = Timer(seconds, process.kill)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        yield _Child(process, name, budget)


@contextmanager
def _on_disk(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file with a descriptor that a process can inherit; of what is in memory a temporary copy."""
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

    def __init__(self, name: str):
        self.name = name
        self.read, self.seek, self.tell = sys.stdin.buffer.read, sys.stdin.buffer.seek, sys.stdin.buffer.tell


def main():
    request = json.loads(sys.argv[1])
    limits = request["limits"] | {"backends": tuple(request["limits"]["backends"])}
    policy = MediaPolicy(**limits, deadline_s=None)
    _limit_process(policy, request["cpu_s"])
    send = sys.stdout.buffer.write
    try:
        for header, image in _read(request, policy):
            send(json.dumps(header).encode() + b"\n")
            send(image.tobytes() if image else b"")
    except (OSError, ValueError, ImportError) as error:
        send(json.dumps({"error": _kind(error), "message": str(error)}).encode() + b"\n")
    sys.stdout.buffer.flush()


def _kind(error: Exception) -> str:
    if isinstance(error, MediaRefused):
        return "refused"
    return next(kind.__name__ for kind in (OSError, ImportError, ValueError) if isinstance(error, kind))


def _read(request: dict, policy: MediaPolicy) -> Iterator[tuple[dict, Image.Image | None]]:
    """What is sent: headers, and the image that follows each."""
    source, budget = _Input(request["name"]), Budget(policy)
    if request["kind"] == "image":
        image = in_rgb(on_white(open_image(source, upright=True, max_pixels=policy.max_pixels)))
        yield {"index": 0, "width": image.width, "height": image.height}, image
    else:
        with frames_of_video(source, FrameChoice(**request["choice"]), request["backend"], budget) as chosen:
            yield {"indices": list(map(int, chosen.indices)), "times_s": chosen.times_s}, None
            for index, image in chosen.frames:
                yield {"index": index, "width": image.width, "height": image.height}, image
    yield {"end": True}, None


def _limit_process(policy: MediaPolicy, cpu_s: int):
    try:
        import resource
    except ImportError:  # not on Windows: there the process has no limits
        return
    address_space = BASE_BYTES + BYTES_PER_PIXEL * policy.max_pixels
    for name, most in (
        ("RLIMIT_AS", address_space),
        ("RLIMIT_CPU", cpu_s),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", policy.max_bytes),
        ("RLIMIT_NOFILE", 64),
    ):
        _, hard = resource.getrlimit(getattr(resource, name))
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(getattr(resource, name), (most, most))


if __name__ == "__main__":
    main()
