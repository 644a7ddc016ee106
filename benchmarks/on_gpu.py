"""Everything that needs a GPU, checked and measured by one command in nine minutes.

    python -m pvc.benchmarks.on_gpu --out on-gpu        # or, in a bare checkout, benchmarks/on_gpu.sh

Each part (`parts.py`) runs in a process of its own with a share of the time that is left, so that one that
fails, hangs or fills the memory takes nothing from the next. What a part finds is appended to
`on_gpu.jsonl` at once, and `on_gpu.md` is made of it after each part: whatever stops the run, all that was
done is kept. The same command again goes on with the parts that are not done. What a part prints is in
`PART.log`. The device's settings are left as they are.

Without a GPU it runs on the CPU at the size for tests, which shows that it works and nothing else.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pvc.benchmarks.journal import DONE, Journal

MINUTES = 9.0
SECONDS = {  # part, in order -> what it may take of nine minutes, its start included
    "device": 30,
    "correctness": 100,
    "inference": 180,
    "profile": 30,
    "training": 110,
    "throughput": 60,
    "attention": 30,
}
NAME = "on_gpu"
KILL_AFTER_S = 5  # past its limit: a part looks at the clock itself between two steps
ENVIRONMENT = {  # of each part: one piece of GPU memory, no progress bars, nothing fetched
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str] | None = None) -> int:
    """0 where every part is done; 1 where one is not; 2 for arguments that do not go together."""
    deadline = time.monotonic()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.part:
        return run_part(options)

    options.device = options.device or _found_device()
    options.preset = options.preset or ("8B" if options.device.startswith("cuda") else "tiny")
    names = [name for name in SECONDS if name in (options.only or SECONDS)]
    journal = Journal(Path(options.out), NAME)
    _check_same_run(parser, journal, options)

    deadline += 60 * options.minutes
    for i, name in enumerate(names):
        attempt = journal.attempts().get(name)
        if attempt and attempt.status == DONE:
            _say(f"{name}: done before")
            continue

        share = SECONDS[name] / sum(SECONDS[each] for each in names[i:])
        supervise(name, share * (deadline - time.monotonic()), journal, options)

    text = journal.write_markdown()
    print(text)
    attempts = journal.attempts()
    return 0 if all(attempts[name].status == DONE for name in names) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pvc.benchmarks.on_gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results, made")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together (default: 9)")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=SECONDS, help=", ".join(SECONDS))
    parser.add_argument("--preset", help="8B (training: 2B), 2B, small or tiny; default: 8B, on a CPU tiny")
    parser.add_argument("--device", help="cuda or cpu; default: a GPU if there is one")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # this process runs one part
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--command", default="", help=argparse.SUPPRESS)
    return parser


def _found_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_same_run(parser: argparse.ArgumentParser, journal: Journal, options: argparse.Namespace):
    """Ends the command where the folder has results of another preset or device."""
    for name, attempt in journal.attempts().items():
        before = {key: attempt.start.get(key) for key in ("preset", "device")}
        now = {"preset": options.preset, "device": options.device}
        if before != now:
            parser.error(f"{options.out} has {name} of {before}, and this run is {now}: choose another --out")


# ------------------------------------------------------------------------------------------------ supervising


def supervise(name: str, limit_s: float, journal: Journal, options: argparse.Namespace):
    """Runs a part in a process of its own, ends it at its limit, and records how it went."""
    start = {"preset": options.preset, "device": options.device, "limit_s": round(limit_s, 1)}
    journal.append(name, start=start)
    begun = time.monotonic()

    code = _run_to_limit(_part_command(name, limit_s, options), limit_s, Path(options.out, f"{name}.log"))
    seconds = time.monotonic() - begun

    attempt = journal.attempts()[name]
    if not attempt.end:  # the part could not say itself
        problem = "ended at its limit" if code is None else f"its process ended with {code}: see {name}.log"
        journal.append(name, step=name, problem=problem)
        status = "out of time" if code is None else "failed"
        journal.append(name, end={"status": status, "seconds": round(seconds, 1)})

    journal.write_markdown()
    _say(f"{name}: {journal.attempts()[name].status}, {seconds:.0f} s of {limit_s:.0f}")


def _part_command(name: str, limit_s: float, options: argparse.Namespace) -> list[str]:
    said = f"python -m pvc.benchmarks.on_gpu {shlex.join(sys.argv[1:])}"
    command = [sys.executable, "-m", "pvc.benchmarks.on_gpu", "--part", name, "--seconds", f"{limit_s:.1f}"]
    command += ["--out", options.out, "--preset", options.preset, "--device", options.device]
    return [*command, "--command", said]


def _run_to_limit(command: list[str], limit_s: float, log: Path) -> int | None:
    """The exit code; None where the process had to be ended. Compilers that it started end with it.

    Its standard input stays open as long as this process lives: see `_end_with_parent`.
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            return None
        finally:  # also where this process is told to end
            _kill_group(process)


def _kill_group(process: subprocess.Popen):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()


def _say(text: str):
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ in the part


def run_part(options: argparse.Namespace) -> int:
    """What the process of one part does."""
    begun = time.monotonic()
    journal = Journal(Path(options.out), NAME)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from pvc.benchmarks import report
    from pvc.benchmarks.measure import DeviceTimer
    from pvc.benchmarks.parts import PARTS, Part

    timer = DeviceTimer.named(options.device, "auto")
    part = Part(options.part, journal, options.preset, timer, begun + options.seconds)
    journal.append(
        part.name,
        about=report.about(options.preset, options.command, timer.device, timer.dtype_name)
        | {"python": sys.version.split()[0]},
    )

    try:
        PARTS[part.name](part)
    except Exception as error:  # recorded, as a step's is
        part.problem(part.name, error)

    status = part.statuses[0] if part.statuses else DONE
    journal.append(part.name, end={"status": status, "seconds": round(time.monotonic() - begun, 1)})
    return 0 if status == DONE else 1


def _end_with_parent():
    """Ends this process when the one that began it is gone, even if that was killed."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # takes a running part along
    sys.exit(main())
