"""The optional judge: a chat model behind an OpenAI-compatible URL, its replies kept in a file.

`judge_protocols.py` has the messages and reads the replies, `chat_endpoint.py` sends and keeps. Nothing is
sent anywhere unless a URL is given. Temperature is 0. A reply is kept with the hash of its prompt and the
model's name; errors are never kept.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pvc.evaluation.chat_endpoint import (
    KEY_VARIABLE,
    MOST_ERRORS,
    ChatEndpoint,
    EndpointError,
    ReplyCache,
    TemporaryError,
    endpoint,
)
from pvc.evaluation.judge_protocols import Messages

__all__ = ["MOST_ERRORS", "Judge", "JudgeError", "Reply", "ReplyCache", "endpoint", "prompt_hash"]

JudgeError = EndpointError


class Reply(NamedTuple):
    """The text of a reply, or the error where there is none."""

    text: str | None
    error: str | None = None


def prompt_hash(messages: Messages, max_tokens: int) -> str:
    """SHA-256 of all that a reply depends on but the model."""
    asked = {"max_tokens": max_tokens, "messages": messages, "temperature": 0}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Judge:
    """A chat model behind an OpenAI-compatible URL.

    Args:
        url: with or without `/chat/completions` at its end, such as "http://localhost:8000/v1".
        model: the name that is sent, and under which replies are kept.
        cache: file of kept replies.
        key_variable: environment variable that holds the key; none is sent where it is not set.
        timeout_s: of one try. attempts: tries of one question. wait_s: before the second try, doubled for
            each further one, at most a minute; a server's `Retry-After` takes precedence.

    Raises:
        ValueError: where the URL is not http or https, or holds a name and password.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        cache: str | os.PathLike | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout_s: float = 60.0,
        attempts: int = 5,
        wait_s: float = 1.0,
    ) -> None:
        self.endpoint = ChatEndpoint(
            url, key_variable=key_variable, timeout_s=timeout_s, attempts=attempts, wait_s=wait_s
        )
        self.model = model
        self.cache = ReplyCache(cache)

    def ask(self, messages: Messages, *, max_tokens: int = 128) -> str:
        """The reply, from the cache where it is kept.

        Raises:
            JudgeError: where there is none after all tries, or at once where the server refuses the request.
        """
        prompt = prompt_hash(messages, max_tokens)
        kept = self.cache.get(prompt, self.model)
        if kept is not None:
            return kept

        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        reply, reported_model = self.endpoint.ask(body, _read_response)
        self.cache.put(prompt, self.model, reply, reported_model)
        return reply

    def ask_all(self, asked: Sequence[Messages], *, max_tokens: int = 128, workers: int = 8) -> list[Reply]:
        """A reply or an error for each, in order; with up to `workers` requests at a time.

        After so many errors in a row that the server or the key must be at fault, it is not asked any more.
        """
        in_a_row: list[str] = []  # errors since the last reply

        def ask(messages: Messages) -> Reply:
            is_kept = self.cache.get(prompt_hash(messages, max_tokens), self.model) is not None
            if len(in_a_row) >= MOST_ERRORS and not is_kept:
                return Reply(None, f"not asked after {MOST_ERRORS} errors in a row, such as: {in_a_row[0]}")
            try:
                reply = Reply(self.ask(messages, max_tokens=max_tokens))
            except JudgeError as error:
                in_a_row.append(str(error))
                return Reply(None, str(error))
            if not is_kept:
                in_a_row.clear()
            return reply

        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            return list(pool.map(ask, asked))


def _read_response(response: dict[str, Any]) -> tuple[str, str | None]:
    """The text of the first choice, stripped, and the model's name.

    Raises:
        TemporaryError: where there is no text.
    """
    try:
        text = response["choices"][0]["message"]["content"].strip()
    except (LookupError, TypeError, AttributeError) as error:
        raise TemporaryError(f"the response has no text: {str(response)[:200]}") from error
    if not text:
        raise TemporaryError("the reply is empty")

    model = response.get("model")
    return text, model if isinstance(model, str) else None
