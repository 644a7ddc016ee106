"""Messages -> the inputs of the model. Media are read within the server's `MediaPolicy`.

    PromptReader.read(messages, is_cancelled) -> Prompt

It blocks, and is called in threads: files are decoded in processes of their own, which are killed where the
policy's time is over or the client has gone.
"""

import copy
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pvc.clips import Clip, clips_of_grid, tokens_of_clip
from pvc.processing_options import TOKEN_OPTIONS
from pvc.serving.errors import ApiError, bad_request, without_paths

KEY_BITS = 62  # of the keys of visual tokens, which are negative 64-bit numbers


class PromptClip(NamedTuple):
    """An image or video of a prompt."""

    clip: Clip
    pixels: torch.Tensor  # (tiles, 3, S, S)
    start: int  # the position of its first visual token
    end: int  # that behind its last
    tokens: int


class Prompt(NamedTuple):
    """A prompt, ready for the model."""

    ids: torch.Tensor  # (L,)
    keys: torch.Tensor  # (L,) the token's id for text, a negative number for a visual token
    clips: list[PromptClip]

    @property
    def length(self) -> int:
        """Tokens, the visual ones counted."""
        return len(self.ids)


def with_policy(processor: Any, policy: Any) -> Any:
    """A copy of a processor with another media policy; tokenizer and settings are shared."""
    processor = copy.copy(processor)
    processor.image_processor = copy.copy(processor.image_processor)
    processor.media_policy = policy
    return processor


def fewest_tokens(images: Any, options: Mapping[str, Any]) -> dict[str, int]:
    """The fewest visual tokens of a tile of an image and of a video, repeats counted.

    Args:
        images: the image processor.
        options: of `apply_chat_template`.
    """
    limits = {name: options.get(name) for name in TOKEN_OPTIONS}
    budget = images.token_budget(**limits)
    return {
        "image": budget.fewest(is_image=True) * (options.get("image_repeats") or images.image_repeats),
        "video": budget.fewest(is_image=False) * images.video_repeats,
    }


class PromptReader:
    """Lays out messages and reads their media.

    Args:
        processor: its media policy is the server's.
        max_positions: of the LLM; a prompt must leave room for a token of the answer.
        options: of `apply_chat_template`, such as `max_tiles` and `num_frames`.
    """

    def __init__(self, processor: Any, max_positions: int, options: dict[str, Any]) -> None:
        self._processor = processor
        self._max_positions = max_positions
        self._options = options
        self._secret = os.urandom(32)  # nobody can make two images whose keys are equal

        vocabulary = processor.tokenizer.get_vocab()
        self._longest = max(map(len, vocabulary))  # characters of a token

    def read(
        self,
        messages: Sequence[dict],
        is_cancelled: Callable[[], bool],
        options: dict[str, Any] | None = None,
    ) -> Prompt:
        """The prompt of messages.

        Args:
            options: of this prompt alone, in place of the reader's.

        Raises:
            ApiError: 400 where the messages or the length are wrong, 422 where media cannot be read.
        """
        options = self._options if options is None else options
        self._check_characters(messages)
        self._check_media(messages, options)
        processor = self._cancellable(is_cancelled)
        try:
            inputs = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options
            )
        except (OSError, ValueError) as error:
            raise self._refused(error, messages) from None

        ids = inputs["input_ids"][0]  # (L,)
        if len(ids) >= self._max_positions:
            raise bad_request(
                f"the prompt has {len(ids)} tokens, and the LLM was made for {self._max_positions} with the "
                "answer: shorten the dialogue, or show fewer or smaller images and videos",
                "messages",
            )
        return self._prompt(ids, inputs)

    def _check_characters(self, messages: Sequence[dict]) -> None:
        """Refuses what is too long for any tokenizer, before it is tokenised or media are read."""
        contents = [message["content"] for message in messages]
        texts = [content for content in contents if isinstance(content, str)]
        blocks = [block for content in contents if not isinstance(content, str) for block in content]
        texts += [block["text"] for block in blocks if block["type"] == "text"]

        most = self._longest * self._max_positions
        characters = sum(map(len, texts))
        if characters > most:
            raise bad_request(
                f"the messages have {characters} characters, more than {self._max_positions} tokens can "
                "have: shorten the dialogue",
                "messages",
            )
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise bad_request(
                "the messages have half of a surrogate pair: send Unicode", "messages"
            ) from None

    def _check_media(self, messages: Sequence[dict], options: Mapping[str, Any]) -> None:
        """Refuses more images and videos than the LLM has positions for, before any is read."""
        image = self._processor.image_processor
        fewest = fewest_tokens(image, options)
        least = sum(fewest[block["type"]] for block in _media_blocks(messages))
        if least >= self._max_positions:
            raise bad_request(
                f"the images and videos have {least} tokens or more, and the LLM was made for "
                f"{self._max_positions}: show fewer",
                "messages",
            )

    def _cancellable(self, is_cancelled: Callable[[], bool]) -> Any:
        """The processor for one request, whose reading ends where that is cancelled."""
        policy = replace(self._processor.media_policy, is_cancelled=is_cancelled)
        return with_policy(self._processor, policy)

    def _refused(self, error: Exception, messages: Sequence[dict]) -> ApiError:
        """The error for a client: 400 for messages that the template does not take, 422 for media."""
        media = _media_blocks(messages)
        quoted = "\n".join(block[block["type"]][:8192] for block in media)

        message = without_paths(str(error), quoted)
        is_of_messages = type(error).__name__ == "MessageError" or not media
        return (
            bad_request(message, "messages") if is_of_messages else ApiError(422, message, param="messages")
        )

    def _prompt(self, ids: torch.Tensor, inputs: Any) -> Prompt:
        if "pixel_values" not in inputs:
            return Prompt(ids, ids, [])

        pixels = inputs["pixel_values"]  # (num_tiles, 3, S, S)
        tokens_per_tile = self._processor.image_processor.tokens_per_tile
        positions = (ids == self._processor.image_token_id).nonzero().flatten()  # (visual tokens,)
        keys = ids.clone()
        clips: list[PromptClip] = []
        used = 0
        for first, clip in clips_of_grid(inputs["clip_grid"], len(pixels)):
            tiles = pixels[first : first + clip.frames * clip.tiles]
            own = positions[used : used + tokens_of_clip(clip, tokens_per_tile)]
            keys[own] = self._keys(clip, tiles, len(own))
            clips.append(PromptClip(clip, tiles, int(own[0]), int(own[-1]) + 1, len(own)))
            used += len(own)
        return Prompt(ids, keys, clips)

    def _keys(self, clip: Clip, tiles: torch.Tensor, number: int) -> torch.Tensor:
        """Keys `(number,)` of a clip's visual tokens: equal for equal clips, and for no others."""
        digest = hashlib.blake2b(repr(tuple(clip)).encode(), key=self._secret, digest_size=8)
        digest.update(tiles.contiguous().numpy().data)
        first = int.from_bytes(digest.digest(), "big") % (2**KEY_BITS - number)
        return -1 - first - torch.arange(number)


def _media_blocks(messages: Sequence[dict]) -> list[dict]:
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [block for content in contents for block in content if block["type"] != "text"]
