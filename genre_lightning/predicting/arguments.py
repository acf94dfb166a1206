"""The arguments of ``genre-predict`` and checks that they fit together.

Imports nothing heavy, so that mistakes are reported before PyTorch is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EPILOG = """\
examples:
  genre-predict best.ckpt --title "Heat (1995)" --poster heat.jpg
  genre-predict best.ckpt --title "Heat (1995)" --synopsis "A thief ..." --column cast="Al Pacino"
  genre-predict best.ckpt --csv movies.csv --out predicted.csv
  genre-predict best.ckpt --csv - --out - < movies.csv | less
  genre-predict best.ckpt --folder posters/        (posters/Heat (1995).jpg, ...)
  genre-predict best.ckpt --title "Heat (1995)" --ask runs/asks/NAME
  genre-predict export best.ckpt --onnx model.onnx
  genre-predict export best.ckpt --weights slim.ckpt
  genre-predict export best.ckpt --out given-away/   (ONNX, weights and a model card)
  genre-predict card best.ckpt --out card.md
"""

#: Instead of a file: standard input or output.
STREAM = Path("-")

#: Options for one movie, each named like its column.
COLUMN_FLAGS = ("title", "poster", "synopsis")


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``genre-predict`` for one movie, a CSV file or a folder.

    Attributes:
        checkpoint: a file or folder, or "last"; see :func:`add_checkpoint`.
        columns: values of one movie, by name, as given; empty for many movies. The poster is a
            path.
        csv: file to read; ``STREAM`` for standard input.
        folder: folder of posters.
        out: CSV to write; ``STREAM`` for standard output.
        json: print JSON.
        explain: also print the reasons.
        explain_out: folder for the heat maps; None for the poster's folder.
        device: name of a device; None for the default.
        workers: number of threads; None for one per core.
        encoder: names of encoders outside this project's table that the checkpoint may use.
        ask: run folder of genre-ask whose language model is asked about the movies; None to ask
            none.
        ask_url: address of the server, if not that of the run.
        api_key_env: name of the environment variable that holds the server's key.
    """

    checkpoint: Path
    columns: dict[str, str]
    csv: Path | None
    folder: Path | None
    out: Path | None
    json: bool
    explain: bool
    explain_out: Path | None
    device: str | None
    workers: int | None
    encoder: list[str]
    ask: Path | None
    ask_url: str | None
    api_key_env: str | None


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``genre-predict export``; at least one of onnx, weights and out is given."""

    checkpoint: Path
    onnx: Path | None
    weights: Path | None
    out: Path | None
    scores: list[Path]
    licence: str | None
    encoder: list[str]


@dataclass(frozen=True)
class CardOptions:
    """Options of ``genre-predict card``.

    Attributes:
        checkpoint: a file or folder, or "last"; see :func:`add_checkpoint`.
        out: file to write; None for standard output.
        scores: folders that evaluate.py wrote, in addition to those beside the checkpoint.
        licence: of the model; None if none is chosen.
        encoder: names of encoders outside this project's table that the checkpoint may use.
    """

    checkpoint: Path
    out: Path | None
    scores: list[Path]
    licence: str | None
    encoder: list[str]


def parse_predict(arguments: Sequence[str]) -> PredictOptions:
    """Parse the arguments; exits with 2 if they are invalid."""
    parser = _predict_parser()
    options = parser.parse_args(arguments)
    columns = _given_columns(parser, options)
    _check_combination(parser, options, columns)
    non_empty = {name: value for name, value in columns.items() if value.strip()}
    others = {k: v for k, v in vars(options).items() if k not in (*COLUMN_FLAGS, "column")}
    return PredictOptions(columns=non_empty, **others)


def _given_columns(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, str]:
    """The values of one movie by column, from the columns' own options and from --column."""
    given = [(name, getattr(options, name)) for name in COLUMN_FLAGS]
    pairs = [(name, value) for name, value in given if value is not None] + options.column
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"the column {name} is given twice")
    return dict(pairs)


def _check_combination(
    parser: argparse.ArgumentParser, options: argparse.Namespace, columns: Mapping[str, str]
) -> None:
    """Refuse options that don't fit together."""
    if bool(columns) + (options.csv is not None) + (options.folder is not None) != 1:
        parser.error(
            "give one of: --title, --poster, --synopsis and --column (one movie), --csv, --folder"
        )
    if columns:
        if not any(value.strip() for value in columns.values()):
            parser.error(f"nothing to predict from: {', '.join(columns)} empty")
        if options.out is not None:
            parser.error("--out needs --csv or --folder")
    elif options.explain:
        parser.error("--explain works for one movie: use --title, --poster, --synopsis or --column")
    if options.csv is not None and options.out is None and not options.json:
        parser.error("--csv needs --out, the file to write (- for standard output), or --json")
    if options.json and options.out is not None:
        parser.error("--json prints to the terminal: leave out --json or --out")
    if options.explain_out is not None and not options.explain:
        parser.error("--explain-out needs --explain")
    if options.ask is None and (options.ask_url or options.api_key_env):
        parser.error("--ask-url and --api-key-env need --ask")


def parse_export(arguments: Sequence[str]) -> ExportOptions:
    """Parse the arguments; exits with 2 if they are invalid."""
    parser = argparse.ArgumentParser(
        prog="genre-predict export",
        description="Write a model as an ONNX file with its vocabulary as JSON, as a small "
        "checkpoint that contains only the weights, or as a folder with both and a model card. The "
        "ONNX graph is compared with PyTorch before it is written.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE.onnx",
        help="write an ONNX graph, and FILE.vocabulary.json beside it",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.ckpt",
        help="write a checkpoint without the optimizer's state: it gives the same predictions, but "
        "training can't be resumed from it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write a new folder with model.onnx, its vocabulary and tokenizers, model.ckpt, and "
        "the model card as README.md",
    )
    _add_card_options(parser)
    options = parser.parse_args(arguments)
    if options.onnx is None and options.weights is None and options.out is None:
        parser.error("give --onnx, --weights or --out")
    if options.out is None and (options.scores or options.licence):
        parser.error("--scores and --licence are for the model card, which needs --out")
    return ExportOptions(**vars(options))


def parse_card(arguments: Sequence[str]) -> CardOptions:
    """Parse the arguments; exits with 2 if they are invalid."""
    parser = argparse.ArgumentParser(
        prog="genre-predict card",
        description="Write a model card in Markdown: data, scores, thresholds, encoders and their "
        "licences, limits. Scores have confidence intervals if the run folder contains an "
        "evaluation by evaluate.py, or if --scores names one.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE.md", help="file to write (default: print the card)"
    )
    _add_card_options(parser)
    return CardOptions(**vars(parser.parse_args(arguments)))


def _add_card_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model card."""
    parser.add_argument(
        "--scores",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder that evaluate.py wrote for this checkpoint; can be given several times",
    )
    parser.add_argument(
        "--licence",
        type=_licence_id,
        metavar="ID",
        help="the licence under which you publish the model: mit, apache-2.0, ...",
    )
    add_encoder(parser)


def _predict_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genre-predict",
        description="Predict genres of movies from their titles, posters, synopses and any other "
        "columns that the model uses.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument("--title", help='title, best with the year: "Heat (1995)"')
    parser.add_argument("--poster", metavar="FILE", help="image file of the poster")
    parser.add_argument("--synopsis", metavar="TEXT", help="summary of the plot")
    parser.add_argument(
        "--column",
        type=_column_value,
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="any other column that the model uses; can be given several times",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="IN.csv",
        help="predict many movies. The CSV has the columns that the model uses, such as title and "
        "poster; each may be missing. Poster paths are relative to the CSV. Other columns are "
        "copied to the output. - reads standard input",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="FOLDER",
        help="predict many movies: posters whose file names are the titles",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT.csv",
        help="CSV file that --csv and --folder write; it is written completely or not at all. - "
        "writes to standard output",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON: of one movie, or one line per movie with --csv or --folder",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show the reasons: the parts of each score, words, and heat maps of the poster",
    )
    parser.add_argument(
        "--explain-out",
        type=Path,
        metavar="FOLDER",
        help="folder for the heat maps (default: the folder of the poster)",
    )
    parser.add_argument(
        "--device",
        help="cpu, cuda, ... (default: cpu for one movie; for many, a GPU if there is one)",
    )
    add_encoder(parser)
    parser.add_argument(
        "--ask",
        type=Path,
        metavar="RUN",
        help="for a model with the branch `answers`: ask the language model about the movies, with "
        "the settings of this run folder of genre-ask",
    )
    parser.add_argument(
        "--ask-url", metavar="URL", help="address of its server (default: as in that run)"
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that contains its API key"
    )
    parser.add_argument(
        "--workers",
        type=_positive_int,
        metavar="N",
        help="number of threads (default: one per core)",
    )
    return parser


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``checkpoint``, an argument of :func:`genre_lightning.runs.ckpt_path.best_checkpoint`."""
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=Path,
        help="a checkpoint file, a run folder, a folder of runs (the best run is used), or last "
        "(the newest run under runs/)",
    )


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """Add ``--encoder``, for the ``encoders`` of ``GenrePredictor.from_checkpoint``."""
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME",
        help="allow the checkpoint to use this pretrained encoder; needed for encoders that have "
        "no short name in this project, such as timm:resnet18.a1_in1k",
    )


def _column_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TEXT")
    return name.strip(), value


def _licence_id(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text!r} is empty, or more than a line: give an identifier such as mit, or leave it "
            "out where none is chosen"
        )
    return text.strip()


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
