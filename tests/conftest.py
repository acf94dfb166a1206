"""What all tests share: a private cache, no network, few threads, the real movies if present."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Networks in tests are tiny: more threads only wait for each other. Set before torch is imported,
# and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root, where train.py is."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def private_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's caches and W&B account out of reach, of started commands as well."""
    home = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENRE_LIGHTNING_CACHE", str(home / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(home))
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        yield


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
