"""What serving engines such as vLLM ask of the processor, beyond what transformers asks.

An engine cuts the inputs of a prompt into those of its images and videos, batches them with other prompts'
and puts them together again. It asks for three things, in the words of transformers' own processors:

    counts          tokens and tiles of images and videos of given sizes, before anything is read
    replacements    the text that stands for each placeholder of a finished prompt
    names           inputs of images and of videos apart, with the tiles of each

The engine renders the chat template and tokenises its text itself; then it looks for the ids of a placeholder
or, where they are not found, for its text, and encodes the replacement. So that ids do not depend on the text
around them, a replacement begins and ends with a token of its own, `<img>` and `</img>`: a chat template that
an engine renders writes the label of a video's first frame itself. Dynamic-VLM's begins with a digit, which
is one too, and ends with `<|image_pad|>`: the template writes the last separator. So it has one behind a
video of a single frame as well, where messages have none.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import BatchFeature
from transformers.processing_utils import MultiModalData

from .chat_template import Media, Prompt, placeholder_segments
from .clips import Clip, clip_grid_of, media_tokens, tokens_of_clip
from .conversation import FIRST_FRAME, Conversation, MediaMarks, Segment, get_conv_template
from .preprocess import largest_grid
from .processing_options import IMAGE_TOKEN, VIDEO_TOKEN, ProcessingOptions
from .processor_fields import repeats_of


class VideoInputs:
    """Stands for a video processor, of which engines ask the names of its inputs and whether it samples.

    The processor reads videos itself; transformers' own video processors need torchvision.
    """

    model_input_names = ["pixel_values_videos", "video_grid_thw"]
    do_sample_frames = False  # the engine has chosen them

    def __init__(self, images: Any):
        self.images = images

    @property
    def size(self) -> dict[str, int]:
        """As the image processor's: frames are cut into tiles as images are."""
        return self.images.size


# ----------------------------------------------------------------------------------------------------- counts


def size_of_most_tiles(images: Any) -> dict[str, int]:
    """Width and height of an image that an image processor cuts into as many tiles as it may."""
    columns, rows = largest_grid(images.min_tiles, images.max_tiles)
    return {"width": columns * images.image_size, "height": rows * images.image_size}


def count_media(
    images: Any,
    image_sizes: Iterable[Sequence[int]] | None,
    video_sizes: Iterable[Sequence[int]] | None,
    options: ProcessingOptions,
) -> MultiModalData:
    """Visual tokens and tiles of images and videos.

    Args:
        images: the image processor.
        image_sizes: height and width of each image, upright.
        video_sizes: frames, height and width of each video.
        options: of the call: `max_tiles`.
    """
    counts = MultiModalData()
    if image_sizes is not None:
        tiles = [images.count_tiles(width, height, options.image_tiles) for height, width in image_sizes]
        repeats = repeats_of(images, options.image_repeats)
        clips = images.share_budget([Clip(1, number, repeats) for number in tiles], **options.tokens)
        counts.num_image_patches = tiles
        counts.num_image_tokens = [tokens_of_clip(clip, images.tokens_per_tile) for clip in clips]

    if video_sizes is not None:
        most = options.video["max_tiles"] or 1
        clips = [
            Clip(frames, images.count_tiles(width, height, most), images.video_repeats)
            for frames, height, width in video_sizes
        ]
        clips = images.share_budget(clips, **options.tokens)
        counts.num_video_tokens = [tokens_of_clip(clip, images.tokens_per_tile) for clip in clips]
    return counts


# ----------------------------------------------------------------------------------------------- replacements


class ReplacementStyle(NamedTuple):
    """How a replacement is written.

    Attributes:
        marks: the tokens of media.
        left_before, left_behind: what the chat template writes around a video, and its replacement does not.
    """

    marks: MediaMarks
    left_before: str = ""
    left_behind: str = ""


def replacement_style(chat_template: Any, template: Conversation) -> ReplacementStyle:
    """The style for a chat template that lays media out as `template` does."""
    written = str(chat_template)
    return ReplacementStyle(
        template.marks,
        left_before=FIRST_FRAME if "first_frame" in written else "",
        left_behind=template.frames_end if "last_frame" in written else "",
    )


def replacement_offsets(
    segments: Sequence[Segment], media: Sequence[Media], tokens_per_tile: int, style: ReplacementStyle
) -> list[dict[str, Any]]:
    """The replacement of each placeholder of one finished prompt, as transformers describes them.

    Args:
        segments: of the prompt, with its placeholders.
        media: those of the placeholders, in order.
        style: how a replacement is written.

    Returns:
        One dict a placeholder: `type` ("image" or "video"), `text` (the placeholder), `replacement`, and
        where they begin and end in the prompt (`span`) and in the prompt with all replacements (`new_span`).
    """
    offsets = []
    unread = iter(media)
    start = new_start = 0
    for segment in segments:
        new_text = segment.text

        if segment.kind == "media":
            new_text = replacement(next(unread), tokens_per_tile, style)
            offsets.append(
                {
                    "type": segment.text[1:-1],
                    "text": segment.text,
                    "replacement": new_text,
                    "span": (start, start + len(segment.text)),
                    "new_span": (new_start, new_start + len(new_text)),
                }
            )

        start += len(segment.text)
        new_start += len(new_text)
    return offsets


def replacement(media: Media, tokens_per_tile: int, style: ReplacementStyle) -> str:
    """The text of an image or video in a prompt, each visual token as the context token."""
    marks = style.marks
    counts = iter(media_tokens([media.clip], tokens_per_tile))
    parts = [
        marks.start + marks.context * next(counts) + marks.end if segment.kind == "media" else segment.text
        for segment in media.segments
    ]
    return "".join(parts).removeprefix(style.left_before).removesuffix(style.left_behind)


# ------------------------------------------------------------------------------------------------------ names


def engine_batch(
    inputs: BatchFeature,
    texts: Sequence[str],
    prompts: Sequence[Prompt],
    processor: Any,
) -> BatchFeature:
    """Inputs of finished prompts as an engine takes them apart.

    Args:
        inputs: as the processor makes them otherwise.
        texts, prompts: before and after their placeholders were replaced.
        processor: which made them.

    Returns:
        `input_ids`, `attention_mask`, what `named_inputs` makes of the media, and `text_replacement_offsets`:
        for each prompt what `replacement_offsets` says.
    """
    style = replacement_style(processor.chat_template, get_conv_template(processor.template))
    tokens_per_tile = processor.image_processor.tokens_per_tile

    tokens: list[str] = []
    offsets = []
    for text, prompt in zip(texts, prompts):
        segments = placeholder_segments(text)
        tokens += [segment.text for segment in segments if segment.kind == "media"]
        offsets.append(replacement_offsets(segments, prompt.media, tokens_per_tile, style))

    media = [item for prompt in prompts for item in prompt.media]
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return BatchFeature({**ids, **named_inputs(tokens, media), "text_replacement_offsets": offsets})


def named_inputs(tokens: Sequence[str], media: Sequence[Media]) -> BatchFeature:
    """Inputs of images and of videos under names of their own.

    Args:
        tokens: the placeholder of each medium.

    Returns:
        `pixel_values (num_tiles, 3, S, S)`, `clip_grid (num_tiles, 3)` and `image_grid_thw (images, 3)` of
        images; `pixel_values_videos (num_tiles, 3, S, S)` and `video_grid_thw (videos, 3)` of videos. A row
        of a `…_grid_thw` is frames, tiles a frame, and 1: their product is the number of tiles.
    """
    images = [item for token, item in zip(tokens, media) if token == IMAGE_TOKEN]
    videos = [item for token, item in zip(tokens, media) if token == VIDEO_TOKEN]

    inputs = {}
    if images:
        inputs["pixel_values"] = torch.cat([item.tiles for item in images])
        inputs["clip_grid"] = clip_grid_of(item.clip for item in images)
        inputs["image_grid_thw"] = _grid_thw(images)
    if videos:
        inputs["pixel_values_videos"] = torch.cat([item.tiles for item in videos])
        inputs["video_grid_thw"] = _grid_thw(videos)
    return BatchFeature(inputs)


def _grid_thw(media: Sequence[Media]) -> torch.Tensor:
    return torch.tensor([[item.clip.frames, item.clip.tiles, 1] for item in media])
