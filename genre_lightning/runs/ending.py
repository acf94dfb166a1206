"""Text for the terminal at the end of a run: its folder, and the commands to run next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genre_lightning.runs.ckpt_path import LAST
from genre_lightning.runs.quoting import below_here, override, shell_command
from genre_lightning.wording import counted


def ending(folder: Path, result: Mapping[str, Any], cfg: DictConfig) -> str:
    """The last lines of a completed run.

    Args:
        folder: the run folder.
        result: content of the run's ``result.json``.
        cfg: the run's configuration, for the columns that the model reads.
    """
    place = below_here(folder)
    epochs = counted(result["epochs"], "epoch")
    lines = [f"Run: {shell_command(place)} ({epochs}, {result['seconds']:.0f} s)"]
    checkpoint = place / result["best_checkpoint"]
    score = f"{result['monitor']} {result['monitor_value']:.4f}"
    runs = Path("runs") if place.parts[0] == "runs" else place.parent
    movie = _movie(cfg)
    commands = (
        shell_command(*script("evaluate"), override("ckpt_path", checkpoint)),
        *([shell_command(*program("genre-predict"), checkpoint, *movie)] if movie else []),
        shell_command(*program("genre-compare"), runs),
    )
    lines += [
        f"Best checkpoint, {score}: {shell_command(checkpoint)}",
        "Next:",
        *(f"  {command}" for command in commands),
    ]
    return "\n".join(lines)


def how_to_resume(folder: Path) -> str:
    """The last lines of an interrupted run."""
    if not (folder / LAST).is_file():
        return f"Interrupted before anything was saved in {shell_command(below_here(folder))}"
    command = shell_command(*script("train"), override("ckpt_path", below_here(folder)))
    return f"Interrupted. To resume it:\n  {command}"


def script(name: str) -> list[str]:
    """The command of train.py or evaluate.py, in the form in which this process was started.

    Args:
        name: "train" or "evaluate".
    """
    called = Path(sys.argv[0])
    if called.suffix != ".py":
        return program(f"genre-{name}")
    found = shutil.which("python")
    is_ours = found is not None and Path(found).parent == Path(sys.executable).parent
    place = below_here((Path.cwd() / called).with_name(f"{name}.py"))
    return ["python" if is_ours else _executable(Path(sys.executable)), str(place)]


def program(name: str) -> list[str]:
    """An installed command: its name, or its path if the PATH does not lead to it."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if beside.exists() and (found is None or Path(found) != beside):
        return [_executable(beside)]
    return [name]


def _executable(path: Path) -> str:
    """A program's path, with at least one slash so that a shell does not search the PATH."""
    place = below_here(path)
    return str(place) if len(place.parts) > 1 else f"./{place}"


def _movie(cfg: DictConfig) -> list[str]:
    """Options of genre-predict for an example movie; none for a model of vectors alone."""
    branches = OmegaConf.to_container(cfg.model.branches, resolve=True)
    columns = set(_columns(branches))
    if "title" in columns:
        return ["--title", "Heat (1995)"]
    if "poster" in columns:
        return ["--poster", "POSTER.jpg"]
    return [word for column in sorted(columns) for word in ("--column", f"{column}=TEXT")][:2]


def _columns(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        return
    if isinstance(value.get("column"), str):
        yield value["column"]
    for part in value.values():
        yield from _columns(part)
