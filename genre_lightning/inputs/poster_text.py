"""The words on posters (names of actors, slogans, prizes) as text for another input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, final

import numpy as np
from PIL import Image
from torch import Tensor

from genre_lightning.cores import num_cores
from genre_lightning.inputs.decode import DECODER_VERSION
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.embedding_cache import Embeddings, Source, file_hash, open_embeddings
from genre_lightning.inputs.encoders.spec import EncoderError
from genre_lightning.inputs.input import Features, Input, Store, check_arguments, check_keys
from genre_lightning.inputs.masked import Masked, Unreadable
from genre_lightning.inputs.ocr import MAX_BYTES, OCR_VERSION, SIZE, ocr_sha256, read_words
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.pixels import read_poster
from genre_lightning.inputs.poster_cache import (
    cached_rows,
    decode_file,
    files_key,
    recovered_reason,
    unique_files,
)
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.movies.movie import PosterFile
from genre_lightning.store import content_key

#: Posters whose words are read and saved together, so that a killed process loses only seconds.
CHUNK_SIZE = 64
#: Text inputs that can take the words.
TEXT_INPUTS: Mapping[str, type[TermsInput] | type[EmbeddingInput]] = {
    TermsInput.kind: TermsInput,
    EmbeddingInput.kind: EmbeddingInput,
}
#: The text of a poster without words, which differs from a movie without a poster.
NO_WORDS = "(no words)"


@final
class PosterTextInput(Input):
    """The words on a poster (``inputs/ocr.py``), as the numbers of a text input.

    Args:
        column: name of the column of posters.
        text: ``kind``, "terms" or "embedding", and the other arguments of that text input.

    Raises:
        ValueError: naming the argument that is unknown or out of range.
    """

    kind: ClassVar[str] = "poster_text"
    of: str = "poster"

    def __init__(self, column: str, text: Mapping[str, Any]) -> None:
        settings: Any = text  # a configuration can hold any type
        if not isinstance(settings, Mapping) or settings.get("kind") not in TEXT_INPUTS:
            raise ValueError(f"text: its kind must be one of {', '.join(TEXT_INPUTS)}")
        input_class = TEXT_INPUTS[text["kind"]]
        arguments = {name: value for name, value in text.items() if name != "kind"}
        try:
            check_arguments(input_class, arguments, exclude=("column",))
            self._configure(column, input_class(column=column, **arguments), None)
        except EncoderError:
            raise
        except ValueError as error:
            raise ValueError(f"text.{error}") from error

    def _configure(
        self, column: str, text: TermsInput | EmbeddingInput, sha256: str | None
    ) -> None:
        """Keep the settings from a configuration or a checkpoint."""
        if text.of != "text":
            raise ValueError("encoder: the words on posters need an encoder of texts")
        self.column = column
        self.text = text
        self.sha256 = sha256
        self.gives = text.gives  # type: ignore[misc] # a class attribute of other inputs

    @property
    def fitted(self) -> bool:
        return self.sha256 is not None and self.text.fitted

    def network_arguments(self) -> dict[str, Any]:
        return self.text.network_arguments()

    def bytes_per_movie(self) -> int:
        return self.text.bytes_per_movie()

    def open(self, values: Sequence[Any], train: np.ndarray, store: Store) -> Features:
        self._check_weights()
        files, file_index = unique_files(values)
        # A text is stored as a row of its bytes, so that the cache of embeddings serves words too.
        key = content_key("words", OCR_VERSION, self.sha256, DECODER_VERSION, list(SIZE))
        with ThreadPoolExecutor(store.workers or num_cores(), thread_name_prefix="words") as pool:
            source = Source(
                count=len(files),
                hashes=lambda start, stop: [file_hash(file) for file in files[start:stop]],
                embed=lambda items, report_progress: _embed_words(
                    [files[n] for n in items], pool, report_progress
                ),
                quick_key=files_key(files),
                recovered_reason=lambda index: recovered_reason(files[index]),
                chunk_size=CHUNK_SIZE,
            )
            description = f"reading words, {self.column}"
            cache = open_embeddings(source, key, (1, MAX_BYTES), description, store)
        row_index, unreadable = cached_rows(files, file_index, cache.masked)
        words = [_to_text(row) for row in cache.vectors[:, 0]]
        texts = [None if row < 0 else words[row] for row in row_index.tolist()]
        features = self.text.open(texts, train, store)
        features.unreadable = unreadable
        return features

    def _check_weights(self) -> None:
        """Check that the installed weights are those of training, or record their hash.

        Raises:
            EncoderError: the weights differ, or are not installed.
        """
        installed = ocr_sha256()
        if self.sha256 not in (None, installed):
            raise EncoderError(
                "the model was trained on words of posters that were read with other weights "
                f"(SHA-256 {self.sha256}; the installed rapidocr has {installed}): install the "
                "version of rapidocr that it was trained with"
            )
        self.sha256 = installed

    def read(self, value: Any) -> str:
        """Read the words on a poster; ``NO_WORDS`` if there are none."""
        pixels = read_poster(value, SIZE)
        self._check_weights()
        return self.text.read(read_words(pixels) or NO_WORDS) or NO_WORDS

    def encode(self, items: Sequence[str]) -> dict[str, Tensor]:
        return self.text.encode(items)

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        return self.text.prepare(numbers, seeds)

    def state(self) -> dict[str, Any]:
        state = {name: value for name, value in self.text.state().items() if name != "column"}
        return {
            "column": self.column,
            "sha256": self.sha256,
            "text": {"kind": self.text.kind, **state},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PosterTextInput:
        check_keys(state, ("column", "sha256", "text"))
        text, sha256 = state["text"], state["sha256"]
        if type(sha256) is not str or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256: {sha256!r:.100} is not 64 hex digits")
        if type(text) is not dict or text.get("kind") not in TEXT_INPUTS:
            raise ValueError(f"text: its kind is none of {', '.join(TEXT_INPUTS)}")
        text_state = {name: value for name, value in text.items() if name != "kind"}
        if "column" in text_state:
            raise ValueError("text: unknown key 'column'")
        instance = cls.__new__(cls)
        column = state["column"]
        text_input = TEXT_INPUTS[text["kind"]].from_state({"column": column, **text_state})
        instance._configure(column, text_input, sha256)
        return instance


def text_input(branch_input: Input) -> Input:
    """Return a branch's text input: the inner one for words on posters, else the input itself."""
    return branch_input.text if isinstance(branch_input, PosterTextInput) else branch_input


def _embed_words(
    files: Sequence[PosterFile],
    pool: ThreadPoolExecutor,
    report_progress: Callable[[float], object],
) -> Embeddings:
    """Read the words of some posters, several in parallel, as rows of bytes."""
    rows: list[np.ndarray] = []
    masked: list[Masked] = []
    Image.init()  # loads the formats before several threads need them

    def read_file(file: PosterFile) -> str | Unreadable:
        pixels = decode_file(file, SIZE)
        return read_words(pixels) if isinstance(pixels, np.ndarray) else pixels

    for position, result in enumerate(pool.map(read_file, files)):
        if isinstance(result, str):
            rows.append(_to_row(result))
        else:
            masked.append(Masked(position, *result))
        report_progress((position + 1) / len(files))
    return Embeddings(np.array(rows, np.float16).reshape(len(rows), 1, MAX_BYTES), masked)


def _to_row(words: str) -> np.ndarray:
    """Encode words as (MAX_BYTES,) float16: one number per byte of UTF-8, padded with zeros."""
    row = np.zeros(MAX_BYTES, np.float16)
    data = words.encode("utf-8")
    row[: len(data)] = np.frombuffer(data, np.uint8)
    return row


def _to_text(row: np.ndarray) -> str:
    return row.astype(np.uint8).tobytes().rstrip(b"\0").decode("utf-8") or NO_WORDS
