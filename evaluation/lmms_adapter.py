"""PVC as a model of lmms-eval: entry point `pvc` of the group `lmms_eval.models`.

    python -m lmms_eval --model pvc --model_args pretrained=FOLDER --tasks mme,videomme --batch_size 8

lmms-eval has one setting of tiles and frames for all tasks; here each task takes those of `pvc evaluate`, by
`TASK_OF`, and others the defaults of `Settings`. Prompts, options of generation and scores are lmms-eval's.
Needs lmms-eval; nothing else in this package imports this module.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from transformers import AutoModelForImageTextToText, AutoTokenizer

from pvc import CHECKPOINT
from pvc.evaluation.engine import ChatEngine, device_of_rank
from pvc.evaluation.media import Broken, Unit, Units, read_ahead, with_worker_advice
from pvc.evaluation.prompts import frame_lines, image_lines
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.task import Protocol, Settings
from pvc.evaluation.tasks import TASKS

WINDOW = 64  # questions whose media are held at a time
PLACEHOLDER = "<image>"
UNUSED = ("until", "image_aspect_ratio")  # options that are not of `generate`
OF_SAMPLING = ("temperature", "top_p", "top_k")
TASK_OF = {  # pattern of lmms-eval's name -> name of the task here
    "ai2d.*": "ai2d",
    "chartqa(_lite)?": "chartqa",
    "docvqa_.*": "docvqa-val",
    "infovqa_.*": "infovqa-val",
    "textvqa_.*": "textvqa",
    "scienceqa.*": "scienceqa",
    "mme": "mme",
    "mmbench_.*": "mmbench-dev-en",
    "mmmu_(val|test).*": "mmmu-val",
    "seedbench(_lite)?": "seed",
    "ocrbench": "ocrbench",
    "mvbench.*": "mvbench",
    "videomme.*": "videomme",
    "mlvu_.*": "mlvu-dev",
    "longvideobench_.*_v": "longvideobench-val",
    "nextqa.*": "nextqa-mc",
    "egoschema.*": "egoschema",
    "perceptiontest.*": "perceptiontest-val",
    "activitynetqa": "activitynetqa",
    "tempcompass.*": "tempcompass",
    "muirbench": "muirbench",
}


def manifest() -> ModelManifest:
    """What the entry point names."""
    return ModelManifest(model_id="pvc", simple_class_path=f"{__name__}.PVC")


class Asked(NamedTuple):
    """A request of lmms-eval: its number in the list, its record, what it is asked with."""

    number: int
    record: Record
    task: str
    options: dict[str, Any]


@dataclass(frozen=True)
class ImageBytes:
    """An image that lmms-eval opened, as a file in memory."""

    content: bytes

    def read(self) -> bytes:
        """The bytes of the image file."""
        return self.content


class PVC(lmms):
    """A folder or Hub id of PVC, asked by `ChatEngine`.

    Args:
        pretrained: folder or Hub id; "": PVC-Tiny.
        workers: processes that read media ahead.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        device: str | None = None,
        dtype: str = "auto",
        attn: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        workers: int = 2,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.workers = workers
        folder = pretrained or str(CHECKPOINT)
        self.engine = load_engine(folder, device, dtype, attn, trust_remote_code, int(batch_size))
        self.device = self.engine.model.device  # lmms-eval asks for it where it runs as several processes

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers in the order of the requests.

        Raises:
            RuntimeError: media could not be read, or a question not be answered. lmms-eval has no place for
                a sample that failed, and an empty answer would be scored as one.
        """
        # one task with one set of options after another: their questions can be asked together
        order = sorted(range(len(requests)), key=lambda number: _kind(requests[number]))
        answers = [""] * len(requests)
        for start in range(0, len(order), WINDOW):
            window = [self._read(number, requests[number]) for number in order[start : start + WINDOW]]
            for _, same in groupby(window, key=lambda x: _kind(requests[x.number])):
                for asked, text in self._ask(list(same)):
                    answers[asked.number] = cut_at_stops(text, asked.options.get("until"))
        return answers

    def _read(self, number: int, request: Any) -> Asked:
        context, options, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        media = tuple(media_of(visual) for visual in _flat(visuals))
        return Asked(number, Record(str(number), media, context), task, options)

    def _ask(self, asked: list[Asked]) -> Iterator[tuple[Asked, str]]:
        """The answers to questions of one task with one set of options, in order."""
        task = asked[0].task
        protocol = protocol_of(task, asked[0].options)
        by_media = groupby(asked, key=lambda x: x.record.media or x.number)
        groups = [[x.record for x in same] for _, same in by_media]

        units = read_ahead(Units(groups, protocol, self.engine.tiling), self.workers)
        answers = self.engine.answer(map(_readable, units), protocol.settings)
        with with_worker_advice():
            for x, answer in zip(asked, answers, strict=True):
                if answer.text is None:
                    raise RuntimeError(f"{task}: question {x.number} was not answered: {answer.error}")
                yield x, answer.text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not available: answers are generated."""
        raise NotImplementedError("pvc answers by generate_until alone: choose a task of that output_type")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not available: a question is asked once."""
        raise NotImplementedError("pvc answers by generate_until alone: choose a task of that output_type")


def load_engine(
    folder: str, device: str | None, dtype: str, attn: str | None, trust_remote_code: bool, batch: int
) -> ChatEngine:
    """The model of a folder or Hub id on its device; the code in a folder is trusted."""
    if device is None:
        device = device_of_rank() or ("cuda" if torch.cuda.is_available() else "cpu")

    options = {"trust_remote_code": trust_remote_code or os.path.isdir(folder)}
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    return ChatEngine(model.to(device).eval(), tokenizer, {"name": folder}, batch)


def _kind(request: Any) -> str:
    _, options, _, _, task, split = request.args
    return json.dumps([task, split, options], sort_keys=True, default=str)


def _flat(visuals: Any) -> list[Any]:
    if visuals is None:
        return []
    if not isinstance(visuals, (list, tuple)):
        return [visuals]
    return [visual for part in visuals for visual in _flat(part)]


def _readable(unit: Unit | Broken) -> Unit:
    if isinstance(unit, Broken):
        raise RuntimeError(f"media of question {unit.records[0].id} cannot be read: {unit.error}")
    return unit


def media_of(visual: Any) -> Media:
    """A PIL image, or the path of a video.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(visual, (str, Path)):
        return Media("video", Path(visual))
    if not hasattr(visual, "save"):
        raise TypeError(f"a visual is {type(visual).__name__}: expected a PIL image or the path of a video")

    file = io.BytesIO()
    image = visual.convert("RGB") if visual.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else visual
    image.save(file, format="PNG")
    return Media("image", ImageBytes(file.getvalue()))


def protocol_of(task: str, options: dict[str, Any]) -> Protocol:
    """Tiles and frames of the task of this name here, lmms-eval's prompt and options of generation."""
    names = [name for pattern, name in TASK_OF.items() if re.fullmatch(pattern, task) and name in TASKS]
    ours = next(iter(TASKS[names[0]].protocols.values())).settings if names else Settings()
    # each image is one of its own, also where the released script takes all tiles for one
    settings = replace(ours, generation=generation_of(options), chat_lists=Settings().chat_lists)
    return Protocol(prompt, lambda answer, record: answer, lambda parsed, record: 0.0, settings)


def prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The text of lmms-eval; in front of it a line for each frame, or for each of several images."""
    if not record.media or PLACEHOLDER in record.question:
        return record.question
    if all(media.kind == "image" for media in record.media):
        return record.question if len(shown) == 1 else image_lines(len(shown)) + record.question
    return frame_lines(sum(x.frames for x in shown)) + record.question


def generation_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `generate`: lmms-eval's without those that are unset, or unused where nothing is sampled."""
    samples = options.get("do_sample", (options.get("temperature") or 0) > 0)
    left_out = UNUSED if samples else (*UNUSED, *OF_SAMPLING)
    given = {name: x for name, x in options.items() if x is not None and name not in left_out}
    stops = stops_of(options.get("until"))
    found = {"max_new_tokens": 1024, "num_beams": 1} | given | {"do_sample": bool(samples)}
    return found | ({"stop_strings": stops} if stops else {})


def stops_of(until: Any) -> list[str]:
    """Texts that end an answer."""
    return [stop for stop in ([until] if isinstance(until, str) else until or []) if stop]


def cut_at_stops(text: str, until: Any) -> str:
    """An answer up to the first text that ends it."""
    for stop in stops_of(until):
        text = text.partition(stop)[0]
    return text
