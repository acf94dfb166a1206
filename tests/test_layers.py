"""The layers in pyproject.toml, which ``make lint`` checks, catch imports that violate them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(command), "--no-logo", "--no-cache"], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def clean_output(repository: Path) -> str:
    """Output of lint-imports for the unchanged package."""
    return lint_imports(repository).stdout


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"movies/bad.py": "def f():\n    import genre_lightning.models.fusion\n"},
            "genre_lightning.movies.bad -> genre_lightning.models.fusion (l.2)",
        ),
        (
            {"data/bad.py": "from genre_lightning.checkpoint import model\n"},
            "genre_lightning.data.bad -> genre_lightning.checkpoint.model (l.1)",
        ),
        ({"newcomer/__init__.py": ""}, "- genre_lightning.newcomer"),
        ({"runs/bad.py": "import train\n"}, "genre_lightning.runs.bad -> train (l.1)"),
        (
            {
                "runs/one.py": "import genre_lightning.runs.two\n",
                "runs/two.py": "import genre_lightning.runs.one\n",
            },
            "No modules of a folder import each other in a circle BROKEN",
        ),
    ],
    ids=["upwards", "sideways", "unlisted folder", "script", "circle"],
)
def test_violation_is_found(
    files: dict[str, str], message: str, clean_output: str, repository: Path, tmp_path: Path
) -> None:
    shutil.copy(repository / "pyproject.toml", tmp_path)
    shutil.copytree(
        repository / "genre_lightning",
        tmp_path / "genre_lightning",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    assert message not in clean_output
    for name, text in files.items():
        path = tmp_path / "genre_lightning" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    found = lint_imports(tmp_path)
    assert found.returncode == 1 and message in found.stdout, found.stdout + found.stderr
