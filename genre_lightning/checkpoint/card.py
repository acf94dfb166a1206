"""A checkpoint's description of its model, and its checks.

A checkpoint is Lightning's own file plus one entry, ``genre_lightning``, which describes the
network and the inputs by short names and numbers. A file can be untrusted. So reading one never
imports, instantiates or calls anything that the file names, allocates nothing that the weights in
the file don't account for, and either returns a checkpoint or raises :class:`CheckpointError`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genre_lightning.checkpoint.archive import ArchiveError, check_archive
from genre_lightning.errors import SettingError, UserError
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.table import input_from_text
from genre_lightning.models.fusion import ACTIVATIONS, Fusion
from genre_lightning.models.label_sets import LabelSets
from genre_lightning.models.networks import (
    MAX_BRANCHES,
    check_fit,
    complete_description,
    sketch_network,
)
from genre_lightning.models.stacking import Stacking
from genre_lightning.scoring.losses import build_loss
from genre_lightning.scoring.thresholds import check_threshold_fit

CHECKPOINT_KEY = "genre_lightning"
CHECKPOINT_FORMAT = 4
#: The state for resuming that Lightning doesn't save (training/callbacks/resume.py).
TRAINING_KEY = "training_state"

#: All entries that the trainer writes. Any other was added by somebody else and is refused, since
#: Lightning acts on some (``hyper_parameters`` with an ``_instantiator``).
KNOWN_ENTRIES = frozenset(
    {
        CHECKPOINT_KEY,
        TRAINING_KEY,
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "loops",
        "callbacks",
        "optimizer_states",
        "lr_schedulers",
        "current_model_state",  # this and the next from Lightning's weight averaging
        "averaging_state",
        "MixedPrecision",
        "MovieDataModule",
    }
)

#: Entries that prediction doesn't need, and that make up most of the file.
_LARGE = ("optimizer_states",)


class CheckpointError(UserError, ValueError):
    """A file that is not a checkpoint of ours, is damaged, or doesn't fit; the message names it."""


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read and check a checkpoint file.

    Args:
        path: path of the file.
        mmap: leave the tensors in the file until they are used; the file must not change meanwhile.
            The optimizer's tensors must then not be used, since their checksums are not compared.

    Returns:
        The file's entries: numbers, strings, lists, dicts and CPU tensors; the ``genre_lightning``
        entry is complete and consistent with the weights.

    Raises:
        CheckpointError: the file is not a complete checkpoint of this project.
    """
    path = Path(path)
    try:
        return _check_entries(_load(path, mmap))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def network_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's part of a GenreModule's ``state_dict``, by the network's own names."""
    prefix = "network."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _load(path: Path, mmap: bool) -> Any:
    """Load a file as plain data; arguments and errors as for :func:`read_checkpoint`."""
    try:
        if path.is_dir():
            raise CheckpointError("it is a folder; name the file, such as checkpoints/best.ckpt")
        if not path.is_file():
            raise CheckpointError("there is no such file")
        check_archive(path, _LARGE if mmap else ())
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except ArchiveError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror or error}") from error
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        AssertionError,
    ) as error:
        # The first line alone: the rest of torch's message recommends weights_only=False, which
        # would run malicious code.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"refused: not loadable as plain data ({reason:.200})") from error


def _check_entries(checkpoint: Any) -> dict[str, Any]:
    """Refuse anything but a checkpoint of this project whose card and weights fit together.

    Raises:
        CheckpointError: its message doesn't name the file.
    """
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"it holds a {type(checkpoint).__name__}, not a checkpoint")
    if CHECKPOINT_KEY not in checkpoint:
        raise CheckpointError(
            f"it has no {CHECKPOINT_KEY!r} entry: not a checkpoint of this project"
        )
    unknown = sorted(str(key) for key in checkpoint if key not in KNOWN_ENTRIES)
    if unknown:
        raise CheckpointError(
            f"it has entries that training never writes: {', '.join(unknown):.200}"
        )
    card = checkpoint[CHECKPOINT_KEY]
    if not isinstance(card, dict):
        raise CheckpointError(f"{CHECKPOINT_KEY} is not a mapping")
    sketch, _ = check_card(card)
    _check_weights(checkpoint.get("state_dict"), sketch.state_dict())
    return checkpoint


def _mapping(card: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an entry of the card that must be a mapping with string keys."""
    value = card.get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{CHECKPOINT_KEY}.{key} is missing or not a mapping")
    return value


def check_card(card: dict[str, Any]) -> tuple[Fusion, dict[str, Input]]:
    """Check a model's description: a file's when it is read, and a run's own before it starts.

    Args:
        card: the ``genre_lightning`` entry; its network's description is completed in place.

    Returns:
        The network on the meta device, and the inputs by branch.

    Raises:
        CheckpointError: naming the part that can't be rebuilt.
    """
    if card.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"its format is {card.get('format')!r:.100}, and this version reads "
            f"{CHECKPOINT_FORMAT}: train it again with this version, or use the version that "
            "wrote it"
        )
    _check_values(card)
    inputs = _check_inputs(card)
    try:
        description = complete_description(**_mapping(card, "network"))
        check_fit(description, inputs)
        sketch = sketch_network(description).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"its network can't be rebuilt: {str(error)[:500]}") from error
    if description["num_genres"] != len(card["genres"]):
        raise CheckpointError(
            f"its network has {description['num_genres']} outputs for {len(card['genres'])} genres"
        )
    try:
        sketch.stacking = Stacking.from_lists(
            card.get("stacking"), list(sketch.branches), sketch.num_genres
        )
    except ValueError as error:
        raise CheckpointError(f"its stacking can't be used: {error}") from error
    try:
        sketch.label_sets = LabelSets.from_lists(card.get("label_sets"), sketch.num_genres)
    except ValueError as error:
        raise CheckpointError(f"its label sets can't be used: {error}") from error
    card["network"] = description
    return sketch, inputs


def _check_inputs(card: Mapping[str, Any]) -> dict[str, Input]:
    """Rebuild the inputs that a card describes, by branch."""
    texts = _mapping(card, "inputs")
    if len(texts) > MAX_BRANCHES:
        raise CheckpointError(f"it has {len(texts)} inputs, more than {MAX_BRANCHES}")
    inputs = {}
    for name, text in texts.items():
        try:
            inputs[name] = input_from_text(text)
        except (ValueError, OverflowError) as error:
            reason = str(error)[:500]
            raise CheckpointError(f"its input {name:.100} can't be rebuilt: {reason}") from error
    return inputs


def _check_values(card: Mapping[str, Any]) -> None:
    """Refuse genres, thresholds, activation, loss or data that training would never write."""
    genres = card.get("genres")
    if (
        not isinstance(genres, list)
        or not genres
        # Names are shown on terminals, which interpret some characters as commands.
        or not all(isinstance(genre, str) and genre and genre.isprintable() for genre in genres)
        or len(set(genres)) != len(genres)
    ):
        raise CheckpointError("its genres are not a list of distinct names")
    _check_thresholds(card, len(genres))
    activation = card.get("activation")
    if type(activation) is not str or activation not in ACTIVATIONS:
        raise CheckpointError(f"its activation {activation!r:.100} is unknown")
    _check_data(card)
    _check_loss(_mapping(card, "loss"), len(genres), activation)


def _check_thresholds(card: Mapping[str, Any], num_genres: int) -> None:
    thresholds = card.get("thresholds")
    if not isinstance(thresholds, list) or len(thresholds) != num_genres:
        raise CheckpointError("it does not have one threshold for each genre")
    if not all(type(t) is float and 0 <= t <= 1 for t in thresholds):
        raise CheckpointError("its thresholds are not numbers in 0..1")
    try:
        # Older files have no threshold_fit.
        check_threshold_fit(**card.get("threshold_fit", {}))
    except (TypeError, SettingError) as error:
        raise CheckpointError(f"how its thresholds were fitted is not known: {error}") from error


def _check_data(card: Mapping[str, Any]) -> None:
    """Check the description of the data, and the entries on them that older files lack."""
    data = _mapping(card, "data")
    if not all(type(v) in (str, int, float, bool, type(None)) for v in data.values()):
        raise CheckpointError("its data is not described by names and numbers")
    if not isinstance(card.get("learnt_from"), str | None):
        raise CheckpointError("the movies that it has learnt from are not named by a key")
    movies = card.get("learnt_movies") or ""
    if not isinstance(movies, str) or not re.fullmatch("([0-9a-f]{16})*", movies):
        raise CheckpointError("the movies that it has learnt from are not listed by hashes")
    content = card.get("content", {})
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content.values()):
        raise CheckpointError("what its branches have read is not named by keys")


def _check_loss(loss: Mapping[str, Any], num_genres: int, activation: str) -> None:
    try:
        loss_module = build_loss(**loss)
        counts = loss.get("genre_counts")
        if counts is not None and len(counts) != num_genres:
            raise ValueError(f"{len(counts)} genre_counts for {num_genres} genres")
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"its loss can't be rebuilt: {str(error)[:500]}") from error
    if loss_module.activation != activation:
        raise CheckpointError(f"its activation {activation!r} is not that of its loss")


def _check_weights(state: Any, expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that don't fit the network or are not finite.

    Args:
        state: the ``state_dict`` of the checkpoint.
        expected: meta tensors with the network's shapes and dtypes, by name.
    """
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("it has no weights")
    if not all(name.startswith("network.") for name in state):
        raise CheckpointError("it has weights of more than a network")
    weights = network_weights(state)
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        raise CheckpointError(f"its weights don't fit its network: {(missing or unknown)[0]:.200}")
    for name, sketch in expected.items():
        value = weights[name]
        if not isinstance(value, Tensor) or value.shape != sketch.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"its weight {name} is {shape}, not {tuple(sketch.shape)}")
        if value.dtype != sketch.dtype:
            raise CheckpointError(f"its weight {name} is {value.dtype}, not {sketch.dtype}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"its weight {name} holds numbers that are not finite")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise CheckpointError(f"its weight {name} is a variance below zero")
