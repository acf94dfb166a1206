"""What the command prints of a prediction: lines for people, JSON for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from genre_lightning.errors import UserError
from genre_lightning.page.wording import printable

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
    threshold = predictor.thresholds[genre]
    return f"{mark} {genre}: {prediction.scores[genre]:.2f}  (from {threshold:.2f})"


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
        "scores": {genre: round(score, 6) for genre, score in prediction.scores.items()},
        "thresholds": {genre: round(value, 6) for genre, value in predictor.thresholds.items()},
        "problem": prediction.problem,
    }
