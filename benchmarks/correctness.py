"""Whether a device computes what the CPU computes: checks at tiny size, a row of a table each.

The reference is this code in float64 on the CPU with eager attention, which the tests hold equal to the
equations of the paper written out plainly. Each check gives a relative difference and the most that it may
be; a kernel that a device does not have is reported as missing, not as a failure.

    python -m pvc.benchmarks.on_gpu --only correctness
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoProcessor, CompileConfig

from pvc import CHECKPOINT
from pvc.benchmarks.measure import DeviceTimer
from pvc.benchmarks.models import PVC
from pvc.benchmarks.presets import PRESETS
from pvc.benchmarks.report import Row
from pvc.modeling_intern_vit import MAX_SEQUENCES
from pvc.modeling_pvc import PVCForConditionalGeneration

# what rounding leaves over a few layers of random weights, as a share of the result's norm
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
SAME_ARITHMETIC = 1e-5  # float32, another order of the same sums
HALF = (torch.bfloat16, torch.float16)
ALL = (torch.float32, *HALF)
KERNELS = {  # of torch's scaled_dot_product_attention -> dtypes that it takes on CUDA
    SDPBackend.MATH: ALL,
    SDPBackend.EFFICIENT_ATTENTION: ALL,
    SDPBackend.FLASH_ATTENTION: HALF,
    SDPBackend.CUDNN_ATTENTION: HALF,
}
NO_KERNEL = ("No available kernel", "No viable backend")  # torch's errors on a GPU, on a CPU

# heads of 16 channels, which every kernel takes
LLM = PRESETS["tiny"].llm | {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZE = replace(PRESETS["tiny"], llm=LLM)
TEXT_TOKENS = 24
NEW_TOKENS = 12
CLIPS = ((1, 3, 4), (5, 1, 1))  # frames, tiles a frame, repeats: an image of three tiles, a video
LIVE_FRAMES = 7
QUESTIONS = (
    "Name all shapes from left to right.",
    "Is the blue square left, right, above or below, seen from the red circle?",
    "How many shapes are there?",
)


@dataclass(frozen=True)
class Check:
    """`run` gives the relative difference, which may be `most`; None: the device lacks what it needs."""

    name: str
    most: float
    run: Callable[[], float | None]

    def row(self) -> Row:
        """Raises whatever `run` raises."""
        difference = self.run()
        if difference is None:
            return {"check": self.name, "result": "not on this device"}

        result = "equal" if difference <= self.most else "DIFFERS"  # nan differs
        return {"check": self.name, "result": result, "difference": difference, "at most": self.most}


def is_wrong(row: Row) -> bool:
    return row["result"] == "DIFFERS"


def checks(timer: DeviceTimer) -> Iterator[Check]:
    """All checks of a device, in order of worth."""
    small = Small(timer.device)
    for dtype in ALL:
        name = str(dtype).removeprefix("torch.")
        for kernel, dtypes in KERNELS.items():
            if dtype in dtypes:
                yield small.equations(f"sdpa, {kernel.name.lower()}, {name}", dtype, kernel)
        yield small.equations(f"eager, {name}", dtype, attention="eager")

    yield Check("chunked encoding is the whole", SAME_ARITHMETIC, small.chunked)
    yield Check("live video is the whole clip", SAME_ARITHMETIC, small.live)
    yield Check("steps with a cache are one pass without", SAME_ARITHMETIC, small.cached)
    yield Check("a dialogue's second answer from its cache is that without", 0, small.dialogue)
    for dtype in (torch.float32, torch.bfloat16) if timer.is_cuda else (torch.float32,):
        name = f"more than {MAX_SEQUENCES:,} sequences of temporal attention, {dtype}".replace("torch.", "")
        yield Check(name, TOLERANCES[dtype], lambda dtype=dtype: small.many_sequences(dtype))

    answers = TinyAnswers(timer.device)
    for dtype in HALF:
        name = f"PVC-Tiny's answers are the CPU's, {dtype}".replace("torch.", "")
        yield Check(name, 0, lambda dtype=dtype: answers.share_of_others(dtype))

    # what is compiled comes last: it takes most of the time. On a CPU, flex attention would take minutes
    yield Check("fast_decode gives the tokens of plain decoding", 0, small.fast_decode)
    for dtype in ALL if timer.is_cuda else ():
        name = f"flex attention, {dtype}".replace("torch.", "")
        yield small.equations(name, dtype, attention="flex_attention")


def relative_difference(x: torch.Tensor, reference: torch.Tensor) -> float:
    x, reference = x.double().cpu(), reference.double().cpu()
    return float((x - reference).norm() / reference.norm())


@contextmanager
def full_precision() -> Iterator[None]:
    """Within: float32 is not rounded to TF32 in matrix products and convolutions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# ---------------------------------------------------------------------------------- a model of random weights


class Small:
    """A tiny PVC on the CPU in float64, and what is checked of its copies on `device`.

    No parameter stays at its start, where temporal layers would do nothing.
    """

    def __init__(self, device: torch.device):
        self.device = device
        spec = PVC("PVC", SIZE)
        generator = torch.Generator().manual_seed(0)

        self.reference = spec.build("cpu", torch.float64)
        for parameter in self.reference.parameters():
            scale = parameter.shape[1:].numel() ** -0.5 if parameter.dim() > 1 else 0.3
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.data.copy_(noise if parameter.dim() > 1 else parameter + noise)
        self.reference.set_attn_implementation("eager")

        config = self.reference.config
        grid = [clip for clip in CLIPS for _ in range(clip[0] * clip[1])]
        showings = sum(frames * tiles * repeats for frames, tiles, repeats in CLIPS)
        visual = showings * round(SIZE.patches * config.downsample_ratio) ** 2
        text = torch.randint(10, 900, (TEXT_TOKENS,), generator=generator)
        self.inputs = {
            "input_ids": torch.cat([torch.full((visual,), config.image_token_id), text])[None],
            "pixel_values": torch.randn(len(grid), 3, SIZE.side, SIZE.side, generator=generator),
            "clip_grid": torch.tensor(grid),
        }

    def copy(self, dtype: torch.dtype, attention: str = "sdpa") -> PVCForConditionalGeneration:
        model = deepcopy(self.reference).to(self.device, dtype)
        model.set_attn_implementation(attention)
        return model

    def moved(self) -> dict[str, torch.Tensor]:
        return {name: x.to(self.device) for name, x in self.inputs.items()}

    def equations(
        self, name: str, dtype: torch.dtype, kernel: SDPBackend | None = None, attention: str = "sdpa"
    ) -> Check:
        """Logits of an image, a video and text, against float64 from weights and pixels rounded alike."""

        @torch.no_grad()
        def run() -> float | None:
            model = self.copy(dtype, attention)
            rounded = deepcopy(model).to("cpu", torch.float64)
            rounded.set_attn_implementation("eager")
            pixels = {"pixel_values": self.inputs["pixel_values"].to(dtype).double()}
            expected = rounded(**self.inputs | pixels).logits

            with full_precision(), sdpa_kernel(kernel) if kernel else nullcontext():
                try:
                    logits = model(**self.moved()).logits
                except RuntimeError as error:
                    if any(message in str(error) for message in NO_KERNEL):
                        return None
                    raise
            return relative_difference(logits, expected)

        return Check(f"logits are those of the equations: {name}", TOLERANCES[dtype], run)

    @torch.no_grad()
    def chunked(self) -> float:
        model, media = self.copy(torch.float32), self.moved()
        del media["input_ids"]
        with full_precision():
            model.config.max_encoder_tiles = None
            whole = model.get_image_features(**media).last_hidden_state
            model.config.max_encoder_tiles = 2
            return relative_difference(model.get_image_features(**media).last_hidden_state, whole)

    @torch.no_grad()
    def live(self) -> float:
        model = self.copy(torch.float32)
        generator = torch.Generator().manual_seed(1)
        frames = torch.randn(LIVE_FRAMES, 3, SIZE.side, SIZE.side, generator=generator).to(self.device)
        grid = torch.tensor([[LIVE_FRAMES, 1, 1]] * LIVE_FRAMES)

        with full_precision():
            (whole,) = model.get_image_features(frames, grid).pooler_output
            live = model.live_video(None, horizon=LIVE_FRAMES)
            pieces = [live.add(piece) for piece in frames.split([1, 4, 2])]
        return relative_difference(torch.cat(pieces).flatten(0, 1), whole)

    @torch.no_grad()
    def cached(self) -> float:
        model, inputs = self.copy(torch.float32), self.moved()
        with full_precision():
            embeddings = model.model.embed(**inputs)
            whole = model(inputs_embeds=embeddings).logits

            prefix = embeddings.shape[1] - TEXT_TOKENS
            step = model(inputs_embeds=embeddings[:, :prefix], use_cache=True)
            logits = [step.logits]
            for i in range(prefix, embeddings.shape[1]):
                cache = step.past_key_values
                step = model(inputs_embeds=embeddings[:, i : i + 1], past_key_values=cache, use_cache=True)
                logits.append(step.logits)
        return relative_difference(torch.cat(logits, dim=1), whole)

    def dialogue(self) -> float:
        model, inputs = self.copy(torch.float32), self.moved()
        settings = self._greedy()
        cache = model.dialogue_cache()
        first = model.generate(**inputs, **settings, cache=cache)
        inputs["input_ids"] = torch.cat([first, first[:, -6:]], dim=1)
        again = model.generate(**inputs, **settings, cache=cache)
        return _share_of_others(again, model.generate(**inputs, **settings))

    def fast_decode(self) -> float:
        """With CUDA graphs on a GPU; elsewhere the steps are traced and not compiled."""
        model, inputs = self.copy(torch.float32), self.moved()
        settings = self._greedy()
        expected = model.generate(**inputs, **settings)
        if self.device.type != "cuda":
            settings["compile_config"] = CompileConfig(backend="eager", mode=None)
            settings["compile_config"]._compile_all_devices = True
        return _share_of_others(model.generate(**inputs, **settings, fast_decode=True), expected)

    def _greedy(self) -> dict:
        """Settings of `generate`, which never give a visual token."""
        config = self.reference.config
        return {
            "max_new_tokens": NEW_TOKENS,
            "min_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "suppress_tokens": [config.image_token_id],
        }

    @torch.no_grad()
    def many_sequences(self, dtype: torch.dtype) -> float:
        """Images enough for one call of temporal attention over all; as many a time as one call takes."""
        model = self.copy(dtype)
        vit = model.model.vision_model
        tokens = SIZE.patches**2 + 1
        number = MAX_SEQUENCES // tokens + 50
        generator = torch.Generator().manual_seed(2)
        few = torch.randn(50, 3, SIZE.side, SIZE.side, generator=generator).to(self.device)
        tiles = few.repeat(-(-number // len(few)), 1, 1, 1)[:number]
        grid = torch.tensor([[1, 1, 4]])

        with full_precision():
            together = vit(tiles, grid.repeat(number, 1)).last_hidden_state
            apart = vit(few, grid.repeat(len(few), 1)).last_hidden_state
        first = relative_difference(together[: len(apart)], apart)
        last = number // len(few) * len(few)
        rest = together[4 * last :]
        return max(first, relative_difference(rest, apart[: len(rest)]))


def _share_of_others(ids: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of tokens that differ; 1 where there are more or fewer."""
    if ids.shape != expected.shape:
        return 1.0
    return float((ids != expected).float().mean())


# -------------------------------------------------------------------------------------------------- PVC-Tiny


class TinyAnswers:
    """PVC-Tiny's answers about two images and a video that is drawn here, on `device` and on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
        self.expected = self.answers(self.model)

    def answers(self, model) -> list[str]:
        answers = []
        for block, question in self._questions():
            content = [block, {"type": "text", "text": question}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            ).to(model.device)

            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
            (answer,) = self.processor.batch_decode(
                ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            answers.append(answer)
        return answers

    def share_of_others(self, dtype: torch.dtype) -> float:
        model = deepcopy(self.model).to(self.device, dtype)
        pairs = zip(self.answers(model), self.expected)
        return float(np.mean([answer != expected for answer, expected in pairs]))

    def _questions(self) -> Iterator[tuple[dict, str]]:
        for name in ("picture1.png", "picture2.png"):
            for question in QUESTIONS:
                yield {"type": "image", "image": str(CHECKPOINT / "assets" / name)}, question

        frames = []
        for i in range(8):
            frame = Image.new("RGB", (96, 96), "white")
            ImageDraw.Draw(frame).ellipse([6 + 8 * i, 36, 26 + 8 * i, 56], fill="blue")
            frames.append(frame)
        yield {"type": "video", "video": frames}, "In which direction does the blue circle move?"
