"""genre_lightning.train: training from Python."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import initialize_config_dir

import genre_lightning
from genre_lightning.errors import UserError

Overrides = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_train_can_be_called_repeatedly(tiny_overrides: Overrides, tmp_path: Path) -> None:
    handlers = logging.getLogger().handlers[:]
    first = genre_lightning.train(tiny_overrides(model="title"))
    second = genre_lightning.train(tiny_overrides("hydra.run.dir=named", model="title"))
    assert first.folder.is_relative_to(tmp_path / "runs") and second.folder == tmp_path / "named"
    for run in (first, second):
        written = json.loads((run.folder / "result.json").read_text("utf-8"))
        assert written["status"] == "completed" and written == run.result
        assert (run.folder / ".hydra" / "overrides.yaml").is_file()
    assert first.result["test"] == second.result["test"]
    # A notebook shows the scores.
    shown = second._repr_html_()
    assert "<b><bdi>named</bdi></b> completed: 2 epochs" in shown and str(tmp_path) not in shown
    for split in ("val", "test"):
        assert f"<td>{second.result[split]['map_macro']:.3f}</td>" in shown
    (prediction,) = second.predictor("cpu").predict(["Lost Kiss (1968)"])
    assert len(prediction.scores) == 8
    # A run that is resumed by its folder keeps its settings, and only some of them may change.
    resumed = genre_lightning.train(["ckpt_path=named", "trainer.max_epochs=3"])
    assert resumed.folder == second.folder and resumed.result["epochs"] == 3
    assert resumed.result["num_parameters"] == second.result["num_parameters"]
    with pytest.raises(UserError, match=r"settings differ.*optimizer\.lr .* there, 0\.5 here"):
        genre_lightning.train(["ckpt_path=named", "trainer.max_epochs=4", "optimizer.lr=0.5"])
    # The calling program's logging and Hydra are as before.
    assert logging.getLogger().handlers == handlers
    assert not GlobalHydra.instance().is_initialized()


def test_options_in_a_folder_of_the_user_are_found(
    tiny_overrides: Overrides, repository: Path, tmp_path: Path
) -> None:
    own = tmp_path / "it's [mine], all" / "model" / "branch"
    own.mkdir(parents=True)
    branch = (repository / "conf/model/branch/title_tfidf.yaml").read_text("utf-8")
    (own / "mine.yaml").write_text(branch.replace("title_tfidf", "mine"), "utf-8")
    overrides = [text.replace("title_tfidf", "mine") for text in tiny_overrides(model="title")]
    run = genre_lightning.train(
        ["model/branch=[mine]", "trainer.max_epochs=1", *overrides], own.parent.parent
    )
    assert list(run.predictor("cpu").model.inputs) == ["mine"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=1"], "lrr"),
        (["data.columns=none.csv"], "none.csv"),
        (["ckpt_path=none.ckpt"], "none.ckpt"),
        (["sweep=lr_dropout"], "trains one run, so call it for each"),
        (
            ["seed=0,1"],
            r"^seed=0,1 names several values: .* call it for each.* seed=\[a,b\] is a list",
        ),
        (["optimizer.lr=interval(0,1)"], r"^optimizer\.lr=interval.* call it for each"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_overrides_are_refused(
    overrides: list[str], message: str, tiny_overrides: Overrides
) -> None:
    with pytest.raises(UserError, match=message):
        genre_lightning.train([*tiny_overrides(model="title"), *overrides])
    assert not GlobalHydra.instance().is_initialized()


def test_empty_list_of_branches_is_refused() -> None:
    with pytest.raises(UserError, match=r"model/branch lists no branch; list one"):
        genre_lightning.train(["model/branch=[]", "data.num_movies=100"])


@pytest.mark.parametrize("overrides", ["model=title", {"model": "title"}, [5], None], ids=repr)
def test_overrides_must_be_a_list(overrides: Any) -> None:
    with pytest.raises(TypeError, match=r'overrides must be a list of "key=value", not '):
        genre_lightning.train(overrides)


@pytest.mark.parametrize("option", ["-m", "--multirun", "--config-dir", "--help"])
def test_command_line_options_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=rf"^{option} is an option .* config_dir= .*genre-train -m"):
        genre_lightning.train([option, "seed=1,2"])


def test_missing_config_dir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        with pytest.raises(UserError, match=f"config_dir={name}: there is no such folder"):
            genre_lightning.train(["model=title", "data.num_movies=100"], config_dir=name)
    assert not (tmp_path / "runs").exists()


def test_a_program_that_uses_hydra_itself_is_told_so(
    tiny_overrides: Overrides, tmp_path: Path
) -> None:
    with initialize_config_dir(str(tmp_path), version_base=None):
        with pytest.raises(UserError, match=r"needs Hydra for itself.*\.instance\(\)\.clear\(\)$"):
            genre_lightning.train(tiny_overrides(model="title"))
        GlobalHydra.instance().clear()
        genre_lightning.train(tiny_overrides(model="title"))


def test_existing_run_is_not_overwritten(trained_run: Path) -> None:
    with pytest.raises(UserError, match="holds a run already"):
        genre_lightning.train([f"hydra.run.dir={trained_run}"])
