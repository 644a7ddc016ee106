"""The body of `POST /v1/chat/completions` -> `ChatRequest`.

Every field is checked. What changes nothing is taken (`user`, `metadata`, `n=1`), what this server does not
have is refused by name (`tools`, `logprobs`, `n=2`), and so is what nobody knows. Media are named, not read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pvc.media_policy import shown
from pvc.serving.errors import ApiError, bad_request
from pvc.serving.limits import Limits

ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_PARTS = ("image_url", "video_url")
MAX_ADDRESS = 8192  # characters
MAX_STOPS, MAX_STOP_LENGTH = 4, 256

IGNORED = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")

# what OpenAI's API has and this server has not: the values that ask for nothing
NEUTRAL: dict[str, tuple] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}
ADVICE = {"n": "one answer a request: send it several times", "tools": "the model calls no functions"}
KNOWN = (
    *("model", "messages", "stream", "stream_options", "stop", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "seed", "image_repeats"),
)
MOST_REPEATS = 16  # of an image: each costs as much as the image


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen: greedily where `temperature` is 0."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. `messages` are as the processor takes them."""

    messages: list[dict]
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    model: str | None = None
    sources: list[str] = field(default_factory=list)  # addresses of media, as the request has them
    image_repeats: int | None = None  # how often an image is shown; None: as the model does


@dataclass(frozen=True)
class Sources:
    """Which addresses of media are taken, beside `data:`."""

    http: bool = False
    files: bool = False

    def check(self, address: str, where: str) -> None:
        """Raises an ApiError for an address that is not taken."""
        scheme = address.partition(":")[0].lower()
        if scheme == "data":
            return

        taken = (self.http and scheme in ("http", "https")) or (self.files and scheme == "file")
        if not taken:
            others = [", https://" if self.http else "", ", file://" if self.files else ""]
            raise bad_request(
                f"{where}: expected an address that begins with data:{''.join(others)}; this server reads "
                "no other",
                where,
            )
        if len(address) > MAX_ADDRESS:
            raise bad_request(f"{where}: the address has more than {MAX_ADDRESS} characters", where)


# ----------------------------------------------------------------------------------------------- the request


def parse_request(body: bytes, limits: Limits, sources: Sources) -> ChatRequest:
    """Reads the body of a request.

    Raises:
        ApiError: 400, with the field that is wrong.
    """
    given = _json_object(body, limits.elements)
    _check_names(given)
    messages, addresses = _messages(given.get("messages"), sources)

    stream = _flag(given, "stream")
    options = given.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise bad_request("stream_options: expected an object, and stream=true beside it", "stream_options")

    model = given.get("model")
    if model is not None and not isinstance(model, str):
        raise bad_request(f"model={shown(model)}: expected a text", "model")
    repeats = given.get("image_repeats")
    return ChatRequest(
        messages=messages,
        sampling=_sampling(given, limits),
        stream=stream,
        include_usage=_flag(options or {}, "include_usage"),
        model=model,
        sources=addresses,
        image_repeats=None if repeats is None else _whole(given, "image_repeats", 1, MOST_REPEATS),
    )


def _json_object(body: bytes, most: int) -> dict:
    # counted first: millions of small values would take the memory, and stop all other threads meanwhile
    elements = sum(body.count(sign) for sign in (b",", b"[", b"{", b":"))
    if elements > most:
        raise bad_request(f"the request has more than {most} values: it is no dialogue")

    try:
        given = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise bad_request("the request is not JSON") from None
    if not isinstance(given, dict):
        raise bad_request("the request is not a JSON object")
    return given


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_names(given: dict) -> None:
    """Raises an ApiError for a field that is not known, or asks for what the server has not."""
    for name, value in given.items():
        if name in KNOWN or name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            raise bad_request(f"{shown(name)} is not a parameter of this server", name[:64])
        if value not in NEUTRAL[name] or isinstance(value, bool) != isinstance(NEUTRAL[name][0], bool):
            advice = ADVICE.get(name, "leave it out")
            raise bad_request(f"{name}={shown(value)} is not supported: {advice}", name)


def _sampling(given: dict, limits: Limits) -> Sampling:
    # the older name and the newer one mean the same
    names = [name for name in ("max_tokens", "max_completion_tokens") if given.get(name) is not None]
    values = [_whole(given, name, 1, limits.tokens) for name in names]
    if len(set(values)) > 1:
        raise bad_request("max_tokens and max_completion_tokens differ: pass one of them", names[0])

    # sampling only where it is asked for: without a temperature the answer is the likeliest, as of `chat`
    return Sampling(
        max_tokens=values[0] if values else min(limits.default_tokens, limits.tokens),
        temperature=_real(given, "temperature", 0.0, 2.0, default=0.0),
        top_p=_real(given, "top_p", 1e-6, 1.0, default=1.0),
        seed=None if given.get("seed") is None else _whole(given, "seed", -(2**63), 2**63 - 1),
        stop=_stops(given.get("stop")),
    )


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    is_list = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not is_list or not all(isinstance(x, str) and 0 < len(x) <= MAX_STOP_LENGTH for x in stops):
        raise bad_request(
            f"stop={shown(stop)}: expected a text or up to {MAX_STOPS}, of 1 to {MAX_STOP_LENGTH} characters",
            "stop",
        )
    return tuple(stops)


def _flag(given: dict, name: str) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{name}={shown(value)}: expected true or false", name)
    return bool(value)


def _whole(given: dict, name: str, least: int, most: int) -> int:
    value = given[name]
    if type(value) is not int or not least <= value <= most:
        raise bad_request(f"{name}={shown(value)}: expected a whole number from {least} to {most}", name)
    return value


def _real(given: dict, name: str, least: float, most: float, default: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= most:
        raise bad_request(f"{name}={shown(value)}: expected a number from {least:g} to {most:g}", name)
    return float(value)


# ---------------------------------------------------------------------------------------------- its messages


def _messages(given: Any, sources: Sources) -> tuple[list[dict], list[str]]:
    """Messages as the processor takes them, and the addresses of their media."""
    if not isinstance(given, list) or not given:
        raise bad_request("messages: expected a list of messages, at least one", "messages")

    messages = []
    addresses: list[str] = []
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise bad_request(
                f"{where}: expected an object with a role of {', '.join(ROLES)}; tools have none here", where
            )
        if role == "developer":  # OpenAI's newer name
            role = "system"
        if role == "system" and i > 0:
            raise bad_request(f"{where}: a system message stands first", where)

        content = message.get("content")
        blocks = content if isinstance(content, str) else _blocks(content, where, sources, role == "user")
        if not isinstance(blocks, str):
            addresses += [block[block["type"]] for block in blocks if block["type"] != "text"]
        messages.append({"role": role, "content": blocks})

    if messages[-1]["role"] != "user":
        raise bad_request("messages: the last is the user's, which is to be answered", "messages")
    return messages, addresses


def _blocks(content: Any, where: str, sources: Sources, takes_media: bool) -> list[dict]:
    """The parts of a content as blocks of the processor."""
    if not isinstance(content, Sequence) or not content:
        raise bad_request(f"{where}.content: expected a text or a list of parts, at least one", where)

    blocks = []
    for i, part in enumerate(content):
        here = f"{where}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            blocks.append({"type": "text", "text": part["text"]})
        elif kind in MEDIA_PARTS and takes_media:
            blocks.append(_media_block(part, kind, here, sources))
        else:
            kinds = ("text", *MEDIA_PARTS) if takes_media else ("text",)
            raise bad_request(f"{here}: expected a part of type {', '.join(kinds)} with its content", here)
    return blocks


def _media_block(part: dict, kind: str, here: str, sources: Sources) -> dict:
    # no other key of a part is passed on: none can choose a reader or a number of frames
    nested = part.get(kind)
    address = nested.get("url") if isinstance(nested, dict) else None
    if not isinstance(address, str):
        raise bad_request(f'{here}: expected {{"type": "{kind}", "{kind}": {{"url": "..."}}}}', here)

    sources.check(address, f"{here}.{kind}.url")
    name = kind.removesuffix("_url")
    return {"type": name, name: address}


def check_model(asked: str | None, served: str) -> None:
    """Raises an ApiError for another model than the one that is served."""
    if asked is not None and asked != served:
        message = f"model={shown(asked)} is not served here: this server has {served!r} alone"
        raise ApiError(404, message, param="model", code="model_not_found")
