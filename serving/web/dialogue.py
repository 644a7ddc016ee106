"""gradio's history -> messages for the processor.

    messages_of(history, question, system) -> [{"role": "user", "content": [...]}, ...]

The history is the only state: it holds the files of every turn, so that stop, retry and undo need no more.
A message of gradio has a text, a file, or a list of both; what a turn shows and asks may come as several
messages.
"""

import mimetypes
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_ANSWERED = "Not answered"  # the title of an error in place of an answer


def messages_of(
    history: Sequence[Mapping], question: Mapping[str, Any] | str, system: str = ""
) -> list[dict]:
    """The dialogue up to a question.

    Turns that ended in an error are left out: their files are usually its cause. A question that was stopped
    before its first word is asked together with the next one.

    Args:
        history: gradio's messages, `{"role": ..., "content": ..., "metadata": ...}`.
        question: `{"text": ..., "files": [...]}` of gradio's textbox, or a text.
        system: the system message; empty: the template's own.

    Raises:
        ValueError: a file that is neither an image nor a video, or a question without text and files.
    """
    if isinstance(question, str):
        question = {"text": question, "files": []}
    files = [{"file": file} for file in question.get("files") or []]
    asked = [*files, question.get("text") or ""]
    if not list(_parts(asked)):
        raise ValueError("the question is empty: type one, or attach an image or a video")

    turns: list[dict] = []
    for message in [*history, {"role": "user", "content": asked}]:
        parts = list(_parts(message["content"]))
        if message["role"] == "user" and turns and turns[-1]["role"] == "user":
            turns[-1]["content"] += parts
        elif message["role"] == "user":
            turns.append({"role": "user", "content": parts})
        elif turns and _is_error(message):
            turns.pop()
        elif turns and turns[-1]["role"] == "user" and parts:
            turns.append({"role": "assistant", "content": "\n".join(map(str, parts))})

    for turn in turns:
        if turn["role"] == "user":
            turn["content"] = _blocks(turn["content"])
    return [{"role": "system", "content": system.strip()}, *turns] if system.strip() else turns


def files_of(messages: Sequence[Mapping]) -> list[tuple[str, str]]:
    """Kind and path of each image and video of messages, in prompt order."""
    blocks = [block for m in messages if not isinstance(m["content"], str) for block in m["content"]]
    return [(block["type"], block[block["type"]]) for block in blocks if block["type"] != "text"]


def kind_of(path: str) -> str:
    """Whether a file's name is that of an "image" or of a "video", as which a GIF counts.

    Raises:
        ValueError: of neither, with the name alone.
    """
    kind = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
    if path.lower().endswith(".gif"):
        return "video"
    if kind not in ("image", "video"):
        raise ValueError(f"{os.path.basename(path)} is neither an image nor a video")
    return kind


def names_alone(sentence: str, messages: Sequence[Mapping]) -> str:
    """A sentence in which the files of messages have their names, and no folders."""
    for _, path in files_of(messages):
        sentence = sentence.replace(path, os.path.basename(path))
    return sentence


class _File(str):
    """The path of a file, unlike a text that somebody typed."""


def _parts(content: Any) -> Iterator[str]:
    """Texts and `_File`s of a message's content, in their order."""
    if isinstance(content, (list, tuple)):
        for part in content:
            yield from _parts(part)
    elif isinstance(content, _File):
        yield content
    elif isinstance(content, str):
        if content.strip():
            yield content
    elif isinstance(content, Mapping):
        if content.get("type") == "text":
            yield from _parts(content["text"])
        else:
            file = content.get("file", content)
            yield _File(file if isinstance(file, str) else file["path"])


def _blocks(parts: Sequence[str]) -> list[dict]:
    """The blocks of a turn: its images and videos, then its texts as one."""
    files = [part for part in parts if isinstance(part, _File)]
    texts = [part for part in parts if not isinstance(part, _File)]
    blocks: list[dict] = []
    for file in files:
        kind = kind_of(file)
        blocks.append({"type": kind, kind: str(file)})
    return [*blocks, {"type": "text", "text": "\n".join(texts)}] if texts else blocks


def _is_error(message: Mapping) -> bool:
    return (message.get("metadata") or {}).get("title") == NOT_ANSWERED
