"""A trained model, rebuilt from a checkpoint alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genre_lightning.checkpoint.card import (
    CHECKPOINT_KEY,
    check_card,
    network_weights,
    read_checkpoint,
)
from genre_lightning.inputs.input import Input
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.networks import fill_constants


@dataclass(frozen=True)
class TrainedModel:
    """A model rebuilt from a checkpoint.

    Attributes:
        network: in evaluation mode, on the requested device.
        activation: key in ``models.fusion.ACTIVATIONS`` of the function from logits to scores.
        loss: description of the loss it was trained with, for ``losses.build_loss``.
        genres: G names, in the order of the logits.
        thresholds: (G,) float32, on the CPU; a genre is predicted if its score reaches its
            threshold.
        inputs: by branch, fitted.
        data: plain description of the training dataset, as the file claims; not checked.
        shows: the columns that the model reads and what they hold, if its inputs don't say so.
        threshold_fit: how the thresholds were fitted, as arguments of ``fit_thresholds``.
        learnt_from: ``MovieDataModule.learnt_from`` in training; None if the file doesn't say.
        learnt_movies: ``MovieDataModule.learnt_movies`` in training; likewise.
        member: the member whose scores are explained, that of a movie's fold in validation by
            folds; None for the mean of all members, as in prediction.
    """

    network: Fusion
    activation: str
    loss: dict[str, Any]
    genres: tuple[str, ...]
    thresholds: Tensor
    inputs: dict[str, Input]
    data: dict[str, Any]
    shows: dict[str, str] | None = None
    threshold_fit: dict[str, Any] = field(default_factory=dict)
    learnt_from: str | None = None
    learnt_movies: str | None = None
    member: int | None = None

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.network.prior.device

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the model reads, and what they hold: "text", "poster" or "id"."""
        if self.shows is not None:
            return dict(self.shows)
        return {branch_input.column: branch_input.of for branch_input in self.inputs.values()}

    @property
    def given_columns(self) -> dict[str, str]:
        """The columns of ``columns`` that any movie can have: all but vectors by movie id."""
        return {name: kind for name, kind in self.columns.items() if kind != "id"}


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Rebuild a trained model from a checkpoint file alone.

    Raises:
        CheckpointError: see :func:`read_checkpoint`.
    """
    # Memory-mapped, so that the optimizer's state, twice the size of the weights, is not read. The
    # weights are copied before this returns.
    return rebuild(read_checkpoint(path, mmap=True), device)


def rebuild(checkpoint: Mapping[str, Any], device: torch.device | str = "cpu") -> TrainedModel:
    """Rebuild the model from the result of :func:`read_checkpoint`."""
    card = checkpoint[CHECKPOINT_KEY]
    # The sketch takes copies of the weights, so that none are initialised only to be overwritten.
    network, inputs = check_card(card)
    network.description = card["network"]
    expected = network.state_dict()
    weights = {
        name: value.to(device=device, dtype=expected[name].dtype, copy=True)
        for name, value in network_weights(checkpoint["state_dict"]).items()
    }
    network.load_state_dict(weights, assign=True)
    fill_constants(network)
    network.eval().to(memory_format=torch.channels_last)
    return TrainedModel(
        network=network,
        activation=card["activation"],
        loss=dict(card["loss"]),
        genres=tuple(card["genres"]),
        thresholds=torch.tensor(card["thresholds"], dtype=torch.float32),
        inputs=inputs,
        data=dict(card["data"]),
        threshold_fit=dict(card.get("threshold_fit", {})),
        learnt_from=card.get("learnt_from"),
        learnt_movies=card.get("learnt_movies"),
    )
