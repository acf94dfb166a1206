"""Pretrained encoders in an exported graph: posters as pixels, texts as token ids."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encoders.folding import fold_batch_norms, random_posters
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.encoders.texts import TextEncoder
from genre_lightning.inputs.part import Numbers
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.predicting.input_graph import InputGraph, membership_matrix
from genre_lightning.predicting.pixel_graph import (
    NormalisePixels,
    append_black_poster,
    describe_pixels,
)

#: The file from which Hugging Face's libraries, in any language, load a tokenizer.
TOKENIZER = "tokenizer.json"


def embedding_graph(branch_input: EmbeddingInput) -> InputGraph:
    """The graph of a poster or text encoder."""
    encoder = branch_input.load()
    if isinstance(encoder, ImageEncoder):
        return EmbeddedPosterGraph(branch_input, encoder)
    return EmbeddedTextGraph(branch_input, encoder)


def simplify_for_tracing(module: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A copy of an image network, equal up to rounding, that is traced in half the time.

    The exporter is slow on BatchNorms, in-place operations and channels-last tensors, none of which
    help in a graph.
    """
    simplified = fold_batch_norms(module, random_posters(size))
    if simplified is module:
        simplified = copy.deepcopy(module)
    for layer in simplified.modules():
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]
    return simplified.to(memory_format=torch.contiguous_format)


@final
class PosterEncoderGraph(nn.Module):
    """A :class:`PosterEncoder` that is traced quickly."""

    def __init__(self, network: PosterEncoder) -> None:
        super().__init__()
        self.encoder = simplify_for_tracing(network.encoder, network.size)
        self.head = network.head

    def forward(self, pixels: Tensor) -> Tensor:
        """(P, G) logits, equal to those of the network up to rounding."""
        logits: Tensor = self.head(torch.flatten(self.encoder(pixels), 1))
        return logits


@final
class EmbeddedPosterGraph(InputGraph):
    """Posters as plain pixels in the encoder's size; the graph normalises them."""

    def __init__(self, branch_input: EmbeddingInput, encoder: ImageEncoder) -> None:
        super().__init__()
        self.branch_input = branch_input
        self.encoder = encoder
        self.module = simplify_for_tracing(encoder.module, encoder.size)
        self.sizes = {"pixels": ("rows",)}
        self.inputs = {"pixels": describe_pixels(encoder.size)}
        self.about = {"encoder": encoder.name, "size": list(encoder.size)}
        self.files = {}
        self.normalise = NormalisePixels(encoder.colours)

    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """Append a black poster and embed all."""
        (posters,) = numbers
        pixels = self.normalise(append_black_poster(posters))
        return {"vectors": self.encoder.vectors(pixels, self.module)}

    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        pixels = np.array([self.branch_input.read(value) for value in values], dtype=np.uint8)
        return {"pixels": torch.from_numpy(pixels.reshape(-1, *self.encoder.size, 3))}

    def reference(self, values: Sequence[Any]) -> Numbers:
        return _unrounded_arguments(self.branch_input, values)

    def examples(self, count: int) -> list[Any]:
        # Blocks of a few colours resemble posters more than noise does, and encoders give all noise
        # images nearly the same vector.
        height, width = self.encoder.size
        blocks = np.random.default_rng(0).integers(0, 256, (count, 6, 4, 3), np.uint8)
        rows, columns = np.arange(height) * 6 // height, np.arange(width) * 4 // width
        return list(blocks[:, rows][:, :, columns])


@final
class EmbeddedTextGraph(InputGraph):
    """Texts as token ids, made outside of the graph by the tokenizer that is written beside it."""

    def __init__(self, branch_input: EmbeddingInput, encoder: TextEncoder) -> None:
        super().__init__()
        self.branch_input = branch_input
        self.encoder = encoder
        self.module = encoder.module
        self.sizes = {
            "input_ids": ("chunks", "tokens"),
            "attention_mask": ("chunks", "tokens"),
            "offsets": ("rows",),
        }
        self.inputs = {
            "input_ids": (
                "(C, L) int64, L at least 1: the tokens of prompt and text together, without the "
                "tokenizer's special tokens, between prefix and suffix, padded. More than r = "
                "max_tokens less prefix and suffix, say n, are cut into c = ceil(n / r) chunks: "
                "the first n mod c of them have floor(n / c) + 1 tokens, the others floor(n / c). "
                "All chunks of a text one after another"
            ),
            "attention_mask": "(C, L) int64, 1 for a token and 0 for padding",
            "offsets": "(P,) int64, where each text starts among the chunks",
        }
        self.about = {
            "encoder": encoder.name,
            **encoder.tokenizer_settings(branch_input.prompt_after),
        }
        self.about["prompt"] += branch_input.prompt
        if branch_input.natural:
            self.about |= {
                "title": "in natural word order: see docs/deployment.md",
                "year": branch_input.year,
            }
        with tempfile.TemporaryDirectory() as folder:
            encoder.save_tokenizer(folder)
            self.files = {TOKENIZER: (Path(folder) / TOKENIZER).read_bytes()}

    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """Append a text of padding and embed all."""
        ids, mask, offsets = numbers
        extra_row = (0, 0, 0, 1)
        chunks = self.module(F.pad(ids, extra_row), F.pad(mask, extra_row, value=1))
        count = torch.ones_like(ids[:, 0]).sum(0, keepdim=True)
        starts = torch.cat([offsets, count])
        # A text's vector is the mean of its chunks' vectors.
        chunk_weights = membership_matrix(chunks[:, 0], starts)
        return {"vectors": chunk_weights @ chunks / chunk_weights.sum(1, keepdim=True)}

    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        texts = self.branch_input.add_prompt([self.branch_input.read(value) for value in values])
        tokens = self.encoder.tokenize(texts, self.branch_input.prompt_after)
        ids, mask = tokens.input_ids, tokens.attention_mask
        if not len(ids):
            ids = mask = np.zeros((0, 1), dtype=np.int64)
        offsets = np.searchsorted(tokens.rows, np.arange(len(values)))
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "offsets": torch.from_numpy(offsets.astype(np.int64)),
        }

    def reference(self, values: Sequence[Any]) -> Numbers:
        return _unrounded_arguments(self.branch_input, values)

    def examples(self, count: int) -> list[Any]:
        words = ("A thief", "a cop", "two sisters", "love", "war", "in space", "hunts", "and", "?")
        # Only the fifth has more than one chunk: each batch that contains it takes seconds.
        lengths = (40, 3, 1, 7, 250, 12)
        return [
            " ".join(words[(n + 5 * k) % len(words)] for k in range(lengths[n % len(lengths)]))
            for n in range(count)
        ]


def _unrounded_arguments(branch_input: EmbeddingInput, values: Sequence[Any]) -> Numbers:
    """The network arguments as in prediction, without rounding the vectors to float16.

    A graph can't reproduce this rounding: where two libraries differ in the last digit, they may
    round a number in different directions.
    """
    if not values:
        return branch_input.prepare(branch_input.encode([]), None)
    return {"vectors": branch_input.vectors([branch_input.read(value) for value in values])}
