"""Fixtures of all tests: a private cache, no network, tiny models, the real movies if present."""

from __future__ import annotations

import asyncio
import atexit
import gc
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from genre_lightning.cores import num_cores
from genre_lightning.lean_imports import load_lightning

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

REPOSITORY = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # nohup ignores SIGHUP. Our commands would keep ignoring it, and its tests would never end.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """One more process than cores, since tests also wait for commands, browsers and servers."""
    return num_cores() + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import as the commands do, and without garbage collection, which takes a tenth of the time.

    PyTorch's compiler, 3 CPU seconds in each process, is then imported only if a test compiles.

    The half a million objects that exist after collection are frozen, so that later garbage
    collections skip them. Each would take long otherwise, and every sweep job ends with one.
    """
    gc.disable()
    try:
        # xdist's controller only hands out tests and needs no Lightning.
        if not session.config.pluginmanager.has_plugin("dsession"):
            load_lightning()
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        # Frozen objects are never freed, which extension modules report at exit, line by line.
        atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark browser tests as slow; refuse ids that differ between the processes of xdist."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: give this case an id without an address")
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root, where train.py is."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def private_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hides the user's caches and W&B account from the tests and the commands they start.

    All processes of xdist share one cache, and so reuse each other's entries.
    """
    home = tmp_path_factory.mktemp("environment")
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRE_LIGHTNING_CACHE", str(cache))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        yield


@pytest.fixture
def verbose_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets commands choose OpenMP's wait policy, and lets OpenMP print its settings in them.

    OpenMP prints its settings when it is loaded, with PyTorch.
    """
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Refuses connections to other machines, and allows those to this machine."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            raise OSError(f"tests are offline: connection to {address[0]} refused")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def ml1m_root() -> Path:
    """The folder or zip of the real movies; without it, the tests that need it are skipped."""
    named = os.environ.get("GENRE_LIGHTNING_ML1M")
    if named is not None:
        if not Path(named).exists():
            pytest.fail(f"GENRE_LIGHTNING_ML1M names {named!r}, and nothing is there")
        return Path(named)
    for folder in (REPOSITORY.parent / "shared" / "data" / "ml1m", REPOSITORY / "data" / "ml1m"):
        if folder.exists():
            return folder
    pytest.skip("no real movies here: set GENRE_LIGHTNING_ML1M to the folder or zip of ml1m")


@pytest.fixture(autouse=True)
def reset_sweep_state() -> Iterator[None]:
    """Resets what a sweep in this process leaves behind: Hydra's config and the shared data."""
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before
    if jobs := sys.modules.get("genre_lightning.sweeps.jobs"):
        jobs._reset_shared_data(None)


@pytest.fixture(autouse=True)
def hide_event_loop_of_browser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets tests without a browser call `asyncio.run`.

    The driver of an open browser keeps an event loop running in this thread, and `asyncio.run`
    refuses to start inside a running loop.
    """
    if "browser" in request.fixturenames:
        yield
        return
    running = asyncio.events._get_running_loop()
    asyncio.events._set_running_loop(None)
    yield
    asyncio.events._set_running_loop(running)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine; without one, browser tests are skipped."""
    from docs.browser import BrowserError, find_chromium, open_chromium

    try:
        find_chromium()
    except BrowserError as error:
        pytest.skip(str(error))
    from playwright.sync_api import expect

    # On a busy machine, a page can take longer than the default of five seconds.
    expect.set_options(timeout=60_000)
    with open_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Callable[..., BrowserContext]:
    """`contexts(offline=True)` gives a browser context, the same one for the same options.

    Contexts are reused because each has its own processes, which cost more than a page. Pages also
    share the context's storage, so a test of stored data creates its own context.
    """

    @cache
    def context(**options: Any) -> BrowserContext:
        created = browser.new_context(**options)
        created.new_page()  # stays open, and keeps the process that renders pages alive
        return created

    return context


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_checkpoint(poster=None)` writes the checkpoint of a tiny model with random weights.

    Arguments: `title` and `poster` describe the networks, and None leaves out the branch; `loss`
    is the name of a loss; `terms` are arguments of the title's TermsInput; `pool` is that of
    PixelsInput; `more` are further branches by name, each an input and a network; `seed` draws the
    weights; `stacking` and `label_sets` add these two stages. Posters are 32 pixels wide and high,
    and the genres are Action, Comedy, Drama and Horror.
    """
    import numpy as np
    import torch

    from genre_lightning.checkpoint.card import CHECKPOINT_FORMAT, CHECKPOINT_KEY
    from genre_lightning.inputs.input import Input
    from genre_lightning.inputs.pixels import PixelsInput
    from genre_lightning.inputs.table import state_to_text
    from genre_lightning.inputs.terms import TermsInput
    from genre_lightning.models.label_sets import LabelSets
    from genre_lightning.models.networks import build_network
    from genre_lightning.models.stacking import Stacking
    from genre_lightning.scoring.losses import build_loss

    genres = ["Action", "Comedy", "Drama", "Horror"]
    titles = [
        "Heat (1995)",
        "Toy Story (1995)",
        "The Last of the Mohicans (1992)",
        "Schindler's List (1993)",
        "Alien (1979)",
        "Léon: The Professional (1994)",
        "Face/Off (1997)",
        "Night of the Living Dead (1968)",
        "The Big Night (1996)",
        "2001: A Space Odyssey (1968)",
        "Dead Man Walking (1995)",
        "Some Like It Hot (1959)",
    ]

    def make(
        title: dict[str, Any] | None = {"hidden": 16},  # noqa: B006 - only read
        poster: dict[str, Any] | None = {"widths": [4, 8], "blocks": [1, 1]},  # noqa: B006
        loss: str = "bce",
        terms: dict[str, Any] | None = None,
        seed: int = 0,
        pool: int = 1,
        more: dict[str, tuple[Input, dict[str, Any]]] | None = None,
        stacking: bool = False,
        label_sets: bool = False,
    ) -> Path:
        inputs: dict[str, Input] = {}
        networks: dict[str, dict[str, Any]] = {}
        if title is not None:
            settings = {"vocabulary_size": 512, "decade": True, **(terms or {})}
            fitted = TermsInput("title", **settings)
            fitted.vectorizer.fit(titles)
            inputs["title_tfidf"], networks["title_tfidf"] = fitted, {"name": "terms_mlp", **title}
        if poster is not None:
            inputs["poster_resnet"] = PixelsInput(size=32, pool=pool)
            networks["poster_resnet"] = {"name": "poster_resnet", "stem_stride": 2, **poster}
        for name, (branch_input, description) in (more or {}).items():
            inputs[name], networks[name] = branch_input, description
        generator = torch.Generator().manual_seed(seed)
        network = build_network(len(genres), networks, inputs)
        with torch.no_grad():
            # As after training: no weight or statistic keeps its initial value, often zero.
            for name, value in network.state_dict().items():
                if not value.is_floating_point():
                    continue
                noise = torch.randn(value.shape, generator=generator)
                if name.endswith("running_var"):
                    value.copy_(0.5 + noise.abs())
                elif "norm" in name and name.endswith("weight"):
                    value.copy_(1.0 + 0.3 * noise)
                else:
                    value.copy_(noise * (0.3 if value.dim() == 1 else value[0].numel() ** -0.5))
        noise = torch.randn(2, len(inputs) + len(genres) + 1, len(genres), generator=generator)
        of_branches, of_genres, offsets = noise.split([len(inputs), len(genres), 1], dim=1)
        branches = dict(zip(inputs, (1 + 0.5 * of_branches).unbind(1), strict=True))
        stacked = Stacking(branches, of_genres, offsets[:, 0]).to_lists()
        # Action alone, with Drama, with Horror; Comedy, and Comedy with Drama.
        seen = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0]])
        sets = LabelSets.from_targets(seen.repeat(4, axis=0), np.arange(20) // 3 % 2)
        built = build_loss(loss)
        path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
        checkpoint = {
            "epoch": 1,
            "global_step": 1,
            "state_dict": {f"network.{name}": v for name, v in network.state_dict().items()},
            CHECKPOINT_KEY: {
                "format": CHECKPOINT_FORMAT,
                "network": network.description,
                "activation": built.activation,
                "loss": built.description,
                "thresholds": [0.3, 0.5, 0.4, 0.2],
                "stacking": stacked if stacking else None,
                "label_sets": sets.to_lists() if label_sets else None,
                "genres": genres,
                "inputs": {name: state_to_text(value) for name, value in inputs.items()},
                "data": {"reader": "demo", "val_fraction": 0.2, "test_fraction": 0.2},
            },
        }
        torch.save(checkpoint, path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with both branches that loads in an instant; tests must not change it."""
    return make_checkpoint()


#: Overrides of a run that takes a second, goes through every step of training and learns nothing.
TINY = (
    "++data.num_movies=120",
    "++data.poster_height=48",
    "data.workers=1",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "callbacks.progress_bar=null",
    "++trainer.enable_progress_bar=false",
    # Every epoch writes a checkpoint.
    "checkpoint_min_seconds=0",
)
TINY_TITLE = (
    "model.branches.title_tfidf.input.vocabulary_size=256",
    "model.branches.title_tfidf.network.hidden=8",
)
TINY_POSTER = (
    "model.branches.poster_resnet.input.size=32",
    "model.branches.poster_resnet.input.pool=1",
    "model.branches.poster_resnet.network.widths=[4,8]",
    "model.branches.poster_resnet.network.blocks=[1,1]",
)


@pytest.fixture(scope="session")
def tiny_overrides() -> Callable[..., list[str]]:
    """`tiny_overrides("seed=1", model="title")` gives the overrides of a tiny run."""

    def overrides(*more: str, model: str = "fusion") -> list[str]:
        title = TINY_TITLE if model != "poster" else ()
        poster = TINY_POSTER if model != "title" else ()
        return [f"model={model}", *TINY, *title, *poster, *more]

    return overrides


@pytest.fixture(scope="session")
def train_here(repository: Path) -> Callable[[Path, list[str]], dict[str, Any]]:
    """`train_here(folder, overrides)` trains as train.py does, in this process: the result."""

    def run(folder: Path, overrides: list[str]) -> dict[str, Any]:
        from tests.running import train_in

        return train_in(repository, folder, overrides)

    return run


@pytest.fixture(scope="session")
def trained_run(
    train_here: Callable[[Path, list[str]], dict[str, Any]],
    tiny_overrides: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a tiny fusion run, with its checkpoints; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    train_here(folder, tiny_overrides())
    return folder
