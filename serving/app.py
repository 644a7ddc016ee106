"""The routes of the server, on Starlette.

    POST /v1/chat/completions    GET /v1/models    GET /health    GET /metrics

Starlette, not FastAPI: FastAPI adds models of requests and pages of their schema. Its errors quote the
request in a shape that is not OpenAI's, and would all have to be replaced.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from pvc.serving.engine import Engine, Event, Job, Usage
from pvc.serving.errors import ApiError, bad_request
from pvc.serving.gate import HEADERS, ClientGone
from pvc.serving.limits import Limits
from pvc.serving.metrics import Metrics
from pvc.serving.requests import ChatRequest, Sources, check_model, parse_request

T = TypeVar("T")


class ChatApp:
    """The routes, over an engine.

    Args:
        model_name: as clients name the model.
        sources: which addresses of media are taken.
    """

    def __init__(
        self, engine: Engine, limits: Limits, metrics: Metrics, model_name: str, sources: Sources
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._model_name = model_name
        self._sources = sources
        self._created = int(time.time())

        # of requests: received and not read yet (bytes), admitted, with media in memory
        self._held_bytes = 0
        self._in_place = 0
        self._prepared = asyncio.Semaphore(limits.prepared)

    def router(self) -> Router:
        """The ASGI application; what it raises is for the gate."""
        routes = [
            Route("/v1/chat/completions", self.chat),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        for route in routes:
            route.methods = None  # each checks its own, for an error in OpenAI's shape
        return Router(routes, redirect_slashes=False, default=_not_found)

    # ---- routes

    async def health(self, request: Request) -> Response:
        """Whether the server answers."""
        _check_method(request, "GET")
        if not self._engine.is_alive:
            raise ApiError(503, "the model does not answer any more: restart the server")
        return JSONResponse({"status": "ok"}, headers=HEADERS)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        _check_method(request, "GET")
        text = self._metrics.text(
            requests_in_place=self._in_place,
            requests_waiting=self._engine.num_ready,
            cache_bytes=self._engine.store.num_bytes,
        )
        return PlainTextResponse(text, headers=HEADERS, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model, as a list."""
        _check_method(request, "GET")
        return JSONResponse({"object": "list", "data": [self._model()]}, headers=HEADERS)

    async def model(self, request: Request) -> Response:
        """The one model, by its name."""
        _check_method(request, "GET")
        check_model(request.path_params["name"], self._model_name)
        return JSONResponse(self._model(), headers=HEADERS)

    async def chat(self, request: Request) -> Response:
        """Answers a dialogue, at once or piece by piece."""
        _check_method(request, "POST")
        _check_headers(request, self._limits.request_bytes)
        begun_s = time.monotonic()

        async with AsyncExitStack() as stack:
            job = await self._admit(request, stack)
            ends_s = time.monotonic() + self._limits.answer_s
            first = await self._unless_gone(request, self._first_event(job, stack), ends_s)
            self._metrics.observe("first_token_seconds", time.monotonic() - begun_s)

            frame = Frame(job.request, self._model_name, int(time.time()))
            if job.request.stream:
                chunks = self._chunks(frame, job, first, ends_s, begun_s)
                return EventStream(chunks, stack.pop_all(), self._limits.send_s)

            answer = await self._unless_gone(request, _collect(job, first), ends_s)
            self._metrics.observe("request_seconds", time.monotonic() - begun_s)
            return JSONResponse(frame.completion(*answer), headers=HEADERS)

    def _model(self) -> dict[str, Any]:
        return {"id": self._model_name, "object": "model", "created": self._created, "owned_by": "pvc"}

    # ---- a request on its way

    async def _admit(self, request: Request, stack: AsyncExitStack) -> Job:
        """Receives and checks a request, and gives it a place, which the stack frees."""
        body_stack = await stack.enter_async_context(AsyncExitStack())
        body = await self._body(request, body_stack)

        if self._in_place >= self._limits.waiting + self._limits.batch:
            raise ApiError(429, f"{self._in_place} requests wait already: try again", code="queue_full")
        self._in_place += 1
        stack.callback(self._leave)

        asked = await asyncio.to_thread(parse_request, body, self._limits, self._sources)
        check_model(asked.model, self._model_name)
        job = Job(asked)
        job.body_stack = body_stack
        stack.callback(job.cancel)
        return job

    def _leave(self) -> None:
        self._in_place -= 1

    async def _body(self, request: Request, stack: AsyncExitStack) -> bytes:
        """The body of a request; its bytes count as held until the stack ends."""
        try:
            return await asyncio.wait_for(self._receive(request, stack), self._limits.body_s)
        except (TimeoutError, asyncio.TimeoutError):  # one class from Python 3.11 on
            message = f"the request did not arrive within {self._limits.body_s:g} seconds"
            raise ApiError(408, message) from None
        except ClientDisconnect:
            raise ClientGone from None

    async def _receive(self, request: Request, stack: AsyncExitStack) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            self._held_bytes += len(chunk)
            stack.callback(self._release, len(chunk))
            if len(body) + len(chunk) > self._limits.request_bytes:
                raise _too_large(self._limits.request_bytes)
            if self._held_bytes > self._limits.bodies_bytes:
                raise ApiError(429, "many large requests arrive at once: try again", code="queue_full")
            body += chunk
        return bytes(body)

    def _release(self, number: int) -> None:
        self._held_bytes -= number

    async def _first_event(self, job: Job, stack: AsyncExitStack) -> Event:
        """Reads the media of a job, queues it, and waits for its first piece."""
        await self._prepared.acquire()
        stack.callback(self._prepared.release)
        await self._engine.prepare(job)
        await job.body_stack.aclose()
        return _checked(await job.events.get())

    async def _unless_gone(self, request: Request, work: Awaitable[T], ends_s: float) -> T:
        """The result of the work.

        Raises:
            ClientGone: the client has closed the connection.
            ApiError: 504, where it takes too long.
        """
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(request.receive))
        try:
            await asyncio.wait(
                {working, gone}, timeout=ends_s - time.monotonic(), return_when=asyncio.FIRST_COMPLETED
            )
            if working.done():
                return working.result()
            if gone.done():
                raise ClientGone
            raise _too_slow(self._limits.answer_s)
        finally:
            working.cancel()
            gone.cancel()

    async def _chunks(
        self, frame: "Frame", job: Job, first: Event, ends_s: float, begun_s: float
    ) -> AsyncIterator[dict]:
        """The answer in OpenAI's chunks; an error on the way is the last."""
        event = first
        yield frame.chunk({"role": "assistant", "content": event.piece})
        try:
            while not event.is_last:
                left_s = max(0.0, ends_s - time.monotonic())
                event = _checked(await asyncio.wait_for(job.events.get(), left_s))
                if event.piece:
                    yield frame.chunk({"content": event.piece})
        except (TimeoutError, asyncio.TimeoutError):
            yield _too_slow(self._limits.answer_s).body()
            return
        except ApiError as error:
            yield error.body()
            return

        yield frame.chunk({}, event.finish_reason)
        if job.request.include_usage:
            yield frame.usage_chunk(event.usage)
        self._metrics.observe("request_seconds", time.monotonic() - begun_s)


async def _collect(job: Job, event: Event) -> tuple[str, Event]:
    """The whole answer, and its last event."""
    pieces = [event.piece]
    while not event.is_last:
        event = _checked(await job.events.get())
        pieces.append(event.piece)
    return "".join(pieces), event


def _checked(event: Event) -> Event:
    if event.error is not None:
        raise event.error
    return event


async def _gone(receive: Any) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _not_found(scope: Any, receive: Any, send: Any) -> None:
    raise ApiError(
        404, "this server has no such address: /v1/chat/completions, /v1/models, /health, /metrics"
    )


def _check_method(request: Request, method: str) -> None:
    if request.method != method:
        raise ApiError(405, f"expected {method}")


def _check_headers(request: Request, most: int) -> None:
    """Raises an ApiError for a content that is not JSON as it is, or is too long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise bad_request("Content-Type: expected application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise bad_request("Content-Encoding: expected a request that is not compressed")

    length = request.headers.get("content-length", "0")
    if length.isdigit() and (len(length) > 18 or int(length) > most):
        raise _too_large(most)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request has more than {most} bytes")


def _too_slow(seconds: float) -> ApiError:
    return ApiError(504, f"the answer was not ready within {seconds:g} seconds")


# -------------------------------------------------------------------------------------------------- responses


class Frame:
    """What stands around an answer in OpenAI's objects."""

    def __init__(self, request: ChatRequest, model_name: str, created: int) -> None:
        self._include_usage = request.include_usage
        self._common = {"id": f"chatcmpl-{uuid4().hex}", "created": created, "model": model_name}

    def completion(self, text: str, last: Event) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish_reason}
        return self._common | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(last.usage),
        }

    def chunk(self, delta: dict, finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of an answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return self._common | {"object": "chat.completion.chunk", "choices": [choice]} | usage

    def usage_chunk(self, usage: Usage | None) -> dict[str, Any]:
        """The last chunk, where usage was asked for."""
        return self._common | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(usage)}


def _usage(usage: Usage | None) -> dict[str, Any]:
    assert usage is not None  # the last event has it
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


class EventStream(Response):
    """Server-sent events, until the client goes away.

    Args:
        chunks: JSON objects; an error is the last, without `[DONE]` behind it.
        stack: closed at the end, however it comes.
        send_s: seconds that a client may take for a piece.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[dict], stack: AsyncExitStack, send_s: float) -> None:
        self._chunks = chunks
        self._stack = stack
        self._send_s = send_s
        self.status_code = 200
        self.background = None
        self.init_headers(HEADERS)
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._stack:
            sending = asyncio.ensure_future(self._send_all(send))
            gone = asyncio.ensure_future(_gone(receive))
            try:
                await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    raise ClientGone
                sending.result()
            finally:
                sending.cancel()
                gone.cancel()

    async def _send_all(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        is_whole = True
        async for chunk in self._chunks:
            is_whole = "error" not in chunk
            await self._send_text(send, f"data: {json.dumps(chunk)}\n\n")
        if is_whole:
            await self._send_text(send, "data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_text(self, send: Any, text: str) -> None:
        message = {"type": "http.response.body", "body": text.encode(), "more_body": True}
        try:
            await asyncio.wait_for(send(message), self._send_s)
        except (TimeoutError, asyncio.TimeoutError):
            raise ClientGone from None
