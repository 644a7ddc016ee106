"""A sample as the model takes it: ids and labels as `chat` would lay the dialogue out, and its tiles.

Encoding and loading are apart: `encode` tells the exact number of tokens of a sample from text and the
headers of its images, which is all that packing needs; `load` decodes its media once it is in a row.

Prompts come from `conversation.py`, tiles from the processor. Which samples, and in what order, is left to
others.
"""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from pvc.clips import Clip, media_tokens
from pvc.conversation import (
    Conversation,
    Segment,
    encode_segments,
    get_conv_template,
    with_placeholders,
)
from pvc.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalised,
)
from pvc.processing_pvc import VIDEO_TOKEN, PVCProcessor
from pvc.training.data.samples import BrokenSample, Sample
from pvc.training.data.sources import FileSource, Source, VideoFileSource

IGNORED = -100  # the label of a token outside the answers
FEWEST_FRAMES = 2  # of a video that is thinned to fit: fewer are an image
JPEG_QUALITIES = (75, 100)  # of InternVL's augmentation, both included
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


class MediaFile(NamedTuple):
    """An image or video to be loaded.

    `max_tiles`: of the image or of each frame, the thumbnail not counted.
    """

    source: Source
    clip: Clip
    max_tiles: int


@dataclass(frozen=True)
class Encoded:
    """A sample in tokens. `shortened`: it has fewer tiles or frames than asked for, so that it fits."""

    sample: Sample
    ids: np.ndarray  # (S,) int32
    labels: np.ndarray  # (S,) int32: the id where an answer stands, else IGNORED
    media: list[MediaFile]  # in prompt order
    shortened: bool

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """Samples -> `Encoded`, and their tiles.

    A sample of more than `max_tokens` is never cut. Its images get the largest limit of tiles with which it
    fits; its video the largest number of frames, 2 at the least; and where that does not help, it is broken.
    A video of a sample with `every_frame` keeps all its frames.

    Args:
        processor: names the template, the tokenizer, and what a tile and a repeat are.
        min_frames, max_frames: the frames of a video are a number drawn between them, evenly spread over it;
            a video that has fewer shows some twice, as `load_video` does.
        frame_tiles: tiles of a frame of a video, the thumbnail not counted.
    """

    def __init__(
        self,
        processor: PVCProcessor,
        *,
        max_tokens: int = 8192,
        min_frames: int = 16,
        max_frames: int = 96,
        frame_tiles: int = 1,
    ):
        if not 1 <= min_frames <= max_frames:
            raise ValueError(f"min_frames={min_frames}, max_frames={max_frames}: expected 1 <= min <= max")
        for name, value in (("max_tokens", max_tokens), ("frame_tiles", frame_tiles)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")

        self.tokenizer, self.images = processor.tokenizer, processor.image_processor
        self.template = processor.prompt_template()
        self.max_tokens = max_tokens
        self.frames = (min_frames, max_frames)
        self.frame_tiles = frame_tiles

        end = self.template.sep.strip()
        if end not in self.tokenizer.get_added_vocab():
            raise ValueError(
                f"template {processor.template!r} ends answers with {end!r}, which the tokenizer has not"
            )
        self.end_id = self.tokenizer.convert_tokens_to_ids(end)

    def encode(self, sample: Sample, max_tiles: int | None, rng: np.random.Generator) -> Encoded:
        """The tokens of a sample; reads the headers of its images alone.

        Args:
            max_tiles: of all images of the sample, which share it alike, as in InternVL; None: the
                processor's.
            rng: draws the number of frames.

        Raises:
            BrokenSample: where a header cannot be read, or no choice of tiles and frames fits.
        """
        try:
            wanted, smaller = self._choices(sample, max_tiles or self.images.max_tiles, rng)
            media, shortened = wanted, False
            ids, labels = self._tokens(sample, wanted)
            if len(ids) > self.max_tokens:
                media, shortened = smaller(len(ids)), True
                ids, labels = self._tokens(sample, media)
        except UNREADABLE as error:
            raise BrokenSample(sample.where, error) from error

        if len(ids) > self.max_tokens:
            why = f"{len(ids)} tokens with the fewest tiles and frames: expected at most {self.max_tokens}"
            raise BrokenSample(sample.where, why)
        return Encoded(sample, np.array(ids, np.int32), np.array(labels, np.int32), media, shortened)

    def load(self, encoded: Encoded, rng: np.random.Generator | None = None) -> torch.Tensor | None:
        """The tiles `(num_tiles, 3, S, S)` of a sample in prompt order; None where it has no media.

        `rng` draws the JPEG quality of each tile; None: they stay as they are.

        Raises:
            BrokenSample: where a file cannot be read, or is not what its header said.
        """
        tiles = []
        for file in encoded.media:
            try:
                loaded = self._load(file, encoded.sample)
            except UNREADABLE as error:
                raise BrokenSample(encoded.sample.where, _naming(file.source, error)) from error

            # the prompt was laid out for what the header said
            if loaded.clip != file.clip._replace(tokens=loaded.clip.tokens):
                why = f"{file.source}: its header promised {file.clip}, but it holds {loaded.clip}"
                raise BrokenSample(encoded.sample.where, why)
            tiles.append(loaded.tiles if rng is None else self._as_jpeg(loaded.tiles, rng))
        return torch.cat(tiles) if tiles else None

    def _as_jpeg(self, tiles: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        return as_jpeg(tiles, rng, self.images.pixel_mean, self.images.pixel_std)

    def _load(self, file: MediaFile, sample: Sample):
        source = file.source.open()
        if sample.video is None:
            return self.images.image(source, file.max_tiles)
        start_s, end_s = sample.clip_s or (None, None)
        num_frames = None if sample.every_frame else file.clip.frames
        return self.images.video(
            source, max_tiles=file.max_tiles, num_frames=num_frames, start_s=start_s, end_s=end_s
        )

    # ------------------------------------------------------------------------------------- tiles and frames

    def _choices(self, sample: Sample, max_tiles: int, rng: np.random.Generator):
        """The media as asked for, and the function from a sample's tokens with them to media that fit."""
        if sample.every_frame and isinstance(sample.video, VideoFileSource):
            return self._video_choices(sample, sample.video.num_frames())
        if sample.video is not None:
            return self._video_choices(sample, int(rng.integers(*self.frames, endpoint=True)))
        return self._image_choices(sample, max(1, max_tiles // max(1, len(sample.images))))

    def _image_choices(self, sample: Sample, max_tiles: int):
        sizes = [source.size() for source in sample.images]

        def at_most(tiles: int) -> list[MediaFile]:
            clips = self.images.share_budget(
                [Clip(1, self._num_tiles(size, tiles), self.images.image_repeats) for size in sizes]
            )
            return [MediaFile(source, clip, tiles) for source, clip in zip(sample.images, clips)]

        wanted = at_most(max_tiles)

        def smaller(tokens: int) -> list[MediaFile]:
            text = tokens - self._visual_tokens(wanted)
            choices = [at_most(tiles) for tiles in range(max_tiles - 1, 0, -1)] or [wanted]
            fitting = (media for media in choices if text + self._visual_tokens(media) <= self.max_tokens)
            return next(fitting, choices[-1])

        return wanted, smaller

    def _video_choices(self, sample: Sample, frames: int):
        video = sample.video
        assert video is not None
        tiles = self._num_tiles(video.size(), self.frame_tiles) if self.frame_tiles > 1 else 1

        def showing(frames: int) -> list[MediaFile]:
            clips = self.images.share_budget([Clip(frames, tiles, self.images.video_repeats)])
            return [MediaFile(video, clip, self.frame_tiles) for clip in clips]

        def smaller(tokens: int) -> list[MediaFile]:
            if sample.every_frame:  # the text names frames by number
                return showing(frames)
            fewer = range(FEWEST_FRAMES, frames)
            fitting = bisect_right(
                fewer, self.max_tokens, key=lambda n: len(self._tokens(sample, showing(n))[0])
            )
            return showing(fewer[max(0, fitting - 1)] if fewer else frames)

        return showing(frames), smaller

    def _num_tiles(self, size: tuple[int, int], max_tiles: int) -> int:
        """Tiles that an image of that size is cut into, the thumbnail counted."""
        return self.images.count_tiles(*size, max_tiles)

    def _visual_tokens(self, media: Sequence[MediaFile]) -> int:
        return sum(media_tokens([file.clip for file in media], self.images.tokens_per_tile))

    # ------------------------------------------------------------------------------------- ids and labels

    def _tokens(self, sample: Sample, media: Sequence[MediaFile]) -> tuple[list[int], list[int]]:
        """Ids of the dialogue, and the labels of its answers, the token that ends each included.

        Encodes turn by turn, each from the token that ended the answer before: what stands on either side of
        a special token does not change the other.
        """
        conversation = get_conv_template(self.template.name)
        if sample.system is not None:
            conversation.system_message = sample.system
        left = media_tokens([file.clip for file in media], self.images.tokens_per_tile)
        ids: list[int] = []
        labels: list[int] = []
        start = 0

        for question, answer in sample.turns:
            frames = media[0].clip.frames if sample.video else None
            conversation.append_message(conversation.roles[0], _segments(conversation, question, frames))
            conversation.append_message(conversation.roles[1], None)

            prompt = conversation.segments()[start:]
            conversation.messages[-1] = (conversation.roles[1], answer)
            whole = conversation.segments()

            # the ids of the prompt alone, and with its answer
            asked, turn = (
                encode_segments(
                    self.tokenizer,
                    segments,
                    left,
                    marks=conversation.marks,
                    add_special_tokens=start == 0,
                    max_tokens=self.max_tokens,
                )
                for segments in (prompt, whole[start:])
            )

            left = left[sum(segment.kind == "media" for segment in prompt) :]
            begin, end = _common_prefix(asked, turn), _place_behind(self.end_id, turn)

            if start:  # the turn begins with the end of the last one
                kept = _place_behind(self.end_id, ids)
                del ids[kept:], labels[kept:]

            skipped = 1 if start else 0
            ids += turn[skipped:]
            labels += [IGNORED] * (begin - skipped) + turn[begin:end] + [IGNORED] * (len(turn) - end)
            start = len(whole) - 1
        return ids, labels


def _segments(template: Conversation, question: str, frames: int | None) -> list[Segment]:
    """A question with its media; `frames`: of the video that `<video>` in it stands for, None: of none."""
    before, placeholder, after = question.partition(VIDEO_TOKEN)
    if frames is None or not placeholder:
        return with_placeholders(question)

    # the lines of a frame may end with a separator: then what ends a video is not left out
    end = template.end_of_media(frames) if template.frames_end and not after.startswith("\n") else ""
    lines = template.video_segments(frames)
    parts = [Segment("text", before), *lines, Segment("text", end), Segment("text", after)]
    return [part for part in parts if part.text]


def _common_prefix(one: list[int], other: list[int]) -> int:
    differing = (i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differing, min(len(one), len(other)))


def _place_behind(id: int, ids: list[int]) -> int:
    return len(ids) - ids[::-1].index(id)


# ----------------------------------------------------------------------------------------------------- images


def as_jpeg(
    tiles: torch.Tensor,
    rng: np.random.Generator,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """Normalised tiles as they are after JPEG of a quality drawn for each: InternVL's augmentation."""
    means, stds = (tiles.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    bytes_of_tiles = ((tiles * stds + means) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    degraded = []
    for tile, quality in zip(bytes_of_tiles, rng.integers(*JPEG_QUALITIES, size=len(tiles), endpoint=True)):
        file = BytesIO()
        Image.fromarray(np.ascontiguousarray(tile)).save(file, "JPEG", quality=int(quality))
        degraded.append(normalised(Image.open(file), mean, std))
    return torch.stack(degraded)


def _naming(source: Source, error: Exception) -> str:
    """The error's text, with the name of a file that it does not tell."""
    is_named = not isinstance(source, FileSource) or source.path in str(error)
    return str(error) if is_named else f"{source}: {error}"
