"""Scores on real movies: trains each variant with each seed and tabulates mean and spread.

    python -m benchmarks.scores --root data/ml1m --variants fusion title poster --seeds 0 1 2
    python -m benchmarks.scores --root data/ml1m --variants seed --seeds 0
    python -m benchmarks.scores --root data/ml1m --variants fusion former fast --split val
    python -m benchmarks.scores --root data/ml1m --ablation --split val --seeds 0 1
    python -m benchmarks.scores --root data/ml1m --columns FILE.csv --variants full everything
    python -m benchmarks.scores --root data/ml1m --columns FILE.csv --branches --split val

Runs that are already completed in the output folder are not repeated. Ends with one JSON line:
``figure`` is the first variant's mean mAP, ``ratio`` that over the second variant's, ``spread`` the
standard deviation over seeds, ``aim`` the mAP that fusion should reach.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    REPOSITORY,
    command_environment,
    hardware,
    json_line,
    spread,
)
from genre_lightning.runs.ckpt_path import LAST

AIM_MAP = 0.30
COLUMNS = ("map_macro", "f1_micro", "f1_macro")


def branch_override(*branches: str) -> str:
    """The override that makes a model the sum of these branches."""
    return f"model/branch=[{','.join(branches)}]"


#: The branches of model=full without the words on posters, like those of model=full_mpnet.
WITHOUT_WORDS = (
    *("title_linear", "title_year", "title_minilm", "title_gemma", "poster_lite2"),
    *("synopsis_tfidf", "synopsis_minilm", "synopsis_gemma"),
)
#: The branches of model=full.
FULL = (*WITHOUT_WORDS, "poster_text_tfidf", "poster_text_gemma")
#: Adds cast and director, as terms only.
EVERYTHING = branch_override(*WITHOUT_WORDS, "cast", "director")
#: L-BFGS reaches the same optimum from any seed, so let the folds of train vary with the seed.
OWN_FOLDS = "data.split_seed=${seed}"
TITLE, POSTER = "model.branches.title_tfidf", "model.branches.poster_resnet"
#: Every variant by name: overrides of train.py.
VARIANTS: dict[str, list[str]] = {
    "fusion": [],
    "title": ["model=title"],
    "poster": ["model=poster"],
    "fast": ["experiment=fast"],
    # The default before posters were averaged to 32x32 and the title network was widened.
    "former": [
        f"{POSTER}.input.pool=4",
        "model.dropout=0.4",
        f"{TITLE}.network.hidden=256",
        f"{POSTER}.network.widths=[32,64,128,256]",
        f"{POSTER}.network.stem_kernel=5",
        f"{POSTER}.network.stem_stride=2",
        f"{POSTER}.network.first_stride=2",
        "optimizer.lr=2e-3",
        "optimizer.weight_decay=0.1",
        "trainer.max_epochs=16",
    ],
    "seed": ["experiment=seed"],
    "pretrained": ["model=pretrained"],
    "pretrained_mpnet": ["model=pretrained_mpnet"],
    # These need --columns, a file with synopsis, cast and director.
    "full": ["model=full", OWN_FOLDS],
    "full_mpnet": ["model=full_mpnet", OWN_FOLDS],
    "full_credits": ["model=full_credits", OWN_FOLDS],
    "everything": ["model=full", EVERYTHING, OWN_FOLDS],
    "everything_mpnet": ["model=full_mpnet", EVERYTHING.replace("minilm", "mpnet"), OWN_FOLDS],
}
#: The contribution of each branch of model=full: the branch alone, and all others without it.
BRANCHES: dict[str, list[str]] = {
    "full": ["model=full", OWN_FOLDS],
    **{f"only_{name}": ["model=full", branch_override(name), OWN_FOLDS] for name in FULL},
    **{
        f"without_{name}": [
            "model=full",
            branch_override(*(other for other in FULL if other != name)),
            OWN_FOLDS,
        ]
        for name in FULL
    },
}
#: The default recipe with one part changed.
ABLATION: dict[str, list[str]] = {
    "fusion": [],
    "words": [f"{TITLE}.input.analyzer=word", f"{TITLE}.input.ngram_range=[1,1]"],
    "no_decade": [f"{TITLE}.input.decade=false"],
    "no_augment": [f"{POSTER}.input.augment=null"],
    "no_branch_loss": ["training.branch_loss=0"],
    "one_lr": [f"{TITLE}.lr_scale=1"],
    "hidden_256": [f"{TITLE}.network.hidden=256"],
    "posters_64": [
        f"{POSTER}.input.pool=4",
        f"{POSTER}.network.stem_kernel=5",
        f"{POSTER}.network.first_stride=2",
    ],
}


@dataclass(frozen=True)
class Run:
    """One training and its run folder."""

    variant: str
    seed: int
    folder: Path
    overrides: list[str]

    def result(self) -> dict[str, Any] | None:
        """The run's result.json, if it is completed."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result if result["status"] == "completed" else None

    def train(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """Train unless the run is completed; return its result.

        Raises:
            RuntimeError: training failed; its output is in ``output.txt`` of the run folder.
        """
        result = self.result()
        if result is not None:
            return result
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            str(REPOSITORY / "train.py"),
            f"seed={self.seed}",
            f"hydra.run.dir={self.folder}",
            *self.overrides,
        ]
        if (self.folder / LAST).is_file():  # the run was interrupted
            command.append("ckpt_path=last")
        output = self.folder / "output.txt"
        with output.open("w", encoding="utf-8") as file:
            subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        result = self.result()
        if result is None:
            raise RuntimeError(f"{self.variant} with seed {self.seed} failed: see {output}")
        print(f"{self.variant} seed {self.seed}: {result['seconds']:.0f} s", flush=True)
        return result


def score_cells(scores: Sequence[Mapping[str, float]]) -> str:
    """Mean and standard deviation of each metric in ``COLUMNS``, as cells of a Markdown row."""
    values = [[metrics[column] for metrics in scores] for column in COLUMNS]
    return " | ".join(f"{statistics.fmean(each):.3f} ± {spread(each):.3f}" for each in values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/ml1m", help="folder or zip of the real movies")
    parser.add_argument("--variants", nargs="+", default=["fusion", "title", "poster"])
    parser.add_argument("--ablation", action="store_true", help="the default with one part changed")
    parser.add_argument("--branches", action="store_true", help="each branch of model=full")
    parser.add_argument("--columns", help="CSV with synopsis, cast and director by id")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--out", default="runs/scores", help="where the run folders go")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time; they share cores")
    parser.add_argument("--extra", nargs="*", default=[], help="further overrides for every run")
    args = parser.parse_args(arguments)

    table = ABLATION if args.ablation else BRANCHES if args.branches else VARIANTS
    names = args.variants if table is VARIANTS else list(table)
    unknown = sorted(set(names) - set(table))
    if unknown:
        parser.error(f"no variant {unknown[0]!r}; there is {', '.join(table)}")
    data = ["data=ml1m", f"data.root={Path(args.root).resolve()}"]
    if args.columns:
        data.append(f"data.columns={Path(args.columns).resolve()}")
    out = Path(args.out).resolve()
    runs = [
        Run(name, seed, out / f"{name}-seed{seed}", [*data, *table[name], *args.extra])
        for seed in args.seeds
        for name in names
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // args.jobs)
    with command_environment() as environment, ThreadPoolExecutor(args.jobs) as pool:
        environment["OMP_NUM_THREADS"] = str(threads)
        results = dict(
            zip(
                ((run.variant, run.seed) for run in runs),
                pool.map(lambda run: run.train(environment), runs),
                strict=True,
            )
        )

    print(f"\n{args.split}, n = {len(args.seeds)} seed(s), mean ± sd; {hardware()}, ", end="")
    print(f"{args.jobs} at a time on {threads} thread(s) each")
    print("| variant | mAP | micro F1 | macro F1 | s a run |\n| --- | --- | --- | --- | --- |")
    for name in names:
        variant_results = [results[name, seed] for seed in args.seeds]
        cells = score_cells([run[args.split] for run in variant_results])
        seconds = statistics.fmean(run["seconds"] for run in variant_results)
        print(f"| {name} | {cells} | {seconds:.0f} |")
    first, second = (
        [results[name, seed][args.split]["map_macro"] for seed in args.seeds]
        for name in (names[0], names[min(1, len(names) - 1)])
    )
    print(
        json_line(
            statistics.fmean(first),
            statistics.fmean(first) / statistics.fmean(second),
            len(first),
            spread(first),
            AIM_MAP,
            unit=f"{args.split} mAP",
            variants=names,
        )
    )


if __name__ == "__main__":
    main()
