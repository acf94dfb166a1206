"""The LightningDataModule: from a reader's movies to batches on the device."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.table import Table
from torch import Tensor

from genre_lightning.data.batch import (
    BatchGroup,
    BatchOrder,
    MovieBatches,
    MovieLoader,
)
from genre_lightning.inputs.augment import PosterAugment, normalise_posters
from genre_lightning.inputs.posters import (
    PosterCache,
    open_poster_cache,
    pool_stages,
    to_device,
)
from genre_lightning.inputs.store import content_key, stored_folder
from genre_lightning.inputs.terms import SparseTitles, TitleVectorizer
from genre_lightning.movies.movie import DataError, MovieSet, check_movies, encode_genres
from genre_lightning.movies.readers import READERS, read_movies
from genre_lightning.movies.split import split_movies
from genre_lightning.movies.summary import (
    absent_posters,
    dataset_table,
    poster_states,
    render_table,
)

#: Part of the key of stored features: raise it when their computation changes.
FEATURES_VERSION = 1
#: Batches that are gathered and prepared at once: at most so many,
TOGETHER = 16
#: and of so many pixels as the network sees them: on a CPU 3 MiB of float32, which its cache holds,
TOGETHER_PIXELS = 2**18
#: elsewhere 48 MiB.
TOGETHER_PIXELS_ON_DEVICE = 2**22
#: Options of readers that are paths.
PLACES = ("root", "path")
#: Options that a checkpoint does not tell and must not: it can't start a download.
NOT_DESCRIBED = ("download",)


class MovieDataModule(pl.LightningDataModule):
    """Movies of a dataset as batches for training, validation and test.

    ``setup`` reads the dataset, splits it, fits the title features on train alone and opens the
    poster cache. What it computes is stored under ``cache_dir`` and found there by later runs.

    Args:
        reader: short name of a dataset reader, a key of ``readers.READERS``.
        titles: the vectorizer; fitted on train here unless it already is.
        augment: random changes to the posters of a training batch; None for none.
        batch_size: B, on each device.
        poster_size: H = W to which posters are decoded.
        poster_pool: side of the squares of pixels that are averaged before the network sees them,
            1 or an even number; half of it on decoding, see ``posters.pool_stages``.
        val_fraction: share of train held out for validation where the dataset names no such split.
        test_fraction: share of all held out for test where the dataset names no such split.
        split_seed: of the splits drawn here; apart from ``seed``, so that runs of several seeds are
            compared on the same movies.
        seed: of the training order and the augmentation.
        cache_dir: where poster caches and title features are kept.
        workers: threads that decode posters; None for one per core.
        device_resident: keep all posters in the memory of the device that trains, so that a batch
            is one gather there. "auto" does on a GPU of whose free memory they take no more than
            ``resident_share``; True does in any case, False never.
        resident_share: in 0 to 1, for "auto".
        use_titles: False leaves titles out of the batches.
        use_posters: False leaves posters out, and never opens one.
        genres: label order to use instead of the dataset's own, which must be a part of it.
        options: what the reader takes, e.g. ``root``.
    """

    def __init__(
        self,
        reader: str,
        titles: TitleVectorizer,
        augment: PosterAugment | None = None,
        *,
        batch_size: int = 64,
        poster_size: int = 256,
        poster_pool: int = 1,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        seed: int = 0,
        cache_dir: str | Path = "~/.cache/genre-lightning",
        workers: int | None = None,
        device_resident: bool | str = "auto",
        resident_share: float = 0.25,
        use_titles: bool = True,
        use_posters: bool = True,
        genres: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if device_resident not in ("auto", True, False):
            raise DataError(f"data.device_resident={device_resident!r} must be auto, true or false")
        if not 1 <= poster_pool <= poster_size or (poster_pool > 1 and poster_pool % 2):
            raise DataError(
                f"data.poster_pool={poster_pool} must be 1 or an even number up to "
                f"data.poster_size, {poster_size}"
            )
        if not 0 <= resident_share <= 1:
            raise DataError(f"data.resident_share={resident_share} must lie between 0 and 1")
        self.reader = reader
        self.options = {
            name: str(Path(value).expanduser()) if name in PLACES and value is not None else value
            for name, value in options.items()
        }
        self.vectorizer = titles
        self.augment = augment
        self.batch_size = batch_size
        self.poster_size = poster_size
        self.poster_pool = poster_pool
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.seed = seed
        self.cache_dir = Path(cache_dir).expanduser()
        self.workers = workers
        self.device_resident = device_resident
        self.resident_share = resident_share
        self.use_titles = use_titles
        self.use_posters = use_posters
        self.wanted_genres = None if genres is None else tuple(genres)
        self._movie_set: MovieSet | None = None

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], *, cache_dir: str | Path, **arguments: Any
    ) -> MovieDataModule:
        """The dataset that a checkpoint was trained on.

        Args:
            description: the ``data`` of :meth:`describe`, maybe a stranger's: nothing is done with
                it but to read movies that are there, and to make some demo movies in ``cache_dir``.
            cache_dir: see the class.
            arguments: of the class; those in ``description`` excepted.

        Raises:
            DataError: it describes no dataset, or one that isn't there.
        """
        source = dict(description)
        reader = source.pop("reader", None)
        if reader not in READERS:
            raise DataError(f"the checkpoint's dataset is of an unknown kind, {reader!r:.100}")
        if reader == "demo":  # made here, wherever it was made then
            source["root"] = str(cache_dir)
        own = inspect.signature(cls).parameters
        known = {
            **{name: own[name] for name in ("val_fraction", "test_fraction", "split_seed")},
            **inspect.signature(READERS[reader]).parameters,
        }
        for name, value in source.items():
            default = known[name].default if name in known else None
            wanted = type(default) if isinstance(default, (bool, int, float)) else str
            fits = type(value) is wanted or (wanted is float and type(value) is int)
            if name not in known or name in NOT_DESCRIBED or not fits:
                raise DataError(
                    f"the checkpoint's dataset has an option {name!r:.100} that no {reader} has"
                )
            if name in PLACES and reader != "demo" and not _is_there(value):
                raise DataError(
                    f"the checkpoint was trained on movies at {value:.500}, where there are none; "
                    f"say where they are: data={reader} data.{name}=..."
                )
        return cls(reader, cache_dir=cache_dir, **arguments, **source)

    def setup(self, stage: str | None = None) -> None:
        """Read, split, fit and open, once; where a trainer fits, carry posters to its device.

        Raises:
            DataError: the dataset can't be used, with file, row and column; or the posters, with
                ``device_resident=True``, don't fit on the device.
        """
        if self._movie_set is None:
            self._open()
        if self.trainer is not None and stage == "fit":
            self.make_resident(self.trainer.strategy.root_device)

    def _open(self) -> None:
        if not 0 <= self.split_seed < 2**32:
            raise DataError(f"data.split_seed={self.split_seed} must lie between 0 and 2**32 - 1")
        movies = read_movies(self.reader, **self.options)
        check_movies(movies)
        if self.wanted_genres is not None:
            movies = _with_genres(movies, self.wanted_genres)
        self.labels = encode_genres(movies.movies, movies.genres)
        self.genres = movies.genres
        self.splits, self.titles = self._features(movies)
        self.posters: PosterCache | None = None
        if self.use_posters:
            self.posters = open_poster_cache(
                [movie.poster for movie in movies.movies],
                size=self.poster_size,
                shrink=pool_stages(self.poster_pool)[0],
                cache_dir=self.cache_dir,
                workers=self.workers,
            )
        self.batches = MovieBatches(
            self.titles if self.use_titles else None, self.posters, self.labels
        )
        self._movie_set = movies

    def _features(self, movies: MovieSet) -> tuple[dict[str, np.ndarray], SparseTitles]:
        """Split rows and TF-IDF rows, from the store where an earlier run left them."""
        texts = [movie.title for movie in movies.movies]
        given = [movie.split for movie in movies.movies]
        fractions = (self.val_fraction, self.test_fraction, self.split_seed)
        split_key = content_key("split", FEATURES_VERSION, given, self.labels, *fractions)

        def build_split(folder: Path) -> None:
            splits = split_movies(
                given,
                self.labels,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.split_seed,
            )
            for name, rows in splits.items():
                np.save(folder / f"{name}.npy", rows)

        folder = stored_folder(self.cache_dir, "split", split_key, build_split)
        splits = {name: np.load(folder / f"{name}.npy") for name in ("train", "val", "test")}
        if self.vectorizer.fitted:  # by the run whose checkpoint is being evaluated
            return splits, self.vectorizer.transform(texts)

        def build_titles(folder: Path) -> None:
            self.vectorizer.fit([texts[row] for row in splits["train"]])
            rows = self.vectorizer.transform(texts)
            np.save(folder / "indptr.npy", rows.indptr)
            np.save(folder / "indices.npy", rows.indices)
            np.save(folder / "weights.npy", rows.weights)
            (folder / "vectorizer.json").write_text(json.dumps(self.vectorizer.state_dict()))

        title_key = content_key(
            "titles", FEATURES_VERSION, texts, splits["train"], self.vectorizer.settings()
        )
        folder = stored_folder(self.cache_dir, "titles", title_key, build_titles)
        state = json.loads((folder / "vectorizer.json").read_text())
        self.vectorizer = TitleVectorizer.from_state_dict(state)
        parts = (np.load(folder / f"{name}.npy") for name in ("indptr", "indices", "weights"))
        return splits, SparseTitles(*parts)

    def make_resident(self, device: torch.device) -> None:
        """Carry the posters to a device, if ``device_resident`` is for it; batches then go there.

        Raises:
            DataError: they don't fit.
        """
        self.batches.resident = None
        if self.posters is None or self.device_resident is False:
            return
        images = self.posters.images
        if self.device_resident == "auto":
            if device.type != "cuda":
                return
            free, _ = torch.cuda.mem_get_info(device)
            if images.nbytes > self.resident_share * free:
                return
        try:
            self.batches.resident = to_device(images, device)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"the posters, {images.nbytes / 2**30:.1f} GiB, don't fit into the memory of "
                f"{device}: data.device_resident=false leaves them outside"
            ) from error

    def teardown(self, stage: str) -> None:
        """Give the device's memory back."""
        if stage == "fit":
            self.batches.resident = None

    @property
    def movie_set(self) -> MovieSet:
        """The movies as the reader gave them, in the order of every ``rows`` array."""
        if self._movie_set is None:
            raise RuntimeError("setup() comes first")
        return self._movie_set

    def genre_counts(self) -> np.ndarray:
        """(G,) int64: movies of the train split that have each genre."""
        counts: np.ndarray = self.labels[self.splits["train"]].sum(axis=0, dtype=np.int64)
        return counts

    def poster_states(self) -> np.ndarray:
        """(N,) of "present", "missing" or "unreadable".

        Without ``use_posters`` none is opened, and one that is there counts as present.
        """
        movies = self.movie_set.movies
        if self.posters is not None:
            return poster_states(movies, self.posters.row)
        there = [movie.poster is not None and movie.poster.exists for movie in movies]
        return poster_states(movies, np.where(there, 0, -1))

    def summary(self) -> list[Table | str]:
        """What to show before training: the table of the dataset and every poster left out."""
        movies = self.movie_set
        table = dataset_table(movies, self.splits, self.labels, self.poster_states())
        lines: list[Table | str] = [render_table(table, title=f"Dataset: {self.reader}")]
        lines += [f"poster not there: {name}" for name in absent_posters(movies.movies)]
        if self.posters is not None:
            unreadable = self.posters.unreadable
            lines += [f"poster unreadable: {name} ({reason})" for name, reason in unreadable]
        return lines

    def describe(self) -> dict[str, Any]:
        """Plain data: where the movies came from and how they were prepared, for the checkpoint."""
        source = {"reader": self.reader, **self.options}
        for key in PLACES:
            if source.get(key) is not None:
                source[key] = str(Path(source[key]).resolve())
        for key in NOT_DESCRIBED:
            source.pop(key, None)
        return {
            "genres": list(self.genres),
            "titles": self.vectorizer.state_dict(),
            "poster_size": self.poster_size,
            "poster_pool": self.poster_pool,
            "data": {
                **source,
                "val_fraction": self.val_fraction,
                "test_fraction": self.test_fraction,
                "split_seed": self.split_seed,
            },
        }

    def train_dataloader(self) -> MovieLoader:
        return self._own_loader("train", shuffle=True)

    def val_dataloader(self) -> MovieLoader:
        return self._own_loader("val", shuffle=False)

    def test_dataloader(self) -> MovieLoader:
        return self._own_loader("test", shuffle=False)

    def _own_loader(self, split: str, shuffle: bool) -> MovieLoader:
        """This process's share, on its device."""
        if self.trainer is None:
            return self.loader(split, shuffle)
        return self.loader(
            split,
            shuffle,
            self.trainer.global_rank,
            self.trainer.world_size,
            device=self.trainer.strategy.root_device,
        )

    def loader(
        self,
        split: str,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> MovieLoader:
        """Batches of "train", "val" or "test": all of it, or one process's share.

        Args:
            split: its name.
            shuffle: in another order each epoch and with augmented posters, to train on.
            rank: this process's number.
            world_size: number of processes that share an epoch.
            batch_size: ``self.batch_size`` unless given.
            device: the batches come on this device, their posters prepared there; None for batches
                as they are gathered.
        """
        batch_size = batch_size or self.batch_size
        order = BatchOrder(
            self.splits[split],
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        if device is None:
            return MovieLoader(self.batches, order)
        place = torch.device(device)
        pixels = batch_size * (self.poster_size // self.poster_pool) ** 2
        most = TOGETHER_PIXELS if place.type == "cpu" else TOGETHER_PIXELS_ON_DEVICE
        together = max(1, min(TOGETHER, most // pixels))
        return MovieLoader(
            self.batches, order, lambda group: self._prepare(group, place, shuffle), together
        )

    def _prepare(self, group: BatchGroup, device: torch.device, training: bool) -> BatchGroup:
        """Carry a group to a device and make its posters what the network takes, all at once."""
        joined = group.joined.to(device, non_blocking=True)
        numbers = [posters for _, _, posters in group.sizes]
        seeds = list(zip(numbers, group.seeds, strict=True))
        posters = self._prepare_posters(joined.posters, seeds, training)
        return replace(group, joined=joined.with_posters(posters))

    def prepare_posters(self, posters: Tensor, seed: int, training: bool) -> Tensor:
        """Posters of the cache as the network takes them, augmented when ``training``.

        Args:
            posters: (P, 3, H, W) uint8.
            seed: of the augmentation.
            training: whether it is used at all.

        Returns: (P, 3, h, w) float32, normalised; h = w = poster_size // poster_pool.
        """
        return self._prepare_posters(posters, [(len(posters), seed)], training)

    def _prepare_posters(
        self, posters: Tensor, seeds: Sequence[tuple[int, int]], training: bool
    ) -> Tensor:
        """Likewise, where a number of posters each have their seed."""
        rest = pool_stages(self.poster_pool)[1]
        if training and self.augment is not None and len(posters) > 0:
            generators = [
                (number, torch.Generator(device=posters.device).manual_seed(seed))
                for number, seed in seeds
            ]
            augmented: Tensor = self.augment(posters, generators, rest)
            return augmented
        return normalise_posters(posters, rest)


def _is_there(place: str) -> bool:
    """Whether a path names a file or a folder, not a device or a pipe that never ends."""
    try:
        return Path(place).is_file() or Path(place).is_dir()
    except (OSError, ValueError):  # too long, or with a character that no path has
        return False


def _with_genres(movies: MovieSet, wanted: tuple[str, ...]) -> MovieSet:
    """The same movies with the label order of a trained model."""
    unknown = [genre for genre in movies.genres if genre not in wanted]
    if unknown:
        raise DataError(
            f"the model does not know the dataset's genre(s) {', '.join(unknown)}; "
            f"it was trained on {', '.join(wanted)}"
        )
    return MovieSet(movies.movies, wanted)
