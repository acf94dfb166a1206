"""Damage to bytes, drawn by a seed, and how many seeds a run has."""

from __future__ import annotations

import os

import numpy as np

#: `make fuzz` sets it: so many times the seeds of the short run that is part of the tests.
ROUNDS = int(os.environ.get("GENRE_LIGHTNING_FUZZ", "1"))

#: What parsers stumble over: signs, ends, separators, formulas, numbers at the limits of a type.
TOKENS = (
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b'"', b"'", b",", b"|",
    b"::", b"\n", b"\r", b"=", b"-1", b"1e999", b"NaN", b"\xc3", b"\xef\xbb\xbf", b"{", b"[", b"]",
    b"null", b"../", b"\\", b"9" * 30, b"\xed\xa0\x80",
)  # fmt: skip


def seeds(short: int) -> range:
    """The seeds of a test, of which the short run takes so many."""
    return range(short * ROUNDS)


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with one to four kinds of damage."""
    rng = np.random.default_rng(seed)
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = len(found)
        start = int(rng.integers(size + 1))
        length = int(rng.integers(1, 1 + max(1, min(64, size // 8))))
        match int(rng.integers(7)):
            case 0 if size:  # a bit
                found[start % size] ^= 1 << int(rng.integers(8))
            case 1:  # other bytes
                found[start : start + length] = rng.bytes(length)
            case 2:  # cut off
                del found[max(start, size // 4) :]
            case 3:  # a piece that is missing
                del found[start : start + length]
            case 4:  # a piece that comes twice
                found[start:start] = found[start : start + length]
            case 5:  # a piece from elsewhere
                other = int(rng.integers(size + 1))
                found[start : start + length] = found[other : other + length]
            case _:
                token = TOKENS[int(rng.integers(len(TOKENS)))]
                found[start : start + len(token) * int(rng.integers(2))] = token
    return bytes(found)
