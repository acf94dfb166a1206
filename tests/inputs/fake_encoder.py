"""A fake encoder with short vectors, which records what it embeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre_lightning.inputs.embedding_cache import Embeddings, Source, content_hash
from genre_lightning.inputs.masked import Masked

WIDTH = 5


def vector(content: bytes, views: int = 1) -> np.ndarray:
    """(V, D) float16 that depend on the content alone."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
    drawn = np.random.default_rng(seed).normal(size=(views, WIDTH))
    return drawn.astype(np.float16)


def plain_loop(contents: Sequence[bytes], views: int = 1) -> np.ndarray:
    """The expected content of a cache of these items, (N, V, D)."""
    rows = [vector(content, views) for content in contents]
    return np.stack(rows) if rows else np.zeros((0, views, WIDTH), dtype=np.float16)


class Counted:
    """A source of byte strings that records which of them were embedded.

    Attributes:
        embedded: contents, in the order in which they were embedded.
        before: called before a few items are embedded.
        unreadable: contents that can't be read, with whether they may recover.
        unhashed: contents that can't be read for hashing but can be read for embedding.
    """

    def __init__(self, contents: Sequence[bytes], views: int = 1) -> None:
        self.contents = list(contents)
        self.views = views
        self.embedded: list[bytes] = []
        self.before: Callable[[], None] = lambda: None
        self.unreadable: dict[bytes, bool] = {}
        self.unhashed: set[bytes] = set()

    def hashes(self, start: int, stop: int) -> list[bytes | None]:
        return [
            None if c in self.unhashed or self.unreadable.get(c) else content_hash(c)
            for c in self.contents[start:stop]
        ]

    def embed(self, items: Sequence[int], report_progress: Callable[[float], object]) -> Embeddings:
        self.before()
        contents = [self.contents[index] for index in items]
        self.embedded += contents
        masked = [
            Masked(position, f"{content.decode()} is broken", self.unreadable[content])
            for position, content in enumerate(contents)
            if content in self.unreadable
        ]
        report_progress(0.5)
        readable = [content for content in contents if content not in self.unreadable]
        return Embeddings(plain_loop(readable, self.views), masked)

    def recovered_reason(self, index: int) -> str | None:
        content = self.contents[index]
        return None if content in self.unreadable else f"{content.decode()} can be read now"

    def source(self) -> Source:
        return Source(
            len(self.contents), self.hashes, self.embed, [self.contents], self.recovered_reason
        )


class FakeText:
    """Stands in for a text encoder."""

    def __init__(self) -> None:
        self.name = "minilm"
        self.sha256 = "0" * 64
        self.width = WIDTH
        self.calls: list[Any] = []

    def embed(
        self,
        texts: Sequence[str],
        prompt_after: str = "",
        report_progress: Callable[[float], object] | None = None,
    ) -> Tensor:
        self.calls += texts
        return torch.from_numpy(plain_loop([t.encode() for t in texts])[:, 0]).float()
