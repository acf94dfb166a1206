"""Whether the movies that a model is scored on were part of its training (data leakage)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from genre_lightning.data.datamodule import SPLIT_SETTINGS, VAL_SETTINGS, MovieDataModule
from genre_lightning.data.description import same_source
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.summary import MIN_DUPLICATE_SHARE, movie_hashes

#: If a larger share of a drawn split was learnt from, its file is taken for a copy of the training
#: file, and the split is refused.
MAX_LEARNT_SHARE = 0.5


def num_learnt_movies(
    data: MovieDataModule, split: str, learnt_from: str | None, learnt_movies: str | None
) -> int:
    """How many movies of a split have the title and genres of one that a model has learnt from.

    0 if the data is that of its training, or the checkpoint does not say; and for a share below
    ``MIN_DUPLICATE_SHARE``. The arguments are those of :func:`contains_training_movies`.
    """
    if learnt_movies is None or learnt_from == data.learnt_from:
        return 0
    rows = data.splits[split]
    hashes = movie_hashes(data.movie_set.movies[row] for row in rows)
    learnt_hashes = np.frombuffer(bytes.fromhex(learnt_movies), dtype=hashes.dtype)
    count = int(np.isin(hashes, learnt_hashes).sum())
    return count if count >= MIN_DUPLICATE_SHARE * len(rows) else 0


def contains_training_movies(
    data: MovieDataModule,
    split: str,
    trained_on: Mapping[str, Any],
    learnt_from: str | None,
    learnt_movies: str | None = None,
    max_share: float = 0.0,
) -> bool:
    """Whether a split is drawn from movies that a model was trained on, but not as in its training.

    Such a split holds movies that the model has learnt from, so its score would be too good.

    Args:
        data: the movies to score, set up.
        split: name of the split.
        trained_on: ``data`` of ``MovieDataModule.describe``, from the model's checkpoint.
        learnt_from: ``MovieDataModule.learnt_from`` of that training; None if unknown.
        learnt_movies: its ``MovieDataModule.learnt_movies``; None if unknown.
        max_share: of another file, the share of such movies that is allowed.
    """
    if learnt_from is None or not data.is_drawn(split):
        return False
    source = data.source()
    if learnt_from != data.learnt_from:
        # Further columns don't decide which movies there are.
        if same_source(source, trained_on, ignore=(*SPLIT_SETTINGS, "columns")):
            return True
        count = num_learnt_movies(data, split, learnt_from, learnt_movies)
        return count > max_share * len(data.splits[split])
    return split == "val" and any(
        trained_on.get(name, source[name]) != source[name] for name in VAL_SETTINGS
    )


def changed_data_notes(
    data: MovieDataModule,
    split: str,
    trained_on: Mapping[str, Any],
    learnt_from: str | None,
    learnt_movies: str | None = None,
) -> list[str]:
    """A sentence if the score is not, or may not be, one on new movies; none otherwise.

    Takes the arguments of :func:`contains_training_movies`.

    Raises:
        DataError: the split holds movies that the model has learnt from.
    """
    source = data.source()
    location = source.get("path", source.get("root"))
    training_data = (trained_on, learnt_from, learnt_movies)
    if contains_training_movies(data, split, *training_data, max_share=MAX_LEARNT_SHARE):
        settings = " ".join(
            f"data.{name}={trained_on[name]!r:.30}" for name in SPLIT_SETTINGS if name in trained_on
        )
        raise DataError(
            f"split={split}: drawn from {location}, it would hold movies that the checkpoint "
            "has learnt from. The movies have changed since training, or the settings of the "
            f"split differ. Use the settings of training{settings and f' ({settings})'} or "
            f"other movies, or add a column split that says which movies are {split}"
        )
    if learnt_from in (None, data.learnt_from):
        return []
    if source["reader"] == trained_on.get("reader") == "demo":
        num_movies, num_trained = (
            description.get("num_movies") for description in (source, trained_on)
        )
        if num_movies != num_trained:
            return _demo_notes(split, num_movies, num_trained)
    if count := num_learnt_movies(data, split, learnt_from, learnt_movies):
        return [
            f"{count:,} of the {len(data.splits[split]):,} movies of {split} have the title and "
            "genres of a movie that the checkpoint has learnt from: the score is too good"
        ]
    if not same_source(source, trained_on, ignore=SPLIT_SETTINGS):
        return []
    return [
        f"the movies of train and val in {location} are not those that the checkpoint was "
        "trained on, or are in another order: the score is fair only if it has learnt from none of "
        f"{split}"
    ]


def _demo_notes(split: str, num_movies: Any, num_trained: Any) -> list[str]:
    """A sentence if demo movies that are scored were among fewer, or more, in training."""
    # A movie's index determines its genres and poster, and the last ones are test.
    has_new_movies = (
        isinstance(num_movies, int) and isinstance(num_trained, int) and num_movies > num_trained
    )
    if split == "test" and has_new_movies:
        return []
    return [
        f"demo movies are generated by their number, so those of {split} have genres and "
        "posters that the checkpoint has learnt from, and the score is too good. For a "
        f"fair one, use split=test and data.num_movies above its {num_trained!r:.30}"
    ]
