"""Dialogue: `chat`, `batch_chat` and `stream_chat` of a model.

All three lay dialogues out as segments (`conversation.py`), encode them into one batch padded on the left,
and call `generate`. What is given (tokenizer, settings, history) is left unchanged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from threading import Thread
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from .clips import Clip, clip_grid_of, integers, media_tokens, released_clips
from .configuration_checks import chosen_repeats, require_integer
from .conversation import (
    IMAGE_PLACEHOLDER,
    AnswerTokenizer,
    Conversation,
    Segment,
    dialogue_segments,
    encode_segments,
    get_conv_template,
    pad,
)
from .dialogue_cache import DialogueCache
from .fast_decode import generate_setting
from .loading import input_device

OF_THE_ANSWER = {  # options of generate, and the value that turns each off
    "repetition_penalty": (1.0, RepetitionPenaltyLogitsProcessor),
    "no_repeat_ngram_size": (0, NoRepeatNGramLogitsProcessor),
}


class Showing(NamedTuple):
    """How the media of a call are shown, where it says so.

    Attributes:
        tokens_per_tile: of a tile of their size, shown once, unlimited.
        image_repeats: how often an image is shown.
        budget: `max_video_tokens` and `frame_tokens`, those that are given.
    """

    tokens_per_tile: int
    image_repeats: int
    budget: dict[str, int]


class Dialogue(NamedTuple):
    """One dialogue, laid out: its segments, its clips in prompt order, and the question as it was asked."""

    segments: list[Segment]
    clips: list[Clip]
    question: str


class ChatMixin:
    """Needs `config`, `model.tokens_per_tile`, `model.share_budget`, `system_message` and `generate`."""

    config: Any
    model: Any
    system_message: str
    device: Any
    generate: Any

    def dialogue_cache(self) -> DialogueCache:
        """A new `cache` for `chat`, `stream_chat` and `generate`: see `dialogue_cache.py`."""
        return DialogueCache()

    @torch.no_grad()
    def chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        question: str,
        generation_config: dict | GenerationConfig | None = None,
        history: Sequence[tuple[str, str]] | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        split_sizes: Sequence[int] | None = None,
        data_flag: Sequence[int] | torch.Tensor | None = None,
        streamer=None,
        *,
        cache: DialogueCache | None = None,
        image_repeats: int | None = None,
        max_video_tokens: int | None = None,
        frame_tokens: int | None = None,
        **generate_options,
    ) -> str | tuple[str, list[tuple[str, str]]]:
        """Answers a question about images or a video, as the released `chat` does.

        Args:
            pixel_values: `(num_tiles, 3, S, S)` of the whole dialogue, unrepeated; None: text alone.
            question: each `<image>` in it (and in the questions of `history`) stands for one image or video
                frame.
            generation_config: settings of `generate`, as a dict or an object. `repetition_penalty` and
                `no_repeat_ngram_size` look at the answer alone, as released; `stop_strings` need no
                tokenizer of their own; with `return_dict_in_generate` the answer is still a text.
            history: earlier (question, answer) pairs.
            return_history: also return the history with this turn added, as a new list.
            num_patches_list, split_sizes, data_flag: what the tiles are; see `clips.released_clips`.
            streamer: one of transformers' streamers.
            cache: of `dialogue_cache()`; what earlier calls computed of this dialogue is re-used.
            image_repeats: how often each image is shown, in place of the configuration's number.
            max_video_tokens, frame_tokens: visual tokens that the frames of a video share, or of each frame,
                in place of the configuration's; rounded down to what the model makes.
            generate_options: more for `generate`, such as `stopping_criteria` or `fast_decode`.

        Raises:
            ValueError: where placeholders, images and these lists contradict each other.
        """
        # one dialogue is a batch of one
        num_tiles = self._count_tiles(pixel_values)
        showing = self._showing(pixel_values, image_repeats, max_video_tokens, frame_tokens)
        lists = (num_patches_list, split_sizes, data_flag)
        dialogue = self._lay_out(question, history, num_tiles, lists, showing)
        (answer,) = self._answer(
            tokenizer,
            [dialogue],
            pixel_values,
            generation_config,
            streamer=streamer,
            cache=cache,
            **generate_options,
        )
        return (answer, [*(history or []), (dialogue.question, answer)]) if return_history else answer

    def stream_chat(
        self, tokenizer, pixel_values, question: str, generation_config=None, **chat_arguments
    ) -> Iterator[str]:
        """As `chat`, but yields the answer piece by piece as it comes; the pieces together are the answer.

        An error of `chat` is raised here. Leaving the loop early stops the model after its next token.
        """
        streamer = TextIteratorStreamer(AnswerTokenizer(tokenizer), skip_prompt=True)
        left: list[bool] = []  # filled once the caller has left the loop
        errors: list[BaseException] = []

        def answer():
            try:
                self.chat(
                    tokenizer,
                    pixel_values,
                    question,
                    generation_config,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: bool(left)]),
                    **chat_arguments,
                )
            except BaseException as error:  # any: it is raised again where the answer is read
                errors.append(error)
                streamer.end()

        thread = Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield from _cut_as_chat(streamer, self.prompt_template().sep.strip())
        finally:
            left.append(True)
            thread.join()
        if errors:
            raise errors[0]

    @torch.no_grad()
    def batch_chat(
        self,
        tokenizer,
        pixel_values: torch.Tensor | None,
        questions: Sequence[str],
        generation_config: dict | GenerationConfig | None = None,
        num_patches_list: Sequence[int | Sequence[int]] | None = None,
        data_flag: Sequence[int | Sequence[int]] | torch.Tensor | None = None,
        *,
        histories: Sequence[Sequence[tuple[str, str]] | None] | None = None,
        split_sizes: Sequence[Sequence[int] | None] | None = None,
        return_history: bool = False,
        image_repeats: int | None = None,
        max_video_tokens: int | None = None,
        frame_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> list[str] | tuple[list[str], list[list[tuple[str, str]]]]:
        """Answers several questions at once, each about its own media.

        The media of a question: none, an image, several images, or a video.

        Args:
            pixel_values: tiles of all samples, sample after sample; None: text alone.
            num_patches_list: for each sample the tiles of its images or frames: a list, or a number for one
                image; an empty list or 0 for text alone.
            data_flag: for each sample 0 (text alone), 1 (an image), 2 (several) or 3 (a video), or a list
                where its dialogue has several groups; None: images.
            histories, split_sizes: for each sample as in `chat`, or None.
            image_repeats, max_video_tokens, frame_tokens: of every sample, as in `chat`.
            batch_size: samples at a time, those with prompts of like length together, so that little is
                padded; None: all at once.

        Raises:
            ValueError: as `chat`, with the number of the sample; or where the lists differ in length.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1, or None for all at once")
        # one entry a question in every list
        if isinstance(questions, str) or not questions:
            raise ValueError(f"questions is {questions!r}: expected a list of texts, at least one")
        total = len(questions)
        _check_entries(
            total,
            num_patches_list=num_patches_list,
            data_flag=data_flag,
            histories=histories,
            split_sizes=split_sizes,
        )

        # the tiles of all samples are shared out
        num_tiles = self._count_tiles(pixel_values)
        patches = _lists("num_patches_list", num_patches_list, total)
        if sum(map(sum, patches)) != num_tiles:
            listed = sum(map(sum, patches))
            raise ValueError(
                f"num_patches_list {patches} sums to {listed}, but pixel_values has {num_tiles} tiles"
            )
        flags = [None] * total if data_flag is None else _lists("data_flag", data_flag, total)

        before = histories or [None] * total
        sizes = split_sizes or [None] * total
        showing = self._showing(pixel_values, image_repeats, max_video_tokens, frame_tokens)
        lists = list(zip(patches, sizes, flags))
        dialogues = self._lay_out_samples(questions, before, lists, showing)
        answers = self._answer_in_batches(
            tokenizer, dialogues, pixel_values, generation_config, batch_size or total
        )
        if not return_history:
            return answers

        # each history with its new turn, as new lists
        return answers, [
            [*(history or []), (dialogue.question, answer)]
            for history, dialogue, answer in zip(before, dialogues, answers)
        ]

    def _count_tiles(self, pixel_values: torch.Tensor | None) -> int:
        if pixel_values is None:
            return 0
        self.model.check_pixels(pixel_values)
        return len(pixel_values)

    def _showing(
        self, pixel_values: torch.Tensor | None, image_repeats, max_video_tokens, frame_tokens
    ) -> Showing:
        given = {"max_video_tokens": max_video_tokens, "frame_tokens": frame_tokens}
        budget = {name: require_integer(name, value) for name, value in given.items() if value is not None}

        is_field = "image_repeats" in vars(self.config)
        repeats = chosen_repeats(image_repeats, self.config.image_repeats, can_repeat=is_field)

        own = 0 if pixel_values is None else self.model.tokens_per_tile(*pixel_values.shape[2:])
        return Showing(own, repeats, budget)

    def _lay_out(self, question, history, num_tiles: int, lists: tuple, showing: Showing) -> Dialogue:
        num_patches_list, split_sizes, data_flag = lists
        if num_tiles:
            clips = released_clips(
                num_tiles,
                image_repeats=showing.image_repeats,
                video_repeats=self.config.video_repeats,
                num_patches_list=num_patches_list,
                split_sizes=split_sizes,
                data_flag=data_flag,
            )
        elif num_patches_list or (data_flag is not None and any(data_flag)):
            raise ValueError(
                f"num_patches_list is {num_patches_list}, data_flag {data_flag}, but there are no tiles"
            )
        else:
            clips = []

        clips = self.model.share_budget(clips, showing.tokens_per_tile, **showing.budget)
        if num_tiles and num_patches_list is None:
            _check_one_image(num_tiles, question, history)

        segments, question = dialogue_segments(
            self.prompt_template(), question, history, frames_of_media=[clip.frames for clip in clips]
        )
        return Dialogue(segments, clips, question)

    def _lay_out_samples(self, questions, histories, lists, showing: Showing) -> list[Dialogue]:
        """The dialogue of each sample; an error names the sample."""
        dialogues = []
        for i, (question, history, of_sample) in enumerate(zip(questions, histories, lists)):
            try:
                dialogues.append(self._lay_out(question, history, sum(of_sample[0]), of_sample, showing))
            except ValueError as error:
                raise ValueError(f"sample {i}: {error}") from error
        return dialogues

    def prompt_template(self) -> Conversation:
        """An empty conversation in the model's template, with its system message."""
        template = get_conv_template(self.config.template)
        template.system_message = self.system_message
        return template

    def _answer_in_batches(
        self, tokenizer, dialogues: list[Dialogue], pixel_values, generation_config, batch_size: int
    ) -> list[str]:
        """`_answer`, at most `batch_size` dialogues at a time, shorter prompts before longer ones."""
        if len(dialogues) <= batch_size:
            return self._answer(tokenizer, dialogues, pixel_values, generation_config)
        rows = self._prompt_rows(tokenizer, dialogues, pixel_values)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))

        # the tiles of each dialogue
        counts = [sum(clip.frames * clip.tiles for clip in dialogue.clips) for dialogue in dialogues]
        tiles = [None] * len(counts) if pixel_values is None else pixel_values.split(counts)

        answers = [""] * len(dialogues)
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            shown = [tiles[i] for i in batch if counts[i]]
            pixels = torch.cat(shown) if shown else None
            found = self._answer(
                tokenizer,
                [dialogues[i] for i in batch],
                pixels,
                generation_config,
                rows=[rows[i] for i in batch],
            )
            for i, answer in zip(batch, found):
                answers[i] = answer
        return answers

    def _answer(
        self,
        tokenizer,
        dialogues: list[Dialogue],
        pixel_values,
        generation_config,
        *,
        rows: list[list[int]] | None = None,
        **generate_options,
    ) -> list[str]:
        """The model's answers to dialogues whose tiles stand one after another in `pixel_values`.

        `rows`: of `_prompt_rows`, where they are known already.
        """
        clips = [clip for dialogue in dialogues for clip in dialogue.clips]
        if rows is None:
            rows = self._prompt_rows(tokenizer, dialogues, pixel_values)

        # one batch, padded on the left
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        device = input_device(self)
        input_ids, attention_mask = (torch.tensor(x, device=device) for x in pad(rows, pad_id))

        # an answer ends where the template says
        template = self.prompt_template()
        settings = generate_settings(generation_config, template.stop_token_ids(tokenizer))
        output = self.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values.to(device) if clips else None,
            clip_grid=clip_grid_of(clips),
            **answer_settings(self, tokenizer, settings | generate_options, input_ids.shape[1]),
        )

        # of several answers to a question, the first
        sequences = sequences_of(output)
        first_of_each = sequences[:: len(sequences) // len(rows), input_ids.shape[1] :]
        return answers_of(tokenizer, first_of_each, template)

    def _prompt_rows(self, tokenizer, dialogues: list[Dialogue], pixel_values) -> list[list[int]]:
        """Ids of each prompt, with as many positions as there will be visual tokens."""
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            kind = type(tokenizer).__name__
            raise ValueError(
                f"tokenizer is a {kind}: expected a tokenizer, as AutoTokenizer gives, or a processor's one"
            )

        has_clips = any(dialogue.clips for dialogue in dialogues)
        tokens_per_tile = self._tokens_per_tile(tokenizer, pixel_values) if has_clips else 0
        marks = self.prompt_template().marks
        return [
            encode_segments(tokenizer, d.segments, media_tokens(d.clips, tokens_per_tile), marks=marks)
            for d in dialogues
        ]

    def _tokens_per_tile(self, tokenizer, pixel_values: torch.Tensor) -> int:
        context = self.prompt_template().marks.context
        context_id = tokenizer.convert_tokens_to_ids(context)
        if context_id != self.config.image_token_id:
            raise ValueError(
                f"the tokenizer's id of {context} is {context_id}, config.image_token_id "
                f"{self.config.image_token_id}: use the model's own tokenizer, or set the configuration's"
            )
        return self.model.tokens_per_tile(*pixel_values.shape[2:])


class OfTheAnswer(LogitsProcessor):
    """A logits processor that sees the answer so far, and not the prompt of `prompt_length` tokens."""

    def __init__(self, processor: LogitsProcessor, prompt_length: int):
        self.processor, self.prompt_length = processor, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.processor(input_ids[:, self.prompt_length :], scores)


def answer_settings(model, tokenizer, options: dict, prompt_length: int) -> dict:
    """`options` of `generate` as they are meant for an answer.

    The released `chat` generates from embeddings alone, so that what penalises repetition sees the answer and
    never the prompt: so here. `stop_strings` get the tokenizer.
    """
    options = dict(options)
    processors = LogitsProcessorList()

    for name, (neutral, processor) in OF_THE_ANSWER.items():
        value = generate_setting(model, options, name)
        if value not in (None, neutral):
            processors.append(OfTheAnswer(processor(value), prompt_length))
            options[name] = neutral

    # ours come first, as transformers' own would
    if processors:
        options["logits_processor"] = processors + (options.get("logits_processor") or [])
    if generate_setting(model, options, "stop_strings") is not None:
        options.setdefault("tokenizer", tokenizer)
    return options


def sequences_of(output) -> torch.Tensor:
    """Ids of what `generate` returns, also with `return_dict_in_generate`."""
    return output if isinstance(output, torch.Tensor) else output.sequences


def _check_entries(total: int, **lists) -> None:
    for name, values in lists.items():
        if values is not None and len(values) != total:
            raise ValueError(f"{name} has {len(values)} entries for {total} questions: expected one each")


def _check_one_image(num_tiles: int, question, history):
    """Raises a ValueError for a dialogue of several images without a list of which tiles are whose."""
    texts = [question, *(turn[0] for turn in history or [] if isinstance(turn, list | tuple) and turn)]
    placeholders = sum(text.count(IMAGE_PLACEHOLDER) for text in texts if isinstance(text, str))
    if placeholders > 1:
        raise ValueError(
            f"{placeholders} {IMAGE_PLACEHOLDER} placeholders in the dialogue, but 1 images and video "
            f"frames: num_patches_list is None, so that all {num_tiles} tiles are one image; pass "
            "num_patches_list, the number of tiles of each image or video frame"
        )


def answers_of(tokenizer, generated: torch.Tensor, template) -> list[str]:
    """Texts of generated ids `(B, new tokens)`, each up to the template's end of an answer."""
    texts = AnswerTokenizer(tokenizer).decode(generated)
    return [text.split(template.sep.strip())[0].strip() for text in texts]


def _lists(name: str, values, total: int) -> list[list[int]]:
    """A list of ints for each sample: from lists, numbers (0: none) or nothing."""
    if values is None:
        return [[] for _ in range(total)]
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    lists = [integers(f"{name}[{i}]", [x] if isinstance(x, int) else x) for i, x in enumerate(values)]
    return [numbers if any(numbers) else [] for numbers in lists]


def _cut_as_chat(pieces: Iterable[str], end: str) -> Iterator[str]:
    """An answer in pieces, cut as `chat` cuts it: up to `end`, no white space around it.

    What may yet turn out to be part of `end`, or white space at the end, is held back.
    """
    text = ""
    num_yielded = 0  # characters
    for piece in pieces:
        text += piece

        # how much of `end` the text may have begun with
        begun = max((n for n in range(len(end)) if text.endswith(end[:n])), default=0)
        ready = text[: len(text) - begun].split(end)[0].strip()
        if len(ready) > num_yielded:
            yield ready[num_yielded:]
            num_yielded = len(ready)
        if end in text:
            return

    if len(text.strip()) > num_yielded:
        yield text.strip()[num_yielded:]


def generate_settings(generation_config: Any, stop_token_ids: list[int]) -> dict:
    """Keyword arguments of `generate` from what `chat` was given, which is left unchanged.

    The template's stop tokens end the answer unless the caller names others.
    """
    if isinstance(generation_config, GenerationConfig):
        generation_config = deepcopy(generation_config)
        if generation_config.eos_token_id is None:
            generation_config.eos_token_id = stop_token_ids or None
        return {"generation_config": generation_config}

    if not isinstance(generation_config, Mapping | None):
        kind = type(generation_config).__name__
        raise ValueError(f"generation_config is a {kind}: expected a dict or a GenerationConfig")
    return ({"eos_token_id": stop_token_ids} if stop_token_ids else {}) | dict(generation_config or {})
