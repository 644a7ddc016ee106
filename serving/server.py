"""Puts the server together: policy, engine, routes, and uvicorn under them."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from pvc.serving.app import ChatApp
from pvc.serving.engine import Engine
from pvc.serving.gate import LOOPBACK, Gate
from pvc.serving.limits import Limits
from pvc.serving.metrics import Metrics
from pvc.serving.prompts import fewest_tokens, with_policy
from pvc.serving.protocol import guarded_protocol
from pvc.serving.requests import Sources

LOOPBACK_ADDRESSES = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, and whom and what it takes.

    Args:
        model_name: as clients name the model.
        media_domains: hosts from which media are fetched; none: media are `data:` addresses alone.
        media_dir: folder whose files may be named by file:// addresses.
        api_key: which requests must have; None: none.
        allowed_hosts: names in the Host header, beside those of this machine; None with an API key, or where
            other machines may connect: any.
        processing: options of the processor, such as `max_tiles` and `num_frames`.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    media_domains: Sequence[str] = ()
    media_dir: Path | None = None
    api_key: str | None = None
    allowed_hosts: Collection[str] = ()
    processing: dict[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK_ADDRESSES

    def host_names(self) -> set[str] | None:
        """Names by which the server may be asked; None: any."""
        if self.api_key is not None or not self.is_local:
            return set(self.allowed_hosts) or None
        return {*LOOPBACK, *self.allowed_hosts}


def restricted(processor: Any, options: ServerOptions, max_positions: int) -> Any:
    """A copy of the processor with the media policy of a server.

    Raises:
        ValueError: the checkpoint's code is older than the policy.
    """
    policy: Any = getattr(processor, "media_policy", None)
    is_known = hasattr(policy, "is_cancelled") and hasattr(processor.image_processor, "token_budget")
    if policy is None or not is_known:
        raise ValueError(
            "the checkpoint's code is older than this server and cannot limit what it reads: convert it "
            "anew, or copy the code files of this package into its folder"
        )

    untrusted = type(policy).untrusted(isolate=True)
    image = processor.image_processor
    fewest = min(fewest_tokens(image, options.processing).values())
    # more tiles than the LLM has positions for would only fill the memory
    most_tiles = max(1, max_positions // fewest)
    changes: dict[str, Any] = {
        "hosts": tuple(options.media_domains) or False,
        "files": options.media_dir or False,
        "max_bytes": min(untrusted.max_bytes, options.limits.request_bytes),
        "max_tiles": min(untrusted.max_tiles, most_tiles),
        "deadline_s": min(untrusted.deadline_s, options.limits.answer_s),
        "isolate": True,
    }
    return with_policy(processor, type(policy).untrusted(**changes))


class Server(uvicorn.Server):
    """uvicorn with a model behind it."""

    def __init__(self, model: Any, processor: Any, options: ServerOptions) -> None:
        limits = options.limits
        processor = restricted(processor, options, model.config.llm_config.max_position_embeddings)
        self.metrics = Metrics()
        self.engine = Engine(model, processor, limits, self.metrics, options.processing)
        sources = Sources(http=bool(options.media_domains), files=options.media_dir is not None)

        app = ChatApp(self.engine, limits, self.metrics, options.model_name, sources)
        gate = Gate(app.router(), self.metrics, options.api_key, options.host_names())
        super().__init__(
            uvicorn.Config(
                gate,
                host=options.host,
                port=options.port,
                http=guarded_protocol(limits),
                ws="none",
                loop="asyncio",
                lifespan="off",
                access_log=False,  # its lines have the addresses that clients ask for
                log_level=logging.CRITICAL,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=5,
            )
        )

    def run(self, sockets: Any = None) -> None:
        """Serves until it is stopped."""
        self.engine.start()
        try:
            super().run(sockets=sockets)
        finally:
            self.engine.stop()
