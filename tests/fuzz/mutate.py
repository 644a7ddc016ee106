"""Damages a file: flipped and extreme bytes, cuts, splices, header fields, and values of JSON.

Everything is drawn from the generator that is passed, so an input is made again from its number alone.
"""

import copy
import json
import struct
import zlib

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = 128
INTEGERS = (0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
VALUES = (
    None, True, False, 0, -1, 1, 2, 7, 10**9, 10**30, -(10**400), 0.5, -0.0, 1e-320,
    float("inf"), float("nan"), "", "x", "\x00", "\x1b[31m", "../../x", "/etc/hostname", "http://127.0.0.1:9/x",
    "é" * 300, "\ud800", [], [[]], ["x"], [1, "x", None], {}, {"x": 1}, {"type": "x"},
)  # fmt: skip
DEPTH = 100_000  # of brackets within brackets: deeper than any parser's recursion


def mutate(rng: np.random.Generator, content: bytes, other: bytes, kind: str) -> bytes:
    """A damaged copy of `content`; splices take their other half from `other`."""
    if kind == "json":
        return _mutate_json(rng, content, other)
    if kind == "safetensors":
        return _mutate_safetensors(rng, content, other)

    damaged = _mutate_bytes(rng, content, other)
    if damaged.startswith(PNG_SIGNATURE) and rng.random() < 0.7:
        return with_checksums(damaged)  # else most damage would end at the first one
    return damaged


# -------------------------------------------------------------------------------------------------- bytes


def _mutate_bytes(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        change = CHANGES[rng.integers(len(CHANGES))]
        damaged = change(rng, damaged, other)
    return bytes(damaged)


def _position(rng: np.random.Generator, content: bytearray) -> int:
    """Any position, the first bytes as often as all the others together."""
    end = min(len(content), HEADER_BYTES) if rng.random() < 0.5 else len(content)
    return int(rng.integers(max(end, 1)))


def _flip_bits(rng, content: bytearray, other: bytes) -> bytearray:
    for _ in range(rng.integers(1, 9)):
        if content:
            content[_position(rng, content)] ^= 1 << rng.integers(8)
    return content


def _set_integer(rng, content: bytearray, other: bytes) -> bytearray:
    """Writes an extreme integer of 1, 2, 4 or 8 bytes, in either byte order."""
    size = int(rng.choice((1, 2, 4, 8)))
    value = INTEGERS[rng.integers(len(INTEGERS))] % 256**size
    start = _position(rng, content)
    content[start : start + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")
    return content


def _set_noise(rng, content: bytearray, other: bytes) -> bytearray:
    start, size = _position(rng, content), int(rng.integers(1, 33))
    content[start : start + size] = rng.bytes(size)
    return content


def _cut_end(rng, content: bytearray, other: bytes) -> bytearray:
    return content[: rng.integers(len(content) + 1)]


def _cut_out(rng, content: bytearray, other: bytes) -> bytearray:
    start = _position(rng, content)
    del content[start : start + int(rng.integers(1, 65))]
    return content


def _repeat(rng, content: bytearray, other: bytes) -> bytearray:
    start, size = _position(rng, content), int(rng.integers(1, 257))
    content[start:start] = content[start : start + size] * int(rng.integers(1, 20))
    return content


def _splice(rng, content: bytearray, other: bytes) -> bytearray:
    """A part of another file in the place of a part of this one."""
    start, size = _position(rng, content), int(rng.integers(1, 1025))
    from_start = int(rng.integers(len(other) + 1))
    content[start : start + size] = other[from_start : from_start + size]
    return content


CHANGES = (_flip_bits, _set_integer, _set_integer, _set_noise, _cut_end, _cut_out, _repeat, _splice)


def with_checksums(content: bytes) -> bytes:
    """The PNG with the checksum that each of its chunks should have."""
    fixed, start = bytearray(content), len(PNG_SIGNATURE)

    while start + 12 <= len(fixed):
        (size,) = struct.unpack_from(">I", fixed, start)
        end = start + 8 + size
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[start + 4 : end]))
        start = end + 4
    return bytes(fixed)


# ------------------------------------------------------------------------------------------ JSON, safetensors


def _mutate_json(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    drawn = rng.random()
    if drawn < 0.25:
        return _mutate_bytes(rng, content, other)
    if drawn < 0.28:
        value = VALUES[rng.integers(len(VALUES))]  # no object at all
        return _dumped(value)

    damaged = json.loads(content)
    for _ in range(rng.integers(1, 4)):
        _change_value(rng, damaged)

    if drawn < 0.33:  # nested deeper than a parser goes
        brackets = (b"[" * DEPTH, b'{"a":' * DEPTH)[rng.integers(2)]
        return _dumped(damaged)[:-1] + b', "deep": ' + brackets
    return _dumped(damaged)


def _dumped(value) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _change_value(rng: np.random.Generator, values: dict | list):
    """Replaces or removes one value, at any depth."""
    positions = list(_positions(values))
    if not positions:
        return

    holder, key = positions[rng.integers(len(positions))]
    if rng.random() < 0.15:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])


def _positions(values):
    """(object or list, key) of every value within."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield values, key
        if isinstance(value, (dict, list)):
            yield from _positions(value)


def _mutate_safetensors(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """Half of them in the header's values, with its length as it should be or not."""
    size = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + size], content[8 + size :]
    drawn = rng.random()

    if drawn < 0.2:
        return _mutate_bytes(rng, content, other)
    if drawn < 0.4:
        return content[:8] + _mutate_bytes(rng, header, other) + tensors
    damaged = _mutate_json(rng, header, other)
    length = INTEGERS[rng.integers(len(INTEGERS))] if drawn > 0.95 else len(damaged)
    return length.to_bytes(8, "little") + damaged + tensors
