"""Reader for MM-IMDb (Arevalo et al. 2017, "Gated multimodal units for information fusion").

It reads a folder with ``split.json`` (lists of ids: train, dev, test), ``dataset/ID.json`` and
``dataset/ID.jpeg``. The column ``synopsis`` is the longest text in a movie's ``plot``.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from genre_lightning.movies.movie import (
    DataError,
    Movie,
    MovieSet,
    PosterFile,
    without_empty,
)

#: Genres of the benchmark, in alphabetical order; the files contain others, too.
GENRES = (
    "Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama",
    "Family", "Fantasy", "Film-Noir", "History", "Horror", "Music", "Musical", "Mystery",
    "Romance", "Sci-Fi", "Short", "Sport", "Thriller", "War", "Western",
)  # fmt: skip
#: Our name of each split, by its name in split.json.
SPLIT_OF_NAME = {"train": "train", "dev": "val", "test": "test"}
LAYOUT = "split.json (train, dev, test) and dataset/ID.json, dataset/ID.jpeg"


def read_mmimdb(root: str | Path) -> MovieSet:
    """Find the movies that ``split.json`` names.

    Genres beyond the benchmark's 23 are left out, and so is a movie that has none of them; both are
    counted in ``notes``.

    Raises:
        DataError: a file is missing or malformed; the message names the file and the key.
    """
    root = Path(root).expanduser()
    splits = _read_splits(root)
    files = _files(root / "dataset")
    other_genres: Counter[str] = Counter()
    movies: list[Movie] = []
    num_without_genres = 0
    for name, ids in splits.items():
        for movie_id in ids:
            movie = _read_movie(root, files, movie_id, SPLIT_OF_NAME[name], other_genres)
            if movie is None:
                num_without_genres += 1
            else:
                movies.append(movie)
    notes = []
    if other_genres:
        common = ", ".join(f"{genre} {count:,}" for genre, count in other_genres.most_common(5))
        notes.append(f"genres that are not of the benchmark's 23, left out: {common}")
    if num_without_genres:
        notes.append(
            f"movies without a genre of the benchmark's 23, left out: {num_without_genres:,}"
        )
    return MovieSet(movies, GENRES, tuple(notes))


def _read_splits(root: Path) -> dict[str, list[str]]:
    path = root / "split.json"
    splits = _read_json(path, f"point data.root at a folder with {LAYOUT}")
    for name in SPLIT_OF_NAME:
        ids = splits.get(name)
        if not isinstance(ids, list) or not all(isinstance(each, (str, int)) for each in ids):
            raise DataError(f"{path}: {name!r} is missing, or not a list of ids")
    ids_by_split = {name: [str(each) for each in splits[name]] for name in SPLIT_OF_NAME}
    counts = Counter(itertools.chain(*ids_by_split.values()))
    if repeated := [movie_id for movie_id, count in counts.items() if count > 1]:
        raise DataError(
            f"{path}: the id {repeated[0]!r:.200} is listed {counts[repeated[0]]} times: list each "
            "movie once, in one split"
        )
    return ids_by_split


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no {path}; {hint}") from None
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON in UTF-8: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


def _files(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError as error:
        raise DataError(f"can't read the folder {folder}: {error.strerror}; {LAYOUT}") from error


def _read_movie(
    root: Path,
    files: dict[str, os.DirEntry[str]],
    movie_id: str,
    split: str,
    other_genres: Counter[str],
) -> Movie | None:
    """Read one movie; None if it has no genre of the benchmark. Counts its other genres."""
    where = f"{movie_id}.json"
    entry = _read_json(root / "dataset" / where, f"split.json names it; expected: {LAYOUT}")
    title = entry.get("title")
    if not isinstance(title, str) or not title.strip():
        raise DataError(f"{where}, key title: empty, or not a text")
    listed_genres = entry.get("genres")
    if not isinstance(listed_genres, list) or not all(
        isinstance(genre, str) for genre in listed_genres
    ):
        raise DataError(f"{where}, key genres: not a list of texts")
    other_genres.update(genre for genre in listed_genres if genre not in GENRES)
    genres = tuple(dict.fromkeys(genre for genre in listed_genres if genre in GENRES))
    if not genres:
        return None
    plot = entry.get("plot", [])
    texts = [plot] if isinstance(plot, str) else plot
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}, key plot: not a list of texts")
    year = entry.get("year")
    title = title.strip() + (f" ({year})" if isinstance(year, int) else "")
    columns = {
        "title": title,
        "poster": _poster(files.get(f"{movie_id}.jpeg")),
        "synopsis": max(texts, key=len, default="").strip(),
    }
    return Movie(movie_id, without_empty(columns), genres, split, where)


def _poster(entry: os.DirEntry[str] | None) -> PosterFile | None:
    if entry is None or not entry.is_file():
        return None
    return PosterFile.at(Path(entry.path))
