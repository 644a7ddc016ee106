"""What every request passes: name of the host, key, errors in OpenAI's shape, and a line of the log.

CORS is off: no answer has its headers, and a request from another site's page needs a preflight, which is
refused. A page whose name was pointed to this machine is refused by the host that it asks for.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from pvc.serving.engine import log_error
from pvc.serving.errors import INTERNAL, ApiError
from pvc.serving.metrics import Metrics

logger = logging.getLogger("pvc.serving")

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/health",)  # which need no key
GONE = 499  # status in the log and metrics of a request whose client has gone
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class ClientGone(Exception):
    """The client has closed its connection."""


class Gate:
    """The outermost ASGI application.

    Args:
        app: what answers; it may raise ApiError and ClientGone.
        api_key: which requests must have; None: none.
        hosts: names by which the server may be asked; None: any.
    """

    def __init__(
        self, app: Any, metrics: Metrics, api_key: str | None = None, hosts: Collection[str] | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._key = None if api_key is None else _digest(api_key.encode())
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return

        begun_s = time.monotonic()
        status, received = 0, 0

        async def counted_receive() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, counted_receive, counted_send)
        except ClientGone:
            status = status or GONE
        except Exception as error:  # any: the server goes on
            known = error if isinstance(error, ApiError) else ApiError(500, INTERNAL)
            if known is not error:
                log_error(error)
            if status == 0:
                await _response(known)(scope, counted_receive, counted_send)

        # nothing else of a request: neither its content nor its path, which the client chooses
        seconds = time.monotonic() - begun_s
        self._metrics.add("requests_total", code=status)
        logger.info("%d, %d bytes, %.3f s", status, received, seconds)

    def _check(self, scope: Any) -> None:
        """Raises an ApiError for a wrong host or key."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and host.rpartition(":")[0] not in self._hosts and host not in self._hosts:
            raise ApiError(400, "the Host header names another machine: --allow-host lets it through")

        if self._key is not None and scope["path"] not in OPEN_PATHS:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            # digests of equal length, compared in constant time
            is_right = hmac.compare_digest(_digest(key.strip()), self._key)
            if kind.lower() != b"bearer" or not is_right:
                raise ApiError(401, "Authorization: expected Bearer and the API key", code="invalid_api_key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _response(error: ApiError) -> JSONResponse:
    headers = dict(HEADERS)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["Retry-After"] = "1"
    return JSONResponse(error.body(), error.status, headers)
