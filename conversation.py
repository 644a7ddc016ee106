"""Dialogues: prompt templates, and the one way from a dialogue to token ids.

A `Conversation` lays a dialogue out as segments: the template's own text, typed text, and media.
`get_prompt` joins them into the released prompt string; `encode_segments` turns them into ids. The two
agree on ordinary text, but only the template and the media may produce control tokens: what somebody typed
stays text, `<|im_end|>` and `[UNUSED_TOKEN_145]` included. Content tokens (`<box>`, and what a user adds to
the tokenizer) have their ids in typed text too, and are shown in answers. What the tiles of a dialogue are
is said in `clips.py`; pixels and tensors are left to the other files.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any, NamedTuple

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
IMAGE_PAD = "<|image_pad|>"  # of Qwen2.5's tokenizers
FIRST_FRAME = "Frame1: "  # before the first frame of a video


class MediaMarks(NamedTuple):
    """Special tokens of an image or video frame in ids: `context` stands for one visual token.

    `start` and `end` stand around them; empty: nothing does.
    """

    start: str
    context: str
    end: str


INTERNVL_MARKS = MediaMarks(IMAGE_START, IMAGE_CONTEXT, IMAGE_END)
QWEN_MARKS = MediaMarks("", IMAGE_PAD, "")


class Segment(NamedTuple):
    """A stretch of a prompt.

    `kind`: "template" (its special tokens count), "text" (typed text, plain) or "media" (the placeholder of
    one image or video frame).
    """

    kind: str
    text: str


@dataclass
class Conversation:
    """A dialogue in the layout of one prompt template.

    `messages` are (role, content): a text, segments of text and media, or None for "to be answered".

    `sep` ends a message; in the style "INTERNVL_ZH" a question ends with `sep2` and roles are followed by a
    colon.

    Media: `marks` are their tokens. `frame_line` and, with times, `timed_frame_line` stand before each frame
    of a video and may name its `{number}`, its `{time_s}` and, to a tenth, its `{seconds}`; `frame_gap`
    stands between frames, `frames_end` behind the last one, and `media_end` behind the whole video. With
    `bare_images` an image, or a video of one frame, is its placeholder alone.
    """

    name: str
    system_message: str
    roles: tuple[str, str]
    sep: str
    system_template: str = ""
    sep_style: str = "MPT"
    sep2: str | None = None
    stop_str: str | None = None
    marks: MediaMarks = INTERNVL_MARKS
    frame_line: str = FIRST_FRAME.replace("1", "{number}")
    timed_frame_line: str = "Frame{number} at {time_s:.1f}s: "
    frame_gap: str = "\n"
    frames_end: str = ""
    media_end: str = "\n"
    bare_images: bool = False
    messages: list[tuple[str, str | list[Segment] | None]] = field(default_factory=list)

    def frame_start(self, number: int, time_s: float | None = None) -> str:
        """What stands before a frame of a video; `number` counts from 1."""
        line = self.frame_line if time_s is None else self.timed_frame_line
        seconds = None if time_s is None else f"{round(time_s, 1):g}"
        return line.format(number=number, time_s=time_s, seconds=seconds)

    def video_segments(self, frames: int, times_s: Sequence[float] | None = None) -> list[Segment]:
        """The lines of a video: a placeholder for each frame; `times_s`: each frame's time, written too."""
        if self.bare_images and frames == 1:
            return [Segment("media", IMAGE_PLACEHOLDER)]
        return self.frame_segments(range(1, frames + 1), times_s)

    def frame_segments(self, numbers: Sequence[int], times_s: Sequence[float] | None = None) -> list[Segment]:
        """The lines of those frames of a video, whose numbers count from 1."""
        segments = []
        for i, number in enumerate(numbers):
            gap = self.frame_gap if i else ""
            start = self.frame_start(number, None if times_s is None else times_s[i])
            segments += [Segment("text", gap + start), Segment("media", IMAGE_PLACEHOLDER)]
        return segments + ([Segment("text", self.frames_end)] if self.frames_end and numbers else [])

    def end_of_media(self, frames: int) -> str:
        """What stands behind an image (1 frame) or a video, before the text that follows."""
        return "" if self.bare_images and frames == 1 else self.media_end

    def append_message(self, role: str, message: str | list[Segment] | None):
        self.messages.append((role, message))

    def segments(self) -> list[Segment]:
        """The prompt as template text and typed text.

        An empty message counts as one to be answered, as released.
        """
        colon = ":" if self.sep_style == "INTERNVL_ZH" else ""
        parts = self._system_segments()

        for turn, (role, message) in enumerate(self.messages):
            parts.append(Segment("template", role + colon))
            if message in (None, ""):
                continue

            # in the style INTERNVL_ZH a question ends with sep2
            content = [Segment("text", message)] if isinstance(message, str) else message
            end = (self.sep2 or "") if colon and turn % 2 == 0 else self.sep
            parts += [Segment("template", " " if colon else ""), *content, Segment("template", end)]

        return [part for part in parts if part.text]

    def _system_segments(self) -> list[Segment]:
        if self.sep_style == "INTERNVL_ZH":
            return [Segment("text", self.system_message), Segment("template", self.sep2 or "")]
        before, after = self.system_template.split("{system_message}")
        return [
            Segment("template", before),
            Segment("text", self.system_message),
            Segment("template", after + self.sep),
        ]

    def get_prompt(self) -> str:
        """The prompt as one string, as the released code builds it (media still `<image>`)."""
        return "".join(segment.text for segment in self.segments())

    def stop_token_ids(self, tokenizer) -> list[int]:
        """Ids that end an answer: those of the separator and of the template's own stop string.

        Either counts only where it is a single token.
        """
        known = tokenizer.get_added_vocab()
        return [known[text] for text in (self.sep.strip(), self.stop_str) if text in known]


INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
CHATML: dict[str, Any] = {
    "system_template": "<|im_start|>system\n{system_message}",
    "roles": ("<|im_start|>user\n", "<|im_start|>assistant\n"),
}
TEMPLATES = {  # of InternVL and PVC
    template.name: template
    for template in (
        Conversation(
            "internvl_zh", "", roles=("<human>", "<bot>"), sep="</s>", sep2=" ", sep_style="INTERNVL_ZH"
        ),
        Conversation("Hermes-2", INTERNVL2_SYSTEM, sep="<|im_end|>", stop_str="<|endoftext|>", **CHATML),
        Conversation("internlm2-chat", INTERNVL2_SYSTEM, sep="<|im_end|>", **CHATML),
        Conversation(
            "phi3-chat",
            INTERNVL2_SYSTEM,
            system_template="<|system|>\n{system_message}",
            roles=("<|user|>\n", "<|assistant|>\n"),
            sep="<|end|>",
        ),
        Conversation("internvl2_5", INTERNVL2_5_SYSTEM, sep="<|im_end|>\n", **CHATML),
    )
}
DYNAMIC_VLM_TEMPLATES = {
    "dynamic-vlm": Conversation(
        "dynamic-vlm",
        "You are a helpful assistant.",
        sep="<|im_end|>\n",
        marks=QWEN_MARKS,
        frame_line="{number}s: ",
        timed_frame_line="{seconds}s: ",
        frame_gap="; ",
        frames_end="; ",
        bare_images=True,
        **CHATML,
    )
}


def get_conv_template(name: str) -> Conversation:
    """A new, empty conversation in the template `name` (as `config.template` names it).

    Raises:
        ValueError: for a name that no InternVL 2, 2.5 or 3 checkpoint uses, nor Dynamic-VLM.
    """
    known = TEMPLATES | DYNAMIC_VLM_TEMPLATES
    if name not in known:
        raise ValueError(f"template is {name!r}: expected one of {', '.join(map(repr, known))}")
    return deepcopy(known[name])


def dialogue_segments(
    template: Conversation, question: str, history=None, *, frames_of_media: Sequence[int] = ()
) -> tuple[list[Segment], str]:
    """Segments of a dialogue whose user turns hold `<image>` placeholders, and the question as it was asked.

    Args:
        template: a conversation without messages; it is left unchanged.
        question: the new user turn. In a first turn without any `<image>`, one for each image, or a
            `FrameN: <image>` line for each frame of a video, is put before it.
        history: (question, answer) pairs. Answers are plain text, whatever they hold.
        frames_of_media: the frames of each clip of the whole dialogue; an image has 1.

    Raises:
        ValueError: where placeholders and media differ in number, or a turn is not made of texts.
    """
    history = list(history or [])
    _check_texts(question, history)

    # as released: placeholders that a first question lacks are put before it
    if not history and IMAGE_PLACEHOLDER not in question:
        lines = [_placeholder_lines(template, frames) for frames in frames_of_media]
        question = "".join(lines) + question

    # the template adds roles, separators and the system message
    conversation = deepcopy(template)
    for asked, answer in history:
        conversation.append_message(template.roles[0], with_placeholders(asked))
        conversation.append_message(template.roles[1], answer)
    conversation.append_message(template.roles[0], with_placeholders(question))
    conversation.append_message(template.roles[1], None)

    segments = conversation.segments()
    placeholders = sum(segment.kind == "media" for segment in segments)
    media = sum(frames_of_media)
    if placeholders != media:
        raise ValueError(
            f"{placeholders} {IMAGE_PLACEHOLDER} placeholders in the dialogue, but {media} images and video "
            f"frames: write one {IMAGE_PLACEHOLDER} for each, in history and question together, and pass "
            "num_patches_list, the tiles of each, where there are several"
        )
    return segments, question


def _check_texts(question, history: list) -> None:
    if not isinstance(question, str):
        raise ValueError(f"the question is a {type(question).__name__}: expected a text")

    for i, turn in enumerate(history):
        if not isinstance(turn, (list, tuple)) or [type(text) for text in turn] != [str, str]:
            raise ValueError(f"history[{i}] is {turn!r}: expected a pair of texts (question, answer)")


def _placeholder_lines(template: Conversation, frames: int) -> str:
    lines = template.video_segments(frames) if frames > 1 else [Segment("media", IMAGE_PLACEHOLDER)]
    return "".join(segment.text for segment in lines) + template.end_of_media(frames)


def with_placeholders(text: str) -> list[Segment]:
    """Segments of a text in which each `<image>` is the placeholder of an image."""
    texts = text.split(IMAGE_PLACEHOLDER)
    segments = [Segment("text", texts[0])]
    for rest in texts[1:]:
        segments += [Segment("media", IMAGE_PLACEHOLDER), Segment("text", rest)]
    return [segment for segment in segments if segment.text]


def video_segments(frames: int, times_s: Sequence[float] | None = None) -> list[Segment]:
    """The released lines of a video, `FrameN: <image>`; `times_s`: each frame's time, written too."""
    return TEMPLATES["internlm2-chat"].video_segments(frames, times_s)


def adds_bos(tokenizer) -> bool:
    """Whether a tokenizer begins a text with BOS."""
    return tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]


MARKED_ANSWER = """\
  {%- elif message.role == "assistant" -%}
    {{- answer_start -}}
    {%- generation -%}
      {{- assistant_lead + render(message.content) + assistant_stop -}}
    {%- endgeneration -%}
    {{- assistant_gap -}}
"""
# as the first releases wrote it
UNMARKED_ANSWER = """\
  {%- elif message.role == "assistant" -%}{{- assistant_start + render(message.content) + assistant_end -}}
"""
# as the first releases wrote a video
UNLABELLED_VIDEO = '{{- "<video>\\n" -}}'
# a serving engine renders the template itself and leaves first_frame out; the processor sets it to nothing
LABELLED_VIDEO = '{{- first_frame | default("Frame1: ") + "<video>\\n" -}}'
# likewise where frames end with a separator, which would be a token with what follows
ENDED_VIDEO = '{{- "<video>" + last_frame | default(END) + "\\n" -}}'
MESSAGES_TO_PROMPT = """\
{%- macro render(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for block in content -%}
      {%- if block.type == "text" -%}{{- block.text -}}
      {%- elif block.type in ("video", "video_url") -%}VIDEO
      {%- elif block.type in ("image", "image_url") -%}{{- IMAGE -}}
      {%- else -%}{{- raise_exception("expected blocks text, image and video, got " + block.type) -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == "system" -%}
  {%- set system_message, turns = render(messages[0].content), messages[1:] -%}
{%- else -%}
  {%- set turns = messages -%}
{%- endif -%}
{{- system_start + system_message + system_end -}}
{%- for message in turns -%}
  {%- if message.role == "user" -%}{{- user_start + render(message.content) + user_end -}}
ANSWER  {%- else -%}{{- raise_exception("expected roles user and assistant, got " + message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- answer_start -}}{%- endif -%}
"""


def jinja_template(
    template: Conversation,
    *,
    marks_answers: bool = True,
    writes_bos: bool = True,
    labels_videos: bool = True,
) -> str:
    """The Jinja template that lays messages out as `template` does.

    Images become `<image>`, videos `<video>`, each with what ends it (a line break for PVC).

    Args:
        marks_answers: put what the model says, with the token that ends it, between `{% generation %}` and
            `{% endgeneration %}`.
        writes_bos: begin with the tokenizer's BOS, which serving engines do not add to chats. For
            tokenizers that add one to a text.
        labels_videos: write the label of a video's first frame, where `first_frame` is not given, or what
            ends its last frame, where `last_frame` is not.
    """
    colon, user_end = (": ", template.sep2) if template.sep_style == "INTERNVL_ZH" else ("", template.sep)
    system = template._system_segments()
    before = system[0].text if system[0].kind == "template" else ""

    # what stands around an answer, in pieces where answers are marked
    stop = template.sep.rstrip()
    marked = {
        "assistant_lead": colon[1:],
        "assistant_stop": stop,
        "assistant_gap": template.sep[len(stop) :],
    }
    unmarked = {"assistant_start": template.roles[1] + colon, "assistant_end": template.sep}

    variables = {
        "system_start": before,
        "system_message": template.system_message,
        "system_end": system[-1].text,
        "user_start": template.roles[0] + colon,
        "user_end": user_end,
        **(marked if marks_answers else unmarked),
        "answer_start": template.roles[1] + colon.strip(),
    }

    bos = "{{- bos_token -}}\n" if writes_bos else ""
    settings = [
        f"{{%- set {name} = {json.dumps(text, ensure_ascii=False)} -%}}\n" for name, text in variables.items()
    ]
    answer = MARKED_ANSWER if marks_answers else UNMARKED_ANSWER
    video = UNLABELLED_VIDEO
    if labels_videos and template.frames_end:
        video = ENDED_VIDEO.replace("END", json.dumps(template.frames_end))
    elif labels_videos and template.frame_start(1) == FIRST_FRAME:
        video = LABELLED_VIDEO
    image = json.dumps(IMAGE_PLACEHOLDER + template.end_of_media(1))
    blocks = {"ANSWER": answer, "VIDEO": video, "IMAGE": image}
    prompt = re.sub("ANSWER|VIDEO|IMAGE", lambda found: blocks[found[0]], MESSAGES_TO_PROMPT)
    return "".join(settings) + bos + prompt


@cache
def own_jinja_templates(name: str) -> frozenset[str]:
    """What `chat_template` is where nobody changed it, in this release or an earlier one."""
    template = get_conv_template(name)
    versions = product((True, False), repeat=3)
    return frozenset(
        jinja_template(template, marks_answers=marks, writes_bos=writes, labels_videos=labels).strip()
        for marks, writes, labels in versions
    )


def pad(
    rows: list[list[int]], pad_id: int, side: str = "left", length: int | None = None, multiple_of: int = 1
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of equal length and their attention mask; the tokenizer's own settings play no part.

    The length is that of the longest row, or `length`, rounded up to a multiple of `multiple_of`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"padding_side is {side!r}: expected 'left' or 'right'")

    length = max(max(map(len, rows)), length or 0)
    length = -(-length // multiple_of) * multiple_of  # rounded up

    ids, masks = [], []
    for row in rows:
        gap = length - len(row)
        padding, masked, real = [pad_id] * gap, [0] * gap, [1] * len(row)
        ids.append(padding + row if side == "left" else row + padding)
        masks.append(masked + real if side == "left" else real + masked)
    return ids, masks


GROUNDING_TOKENS = ("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")  # InternVL's
CHARACTERS_PER_TOKEN = 16  # more of them, and the vocabulary is asked for its longest token


def control_ids(tokenizer) -> set[int]:
    """Ids that no typed text may produce and that no decoded answer shows.

    They are the tokens of the prompt templates and of media, the tokenizer's named ones (BOS, EOS, pad and
    the like), and the special tokens of the LLM, which stand before those of media. All other added tokens
    are content: the grounding tokens, and what a user adds to the tokenizer, marked special or not.
    """
    added = tokenizer.added_tokens_decoder
    names = _template_token_names() | {IMAGE_START, IMAGE_CONTEXT, IMAGE_END, IMAGE_PAD}
    media = [id for id, token in added.items() if token.content in (IMAGE_START, IMAGE_CONTEXT, IMAGE_END)]
    end_of_llm = min(media, default=max(added, default=0) + 1)

    def is_control(id: int, token) -> bool:
        if token.content in names:
            return True
        # a special token of one character cannot be spelt out: it stays out of typed text wherever it stands
        is_llms = id < end_of_llm or len(token.content) == 1
        return token.special and is_llms and token.content not in GROUNDING_TOKENS

    named = [token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)]
    ids = {id for id, token in added.items() if is_control(id, token)}
    return ids | set(tokenizer.convert_tokens_to_ids(named))


@cache
def _template_token_names() -> frozenset[str]:
    """Names in the prompt templates that a tokenizer may have as tokens, such as `<|im_end|>`."""
    texts = []
    for template in TEMPLATES.values():
        texts += [*template.roles, template.sep, template.sep2, template.stop_str, template.system_template]
    return frozenset(name for text in texts for name in re.findall(r"<[^<>\s]+>", text or ""))


class AnswerTokenizer:
    """Decodes answers: without control tokens, but with content tokens such as `<box>`.

    It stands in for a tokenizer where transformers' streamers take one.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.control_ids = control_ids(tokenizer)

    def decode(self, ids, skip_special_tokens: bool = True, **options):
        """The text of `ids (S,)`, or a list of texts of `(B, S)`; `options` as of the tokenizer."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            ids = [ids]
        is_batch = len(ids) > 0 and (isinstance(ids[0], (list, tuple)) or getattr(ids[0], "ndim", 0) == 1)
        if is_batch:
            return [self.decode(row, skip_special_tokens, **options) for row in ids]

        if skip_special_tokens:
            ids = [id for id in map(int, ids) if id not in self.control_ids]
        return self.tokenizer.decode(ids, skip_special_tokens=False, **options)


def encode_segments(
    tokenizer,
    segments: list[Segment],
    media_tokens: list[int],
    *,
    marks: MediaMarks = INTERNVL_MARKS,
    add_special_tokens: bool = True,
    max_tokens: int | None = None,
) -> list[int]:
    """Token ids of a prompt: equal to `tokenizer(released prompt string)` for ordinary text.

    Args:
        tokenizer: any transformers tokenizer that has the media marks; it is left unchanged.
        media_tokens: the number of visual tokens of each media segment, in order.
        marks: the template's.
        add_special_tokens: put BOS first where the tokenizer does.
        max_tokens: a text that has too many characters for it is refused before it is encoded; the result
            may still be longer.

    Raises:
        ValueError: where the tokenizer lacks a media token, typed text cannot be kept from becoming a
            control token, or the text is too long for `max_tokens`.
    """
    if max_tokens is not None:
        _check_characters(tokenizer, segments, max_tokens)

    specials = tokenizer.get_added_vocab()
    runs = _text_runs(segments, specials, iter(media_tokens), marks)
    ids = [tokenizer.bos_token_id] if add_special_tokens and adds_bos(tokenizer) else []

    encoder = PlainTextEncoder(tokenizer, {run.id for run in runs if isinstance(run, _Special)})
    for i, run in enumerate(runs):
        if isinstance(run, _Special):
            ids += [run.id] * run.count
        else:
            before = runs[i - 1].text if i else ""
            after = runs[i + 1].text if i + 1 < len(runs) else ""
            ids += encoder.encode(run, before, after)
    return ids


def _check_characters(tokenizer, segments: list[Segment], max_tokens: int):
    characters = sum(len(segment.text) for segment in segments if segment.kind != "media")
    if characters <= CHARACTERS_PER_TOKEN * max_tokens:
        return

    longest = max(map(len, tokenizer.get_vocab()))  # slow for a large vocabulary: only asked where needed
    if characters > longest * max_tokens:
        raise ValueError(
            f"a text of {characters} characters is longer than {max_tokens} tokens can be: the tokenizer's "
            f"longest has {longest}; shorten the text"
        )


class _Special(NamedTuple):
    text: str
    id: int
    count: int = 1  # type: ignore[assignment]  # hides the method of tuples


def _text_runs(segments, specials: dict[str, int], media_tokens, marks: MediaMarks) -> list:
    """Segments as special tokens with stretches of plain text between them, each stretch in one piece."""
    # longest first, since one special token may begin with another
    pattern = "|".join(re.escape(text) for text in sorted(specials, key=len, reverse=True)) or r"(?!)"
    runs: list = []

    def add_text(text):
        if text and runs and isinstance(runs[-1], str):
            runs[-1] += text
        elif text:
            runs.append(text)

    for segment in segments:
        if segment.kind == "media":
            missing = [text for text in marks if text and text not in specials]
            if missing:
                raise ValueError(
                    f"the tokenizer has no {', '.join(missing)}: use one of an InternVL or PVC model"
                    if marks == INTERNVL_MARKS
                    else f"the tokenizer has no {', '.join(missing)}: use the model's own"
                )

            counts = {marks.context: next(media_tokens)}
            runs += [_Special(text, specials[text], counts.get(text, 1)) for text in marks if text]
        elif segment.kind == "template":
            # the group in the pattern makes split keep the special tokens
            for text in re.split(f"({pattern})", segment.text):
                runs.append(_Special(text, specials[text])) if text in specials else add_text(text)
        else:
            add_text(segment.text)
    return runs


class PlainTextEncoder:
    """Tokenises typed text so that no id of it is a control token's; content tokens have their ids.

    A stretch is tokenised between its neighbouring special tokens, which settles prefix spaces and the
    stripping that some added tokens ask for as it does in the whole prompt. It is cut behind the first
    character of each name of a control token, and the parts are tokenised together, so that the work grows
    as the text's length. Where a control token comes out all the same (a tokenizer may change the text
    first), the part is cut inside the characters that made it.

    Args:
        in_prompt: ids of the special tokens of this prompt's template and media.
    """

    def __init__(self, tokenizer, in_prompt: Collection[int] = frozenset()):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        templates = {
            id
            for id, token in added.items()
            if id in in_prompt and token.special and token.content not in GROUNDING_TOKENS
        }
        control = control_ids(tokenizer) | templates
        # the unknown token also stands for unknown characters: it is special only where its name is typed
        self.reserved = control - {tokenizer.unk_token_id}

        names = {added[id].content for id in control if id in added}
        names |= {tokenizer._convert_id_to_token(id) for id in control}  # InternLM2's pieces below them
        self.longest_first = sorted((name for name in names if name and len(name) > 1), key=len, reverse=True)
        pattern = "|".join(map(re.escape, self.longest_first)) or r"(?!)"
        self.names = re.compile(f"(?={pattern})")

    def encode(self, text: str, before: str, after: str) -> list[int]:
        """Ids of `text`, which stands between the special tokens `before` and `after` ("": none)."""
        # lone surrogates (half of a character) cannot be encoded: they become U+FFFD
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        cuts = [match.start() + 1 for match in self.names.finditer(text)]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]

        if len(parts) == 1:
            return self._plain(text, self._between(text, before, after), before, after, is_first=True)

        first, *middle, last = parts
        continued = self._continued(dict.fromkeys(middle))
        ids = self._plain(first, self._between(first, before, ""), before, "", is_first=True)
        for part in middle:
            ids += self._plain(part, continued[part], "", "")
        return ids + self._plain(last, self._continued([last], after)[last], "", after)

    def _plain(self, text: str, ids: list[int], before: str, after: str, is_first: bool = False) -> list[int]:
        """`ids` where none of them is reserved; else the text is cut where it must be."""
        if self._is_plain(text, ids):
            return ids

        ids = []
        while text:
            end = self._clean_prefix(text, before, after)
            part, text = text[:end], text[end:]
            ids += self._between(part, before, after) if is_first else self._continued([part], after)[part]
            is_first = False
        return ids

    def _clean_prefix(self, text: str, before: str, after: str) -> int:
        """Length of the longest prefix without a reserved id: doubled until it has one, then bisected."""

        def is_clean(length):
            return self._is_plain(text[:length], self._between(text[:length], before, after))

        # double the length until a reserved id comes out
        clean, length = 0, 32
        while length < len(text) and is_clean(length):
            clean, length = length, 2 * length
        dirty = min(length, len(text))
        if is_clean(dirty):
            return dirty

        # bisect between the longest clean and the shortest unclean prefix
        while dirty - clean > 1:
            middle = (clean + dirty) // 2
            clean, dirty = (middle, dirty) if is_clean(middle) else (clean, middle)

        if clean == 0:
            raise ValueError(f"the tokenizer reads {text[0]!r} as a special token: it cannot be typed")
        return clean

    def control_name(self, text: str) -> str | None:
        """The first name of a control token in `text`; None where it has none."""
        found = self.names.search(text)
        return found and next(name for name in self.longest_first if text.startswith(name, found.start()))

    def _is_plain(self, text: str, ids: list[int]) -> bool:
        unknown = self.tokenizer.unk_token
        names_unknown = unknown and unknown in text and self.tokenizer.unk_token_id in ids
        return self.reserved.isdisjoint(ids) and not names_unknown

    def _between(self, text: str, before: str, after: str) -> list[int]:
        ids = self.tokenizer(before + text + after, add_special_tokens=False).input_ids
        return ids[bool(before) : len(ids) - bool(after)]

    def _continued(self, texts: Iterable[str], after: str = "") -> dict[str, list[int]]:
        """Ids of texts that follow a cut: without the space that some tokenizers put before a stretch."""
        ids_of, left = {}, list(texts)
        for character in ("\n", ".", "a", ""):
            if not left:
                break

            # ids of the text are what follows the ids of a character before it
            lead = self._between(character, "", "") if character else []
            rows = self.tokenizer([character + text + after for text in left], add_special_tokens=False)
            for text, ids in zip(left, rows.input_ids):
                if ids[: len(lead)] == lead:
                    ids_of[text] = ids[len(lead) : len(ids) - bool(after)]
            left = [text for text in left if text not in ids_of]
        return ids_of
