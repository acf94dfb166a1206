"""The pictures of the documentation: report, gallery and demo page of a model of the demo data.

    python -m docs.screenshots
    python -m docs.screenshots --checkpoint RUN/checkpoints/best.ckpt --out docs
    python -m docs.screenshots --sweep runs/sweeps/lr_dropout

Without a checkpoint it first trains the default recipe, a minute or two. Only movies that are drawn
on the spot may be seen in the pictures, so the checkpoint must be one of ``data=demo``. With a
sweep only its leaderboard is taken, which shows no movie.
"""

from __future__ import annotations

import argparse
import inspect
import io
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from docs.browser import open_chromium, serve_demo
from evaluate import evaluate
from genre_lightning.checkpoint.model import TrainedModel, load_model
from genre_lightning.errors import UserError
from genre_lightning.movies.demo import POSTER_GENRES, TITLE_GENRES, read_demo
from genre_lightning.movies.movie import Movie, PosterFile
from genre_lightning.predicting.predictor import POSTER, TITLE, GenrePredictor
from genre_lightning.runs.quoting import format_override, shell_command

REPOSITORY = Path(__file__).resolve().parent.parent
#: CSS pixels, each one pixel of the picture.
WIDTH = 1100
MARGIN = 16
#: Titles up to this length fit into the page's field.
MAX_TITLE = 20
#: Of the report, what would make its pictures long and tells less than the rest: the long table of
#: metrics, and all but the first row of each list of the gallery.
LEFT_OUT = """
.facts, nav, .box:has(#overall-table), section:has(#overall-table) > .note:last-child,
.card:nth-child(n + 3) { display: none; }
"""
#: More than this says a picture was cropped badly or needs fewer colours.
MAX_BYTES = 250_000


class ScreenshotError(UserError):
    """What keeps the pictures from being taken."""


def train_demo(folder: Path) -> Path:
    """Train the default recipe on the demo data; returns the checkpoint.

    Raises:
        ScreenshotError: training failed, after saying why.
    """
    script = str(REPOSITORY / "train.py")
    command = [sys.executable, script, "data=demo", format_override("hydra.run.dir", folder)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise ScreenshotError(f"train.py ended with {done.returncode}; what it said is above")
    return folder / "checkpoints" / "best.ckpt"


def check_drawn(model: TrainedModel, checkpoint: Path) -> None:
    """Refuse a model of other movies than the drawn ones.

    Raises:
        ScreenshotError: it was trained on other movies, or looks at other columns than these two.
    """
    reader = model.data.get("reader")
    if reader != "demo":
        raise ScreenshotError(
            f"{checkpoint} was trained on data={reader}, whose posters are not ours to show; "
            "give one of data=demo, or none to train one"
        )
    if set(model.columns) != {TITLE, POSTER}:
        seen = ", ".join(model.columns)
        raise ScreenshotError(f"{checkpoint} looks at {seen}; give one of model=fusion")


def choose_movie(predictor: GenrePredictor, movies: Sequence[Movie]) -> tuple[Movie, str]:
    """The test movie to ask the page about, and the genre to explain.

    It has a genre that shows in the title and one that shows in the poster, and as far as there is
    such a movie exactly its genres are predicted, as surely as can be, from a short title.

    Raises:
        ScreenshotError: there is no movie of that kind.
    """
    able = [
        movie
        for movie in movies
        if movie.split == "test"
        and POSTER in movie.columns
        and set(movie.genres) & set(TITLE_GENRES)
        and set(movie.genres) & set(POSTER_GENRES)
    ]
    if not able:
        raise ScreenshotError(
            "no test movie has a poster and genres of both kinds; train on more: data.num_movies"
        )
    answers = predictor.predict(
        [movie.title for movie in able], [poster_path(movie) for movie in able]
    )

    def worth(index: int) -> tuple[bool, bool, float]:
        movie, answer = able[index], answers[index]
        least = min(answer.scores[genre] for genre in movie.genres)
        exact = set(answer.genres) == set(movie.genres)
        return exact, len(movie.title) <= MAX_TITLE, least

    best = max(range(len(able)), key=worth)
    shown = [genre for genre in able[best].genres if genre in POSTER_GENRES]
    return able[best], max(shown, key=lambda genre: answers[best].scores[genre])


def poster_path(movie: Movie) -> Path:
    """The file of a demo movie's poster, which it must have."""
    poster = movie.columns[POSTER]
    assert isinstance(poster, PosterFile)
    return poster.path


def open_page(browser: Browser, url: str) -> Page:
    """A page of the documentation's width, in light colours, without animations."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    page.goto(url)
    return page


def shoot(page: Page, first: Locator, last: Locator, path: Path) -> None:
    """Write the full width of a page from the top of one element to the end of another.

    Raises:
        ScreenshotError: the picture is too large for a documentation.
    """
    top, end = first.bounding_box(), last.bounding_box()
    assert top is not None and end is not None, "both elements must be seen"
    start = max(0.0, top["y"] - MARGIN)
    height = end["y"] + end["height"] + MARGIN - start
    taken = page.screenshot(
        full_page=True,
        animations="disabled",
        clip={"x": 0, "y": start, "width": WIDTH, "height": height},
    )
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    # Few colours but those of small posters: a palette is a third of the size and looks the same.
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ScreenshotError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}")
    print(f"{path}: {picture.width} x {picture.height}, {size / 1000:.0f} kB", flush=True)


def shoot_report(browser: Browser, report: Path, out: Path) -> None:
    """Write ``report.png`` and ``gallery.png`` from a report of evaluate.py."""
    page = open_page(browser, report.resolve().as_uri())
    page.add_style_tag(content=LEFT_OUT)
    shoot(page, page.locator("h1"), page.locator("#genre-table"), out / "report.png")
    wrong = page.locator(".cards[data-list=invented]")
    shoot(page, page.locator("#gallery"), wrong, out / "gallery.png")
    page.close()


def shoot_demo(
    browser: Browser, predictor: GenrePredictor, movie: Movie, genre: str, path: Path
) -> None:
    """Write the picture of genre-demo's page, asked about a movie and why it has a genre."""
    with serve_demo(predictor, "best.ckpt") as (port, _):
        page = open_page(browser, f"http://127.0.0.1:{port}/")
        page.get_by_label("Title").fill(movie.title)
        page.locator("#column-poster").set_input_files(poster_path(movie))
        page.locator("#bars label", has_text=genre).click()
        expect(page.locator("#why-heading")).to_contain_text(genre)
        page.locator(f".heat[src^=blob][alt*='{genre}']:not([aria-busy])").wait_for()
        page.mouse.move(0, 0)
        shoot(page, page.locator("h1"), page.locator("main"), path)
        page.close()


def shoot_leaderboard(browser: Browser, sweep: Path, out: Path) -> None:
    """Write ``leaderboard.png`` from a sweep's folder.

    Raises:
        ScreenshotError: it has no leaderboard.
    """
    page_file = sweep / "leaderboard.html"
    if not page_file.is_file():
        raise ScreenshotError(
            f"there is no {page_file}: {shell_command('genre-compare', sweep)} writes it"
        )
    out.mkdir(parents=True, exist_ok=True)
    page = open_page(browser, page_file.resolve().as_uri())
    page.add_style_tag(content="nav { display: none; }")
    # It ends with the chart of the swept keys, where there are two.
    last = page.locator("section:has(#curves), section:has(#settings)").last
    shoot(page, page.locator("h1"), last, out / "leaderboard.png")
    page.close()


def take_all(browser: Browser, checkpoint: Path, folder: Path, out: Path) -> None:
    """Evaluate a checkpoint into ``folder`` and write the three pictures into ``out``.

    Raises:
        UserError: the checkpoint can't be used, see :func:`check_drawn`.
    """
    model = load_model(checkpoint)
    check_drawn(model, checkpoint)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = compose("evaluate", ["device=cpu"])
    cfg.ckpt_path = str(checkpoint)
    evaluate(cfg, folder, [f"ckpt_path={checkpoint.name}"])
    cache = Path(cfg.cache_dir).expanduser()
    known = inspect.signature(read_demo).parameters
    options = {name: value for name, value in model.data.items() if name in known}
    movies = read_demo(**{**options, "root": cache}).movies
    predictor = GenrePredictor(model)
    movie, genre = choose_movie(predictor, movies)
    out.mkdir(parents=True, exist_ok=True)
    shoot_report(browser, folder / "report.html", out)
    shoot_demo(browser, predictor, movie, genre, out / "demo.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the pictures; 1 for what the user can fix, with a message on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.screenshots", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, help="of data=demo; default: train one")
    parser.add_argument("--sweep", type=Path, help="folder of a sweep, for its leaderboard alone")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="where the pictures go")
    args = parser.parse_args(arguments)
    try:
        # The browser first: without one nothing is trained in vain.
        with open_chromium() as browser, tempfile.TemporaryDirectory() as folder:
            if args.sweep is not None:
                shoot_leaderboard(browser, args.sweep, args.out)
                return 0
            checkpoint = args.checkpoint or train_demo(Path(folder) / "run")
            take_all(browser, checkpoint, Path(folder) / "evaluation", args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
