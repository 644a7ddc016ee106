"""What evaluation saves: questions about one video as one unit, and media that are read ahead.

    python -m pvc.benchmarks.evaluation --preset small --out bench-results

Two ratios, each of two ways that are timed in turns in one process, with random weights on the CPU: three
questions about a video by `ChatEngine` over three calls of `chat`; a list of videos read by a worker process
over the same read between the questions. The model has one thread, so that a worker has a core too.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from pvc import CHECKPOINT
from pvc.benchmarks import report
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.models import build
from pvc.benchmarks.presets import Preset, find_preset, pvc_config
from pvc.benchmarks.reading import write_video
from pvc.benchmarks.report import Row, Tables
from pvc.evaluation.engine import Answer, ChatEngine, chat_lists
from pvc.evaluation.media import Request, Tiling, Unit, Units, prepare, read_ahead
from pvc.evaluation.prompts import frame_lines, lettered
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.task import Protocol, Settings
from pvc.modeling_pvc import PVCForConditionalGeneration

FRAMES = {"small": 32, "tiny": 4}  # of the video that three questions are about
NEW_TOKENS = 3  # of an answer: a letter, a full stop, the end
WORKERS = 1
QUESTIONS = (
    ("What does the man put on the shelf?", ("a red mug", "a pair of shoes", "the blue book", "nothing")),
    ("Which of these happens first?", ("he leaves", "a dog comes in", "the light goes out", "she sits down")),
    ("How many people are in the room at the end?", ("none", "one", "two", "three or more")),
)


class Loaded(NamedTuple):
    """A model of random weights with the tokenizer of PVC-Tiny."""

    model: Any
    tokenizer: Any

    def engine(self) -> ChatEngine:
        """An engine whose cache is empty."""
        return ChatEngine(self.model, self.tokenizer, {})


def load(preset: Preset) -> Loaded:
    """The model of a preset, with as many words as the tokenizer has."""
    tokenizer = AutoTokenizer.from_pretrained(str(CHECKPOINT), trust_remote_code=True)
    sized = replace(preset, llm=preset.llm | {"vocab_size": len(tokenizer)})
    return Loaded(build(PVCForConditionalGeneration, pvc_config(sized), "cpu", torch.float32), tokenizer)


def protocol(frames: int) -> Protocol:
    """A line a frame, the question, its options; answers of one length."""

    def prompt(record: Record, shown: Sequence[Shown]) -> str:
        options = lettered(record.options)
        return f"{frame_lines(shown[0].frames)}{record.question}\n{options}\nThe best answer is:"

    generation = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    settings = Settings(frames=frames, generation=generation)
    return Protocol(prompt, lambda answer, record: answer, lambda parsed, record: 0.0, settings)


def questions(video: Path, number: int) -> list[Record]:
    """The first so many questions about a video."""
    media = (Media("video", video),)
    asked = QUESTIONS[:number]
    return [Record(f"{video.name}/{i}", media, *question) for i, question in enumerate(asked)]


# ---- three questions about a video


def ask_as_unit(loaded: Loaded, unit: Unit, settings: Settings) -> list[str]:
    """Answers of one unit: its video is encoded once, and its prompt's beginning computed once."""
    answers = list(loaded.engine().answer(iter([unit]), settings))
    failed = [answer.error for answer in answers if answer.error is not None]
    if failed:
        raise RuntimeError(failed[0])
    return [answer.text or "" for answer in answers]


def ask_apart(loaded: Loaded, unit: Unit, settings: Settings) -> list[str]:
    """Answers to the same questions by a call of `chat` each."""
    return [
        loaded.model.chat(
            loaded.tokenizer,
            unit.pixel_values,
            request.question,
            dict(settings.generation),
            **chat_lists(request, settings),
        )
        for request in unit.requests
    ]


@contextmanager
def counted_work(model: Any) -> Iterator[dict[str, int]]:
    """Within: counts the tiles that the ViT encodes and the positions that the LLM computes."""
    work = {"tiles encoded": 0, "LLM positions": 0}

    def count_tiles(module, args):
        work["tiles encoded"] += len(args[0])

    def count_positions(module, args, options):
        work["LLM positions"] += options["inputs_embeds"].shape[1]

    hooks = [
        model.model.vision_model.register_forward_pre_hook(count_tiles),
        model.model.language_model.register_forward_pre_hook(count_positions, with_kwargs=True),
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def shared_video_rows(
    loaded: Loaded, unit: Unit, settings: Settings, timer: DeviceTimer, runs: int
) -> list[Row]:
    """Both ways to ask about a video, with what they compute, and the ratio of their times."""
    ways: dict[str, Callable[[], list[str]]] = {
        "one unit": partial(ask_as_unit, loaded, unit, settings),
        "three calls": partial(ask_apart, loaded, unit, settings),
    }
    counts = {}
    for name, ask in ways.items():
        with counted_work(loaded.model) as work:
            ask()
        counts[name] = work

    as_unit, apart = timer.interleaved(runs, *ways.values())
    taken = {"one unit": as_unit, "three calls": apart}
    rows: list[Row] = [{"way": name} | counts[name] | {"s": statistics.median(taken[name])} for name in ways]

    ratio: Row = {"way": "ratio"}
    for column in counts["one unit"]:
        ratio[column] = counts["one unit"][column] / counts["three calls"][column]
    return [*rows, ratio | ratio_cells("s", as_unit, apart)]


def ratio_cells(column: str, first: Sequence[float], second: Sequence[float]) -> Row:
    """Median, least and greatest ratio of pairs of times."""
    ratios = sorted(a / b for a, b in zip(first, second))
    return {column: statistics.median(ratios), "min": ratios[0], "max": ratios[-1]}


# ---- media that are read ahead


class WaitingEngine(ChatEngine):
    """Waits for so many seconds in place of each answer: to its host, a GPU that computes looks like this."""

    def __init__(self, loaded: Loaded, seconds: float):
        super().__init__(loaded.model, loaded.tokenizer, {})
        self.seconds = seconds

    def _answer_one(self, request: Request, pixel_values: torch.Tensor | None, settings: Settings) -> Answer:
        time.sleep(self.seconds)
        return Answer(request, "", None, self.seconds)


def answer_all(engine: ChatEngine, units: Units, workers: int) -> int:
    """Asks about each video, as a run does; returns the number of answers."""
    source: Any = read_ahead(units, workers)
    return sum(answer.error is None for answer in engine.answer(source, units.protocol.settings))


def read_all(units: Units) -> int:
    """Reads each video, and asks nothing; returns their number."""
    return sum(1 for _ in read_ahead(units, 0))


def read_ahead_rows(loaded: Loaded, units: Units, timer: DeviceTimer, runs: int) -> list[Row]:
    """A list of videos with and without a worker that reads ahead; the model is on the CPU, or waited for."""
    (reading,) = timer.interleaved(runs, partial(read_all, units))
    waiting = WaitingEngine(loaded, statistics.median(reading) / len(units))

    rows: list[Row] = [{"answers from": "nothing: reading alone", "no worker s": statistics.median(reading)}]
    for name, engine in (("a wait as long as reading", waiting), ("the model, on the CPU", loaded.engine())):
        off, on = timer.interleaved(
            runs, *(partial(answer_all, engine, units, workers) for workers in (0, WORKERS))
        )
        row: Row = {"answers from": name, "no worker s": statistics.median(off)}
        row[f"{WORKERS} worker s"] = statistics.median(on)
        rows.append(row | ratio_cells("ratio", on, off))
    return rows


# ---- command


def measure(name: str, runs: int, folder: Path) -> Tables:
    """Both tables; videos are written into `folder`."""
    preset = find_preset(name)
    loaded = load(preset)
    timer = DeviceTimer(torch.device("cpu"), torch.float32)
    videos = [folder / f"{i}.mp4" for i in range(8 if name != "tiny" else 2)]
    for video in videos:
        write_video(video, preset.video_s // 4 or 1)

    frames = FRAMES.get(name, FRAMES["small"])
    shown = protocol(frames)
    unit = prepare(questions(videos[0], len(QUESTIONS)), shown, Tiling(preset.side))
    units = Units([questions(video, 1) for video in videos], protocol(frames // 4), Tiling(preset.side))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            f"Three questions about a video of {frames} frames": shared_video_rows(
                loaded, unit, shown.settings, timer, runs
            ),
            f"A question about each of {len(videos)} videos": read_ahead_rows(loaded, units, timer, runs),
        }
    finally:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints Markdown, and writes `evaluation.md` and `.json` where a folder is named."""
    parser = argparse.ArgumentParser(description="What evaluation saves, with random weights on the CPU.")
    parser.add_argument("--preset", default="small", help="tiny or small; larger ones take long")
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turns")
    parser.add_argument("--out", type=Path, help="folder for evaluation.md and evaluation.json")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    with tempfile.TemporaryDirectory() as folder:
        tables = measure(chosen.preset, chosen.runs, Path(folder))

    command = shlex.join(["python", "-m", "pvc.benchmarks.evaluation", *given])
    facts = report.about(chosen.preset, command, torch.device("cpu"), "float32") | {"threads": "1"}
    if chosen.out is not None:
        print(report.write(chosen.out, "evaluation", facts, tables), end="")
    else:
        print(report.markdown(facts, tables), end="")


if __name__ == "__main__":
    main()
