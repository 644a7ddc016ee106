"""A camera that the model watches: frames are encoded as they come, questions are about all so far.

    camera = cameras.of(session)           # of `LiveCameras(assistant)`
    camera.add(path)                       # a frame; False where it was left out
    camera.ask(question, settings)         # the answer

Each frame is one tile, encoded once (`live_video.py`). A frame that comes while the model is busy is left
out, so that the camera never waits.
"""

import threading
from collections import OrderedDict
from typing import Any

from pvc.serving.errors import ApiError
from pvc.serving.web.assistant import Assistant, Settings

WINDOW = 32  # frames that a frame attends to
PROMPT_FRAMES = 32  # the newest, which the prompt shows
MOST_CAMERAS = 2  # that are kept: each holds two hidden states a layer for every frame of its window


class LiveCamera:
    """The video of one camera, and the dialogue about it.

    Args:
        assistant: whose model, processor and media policy are used.
    """

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        config = assistant.model.config
        # with a budget, a frame has what each of the frames in the prompt may have
        tokens = None if config.max_video_tokens is None else config.token_budget().tokens(PROMPT_FRAMES)
        self._live = assistant.model.live_video(
            assistant.processor.tokenizer,
            window=WINDOW,
            prompt_frames=PROMPT_FRAMES,
            frame_tokens=tokens,
        )

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return self._live.num_frames

    @property
    def history(self) -> list[tuple[str, str]]:
        """Questions and answers so far."""
        return self._live.history

    def add(self, path: str) -> bool:
        """Encodes a frame, an image file; False where the model is busy and the frame is left out."""
        if not self._assistant.lock.acquire(blocking=False):
            return False
        try:
            tiles = self._assistant.processor.image_processor.image(path, max_tiles=1).tiles  # (1, 3, S, S)
            self._live.add(tiles)
        finally:
            self._assistant.lock.release()
        return True

    def ask(self, question: str, settings: Settings) -> str:
        """The answer about the frames so far.

        Raises:
            ApiError: there is no frame, or the question is empty or cannot be asked.
        """
        if not question.strip():
            raise ApiError(400, "the question is empty: type one")
        if not self.num_frames:
            raise ApiError(400, "there is no frame yet: allow the camera, and start it")

        sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
        if settings.temperature > 0:
            sampling["temperature"] = settings.temperature
        with self._assistant.lock:
            try:
                return self._live.ask(question, {"max_new_tokens": settings.max_tokens, **sampling})
            except ValueError as error:
                raise ApiError(400, str(error)) from None


class LiveCameras:
    """The cameras of sessions; for a new one, that which was used longest ago goes.

    Args:
        assistant: as of `LiveCamera`.
        most: cameras that are kept.
    """

    def __init__(self, assistant: Assistant, most: int = MOST_CAMERAS) -> None:
        self._assistant = assistant
        self._most = most
        self._cameras: OrderedDict[str, LiveCamera] = OrderedDict()  # the last used is the last
        self._lock = threading.Lock()

    def of(self, session: str) -> LiveCamera:
        """The camera of a session, a new one where it has none."""
        with self._lock:
            camera = self._cameras.pop(session, None) or LiveCamera(self._assistant)
            self._cameras[session] = camera
            while len(self._cameras) > self._most:
                self._cameras.popitem(last=False)
            return camera

    def forget(self, session: str) -> None:
        """Forgets the video and the questions of a session."""
        with self._lock:
            self._cameras.pop(session, None)
