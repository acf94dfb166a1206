"""Runs every speed benchmark and writes the table of docs/speed.md.

    python -m benchmarks.all --root data/ml1m --out figures.md
    python -m benchmarks.all --only start step title_layer

Runs the benchmarks one after the other, each in its own process with its default number of turns.
A failure is reported and does not stop the others. The table has one row per benchmark, with its
figure, ratio, aim, n and spread. Ends with one JSON line: ``figure`` is the number of benchmarks
that reached their aim, ``ratio`` that over the number that were run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, hardware, json_line

#: Each benchmark: whether it takes ``--root``, and what it compares.
BENCHMARKS: dict[str, tuple[bool, str]] = {
    "feed": (True, "training samples/s against one resident batch"),
    "harness": (True, "`trainer.fit` against a bare loop, samples/s"),
    "usual": (True, "an epoch against the usual Dataset and DataLoader"),
    "step": (True, "fastest step against eager, NCHW, float32"),
    "cache": (True, "building the poster cache against decoding alone"),
    "embed": (True, "filling the embedding cache against the encoder's bare forward"),
    "report": (False, "a report's seconds beyond scoring the split, over what they may be"),
    "start": (False, "`train.py --cfg job` against a Hydra program of one key"),
    "first_step": (True, "command to first training step beyond the imports"),
    "predict_cold": (False, "one `genre-predict` against `import torch`"),
    "predict_batch": (False, "many movies against decoding alone"),
    "title_layer": (True, "sparse title branch against a dense layer"),
    "scale": (False, "cost per movie, 100,000 against 1,000; warm start"),
    "sweep": (True, "six jobs of a sweep against their fits"),
    "shared_cores": (True, "two trainings at once against one after the other"),
    "frozen_run": (True, "a run on cached embeddings, beyond its imports"),
    "frozen_sweep": (True, "36 jobs on cached embeddings against their epochs"),
    "frozen_step": (True, "`trainer.fit` on cached embeddings against a bare loop"),
    "ensemble": (True, "eight networks in one checkpoint against eight runs"),
    "ask": (False, "answers a second against a server's best rate"),
    "seed_recipe": (True, "the original recipe, 50 epochs, against 30 min"),
}
#: Benchmarks whose aim is for the figure; for all others it is for the ratio.
AIM_ON_FIGURE = ("first_step", "frozen_run")
#: Benchmarks that need real movies.
NEEDS_ROOT = ("first_step", "frozen_run", "frozen_sweep", "frozen_step", "ensemble")


def reached_aim(name: str, line: dict[str, Any]) -> bool:
    """Whether a benchmark reached its aim, according to its JSON line."""
    value = line["figure"] if name in AIM_ON_FIGURE else line["ratio"]
    if value is None:
        return False
    return bool(value >= line["aim"] if line["aim_is"] == "at least" else value <= line["aim"])


def table_row(name: str, line: dict[str, Any]) -> str:
    """One row of the README's table."""
    aim = f"{line['aim_is']} {line['aim']:g}" + (f" {line['unit']}" * (name in AIM_ON_FIGURE))
    ratio = "" if line["ratio"] is None else f"{line['ratio']:.3g}"
    cells = [
        f"`{name}`: {BENCHMARKS[name][1]}",
        f"{line['figure']:.4g} {line['unit']}",
        ratio,
        aim,
        "yes" if reached_aim(name, line) else "no",
        f"{line['n']}, {line['spread']:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


def run(name: str, root: Path | None, turns: int | None) -> dict[str, Any] | None:
    """Run a benchmark, showing its output live; its JSON line, or None if it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    if root is not None and BENCHMARKS[name][0]:
        command += ["--root", str(root.resolve())]
    if turns is not None:
        command += ["-n", str(turns)]
    print(f"\n{' '.join(command[1:])}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    last = ""
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        for text in process.stdout or ():
            print(text, end="", flush=True)
            last = text
    if process.returncode != 0:
        print(f"{name} failed with status {process.returncode}", flush=True)
        return None
    line: dict[str, Any] = json.loads(last)
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks and write the table; exit status 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="ml1m, folder or zip; default: demo data")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("-n", "--n", type=int, help="turns of each benchmark; default: its own")
    parser.add_argument("--out", type=Path, help="file for the table; default: only printed")
    args = parser.parse_args(arguments)
    names = [name for name in args.only if args.root is not None or name not in NEEDS_ROOT]
    lines = {name: run(name, args.root, args.n) for name in names}
    movies = "demo movies" if args.root is None else "ml1m"
    table = [
        f"{date.today()}, {hardware()}, {movies}",
        "",
        "| figure | ours | ratio | aim | reached | n, sd |",
        "| --- | --- | --- | --- | --- | --- |",
        *(table_row(name, line) for name, line in lines.items() if line is not None),
        *(f"| `{name}` | failed | | | no | |" for name, line in lines.items() if line is None),
    ]
    text = "\n".join(table) + "\n"
    print(f"\n{text}")
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    count = sum(line is not None and reached_aim(name, line) for name, line in lines.items())
    print(json_line(count, count / max(1, len(lines)), len(lines), 0.0, 1.0, aim_is="at least"))
    if None in lines.values():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
