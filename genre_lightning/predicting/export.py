"""A trained model as ONNX, checked against PyTorch before it is kept.

``model.vocabulary.json`` is written beside ``model.onnx``. It holds all that a program needs to use
the graph: its ``inputs`` and ``outputs`` by name, ``genres``, ``thresholds``, and for each branch
its ``column`` and the data that turns a value into numbers. Posters are plain pixels. Texts become
terms outside of the graph, through the branch's ``vectorizer``. This example needs no PyTorch::

    import json, numpy as np, onnxruntime
    from genre_lightning.inputs.vectorizer import TermVectorizer
    about = json.load(open("model.vocabulary.json"))
    terms = TermVectorizer.from_state_dict(about["branches"]["title_tfidf"]["vectorizer"])
    rows = terms.transform(["Heat (1995)"])
    onnxruntime.InferenceSession("model.onnx").run(["scores"], {
        "movies": np.arange(1), "title_tfidf.rows": np.arange(1),
        "title_tfidf.indices": rows.indices.astype("int64"),
        "title_tfidf.offsets": rows.indptr[:-1], "title_tfidf.weights": rows.weights})
    # A branch without a value: rows and numbers of length 0.

The graph contains frozen encoders. A text encoder takes token ids from the tokenizer
``NAME.BRANCH.tokenizer.json``, which also works without Python (Hugging Face's tokenizers,
transformers.js), as described by ``prefix``, ``suffix``, ``max_tokens``, ``padding`` and ``prompt``
of the branch and by the description of its inputs. The graph does not round the encoders' vectors
to float16 as the predictor does, so their logits differ by about 0.001.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre_lightning import __version__
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.inputs.part import Part
from genre_lightning.models.fusion import ACTIVATIONS
from genre_lightning.predicting.graph import OUTPUTS, ExportedNetwork
from genre_lightning.predicting.input_graph import ExportError

TOLERANCE = 1e-4
#: Tolerated difference between sums of float32 probabilities near 1.
_SCORE_ROUNDING = 8 * np.finfo(np.float32).eps
OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class OnnxExport:
    """The files of an export and the result of its check.

    Attributes:
        onnx: the graph with its weights.
        extra_files: further files; the first is the vocabulary, in JSON.
        movies: number of movies in the check.
        difference: largest difference from PyTorch's logits and scores.
    """

    onnx: Path
    extra_files: tuple[Path, ...]
    movies: int
    difference: float


def export_onnx(model: TrainedModel, path: str | Path) -> OnnxExport:
    """Write a model to ``path`` and its vocabulary beside it as ``NAME.vocabulary.json``.

    The graph is first run with onnxruntime on batches of several kinds and compared with PyTorch;
    nothing is written unless they agree to 1e-4.

    Raises:
        ExportError: a package is missing, a branch can't be exported, a file can't be written, or
            the graph's results differ from PyTorch's.
    """
    path = Path(path)
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} must be installed to export: "
            "pip install 'genre-lightning[export]'"
        )
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: the name must end in .onnx")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no folder {path.parent}")
    graph = ExportedNetwork(model).eval()
    extra_files = {
        path.with_suffix(".vocabulary.json").name: json.dumps(
            describe(model, graph, path.stem), ensure_ascii=False
        ).encode()
    }
    for branch, input_graph in graph.inputs.items():
        extra_files |= {
            f"{path.stem}.{branch}.{name}": data for name, data in input_graph.files.items()
        }
    try:
        # A temporary folder also collects any other files that the exporter leaves.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            partial = Path(folder) / path.name
            _write_graph(graph, partial, describe(model, graph))
            movies, difference = _check(graph, model, partial)
            for name, data in extra_files.items():
                (Path(folder) / name).write_bytes(data)
            for name in (path.name, *extra_files):
                os.replace(Path(folder) / name, path.with_name(name))
    except OSError as error:
        raise ExportError(f"{path}: can't be written ({error.strerror or error})") from error
    return OnnxExport(path, tuple(map(path.with_name, extra_files)), movies, difference)


def describe(
    model: TrainedModel, graph: ExportedNetwork, stem: str | None = None
) -> dict[str, Any]:
    """Describe the graph for programs that use it, as plain data.

    Args:
        model: the exported model.
        graph: of the model.
        stem: prefix of the names of files beside the graph; with it, the description includes the
            data that turns values into numbers, such as the vocabulary of terms. None to leave
            both out.
    """
    branches: dict[str, dict[str, Any]] = {
        name: {"column": branch_input.column, "kind": branch_input.kind, "of": branch_input.of}
        for name, branch_input in model.inputs.items()
    }
    if stem is not None:
        for name, input_graph in graph.inputs.items():
            branches[name] |= input_graph.about
            if input_graph.files:
                branches[name]["files"] = {key: f"{stem}.{name}.{key}" for key in input_graph.files}
    return {
        "inputs": graph.input_descriptions(),
        "outputs": OUTPUTS,
        "genres": list(model.genres),
        "thresholds": [float(value) for value in model.thresholds],
        "activation": model.activation,
        "branches": branches,
        "genre_lightning": __version__,
    }


def _write_graph(graph: ExportedNetwork, path: Path, metadata: Mapping[str, Any]) -> None:
    """Trace the network and write an ONNX file with its weights and the metadata."""
    import onnx

    movies = _example_movies(graph, 3)
    # Each column is in two of three movies, so the exporter can't take two dimensions for equal.
    sample = graph.feed([movies[0], {}, movies[2]])
    dims = {name: torch.export.Dim(name) for names in graph.dynamic_dimensions() for name in names}
    shapes = [
        {axis: dims[n] for axis, n in enumerate(names)} for names in graph.dynamic_dimensions()
    ]
    printed = io.StringIO()  # the exporter reports its progress
    with (
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(),
        _without_torchvision_warning(),
    ):
        warnings.simplefilter("ignore")  # about its own future
        program = torch.onnx.export(
            graph,
            (sample,),
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.input_names(),
            output_names=list(OUTPUTS),
            dynamic_shapes=(shapes,),
            external_data=False,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("PyTorch's exporter gave no graph")
    _simplify(program.model)
    proto = program.model_proto
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key = key
        entry.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.save(proto, path)


def _simplify(model: Any) -> None:
    """Simplify as ``torch.onnx.export(optimize=True)`` does, without its pattern rewriting.

    The search for patterns is quadratic in the number of nodes and takes minutes for a language
    model; onnxruntime does its own when it loads the file.

    Args:
        model: an ``onnx_ir.Model``, changed in place.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants_ir

    passes.InlinePass()(model)
    fold_constants_ir(model)
    for graph_pass in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        graph_pass(model)


@contextlib.contextmanager
def _without_torchvision_warning() -> Iterator[None]:
    """Silence the exporter's warning about torchvision's operations, which no model here uses."""

    def is_unrelated(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(is_unrelated)
    try:
        yield
    finally:
        logger.removeFilter(is_unrelated)


def _check(graph: ExportedNetwork, model: TrainedModel, path: Path) -> tuple[int, float]:
    """Compare the file with the model; return the number of movies and the largest difference."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The default is a thread per core, each of which busy-waits for work.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    if sorted(names) != sorted(graph.input_names()):
        raise ExportError(f"the graph's inputs are {', '.join(names)}: not written")
    movies, max_difference, max_excess = 0, 0.0, 0.0
    for batch in _check_batches(graph):
        tensors = graph.feed(batch)
        with torch.inference_mode():
            expected = _reference(graph, model, batch)
        feed = dict(zip(graph.input_names(), (value.numpy() for value in tensors), strict=True))
        logits, scores = session.run(list(OUTPUTS), feed)
        expected_scores = ACTIVATIONS[model.activation](expected).numpy()
        logit_errors = np.abs(logits - expected.numpy())
        score_error = np.abs(scores - expected_scores).max()
        # NumPy's maximum propagates NaN; Python's max() could ignore it.
        max_difference = float(np.max([max_difference, logit_errors.max(), score_error]))
        if model.network.label_sets is not None:
            # These logits are log-odds of scores: near a score of 1, the last bit of the score
            # changes the log-odds a lot.
            rounding = _SCORE_ROUNDING / np.maximum(1 - expected_scores, np.finfo(np.float32).eps)
            logit_errors = logit_errors - rounding
        max_excess = float(np.max([max_excess, logit_errors.max(), score_error]))
        movies += len(logits)
    if not max_excess <= TOLERANCE:
        raise ExportError(
            f"the graph's logits differ from PyTorch's by {max_difference:.2g}: not written"
        )
    return movies, max_difference


def _reference(
    graph: ExportedNetwork, model: TrainedModel, movies: Sequence[Mapping[str, Any]]
) -> Tensor:
    """(B, G) logits of the network for the arguments that the inputs themselves compute."""
    parts = {}
    for name, input_graph in graph.inputs.items():
        rows = [row for row, movie in enumerate(movies) if movie.get(name) is not None]
        parts[name] = Part(
            torch.tensor(rows, dtype=torch.int64),
            input_graph.reference([movies[r][name] for r in rows]),
        )
    logits: Tensor = model.network(parts, len(movies))
    return logits


def _example_movies(graph: ExportedNetwork, count: int) -> list[dict[str, Any]]:
    """Example movies that have all columns, as values by branch."""
    columns = {name: input_graph.examples(count) for name, input_graph in graph.inputs.items()}
    return [{name: values[n] for name, values in columns.items()} for n in range(count)]


def _check_batches(graph: ExportedNetwork) -> Iterator[list[dict[str, Any]]]:
    """Batches of every kind: of one or many movies, with all, some or no columns."""
    movies = _example_movies(graph, 6)
    yield movies[1:2]
    yield movies[4:5]  # its texts may be longer than an encoder's maximum length
    yield [{}]
    for branch in graph.inputs:
        yield [{branch: movies[1][branch]}]
        yield [{name: value for name, value in movies[1].items() if name != branch}]
        # Only one movie of the batch, and not the first, has the column.
        yield [{}, {branch: movies[0][branch]}, {}]
    yield [movies[5], {}, movies[0], movies[1], {}]
    branch_indices = {name: index for index, name in enumerate(graph.inputs)}
    yield [
        {name: value for name, value in movie.items() if (n + branch_indices[name]) % 3}
        for n, movie in enumerate(movies)
    ]
    yield movies
