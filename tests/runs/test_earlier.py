"""Overrides that a resumed run takes over from its earlier command."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.runs.earlier import add_earlier_overrides


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(Path("runs/2026/one"), ["model=title", "optimizer.lr=0.01", "+data.more=1"])


def write_run(
    folder: Path, overrides: list[str], config_dir: str | None = None, cwd: Path | None = None
) -> Path:
    for name in ("checkpoints", ".hydra"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_text("")
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    sources = [{"path": "conf", "schema": "file", "provider": "main"}]
    if config_dir is not None:
        sources.append({"path": config_dir, "schema": "file", "provider": "command-line"})
    hydra = {"hydra": {"runtime": {"config_sources": sources, "cwd": cwd and str(cwd)}}}
    OmegaConf.save(OmegaConf.create(hydra), folder / ".hydra" / "hydra.yaml")
    return folder


@pytest.mark.parametrize("named", ["runs/2026/one", "runs/2026", "last", "'runs/2026/one'"])
def test_earlier_overrides_come_first(named: str, run: Path) -> None:
    assert add_earlier_overrides([f"ckpt_path={named}", "trainer.max_epochs=9"]) == [
        "model=title", "optimizer.lr=0.01", "+data.more=1",
        f"ckpt_path={named}", "trainer.max_epochs=9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("model=full", ["optimizer.lr=0.01", "+data.more=1"]),
        ("optimizer.lr=0.02", ["model=title", "+data.more=1"]),
        # A key that the earlier command added can be changed, or be added again.
        ("data.more=2", ["model=title", "optimizer.lr=0.01", "+data.more=1"]),
        ("+data.more=2", ["model=title", "optimizer.lr=0.01"]),
    ],
)
def test_new_overrides_replace_earlier_ones(override: str, kept: list[str], run: Path) -> None:
    last = f"ckpt_path={run}"
    assert add_earlier_overrides([override, last]) == [*kept, override, last]
    assert add_earlier_overrides([last, override]) == [*kept, last, override]
    option = ["--config-dir", "own"]
    assert add_earlier_overrides([*option, override, last]) == [*option, *kept, override, last]


def test_paths_are_relative_to_the_folder_of_the_earlier_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_cwd = tmp_path / "first folder"
    paths = ["data.path='my movies.csv'", "+data.columns=gone.csv", 'data.root="~"', "seed=3"]
    run = write_run(first_cwd / "run", paths, cwd=first_cwd)
    (first_cwd / "my movies.csv").write_text("")
    (first_cwd / "3").write_text("")
    last = f"ckpt_path={run}"
    monkeypatch.chdir(first_cwd)
    assert add_earlier_overrides([last]) == [*paths, last]
    monkeypatch.chdir(tmp_path)
    assert add_earlier_overrides([last]) == [
        f"data.path={first_cwd}/my movies.csv", "+data.columns=gone.csv",
        f"data.root={Path.home()}", "seed=3", last,
    ]  # fmt: skip


def test_overrides_of_the_sweep_are_dropped(tmp_path: Path) -> None:
    job = write_run(
        tmp_path / "job",
        ["sweep=lr_dropout", "sweep.name=s", "hydra.launcher.n_jobs=2", "hydra/launcher=joblib",
         "ckpt_path=other.ckpt", "seed=3"],
    )  # fmt: skip
    assert add_earlier_overrides([f"ckpt_path={job}"]) == ["seed=3", f"ckpt_path={job}"]


def test_config_dir_is_taken_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["seed=3"], config_dir="own")
    last = f"ckpt_path={run}"
    assert add_earlier_overrides([last]) == ["--config-dir", "own", "seed=3", last]
    arguments = ["--config-dir", "other", last]
    assert add_earlier_overrides(arguments) == ["--config-dir", "other", "seed=3", last]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["optimizer.lr=1"],
        ["ckpt_path=null"],
        ["ckpt_path=runs/2026/one/checkpoints/last.ckpt"],
        ["ckpt_path=not/there"],
        ["-m", "ckpt_path=runs/2026/one", "seed=1,2"],
        ["ckpt_path=last", "hydra.run.dir=elsewhere"],
    ],
    ids=" ".join,
)
def test_other_commands_are_unchanged(arguments: list[str], run: Path) -> None:
    assert add_earlier_overrides(arguments) == arguments


def test_last_is_looked_for_in_the_run_folder(run: Path) -> None:
    arguments = ["ckpt_path=last", f"hydra.run.dir={run}"]
    assert add_earlier_overrides(arguments)[0] == "model=title"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+callbacks.x._target_=os.system", "+callbacks.x.y=1"],
            "overrides.yaml names code .* give this again: [+]callbacks.x._target_=os.system$",
        ),
        (["=="], "can't be read"),
    ],
)
def test_bad_overrides_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", overrides)
    with pytest.raises(UserError, match=message):
        add_earlier_overrides([f"ckpt_path={run}"])


def test_code_that_is_named_again_is_accepted(tmp_path: Path) -> None:
    code = "+callbacks.x={_target_:mine.X,y:2}"
    run = write_run(tmp_path / "run", [code, "seed=3"])
    assert add_earlier_overrides([f"ckpt_path={run}", code]) == ["seed=3", f"ckpt_path={run}", code]
