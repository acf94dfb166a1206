"""Overrides of the earlier run that a resumed run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.runs.earlier import add_earlier_overrides


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return written(Path("runs/2026/one"), ["model=title", "optimizer.lr=0.01", "+data.more=1"])


def written(
    folder: Path, overrides: list[str], own: str | None = None, cwd: Path | None = None
) -> Path:
    for name in ("checkpoints", ".hydra"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_text("")
    OmegaConf.save(OmegaConf.create(overrides), folder / ".hydra" / "overrides.yaml")
    sources = [{"path": "conf", "schema": "file", "provider": "main"}]
    if own is not None:
        sources.append({"path": own, "schema": "file", "provider": "command-line"})
    hydra = {"hydra": {"runtime": {"config_sources": sources, "cwd": cwd and str(cwd)}}}
    OmegaConf.save(OmegaConf.create(hydra), folder / ".hydra" / "hydra.yaml")
    return folder


@pytest.mark.parametrize("named", ["runs/2026/one", "runs/2026", "last", "'runs/2026/one'"])
def test_all_come_first(named: str, run: Path) -> None:
    assert add_earlier_overrides([f"ckpt_path={named}", "trainer.max_epochs=9"]) == [
        "model=title", "optimizer.lr=0.01", "+data.more=1",
        f"ckpt_path={named}", "trainer.max_epochs=9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("model=full", ["optimizer.lr=0.01", "+data.more=1"]),
        ("optimizer.lr=0.02", ["model=title", "+data.more=1"]),
        # What was added is there to be changed, or is added anew.
        ("data.more=2", ["model=title", "optimizer.lr=0.01", "+data.more=1"]),
        ("+data.more=2", ["model=title", "optimizer.lr=0.01"]),
    ],
)
def test_what_is_given_now_counts(given: str, kept: list[str], run: Path) -> None:
    last = f"ckpt_path={run}"
    assert add_earlier_overrides([given, last]) == [*kept, given, last]
    assert add_earlier_overrides([last, given]) == [*kept, last, given]
    option = ["--config-dir", "own"]
    assert add_earlier_overrides([*option, given, last]) == [*option, *kept, given, last]


def test_paths_are_those_of_the_folder_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = tmp_path / "where it began"
    paths = ["data.path='my movies.csv'", "+data.columns=gone.csv", 'data.root="~"', "seed=3"]
    run = written(began / "run", paths, cwd=began)
    (began / "my movies.csv").write_text("")
    (began / "3").write_text("")
    last = f"ckpt_path={run}"
    monkeypatch.chdir(began)
    assert add_earlier_overrides([last]) == [*paths, last]
    monkeypatch.chdir(tmp_path)
    assert add_earlier_overrides([last]) == [
        f"data.path={began}/my movies.csv", "+data.columns=gone.csv",
        f"data.root={Path.home()}", "seed=3", last,
    ]  # fmt: skip


def test_what_made_it_a_job_is_left_behind(tmp_path: Path) -> None:
    job = written(
        tmp_path / "job",
        ["sweep=lr_dropout", "sweep.name=s", "hydra.launcher.n_jobs=2", "hydra/launcher=joblib",
         "ckpt_path=other.ckpt", "seed=3"],
    )  # fmt: skip
    assert add_earlier_overrides([f"ckpt_path={job}"]) == ["seed=3", f"ckpt_path={job}"]


def test_the_folder_of_options_too(tmp_path: Path) -> None:
    run = written(tmp_path / "run", ["seed=3"], own="own")
    last = f"ckpt_path={run}"
    assert add_earlier_overrides([last]) == ["--config-dir", "own", "seed=3", last]
    given = ["--config-dir", "other", last]
    assert add_earlier_overrides(given) == ["--config-dir", "other", "seed=3", last]


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
def test_nothing_is_taken_over(arguments: list[str], run: Path) -> None:
    assert add_earlier_overrides(arguments) == arguments


def test_last_in_a_folder_of_its_own(run: Path) -> None:
    given = ["ckpt_path=last", f"hydra.run.dir={run}"]
    assert add_earlier_overrides(given)[0] == "model=title"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["callbacks.x._target_=os.system"], "names code to run"), (["=="], "can't be read")],
)
def test_what_is_not_taken_over(overrides: list[str], message: str, tmp_path: Path) -> None:
    run = written(tmp_path / "run", overrides)
    with pytest.raises(UserError, match=message):
        add_earlier_overrides([f"ckpt_path={run}"])
