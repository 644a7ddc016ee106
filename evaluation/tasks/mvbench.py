"""MVBench: 20 tasks of 200 questions about short videos. Source: `eval/mvbench` of the released code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Literal, NamedTuple

from pvc.evaluation.choices import labels_of
from pvc.evaluation.data_files import build_records, own_folder, read_rows
from pvc.evaluation.parse import lmms_mvbench_correct
from pvc.evaluation.prompts import frame_lines, lettered
from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.released_parsers import is_option
from pvc.evaluation.task import Metric, Protocol, Row, Settings, Task, keep_answer, percent
from pvc.evaluation.tasks.released import greedy, released_generation


class Source(NamedTuple):
    """Where the videos of a task lie under `MVBench/video`, and how its questions use them."""

    folder: str
    is_bound: bool = False  # to `start` and `end`
    fps: float | None = None  # of folders of frames


SOURCES = {
    "Action Sequence": Source("star/Charades_v1_480", is_bound=True),
    "Action Prediction": Source("star/Charades_v1_480", is_bound=True),
    "Action Antonym": Source("ssv2_video"),
    "Fine-grained Action": Source("Moments_in_Time_Raw/videos"),
    "Unexpected Action": Source("FunQA_test/test"),
    "Object Existence": Source("clevrer/video_validation"),
    "Object Interaction": Source("star/Charades_v1_480", is_bound=True),
    "Object Shuffle": Source("perception/videos"),
    "Moving Direction": Source("clevrer/video_validation"),
    "Action Localization": Source("sta/sta_video", is_bound=True),
    "Scene Transition": Source("scene_qa/video"),
    "Action Count": Source("perception/videos"),
    "Moving Count": Source("clevrer/video_validation"),
    "Moving Attribute": Source("clevrer/video_validation"),
    "State Change": Source("perception/videos"),
    "Fine-grained Pose": Source("nturgbd"),
    "Character Order": Source("perception/videos"),
    "Egocentric Navigation": Source("vlnqa"),
    "Episodic Reasoning": Source("tvqa/frames_fps3_hq", is_bound=True, fps=3),
    "Counterfactual Inference": Source("clevrer/video_validation"),
}

INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and "
    "movement of objects, and the action and pose of persons. Based on your observations, select the best "
    "option that accurately addresses the question.\n"
)


def file_of(task: str) -> str:
    """The name of a task's file of questions."""
    return task.lower().replace(" ", "_").replace("-", "_") + ".json"


def read_mvbench(data: Path) -> list[Record]:
    """The questions of all tasks, in the official order."""
    folder = own_folder(data, "MVBench", [f"json/{file_of(task)}" for task in SOURCES])
    return [record for task in SOURCES for record in _records(task, folder)]


def _records(task: str, folder: Path) -> list[Record]:
    path = folder / "json" / file_of(task)
    source = SOURCES[task]
    videos = folder / "video" / source.folder
    kind: Literal["video", "frames"] = "video" if source.fps is None else "frames"
    entries = read_rows(path)

    def build(number: int) -> Record:
        entry = entries[number]
        bound = (float(entry["start"]), float(entry["end"])) if source.is_bound else None
        options = tuple(entry["candidates"])
        return Record(
            id=f"{task}/{number}",
            media=(Media(kind, videos / entry["video"], bound, source.fps),),
            question=entry["question"],
            options=options,
            answer=_right_letter(options, entry["answer"]),
            meta={"task": task, "answer_text": entry["answer"]},
            group=f"{source.folder}/{entry['video']}",
        )

    return build_records(path, range(len(entries)), build)


def _right_letter(options: Sequence[str], answer: str) -> str:
    """The letter of the last option that is the answer; "@" where none is, as in the released code."""
    places = [place for place, option in enumerate(options) if option == answer]
    return ascii_uppercase[places[-1]] if places else "@"


def question_text(record: Record) -> str:
    """Question and options with letters in brackets."""
    options = lettered(record.options, "({letter}) {option}")
    return f"Question: {record.question}\nOptions:\n{options}".rstrip()


def _released_prompt(frame_form: str, record: Record, shown: Sequence[Shown]) -> str:
    frames = frame_lines(shown[0].frames, frame_form)
    return f"{frames}{INSTRUCTION}\n{question_text(record)}\nOnly give the best option."


def ask_as_pvc(record: Record, shown: Sequence[Shown]) -> str:
    """Frames without a space after the colon, as PVC's script has them."""
    return _released_prompt("Frame{number}:<image>\n", record, shown)


def ask_as_internvl(record: Record, shown: Sequence[Shown]) -> str:
    """Frames with a space after the colon, as InternVL's present script has them."""
    return _released_prompt("Frame{number}: <image>\n", record, shown)


def ask_as_lmms(record: Record, shown: Sequence[Shown]) -> str:
    """As lmms-eval asks, after the frames."""
    options = lettered(record.options, "({letter}) {option}")
    text = f"Question:{record.question}\nOption:\n{options}\nOnly give the best option.\n"
    return frame_lines(shown[0].frames) + text


def score_released(parsed: str, record: Record) -> float:
    """Whether the first word names the right letter. An empty answer is right there."""
    return float(is_option(parsed, f"({record.answer}) {record.meta['answer_text']}"))


def score_lmms(parsed: str, record: Record) -> float:
    """Whether lmms-eval reads the right letter."""
    return float(lmms_mvbench_correct(parsed, record.answer))


def _without_empty_answers(rows: Sequence[Row]) -> Mapping[str, float]:
    """The accuracy where an empty answer is wrong."""
    strict = [row._replace(score=row.score if (row.answer or "").strip() else 0.0) for row in rows]
    return {"accuracy, empty answers wrong": percent(strict)}


METRIC = Metric(labels=labels_of("task"), others=_without_empty_answers)

MVBENCH = Task(
    name="mvbench",
    about="MVBench, 20 tasks: data/MVBench/{json,video}; the videos of Fine-grained Pose are asked for apart",
    read=read_mvbench,
    protocols={
        "internvl": Protocol(
            ask_as_pvc,
            keep_answer,
            score_released,
            Settings(frames=96, generation=released_generation(1000, num_beams=5)),
            METRIC,
        ),
        "internvl2": Protocol(
            ask_as_internvl,
            keep_answer,
            score_released,
            Settings(frames=16, generation=released_generation(1000)),
            METRIC,
        ),
        "lmms": Protocol(
            ask_as_lmms, keep_answer, score_lmms, Settings(frames=96, generation=greedy(16)), METRIC
        ),
    },
    expected=4000,
    paper={"PVC-2B": 69.4, "PVC-8B": 73.8},
    paper_protocol="internvl",
)

ALL = (MVBENCH,)
