"""Opens sources of images and videos: each becomes an open file, or bytes, before it is decoded.

A text is a path, an http(s):// or file:// address, a data: address or base64. A path leads to a regular file
or a folder, never to a FIFO or device. Decoders get file objects: they open nothing by name, and no address.

    text, dict, bytes --opened--> file object, or a folder's path --> preprocess.py, video_readers.py

Fetching addresses is left to `media_fetch.py`.
"""

import base64
import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

try:
    from .media_fetch import NamedBytes, fetch
    from .media_policy import Budget, MediaPolicy, MediaRefused, check_size, shown
except ImportError:  # in a clone, where this folder is not a package
    from media_fetch import NamedBytes, fetch
    from media_policy import Budget, MediaPolicy, MediaRefused, check_size, shown

WHITE_SPACE = b" \t\n\r\v\f"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # of two characters or more: C: is a drive


# ----------------------------------------------------------------------------------------------------- files


class Nameless:
    """A file without its name, for decoders: some would open other files beside the name."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def file_name(file: Any) -> str:
    """The name of a path or file object, for errors."""
    if isinstance(file, (str, os.PathLike)):
        return os.fspath(file)
    return str(getattr(file, "name", f"a {type(file).__name__}"))


@contextmanager
def open_file(file: str | os.PathLike | BinaryIO, max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Yields a file object at its start: that of a path, which is closed again, or the caller's.

    A stream that cannot seek is read whole.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: the path cannot be opened.
        MediaRefused: the path is not a regular file but a FIFO or device, or it is an address.
    """
    if isinstance(file, (str, os.PathLike)):
        with open_regular(local_path(file)) as opened:
            yield opened
        return

    yield seekable(file, max_bytes)


def seekable(file: BinaryIO, max_bytes: int | None = None) -> BinaryIO:
    """The file object at its start; a stream that cannot seek is read into memory."""
    try:
        file.seek(0)
        return file
    except (AttributeError, OSError):
        content = file.read() if max_bytes is None else file.read(max_bytes + 1)
        check_size(len(content), max_bytes, file_name(file))
        return NamedBytes(content, file_name(file))


def open_regular(path: str, name: str | None = None) -> BinaryIO:
    """Opens a regular file; refuses any other without waiting for it. `name`: for errors."""
    name = path if name is None else name
    _check_kind(os.stat(path).st_mode, name)

    flags = os.O_RDONLY
    for flag in ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):  # not on every system
        flags |= getattr(os, flag, 0)
    file = os.fdopen(os.open(path, flags), "rb", buffering=0)

    # again: it may have been exchanged in between
    try:
        _check_kind(os.fstat(file.fileno()).st_mode, name)
    except OSError:
        file.close()
        raise
    return _NamedFile(file, name)


class _NamedFile(io.BufferedReader):
    """An open file with the name of its path, in place of its descriptor's."""

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        super().__init__(raw)
        self._name = name

    @property
    def name(self) -> str:
        return self._name


def _check_kind(mode: int, name: str) -> None:
    """Raises an error for what is not a regular file; `mode`: as of `os.stat`."""
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)

    # reading one of these could block, or never end
    kind = "a device"
    if stat.S_ISFIFO(mode):
        kind = "a FIFO"
    elif stat.S_ISSOCK(mode):
        kind = "a socket"
    raise MediaRefused(f"{name} is {kind}: expected a regular file")


def local_path(text: str | os.PathLike) -> str:
    """The path of a text or path object; file:// is taken, any other address refused with its name."""
    path = os.fsdecode(text)
    if "\0" in path:
        raise MediaRefused(f"{shown(path)} has a NUL character: expected a path")
    if not isinstance(text, str) or os.path.exists(path):
        return path

    scheme = SCHEME.match(path)
    if scheme and scheme[1].lower() == "file":
        return _path_of_address(path)
    if scheme:
        raise _refused_scheme(path, scheme[1])
    return path


def _refused_scheme(text: str, scheme: str) -> MediaRefused:
    return MediaRefused(
        f"{shown(text)}: the scheme {scheme!r} is not read here: expected a path, or, for the processor, an "
        "http(s) address or base64"
    )


def _path_of_address(address: str) -> str:
    """The path of a file:// address."""
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise MediaRefused(f"{shown(address)}: expected a file of this machine, file:///path")

    if os.name == "nt":
        path = url2pathname(parts.path)
    else:
        path = unquote(address[len("file:") :])
        if path.startswith("//"):  # without the host
            path = "/" + path[2:].partition("/")[2]

    if "\0" in path:
        raise MediaRefused(f"{shown(address)} has a NUL character: expected a path")
    return path


# ------------------------------------------------------------------------------------ sources under a policy


@contextmanager
def opened(source: Any, budget: Budget, *, kind: str) -> Iterator:
    """Yields a file object, a Folder, or unchanged a source that is neither text nor file.

    Args:
        source: path, address, data: address or base64 as text; a dict of bytes and path, as of a data set
            that is not decoded; a file object; anything else.
        kind: "image" or "video", for errors.

    Raises:
        OSError: there is nothing to read: FileNotFoundError and the like.
        MediaRefused: what the policy does not allow, a ValueError and an OSError.
    """
    policy = budget.policy
    if isinstance(source, dict):
        source = _of_dict(source, policy, kind)

    # text is an address, data or base64, and its content then in memory; or it is a path
    content = _of_text(source, budget, kind) if isinstance(source, str) else None
    if content is not None:
        yield content
    elif isinstance(source, (str, os.PathLike)):
        path = allowed_path(source, policy)
        with _opened_path(path, os.fsdecode(source), may_be_folder=kind == "video") as found:
            yield found
    elif hasattr(source, "read"):
        with open_file(source, policy.max_bytes) as found:
            yield found
    else:
        yield source


def _of_dict(source: dict, policy: MediaPolicy, kind: str) -> NamedBytes | str:
    """The file in a dict of "bytes" and "path", of which one may be None, as data sets have it."""
    content = source.get("bytes")
    path: Any = source.get("path")
    if content is not None and not isinstance(content, (bytes, bytearray, memoryview)):
        raise ValueError(f"'bytes' of a dict of {kind} is {type(content).__name__}: expected bytes or None")

    # any other dict is a mistake, such as a whole message block
    has_known_keys = "bytes" in source and source.keys() <= {"bytes", "path"}
    if not has_known_keys or not (content or path):
        keys = sorted(map(str, source))
        noun = "an image" if kind == "image" else "a video"
        raise ValueError(
            f"{noun} is dict with keys {keys}: expected 'bytes' and 'path', or the {kind} itself"
        )

    if content is None:
        return path
    check_size(len(content), policy.max_bytes, kind)
    return NamedBytes(bytes(content), str(path or f"{len(content)} bytes"))


def _of_text(text: str, budget: Budget, kind: str) -> NamedBytes | None:
    """The content of an address, data: address or base64 text; None: the text is a path."""
    files = budget.policy.files
    found = SCHEME.match(text)
    scheme = found[1].lower() if found else None
    if scheme in ("http", "https"):
        return fetch(text, budget)
    if scheme == "data":
        return _from_base64(text, budget.policy, kind)

    is_path = scheme == "file" or (files is None and "\0" not in text and os.path.exists(text))
    if is_path:
        return None
    if scheme is not None:
        raise _refused_scheme(text, scheme)

    # an image that names no file may be base64, however short; other texts of that length are names
    may_be_short = kind == "image" and files in (None, False)
    if may_be_short or _looks_like_base64(text):
        return _from_base64(text, budget.policy, kind)
    return None


def _looks_like_base64(text: str) -> bool:
    """Whether a text that names no file is long enough to be a file itself."""
    # a single class of characters: what could end in several ways would be tried in all of them
    return len(text) > 255 and re.fullmatch(r"[A-Za-z0-9+/\s]+", text.rstrip().rstrip("=")) is not None


def _from_base64(text: str, policy: MediaPolicy, kind: str) -> NamedBytes:
    """The content of base64, in lines or not, with or without `data:...,` in front."""
    content = text.partition(",")[2] if text[:5].lower() == "data:" else text
    check_size(len(content) * 3 // 4 - 2, policy.max_bytes, f"{kind} of base64")  # before it is decoded

    try:
        # not by `split`: a space after each letter would be as many texts
        letters = content.encode("ascii").translate(None, WHITE_SPACE)
        return NamedBytes(base64.b64decode(letters, validate=True), shown(text))
    except ValueError as error:
        noun = "an image" if kind == "image" else "a video"
        if policy.files is False:
            expected = f"an http(s) address or base64 text of {noun}: the media policy allows no files"
            raise MediaRefused(f"{noun} is {shown(text)}: expected {expected}") from error
        message = f"{noun} is {shown(text)}: no file, http(s) address or base64 text of {noun}"
        raise FileNotFoundError(message) from error


class Folder(NamedTuple):
    """A folder of frames."""

    path: str
    name: str  # as the source has it

    def source_of(self, file: str) -> str:
        """A file in it as a source, which errors name as the folder was named."""
        is_address = self.name[:5].lower() == "file:"
        return os.path.join(self.name, quote(file) if is_address else file)


def allowed_path(source: str | os.PathLike, policy: MediaPolicy) -> str:
    """The path of a source that the policy allows; errors do not tell whether another path exists."""
    name = shown(os.fspath(source))
    if policy.files is False:
        raise MediaRefused(f"{name}: the media policy allows no files: expected base64 or an http(s) address")
    if policy.files is None:
        return local_path(source)

    folder = os.path.realpath(policy.files)
    path = os.fsdecode(source)
    if path[:5].lower() == "file:":
        path = _path_of_address(path)
    has_nul = "\0" in path  # which no path of the system has
    path = path if has_nul else os.path.realpath(os.path.join(folder, path))

    is_inside = path == folder or path.startswith(os.path.join(folder, ""))
    if has_nul or not is_inside:
        raise MediaRefused(f"{name} is not in the folder that the media policy allows")
    return path


@contextmanager
def _opened_path(path: str, name: str, may_be_folder: bool) -> Iterator:
    """Yields the Folder, or the open file. Errors name it as the source does, not by the whole path."""
    try:
        is_folder = may_be_folder and os.path.isdir(path)
        found: Any = Folder(path, name) if is_folder else open_regular(path, name)
    except OSError as error:
        if isinstance(error, MediaRefused) or error.errno is None:
            raise
        raise type(error)(error.errno, os.strerror(error.errno), name) from None

    try:
        yield found
    finally:
        if not isinstance(found, Folder):
            found.close()
