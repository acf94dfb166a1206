"""What the command prints of a prediction: lines for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genre_lightning.cells import score_cell
from genre_lightning.errors import UserError
from genre_lightning.report.numbers import digits_beside, number
from genre_lightning.wording import printable

if TYPE_CHECKING:
    from genre_lightning.predicting.predictor import GenrePredictor, Prediction


#: Stands in the name of a heat map's file, between the poster's and the genre's.
HEAT_MAP = ".why-"


class CommandError(UserError):
    """What keeps the command from doing what it was asked to."""


def note(text: str) -> None:
    """Say something beside the answer, on standard error."""
    print(f"note: {text}", file=sys.stderr)


def note_left_out(predictor: GenrePredictor, column: str) -> None:
    """Say that a column that was given is of no use to the model."""
    note(f"the model has no branch for the column {column} ({looks_at(predictor)}): left out")


def looks_at(predictor: GenrePredictor) -> str:
    """Such as "it looks at title, poster"."""
    return f"it looks at {', '.join(predictor.columns)}"


def score_line(predictor: GenrePredictor, prediction: Prediction, genre: str) -> str:
    """A genre, its score and threshold, marked where it is predicted."""
    mark = "*" if genre in prediction.genres else " "
    score, threshold = prediction.scores[genre], predictor.thresholds[genre]
    digits = digits_beside(score, threshold)
    return f"{mark} {genre}: {number(score, digits)}  (from {number(threshold, digits)})"


def short_lines(predictor: GenrePredictor, prediction: Prediction) -> Iterator[str]:
    """The genres predicted, or the likeliest one where none is."""
    if prediction.problem:
        yield f"  problem: {printable(prediction.problem)}"
    for genre, _ in prediction.ranked()[: max(1, len(prediction.genres))]:
        yield score_line(predictor, prediction, genre)


def as_json(
    predictor: GenrePredictor, prediction: Prediction, columns: Mapping[str, Any]
) -> dict[str, Any]:
    """One movie's answer as plain data: its columns by name, then what the model says.

    Args:
        predictor: of the model.
        prediction: of the movie.
        columns: as given; those that the model looks at and that are not among them are null.
    """
    given = {**dict.fromkeys(predictor.columns), **columns}
    return {
        **{
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in given.items()
        },
        "genres": list(prediction.genres),
        "scores": _scores(prediction.scores),
        "thresholds": _scores(predictor.thresholds),
        "problem": prediction.problem,
    }


def _scores(values: Mapping[str, float]) -> dict[str, float]:
    """As in a CSV: with the digits that tell a score from its threshold."""
    return {genre: float(score_cell(value)) for genre, value in values.items()}
