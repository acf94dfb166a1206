"""The ml1m reader, on small copies of both layouts and on the real movies, and its download."""

from __future__ import annotations

import functools
import http.server
import shutil
import stat
import threading
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from genre_lightning.movies.ml1m import download_ml1m, read_ml1m
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.readers import read_movies
from genre_lightning.movies.unzip import MAX_ARCHIVE_BYTES, MAX_ARCHIVE_FILES, unpack
from tests.datasets import poster_of

TRAIN = "1::Toy Story (1995)::Animation|Children's|Comedy\n582::Café au Lait (1993)::Comedy\n"
TEST = "2::Jumanji (1995)::Adventure|Children's\n"
GENRES = "Comedy\nAdventure\nAnimation\nChildren's"


def content(**changes: bytes | None) -> dict[str, bytes]:
    """Files of a small dataset, by path; `genres__txt=` replaces genres.txt, None removes it."""
    files: dict[str, bytes | None] = {
        "movies_train.dat": TRAIN.encode(),
        "movies_test.dat": TEST.encode(),
        "genres.txt": GENRES.encode(),
        "ml1m-images/1.jpg": b"one",
        "ml1m-images/2.jpg": b"two!",
    }
    files |= {name.replace("__", "."): data for name, data in changes.items()}
    return {name: data for name, data in files.items() if data is not None}


def write(root: Path, files: dict[str, bytes], kind: str, prefix: str = "") -> Path:
    if kind == "zip":
        root = root.with_suffix(".zip")
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in files.items():
                archive.writestr(prefix + name, data)
        return root
    for name, data in files.items():
        path = root / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def original_files() -> dict[str, bytes]:
    """Files in the layout of the original MovieLens-1M."""
    files = content(movies_train__dat=None, movies_test__dat=None, genres__txt=None)
    return files | {"movies.dat": (TRAIN + TEST).encode("latin-1")}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    "prefix", ["", "content/dataset/", "ml-1m/", "a/b/c/"], ids=["bare", "original", "one", "three"]
)
def test_a_folder_or_zip_is_read_below_any_prefix(tmp_path, kind, prefix):
    movie_set = read_ml1m(write(tmp_path / "data", content(), kind, prefix))
    assert movie_set.genres == ("Comedy", "Adventure", "Animation", "Children's")
    found = [(m.id, m.title, m.genres, m.split, m.where) for m in movie_set.movies]
    assert found == [
        ("1", "Toy Story (1995)", ("Animation", "Children's", "Comedy"), "train", at("train", 1)),
        ("582", "Café au Lait (1993)", ("Comedy",), "train", at("train", 2)),
        ("2", "Jumanji (1995)", ("Adventure", "Children's"), "test", at("test", 1)),
    ]
    first, second, third = (poster_of(m) for m in movie_set.movies)
    assert first is not None and third is not None and second is None
    assert (first.read_bytes(), first.size) == (b"one", 3)
    assert (third.read_bytes(), third.size) == (b"two!", 4)
    assert first.stamp != 0


def at(split: str, row: int) -> str:
    return f"movies_{split}.dat:{row}"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_original_movielens_file(tmp_path, kind):
    movie_set = read_ml1m(write(tmp_path / "data", original_files(), kind, "ml-1m/"))
    assert [m.title for m in movie_set.movies][1] == "Café au Lait (1993)"
    assert {m.split for m in movie_set.movies} == {None}
    assert movie_set.genres == ("Adventure", "Animation", "Children's", "Comedy")
    assert [poster_of(m) is not None for m in movie_set.movies] == [True, False, True]


def test_the_dataset_is_found_among_other_folders(tmp_path):
    root = write(tmp_path / "data", content(), "folder", "content/dataset/")
    (root / "runs").mkdir()
    assert len(read_ml1m(root).movies) == 3


def test_macos_metadata_is_ignored(tmp_path):
    files = {f"ml/{name}": data for name, data in content().items()}
    files |= {f"__MACOSX/ml/{name}": b"\0" for name in content()}
    for kind in ("folder", "zip"):
        assert len(read_ml1m(write(tmp_path / "data", files, kind)).movies) == 3


@pytest.mark.parametrize(
    ("train", "title"),
    [
        pytest.param("1::Café (1993)::Comedy\n".encode(), "Café (1993)", id="utf-8"),
        pytest.param("\ufeff1::Café (1993)::Comedy\n".encode(), "Café (1993)", id="bom"),
        pytest.param("1::Café (1993)::Comedy\n".encode("latin-1"), "Café (1993)", id="latin-1"),
        pytest.param("1::Café (1993)::Comedy\r\n".encode(), "Café (1993)", id="crlf"),
        pytest.param(b"1::A\x85B::Comedy\n", "A\x85B", id="latin-1-next-line-breaks-no-row"),
        pytest.param(b"1::Mission::Impossible::Comedy\n", "Mission::Impossible", id="separator"),
        pytest.param(b"\n1:: Heat :: Comedy \n\n", "Heat", id="blanks"),
    ],
)
def test_rows_in_unusual_encodings_and_formats_are_read(tmp_path, train, title):
    movie_set = read_ml1m(write(tmp_path / "data", content(movies_train__dat=train), "folder"))
    first = movie_set.movies[0]
    assert (first.id, first.title, first.genres) == ("1", title, ("Comedy",))


def test_each_file_has_its_own_encoding(tmp_path):
    files = content(movies_test__dat="9::Amélie::Comedy".encode("latin-1"))
    movie_set = read_ml1m(write(tmp_path / "data", files, "folder"))
    assert [m.title for m in movie_set.movies][1:] == ["Café au Lait (1993)", "Amélie"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param(
            content(movies_train__dat=b"\n1::Heat\n"), r"movies_train\.dat:2: expected", id="short"
        ),
        pytest.param(
            content(movies_train__dat=b"tt1::Heat::Comedy"), r"dat:1, column id: 'tt1'", id="id"
        ),
        pytest.param(
            content(movies_train__dat=b"1::  ::Comedy"), r"dat:1, column title: empty", id="title"
        ),
        pytest.param(
            content(movies_train__dat=b"1::Heat::|"), r"dat:1, column genres: empty", id="genres"
        ),
        pytest.param(
            content(movies_train__dat=b"1::Heat::Noir"),
            r"movies_train\.dat:1, column genres: unknown genre 'Noir'",
            id="unknown-genre",
        ),
        pytest.param(
            content(movies_test__dat=b"1::Toy Story (1995)::Comedy"),
            r"movies_test\.dat:1, column id: '1' is already the id at movies_train\.dat:1",
            id="in-both-splits",
        ),
        pytest.param(
            content(genres__txt=b"Comedy\nComedy"), r"genres\.txt:2: 'Comedy'", id="twice"
        ),
        pytest.param(content(genres__txt=b"\n"), r"genres\.txt is empty", id="no-genres"),
        pytest.param(content(movies_test__dat=None), r"no movies_test\.dat", id="half"),
        pytest.param(
            content(movies_test__dat=None, movies_train__dat=None),
            r"none of movies_train\.dat, movies_test\.dat, movies\.dat",
            id="no-rows",
        ),
        pytest.param(
            {n: d for n, d in content().items() if "/" not in n},
            "no folder of posters",
            id="posters",
        ),
        pytest.param(
            content(movies_test__dat=b"", movies_train__dat=b""), "no movies", id="empty-files"
        ),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_invalid_datasets_are_refused(tmp_path, kind, files, message):
    root = write(tmp_path / "data", files, kind)
    with pytest.raises(DataError, match=message):
        read_movies("ml1m", root=root)


def test_a_zip_with_two_datasets_is_refused(tmp_path):
    files = {f"{folder}/{name}": data for folder in "ab" for name, data in content().items()}
    with pytest.raises(DataError, match="more than one dataset, in a/ and b/"):
        read_ml1m(write(tmp_path / "data", files, "zip"))


def test_a_file_that_is_not_a_zip_is_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"<html>")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        read_ml1m(tmp_path / "data.zip")


def test_a_missing_dataset_error_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"data\.download=true.*own copy.*movies_train\.dat"):
        read_ml1m(tmp_path / "none")


def test_other_files_in_the_poster_folder_are_ignored(tmp_path):
    files = content() | {
        "ml1m-images/582.PNG": b"png",
        "ml1m-images/2.png": b"a second one of 2",
        "ml1m-images/Thumbs.db": b"",
        "ml1m-images/x.jpg": b"",
    }
    root = write(tmp_path / "data", files, "folder")
    (root / "ml1m-images" / "1.jpg").unlink()
    (root / "ml1m-images" / "1.jpg").mkdir()
    posters = {m.id: poster_of(m) for m in read_ml1m(root).movies}
    assert posters["1"] is None
    assert posters["2"] is not None and posters["2"].path.name == "2.jpg"
    assert posters["582"] is not None and posters["582"].path.name == "582.PNG"


def test_a_changed_poster_has_another_stamp(tmp_path):
    for kind in ("folder", "zip"):
        before = read_ml1m(write(tmp_path / "data", content(), kind)).movies
        changed = content() | {"ml1m-images/1.jpg": b"ONE"}
        after = read_ml1m(write(tmp_path / "data", changed, kind)).movies
        assert poster_of(before[0]) != poster_of(after[0])


# --- download ---------------------------------------------------------------------------------


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder, and the URL that serves its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def fetch_from(address: str):
    def fetch(target: Path) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=10) as response, target.open("wb") as file:
            shutil.copyfileobj(response, file)

    return fetch


@pytest.mark.parametrize("name", ["ml1m", "ml1m.zip"], ids=["unpacked", "kept-as-zip"])
def test_a_downloaded_dataset_can_be_read(tmp_path, server, name):
    folder, address = server
    write(folder / "original", content(), "zip", "content/dataset/")
    root = tmp_path / "made" / "on the way" / name
    download_ml1m(root, fetch_from(f"{address}/original.zip"))
    assert root.is_file() is name.endswith(".zip")
    assert len(read_ml1m(root, download=True).movies) == 3  # exists, so nothing is downloaded
    assert [path.name for path in root.parent.iterdir()] == [name]


@pytest.mark.parametrize("name", ["ml1m", "ml1m.zip"])
@pytest.mark.parametrize("fault", ["404", "html", "cut", "other-zip", "interrupted"])
def test_a_failed_download_leaves_nothing(tmp_path, server, fault, name):
    folder, address = server
    valid = write(folder / "original", content(), "zip").read_bytes()
    served = {"html": b"<html>quota exceeded</html>", "cut": valid[:-30], "interrupted": valid}
    if fault == "other-zip":
        write(folder / "faulty", {"README": b"hello"}, "zip")
    elif fault in served:
        (folder / "faulty.zip").write_bytes(served[fault])
    fetch = fetch_from(f"{address}/faulty.zip")

    def interrupted_fetch(target: Path) -> None:
        fetch(target)
        raise KeyboardInterrupt

    root = tmp_path / "data" / name
    if fault == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            download_ml1m(root, interrupted_fetch)
    else:
        with pytest.raises(DataError, match=r"By hand: .*drive\.google\.com.*movies_train\.dat"):
            download_ml1m(root, fetch)
    assert list(root.parent.iterdir()) == []


def test_a_dataset_downloaded_by_another_process_is_kept(tmp_path, server):
    folder, address = server
    write(folder / "original", content(), "zip")
    root = tmp_path / "ml1m"
    fetch = fetch_from(f"{address}/original.zip")

    def fetch_too_late(target: Path) -> None:
        fetch(target)
        write(root, content(movies_test__dat=b"7::Heat::Comedy"), "folder")

    download_ml1m(root, fetch_too_late)
    assert read_ml1m(root).movies[-1].title == "Heat"


def test_the_download_error_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server there
    with pytest.raises(DataError) as caught:
        read_ml1m(tmp_path / "ml1m", download=True)
    message = str(caught.value)
    assert "could not fetch" in message
    assert "https://drive.google.com/file/d/1hUqu1mbFeTEfBvl-7fc56fHFfCSzIktD" in message
    assert str(tmp_path / "ml1m") in message
    assert "ml1m-images/ID.jpg" in message
    assert list(tmp_path.iterdir()) == []


def special_entry(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3  # Unix: external_attr holds the file mode
    info.external_attr = (kind | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("../out.txt", id="parent"),
        pytest.param("a/../../out.txt", id="parent-inside"),
        pytest.param("/out.txt", id="absolute"),
        pytest.param("..\\out.txt", id="backslash"),
        pytest.param("C:/out.txt", id="drive"),
        pytest.param(special_entry("link", stat.S_IFLNK), id="link"),
        pytest.param(special_entry("pipe", stat.S_IFIFO), id="pipe"),
    ],
)
def test_zip_entries_outside_the_folder_are_refused(tmp_path, entry):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("movies_train.dat", TRAIN)
        target.writestr(entry, "../../somewhere")
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(DataError, match=r"leave its folder|link or special file"):
        unpack(archive, home / "dataset")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert [path for path in tmp_path.rglob("*") if path.is_symlink()] == []


def test_an_entry_that_comes_twice_is_refused(tmp_path):
    archive = tmp_path / "twice.zip"
    with zipfile.ZipFile(archive, "w") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr("a.txt", "one")
        target.writestr("a.txt", "two")
    with pytest.raises(DataError, match=r"a\.txt' twice"):
        unpack(archive, tmp_path / "dataset")


def test_huge_zips_are_refused_before_writing_anything(tmp_path, monkeypatch):
    archive = write(tmp_path / "data", content(), "zip")
    with zipfile.ZipFile(archive) as source:
        size = sum(info.file_size for info in source.infolist())
    assert size < MAX_ARCHIVE_BYTES and len(content()) < MAX_ARCHIVE_FILES
    for name, limit in (("MAX_ARCHIVE_BYTES", size - 1), ("MAX_ARCHIVE_FILES", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(f"genre_lightning.movies.unzip.{name}", limit)
            with pytest.raises(DataError, match="absurdly large"):
                unpack(archive, tmp_path / name)
        assert list((tmp_path / name).iterdir()) == []
    unpack(archive, tmp_path / "whole")
    found = {
        p.relative_to(tmp_path / "whole").as_posix() for p in (tmp_path / "whole").rglob("*.*")
    }
    assert found == set(content())


# --- the real movies --------------------------------------------------------------------------


def test_the_real_movies(ml1m_root):
    movie_set = read_ml1m(ml1m_root)
    movies = movie_set.movies
    assert Counter(m.split for m in movies) == {"train": 3106, "test": 777}
    assert len(movie_set.genres) == 18
    assert movie_set.genres[0] == "Crime" and movie_set.genres[-1] == "Children's"
    assert sum(poster_of(m) is not None for m in movies) == 3256
    missing = Counter(m.split for m in movies if poster_of(m) is None)
    assert missing == {"train": 504, "test": 123}
    (french,) = [m for m in movies if m.id == "582"]
    assert french.title == "Metisse (Café au Lait) (1993)"
    assert french.where == "movies_train.dat:129"
    counts = Counter(genre for m in movies for genre in m.genres)
    assert (counts["Drama"], counts["Children's"], counts["Film-Noir"]) == (1603, 251, 44)
