"""Every code block of README and docs is run, or a comment says why it is not."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from genre_lightning.checkpoint.card import CHECKPOINT_KEY
from genre_lightning.movies.columns import join_columns
from genre_lightning.movies.demo import read_demo
from genre_lightning.movies.manifest import read_manifest
from tests.datasets import poster_of
from tests.docs.blocks import Block, blocks
from tests.docs.shell import REPOSITORY, SMALL, Shell, make_clone

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
#: Language of blocks that are not code: output, drawings, expressions.
NOT_CODE = ("text",)
#: The steps of this page are done in a copy of the package.
EXTENDING = REPOSITORY / "docs" / "extending.md"
#: Values for what the reader fills in; and one seed, which is enough here.
REPLACEMENTS = {
    "seed=0,1,2": "seed=0",
    "runs/sweeps/NAME": "runs/sweeps/first",
    "RUN": "runs/first",
    "CKPT": "best.ckpt",
}
#: Minimum number of blocks that are run, wholly or in part, so that few are marked `not run`.
MIN_BLOCKS = {"sh": 25, "python": 8, "csv": 3, "yaml": 3}


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language not in NOT_CODE and block.runnable]


def test_every_block_is_run_or_says_why_not() -> None:
    count: Counter[str] = Counter()
    for page in PAGES:
        for block in blocks(page):
            where = f"{page.name}:{block.line}"
            assert block.language in (*MIN_BLOCKS, *NOT_CODE), f"{where}: what language is it?"
            if block.language in NOT_CODE:
                assert not block.reason, f"{where}: nobody would run this"
                commands = r"^(python (train|evaluate|-m)|genre-\w+ )"
                assert not re.search(commands, block.text, re.MULTILINE), f"{where}: commands"
            elif block.runnable.strip():
                count[block.language] += 1
            else:
                assert len(block.reason.split()) > 1, where
    assert all(count[language] >= minimum for language, minimum in MIN_BLOCKS.items()), count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run because -->\n```sh\nls\n```", "not run because"),
        ("<!-- not run, line 2: too long -->\n```sh\nls\n```", "there are no lines 2-2"),
        ("<!-- not run: too long -->\n\n```sh\nls\n```", "that no block follows"),
    ],
    ids=["malformed", "no such line", "not before a block"],
)
def test_wrong_comment_is_refused(text: str, message: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text + "\n", "utf-8")
    with pytest.raises(ValueError, match=message):
        blocks(page)


def test_marked_lines_are_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1\n\n  <!-- not run, lines 1-2: why -->\n  ```sh\n  a\n  b\n  c\n  ```\n")
    (block,) = blocks(page)
    assert (block.line, block.runnable, block.reason) == (4, "c\n", "why")


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.close()


@pytest.mark.slow
def test_block_stops_at_the_first_failing_command(shell: Shell, tmp_path: Path) -> None:
    make_clone(tmp_path / "clone")
    done = shell.run("echo on\npython train.py optimizer.lrr=1 | cat\necho off", tmp_path / "clone")
    assert done.returncode == 1
    assert done.stdout.startswith("on\n") and "lrr" in done.stdout and "off" not in done.stdout


@pytest.fixture(scope="module")
def prepared_clone(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with all that the blocks use: a trained run, checkpoints, tables and posters."""
    clone = tmp_path_factory.mktemp("prepared") / "clone"
    make_clone(clone)
    movies = read_demo(tmp_path_factory.mktemp("demo"), num_movies=100, poster_height=48).movies
    (clone / "posters").mkdir()
    ml1m = clone / "data" / "ml1m"
    (ml1m / "ml1m-images").mkdir(parents=True)
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for movie in movies:
        rows[str(movie.split)].append(f"{movie.id}::{movie.title}::{'|'.join(movie.genres)}")
        if poster := poster_of(movie):
            shutil.copy(poster.path, clone / "posters")
            shutil.copy(poster.path, ml1m / "ml1m-images")
    for split, lines in rows.items():
        (ml1m / f"movies_{split}.dat").write_text("\n".join(lines) + "\n", "utf-8")
    write_movies(clone, "|")
    with (clone / "columns.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "synopsis", "director", "cast"])
        table.writerows(
            [m.id, f"A story of {m.title}.", "Ann Lee", "Bo Ek|Cy Dahl"] for m in movies
        )
    # Not in posters/, where --folder would take the names of the files for titles.
    first = next(iter(sorted((clone / "posters").iterdir())))
    for name in ("heat.jpg", "avengers.jpg"):
        shutil.copy(first, clone / name)
    trained = shell.run(
        "python train.py hydra.run.dir=runs/first\n"
        "python train.py hydra.run.dir=runs/title 'model/branch=[title_tfidf]'\n"
        "cp runs/first/checkpoints/best.ckpt best.ckpt\n"
        "cp runs/title/checkpoints/best.ckpt title.ckpt && rm -r runs/title",
        clone,
    )
    assert trained.returncode == 0, trained.stdout
    return clone


def write_movies(clone: Path, separator: str) -> None:
    """Write ``movies.csv``: the movies of ``data/ml1m`` with further columns."""
    lines = [
        line.split("::")
        for split in ("train", "test")
        for line in (clone / f"data/ml1m/movies_{split}.dat").read_text("utf-8").splitlines()
    ]
    with (clone / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["title", "poster", "genres", "synopsis", "tagline"])
        for number, title, genres in lines:
            poster = f"posters/{number}.jpg"
            row = [title, poster if (clone / poster).exists() else ""]
            row += [genres.replace("|", separator), f"A story of {title}.", f"See {title}!"]
            table.writerow(row)


@pytest.fixture
def clone_for(prepared_clone: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Copies the clone for a page, without runs if the page itself trains ``runs/first``."""

    def make(page: Path) -> Path:
        folder = tmp_path / "clone"
        shutil.copytree(prepared_clone, folder)
        trains_first = re.compile(r"hydra\.run\.dir=runs/first(?!\S)")
        if any(trains_first.search(block.runnable) for block in blocks(page)):
            shutil.rmtree(folder / "runs")
        return folder

    return make


def prepare(folder: Path, block: Block) -> None:
    """Do what the page says in prose before a block."""
    if "genre_separator" in block.runnable:
        write_movies(folder, ";")
    elif "data=manifest" in block.runnable:
        write_movies(folder, "|")
    if "--onnx" in block.runnable:  # "For a model with the one branch title_tfidf"
        shutil.copy(folder / "title.ckpt", folder / "best.ckpt")


PAGES_WITH_COMMANDS = [
    page
    for page in PAGES
    if page != EXTENDING and any(block.language in ("sh", "python") for block in runnable(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_blocks_of_a_page_run(page: Path, clone_for: Callable[[Path], Path], shell: Shell) -> None:
    folder = clone_for(page)
    for block in runnable(page):
        if block.language not in ("sh", "python"):
            continue
        prepare(folder, block)
        text = block.runnable
        for name, value in REPLACEMENTS.items():
            text = re.sub(rf"\b{re.escape(name)}\b", value, text)
        if block.language == "python":
            (folder / "block.py").write_text(text, "utf-8")
            text = "python block.py"
        done = shell.run(text, folder)
        assert done.returncode == 0, f"{page.name}:{block.line}\n{text}\n{done.stdout}"
        assert "Traceback" not in done.stdout and "Warning" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page.name}:{block.line}")
        for page in PAGES
        for block in runnable(page)
        if block.language == "csv"
    ],
)
def test_csv_block_is_read(page: Path, block: Block, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(block.runnable, "utf-8")
    header, *rows = csv.reader(block.runnable.splitlines())
    assert len(rows) > 1
    if "title" in header:
        movies = read_manifest(path)
        assert len(movies.movies) == len(rows)
        assert set(movies.columns()) == set(header) - {"genres"}
    else:
        movies = join_columns(read_demo(tmp_path, num_movies=20, poster_height=32), path)
        assert set(header) - {"id"} <= set(movies.columns())


def insert(path: Path, before: str, text: str) -> None:
    source = path.read_text("utf-8")
    assert source.count(before) == 1, before
    path.write_text(source.replace(before, text + before), "utf-8")


def add_import(path: Path, module: str, name: str) -> None:
    source = path.read_text("utf-8")
    place = source.index("\nfrom genre_lightning.") + 1
    path.write_text(f"{source[:place]}from {module} import {name}\n{source[place:]}", "utf-8")


@pytest.mark.slow
def test_extended_package_trains(clone_for: Callable[[Path], Path], shell: Shell) -> None:
    """One training uses the dataset, input, network and loss that extending.md adds."""
    folder = clone_for(EXTENDING)
    package = folder / "genre_lightning"
    shutil.copytree(REPOSITORY / "genre_lightning", package)
    text = EXTENDING.read_text("utf-8")
    remaining = runnable(EXTENDING)

    def take(start: str) -> str:
        (found,) = [block for block in remaining if block.runnable.startswith(start)]
        remaining.remove(found)
        return found.runnable

    def write(name: str, start: str) -> None:
        assert f"`{name}`" in text
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(take(start), "utf-8")

    def entry(name: str) -> str:
        assert f"`{name}`" in text
        return f"    {name}\n"

    for name, start in (
        ("genre_lightning/movies/jsonl.py", '"""Reader for one JSON'),
        ("conf/data/jsonl.yaml", "defaults:\n  - base"),
        ("genre_lightning/inputs/length.py", '"""How long a text is'),
        ("conf/model/branch/title_length.yaml", "# @package model.branches.title_length"),
        ("genre_lightning/models/embedding_residual.py", '"""Vectors through a residual'),
        ("conf/loss/soft_f1.yaml", "_target_: genre_lightning."),
        ("falling.py", "from torch.optim import Optimizer"),
        ("own/scheduler/falling.yaml", "_target_: falling.falling"),
        ("mine.py", "from pytorch_lightning import Callback"),
        ("own/callbacks/print_rate.yaml", "defaults:\n  - default"),
    ):
        write(name, start)
    table = package / "movies" / "readers.py"
    add_import(table, "genre_lightning.movies.jsonl", "read_jsonl")
    insert(table, '    "demo": read_demo,\n', entry('"jsonl": read_jsonl,'))
    table = package / "inputs" / "table.py"
    add_import(table, "genre_lightning.inputs.length", "LengthInput")
    insert(table, "TermsInput, PixelsInput, EmbeddingInput", "LengthInput, ")
    table = package / "models" / "networks.py"
    add_import(table, "genre_lightning.models.embedding_residual", "EmbeddingResidual")
    insert(table, '    "terms_mlp": NetworkType(\n', take('"embedding_residual": NetworkType('))
    table = package / "scoring" / "losses.py"
    insert(table, "LOSSES: dict", take("def soft_f1(") + "\n\n")
    insert(table, '    "bce": BCELoss,\n', entry('"soft_f1": SoftF1Loss,'))

    with (folder / "movies.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (folder / "movies.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            genres = row["genres"].split("|")
            movie = {"id": number, "title": row["title"], "genres": genres}
            file.write(json.dumps({**movie, "poster": row["poster"] or None}) + "\n")
    command = take("python train.py 'model/branch=[title_tfidf,title_year]'").strip()
    command = command.replace("title_year]", "title_year,title_length]")
    for overrides in ("data=jsonl data.path=movies.jsonl", "loss=soft_f1"):
        assert f"`{overrides}`" in text
        command += f" {overrides}"
    assert "`'model/branch=[title_tfidf,title_length]'`" in text
    path = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"

    def train(command: str, name: str) -> str:
        """Train in a new process: a forked one has imported the package without these steps."""
        options = shlex.join([*SMALL, f"hydra.run.dir=runs/{name}"])
        done = subprocess.run(
            ["bash", "-euc", f"{path}\n{command} {options}"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    train(command, "extended")
    for number, command in enumerate(take("python train.py +callbacks.print_rate").splitlines()):
        assert "learning rate " in train(command, f"rate{number}")
    train(take("python train.py --config-dir own scheduler=falling").strip(), "falling")
    with (folder / "runs" / "falling" / "metrics.csv").open(newline="") as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)][-1] == 0
    run = folder / "runs" / "extended"
    card = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)[CHECKPOINT_KEY]
    assert '"length"' in card["inputs"]["title_length"]
    networks = card["network"]["branches"]
    assert networks["title_year"]["name"] == "embedding_residual"
    assert (card["loss"]["name"], card["data"]["reader"]) == ("soft_f1", "jsonl")

    for block in remaining:
        assert block.language == "sh" and "tagline" in block.runnable, block.line
        done = shell.run(block.runnable, folder)
        assert done.returncode == 0, f"{block.line}: {done.stdout}"
    assert len(remaining) == 1
