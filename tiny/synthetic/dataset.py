"""Synthetic images and videos with questions and answers, to train PVC-Tiny.

    python -m pvc.tiny.synthetic FOLDER --samples 1000      as files, in InternVL's JSONL
    SyntheticDataset(1000, seed=0)                          in memory, drawn when asked for

A sample is a function of seed, index and split, and correct by construction. Held out from training are whole
random streams, phrasings of the questions, and one of eight words and numbers to be read. The questions are
in `tasks.yaml`, the scenes in `image_tasks.py` and `video_tasks.py`. Tiles and tokens are left to the
processor.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset
from transformers.utils import logging

from pvc.tiny.synthetic import board_tasks, image_tasks, video_tasks  # noqa: F401 - they register the samplers
from pvc.tiny.synthetic.follow_ups import ask_follow_ups
from pvc.tiny.synthetic.sampler import SceneSampler
from pvc.tiny.synthetic.scenes import Scene, draw
from pvc.tiny.synthetic.tasks import ALL_TASKS, SAMPLERS, TASKS, further_phrasings, phrasings
from pvc.tiny.synthetic.variations import check_shares
from pvc.tiny.synthetic.video_files import write_video

SPLITS = ("training", "held-out")


class SyntheticSample(NamedTuple):
    """A question about scenes: an image, several, or the frames of a video, as the task's `media` says."""

    task: str
    scenes: list[Scene]
    question: str
    answer: str
    more_turns: tuple[tuple[str, str], ...] = ()  # further questions about them, and the answers

    @property
    def prompt(self) -> str:
        """The question behind the placeholders of its media."""
        if ALL_TASKS[self.task].media == "images":
            placeholders = "".join(f"Image-{i + 1}: <image>\n" for i in range(len(self.scenes)))
        else:
            placeholders = f"<{ALL_TASKS[self.task].media}>\n"
        return placeholders + self.question

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """Questions, the first with placeholders of the media, and their answers."""
        return ((self.prompt, self.answer), *self.more_turns)

    def record(self) -> dict:
        """The sample as a line of InternVL's JSONL, with PIL images where that has paths."""
        media, drawn = ALL_TASKS[self.task].media, [draw(scene) for scene in self.scenes]
        if media == "video":
            shown = {"video": drawn}
        elif media == "images":
            widths, heights = (list(sides) for sides in zip(*(scene.size for scene in self.scenes)))
            shown = {"image": drawn, "width_list": widths, "height_list": heights}
        else:
            width, height = self.scenes[0].size
            shown = {"image": drawn[0], "width": width, "height": height}

        texts = [text for turn in self.turns for text in turn]
        conversations = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        return {"task": self.task, **shown, "conversations": conversations}


class SyntheticDataset(Dataset):
    """Samples of the tasks in turn, each drawn when it is asked for.

    Args:
        length: number of samples.
        seed: any number; together with the split it determines the samples.
        held_out: for evaluation: phrasings, words and random streams that are not in training.
        tasks: names from `ALL_TASKS`, by default those of PVC-Tiny; one that is named twice comes twice as
            often. Or how many times each is named.
        turns: most questions about a scene, of the task's own kind or others; `evaluate` asks the first.
        variations: the share of samples that have each of the variations of `variations.py`, by its name;
            without it all are plain.

    Items are dicts like the lines of InternVL's JSONL, with a PIL image or a list of them under "image" or
    "video", the task under "task" and the index under "id".
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        held_out: bool = False,
        tasks: Sequence[str] | Mapping[str, int] = tuple(TASKS),
        turns: int = 1,
        variations: Mapping[str, float] | None = None,
    ):
        if isinstance(tasks, Mapping):
            tasks = [task for task, times in tasks.items() for _ in range(times)]
        if length < 1 or turns < 1 or not tasks:
            raise ValueError(f"length={length}, turns={turns}, tasks={tasks}: expected at least one of each")
        if unknown := [task for task in tasks if task not in ALL_TASKS]:
            raise ValueError(
                f"tasks has {', '.join(map(repr, unknown))}: expected some of {', '.join(ALL_TASKS)}"
            )

        self.length, self.seed, self.held_out, self.tasks = length, seed, held_out, tuple(tasks)
        self.turns, self.variations = turns, dict(variations or {})
        check_shares(self.variations)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {"id": index, **self.sample(index).record()}

    def sample(self, index: int) -> SyntheticSample:
        """The sample as it was made: what is in its images, not yet drawn.

        Raises:
            IndexError: no such sample.
            FileNotFoundError: DejaVu Sans, which texts are drawn with, is not installed.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"index {index}: expected 0 to {self.length - 1}")
        task = self.task_of(index)
        key = f"{self.seed}/{index}/{task}"
        rng = SceneSampler(key, held_out=self.held_out, shares=self.variations)
        sampled = SAMPLERS[task](rng)

        def asked(task: str, slots: dict[str, str]) -> str:
            form = rng.choice(phrasings(task, held_out=self.held_out))
            further = further_phrasings(task, held_out=self.held_out)
            return rng.variations.question(form, further).format(**slots)

        question = asked(task, sampled.slots)
        more = ask_follow_ups(rng, task, sampled, self.turns - 1)
        more_turns = tuple((asked(name, slots), answer) for name, slots, answer in more)
        return SyntheticSample(task, sampled.scenes, question, sampled.answer, more_turns)

    def evaluate(self, answers: Sequence[str]) -> dict[str, float]:
        """The share of correct answers by task: equal to the sample's, but for white space around them.

        Args:
            answers: one for each sample, in order.
        """
        if len(answers) != self.length:
            raise ValueError(f"{len(answers)} answers to {self.length} samples: expected one for each")
        return self.mean_by_task(
            [answer.strip() == self.sample(index).answer for index, answer in enumerate(answers)]
        )

    def mean_by_task(self, marks: Sequence[float]) -> dict[str, float]:
        """The mean by task of `marks`, one for each sample."""
        by_task = defaultdict(list)
        for index, mark in enumerate(marks):
            by_task[self.task_of(index)].append(mark)
        return {task: sum(marks) / len(marks) for task, marks in by_task.items()}

    def task_of(self, index: int) -> str:
        return self.tasks[index % len(self.tasks)]

    def majority_baseline(self) -> dict[str, float]:
        """The share of the majority baseline by task: always the most frequent answer."""
        answers = defaultdict(Counter)
        for index in range(self.length):
            sample = self.sample(index)
            answers[sample.task][sample.answer] += 1
        return {task: max(counts.values()) / counts.total() for task, counts in answers.items()}


def mean_by_group(scores: dict[str, float]) -> dict[str, float]:
    """The mean of scores by task over the tasks of each group (reading, shapes, charts and so on)."""
    groups = defaultdict(list)
    for task, score in scores.items():
        groups[ALL_TASKS[task].group].append(score)
    return {group: sum(scores) / len(scores) for group, scores in groups.items()}


def export(dataset: SyntheticDataset, folder: Path) -> None:
    """Writes `synthetic.jsonl`, its media as PNG and MP4 under `media/`, and the meta file `meta.json`."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    with open(folder / "synthetic.jsonl", "w", encoding="utf-8") as lines:
        for index in logging.tqdm(range(len(dataset)), desc="Drawing"):
            record = _with_files(dataset[index], folder)
            lines.write(json.dumps(record) + "\n")

    meta = {
        "root": str(folder.resolve()),
        "annotation": str((folder / "synthetic.jsonl").resolve()),
        "data_augment": False,
        "max_dynamic_patch": 6,
        "repeat_time": 1,
        "length": len(dataset),
    }
    (folder / "meta.json").write_text(json.dumps({"synthetic": meta}, indent=2) + "\n", encoding="utf-8")


def _with_files(record: dict, folder: Path) -> dict:
    """The record with its media written, and their paths in place of the images."""
    name = f"media/{record['id']:06d}"
    if "video" in record:
        write_video(folder / f"{name}.mp4", record["video"])
        return record | {"video": f"{name}.mp4"}
    several = isinstance(record["image"], list)
    paths = []
    for i, image in enumerate(record["image"] if several else [record["image"]]):
        paths.append(f"{name}-{i + 1}.png" if several else f"{name}.png")
        image.save(folder / paths[-1])
    return record | {"image": paths if several else paths[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write synthetic data as InternVL's JSONL and its media.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=len(TASKS) * 10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    arguments = parser.parse_args()

    dataset = SyntheticDataset(
        arguments.samples,
        seed=arguments.seed,
        held_out=arguments.split == "held-out",
        tasks=arguments.tasks,
    )
    export(dataset, arguments.folder)


if __name__ == "__main__":
    main()
