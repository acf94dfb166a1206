"""sweep=optuna: search spaces, sampling, pruning, and studies continued after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from genre_lightning.errors import UserError
from genre_lightning.runs.result import write_result
from genre_lightning.sweeps.study import FILE, NAME, Trials, count_trials, distribution, storage
from genre_lightning.training.callbacks.pruning import Pruning
from tests.forking import Command, run_command

Overrides = Callable[..., list[str]]
LR = {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}


def trials(folder: Path, space: Any = LR, command: str = "a", **more: Any) -> Trials:
    options: dict[str, Any] = {"maximize": True, "startup_trials": 3, "seed": 0, **more}
    return Trials(folder, command, space, **options)


def completed(value: float, pruned: bool = False) -> dict[str, Any]:
    return {"status": "completed", "monitor_value": value, "pruned": pruned}


def read_trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=NAME, storage=storage(folder)).trials


# Search spaces and sampling.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=int(interval(8,64))", IntDistribution(8, 64)),
        ("a=int(tag(log,interval(8,64)))", IntDistribution(8, 64, log=True)),
        ("a=choice(8,16)", CategoricalDistribution(("8", "16"))),
        ("a=x,y", CategoricalDistribution(("x", "y"))),
        ("a=range(1,4)", CategoricalDistribution(("1", "2", "3"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hydra_sweeps_become_distributions(text: str, expected: BaseDistribution) -> None:
    (override,) = OverridesParser.create().parse_overrides([text])
    assert distribution(override) == expected


@pytest.mark.parametrize("text", ["a=interval(2,1)", "a=tag(log,interval(0,1))"])
def test_an_invalid_range_is_refused(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([text])
    with pytest.raises(UserError, match=text[:10].replace("(", r"\(")):
        distribution(override)


def test_a_recreated_study_file_gets_its_tables(tmp_path: Path) -> None:
    for _ in range(2):
        for _ in range(2):
            trials(tmp_path)
            assert read_trials(tmp_path) == []
        (tmp_path / FILE).rename(tmp_path / "another")


def test_a_study_of_another_optuna_version_is_refused(tmp_path: Path) -> None:
    for name in ("known", "other"):
        (tmp_path / name).mkdir()
        trials(tmp_path / name)
    shutil.copy(tmp_path / "other" / FILE, tmp_path / "known" / "new")
    with sqlite3.connect(tmp_path / "known" / "new") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99'")
    connection.close()
    (tmp_path / "known" / "new").replace(tmp_path / "known" / FILE)
    with pytest.raises(UserError, match=r"known.study\.db: .*no longer compatible"):
        storage(tmp_path / "known")


def test_sampled_numbers_are_rounded_and_in_range(tmp_path: Path) -> None:
    space = {"x": FloatDistribution(0.123456, 0.123459), "y": FloatDistribution(1e-5, 1, log=True)}
    study = trials(tmp_path, space)
    for number in range(6):
        assert study.ask(6)
        study.tell(number, completed(number))
    for trial in study.finished():
        assert 0.123456 <= trial.params["x"] <= 0.123459
        assert trial.params["y"] == float(f"{trial.params['y']:.4g}")
    assert len({trial.params["y"] for trial in study.finished()}) == 6


# Continued studies.


def test_an_interrupted_study_samples_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    def value(trial: optuna.trial.FrozenTrial) -> float:
        return -abs(trial.params["optimizer.lr"] - 0.003)

    drawn = []
    for name, parts in (("uninterrupted", [8]), ("interrupted", [2, 5, 8])):
        (tmp_path / name).mkdir()
        for total in parts:
            study = trials(tmp_path / name)
            while study.ask(total):
                (trial,) = study.unfinished()
                study.tell(trial.number, completed(value(trial)))
        drawn.append([trial.params for trial in read_trials(tmp_path / name)])
    assert len(drawn[0]) == 8 and drawn[0] == drawn[1]


@pytest.mark.slow
def test_failed_trials_are_repeated_and_interrupted_ones_continued(tmp_path: Path) -> None:
    study = trials(tmp_path)
    while study.ask(4):
        pass
    assert study.tell(0, completed(0.5)) and study.tell(1, {"status": "failed"})
    assert not study.tell(2, {"status": "interrupted"}) and not study.tell(3, {})
    assert [trial.number for trial in study.unfinished()] == [2, 3]
    failed = read_trials(tmp_path)[1].params

    # The unfinished trials are still there; the failed one is repeated as a new trial.
    study = trials(tmp_path)
    assert [trial.number for trial in study.unfinished()] == [2, 3]
    assert study.ask(4) and not study.ask(4)
    assert study.unfinished()[-1].params == failed
    assert study.tell(4, {"status": "failed"}) and not study.ask(4)
    assert trials(tmp_path).ask(4)
    assert [trial.params for trial in trials(tmp_path).unfinished()].count(failed) == 1


def test_a_failed_trial_outside_a_narrowed_range_is_replaced(tmp_path: Path) -> None:
    study = trials(tmp_path)
    while study.ask(4):
        pass
    for trial in study.unfinished():
        study.tell(trial.number, {"status": "failed"})
    drawn = sorted(trial.params["optimizer.lr"] for trial in read_trials(tmp_path))
    narrowed = {"optimizer.lr": FloatDistribution(1e-4, drawn[1], log=True)}
    study = trials(tmp_path, narrowed)
    while study.ask(4):
        pass
    again = [trial.params["optimizer.lr"] for trial in study.unfinished()]
    assert len(again) == 4 and set(drawn[:2]) < set(again) and max(again) <= drawn[1]


def test_a_trial_killed_before_its_values_were_drawn_is_replaced(tmp_path: Path) -> None:
    trials(tmp_path).study.ask()  # no values drawn yet
    study = trials(tmp_path)
    assert study.unfinished() == [] and study.ask(1) and not study.ask(1)
    assert set(study.unfinished()[0].params) == set(LR)


OTHER_KIND = {"optimizer.lr": CategoricalDistribution(("1",))}


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [("b", LR, r"study of a, not of b.*sweep\.name"), ("a", OTHER_KIND, r"optimizer\.lr.*kind")],
    ids=["other-settings", "other-kind-of-space"],
)
def test_a_study_of_other_settings_or_spaces_is_refused(
    name: str, space: Any, message: str, tmp_path: Path
) -> None:
    assert count_trials(tmp_path, "a", LR) == 0
    study = trials(tmp_path)
    study.ask(2)
    study.tell(0, completed(0.5))
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(UserError, match=message):
        count_trials(tmp_path, name, space)
    assert (tmp_path / FILE).read_bytes() == before
    wider = {"optimizer.lr": FloatDistribution(1e-5, 1, log=True)}
    assert count_trials(tmp_path, "a", wider) == 1


# Pruning.


class FakeStrategy:
    def broadcast(self, value: bool) -> bool:
        return value


class FakeTrainer:
    """The part of a trainer that the callback uses."""

    max_epochs = 10
    is_global_zero = True
    strategy = FakeStrategy()

    def __init__(self, epoch: int, value: float) -> None:
        self.current_epoch = epoch
        self.callback_metrics = {"val/x": value}
        self.should_stop = False


def report(folder: Path, trial: int, values: list[float], begin: int = 0) -> Pruning:
    callback = Pruning(folder, trial, "val/x", startup_trials=2, warmup_epochs=1)
    for epoch, value in enumerate(values, begin):
        trainer: Any = FakeTrainer(epoch, value)
        callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    return callback


def test_a_trial_below_the_median_is_pruned(tmp_path: Path) -> None:
    study = trials(tmp_path)
    for number, values in enumerate(([0.1, 0.2, 0.3], [0.3, 0.4, 0.5], [0.0, 0.0, 0.0])):
        study.ask(9)
        pruned = report(tmp_path, number, values).pruned
        assert study.tell(number, completed(max(values), pruned))
    states = [trial.state for trial in read_trials(tmp_path)]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    # No trial is pruned in the one warm-up epoch.
    assert read_trials(tmp_path)[2].intermediate_values == {0: 0.0, 1: 0.0}
    study.ask(9)
    assert not report(tmp_path, 3, [0.0, 0.9, 0.9]).pruned


def test_an_epoch_is_reported_once(tmp_path: Path) -> None:
    trials(tmp_path).ask(1)
    report(tmp_path, 0, [0.1, 0.2])
    report(tmp_path, 0, [0.7, 0.3], begin=1)
    assert read_trials(tmp_path)[0].intermediate_values == {0: 0.1, 1: 0.2, 2: 0.3}


def test_the_last_epoch_prunes_nothing(tmp_path: Path) -> None:
    study = trials(tmp_path)
    for number, value in enumerate((0.5, 0.6, 0.0)):
        study.ask(9)
        assert not report(tmp_path, number, [value], begin=9).pruned
        study.tell(number, completed(value))


# As a user runs it.


@pytest.fixture
def command(repository: Path, tiny_overrides: Overrides, tmp_path: Path) -> list[str]:
    tiny = tiny_overrides("callbacks.early_stopping=null", model="title")
    return [
        *(str(repository / "train.py"), "sweep=optuna", *tiny),
        *("sweep.name=study", "sweep.startup_trials=2", "sweep.warmup_epochs=0"),
        f"hydra.sweep.dir={tmp_path}/study",
    ]


def results(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*/result.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]


def _is_pruned(result: Path) -> bool:
    return bool(json.loads(result.read_text("utf-8"))["pruned"])


@pytest.mark.slow
def test_a_killed_study_is_continued(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    # Low learning rates learn nothing, so some trials are pruned.
    space = ["optimizer.lr=tag(log,interval(1e-6,3e-2))", "trainer.max_epochs=5"]
    slow = "++callbacks.slow._target_=tests.running.SlowEpochs"
    command = [*command, *space, slow, "sweep.n_trials=6"]
    process = Command(command, tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while sum(result["status"] == "completed" for result in results(folder)) < 2 or not any(
            result["status"] == "interrupted" for result in results(folder)
        ):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    done = {
        path: time
        for path, time in before.items()
        if json.loads(path.read_text("utf-8"))["status"] == "completed"
    }
    assert 2 <= len(done) < 6 and len(before) <= len(read_trials(folder)) < 6

    process = run_command(command, tmp_path, timeout=500)
    assert process.returncode == 0, process.stderr
    assert f"{len(done)} already finished" in process.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert set(before) <= set(folder.glob("*/result.json"))
    stored = results(folder)
    assert Counter(result["status"] for result in stored) == {"completed": 6}
    stored_trials = read_trials(folder)
    assert len(stored_trials) == 6
    # The study agrees with the results of the runs.
    for trial in stored_trials:
        drawn = {f"{key}={value}" for key, value in trial.params.items()}
        (result,) = (result for result in stored if drawn <= set(result["overrides"]))
        assert result["pruned"] == (trial.state == TrialState.PRUNED)
        assert result["epochs"] == len(trial.intermediate_values)
        assert (result["epochs"] < 5) == result["pruned"]
        if not result["pruned"]:
            assert trial.value == result["monitor_value"]
    assert (folder / "leaderboard.csv").is_file()
    # Resumed by itself, a pruned run trains to its end.
    pruned = next(path.parent for path in folder.glob("*/result.json") if _is_pruned(path))
    process = run_command([command[0], f"ckpt_path={pruned}", slow], tmp_path, timeout=100)
    assert process.returncode == 0, process.stderr
    result = json.loads((pruned / "result.json").read_text("utf-8"))
    assert result["epochs"] == 5 and not result["pruned"]


@pytest.mark.slow
def test_a_study_whose_file_of_settings_has_changed_is_refused(
    command: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    command = [*command, "experiment=mine", "--config-dir", str(tmp_path / "mine")]

    def run(loss: float, n_trials: int) -> Command:
        file.write_text(f"# @package _global_\ntraining:\n  branch_loss: {loss}\n")
        return run_command([*command, f"sweep.n_trials={n_trials}"], tmp_path, timeout=200)

    assert run(0.25, 1).returncode == 0
    before = results(tmp_path / "study")
    refused = run(0.75, 2)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "settings than the command now has: training.branch_loss (0.25 there, 0.75" in (
        refused.stderr
    )
    assert results(tmp_path / "study") == before and len(read_trials(tmp_path / "study")) == 1
    continued = run(0.25, 2)
    assert continued.returncode == 0 and "1 already finished, 1 completed" in continued.stdout


@pytest.mark.slow
def test_a_trial_with_the_values_of_an_earlier_one_takes_its_score(
    command: list[str], tmp_path: Path
) -> None:
    space = ["optimizer.lr=choice(1e-2)", "model.dropout=0.3", "optimizer.weight_decay=0.1"]
    process = run_command([*command, *space, "sweep.n_trials=3"], tmp_path, timeout=500)
    assert process.returncode == 0, process.stderr
    assert "1 completed, 2 already finished" in process.stdout
    (result,) = results(tmp_path / "study")
    values = [trial.value for trial in read_trials(tmp_path / "study")]
    assert values == [result["monitor_value"]] * 3
    # As if the job had been trained for longer by its own folder.
    (folder,) = (file.parent for file in (tmp_path / "study").glob("*/result.json"))
    result["overrides"].append("trainer.max_epochs=9")
    write_result(folder, {**result, "monitor_value": 0.987})
    process = run_command([*command, *space, "sweep.n_trials=3"], tmp_path)
    assert process.stdout.count("with trainer.max_epochs=9  val/map_macro 0.9870\n") == 3

    def contents() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "study").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    # A study that can't be continued is refused before anything is printed or written.
    before = contents()
    refused = run_command([*command, "optimizer.lr=interval(1,2)", *space[1:]], tmp_path)
    assert refused.returncode == 1 and "have drawn optimizer.lr from another" in refused.stderr
    assert refused.stdout == "" and contents() == before
    # If sweep.n_trials is less than the number of trials, all of them are counted.
    process = run_command([*command, *space, "sweep.n_trials=1"], tmp_path)
    assert process.returncode == 0 and "Sweep study: 3 jobs" in process.stdout
    assert [f"[{number}/3]" in process.stdout for number in (1, 2, 3)] == [True] * 3


@pytest.mark.slow
def test_one_of_two_parallel_trials_fails(command: list[str], tmp_path: Path) -> None:
    command = [
        *command, "sweep.n_trials=2", "sweep.seed=1",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "optimizer.lr=choice(1e30,1e-2)", "model.dropout=0.3",
    ]  # fmt: skip
    process = run_command(command, tmp_path, timeout=500)
    assert process.returncode == 1
    states = {trial.state for trial in read_trials(tmp_path / "study")}
    assert states == {TrialState.COMPLETE, TrialState.FAIL}
    assert "not finite in epoch 1" in process.stdout
    for trial in read_trials(tmp_path / "study"):
        assert set(trial.params) == {"optimizer.lr", "optimizer.weight_decay"}


def test_without_optuna_the_error_says_what_to_install(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text('raise ModuleNotFoundError("none", name="optuna")')
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(repository)))}
    process = subprocess.run(
        [sys.executable, str(repository / "train.py"), "sweep=optuna"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 1
    assert 'pip install "genre-lightning[optuna]"' in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "runs").exists()


def test_the_ready_made_study(repository: Path) -> None:
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("train", ["sweep=optuna", "sweep.n_trials=7"], return_hydra_config=True)
    sweeper = cfg.hydra.sweeper
    assert sweeper.n_trials == 7 and sweeper.mode == "max" and sweeper.parallel == 1
    assert set(sweeper.params) == {"optimizer.lr", "model.dropout", "optimizer.weight_decay"}
    assert FILE == "study.db"
