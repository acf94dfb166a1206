from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genre_lightning.checkpoint.model import load_model
from genre_lightning.explain.parts import score_parts
from genre_lightning.inputs.terms import TitleVectorizer
from genre_lightning.predicting.command import main
from genre_lightning.predicting.export import ExportedNetwork, export_onnx

# A graph is traced for seconds.
pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    "fusion": {"title": {"hidden": 16, "skip": True}},
    "title": {"poster": None},
    "poster": {"title": None, "loss": "cross_entropy", "pool": 4},
}


def need_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: the extra `export` has it")


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """A checkpoint and the graph that the command made of it."""
    need_packages()
    checkpoint = make_checkpoint(**MODELS[request.param], seed=3)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert main(["export", str(checkpoint), "--onnx", str(path)]) == 0
    return checkpoint, path


def run(path: Path, titles: list[str], posters: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Use the files as a program without PyTorch would."""
    import onnxruntime

    about = json.loads(path.with_suffix(".vocabulary.json").read_text("utf-8"))
    features = TitleVectorizer.from_state_dict(about["titles"]).transform(titles)
    size = about["poster_size"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {
        "title_indices": features.indices.astype(np.int64),
        "title_offsets": features.indptr[:-1],
        "title_weights": features.weights,
        "posters": np.array(list(posters.values()), dtype=np.uint8).reshape(-1, size, size, 3),
        "poster_rows": np.array(list(posters), dtype=np.int64),
    }
    known = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]
    found = session.run(None, {name: value for name, value in feed.items() if name in known})
    return dict(zip(outputs, found, strict=True))


def test_the_graph_gives_the_models_numbers(exported: tuple[Path, Path]):
    checkpoint, path = exported
    model = load_model(checkpoint)
    rng = np.random.default_rng(0)
    titles = ["Heat (1995)", "", "Alien (1979)", "qqq", "Toy Story"]
    posters = {row: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for row in (3, 0, 1)}
    for some in (posters, {}):
        found = run(path, titles, some)
        assert found["logits"].shape == found["scores"].shape == (5, 4)
        for row, title in enumerate(titles):
            expected = score_parts(model, title, some.get(row)).logits
            np.testing.assert_allclose(found["logits"][row], expected, atol=1e-4)
            if model.activation == "softmax":
                scores = np.exp(expected) / np.exp(expected).sum()
            else:
                scores = 1 / (1 + np.exp(-expected))
            np.testing.assert_allclose(found["scores"][row], scores, atol=1e-4)


def test_the_metadata_says_how_to_use_it(exported: tuple[Path, Path]):
    import onnxruntime

    checkpoint, path = exported
    model = load_model(checkpoint)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    beside = json.loads(path.with_suffix(".vocabulary.json").read_text("utf-8"))
    assert json.loads(metadata["genres"]) == beside["genres"] == list(model.genres)
    assert json.loads(metadata["thresholds"]) == pytest.approx(model.thresholds.tolist())
    assert int(metadata["poster_size"]) == beside["poster_size"] == 32
    assert metadata["activation"] == beside["activation"] == model.activation
    assert json.loads(metadata["uses_titles"]) is (model.network.title is not None)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "model.onnx",
        "model.vocabulary.json",
    ]


@pytest.mark.parametrize("arguments", MODELS.values(), ids=MODELS.keys())
def test_the_traced_operations_are_those_of_the_network(
    make_checkpoint: Callable[..., Path], arguments: dict[str, Any], tmp_path: Path
):
    # Also where onnxruntime is not installed: the graph without its runtime.
    model = load_model(make_checkpoint(**arguments, seed=4))
    graph = ExportedNetwork(model).eval()
    titles = ["Heat (1995)", "", "Alien (1979)", ""]
    poster = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    features = model.titles.transform(titles)
    for rows in ([2], []):
        with torch.inference_mode():
            logits, _ = graph(
                torch.from_numpy(features.indices.astype(np.int64)),
                torch.from_numpy(features.indptr[:-1]),
                torch.from_numpy(features.weights),
                torch.from_numpy(np.array([poster] * len(rows)).reshape(-1, 32, 32, 3)).byte(),
                torch.tensor(rows, dtype=torch.int64),
            )
        for row, title in enumerate(titles):
            expected = score_parts(model, title, poster if row in rows else None).logits
            np.testing.assert_allclose(logits[row].numpy(), expected, atol=1e-4)


def test_a_graph_of_other_numbers_is_not_written(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    need_packages()
    monkeypatch.setattr("genre_lightning.predicting.export.TOLERANCE", -1.0)
    assert (
        main(["export", str(make_checkpoint(poster=None)), "--onnx", str(tmp_path / "model.onnx")])
        == 1
    )
    assert "differ from PyTorch's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.pt", "must end in .onnx"), ("nowhere/model.onnx", "there is no folder")],
)
def test_a_bad_name_is_refused(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    message: str,
):
    monkeypatch.setattr("genre_lightning.predicting.export._PACKAGES", ())
    assert main(["export", str(tiny_checkpoint), "--onnx", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from genre_lightning.predicting.export import ExportError

    monkeypatch.setattr("genre_lightning.predicting.export._PACKAGES", ("a_package_of_nobody",))
    with pytest.raises(ExportError, match=r"a_package_of_nobody must be installed .*\[export\]"):
        export_onnx(load_model(tiny_checkpoint), tmp_path / "model.onnx")
