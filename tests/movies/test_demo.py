"""The demo dataset: reproducible, and learnable only with both branches."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

from genre_lightning.movies.demo import (
    GENRES,
    POSTER_GENRES,
    TITLE_GENRES,
    compose_title,
    draw_labels,
    draw_poster,
    read_demo,
)
from genre_lightning.movies.movie import DataError, encode_genres
from tests.datasets import poster_of

SMALL = {"num_movies": 60, "poster_height": 48}
GOLDEN_LABELS = [
    [0, 0, 1, 0, 0, 0, 1, 0],
    [0, 0, 1, 0, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 0, 0, 1],
]
GOLDEN_TITLES = [
    "Alibi, the Lucky Promise, The (2000)",
    "Broken Silence (1981)",
    "Walter's Forgiveness (1980)",
    "Zoë's House (1992)",
    "Distant Marshal (1956)",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    return read_demo(root, num_movies=800, poster_height=64)


def test_each_genre_shows_in_either_title_or_poster():
    assert sorted((*TITLE_GENRES, *POSTER_GENRES)) == sorted(GENRES)
    for seed in range(30):
        drawn = [
            [
                (compose_title(np.random.default_rng(seed), ["Drama", *genres])),
                (draw_poster(np.random.default_rng(seed), ["Comedy", *others], 48)),
            ]
            for genres, others in ([(), ()], [POSTER_GENRES, TITLE_GENRES])
        ]
        assert drawn[0] == drawn[1]


def test_same_seed_same_movies(tmp_path):
    first = read_demo(tmp_path / "a", **SMALL).movies
    again = read_demo(tmp_path / "b", **SMALL).movies
    other = read_demo(tmp_path / "b", **SMALL, seed=1).movies
    assert [(m.title, m.genres) for m in first] == [(m.title, m.genres) for m in again]
    assert [(m.title, m.genres) for m in first] != [(m.title, m.genres) for m in other]
    posters = [poster and poster.read_bytes() for poster in map(poster_of, first)]
    assert posters == [poster and poster.read_bytes() for poster in map(poster_of, again)]
    assert posters != [poster and poster.read_bytes() for poster in map(poster_of, other)]


def test_titles_and_labels_do_not_change_between_versions():
    """Reported scores depend on these movies, so a change must be intentional."""
    rng = np.random.default_rng([0, 0])
    labels = draw_labels(rng, 5)
    titles = [compose_title(rng, [GENRES[g] for g in np.flatnonzero(row)]) for row in labels]
    assert labels.astype(int).tolist() == GOLDEN_LABELS
    assert titles == GOLDEN_TITLES


def test_posters_are_drawn_once(tmp_path):
    before = [poster_of(m) for m in read_demo(tmp_path, **SMALL).movies]
    assert [poster_of(m) for m in read_demo(tmp_path, **SMALL).movies] == before  # same time stamps


def test_deleted_posters_are_drawn_again(tmp_path, caplog):
    posters = [p for p in map(poster_of, read_demo(tmp_path, **SMALL).movies) if p]
    posters[3].path.unlink()
    again = [p for p in map(poster_of, read_demo(tmp_path, **SMALL).movies) if p]
    assert [p.path for p in again] == [p.path for p in posters]
    assert "1 poster missing" in caplog.text


def test_posters_have_the_requested_size(demo):
    for movie in demo.movies[:30]:
        poster = poster_of(movie)
        if poster is not None:
            with Image.open(io.BytesIO(poster.read_bytes())) as image:
                assert (image.size, image.mode, image.format) == ((42, 64), "RGB", "JPEG")


def test_demo_movies_resemble_real_data(demo):
    labels = encode_genres(demo.movies, demo.genres).astype(float)
    assert (labels.sum(axis=1) >= 1).all()
    share = labels.mean(axis=0)
    assert share.max() > 4 * share.min() > 0.1
    correlation = np.corrcoef(labels.T)
    column = {genre: g for g, genre in enumerate(demo.genres)}
    assert correlation[column["Comedy"], column["Drama"]] < -0.15
    assert correlation[column["Action"], column["Thriller"]] > 0.08
    assert [m.split for m in demo.movies] == ["train"] * 640 + ["test"] * 160
    missing = sum(poster_of(m) is None for m in demo.movies)
    assert missing == pytest.approx(80, abs=30)
    assert all(m.title.endswith(")") and m.title[-6] == "(" for m in demo.movies)
    assert any(m.title.split(" (")[0].endswith(", The") for m in demo.movies)


def test_all_genres_need_both_title_and_poster(demo):
    """Linear models from scikit-learn find the genres of a branch in that branch only."""
    labels = encode_genres(demo.movies, demo.genres)
    train = np.array([m.split == "train" for m in demo.movies])
    titles = np.array([m.title for m in demo.movies])
    vectorizer = TfidfVectorizer(analyzer="word").fit(titles[train])
    title = scores(vectorizer.transform(titles), labels, train)
    poster = scores(np.stack([poster_features(poster_of(m)) for m in demo.movies]), labels, train)
    precision = {
        name: dict(
            zip(
                demo.genres,
                average_precision_score(labels[~train], s[~train], average=None),
                strict=True,
            )
        )
        for name, s in {"title": title, "poster": poster, "sum": title + poster}.items()
    }
    for genre in TITLE_GENRES:
        assert precision["title"][genre] > precision["poster"][genre] + 0.2, genre
    for genre in POSTER_GENRES:
        assert precision["poster"][genre] > precision["title"][genre] + 0.2, genre
    means = {name: np.mean(list(values.values())) for name, values in precision.items()}
    assert means["sum"] > max(means["title"], means["poster"]) + 0.15, means
    assert means["sum"] < 0.97  # but the task is not trivial


def scores(features, labels, train):
    """Logistic regressions fitted on the training rows: (N, G) logits minus those of the prior."""
    model = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=500))
    model.fit(features[train], labels[train])
    prior = labels[train].mean(axis=0)
    return model.decision_function(features) - np.log(prior / (1 - prior))


def poster_features(poster):
    """(70,) a histogram of coarse colours, and mean differences between neighbouring pixels."""
    if poster is None:
        return np.zeros(4**3 + 6)
    pixels = np.asarray(Image.open(io.BytesIO(poster.read_bytes())), dtype=np.int64)
    bins = (pixels // 64) @ np.array([16, 4, 1])
    histogram = np.bincount(bins.ravel(), minlength=64) / bins.size
    steps = [np.abs(np.diff(pixels, axis=axis)).mean(axis=(0, 1)) / 32 for axis in (0, 1)]
    return np.concatenate([np.sqrt(histogram), *steps])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"num_movies": 3}, "num_movies=3", id="few"),
        pytest.param({"poster_height": 5}, "poster_height=5", id="low"),
        pytest.param({"missing_posters": 1.5}, "missing_posters=1.5", id="missing"),
        pytest.param({"test_fraction": 0.0}, "test_fraction=0.0", id="no-test"),
        pytest.param({"test_fraction": 0.01, "num_movies": 20}, "empty", id="empty-test"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        read_demo(tmp_path, **options)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_missing_posters_may_be_none_or_all(tmp_path, share):
    movies = read_demo(tmp_path, **SMALL, missing_posters=share).movies
    assert {poster_of(m) is None for m in movies} == {bool(share)}


def test_missing_posters_change_nothing_else(tmp_path):
    """`missing_posters` changes no title and no remaining poster."""
    full = read_demo(tmp_path, **SMALL, missing_posters=0.0).movies
    some = read_demo(tmp_path, **SMALL, missing_posters=0.5).movies
    assert [m.title for m in full] == [m.title for m in some]
    for movie, same_movie in zip(full, some, strict=True):
        first, second = poster_of(movie), poster_of(same_movie)
        assert first is not None
        assert second is None or second.read_bytes() == first.read_bytes()
