"""Claims on GPUs by real processes, without any GPU."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genre_lightning.sweeps.devices import claim_device, gpu_names

Claim = Callable[[int], tuple[subprocess.Popen[str], int]]


HOLDER = """
import sys
from pathlib import Path
from genre_lightning.sweeps.devices import claim_device

with claim_device(["gpu-0", "gpu-1"], Path(sys.argv[1]), int(sys.argv[2])) as index:
    print(index, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def claim(repository: Path, tmp_path: Path) -> Iterator[Claim]:
    """Starts a process that claims one of two devices and holds it: `claim(start)`."""
    holders = []

    def start(start: int) -> tuple[subprocess.Popen[str], int]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), str(start)],
            cwd=repository, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        holders.append(holder)
        assert holder.stdout is not None
        return holder, int(holder.stdout.readline())

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_claims_are_spread_evenly(claim: Claim, tmp_path: Path) -> None:
    held = [claim(0), claim(0), claim(0), claim(1)]
    assert Counter(index for _, index in held) == {0: 2, 1: 2}
    # The device of a killed process is free, so the next claim gets it.
    killed, freed = held[0]
    killed.kill()
    killed.wait()
    for start in (0, 1):
        with claim_device(["gpu-0", "gpu-1"], tmp_path, start) as index:
            assert index == freed


def test_a_claim_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(3):
        with claim_device(["a", "b"], tmp_path) as one, claim_device(["a", "b"], tmp_path) as two:
            assert (one, two) == (0, 1)


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, ["gpu-0", "gpu-1"]), ("2,3", ["gpu-2", "gpu-3"]), ("GPU-a, 5", ["gpu-GPU-a", "gpu-5"])],
    ids=["all", "some", "by name"],
)
def test_the_same_gpu_has_the_same_name(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_names(2) == names
