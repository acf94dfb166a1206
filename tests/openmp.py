"""OpenMP's settings in a command, without the seconds that importing PyTorch takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Runs a script until it imports PyTorch, loads only the OpenMP library of PyTorch, and exits.
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
        return None  # PyTorch brings no OpenMP: run the script to its end

sys.meta_path.insert(0, Finder)
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def openmp_output(
    script: Path,
    overrides: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    whole: bool = False,
) -> str:
    """What OpenMP prints when a script loads it, with ``OMP_DISPLAY_ENV`` set.

    Args:
        script: the script.
        overrides: arguments of the script.
        cwd: working directory.
        env: environment.
        whole: whether the script runs to its end; otherwise it exits once OpenMP is loaded.
    """
    done = subprocess.run(
        [sys.executable, *(() if whole else ("-c", UNTIL_PYTORCH)), str(script), *overrides],
        cwd=cwd, env=dict(env), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr
