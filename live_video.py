"""Live video: frames as they come, questions at any time.

    live = model.live_video(tokenizer, horizon=64)
    tokens = live.add(pixel_values)              # (frames, tokens of a frame, H), at once
    live.watch(load_video_ahead("video.mp4"))    # or a file, read while what was read is encoded
    answer = live.ask("What happens?")           # about all that has come; more frames may follow

T-MHA is causal: a new frame needs of the earlier ones only the keys and values of the temporal layers, and
is encoded once, at constant cost. The paper's time of time step f is f / (T - 1), which needs the end `T`:

- `horizon=T` known ahead: visual tokens equal those of the whole clip, however its frames came.
- an endless stream (`horizon=None`) with a window of `W` frames: time step f has the time
  min(f, W - 1) / (W - 1) and attends to itself and the W - 1 before it. While it fills, the window is a clip
  of `W` frames, exactly; then every frame is the newest of a clip that has just ended (time 1), which is
  where training had its newest frames. Visual tokens are not made anew, so earlier frames keep the times that
  they had when they came. Each of `L~` temporal layers reaches W - 1 frames further back than the one below:
  a frame's tokens depend on the last L~ (W - 1) + 1 frames, and on no others.

Where a model encodes each frame by itself (Dynamic-VLM), no frame depends on another. With a token budget a
frame's number of tokens follows from the horizon, or is `frame_tokens`: what was said of a frame stays as it
is.

Memory: per frame of the horizon or window 2 L~ hidden states (with 8 layers of a 448 x 448 tile in bf16: 34
MB), allocated once; the visual tokens and the LLM's cache of the frames in the prompt, which `prompt_frames`
bounds. Encoding is left to the model, the LLM's cache to `PrefixCache`.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import NamedTuple

import torch
from einops import rearrange
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .chat import answer_settings, answers_of, generate_settings, sequences_of
from .clips import Clip, ClipLayout, clip_grid_of, integers
from .conversation import (
    IMAGE_PLACEHOLDER,
    Conversation,
    Segment,
    dialogue_segments,
    encode_segments,
)
from .dialogue_cache import PrefixCache
from .loading import input_device
from .modeling_intern_vit import TemporalMemory, check_finite, eval_mode

ENDLESS = 2**31  # frames of a stream without an end, whose tokens are a fixed number


class Turn(NamedTuple):
    """A question, the frames that came since the one before it, and its answer."""

    frames: range
    question: str
    answer: str


class LiveVideo:
    """A video that is still coming in, and a dialogue about it.

    One thread may add frames while another asks: a question is about the frames that had come when it was
    asked. Calls of `add` wait for each other, and so do calls of `ask`.

    Args:
        horizon: frames of the whole video; None: an endless stream.
        window: frames that a frame of an endless stream attends to, itself among them.
        prompt_frames: the prompt shows the last so many frames; None: all, as far as the LLM's positions go.
            Once earlier ones drop out, each question computes the whole prompt: all positions have moved.
        frame_tokens: visual tokens of a tile of a frame; None: what the model's budget, if it has one, gives
            a frame of the horizon.

    Raises:
        ValueError: where a number is not positive, or the tokens of a frame do not follow.

    Attributes:
        num_frames: frames so far.
        history: the dialogue so far, (question, answer) pairs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        horizon: int | None = None,
        window: int = 64,
        prompt_frames: int | None = None,
        frame_tokens: int | None = None,
    ):
        _check_number_of_frames("horizon", horizon, is_optional=True)
        _check_number_of_frames("window", window)
        _check_number_of_frames("prompt_frames", prompt_frames, is_optional=True)
        _check_number_of_frames("frame_tokens", frame_tokens, is_optional=True)
        self.model = model
        self.tokenizer = tokenizer
        self.horizon = horizon

        config = model.config
        num_steps = (horizon or window) * config.video_repeats
        self.last_step = num_steps - 1
        temporal_layers = getattr(config.vision_config, "num_temporal_layers", 0)
        self.memories = [TemporalMemory(num_steps) for _ in range(temporal_layers)]
        self.frame_tokens = frame_tokens
        if config.max_video_tokens is not None and horizon is None and frame_tokens is None:
            raise ValueError(
                "a frame's tokens follow from the number of frames, which an endless stream has not: pass "
                "horizon or frame_tokens"
            )

        self.num_frames = 0
        self.frames_encoded = 0  # ahead of num_frames while frames are added
        self.tile_shape: tuple[int, ...] | None = None  # of all frames: (tiles a frame, 3, H, W)
        self.tokens: deque[torch.Tensor] = deque(maxlen=prompt_frames)  # (tokens, H) of each visible frame
        self.turns: list[Turn] = []
        self.prefix = PrefixCache()
        self.interrupted = False

        self.frames_lock = RLock()  # of what add changes: memories, tokens and their number
        self.dialogue_lock = RLock()  # of what ask changes: turns and prefix

    @property
    def history(self) -> list[tuple[str, str]]:
        """The dialogue so far, (question, answer) pairs."""
        return [(turn.question, turn.answer) for turn in self.turns]

    @torch.no_grad()
    def add(self, pixel_values: torch.Tensor, num_patches_list: Sequence[int] | None = None) -> torch.Tensor:
        """Encodes the next frames.

        Args:
            pixel_values: `(num_tiles, 3, H, W)`, frame after frame, of the shape of the frames before.
            num_patches_list: tiles of each frame, equal numbers, as `load_video` returns them; None: one.

        Returns:
            their visual tokens `(frames, tokens of a frame, H)`, in prompt order.

        Raises:
            ValueError: where shapes are not as said, pixels are not finite, there are more frames than the
                horizon, or an earlier call was interrupted.
        """
        with self.frames_lock:
            if self.interrupted:
                raise ValueError(
                    "adding frames was interrupted, some layers have them: start a new LiveVideo"
                )
            tiles = self._check_frames(pixel_values, num_patches_list)
            config = self.model.config
            max_tiles = config.max_encoder_tiles or len(pixel_values)
            frames_at_once = max(1, max_tiles // (tiles * config.video_repeats))

            self.interrupted = True
            pieces = pixel_values.split(frames_at_once * tiles)
            tokens = torch.cat([self._encode(piece, tiles) for piece in pieces])
            self.tokens.extend(tokens)
            self.num_frames += len(tokens)
            self.interrupted = False
            return tokens

    def watch(self, pieces: Iterable[tuple[torch.Tensor, Sequence[int]]]) -> torch.Tensor:
        """Adds pieces of a video, `(pixel_values, num_patches_list)`; returns and raises what `add` does.

        `preprocess.load_video_ahead` gives such pieces while it reads on.
        """
        return torch.cat([self.add(*piece) for piece in pieces])

    def _encode(self, pixel_values: torch.Tensor, tiles: int) -> torch.Tensor:
        """Visual tokens `(frames, tokens of a frame, H)` of a piece, which the temporal layers remember."""
        frames = len(pixel_values) // tiles
        pixel_values = pixel_values.to(input_device(self.model))
        body = self.model.model
        config = self.model.config
        number = self._tokens_of_tile(pixel_values, tiles)
        is_image = self.horizon == 1  # a clip of one frame, which is whole
        if hasattr(config.vision_config, "num_temporal_layers") and not is_image:
            layout = self._layout(len(pixel_values), tiles)
            inputs = {"clips": layout, "past": self.memories, "tokens": number}
        else:  # each frame by itself
            inputs = {"clip_grid": clip_grid_of([Clip(frames, tiles, config.video_repeats, number)])}

        # the LLM is left alone: another thread may be asking
        encoders = [module for name, module in body.named_children() if name != "language_model"]
        with eval_mode(torch.nn.ModuleList(encoders)):
            features = body.get_image_features(pixel_values, **inputs)
        self.frames_encoded += frames
        (tokens,) = features.pooler_output  # (frames * tokens of a frame, H)
        return rearrange(tokens, "(f n) h -> f n h", f=frames)

    def _tokens_of_tile(self, pixel_values: torch.Tensor, tiles: int) -> int | None:
        """Tokens of a tile of the whole video, as `chat` would give it; None: the model's own number."""
        body = self.model.model
        whole = Clip(self.horizon or ENDLESS, tiles, self.model.config.video_repeats)
        own = body.tokens_per_tile(*pixel_values.shape[2:])
        (clip,) = body.share_budget([whole], own, frame_tokens=self.frame_tokens)
        return clip.tokens

    def _layout(self, num_tiles: int, tiles: int) -> ClipLayout:
        """Layout of the next frames of the clip, their times counted on from the frames before."""
        config = self.model.config
        grid = clip_grid_of([Clip(num_tiles // tiles, tiles, config.video_repeats)])
        # a clip of one frame is an image; a piece of one frame is not
        clips = ClipLayout.from_grid(grid, num_tiles, "frame")

        ((num_steps, rows),) = clips.tile_sequences.items()
        steps = self.frames_encoded * config.video_repeats + torch.arange(num_steps)
        clips.times[rows] = steps.clamp(max=self.last_step).float() / max(self.last_step, 1)
        return clips

    def _check_frames(self, pixel_values: torch.Tensor, num_patches_list: Sequence[int] | None) -> int:
        """Tiles a frame, once frames are checked."""
        self.model.model.check_pixels(pixel_values)
        total = len(pixel_values)
        patches = [1] * total if num_patches_list is None else integers("num_patches_list", num_patches_list)
        if len(set(patches)) != 1 or sum(patches) != total or patches[0] < 1:
            raise ValueError(
                f"num_patches_list is {patches}, pixel_values has {total} tiles: expected the tiles of each "
                "frame, equal numbers that add up"
            )

        # as the frames before, and no more than were announced
        shape = (patches[0], *pixel_values.shape[1:])
        if self.tile_shape not in (None, shape):
            raise ValueError(f"frames are {shape} (tiles, 3, H, W), but those before were {self.tile_shape}")
        if self.horizon is not None and self.num_frames + len(patches) > self.horizon:
            raise ValueError(
                f"{len(patches)} more frames after {self.num_frames} are more than the horizon of "
                f"{self.horizon}: set a larger one, or None for an endless stream"
            )

        check_finite(pixel_values)
        self.tile_shape = shape
        return patches[0]

    @torch.no_grad()
    def ask(
        self,
        question: str,
        generation_config: dict | GenerationConfig | None = None,
        **generate_options,
    ) -> str:
        """Answers a question about the frames so far, in one dialogue with the questions before.

        Frames that came since the last question stand before it, as the `FrameN: <image>` lines of the
        released video prompt, numbered on. The LLM computes these lines and the question alone. An
        interrupted answer leaves no trace in the dialogue.

        Args:
            generation_config: settings of `generate`, as a dict or an object.
            generate_options: more for `generate`: a `streamer`, `stopping_criteria`, `fast_decode`.

        Raises:
            ValueError: where the question holds `<image>`, several answers are asked for, or the prompt is
                longer than the LLM was made for (and RoPE is not scaled): then set `prompt_frames`.
        """
        if isinstance(question, str) and IMAGE_PLACEHOLDER in question:
            raise ValueError(f"the question has {IMAGE_PLACEHOLDER}: frames are shown by add, as they come")
        with self.dialogue_lock:
            with self.frames_lock:  # more frames may come from here on
                num_frames, tokens = self.num_frames, list(self.tokens)
            return self._answer(question, num_frames, tokens, generation_config, generate_options)

    def _answer(
        self,
        question: str,
        num_frames: int,
        tokens: list[torch.Tensor],
        generation_config: dict | GenerationConfig | None,
        generate_options: dict,
    ) -> str:
        """Answers about a video of `num_frames` frames, of which the prompt shows the last: `tokens`."""
        visible = range(num_frames - len(tokens), num_frames)
        num_frames_asked = self.turns[-1].frames.stop if self.turns else 0
        new = range(num_frames_asked, num_frames)
        tokens_of_frame = len(tokens[-1]) if tokens else 0

        model, template = self.model, self.model.prompt_template()
        # the whole dialogue, with placeholders for the frames that are still visible
        segments = self._segments(question, new, visible)
        ids = encode_segments(
            self.tokenizer, segments, [tokens_of_frame] * len(visible), marks=template.marks
        )

        settings = generate_settings(generation_config, template.stop_token_ids(self.tokenizer))
        # keys of visual tokens are negative, unlike ids, and a frame keeps its own in every prompt
        output = self.prefix.generate(
            model,
            torch.tensor([ids], device=input_device(model)),
            torch.cat(tokens) if tokens else None,
            -1 - torch.arange(visible.start * tokens_of_frame, visible.stop * tokens_of_frame),
            **answer_settings(model, self.tokenizer, settings | generate_options, len(ids)),
        )

        (answer,) = answers_of(self.tokenizer, sequences_of(output)[:, len(ids) :], template)
        self.turns.append(Turn(new, question, answer))
        return answer

    def _segments(self, question: str, new: range, visible: range) -> list[Segment]:
        """The dialogue so far and the question about the frames `new`, with the lines of `visible` frames."""
        template = self.model.prompt_template()
        history = [
            (_frame_lines(template, turn.frames, visible) + turn.question, turn.answer) for turn in self.turns
        ]
        if isinstance(question, str):  # else dialogue_segments refuses it
            question = _frame_lines(template, new, visible) + question

        segments, _ = dialogue_segments(template, question, history, frames_of_media=[1] * len(visible))
        return segments


def _frame_lines(template: Conversation, frames: range, visible: range) -> str:
    """Lines, such as `FrameN: <image>`, of those of the frames that the prompt shows."""
    numbers = [i + 1 for i in frames if i in visible]
    lines = template.frame_segments(numbers)
    return "".join(segment.text for segment in lines) + (template.media_end if numbers else "")


def _check_number_of_frames(name: str, value: int | None, is_optional: bool = False):
    if value is None and is_optional:
        return
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a number of frames, at least 1")
