"""What OpenMP goes by in a command, without the seconds that PyTorch takes to be imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Runs a script up to where it asks for PyTorch, loads the OpenMP that comes with that, and ends.
UNTIL_PYTORCH = """
import ctypes, os, runpy, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            spec = PathFinder.find_spec(name, path, target)
            for library in Path(spec.origin).parent.glob("lib/libgomp*"):
                ctypes.CDLL(str(library))
                os._exit(0)
        return None  # it has none of its own: the script is run to its end

sys.meta_path.insert(0, Finder)
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def told_by_openmp(
    script: Path,
    overrides: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    whole: bool = False,
) -> str:
    """What it prints as it is loaded, with ``OMP_DISPLAY_ENV``, in a script that Python starts.

    Args:
        script: what is run.
        overrides: its arguments.
        cwd: its folder.
        env: its environment.
        whole: whether it is run to its end.
    """
    done = subprocess.run(
        [sys.executable, *(() if whole else ("-c", UNTIL_PYTORCH)), str(script), *overrides],
        cwd=cwd, env=dict(env), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr
