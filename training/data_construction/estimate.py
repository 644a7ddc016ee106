"""What a run would ask and cost, before anything is asked: requests, images, tokens, money.

Frames are counted by the indices of the videos and not saved. Tokens are estimates: texts by their length,
replies by their format, images by OpenAI's published rule or a number that is given.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pvc.evaluation.chat_endpoint import ReplyCache
from pvc.preprocess import open_frames
from pvc.training.data.encoding import UNREADABLE
from pvc.training.data_construction.construct import FRAMES, REPLIES, Plan, counts_of_videos
from pvc.training.data_construction.frames import (
    SETTINGS,
    FrameOptions,
    FrameSet,
    check_settings,
    frame_choice,
    saved_frames,
)
from pvc.training.data_construction.requests import Request
from pvc.training.data_construction.videos import Video

CHARACTERS_A_TOKEN = 4  # of English text
MARK_TOKENS = 6  # of "<Frame 12>" and what separates parts
REPLY_TOKENS = {"text": 250, "pairs": 60, "choices": 110}  # of a whole text, of a pair
LOW_DETAIL_TOKENS, TILE_TOKENS, TILE = 85, 170, 512
LONGEST_SIDE, SHORTEST_SIDE = 2048, 768  # to which OpenAI scales an image of high detail


@dataclass
class Estimate:
    """What has no reply yet. `videos`: as in `construct.Report`; `requests`: by task."""

    videos: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    images: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    kept_replies: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def cost(self, prompt_price: float, reply_price: float) -> float:
        """The cost, of prices for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.reply_tokens * reply_price) / 1e6


def estimate(
    plan: Plan,
    out: Path,
    model: str,
    *,
    image_tokens: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Estimate:
    """What `construct` would ask for the plan in the folder `out`, which is only read.

    Args:
        image_tokens: of one image; None: by OpenAI's rule.

    Raises:
        ValueError: where `out` has frames of other options.
    """
    if (out / SETTINGS).exists():
        check_settings(out, plan.frames)
    there = out / REPLIES
    cache = ReplyCache(there if there.exists() else None, read_only=True)

    found = Estimate()
    videos = plan.selection.videos
    for number, video in enumerate(videos, 1):
        progress("videos", number, len(videos))
        try:
            frames = saved_frames(video, out / FRAMES) or _measured(video, plan.frames)
        except UNREADABLE as error:
            found.unreadable.append((video.path, " ".join(str(error).split())))
            continue

        for request in plan.requests_of(video, frames):
            _add(found, request, cache, model, image_tokens)

    found.videos = counts_of_videos(plan.selection, len(found.unreadable))
    return found


def _measured(video: Video, options: FrameOptions) -> FrameSet:
    """The number and the size of a video's frames; decodes one."""
    with open_frames(video.path, **frame_choice(video, options)) as chosen:
        _, first = next(iter(chosen.frames))
        return FrameSet(Path(), len(chosen.indices), *options.shrunk(*first.size), digest="")


def _add(found: Estimate, request: Request, cache: ReplyCache, model: str, image_tokens: int | None) -> None:
    if cache.entry(request.key, model) is not None:
        found.kept_replies += 1
        return

    task, frames = request.task, request.frames
    texts = (request.prompts.system, request.opening, request.instruction)
    text_tokens = sum(math.ceil(len(text) / CHARACTERS_A_TOKEN) for text in texts)
    if image_tokens is None:
        image_tokens = tokens_of_image(frames.width, frames.height, request.options.detail)

    # one request
    found.requests[task.name] += 1
    found.images += frames.num_frames
    found.prompt_tokens += text_tokens + frames.num_frames * (image_tokens + MARK_TOKENS)
    found.reply_tokens += min(REPLY_TOKENS[task.format] * task.pairs, request.options.max_tokens)


def tokens_of_image(width: int, height: int, detail: str | None) -> int:
    """Tokens of an image by the rule that OpenAI publishes for GPT-4o; other models count otherwise."""
    if detail == "low":
        return LOW_DETAIL_TOKENS

    scale = min(1.0, LONGEST_SIDE / max(width, height))
    scale = min(scale, SHORTEST_SIDE / min(width, height))
    tiles = math.ceil(width * scale / TILE) * math.ceil(height * scale / TILE)
    return LOW_DETAIL_TOKENS + TILE_TOKENS * tiles
