"""Exact match of a model on synthetic data, by task, in one forward pass over packed rows.

    python -m pvc.tiny.scoring MODEL --samples 200      a table of all tasks, held out, as Markdown
    python -m pvc.tiny.scoring MODEL --by-tiles         images of one tile and of several, a column each
    python -m pvc.tiny.scoring MODEL --copies           beside it, copies of the first repeat's tokens

Greedy decoding gives an answer exactly when, behind the question and each beginning of that answer, the
likeliest token is the answer's next one, and at the end the token that ends it. One forward pass over
question and answer computes all these predictions, many samples in a row; nothing is generated.
"""

import argparse
import copy
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, stdev

import numpy as np
import torch
from transformers import PreTrainedModel

from pvc.clips import ClipLayout
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor
from pvc.reporting.markdown import markdown_table
from pvc.tiny.synthetic.dataset import SyntheticDataset, SyntheticSample, mean_by_group
from pvc.tiny.synthetic.reader import SceneDataSet
from pvc.tiny.synthetic.sampler import tiles_of
from pvc.tiny.synthetic.tasks import TASKS
from pvc.tiny.synthetic.variations import SHARES
from pvc.training.data.encoding import Encoded, Encoder
from pvc.training.data.packing import collate
from pvc.training.run import load_processor
from pvc.training.trainer import with_needed_logits

ROW_TOKENS = 1024
COPIES = "copies of the first repeat"
ONE_TILE_EACH, SEVERAL_TILES = "one tile", "several tiles"


def exact_match(
    model: PreTrainedModel,
    processor: PVCProcessor,
    dataset: SyntheticDataset,
    *,
    frames: int,
    row_tokens: int = ROW_TOKENS,
) -> dict[str, float]:
    """The share of samples by task whose answer greedy decoding would give, token for token.

    Args:
        processor: says how often an image is shown, and that it is one tile or several.
        frames: of each video, evenly spread.
        row_tokens: of the rows that go through the model at once; a longer sample is a ValueError.
    """
    marks = answer_marks(model, processor, dataset, frames=frames, row_tokens=row_tokens)
    return dataset.mean_by_task([all(of_sample) for of_sample in marks])


@torch.no_grad()
def answer_marks(
    model: PreTrainedModel,
    processor: PVCProcessor,
    dataset: SyntheticDataset,
    *,
    frames: int,
    frame_tokens: int | None = None,
    row_tokens: int = ROW_TOKENS,
) -> list[list[bool]]:
    """Whether each token of each sample's answer is the likeliest behind those before it; the last ends it.

    Arguments as of `exact_match`, and

    Args:
        frame_tokens: visual tokens of each frame; None: as many as the processor says.
    """
    encoder = Encoder(
        processor, max_tokens=row_tokens, min_frames=frames, max_frames=frames, frame_tokens=frame_tokens
    )
    data_set = SceneDataSet("held-out", dataset)
    unused_rng = np.random.default_rng(0)
    samples = (encoder.encode(data_set.read(i), None, unused_rng) for i in range(len(dataset)))

    was_training = model.training
    model.eval()
    marks = [marks for row in rows(samples, row_tokens) for marks in answered(model, encoder, row)]
    model.train(was_training)
    return marks


class Selection(SyntheticDataset):
    """Some samples of a dataset, by their indices in it."""

    def __init__(self, dataset: SyntheticDataset, indices: Sequence[int]):
        super().__init__(
            len(indices),
            seed=dataset.seed,
            held_out=dataset.held_out,
            tasks=dataset.tasks,
            turns=dataset.turns,
            variations=dataset.variations,
        )
        self.dataset, self.indices = dataset, indices

    def sample(self, index: int) -> SyntheticSample:
        return self.dataset.sample(self.indices[index])

    def task_of(self, index: int) -> str:
        return self.dataset.task_of(self.indices[index])


def split_by_tiles(
    seed: int, tasks: Sequence[str], samples: int, variations: Mapping[str, float] | None = None
) -> dict[str, Selection]:
    """The first held-out samples of each task whose images are one tile, and those of several tiles.

    Both come from the same distribution; only the size of the image decides. A tile is PVC-Tiny's: 96 pixels.

    Raises:
        ValueError: for a task about videos, whose frames are one tile each.
    """
    if videos := [task for task in tasks if TASKS[task].media == "video"]:
        raise ValueError(f"tasks has {', '.join(videos)}: expected tasks about images, to split by tiles")

    dataset = SyntheticDataset(sys.maxsize, seed=seed, held_out=True, tasks=tasks, variations=variations)
    indices: dict[str, list[int]] = {ONE_TILE_EACH: [], SEVERAL_TILES: []}
    missing = {(kind, task): samples for kind in indices for task in tasks}

    # several tiles are rarer: samples of one tile are passed over once there are enough of them
    index = 0
    while any(missing.values()):
        is_one = all(tiles_of(scene.size) == (1, 1) for scene in dataset.sample(index).scenes)
        kind = ONE_TILE_EACH if is_one else SEVERAL_TILES
        key = kind, dataset.task_of(index)
        if missing[key]:
            missing[key] -= 1
            indices[kind].append(index)
        index += 1
    return {kind: Selection(dataset, chosen) for kind, chosen in indices.items()}


@contextmanager
def copies_of_the_first_repeat(model: PVCForConditionalGeneration) -> Iterator[None]:
    """Within it, all repeats of an image have the visual tokens of the first: a control.

    What a model gains from its repeats over this, it gains from what they tell differently, and not from the
    number of tokens that it is used to. Videos stay as they are.
    """
    body = model.model
    project = body.project

    def first_alone(
        hidden_states: torch.Tensor, clips: ClipLayout, size: tuple[int, int], numbers: Sequence[int]
    ) -> torch.Tensor:
        tokens = project(hidden_states, clips, size, numbers)
        first = torch.arange(len(tokens))
        for sequences in clips.tile_sequences.values():  # (sequences, T)
            is_image = clips.source[sequences[:, 0]] == clips.source[sequences[:, -1]]
            first[sequences[is_image]] = sequences[is_image, :1].expand(-1, sequences.shape[1])
        return tokens[first.to(tokens.device)]

    body.project = first_alone
    try:
        yield
    finally:
        del body.project


def rows(samples: Iterator[Encoded], row_tokens: int) -> Iterator[list[Encoded]]:
    """The samples in order, as many in a row as fit."""
    row: list[Encoded] = []
    room = row_tokens
    for sample in samples:
        if row and len(sample) > room:
            yield row
            row, room = [], row_tokens
        row.append(sample)
        room -= len(sample)
    yield row


def answered(model: PreTrainedModel, encoder: Encoder, row: list[Encoded]) -> list[list[bool]]:
    """Whether each answer token of each sample of a row is predicted."""
    inputs = with_needed_logits(collate([(sample, encoder.load(sample)) for sample in row]))
    targets = inputs.pop("labels")[0]  # (labels,)
    positions = inputs["logits_to_keep"]  # (labels,)
    del inputs["shift_labels"]

    inputs = {name: x.to(model.device) if torch.is_tensor(x) else x for name, x in inputs.items()}
    is_right = model(**inputs).logits[0].argmax(-1).cpu() == targets  # (labels,)

    # position ids start at 0 in each sample
    sample_of_label = (inputs["position_ids"][0].cpu() == 0).cumsum(0)[positions] - 1
    labels = sample_of_label.bincount(minlength=len(row)).tolist()
    return [marks.tolist() for marks in is_right.split(labels)]


def table(columns: Mapping[str, Sequence[dict[str, float]]]) -> str:
    """Scores by task as Markdown, a column each; below the tasks of a group, its mean.

    Args:
        columns: the scores of each seed; of several, means and standard deviations over seeds are shown.
    """
    tasks = [task for task in TASKS if task in next(iter(columns.values()))[0]]
    means = [[mean_by_group(scores) for scores in seeds] for seeds in columns.values()]

    lines = []
    for group in dict.fromkeys(TASKS[task].group for task in tasks):
        for task in (task for task in tasks if TASKS[task].group == group):
            cells = [_over_seeds([scores[task] for scores in seeds]) for seeds in columns.values()]
            lines.append([f"`{task}`", *cells])
        cells = [_over_seeds([mean[group] for mean in seeds]) for seeds in means]
        lines.append([f"**{group}**", *(f"**{cell}**" for cell in cells)])
    return markdown_table(["task", *columns], lines)


def _over_seeds(scores: Sequence[float]) -> str:
    mean = f"{fmean(scores):.1%}"
    return f"{mean} ± {100 * stdev(scores):.1f}" if len(scores) > 1 else mean


def main() -> None:
    arguments = parse_arguments()
    processor = load_processor(arguments.model)
    dtype = getattr(torch, arguments.dtype)
    model = PVCForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype)
    repeats = arguments.repeats or [processor.image_processor.image_repeats]

    # a column for each part and number of repeats, with the scores of each seed
    columns = defaultdict(list)
    for seed in arguments.seed:
        for part, dataset in held_out_parts(arguments, seed).items():
            columns[heading("majority baseline", part)].append(dataset.majority_baseline())
            for number in repeats:
                shown = copy.deepcopy(processor)
                shown.image_processor.image_repeats = number
                repeated = f"{number} repeats" if number > 1 else "1 repeat"
                scores = exact_match(model, shown, dataset, frames=arguments.frames)
                columns[heading(repeated, part)].append(scores)
                if arguments.copies and number > 1:
                    with copies_of_the_first_repeat(model):
                        scores = exact_match(model, shown, dataset, frames=arguments.frames)
                    columns[heading(f"{number} {COPIES}", part)].append(scores)
    print(table(columns))


def held_out_parts(arguments: argparse.Namespace, seed: int) -> Mapping[str, SyntheticDataset]:
    """What is asked, by the name of the part: all held-out samples, or images of one tile and of several."""
    variations = SHARES if arguments.varied else None
    if arguments.by_tiles:
        return split_by_tiles(seed, arguments.tasks, arguments.samples, variations)
    number = arguments.samples * len(arguments.tasks)
    return {
        "": SyntheticDataset(number, seed=seed, held_out=True, tasks=arguments.tasks, variations=variations)
    }


def heading(name: str, part: str) -> str:
    return f"{part}: {name}" if part else name


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The share of correct answers by task, as a Markdown table.")
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--samples", type=int, default=200, help="of each task")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, metavar="TASK", help="all by default, of images with --by-tiles"
    )
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="several: means and standard deviations over them"
    )
    parser.add_argument("--frames", type=int, default=8, help="of a video")
    parser.add_argument(
        "--repeats", type=int, nargs="+", help="of an image, one or several numbers to compare"
    )
    parser.add_argument(
        "--copies", action="store_true", help="a column for as many copies of an image's first repeat"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--varied", action="store_true", help="scenes that vary as those of training, in place of plain ones"
    )
    parser.add_argument(
        "--by-tiles",
        action="store_true",
        help="columns for images of one tile and of several, SAMPLES of each; not for tasks about videos",
    )
    arguments = parser.parse_args()

    if arguments.by_tiles and any(TASKS[task].media == "video" for task in arguments.tasks or ()):
        parser.error("--by-tiles: expected tasks about images")
    if not arguments.tasks:
        arguments.tasks = [name for name in TASKS if not arguments.by_tiles or TASKS[name].media != "video"]
    return arguments


if __name__ == "__main__":
    main()
