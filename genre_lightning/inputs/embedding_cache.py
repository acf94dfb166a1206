"""Embeddings of a dataset, computed once and found again by content.

A cache folder holds the embeddings of one dataset's posters or texts by one encoder, whole or not
there. What any earlier folder of the same encoder holds is taken from it, so movies that are added
to a dataset do not make the others be embedded again; and what a killed process had embedded is
kept in parts, which the next one takes up.
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
    first_recovered,
    masked_from_json,
)
from genre_lightning.inputs.poster_limits import MAX_FILE_BYTES
from genre_lightning.movies.movie import PosterFile
from genre_lightning.progress import progress
from genre_lightning.store import changed, content_key, remove_stored, stored_folder

_VECTORS, _HASHES, _META = "vectors.f16", "hashes.b16", "meta.json"
_HASH_BYTES = 16
#: In the place of the hash of an item that has none; no content has it.
_UNKNOWN = bytes(_HASH_BYTES)
#: What reading a damaged folder raises.
_DAMAGED = (OSError, ValueError, TypeError, LookupError)
#: Items that are embedded and put on the disk together, unless their source says otherwise: what a
#: kill loses at most.
CHUNK = 256


@dataclass(frozen=True)
class Embedded:
    """Embeddings of some items, or of all.

    Attributes:
        vectors: (n, V, D) float16 of the items that could be read, in order; V views of each.
        masked: the others, by their position among the items.
    """

    vectors: np.ndarray
    masked: Sequence[Masked]


@dataclass(frozen=True)
class Source:
    """The M items of a dataset.

    Attributes:
        count: M.
        hashes: of the content of items start to stop; None for one that can't be read.
        embed: computes the embeddings of the items at these positions, and tells now and then
            which share of them it has.
        quick_key: stands for all of the content without reading it: equal keys, equal content.
        recovered: why a folder in which this item is masked is out of date, or None; asked of
            items that may recover.
        chunk: items that are embedded and put on the disk together; None for ``CHUNK``.
    """

    count: int
    hashes: Callable[[int, int], list[bytes | None]]
    embed: Callable[[Sequence[int], Callable[[float], object]], Embedded]
    quick_key: Sequence[Any]
    recovered: Callable[[int], str | None] = lambda index: None
    chunk: int | None = None


def content_hash(content: bytes) -> bytes:
    """What an item is found again by."""
    return blake2b(content, digest_size=_HASH_BYTES).digest()


def file_hash(file: PosterFile) -> bytes | None:
    """The hash of a poster's file; None where it can't be read, which decoding will say."""
    if not file.exists or file.size > MAX_FILE_BYTES:
        return None
    try:
        return content_hash(file.read_bytes())
    except OSError:
        return None


def open_embeddings(
    source: Source, encoder_key: str, shape: tuple[int, int], what: str, store: Store
) -> Embedded:
    """The embeddings of all items, computed where no earlier run has.

    Args:
        source: the items.
        encoder_key: of the encoder, its weights and all that is done to an item before.
        shape: (V, D).
        what: is done, for people who wait.
        store: where caches are kept.

    Returns:
        Vectors that are memory-mapped.

    Raises:
        CacheError: the cache can't be written.
    """
    name = f"embeddings_{encoder_key[:16]}"
    parts = f"{name}_part"

    def build(folder: Path) -> None:
        known = _Known(store.folder, (name, parts), shape)
        hashes: list[bytes] = []
        masked: list[Masked] = []
        with (
            (folder / _VECTORS).open("wb") as file,
            progress(what, source.count, store.progress) as update,
        ):
            chunk_size = source.chunk or CHUNK
            for start in range(0, source.count, chunk_size):
                stop = min(start + chunk_size, source.count)

                def tell(share: float, start: int = start, size: int = stop - start) -> None:
                    update(start + share * size)

                chunk = _embed_chunk(source, start, stop, known, tell)
                if chunk.new and stop - start < source.count:
                    part = _keep_part(store.folder, parts, chunk.new)
                    known.add(part)
                if chunk.vectors:
                    file.write(np.stack(chunk.vectors).astype(np.float16).tobytes())
                hashes += chunk.hashes
                masked += chunk.masked
                update(stop)
        _write_index(folder, hashes, shape, masked)

    key = content_key(encoder_key, *source.quick_key)
    folder = stored_folder(
        store.folder, name, key, build, lambda folder: _damage(folder, shape, source)
    )
    _remove_parts(store.folder.expanduser(), parts, folder)
    meta = _read_meta(folder)
    vectors = _map(folder, meta["count"], shape)
    return Embedded(vectors, meta["masked"])


@dataclass(frozen=True)
class _Chunk:
    """The embeddings of some items of a source.

    Attributes:
        vectors: (V, D) float16 of each item that could be read, in order.
        hashes: of the content of the same items; ``_UNKNOWN`` where there is none.
        masked: the other items.
        new: those of ``vectors`` that were computed now, by the hash of their content.
    """

    vectors: list[np.ndarray]
    hashes: list[bytes]
    masked: list[Masked]
    new: dict[bytes, np.ndarray]


def _embed_chunk(
    source: Source, start: int, stop: int, known: _Known, tell: Callable[[float], object]
) -> _Chunk:
    """The embeddings of items start to stop: each content that is not known is computed once."""
    digests = dict(enumerate(source.hashes(start, stop), start))
    # The first item of each content to compute; what has no hash is a content of its own.
    first: dict[bytes | int, int] = {}
    for index, digest in digests.items():
        if digest is None or digest not in known:
            first.setdefault(digest or index, index)
    unique = list(first.values())
    computed = source.embed(unique, tell) if unique else Embedded(np.zeros(0), [])
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
            result = results[first[digest or index]]
        if isinstance(result, Unreadable):
            chunk.masked.append(Masked(index, *result))
            continue
        chunk.vectors.append(result)
        # What could be read only the second time has no hash to be found again by.
        chunk.hashes.append(digest or _UNKNOWN)
        if digest in first:
            chunk.new[digest] = result
    return chunk


class _Known:
    """Embeddings of earlier folders of the same encoder, by the hash of their content."""

    def __init__(self, cache_dir: Path, names: Sequence[str], shape: tuple[int, int]) -> None:
        self._found: dict[bytes, tuple[np.ndarray, int]] = {}
        self._shape = shape
        for name in names:
            for folder in sorted(cache_dir.expanduser().glob(f"{name}-*")):
                self.add(folder)

    def add(self, folder: Path) -> None:
        """Take in what a folder holds."""
        for digest, place in _readable(folder, self._shape):
            self._found.setdefault(digest, place)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._found

    def __getitem__(self, digest: bytes) -> np.ndarray:
        vectors, row = self._found[digest]
        found: np.ndarray = vectors[row]
        return found


def _readable(
    folder: Path, shape: tuple[int, int]
) -> Iterator[tuple[bytes, tuple[np.ndarray, int]]]:
    """What a folder holds, by hash; nothing of one that is damaged, or removed meanwhile."""
    try:
        count = _read_whole(folder, shape)["count"]
        if changed(folder):
            return
        digests = _read_hashes(folder)
        vectors = _map(folder, count, shape)
    except _DAMAGED:
        return
    if len(digests) == count:
        for row, digest in enumerate(digests):
            if digest != _UNKNOWN:
                yield digest, (vectors, row)


def _read_hashes(folder: Path) -> list[bytes]:
    data = (folder / _HASHES).read_bytes()
    return [data[start : start + _HASH_BYTES] for start in range(0, len(data), _HASH_BYTES)]


def _keep_part(cache_dir: Path, name: str, embeddings: Mapping[bytes, np.ndarray]) -> Path:
    """Put a few embeddings on the disk, from where a later build takes them.

    Args:
        cache_dir: where caches are kept.
        name: begins the name of the folder.
        embeddings: at least one, (V, D) float16 by the hash of its content.
    """
    digests, vectors = list(embeddings), np.stack(list(embeddings.values()))
    shape = (int(vectors.shape[1]), int(vectors.shape[2]))

    def build(folder: Path) -> None:
        (folder / _VECTORS).write_bytes(vectors.astype(np.float16).tobytes())
        _write_index(folder, digests, shape, [])

    return stored_folder(
        cache_dir, name, content_key(digests), build, lambda folder: _damage(folder, shape)
    )


def _remove_parts(cache_dir: Path, name: str, whole: Path) -> None:
    """Remove the parts that a folder holds all of: another dataset's may still be needed."""
    found = list(cache_dir.glob(f"{name}-*"))
    if not found:
        return
    try:
        held = set(_read_hashes(whole))
    except _DAMAGED:
        return
    for part in found:
        try:
            if not held.issuperset(_read_hashes(part)):
                continue
        except _DAMAGED:
            pass  # of no use to anybody
        remove_stored(part)


def _map(folder: Path, count: int, shape: tuple[int, int]) -> np.ndarray:
    if not count:  # an empty file can't be mapped
        return np.zeros((0, *shape), dtype=np.float16)
    return np.memmap(folder / _VECTORS, dtype=np.float16, mode="r", shape=(count, *shape))


def _write_index(
    folder: Path, hashes: Sequence[bytes], shape: tuple[int, int], masked: Sequence[Masked]
) -> None:
    """Write what tells which vectors a folder holds."""
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


def _read_whole(folder: Path, shape: tuple[int, int]) -> dict[str, Any]:
    """What a folder says of its vectors; one of ``_DAMAGED`` where they are not so."""
    meta = _read_meta(folder)
    size = (folder / _VECTORS).stat().st_size
    wanted = meta["count"] * shape[0] * shape[1] * 2
    if meta["shape"] != shape or size != wanted:
        raise ValueError(f"{_VECTORS} has {size:,} bytes, not {wanted:,}")
    return meta


def _damage(folder: Path, shape: tuple[int, int], source: Source | None = None) -> str | None:
    """Why a folder can't be used, for the items of a source where there is one; or None."""
    try:
        meta = _read_whole(folder, shape)
    except _DAMAGED as error:
        return f"damaged ({error})"
    if source is None:
        return None
    if meta["count"] + len(meta["masked"]) != source.count:
        return f"it has {meta['count']} items and {len(meta['masked'])} masked ones"
    return first_recovered(meta["masked"], source.recovered)
