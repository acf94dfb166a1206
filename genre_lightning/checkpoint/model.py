"""Checkpoints as plain data: read with suspicion, rebuilt alone.

A checkpoint is Lightning's own file plus one entry, ``genre_lightning``, which describes the
network and the inputs by short names and numbers. A file can come from a stranger, so reading one
never imports, instantiates or calls anything that the file names, allocates nothing that the
weights in the file don't account for, and either gives a model or raises :class:`CheckpointError`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genre_lightning.checkpoint.archive import ArchiveError, check_archive
from genre_lightning.errors import UserError
from genre_lightning.files import whole_file
from genre_lightning.inputs.augment import normalise_posters
from genre_lightning.inputs.posters import pool_stages
from genre_lightning.inputs.terms import TitleVectorizer, state_from_json
from genre_lightning.models import ACTIVATIONS, Fusion, PosterResNet
from genre_lightning.models.fusion import complete_description, sketch_network
from genre_lightning.scoring.losses import build_loss

CHECKPOINT_KEY = "genre_lightning"
CHECKPOINT_FORMAT = 3
#: In 2 the title features were a mapping, which may still be; training writes them as JSON in one
#: string, which is read and written in a tenth of the time.
READABLE_FORMATS = (2, 3)
#: What training goes on with, beyond what Lightning saves (callbacks/resume.py).
TRAINING_KEY = "training_state"

#: Everything the trainer writes. An entry beyond these was put there by somebody else: Lightning
#: acts on some (``hyper_parameters`` with an ``_instantiator``), so none is let through.
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
        poster_size: H = W to which posters are decoded.
        poster_pool: side of the squares of pixels that are averaged before the network sees them.
        data: plain description of the dataset it was trained on; a claim of the file, not checked.
    """

    network: Fusion
    activation: str
    loss: dict[str, Any]
    genres: tuple[str, ...]
    thresholds: Tensor
    titles: TitleVectorizer
    poster_size: int
    poster_pool: int
    data: dict[str, Any]

    @property
    def poster_shrink(self) -> int:
        """The part of ``poster_pool`` that ``decode_poster`` does."""
        return pool_stages(self.poster_pool)[0]

    def normalise(self, posters: Tensor) -> Tensor:
        """Posters as the network takes them.

        Args:
            posters: (P, 3, H, W) uint8, decoded at ``poster_size`` and ``poster_shrink``.

        Returns: (P, 3, h, w) float32; h = w = poster_size // poster_pool.
        """
        return normalise_posters(posters, pool_stages(self.poster_pool)[1])


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read and check a checkpoint file.

    Args:
        path: of the file.
        mmap: leave the tensors in the file until they are looked at; it must not change meanwhile.

    Returns:
        Its entries: numbers, strings, lists, dicts and CPU tensors; the ``genre_lightning`` entry
        is complete and consistent with the weights.

    Raises:
        CheckpointError: for anything but a whole checkpoint of this project.
    """
    path = Path(path)
    try:
        return _check(_load(path, mmap))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Rebuild a trained model from a checkpoint file alone.

    Raises:
        CheckpointError: see :func:`read_checkpoint`.
    """
    # Mapped into memory: the optimizer's state, twice the size of the weights, is then not read.
    # The weights are copied before this returns.
    return rebuild(read_checkpoint(path, mmap=True), device)


def rebuild(checkpoint: Mapping[str, Any], device: torch.device | str = "cpu") -> TrainedModel:
    """The model of what :func:`read_checkpoint` gave."""
    card = checkpoint[CHECKPOINT_KEY]
    # The sketch takes over copies of the weights: none is drawn, only to be overwritten.
    network = sketch_network(card["network"])
    network.description = card["network"]
    wanted = network.state_dict()
    weights = {
        name: value.to(device=device, dtype=wanted[name].dtype, copy=True)
        for name, value in network_weights(checkpoint["state_dict"]).items()
    }
    network.load_state_dict(weights, assign=True)
    network.eval().to(memory_format=torch.channels_last)
    return TrainedModel(
        network=network,
        activation=card["activation"],
        loss=dict(card["loss"]),
        genres=tuple(card["genres"]),
        thresholds=torch.tensor(card["thresholds"], dtype=torch.float32),
        titles=TitleVectorizer.from_state_dict(card["titles"]),
        poster_size=card["poster_size"],
        poster_pool=card["poster_pool"],
        data=dict(card["data"]),
    )


def network_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The network's part of a GenreModule's ``state_dict``, under the network's own names."""
    prefix = "network."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def check_resumable(
    path: str | Path, inputs: Mapping[str, Any], network: Fusion, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Refuse to resume from a bad file, or one whose model, data or settings differ from ours.

    Args:
        path: of the checkpoint.
        inputs: ``MovieDataModule.describe()`` of the run that would go on.
        network: of that run.
        settings: of that run, from :func:`genre_lightning.training.callbacks.resume.run_settings`.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: naming the file and what differs, with both values.
    """
    checkpoint = read_checkpoint(path)
    card = checkpoint[CHECKPOINT_KEY]
    entries = {
        "optimizer_states": list,
        "lr_schedulers": list,
        "loops": dict,
        "callbacks": dict,
        TRAINING_KEY: dict,
    }
    for entry, kind in entries.items():
        if not isinstance(checkpoint.get(entry), kind):
            raise CheckpointError(f"{path}: it has no {entry!r}, so training can't go on from it")
    for key, ours in (
        ("genres", list(inputs["genres"])),
        ("poster_size", inputs["poster_size"]),
        ("poster_pool", inputs["poster_pool"]),
        ("titles", inputs["titles"]),
        ("network", network.description),
    ):
        if card[key] != ours:
            raise CheckpointError(
                f"{path}: its {key} differ from this run's ({_difference(card[key], ours)}); "
                "resume with the data and model it was trained with, or start anew without "
                "ckpt_path"
            )
    theirs = checkpoint[TRAINING_KEY].get("settings")
    run_id = checkpoint[TRAINING_KEY].get("wandb_run_id", 0)
    if not isinstance(theirs, dict) or not isinstance(run_id, str | None):
        raise CheckpointError(
            f"{path}: its {TRAINING_KEY} is damaged: training can't go on from it"
        )
    absent = object()
    changed = [
        f"{name} ({_shown(theirs, name)} there, {_shown(settings, name)} here)"
        for name in sorted({*theirs, *settings})
        if theirs.get(name, absent) != settings.get(name, absent)
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise CheckpointError(
            f"{path}: these settings differ from this run's: {', '.join(changed[:5])}{more}; "
            "give the same ones, or start anew without ckpt_path"
        )
    return checkpoint


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return f"{settings[name]!r:.100}" if name in settings else "not set"


def copy_best(checkpoint: Mapping[str, Any], path: str | Path, folder: Path) -> None:
    """Take the best checkpoint so far along, where a run goes on in another folder.

    Copied is the file beside ``path`` that has the name, and the score inside, that ``checkpoint``
    tells, if it is a checkpoint of ours. Any other is left where it is, and forgotten.

    Args:
        checkpoint: of :func:`check_resumable`.
        path: its file.
        folder: of this run's checkpoints.
    """
    beside = Path(path).resolve().parent
    if beside == folder.resolve():
        return
    for key, state in _saver_states(checkpoint):
        best = _best_inside(key, state, beside)
        if best is not None and not (folder / best.name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / best.name, "wb") as file:
                file.write(best.read_bytes())


def _saver_states(checkpoint: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The states of ModelCheckpoint callbacks, by their keys."""
    return [
        (key, state)
        for key, state in checkpoint["callbacks"].items()
        if isinstance(state, dict) and "best_k_models" in state
    ]


def _best_inside(key: str, state: Mapping[str, Any], folder: Path) -> Path | None:
    """The best checkpoint by its name in ``folder``, if that is the very one ``state`` knows.

    After a kill it can be one that was saved later: its own record of the score tells.
    """
    place = folder / Path(str(state.get("best_model_path", ""))).name
    if place.suffix != ".ckpt" or not place.is_file():
        return None
    try:
        own = read_checkpoint(place, mmap=True).get("callbacks", {}).get(key, {})
    except (CheckpointError, AttributeError):
        return None
    scores = own.get("best_model_score"), state.get("best_model_score")
    same = all(isinstance(s, Tensor) and s.numel() == 1 for s in scores) and scores[0] == scores[1]
    return place if same else None


def _difference(theirs: Any, ours: Any, key: str = "") -> str:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        names = sorted(set(theirs) | set(ours))
        for name in sorted(names, key=lambda name: isinstance(ours.get(name), list)):
            if theirs.get(name) != ours.get(name):
                return _difference(theirs.get(name), ours.get(name), f"{key}.{name}".strip("."))
    if isinstance(theirs, list) and isinstance(ours, list) and max(len(theirs), len(ours)) > 32:
        return f"{key or 'list'}: {len(theirs)} and {len(ours)} entries, not the same"
    return f"{key or 'value'}: {theirs!r:.500} there, {ours!r:.500} here"


def keep_paths_inside(checkpoint: dict[str, Any], folder: Path) -> None:
    """Make ModelCheckpoint go on with the checkpoints of ``folder`` alone, found by file name.

    Lightning deletes the file that was best before, with all that is in it, once a better one is
    written, at the path the checkpoint names: a stranger's checkpoint could name any, and that of
    a moved run names old places. A best file that isn't in the folder, or that was saved later, is
    forgotten: the epochs that follow make another.

    Args:
        checkpoint: of :func:`read_checkpoint`, changed in place.
        folder: of this run's checkpoints.
    """
    for key, state in _saver_states(checkpoint):
        best = _best_inside(key, state, folder)
        name = "" if best is None else str(best)
        score = None if best is None else state["best_model_score"]
        state["best_model_path"] = state["kth_best_model_path"] = name
        state["best_model_score"] = score
        state["best_k_models"] = {} if best is None else {name: score}
        state.pop("kth_value", None)
        if best is not None:
            state["kth_value"] = score
        state["last_model_path"] = ""
        state["dirpath"] = str(folder)


def _load(path: Path, mmap: bool) -> Any:
    try:
        if not path.is_file():
            raise CheckpointError("there is no such file")
        check_archive(path)
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
        raise CheckpointError(
            f"it has entries that training never writes: {', '.join(unknown):.200}"
        )
    card = checkpoint[CHECKPOINT_KEY]
    if not isinstance(card, dict):
        raise CheckpointError(f"{CHECKPOINT_KEY} is not a mapping")
    _unpack(card)
    sketch = check_card(card)
    _check_weights(checkpoint.get("state_dict"), sketch.state_dict())
    return checkpoint


def _unpack(card: dict[str, Any]) -> None:
    """Turn what a file holds into what :func:`check_card` takes."""
    if type(card.get("titles")) is str:
        try:
            card["titles"] = state_from_json(card["titles"])
        except ValueError as error:
            raise CheckpointError(f"its title features can't be read: {error}") from error


def _mapping(card: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = card.get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{CHECKPOINT_KEY}.{key} is missing or not a mapping")
    return value


def check_card(card: dict[str, Any]) -> Fusion:
    """Check the description of a model: a file's on reading, and a run's own before it starts.

    Args:
        card: the ``genre_lightning`` entry, its ``titles`` a mapping; its network's description is
            completed in place.

    Returns:
        The network without memory for its weights.

    Raises:
        CheckpointError: naming what a model can't be rebuilt from.
    """
    if card.get("format") not in READABLE_FORMATS:
        known = " and ".join(map(str, READABLE_FORMATS))
        raise CheckpointError(
            f"its format is {card.get('format')!r:.100}; this version reads {known}"
        )
    _check_values(card)
    size = card["poster_size"] // card["poster_pool"]
    try:
        description = complete_description(**_mapping(card, "network"))
        sketch = sketch_network(description).eval()
        if isinstance(sketch.poster, PosterResNet) and size < sketch.poster.least_size:
            raise ValueError(
                f"posters of {size} x {size} pixels are too small for its poster branch, which "
                f"takes no less than {sketch.poster.least_size}"
            )
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"its network can't be rebuilt: {str(error)[:500]}") from error
    if description["num_genres"] != len(card["genres"]):
        raise CheckpointError(
            f"its network has {description['num_genres']} outputs for {len(card['genres'])} genres"
        )
    title = description["title"]
    if title is not None and title["vocabulary_size"] != card["titles"]["vocabulary_size"]:
        raise CheckpointError("its title branch and its vocabulary differ in width")
    card["network"] = description
    return sketch


def _check_values(card: Mapping[str, Any]) -> None:
    genres = card.get("genres")
    if (
        not isinstance(genres, list)
        or not genres
        # Names are shown on terminals, which take some characters for commands.
        or not all(isinstance(genre, str) and genre and genre.isprintable() for genre in genres)
        or len(set(genres)) != len(genres)
    ):
        raise CheckpointError("its genres are not a list of distinct names")
    thresholds = card.get("thresholds")
    if not isinstance(thresholds, list) or len(thresholds) != len(genres):
        raise CheckpointError("it does not have one threshold for each genre")
    if not all(type(t) is float and 0 <= t <= 1 for t in thresholds):
        raise CheckpointError("its thresholds are not numbers in 0..1")
    activation = card.get("activation")
    if type(activation) is not str or activation not in ACTIVATIONS:
        raise CheckpointError(f"its activation {activation!r:.100} is unknown")
    size = card.get("poster_size")
    if type(size) is not int or not POSTER_SIZES[0] <= size <= POSTER_SIZES[1]:
        raise CheckpointError(f"its poster_size {size!r:.100} is outside {POSTER_SIZES}")
    pool = card.get("poster_pool")
    if type(pool) is not int or not 1 <= pool <= size or (pool > 1 and pool % 2):
        raise CheckpointError(
            f"its poster_pool {pool!r:.100} is neither 1 nor an even number up to {size}"
        )
    data = _mapping(card, "data")
    if not all(type(v) in (str, int, float, bool, type(None)) for v in data.values()):
        raise CheckpointError("its data is not described by names and numbers")
    loss = _mapping(card, "loss")
    try:
        built = build_loss(**loss)
        counts = loss.get("genre_counts")
        if counts is not None and len(counts) != len(genres):
            raise ValueError(f"{len(counts)} genre_counts for {len(genres)} genres")
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"its loss can't be rebuilt: {str(error)[:500]}") from error
    if built.activation != activation:
        raise CheckpointError(f"its activation {activation!r} is not that of its loss")
    try:
        TitleVectorizer.from_state_dict(_mapping(card, "titles"))
    except ValueError as error:
        raise CheckpointError(f"its title features can't be rebuilt: {str(error)[:500]}") from error


def _check_weights(state: Any, wanted: Mapping[str, Tensor]) -> None:
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("it has no weights")
    if not all(name.startswith("network.") for name in state):
        raise CheckpointError("it has weights of more than a network")
    weights = network_weights(state)
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        raise CheckpointError(f"its weights don't fit its network: {(missing or unknown)[0]:.200}")
    for name, sketch in wanted.items():
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
