"""The dataset of a sweep's jobs, opened once where all of them have the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.table import build_input

#: Settings of a data module that change neither the movies nor their split.
OF_ONE_JOB = ("batch_size", "device_resident", "resident_share")


class SharedData:
    """What the last job has opened: the next one takes over what it would open again.

    The movies and their split, where all settings of the data but ``OF_ONE_JOB`` are the same; and
    then each input of the same settings, fitted, with its numbers. A dataset that changes while a
    sweep runs is thus seen as it was at the start.
    """

    def __init__(self) -> None:
        self._settings: Mapping[str, Any] | None = None
        self._inputs: dict[str, Input] = {}
        self._data: MovieDataModule | None = None

    def inputs(
        self, settings: Mapping[str, Any], branches: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Input]:
        """The inputs of a job, by branch.

        Args:
            settings: of its data module.
            branches: the settings of its inputs, by branch.

        Raises:
            UserError: see :func:`build_input`.
        """
        settings = {key: value for key, value in settings.items() if key not in OF_ONE_JOB}
        if self._data is None or settings != self._settings:
            self._settings, self._inputs, self._data = settings, {}, None
        keys = {branch: repr(given) for branch, given in branches.items()}
        found = {
            branch: self._inputs.get(keys[branch]) or build_input(branch, given)
            for branch, given in branches.items()
        }
        self._inputs = {keys[branch]: given for branch, given in found.items()}
        return found

    def open(self, data: MovieDataModule) -> None:
        """Set up a data module of these settings with these inputs."""
        earlier, self._data = self._data, None
        if earlier is not None:
            data.reuse(earlier)
        data.setup()
        # Not itself: from fit on it holds the trainer, and with that the network.
        self._data = copy.copy(data)
