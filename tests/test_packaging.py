"""The package as others meet it: light to import, its needs declared, bound to no machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
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


def test_every_public_name_can_be_had():
    for name in genre_lightning.__all__:
        assert getattr(genre_lightning, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'GenrePredicter'"):
        genre_lightning.GenrePredicter  # noqa: B018
    assert "GenrePredictor" in dir(genre_lightning)


def test_installed_version_is_the_one_in_the_source():
    assert metadata.version(DISTRIBUTION) == genre_lightning.__version__


def declared(extra: str | None = None) -> set[str]:
    """The distributions that the package asks for, and those that an extra adds."""
    environment = {"extra": extra or ""}
    return {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or [])
        if requirement.marker is None or requirement.marker.evaluate(environment)
    }


# Where the import's name is not the distribution's.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "iterstrat": "iterative-stratification",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def undeclared_imports(files: list[Path], extra: str | None = None) -> set[str]:
    """The distributions behind all absolute imports, less ours and those that are declared."""
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


# Files that import what an extra brings, and the extra.
WITH_EXTRA = {
    "genre_lightning/models/poster_encoder.py": "pretrained",
    "genre_lightning/predicting/export.py": "export",
    "genre_lightning/sweeps/study.py": "optuna",
    "genre_lightning/training/callbacks/pruning.py": "optuna",
    "genre_lightning/webapp/*.py": "demo",
    "hydra_plugins/genre_lightning_ray.py": "ray",
}


def test_what_the_package_imports_is_declared():
    others = {
        *REPOSITORY.glob("genre_lightning/**/*.py"),
        *REPOSITORY.glob("hydra_plugins/*.py"),
        *REPOSITORY.glob("*.py"),
    }
    for pattern, extra in WITH_EXTRA.items():
        files = set(REPOSITORY.glob(pattern))
        assert files, f"there is no {pattern}"
        assert undeclared_imports(list(files), extra) == set(), pattern
        others -= files
    assert undeclared_imports(list(others)) == set()


def test_what_the_other_folders_import_is_declared():
    files = [
        path
        for folder in ("tests", "benchmarks", "docs")
        for path in REPOSITORY.glob(f"{folder}/**/*.py")
    ]
    assert undeclared_imports(files, extra="dev") == set()


def project_files() -> list[Path]:
    """The files under version control, and those about to be."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        # A clone that belongs to another user is read all the same.
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    ).stdout
    # A file that was removed and not yet committed is still listed.
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
def test_the_rule_on_machines_finds_what_it_should(line: str, bound: bool):
    assert bool(BOUND_TO_A_MACHINE.search(line)) is bound


def test_license_and_types_are_part_of_the_package():
    files = metadata.metadata(DISTRIBUTION)
    assert files["License-Expression"] == "MIT"
    assert (Path(genre_lightning.__file__).parent / "py.typed").is_file()
