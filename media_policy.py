"""Where images and videos may come from, and how much of them is read: `MediaPolicy`.

    processor.media_policy = MediaPolicy.untrusted()      # a server with untrusted users

The processor holds the policy; no message, request or checkpoint can change it. `Budget` counts how much of
it the media of one prompt have used. Opening and fetching is left to `media_sources.py`.
"""

import ipaddress
import operator
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

MEBI = 2**20
BACKENDS = ("pyav", "decord", "torchcodec")

# Not of the public internet. Of IPv6, all outside 2000::/3 is refused as well.
PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # 2001::/32 and 2002:: embed IPv4
    )
)
GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")


class MediaRefused(ValueError, OSError):
    """An image or video that the policy does not allow, or that is larger than it allows."""


@dataclass(frozen=True)
class MediaPolicy:
    """Where the media of messages may come from, and how much of them is read.

    Args:
        files: None: any regular file and folder; a folder: those inside it, relative paths counted from it;
            False: none.
        hosts: of http(s) addresses. None: any; names of hosts; a function from the name to whether it may be
            asked; False: none. Each redirect is checked.
        public_only: only public addresses are connected to: a name is resolved once, and the connection is
            made to the address that was checked. Proxies of the environment are then not used.
        max_bytes: of a file that is fetched, or given as base64 or bytes, once it is decoded.
        max_pixels: of an image, and of a frame.
        max_frames: of a video.
        max_tiles: of all media of one prompt, thumbnails counted.
        max_duration_s: of a video; None: any.
        deadline_s: seconds that reading all media of one prompt may take; None: any.
        backends: readers of videos that a call may name. A message never names one.
        isolate: whether files are decoded in a process of their own, with limits of memory and CPU time: a
            decoder that crashes is then an error of one prompt.
        is_cancelled: asked while media are read, by several threads; where it says yes, reading ends, and a
            process that decodes is killed. None: it is never cancelled.

    Raises:
        ValueError: a field of a wrong type or out of range, with its name.
    """

    files: str | os.PathLike | Literal[False] | None = None
    hosts: Collection[str] | Callable[[str], bool] | Literal[False] | None = None
    public_only: bool = False
    max_bytes: int = 256 * MEBI
    max_pixels: int = 64 * MEBI
    max_frames: int = 1024
    max_tiles: int = 4096
    max_duration_s: float | None = None
    deadline_s: float | None = 300.0
    backends: tuple[str, ...] = BACKENDS
    isolate: bool = False
    is_cancelled: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_frames", "max_tiles"):
            number = check_whole(name, getattr(self, name))
            object.__setattr__(self, name, number)  # the class is frozen
        for name in ("max_duration_s", "deadline_s"):
            check_real(name, getattr(self, name), most=float("inf"))

        if self.files is True or not isinstance(self.files, (str, os.PathLike, bool, type(None))):
            raise ValueError(f"files={self.files!r}: expected None (any file), a folder, or False (none)")

        if isinstance(self.hosts, str):
            raise ValueError(
                f"hosts={self.hosts!r}: expected a collection of names, such as [{self.hosts!r}]"
            )
        is_taken = self.hosts in (None, False) or callable(self.hosts) or _is_names(self.hosts)
        if self.hosts is True or not is_taken:
            raise ValueError(f"hosts={self.hosts!r}: expected None (any), names, a function, or False (none)")

        if self.is_cancelled is not None and not callable(self.is_cancelled):
            raise ValueError(f"is_cancelled={self.is_cancelled!r}: expected None or a function")

        if not self.backends or not set(self.backends) <= set(BACKENDS):
            raise ValueError(f"backends={self.backends!r}: expected some of {', '.join(BACKENDS)}")

    @classmethod
    def untrusted(cls, **changes) -> "MediaPolicy":
        """The policy of a server with untrusted users: base64 and public addresses, no files.

        Args:
            changes: other values of fields, for example `hosts=("images.example.org",)`.
        """
        policy = cls(
            files=False,
            public_only=True,
            max_bytes=64 * MEBI,
            max_pixels=32 * MEBI,
            max_frames=128,
            max_tiles=512,
            max_duration_s=3600.0,
            deadline_s=30.0,
            backends=("pyav",),
        )
        return replace(policy, **changes)

    def allows_host(self, host: str) -> bool:
        """Whether a host may be asked; `host`: as `ascii_host` writes it."""
        if callable(self.hosts):
            return bool(self.hosts(host))
        if self.hosts is None or isinstance(self.hosts, bool):
            return self.hosts is None
        return host in map(ascii_host, self.hosts)

    def allows_address(self, address: str) -> bool:
        """Whether a connection to the IP address may be made."""
        return not self.public_only or is_public(address)


def ascii_host(name: str) -> str:
    """The name of a host in ASCII and lower case, without a dot at its end.

    Raises:
        ValueError: the name cannot be written so.
    """
    name = name.rstrip(".")
    return name.lower() if ":" in name else name.encode("idna").decode().lower()


def _is_names(hosts: Any) -> bool:
    return isinstance(hosts, Collection) and all(isinstance(host, str) for host in hosts)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet; addresses that embed IPv4 are not."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and ip not in GLOBAL_IPV6:
        return False
    return not any(ip.version == network.version and ip in network for network in PRIVATE_NETWORKS)


def check_whole(name: str, value: Any, least: int | None = 1) -> int:
    """The value as an int; raises a ValueError unless it is a whole number of at least `least`, if any."""
    try:
        # True is an int in Python, but no number of frames
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={shown(value)}: expected a whole number") from None

    if least is not None and value < least:
        unit = " frame" if name in ("num_frames", "max_frames") else ""
        raise ValueError(f"{name}={value}: expected at least {least}{unit}")
    return value


def check_real(name: str, value: Any, most: float) -> None:
    """Raises a ValueError unless the value is None or a number over 0 and at most `most`."""
    if value is None:
        return
    check_number(name, value)
    if not 0 < value <= most:
        raise ValueError(f"{name}={shown(value)}: expected more than 0 and at most {most:g}")


def check_number(name: str, value: Any) -> int | float:
    """The value as Python's own number; raises a ValueError unless it is one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value

    try:
        if isinstance(value, (bool, str, bytes, bytearray)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several elements
        raise ValueError(f"{name}={shown(value)}: expected a number") from None


def shown(value: Any, most: int = 200) -> str:
    """A value for an error, cut to `most` characters: a base64 text has megabytes."""
    text = repr(value[: most + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= most else f"{text[:most]}..."


class Budget:
    """What is left of a policy for the media of one prompt."""

    def __init__(self, policy: MediaPolicy) -> None:
        self.policy = policy
        self._ends_s = None if policy.deadline_s is None else time.monotonic() + policy.deadline_s
        self._tiles = policy.max_tiles  # that are left

    def remaining_s(self) -> float:
        """Seconds that are left; infinite without a deadline.

        Raises:
            MediaRefused: none are left, or the reading was cancelled.
        """
        if self.policy.is_cancelled is not None and self.policy.is_cancelled():
            raise MediaRefused("the reading of the media of this prompt was cancelled")
        if self._ends_s is None:
            return float("inf")

        remaining_s = self._ends_s - time.monotonic()
        if remaining_s <= 0:
            raise MediaRefused(
                f"reading the media of this prompt took more than {self.policy.deadline_s:g} seconds "
                "(deadline_s of the media policy)"
            )
        return remaining_s

    def use_tiles(self, number: int) -> None:
        """Counts tiles. Raises MediaRefused where more are used than the policy allows."""
        self._tiles -= number
        if self._tiles < 0:
            raise MediaRefused(
                f"the media of this prompt have more than {self.policy.max_tiles} tiles (max_tiles of the "
                "media policy): use fewer, or fewer tiles or frames of each"
            )


def check_pixels(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raises MediaRefused where an image or frame has more pixels than allowed."""
    if width * height > max_pixels:
        raise MediaRefused(
            f"{name} cannot be read: {width}x{height} ({width * height} pixels) exceeds limit of "
            f"{max_pixels} pixels (max_pixels of the media policy)"
        )


def check_size(number: int, max_bytes: int | None, name: str) -> None:
    """Raises MediaRefused where a file has more bytes than allowed; `max_bytes` None: any number."""
    if max_bytes is not None and number > max_bytes:
        raise MediaRefused(f"{name} has more than {max_bytes} bytes (max_bytes of the media policy)")
