"""Reader for MovieLens-1M with posters, as shipped by the original project, and its download.

It reads two layouts, from a folder or directly from the zip, at the top level or below any single
prefix such as ``content/dataset``::

    movies_train.dat  movies_test.dat  [genres.txt]  ml1m-images/ID.jpg
    movies.dat                         [genres.txt]  ml1m-images/ID.jpg

A row of a ``.dat`` file is ``ID::Title (Year)::Genre|Genre``. The second layout is MovieLens-1M as
GroupLens distributes it, with posters added: it has no splits, and is latin-1 instead of UTF-8.

Source: F. M. Harper, J. A. Konstan, "The MovieLens Datasets", ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genre_lightning.movies.movie import (
    DAMAGED_ZIP,
    DataError,
    Movie,
    MovieSet,
    PosterFile,
    without_empty,
)
from genre_lightning.movies.unzip import unpack

DRIVE_ID = "1hUqu1mbFeTEfBvl-7fc56fHFfCSzIktD"
DRIVE_PAGE = f"https://drive.google.com/file/d/{DRIVE_ID}/view"
LAYOUT = (
    "movies_train.dat, movies_test.dat, genres.txt and ml1m-images/ID.jpg "
    "(or movies.dat and ml1m-images/ID.jpg), at the top or below one prefix such as content/dataset"
)
SPLIT_FILES = {"movies_train.dat": "train", "movies_test.dat": "test"}
UNSPLIT_FILE = "movies.dat"
#: A folder with any of these files is a dataset.
MOVIE_FILES = (*SPLIT_FILES, UNSPLIT_FILE)
GENRES_FILE = "genres.txt"
POSTER_FOLDERS = ("ml1m-images", "images", "posters")
POSTER_SUFFIXES = (".jpg", ".jpeg", ".png")  # in order of preference
MAX_PREFIX_DEPTH = 8
# The original movies_train.dat has 140 kB.
MAX_TEXT_BYTES = 256 << 20


def read_ml1m(root: str | Path, download: bool = False) -> MovieSet:
    """Find the movies of MovieLens-1M.

    Args:
        root: the dataset's folder, or its zip (posters are then read from the zip).
        download: if ``root`` does not exist, download the original dataset to it first.

    Raises:
        DataError: ``root`` does not exist or has another layout, the download failed, or a row
            can't be used.
    """
    root = Path(root).expanduser()
    if not root.exists():
        if not download:
            raise DataError(
                f"there is no dataset at {root}. Either download it with data.download=true, "
                f"or point data.root at your own copy, a folder or a zip with {LAYOUT}"
            )
        download_ml1m(root)
    source = _open_source(root)

    names = [name for name in SPLIT_FILES if name in source.texts]
    if len(names) == 1:
        missing_file = next(name for name in SPLIT_FILES if name not in source.texts)
        raise DataError(f"{source.name} has {names[0]} but no {missing_file}; expected: {LAYOUT}")
    movies: list[Movie] = []
    for name in names or [UNSPLIT_FILE]:
        split = SPLIT_FILES.get(name)
        movies += _parse_movies(_decode(source.texts[name]), name, split, source.posters)
    if GENRES_FILE in source.texts:
        genres = _parse_genres(_decode(source.texts[GENRES_FILE]))
    else:
        genres = tuple(sorted({genre for movie in movies for genre in movie.genres}))
    return MovieSet(movies, genres)


def _parse_movies(
    text: str, name: str, split: str | None, posters: dict[str, PosterFile]
) -> list[Movie]:
    """One movie per ``ID::Title::Genre|Genre`` row; row numbers in messages count blank rows."""
    movies = []
    for number, row in enumerate(_lines(text), start=1):
        if not row.strip():
            continue
        where = f"{name}:{number}"
        # Split from both ends, since a title can contain "::".
        movie_id, _, rest = row.partition("::")
        title, separator, labels = rest.rpartition("::")
        if not separator:
            raise DataError(f"{where}: expected ID::Title::Genre|Genre, got {row[:120]!r}")
        movie_id = movie_id.strip()
        if not (movie_id.isascii() and movie_id.isdigit()):
            raise DataError(f"{where}, column id: {movie_id!r} is not a number")
        genres = tuple(genre.strip() for genre in labels.split("|") if genre.strip())
        columns = without_empty({"title": title.strip(), "poster": posters.get(movie_id)})
        movies.append(Movie(movie_id, columns, genres, split, where))
    return movies


def _parse_genres(text: str) -> tuple[str, ...]:
    genres: list[str] = []
    for number, row in enumerate(_lines(text), start=1):
        genre = row.strip()
        if genre in genres:
            raise DataError(f"{GENRES_FILE}:{number}: {genre!r} is listed more than once")
        if genre:
            genres.append(genre)
    if not genres:
        raise DataError(f"{GENRES_FILE} is empty; list one genre per line, or remove the file")
    return tuple(genres)


def _decode(data: bytes) -> str:
    """Decode as UTF-8 (with or without a BOM), or as latin-1 if that fails."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it also breaks at U+0085, a byte that latin-1 text can contain.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


@dataclass(frozen=True)
class _Source:
    """A dataset's text files by name and posters by movie id, from a folder or a zip."""

    name: str
    texts: dict[str, bytes]
    posters: dict[str, PosterFile]


def _open_source(root: Path) -> _Source:
    if root.is_dir():
        return _open_folder(root)
    if zipfile.is_zipfile(root):
        return _open_archive(root)
    raise DataError(f"{root} is neither a folder nor a zip; expected one with {LAYOUT}")


def _no_dataset(name: str | Path) -> DataError:
    return DataError(f"{name} has none of {', '.join(MOVIE_FILES)}; expected: {LAYOUT}")


def _no_posters(name: str | Path) -> DataError:
    return DataError(
        f"{name} has no folder of posters ({' or '.join(POSTER_FOLDERS)}, holding ID.jpg). "
        f"To go on with titles alone, make an empty folder {POSTER_FOLDERS[0]} there"
    )


def _open_folder(root: Path) -> _Source:
    """Open the dataset in a folder.

    Raises:
        DataError: the folder holds no dataset, or the dataset has no folder of posters.
    """
    base = _find_base(root)
    texts = {
        name: (base / name).read_bytes()
        for name in (*MOVIE_FILES, GENRES_FILE)
        if (base / name).is_file()
    }
    folder = next((base / name for name in POSTER_FOLDERS if (base / name).is_dir()), None)
    if folder is None:
        raise _no_posters(base)
    with os.scandir(folder) as entries:
        files = [(entry.name, PosterFile.at(folder / entry.name)) for entry in entries]
    posters = _posters_by_id((name, file) for name, file in files if file.exists)
    return _Source(str(base), texts, posters)


def _find_base(root: Path) -> Path:
    """The folder with the .dat files: root, root/content/dataset, or one below single folders."""
    base = root
    for _ in range(MAX_PREFIX_DEPTH):
        for candidate in (base, base / "content" / "dataset"):
            if any((candidate / name).is_file() for name in MOVIE_FILES):
                return candidate
        with os.scandir(base) as entries:
            inner = [entry.name for entry in entries if entry.is_dir() and _is_visible(entry.name)]
        if len(inner) != 1:
            break
        base = base / inner[0]
    raise _no_dataset(root)


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _open_archive(root: Path) -> _Source:
    """Open the dataset in a zip without unpacking it.

    Raises:
        DataError: as in :func:`_open_folder`; the zip is damaged, or holds several datasets.
    """
    try:
        with zipfile.ZipFile(root) as archive:
            members = {info.filename: info for info in archive.infolist()}
            base = _find_prefix(root, members)
            names = [name for name in (*MOVIE_FILES, GENRES_FILE) if base + name in members]
            for name in names:
                if members[base + name].file_size > MAX_TEXT_BYTES:
                    raise DataError(
                        f"{root}: {base}{name} has more than {MAX_TEXT_BYTES:,} bytes: it is not "
                        "a list of movies"
                    )
            texts = {name: archive.read(base + name) for name in names}
    except DataError:
        raise
    except (OSError, *DAMAGED_ZIP) as error:
        raise DataError(
            f"{root} can't be read as a zip ({error!s:.300}); fetch it again"
        ) from error
    for folder in POSTER_FOLDERS:
        prefix = f"{base}{folder}/"
        if any(name.startswith(prefix) for name in members):
            break
    else:
        raise _no_posters(f"{root}:{base}")
    posters = _posters_by_id(
        (name.removeprefix(prefix), PosterFile(root, name, info.file_size, info.CRC))
        for name, info in members.items()
        if name.startswith(prefix)
    )
    return _Source(f"{root}:{base}", texts, posters)


def _find_prefix(root: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    """Path prefix of the .dat files in the zip: "" or ending in "/"."""
    prefixes = {
        name[: len(name) - len(PurePosixPath(name).name)]
        for name in members
        if PurePosixPath(name).name in MOVIE_FILES and _is_visible(name)
    }
    if not prefixes:
        raise _no_dataset(root)
    depth = min(prefix.count("/") for prefix in prefixes)
    shallowest = sorted(prefix for prefix in prefixes if prefix.count("/") == depth)
    if len(shallowest) > 1:
        raise DataError(
            f"{root} holds more than one dataset, in {' and '.join(shallowest)}; unpack it and "
            "point data.root at one of them"
        )
    return shallowest[0]


def _posters_by_id(files: Iterable[tuple[str, PosterFile]]) -> dict[str, PosterFile]:
    """The posters among some files, by movie id.

    Args:
        files: (name, file) pairs. A name must be a movie id with one of ``POSTER_SUFFIXES``; other
            files are skipped. If a movie has several posters, the first suffix wins.
    """
    best: dict[str, tuple[int, PosterFile]] = {}
    for name, file in files:
        movie_id, suffix = os.path.splitext(name)
        if not (movie_id.isascii() and movie_id.isdigit()) or suffix.lower() not in POSTER_SUFFIXES:
            continue
        rank = POSTER_SUFFIXES.index(suffix.lower())
        if movie_id not in best or rank < best[movie_id][0]:
            best[movie_id] = (rank, file)
    return {movie_id: file for movie_id, (_, file) in best.items()}


def fetch_from_drive(target: Path) -> None:
    """Download the original zip to ``target``.

    Raises:
        DataError: the download failed.
    """
    import gdown  # only the download needs it

    try:
        # (connect, read) seconds: a network that drops packets must lead to an error too.
        gdown.download(id=DRIVE_ID, output=str(target), use_cookies=False, timeout=(10, 60))
    except (OSError, gdown.exceptions.DownloadError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"the download failed ({reason[0][:300]})") from error


def download_ml1m(root: Path, fetch: Callable[[Path], None] = fetch_from_drive) -> None:
    """Download the zip to ``root``: as a zip if ``root`` ends in .zip, unpacked otherwise.

    ``root`` is complete or absent: the work is done in a temporary folder next to it, and the
    result is renamed at the end.

    Args:
        root: must not exist yet.
        fetch: writes the zip to the given path.

    Raises:
        DataError: the zip can't be fetched, is not the dataset, or is unsafe to unpack; the message
            says what to fetch by hand.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
            archive = Path(temporary) / "dataset.zip"
            fetch(archive)
            if not zipfile.is_zipfile(archive):
                raise DataError("the download is not a zip (perhaps a page from Google)")
            if root.suffix.lower() == ".zip":
                _open_archive(archive)
                os.replace(archive, root)
                return
            folder = Path(temporary) / "dataset"
            unpack(archive, folder)
            _find_base(folder)
            try:
                folder.rename(root)
            except OSError:
                # Another process was faster, and its folder is just as complete.
                if not root.is_dir():
                    raise
    except (DataError, OSError) as error:
        raise DataError(
            f"could not fetch the dataset to {root}: {error}. By hand: fetch the zip from "
            f"{DRIVE_PAGE} and point data.root at it, or unpack it to {root}; "
            f"expected in it: {LAYOUT}"
        ) from error
