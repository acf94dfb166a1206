"""The arguments of ``genre-predict`` and whether they make sense together.

Nothing heavy is imported here: a slip is told before PyTorch is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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

#: In the place of a file: standard input and output.
STREAM = Path("-")

#: Options for one movie, and the columns that they give.
FLAGS = ("title", "poster", "synopsis")


@dataclass(frozen=True)
class PredictOptions:
    """What ``genre-predict`` was asked to do: one movie, a CSV file or a folder.

    Attributes:
        checkpoint: the file.
        columns: of one movie, by name, as given; empty for many movies. The poster is a path.
        csv: to read; ``STREAM`` for standard input.
        folder: of posters.
        out: CSV to write; ``STREAM`` for standard output.
        json: print JSON.
        explain: say why.
        explain_out: where heat maps go.
        device: None to choose.
        workers: None for one per core.
        encoder: names of encoders that the checkpoint may use beyond our own table.
        ask: run folder of genre-ask whose server is asked about the movies; None to ask nobody.
        ask_url: of that server, where it is another one by now.
        api_key_env: name of the environment variable that holds its key.
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
    """What ``genre-predict export`` was asked to write; at least one of the three."""

    checkpoint: Path
    onnx: Path | None
    weights: Path | None
    out: Path | None
    scores: list[Path]
    licence: str | None
    encoder: list[str]


@dataclass(frozen=True)
class CardOptions:
    """What ``genre-predict card`` was asked to write.

    Attributes:
        checkpoint: the file.
        out: the file to write; None for standard output.
        scores: folders that evaluate.py wrote, besides those beside the checkpoint.
        licence: of the model; None for none chosen.
        encoder: names of encoders that the checkpoint may use beyond our own table.
    """

    checkpoint: Path
    out: Path | None
    scores: list[Path]
    licence: str | None
    encoder: list[str]


def parse_predict(arguments: Sequence[str]) -> PredictOptions:
    """Parse the arguments; exits with 2 where they make no sense."""
    parser = _predict_parser()
    options = parser.parse_args(arguments)
    given = [(name, getattr(options, name)) for name in FLAGS]
    pairs = [(name, value) for name, value in given if value is not None] + options.column
    columns = dict(pairs)
    for name in columns:
        if sum(name == other for other, _ in pairs) > 1:
            parser.error(f"the column {name} is given twice")
    if bool(columns) + (options.csv is not None) + (options.folder is not None) != 1:
        parser.error(
            "give one of: --title, --poster, --synopsis and --column (one movie), --csv, --folder"
        )
    if columns:
        if not any(value.strip() for value in columns.values()):
            parser.error(f"nothing to go by: {', '.join(columns)} empty")
        if options.out is not None:
            parser.error("--out goes with --csv or --folder")
    elif options.explain:
        parser.error("--explain goes with --title, --poster and the like, one movie")
    if options.csv is not None and options.out is None and not options.json:
        parser.error("--csv needs --out, the file to write (- for standard output), or --json")
    if options.json and options.out is not None:
        parser.error("--json prints; it does not go with --out")
    if options.explain_out is not None and not options.explain:
        parser.error("--explain-out goes with --explain")
    if options.ask is None and (options.ask_url or options.api_key_env):
        parser.error("--ask-url and --api-key-env go with --ask")
    held = {name: value for name, value in columns.items() if value.strip()}
    others = {k: v for k, v in vars(options).items() if k not in (*FLAGS, "column")}
    return PredictOptions(columns=held, **others)


def parse_export(arguments: Sequence[str]) -> ExportOptions:
    """Parse the arguments; exits with 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="genre-predict export",
        description="Write a model as ONNX, checked against PyTorch, with its vocabulary as JSON; "
        "as a small checkpoint of its weights alone; or as a folder with both and a model card, to "
        "be given away.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument("--onnx", type=Path, metavar="FILE.onnx")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE.ckpt",
        help="without the optimizer's state: predicts and evaluates as before, can't be resumed",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="a new folder with model.onnx, its vocabulary and tokenizers, model.ckpt and "
        "README.md, the model card; whole or not there",
    )
    _add_card(parser)
    options = parser.parse_args(arguments)
    if options.onnx is None and options.weights is None and options.out is None:
        parser.error("give --onnx, --weights or --out")
    if options.out is None and (options.scores or options.licence):
        parser.error("--scores and --licence are for the model card, which goes with --out")
    return ExportOptions(**vars(options))


def parse_card(arguments: Sequence[str]) -> CardOptions:
    """Parse the arguments; exits with 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="genre-predict card",
        description="Write a model card in Markdown: data, scores, thresholds, encoders and their "
        "licences, limits. Scores have intervals where an evaluation by evaluate.py lies in the "
        "run folder, or is named by --scores.",
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE.md", help="whole or not there (default: printed)"
    )
    _add_card(parser)
    return CardOptions(**vars(parser.parse_args(arguments)))


def _add_card(parser: argparse.ArgumentParser) -> None:
    """The options of a model card."""
    parser.add_argument(
        "--scores",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="that evaluate.py wrote of this checkpoint; may be given several times",
    )
    parser.add_argument(
        "--licence",
        type=_one_line,
        metavar="ID",
        help="of the model that you give away, as the card says it: mit, apache-2.0, ...",
    )
    add_encoder(parser)


def _predict_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genre-predict",
        description="Predict genres of movies from their titles, posters, synopses, or whatever "
        "else the model looks at.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument("--title", help='best with the year: "Heat (1995)"')
    parser.add_argument("--poster", metavar="FILE", help="an image")
    parser.add_argument("--synopsis", metavar="TEXT", help="what happens in it")
    parser.add_argument(
        "--column",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="any other column that the model looks at; may be given several times",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="IN.csv",
        help="many movies: columns title, poster and any other that the model looks at (each may "
        "be missing), posters relative to the file; other columns are passed through; - reads "
        "standard input",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="many movies: posters named by title"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT.csv",
        help="where --csv and --folder write; whole or not at all; - writes to standard output",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON of one movie, or a line for each of --csv or --folder",
    )
    parser.add_argument(
        "--explain", action="store_true", help="say why: parts of each score, words, heat maps"
    )
    parser.add_argument(
        "--explain-out",
        type=Path,
        metavar="FOLDER",
        help="where the heat maps go (default: beside the poster)",
    )
    parser.add_argument(
        "--device", help="such as cpu or cuda (default: cpu for one movie, else a GPU if any)"
    )
    add_encoder(parser)
    parser.add_argument(
        "--ask",
        type=Path,
        metavar="RUN",
        help="for a model with the branch `answers`: ask the language model about the movies, as "
        "this run folder of genre-ask did",
    )
    parser.add_argument(
        "--ask-url", metavar="URL", help="where its server is now (default: as in the run)"
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="environment variable that holds its API key"
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="threads that read and score (default: one per core)",
    )
    return parser


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The argument ``checkpoint``, for :func:`genre_lightning.runs.ckpt_path.best_checkpoint`."""
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=Path,
        help="such as .../best.ckpt; a run folder, a folder of runs, or last",
    )


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """The option ``--encoder``, for the ``encoders`` of ``GenrePredictor.from_checkpoint``."""
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME",
        help="a pretrained encoder beyond our own table that the checkpoint may use",
    )


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TEXT")
    return name.strip(), value


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text!r} is empty, or more than a line: give an identifier such as mit, or leave it "
            "out where none is chosen"
        )
    return text.strip()


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
