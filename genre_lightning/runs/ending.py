"""Text for the terminal at the end of a run: its folder, and the commands to run next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genre_lightning.runs.ckpt_path import LAST
from genre_lightning.runs.earlier import code_overrides
from genre_lightning.runs.quoting import format_override, relative_to_cwd, shell_command
from genre_lightning.wording import counted


def completed_message(folder: Path, result: Mapping[str, Any], cfg: DictConfig) -> str:
    """The last lines of a completed run.

    Args:
        folder: the run folder.
        result: content of the run's ``result.json``.
        cfg: the run's configuration, for the columns that the model reads.
    """
    shown_folder = relative_to_cwd(folder)
    epochs = counted(result["epochs"], "epoch")
    lines = [f"Run: {shell_command(shown_folder)} ({epochs}, {result['seconds']:.0f} s)"]
    checkpoint = shown_folder / result["best_checkpoint"]
    score = f"{result['monitor']} {result['monitor_value']:.4f}"
    runs = Path("runs") if shown_folder.parts[0] == "runs" else shown_folder.parent
    movie = _example_movie(cfg)
    commands = (
        shell_command(*script_command("evaluate"), format_override("ckpt_path", checkpoint)),
        *(
            [shell_command(*installed_command("genre-predict"), checkpoint, *movie)]
            if movie
            else []
        ),
        shell_command(*installed_command("genre-compare"), runs),
    )
    lines += [
        f"Best checkpoint, {score}: {shell_command(checkpoint)}",
        "Next:",
        *(f"  {command}" for command in commands),
    ]
    return "\n".join(lines)


def interrupted_message(folder: Path, overrides: Iterable[str]) -> str:
    """The last lines of an interrupted run.

    Args:
        folder: the run folder.
        overrides: the run's overrides.
    """
    if not (folder / LAST).is_file():
        return f"Interrupted before anything was saved in {shell_command(relative_to_cwd(folder))}"
    command = shell_command(*script_command("train"), *resuming_overrides(folder, overrides))
    return f"Interrupted. To resume it:\n  {command}"


def resuming_overrides(folder: Path, overrides: Iterable[str]) -> list[str]:
    """The overrides that resume a run in its folder; for the arguments see interrupted_message."""
    return [format_override("ckpt_path", relative_to_cwd(folder)), *code_overrides(overrides)]


def script_command(name: str) -> list[str]:
    """The command of train.py or evaluate.py, in the form in which this process was started.

    Args:
        name: "train" or "evaluate".
    """
    entry_script = Path(sys.argv[0])
    if entry_script.suffix != ".py":
        return installed_command(f"genre-{name}")
    python = shutil.which("python")
    is_same_python = python is not None and Path(python).parent == Path(sys.executable).parent
    path = relative_to_cwd((Path.cwd() / entry_script).with_name(f"{name}.py"))
    return ["python" if is_same_python else _executable(Path(sys.executable)), str(path)]


def installed_command(name: str) -> list[str]:
    """An installed command: its name, or its path if the PATH does not lead to it."""
    own_path = Path(sys.executable).with_name(name)
    on_path = shutil.which(name)
    if own_path.exists() and (on_path is None or Path(on_path) != own_path):
        return [_executable(own_path)]
    return [name]


def _executable(path: Path) -> str:
    """A program's path, with at least one slash so that a shell does not search the PATH."""
    shown = relative_to_cwd(path)
    return str(shown) if len(shown.parts) > 1 else f"./{shown}"


def _example_movie(cfg: DictConfig) -> list[str]:
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
