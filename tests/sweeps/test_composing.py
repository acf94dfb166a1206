"""Cached configurations of a sweep's jobs, against those that Hydra composes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genre_lightning.runs.composing import speed_up_composition
from genre_lightning.sweeps.composing import cache_job_configs

original = ConfigLoaderImpl.load_sweep_config


@pytest.fixture(autouse=True, scope="module")
def fast_composition() -> Iterator[None]:
    with speed_up_composition():
        yield


@pytest.fixture(scope="module")
def by_hydra(repository: Path) -> list[Any]:
    """The jobs as Hydra composes them."""
    loader = make_loader(repository)
    return compose_jobs(loader, compose(loader), JOBS)


@pytest.fixture
def loader(repository: Path) -> ConfigLoaderImpl:
    return make_loader(repository)


def make_loader(repository: Path) -> ConfigLoaderImpl:
    import train  # noqa: F401 - registers resolvers

    return ConfigLoaderImpl(create_config_search_path(str(repository / "conf")))


@pytest.fixture
def enable_cache() -> Iterator[Callable[..., None]]:
    """Enables the cache until the test ends."""
    undos = []
    yield lambda keep: undos.append(cache_job_configs(keep=keep))
    for undo in undos:
        undo()
    assert ConfigLoaderImpl.load_sweep_config is original


def compose(loader: ConfigLoaderImpl, *overrides: str, folder: str = "s") -> DictConfig:
    hydra = [f"hydra.sweep.dir={folder}", *overrides]
    return loader.load_configuration("train", hydra, RunMode.MULTIRUN)


def compose_jobs(loader: ConfigLoaderImpl, master: DictConfig, jobs: Sequence[list[str]]) -> list:
    # Not resolved, since `now` gives another time in each.
    return [OmegaConf.to_container(loader.load_sweep_config(master, job)) for job in jobs]


JOBS = [
    ["optimizer.lr=0.1"],
    ["seed=3", "optimizer.lr=0.2", "model=pretrained"],
    ["model=pretrained", "optimizer.lr=0.3", "seed=4"],
    ["model/branch=[title_tfidf]", "model.dropout=0.3"],
    ["model/branch=[title_tfidf,poster_lite2]", "model.dropout=0.3"],
    ["+callbacks.more.at=2", "~callbacks.early_stopping", "++data.num_movies=7"],
    ["optimizer=sgd", "++optimizer.nesterov=true", "hydra.job.chdir=false", "data.root='a b=c,d'"],
    ["data=ml1m", "data.root=${oc.env:HOME}", "model.branches.title_tfidf.network={hidden: 4}"],
    ["experiment=fast", "data.batch_size=null", "trainer.max_epochs=3"],
    ["optimizer.lr=0.1"],
]


@pytest.mark.parametrize("keep", [True, False])
def test_every_job_is_what_hydra_composes(
    keep: bool, loader: ConfigLoaderImpl, enable_cache: Callable[..., None], by_hydra: list[Any]
) -> None:
    master = compose(loader)
    enable_cache(keep=keep)
    assert ConfigLoaderImpl.load_sweep_config is not original
    assert compose_jobs(loader, master, JOBS) == by_hydra
    assert compose_jobs(loader, master, JOBS) == by_hydra
    # As in a worker, where each job comes with its own copies.
    copies = pickle.loads(pickle.dumps((loader, master)))
    assert compose_jobs(copies[0], copies[1], JOBS) == by_hydra


@pytest.mark.parametrize(
    "job", [["optimiser.lr=1"], ["model=nosuch"], ["optimizer.lr=[1"], ["+seed=3"], ["data@b=demo"]]
)
def test_errors_are_those_of_hydra(
    job: list[str], loader: ConfigLoaderImpl, enable_cache: Callable[..., None]
) -> None:
    master = compose(loader)
    with pytest.raises(HydraException) as expected:
        loader.load_sweep_config(master, job)
    enable_cache(keep=True)
    with pytest.raises(type(expected.value)) as actual:
        loader.load_sweep_config(master, job)
    assert str(actual.value) == str(expected.value)


def test_each_sweep_of_a_process_has_its_own_cache(
    loader: ConfigLoaderImpl, enable_cache: Callable[..., None], tmp_path: Path
) -> None:
    enable_cache(keep=True)
    folders = []
    for name, lr in (("one", 0.5), ("two", 0.25)):
        groups = tmp_path / name / "experiment"
        groups.mkdir(parents=True)
        (groups / "mine.yaml").write_text(f"# @package _global_\nseed: 5\noptimizer:\n  lr: {lr}\n")
        master = compose(loader, f"hydra.searchpath=[{groups.parent}]", folder=str(tmp_path / name))
        for seed in (1, 2):
            cfg = loader.load_sweep_config(master, ["experiment=mine", f"seed={seed}"])
            folders.append((cfg.optimizer.lr, cfg.seed, cfg.hydra.sweep.dir))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert folders == [(0.5, 1, one), (0.5, 2, one), (0.25, 1, two), (0.25, 2, two)]


def test_a_job_is_launched_with_the_configuration_that_was_checked(
    loader: ConfigLoaderImpl, enable_cache: Callable[..., None]
) -> None:
    master = compose(loader)
    jobs = [["optimizer.lr=0.1"], ["optimizer.lr=0.2"]]
    enable_cache(keep=True)
    checked = [loader.load_sweep_config(master, job) for job in jobs]
    launched = [loader.load_sweep_config(master, job) for job in jobs]
    assert [one is other for one, other in zip(checked, launched, strict=True)] == [True, True]
    assert [job.optimizer.lr for job in launched] == [0.1, 0.2]
    # A second launch of the job does not get what the first one changed.
    launched[0].seed = 7
    assert loader.load_sweep_config(master, jobs[0]).seed == 0


def test_duplicate_jobs_have_separate_configurations(
    loader: ConfigLoaderImpl, enable_cache: Callable[..., None]
) -> None:
    master = compose(loader)
    jobs = [["seed=1"], ["seed=1"], ["seed=1"]]
    enable_cache(keep=True)
    for job in jobs:
        loader.load_sweep_config(master, job)
    for job in jobs:
        launched = loader.load_sweep_config(master, job)
        assert not OmegaConf.is_readonly(launched)
        OmegaConf.set_readonly(launched.hydra, True)  # as Hydra does before it runs a job
