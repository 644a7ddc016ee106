"""Live video: frames as they come, questions at any time.

    live = model.live_video(tokenizer, horizon=64)
    tokens = live.add(pixel_values)              # (frames, tokens of a frame, H), at once
    live.watch(load_video_ahead("video.mp4"))    # or a file, read while what was read is encoded
    answer = live.ask("What happens?")           # about all that has come; more frames may follow

T-MHA looks back alone, so that a new frame needs of the earlier ones only the keys and values of the temporal
layers: adding k frames costs k frames. The paper's time of moment f is f / (T - 1), which needs the end `T`:

- `horizon=T` known ahead: visual tokens equal those of the whole clip, however its frames came.
- an endless stream (`horizon=None`) with a window of `W` frames: moment f has the time
  min(f, W - 1) / (W - 1) and attends to itself and the W - 1 before it. While it fills, the window is a clip
  of `W` frames, exactly; then every frame is the newest of a clip that has just ended (time 1), which is
  where training had its newest frames. Tokens once made are not made anew, so the frames behind it keep the
  times that they had when they came. Each of `L~` temporal layers looks W - 1 frames further back than the
  one below: a frame's tokens depend on the last L~ (W - 1) + 1 frames, and on no others.

Memory: per frame of the horizon or window 2 L~ hidden states (with 8 layers of a 448 x 448 tile in bf16: 34
MB), allocated once; the visual tokens and the LLM's cache of the frames shown, which `prompt_frames` bounds.
Encoding is left to the model, the LLM's cache to `PrefixCache`.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import NamedTuple

import torch
from einops import rearrange
from transformers import GenerationConfig

from .chat import answer_settings, answers_of, generate_settings, sequences_of
from .clips import Clip, ClipLayout, clip_grid_of, integers
from .conversation import IMAGE_PLACEHOLDER, dialogue_segments, encode_segments
from .dialogue_cache import PrefixCache
from .modeling_intern_vit import TemporalMemory, check_finite, eval_mode


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
        window: frames that a frame of an endless stream looks back on, itself among them.
        prompt_frames: the prompt shows the last so many frames; None: all, as far as the LLM's positions go.
            Once earlier ones drop out, a question costs the whole prompt again: what follows them has moved.

    Attributes:
        num_frames: frames so far.
        history: the dialogue so far, (question, answer) pairs.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        horizon: int | None = None,
        window: int = 64,
        prompt_frames: int | None = None,
    ):
        for name, value in {"horizon": horizon, "window": window, "prompt_frames": prompt_frames}.items():
            if (value is None and name == "window") or (
                value is not None and (not isinstance(value, int) or value < 1)
            ):
                raise ValueError(f"{name} is {value!r}: expected a number of frames, at least 1")
        self.model, self.tokenizer, self.horizon = model, tokenizer, horizon
        self.num_frames = self.frames_encoded = 0  # the latter is ahead while frames are added
        config = model.config
        moments = (horizon or window) * config.video_repeats
        self.last_moment = moments - 1
        self.memories = [TemporalMemory(moments) for _ in range(config.vision_config.num_temporal_layers)]
        self.tile_shape = None  # of all frames: (tiles a frame, 3, H, W)
        self.tokens = deque(maxlen=prompt_frames)  # (tokens, H) of each frame that the prompt shows
        self.turns: list[Turn] = []
        self.prefix = PrefixCache()
        self.interrupted = False
        self.frames_lock = RLock()  # of what add changes: memories, tokens and their number
        self.dialogue_lock = RLock()  # of what ask changes: turns and prefix

    @property
    def history(self) -> list[tuple[str, str]]:
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
            repeats, max_tiles = self.model.config.video_repeats, self.model.config.max_encoder_tiles
            frames_at_once = max(1, (max_tiles or len(pixel_values)) // (tiles * repeats))

            self.interrupted = True
            pieces = pixel_values.split(frames_at_once * tiles)
            tokens = torch.cat([self._encode(piece, tiles) for piece in pieces])
            self.tokens.extend(tokens)
            self.num_frames += len(tokens)
            self.interrupted = False
            return tokens

    def watch(self, pieces: Iterable[tuple[torch.Tensor, Sequence[int]]]) -> torch.Tensor:
        """Adds pieces of a video, `(pixel_values, num_patches_list)`, as `preprocess.load_video_ahead` gives
        them while it reads on; returns and raises what `add` does.
        """
        return torch.cat([self.add(*piece) for piece in pieces])

    def _encode(self, pixel_values: torch.Tensor, tiles: int) -> torch.Tensor:
        """Visual tokens `(frames, tokens of a frame, H)` of a piece, which the temporal layers remember."""
        config = self.model.config
        frames = len(pixel_values) // tiles
        grid = clip_grid_of([Clip(frames, tiles, config.video_repeats)])
        # a clip of one frame is an image; a piece of one frame is not
        order = config.tile_repeat_order if self.horizon == 1 else "frame"
        clips = ClipLayout.from_grid(grid, len(pixel_values), order)
        ((moments, rows),) = clips.tile_sequences.items()
        moment = self.frames_encoded * config.video_repeats + torch.arange(moments)
        clips.times[rows] = moment.clamp(max=self.last_moment).float() / max(self.last_moment, 1)
        # weights that accelerate has offloaded are on "meta"; its hooks take inputs from anywhere
        device = "cpu" if self.model.device.type == "meta" else self.model.device
        with eval_mode(self.model.model.vision_model):
            features = self.model.model.get_image_features(
                pixel_values.to(device), clips=clips, past=self.memories
            )
        self.frames_encoded += frames
        tokens = features.last_hidden_state  # (R, tokens of a row, H)
        return rearrange(tokens, "(f r) n h -> f (r n) h", f=frames)

    def _check_frames(self, pixel_values, num_patches_list) -> int:
        """Tiles a frame."""
        self.model.model.vision_model.check_pixels(pixel_values)
        total = len(pixel_values)
        patches = [1] * total if num_patches_list is None else integers("num_patches_list", num_patches_list)
        if len(set(patches)) != 1 or sum(patches) != total or patches[0] < 1:
            raise ValueError(
                f"num_patches_list is {patches}, pixel_values has {total} tiles: expected the tiles of each "
                "frame, equal numbers that add up"
            )
        shape = (patches[0], *pixel_values.shape[1:])
        if self.tile_shape not in (None, shape):
            raise ValueError(f"frames are {shape} (tiles, 3, H, W), but those before were {self.tile_shape}")
        if self.horizon is not None and self.num_frames + len(patches) > self.horizon:
            raise ValueError(
                f"{len(patches)} more frames after {self.num_frames} are more than the horizon of "
                f"{self.horizon}: set a larger one, or None for an endless stream"
            )
        check_finite(pixel_values)
        self.model.model.patch_grid(*shape[2:])
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

        Frames that came since the last question are shown before it, as the `FrameN: <image>` lines of the
        released video prompt, the numbers going on. The LLM computes these lines and the question alone. An
        interrupted answer is as if not asked for.

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

    def _answer(self, question, num_frames: int, tokens: list, generation_config, generate_options) -> str:
        """Answers about a video of `num_frames` frames, of which the prompt shows the last: `tokens`."""
        shown = range(num_frames - len(tokens), num_frames)
        told = self.turns[-1].frames.stop if self.turns else 0
        new = range(told, num_frames)
        model, template = self.model, self.model.prompt_template()
        segments, _ = dialogue_segments(
            template,
            _frame_lines(new, shown) + question if isinstance(question, str) else question,
            [(_frame_lines(turn.frames, shown) + turn.question, turn.answer) for turn in self.turns],
            frames_of_media=[1] * len(shown),
        )
        tokens_of_frame = len(tokens[-1]) if tokens else 0
        ids = encode_segments(self.tokenizer, segments, [tokens_of_frame] * len(shown))

        settings = generate_settings(generation_config, template.stop_token_ids(self.tokenizer))
        output = self.prefix.generate(
            model,
            torch.tensor([ids], device=model.get_input_embeddings().weight.device),
            torch.cat(tokens) if tokens else None,
            -1 - torch.arange(shown.start * tokens_of_frame, shown.stop * tokens_of_frame),
            **answer_settings(model, self.tokenizer, settings | generate_options, len(ids)),
        )
        (answer,) = answers_of(self.tokenizer, sequences_of(output)[:, len(ids) :], template)
        self.turns.append(Turn(new, question, answer))
        return answer


def _frame_lines(frames: range, shown: range) -> str:
    """`FrameN: <image>` lines of those of the frames that the prompt shows."""
    return "".join(f"Frame{i + 1}: {IMAGE_PLACEHOLDER}\n" for i in frames if i in shown)
