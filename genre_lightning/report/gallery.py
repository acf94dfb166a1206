"""The gallery of a report: which movies to show, and the card of each."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.special import logit

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.explain.explainer import BranchExplanation
from genre_lightning.explain.parts import ScoreParts, branch_labels, split_logits
from genre_lightning.explain.table import explain_branch, find_explainer
from genre_lightning.inputs.decode import PosterError
from genre_lightning.movies.movie import Movie, PosterFile
from genre_lightning.report.card import (
    BranchCard,
    branch_card,
    cooccurrence_card,
    data_uri,
    thumbnail,
)
from genre_lightning.report.evaluation import SplitScores

_EPS = 1e-6
#: A card shows the true, the predicted and this many of the likeliest genres.
_NUM_LIKELIEST = 3
#: Most texts to embed to explain one branch of a card: with 24, two dozen cards take half a minute.
_MAX_EXPLAIN_TEXTS = 24
#: Characters shown of a text other than the title.
_MAX_TEXT_CHARACTERS = 160


@dataclass(frozen=True)
class Pick:
    """A movie for the gallery.

    Attributes:
        index: its index in the split's scores.
        genre: index of the genre it is shown for.
    """

    index: int
    genre: int


def margins(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return how far each score lies above its threshold, in logits: (N, G) float64."""
    score_logits, threshold_logits = (
        logit(np.clip(values.astype(np.float64), _EPS, 1 - _EPS)) for values in (scores, thresholds)
    )
    return np.asarray(score_logits - threshold_logits)


def most_confident(
    scores: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    max_picks: int,
    max_per_genre: int = 2,
) -> dict[str, list[Pick]]:
    """Pick the predictions farthest from their thresholds in logits, on the right or wrong side.

    Args:
        scores: (N, G) float32 in [0, 1].
        targets: (N, G) zeros and ones.
        thresholds: (G,) float32.
        max_picks: maximum number of movies in a list, each once.
        max_per_genre: maximum number of them for the same genre, so that no genre fills a list.

    Returns:
        "right": all genres of the movie are correct, ordered by its least confident predicted
        genre; "invented": a genre is predicted that the movie does not have; "missed": the reverse.
    """
    truth = np.asarray(targets) > 0
    predicted = scores >= thresholds
    margin = margins(scores, thresholds)

    exact = np.flatnonzero((truth == predicted).all(axis=1) & predicted.any(axis=1))
    min_margin = np.where(predicted[exact], margin[exact], np.inf)
    genre = min_margin.argmin(axis=1)
    candidates = {"right": (exact, genre, min_margin.min(axis=1, initial=np.inf))}
    for name, mask in (("invented", predicted & ~truth), ("missed", truth & ~predicted)):
        rows, columns = np.nonzero(mask)
        candidates[name] = (rows, columns, np.abs(margin[rows, columns]))
    return {
        name: _select_picks(*arrays, max_picks, max_per_genre)
        for name, arrays in candidates.items()
    }


def _select_picks(
    rows: np.ndarray, genres: np.ndarray, confidence: np.ndarray, max_picks: int, max_per_genre: int
) -> list[Pick]:
    """Pick the surest predictions, spread over movies and genres as in :func:`most_confident`.

    Args:
        rows: (n,) the movie of each prediction.
        genres: (n,) its genre.
        confidence: (n,) its distance from the threshold.
        max_picks: maximum number of picks.
        max_per_genre: maximum number of picks of one genre.
    """
    picks: list[Pick] = []
    picks_of_genre: Counter[int] = Counter()
    seen_rows: set[int] = set()
    for index in np.argsort(-confidence, kind="stable"):
        row, genre = int(rows[index]), int(genres[index])
        if row not in seen_rows and picks_of_genre[genre] < max_per_genre:
            seen_rows.add(row)
            picks_of_genre[genre] += 1
            picks.append(Pick(row, genre))
        if len(picks) == max_picks:
            break
    return picks


@dataclass(frozen=True)
class GenreScore:
    """A genre on a card; ``verdict`` is "hit", "invented", "missed" or "" for a true negative."""

    genre: str
    score: float
    threshold: float
    verdict: str


@dataclass(frozen=True)
class Card:
    """One movie in the gallery; the poster is a data: URI, or None with a reason in ``no_poster``.

    ``logit`` is the logit of ``genre``: the sum of ``bias`` and the parts of all ``branches``.
    ``texts`` are headings with texts: the model's other text columns, shortened, and remarks.
    """

    title: str
    texts: list[tuple[str, str]]
    genre: str
    score: float
    threshold: float
    true_genres: list[str]
    genres: list[GenreScore]
    poster: str | None
    no_poster: str
    logit: float
    bias: float
    branches: list[BranchCard]


def make_card(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    pick: Pick,
    remarks: Mapping[str, Mapping[int, str]] | None = None,
) -> Card:
    """Build the card of a picked movie: its poster, scores and the parts of its logit.

    Args:
        model: the model that was scored.
        data: set up.
        scores: of the split.
        pick: the movie.
        remarks: further texts by heading, then by the movie's index in the dataset.
    """
    if scores.folds is not None:  # only this member scored the movie
        model = replace(model, member=int(scores.folds[pick.index]))
    row = int(scores.rows[pick.index])
    movie = data.movie_set.movies[row]
    thumbnails = {
        column: thumbnail(value)
        for column, value in movie.columns.items()
        if isinstance(value, PosterFile)
    }
    pictures = {column: picture for column, (picture, _) in thumbnails.items() if picture}
    # The first is enough: a movie has one poster.
    poster, reason = next(iter(thumbnails.values()), (None, "no poster"))
    parts = _score_parts(model, scores, pick.index)
    return Card(
        title=movie.title,
        texts=_texts(model, movie)
        + [
            (heading, texts_by_row[row])
            for heading, texts_by_row in (remarks or {}).items()
            if texts_by_row.get(row)
        ],
        genre=model.genres[pick.genre],
        score=float(scores.scores[pick.index, pick.genre]),
        threshold=float(model.thresholds[pick.genre]),
        true_genres=[
            genre
            for genre, target in zip(model.genres, scores.targets[pick.index], strict=True)
            if target > 0
        ],
        genres=_genre_scores(model, scores, pick.index),
        poster=None if poster is None else data_uri(poster),
        no_poster=reason,
        logit=float(parts.logits[pick.genre]),
        bias=float(parts.bias[pick.genre]),
        branches=_branch_cards(model, scores, pick, movie, parts, pictures)
        + cooccurrence_card(parts, pick.genre),
    )


def _texts(model: TrainedModel, movie: Movie) -> list[tuple[str, str]]:
    """The model's text columns other than the title, and their shortened values."""
    return [
        (column, textwrap.shorten(str(movie.value(column)), _MAX_TEXT_CHARACTERS, placeholder=" …"))
        for column, kind in model.columns.items()
        if kind == "text" and column != "title" and movie.value(column)
    ]


def _genre_scores(model: TrainedModel, scores: SplitScores, index: int) -> list[GenreScore]:
    """The true, the predicted and the likeliest genres of a movie, the likeliest first.

    Args:
        model: the model that was scored.
        scores: of the split.
        index: the movie's index in ``scores``.
    """
    values, is_true = scores.scores[index].numpy(), scores.targets[index].numpy() > 0
    thresholds = model.thresholds.numpy()
    predicted = values >= thresholds
    order = np.argsort(-values, kind="stable").tolist()
    is_shown = is_true | predicted
    is_shown[order[:_NUM_LIKELIEST]] = True
    verdicts = {(True, True): "hit", (False, True): "invented", (True, False): "missed"}
    return [
        GenreScore(
            model.genres[g],
            float(values[g]),
            float(thresholds[g]),
            verdicts.get((bool(is_true[g]), bool(predicted[g])), ""),
        )
        for g in order
        if is_shown[g]
    ]


def _score_parts(model: TrainedModel, scores: SplitScores, index: int) -> ScoreParts:
    """Split the logits of the movie at ``index`` into the parts of the branches."""
    logits = {
        branch: values[index].numpy() if bool(scores.has_column[branch][index]) else None
        for branch, values in scores.branch_logits.items()
    }
    return split_logits(model, logits)


def _branch_cards(
    model: TrainedModel,
    scores: SplitScores,
    pick: Pick,
    movie: Movie,
    parts: ScoreParts,
    pictures: Mapping[str, Image.Image],
) -> list[BranchCard]:
    """Build the card of each branch: what it adds to the logit of a picked movie, and why.

    Args:
        model: the model that was scored.
        scores: of the split.
        pick: the movie and genre.
        movie: the picked movie.
        parts: of its logits.
        pictures: thumbnails of its posters, by column.
    """
    cards = []
    for branch, label in branch_labels(model.inputs).items():
        present = bool(scores.has_column[branch][pick.index])
        cards.append(
            branch_card(
                label,
                present,
                float(parts.branches[branch][pick.genre]),
                pick.genre,
                _explain(model, movie, branch) if present else None,
                pictures.get(model.inputs[branch].column),
            )
        )
    return cards


def _explain(model: TrainedModel, movie: Movie, branch: str) -> BranchExplanation | None:
    """Explain a branch that reads this movie; None if it can't be explained."""
    value = movie.value(model.inputs[branch].column)
    if find_explainer(model, branch) is None:
        return None
    if not isinstance(value, PosterFile):
        return explain_branch(model, branch, value, _MAX_EXPLAIN_TEXTS)
    try:
        return explain_branch(model, branch, value.read_bytes())
    except (OSError, PosterError):  # the poster was readable when the cache was made
        return None


def make_gallery(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    count: int,
    remarks: Mapping[str, Mapping[int, str]] | None = None,
) -> dict[str, list[Card]]:
    """Build the cards for each list of :func:`most_confident`.

    ``remarks`` are those of :func:`make_card`. With remarks, which come from a language model,
    movies that it did not answer are left out.
    """
    values, truth = scores.scores.numpy(), scores.targets.numpy()
    indices = np.arange(len(values))
    if remarks is not None:
        indices = np.flatnonzero(
            np.stack([present.numpy() for present in scores.has_column.values()]).any(axis=0)
        )
    picks = most_confident(values[indices], truth[indices], model.thresholds.numpy(), count)
    return {
        name: [
            make_card(model, data, scores, Pick(int(indices[pick.index]), pick.genre), remarks)
            for pick in picks_of_list
        ]
        for name, picks_of_list in picks.items()
    }
