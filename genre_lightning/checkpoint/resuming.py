"""Checks before resuming from a checkpoint, and limits on what Lightning takes from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from genre_lightning.checkpoint.card import (
    CHECKPOINT_KEY,
    TRAINING_KEY,
    CheckpointError,
    read_checkpoint,
)
from genre_lightning.files import whole_file
from genre_lightning.models.fusion import Fusion
from genre_lightning.wording import first_few

#: Most changed settings that a message names.
MAX_NAMED_SETTINGS = 5


def check_resumable(
    path: str | Path,
    inputs: Mapping[str, Any],
    network: Fusion,
    settings: Mapping[str, Any],
    may_change: Callable[[str], bool],
) -> dict[str, Any]:
    """Refuse to resume from a bad file, or one whose model, data or settings differ.

    Args:
        path: path of the checkpoint.
        inputs: ``MovieDataModule.describe()`` of the run that would resume.
        network: that run's network.
        settings: that run's settings, see
            :func:`genre_lightning.training.callbacks.resume.run_settings`.
        may_change: whether a setting may differ; earlier versions stored some that may.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: naming the file and what differs, with both values.
    """
    checkpoint = read_checkpoint(path)
    card, training = checkpoint[CHECKPOINT_KEY], _training_state(path, checkpoint)
    theirs = _stored_settings(training)
    changed = [] if theirs is None else _changed_settings(theirs, settings, may_change)
    other_movies = card.get("learnt_from") not in (None, inputs["learnt_from"])
    # A changed setting of data is reported below.
    if other_movies and not any(name.startswith("data.") for name in changed):
        raise CheckpointError(
            f"{path}: its movies of train and validation are not those of this run, by id, title, "
            "genres and order (in a CSV without a column id, the row is the id, so sorting it "
            "changes ids); resume with the data it was trained with, or start anew without "
            "ckpt_path"
        )
    _check_same_model(path, card, inputs, network)
    if not changed:
        _check_same_content(path, card, inputs)
    run_id = training.get("wandb_run_id", 0)
    if theirs is None or not isinstance(run_id, str | None):
        raise CheckpointError(
            f"{path}: its {TRAINING_KEY} is damaged: training can't resume from it"
        )
    if changed:
        differences = [
            f"{name} ({_format_setting(theirs, name)} there, "
            f"{_format_setting(settings, name)} here)"
            for name in changed
        ]
        raise CheckpointError(
            f"{path}: these settings differ from this run's: "
            f"{first_few(differences, MAX_NAMED_SETTINGS)}; "
            "give the same ones, or start anew without ckpt_path"
        )
    return checkpoint


def _training_state(path: str | Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what our callback stored, if the checkpoint has all that resuming needs.

    Raises:
        CheckpointError: an entry is missing or has the wrong type.
    """
    entries = {
        "optimizer_states": list,
        "lr_schedulers": list,
        "loops": dict,
        "callbacks": dict,
        TRAINING_KEY: dict,
    }
    for entry, kind in entries.items():
        if not isinstance(checkpoint.get(entry), kind):
            raise CheckpointError(
                f"{path}: it has no {entry!r}, so training can't resume from it; use last.ckpt of "
                "the run"
            )
    training: dict[str, Any] = checkpoint[TRAINING_KEY]
    return training


def _stored_settings(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the stored settings; None if training would not have stored such settings."""
    settings = training.get("settings")
    if not isinstance(settings, dict) or _holds_tensor(settings):
        return None
    # Names are shown on terminals, which interpret some characters as commands.
    named = all(isinstance(name, str) and name.isprintable() for name in settings)
    return settings if named else None


def _holds_tensor(value: Any) -> bool:
    """Whether plain data contains a tensor, which can't be compared like other values."""
    if isinstance(value, Mapping):
        return any(_holds_tensor(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def _check_same_model(
    path: str | Path, card: Mapping[str, Any], inputs: Mapping[str, Any], network: Fusion
) -> None:
    """Refuse a checkpoint with other genres, other inputs or another network.

    Args:
        path: path of the checkpoint.
        card: the checkpoint's description.
        inputs: see :func:`check_resumable`.
        network: see :func:`check_resumable`.

    Raises:
        CheckpointError: naming the first difference.
    """
    for key, ours in (
        ("genres", list(inputs["genres"])),
        ("inputs", dict(inputs["inputs"])),
        ("network", network.description),
    ):
        stored = card[key]
        if stored == ours:
            continue
        if key == "inputs":
            stored, ours = _read_states(stored), _read_states(inputs["inputs"])
        verb = "differs" if key == "network" else "differ"
        raise CheckpointError(
            f"{path}: its {key} {verb} from this run's ({_difference(stored, ours)}); "
            "resume with the data and model it was trained with, or start anew without "
            "ckpt_path"
        )


def _check_same_content(
    path: str | Path, card: Mapping[str, Any], inputs: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint whose branches were trained on other texts, posters or vectors.

    The arguments are those of :func:`_check_same_model`.

    Raises:
        CheckpointError: naming the file of vectors, or the column.
    """
    for branch, key in inputs["content"].items():
        if card.get("content", {}).get(branch, key) != key:  # older files don't store it
            state = json.loads(inputs["inputs"][branch])
            source = state.get("path", f"the column {state['column']}")
            raise CheckpointError(
                f"{path}: {source}, which the branch {branch} reads, has changed since for movies "
                "of train or validation; resume with the data it was trained with, or start anew "
                "without ckpt_path"
            )


def _changed_settings(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], may_change: Callable[[str], bool]
) -> list[str]:
    """Return the sorted names of settings that differ, without those that may change."""
    absent = object()
    return [
        name
        for name in sorted({*theirs, *ours})
        if not may_change(name) and theirs.get(name, absent) != ours.get(name, absent)
    ]


def _read_states(texts: Mapping[str, str]) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in texts.items()}


def _format_setting(settings: Mapping[str, Any], name: str) -> str:
    return f"{settings[name]!r:.100}" if name in settings else "not set"


def copy_best(checkpoint: Mapping[str, Any], path: str | Path, folder: Path) -> None:
    """Copy the best checkpoint so far if a run resumes in another folder.

    It is the file beside ``path`` with the name and the score that ``checkpoint`` records, provided
    that it is a checkpoint of ours. Any other file is ignored.

    Args:
        checkpoint: from :func:`check_resumable`.
        path: the file of ``checkpoint``.
        folder: folder of this run's checkpoints.
    """
    source_folder = Path(path).resolve().parent
    if source_folder == folder.resolve():
        return
    for key, state in _saver_states(checkpoint):
        best = _find_best(key, state, source_folder)
        if best is not None and not (folder / best.name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / best.name, "wb") as file:
                file.write(best.read_bytes())


def _saver_states(checkpoint: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the states of ModelCheckpoint callbacks with their keys."""
    return [
        (key, state)
        for key, state in checkpoint["callbacks"].items()
        if isinstance(state, dict) and "best_k_models" in state
    ]


def _find_best(key: str, state: Mapping[str, Any], folder: Path) -> Path | None:
    """Return the best checkpoint in ``folder``, found by name, if it is the one in ``state``.

    After a kill it can be one that was saved later, which its own record of the score shows.
    """
    path = folder / Path(str(state.get("best_model_path", ""))).name
    if path.suffix != ".ckpt":
        return None
    try:
        if not path.is_file():
            return None
        callbacks = read_checkpoint(path, mmap=True).get("callbacks")
    except (CheckpointError, OSError):
        return None
    own_state = callbacks.get(key) if isinstance(callbacks, dict) else None
    if not isinstance(own_state, dict):
        return None
    scores = own_state.get("best_model_score"), state.get("best_model_score")
    same_score = (
        all(isinstance(s, Tensor) and s.numel() == 1 for s in scores) and scores[0] == scores[1]
    )
    return path if same_score else None


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
    """Make ModelCheckpoint resume with the checkpoints of ``folder`` alone, found by file name.

    Once a better checkpoint is written, Lightning deletes whatever is at the path that the loaded
    one records as the best: an untrusted checkpoint could name any path, even a folder, and a
    moved run's names its old place. A best file that isn't in the folder, or that was saved later,
    is forgotten: later epochs write another.

    Args:
        checkpoint: from :func:`read_checkpoint`, changed in place.
        folder: folder of this run's checkpoints.
    """
    for key, state in _saver_states(checkpoint):
        best = _find_best(key, state, folder)
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
