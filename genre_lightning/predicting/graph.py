"""A trained model as one graph of ONNX operations: what prediction does on the device.

The graph's inputs are ``movies`` and, for each branch, ``BRANCH.rows`` and the numbers of its
input, such as ``title_tfidf.indices``. :data:`INPUT_GRAPHS` lists, for each kind of input, the
:class:`InputGraph` that defines what the graph does with these numbers before the network, and what
is left to the user of the graph. A network that ONNX can't represent directly has a replacement in
:data:`NETWORK_GRAPHS`.

To export a new kind of input, write a final subclass of
:class:`genre_lightning.predicting.input_graph.InputGraph` and list it.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.poster_text import PosterTextInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.vectors import MIN_PROBABILITY, VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.models.terms_linear import TermsLinear
from genre_lightning.models.terms_mlp import TermsMLP
from genre_lightning.predicting.encoder_graph import PosterEncoderGraph, embedding_graph
from genre_lightning.predicting.input_graph import (
    ExportError,
    InputGraph,
    membership_matrix,
    prediction_arguments,
)
from genre_lightning.predicting.pixel_graph import (
    NormalisePixels,
    append_black_poster,
    describe_pixels,
)

#: Name of the graph's first input; descriptions of this input and of each branch's rows.
MOVIES = "movies"
MOVIES_DESCRIPTION = "(B,) int64, the numbers 0 to B - 1 of the movies to score"
ROWS_DESCRIPTION = "(P,) int64, which of the movies each row of this branch belongs to; none twice"
#: Outputs of the graph.
OUTPUTS = {
    "logits": "(B, G) float32",
    "scores": "(B, G) float32 in [0, 1]; a genre is predicted if its score reaches its threshold",
}


@final
class TermsGraph(InputGraph):
    """Terms, looked up outside of the graph; see :class:`TermsInput` for the numbers."""

    def __init__(self, branch_input: TermsInput) -> None:
        super().__init__()
        self.branch_input = branch_input
        self.sizes = {"indices": ("terms",), "offsets": ("rows",), "weights": ("terms",)}
        self.inputs = {
            "indices": "(L,) int64, columns of the terms of all P texts, one text after another",
            "offsets": "(P,) int64, where each text starts in indices",
            "weights": "(L,) float32, the weight of each term",
        }
        self.about = {"vectorizer": branch_input.vectorizer.state_dict()}
        self.files = {}

    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """Append a text without terms."""
        indices, offsets, weights = numbers
        end = torch.ones_like(indices).sum(0, keepdim=True)
        return {"indices": indices, "offsets": torch.cat([offsets, end]), "weights": weights}

    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return self.branch_input.encode([self.branch_input.read(value) for value in values])

    def reference(self, values: Sequence[Any]) -> Numbers:
        return prediction_arguments(self.branch_input, values)

    def examples(self, count: int) -> list[Any]:
        terms = self.branch_input.vectorizer.terms or ["a"]
        titles = [f"{terms[n * 7919 % len(terms)]} {n} ({1920 + n % 100})" for n in range(count)]
        return [*("?", "Heat (1995)"), *titles][:count]


@final
class PixelsGraph(InputGraph):
    """Posters as plain pixels; the graph shrinks and normalises them."""

    def __init__(self, branch_input: PixelsInput) -> None:
        super().__init__()
        self.branch_input = branch_input
        self.sizes = {"pixels": ("rows",)}
        self.inputs = {"pixels": describe_pixels(branch_input.size)}
        self.about = {"size": list(branch_input.size)}
        self.files = {}
        self.normalise = NormalisePixels(branch_input.colours)

    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """Append a black poster."""
        (posters,) = numbers
        pixels = append_black_poster(posters)
        # Rounded to whole numbers, as decoding does.
        pixels = (F.avg_pool2d(pixels, self.branch_input.shrink) + 0.5).floor()
        pixels = F.avg_pool2d(pixels, self.branch_input.device_pool)
        return {"pixels": self.normalise(pixels)}

    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        pixels = np.array(values, dtype=np.uint8).reshape(-1, *self.branch_input.size, 3)
        return {"pixels": torch.from_numpy(pixels)}

    def reference(self, values: Sequence[Any]) -> Numbers:
        return prediction_arguments(self.branch_input, values)

    def examples(self, count: int) -> list[Any]:
        posters = np.random.default_rng(0).integers(
            0, 256, (count, *self.branch_input.size, 3), np.uint8
        )
        return list(posters)


class _DenseGraph(InputGraph, ABC):
    """Vectors, computed outside of the graph and passed on unchanged."""

    def __init__(self, branch_input: Input, description: str) -> None:
        super().__init__()
        self.branch_input = branch_input
        self.width = int(branch_input.network_arguments()["width"])
        self.sizes = {"vectors": ("rows",)}
        self.inputs = {"vectors": f"(P, {self.width}) float32, {description}"}
        self.files = {}

    def forward(self, *numbers: Tensor) -> Mapping[str, Tensor]:
        """Append a vector of zeros."""
        (vectors,) = numbers
        blank = torch.zeros_like(vectors[:1].sum(0, keepdim=True))
        return {"vectors": torch.cat([vectors, blank])}

    def numbers(self, values: Sequence[Any]) -> dict[str, Tensor]:
        return self.branch_input.encode([self.branch_input.read(value) for value in values])

    def reference(self, values: Sequence[Any]) -> Numbers:
        return prediction_arguments(self.branch_input, values)


@final
class VectorsGraph(_DenseGraph):
    """Vectors that the user provides."""

    def __init__(self, branch_input: VectorsInput) -> None:
        description = "of the file that the model was trained with"
        if branch_input.log_odds:
            description = (
                "log(p / (1 - p)) of probabilities as in the file that the model was trained with, "
                f"each p limited to {MIN_PROBABILITY}..{1 - MIN_PROBABILITY}"
            )
        super().__init__(branch_input, description)
        self.about = {"width": self.width, "log_odds": branch_input.log_odds}

    def examples(self, count: int) -> list[Any]:
        # In 0..1, so that they can be probabilities.
        return list(np.random.default_rng(0).random((count, self.width), dtype=np.float32))


@final
class YearGraph(_DenseGraph):
    """Release years from titles, as vectors of Gaussian bumps."""

    def __init__(self, branch_input: YearInput) -> None:
        super().__init__(
            branch_input,
            "for each centre exp(-(year - centre)^2 / (2 deviation^2)), scaled to length 1; years "
            "before the first or after the last count as these",
        )
        self.about = {
            "centres": branch_input.centres.tolist(),
            "deviation": branch_input.width,
            "years": list(branch_input.years or ()),
        }

    def examples(self, count: int) -> list[Any]:
        return [f"A ({1895 + 7 * n % 140})" for n in range(count)]


def poster_text_graph(branch_input: PosterTextInput) -> InputGraph:
    """The graph of the input's text; the words are read from the poster outside of the graph."""
    graph = INPUT_GRAPHS[type(branch_input.text)](branch_input.text)
    graph.about = {**graph.about, "text": "the words on the poster: see docs/deployment.md"}
    return graph


#: By class of input. Inputs that are not listed can't be exported yet.
INPUT_GRAPHS: Mapping[type[Input], Callable[[Any], InputGraph]] = {
    TermsInput: TermsGraph,
    PixelsInput: PixelsGraph,
    VectorsInput: VectorsGraph,
    YearInput: YearGraph,
    EmbeddingInput: embedding_graph,
    PosterTextInput: poster_text_graph,
}


def _embedding_bag(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """An embedding bag, which ONNX lacks: (P, D) weighted sums of a table's rows.

    The rows are gathered and weighted, then summed by a product with the (P, L) matrix of which
    term is in which text.
    """
    return membership_matrix(indices, offsets) @ (table[indices] * weights[:, None])


@final
class TermsMLPGraph(nn.Module):
    """A :class:`TermsMLP` without embedding bags."""

    def __init__(self, network: TermsMLP) -> None:
        super().__init__()
        self.network = network

    def forward(self, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """(P, G) logits, equal to those of the network."""
        network = self.network
        hidden = _embedding_bag(network.embed.weight, indices, offsets, weights)
        logits: Tensor = network.head(torch.relu(network.norm(hidden)))
        if network.skip is not None:
            logits = logits + _embedding_bag(network.skip.weight, indices, offsets, weights)
        return logits


@final
class TermsLinearGraph(nn.Module):
    """A :class:`TermsLinear` without an embedding bag."""

    def __init__(self, network: TermsLinear) -> None:
        super().__init__()
        self.network = network

    def forward(self, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        """(P, G) logits, equal to those of the network."""
        network = self.network
        logits = _embedding_bag(network.embed.weight, indices, offsets, weights) + network.head.bias
        return logits.view(-1, network.members, network.num_genres).mean(dim=1)


#: By class of network. Networks that are not listed are exported unchanged.
NETWORK_GRAPHS: Mapping[type[nn.Module], type[Any]] = {
    TermsMLP: TermsMLPGraph,
    TermsLinear: TermsLinearGraph,
    PosterEncoder: PosterEncoderGraph,
}


class ExportedNetwork(nn.Module):
    """The module to export: it maps all inputs of the graph to logits and scores.

    Args:
        model: on the CPU, in evaluation mode.

    Attributes:
        inputs: by branch, the graph of its input.

    Raises:
        ExportError: an input is of a kind that can't be exported.
    """

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        inputs: dict[str, InputGraph] = {}
        networks: dict[str, nn.Module] = {}
        for name, branch_input in model.inputs.items():
            if type(branch_input) not in INPUT_GRAPHS:
                raise ExportError(
                    f"branch {name}: an input of the kind {branch_input.kind} can't be exported yet"
                )
            inputs[name] = INPUT_GRAPHS[type(branch_input)](branch_input)
            network = model.network.branches[name]
            graph_class = NETWORK_GRAPHS.get(type(network))
            networks[name] = network if graph_class is None else graph_class(network)
        self.inputs = inputs
        # Registered as modules so that the graph contains their constants.
        self.prepare = nn.ModuleDict(inputs)
        self.networks = nn.ModuleDict(networks)
        self.activation = ACTIVATIONS[model.activation]
        self.prior: Tensor
        self.register_buffer("prior", model.network.prior.detach().float().cpu().clone())
        self.stacking, self.label_sets = model.network.stacking, model.network.label_sets

    def input_names(self) -> list[str]:
        """The names of the graph's inputs, in order."""
        return [MOVIES, *(name for name in self.input_descriptions() if name != MOVIES)]

    def input_descriptions(self) -> dict[str, str]:
        """Descriptions of the graph's inputs, by name."""
        described = {MOVIES: MOVIES_DESCRIPTION}
        for branch, graph in self.inputs.items():
            described[f"{branch}.rows"] = ROWS_DESCRIPTION
            described |= {f"{branch}.{name}": text for name, text in graph.inputs.items()}
        return described

    def dynamic_dimensions(self) -> list[tuple[str, ...]]:
        """For each of the graph's inputs, the names of its leading dimensions of variable size."""
        names: list[tuple[str, ...]] = [(MOVIES,)]
        for branch, graph in self.inputs.items():
            names.append((f"{branch}_rows",))
            names += [tuple(f"{branch}_{size}" for size in sizes) for sizes in graph.sizes.values()]
        return names

    def feed(self, movies: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """The graph's inputs for movies, each given as its values by branch."""
        tensors = [torch.arange(len(movies))]
        for branch, graph in self.inputs.items():
            rows = [row for row, movie in enumerate(movies) if movie.get(branch) is not None]
            numbers = graph.numbers([movies[row][branch] for row in rows])
            tensors.append(torch.tensor(rows, dtype=torch.int64))
            tensors += [numbers[name] for name in graph.sizes]
        return tensors

    def forward(self, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(B, G) logits and scores from the output of :meth:`feed`."""
        movies, *remaining = tensors
        total = self.prior + torch.zeros_like(movies, dtype=torch.float32)[:, None]
        branch_logits: dict[str, Tensor] = {}
        for branch, graph in self.inputs.items():
            rows, *rest = remaining
            numbers, remaining = rest[: len(graph.sizes)], rest[len(graph.sizes) :]
            logits = self.networks[branch](**graph(*numbers))
            is_row_of = (rows[None, :] == movies[:, None]).float()
            padding_column = torch.zeros_like(movies, dtype=torch.float32)[:, None]
            branch_logits[branch] = torch.cat([is_row_of, padding_column], dim=1) @ logits
            total = total + branch_logits[branch]
        if self.stacking is not None:
            total = total + self.stacking.correction(total, branch_logits)
        if self.label_sets is not None:
            total = self.label_sets.block_logits(total)
        return total, self.activation(total)
