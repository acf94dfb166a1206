"""README and docs: every command composes or parses, and everything they name exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import textwrap
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

import genre_lightning.runs.naming  # noqa: F401 - the resolvers
import train
from genre_lightning.comparison import command as comparing
from genre_lightning.genre_ask import expand_override
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.inputs.input import Input, Store
from genre_lightning.inputs.table import INPUTS
from genre_lightning.models.networks import NETWORKS
from genre_lightning.movies.columns import join_columns
from genre_lightning.movies.manifest import read_manifest
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.readers import READERS
from genre_lightning.predicting.arguments import parse_card, parse_export, parse_predict
from genre_lightning.runs.composing import speed_up_composition
from genre_lightning.scoring import losses
from genre_lightning.scoring.losses import LOSSES
from genre_lightning.webapp import server

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
README = REPOSITORY / "README.md"
EXTENDING = REPOSITORY / "docs" / "extending.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
#: All checked texts; keys and files are not checked in the changelog, which names old ones.
TEXTS = [*PAGES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
MAX_WORDS = 1000
FORBIDDEN = ("stranger's", "mend", "mends", "goes on with", "hopeless")
#: Placeholders for names that the reader chooses.
PLACEHOLDER = re.compile(r"\b(NAME|KEY|OTHER|VALUE|K)\b|\.\.\.")
#: Files that a reader writes by following extending.md.
NEW_FILES = {
    "conf/data/jsonl.yaml",
    "conf/loss/soft_f1.yaml",
    "conf/model/branch/poster_lite1.yaml",
    "conf/model/branch/tagline.yaml",
    "conf/model/branch/title_length.yaml",
    "genre_lightning/inputs/length.py",
    "genre_lightning/models/embedding_residual.py",
    "genre_lightning/movies/jsonl.py",
    "mine.py",
    "falling.py",
}
#: These look like keys but are not.
NOT_KEYS = ("model.branches.tagline", "model.ckpt", "model.vocabulary.json", "trainer.fit")
NEW_OPTIONS = (
    "jsonl",
    "soft_f1",
    "title_length",
    "poster_lite1",
    "embedding_residual",
    "print_rate",
    "falling",
)
#: Config groups whose options are written like data=demo.
GROUPS = (
    "callbacks", "data", "experiment", "logger", "loss", "model", "optimizer", "parameters",
    "poster", "prompt", "scheduler", "server", "sweep", "trainer",
)  # fmt: skip
#: Overrides of the configurations in which a documented key may be.
CONFIGURATIONS: list[list[str]] = [
    [],
    ["trainer=ddp"],
    ["trainer=ddp_nodes"],
    ["logger=wandb"],
    ["sweep=optuna"],
    ["data=ml1m"],
    ["data=manifest"],
]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def fenced(text: str, language: str) -> list[str]:
    """The contents of a page's code blocks."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```$"
    return [
        textwrap.dedent(block) for _, block in re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    ]


def inline(text: str) -> list[str]:
    """Text in backquotes outside of code blocks, with line breaks as spaces."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def split_commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without comments and redirections."""
    command: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split = True
    tokens = list(lexer)
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if token in ("&&", ";", "|", "&"):
            yield command
            command = []
        elif token in ("<", ">"):
            position += 1
        else:
            command.append(token)
        position += 1
    if command:
        yield command


def all_commands() -> dict[str, list[str]]:
    """Every command of the pages; the key is the first page that has it, and its text."""
    found: dict[str, list[str]] = {}
    for page in TEXTS:
        text = page.read_text("utf-8").replace("\\\n", " ")
        lines = [line for block in fenced(text, "sh") for line in block.splitlines()]
        lines += re.findall(r"^    ((?:make|python|genre-)\S* .*)$", text, re.MULTILINE)
        starts = ("python ", "genre-", "make ", "pip ", "pytest ")
        # Headings of troubleshooting.md are messages, not commands.
        body = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
        lines += [code for code in inline(body) if code.startswith(starts) and " " in code]
        for line in lines:
            for command in split_commands(line):
                while command and re.match(r"[A-Z_]+=", command[0]):
                    del command[0]
                if command and command not in found.values():
                    found[f"{page.name}: {shlex.join(command)}"] = command
    return found


COMMANDS = all_commands()


def commands_of(*programs: str) -> list[Any]:
    """The arguments of the commands that begin with these words."""
    size = len(programs)
    return [
        pytest.param(command[size:], id=where)
        for where, command in COMMANDS.items()
        if tuple(command[:size]) == programs
    ]


def compose_config(config: str, overrides: list[str]) -> DictConfig:
    with speed_up_composition(), initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, overrides, return_hydra_config=True)


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Overrides of the jobs of a sweep, with one value of each range that Optuna would search."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    plain = [
        override
        for override in parsed
        if not override.is_sweep_override() or override.is_choice_sweep()
    ]
    ranges = [f"{o.get_key_element()}=0.001" for o in parsed if o not in plain]
    (batch,) = BasicSweeper.split_arguments(plain, max_batch_size=None)
    first = batch[0]
    # Each value once, rather than every combination.
    chosen = [job for job in batch if sum(map(str.__ne__, job, first)) <= 1]
    return [[*job, *ranges] for job in chosen]


def flat_items(cfg: DictConfig) -> list[tuple[str, Any]]:
    """Every dotted key except Hydra's own, groups included, with its value."""
    found: list[tuple[str, Any]] = []

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else ():
            if f"{prefix}{key}" != "hydra":
                found.append((f"{prefix}{key}", value))
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    return found


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Every dotted key that some configuration has."""
    found: set[str] = set()
    branches = [f"model/branch=[{path.stem}]" for path in (CONF / "model" / "branch").iterdir()]
    for overrides in [*CONFIGURATIONS, *([branch] for branch in branches)]:
        found |= {key for key, _ in flat_items(compose_config("train", overrides))}
    return found | {key for key, _ in flat_items(compose_config("ask", []))}


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").split()) <= MAX_WORDS


def forbidden_in(path: Path) -> list[str]:
    text = " ".join(path.read_text("utf-8").lower().split())
    return [word for word in FORBIDDEN if re.search(rf"\b{re.escape(word)}\b", text)]


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_page_has_no_forbidden_word(page: Path) -> None:
    assert forbidden_in(page) == []


def test_code_has_no_forbidden_word() -> None:
    folders = ("genre_lightning", "conf", "hydra_plugins", "benchmarks")
    found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    texts = [path for path in found if path.suffix in (".py", ".yaml", ".js", ".j2", ".html")]
    assert len(texts) > 150
    assert {str(path): words for path in texts if (words := forbidden_in(path))} == {}


@pytest.mark.parametrize("arguments", commands_of("python", "train.py"))
def test_train_command_composes(arguments: list[str]) -> None:
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if "--cfg" in arguments:
        overrides.remove("job")
    unknown = {argument for argument in arguments if argument.startswith("-")} - {
        "-m",
        "--help",
        "--cfg",
        "--config-dir",
    }
    assert not unknown
    overrides = [re.sub(r"=\.\.\.$", "=FOLDER", override) for override in overrides]
    if any(option in override for option in NEW_OPTIONS for override in overrides):
        pytest.skip("a step of extending.md, whose steps test_blocks.py runs")
    for job in sweep_jobs(overrides) if overrides else [[]]:
        cfg = compose_config("train", job)
        missing = {key for key, value in flat_items(cfg) if value == "???"}
        assert missing == {"num_genres"}, f"{missing} must be given"
        assert train.configured_branches(cfg)


@pytest.mark.parametrize("arguments", commands_of("python", "evaluate.py"))
def test_evaluate_command_composes(arguments: list[str]) -> None:
    arguments = [re.sub(r"=\.\.\.$", "=FILE", argument) for argument in arguments]
    cfg = compose_config("evaluate", arguments)
    assert cfg.split in ("train", "val", "test") and cfg.ckpt_path


@pytest.mark.parametrize("arguments", commands_of("genre-ask"))
def test_genre_ask_command_composes(arguments: list[str]) -> None:
    arguments = [expand_override(argument) for argument in arguments if argument != "-m"]
    for job in sweep_jobs(arguments):
        if not any(override.startswith("base_url=") for override in job):
            job = [*job, "base_url=URL", "model.name=NAME"]
        cfg = compose_config("ask", job)
        assert not {key for key, value in flat_items(cfg) if value == "???"}
        OmegaConf.to_container(cfg, resolve=False)


@pytest.mark.parametrize("arguments", commands_of("genre-predict"))
def test_genre_predict_command_parses(arguments: list[str]) -> None:
    arguments = [re.sub(r"^CKPT$", "best.ckpt", argument) for argument in arguments]
    if arguments[:1] == ["export"]:
        parse_export(arguments[1:])
    elif arguments[:1] == ["card"]:
        parse_card(arguments[1:])
    elif arguments[:1] == ["best.ckpt"] and set(arguments[1::2]) == {"--encoder"}:
        parse_predict([*arguments, "--title", "Heat (1995)"])
    else:
        parse_predict(arguments)


@pytest.mark.parametrize(
    ("parser", "arguments"),
    [
        pytest.param(parser, *case.values, id=case.id)
        for program, parser in (
            ("genre-compare", comparing._parser()),
            ("genre-demo", server._parser()),
        )
        for case in commands_of(program)
    ],
)
def test_genre_compare_or_demo_command_parses(parser: ArgumentParser, arguments: list[str]) -> None:
    parser.parse_args(arguments)


@pytest.mark.parametrize("arguments", commands_of("python", "-m"))
def test_module_and_its_options_exist(arguments: list[str]) -> None:
    module = arguments[0].replace("benchmarks.NAME", "benchmarks.feed")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    if module == "venv":
        return
    sources = Path(spec.origin).read_text("utf-8")
    sources += (REPOSITORY / "benchmarks" / "measure.py").read_text("utf-8")
    for option in arguments[1:]:
        assert not option.startswith("--") or f'"{option}"' in sources, option


@pytest.mark.parametrize("arguments", commands_of("make"))
def test_make_target_exists(arguments: list[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    targets = [argument for argument in arguments if "=" not in argument]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_extra_exists() -> None:
    text = "".join(page.read_text("utf-8") for page in TEXTS)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        extra for group in re.findall(r"\.\[([\w,]+)\]|lightning\[([\w,]+)\]", text)
        for extra in "".join(group).split(",")
    }  # fmt: skip
    assert named and named <= set(project["optional-dependencies"])
    started = (REPOSITORY / "docs" / "getting-started.md").read_text("utf-8")
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in started


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=name_of)
def test_every_file_exists(page: Path) -> None:
    tops = "benchmarks|conf|docs|genre_lightning|hydra_plugins|notebooks|tests"
    text = page.read_text("utf-8")
    for code in [*inline(text), *re.findall(r"pytest (tests/[\w./-]+)", text)]:
        if re.fullmatch(rf"(?:{tops})/[\w./-]*", code) and not PLACEHOLDER.search(code):
            assert (REPOSITORY / code).exists() or code in NEW_FILES, code
        elif re.fullmatch(r"[\w-]+\.(?:py|toml)", code) and code not in NEW_FILES:
            assert (REPOSITORY / code).exists() or any(REPOSITORY.glob(f"genre_lightning/*/{code}"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_key_and_option_exists(page: Path, keys: set[str]) -> None:
    for code in inline(page.read_text("utf-8")):
        for word in code.split():
            key, _, value = word.strip("'\"").partition("=")
            if PLACEHOLDER.search(key) or key.startswith("+") or key in NOT_KEYS:
                continue
            if re.fullmatch(rf"(?:{'|'.join(GROUPS)}|training)(?:\.\w+)+", key):
                assert key in keys, f"{code}: there is no {key}"
            elif key in GROUPS and re.fullmatch(r"\w+", value):
                option = CONF / key / f"{value}.yaml"
                known = option.exists() or value in NEW_OPTIONS or PLACEHOLDER.search(value)
                assert known, f"{code}: there is no {option}"


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    linked = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in linked:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            anchors = {
                re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
                for heading in headings
            }
            assert anchor in anchors, link


def test_page_of_branches_lists_exactly_those_that_exist() -> None:
    text = (REPOSITORY / "docs" / "branches-and-encoders.md").read_text("utf-8")
    table = text[text.index("| branch | column |") : text.index("### Your own vectors")]
    first = [row.split("|")[1] for row in table.splitlines()[2:] if row.startswith("|")]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named == {path.stem for path in (CONF / "model" / "branch").iterdir()}
    encoders = text[text.index("| name | input | network |") : text.index("The packages come with")]
    assert set(re.findall(r"^\| `(\w+)`", encoders, re.MULTILINE)) == set(ENCODERS)


def test_page_of_branches_states_each_lr_scale() -> None:
    text = (REPOSITORY / "docs" / "branches-and-encoders.md").read_text("utf-8")
    for path in (CONF / "model" / "branch").iterdir():
        row = next(row for row in text.splitlines() if row.startswith("|") and f"`{path.stem}`" in
                   row.split("|")[1] and row.count("|") == 7)  # fmt: skip
        assert float(row.split("|")[5]) == yaml.safe_load(path.read_text("utf-8"))["lr_scale"], row


def scores_by_model(text: str) -> dict[str, list[str]]:
    """Return mAP and micro F1 of each row about the test split of a whole model, by its name."""
    rows = {}
    for row in re.findall(r"^\| .*\|$", text, re.MULTILINE):
        first, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        name = re.match(
            r"`(?:model=)?(\w+)`(?: \(default.*\)|: .*)?$|(default)(?:: title, poster)?$", first
        )
        scores = [score for cell in cells for score in re.findall(r"^\W*(\.\d{3})\b", cell)]
        if name and len(scores) > 1:
            model = (name[1] or name[2]).replace("fusion", "default")
            rows[model] = scores[:2]
    return rows


def test_every_page_gives_a_model_the_same_scores() -> None:
    results = (REPOSITORY / "docs" / "results.md").read_text("utf-8")
    measured = scores_by_model(results.partition("## Test split")[2].partition("\n##")[0])
    for page in (README, REPOSITORY / "docs" / "getting-started.md"):
        shown = scores_by_model(page.read_text("utf-8"))
        assert {"full", "pretrained", "default"} <= set(shown)
        for model, scores in shown.items():
            assert scores == measured[model], (page.name, model)


def test_page_of_design_names_every_input_network_and_module() -> None:
    text = (REPOSITORY / "docs" / "design.md").read_text("utf-8")
    for name in (*INPUTS, *NETWORKS):
        assert f"`{name}`" in text
    for name in [path.name for path in (REPOSITORY / "genre_lightning").iterdir()]:
        assert name.startswith(("_", "py.typed")) or re.search(rf"\b{re.escape(name)}", text), name


def test_example_csv_files_can_be_read(tmp_path: Path) -> None:
    (first, *_) = fenced(README.read_text("utf-8"), "csv")
    (own, columns) = fenced((REPOSITORY / "docs" / "your-data.md").read_text("utf-8"), "csv")
    assert own == first
    (tmp_path / "movies.csv").write_text(first, encoding="utf-8")
    movies = read_manifest(tmp_path / "movies.csv")
    assert len(first.splitlines()) == 4 and len(movies.movies) == 3
    assert movies.columns() == ("title", "poster", "synopsis")
    # The example of further columns is for MovieLens-1M, whose ids are numbers like these.
    rows = [f"{number or 'id'},{row}" for number, row in enumerate(first.splitlines())]
    (tmp_path / "movies.csv").write_text("\n".join(rows), encoding="utf-8")
    movies = read_manifest(tmp_path / "movies.csv")
    (tmp_path / "more.csv").write_text(columns.replace("synopsis,", "plot,"), encoding="utf-8")
    joined = join_columns(movies, tmp_path / "more.csv")
    assert {"director", "cast", "plot"} <= set(joined.columns())


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_code_compiles(page: Path) -> None:
    text = page.read_text("utf-8")
    for block in fenced(text, "python"):
        # An entry of a table, such as NETWORKS, does not compile by itself.
        source = f"_ = {{{block}}}" if re.match(r'"\w+": ', block) else block
        compile(source, name_of(page), "exec")
    for block in fenced(text, "yaml"):
        assert yaml.safe_load(block)


def extending_block(start: str) -> str:
    """The Python block of extending.md that begins with this text."""
    blocks = fenced(EXTENDING.read_text("utf-8"), "python")
    (found,) = [block for block in blocks if block.startswith(start)]
    return found


def load_module(source: str, name: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102 - our own page
    return module


def test_example_dataset_is_read(tmp_path: Path) -> None:
    module = load_module(extending_block('"""Reader for one JSON'), "jsonl")
    (tmp_path / "1.jpg").write_bytes(b"jpeg")
    rows = [
        {"id": 1, "title": "Heat (1995)", "genres": ["Crime"], "poster": "1.jpg"},
        {"id": 2, "title": "Alien (1979)", "genres": ["Sci-Fi"], "poster": "2.jpg"},
    ]
    path = tmp_path / "movies.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    movies = module.read_jsonl(path)
    assert movies.genres == ("Crime", "Sci-Fi")
    assert [movie.columns["poster"].exists for movie in movies.movies] == [True, False]
    block = next(b for b in fenced(EXTENDING.read_text("utf-8"), "yaml") if "reader: jsonl" in b)
    assert set(yaml.safe_load(block)) == {"defaults", "reader", "path"}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", '{"id": 2, "genres": ["Sci-Fi"]}']
    + [
        json.dumps({"id": 2, "title": "Alien (1979)", "genres": ["Sci-Fi"]} | wrong)
        for wrong in ({"title": 7}, {"genres": "Sci-Fi"}, {"poster": 7}, {"genres": [7]})
    ],
)
def test_example_dataset_reports_a_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "movies.jsonl"
    # JSON allows this line separator inside a string.
    good = json.dumps(
        {"id": 1, "title": "Heat\u2028(1995)", "genres": ["Crime"]}, ensure_ascii=False
    )
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    read = load_module(extending_block('"""Reader for one JSON'), "jsonl").read_jsonl
    with pytest.raises(DataError, match=r"movies\.jsonl:2: not a movie"):
        read(path)
    with pytest.raises(DataError, match=r"can't read .*none\.jsonl"):
        read(tmp_path / "none.jsonl")


def test_example_input_works(tmp_path: Path) -> None:
    module = load_module(extending_block('"""How long a text is'), "length")
    length_input: type[Input] = module.LengthInput
    branch_input = length_input.from_state(length_input(column="title").state())  # type: ignore[call-arg]
    values = ["Heat (1995)", None, "Up"]
    features = branch_input.open(values, np.array([0, 2]), Store(tmp_path))
    assert features.row_index.tolist() == [0, -1, 1] and features.dense is not None
    encoded = branch_input.encode([branch_input.read("Heat (1995)"), branch_input.read("Up")])
    assert np.array_equal(encoded["vectors"].numpy(), features.dense)
    assert branch_input.encode([])["vectors"].shape == (0, 2)
    with pytest.raises(TypeError):
        branch_input.read(7)
    with pytest.raises(ValueError, match="unknown key 'more'"):
        length_input.from_state({"column": "title", "more": 1})


def test_example_network_works() -> None:
    module = load_module(extending_block('"""Vectors through a residual'), "residual")
    network: nn.Module = module.EmbeddingResidual(num_genres=3, width=5, hidden=4)
    assert network(torch.zeros(2, 5)).shape == (2, 3)
    assert network.get_parameter("head.bias").shape == (3,)


def test_example_loss_works() -> None:
    names = dict(vars(losses))
    exec(extending_block("def soft_f1("), names)  # noqa: S102 - our own page
    loss = names["SoftF1Loss"]()
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert loss(40 * (targets - 0.5), targets) == pytest.approx(0, abs=1e-6)
    assert loss.activation == "sigmoid"


def test_tables_named_by_extending_md_exist() -> None:
    text = EXTENDING.read_text("utf-8")
    tables = re.findall(r"`([A-Z_]+)` in\s+`(genre_lightning/[\w/]+)\.py`", text)
    tables += [("LOSSES", "genre_lightning/scoring/losses")]
    assert {name for name, _ in tables} >= {"READERS", "INPUTS", "NETWORKS", "ENCODERS"}
    for name, module in tables:
        assert hasattr(importlib.import_module(module.replace("/", ".")), name)
    assert not {"jsonl"} & set(READERS) and not {"soft_f1"} & set(LOSSES)
    for name, module in re.findall(r"`([A-Z_]+)` \(`(genre_lightning/[\w/]+)\.py`\)", text):
        assert hasattr(importlib.import_module(module.replace("/", ".")), name)


def source_strings() -> str:
    """All strings in the sources, with "..." for each value that an f-string fills in."""
    found = []
    patterns = ("*.py", "genre_lightning/**/*.py", "hydra_plugins/*.py")
    files = [path for pattern in patterns for path in REPOSITORY.glob(pattern)]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "..." for part in node.values
                ]
                found.append("".join(map(str, parts)))
    return "\n".join([*found, (REPOSITORY / "Makefile").read_text("utf-8")])


def test_every_message_in_troubleshooting_exists() -> None:
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text("utf-8")
    strings = source_strings()
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    named = [code for heading in headings for code in re.findall(r"`([^`]+)`", heading)]
    assert len(named) > 20
    for message in named:
        pieces = [piece.strip() for piece in re.split(r"\.\.\.|'\?\?\?'", message)]
        for piece in pieces:
            assert piece in strings, f"{message}: nothing says {piece!r}"
