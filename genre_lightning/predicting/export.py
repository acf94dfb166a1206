"""A trained model as ONNX, checked against PyTorch before it is kept.

Beside ``model.onnx`` is written ``model.vocabulary.json``, which says all that a program needs to
use it: ``inputs`` and ``outputs`` of the graph by name, ``genres``, ``thresholds``, and for each
branch its ``column`` and what turns a value into numbers. Posters are plain pixels. Texts become
terms outside of the graph, by the branch's ``vectorizer``; without PyTorch, as in these lines::

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

Frozen encoders are in the graph. One of texts takes token ids, which ``NAME.BRANCH.tokenizer.json``
makes of a text, also without Python (Hugging Face's tokenizers, transformers.js); ``prefix``,
``suffix``, ``max_tokens``, ``padding`` and ``prompt`` of the branch, and the description of its
inputs, tell how. Their vectors are not rounded to float16 on the way, as the predictor's are, whose
logits therefore differ by some .001.
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
#: What sums of float32 probabilities may differ by, near 1.
_LAST_BITS = 8 * np.finfo(np.float32).eps
OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What an export has written.

    Attributes:
        onnx: the graph with its weights.
        beside: further files; the first is JSON, the vocabulary.
        movies: number of movies it was checked on.
        difference: the largest difference from PyTorch's logits.
    """

    onnx: Path
    beside: tuple[Path, ...]
    movies: int
    difference: float


def export_onnx(model: TrainedModel, path: Path) -> Exported:
    """Write a model as ``path`` and its vocabulary beside it as ``NAME.vocabulary.json``.

    The graph is run with onnxruntime on batches of several kinds and compared with PyTorch first;
    nothing is written unless they agree to 1e-4.

    Raises:
        ExportError: a package is missing, a branch can't be exported, the file can't be written,
            or the graph gives other numbers.
    """
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
    beside = {
        path.with_suffix(".vocabulary.json").name: json.dumps(
            describe(model, graph, path.stem), ensure_ascii=False
        ).encode()
    }
    for branch, own in graph.inputs.items():
        beside |= {f"{path.stem}.{branch}.{name}": data for name, data in own.files.items()}
    try:
        # In a folder of its own, in which the exporter may leave what it likes.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            _write_graph(graph, whole, describe(model, graph))
            movies, difference = _check(graph, model, whole)
            for name, data in beside.items():
                (Path(folder) / name).write_bytes(data)
            for name in (path.name, *beside):
                os.replace(Path(folder) / name, path.with_name(name))
    except OSError as error:
        raise ExportError(f"{path}: can't be written ({error.strerror or error})") from error
    return Exported(path, tuple(map(path.with_name, beside)), movies, difference)


def describe(
    model: TrainedModel, graph: ExportedNetwork, stem: str | None = None
) -> dict[str, Any]:
    """What a program needs to know to use the graph; plain data.

    Args:
        model: that was exported.
        graph: of it.
        stem: that the names of files beside the graph begin with; then what turns values into
            numbers is told as well, such as the terms of a text. None for neither.
    """
    branches: dict[str, dict[str, Any]] = {
        name: {"column": branch_input.column, "kind": branch_input.kind, "of": branch_input.of}
        for name, branch_input in model.inputs.items()
    }
    if stem is not None:
        for name, own in graph.inputs.items():
            branches[name] |= own.about
            if own.files:
                branches[name]["files"] = {key: f"{stem}.{name}.{key}" for key in own.files}
    return {
        "inputs": graph.described_inputs(),
        "outputs": OUTPUTS,
        "genres": list(model.genres),
        "thresholds": [float(value) for value in model.thresholds],
        "activation": model.activation,
        "branches": branches,
        "genre_lightning": __version__,
    }


def _write_graph(graph: ExportedNetwork, path: Path, metadata: Mapping[str, Any]) -> None:
    """Trace the network into an ONNX file that holds its weights and metadata."""
    import onnx

    movies = _movies(graph, 3)
    # Two movies of three have each column: no two dimensions are of the same length by rule.
    sample = graph.feed([movies[0], {}, movies[2]])
    dims = {name: torch.export.Dim(name) for names in graph.varying() for name in names}
    shapes = [{axis: dims[n] for axis, n in enumerate(names)} for names in graph.varying()]
    printed = io.StringIO()  # the exporter reports its progress
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(), _torchvision_not_missed():
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
    """What ``torch.onnx.export(optimize=True)`` does, but for its search of patterns to rewrite.

    That takes the square of the number of nodes, minutes for a language model, and onnxruntime
    finds such patterns itself when it loads the file.

    Args:
        model: an ``onnx_ir.Model``, changed in place.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants_ir

    passes.InlinePass()(model)
    fold_constants_ir(model)
    for tidy in (
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
        tidy(model)


@contextlib.contextmanager
def _torchvision_not_missed() -> Iterator[None]:
    """The exporter warns that torchvision's operations can't be exported. We have none of them."""

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _check(graph: ExportedNetwork, model: TrainedModel, path: Path) -> tuple[int, float]:
    """Compare the file with the model itself; the number of movies and the largest difference."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Not one for each core, which wait for work without a pause.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    if sorted(names) != sorted(graph.input_names()):
        raise ExportError(f"the graph's inputs are {', '.join(names)}: not written")
    movies, worst, beyond = 0, 0.0, 0.0
    for batch in _batches(graph):
        fed = graph.feed(batch)
        with torch.inference_mode():
            expected = _reference(graph, model, batch)
        feed = dict(zip(graph.input_names(), (value.numpy() for value in fed), strict=True))
        logits, scores = session.run(list(OUTPUTS), feed)
        wanted = ACTIVATIONS[model.activation](expected).numpy()
        of_logits = np.abs(logits - expected.numpy())
        of_scores = np.abs(scores - wanted).max()
        # By numpy, whose maximum is nan where anything is: max() would pass it over.
        worst = float(np.max([worst, of_logits.max(), of_scores]))
        if model.network.label_sets is not None:
            # These logits are log-odds of scores, whose last bit is much of what is left to 1.
            rounding = _LAST_BITS / np.maximum(1 - wanted, np.finfo(np.float32).eps)
            of_logits = of_logits - rounding
        beyond = float(np.max([beyond, of_logits.max(), of_scores]))
        movies += len(logits)
    if not beyond <= TOLERANCE:
        raise ExportError(f"the graph's logits differ from PyTorch's by {worst:.2g}: not written")
    return movies, worst


def _reference(
    graph: ExportedNetwork, model: TrainedModel, movies: Sequence[Mapping[str, Any]]
) -> Tensor:
    """(B, G) logits of the network itself, of the numbers that the inputs themselves give it."""
    parts = {}
    for name, own in graph.inputs.items():
        rows = [row for row, movie in enumerate(movies) if movie.get(name) is not None]
        parts[name] = Part(
            torch.tensor(rows, dtype=torch.int64), own.reference([movies[r][name] for r in rows])
        )
    logits: Tensor = model.network(parts, len(movies))
    return logits


def _movies(graph: ExportedNetwork, count: int) -> list[dict[str, Any]]:
    """Movies that have all columns: their values by branch."""
    columns = {name: own.examples(count) for name, own in graph.inputs.items()}
    return [{name: values[n] for name, values in columns.items()} for n in range(count)]


def _batches(graph: ExportedNetwork) -> Iterator[list[dict[str, Any]]]:
    """Batches of every kind: one movie and many, with all columns, with some and with none."""
    many = _movies(graph, 6)
    yield many[1:2]
    yield many[4:5]  # where a text may be longer than an encoder takes at once
    yield [{}]
    for branch in graph.inputs:
        yield [{branch: many[1][branch]}]
        yield [{name: value for name, value in many[1].items() if name != branch}]
        # In one movie of each batch only, and not in the first one.
        yield [{}, {branch: many[0][branch]}, {}]
    yield [many[5], {}, many[0], many[1], {}]
    places = {name: place for place, name in enumerate(graph.inputs)}
    yield [
        {name: value for name, value in movie.items() if (n + places[name]) % 3}
        for n, movie in enumerate(many)
    ]
    yield many
