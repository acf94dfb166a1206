"""The poster cache: decoded once, complete or absent, with broken posters masked and named."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genre_lightning.inputs import poster_cache as cache_module
from genre_lightning.inputs.decode import decode_poster
from genre_lightning.inputs.input import DenseFeatures, Store
from genre_lightning.inputs.poster_cache import open_poster_cache
from genre_lightning.movies.movie import PosterFile
from genre_lightning.store import CacheError
from tests.forking import Command
from tests.pictures import BROKEN, NOISE, encoded, locate


def make_posters(folder: Path, num: int) -> list[PosterFile]:
    """Write plain gray posters; poster n has brightness 10 * n."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(num):
        (folder / f"{n}.png").write_bytes(encoded(Image.new("RGB", (12, 18), (10 * n,) * 3)))
    return [locate(folder / f"{n}.png") for n in range(num)]


def open_cache(
    posters, cache_dir: Path, size: int = 8, workers: int | None = 2, shrink: int = 1
) -> DenseFeatures:
    store = Store(cache_dir, workers=workers, progress=False)
    return open_poster_cache(posters, size=(size, size), shrink=shrink, store=store)


def cache_folder(cache: DenseFeatures) -> Path:
    """The folder with the cache's pixels."""
    assert isinstance(cache.dense, np.memmap) and cache.dense.filename is not None
    return Path(cache.dense.filename).parent


def cache_names(cache_dir: Path) -> list[str]:
    """Names of all cache folders, complete or not, without lock files."""
    return [path.name for path in cache_dir.iterdir() if not path.name.endswith(".lock")]


@pytest.fixture
def decodes(monkeypatch) -> list[bytes]:
    """The contents that decode_poster has been called with."""
    seen: list[bytes] = []

    def recording_decode(source: bytes, size: tuple[int, int], shrink: int) -> np.ndarray:
        seen.append(source)
        return decode_poster(source, size, shrink)

    monkeypatch.setattr(cache_module, "decode_poster", recording_decode)
    return seen


@pytest.mark.parametrize("workers", [1, 3, None])
def test_cache_holds_each_movies_poster(tmp_path, workers):
    posters = make_posters(tmp_path, 20)
    numbers = [3, None, 0, 19, None, 3, 7]
    listed = [None if n is None else posters[n] for n in numbers]
    cache = open_cache(listed, tmp_path / "cache", workers=workers)
    assert cache.dense.shape == (4, 8, 8, 3) and cache.dense.dtype == np.uint8
    assert cache.row_index.dtype == np.int64 and list(cache.unreadable) == []
    assert not cache.dense.flags.writeable
    for n, row in zip(numbers, cache.row_index, strict=True):
        assert (row == -1) if n is None else (cache.dense[row] == 10 * n).all()


def test_pixels_are_those_of_decode_poster(tmp_path):
    for n in range(30):
        (tmp_path / f"{n}.jpg").write_bytes(encoded(NOISE.rotate(n), "JPEG"))
    files = [locate(tmp_path / f"{n}.jpg") for n in range(30)]
    for shrink in (1, 2):  # each has its own cache
        cache = open_cache(files, tmp_path, 16, 4, shrink)
        for n, file in enumerate(files):
            expected = decode_poster(file.read_bytes(), 16, shrink)
            np.testing.assert_array_equal(cache.dense[cache.row_index[n]], expected)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_posters_are_masked_and_listed(tmp_path):
    posters: list[PosterFile | None] = [*make_posters(tmp_path / "good", 3)]
    for name, (data, _) in BROKEN.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
        posters.insert(1, locate(tmp_path / f"{name}.jpg"))
    gone = PosterFile(tmp_path / "gone.jpg", None, 100, 1)
    posters += [gone, PosterFile(tmp_path / "never.jpg", None, -1, 0), None]
    for _ in range(2):  # built, then reopened
        cache = open_cache(posters, tmp_path / "cache")
        good = [0, *range(len(posters))[-5:-3]]
        assert len(cache.dense) == 3
        for n, row in enumerate(good):
            assert (cache.dense[cache.row_index[row]] == 10 * n).all()
        masked = np.delete(cache.row_index, good)
        assert (masked == -1).all()
        listed = dict(cache.unreadable)
        assert len(listed) == len(BROKEN) + 2
        assert "truncated" in listed[str(tmp_path / "truncated jpeg.jpg")]
        assert "No such file" in listed[gone.name]
        assert listed[str(tmp_path / "never.jpg")] == "no such file"


@pytest.mark.parametrize("posters", [[], [None, None], ["broken"]], ids=["[]", "None", "broken"])
def test_cache_without_any_poster(tmp_path, posters):
    (tmp_path / "broken").write_bytes(b"broken")
    listed = [None if poster is None else locate(tmp_path / poster) for poster in posters]
    for _ in range(2):
        cache = open_cache(listed, tmp_path / "cache")
        assert cache.dense.shape == (0, 8, 8, 3)
        assert cache.row_index.tolist() == [-1] * len(posters)


def test_reopening_decodes_nothing(tmp_path, decodes):
    posters = make_posters(tmp_path, 5)
    first = open_cache(posters, tmp_path / "cache")
    assert len(decodes) == 5
    second = open_cache(posters, tmp_path / "cache")
    assert len(decodes) == 5 and cache_folder(first) == cache_folder(second)
    np.testing.assert_array_equal(first.dense, second.dense)


def test_other_paths_to_the_same_folder_share_a_cache(tmp_path, decodes, monkeypatch):
    open_cache(make_posters(tmp_path / "data", 3), tmp_path / "cache")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "link", "cache/../data"):
        open_cache([locate(Path(folder) / f"{n}.png") for n in range(3)], tmp_path / "cache")
    assert len(decodes) == 3 and len(cache_names(tmp_path / "cache")) == 1


@pytest.mark.parametrize("change", ["content", "time", "order", "one less", "size", "version"])
def test_whatever_changes_pixels_or_rows_changes_the_cache(tmp_path, change, monkeypatch):
    posters = make_posters(tmp_path, 3)
    before = open_cache(posters, tmp_path / "cache")
    size = 8
    if change == "content":
        (tmp_path / "1.png").write_bytes(encoded(Image.new("RGB", (12, 18), (99, 99, 99))))
    elif change == "time":
        os.utime(tmp_path / "1.png", ns=(1, 1))
    elif change == "order":
        posters = [posters[n] for n in (2, 0, 1)]
    elif change == "one less":
        posters = posters[1:]
    elif change == "size":
        size = 9
    else:
        monkeypatch.setattr(cache_module, "DECODER_VERSION", -1)
    after = open_cache([locate(file.path) for file in posters], tmp_path / "cache", size)
    assert cache_folder(after) != cache_folder(before)
    for row, file in zip(after.row_index, posters, strict=True):
        np.testing.assert_array_equal(after.dense[row], decode_poster(file.path, size))


def test_posters_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "posters.zip", "w") as archive:
        for n in range(6):
            data = encoded(Image.new("RGB", (9, 9), (n, n, n)))
            archive.writestr(f"in/{n}.png", data if n != 4 else b"broken")
    with zipfile.ZipFile(tmp_path / "posters.zip") as archive:
        files = [
            PosterFile(tmp_path / "posters.zip", info.filename, info.file_size, info.CRC)
            for info in archive.infolist()
        ]
    cache = open_cache(files, tmp_path / "cache")
    assert cache.row_index.tolist() == [0, 1, 2, 3, -1, 4]
    assert cache.dense[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5]
    assert [name for name, _ in cache.unreadable] == [f"{tmp_path / 'posters.zip'}:in/4.png"]


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "no pixels", "meta cut", "no meta", "another meta"]
)
def test_a_damaged_cache_is_rebuilt(tmp_path, caplog, damage):
    posters = make_posters(tmp_path, 4)
    folder = cache_folder(open_cache(posters, tmp_path / "cache"))
    pixels, meta = folder / "images.u8", folder / "meta.json"
    if damage == "shorter":
        os.truncate(pixels, 100)
    elif damage == "longer":
        pixels.write_bytes(pixels.read_bytes() + b"x")
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "meta cut":
        os.truncate(meta, 5)
    elif damage == "no meta":
        meta.unlink()
    else:
        meta.write_text('{"count": 3, "masked": []}')
    with caplog.at_level(logging.WARNING):
        cache = open_cache(posters, tmp_path / "cache")
    assert "rebuilding" in caplog.text and str(folder) in caplog.text
    assert cache.dense[cache.row_index, 0, 0, 0].tolist() == [0, 10, 20, 30]
    assert cache_names(tmp_path / "cache") == [folder.name]


def test_unreadable_posters_are_tried_again(tmp_path, decodes):
    posters = make_posters(tmp_path, 3)
    (tmp_path / "1.png").rename(tmp_path / "away")
    for _ in range(2):
        cache = open_cache(posters, tmp_path / "cache")
        assert cache.row_index.tolist() == [0, -1, 1]
    assert len(decodes) == 2  # the readable posters are not decoded again
    (tmp_path / "away").rename(tmp_path / "1.png")
    assert open_cache(posters, tmp_path / "cache").row_index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kwargs", [{"size": 0}, {"shrink": 9}, {"workers": 0}], ids=str)
def test_arguments_out_of_range_are_refused(tmp_path, kwargs):
    with pytest.raises(ValueError, match=r"at least 1|between 1 and"):
        open_cache([], tmp_path, **kwargs)


def test_no_progress_bar_without_a_terminal(tmp_path, capfd):
    store = Store(tmp_path / "cache")
    open_poster_cache(make_posters(tmp_path, 3), size=(8, 8), store=store)
    assert capfd.readouterr() == ("", "")


def test_posters_that_are_not_square(tmp_path):
    posters = make_posters(tmp_path, 3)
    store = Store(tmp_path / "cache", workers=1, progress=False)
    tall = open_poster_cache(posters, size=(12, 8), shrink=2, store=store)
    wide = open_poster_cache(posters, size=(8, 12), shrink=2, store=store)
    assert tall.dense.shape == (3, 6, 4, 3) and wide.dense.shape == (3, 4, 6, 3)
    np.testing.assert_array_equal(
        tall.dense[1], decode_poster((tmp_path / "1.png").read_bytes(), (12, 8), 2)
    )


def test_batches_are_gathered_by_row(tmp_path):
    cache = open_cache([*make_posters(tmp_path, 4), None], tmp_path / "cache")
    numbers, lengths = cache.gather(np.array([3, 0, 3]), np.array([2, 0, 1]))
    assert numbers["pixels"][:, 0, 0, 0].tolist() == [30, 0, 30]
    assert lengths == {"pixels": [2, 0, 1]}
    numbers, lengths = cache.gather(np.array([], dtype=np.int64), np.array([0]))
    assert numbers["pixels"].shape == (0, 8, 8, 3) and lengths == {"pixels": [0]}


# Run by other processes: opens a cache of slow posters. Reading a poster appends a byte to the file
# `reads`.
PROGRAM = """
import sys, time
from pathlib import Path
from genre_lightning.movies.movie import PosterFile
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.poster_cache import open_poster_cache

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

class Slow(PosterFile):
    def read_bytes(self):
        with (folder / "reads").open("ab") as file:
            file.write(b"x")
        time.sleep(seconds)
        return super().read_bytes()

files = []
for n in range(8):
    path = folder / f"{n}.png"
    status = path.stat()
    files.append(Slow(path, None, status.st_size, status.st_mtime_ns))
cache = open_poster_cache(files, size=(8, 8), store=Store(folder / "cache", workers=2))
print(cache.dense[cache.row_index, 0, 0, 0].tolist())
"""


def start(folder: Path, seconds: float) -> Command:
    return Command(["-c", PROGRAM, folder, seconds], folder)


def wait_for_reads(folder: Path, num: int, process: Command) -> None:
    deadline = time.monotonic() + 60
    reads = folder / "reads"
    while not (reads.exists() and reads.stat().st_size >= num):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_build_a_cache_once(tmp_path):
    make_posters(tmp_path, 8)
    first = start(tmp_path, 0.2)
    wait_for_reads(tmp_path, 1, first)
    second = start(tmp_path, 0.2)
    expected = f"{[10 * n for n in range(8)]}\n"
    assert first.communicate(timeout=60)[0] == expected
    assert second.communicate(timeout=60)[0] == expected
    assert (tmp_path / "reads").stat().st_size == 8
    assert len(cache_names(tmp_path / "cache")) == 1


def test_temporary_folder_of_a_killed_process_is_removed(tmp_path):
    files = make_posters(tmp_path, 8)
    process = start(tmp_path, 0.3)
    wait_for_reads(tmp_path, 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (leftover,) = cache_names(tmp_path / "cache")
    assert ".tmp-" in leftover
    cache = open_cache(files, tmp_path / "cache")
    assert cache.dense[cache.row_index, 0, 0, 0].tolist() == [10 * n for n in range(8)]
    assert cache_names(tmp_path / "cache") == [cache_folder(cache).name]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_full_disk_raises_a_cache_error(tmp_path):
    import resource

    files = make_posters(tmp_path, 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(CacheError, match="cannot write the cache folder") as caught:
            open_cache(files, tmp_path / "cache", size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / "cache") in str(caught.value)
    assert cache_names(tmp_path / "cache") == []


def test_memory_does_not_grow_with_the_number_of_posters(tmp_path):
    import tracemalloc

    def peak_bytes(num: int) -> int:
        files = make_posters(tmp_path / str(num), num)
        tracemalloc.start()
        open_cache(files, tmp_path / "cache", size=128, workers=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_bytes(2)  # warm up: some modules are imported on first use
    peak_of_200, peak_of_20 = peak_bytes(200), peak_bytes(20)
    assert peak_of_200 - peak_of_20 < 180 * 128 * 128 * 3 / 10


@pytest.mark.slow
def test_real_posters(ml1m_root, tmp_path):
    if ml1m_root.is_file():
        with zipfile.ZipFile(ml1m_root) as archive:
            files = [
                PosterFile(ml1m_root, info.filename, info.file_size, info.CRC)
                for info in archive.infolist()
                if info.filename.endswith(".jpg") and "__MACOSX" not in info.filename
            ]
    else:
        files = [locate(path) for path in sorted(ml1m_root.rglob("*.jpg"))]
    cache = open_cache(files, tmp_path, size=32, workers=None)
    assert len(cache.dense) == len(files) == 3256 and list(cache.unreadable) == []
    colourless = 0
    for file, row in zip(files, cache.row_index, strict=True):
        gray = np.ptp(cache.dense[row], axis=2).max() == 0
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            if image.mode == "L":
                assert gray, file.name
                colourless += 1
    assert colourless == 2


@pytest.mark.slow
def test_importing_is_light():
    program = "import sys, genre_lightning.inputs.poster_cache; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"torchvision", "sklearn", "scipy", "rich", "pytorch_lightning"}
    assert not heavy & set(output.stdout.split())
