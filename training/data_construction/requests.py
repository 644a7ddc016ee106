"""A task and the frames of a video as a request to an OpenAI-compatible endpoint.

The frames come in order, each behind its mark: `<Frame 1>`, image, `<Frame 2>`, image, …; then the question.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pvc.training.data_construction.frames import FrameSet
from pvc.training.data_construction.tasks import Prompts, Task
from pvc.training.data_construction.videos import Video


@dataclass(frozen=True)
class RequestOptions:
    """What a reply depends on beside the prompt; None: the endpoint's own.

    Attributes:
        max_tokens: of a reply.
        temperature: of sampling.
        detail: of an image, "low" or "high"; what it means is the endpoint's.
        shows_captions: captions stand in the prompts.
        further: fields of the request's body, in place of its own; one that is None is left out.
    """

    max_tokens: int = 1024
    temperature: float | None = None
    detail: str | None = "low"
    shows_captions: bool = True
    further: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fixed = sorted({"model", "messages", "stream", "n"} & self.further.keys())
        if fixed:
            raise ValueError(f"{', '.join(fixed)}: such fields of a request cannot be changed")


@dataclass(frozen=True)
class Request:
    """One task about one video."""

    video: Video
    task: Task
    frames: FrameSet
    prompts: Prompts
    options: RequestOptions

    @property
    def opening(self) -> str:
        """The text before the frames."""
        if not (self.options.shows_captions and self.video.caption):
            return f"The video has {self.frames.num_frames} frames."
        caption = self.prompts.caption.replace("{caption}", self.video.caption)
        return f"The video has {self.frames.num_frames} frames.\n{caption}"

    @property
    def instruction(self) -> str:
        """The text behind the frames."""
        return self.prompts.instruction(self.task)

    @property
    def key(self) -> str:
        """SHA-256 of all that the reply depends on but the model, without reading the frames."""
        options = self.options
        asked = {
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "further": dict(options.further),
            "detail": options.detail,
            "video": self.video.name,
            "frames": self.frames.digest,
            "text": [self.prompts.system, self.opening, self.instruction],
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def body(self, model: str) -> dict[str, Any]:
        """The body of the request; reads the frames."""
        content: list[dict[str, Any]] = [_text(self.opening)]
        for number, path in enumerate(self.frames.paths(), 1):
            content += [_text(f"<Frame {number}>"), self._image(path.read_bytes())]
        content.append(_text(self.instruction))
        messages = [
            {"role": "system", "content": self.prompts.system},
            {"role": "user", "content": content},
        ]

        body = {"model": model, "messages": messages, "max_tokens": self.options.max_tokens}
        body |= {"temperature": self.options.temperature, **self.options.further}
        return {name: value for name, value in body.items() if value is not None}

    def _image(self, jpeg: bytes) -> dict[str, Any]:
        image = {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}
        if self.options.detail is not None:
            image["detail"] = self.options.detail

        return {"type": "image_url", "image_url": image}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
