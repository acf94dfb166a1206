"""The leaderboard of a comparison: in the terminal, and as CSV, Markdown and a page."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from genre_lightning.comparison.ranking import SEED, Comparison, compare_runs
from genre_lightning.comparison.reading import find_runs
from genre_lightning.comparison.run import Setting, metric_names, printable, shown_setting
from genre_lightning.comparison.text import best_run, describe, group_name, shown_time, shown_value
from genre_lightning.files import whole_file

if TYPE_CHECKING:
    from rich.console import Console

#: Characters of an error in the terminal and in leaderboard.md.
MOST_OF_ERROR = 160
#: Of groups and of unfinished runs in the terminal; the files have all.
MOST_ROWS = 30
MOST_UNFINISHED = 10
CSV_RESULTS = ("seconds", "train_samples_per_second", "num_parameters")


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
    """Write ``leaderboard.csv``, ``.md`` and ``.html`` into a folder, each whole or not at all."""
    from genre_lightning.comparison.page import render_leaderboard

    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "leaderboard.csv") as csv_file:
        csv.writer(csv_file).writerows(csv_rows(comparison))
    with whole_file(folder / "leaderboard.md") as md_file:
        md_file.write(markdown(comparison))
    html = render_leaderboard(comparison, datetime.now().astimezone())
    with whole_file(folder / "leaderboard.html") as html_file:
        html_file.write(html)


def print_leaderboard(comparison: Comparison, console: Console) -> None:
    """Print the best groups, what is unfinished and why, and where the best run lies.

    Columns that do not fit are left out: time and epochs first, then settings from the last.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    heads, rows = ranked_table(comparison)
    shown = [heads, *rows[:MOST_ROWS]]
    keys = len(comparison.keys)
    for column in (len(heads) - 1, len(heads) - 2, *range(keys, 0, -1)):
        if _width(shown) <= console.width:
            break
        shown = [[*row[:column], *row[column + 1 :]] for row in shown]
        keys -= column <= keys
    better = "higher" if comparison.mode == "max" else "lower"
    table = Table(title=Text(f"{comparison.metric}, {better} is better"), title_justify="left")
    for head in shown[0]:
        table.add_column(Text(head), justify="left" if head == "run" else "right", overflow="fold")
    for row in shown[1:]:
        table.add_row(*map(Text, row))
    if rows:
        console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"and {len(rows) - MOST_ROWS} more, in the leaderboard's files")
    if keys < len(comparison.keys):
        left_out = ", ".join(comparison.keys[keys:])
        console.print(Text(f"No room here, but in the leaderboard's files: {left_out}"))
    unfinished = unfinished_table(comparison)[1]
    for status, name, epochs, so_far, error in unfinished[:MOST_UNFINISHED]:
        console.print(Text(f"{status}: {name}, epochs: {epochs}, best so far: {so_far}"))
        if error:
            console.print(Padding(Text(error), (0, 0, 0, 4)))
    if len(unfinished) > MOST_UNFINISHED:
        console.print(f"and {len(unfinished) - MOST_UNFINISHED} more have not finished")
    best = best_run(comparison)
    if best is not None:
        console.print(Text(f"Best: {printable(str(best.folder))}"), soft_wrap=True)
    for note in comparison.notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)


def ranked_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of text, a row for each group that has a rank: rank, settings, the rest."""
    labels = [*map(comparison.key_label, comparison.keys)] or ["run"]
    heads = ["rank", *labels, comparison.metric]
    if comparison.has_spread:
        heads += ["sd", "n"]
    heads += [*comparison.columns, "epochs", "time"]
    rows = []
    for group in comparison.groups:
        if group.rank is None or group.mean is None:
            continue
        row = [str(group.rank)]
        row += [*map(shown_setting, group.settings)] or [group_name(group, comparison)]
        row.append(shown_value(group.mean))
        if comparison.has_spread:
            count, total = len(group.values), len(group.runs)
            row += [shown_value(group.sd), f"{count}" if count == total else f"{count} of {total}"]
        row += [shown_value(group.mean_of(column)) for column in comparison.columns]
        row.append(_range([run.epochs for run in group.runs if run.completed]))
        seconds = [run.number("seconds") for run in group.runs if run.completed]
        row.append(shown_time(sum(filter(None, seconds)) / len(seconds)))
        rows.append(row)
    return heads, rows


def unfinished_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of text, a row for each run that has not finished."""
    rows = [
        [
            run.status,
            describe(run, comparison),
            f"{run.epochs}" + (f" of {run.epochs_planned}" if run.epochs_planned else ""),
            shown_value(run.value(comparison.metric)),
            _shortened(run.error or ""),
        ]
        for run in comparison.runs
        if not run.completed
    ]
    return ["status", "run", "epochs", "best so far", "error"], rows


def csv_rows(comparison: Comparison) -> Iterator[list[object]]:
    """A head, then one row for each run, at full precision."""
    metric = comparison.metric
    runs = comparison.runs
    names = [name for name in metric_names(runs) if name != metric]
    extra = [name for name in comparison.columns if name not in (metric, *names)]
    yield [
        "rank", "run", "status", metric, "mean", "sd", "n", *comparison.keys, SEED, "epochs",
        "best_epoch", *CSV_RESULTS, *names, *extra, "error", "folder",
    ]  # fmt: skip
    for group in comparison.groups:
        for run in group.runs:
            yield [
                group.rank, run.name, run.status, run.value(metric), group.mean, group.sd,
                len(group.values), *map(_cell, group.settings),
                _cell(run.seed), run.epochs, run.best_epoch,
                *map(run.number, CSV_RESULTS), *map(run.value, [*names, *extra]),
                run.error, printable(str(run.folder)),
            ]  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """The ranked table, and what is unfinished, as Markdown to paste."""
    better = "higher" if comparison.mode == "max" else "lower"
    heads, rows = ranked_table(comparison)
    parts = [f"{_in_markdown(comparison.metric)}, {better} is better", ""]
    parts += _markdown_table(heads, rows)
    heads, rows = unfinished_table(comparison)
    if rows:
        parts += ["", "Not finished:", "", *_markdown_table(heads, rows)]
    for note in comparison.notes:
        parts += ["", _in_markdown(note)]
    return "\n".join(parts) + "\n"


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    sides = ["---" if head in ("run", "status", "error") else "---:" for head in heads]
    for cells in (map(_in_markdown, heads), sides, *(map(_in_markdown, row) for row in rows)):
        yield f"| {' | '.join(cells)} |"


def _in_markdown(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", text)


def _width(rows: Sequence[Sequence[str]]) -> int:
    return 1 + sum(3 + max(map(len, cells)) for cells in zip(*rows, strict=True))


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}–{high}"


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_OF_ERROR else f"{text[: MOST_OF_ERROR - 1]}…"


def _cell(value: Setting) -> object:
    return shown_setting(value) if isinstance(value, bool) else value
