"""One dataset shared by the jobs of a sweep, instead of one opened per job."""

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
    """Keeps what the last job opened, so that the next job can reuse it.

    The movies and their split are reused if all data settings except ``OF_ONE_JOB`` are the same.
    Each fitted input with the same settings is then reused too, with its features. A dataset that
    changes while a sweep runs is therefore seen as it was at the start.
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
            settings: settings of the job's data module.
            branches: settings of the job's inputs, by branch.

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
        """Set up the data module that was built with the last settings and inputs."""
        earlier, self._data = self._data, None
        if earlier is not None:
            data.reuse(earlier)
        data.setup()
        # A copy: once fitting starts, the original holds the trainer and hence the network.
        self._data = copy.copy(data)
