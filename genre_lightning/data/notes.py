"""What to tell a user about a dataset: a table, and notes on what is missing or has no effect."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence

from rich.table import Table

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.poster_cache import NO_SUCH_FILE
from genre_lightning.models.networks import branch_name_problem
from genre_lightning.movies.movie import PosterFile
from genre_lightning.movies.summary import (
    MAX_NAMED,
    absent_posters,
    dataset_table,
    duplicate_movie_notes,
    render_table,
    universal_genre_notes,
    unlearnable_genre_notes,
)
from genre_lightning.wording import first_few


def dataset_summary(data: MovieDataModule) -> list[Table | str]:
    """What to show before training: the dataset table, notes, and posters that are left out.

    Args:
        data: set up.
    """
    movies = data.movie_set
    read_columns = [
        branch_input.column for branch_input in data.inputs.values() if branch_input.of != "id"
    ]
    columns = dict.fromkeys(["poster", *read_columns])
    states = {column: data.states(column) for column in columns}
    splits = dict(data.splits)
    if data.validates_by_folds:
        splits.pop("val")
    table = dataset_table(movies, splits, data.labels, states)
    lines: list[Table | str] = [render_table(table, title=f"Dataset: {data.reader}")]
    if data.validates_by_folds:
        lines.append(f"validation: {data.folds} folds of train")
    lines += ignored_setting_notes(data)
    num_train = len(data.splits["train"])
    if data.inputs and data.batch_size is not None and data.batch_size > num_train:
        lines.append(
            f"data.batch_size={data.batch_size} is more than the {num_train} movies of "
            "train: an epoch is one batch of all of them"
        )
    lines += movies.notes
    lines += unlearnable_genre_notes(table)
    lines += universal_genre_notes(table)
    lines += duplicate_movie_notes(movies.movies, data.splits)
    lines += unread_column_notes(movies.columns(), read_columns)
    lines += empty_branch_notes(data)
    lines += [f"poster not there: {name}" for name in absent_posters(movies.movies)]
    unreadable = dict(entry for features in data.features.values() for entry in features.unreadable)
    lines += [
        f"unreadable: {name} ({reason})"
        for name, reason in unreadable.items()
        if reason != NO_SUCH_FILE
    ]
    return lines


def unread_column_notes(columns: Sequence[str], read: Collection[str]) -> list[str]:
    """Name the further text columns that no branch reads, in a sentence, if there are any.

    Args:
        columns: of the dataset.
        read: the columns that branches read.
    """
    unread = [name for name in columns if name not in {"title", "poster", *read}]
    if not unread:
        return []
    noun = "column" if len(unread) == 1 else "columns"
    # A name with other characters would need quotes, and can't be the name of a branch.
    name = next((name for name in unread if not branch_name_problem(f"{name}_text")), "NAME")
    branch = f"{name}_text" if branch_name_problem(name) else name
    return [
        f"no branch reads the {noun} {first_few(unread, MAX_NAMED)}. To add one: "
        f"+model/branch@model.branches.{branch}=text_tfidf "
        f"model.branches.{branch}.input.column={name}"
    ]


def empty_branch_notes(data: MovieDataModule) -> list[str]:
    """A sentence on each branch whose column no movie has (in training, no movie of train)."""
    return [f"the branch {branch} {problem}" for branch, problem in data.empty_branches.items()]


def poster_notes(data: MovieDataModule, split: str) -> list[str]:
    """A sentence on each column of posters whose files are not all there and readable.

    Movies for which the dataset names no poster are not counted.
    """
    notes = []
    rows = data.splits[split]
    poster_inputs = [entry for entry in data.inputs.values() if entry.of == "poster"]
    for column in dict.fromkeys(branch_input.column for branch_input in poster_inputs):
        posters = [(row, data.movie_set.movies[row].value(column)) for row in rows]
        is_present = data.states(column) == "present"
        unusable = [
            f"{data.movie_set.movies[row].where}: {poster.name}"
            for row, poster in posters
            if isinstance(poster, PosterFile) and not is_present[row]
        ]
        if unusable:
            notes.append(
                f"{column}: {len(unusable):,} of the {len(rows):,} movies of {split} name a file "
                f"that is not there or can't be read, first {unusable[0]}"
            )
    return notes


def ignored_setting_notes(data: MovieDataModule) -> list[str]:
    """A sentence on each split setting that has no effect on this dataset."""
    notes = []
    if data.folds > 1 and not data.validates_by_folds:
        notes.append(f"data.folds={data.folds} is ignored: the dataset says which movies are val")
    parameters = inspect.signature(MovieDataModule).parameters
    for split in ("val", "test"):
        name = f"{split}_fraction"
        value = getattr(data, name)
        if value == parameters[name].default:
            continue
        if split == "val" and data.validates_by_folds:
            notes.append(
                f"data.{name}={value} is ignored: validation uses folds; data.folds=1 holds "
                "out a part of train"
            )
        elif not data.is_drawn(split):
            notes.append(
                f"data.{name}={value} is ignored: the dataset says which movies are {split}"
            )
    return notes


def random_split_notes(data: MovieDataModule, split: str) -> list[str]:
    """A sentence if a split was drawn at random; none if the dataset names its movies."""
    if not data.is_drawn(split):
        return []
    return [
        f"{split}: {len(data.splits[split])} of {len(data.labels)} movies, drawn with "
        f"data.split_seed={data.split_seed}. To choose them, add a column split to the "
        f"dataset: {split} in every row takes all movies. The score is fair only if the "
        "checkpoint has learnt from none of them"
    ]
