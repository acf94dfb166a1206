"""Embeddings of a dataset, computed once and looked up by content.

A cache folder holds one encoder's embeddings of one dataset's posters or texts; it is complete or
absent. A new folder copies embeddings from earlier folders of the same encoder, so adding movies to
a dataset does not recompute the others. A build saves its embeddings in parts as it goes, so the
next process can continue after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from genre_lightning.inputs.input import Store
from genre_lightning.inputs.masked import (
    Masked,
    Unreadable,
    first_recovered_reason,
    masked_from_json,
)
from genre_lightning.inputs.poster_limits import MAX_FILE_BYTES
from genre_lightning.movies.movie import PosterFile
from genre_lightning.progress import progress
from genre_lightning.store import content_key, find_changed_file, remove_stored, stored_folder

_VECTORS, _HASHES, _META = "vectors.f16", "hashes.b16", "meta.json"
_HASH_BYTES = 16
#: Stands for the hash of an item without one; no content hashes to it.
_NO_HASH = bytes(_HASH_BYTES)
#: Errors that reading a damaged folder can raise.
_DAMAGE_ERRORS = (OSError, ValueError, TypeError, LookupError)
#: Items that are embedded and saved together, unless their source sets another number: the most
#: that a kill can lose.
DEFAULT_CHUNK_SIZE = 256


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of some or all items.

    Attributes:
        vectors: (n, V, D) float16 of the readable items, in order; V views of each.
        masked: the unreadable items, by their position among the items.
    """

    vectors: np.ndarray
    masked: Sequence[Masked]


@dataclass(frozen=True)
class Source:
    """The M items of a dataset.

    Attributes:
        count: M.
        hashes: returns the content hashes of items start to stop; None for an unreadable item.
        embed: computes the embeddings of the items at these positions, and reports progress as a
            share of them.
        quick_key: identifies all content without reading it: equal keys mean equal content.
        recovered_reason: returns why a folder that masks this item is out of date, or None; called
            only for items that may recover.
        chunk_size: number of items that are embedded and saved together; None for
            ``DEFAULT_CHUNK_SIZE``.
    """

    count: int
    hashes: Callable[[int, int], list[bytes | None]]
    embed: Callable[[Sequence[int], Callable[[float], object]], Embeddings]
    quick_key: Sequence[Any]
    recovered_reason: Callable[[int], str | None] = lambda index: None
    chunk_size: int | None = None


def content_hash(content: bytes) -> bytes:
    """Return the hash by which an item is looked up."""
    return blake2b(content, digest_size=_HASH_BYTES).digest()


def file_hash(file: PosterFile) -> bytes | None:
    """Return a poster file's hash; None if it can't be read, which decoding then reports."""
    if not file.exists or file.size > MAX_FILE_BYTES:
        return None
    try:
        return content_hash(file.read_bytes())
    except OSError:
        return None


def open_embeddings(
    source: Source, encoder_key: str, shape: tuple[int, int], description: str, store: Store
) -> Embeddings:
    """Return the embeddings of all items, computing those that no earlier run has computed.

    Args:
        source: the items.
        encoder_key: identifies the encoder, its weights and the preprocessing of items.
        shape: (V, D).
        description: describes the work, for the progress display.
        store: where caches are kept.

    Returns:
        Embeddings with memory-mapped vectors.

    Raises:
        CacheError: the cache can't be written.
    """
    name = f"embeddings_{encoder_key[:16]}"
    parts = f"{name}_part"

    def build(folder: Path) -> None:
        known = _KnownEmbeddings(store.folder, (name, parts), shape)
        hashes: list[bytes] = []
        masked: list[Masked] = []
        with (
            (folder / _VECTORS).open("wb") as file,
            progress(description, source.count, store.progress) as update,
        ):
            chunk_size = source.chunk_size or DEFAULT_CHUNK_SIZE
            for start in range(0, source.count, chunk_size):
                stop = min(start + chunk_size, source.count)

                def report_progress(
                    share: float, start: int = start, size: int = stop - start
                ) -> None:
                    update(start + share * size)

                chunk = _embed_chunk(source, start, stop, known, report_progress)
                if chunk.computed and stop - start < source.count:
                    part = _save_part(store.folder, parts, chunk.computed)
                    known.add(part)
                if chunk.vectors:
                    file.write(np.stack(chunk.vectors).astype(np.float16).tobytes())
                hashes += chunk.hashes
                masked += chunk.masked
                update(stop)
        _write_index(folder, hashes, shape, masked)

    key = content_key(encoder_key, *source.quick_key)
    folder = stored_folder(
        store.folder, name, key, build, lambda folder: _unusable_reason(folder, shape, source)
    )
    _remove_parts(store.folder.expanduser(), parts, folder)
    meta = _read_meta(folder)
    vectors = _map_vectors(folder, meta["count"], shape)
    return Embeddings(vectors, meta["masked"])


@dataclass(frozen=True)
class _Chunk:
    """The embeddings of some items of a source.

    Attributes:
        vectors: (V, D) float16 of each readable item, in order.
        hashes: content hashes of the same items; ``_NO_HASH`` for an item without one.
        masked: the unreadable items.
        computed: the vectors that were computed now and not looked up, by content hash.
    """

    vectors: list[np.ndarray]
    hashes: list[bytes]
    masked: list[Masked]
    computed: dict[bytes, np.ndarray]


def _embed_chunk(
    source: Source,
    start: int,
    stop: int,
    known: _KnownEmbeddings,
    report_progress: Callable[[float], object],
) -> _Chunk:
    """Return the embeddings of items start to stop, computing each unknown content once."""
    digests = dict(enumerate(source.hashes(start, stop), start))
    # The first item of each content to compute; an item without a hash counts as unique content.
    first_index: dict[bytes | int, int] = {}
    for index, digest in digests.items():
        if digest is None or digest not in known:
            first_index.setdefault(digest or index, index)
    unique = list(first_index.values())
    computed = source.embed(unique, report_progress) if unique else Embeddings(np.zeros(0), [])
    results: dict[int, np.ndarray | Unreadable] = {
        unique[item.position]: Unreadable(item.reason, item.may_recover) for item in computed.masked
    }
    readable = [index for index in unique if index not in results]
    results |= zip(readable, computed.vectors, strict=True)
    chunk = _Chunk([], [], [], {})
    for index, digest in digests.items():
        if digest is not None and digest in known:
            result: np.ndarray | Unreadable = known[digest]
        else:
            result = results[first_index[digest or index]]
        if isinstance(result, Unreadable):
            chunk.masked.append(Masked(index, *result))
            continue
        chunk.vectors.append(result)
        # An item that became readable only after hashing has no hash.
        chunk.hashes.append(digest or _NO_HASH)
        if digest in first_index:
            chunk.computed[digest] = result
    return chunk


class _KnownEmbeddings:
    """Embeddings in earlier folders of the same encoder, by content hash."""

    def __init__(self, cache_dir: Path, names: Sequence[str], shape: tuple[int, int]) -> None:
        self._location: dict[bytes, tuple[np.ndarray, int]] = {}
        self._shape = shape
        for name in names:
            for folder in sorted(cache_dir.expanduser().glob(f"{name}-*")):
                self.add(folder)

    def add(self, folder: Path) -> None:
        """Add a folder's embeddings."""
        for digest, location in _read_embeddings(folder, self._shape):
            self._location.setdefault(digest, location)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._location

    def __getitem__(self, digest: bytes) -> np.ndarray:
        vectors, row = self._location[digest]
        embedding: np.ndarray = vectors[row]
        return embedding


def _read_embeddings(
    folder: Path, shape: tuple[int, int]
) -> Iterator[tuple[bytes, tuple[np.ndarray, int]]]:
    """Yield a folder's embeddings by hash; none if it is damaged or has just been removed."""
    try:
        count = _read_checked_meta(folder, shape)["count"]
        if find_changed_file(folder):
            return
        digests = _read_hashes(folder)
        vectors = _map_vectors(folder, count, shape)
    except _DAMAGE_ERRORS:
        return
    if len(digests) == count:
        for row, digest in enumerate(digests):
            if digest != _NO_HASH:
                yield digest, (vectors, row)


def _read_hashes(folder: Path) -> list[bytes]:
    data = (folder / _HASHES).read_bytes()
    return [data[start : start + _HASH_BYTES] for start in range(0, len(data), _HASH_BYTES)]


def _save_part(cache_dir: Path, name: str, embeddings: Mapping[bytes, np.ndarray]) -> Path:
    """Save a few embeddings for a later build.

    Args:
        cache_dir: where caches are kept.
        name: prefix of the folder's name.
        embeddings: at least one, (V, D) float16 by content hash.
    """
    digests, vectors = list(embeddings), np.stack(list(embeddings.values()))
    shape = (int(vectors.shape[1]), int(vectors.shape[2]))

    def build(folder: Path) -> None:
        (folder / _VECTORS).write_bytes(vectors.astype(np.float16).tobytes())
        _write_index(folder, digests, shape, [])

    return stored_folder(
        cache_dir, name, content_key(digests), build, lambda folder: _unusable_reason(folder, shape)
    )


def _remove_parts(cache_dir: Path, name: str, folder: Path) -> None:
    """Remove the parts whose embeddings are all in a folder; other datasets may need the rest."""
    part_folders = list(cache_dir.glob(f"{name}-*"))
    if not part_folders:
        return
    try:
        digests = set(_read_hashes(folder))
    except _DAMAGE_ERRORS:
        return
    for part in part_folders:
        try:
            if not digests.issuperset(_read_hashes(part)):
                continue
        except _DAMAGE_ERRORS:
            pass  # a damaged part is useless, so it is removed
        remove_stored(part)


def _map_vectors(folder: Path, count: int, shape: tuple[int, int]) -> np.ndarray:
    if not count:  # an empty file can't be mapped
        return np.zeros((0, *shape), dtype=np.float16)
    return np.memmap(folder / _VECTORS, dtype=np.float16, mode="r", shape=(count, *shape))


def _write_index(
    folder: Path, hashes: Sequence[bytes], shape: tuple[int, int], masked: Sequence[Masked]
) -> None:
    """Write the hashes and metadata of a folder's vectors."""
    (folder / _HASHES).write_bytes(b"".join(hashes))
    meta = {"count": len(hashes), "shape": list(shape), "masked": masked}
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    return {
        "count": int(meta["count"]),
        "shape": tuple(meta["shape"]),
        "masked": masked_from_json(meta["masked"]),
    }


def _read_checked_meta(folder: Path, shape: tuple[int, int]) -> dict[str, Any]:
    """Return a folder's metadata; raise one of ``_DAMAGE_ERRORS`` if its vectors don't match."""
    meta = _read_meta(folder)
    size = (folder / _VECTORS).stat().st_size
    expected_size = meta["count"] * shape[0] * shape[1] * 2
    if meta["shape"] != shape or size != expected_size:
        raise ValueError(f"{_VECTORS} has {size:,} bytes, not {expected_size:,}")
    return meta


def _unusable_reason(
    folder: Path, shape: tuple[int, int], source: Source | None = None
) -> str | None:
    """Return why a folder can't be used (for the items of a source, if given), or None."""
    try:
        meta = _read_checked_meta(folder, shape)
    except _DAMAGE_ERRORS as error:
        return f"damaged ({error})"
    if source is None:
        return None
    if meta["count"] + len(meta["masked"]) != source.count:
        return f"it has {meta['count']} items and {len(meta['masked'])} masked ones"
    return first_recovered_reason(meta["masked"], source.recovered_reason)
