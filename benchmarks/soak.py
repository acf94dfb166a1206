"""A long sweep that is killed again and again: does it lose results or leak memory?

    python -m benchmarks.soak
    python -m benchmarks.soak --rates 20 --seeds 10 --kills 20 --draw 3
    python -m benchmarks.soak -- hydra/launcher=joblib hydra.launcher.n_jobs=2

Runs one sweep of tiny jobs, learning rates times seeds, with title and poster. During its first
half the command is killed by SIGKILL at random moments and run again; a last command runs the
second half. Every job records memory and open files of its process (Linux only). It is an error if
a job has not completed exactly once, if the killed commands left partial files, or if the
leaderboard differs from a plain loop over the runs' ``result.json``. Ends with one JSON line:
``figure`` is the slope of the process's memory in KiB a job over the jobs of the last command,
without the first tenth, with its standard error as ``spread``; ``ratio`` is the memory at the end
of these jobs over that at their beginning, ``files`` the least and most open files.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.measure import (
    REPOSITORY,
    argument_parser,
    command_environment,
    hardware,
    json_line,
)

AIM = 1.02
#: Small, but goes through every step of training.
TINY = (
    "++data.num_movies=120",
    "++data.poster_height=48",
    "data.workers=1",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "model.branches.title_tfidf.input.vocabulary_size=256",
    "model.branches.title_tfidf.network.hidden=8",
    "model.branches.poster_resnet.input.size=32",
    "model.branches.poster_resnet.input.pool=1",
    "model.branches.poster_resnet.network.widths=[4,8]",
    "model.branches.poster_resnet.network.blocks=[1,1]",
)
#: Time limit of the last command, which is not killed.
MAX_SECONDS = 3600


class SoakError(RuntimeError):
    """Results were lost or are wrong, or files were left behind; the message says which."""


class Gauge(pl.Callback):
    """Appends id, memory (KiB) and number of open files of the process to a file after each fit."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") // 1024
        files = len(os.listdir("/proc/self/fd"))
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {memory} {files}\n")


def results(sweep: Path) -> dict[str, dict[str, Any]]:
    """The ``result.json`` of each run of a sweep, by folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/result.json")}


def completed(sweep: Path) -> dict[str, bytes]:
    """The bytes of ``result.json`` of each completed job, by folder."""
    texts = {path.parent.name: path.read_bytes() for path in sweep.glob("*/result.json")}
    return {name: text for name, text in texts.items() if b'"status": "completed"' in text}


class Sweep:
    """A sweep whose command is run again until all jobs have completed.

    Args:
        command: command of the sweep.
        folder: folder of the sweep.
        environment: environment of the command.
        draw: generator for the moments of the kills.

    Attributes:
        lost: completed jobs whose ``result.json`` a later command changed or removed.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        draw: random.Random,
    ) -> None:
        self.command = list(command)
        self.folder = folder
        self.environment = dict(environment)
        self.draw = draw
        self.lost: list[str] = []

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder.parent / "printed").open("wb") as file:
            return subprocess.Popen(self.command, env=self.environment, stdout=file, stderr=file)

    def kill_after(self, jobs: int, seconds: float) -> None:
        """Run the command; kill it up to ``seconds`` after it has completed ``jobs`` more jobs.

        Raises:
            SoakError: the command ended before it was killed.
        """
        before = completed(self.folder)
        process = self._start()
        while len(completed(self.folder)) < len(before) + jobs and process.poll() is None:
            time.sleep(0.02)
        time.sleep(self.draw.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SoakError(f"the command has ended:\n{self._printed()}")
        after = completed(self.folder)
        self.lost += [name for name, text in before.items() if after.get(name) != text]

    def finish(self) -> None:
        """Run the command to its end.

        Raises:
            SoakError: the command failed.
        """
        before = completed(self.folder)
        if self._start().wait(MAX_SECONDS) != 0:
            raise SoakError(f"the command has failed:\n{self._printed()}")
        after = completed(self.folder)
        self.lost += [name for name, text in before.items() if after.get(name) != text]

    def _printed(self) -> str:
        return (self.folder.parent / "printed").read_text("utf-8", "replace")[-3000:]


def check_jobs(sweep: Path, jobs: int, lost: Sequence[str]) -> None:
    """Check that every job has completed and was not changed afterwards.

    Raises:
        SoakError: a job did not, or partial files are left.
    """
    runs = results(sweep)
    states = Counter(result["status"] for result in runs.values())
    if states != {"completed": jobs} or lost:
        raise SoakError(f"of {jobs} jobs {dict(states)}; completed ones that changed: {lost}")
    unfinished = [path for path in sweep.rglob(".*.*") if path.suffix[1:].isdigit()]
    if unfinished:
        raise SoakError(f"left half written: {', '.join(map(str, unfinished))}")


def check_leaderboard(sweep: Path) -> None:
    """Check that the table has each run once with its value, and ranks rates by mean over seeds.

    Raises:
        SoakError: it does not.
    """
    by_rate: dict[float, list[float]] = {}
    values = {}
    for name, result in results(sweep).items():
        rate = next(o.partition("=")[2] for o in result["overrides"] if "optimizer.lr=" in o)
        by_rate.setdefault(float(rate), []).append(result["monitor_value"])
        values[name] = result["monitor_value"]
    means = {rate: statistics.fmean(each) for rate, each in by_rate.items()}
    with (sweep / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = {Path(row["folder"]).name: float(row["val/map_macro"]) for row in rows}
    if shown != values or len(rows) != len(values):
        raise SoakError(f"{sweep}/leaderboard.csv: its runs or values are not those of the runs")
    for row in rows:
        mean = means[float(row["optimizer.lr"])]
        rank = 1 + sum(other > mean for other in means.values())
        if abs(float(row["mean"]) - mean) > 1e-9 or int(row["rank"]) != rank:
            raise SoakError(f"{sweep}/leaderboard.csv: {row['run']} has rank {row['rank']}")


def slope(values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope of the values over their index, and its standard error."""
    n = len(values)
    x = [number - (n - 1) / 2 for number in range(n)]
    mean, squares = statistics.fmean(values), sum(each * each for each in x)
    estimate = sum(a * (b - mean) for a, b in zip(x, values, strict=True)) / squares
    residuals = sum((b - mean - estimate * a) ** 2 for a, b in zip(x, values, strict=True))
    return estimate, (residuals / max(1, n - 2) / squares) ** 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweep to its end and print the results."""
    parser = argument_parser(__doc__, n=1, training=True)
    parser.add_argument("--rates", type=int, default=20, help="learning rates; default 20")
    parser.add_argument("--seeds", type=int, default=10, help="seeds per learning rate; default 10")
    parser.add_argument("--kills", type=int, default=20, help="kills; default 20")
    parser.add_argument("--draw", type=int, help="seed of the moments; default: random")
    args = parser.parse_args(arguments)
    jobs = args.rates * args.seeds
    seed = random.SystemRandom().randrange(10**6) if args.draw is None else args.draw
    draw = random.Random(seed)
    print(f"{hardware()}, {jobs} jobs, {args.kills} kills, moments drawn from {seed}", flush=True)
    rates = [f"{1e-3 * 10 ** (2 * number / args.rates):.4g}" for number in range(args.rates)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, command_environment() as environment:
        folder, gauge_file = Path(temporary) / "sweep", Path(temporary) / "notes"
        gauge_file.touch()
        command = [
            *(sys.executable, str(REPOSITORY / "train.py"), "-m", *TINY, *args.overrides),
            *(f"optimizer.lr={','.join(rates)}", f"seed=range(0,{args.seeds})"),
            *(f"hydra.sweep.dir={folder}", f"data.cache_dir={temporary}/cache"),
            # Hydra composes all jobs of a batch before it runs the first: half a minute for 200.
            "hydra.sweeper.max_batch_size=10",
            "+callbacks.gauge._target_=benchmarks.soak.Gauge",
            f"+callbacks.gauge.path={gauge_file}",
        ]
        sweep = Sweep(command, folder, environment, draw)
        for kill in range(args.kills):
            # Up to twice this kill's share of the jobs that are left until half are done.
            left = max(0, jobs // 2 - len(completed(folder)))
            share = 2 * left // (args.kills - kill)
            sweep.kill_after(draw.randint(0, min(share, left)), seconds=2.0)
            print(f"kill {kill + 1}: {len(completed(folder))} jobs completed", flush=True)
        killed = len(completed(folder))
        before = gauge_file.read_text().splitlines()
        sweep.finish()
        lines = [line.split() for line in gauge_file.read_text().splitlines()[len(before) :]]
        # The process with the most jobs, since joblib uses several.
        process, _ = Counter(line[0] for line in lines).most_common(1)[0]
        gauges = [(int(memory), int(files)) for number, memory, files in lines if number == process]
        counted = gauges[len(gauges) // 10 :]
        memory = [float(kib) for kib, _ in counted]
        files = [number for _, number in gauges]
        tenth = max(1, len(memory) // 10)
        first, last = statistics.fmean(memory[:tenth]), statistics.fmean(memory[-tenth:])
        growth, error = slope(memory)
        print(
            f"memory over {len(memory)} jobs of one process: {first / 1024:.1f} MiB to "
            f"{last / 1024:.1f} MiB, {growth:+.2f} ± {error:.2f} KiB a job\n"
            f"open files: {files[0]} to {files[-1]}, at most {max(files)}",
            flush=True,
        )
        check_jobs(folder, jobs, sweep.lost)
        check_leaderboard(folder)
    print(
        f"all {jobs} jobs completed, {killed} of them by {args.kills} commands that were killed; "
        f"nothing is left half written; the leaderboard is right; "
        f"{time.perf_counter() - started:.0f} s"
    )
    print(
        json_line(
            growth, last / first, len(memory), error, AIM, unit="KiB/job", aim_is="at most",
            files=[min(files), max(files)], jobs=jobs, kills=args.kills,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
