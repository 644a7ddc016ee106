"""A sample as the model takes it: ids and labels as `chat` would lay the dialogue out, and its tiles.

Encoding and loading are apart: `encode` tells the exact number of tokens of a sample from text and the
headers of its images, which is all that packing needs; `load` decodes its media once it is in a row.

Prompts come from `conversation.py`, tiles from the processor. Which samples, and in what order, is left to
others.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from pvc.clips import Clip, media_tokens
from pvc.compressors import frame_tokens as tokens_of_share
from pvc.conversation import (
    Conversation,
    Segment,
    encode_segments,
    get_conv_template,
    with_placeholders,
)
from pvc.frame_choice import MAX_FPS
from pvc.preprocess import normalise, open_frames, pixels_of
from pvc.processing_pvc import VIDEO_TOKEN, PVCProcessor
from pvc.training.data.samples import BrokenSample, Sample
from pvc.training.data.sources import FileSource, Source, VideoFileSource, image_size_of

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
        fps: frames a second of a video file, up to `max_frames`, in place of a number that is drawn; of a
            folder of frames all are taken, up to `max_frames`.
        frame_tiles: tiles of a frame of a video, the thumbnail not counted.
        max_video_tokens: tokens that the frames of a video, or the images of a sample, share; None: the
            processor's own number.
        frame_tokens: tokens of every tile; or the least and the most of a number that is drawn for each
            sample, at most the tile's share of `max_video_tokens`; None: the processor's own rule. The model
            rounds a number down to one that it makes.
        reduced_frames: let FFmpeg scale the frames of a video to their tiles, where these are smaller:
            faster, but not the bits of the processor.
        reduced_jpegs: decode a JPEG at the least of the scales 1/8, 1/4, 1/2 and 1 at which its tiles need no
            enlarging: faster for large photographs, but not the bits of the processor.

    Raises:
        ValueError: for a range that is none, or where the model makes one number of tokens alone.
    """

    def __init__(
        self,
        processor: PVCProcessor,
        *,
        max_tokens: int = 8192,
        min_frames: int = 16,
        max_frames: int = 96,
        fps: float | None = None,
        frame_tiles: int = 1,
        max_video_tokens: int | None = None,
        frame_tokens: int | Sequence[int] | None = None,
        reduced_jpegs: bool = False,
        reduced_frames: bool = False,
    ):
        if fps is None and not 1 <= min_frames <= max_frames:
            raise ValueError(f"min_frames={min_frames}, max_frames={max_frames}: expected 1 <= min <= max")
        if fps is not None and not 0 < fps <= MAX_FPS:
            raise ValueError(f"fps={fps}: expected frames a second, at most {MAX_FPS}")
        for name, value in (
            ("max_tokens", max_tokens),
            ("max_frames", max_frames),
            ("frame_tiles", frame_tiles),
        ):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")

        self.tokenizer, self.images = processor.tokenizer, processor.image_processor
        self.template = processor.prompt_template()
        self.max_tokens = max_tokens
        self.frames = (min_frames, max_frames)
        self.fps = fps
        self.frame_tiles = frame_tiles
        self.max_video_tokens = max_video_tokens
        self.frame_tokens = _range_of(frame_tokens)
        self.reduced_jpegs = reduced_jpegs
        self.reduced_frames = reduced_frames
        self._share([Clip(2, 1, 1)], self.frame_tokens and self.frame_tokens[0])  # raises where it cannot be

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
            rng: draws the numbers of frames and of tokens.

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

    def load(
        self, encoded: Encoded, rng: np.random.Generator | None = None, *, as_bytes: bool = False
    ) -> torch.Tensor | None:
        """The tiles `(num_tiles, 3, S, S)` of a sample in prompt order; None where it has no media.

        Args:
            rng: draws the JPEG quality of each tile; None: they stay as they are.
            as_bytes: uint8, for `normalise`.

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
            tiles.append(loaded.tiles if rng is None else as_jpeg(loaded.tiles, rng))

        if not tiles:
            return None
        pixels = torch.cat(tiles) if len(tiles) > 1 else tiles[0]
        return pixels if as_bytes else self.normalise(pixels)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tiles of bytes as the model takes them."""
        return normalise(pixels, self.images.pixel_mean, self.images.pixel_std)

    def _load(self, file: MediaFile, sample: Sample):
        source = file.source.open()
        if sample.video is None:
            source = self._reduced(source, file.max_tiles) if self.reduced_jpegs else source
            return self.images.image(source, file.max_tiles, as_bytes=True)
        start_s, end_s = sample.clip_s or (None, None)
        frames = self._frame_choice(file.source, file.clip.frames)
        frames = {"num_frames": None} if sample.every_frame else frames
        options: dict[str, Any] = {
            "max_tiles": file.max_tiles,
            "start_s": start_s,
            "end_s": end_s,
            "as_bytes": True,
        }
        if self.reduced_frames:
            options["scaled_size"] = partial(self._reduced_size, max_tiles=file.max_tiles)
        return self.images.video(source, **options, **frames)

    def _reduced_size(self, width: int, height: int, max_tiles: int) -> tuple[int, int]:
        """The size of a frame's tiles together, not enlarged; its own where there would be other tiles."""
        columns, rows = grid = self.images.grid_of(width, height, max_tiles)
        side = self.images.image_size
        reduced = (min(width, columns * side), min(height, rows * side))
        return reduced if self.images.grid_of(*reduced, max_tiles) == grid else (width, height)

    def _reduced(self, source: Any, max_tiles: int) -> Any:
        """A JPEG to be decoded at a smaller scale, where it is cut into the same tiles; else the source."""
        if not isinstance(source, str) and not hasattr(source, "read"):
            return source
        upright = image_size_of(source)
        image = Image.open(source)
        if image.format != "JPEG":
            return source

        is_turned = image.size != upright
        columns, rows = grid = self.images.grid_of(*upright, max_tiles)
        needed = (columns * self.images.image_size, rows * self.images.image_size)
        image.draft(None, needed[::-1] if is_turned else needed)

        # rounded sides may have another closest grid
        reduced = image.size[::-1] if is_turned else image.size
        return image if self.images.grid_of(*reduced, max_tiles) == grid else source

    # ------------------------------------------------------------------------------------- tiles and frames

    def _choices(self, sample: Sample, max_tiles: int, rng: np.random.Generator):
        """The media as asked for, and the function from a sample's tokens with them to media that fit."""
        if sample.video is not None:
            return self._video_choices(sample, rng)
        return self._image_choices(sample, max(1, max_tiles // max(1, len(sample.images))), rng)

    def _image_choices(self, sample: Sample, max_tiles: int, rng: np.random.Generator):
        sizes = [source.size() for source in sample.images]

        def clips_of(tiles: int) -> list[Clip]:
            return [Clip(1, self._num_tiles(size, tiles), self.images.image_repeats) for size in sizes]

        # fewer tiles have larger shares: what is drawn for the most holds for all
        drawn = self._drawn_tokens(clips_of(max_tiles), rng)

        def at_most(tiles: int) -> list[MediaFile]:
            clips = self._share(clips_of(tiles), drawn)
            return [MediaFile(source, clip, tiles) for source, clip in zip(sample.images, clips)]

        wanted = at_most(max_tiles)

        def smaller(tokens: int) -> list[MediaFile]:
            text = tokens - self._visual_tokens(wanted)
            choices = [at_most(tiles) for tiles in range(max_tiles - 1, 0, -1)] or [wanted]
            fitting = (media for media in choices if text + self._visual_tokens(media) <= self.max_tokens)
            return next(fitting, choices[-1])

        return wanted, smaller

    def _video_choices(self, sample: Sample, rng: np.random.Generator):
        video = sample.video
        assert video is not None
        frames = self._num_frames(sample, video, rng)
        tiles = self._num_tiles(video.size(), self.frame_tiles) if self.frame_tiles > 1 else 1
        drawn = self._drawn_tokens([Clip(frames, tiles, self.images.video_repeats)], rng)

        def showing(frames: int) -> list[MediaFile]:
            clips = self._share([Clip(frames, tiles, self.images.video_repeats)], drawn)
            return [MediaFile(video, clip, self.frame_tiles) for clip in clips]

        def text_of(frames: int) -> int:
            media = showing(frames)
            return len(self._tokens(sample, media)[0]) - self._visual_tokens(media)

        def smaller(tokens: int) -> list[MediaFile]:
            if sample.every_frame:  # the text names frames by number
                return showing(frames)
            fewest = min(FEWEST_FRAMES, frames)
            least_text = text_of(fewest)

            # under a budget fewer frames may have more tokens, so that one number after another is tried
            for fewer in range(frames - 1, fewest, -1):
                left = self.max_tokens - self._visual_tokens(showing(fewer))
                if least_text <= left and text_of(fewer) <= left:
                    return showing(fewer)
            return showing(fewest)

        return showing(frames), smaller

    def _num_frames(self, sample: Sample, video: Source, rng: np.random.Generator) -> int:
        """Frames of a video: all, drawn, or by `fps`; of a file, its packets are read for that."""
        if sample.every_frame and isinstance(video, VideoFileSource):
            return video.num_frames()
        if self.fps is None or not isinstance(video, VideoFileSource):
            least = min(self.frames)  # with fps, `min_frames` need not be below `max_frames`
            return int(rng.integers(least, self.frames[1], endpoint=True))

        start_s, end_s = sample.clip_s or (None, None)
        choice = self._frame_choice(video, self.frames[1])
        with open_frames(video.open(), start_s=start_s, end_s=end_s, **choice) as chosen:
            return len(chosen.indices)

    def _frame_choice(self, video: Source, frames: int) -> dict:
        """The options of `open_frames` with which a video has so many frames."""
        if self.fps is None or not isinstance(video, VideoFileSource):
            return {"num_frames": frames}
        by_rate = {"fps": self.fps} if video.has_times else {}
        return {"num_frames": None, "max_frames": frames} | by_rate

    def _drawn_tokens(self, clips: Sequence[Clip], rng: np.random.Generator) -> int | None:
        """The tokens that are wanted of each tile of clips with one budget; None: the processor's rule."""
        if self.frame_tokens is None or not clips:
            return None
        least, most = self.frame_tokens
        if least == most:
            return least

        budget = self.max_video_tokens or getattr(self.images, "max_video_tokens", None)
        shown = sum(clip.frames * clip.tiles * clip.repeats for clip in clips)
        share = most if budget is None else tokens_of_share(shown, budget, most)
        return int(rng.integers(min(least, share), share, endpoint=True))

    def _share(self, clips: Sequence[Clip], drawn: int | None) -> list[Clip]:
        """The clips of a sample with their numbers of tokens."""
        return self.images.share_budget(clips, max_video_tokens=self.max_video_tokens, frame_tokens=drawn)

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


def _range_of(frame_tokens: int | Sequence[int] | None) -> tuple[int, int] | None:
    """The least and the most tokens of a tile; a single number is both."""
    if frame_tokens is None:
        return None
    numbers = [frame_tokens] * 2 if isinstance(frame_tokens, int) else list(frame_tokens)
    if len(numbers) != 2 or not all(type(number) is int for number in numbers):
        raise ValueError(f"frame_tokens={frame_tokens}: expected a number, or the least and the most")
    least, most = numbers
    if not 1 <= least <= most:
        raise ValueError(f"frame_tokens={frame_tokens}: expected 1 <= least <= most")
    return least, most


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


def as_jpeg(tiles: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Tiles `(num_tiles, 3, S, S)` uint8 after JPEG of a quality drawn for each: InternVL's augmentation."""
    degraded = []
    qualities = rng.integers(*JPEG_QUALITIES, size=len(tiles), endpoint=True)
    for tile, quality in zip(tiles.permute(0, 2, 3, 1).numpy(), qualities):
        file = BytesIO()
        Image.fromarray(np.ascontiguousarray(tile)).save(file, "JPEG", quality=int(quality))
        degraded.append(pixels_of(Image.open(file)))
    return torch.stack(degraded)


def _naming(source: Source, error: Exception) -> str:
    """The error's text, with the name of a file that it does not tell."""
    is_named = not isinstance(source, FileSource) or source.path in str(error)
    return str(error) if is_named else f"{source}: {error}"
