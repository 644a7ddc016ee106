"""Chat templates: messages -> `Prompt`, the segments and media that a processor encodes.

The model's own template is laid out by `conversation.py` (`own_prompt`). Any other, which somebody edited or
passed, is laid out by Jinja as text (`rendered_prompt`). To know which of that text somebody typed, it is
rendered twice: as it is, and with a mark in the position of each typed text. Typed text then stays plain text
here too. Where the template changes typed text, so that the two renderings differ, the rendered text is taken
as a finished prompt, and typed names of control tokens are refused.

Reading media is left to the caller: it passes a function that loads one.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .clips import Clip, clip_grid_of
from .conversation import (
    FIRST_FRAME,
    Conversation,
    PlainTextEncoder,
    Segment,
    adds_bos,
    get_conv_template,
    jinja_template,
)
from .frame_choice import FrameChoice
from .media_policy import shown
from .processing_options import FRAME_OPTIONS, IMAGE_TOKEN, VIDEO_TOKEN

try:
    from jinja2 import TemplateError
except ImportError:  # then transformers renders no templates either

    class TemplateError(Exception):
        """Stands in for jinja2's."""


MEDIA_BLOCKS = ("image", "video", "image_url", "video_url")  # the latter two as OpenAI names them
BLOCK_TYPES = ("text", *MEDIA_BLOCKS)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PRIVATE_USE = range(0xE000, 0xF900)  # code points without a meaning of their own

Span = tuple[int, int]  # start and end, of characters or of segments


class MessageError(ValueError, TemplateError):
    """Messages that a chat template does not take; trainers look for jinja2's TemplateError."""


class Media(NamedTuple):
    """An encoded image or video: its tiles, what they are, and what stands for them in a prompt."""

    tiles: torch.Tensor  # (num_tiles, 3, S, S)
    clip: Clip
    segments: list[Segment]


class Prompt(NamedTuple):
    """A prompt laid out as segments, with its media."""

    segments: list[Segment]
    media: list[Media]  # in prompt order
    answers: Sequence[Span] = ()  # which segments are answers
    writes_bos: bool = False  # whether the template's text begins with BOS
    adds_bos: bool = False  # whether the template has a BOS that its segments lack, whatever the options


class Rendered(NamedTuple):
    """A prompt that Jinja rendered."""

    text: str
    segments: list[Segment]  # a media segment is one placeholder, `<image>` or `<video>`
    answers: list[Span]  # which segments are answers


# ----------------------------------------------------------------------------------------------------- checks


def check_messages(batch: Sequence, is_own_template: bool = True) -> None:
    """Raises a MessageError that names a message which `apply_chat_template` does not take.

    A template that is not the model's own decides itself on roles and on what else a message may have.
    """
    for messages in batch:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise MessageError(
                f"conversation is {shown(messages)}: expected a list of messages, at least one"
            )

        for i, message in enumerate(messages):
            if not isinstance(message, dict) or is_own_template:
                _check_message(message, i)


def _check_message(message, i: int) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise MessageError(f"message {i} is {shown(message)}: expected a dict with 'role' and 'content'")

    content = message["content"]
    if not isinstance(content, (str, list, tuple)):
        raise MessageError(f"message {i} has content {shown(content)}: expected a text or a list of blocks")

    blocks = [] if isinstance(content, str) else content
    for block in blocks:
        _check_block(block, i)

    # a system message stands first and shows no media
    roles = ["user", "assistant"]
    if i == 0 and all(block["type"] == "text" for block in blocks):
        roles.append("system")
    if message["role"] not in roles:
        raise MessageError(
            f"message {i} has role {message['role']!r}: expected system (first, text alone), user or "
            "assistant"
        )


def _check_block(block, message: int) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in BLOCK_TYPES:
        expected = f"a dict of type {', '.join(BLOCK_TYPES)}"
        raise MessageError(f"message {message} has the block {shown(block)}: expected {expected}")
    if kind == "text" and not isinstance(block.get("text"), str):
        raise MessageError(f"message {message} has the block {shown(block)}: expected its text under 'text'")

    # checked here, where the error can name the message
    options = {name: block[name] for name in FRAME_OPTIONS if name in block}
    try:
        FrameChoice(**options).checked()
    except ValueError as error:
        raise MessageError(f"message {message}, {kind} block: {error}") from error


# ----------------------------------------------------------------------------------- the model's own template


def own_prompt(
    messages: Sequence[dict],
    conversation: Conversation,
    load_block: Callable[[dict], Media],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> Prompt:
    """Lays messages out in a template of `conversation.py`.

    Args:
        conversation: the template, as an empty conversation of one's own: it is filled.
        load_block: reads the image or video of a block.
    """
    roles = dict(zip(("user", "assistant"), conversation.roles))
    media: list[Media] = []
    answers: list[Span] = []
    for message in messages:
        segments, found = _content_segments(message["content"], conversation, load_block)
        media += found
        if message["role"] == "system":
            conversation.system_message = "".join(segment.text for segment in segments)
            continue

        # an answer begins behind what the template writes before it, and includes what ends it
        role = roles[message["role"]]
        conversation.append_message(role, None)
        start = len(conversation.segments())
        conversation.messages[-1] = (role, segments)
        if message["role"] == "assistant":
            answers.append((start, len(conversation.segments())))

    if add_generation_prompt:
        conversation.append_message(roles["assistant"], None)
    segments = conversation.segments()
    if continue_final_message:
        segments = segments[:-1]  # without the end of the last message
    return Prompt(segments, media, answers)


def _content_segments(
    content: str | Sequence[dict], template: Conversation, load_block: Callable[[dict], Media]
) -> tuple[list[Segment], list[Media]]:
    """The segments of a message's content, each image or video with what ends it, and its media."""
    if isinstance(content, str):
        return [Segment("text", content)], []

    segments: list[Segment] = []
    media: list[Media] = []
    for block in content:
        if block["type"] == "text":
            segments.append(Segment("text", block["text"]))
            continue

        # an image is its placeholder, a video the lines of its frames
        loaded = load_block(block)
        media.append(loaded)
        end = template.end_of_media(loaded.clip.frames)
        segments += [*loaded.segments, *([Segment("text", end)] if end else [])]
    return segments, media


# ------------------------------------------------------------------------------------------ Jinja's templates


def rendered_prompt(
    messages: Sequence[dict],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    load_block: Callable[[dict], Media],
    variables: dict,
) -> Prompt:
    """Lays messages out in a Jinja template.

    Args:
        load_block: reads the image or video of a block.
        variables: as of `render`.

    Raises:
        ValueError: where the template does not write a placeholder for each media block; or as
            `render_segments`.
    """
    blocks: dict[str, list[dict]] = {IMAGE_TOKEN: [], VIDEO_TOKEN: []}
    for block in _media_blocks(messages):
        blocks[media_token(block)].append(block)

    # a template that writes none, or one too many, would shift every medium behind it
    rendered = render_segments(messages, template, tokenizer, **variables)
    for token, found in blocks.items():
        written = sum(segment == ("media", token) for segment in rendered.segments)
        if written != len(found):
            raise ValueError(
                f"the chat template writes {token} {written} times, but the messages have {len(found)} "
                f"{token[1:-1]} blocks: expected one each, in the order of the blocks"
            )

    # the n-th placeholder of a kind shows the n-th block of that kind
    unread = {token: iter(found) for token, found in blocks.items()}
    prompt = expand_placeholders(
        rendered.segments, lambda token: load_block(next(unread[token])), rendered.answers
    )
    return prompt._replace(writes_bos=begins_with_bos(rendered.text, tokenizer))


def begins_with_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a finished prompt begins with BOS, so that none is added."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def media_token(block: dict) -> str:
    """The placeholder that stands for a media block."""
    return IMAGE_TOKEN if block["type"].startswith("image") else VIDEO_TOKEN


def _media_blocks(messages: Sequence[dict]) -> list[dict]:
    contents = [message.get("content") for message in messages]
    return [
        block
        for content in contents
        if content and not isinstance(content, str)
        for block in content
        if isinstance(block, dict) and block.get("type") in MEDIA_BLOCKS
    ]


def render(
    messages: Sequence[dict], template: str, *, marks_answers: bool = False, **variables
) -> tuple[str, list[Span]]:
    """The text of messages in a Jinja template, and with `marks_answers` its answers as character spans.

    Args:
        variables: what the template may use, such as `tools` or `add_generation_prompt`.

    Raises:
        ValueError: where answers are to be marked, and the template has no `{% generation %}`.
    """
    if marks_answers and not GENERATION.search(template):
        raise ValueError(
            "return_assistant_tokens_mask: the chat template does not tell which text is the model's: put it "
            "between {% generation %} and {% endgeneration %}"
        )

    try:
        texts, spans = render_jinja_template(
            conversations=[[_with_hub_blocks(message) for message in messages]],
            chat_template=template,
            return_assistant_tokens_mask=marks_answers,
            **variables,
        )
    except (TemplateError, TypeError) as error:  # what the template raises itself, or runs into
        raise MessageError(f"the chat template does not take these messages: {error}") from error

    return texts[0], list(spans[0]) if marks_answers else []


def render_segments(
    messages: Sequence[dict],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    marks_answers: bool = False,
    **variables,
) -> Rendered:
    """Messages in a Jinja template as segments, which tell typed text from the template's.

    Raises:
        ValueError: where the template changes typed text that names a control token; or as `render`.
    """
    text, spans = render(messages, template, marks_answers=marks_answers, **variables)

    # again, with numbered marks in the positions of typed texts
    mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in text)
    typed: list[str] = []
    marked_messages = [_marked(message, mark, typed) for message in messages]
    marked_text, _ = render(marked_messages, template, **variables)

    # template text and numbers of typed texts alternate
    pieces = []
    for i, part in enumerate(re.split(f"{mark}([0-9]+){mark}", marked_text)):
        is_number = i % 2 == 1
        pieces.append(Segment("text", typed[int(part)]) if is_number else Segment("template", part))

    if "".join(piece.text for piece in pieces) != text:
        _refuse_control_names(typed, tokenizer)
        pieces = [Segment("template", text)]

    segments, answers = _cut(pieces, spans)
    return Rendered(text, segments, answers)


def _cut(pieces: list[Segment], spans: list[Span]) -> tuple[list[Segment], list[Span]]:
    """Cuts segments at the borders of character spans and around placeholders in template text.

    Returns:
        The segments, and the spans as (start, end) of segments.
    """
    borders = sorted({border for span in spans for border in span})
    segments: list[Segment] = []
    index_at: dict[int, int] = {}  # character position -> index of the segment that begins there
    position = 0
    for piece in pieces:
        end = position + len(piece.text)
        inner = [border for border in borders if position < border < end]
        cuts = [position, *inner, end]
        for start, stop in zip(cuts, cuts[1:]):
            index_at[start] = len(segments)
            text = piece.text[start - position : stop - position]
            segments += _around_placeholders(Segment(piece.kind, text))
        position = end

    index_at[position] = len(segments)
    return segments, [(index_at[start], index_at[end]) for start, end in spans]


def _around_placeholders(segment: Segment) -> list[Segment]:
    if segment.kind == "template":
        return placeholder_segments(segment.text)
    return [segment] if segment.text else []


def _marked(value, mark: str, typed: list[str]):
    """A copy of a message with a numbered mark for each typed text, the white space around it kept.

    The texts are added to `typed`, at the index in their mark.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return value
        # the white space around a text stays outside the mark, since templates may strip it
        before, after = value.split(text, 1)
        number = len(typed)
        typed.append(text)
        return f"{before}{mark}{number}{mark}{after}"

    if isinstance(value, (list, tuple)):
        return [_marked(item, mark, typed) for item in value]

    if isinstance(value, dict) and value.get("type") not in MEDIA_BLOCKS:
        return {
            key: item if key in ("role", "type") else _marked(item, mark, typed)
            for key, item in value.items()
        }
    return value


def _with_hub_blocks(message: dict) -> dict:
    """A message with blocks of type `image` and `video`, as templates of the Hub know them."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message

    blocks = []
    for block in content:
        is_media = isinstance(block, dict) and block.get("type") in MEDIA_BLOCKS
        blocks.append(block | {"type": block["type"].removesuffix("_url")} if is_media else block)
    return message | {"content": blocks}


def _refuse_control_names(typed: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = PlainTextEncoder(tokenizer)
    for text in typed:
        name = encoder.control_name(text)
        if name is not None:
            raise MessageError(
                f"the chat template changes what somebody typed, and there {name!r} would become a control "
                "token: take it out of the message, or let the template give the text as it is"
            )


# ------------------------------------------------------------------------------------------- finished prompts


def placeholder_segments(text: str) -> list[Segment]:
    """Template text, cut around its placeholders."""
    parts = re.split(f"({IMAGE_TOKEN}|{VIDEO_TOKEN})", text)  # text and placeholders alternate
    return [Segment("media" if i % 2 else "template", part) for i, part in enumerate(parts) if part]


def expand_placeholders(
    segments: Sequence[Segment], load: Callable[[str], Media], answers: Sequence[Span] = ()
) -> Prompt:
    """Replaces each placeholder by the segments of the image or video that `load` gives for it.

    The label that a chat template writes before a video (`Frame1: <video>`) is that of its first frame, and
    a separator behind it that of its last.

    Args:
        load: takes the placeholder.
        answers: which segments are answers.
    """
    expanded: list[Segment] = []
    media: list[Media] = []
    new_index = []  # of each segment, and of the end
    end = ""  # of the frames of the video before
    for segment in segments:
        new_index.append(len(expanded))
        if segment.kind == "media":
            loaded = load(segment.text)
            media.append(loaded)
            if segment.text == VIDEO_TOKEN and expanded and expanded[-1].kind == "template":
                before = expanded[-1].text.removesuffix(FIRST_FRAME)
                expanded[-1] = Segment("template", before)
            expanded += loaded.segments
            last = loaded.segments[-1]
            end = last.text if last.kind == "text" else ""
        else:
            expanded.append(Segment(segment.kind, segment.text.removeprefix(end)))
            end = ""

    new_index.append(len(expanded))
    return Prompt(expanded, media, [(new_index[start], new_index[end]) for start, end in answers])


# ------------------------------------------------------------------------------------------- masks of answers


def answer_mask(prompt: Prompt, ids: list[int], encode: Callable[[list[Segment]], list[int]]) -> list[int]:
    """1 for the tokens of answers and those that end them, 0 elsewhere.

    A token that holds both the prompt's text and an answer's belongs to the answer.

    Args:
        ids: of the whole prompt.
        encode: gives the ids of segments.
    """
    mask = [0] * len(ids)
    for start, end in prompt.answers:
        before = prompt.segments[:start]
        through = prompt.segments[:end]
        if through:  # the line break that may follow the end of an answer is not its own
            last = through.pop()
            through.append(Segment(last.kind, last.text.rstrip("\n")))

        first = _common_prefix(encode(before), ids)
        stop = _common_prefix(encode(through), ids)
        mask[first:stop] = [1] * (stop - first)
    return mask


def _common_prefix(one: list[int], other: list[int]) -> int:
    """The number of ids with which both begin."""
    differing = (i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differing, min(len(one), len(other)))


def media_inputs(media: Sequence[Media]) -> BatchFeature:
    """`pixel_values` and `clip_grid` of media in prompt order; empty where there are none."""
    if not media:
        return BatchFeature({})

    # a single one is not copied: a video of many frames has gigabytes
    tiles = media[0].tiles if len(media) == 1 else torch.cat([item.tiles for item in media])
    clip_grid = clip_grid_of(item.clip for item in media)
    return BatchFeature({"pixel_values": tiles, "clip_grid": clip_grid})


def jinja_of(name: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The Jinja template of a prompt template, for that tokenizer."""
    writes_bos = tokenizer is not None and adds_bos(tokenizer)
    return jinja_template(get_conv_template(name), writes_bos=writes_bos)
