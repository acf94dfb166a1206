"""A run that is killed, wherever and how often, goes on as if it had not been."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import kill_at, train_apart

Overrides = Callable[..., list[str]]
#: Ten batches an epoch, with dropout, augmentation and a schedule.
SMALL_BATCHES = ("data.batch_size=8", "trainer.max_epochs=4")


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """Where two nested containers differ, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key not in one or key not in other:
                yield f"{place}.{key} in one alone"
            else:
                yield from differences(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{place}: {len(one)} and {len(other)} long"
        for number, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from differences(a, b, f"{place}[{number}]")
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield f"{place}: {one} and {other}"
    elif one != other:
        yield f"{place}: {one!r} and {other!r}"


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint without times and places."""
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    history = loaded["callbacks"]["History"]
    del history["seconds"], history["epoch_seconds"]
    for row in history["rows"]:
        del row["seconds"]
    for key, state in loaded["callbacks"].items():
        if key.startswith("ModelCheckpoint"):
            del state["dirpath"]
            state["best_model_path"] = Path(state["best_model_path"]).name
            state["kth_best_model_path"] = Path(state["kth_best_model_path"]).name
            state["best_k_models"] = list(state["best_k_models"].values())
    return loaded


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def recorded(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        assert list(differences(checkpoint(one, name), checkpoint(other, name))) == []
    assert rows(one) == rows(other)
    for key in ("status", "val", "test", "monitor_value", "epochs", "num_parameters"):
        assert recorded(one)[key] == recorded(other)[key], key


@pytest.fixture(scope="module")
def unbroken(
    repository: Path, tiny_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    process = train_apart(repository, folder, tiny_overrides(*SMALL_BATCHES))
    process.join()
    assert process.exitcode == 0, folder.with_name("unbroken.log").read_text()
    return folder


def test_killed_again_and_again(
    unbroken: Path, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"moments drawn from seed {seed}")
    draw = random.Random(seed)
    folder = tmp_path / "killed"
    overrides = tiny_overrides(*SMALL_BATCHES, "checkpoint_every_n_steps=3")
    kills = 0
    while True:
        moment = draw.randrange(4, 16) if kills < 6 else 10**6
        print(f"kill in step {moment} of attempt {kills + 1}")
        last = folder / "checkpoints" / "last.ckpt"
        more = [f"ckpt_path={last}"] if last.exists() else []
        process = train_apart(repository, folder, [*overrides, *more], kill_at, moment)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, folder.with_name("killed.log").read_text()
        assert recorded(folder)["status"] == "interrupted"
        kills += 1
    assert kills >= 3
    assert recorded(folder)["attempts"] == kills + 1
    assert_same_run(unbroken, folder)
