"""Checkpoints as plain data: read with suspicion, rebuilt alone.

A checkpoint is Lightning's own file plus one entry, ``genre_lightning``, which describes the
network and the inputs by short names and numbers. A file can come from a stranger, so reading one
never imports, instantiates or calls anything that the file names, allocates nothing that the
weights in the file don't account for, and either gives a model or raises :class:`CheckpointError`.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genre_lightning.archive import ArchiveError, check_archive
from genre_lightning.data.titles import TitleVectorizer
from genre_lightning.errors import UserError
from genre_lightning.losses import build_loss
from genre_lightning.models import ACTIVATIONS, Fusion, build_network
from genre_lightning.models.fusion import complete_description, sketch_network

CHECKPOINT_KEY = "genre_lightning"
CHECKPOINT_FORMAT = 1

#: Everything the trainer writes. An entry beyond these was put there by somebody else: Lightning
#: acts on some (``hyper_parameters`` with an ``_instantiator``), so none is let through.
KNOWN_ENTRIES = frozenset(
    {
        CHECKPOINT_KEY,
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "loops",
        "callbacks",
        "optimizer_states",
        "lr_schedulers",
        "current_model_state",  # these two by Lightning's weight averaging
        "averaging_state",
        "MixedPrecision",
        "MovieDataModule",
    }
)
POSTER_SIZES = (8, 4096)


class CheckpointError(UserError, ValueError):
    """A file that is no checkpoint of ours, is damaged, or does not fit; the message names it."""


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint rebuilds.

    Attributes:
        network: in evaluation mode, on the device asked for.
        activation: key of ``models.ACTIVATIONS`` that turns logits into scores.
        loss: description of the loss it was trained with, for ``losses.build_loss``.
        genres: G names, in the order of the logits.
        thresholds: (G,) float32, on the CPU; a genre is predicted where its score reaches its own.
        titles: the fitted vectorizer.
        poster_size: H = W of the posters.
        data: plain description of the dataset it was trained on; a claim of the file, not checked.
    """

    network: Fusion
    activation: str
    loss: dict[str, Any]
    genres: tuple[str, ...]
    thresholds: Tensor
    titles: TitleVectorizer
    poster_size: int
    data: dict[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and check a checkpoint file.

    Args:
        path: of the file.

    Returns:
        Its entries: numbers, strings, lists, dicts and CPU tensors; the ``genre_lightning`` entry
        is complete and consistent with the weights.

    Raises:
        CheckpointError: for anything but a whole checkpoint of this project.
    """
    path = Path(path)
    try:
        return _check(_load(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Rebuild a trained model from a checkpoint file alone.

    Raises:
        CheckpointError: see :func:`read_checkpoint`.
    """
    return rebuild(read_checkpoint(path), device)


def rebuild(checkpoint: Mapping[str, Any], device: torch.device | str = "cpu") -> TrainedModel:
    """The model of what :func:`read_checkpoint` gave."""
    card = checkpoint[CHECKPOINT_KEY]
    network = build_network(**card["network"])
    network.load_state_dict(network_weights(checkpoint["state_dict"]))
    network.eval().to(device=device).to(memory_format=torch.channels_last)
    return TrainedModel(
        network=network,
        activation=card["activation"],
        loss=dict(card["loss"]),
        genres=tuple(card["genres"]),
        thresholds=torch.tensor(card["thresholds"], dtype=torch.float32),
        titles=TitleVectorizer.from_state_dict(card["titles"]),
        poster_size=card["poster_size"],
        data=dict(card["data"]),
    )


def network_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The network's part of a GenreModule's ``state_dict``, under the network's own names."""
    prefix = "network."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def check_resumable(
    checkpoint: Mapping[str, Any], inputs: Mapping[str, Any], network: Fusion
) -> None:
    """Refuse to resume a run whose model or data differ from the checkpoint's.

    Args:
        checkpoint: of :func:`read_checkpoint`.
        inputs: ``MovieDataModule.describe()`` of the run that would go on.
        network: of that run.

    Raises:
        CheckpointError: naming what differs.
    """
    card = checkpoint[CHECKPOINT_KEY]
    for entry in ("optimizer_states", "lr_schedulers", "loops", "callbacks"):
        if entry not in checkpoint:
            raise CheckpointError(f"it has no {entry!r}, so training can't go on from it")
    for key, ours in (
        ("genres", list(inputs["genres"])),
        ("poster_size", inputs["poster_size"]),
        ("titles", inputs["titles"]),
        ("network", network.description),
    ):
        if card[key] != ours:
            raise CheckpointError(
                f"its {key} differ from this run's ({_difference(card[key], ours)}); resume with "
                "the data and model it was trained with, or start anew without ckpt_path"
            )


def _difference(theirs: Any, ours: Any, key: str = "") -> str:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for name in sorted(set(theirs) | set(ours)):
            if theirs.get(name) != ours.get(name):
                return _difference(theirs.get(name), ours.get(name), f"{key}.{name}".strip("."))
    if isinstance(theirs, list) and isinstance(ours, list) and max(len(theirs), len(ours)) > 32:
        return f"{key or 'list'}: {len(theirs)} and {len(ours)} entries, not the same"
    return f"{key or 'value'}: {theirs!r} there, {ours!r} here"


def keep_paths_inside(checkpoint: dict[str, Any], folder: Path) -> None:
    """Make the file paths that ModelCheckpoint stored point into ``folder``, by file name.

    Lightning deletes the file that was best before once a better one is written, at the path the
    checkpoint names: a stranger's checkpoint could name any file, and a moved run names old places.

    Args:
        checkpoint: of :func:`read_checkpoint`, changed in place.
        folder: of this run's checkpoints.
    """
    for name, state in checkpoint.get("callbacks", {}).items():
        if not str(name).startswith("ModelCheckpoint"):
            continue
        state["dirpath"] = str(folder)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            if state.get(key):
                state[key] = str(folder / Path(str(state[key])).name)
        if isinstance(state.get("best_k_models"), dict):
            state["best_k_models"] = {
                str(folder / Path(str(file)).name): score
                for file, score in state["best_k_models"].items()
            }


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError("there is no such file")
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
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
        # The first line alone: torch goes on to recommend weights_only=False, the very thing
        # that would run a payload.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"refused: not loadable as plain data ({reason:.200})") from error


def _check(checkpoint: Any) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"it holds a {type(checkpoint).__name__}, not a checkpoint")
    if CHECKPOINT_KEY not in checkpoint:
        raise CheckpointError(
            f"it has no {CHECKPOINT_KEY!r} entry: not a checkpoint of this project"
        )
    unknown = sorted(str(key) for key in checkpoint if key not in KNOWN_ENTRIES)
    if unknown:
        raise CheckpointError(f"it has entries that training never writes: {', '.join(unknown)}")
    card = checkpoint[CHECKPOINT_KEY]
    if not isinstance(card, dict):
        raise CheckpointError(f"{CHECKPOINT_KEY} is not a mapping")
    if card.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"its format is {card.get('format')!r}; this version reads {CHECKPOINT_FORMAT}"
        )
    _check_card(card)
    try:
        description = complete_description(**_mapping(card, "network"))
        sketch = sketch_network(description)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"its network can't be rebuilt: {error}") from error
    if description["num_genres"] != len(card["genres"]):
        raise CheckpointError(
            f"its network has {description['num_genres']} outputs for {len(card['genres'])} genres"
        )
    title = description["title"]
    if title is not None and title["vocabulary_size"] != card["titles"].get("vocabulary_size"):
        raise CheckpointError("its title branch and its vocabulary differ in width")
    card["network"] = description
    _check_weights(checkpoint.get("state_dict"), sketch.state_dict())
    return checkpoint


def _mapping(card: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = card.get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{CHECKPOINT_KEY}.{key} is missing or not a mapping")
    return value


def _check_card(card: Mapping[str, Any]) -> None:
    genres = card.get("genres")
    if (
        not isinstance(genres, list)
        or not genres
        or not all(isinstance(genre, str) and genre for genre in genres)
        or len(set(genres)) != len(genres)
    ):
        raise CheckpointError("its genres are not a list of distinct names")
    thresholds = card.get("thresholds")
    if not isinstance(thresholds, list) or len(thresholds) != len(genres):
        raise CheckpointError("it does not have one threshold for each genre")
    if not all(type(t) is float and math.isfinite(t) for t in thresholds):
        raise CheckpointError("its thresholds are not finite numbers")
    if card.get("activation") not in ACTIVATIONS:
        raise CheckpointError(f"its activation {card.get('activation')!r} is unknown")
    size = card.get("poster_size")
    if type(size) is not int or not POSTER_SIZES[0] <= size <= POSTER_SIZES[1]:
        raise CheckpointError(f"its poster_size {size!r} is outside {POSTER_SIZES}")
    _mapping(card, "data")
    try:
        build_loss(**_mapping(card, "loss"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"its loss can't be rebuilt: {error}") from error
    try:
        TitleVectorizer.from_state_dict(_mapping(card, "titles"))
    except ValueError as error:
        raise CheckpointError(f"its title features can't be rebuilt: {error}") from error


def _check_weights(state: Any, wanted: Mapping[str, Tensor]) -> None:
    if not isinstance(state, dict):
        raise CheckpointError("it has no weights")
    weights = network_weights(state)
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        raise CheckpointError(f"its weights don't fit its network: {(missing or unknown)[0]}")
    for name, sketch in wanted.items():
        value = weights[name]
        if not isinstance(value, Tensor) or value.shape != sketch.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"its weight {name} is {shape}, not {tuple(sketch.shape)}")
        if value.is_floating_point() != sketch.is_floating_point():
            raise CheckpointError(f"its weight {name} is {value.dtype}, not {sketch.dtype}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"its weight {name} holds numbers that are not finite")
