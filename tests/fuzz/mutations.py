"""Random damage to bytes, and the number of seeds that a run tests."""

from __future__ import annotations

import os

import numpy as np

#: Multiplies the number of seeds of the short run in the test suite; `make fuzz` sets it.
ROUNDS = int(os.environ.get("GENRE_LIGHTNING_FUZZ", "1"))

#: Bytes that break parsers: signs, ends, separators, formulas, numbers at the limits of a type.
TOKENS = (
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b'"', b"'", b",", b"|",
    b"::", b"\n", b"\r", b"=", b"-1", b"1e999", b"NaN", b"\xc3", b"\xef\xbb\xbf", b"{", b"[", b"]",
    b"null", b"../", b"\\", b"9" * 30, b"\xed\xa0\x80",
)  # fmt: skip


def seeds(short: int) -> range:
    """The seeds of a test: `short` of them in the short run."""
    return range(short * ROUNDS)


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with one to four kinds of damage."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = len(damaged)
        start = int(rng.integers(size + 1))
        length = int(rng.integers(1, 1 + max(1, min(64, size // 8))))
        match int(rng.integers(7)):
            case 0 if size:  # flip a bit
                damaged[start % size] ^= 1 << int(rng.integers(8))
            case 1:  # overwrite with random bytes
                damaged[start : start + length] = rng.bytes(length)
            case 2:  # cut off the end
                del damaged[max(start, size // 4) :]
            case 3:  # delete a piece
                del damaged[start : start + length]
            case 4:  # repeat a piece
                damaged[start:start] = damaged[start : start + length]
            case 5:  # overwrite with a piece from elsewhere
                other = int(rng.integers(size + 1))
                damaged[start : start + length] = damaged[other : other + length]
            case _:
                token = TOKENS[int(rng.integers(len(TOKENS)))]
                damaged[start : start + len(token) * int(rng.integers(2))] = token
    return bytes(damaged)
