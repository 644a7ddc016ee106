"""Questions answered by vLLM, which serves on many GPUs and machines: `pvc evaluate --engine vllm`.

vLLM's processes cut tiles and encode them by this repository's processor. They are given the same prompts,
the images as they are, and the frames that the protocol chose, so that answers are those of `ChatEngine`.

What vLLM cannot be told is an error before the first question or of the sample: beams, images of one question
that are cut by different rules or stand as one, and frame lines in another form than `Frame1: <image>`.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from pvc.conversation import get_conv_template
from pvc.evaluation.engine import Answer, tiling_of
from pvc.evaluation.media import Request, Unit
from pvc.evaluation.task import Settings

IMAGE, VIDEO = "<image>", "<video>"
FRAMES = re.compile(r"Frame1: <image>\n(?:Frame\d+: <image>\n)*")
MOST_BYTES = 2 * 10**9  # of media that are handed over at once
SAMPLING = {"max_new_tokens", "min_new_tokens", "do_sample", "temperature", "num_beams", "top_k", "top_p"}


class VLLMEngine:
    """A model in vLLM.

    Args:
        model: folder or Hub id. identity: as of `ChatEngine`.
        config: the model's configuration. tokenizer: its tokenizer.
        batch: questions that are handed over at once; vLLM makes its own batches of them.
        options: of `vllm.LLM`, such as `tensor_parallel_size`.

    Raises:
        ImportError: vLLM is not installed.
    """

    reads_tiles = False

    def __init__(
        self,
        model: str,
        config: Any,
        tokenizer: Any,
        identity: Mapping[str, Any],
        batch: int = 64,
        **options: Any,
    ):
        try:
            self.vllm = import_module("vllm")
        except ImportError as error:
            raise ImportError("--engine vllm needs vLLM: see docs/serving.md") from error

        self.identity, self.batch = dict(identity), batch
        self.config, self.tokenizer = config, tokenizer
        self.tiling = tiling_of(config)
        self.llm = self.vllm.LLM(model, trust_remote_code=True, **options)

    def answer(self, units: Iterator[Unit], settings: Settings) -> Iterator[Answer]:
        """The answers in the order of the units, which hold media instead of tiles.

        Raises:
            ValueError: for settings that vLLM does not have.
        """
        if settings.max_video_tokens or settings.frame_tokens:
            raise ValueError("vLLM goes by the checkpoint's max_video_tokens: set it in its config.json")
        sampling = self.vllm.SamplingParams(**sampling_options(settings))
        waiting: list[tuple[Request, Sequence[Any]]] = []
        size = 0
        for unit in units:
            waiting += [(request, unit.media) for request in unit.requests]
            size += sum(np.asarray(media).nbytes for media in unit.media)
            if len(waiting) >= self.batch or size >= MOST_BYTES:
                yield from self._answer_all(waiting, settings, sampling)
                waiting, size = [], 0
        yield from self._answer_all(waiting, settings, sampling)

    def _answer_all(
        self, asked: Sequence[tuple[Request, Sequence[Any]]], settings: Settings, sampling: Any
    ) -> Iterator[Answer]:
        """Hands over what can be asked; what cannot is an error of its own."""
        prompts: dict[int, dict[str, Any]] = {}
        errors: dict[int, str] = {}
        for i, (request, media) in enumerate(asked):
            try:
                prompts[i] = self.prompt_of(request, media, settings)
            except ValueError as error:
                errors[i] = f"ValueError: {error}"

        start = time.perf_counter()
        outputs = self.llm.generate(list(prompts.values()), sampling, use_tqdm=False) if prompts else []
        seconds = (time.perf_counter() - start) / max(1, len(outputs))
        found = dict(zip(prompts, outputs))

        for i, (request, _) in enumerate(asked):
            if i in errors:
                yield Answer(request, None, errors[i], 0.0)
            else:
                output = found[i].outputs[0]
                yield Answer(request, self._text(output.text), None, seconds, len(output.token_ids))

    def _text(self, text: str) -> str:
        """An answer as `chat` cuts it."""
        return text.split(self._template().sep.strip())[0].strip()

    def _template(self) -> Any:
        return get_conv_template(self.config.template)

    def prompt_of(self, request: Request, media: Sequence[Any], settings: Settings) -> dict[str, Any]:
        """What `LLM.generate` takes for a question."""
        kinds = [item.kind for item in request.record.media]
        images = [shown for kind, shown in zip(kinds, media) if kind == "image"]
        # vLLM makes tensors of arrays, and takes their frames for (3, height, width)
        videos = [shown.transpose(0, 3, 1, 2) for kind, shown in zip(kinds, media) if kind != "image"]

        template = self._template()
        template.append_message(template.roles[0], question_for(request.question, len(images), len(videos)))
        template.append_message(template.roles[1], None)
        prompt: dict[str, Any] = {"prompt": template.get_prompt()}
        if not media:
            return prompt

        bos = self.tokenizer.bos_token if adds_bos(self.tokenizer) else ""
        prompt["prompt"] = bos + prompt["prompt"]
        prompt["multi_modal_data"] = {
            name: items for name, items in (("image", images), ("video", videos)) if items
        }
        shown = {"max_tiles": tiles_of(settings, len(images), len(videos))}
        if settings.image_repeats is not None:
            shown["image_repeats"] = settings.image_repeats
        prompt["mm_processor_kwargs"] = shown
        return prompt


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer begins a text with BOS."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def sampling_options(settings: Settings) -> dict[str, Any]:
    """Options of `SamplingParams` from those of `generate`.

    Raises:
        ValueError: for beams, sampling, and options that are not translated.
    """
    options = settings.generation
    unknown = options.keys() - SAMPLING
    if unknown:
        raise ValueError(f"--engine vllm: options of generate that vLLM is not told: {sorted(unknown)}")
    if options.get("num_beams", 1) != 1:
        raise ValueError(
            f"--engine vllm: the protocol uses {options['num_beams']} beams, which vLLM does not have; "
            "choose a protocol with one (--protocol)"
        )
    if options.get("do_sample"):
        raise ValueError("--engine vllm: the protocol samples, vLLM is asked for greedy answers alone")
    return {
        "temperature": 0.0,
        "max_tokens": options.get("max_new_tokens", 1024),
        "min_tokens": options.get("min_new_tokens", 0),
    }


def question_for(question: str, images: int, videos: int) -> str:
    """A question with a placeholder for each video in place of its frames' lines.

    The processor writes the lines of further frames itself.

    Raises:
        ValueError: where placeholders and media differ in number.
    """
    question, found = FRAMES.subn(f"Frame1: {VIDEO}\n", question)
    if found != videos:
        raise ValueError(f"{videos} videos, but {found} blocks of lines 'Frame1: {IMAGE}' in the question")

    marks = question.count(IMAGE)
    if images and not marks:
        return f"{IMAGE}\n" * images + question
    if marks != images:
        raise ValueError(f"{images} images, but {marks} {IMAGE} in the question")
    return question


def tiles_of(settings: Settings, images: int, videos: int) -> int:
    """The largest number of tiles of an image, or of a frame where there are videos alone.

    Raises:
        ValueError: where one number does not say how all are cut, or all images are taken for one.
    """
    if images > 1 and "num_patches_list" not in settings.chat_lists:
        raise ValueError(f"the protocol takes {images} images as one, which vLLM cannot be told")
    if images == 0:
        return settings.frame_tiles

    plan = settings.plan_image
    numbers = {plan(i, images).max_tiles if plan else settings.max_tiles for i in range(images)}
    if videos:
        numbers.add(settings.frame_tiles)
    if len(numbers) > 1:
        raise ValueError(
            f"images of one question are cut into at most {sorted(numbers)} tiles: expected one number"
        )
    return numbers.pop()
