"""A small benchmark of synthetic data, asked and scored as `pvc evaluate` does: `make evaluate-demo`.

    python -m pvc.tiny.benchmark_demo --out bench-results/evaluate-demo

Held-out samples are written in the layouts of ChartQA (words and shapes in images) and MVBench (videos), and
PVC-Tiny answers them. The tasks are those of `evaluation/tasks/` but for the text of the question: without
sentences such as "Answer the question using a single word or phrase.", which PVC-Tiny was not trained on.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from pvc import CHECKPOINT
from pvc.evaluation.engine import ChatEngine, checkpoint_identity
from pvc.evaluation.prompts import frame_lines
from pvc.evaluation.records import Record, Shown
from pvc.evaluation.report import as_markdown, plot
from pvc.evaluation.run import Options, evaluate
from pvc.evaluation.scoring import Result
from pvc.evaluation.task import Task
from pvc.evaluation.tasks import TASKS
from pvc.evaluation.tasks.mvbench import SOURCES, file_of
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.synthetic.dataset import SyntheticDataset, SyntheticSample
from pvc.tiny.synthetic.scenes import draw
from pvc.tiny.synthetic.video_files import VIDEO_FPS, write_video

FRAMES = 8  # of a video, as PVC-Tiny is scored
NEW_TOKENS = 24
CHARTQA_SETS = {"human": ("word", "word_at"), "augmented": ("colour", "shape", "place")}
MVBENCH_KINDS = {
    "Moving Direction": "motion",
    "Moving Attribute": "moving_shape",
    "State Change": "colour_change",
    "Action Count": "count_blinks",
}
OPTIONS = {  # of a question, as MVBench lists them; the other tasks' answers stand alone
    "motion": ("left", "right", "up", "down"),
    "count_blinks": ("1", "2", "3", "4"),
}


# ---- files


def write_chartqa(root: Path, sets: dict[str, Sequence[SyntheticSample]]) -> None:
    """Images with a question each, in ChartQA's two sets."""
    for name, samples in sets.items():
        images = f"ChartQA Dataset/test/png/{name}"
        (root / "chartqa" / images).mkdir(parents=True, exist_ok=True)
        lines = []
        for number, sample in enumerate(samples):
            image = f"chartqa/{images}/{number}.png"
            draw(sample.scenes[0]).save(root / image)
            line = {"image": f"data/{image}", "question": sample.question, "question_id": number}
            lines.append(json.dumps(line | {"answer": sample.answer}) + "\n")
        (root / f"chartqa/test_{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_mvbench(root: Path, kinds: dict[str, Sequence[SyntheticSample]]) -> None:
    """Videos with a question each, in some of MVBench's tasks; the files of the others are empty.

    Where a task has folders of frames in place of videos, they are written without loss.
    """
    folder = root / "MVBench"
    (folder / "json").mkdir(parents=True, exist_ok=True)
    for kind, source in SOURCES.items():
        entries = []
        for number, sample in enumerate(kinds.get(kind, ())):
            name = f"{file_of(kind).removesuffix('.json')}_{number}"
            name += "" if source.fps else ".mp4"
            write_frames(folder / "video" / source.folder / name, sample)
            options = list(OPTIONS.get(sample.task, (sample.answer,)))
            entry = {"video": name, "question": sample.question, "candidates": options}
            entries.append(entry | {"answer": sample.answer, "start": 0, "end": len(sample.scenes)})
        (folder / "json" / file_of(kind)).write_text(json.dumps(entries), encoding="utf-8")


def write_frames(path: Path, sample: SyntheticSample) -> None:
    """The scenes of a sample as a video, or as a folder of numbered images where the path has no ending."""
    images = [draw(scene) for scene in sample.scenes]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        write_video(path, images, VIDEO_FPS)
        return
    path.mkdir(exist_ok=True)
    for number, image in enumerate(images, 1):
        image.save(path / f"{number:05d}.png")


# ---- tasks


def question_alone(record: Record, shown: Sequence[Shown]) -> str:
    """The question as PVC-Tiny was trained on it, behind a line for each frame of a video."""
    frames = sum(x.frames for x, media in zip(shown, record.media) if media.kind != "image")
    return frame_lines(frames) + record.question


def stripped(answer: str, record: Record) -> str:
    """The answer without white space around it."""
    return answer.strip()


def is_answer_text(parsed: str, record: Record) -> float:
    """Whether the answer is the right option's text."""
    return float(parsed == record.meta["answer_text"])


def synthetic_task(name: str, **changes: Any) -> Task:
    """The task of this name with the question alone, greedy decoding and few frames; it has no paper's value.

    `changes` are fields of its protocol.
    """
    task = TASKS[name]
    protocol = next(iter(task.protocols.values()))
    generation = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    settings = replace(protocol.settings, frames=FRAMES, generation=generation)
    protocol = replace(protocol, **{"prompt": question_alone, "settings": settings} | changes)
    return replace(
        task,
        name=f"synthetic-{name}",
        about=f"synthetic data in the layout of {name}",
        protocols={"question alone": protocol},
        expected=None,
        paper={},
        released_names=(),
        submission=None,
    )


def synthetic_mvbench() -> Task:
    """MVBench whose answers are the text of the right option."""
    return synthetic_task("mvbench", parse=stripped, score=is_answer_text)


@contextmanager
def registered(*tasks: Task) -> Iterator[None]:
    """Within: `evaluate` knows these tasks by their names."""
    TASKS.update({task.name: task for task in tasks})
    try:
        yield
    finally:
        for task in tasks:
            del TASKS[task.name]


# ---- command


def samples_of(number: int, task: str) -> list[SyntheticSample]:
    """The first held-out samples of a task of the synthetic data."""
    dataset = SyntheticDataset(number, held_out=True, tasks=[task])
    return [dataset.sample(i) for i in range(number)]


def write_data(root: Path, number: int) -> None:
    """`number` questions of each kind, in both layouts."""
    sets = {
        name: [x for task in tasks for x in samples_of(number, task)] for name, tasks in CHARTQA_SETS.items()
    }
    write_chartqa(root, sets)
    write_mvbench(root, {kind: samples_of(number, task) for kind, task in MVBENCH_KINDS.items()})


def tiny_engine() -> ChatEngine:
    """PVC-Tiny in float32."""
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(CHECKPOINT), trust_remote_code=True)
    return ChatEngine(model, tokenizer, checkpoint_identity(CHECKPOINT, "PVC-Tiny"))


def run(folder: Path, number: int, say: Callable[[str], None] = print) -> list[Result]:
    """Writes the data, asks PVC-Tiny, prints each result and where its plot lies."""
    write_data(folder / "data", number)
    tasks = [synthetic_task("chartqa"), synthetic_mvbench()]
    engine = tiny_engine()

    results = []
    with registered(*tasks):
        for task in tasks:
            options = Options(workers=1, fresh=True)
            result = evaluate(engine, task.name, folder / "data", out=folder, options=options).result
            assert result is not None  # one process, which answers all
            path = folder / task.name / "plot.svg"
            plot(result, path)
            say(as_markdown(result))
            say(f"plot: {path}\n")
            results.append(result)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description="Evaluates PVC-Tiny on a small synthetic benchmark.")
    parser.add_argument("--out", type=Path, default=Path("bench-results/evaluate-demo"))
    parser.add_argument("--samples", type=int, default=8, help="of each kind of question")
    chosen = parser.parse_args(arguments)
    run(chosen.out, chosen.samples)


if __name__ == "__main__":
    main()
