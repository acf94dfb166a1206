"""The package as users install it: light to import, dependencies declared, tied to no machine."""

from __future__ import annotations

import ast
import ensurepip
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import genre_lightning

REPOSITORY = Path(__file__).resolve().parent.parent
DISTRIBUTION = "genre-lightning"


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout


def test_import_loads_nothing_but_the_standard_library():
    loaded = run_python(
        "import sys; before = set(sys.modules); import genre_lightning;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    ).split()
    foreign = [name for name in loaded if name not in sys.stdlib_module_names]
    assert foreign == ["genre_lightning"]


def test_every_public_name_is_available():
    for name in genre_lightning.__all__:
        assert getattr(genre_lightning, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'GenrePredicter'"):
        genre_lightning.GenrePredicter  # noqa: B018
    assert "GenrePredictor" in dir(genre_lightning)


def test_installed_version_is_the_one_in_the_source():
    assert metadata.version(DISTRIBUTION) == genre_lightning.__version__


def declared(extra: str | None = None) -> set[str]:
    """The distributions that the package requires, and those that an extra adds."""
    environment = {"extra": extra or ""}
    return {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or [])
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


# Distributions whose name differs from that of the import.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "griffe": "griffelib",
    "hydra": "hydra-core",
    "iterstrat": "iterative-stratification",
    "markdown_it": "markdown-it-py",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def undeclared_imports(files: list[Path], extra: str | None = None) -> set[str]:
    """The distributions of all absolute imports, without our own and the declared ones."""
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    ours = {"genre_lightning", "benchmarks", "docs", "tests"} | {
        p.stem for p in REPOSITORY.glob("*.py")
    }
    foreign = names - ours - sys.stdlib_module_names
    needed: set[str] = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in foreign}
    return needed - declared(extra)


# Files that import packages of an extra, and the extra.
WITH_EXTRA = {
    "genre_lightning/models/poster_encoder.py": "pretrained",
    "genre_lightning/predicting/export.py": "export",
    "genre_lightning/sweeps/study.py": "optuna",
    "genre_lightning/sweeps/submitit_local.py": "slurm",
    "genre_lightning/training/callbacks/pruning.py": "optuna",
    "genre_lightning/webapp/*.py": "demo",
    "hydra_plugins/genre_lightning_ray.py": "ray",
}


def test_imports_of_the_package_are_declared():
    others = {
        *REPOSITORY.glob("genre_lightning/**/*.py"),
        *REPOSITORY.glob("hydra_plugins/*.py"),
        *REPOSITORY.glob("*.py"),
    } - {REPOSITORY / "setup.py"}  # runs in the build environment
    for pattern, extra in WITH_EXTRA.items():
        files = set(REPOSITORY.glob(pattern))
        assert files, f"there is no {pattern}"
        assert undeclared_imports(list(files), extra) == set(), pattern
        others -= files
    assert undeclared_imports(list(others)) == set()


def test_imports_of_the_other_folders_are_declared():
    files = [
        path
        for folder in ("tests", "benchmarks", "docs")
        for path in REPOSITORY.glob(f"{folder}/**/*.py")
    ]
    assert undeclared_imports(files, extra="dev") == set()


def project_files() -> list[Path]:
    """Files that git tracks, or would add."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        # Without this, git refuses to read a clone that belongs to another user.
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    ).stdout
    # Git still lists a file whose removal is not yet committed.
    return [path for name in listing.split("\0") if name and (path := REPOSITORY / name).is_file()]


BOUND_TO_A_MACHINE = re.compile(
    r"(?<![\w.}\])~-])/(?:work|root|home|opt|Users|mnt)/\w"  # absolute folders
    r"|pypi\.org|pythonhosted\.org|download\.pytorch\.org"  # package registries
    r"|(?:--find-links|--index-url|--extra-index-url)[ =]"
)


def test_no_file_names_a_folder_of_one_machine_or_a_registry():
    found = []
    for path in project_files():
        content = path.read_bytes()
        if path == Path(__file__).resolve() or b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), start=1):
            if BOUND_TO_A_MACHINE.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "bound"),
    [
        ("root: /home/someone/data", True),
        ('open("/opt/data/x")', True),
        ("--find-links /wheels", True),
        ("root: data/home/x", False),
        ("${data.root}/work/x", False),
        ("content/dataset/root/x", False),
    ],
)
def test_bound_to_a_machine_pattern(line: str, bound: bool):
    assert bool(BOUND_TO_A_MACHINE.search(line)) is bound


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist and the wheel built from it, by file suffix."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        check=True, cwd=source, capture_output=True,
    )  # fmt: skip
    return {path.suffix: path for path in (source / "dist").iterdir()}


#: Files that the build needs; only they are copied.
BUILT_FROM = (
    "LICENSE", "MANIFEST.in", "README.md", "conf", "evaluate.py", "genre_lightning",
    "hydra_plugins", "pyproject.toml", "setup.py", "train.py",
)  # fmt: skip


@pytest.mark.slow
def test_built_packages_are_complete_and_publishable(built: dict[str, Path]):
    assert set(built) == {".gz", ".whl"}
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
        folder = "genre_lightning/scripts"
        for path in [*REPOSITORY.glob("conf/**/*.yaml"), *map(REPOSITORY.joinpath, SCRIPTS)]:
            name = path.relative_to(REPOSITORY).as_posix()
            assert wheel.read(f"{folder}/{name}") == path.read_bytes()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "genre_lightning", "hydra_plugins",
    }  # fmt: skip
    # All files of the packages in a clone, except compiled ones.
    for folder in ("genre_lightning", "hydra_plugins"):
        for path in REPOSITORY.glob(f"{folder}/**/*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(REPOSITORY).as_posix() in names


SCRIPTS = ("train.py", "evaluate.py")


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a virtual environment in which the wheel is installed.

    Dependencies come from the environment of the tests. An editable installation of this package
    there is not found, since it relies on a .pth file that only its own environment reads.
    """
    environment = tmp_path_factory.mktemp("environment")
    # pip runs from the wheel bundled with Python, if any: installing pip takes three seconds.
    pip = next(Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"), None)
    options = [] if pip is None else ["--without-pip"]
    subprocess.run([sys.executable, "-m", "venv", *options, str(environment)], check=True)
    commands = environment / "bin"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (site_packages,) = subprocess.run(
        [str(commands / "python"), "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    Path(site_packages, "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [
            *(str(commands / "python"), "-m", "pip", "install", "--quiet"),
            *("--no-index", "--no-deps", "--ignore-installed", str(built[".whl"])),
        ],
        check=True,
        env=dict(os.environ) if pip is None else {**os.environ, "PYTHONPATH": str(pip)},
    )
    return commands


def run_installed(command: Path, *arguments: str, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(command), *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_installed_wheel_trains_and_evaluates_in_an_empty_folder(
    installed: Path, tiny_overrides: Callable[..., list[str]], tmp_path: Path
):
    shown = run_installed(installed / "genre-train", "--help", cwd=tmp_path)
    assert "model/branch: " in shown and "genre-train ckpt_path=last" in shown
    assert ".py" not in shown
    assert "split" in run_installed(installed / "genre-evaluate", "--help", cwd=tmp_path)
    branches = tmp_path / "own" / "model" / "branch"
    branches.mkdir(parents=True)
    branch = (REPOSITORY / "conf/model/branch/title_tfidf.yaml").read_text("utf-8")
    (branches / "mine.yaml").write_text(branch.replace("title_tfidf", "mine"), "utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    overrides = [text.replace("title_tfidf", "mine") for text in tiny_overrides(model="title")]
    run_installed(
        installed / "genre-train", "--config-dir", "../own", "model/branch=[mine]", *overrides,
        cwd=empty,
    )  # fmt: skip
    (run,) = empty.glob("runs/*/*")
    result = json.loads((run / "result.json").read_text("utf-8"))
    assert result["status"] == "completed" and result["test"]["num_movies"] == 24
    run_installed(
        installed / "genre-evaluate", f"ckpt_path={run}", "hydra.run.dir=scored", cwd=empty
    )
    assert json.loads((empty / "scored" / "metrics.json").read_text("utf-8")) == result["test"]


PLUGINS = """
import genre_lightning
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin
print(genre_lightning.__file__)
for plugin in Plugins.instance().discover(Plugin):
    print(plugin.__module__)
"""


@pytest.mark.slow
def test_hydra_finds_the_plugins_of_the_wheel(installed: Path, tmp_path: Path):
    file, *found = run_installed(installed / "python", "-c", PLUGINS, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    names = ("genre_lightning_optuna", "genre_lightning_ray")
    assert {f"hydra_plugins.{name}" for name in names} <= set(found)


def test_license_and_types_are_part_of_the_package():
    files = metadata.metadata(DISTRIBUTION)
    assert files["License-Expression"] == "MIT"
    assert (Path(genre_lightning.__file__).parent / "py.typed").is_file()
