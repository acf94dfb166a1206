"""The package's layers, held by reading the imports: each group uses only the layers above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "genre_lightning"
FOLDER = Path(__file__).resolve().parent.parent / PACKAGE

# From the top down. A group's modules may import each other, and any group in a layer above; within
# a layer the groups do not know each other. A folder's name stands for all modules in it.
LAYERS: list[dict[str, tuple[str, ...]]] = [
    {"errors": ("errors",)},
    {
        "archive": ("archive",),
        "movie": ("data.movie",),
        "store": ("data.store",),
        "models": ("models",),
        "losses": ("losses",),
        "metrics": ("metrics",),
        "thresholds": ("thresholds",),
        "schedule": ("schedule",),
        "run folder": ("run_folder",),
        "devices": ("devices",),
        "page": ("page",),
    },
    {
        "readers": ("data.readers", "data.ml1m", "data.manifest", "data.demo"),
        "split": ("data.split",),
        "titles": ("data.titles",),
        "posters": ("data.posters",),
        "augment": ("data.augment",),
        "summary": ("data.summary",),
        "naming": ("naming",),
        "processes": ("processes",),
        "study": ("study",),
    },
    # A checkpoint knows the features and the network, not the training: what only predicts loads
    # no Lightning.
    {"batch": ("data.batch",), "checkpoint": ("checkpoint",)},
    {"datamodule": ("data.datamodule",), "explain": ("explain",)},
    {"module": ("module",)},
    {"callbacks": ("callbacks",), "evaluation": ("evaluation",)},
    {
        "predictor": ("predictor",),
        "export": ("export",),
        "compare": ("compare", "comparison"),
        "report": ("report",),
    },
    {
        "wandb_report": ("wandb_report",),
        "predict": ("predict",),
        "demo": ("demo",),
        "sweep": ("sweep",),
    },
    {"loggers": ("loggers",)},
]
# They name what the package offers and hold no code of their own.
NAMESPACES = ("", "data")


def place(module: str) -> tuple[int, str] | None:
    """The layer (0 is the top) and group of a module named without the package, None if unknown."""
    for number, layer in enumerate(LAYERS):
        for group, members in layer.items():
            for member in members:
                if module == member or module.startswith(f"{member}."):
                    return number, group
    return None


def imports(source: str, module: str, is_folder: bool) -> Iterator[tuple[int, str]]:
    """Yields (line, absolute dotted name) for each import, those inside functions included.

    `from a import b` yields a.b: whether b is a module or a name in a is for the caller to tell.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = f"{PACKAGE}.{module}".rstrip(".").split(".")
                kept = parts[: len(parts) - node.level + is_folder]
                base = ".".join([*kept, *filter(None, [base])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def broken_rules(source: str, module: str, is_folder: bool = False) -> list[str]:
    """What in a module's source goes against the layers, one sentence each."""
    own = place(module)
    if own is None:
        return [f"{module} is in no layer: enter it in LAYERS"]
    broken = []
    for line, name in imports(source, module, is_folder):
        if name.split(".")[0] in ("train", "evaluate", "benchmarks", "docs", "tests"):
            broken.append(f"{module}:{line} imports {name}, which lies outside of the package")
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            continue
        target = name.removeprefix(PACKAGE).removeprefix(".")
        if target in NAMESPACES or target == "__version__":
            continue
        other = place(target)
        if other is None:
            broken.append(f"{module}:{line} imports {name}, which is in no layer")
        elif other[0] >= own[0] and other != own:
            broken.append(f"{module}:{line} imports {name}, which is not in a layer above it")
    return broken


def module_files() -> dict[str, Path]:
    files = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = {name: path for name, path in module_files().items() if name not in NAMESPACES}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_layers_above(module: str):
    path = MODULES[module]
    assert broken_rules(path.read_text("utf-8"), module, path.name == "__init__.py") == []


@pytest.mark.parametrize("module", ["data", "callbacks"])
def test_folders_do_not_import_their_modules(module: str):
    source = (FOLDER / module.replace(".", "/") / "__init__.py").read_text("utf-8")
    names = [name for _, name in imports(source, module, True) if name.startswith(PACKAGE)]
    assert names == [], "importing one module of the folder would load all of them"


def test_the_table_names_no_module_twice():
    members = [m for layer in LAYERS for group in layer.values() for m in group]
    assert len(members) == len(set(members))


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("losses", "import torch, numpy", 0),
        ("losses", "import genre_lightning.metrics", 1),
        ("thresholds", "from genre_lightning import metrics", 1),
        ("data.titles", "from genre_lightning.data.movie import Movie", 0),
        ("data.titles", "from genre_lightning.data import movie", 0),
        ("data.titles", "from .movie import Movie", 0),
        ("data.titles", "from .posters import open_poster_cache", 1),
        ("data.titles", "from ..module import GenreModule", 1),
        ("data.titles", "def f():\n    from genre_lightning.module import GenreModule", 1),
        ("data.readers", "from genre_lightning.data.ml1m import read_ml1m", 0),
        ("models", "from .fusion import Fusion", 0),
        ("models.fusion", "from .title_mlp import TitleMLP", 0),
        ("models.fusion", "from genre_lightning.models.title_mlp import TitleMLP", 0),
        ("module", "from genre_lightning.data.datamodule import MovieDataModule", 0),
        ("module", "from genre_lightning.evaluation import score_split", 1),
        ("predictor", "import train", 1),
        ("predictor", "from genre_lightning import helpers", 1),
        ("helpers", "", 1),
        ("predictor", "from genre_lightning import __version__", 0),
    ],
)
def test_the_rule_finds_what_it_should(module: str, source: str, found: int):
    assert len(broken_rules(source, module, is_folder=module == "models")) == found
