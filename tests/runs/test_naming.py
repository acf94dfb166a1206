"""Names of the folders of sweeps and their jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genre_lightning.runs.naming import (
    MAX_NAME_BYTES,
    changed_settings,
    folder_name,
    job_folder,
    sweep_name,
)

NO_PARAMS: dict[str, Any] = {"params": None}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model.dropout=0.1,optimizer.lr=1e-05", "model.dropout=0.1,optimizer.lr=1e-05"),
        ("model.poster.widths=[4,8]", "model.poster.widths=[4,8]"),
        ("", "defaults"),
    ],
)
def test_simple_text_is_its_own_name(text: str, name: str) -> None:
    assert folder_name(text) == name


@given(st.lists(st.text("ab/-~é:. $", max_size=MAX_NAME_BYTES * 2), unique=True, max_size=5))
def test_different_texts_have_different_names(texts: list[str]) -> None:
    names = {folder_name(text) for text in texts}
    assert len(names) == len(texts)
    for name in names:
        assert 0 < len(name.encode()) <= MAX_NAME_BYTES and name.isprintable()
        assert not set(name) & set("/\\:*?\"'<>|$ ")


@pytest.mark.parametrize(
    "other",
    [
        ["optimizer.lr=1,2,3,4", "model.dropout=0.1,0.2"],
        ["model.dropout=choice(0.1,0.9)", "optimizer.lr=range(1,4)"],
        ["logger=csv", "optimizer.lr=1,2", "sweep.fail_fast=true", "model.dropout=0.1,0.2"],
        ["optimizer.lr=1,2", "model.dropout=0.1,0.2", "data.cache_dir=/elsewhere", "ckpt_path=x"],
    ],
    ids=["values", "kinds of values", "logger and order", "paths"],
)
def test_same_sweep_gets_the_same_name(other: list[str]) -> None:
    first = sweep_name(None, ["optimizer.lr=1,2", "model.dropout=0.1,0.2"], NO_PARAMS)
    assert first == "model.dropout,optimizer.lr"
    assert sweep_name(None, other, NO_PARAMS) == first


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optimizer.lr=1,2", "seed=1"], "optimizer.lr,seed=1"),
        (["optimizer.lr=1,2", "+seed=1"], "optimizer.lr,seed=1"),
        (["optimizer.lr=1,2", "trainer.max_epochs=1e1"], "optimizer.lr,trainer.max_epochs=10.0"),
        (["~callbacks.early_stopping", "seed=1,2"], "seed,-callbacks.early_stopping=~6d5f2b"),
        (["seed=1"], "seed=1"),
        (["model/branch=[title_tfidf],[poster_resnet]"], "branch"),
        (["model/branch=[title_tfidf]", "seed=1,2"], "branch=[title_tfidf],seed"),
        ([], "defaults"),
        (["sweep=lr_dropout"], "lr_dropout"),
        (["sweep=lr_dropout", "optimizer.lr=1,2,3"], "lr_dropout"),
        (["sweep=lr_dropout", "optimizer.lr=1"], "lr_dropout,optimizer.lr=1"),
        (["sweep=lr_dropout", "seed=1,2", "data=ml1m"], "lr_dropout,data=ml1m,seed"),
    ],
)
def test_name_of_a_sweep(overrides: list[str], name: str) -> None:
    params = {"optimizer.lr": "1,2", "model.dropout": "0.1,0.2"}
    sweeper = {"params": params} if "sweep=lr_dropout" in overrides else NO_PARAMS
    actual = sweep_name(None, overrides, sweeper)
    assert actual == name or ("~" in name and actual.startswith(name.partition("~")[0]))


def test_name_has_the_end_of_a_path() -> None:
    one = sweep_name(None, ["data.path=a/b.csv", "seed=1,2"], NO_PARAMS)
    two = sweep_name(None, ["data.path=c/b.csv", "seed=1,2"], NO_PARAMS)
    three = sweep_name(None, ["data.path=b.csv", "seed=1,2"], NO_PARAMS)
    assert one.startswith("data.path=b.csv,seed~") and two.startswith("data.path=b.csv,seed~")
    assert one != two and three == "data.path=b.csv,seed"


def test_given_name_is_used() -> None:
    assert sweep_name("mine", ["seed=1,2"], NO_PARAMS) == "mine"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data=ml1m", "data.root=/a/ml1m", "seed=3", "optimizer.lr=0.01"], "optimizer.lr=0.01"),
        (["data=ml1m", "data.root=/a/ml1m", "seed=3", "hydra.verbose=true"], "defaults"),
        (["data=ml1m", "data.root=/a/ml1m", "seed=4"], "seed=4"),
        (["data=ml1m", "data.root=/a/ml1m"], "seed=default"),
        (["data=ml1m", "data.root=/b/c", "seed=3"], "data.root=c~"),
        (["data=ml1m", "data.root='/b/c'", "seed=3"], "data.root=c~"),
        (["data=ml1m", "data.root=c", "seed=3"], "data.root=c"),
    ],
)
def test_job_is_named_by_its_differences_from_the_first_command(
    overrides: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed = {"data": "ml1m", "data.root": "/a/ml1m", "seed": "3"}
    (tmp_path / "sweep.json").write_text(json.dumps({"fixed": fixed, "given_in": "."}))
    actual = job_folder(overrides, str(tmp_path))
    assert actual == name or (name.endswith("~") and actual.startswith(name))


def test_spelling_of_a_path_does_not_change_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here/sweep", "there"):
        (tmp_path / folder).mkdir(parents=True)
    command = {"fixed": {"data.path": "a.csv"}, "given_in": ".."}
    (tmp_path / "here" / "sweep" / "sweep.json").write_text(json.dumps(command))

    def names(path: str, sweep: str) -> tuple[str, str]:
        swept = f"model.branches.mine.path={path}"
        return job_folder([f"data.path={path}"], sweep), job_folder([swept], sweep)

    expected = ("defaults", "data.path=default,model.branches.mine.path=a.csv")
    monkeypatch.chdir(tmp_path / "here")
    for path in ("a.csv", "'a.csv'", "./a.csv", "../here/a.csv", str(tmp_path / "here" / "a.csv")):
        assert names(path, "sweep") == expected
        assert sweep_name(None, [f"data.path={path}"], NO_PARAMS) == "data.path=a.csv"
    monkeypatch.chdir(tmp_path / "there")
    for path in ("../here/a.csv", str(tmp_path / "here" / "a.csv")):
        assert names(path, "../here/sweep") == expected
    assert names("a.csv", "../here/sweep")[0].startswith("data.path=a.csv~")
    # A project that is moved takes its sweeps along.
    (tmp_path / "here").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert names("a.csv", "sweep") == expected


def test_changed_settings_of_a_resumed_run() -> None:
    job = ["optimizer.lr=1e-3", "data.path=movies.csv", "sweep.name=s"]
    assert changed_settings(job, job) == ""
    resumed = ["optimizer.lr=0.001", "data.path=/there/movies.csv", "ckpt_path=runs/s/x"]
    resumed += ["trainer.max_epochs=3", "trainer.max_epochs=7", "logger=csv"]
    assert changed_settings(resumed, job) == "trainer.max_epochs=7"
