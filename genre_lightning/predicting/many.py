"""Predict the genres of many movies: of a CSV file or of a folder of posters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre_lightning.cells import guard, score_cell, score_columns, separator_of
from genre_lightning.inputs.poster_limits import POSTER_SUFFIXES
from genre_lightning.predicting.arguments import STREAM
from genre_lightning.predicting.predictor import POSTER, TITLE
from genre_lightning.predicting.printing import (
    HEAT_MAP_INFIX,
    CommandError,
    as_json,
    describe_columns,
    note,
    note_ignored_column,
    summary_lines,
)
from genre_lightning.predicting.tables import (
    MovieRows,
    open_input,
    open_output,
    predicting_progress,
)
from genre_lightning.runs.quoting import shell_command
from genre_lightning.wording import counted, first_few, printable

if TYPE_CHECKING:
    from genre_lightning.predicting.asked import MovieAsker
    from genre_lightning.predicting.predictor import GenrePredictor, Prediction

#: Columns of the output before the genres' scores.
ADDED_COLUMNS = ("predicted", "problem")
#: Keys of the JSON output besides the columns of a row.
ADDED_JSON_KEYS = ("genres", "scores", "thresholds", "problem")
#: The most genres named in a note.
MAX_NAMED = 5


def predict_csv(
    predictor: GenrePredictor, source: Path, out: Path | None, movie_asker: MovieAsker | None = None
) -> None:
    """Write the rows of a CSV with their predictions, as a CSV or as lines of JSON.

    Args:
        predictor: of the model.
        source: CSV to read; ``STREAM`` for standard input.
        out: CSV to write, a different file; ``STREAM`` for standard output; None to print JSON.
        movie_asker: asks a language model about the movies; None to ask none.

    Raises:
        CommandError: a file can't be read or written, or the CSV has no column that the model looks
            at.
    """
    if out is not None and out.exists() and source.exists() and out.samefile(source):
        raise CommandError(f"{out}: --out is the file that --csv reads; name another one")
    tally = _Tally()
    with open_input(source) as file, predicting_progress(file, source) as update:
        kinds = _usable_columns(predictor, movie_asker)
        rows = MovieRows(file, source, kinds)
        _check_header(predictor, rows, ADDED_JSON_KEYS if out is None else ADDED_COLUMNS)
        predictions = tally.count(_predictions(predictor, rows.movies(), movie_asker))
        if out is None:
            for prediction in predictions:
                columns = rows.cells_by_name(rows.pop_row())
                print(json.dumps(as_json(predictor, prediction, columns)))
                update()
        else:
            added = _added_columns(predictor, {*kinds, *rows.names})
            _note_separator(predictor)
            _note_columns_like_genres(predictor, rows, added)
            with open_output(out) as writer:
                writer.writerow([*map(guard, rows.header), *map(guard, added)])
                for prediction in predictions:
                    cells = map(guard, rows.pop_row())
                    writer.writerow([*cells, *_prediction_cells(predictor, prediction)])
                    update()
    tally.print_summary(out)


def _check_header(predictor: GenrePredictor, rows: MovieRows, added: Sequence[str]) -> None:
    """Refuse an unusable header, and note which of its columns are ignored.

    Args:
        predictor: of the model.
        rows: of the CSV.
        added: names of the columns that the output adds, apart from the scores.

    Raises:
        CommandError: the CSV already has one of ``added``, or no column that the model looks at.
    """
    for name in added:
        if name in rows.names:
            raise CommandError(
                f"{rows.name}: it has a column {name!r}, which the output adds: rename it or "
                "leave it out"
            )
    if not rows.positions:
        raise CommandError(
            f"{rows.name}: it has none of the columns {', '.join(rows.columns)} that the model "
            f"looks at; its first line is {','.join(rows.header)[:200]!r}"
        )
    missing = [column for column in rows.columns if column not in rows.positions]
    if missing:
        note(
            f"{rows.name} has no column {', '.join(missing)}, which the model looks at: predicted "
            "without"
        )
    for name in (TITLE, POSTER):
        if name in rows.names and name not in rows.columns:
            note_ignored_column(predictor, name)


def _note_columns_like_genres(
    predictor: GenrePredictor, rows: MovieRows, added: Sequence[str]
) -> None:
    clashing = [genre for genre in predictor.genres if genre.lower() in rows.names]
    if clashing:
        score_column = added[len(ADDED_COLUMNS) + predictor.genres.index(clashing[0])]
        note(
            f"{rows.name} has columns named like genres ({first_few(clashing, MAX_NAMED)}): they "
            f"stay as they are, and the scores of {clashing[0]} are in the column {score_column!r}"
        )


def _is_poster(path: Path) -> bool:
    """Whether a file name is that of a poster and not of a heat map that --explain wrote."""
    name = path.name.lower()
    return name.endswith(POSTER_SUFFIXES) and not (
        name.startswith(".") or (HEAT_MAP_INFIX in name and name.endswith(".png"))
    )


def predict_folder(
    predictor: GenrePredictor,
    folder: Path,
    out: Path | None,
    json_lines: bool,
    movie_asker: MovieAsker | None = None,
) -> None:
    """Print the genres of each poster in a folder, or write them as CSV.

    Args:
        predictor: of the model.
        folder: of posters whose file names are the titles.
        out: CSV to write; ``STREAM`` for standard output; None to print.
        json_lines: print JSON.
        movie_asker: asks a language model about the movies; None to ask none.

    Raises:
        CommandError: the folder can't be read or contains no poster, the output can't be written,
            or the model looks at neither titles nor posters.
    """
    posters, num_others = _find_posters(folder)
    usable = _usable_columns(predictor, movie_asker)
    if not {TITLE, POSTER} & set(usable):
        raise CommandError(
            f"the model has no branch for titles or posters ({describe_columns(predictor)}): "
            "use --csv instead of --folder"
        )
    if num_others:
        skipped = (
            "1 file is not a poster" if num_others == 1 else f"{num_others} files are not posters"
        )
        note(f"{folder}: {skipped}, left out")
    if POSTER not in usable:
        note("the model has no branch for posters: only the file names are used")

    def movies() -> Iterator[dict[str, str | Path]]:
        for path in posters:
            given: dict[str, str | Path] = {TITLE: path.stem, POSTER: path}
            yield {name: value for name, value in given.items() if name in usable}

    tally = _Tally()
    predictions = tally.count(_predictions(predictor, movies(), movie_asker))
    if out is not None:
        _note_separator(predictor)
        with open_output(out) as writer:
            writer.writerow([TITLE, POSTER, *map(guard, _added_columns(predictor, usable))])
            for path, prediction in zip(posters, predictions, strict=True):
                names = [guard(path.stem), guard(path.name)]
                writer.writerow([*names, *_prediction_cells(predictor, prediction)])
    elif json_lines:
        for path, prediction in zip(posters, predictions, strict=True):
            given = {TITLE: path.stem, POSTER: str(path)}
            print(json.dumps(as_json(predictor, prediction, given)))
    else:
        for number, (path, prediction) in enumerate(zip(posters, predictions, strict=True)):
            if number:
                print()
            print(printable(path.stem))
            for line in summary_lines(predictor, prediction):
                print(line)
    tally.print_summary(out)


def _find_posters(folder: Path) -> tuple[list[Path], int]:
    """Return the posters in a folder, sorted by name, and the number of its other files."""
    try:
        files = sorted(path for path in folder.iterdir() if not path.is_dir())
    except OSError as error:
        raise CommandError(f"{folder}: can't be read ({error.strerror or error})") from error
    posters = [path for path in files if _is_poster(path)]
    if not posters:
        raise CommandError(f"{folder}: no poster in it ({', '.join(POSTER_SUFFIXES)})")
    return posters, len(files) - len(posters)


class _Tally:
    """Counts movies, and those of them with a problem."""

    def __init__(self) -> None:
        self.movies = self.problems = 0

    def count(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Count predictions as they are read."""
        for prediction in predictions:
            self.movies += 1
            self.problems += prediction.problem is not None
            yield prediction

    def print_summary(self, out: Path | None) -> None:
        """Print the counts on standard error, and where the predictions were written."""
        text = counted(self.movies, "movie")
        if self.problems:
            text += (
                f", {self.problems} with a problem (a poster that can't be read, or nothing to "
                "predict from)"
            )
        destination = "" if out is None or out == STREAM else f"; written to {shell_command(out)}"
        print(text + destination, file=sys.stderr)


def _usable_columns(predictor: GenrePredictor, movie_asker: MovieAsker | None) -> dict[str, str]:
    """The columns that the models look at, each with its kind: "text" or "poster"."""
    return predictor.model.given_columns if movie_asker is None else movie_asker.columns


def _predictions(
    predictor: GenrePredictor, movies: Iterable[Mapping[str, Any]], movie_asker: MovieAsker | None
) -> Iterator[Prediction]:
    if movie_asker is None:
        return predictor.stream(movies, errors="report")
    return (prediction for prediction, _ in movie_asker.predictions(movies, errors="report"))


def _added_columns(predictor: GenrePredictor, others: Iterable[str]) -> list[str]:
    """Names of the columns that the output adds, distinct from those of the other columns."""
    return [
        *ADDED_COLUMNS,
        *score_columns(predictor.genres, [TITLE, POSTER, *others, *ADDED_COLUMNS]),
    ]


def _note_separator(predictor: GenrePredictor) -> None:
    separator = separator_of(predictor.genres)
    if separator != "|":
        genre = next(genre for genre in predictor.genres if "|" in genre)
        note(f"in the column predicted {separator!r} joins genres: {genre!r} has a '|' in it")


def _prediction_cells(predictor: GenrePredictor, prediction: Prediction) -> list[str]:
    scores = [
        score_cell(prediction.scores[genre]) if prediction.scores else ""
        for genre in predictor.genres
    ]
    joined = separator_of(predictor.genres).join(prediction.genres)
    texts = (joined, prediction.problem or "")
    return [*map(guard, texts), *scores]
