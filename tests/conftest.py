"""What all tests share: a private cache, no network, few threads, the real movies if present."""

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
    # As nohup starts programs: ours would then keep to it, and those that test it would wait.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: tests also wait, for a command, a browser or a server."""
    return num_cores() + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import as commands do, and without searching for garbage, which takes a tenth of the time.

    PyTorch's compiler, 3 s of a core in each process, then comes where a test compiles.

    What is there by then, half a million objects, stays, and is left out of later searches: it
    would make each of them last long, and a job of a sweep ends with one.
    """
    gc.disable()
    try:
        # The process that only hands out tests to others needs nothing of it.
        if not session.config.pluginmanager.has_plugin("dsession"):
            load_lightning()
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        # Or it would not be freed at the end, and extension modules complain of that line by line.
        atexit.register(gc.unfreeze)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in a browser are slow; every test has the same name in each process."""
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
    """Keeps the user's caches and W&B account out of reach, of started commands as well.

    The cache is one for all processes that test: what one has made, the others find.
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
def openmp_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started commands are told nothing of OpenMP's waiting, and print what it goes by.

    It does so as it is loaded, with PyTorch.
    """
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """Refuses connections to other machines; those to this one stay possible."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            raise OSError(f"tests are offline: connection to {address[0]} refused")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def ml1m_root() -> Path:
    """The folder or zip of real movies; tests that ask for it are skipped where there is none."""
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
def apart_from_sweeps() -> Iterator[None]:
    """Forgets what a sweep in this process leaves: its configuration, and what its jobs share."""
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before
    if jobs := sys.modules.get("genre_lightning.sweeps.jobs"):
        jobs._reset_shared_data(None)


@pytest.fixture(autouse=True)
def apart_from_the_browser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets tests without a browser run coroutines of their own.

    The driver of one that is open keeps its event loop running in this thread, and `asyncio.run`
    refuses to begin inside of another.
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
    """A headless Chromium of this machine; where there is none, its tests are skipped."""
    from docs.browser import BrowserError, find_chromium, open_chromium

    try:
        find_chromium()
    except BrowserError as error:
        pytest.skip(str(error))
    from playwright.sync_api import expect

    # On a busy machine, a page can take longer than the five seconds of the default.
    expect.set_options(timeout=60_000)
    with open_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Callable[..., BrowserContext]:
    """`contexts(offline=True)`: what pages are opened in, the same for the same options.

    Each has processes of its own, which cost more than a page does. What pages store in one, the
    next page finds: a test of that makes its own.
    """

    @cache
    def context(**options: Any) -> BrowserContext:
        made = browser.new_context(**options)
        made.new_page()  # stays, and with it the process that shows pages
        return made

    return context


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes checkpoints of a tiny fitted-looking model: `make_checkpoint(poster=None)`.

    Arguments: `title` and `poster`, the networks' descriptions or None for no such branch; `loss`,
    a loss's name; `terms`, arguments of the title's TermsInput; `pool`, of the poster's pixels;
    `more`, further branches by name, each an input and a network; `seed` of the weights;
    `stacking`, whether there is stacking on top; `label_sets`, whether some sets are unlikely.
    Size 32, genres Action, Comedy, Drama and Horror.
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
        for name, (given, network_of_it) in (more or {}).items():
            inputs[name], networks[name] = given, network_of_it
        generator = torch.Generator().manual_seed(seed)
        network = build_network(len(genres), networks, inputs)
        with torch.no_grad():
            # As after training: no weight and no statistic is at its start, where much is zero.
            for name, value in network.state_dict().items():
                if not value.is_floating_point():
                    continue
                drawn = torch.randn(value.shape, generator=generator)
                if name.endswith("running_var"):
                    value.copy_(0.5 + drawn.abs())
                elif "norm" in name and name.endswith("weight"):
                    value.copy_(1.0 + 0.3 * drawn)
                else:
                    value.copy_(drawn * (0.3 if value.dim() == 1 else value[0].numel() ** -0.5))
        drawn = torch.randn(2, len(inputs) + len(genres) + 1, len(genres), generator=generator)
        of, others, offsets = drawn.split([len(inputs), len(genres), 1], dim=1)
        branches = dict(zip(inputs, (1 + 0.5 * of).unbind(1), strict=True))
        stacked = Stacking(branches, others, offsets[:, 0]).to_lists()
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
                "inputs": {name: state_to_text(given) for name, given in inputs.items()},
                "data": {"reader": "demo", "val_fraction": 0.2, "test_fraction": 0.2},
            },
        }
        torch.save(checkpoint, path)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with both branches that loads in an instant; not to be changed."""
    return make_checkpoint()


#: Enough to go through every step of training in a second, and to learn nothing.
TINY = (
    "++data.num_movies=120",
    "++data.poster_height=48",
    "data.workers=1",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "callbacks.progress_bar=null",
    "++trainer.enable_progress_bar=false",
    # Each epoch is on the disk as it ends.
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
    """Overrides of a tiny run, `tiny_overrides("seed=1", model="title")`, for either way below."""

    def overrides(*more: str, model: str = "fusion") -> list[str]:
        title = TINY_TITLE if model != "poster" else ()
        poster = TINY_POSTER if model != "title" else ()
        return [f"model={model}", *TINY, *title, *poster, *more]

    return overrides


@pytest.fixture(scope="session")
def train_here(repository: Path) -> Callable[[Path, list[str]], dict[str, Any]]:
    """Trains in this process as train.py does: `train_here(folder, overrides)` gives the result."""

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
    """The folder of a tiny fusion run, with its checkpoints; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    train_here(folder, tiny_overrides())
    return folder
