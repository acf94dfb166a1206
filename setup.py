"""Builds the package with train.py, evaluate.py and conf/ in it; all else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithScripts(build_py):
    """Copies what lies at the top into ``genre_lightning/scripts``, where it is imported from.

    An editable installation imports it from the top.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        place = Path(self.build_lib, "genre_lightning", "scripts")
        for script in ("train.py", "evaluate.py"):
            self.copy_file(script, str(place / script))
        for option in sorted(Path("conf").rglob("*.yaml")):
            (place / option).parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(option), str(place / option))


setup(cmdclass={"build_py": BuildWithScripts})
