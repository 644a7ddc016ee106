"""A task and an engine for tests of evaluation's loop; as a script, a process of a run that can be killed.

python counting_task.py OUT [--die-after N] [--rank R --ranks W]
"""

import argparse
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pvc.evaluation import tasks
from pvc.evaluation.engine import Answer
from pvc.evaluation.media import Tiling, Unit
from pvc.evaluation.records import Media, Record
from pvc.evaluation.run import Options, Outcome, Rank, evaluate
from pvc.evaluation.task import Judge, Metric, Protocol, Settings, SubmissionFile, Task

NUMBER = 12  # of records: pairs of questions, each pair about one image


def read(data: Path) -> list[Record]:
    return [
        Record(
            id=str(i),
            media=(Media("image", data / f"{i // 2}.png"),),
            question=f"What is {i} plus 1?",
            answer=str(i + 1),
            meta={"parity": "odd" if i % 2 else "even"},
            group=f"image {i // 2}",
        )
        for i in range(NUMBER)
    ]


def write_images(folder: Path) -> Path:
    """The images of the task: one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(NUMBER // 2):
        pixels = np.full((20, 20, 3), 20 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def submission(rows) -> list[SubmissionFile]:
    return [SubmissionFile("server.json", [{"id": row.record.id, "answer": row.answer} for row in rows])]


PROTOCOL = Protocol(
    prompt=lambda record, shown: record.question,
    parse=lambda answer, record: answer.strip(),
    score=lambda parsed, record: float(parsed == record.answer),
    settings=Settings(max_tiles=1, generation={"max_new_tokens": 5}),
    metric=Metric(labels=lambda record: {"parity": record.meta["parity"]}),
)
JUDGE = Judge(
    messages=lambda record, answer: [{"role": "user", "content": f"{record.question} {answer}"}],
    read=lambda reply, record: {"mark": float(reply)} if reply.isdigit() else None,
    figures=lambda rows, readings: {"mark": sum(x["mark"] for x in readings.values()) / len(rows)},
    paper={"mark": {"PVC-8B": 3.5}},
)
JUDGED = replace(PROTOCOL, judge=JUDGE, needs_judge=True)
TASK = Task(
    "counting",
    "sums",
    read,
    {"default": PROTOCOL, "judged": JUDGED},
    paper={"PVC-8B": 90.0},
    submission=submission,
)
tasks.TASKS["counting"] = TASK


class AddingEngine:
    """Answers rightly but for the ids of `wrong`; may fail, be killed, or run out of memory on the way."""

    identity = {"name": "adder", "weights": "0"}
    tiling = Tiling(28)
    reads_tiles = True

    def __init__(self, wrong=(), failing=(), die_after=None, stop_after=None):
        self.wrong, self.failing = wrong, failing
        self.die_after, self.stop_after = die_after, stop_after
        self.asked: list[str] = []

    def answer(self, units: Iterator[Unit], settings: Settings) -> Iterator[Answer]:
        for unit in units:
            for request in unit.requests:
                name = request.record.id
                if len(self.asked) == self.die_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                if len(self.asked) == self.stop_after:
                    raise KeyboardInterrupt
                self.asked.append(name)
                if name in self.failing:
                    yield Answer(request, None, "OutOfMemoryError: too large", 0.1)
                else:
                    yield Answer(request, "?" if name in self.wrong else str(int(name) + 1), None, 0.1, 1)


def run(data: Path, out: Path, engine=None, rank=Rank(), judge=None, **options) -> Outcome:  # noqa: B008
    options = Options(**{"workers": 0} | options)
    engine = engine or AddingEngine()
    return evaluate(engine, "counting", data, out=out, options=options, rank=rank, judge=judge)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    arguments = parser.parse_args()
    engine = AddingEngine(wrong=("3",), die_after=arguments.die_after)
    run(arguments.data, arguments.out, engine, Rank(arguments.rank, arguments.ranks))


if __name__ == "__main__":
    main()
