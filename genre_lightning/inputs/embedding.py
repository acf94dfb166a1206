"""Posters or texts as vectors of a frozen pretrained encoder, computed once."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genre_lightning.cores import num_cores
from genre_lightning.inputs.augment import PosterAugment
from genre_lightning.inputs.decode import DECODER_VERSION
from genre_lightning.inputs.embedding_cache import (
    Embeddings,
    Source,
    content_hash,
    file_hash,
    open_embeddings,
)
from genre_lightning.inputs.encoders.gguf_folder import FOLDER_VERSION
from genre_lightning.inputs.encoders.images import CPU_POSTERS, GPU_POSTERS, ImageEncoder
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.spec import EncoderError, EncoderSpec, Gguf
from genre_lightning.inputs.encoders.table import (
    resolve,
    resolve_from_checkpoint,
    trust_encoder,
    trusted_encoders,
)
from genre_lightning.inputs.encoders.texts import TextEncoder
from genre_lightning.inputs.encoders.weights import weights_sha256
from genre_lightning.inputs.input import (
    MAX_WIDTH,
    DenseFeatures,
    Features,
    Input,
    Store,
    check_keys,
    check_text,
    derive_seed,
)
from genre_lightning.inputs.masked import Masked, Unreadable
from genre_lightning.inputs.one_core import one_core_threads
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.pixels import read_poster
from genre_lightning.inputs.plain_text import is_plain_text
from genre_lightning.inputs.poster_cache import (
    cached_rows,
    decode_file,
    decode_files,
    files_key,
    recovered_reason,
    unique_files,
)
from genre_lightning.inputs.titles import natural_title
from genre_lightning.movies.movie import PosterFile
from genre_lightning.store import content_key

#: Part of every cache's key: raise it when the same content gives different vectors. Version 2 of
#: posters: folding BatchNorm into convolutions changes the rounding.
EMBEDDING_VERSIONS = {"text": 1, "poster": 2}
#: Limits on the texts that are embedded and saved together: enough texts to form batches of equal
#: length, and few enough characters that a killed process loses only seconds.
_MAX_TEXTS, _MAX_CHARACTERS = 4_096, 250_000
MAX_VIEWS = 64
MAX_PROMPT = 200
_STATE_KEYS = ("column", "encoder", "size", "stages", "views", "natural", "sha256", "width")
#: Keys that states of earlier versions lack, and that are only written if set.
_OPTIONAL_STATE_KEYS = ("year", "prompt", "prompt_after")


@final
class EmbeddingInput(Input):
    """Vectors of posters or texts from a frozen encoder; the network is trained on these alone.

    The numbers are ``vectors``: (P, V, D) float16 as stored, V views of each value, and (P, D)
    float32 as prepared: a random view in training, the first one otherwise. The first view is the
    whole poster, the second the whole poster mirrored; the others are random parts of the poster,
    every other one mirrored.

    Args:
        column: name of the column.
        encoder: as for :func:`genre_lightning.inputs.encoders.table.resolve`.
        views: V, the views of a poster; texts have one.
        size: [H, W] of the posters; None for the encoder's default.
        stages: append the mean features of every stage, or of a text encoder's last few blocks.
        natural: embed titles as people say them, see ``inputs/titles.py``.
        year: put the release year after such titles.
        weights: with an encoder ``timm:NAME``, the safetensors file of its weights.
        prompt: put before every text that the encoder embeds, such as "A movie called ", since a
            title alone is ambiguous. The prompt doesn't count as text, for example in explanations.
            (Radford et al. 2021, section 3.1.4, embed classes in "A photo of a".)
        prompt_after: put after every text, and after each chunk of a long one. A language model
            reads from left to right, so only what follows a text can ask about it.

    Raises:
        EncoderError: there is no such encoder.
        ValueError: naming the argument that is out of range.
    """

    kind: ClassVar[str] = "embedding"
    gives: ClassVar[str] = "vectors"

    def __init__(
        self,
        column: str,
        encoder: str,
        views: int = 1,
        size: Sequence[int] | None = None,
        stages: bool = False,
        natural: bool = False,
        weights: str | None = None,
        prompt: str = "",
        prompt_after: str = "",
        year: bool = False,
    ) -> None:
        spec = resolve(encoder, trusted=True, weights=weights, size=size, stages=stages)
        trust_encoder(spec)
        self._configure(column, spec, views, natural, prompt, prompt_after, year)

    def _configure(
        self,
        column: str,
        spec: EncoderSpec,
        views: int,
        natural: bool,
        prompt: str,
        prompt_after: str,
        year: bool,
    ) -> None:
        """Check and keep the settings from a configuration or a checkpoint.

        Raises:
            ValueError: naming the setting that has a wrong type or is out of range.
        """
        if not is_plain_text(spec.name):
            raise ValueError(f"encoder: {spec.name!r:.200} is not a valid name")
        self.column = column
        self.spec = spec
        self.of = "poster" if spec.kind == "image" else "text"
        if type(views) is not int or not 1 <= views <= (MAX_VIEWS if self.of == "poster" else 1):
            raise ValueError(f"views: {views!r:.100} is not in 1..{MAX_VIEWS}, and 1 for a text")
        # A flag from an untrusted checkpoint can be of any type.
        flags: dict[str, Any] = {"natural": natural, "year": year}
        for key, flag in flags.items():
            if type(flag) is not bool:
                raise ValueError(f"{key}: {flag!r:.100} is not true or false")
        if natural and self.of != "text":
            raise ValueError("natural: true is for texts only")
        if year and not natural:
            raise ValueError("year: true needs natural: true")
        for key, words in (("prompt", prompt), ("prompt_after", prompt_after)):
            _check_prompt(key, words, self.of)
        self.views = views
        self.natural = natural
        self.year = year
        self.prompt = prompt
        self.prompt_after = prompt_after
        self.sha256 = spec.sha256
        self.width = spec.vector_width

    @property
    def fitted(self) -> bool:
        """Whether the hash of the weights and the width are known; nothing else is learnt."""
        return self.sha256 is not None and self.width is not None

    @property
    def uses_year(self) -> bool:
        return self.year

    def network_arguments(self) -> dict[str, Any]:
        if self.width is None:
            raise RuntimeError("open() comes first")
        return {"width": self.width}

    def bytes_per_movie(self) -> int:
        return max(2 * self.views, 4) * (self.width or 1)

    def load(self) -> ImageEncoder | TextEncoder:
        """Load the encoder, with the weights that this input was trained with.

        Raises:
            EncoderError: the encoder is not available, or its weights differ.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder = open_encoder(self.spec, device, self.sha256)
        self.sha256, self.width = encoder.sha256, encoder.width
        return encoder

    def open(self, values: Sequence[Any], train: np.ndarray, store: Store) -> Features:
        if self.sha256 is None:
            self.sha256 = weights_sha256(self.spec)
        if self.width is None:
            self.load()
        if self.of == "poster":
            return self._open_posters(values, store)
        return self._open_texts(values, store)

    def _open_texts(self, values: Sequence[str | None], store: Store) -> Features:
        items = [None if value is None else self.read(value) for value in values]
        unique = list(dict.fromkeys(item for item in items if item is not None))
        source = Source(
            count=len(unique),
            hashes=lambda start, stop: [
                content_hash(text.encode("utf-8", "surrogatepass")) for text in unique[start:stop]
            ],
            embed=lambda indices, report_progress: Embeddings(
                self._float16_vectors([unique[i] for i in indices], report_progress), []
            ),
            quick_key=[unique],
            chunk_size=_text_chunk_size(unique),
        )
        cache = self._cached(source, store)
        index_of = {text: index for index, text in enumerate(unique)}
        row_index = np.array([-1 if item is None else index_of[item] for item in items], np.int64)
        return DenseFeatures("vectors", cache.vectors, row_index)

    def _open_posters(self, values: Sequence[PosterFile | None], store: Store) -> Features:
        files, file_index = unique_files(values)
        posters = _PosterSource(self, files, store)
        source = Source(
            count=len(files),
            hashes=posters.hashes,
            embed=posters.embed,
            quick_key=files_key(files),
            recovered_reason=lambda index: recovered_reason(files[index]),
        )
        cache = self._cached(source, store)
        row_index, unreadable = cached_rows(files, file_index, cache.masked)
        return DenseFeatures("vectors", cache.vectors, row_index, unreadable)

    def _cached(self, source: Source, store: Store) -> Embeddings:
        """The vectors of a dataset's distinct values, from the cache where it has them."""
        # Several encoders can read the same column.
        description = f"embedding {self.column} with {self.spec.name}"
        return open_embeddings(source, self._key(), self._shape(), description, store)

    def _key(self) -> str:
        """Return the cache's key: a hash of all settings that change the vectors of equal items."""
        # Architectures that differ only in padding can load the same weights.
        architecture = self.spec.architecture
        settings = (
            EMBEDDING_VERSIONS[self.of],
            self.sha256,
            architecture,
            self.views,
            self.spec.stages,
        )
        if self.of == "text":
            origin = self.spec.origin
            conversion = [FOLDER_VERSION, origin.blocks] if isinstance(origin, Gguf) else []
            return content_key(*settings, *conversion, *self._prompts().values())
        colours = (list(self.spec.mean or ()), list(self.spec.std or ()))
        return content_key(*settings, DECODER_VERSION, list(self.size), *colours)

    def _prompts(self) -> dict[str, Any]:
        """Return the prompts that are set, for the cache's key and the state.

        Empty if none is set, so that caches and checkpoints from before prompts stay valid.
        """
        prompts = {"prompt": self.prompt, "prompt_after": self.prompt_after}
        if self.prompt_after:
            return prompts
        return {"prompt": self.prompt} if self.prompt else {}

    def _shape(self) -> tuple[int, int]:
        return self.views, int(self.network_arguments()["width"])

    def empty_vectors(self) -> np.ndarray:
        """Return an empty array of vectors, (0, V, D) float16."""
        return np.zeros((0, *self._shape()), dtype=np.float16)

    def read(self, value: Any) -> Any:
        if self.of == "poster":
            return read_poster(value, self.size)
        # File names on a Mac store accents as separate characters.
        text = unicodedata.normalize("NFC", check_text(value))
        if self.natural:
            text = natural_title(text, self.year)
        # Cells of a dataset are stripped too: a trailing newline changes a language model's vector.
        return text.strip() or None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the posters that the encoder takes."""
        if self.spec.size is None:
            raise RuntimeError(f"{self.spec.name} looks at no posters")
        return self.spec.size

    def encode(self, items: Sequence[Any]) -> dict[str, Tensor]:
        if not items:
            empty = torch.zeros(0, 1, int(self.network_arguments()["width"]), dtype=torch.float16)
            return {"vectors": empty}
        return {"vectors": torch.from_numpy(self._float16_vectors(items))}

    def _float16_vectors(
        self, items: Sequence[Any], report_progress: Callable[[float], object] | None = None
    ) -> np.ndarray:
        """Return (P, 1, D) float16 vectors of P whole values."""
        return _to_float16(self.vectors(items, report_progress), self.spec.name)[:, None]

    def vectors(
        self, items: Sequence[Any], report_progress: Callable[[float], object] | None = None
    ) -> Tensor:
        """Return the encoder's (P, D) float32 vectors of P values, before rounding for the cache.

        Args:
            items: at least one, each from :meth:`read`.
            report_progress: for texts, see :meth:`TextEncoder.embed`.
        """
        encoder = self.load()
        if isinstance(encoder, TextEncoder):
            return encoder.embed(self.add_prompt(items), self.prompt_after, report_progress)
        return encoder.embed(np.stack(items))

    def add_prompt(self, items: Sequence[str]) -> list[str]:
        """Put ``prompt`` before texts from :meth:`read`; the encoder appends ``prompt_after``."""
        return [self.prompt + item for item in items]

    def embed_views(self, items: Sequence[np.ndarray], hashes: Sequence[bytes]) -> np.ndarray:
        """Return (P, V, D) float16 vectors of all views of P posters.

        The hashes of the posters seed the random parts.
        """
        whole = self._float16_vectors(items)
        if self.views == 1:
            return whole
        encoder = self.load()
        if not isinstance(encoder, ImageEncoder):
            raise RuntimeError("only posters have views")
        pixels = torch.from_numpy(np.stack(items)).permute(0, 3, 1, 2)
        stacked = [whole]
        for view in range(1, self.views):
            # View 1 is the whole poster, mirrored; later views are parts.
            crop = 1.0 if view == 1 else 0.6
            aspect = 1.0 if view == 1 else 1.16
            augment = PosterAugment(float(view % 2), crop, aspect, encoder.colours)
            generators = [
                (1, torch.Generator().manual_seed(int.from_bytes(digest[:7], "little") + view))
                for digest in hashes
            ]
            vectors = encoder.embed_normalised(augment(pixels, generators))
            stacked.append(_to_float16(vectors, encoder.name)[:, None])
        return np.concatenate(stacked, axis=1)

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        vectors = numbers["vectors"]
        if seeds is None or vectors.shape[1] == 1 or len(vectors) == 0:
            return {"vectors": vectors[:, 0].float()}
        # Not the batch's own seed, which already draws the augmentation of pixels.
        purpose = f"view of {self.column} for {self.spec.name}"
        views = [
            torch.randint(
                vectors.shape[1],
                (number,),
                generator=torch.Generator().manual_seed(derive_seed(purpose, seed)),
            )
            for number, seed in seeds
        ]
        view = torch.cat(views).to(vectors.device, non_blocking=True)
        row = torch.arange(len(vectors), device=vectors.device)
        return {"vectors": vectors[row, view].float()}

    def state(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "encoder": self.spec.name,
            "size": list(self.spec.size) if self.spec.size else None,
            "stages": self.spec.stages,
            "views": self.views,
            "natural": self.natural,
            "sha256": self.sha256,
            "width": self.width,
            **({"year": True} if self.year else {}),
            **self._prompts(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> EmbeddingInput:
        check_keys(state, (*_STATE_KEYS, *(key for key in _OPTIONAL_STATE_KEYS if key in state)))
        width = state["width"]
        if type(width) is not int or not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"width: {width!r:.100} is not in 1..{MAX_WIDTH}")
        spec = resolve_from_checkpoint(
            state["encoder"],
            state["sha256"],
            size=state["size"],
            stages=state["stages"],
            allow=trusted_encoders(),
        )
        if spec.kind == "image" and state["size"] is None:
            raise ValueError("size: an encoder of posters needs one")
        instance = cls.__new__(cls)
        instance._configure(
            state["column"],
            spec,
            state["views"],
            state["natural"],
            state.get("prompt", ""),
            state.get("prompt_after", ""),
            state.get("year", False),
        )
        if instance.width not in (None, width):
            raise ValueError(f"width: the encoder {spec.name!r} has {instance.width}, not {width}")
        instance.width = width
        return instance


class _PosterSource:
    """The posters of a dataset as items to embed, with only a few in memory at a time.

    Args:
        branch_input: the input whose encoder embeds the posters.
        files: M poster files.
        store: gives the number of decoding threads.
    """

    def __init__(
        self, branch_input: EmbeddingInput, files: Sequence[PosterFile], store: Store
    ) -> None:
        self.branch_input = branch_input
        self.files = files
        self.workers = store.workers or num_cores()
        self._hashes: dict[int, bytes | None] = {}

    def hashes(self, start: int, stop: int) -> list[bytes | None]:
        self._hashes = {index: file_hash(self.files[index]) for index in range(start, stop)}
        return list(self._hashes.values())

    def embed(self, items: Sequence[int], report_progress: Callable[[float], object]) -> Embeddings:
        masked: list[Masked] = []
        vectors = [self.branch_input.empty_vectors()]
        done = 0
        for batch in self._embed_batches(items):
            masked += batch.masked
            vectors.append(batch.vectors)
            done += len(batch.vectors) + len(batch.masked)
            report_progress(done / len(items))
        return Embeddings(np.concatenate(vectors), masked)

    def _embed_batches(self, items: Sequence[int]) -> Iterator[Embeddings]:
        """Yield the items' embeddings, a few at a time; masked ones by position in ``items``."""
        files = [self.files[index] for index in items]
        if self.branch_input.load().device.type == "cpu":
            # Each thread decodes and embeds its own few posters, so no thread waits for another.
            workers = min(self.workers, torch.get_num_threads())

            def embed_from(start: int) -> Embeddings:
                batch = files[start : start + CPU_POSTERS]
                decoded = [decode_file(file, self.branch_input.size) for file in batch]
                return self._embed_batch(items, start, decoded)

            Image.init()  # loads the formats before several threads need them
            with one_core_threads(workers, "posters") as pool:
                yield from pool.map(embed_from, range(0, len(items), CPU_POSTERS))
            return
        decoded = decode_files(files, self.branch_input.size, 1, self.workers)
        for start in range(0, len(items), GPU_POSTERS):
            yield self._embed_batch(items, start, list(islice(decoded, GPU_POSTERS)))

    def _embed_batch(
        self, items: Sequence[int], start: int, decoded: Sequence[np.ndarray | Unreadable]
    ) -> Embeddings:
        masked: list[Masked] = []
        pixels: list[np.ndarray] = []
        hashes: list[bytes] = []
        for position, result in enumerate(decoded, start):
            if isinstance(result, np.ndarray):
                pixels.append(result)
                hashes.append(self._hashes[items[position]] or b"\0" * 16)
            else:
                masked.append(Masked(position, *result))
        vectors = (
            self.branch_input.embed_views(pixels, hashes)
            if pixels
            else self.branch_input.empty_vectors()
        )
        return Embeddings(vectors, masked)


def _check_prompt(key: str, words: Any, of: str) -> None:
    """Refuse a prompt that is not plain text, or that is for posters."""
    if type(words) is not str or not is_plain_text(words) or len(words) > MAX_PROMPT:
        raise ValueError(
            f"{key}: {words!r:.100} is not a text of up to {MAX_PROMPT} characters, "
            "without quotation marks, backslashes, [], {} and line breaks: "
            'such as "A movie called "'
        )
    if words and of != "text":
        raise ValueError(f"{key}: {words!r:.100} is for texts, not for posters")


def _text_chunk_size(texts: Sequence[str]) -> int:
    """Return how many texts are embedded and saved together, from their average length."""
    characters = sum(map(len, texts))
    return max(1, min(_MAX_TEXTS, _MAX_CHARACTERS * len(texts) // max(1, characters)))


def _to_float16(vectors: Tensor, encoder: str) -> np.ndarray:
    """Convert an encoder's vectors, on any device, to a (P, D) float16 array.

    Raises:
        EncoderError: a number is not finite, or exceeds the range of float16.
    """
    with np.errstate(over="ignore"):
        half: np.ndarray = vectors.cpu().numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise EncoderError(f"the encoder {encoder} gave a number that float16 does not hold")
    return half
