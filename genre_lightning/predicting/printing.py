"""The command's output for a prediction: lines for people, JSON for programs."""

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


#: Separates the poster's name from the genre's in the file name of a heat map.
HEAT_MAP_INFIX = ".why-"


class CommandError(UserError):
    """A reason why the command can't do what it was asked to."""


def note(text: str) -> None:
    """Print a note on standard error, apart from the answer."""
    print(f"note: {text}", file=sys.stderr)


def note_ignored_column(predictor: GenrePredictor, column: str) -> None:
    """Note that the model ignores a column that was given."""
    note(
        f"the model has no branch for the column {column} ({describe_columns(predictor)}): left out"
    )


def describe_columns(predictor: GenrePredictor) -> str:
    """The model's columns in words: "it looks at title, poster"."""
    return f"it looks at {', '.join(predictor.columns)}"


def score_line(predictor: GenrePredictor, prediction: Prediction, genre: str) -> str:
    """A line with a genre, its score and its threshold, marked if the genre is predicted."""
    mark = "*" if genre in prediction.genres else " "
    score, threshold = prediction.scores[genre], predictor.thresholds[genre]
    digits = digits_beside(score, threshold)
    return f"{mark} {genre}: {number(score, digits)}  (from {number(threshold, digits)})"


def summary_lines(predictor: GenrePredictor, prediction: Prediction) -> Iterator[str]:
    """Lines with any problem and the predicted genres, or the top one if there are none."""
    if prediction.problem:
        yield f"  problem: {printable(prediction.problem)}"
    for genre, _ in prediction.ranked()[: max(1, len(prediction.genres))]:
        yield score_line(predictor, prediction, genre)


def as_json(
    predictor: GenrePredictor, prediction: Prediction, columns: Mapping[str, Any]
) -> dict[str, Any]:
    """One movie as plain data: its columns by name, then the prediction.

    Args:
        predictor: of the model.
        prediction: of the movie.
        columns: as given; the model's other columns are null.
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
    """Round scores as in a CSV, to enough digits to distinguish a score from its threshold."""
    return {genre: float(score_cell(value)) for genre, value in values.items()}
