"""The output of a run: only lines of this package, and commands that work when pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Overrides = Callable[..., list[str]]

#: Regular expressions of all lines that may be printed.
OURS = (
    r"\s*(Dataset: demo|val: \d+ movies|test: \d+ movies)\s*",
    r"[┏┡├└│┃].*",
    r"Epoch \d+/10 +━+ \d+/\d+ 0:00:\d\d loss: \d\.\d+ val/map_macro: \d\.\d+ best: \d\.\d+\s*",
    r"Run: .* \(10 epochs, \d+ s\)",
    r"Best checkpoint, val/map_macro \d\.\d{4}: .*best\.ckpt.*",
    r"Next:",
    r"  \S.*",
    r"checkpoint: .*best\.ckpt.*",
    r"Written: .*report\.html.*, metrics\.json, per_genre\.csv and predictions\.csv",
)
#: A folder name with characters that are special to a shell and to Hydra.
FOLDER = "my runs/it's a=1,b"
#: Packages that training from scratch does not need and that take seconds to import.
UNUSED = ("transformers", "sentence_transformers", "timm", "torchvision", "sympy", "wandb")
#: sitecustomize.py, run when Python starts: at exit it lists the imported packages of UNUSED.
SITE = f"""
import atexit, pathlib, sys

@atexit.register
def tell():
    found = sorted(set({UNUSED!r}) & set(sys.modules))
    pathlib.Path(__file__).with_name("imported").write_text(" ".join(found))
"""


def run(command: str | list[str], cwd: Path) -> str:
    """Output of a command, standard error included; a string goes to a shell."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "COLUMNS": "80"}
    env.pop("HYDRA_FULL_ERROR", None)
    env["PYTHONPATH"] = str(cwd / "site")
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=cwd, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_run_prints_only_our_lines_and_commands_that_work(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    no_bar = ("callbacks.progress_bar=null", "++trainer.enable_progress_bar=false")
    overrides = [each for each in tiny_overrides() if each not in no_bar]
    frozen = "model.branches.title_tfidf.lr_scale=0"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    output = run(
        [sys.executable, str(repository / "train.py"), f"hydra.run.dir={FOLDER}", frozen,
         "logger=csv", *overrides, "trainer.max_epochs=10"],
        tmp_path,
    )  # fmt: skip
    assert (tmp_path / "site" / "imported").read_text() == ""
    lines = output.splitlines()
    assert [line for line in lines if not any(re.fullmatch(ours, line) for ours in OURS)] == []
    # The best score so far is never below the score of the epoch.
    scores = re.findall(r"val/map_macro: (\S+) best: (\S+)", output)
    assert len(scores) == 10 and all(best >= value for value, best in scores)
    assert (tmp_path / FOLDER / "checkpoints" / "best.ckpt").is_file()
    assert not (tmp_path / FOLDER / "train.log").exists()
    evaluate, predict, compare = lines[lines.index("Next:") + 1 :]
    evaluated = run(evaluate, tmp_path).splitlines()
    assert [line for line in evaluated if not any(re.fullmatch(ours, line) for ours in OURS)] == []
    assert run(predict, tmp_path).startswith("Heat (1995)\n")
    assert "val/map_macro" in run(compare, tmp_path)
