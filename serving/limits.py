"""How much of everything the server takes: sizes, numbers and seconds."""

from dataclasses import dataclass, fields

MEBI = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of requests, of what is held in memory, and of time.

    Args:
        request_bytes: of one request.
        bodies_bytes: of the requests that are being received.
        elements: commas, brackets and braces in a request: what makes JSON large in memory.
        tokens: of an answer, where a request asks for fewer; more are refused.
        default_tokens: of an answer where a request does not say.
        waiting: requests that wait for their turn; one more is refused with 429.
        batch: requests that are answered at once.
        batch_tokens: positions of a batch, prompts and answers.
        readers: threads that read media, each with a process of its own for a file.
        cache_bytes: keys and values of earlier dialogues; 0: none are kept.
        body_s: for receiving a request.
        answer_s: from then to the end of the answer.
        send_s: for a client to take a piece of the answer.
        head_s: for a connection to send the head of a request.
        connections: that are open at once.

    Raises:
        ValueError: a limit that is not a number over 0, with its name.
    """

    request_bytes: int = 64 * MEBI
    bodies_bytes: int = 256 * MEBI
    elements: int = 100_000
    tokens: int = 4096
    default_tokens: int = 1024
    waiting: int = 64
    batch: int = 16
    batch_tokens: int = 32768
    readers: int = 4
    cache_bytes: int = 1024 * MEBI
    body_s: float = 30.0
    answer_s: float = 300.0
    send_s: float = 30.0
    head_s: float = 10.0
    connections: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("cache_bytes", "waiting") else 1e-3
            if not least <= value:
                raise ValueError(f"{field.name}={value}: expected more than 0")

    @property
    def prepared(self) -> int:
        """Requests whose media are in memory, ready or being read."""
        return 2 * self.batch
