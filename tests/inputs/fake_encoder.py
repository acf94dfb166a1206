"""Fake encoders of short vectors, which record what they embed."""

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
    """Return random (views, D) float16 vectors that depend on the content alone."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
    vectors = np.random.default_rng(seed).normal(size=(views, WIDTH))
    return vectors.astype(np.float16)


def expected_vectors(contents: Sequence[bytes], views: int = 1) -> np.ndarray:
    """Return the (N, views, D) vectors that a cache of these contents should hold."""
    rows = [vector(content, views) for content in contents]
    return np.stack(rows) if rows else np.zeros((0, views, WIDTH), dtype=np.float16)


class FakeItems:
    """Byte strings with fake vectors; records which of them were embedded.

    Attributes:
        embedded: the embedded contents, in order.
        before_embed: called before each chunk of items is embedded.
        unreadable: maps contents that can't be read to whether they may recover.
        unhashed: contents that can't be read for hashing but can be read for embedding.
    """

    def __init__(self, contents: Sequence[bytes], views: int = 1) -> None:
        self.contents = list(contents)
        self.views = views
        self.embedded: list[bytes] = []
        self.before_embed: Callable[[], None] = lambda: None
        self.unreadable: dict[bytes, bool] = {}
        self.unhashed: set[bytes] = set()

    def hashes(self, start: int, stop: int) -> list[bytes | None]:
        return [
            None if c in self.unhashed or self.unreadable.get(c) else content_hash(c)
            for c in self.contents[start:stop]
        ]

    def embed(self, items: Sequence[int], report_progress: Callable[[float], object]) -> Embeddings:
        self.before_embed()
        contents = [self.contents[index] for index in items]
        self.embedded += contents
        masked = [
            Masked(position, f"{content.decode()} is broken", self.unreadable[content])
            for position, content in enumerate(contents)
            if content in self.unreadable
        ]
        report_progress(0.5)
        readable = [content for content in contents if content not in self.unreadable]
        return Embeddings(expected_vectors(readable, self.views), masked)

    def recovered_reason(self, index: int) -> str | None:
        content = self.contents[index]
        return None if content in self.unreadable else f"{content.decode()} can be read now"

    def source(self) -> Source:
        return Source(
            len(self.contents), self.hashes, self.embed, [self.contents], self.recovered_reason
        )


class FakeTextEncoder:
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
        return torch.from_numpy(expected_vectors([t.encode() for t in texts])[:, 0]).float()
