"""One dataset shared by the jobs of a sweep, instead of one opened per job."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.table import build_input

#: Settings of a data module that change neither the movies nor their split.
PER_JOB_SETTINGS = ("batch_size", "device_resident", "resident_share")


class SharedData:
    """Keeps what the last job opened, so that the next job can reuse it.

    The movies and their split are reused if all data settings except ``PER_JOB_SETTINGS`` are the
    same. Each fitted input with the same settings is then reused too, with its features. A dataset
    that changes while a sweep runs is therefore seen as it was at the start.
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
        settings = {key: value for key, value in settings.items() if key not in PER_JOB_SETTINGS}
        if self._data is None or settings != self._settings:
            self._settings, self._inputs, self._data = settings, {}, None
        keys = {branch: repr(input_settings) for branch, input_settings in branches.items()}
        inputs = {
            branch: self._inputs.get(keys[branch]) or build_input(branch, input_settings)
            for branch, input_settings in branches.items()
        }
        self._inputs = {keys[branch]: branch_input for branch, branch_input in inputs.items()}
        return inputs

    def open(self, data: MovieDataModule) -> None:
        """Set up the data module that was built with the last settings and inputs."""
        previous, self._data = self._data, None
        if previous is not None:
            data.reuse(previous)
        data.setup()
        # A copy: once fitting starts, the original holds the trainer and hence the network.
        self._data = copy.copy(data)
