"""The LightningDataModule: from a reader's movies to batches on the device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from genre_lightning.data.batch import (
    FEATURE_INDEX,
    BatchGroup,
    MovieBatches,
    MovieLoader,
    map_tensors,
)
from genre_lightning.data.description import describe_source, expand_path, read_source
from genre_lightning.data.order import BatchOrder
from genre_lightning.data.splits import MAX_FOLDS, stored_splits
from genre_lightning.inputs.input import Features, Input, Store, check_features
from genre_lightning.inputs.part import JoinedPart, Part
from genre_lightning.inputs.poster_cache import to_device
from genre_lightning.inputs.table import state_to_text
from genre_lightning.movies.columns import join_columns
from genre_lightning.movies.movie import DataError, Movie, MovieSet, PosterFile, encode_genres
from genre_lightning.movies.readers import read_movies
from genre_lightning.movies.summary import column_states, movie_hashes
from genre_lightning.store import DEFAULT_CACHE_DIR, content_key

#: Maximum number of batches that are gathered and prepared at once, as one group.
MAX_GROUP_BATCHES = 16
#: Maximum size of a group's network inputs in any branch, in bytes: about a CPU's cache.
MAX_GROUP_BYTES_ON_CPU = 3 * 2**20
#: The same on a GPU.
MAX_GROUP_BYTES_ON_GPU = 48 * 2**20
#: Maximum size of a validation or test batch in any branch: 64 float32 posters of 384 x 256.
MAX_EVAL_BYTES = 64 * (3 * 4 * 384 * 256)
#: Maximum number of movies in such a batch.
MAX_EVAL_MOVIES = 1024
#: Maximum number of movies whose hashes are stored in checkpoints.
MAX_LISTED_MOVIES = 100_000
#: Arguments that control how the dataset is split; a checkpoint records them.
SPLIT_SETTINGS = ("val_fraction", "test_fraction", "folds", "split_seed")
#: The split settings that control how validation is drawn from train.
VAL_SETTINGS = ("val_fraction", "folds", "split_seed")


class MovieDataModule(pl.LightningDataModule):
    """Batches of a dataset's movies for training, validation and test.

    ``setup`` reads the dataset, splits it, and computes each branch's features. Inputs are fitted
    on train alone. Features are stored under ``cache_dir`` and reused by later runs.

    Args:
        reader: short name of a dataset reader, a key of ``readers.READERS``.
        inputs: input of each branch, by branch; fitted here unless already fitted.
        columns: a CSV with an ``id`` and further text columns to join; None for none.
        batch_size: B in training, per device; None puts all of train in one batch. Validation and
            test use batches that suit the inputs, see :meth:`eval_batch_size`.
        val_fraction: share of train held out for validation if the dataset names no such split.
        test_fraction: share of the movies without a split held out for test if the dataset names
            no such split.
        folds: K > 1 validates on K folds of train instead of a held-out part, if the dataset names
            no validation split; see ``models/members.py``. 1 holds out a part.
        split_seed: seed of the splits drawn here; separate from ``seed``, so that runs with
            different seeds are compared on the same movies.
        seed: seed of the training order and of augmentation.
        cache_dir: where posters, features and embeddings are kept.
        workers: threads that decode posters; None for one per core.
        device_resident: keep dense features, such as all posters, in the training device's memory,
            so that a batch is one gather there. "auto" does so on a GPU if they take no more than
            ``resident_share`` of its free memory; True always, False never.
        resident_share: in 0 to 1, for "auto".
        genres: label order of a trained model, to score movies with; must contain all of the
            dataset's genres. None for the dataset's own order.
        options: options of the reader, e.g. ``root``.
    """

    batches: MovieBatches

    def __init__(
        self,
        reader: str,
        inputs: Mapping[str, Input],
        columns: str | None = None,
        *,
        batch_size: int | None = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        folds: int = 1,
        split_seed: int = 0,
        seed: int = 0,
        cache_dir: str | Path = DEFAULT_CACHE_DIR,
        workers: int | None = None,
        device_resident: bool | str = "auto",
        resident_share: float = 0.25,
        genres: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if device_resident != "auto" and type(device_resident) is not bool:
            raise DataError(f"data.device_resident={device_resident!r} must be auto, true or false")
        if not 0 <= resident_share <= 1:
            raise DataError(f"data.resident_share={resident_share} must lie between 0 and 1")
        self.reader = reader
        self.options = {name: expand_path(name, value) for name, value in options.items()}
        self.columns = expand_path("columns", columns)
        self.inputs = dict(inputs)
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        if type(folds) is not int or not 1 <= folds <= MAX_FOLDS:
            raise DataError(f"data.folds={folds} must be a whole number in 1..{MAX_FOLDS}")
        self.folds = folds
        self.split_seed = split_seed
        self.seed = seed
        self.cache_dir = Path(cache_dir).expanduser()
        self.workers = workers
        self.device_resident = device_resident
        self.resident_share = resident_share
        self.wanted_genres = None if genres is None else tuple(genres)
        self._movie_set: MovieSet | None = None
        self._previous: MovieDataModule | None = None

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], *, cache_dir: str | Path, **arguments: Any
    ) -> MovieDataModule:
        """The dataset that a checkpoint was trained on.

        Args:
            description: the ``data`` of :meth:`describe`, possibly untrusted: it can only cause
                existing movies to be read, or demo movies to be made in ``cache_dir``.
            cache_dir: see the class.
            arguments: further arguments of the class, except those in ``description``.

        Raises:
            DataError: ``description`` describes no dataset, or one that does not exist.
        """
        parameters = inspect.signature(cls).parameters
        defaults = {name: parameters[name].default for name in ("columns", *SPLIT_SETTINGS)}
        source = read_source(description, defaults, cache_dir)
        return cls(cache_dir=cache_dir, **arguments, **source)

    def reuse(self, previous: MovieDataModule) -> None:
        """Reuse what another data module has opened, instead of opening it again.

        Call this before :meth:`setup`. It reuses the movies, their split, and the features of
        each input object that both modules share.

        Args:
            previous: already set up, with the same dataset, split and cache. Batch settings and
                branches may differ.
        """
        self._previous = previous

    def setup(self, stage: str | None = None) -> None:
        """Read, split, fit and open, once; before training, copy features to the trainer's device.

        Raises:
            DataError: the dataset can't be used (the message names file, row and column); or
                features do not fit in the device's memory.
        """
        if self._movie_set is None:
            self._open()
        if self.trainer is not None and stage == "fit":
            self.make_resident(self.trainer.strategy.root_device)

    def _open(self) -> None:
        if not 0 <= self.split_seed < 2**32:
            raise DataError(f"data.split_seed={self.split_seed} must lie between 0 and 2**32 - 1")
        previous, self._previous = self._previous, None
        if previous is None:
            movies = self._read()
            self.labels = encode_genres(movies.movies, movies.genres)
            self.splits, folds = self._split(movies)
        else:
            movies, self.labels = previous.movie_set, previous.labels
            self.splits, folds = previous.splits, previous.batches.folds
        self.genres = movies.genres
        #: Features as each branch opened them, by branch. ``features`` also masks posters that
        #: another branch could not read.
        self._opened_features: dict[str, Features] = {}
        #: What is wrong with each branch without data, by branch, for ``data/notes.py``.
        self.empty_branches: dict[str, str] = {}
        store = Store(self.cache_dir, self.workers)
        new_branches = [
            branch for branch in self.inputs if not self._reuse_features(branch, previous)
        ]
        # Report a missing column before an encoder spends minutes on the other branches.
        values = {branch: self._values(movies, branch) for branch in new_branches}
        for branch in new_branches:
            self._open_branch(branch, values.pop(branch), store)
            movies.check_id_numbering(self._opened_features[branch].unknown)
        if len(self.empty_branches) == len(self.inputs) > 0:
            columns = dict.fromkeys(branch_input.column for branch_input in self.inputs.values())
            raise DataError(
                f"no movie of the dataset has any column that the model looks at: "
                f"{', '.join(columns)}. Add further columns with data.columns=FILE.csv"
            )
        self.features = {name: self._without_unreadable(name) for name in self.inputs}
        self.batches = MovieBatches(self.features, self.labels, folds)
        self._movie_set = movies

    def _reuse_features(self, branch: str, previous: MovieDataModule | None) -> bool:
        """Take a branch's features from ``previous``; return False if it lacks this input."""
        previous_branch = (
            None if previous is None else previous._branch_with_input(self.inputs[branch])
        )
        if previous is None or previous_branch is None:
            return False
        self._opened_features[branch] = previous._opened_features[previous_branch]
        if previous_branch in previous.empty_branches:
            self.empty_branches[branch] = previous.empty_branches[previous_branch]
        return True

    def _open_branch(self, branch: str, values: Sequence[Any], store: Store) -> None:
        """Compute a branch's features, or load them from the store.

        Raises:
            DataError: the features are not what the input promises.
        """
        branch_input = self.inputs[branch]
        features = branch_input.open(values, self.splits["train"], store)
        try:
            check_features(branch_input, features, len(values))
        except ValueError as error:
            raise DataError(f"model.branches.{branch}: {error}") from error
        self._opened_features[branch] = features

    def _without_unreadable(self, branch: str) -> Features:
        """A branch's features without posters that another branch could not read.

        :func:`genre_lightning.inputs.encode.read_column` does the same for a single movie.
        """
        features, branch_input = self._opened_features[branch], self.inputs[branch]
        indices_of_branches = [
            self._opened_features[name].row_index
            for name, other_input in self.inputs.items()
            if branch_input.of == "poster" and other_input.column == branch_input.column
        ]
        index = np.where(
            np.any([index < 0 for index in indices_of_branches], axis=0),
            -1,
            features.row_index,
        )
        if np.array_equal(index, features.row_index):
            return features
        masked = copy(features)
        masked.row_index = index
        return masked

    def _branch_with_input(self, branch_input: Input) -> str | None:
        """The first branch that has this very input object; None if there is none."""
        return next(
            (name for name, module_input in self.inputs.items() if module_input is branch_input),
            None,
        )

    def _read(self) -> MovieSet:
        movies = read_movies(self.reader, **self.options)
        if self.columns is not None:
            movies = join_columns(movies, self.columns)
        if self.wanted_genres is not None:
            movies = _with_genres(movies, self.wanted_genres)
        return movies

    def _split(self, movies: MovieSet) -> tuple[dict[str, np.ndarray], np.ndarray]:
        named_splits = [movie.split for movie in movies.movies]
        return stored_splits(
            self.cache_dir,
            named_splits,
            self.labels,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            folds=self.folds,
            seed=self.split_seed,
            # A dataset that is only scored can have no movies to train on.
            needs_train=self.wanted_genres is None or not {"train", None}.isdisjoint(named_splits),
        )

    @property
    def validates_by_folds(self) -> bool:
        """Whether validation runs on all of train, each movie by the member that left it out."""
        return bool((self.batches.folds >= 0).any())

    def _values(self, movies: MovieSet, branch: str) -> list[Any]:
        """The values of a branch's column, None for a movie without.

        Raises:
            DataError: in training, no movie of train has the text; or the column holds texts and
                the branch reads posters, or the other way round.
        """
        branch_input = self.inputs[branch]
        values = [movie.value(branch_input.column) for movie in movies.movies]
        kinds = {"poster" if isinstance(value, PosterFile) else "text" for value in values if value}
        if branch_input.of in ("poster", "text") and kinds - {branch_input.of}:
            other_kind = "texts" if branch_input.of == "poster" else "posters"
            raise DataError(
                f"model.branches.{branch}.input.column: the input {branch_input.kind} reads "
                f"{branch_input.of}s, but the column {branch_input.column!r} holds {other_kind}"
            )
        has_value = np.array([getattr(value, "exists", value is not None) for value in values])
        is_training = self.wanted_genres is None
        searched = "train" if is_training and has_value.any() else "the dataset"
        if has_value[self.splits["train"]].any() if is_training else has_value.any():
            return values
        problem = f"looks at the column {branch_input.column!r}, which no movie of {searched} has"
        if is_training and branch_input.of != "poster":
            raise DataError(
                f"the branch {branch} {problem}; there are {', '.join(movies.columns())}. If one "
                f"of them holds it, rename it to {branch_input.column} in its CSV; else add the "
                "column with data.columns=FILE.csv, or choose a model without this branch"
            )
        self.empty_branches[branch] = (
            f"{problem}: it {'learns' if is_training else 'contributes'} nothing"
        )
        return values

    def make_resident(self, device: torch.device) -> None:
        """Copy dense features to a device, if ``device_resident`` allows it.

        Raises:
            DataError: they do not fit in its memory.
        """
        self.batches.resident = {}
        dense = {
            name: features.dense
            for name, features in self.features.items()
            if features.dense is not None
        }
        if not dense or self.device_resident is False:
            return
        size = sum(array.nbytes for array in dense.values())
        if self.device_resident == "auto":
            if device.type != "cuda":
                return
            free, _ = torch.cuda.mem_get_info(device)
            if size > self.resident_share * free:
                return
        try:
            self.batches.resident = {
                name: to_device(array, device) for name, array in dense.items()
            }
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"posters and embeddings, {size / 2**30:.1f} GiB, don't fit into the memory of "
                f"{device}: data.device_resident=false leaves them on the host"
            ) from error

    def teardown(self, stage: str) -> None:
        """Free the device's memory."""
        if stage == "fit":
            self.batches.resident = {}

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

    def train_labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels of the train split, (N, G), and its validation folds, (N,), or None without."""
        train = self.splits["train"]
        folds = self.batches.folds[train] if self.validates_by_folds else None
        return self.labels[train], folds

    def states(self, column: str) -> np.ndarray:
        """Each movie's state of a column, (N,): "present", "missing" or "unreadable".

        A column that no branch reads is not opened, so every value in it counts as present.
        """
        indices = [
            self.features[branch].row_index
            for branch, branch_input in self.inputs.items()
            if branch_input.column == column
        ]
        return column_states(self.movie_set.movies, column, indices[0] if indices else None)

    def is_drawn(self, split: str) -> bool:
        """Whether a split ("val" or "test") is drawn here, rather than named by the dataset."""
        named_splits = {movie.split for movie in self.movie_set.movies}
        # Validation is drawn from train even if every row names a split.
        return split not in named_splits and (split == "val" or None in named_splits)

    @cached_property
    def learnt_from(self) -> str:
        """A hash of the ids, titles and genres of the train and validation movies."""
        rows, movies = self._learnt_rows()
        ids, titles = [movie.id for movie in movies], [movie.title for movie in movies]
        return content_key("learnt from", ids, titles, self.labels[rows])

    def learnt_movies(self) -> str | None:
        """The distinct ``movie_hashes`` of the train and validation movies, 16 hex digits each.

        None for more than ``MAX_LISTED_MOVIES``.
        """
        _, movies = self._learnt_rows()
        if len(movies) > MAX_LISTED_MOVIES:
            return None
        return np.unique(movie_hashes(movies)).tobytes().hex()

    def _learnt_rows(self) -> tuple[np.ndarray, list[Movie]]:
        rows = np.union1d(self.splits["train"], self.splits["val"])
        return rows, [self.movie_set.movies[row] for row in rows]

    def content(self) -> dict[str, str]:
        """A hash of each branch's column over the train and validation movies, by branch.

        Posters are hashed by their sizes in bytes: their times change when a dataset is copied.
        """
        rows = np.union1d(self.splits["train"], self.splits["val"])
        hash_by_column: dict[str, str] = {}
        hashes = {}
        for branch, branch_input in self.inputs.items():
            features, column = self._opened_features[branch], branch_input.column
            if branch_input.of == "id" and features.dense is not None:
                indices = features.row_index[rows]
                present = indices[indices >= 0]
                # At most 100,000 vectors: hashing a million would take seconds.
                sampled = features.dense[present[:: 1 + len(present) // 100_000]]
                hashes[branch] = content_key(indices >= 0, sampled)
                continue
            if column not in hash_by_column:
                values = [self.movie_set.movies[row].value(column) for row in rows]
                hash_by_column[column] = content_key(
                    [getattr(value, "size", value) for value in values]
                )
            hashes[branch] = hash_by_column[column]
        return hashes

    def describe(self) -> dict[str, Any]:
        """Plain data: where the movies came from and how they were prepared, for the checkpoint."""
        return {
            "genres": list(self.genres),
            "inputs": {
                name: state_to_text(branch_input) for name, branch_input in self.inputs.items()
            },
            "learnt_from": self.learnt_from,
            "learnt_movies": self.learnt_movies(),
            "content": self.content(),
            "data": self.source(),
        }

    def source(self) -> dict[str, Any]:
        """Plain data: where the movies came from and how they are split."""
        return {
            **describe_source(self.reader, {**self.options, "columns": self.columns}),
            **{name: getattr(self, name) for name in SPLIT_SETTINGS},
        }

    def train_dataloader(self) -> MovieLoader:
        loader = self._own_loader("train", shuffle=True)
        # With overfit_batches Lightning reports that it turns shuffling off, but it can't do so
        # for this loader.
        loader.order.repeats = getattr(self.trainer, "overfit_batches", 0) > 0
        return loader

    def val_dataloader(self) -> MovieLoader:
        # A limit counts batches, so they get the same size as in training.
        limit = 1.0 if self.trainer is None else self.trainer.limit_val_batches
        is_whole = isinstance(limit, float) and limit == 1.0
        return self._own_loader("val", False, None if is_whole else self.train_batch_size())

    def _own_loader(self, split: str, shuffle: bool, batch_size: int | None = None) -> MovieLoader:
        """This process's share of a split, on the trainer's device; all of it without a trainer."""
        if self.trainer is None:
            return self.loader(split, shuffle)
        return self.loader(
            split,
            shuffle,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            batch_size=batch_size,
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
        """Batches of "train", "val" or "test": the whole split, or one process's share.

        Args:
            split: name of the split.
            shuffle: use a new order each epoch, and augmentation, as training does.
            rank: rank of this process.
            world_size: number of processes that share an epoch.
            batch_size: default: :meth:`train_batch_size` if ``shuffle``, else
                :meth:`eval_batch_size`.
            device: move batches to this device and prepare them there; None leaves them as
                gathered.
        """
        batch_size = batch_size or (self.train_batch_size() if shuffle else self.eval_batch_size())
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
        target_device = torch.device(device)
        max_bytes = (
            MAX_GROUP_BYTES_ON_CPU if target_device.type == "cpu" else MAX_GROUP_BYTES_ON_GPU
        )
        group_size = max(
            1, min(MAX_GROUP_BATCHES, max_bytes // (batch_size * self._bytes_per_movie()))
        )
        return MovieLoader(
            self.batches,
            order,
            lambda group: self._prepare(group, target_device, shuffle),
            group_size,
        )

    def train_batch_size(self) -> int:
        """Movies in a full training batch."""
        return self.batch_size or max(1, len(self.splits["train"]))

    def eval_batch_size(self) -> int:
        """Movies in a full validation or test batch.

        The same during training, after it and in evaluate.py, so that scores agree in all digits.
        """
        return max(1, min(MAX_EVAL_MOVIES, MAX_EVAL_BYTES // self._bytes_per_movie()))

    def _bytes_per_movie(self) -> int:
        """Bytes of a movie's prepared numbers, in the branch that needs the most."""
        return max(
            (branch_input.bytes_per_movie() for branch_input in self.inputs.values()), default=1
        )

    def _prepare(self, group: BatchGroup, device: torch.device, training: bool) -> BatchGroup:
        """Copy a group to a device and prepare all its numbers for the networks."""
        if device.type == "cuda":
            # Copies from page-locked memory are asynchronous.
            group = map_tensors(group, Tensor.pin_memory)
        moved = map_tensors(group, lambda tensor: tensor.to(device, non_blocking=True))
        parts = {}
        for name, joined in moved.parts.items():
            numbers = joined.part.numbers
            if FEATURE_INDEX in numbers:  # the dense features are on the device already
                rows = self.batches.resident[name].index_select(0, numbers[FEATURE_INDEX])
                numbers = {self.features[name].name: rows}
            seeds = list(zip(joined.counts, group.seeds, strict=True)) if training else None
            prepared = self.inputs[name].prepare(numbers, seeds)
            lengths = {key: joined.lengths.get(key, joined.counts) for key in prepared}
            parts[name] = JoinedPart(Part(joined.part.rows, prepared), joined.counts, lengths)
        return replace(moved, parts=parts)


def _with_genres(movies: MovieSet, model_genres: tuple[str, ...]) -> MovieSet:
    """The same movies with the label order of a trained model.

    Raises:
        DataError: the dataset has a genre that the model lacks.
    """
    unknown = [genre for genre in movies.genres if genre not in model_genres]
    if unknown:
        # Readers can list genres that no movie has.
        where = next((m.where for m in movies.movies if not set(unknown).isdisjoint(m.genres)), "")
        raise DataError(
            f"the dataset has genres that the model does not know: {', '.join(unknown)}"
            f"{where and f', first at {where}'}; it was trained on {', '.join(model_genres)}"
        )
    return replace(movies, genres=model_genres)
