"""Reading run folders that are running, damaged, or among other folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from genre_lightning.comparison.leaderboard import compare, write_leaderboard
from genre_lightning.comparison.reading import read_run
from genre_lightning.runs.lock import LOCK
from tests.comparison.written_runs import best_of, terminal_text, write_run


def test_a_run_can_be_read_while_it_is_running(tmp_path: Path):
    folder = write_run(tmp_path / "a", {}, [0.2, 0.1], status="interrupted")
    with (folder / "metrics.csv").open("a") as file:
        file.write("2,24,0.5,0.9")  # an incomplete row
    lock = folder / LOCK
    with FileLock(lock):
        (run,) = compare([folder]).runs
    assert (run.status, run.epochs, run.best_epoch) == ("running", 2, 1)
    assert run.value("val/map_macro") == 0.2 and run.notes == ()
    assert compare([folder]).runs[0].status == "interrupted"


DAMAGE: dict[str, tuple[str, bytes]] = {
    "invalid JSON": ("result.json", b'{"status": "comp'),
    "a JSON list": ("result.json", b"[1, 2]"),
    "invalid YAML": (".hydra/config.yaml", b"a: [1, 2"),
    "a YAML list": (".hydra/config.yaml", b"- 1"),
    "aliases": (".hydra/config.yaml", b"a: &a [1]\nb: [*a, *a]"),
    "binary overrides": (".hydra/overrides.yaml", b"\xff\xfe\x00"),
    "no choices": (".hydra/hydra.yaml", b"hydra: {}"),
    "deep YAML": (".hydra/config.yaml", b"{a: " * 3000 + b"1" + b"}" * 3000),
    "deep JSON": ("result.json", b"[" * 100_000),
    "row without an epoch": ("metrics.csv", b"epoch,val/map_macro\nx,0.5\n0,0.3\n"),
    "binary table": ("metrics.csv", b"\xff\xfe\x00\n"),
}


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_the_other_runs_are_shown(
    tmp_path: Path, name: str, content: bytes
):
    whole = write_run(tmp_path / "whole", {"optimizer.lr": 0.1})
    damaged = write_run(tmp_path / "damaged", {"optimizer.lr": 0.2})
    (damaged / name).write_bytes(content)
    comparison = compare([tmp_path])
    (note,) = [note for note in comparison.notes if str(damaged / name) in note]
    assert {run.folder for run in comparison.runs} == {whole, damaged}
    text = terminal_text(comparison)
    assert note in text or note.replace(" ", "") in text.replace("\n", "").replace(" ", "")
    assert best_of(whole) in [group.mean for group in comparison.groups]
    write_leaderboard(tmp_path, comparison)


def test_validations_within_epochs_are_points_of_the_curve(tmp_path: Path):
    folder = write_run(tmp_path / "run", {}, [], status=None)
    rows = ["0,4,,0.1", "0,8,1.5,0.2", "1,12,,0.4", "1,16,1.5,0.3", "2,20,,0.35"]
    text = "\n".join(["epoch,step,seconds,val/map_macro", *rows, ""])
    (folder / "metrics.csv").write_text(text, "utf-8")
    run = read_run(folder, "run")
    points = [(0.5, 0.1), (1, 0.2), (1.5, 0.4), (2, 0.3), (2.5, 0.35)]
    assert run is not None and run.curve("val/map_macro") == points
    assert run.epochs == 2 and run.best_epoch == 2


def test_only_run_folders_are_read(tmp_path: Path):
    run = write_run(tmp_path / "deep" / "er" / "run")
    for inner in ("wandb/x", "checkpoints", "csv/version_0"):
        (run / inner).mkdir(parents=True)
        shutil.copy(run / "metrics.csv", run / inner)
    evaluation = tmp_path / "evaluation" / ".hydra"
    evaluation.mkdir(parents=True)
    (evaluation / "config.yaml").write_text("ckpt_path: a.ckpt\nsplit: test\n")
    (evaluation / "overrides.yaml").write_text("- ckpt_path=a.ckpt\n")
    comparison = compare([tmp_path, run, tmp_path / "deep"])
    assert [each.folder for each in comparison.runs] == [run]
    assert read_run(evaluation.parent, "evaluation") is None


def test_references_to_other_settings_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_SECRET", "told")
    settings = {
        "model.recipe": {"lr": 0.25, "chain": "${optimizer.lr}"},
        "optimizer.lr": "${model.recipe.lr}",
        "model.lr": "${model.recipe.chain}",
        "data.folds": "${oc.select:model.recipe.folds,1}",
        "data.rows": "${oc.select:model.recipe.lr, 7}",
        "data.root": "${data.cache_dir}",
        "data.secret": "${oc.env:A_SECRET}",
        "data.part": "a/${optimizer.lr}",
        "data.circle": "${data.circle}",
        "data.none": "${data.nowhere}",
    }
    run = read_run(write_run(tmp_path / "run", settings), "run")
    assert run is not None
    resolved = {name: run.settings[name] for name in ("optimizer.lr", "model.lr", "data.rows")}
    assert set(resolved.values()) == {0.25} and run.settings["data.folds"] == 1
    # Left out: cache folders, the environment, references within text, cycles, missing keys.
    for name in ("root", "secret", "part", "circle", "none"):
        assert f"data.{name}" not in run.settings
    assert "told" not in str(run) and "${" not in str(run.settings)
