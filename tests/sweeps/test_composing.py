from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import OmegaConf

from genre_lightning.sweeps.composing import compose_each_job_once


def test_what_was_composed_to_be_checked_is_launched_and_no_other(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train  # noqa: F401 - its resolvers

    loader = ConfigLoaderImpl(create_config_search_path(str(repository / "conf")))
    master = loader.load_configuration("train", ["hydra.sweep.dir=s"], RunMode.MULTIRUN)
    jobs = [["optimizer.lr=0.1"], ["optimizer.lr=0.2"]]
    plain = ConfigLoaderImpl.load_sweep_config
    wanted = [loader.load_sweep_config(master, job) for job in jobs]
    undo = compose_each_job_once()
    try:
        checked = [loader.load_sweep_config(master, job) for job in jobs]
        launched = [loader.load_sweep_config(master, job) for job in jobs]
        assert [one is other for one, other in zip(checked, launched, strict=True)] == [True, True]
        assert [job.optimizer.lr for job in launched] == [0.1, 0.2]
        # Unresolved: `now` is another moment in each.
        assert list(map(OmegaConf.to_container, launched)) == list(
            map(OmegaConf.to_container, wanted)
        )
        # Whoever runs a job a second time is not given what the first has changed.
        launched[0].seed = 7
        assert loader.load_sweep_config(master, jobs[0]).seed == 0
    finally:
        undo()
    assert ConfigLoaderImpl.load_sweep_config is plain
