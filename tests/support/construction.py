"""Videos, requests and replies for tests of data construction."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from chat_server import reply
from numbered_videos import write_video

from pvc.evaluation.chat_endpoint import ChatEndpoint
from pvc.training.data_construction.construct import Plan, Report, construct
from pvc.training.data_construction.tasks import read_prompts
from pvc.training.data_construction.videos import read_list, select

MODEL = "stand-in"
PROMPTS = read_prompts()
TASKS = list(PROMPTS.tasks.values())


def write_list(folder: Path, number: int = 10) -> Path:
    """Ten videos of 1 to 4 seconds, and their list."""
    lines = []
    for i in range(number):
        video = write_video(folder / f"{i}.mp4", num_frames=10 * (1 + i % 4), codec="mpeg4", options={})
        lines.append({"id": f"v{i}", "video": video.name, "caption": f"Scene number {i}"})
    path = folder / "videos.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_plan(listed: Path, tasks: Sequence[str] = (), **options) -> Plan:
    """Two tasks a video, of all or of those named."""
    selection = select(read_list(listed))
    return Plan(selection, PROMPTS.only(tasks), PROMPTS, **({"tasks_per_video": 2} | options))


def endpoint(url: str, **options) -> ChatEndpoint:
    return ChatEndpoint(url, **({"wait_s": 0, "timeout_s": 20} | options))


def run(plan: Plan, out: Path, url: str, *, concurrency: int = 4, **options) -> Report:
    return construct(plan, out, endpoint(url, **options), MODEL, concurrency=concurrency)


def task_of(body: dict) -> str:
    """The name of the task that a request is about."""
    asked = text_of(body)
    found = [task.name for task in TASKS if PROMPTS.instruction(task) in asked]
    assert len(found) == 1
    return found[0]


def text_of(body: dict) -> str:
    return "\n".join(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")


def images_of(body: dict) -> list[str]:
    return [part["image_url"]["url"] for part in body["messages"][1]["content"] if "image_url" in part]


def video_of(body: dict) -> int:
    return int(re.search(r"Scene number (\d+)", text_of(body))[1])


def good_text(task: str, video: int = 0) -> str:
    """A reply of the shape that a task asks for; it names <Frame 1> where frames are needed."""
    known = PROMPTS.tasks[task]
    if known.format == "text":
        mark = "<Frame 1>: " if known.frames == "needed" else ""
        return f"{mark}White bars on black show the number {video}."

    where = "at <Frame 1>" if known.frames == "needed" else "on the left"
    pair = {"question": f"Which bars stand {where} in a {task}?", "answer": f"White bars of {video}"}
    if known.format == "choices":
        pair = {"question": f"Which {task}?", "options": ["red", "blue"], "letter": "B", "reason": "Look."}
    return json.dumps({"pairs": [pair]})


def good_reply(body: dict) -> dict:
    return reply(good_text(task_of(body), video_of(body)))
