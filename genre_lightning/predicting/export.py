"""A trained model as ONNX, checked against PyTorch before it is kept.

Inputs of the graph are what prediction needs and the network itself takes, except that posters are
plain pixels (normalising them is part of the graph); see :data:`INPUTS`. Titles are turned into
numbers outside of it, by the vocabulary in the JSON file beside it:
``TitleVectorizer.from_state_dict(json.loads(text)["titles"])`` does it, without PyTorch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from genre_lightning import __version__
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.errors import UserError
from genre_lightning.inputs.augment import POSTER_MEAN, POSTER_STD
from genre_lightning.inputs.decode import decode_poster
from genre_lightning.models.fusion import ACTIVATIONS

#: Inputs of the graph: B movies, L terms in their titles, P posters.
INPUTS = {
    "title_indices": "(L,) int64, columns of the terms of all titles, one title after another",
    "title_offsets": "(B,) int64, where each title starts in title_indices",
    "title_weights": "(L,) float32, the weight of each term",
    "posters": "(P, H, W, 3) uint8, RGB, of the metadata's poster_size",
    "poster_rows": "(P,) int64, which of the B movies each poster belongs to",
}
#: Outputs: logits (B, G) float32 and scores (B, G) float32 in [0, 1].
OUTPUTS = ("logits", "scores")
TOLERANCE = 1e-4
OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(UserError):
    """A model that can't be exported; the message says what to do."""


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Attributes:
        onnx: the graph with its weights.
        vocabulary: JSON: how titles become inputs; genres, thresholds, activation, poster size.
        movies: number of movies it was checked on.
        difference: the largest difference from PyTorch's logits.
    """

    onnx: Path
    vocabulary: Path
    movies: int
    difference: float


def export_onnx(model: TrainedModel, path: Path) -> Exported:
    """Write a model as ``path`` and its vocabulary beside it as ``NAME.vocabulary.json``.

    The graph is run with onnxruntime on batches of several kinds and compared with PyTorch first;
    nothing is written unless they agree to 1e-4.

    Raises:
        ExportError: a package is missing, the file can't be written, or the graph gives other
            numbers.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} must be installed to export: pip install -e '.[export]'"
        )
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: the name must end in .onnx")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no folder {path.parent}")
    graph = ExportedNetwork(model).eval()
    metadata = describe(model)
    vocabulary = path.with_suffix(".vocabulary.json")
    try:
        # In a folder of its own, in which the exporter may leave what it likes.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            whole, text = Path(folder) / path.name, Path(folder) / vocabulary.name
            _write_graph(graph, model, whole, metadata)
            movies, difference = _check(graph, model, whole)
            text.write_text(
                json.dumps({**metadata, "titles": model.titles.state_dict()}, ensure_ascii=False),
                encoding="utf-8",
            )
            os.replace(whole, path)
            os.replace(text, vocabulary)
    except OSError as error:
        raise ExportError(f"{path}: can't be written ({error.strerror or error})") from error
    return Exported(path, vocabulary, movies, difference)


def describe(model: TrainedModel) -> dict[str, Any]:
    """What a program needs to know to use the graph; plain data."""
    return {
        "genres": list(model.genres),
        "thresholds": [float(value) for value in model.thresholds],
        "activation": model.activation,
        "poster_size": model.poster_size,
        "uses_titles": model.network.title is not None,
        "uses_posters": model.network.poster is not None,
        "genre_lightning": __version__,
    }


class ExportedNetwork(nn.Module):
    """The network in operations that ONNX has, with pixels for input and scores for output.

    ONNX has no embedding bag: the terms' vectors are gathered, weighted, and summed by a product
    with the (B, L) matrix that tells which term is in which title; likewise for posters.
    """

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        network = model.network
        if not isinstance(network.title, (TermsMLP, type(None))):
            raise ExportError(f"a {type(network.title).__name__} can't be exported")
        self.title = network.title
        self.poster = network.poster
        self.shrink = model.poster_shrink
        self.rest = model.poster_pool // model.poster_shrink
        self.activation = ACTIVATIONS[model.activation]
        self.prior: Tensor
        self.register_buffer("prior", network.prior.detach().float().cpu().clone())
        self.scale: Tensor
        self.register_buffer("scale", 1 / (255 * torch.tensor(POSTER_STD)), persistent=False)
        self.shift: Tensor
        mean = torch.tensor(POSTER_MEAN) / torch.tensor(POSTER_STD)
        self.register_buffer("shift", mean, persistent=False)

    def forward(
        self,
        title_indices: Tensor,
        title_offsets: Tensor,
        title_weights: Tensor,
        posters: Tensor,
        poster_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits and scores, both (B, G); see :data:`INPUTS`."""
        movies = torch.arange(title_offsets.shape[0])[:, None]
        logits = self.prior + torch.zeros_like(title_offsets, dtype=torch.float32)[:, None]
        if self.title is not None:
            # A term is in the last title that starts at or before it.
            place = torch.arange(title_indices.shape[0])
            row = (place[None, :] >= title_offsets[:, None]).long().sum(0) - 1
            member = (row[None, :] == movies).float()
            weights = title_weights[:, None]
            hidden = member @ (self.title.embed.weight[title_indices] * weights)
            logits = logits + self.title.head(torch.relu(self.title.norm(hidden)))
            if self.title.skip is not None:
                logits = logits + member @ (self.title.skip.weight[title_indices] * weights)
        if self.poster is not None:
            # A runtime need not take a batch of none: a black poster that belongs to no movie.
            blank = torch.zeros_like(posters[:1].sum(0, keepdim=True, dtype=torch.int64))
            pixels = torch.cat([posters.float(), blank.float()]).permute(0, 3, 1, 2)
            # Rounded as decode_poster does, whose pixels are whole numbers.
            pixels = (F.avg_pool2d(pixels, self.shrink) + 0.5).floor()
            pixels = F.avg_pool2d(pixels, self.rest)
            pixels = pixels * self.scale.view(3, 1, 1) - self.shift.view(3, 1, 1)
            rows = torch.cat([poster_rows, -torch.ones(1, dtype=torch.int64)])
            logits = logits + (rows[None, :] == movies).float() @ self.poster(pixels)
        return logits, self.activation(logits)


def _write_graph(
    graph: ExportedNetwork, model: TrainedModel, path: Path, metadata: dict[str, Any]
) -> None:
    """Trace the network into an ONNX file that holds its weights and metadata."""
    import onnx

    dim = torch.export.Dim
    movies, terms, posters = dim("movies", min=1), dim("terms"), dim("posters")
    shapes = ({0: terms}, {0: movies}, {0: terms}, {0: posters}, {0: posters})
    sample = _batch(model, ["Heat (1995)", "Toy Story (1995)", "Alien (1979)"], [0, 2])
    said = io.StringIO()  # the exporter reports its progress
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own future
        program = torch.onnx.export(
            graph,
            sample,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("PyTorch's exporter gave no graph")
    proto = program.model_proto
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key = key
        entry.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.save(proto, path)


def _check(graph: ExportedNetwork, model: TrainedModel, path: Path) -> tuple[int, float]:
    """Compare the file with the model itself; the number of movies and the largest difference."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    movies, worst = 0, 0.0
    for inputs in _batches(model):
        with torch.inference_mode():
            expected = _reference(model, inputs)
            traced = graph(*inputs)[0]
        known = {entry.name for entry in session.get_inputs()}
        feed = dict(zip(INPUTS, (value.numpy() for value in inputs), strict=True))
        logits, scores = session.run(
            list(OUTPUTS), {name: value for name, value in feed.items() if name in known}
        )
        wanted = ACTIVATIONS[model.activation](expected).numpy()
        differences = (
            np.abs(logits - expected.numpy()).max(),
            np.abs(traced.numpy() - expected.numpy()).max(),
            np.abs(scores - wanted).max(),
        )
        movies += len(logits)
        worst = max(worst, *map(float, differences))
    if not worst <= TOLERANCE:
        raise ExportError(f"the graph's logits differ from PyTorch's by {worst:.2g}: not written")
    return movies, worst


def _reference(model: TrainedModel, inputs: Sequence[Tensor]) -> Tensor:
    """(B, G) logits of the network itself."""
    indices, offsets, weights, posters, rows = inputs
    side = model.poster_size // model.poster_shrink
    pixels = torch.zeros(len(posters), side, side, 3, dtype=torch.uint8)
    for place, poster in enumerate(posters.numpy()):
        image = Image.fromarray(poster)
        pixels[place] = torch.from_numpy(
            decode_poster(image, model.poster_size, model.poster_shrink)
        )
    logits: Tensor = model.network(
        indices, offsets, weights, model.normalise(pixels.permute(0, 3, 1, 2)), rows
    )
    return logits.float()


def _batches(model: TrainedModel) -> Iterator[tuple[Tensor, ...]]:
    """Batches of every kind: one movie and many, with and without titles and posters."""
    terms = model.titles.terms or ["a"]
    many = [f"{terms[n * 7919 % len(terms)]} {n} ({1920 + n})" for n in range(24)]
    yield _batch(model, ["Heat (1995)"], [0])
    yield _batch(model, ["Heat (1995)"], [])
    yield _batch(model, [""], [0])
    yield _batch(model, [""], [])
    yield _batch(model, ["", "Alien (1979)", "", "Toy Story (1995)", ""], [4, 1])
    yield _batch(model, many, list(range(1, 24, 2)))


def _batch(
    model: TrainedModel, titles: Sequence[str], poster_rows: Sequence[int]
) -> tuple[Tensor, ...]:
    """Inputs of the graph for these titles, with posters of noise in these rows."""
    features = model.titles.transform(titles)
    size = model.poster_size
    drawn = np.random.default_rng(0).integers(
        0, 256, (len(poster_rows), size, size, 3), dtype=np.uint8
    )
    return (
        torch.from_numpy(features.indices.astype(np.int64)),
        torch.from_numpy(features.indptr[:-1]),
        torch.from_numpy(features.weights),
        torch.from_numpy(drawn),
        torch.tensor(list(poster_rows), dtype=torch.int64),
    )
