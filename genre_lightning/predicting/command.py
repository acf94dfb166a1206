"""The command ``genre-predict``: genres of one movie, of a CSV file, of a folder of posters.

Nothing heavy is imported before the arguments are known to make sense.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from genre_lightning.errors import UserError

if TYPE_CHECKING:
    from genre_lightning.explain.parts import ScoreParts, TitleExplanation
    from genre_lightning.predicting.predictor import GenrePredictor, Prediction

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

_EPILOG = """\
examples:
  genre-predict best.ckpt --title "Heat (1995)" --poster heat.jpg
  genre-predict best.ckpt --csv movies.csv --out predicted.csv
  genre-predict best.ckpt --folder posters/        (posters/Heat (1995).jpg, ...)
  genre-predict export best.ckpt --onnx model.onnx
"""


class CommandError(UserError):
    """What keeps the command from doing what it was asked to."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 for what the user can mend, with a message on standard error; 130 for Ctrl-C. Exits
        with 2 where the arguments make no sense.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments[:1] == ["export"]:
            return _export(arguments[1:])
        return _predict(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads the output has had enough. Python would complain once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _predict(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    one = options.title is not None or options.poster is not None
    if one + (options.csv is not None) + (options.folder is not None) != 1:
        parser.error("give one of: --title and/or --poster, --csv, --folder")
    if (options.csv is not None) and options.out is None:
        parser.error("--csv needs --out, the file to write")
    if one and options.out is not None:
        parser.error("--out goes with --csv or --folder")
    if options.json and options.out is not None:
        parser.error("--json prints; it does not go with --out")
    if not one and options.explain:
        parser.error("--explain goes with --title and --poster, one movie")
    if options.explain_out is not None and not options.explain:
        parser.error("--explain-out goes with --explain")
    if one and not (options.title or "").strip() and not options.poster:
        parser.error("--title is empty and there is no --poster")
    # Starting a GPU takes longer than one movie takes without it.
    device = options.device or ("cpu" if one else "auto")

    import torch

    from genre_lightning.predicting.predictor import GenrePredictor

    # One movie is done before a second thread has started; many are spread by the predictor.
    torch.set_num_threads(1)
    predictor = GenrePredictor.from_checkpoint(options.checkpoint, device, options.workers)
    if one:
        _predict_one(predictor, options)
    elif options.csv is not None:
        _predict_csv(predictor, options.csv, options.out)
    else:
        _predict_folder(predictor, options.folder, options.out, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="genre-predict",
        description="Predict genres of movies from their titles, their posters or both.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="such as .../best.ckpt")
    parser.add_argument("--title", help='best with the year: "Heat (1995)"')
    parser.add_argument("--poster", type=Path, metavar="FILE", help="an image")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="IN.csv",
        help="many movies: columns title and poster (either may be missing), posters relative to "
        "the file; other columns are passed through",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="many movies: posters named by title"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT.csv",
        help="where --csv and --folder write; whole or not at all",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one line for each movie")
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
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="threads that decode posters (default: one per core)",
    )
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _export(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="genre-predict export",
        description="Write a model as ONNX, checked against PyTorch, and its vocabulary as JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="such as .../best.ckpt")
    parser.add_argument("--onnx", type=Path, metavar="FILE.onnx", required=True)
    options = parser.parse_args(arguments)

    from genre_lightning.checkpoint.model import load_model
    from genre_lightning.predicting.export import export_onnx

    exported = export_onnx(load_model(options.checkpoint), options.onnx)
    print(f"{exported.onnx} ({exported.onnx.stat().st_size / 2**20:.1f} MiB)")
    print(f"{exported.vocabulary}")
    print(
        f"checked on {exported.movies} movies: logits differ from PyTorch's "
        f"by {exported.difference:.1e} at most"
    )
    return 0


# One movie


def _predict_one(predictor: GenrePredictor, options: argparse.Namespace) -> None:
    from genre_lightning.inputs.decode import PosterError

    title, poster = options.title, options.poster
    # Said and not refused where the other one is left: the same command then serves every model.
    if title and not predictor.uses_titles:
        if poster is None:
            raise CommandError(f"{options.checkpoint} has no title branch: give a --poster")
        _note("the model has no title branch: the title is left out")
    if poster is not None and not predictor.uses_posters:
        if not title:
            raise CommandError(f"{options.checkpoint} has no poster branch: give a --title")
        _note("the model has no poster branch: the poster is left out")
    seen_title = title if predictor.uses_titles else None
    seen_poster = poster if predictor.uses_posters else None
    try:
        prediction = predictor.predict([seen_title], [seen_poster])[0]
        explanation = None
        if options.explain:
            explanation = _explain(
                predictor, prediction, seen_title, seen_poster, options.explain_out
            )
    except PosterError as error:
        raise CommandError(str(error)) from error
    if options.json:
        entry = _as_json(predictor, prediction, title, poster)
        print(json.dumps(entry | ({"explanation": explanation} if explanation else {})))
        return
    print(" + ".join(str(part) for part in (title, poster) if part))
    _print_scores(predictor, prediction, explanation)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _as_json(
    predictor: GenrePredictor, prediction: Prediction, title: str | None, poster: Path | None
) -> dict[str, Any]:
    return {
        "title": title,
        "poster": None if poster is None else str(poster),
        "genres": list(prediction.genres),
        "scores": {genre: round(score, 6) for genre, score in prediction.scores.items()},
        "thresholds": {genre: round(value, 6) for genre, value in predictor.thresholds.items()},
        "problem": prediction.problem,
    }


def _print_scores(
    predictor: GenrePredictor, prediction: Prediction, explanation: dict[str, Any] | None = None
) -> None:
    if prediction.problem:
        print(f"  problem: {prediction.problem}")
    thresholds = predictor.thresholds
    for genre, score in prediction.ranked():
        mark = "*" if genre in prediction.genres else " "
        print(f"{mark} {genre}: {score:.2f}  (from {thresholds[genre]:.2f})")
        if explanation is not None and genre in explanation["genres"]:
            for line in _explanation_lines(explanation, genre):
                print(f"      {line}")
    if explanation is not None and prediction.scores:
        print(
            "Parts add up to the logit. A title's words add up to its part (integrated gradients "
            "from an empty title, exact); a heat map (Grad-CAM) shows where, not how much."
        )


def _explain(
    predictor: GenrePredictor,
    prediction: Prediction,
    title: str | None,
    poster: Path | None,
    folder: Path | None,
) -> dict[str, Any]:
    """Explains the predicted genres, or the three nearest to it where none is predicted."""
    from genre_lightning.explain.parts import heat_pictures, score_parts, title_contributions

    thresholds = predictor.thresholds
    names = (
        list(prediction.genres)
        or sorted(predictor.genres, key=lambda genre: thresholds[genre] - prediction.scores[genre])[
            :3
        ]
    )
    places = [predictor.genres.index(name) for name in names]
    parts = score_parts(
        predictor.model, title, None if poster is None else predictor.decode(poster)
    )
    words = title_contributions(predictor.model, title) if title else None
    explanation: dict[str, Any] = {
        "genres": {
            name: _genre_explanation(parts, words, place)
            for name, place in zip(names, places, strict=True)
        },
        "title_method": "integrated gradients from an empty title, exact",
        "poster_method": "Grad-CAM",
    }
    if poster is not None:
        folder = poster.parent if folder is None else folder
        pictures = heat_pictures(predictor.model, poster, places)
        for name, picture in zip(names, pictures, strict=True):
            # A genre's name is whatever the checkpoint says.
            slug = re.sub(r"[^\w-]+", "_", name)[:80]
            path = folder / f"{poster.stem}.why-{slug}.png"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            except OSError as error:
                raise CommandError(
                    f"{path}: can't be written ({error.strerror or error}); "
                    "name another folder with --explain-out"
                ) from error
            explanation["genres"][name]["heat_map"] = str(path)
    return explanation


def _genre_explanation(
    parts: ScoreParts, words: TitleExplanation | None, genre: int
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "logit": round(float(parts.logits[genre]), 6),
        "bias": round(float(parts.bias[genre]), 6),
        "title": round(float(parts.title[genre]), 6),
        "poster": round(float(parts.poster[genre]), 6),
    }
    if words is not None:
        found["words"] = [
            {"text": part.text, "adds": round(float(part.contributions[genre]), 6)}
            for part in words.parts
        ]
    return found


def _explanation_lines(explanation: dict[str, Any], genre: str) -> Iterator[str]:
    found = explanation["genres"][genre]
    yield (
        f"logit {found['logit']:+.2f} = bias {found['bias']:+.2f}, title {found['title']:+.2f}, "
        f"poster {found['poster']:+.2f}"
    )
    words = sorted(found.get("words", ()), key=lambda word: -abs(word["adds"]))
    if words:
        yield "title: " + ", ".join(f"{word['text']} {word['adds']:+.2f}" for word in words)
    if "heat_map" in found:
        yield f"heat map: {found['heat_map']}"


# Many movies


def _predict_folder(
    predictor: GenrePredictor, folder: Path, out: Path | None, as_json: bool
) -> None:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CommandError(f"{folder}: can't be read ({error.strerror or error})") from error
    posters = [path for path in files if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not posters:
        raise CommandError(f"{folder}: no poster in it ({', '.join(SUFFIXES)})")
    if len(posters) < len(files):
        _note(f"{len(files) - len(posters)} files in {folder} are no posters: left out")
    if not predictor.uses_posters:
        _note("the model has no poster branch: it goes by the file names alone")
    movies = (
        (
            path.stem if predictor.uses_titles else None,
            path if predictor.uses_posters else None,
        )
        for path in posters
    )
    predictions = predictor.stream(movies, errors="report")
    problems = 0
    if out is not None:
        with _atomic_csv(out) as writer:
            writer.writerow(["title", "poster", *_columns(predictor)])
            for path, prediction in zip(posters, predictions, strict=True):
                problems += prediction.problem is not None
                writer.writerow([path.stem, path.name, *_cells(predictor, prediction)])
    else:
        for number, (path, prediction) in enumerate(zip(posters, predictions, strict=True)):
            problems += prediction.problem is not None
            if as_json:
                print(json.dumps(_as_json(predictor, prediction, path.stem, path)))
                continue
            if number:
                print()
            print(path.stem)
            _print_scores(predictor, prediction)
    _print_summary(len(posters), problems, out)


def _predict_csv(predictor: GenrePredictor, source: Path, out: Path) -> None:
    if out.exists() and source.exists() and out.samefile(source):
        raise CommandError(f"{out}: --out is the file that --csv reads; name another one")
    try:
        file = source.open("rb")
    except OSError as error:
        raise CommandError(f"{source}: can't be read ({error.strerror or error})") from error
    movies = problems = 0
    with file, _progress(file, source) as update:
        rows = _Rows(file, source)
        taken = [name for name in _columns(predictor) if name in rows.header]
        if taken:
            raise CommandError(
                f"{source}: column {taken[0]!r} is one that the output adds; rename it first"
            )
        for name, used in (("title", predictor.uses_titles), ("poster", predictor.uses_posters)):
            if name in rows.header and not used:
                _note(f"the model has no {name} branch: the column {name} is left out")
        with _atomic_csv(out) as writer:
            writer.writerow([*rows.header, *_columns(predictor)])
            predictions = predictor.stream(rows.movies(predictor), errors="report")
            for prediction in predictions:
                movies += 1
                problems += prediction.problem is not None
                writer.writerow([*rows.next_done(), *_cells(predictor, prediction)])
                update()
    _print_summary(movies, problems, out)


class _Rows:
    """The rows of a CSV file, kept from when they are read until their prediction is there."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        from collections import deque

        self.path = path
        self.reader = csv.reader(self._lines(file), strict=True)
        self.waiting: deque[list[str]] = deque()
        self.header = self._next() or []
        for name in self.header:
            if self.header.count(name) > 1:
                raise CommandError(f"{path}: it has two columns named {name!r}")
        if "title" not in self.header and "poster" not in self.header:
            raise CommandError(
                f"{path}: it has neither a column title nor a column poster; its first line is "
                f"{','.join(self.header)[:200]!r}"
            )

    def movies(self, predictor: GenrePredictor) -> Iterator[tuple[str | None, Path | None]]:
        """Title and poster of each row, None for what is empty or of no use to the model."""
        column = {name: place for place, name in enumerate(self.header)}
        while (row := self._next()) is not None:
            if not row:  # an empty line
                continue
            if len(row) != len(self.header):
                raise CommandError(
                    f"{self.path}:{self.reader.line_num}: {len(row)} values for "
                    f"{len(self.header)} columns"
                )
            self.waiting.append(row)
            title = row[column["title"]] if "title" in column else ""
            poster = row[column["poster"]].strip() if "poster" in column else ""
            yield (
                title if title.strip() and predictor.uses_titles else None,
                self.path.parent / poster if poster and predictor.uses_posters else None,
            )

    def next_done(self) -> list[str]:
        """The row that the next prediction belongs to."""
        return self.waiting.popleft()

    def _lines(self, file: IO[bytes]) -> Iterator[str]:
        # Decoded one by one, so that the line that can't be is known by its number.
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CommandError(
                    f"{self.path}:{number}: this line is not UTF-8 ({error.reason})"
                ) from error

    def _next(self) -> list[str] | None:
        try:
            return next(self.reader, None)
        except csv.Error as error:
            raise CommandError(f"{self.path}:{self.reader.line_num}: {error}") from error


def _columns(predictor: GenrePredictor) -> list[str]:
    return ["predicted", "problem", *predictor.genres]


def _cells(predictor: GenrePredictor, prediction: Prediction) -> list[str]:
    scores = [
        f"{prediction.scores[genre]:.6f}" if prediction.scores else "" for genre in predictor.genres
    ]
    return ["|".join(prediction.genres), prediction.problem or "", *scores]


def _print_summary(movies: int, problems: int, out: Path | None) -> None:
    text = f"{movies} movies"
    if problems:
        text += f", {problems} with a problem (a poster that can't be read, or nothing to go by)"
    print(text + (f"; written to {out}" if out else ""), file=sys.stderr)


@contextmanager
def _progress(file: IO[bytes], path: Path) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal, by how much of a file has been read."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    import rich.progress
    from rich.console import Console

    bar = rich.progress.Progress(
        rich.progress.TextColumn("predicting"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[movies]} movies"),
        rich.progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("predicting", total=path.stat().st_size, movies=0)
        movies = 0

        def update() -> None:
            nonlocal movies
            movies += 1
            bar.update(task, completed=file.tell(), movies=movies)

        yield update


@contextmanager
def _atomic_csv(path: Path) -> Iterator[Any]:
    """A CSV writer whose file appears under its name once it is whole, and not otherwise."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise CommandError(f"{path}: can't be written ({error.strerror or error})") from error
    temporary = Path(name)
    done = False
    try:
        with (
            _stopped_in_order(),
            os.fdopen(handle, "w", encoding="utf-8", newline="") as file,
        ):
            yield csv.writer(file)
            file.flush()
            os.fsync(handle)
        _take_default_mode(temporary)
        os.replace(temporary, path)
        done = True
    except OSError as error:
        raise CommandError(f"{path}: can't be written ({error.strerror or error})") from error
    finally:
        if not done:
            temporary.unlink(missing_ok=True)


def _take_default_mode(path: Path) -> None:
    """The permissions of a file newly made with open(); a temporary one is its owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what is half written is cleared away."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
