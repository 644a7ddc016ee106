"""Chat templates that are not the model's own: messages -> segments, through Jinja.

A template that somebody edited or passed lays messages out as text. To know which of that text somebody
typed, it is rendered twice: as it is, and with a mark in the place of each typed text. Typed text then stays
text here too (`conversation.py`). Where the template changes typed text, so that the two do not agree, the
rendered text is taken as a finished prompt, and typed names of control tokens are refused.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers.utils.chat_template_utils import render_jinja_template

from .conversation import PlainTextEncoder, Segment
from .frame_choice import FrameChoice
from .media_policy import shown
from .processing_options import FRAME_OPTIONS

try:
    from jinja2 import TemplateError
except ImportError:  # then transformers renders no templates either

    class TemplateError(Exception):
        """Stands in for jinja2's."""


IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
MEDIA_BLOCKS = ("image", "video", "image_url", "video_url")  # the latter two as OpenAI says
BLOCK_TYPES = ("text", *MEDIA_BLOCKS)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class MessageError(ValueError, TemplateError):
    """Messages that are not as the chat template takes them; trainers look for jinja2's TemplateError."""


class Prompt(NamedTuple):
    """A prompt laid out: its segments, its media in their order, and which segments answers are.

    `writes_bos`: the template's text begins with BOS.
    """

    segments: list[Segment]
    media: list
    answers: Sequence[tuple[int, int]] = ()
    writes_bos: bool = False


class Rendered(NamedTuple):
    """A rendered prompt: its segments, and which of them answers are, as (start, end) pairs.

    A media segment is one placeholder, `<image>` or `<video>`.
    """

    text: str
    segments: list[Segment]
    answers: list[tuple[int, int]]


def check_messages(batch: Sequence, is_own_template: bool = True):
    """Raises a MessageError that names the message, where one is not as `apply_chat_template` takes it.

    Roles, and what else stands in a message, are the affair of a template that is not the model's own.
    """
    for messages in batch:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise MessageError(
                f"conversation is {shown(messages)}: expected a list of messages, at least one"
            )
        for i, message in enumerate(messages):
            if isinstance(message, dict) and not is_own_template:
                continue
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise MessageError(
                    f"message {i} is {shown(message)}: expected a dict with 'role' and 'content'"
                )

            content = message["content"]
            if not isinstance(content, (str, list, tuple)):
                raise MessageError(
                    f"message {i} has content {shown(content)}: expected a text or a list of blocks"
                )
            blocks = [] if isinstance(content, str) else content
            for block in blocks:
                _check_block(block, i)

            is_text = all(block["type"] == "text" for block in blocks)
            if message["role"] not in (["user", "assistant"] + ["system"] * (i == 0 and is_text)):
                raise MessageError(
                    f"message {i} has role {message['role']!r}: expected system (first, text alone), user or "
                    "assistant"
                )


def _check_block(block, message: int):
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in BLOCK_TYPES:
        expected = f"a dict of type {', '.join(BLOCK_TYPES)}"
        raise MessageError(f"message {message} has the block {shown(block)}: expected {expected}")
    if kind == "text" and not isinstance(block.get("text"), str):
        raise MessageError(f"message {message} has the block {shown(block)}: expected its text under 'text'")
    try:
        FrameChoice(**{name: block[name] for name in FRAME_OPTIONS if name in block}).checked()
    except ValueError as error:
        raise MessageError(f"message {message}, {kind} block: {error}") from error


def render(
    messages: Sequence[dict], template: str, *, marks_answers: bool = False, **variables
) -> tuple[str, list[tuple[int, int]]]:
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
    except (TemplateError, TypeError) as error:  # of the template's own words, or what it does with others
        raise MessageError(f"the chat template does not take these messages: {error}") from error

    return texts[0], list(spans[0]) if marks_answers else []


def render_segments(
    messages: Sequence[dict], template: str, tokenizer, *, marks_answers: bool = False, **variables
) -> Rendered:
    """Messages in a Jinja template as segments, in which typed text is told from the template's.

    Raises:
        ValueError: where the template changes typed text in which a control token is named; or as `render`.
    """
    text, spans = render(messages, template, marks_answers=marks_answers, **variables)
    mark = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
    typed: list[str] = []
    marked, _ = render([_marked(message, mark, typed) for message in messages], template, **variables)

    # template text and numbers of typed texts in turn
    parts = re.split(f"{mark}([0-9]+){mark}", marked)
    pieces = [
        Segment("text", typed[int(part)]) if i % 2 else Segment("template", part)
        for i, part in enumerate(parts)
    ]
    if "".join(piece.text for piece in pieces) != text:
        _refuse_control_names(typed, tokenizer)
        pieces = [Segment("template", text)]
    return Rendered(text, *_cut(pieces, spans))


def _cut(pieces: list[Segment], spans: list[tuple[int, int]]) -> tuple[list[Segment], list[tuple[int, int]]]:
    """Cuts segments at the borders of character spans and around placeholders in template text."""
    borders = sorted({border for span in spans for border in span})
    segments, index_of, position = [], {}, 0
    for piece in pieces:
        end = position + len(piece.text)
        cuts = [position, *(border for border in borders if position < border < end), end]
        for start, stop in zip(cuts, cuts[1:]):
            index_of[start] = len(segments)
            segments += _around_placeholders(
                Segment(piece.kind, piece.text[start - position : stop - position])
            )
        position = end
    index_of[position] = len(segments)
    return segments, [(index_of[start], index_of[end]) for start, end in spans]


def _around_placeholders(segment: Segment) -> list[Segment]:
    if segment.kind != "template":
        return [segment] if segment.text else []
    parts = re.split(f"({IMAGE_TOKEN}|{VIDEO_TOKEN})", segment.text)
    return [Segment("media" if i % 2 else "template", part) for i, part in enumerate(parts) if part]


def _marked(value, mark: str, typed: list[str]):
    """A copy of a message in which each typed text, without the white space around it, is a numbered mark."""
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return value
        typed.append(text)
        before, after = value.split(text, 1)
        return f"{before}{mark}{len(typed) - 1}{mark}{after}"
    if isinstance(value, (list, tuple)):
        return [_marked(item, mark, typed) for item in value]
    if isinstance(value, dict) and value.get("type") not in MEDIA_BLOCKS:
        return {
            key: item if key in ("role", "type") else _marked(item, mark, typed)
            for key, item in value.items()
        }
    return value


def _with_hub_blocks(message: dict) -> dict:
    """A message whose blocks of type `image_url` and `video_url` are those that templates of the Hub know."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    blocks = [
        block | {"type": block["type"].removesuffix("_url")}
        if isinstance(block, dict) and block.get("type") in MEDIA_BLOCKS
        else block
        for block in content
    ]
    return message | {"content": blocks}


def _refuse_control_names(typed: list[str], tokenizer):
    encoder = PlainTextEncoder(tokenizer)
    for text in typed:
        name = encoder.control_name(text)
        if name is not None:
            raise MessageError(
                f"the chat template changes what somebody typed, and there {name!r} would become a control "
                "token: take it out of the message, or let the template give the text as it is"
            )


def answer_mask(prompt: Prompt, ids: list[int], encode) -> list[int]:
    """1 for the tokens of answers and those that end them.

    Where a token holds both the prompt's text and an answer's, it is the answer's.
    """
    mask = [0] * len(ids)
    for start, end in prompt.answers:
        said = prompt.segments[:end]
        if said:  # without the line break that may follow the end of an answer
            said[-1] = Segment(said[-1].kind, said[-1].text.rstrip("\n"))
        begin, stop = (_common_prefix(encode(segments), ids) for segments in (prompt.segments[:start], said))
        mask[begin:stop] = [1] * (stop - begin)
    return mask


def _common_prefix(one: list[int], other: list[int]) -> int:
    differing = (i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differing, min(len(one), len(other)))
