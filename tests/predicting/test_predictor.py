from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genre_lightning import GenrePredictor
from genre_lightning.checkpoint.card import CheckpointError
from genre_lightning.errors import InputError
from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.explain.movie import explain_movie
from genre_lightning.explain.parts import score_parts
from genre_lightning.inputs.colours import POSTER_MEAN, POSTER_STD
from genre_lightning.inputs.decode import PosterError, decode_poster
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.predicting.predictor import BATCH_SIZE, Prediction, PredictionError
from genre_lightning.webapp.api import predict_movie
from tests.forking import run_command
from tests.pictures import readable_if_small

TITLES = ["Heat (1995)", "Toy Story (1995)", "Alien (1979)", "Night of the Living Dead (1968)"]


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> GenrePredictor:
    return GenrePredictor.from_checkpoint(tiny_checkpoint, device="cpu", workers=2)


@pytest.fixture(scope="module")
def posters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("posters")
    paths = []
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
        path = folder / f"{seed}.{'png' if seed % 2 else 'jpg'}"
        Image.fromarray(pixels).resize((80, 120)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"GIF89a, but nothing more")
    return path


def expected_scores(
    predictor: GenrePredictor, title: str | None, poster: Path | None
) -> np.ndarray:
    return expected_of(predictor, {"title": title, "poster": poster})


def expected_of(predictor: GenrePredictor, columns: dict[str, Any]) -> np.ndarray:
    return 1 / (1 + np.exp(-score_parts(predictor.model, columns).logits))


@pytest.mark.parametrize("which", ["title", "poster", "both"])
def test_scores_are_those_of_the_model(predictor: GenrePredictor, posters: list[Path], which: str):
    titles = [None if which == "poster" else title for title in TITLES]
    images = [None if which == "title" else poster for poster in posters[:4]]
    found = predictor.scores(titles, images)
    assert found.shape == (4, 4)
    assert found.dtype == np.float32
    for row, title, poster in zip(found, titles, images, strict=True):
        np.testing.assert_allclose(row, expected_scores(predictor, title, poster), atol=1e-5)


@pytest.mark.parametrize("pool", [2, 4])
def test_pixels_are_averaged_as_the_checkpoint_says(
    make_checkpoint: Callable[..., Path], posters: list[Path], pool: int
) -> None:
    predictor = GenrePredictor.from_checkpoint(make_checkpoint(title=None, pool=pool), "cpu")
    small = np.stack([decode_poster(poster, 32) for poster in posters[:3]]).astype(float)
    if pool == 4:
        small = np.floor(small.reshape(3, 16, 2, 16, 2, 3).mean((2, 4)) + 0.5)
    half = len(small[0]) // 2
    small = small.reshape(3, half, 2, half, 2, 3).mean((2, 4))
    normalised = (small / 255 - POSTER_MEAN) / POSTER_STD
    network = predictor.model.network
    with torch.inference_mode():
        images = torch.from_numpy(normalised).float().permute(0, 3, 1, 2)
        logits = network.branches["poster_resnet"](images) + network.prior
    expected = torch.sigmoid(logits).numpy()
    np.testing.assert_allclose(predictor.scores(None, posters[:3]), expected, atol=1e-5)


def test_titles_or_posters_may_be_omitted(predictor: GenrePredictor, posters: list[Path]):
    np.testing.assert_allclose(
        predictor.scores(None, posters[:2]), predictor.scores([None, ""], posters[:2]), atol=1e-6
    )
    np.testing.assert_allclose(
        predictor.scores(TITLES), predictor.scores(TITLES, [None] * 4), atol=1e-6
    )


def test_predictions_agree_with_the_scores(predictor: GenrePredictor, posters: list[Path]):
    scores = predictor.scores(TITLES, posters[:4])
    predictions = predictor.predict(TITLES, posters[:4])
    predicted = 0
    for title, row, prediction in zip(TITLES, scores, predictions, strict=True):
        assert prediction.title == title
        assert prediction.problem is None
        assert list(prediction.scores) == list(predictor.genres)
        np.testing.assert_allclose(list(prediction.scores.values()), row, atol=1e-6)
        reached = {g for g, s in prediction.scores.items() if s >= predictor.thresholds[g]}
        assert set(prediction.genres) == reached
        ranking = [genre for genre, _ in prediction.ranked()]
        assert sorted(row, reverse=True) == pytest.approx([s for _, s in prediction.ranked()])
        assert list(prediction.genres) == [genre for genre in ranking if genre in reached]
        predicted += len(reached)
    assert 0 < predicted < scores.size


def test_a_score_at_its_threshold_is_predicted(tiny_checkpoint: Path):
    predictor = GenrePredictor.from_checkpoint(tiny_checkpoint, device="cpu")
    scores = torch.from_numpy(predictor.scores(["Heat"])[0])
    predictor.model.thresholds[:] = scores
    assert set(predictor.predict(["Heat"])[0].genres) == set(predictor.genres)
    predictor.model.thresholds[1] = torch.nextafter(scores[1], torch.tensor(1.0))
    assert "Comedy" not in predictor.predict(["Heat"])[0].genres


def test_a_softmax_models_scores_add_up_to_one(make_checkpoint: Callable[..., Path]):
    predictor = GenrePredictor.from_checkpoint(make_checkpoint(loss="cross_entropy"), "cpu")
    np.testing.assert_allclose(predictor.scores(TITLES).sum(axis=1), 1.0, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(predictor: GenrePredictor, posters: list[Path]):
    count = 2 * BATCH_SIZE + 3
    titles = [None if n % 5 == 0 else TITLES[n % 4] for n in range(count)]
    images = [None if n % 5 and n % 3 == 0 else posters[n % 6] for n in range(count)]
    scores = predictor.scores(titles, images)
    for n in (0, 1, 3, BATCH_SIZE - 1, BATCH_SIZE, count - 1):
        np.testing.assert_allclose(
            scores[n], predictor.scores([titles[n]], [images[n]])[0], atol=1e-5
        )


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "image", "pixels"])
def test_every_form_of_a_poster_is_read(predictor: GenrePredictor, posters: list[Path], kind: str):
    path = posters[1]
    with Image.open(path) as image:
        source: dict[str, Any] = {"path": path, "string": str(path), "image": image}
        source["bytes"] = path.read_bytes()
        source["pixels"] = decode_poster(path, 32)
        found = predictor.scores(None, [source[kind]])
    np.testing.assert_allclose(found[0], expected_scores(predictor, None, path), atol=1e-5)


def test_predictions_are_thread_safe(predictor: GenrePredictor, posters: list[Path]):
    movies = [(TITLES[n % 4], posters[n % 6]) for n in range(12)]
    expected = [predictor.scores([title], [poster])[0] for title, poster in movies]
    start = threading.Barrier(12)
    wrong: list[str] = []

    def work(thread: int) -> None:
        start.wait()
        for turn in range(4):
            order = [(thread + turn + n) % 12 for n in range(1 + thread % 5)]
            rows = predictor.scores([movies[n][0] for n in order], [movies[n][1] for n in order])
            for n, row in zip(order, rows, strict=True):
                if not np.allclose(row, expected[n], atol=1e-5):
                    wrong.append(f"thread {thread}, movie {n}")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Errors


@pytest.mark.parametrize("others", [0, 3], ids=["alone", "among others"])
def test_a_broken_poster_is_named_in_the_error(
    predictor: GenrePredictor, posters: list[Path], broken: Path, others: int
):
    images = [*posters[:others], broken]
    with pytest.raises(PosterError, match=r"broken\.jpg: damaged|broken\.jpg: not an image"):
        predictor.predict(["Heat"] * len(images), images)


def test_a_missing_poster_is_named_in_the_error(predictor: GenrePredictor, tmp_path: Path):
    with pytest.raises(PosterError, match=r"nowhere\.jpg: can't be read \(no such file\)"):
        predictor.predict(["Heat"], [tmp_path / "nowhere.jpg"])
    with pytest.raises(PosterError, match="can't be read"):
        predictor.predict(None, [tmp_path])


def test_an_unnamed_poster_is_numbered_in_the_error(predictor: GenrePredictor, posters: list[Path]):
    with pytest.raises(PosterError, match="the poster of movie 2: empty file"):
        predictor.predict(None, [posters[0], b""])
    with Image.open(posters[0]) as image:
        image.filename = "named.jpg"
        image.load = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(PosterError, match=r"named\.jpg of movie 1: damaged"):
            predictor.predict(None, [image])


def test_a_broken_poster_is_reported_and_the_title_is_predicted(
    predictor: GenrePredictor, posters: list[Path], broken: Path
):
    titles = ["Heat (1995)", "Alien (1979)", None]
    good, bad, nothing = predictor.predict(titles, [posters[0], broken, broken], errors="report")
    assert good.problem is None
    assert bad.problem is not None
    assert "broken.jpg" in bad.problem
    np.testing.assert_allclose(
        list(bad.scores.values()), expected_scores(predictor, "Alien (1979)", None), atol=1e-5
    )
    assert nothing.problem is not None
    # The poster is named once, as unreadable and not also as missing.
    assert nothing.problem.endswith("; no title to predict from")
    assert nothing.problem.count("broken.jpg") == 1 and "no poster" not in nothing.problem
    assert (nothing.scores, nothing.genres, nothing.ranked()) == ({}, (), [])


def test_a_movie_without_values_is_refused_by_number(predictor: GenrePredictor):
    with pytest.raises(PredictionError, match="movie 2: no title and no poster"):
        predictor.predict(["Heat", ""])


def test_a_model_of_one_branch_refuses_the_other_column(
    make_checkpoint: Callable[..., Path], posters: list[Path]
):
    title = GenrePredictor.from_checkpoint(make_checkpoint(poster=None), "cpu")
    assert title.columns == {"title": "text"}
    assert title.predict(["Heat"])[0].scores
    assert title.predict(["Heat"], [None])[0].scores
    with pytest.raises(PredictionError, match=r"movie 1 has a poster, .* leave poster out"):
        title.predict(["Heat"], posters[:1])
    with pytest.raises(PredictionError, match="movie 1: no title to predict from"):
        title.predict([None])
    poster = GenrePredictor.from_checkpoint(make_checkpoint(title=None), "cpu")
    assert poster.columns == {"poster": "poster"}
    assert poster.predict(None, posters[:1])[0].scores
    with pytest.raises(PredictionError, match="it looks at poster; leave title out"):
        poster.predict(["Heat"], posters[:1])


# Columns besides title and poster


SYNOPSES = ["A thief plans a last heist.", "Toys live happily.", "A night of terror in space."]


@pytest.fixture(scope="module")
def wider(make_checkpoint: Callable[..., Path]) -> GenrePredictor:
    """A predictor with branches on title, synopsis, and the poster in two sizes."""
    synopsis = TermsInput("synopsis", vocabulary_size=64, analyzer="word", ngram_range=(1, 1))
    synopsis.vectorizer.fit(SYNOPSES)
    small = {"name": "poster_resnet", "widths": [4], "blocks": [1]}
    more = {
        "plot": (synopsis, {"name": "terms_mlp", "hidden": 8}),
        "small": (PixelsInput(size=[16, 24]), small),
    }
    return GenrePredictor.from_checkpoint(make_checkpoint(more=more, seed=1), "cpu", workers=2)


def test_columns_are_passed_by_name(wider: GenrePredictor, posters: list[Path]):
    assert wider.columns == {"title": "text", "poster": "poster", "synopsis": "text"}
    columns: dict[str, list[Any]] = {
        "title": [TITLES[0], None, TITLES[1], None, ""],
        "poster": [posters[0], None, None, posters[1], posters[2]],
        "synopsis": [SYNOPSES[0], SYNOPSES[1], None, SYNOPSES[2], "  "],
    }
    movies = [{name: values[n] for name, values in columns.items()} for n in range(5)]
    expected = [expected_of(wider, {**movie, "synopsis": movie["synopsis"] if n < 4 else None})
              for n, movie in enumerate(movies)]  # fmt: skip
    found = wider.scores(columns["title"], columns["poster"], synopsis=columns["synopsis"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    streamed = list(wider.stream(movies))
    np.testing.assert_allclose([list(p.scores.values()) for p in streamed], expected, atol=1e-5)
    assert [prediction.title for prediction in streamed] == columns["title"]
    alone = wider.scores(synopsis=SYNOPSES)
    np.testing.assert_allclose(
        alone, [expected_of(wider, {"synopsis": text}) for text in SYNOPSES], atol=1e-5
    )


def test_a_pandas_column_is_read_by_position_not_label(wider: GenrePredictor):
    class Column(list[str]):
        """Like a pandas Series: indexed by label, iterated by position."""

        def __getitem__(self, label: Any) -> Any:
            return {10: "Alien (1979)", 0: "Zulu (1964)"}[label]

    column = Column(["Alien (1979)", "Zulu (1964)"])
    expected = wider.scores(["Alien (1979)", "Zulu (1964)"])
    np.testing.assert_array_equal(wider.scores(column), expected)
    assert [prediction.title for prediction in wider.predict(column)] == list(column)


def test_nan_counts_as_missing(wider: GenrePredictor, posters: list[Path]):
    nan: Any = float("nan")
    both: list[Any] = [nan, None]
    actual, expected = (
        wider.predict(["Heat", value], [value, posters[0]], synopsis=[value, value], explain=True)
        for value in both
    )
    assert actual == expected and actual[1].poster == posters[0] and actual[0].poster is None
    streamed = wider.stream([("Heat", nan), {"title": nan, "poster": posters[0]}])
    assert [prediction.title for prediction in streamed] == ["Heat", None]


def test_missing_values_of_pandas_and_numpy_count_as_none(
    wider: GenrePredictor, posters: list[Path], monkeypatch: pytest.MonkeyPatch
):
    class NoTruth:
        """Like pandas.NA: its comparisons have no truth value."""

        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> Any:
            return self

        def __bool__(self) -> bool:
            raise TypeError("boolean value of NA is ambiguous")

    not_available, not_a_time = NoTruth(), NoTruth()
    fake_pandas: Any = SimpleNamespace(NA=not_available, NaT=not_a_time)
    monkeypatch.setitem(sys.modules, "pandas", fake_pandas)
    for missing in (not_available, not_a_time, np.float32("nan")):
        both: list[Any] = [missing, None]
        actual, expected = (
            wider.predict(["Heat", value], [value, posters[0]], synopsis=[value, value])
            for value in both
        )
        assert actual == expected and actual[0].poster is None
        streamed = wider.stream([("Heat", missing), {"title": missing, "poster": posters[0]}])
        assert [prediction.title for prediction in streamed] == ["Heat", None]


def test_a_table_is_refused_as_a_column(wider: GenrePredictor):
    class Table(list[str]):
        """Like a pandas DataFrame: iteration gives column names."""

        columns = ("title", "year")

    with pytest.raises(TypeError, match=r"titles must be .* one column of .*, not a Table, .*\["):
        wider.predict(Table(["title", "year"]))


@pytest.mark.parametrize("titles", [{"Heat": 1}, {"Heat"}, frozenset(["Heat"])], ids=str)
def test_unordered_titles_are_refused(wider: GenrePredictor, titles: Any):
    with pytest.raises(TypeError, match="titles must be a list, not of type"):
        wider.predict(titles)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_is_refused_as_a_poster(predictor: GenrePredictor, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path(os.devnull)):
        with pytest.raises(PosterError, match=r"can't be read \(not a regular file\)"):
            predictor.predict(["Heat"], [path])


@pytest.mark.parametrize(
    "poster",
    [np.zeros((0, 10, 3), np.uint8), np.zeros((10, 0, 3), np.uint8), Image.new("RGB", (0, 4))],
    ids=["no rows", "no columns", "image"],
)
def test_a_poster_without_pixels_is_refused(predictor: GenrePredictor, poster: Any):
    with pytest.raises(PosterError, match="it has no pixels"):
        predictor.predict(["Heat"], [poster])


@pytest.mark.parametrize("blank", ["", "  ", "\n\t", None])
def test_explanations_of_movies_with_a_blank_text_add_up(wider: GenrePredictor, blank: str | None):
    (score,) = wider.scores([blank], synopsis=[SYNOPSES[0]])
    explained = explain_movie(wider.model, {"title": blank, "synopsis": SYNOPSES[0]})
    assert explained.absent == {"title_tfidf", "poster_resnet", "small"}
    np.testing.assert_allclose(1 / (1 + np.exp(-explained.parts.logits)), score, atol=1e-6)


def test_streams_take_pairs_and_mappings(wider: GenrePredictor, posters: list[Path]):
    pair, mapping = wider.stream([("Heat", posters[0]), {"title": "Heat", "poster": posters[0]}])
    assert pair.scores == pytest.approx(mapping.scores, abs=1e-6)


@pytest.mark.parametrize("movie", ["ab", "abc", b"ab", None, ("Heat",), ("Heat", None, None)])
def test_an_invalid_movie_of_a_stream_is_refused_by_number(predictor: GenrePredictor, movie: Any):
    with pytest.raises(TypeError, match=r"^movie 2 must be \(title, poster\), or a dict"):
        list(predictor.stream([("Heat", None), movie]))


def test_a_column_without_a_branch_is_refused(wider: GenrePredictor):
    with pytest.raises(
        PredictionError, match=r"movie 1 has a synposis, .* title, poster, synopsis;"
    ):
        wider.predict(["Heat"], synposis=["A thief."])
    with pytest.raises(PredictionError, match=r"movie 2 has a cast, .* it looks at title, poster"):
        list(wider.stream([{"title": "Heat", "cast": None}, {"title": "Heat", "cast": "Pacino"}]))


def test_a_column_without_a_branch_may_be_empty(wider: GenrePredictor):
    expected = wider.predict(["Heat"])
    assert wider.predict(["Heat"], cast=None) == expected
    assert wider.predict(["Heat"], cast=[None]) == expected
    assert list(wider.stream([{"title": "Heat", "cast": None}])) == expected
    (explained,) = wider.predict(["Heat"], cast=[""], explain=True)
    assert explained.explanation is not None


def test_a_poster_read_by_two_branches_is_reported_once(wider: GenrePredictor, broken: Path):
    (found,) = wider.predict(["Heat"], [broken], errors="report")
    assert found.scores == pytest.approx(wider.predict(["Heat"])[0].scores, abs=1e-6)
    assert found.problem is not None and found.problem.count("broken.jpg") == 1
    (nothing,) = wider.predict(None, [broken], errors="report")
    assert nothing.problem is not None
    assert nothing.problem.endswith("; no title and no synopsis to predict from")


def test_a_branch_reads_each_value_and_encodes_each_batch_once(
    make_checkpoint: Callable[..., Path], posters: list[Path], monkeypatch: pytest.MonkeyPatch
):
    predictor = GenrePredictor.from_checkpoint(make_checkpoint(), "cpu", workers=1)
    read: list[Any] = []
    encoded: list[int] = []
    for branch_input in predictor.model.inputs.values():

        def count_read(
            value: Any, branch_input: Any = branch_input, original: Any = branch_input.read
        ) -> Any:
            read.append(value)
            return original(value)

        def count_encode(items: Any, original: Any = branch_input.encode) -> Any:
            encoded.append(len(items))
            return original(items)

        monkeypatch.setattr(branch_input, "read", count_read)
        monkeypatch.setattr(branch_input, "encode", count_encode)
    list(predictor.stream(("Heat", posters[n % 6]) for n in range(2 * BATCH_SIZE)))
    assert encoded == [BATCH_SIZE] * 4
    assert len(read) == 4 * BATCH_SIZE


def test_an_unreadable_text_is_named_by_column(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    predictor = GenrePredictor.from_checkpoint(make_checkpoint(), "cpu", workers=1)

    def refuse(value: Any) -> Any:
        raise InputError("too strange")

    monkeypatch.setattr(predictor.model.inputs["title_tfidf"], "read", refuse)
    with pytest.raises(InputError, match="the title of movie 1: too strange"):
        predictor.predict(["Heat"])


@pytest.mark.parametrize("poster", ["http://h/a.jpg", Path("folder") / "https://h/a.jpg"], ids=str)
def test_the_url_of_a_poster_is_not_fetched(predictor: GenrePredictor, poster: Any):
    (found,) = predictor.predict(["Heat"], [poster], errors="report")
    assert found.problem is not None and found.genres
    assert found.problem.endswith("a.jpg: can't be read (a web address, which is not fetched)")


def test_a_poster_that_one_branch_cannot_read_is_left_out_by_all(
    make_checkpoint: Callable[..., Path],
):
    network = {"name": "poster_resnet", "stem_stride": 2, "widths": [2], "blocks": [1]}
    more = {"large": (PixelsInput(size=1024), network)}
    predictor = GenrePredictor.from_checkpoint(make_checkpoint(more=more), "cpu", workers=1)
    wide = readable_if_small()
    (found,) = predictor.predict(["Heat"], [wide], errors="report", explain=True)
    (without,) = predictor.predict(["Heat"])
    assert found.problem is not None
    assert found.problem.startswith("the poster of movie 1: 32000 x 1900 pixels")
    assert found.scores == without.scores
    assert found.explanation is not None
    assert found.explanation.absent == {"poster_resnet", "large"}
    with pytest.raises(PosterError, match="the poster of movie 1: 32000 x 1900 pixels"):
        predictor.predict(["Heat"], [wide])
    assert (
        predict_movie(predictor, {"title": "Heat", "poster": wide})["genres"]
        == (predict_movie(predictor, {"title": "Heat"})["genres"])
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("Heat",), TypeError, "titles must be a list"),
        ((["Heat"], "heat.jpg"), TypeError, "posters must be a list"),
        ((5,), TypeError, "titles must be a list, not of type int"),
        (
            (["Heat"], np.array("heat.jpg")),
            TypeError,
            "posters must be a list, not of type ndarray",
        ),
        ((["Heat"], [None, None]), ValueError, "1 titles, but 2 posters"),
        ((None,), ValueError, "none of titles and posters is given"),
        (([1995],), TypeError, "title 1 is of type int"),
        (
            (None, [np.zeros((4, 5))]),
            TypeError,
            r"poster 1 is a \(4, 5\) array of float64, not \(H, W, 3\) of uint8$",
        ),
        ((["Heat"], [3]), TypeError, "poster 1 is of type int"),
        ((["Heat"], None, "ignore"), ValueError, "errors must be"),
    ],
)
def test_invalid_arguments(predictor: GenrePredictor, arguments: tuple, error: type, text: str):
    with pytest.raises(error, match=text):
        predictor.predict(*arguments)


def test_columns_of_unequal_length_or_given_twice_are_refused(wider: GenrePredictor):
    with pytest.raises(ValueError, match="2 titles, but 1 synopsis"):
        wider.predict(["Heat", "Alien"], synopsis=["A thief."])
    with pytest.raises(TypeError, match="synopsis must be a list"):
        wider.predict(["Heat"], synopsis="A thief.")
    with pytest.raises(TypeError, match="title is given twice, as titles and as title"):
        wider.predict(["Heat"], title=["Heat"])


def test_no_movies_give_no_predictions(predictor: GenrePredictor):
    assert predictor.predict([]) == []
    assert predictor.scores([]).shape == (0, 4)


def test_a_stream_reads_a_bounded_number_ahead(predictor: GenrePredictor, posters: list[Path]):
    read = 0

    def movies() -> Iterator[tuple[str, Path]]:
        nonlocal read
        while True:
            read += 1
            yield "Heat", posters[read % 6]

    stream = predictor.stream(movies())
    for _ in range(3):
        next(stream)
    assert read <= 4 * BATCH_SIZE
    stream.close()


def test_an_invalid_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model\.ckpt"):
        GenrePredictor.from_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"it is a folder; name the file, such as checkpo"):
        GenrePredictor.from_checkpoint(tmp_path)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta:x", "meta", "", None, 1.5])
def test_an_unavailable_device_is_refused(tiny_checkpoint: Path, device: Any):
    with pytest.raises(PredictionError, match=f"^device .*{device}.*") as caught:
        GenrePredictor.from_checkpoint(tiny_checkpoint, device)
    assert "auto" in str(caught.value) and "\n" not in str(caught.value)


def test_workers_must_be_at_least_one(tiny_checkpoint: Path):
    with pytest.raises(ValueError, match="at least 1"):
        GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu", workers=0)


@pytest.mark.parametrize("workers", ["2", 2.0, [1]], ids=repr)
def test_workers_must_be_a_whole_number(tiny_checkpoint: Path, workers: Any):
    with pytest.raises(TypeError, match=r"workers must be a whole number, .* not "):
        GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu", workers=workers)


def test_encoders_must_be_a_list(tiny_checkpoint: Path):
    with pytest.raises(TypeError, match=r"encoders must be a list.*: \['timm:resnet18'\]"):
        GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu", encoders="timm:resnet18")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("before", [1, 5])
def test_a_forked_process_predicts(tiny_checkpoint: Path, posters: list[Path], before: int):
    # In a new process: how much of PyTorch earlier tests have used in this one varies.
    code = f"""
import multiprocessing
from genre_lightning import GenrePredictor

predictor = GenrePredictor.from_checkpoint({str(tiny_checkpoint)!r}, "cpu", workers=2)

def predict(movies):
    found = predictor.predict(["Heat"] * movies, [{str(posters[0])!r}] * movies, explain=True)
    return [(each.scores, sorted(each.explanation.branches)) for each in found]

predict({before})
with multiprocessing.get_context("fork").Pool(1) as pool:
    one, five = pool.map(predict, [1, 5])
    assert one == predict(1) and five == predict(5)
print("as before")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "as before\n", done.stderr


def test_a_pickled_predictor_predicts(tiny_checkpoint: Path, posters: list[Path]):
    # joblib, Ray and pools of spawned processes pickle predictors, also with threads started.
    predictor = GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu", workers=2)
    movies = ["Heat", None, "Night"], [posters[0], posters[1], None]
    before = predictor.predict(*movies)
    unpickled = pickle.loads(pickle.dumps(predictor))
    assert unpickled.predict(*movies) == before == predictor.predict(*movies)


def heat_maps_of(prediction: Prediction) -> Callable[[list[int]], np.ndarray]:
    assert prediction.explanation is not None
    found = prediction.explanation.branches["poster_resnet"]
    assert isinstance(found, ImageExplanation)
    return found.heat_maps


def test_an_explained_prediction_can_be_pickled(predictor: GenrePredictor, posters: list[Path]):
    # A process pool pickles the predictions that it returns, which must not contain the model.
    (found,) = predictor.predict(["Heat (1995)"], [posters[0]], explain=True)
    pickled = pickle.dumps(found)
    assert len(pickled) < 100_000
    unpickled = pickle.loads(pickled)
    assert unpickled == found and unpickled.thresholds == found.thresholds
    assert unpickled._repr_html_() == found._repr_html_()
    actual, expected = (heat_maps_of(prediction) for prediction in (unpickled, found))
    np.testing.assert_array_equal(actual([2, 0]), expected([2, 0]))
    with pytest.raises(IndexError, match="genre 4 of 4"):
        actual([4])
    assert pickle.loads(pickle.dumps(unpickled))._repr_html_() == found._repr_html_()


@pytest.mark.slow
def test_predicting_imports_no_heavy_packages(tiny_checkpoint: Path, posters: list[Path]):
    # Importing any of these takes longer than a prediction.
    code = f"""
import sys
import torch
before = set(sys.modules)
from genre_lightning import GenrePredictor
predictor = GenrePredictor.from_checkpoint({str(tiny_checkpoint)!r}, device="cpu")
predictor.predict(["Heat (1995)"], [{str(posters[0])!r}])
heavy = ("pytorch_lightning lightning wandb sklearn scipy torchmetrics torchvision hydra omegaconf "
         "rich sympy torch._dynamo torch._inductor torch.onnx torch.distributed").split()
print(*[name for name in heavy if name in set(sys.modules) - before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_predicting_does_not_change_pytorchs_thread_count(
    tiny_checkpoint: Path, posters: list[Path], repository: Path
):
    code = f"""
import threading
import torch
torch.set_num_threads(3)
from genre_lightning import GenrePredictor
predictor = GenrePredictor.from_checkpoint({str(tiny_checkpoint)!r}, device="cpu", workers=2)
predictor.predict(None, [{str(posters[0])!r}] * 5)
print(torch.get_num_threads())
thread = threading.Thread(target=lambda: print(torch.get_num_threads()))
thread.start()
thread.join()
"""
    done = run_command(["-c", code], repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "3"]
