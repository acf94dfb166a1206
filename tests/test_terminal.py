"""What a run prints: lines of ours and no others, and commands that work when they are pasted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Overrides = Callable[..., list[str]]

#: Every line that may be there, as regular expressions.
OURS = (
    r"\s*(Dataset: demo|val: \d+ movies|test: \d+ movies)\s*",
    r"[┏┡├└│┃].*",
    r"Epoch [01]/1 +━+ \d+/\d+ 0:00:\d\d loss: \d\.\d+ val/map_macro: \d\.\d+ best: \d\.\d+\s*",
    r"Run: .* \(2 epochs, \d+ s\)",
    r"Best checkpoint, val/map_macro \d\.\d{4}: .*best\.ckpt.*",
    r"Next:",
    r"  \S.*",
    r"written to .*",
)
#: A folder whose name means something to a shell and to Hydra.
FOLDER = "my runs/it's a=1,b"
#: What a training from scratch has no use for, and what takes seconds to import.
UNUSED = ("transformers", "sentence_transformers", "timm", "torchvision", "sympy", "wandb")
#: Python runs it as it starts: it tells which of them were imported, at the end.
SITE = f"""
import atexit, pathlib, sys

@atexit.register
def tell():
    found = sorted(set({UNUSED!r}) & set(sys.modules))
    pathlib.Path(__file__).with_name("imported").write_text(" ".join(found))
"""


def run(command: str | list[str], cwd: Path) -> str:
    """Both outputs of a command, of which the first is what a shell was given."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "COLUMNS": "120"}
    env.pop("HYDRA_FULL_ERROR", None)
    env["PYTHONPATH"] = str(cwd / "site")
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=cwd, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_a_run_prints_our_lines_and_commands_that_work(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    shown = ("callbacks.progress_bar=null", "++trainer.enable_progress_bar=false")
    overrides = [one for one in tiny_overrides() if one not in shown]
    frozen = "model.branches.title_tfidf.lr_scale=0"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    output = run(
        [sys.executable, str(repository / "train.py"), f"hydra.run.dir={FOLDER}", frozen,
         "logger=csv", *overrides],
        tmp_path,
    )  # fmt: skip
    assert (tmp_path / "site" / "imported").read_text() == ""
    lines = output.splitlines()
    assert [one for one in lines if not any(re.fullmatch(ours, one) for ours in OURS)] == []
    # The best so far is never worse than that of an epoch.
    scores = re.findall(r"val/map_macro: (\S+) best: (\S+)", output)
    assert len(scores) == 2 and all(best >= value for value, best in scores)
    assert (tmp_path / FOLDER / "checkpoints" / "best.ckpt").is_file()
    assert not (tmp_path / FOLDER / "train.log").exists()
    evaluate, predict, compare = lines[lines.index("Next:") + 1 :]
    evaluated = run(evaluate, tmp_path).splitlines()
    assert [one for one in evaluated if not any(re.fullmatch(ours, one) for ours in OURS)] == []
    assert run(predict, tmp_path).startswith("Heat (1995)\n")
    assert "val/map_macro" in run(compare, tmp_path)
