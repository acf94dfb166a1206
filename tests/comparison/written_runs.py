"""Helpers that write run folders like those of training, and read leaderboards."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from genre_lightning.comparison.leaderboard import print_leaderboard
from genre_lightning.runs.result import write_result

HOSTILE = (
    '<script>window.hit=1</script><img src=x onerror="window.hit=1">"&{{ 7 * 7 }}[red]|\x1b[31m'
)


CONFIG: dict[str, Any] = {
    "seed": 0,
    "monitor": "val/map_macro",
    "monitor_mode": "max",
    "ckpt_path": None,
    "data": {"reader": "demo", "batch_size": 32, "cache_dir": "here"},
    "model": {"dropout": 0.4, "title": {"hidden": 256}},
    "optimizer": {"lr": 0.002, "weight_decay": 0.1},
    "trainer": {"max_epochs": 4},
    "logger": {},
}


def write_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    values: Sequence[float] = (0.1, 0.3, 0.2, 0.25),
    *,
    status: str | None = "completed",
    choices: Mapping[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Write a run folder like that of training, with these values of val/map_macro by epoch."""
    settings = settings or {}
    config = json.loads(json.dumps(CONFIG))
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    overrides = [f"{key}={value}" for key, value in {**settings, **(choices or {})}.items()]
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(overrides), "utf-8")
    runtime = {
        "hydra": {
            "runtime": {"choices": {"model": "fusion", "hydra": "default", **(choices or {})}}
        }
    }
    (hydra / "hydra.yaml").write_text(yaml.safe_dump(runtime), "utf-8")
    rows = [
        f"{epoch},{8 * epoch + 8},0.5,{1.0 - value!r},{value!r},{0.6 - 0.1 * epoch!r}"
        for epoch, value in enumerate(values)
    ]
    header = "epoch,step,seconds,val/loss,val/map_macro,train/loss"
    (folder / "metrics.csv").write_text("\n".join([header, *rows, ""]), "utf-8")
    if status is not None:
        contents: dict[str, Any] = {
            "status": status,
            "monitor": config["monitor"],
            "seconds": 10.0,
            **result,
        }
        if status == "completed" and values:
            best = max(values)
            contents = {
                "monitor_value": best,
                "epochs": len(values),
                "val": {"map_macro": best, "f1_micro": best / 2, "loss": 1 - best},
                "test": {"map_macro": best - 0.01},
                **contents,
            }
        write_result(folder, contents)
    return folder


def best_of(folder: Path) -> float:
    with (folder / "metrics.csv").open(newline="") as file:
        return max(float(row["val/map_macro"]) for row in csv.DictReader(file))


def terminal_text(comparison: Any, width: int = 100) -> str:
    out = io.StringIO()
    print_leaderboard(comparison, Console(file=out, width=width, force_terminal=True, emoji=False))
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("leaderboard.")
    }
