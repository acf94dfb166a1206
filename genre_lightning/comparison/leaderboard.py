"""The leaderboard of a comparison: in the terminal, and as CSV, Markdown and a page."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from genre_lightning.cells import guarded
from genre_lightning.comparison.ranking import COSTS, Comparison, Group, compare_runs
from genre_lightning.comparison.reading import find_runs
from genre_lightning.comparison.run import Setting, format_setting, metric_names
from genre_lightning.comparison.swept import SEED_KEY
from genre_lightning.comparison.text import (
    best_run,
    data_name,
    describe,
    format_cost,
    format_value,
    numeric_keys,
)
from genre_lightning.files import whole_file
from genre_lightning.page.markdown import escape_markdown, markdown_table
from genre_lightning.runs.quoting import relative_to_cwd, shell_command
from genre_lightning.wording import format_duration, printable, shortened, without_middle

if TYPE_CHECKING:
    from rich.console import Console

#: Characters of an error in the terminal and in leaderboard.md.
MAX_ERROR_CHARACTERS = 160
#: Most groups and unfinished runs in the terminal; the files have all.
MAX_ROWS = 30
MAX_UNFINISHED = 10
#: Minimum width of run names in the terminal; they are wider if there is room.
MIN_NAME_WIDTH = 16
#: Heading of the column of run names.
RUN_HEADING = "run"
#: The setting that is kept if there is no room for all.
LR_KEY = "optimizer.lr"
CSV_RESULTS = ("seconds", "train_samples_per_second", "num_parameters", *COSTS)


def compare(
    folders: Sequence[Path],
    metric: str | None = None,
    mode: str | None = None,
    columns: Sequence[str] = (),
) -> Comparison:
    """Rank all runs in these folders; arguments are those of ``find_runs`` and ``compare_runs``.

    Raises:
        UserError: there is no run, or none can be ranked.
    """
    return compare_runs(find_runs(folders), metric, mode, columns)


def write_leaderboard(folder: Path, comparison: Comparison) -> None:
    """Write ``leaderboard.csv``, ``.md`` and ``.html`` into a folder, each complete or absent."""
    from genre_lightning.comparison.page import render_leaderboard

    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "leaderboard.csv") as csv_file:
        csv.writer(csv_file).writerows(map(guarded, csv_rows(comparison)))
    with whole_file(folder / "leaderboard.md") as md_file:
        md_file.write(markdown(comparison))
    html = render_leaderboard(comparison, datetime.now().astimezone())
    with whole_file(folder / "leaderboard.html") as html_file:
        html_file.write(html)


def print_leaderboard(comparison: Comparison, console: Console) -> None:
    """Print the best groups, the unfinished runs with their errors, and the best run's folder.

    Columns that don't fit are dropped from the right: time and epochs first, then spread and
    settings other than the learning rate, and finally the requested metrics and the settings of the
    data. Names of runs are shortened.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = ranked_table(comparison)
    keep = ("rank", RUN_HEADING, comparison.key_label(LR_KEY), comparison.metric)
    rows = [table[0], *table[1][:MAX_ROWS]]
    drop_last = (*map(comparison.key_label, comparison.data_keys), *comparison.columns)
    columns, dropped = _fit_columns(rows, console.width, keep, drop_last)
    better = "higher" if comparison.mode == "max" else "lower"
    rich_table = Table(title=Text(f"{comparison.metric}, {better} is better"), title_justify="left")
    text_headings = _text_headings(comparison)
    for heading, *_ in columns:
        rich_table.add_column(
            Text(heading), justify="left" if heading in text_headings else "right", overflow="fold"
        )
    for cells in list(zip(*columns, strict=True))[1:]:
        rich_table.add_row(*map(Text, cells))
    if table[1]:
        console.print(rich_table)
    if len(table[1]) > MAX_ROWS:
        console.print(f"and {len(table[1]) - MAX_ROWS} more, in the leaderboard's files")
    if dropped:
        console.print(Text(f"No room here, but in the leaderboard's files: {', '.join(dropped)}"))
    unfinished = unfinished_table(comparison)[1]
    for status, name, epochs, best_so_far, error in unfinished[:MAX_UNFINISHED]:
        console.print(Text(f"{status}: {name}, epochs: {epochs}, best so far: {best_so_far}"))
        if error:
            console.print(Padding(Text(error), (0, 0, 0, 4)))
    if len(unfinished) > MAX_UNFINISHED:
        console.print(f"and {len(unfinished) - MAX_UNFINISHED} more have not finished")
    for group in comparison.best_groups:
        dataset = data_name(group, comparison)
        best_folder = shell_command(
            printable(str(relative_to_cwd(best_run(group, comparison).folder)))
        )
        console.print(Text(f"Best{dataset and f' of {dataset}'}: {best_folder}"), soft_wrap=True)
    for note in comparison.notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)


def ranked_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text, a row for each ranked group: rank, run, settings, the rest.

    With several ranked groups, only the settings in which they differ are included.
    """
    ranked = [group for group in comparison.groups if group.rank is not None]
    columns: list[list[str]] = [
        ["rank", *(str(group.rank) for group in ranked)],
        [RUN_HEADING, *(best_run(group, comparison).name for group in ranked)],
        *_setting_columns(ranked, comparison),
        *_score_columns(ranked, comparison),
        *_training_columns(ranked, comparison),
    ]
    headings, *rows = map(list, zip(*columns, strict=True))
    return headings, rows


def _setting_columns(ranked: Sequence[Group], comparison: Comparison) -> Iterator[list[str]]:
    settings = list(zip(*(group.settings for group in ranked), strict=True))
    for key, values in zip(comparison.keys, settings, strict=False):
        texts = list(map(format_setting, values))
        if len(set(texts)) > 1 or len(ranked) == 1:
            yield [comparison.key_label(key), *texts]


def _score_columns(ranked: Sequence[Group], comparison: Comparison) -> Iterator[list[str]]:
    yield [comparison.metric, *(format_value(group.mean) for group in ranked)]
    if comparison.has_spread:
        sizes = [(len(group.values), len(group.runs)) for group in ranked]
        yield ["sd", *(format_value(group.sd) for group in ranked)]
        yield ["n", *(f"{n}" if n == total else f"{n} of {total}" for n, total in sizes)]
    for name in comparison.columns:
        yield [name, *(format_value(group.mean_of(name)) for group in ranked)]


def _training_columns(ranked: Sequence[Group], comparison: Comparison) -> Iterator[list[str]]:
    for name, heading in comparison.costs.items():
        yield [heading, *(format_cost(group.mean_number(name)) for group in ranked)]
    completed_runs = [[run for run in group.runs if run.completed] for group in ranked]
    yield ["epochs", *(_format_range([run.epochs for run in runs]) for runs in completed_runs)]
    seconds = [
        sum(run.number("seconds") or 0.0 for run in runs) / len(runs) for runs in completed_runs
    ]
    yield ["time", *map(format_duration, seconds)]


def _fit_columns(
    rows: Sequence[Sequence[str]], width: int, keep: Sequence[str], drop_last: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """Return the columns that fit into a width, and the headings of those that don't.

    Columns are dropped from right to left.

    Args:
        rows: the headings first.
        width: of the terminal, in characters.
        keep: headings of columns that are never dropped.
        drop_last: headings of columns that are dropped after all others.
    """
    columns = [list(cells) for cells in zip(*rows, strict=True)]
    name_column = next(column for column in columns if column[0] == RUN_HEADING)
    dropped: list[str] = []

    def available_width() -> int:
        """Width left for the names of runs."""
        others = [column for column in columns if column is not name_column]
        return width - 1 - 3 - sum(3 + max(map(len, column)) for column in others)

    by_priority = sorted(columns, key=lambda column: column[0] not in drop_last)
    for column in reversed(by_priority):
        if available_width() >= min(MIN_NAME_WIDTH, max(map(len, name_column))):
            break
        if column[0] not in keep:
            columns.remove(column)
            dropped.insert(0, column[0])
    max_width = max(available_width(), MIN_NAME_WIDTH)
    name_column[:] = [without_middle(name, max_width) for name in name_column]
    return columns, dropped


def _text_headings(comparison: Comparison) -> set[str]:
    """Headings of the columns that are text, and not numbers."""
    numeric = zip(comparison.keys, numeric_keys(comparison), strict=True)
    text_keys = {comparison.key_label(key) for key, is_numeric in numeric if not is_numeric}
    return {RUN_HEADING, "status", "error", *text_keys}


def unfinished_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of text, a row for each run that has not finished."""
    rows = [
        [
            run.status,
            describe(run, comparison),
            f"{run.epochs}" + (f" of {run.epochs_planned}" if run.epochs_planned else ""),
            format_value(run.value(comparison.metric)),
            shortened(run.error or "", MAX_ERROR_CHARACTERS),
        ]
        for run in comparison.runs
        if not run.completed
    ]
    return ["status", RUN_HEADING, "epochs", "best so far", "error"], rows


def csv_rows(comparison: Comparison) -> Iterator[list[object]]:
    """Yield the headings, then a row for each run, at full precision.

    A run that is not completed does not count in its group's rank, mean and sd, which are empty in
    its row.
    """
    metric = comparison.metric
    runs = comparison.runs
    metrics_of_runs = [name for name in metric_names(runs) if name != metric]
    extra_names = [name for name in comparison.columns if name not in (metric, *metrics_of_runs)]
    yield [
        "rank", RUN_HEADING, "status", metric, "mean", "sd", "n", *comparison.keys, SEED_KEY,
        "epochs", "best_epoch", *CSV_RESULTS, *metrics_of_runs, *extra_names, "error", "folder",
    ]  # fmt: skip
    for group in comparison.groups:
        for run in group.runs:
            group_cells = [group.mean, group.sd, len(group.values)] if run.completed else [None] * 3
            yield [
                group.rank_of(run), run.name, run.status, run.value(metric), *group_cells,
                *map(_cell, group.settings),
                _cell(run.seed), run.epochs, run.best_epoch,
                *map(run.number, CSV_RESULTS), *map(run.value, [*metrics_of_runs, *extra_names]),
                run.error, printable(str(run.folder)),
            ]  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """Return the tables of ranked groups and unfinished runs as Markdown."""
    better = "higher" if comparison.mode == "max" else "lower"
    headings, rows = ranked_table(comparison)
    parts = [f"{escape_markdown(comparison.metric)}, {better} is better", ""]
    left_aligned = _text_headings(comparison)
    parts += markdown_table(headings, rows, left_aligned)
    headings, rows = unfinished_table(comparison)
    if rows:
        parts += ["", "Not finished:", "", *markdown_table(headings, rows, left_aligned)]
    for note in comparison.notes:
        parts += ["", escape_markdown(note)]
    return "\n".join(parts) + "\n"


def _format_range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}–{high}"


def _cell(value: Setting) -> object:
    return format_setting(value) if isinstance(value, bool) else value
