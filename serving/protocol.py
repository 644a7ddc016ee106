"""HTTP connections that cost nothing while they send nothing.

uvicorn's protocol waits without limit for the head of a request. Here a connection is closed where the head
has not come in time, and where too many are open.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pvc.serving.limits import Limits

LINGER_S = 3.0


def guarded_protocol(limits: Limits) -> type[H11Protocol]:
    """A protocol class for `uvicorn.Config(http=...)`."""

    class GuardedProtocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_answering():
                self._stop_waiting()
            elif self._head_timer is None:
                self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # between requests uvicorn's own timer runs, until the first byte of the next
            self._stop_waiting()
            if self.conn.their_state is h11.SEND_BODY:
                # it was answered before its end: the client may read the answer, then the rest is not taken
                self.loop.call_later(LINGER_S, self.transport.abort)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(limits.head_s, self._give_up)

        def _stop_waiting(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if not self._is_answering() and not self.transport.is_closing():
                self.transport.abort()

    return GuardedProtocol
