"""``genre-compare FOLDER...``: ranks runs and writes a leaderboard."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from genre_lightning.comparison.leaderboard import compare, print_leaderboard, write_leaderboard
from genre_lightning.comparison.reading import is_run_folder
from genre_lightning.errors import UserError
from genre_lightning.runs.quoting import shell_command
from genre_lightning.wording import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 1 after an error that the user can fix, with a message on standard error. Invalid
        arguments exit with 2.
    """
    options = _parser().parse_args(arguments)
    from rich.console import Console

    try:
        comparison = compare(options.folders, options.metric, options.mode, options.column)
        console = Console(emoji=False, highlight=False)
        print_leaderboard(comparison, console)
        out = options.out
        if out is None and len(options.folders) == 1 and not is_run_folder(options.folders[0]):
            out = options.folders[0]
        if out is None:
            console.print("Nothing written: name a folder for leaderboard.html with --out FOLDER")
        else:
            try:
                write_leaderboard(out, comparison)
            except OSError as error:
                raise UserError(
                    f"{out}: the leaderboard can't be written there ({error.strerror or error}); "
                    "name another folder with --out"
                ) from error
            console.print(
                f"Written: {shell_command(printable(str(out / 'leaderboard.html')))}, .csv and .md",
                markup=False,
                soft_wrap=True,
            )
    except (UserError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genre-compare",
        description="Rank runs and write leaderboard.csv, .md and .html. Unfinished runs are "
        "listed, too. The command only reads run folders and changes nothing in them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        help="run folders, the folder of a sweep, or any folder that contains some",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric to rank by, such as val/f1_micro (default: the metric that the runs monitor)",
    )
    parser.add_argument(
        "--mode",
        choices=("max", "min"),
        help="whether a higher or lower value is better (default: as in the runs)",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        default=[],
        help="another metric to show, such as test/map_macro; can be given several times",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="folder for the leaderboard (default: FOLDER, if you give only one and it is not a "
        "run folder)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
