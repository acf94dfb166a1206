"""Which settings were swept, which runs form a group, and how groups are ranked."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from genre_lightning.cells import SEPARATOR
from genre_lightning.comparison.leaderboard import compare, write_leaderboard
from genre_lightning.comparison.page import group_shades, heat_map
from genre_lightning.errors import UserError
from tests.comparison.written_runs import best_of, terminal_text, write_run


def test_groups_are_ranked_by_the_mean_over_seeds(sweep: Path):
    comparison = compare([sweep])
    expected: dict[tuple[float, float], list[float]] = {}
    for folder in sweep.iterdir():
        if (folder / "result.json").exists() and "failed" not in (
            folder / "result.json"
        ).read_text():
            parts = dict(part.split("=") for part in folder.name.split(","))
            key = (float(parts["model.dropout"]), float(parts["optimizer.lr"]))
            expected.setdefault(key, []).append(best_of(folder))
    assert (
        comparison.keys == ("model.dropout", "optimizer.lr")
        and comparison.metric == "val/map_macro"
    )
    assert {group.settings: sorted(group.values) for group in comparison.groups} == {
        key: sorted(values) for key, values in expected.items()
    }
    for group in comparison.groups:
        values = expected[group.settings]  # type: ignore[index]
        assert group.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
        if len(values) == 2:  # the sample deviation of two values is their distance over sqrt 2
            assert group.sd == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2), rel=1e-9)
        else:
            assert group.sd is None
    means = [group.mean for group in comparison.groups]
    assert means == sorted(means, reverse=True)  # type: ignore[type-var]
    assert [group.rank for group in comparison.groups] == list(range(1, 10))
    assert {run.status for run in comparison.runs} == {"completed", "failed", "interrupted"}


@pytest.mark.parametrize("same", [("0.001", 1e-3), ("1e-3", 0.001), (1, 1.0), ("1e3", 1000)])
def test_numbers_are_compared_as_numbers(tmp_path: Path, same: tuple[Any, Any]):
    for number, value in enumerate(same):
        write_run(tmp_path / str(number), {"optimizer.lr": value, "seed": number})
    comparison = compare([tmp_path])
    assert (
        comparison.keys == ()
        and len(comparison.groups) == 1
        and len(comparison.groups[0].values) == 2
    )


def test_true_and_1_are_different_settings(tmp_path: Path):
    write_run(tmp_path / "a", {"model.skip": True})
    write_run(tmp_path / "b", {"model.skip": 1})
    assert compare([tmp_path]).keys == ("model.skip",)


def test_a_setting_may_be_infinite_or_nan(tmp_path: Path):
    for number, clip in enumerate((math.inf, -math.inf, math.nan, math.nan, 10**400, 1.0)):
        settings = {"trainer.clip": clip, "optimizer.lr": number % 2, "model.dropout": 0.1 * number}
        write_run(tmp_path / f"run{number}", settings, [0.1 * number])
    comparison = compare([tmp_path])
    write_leaderboard(tmp_path, comparison)
    clips = {group.settings[comparison.keys.index("trainer.clip")] for group in comparison.groups}
    assert clips == {"inf", "-inf", "nan", str(10**400), 1}


def test_a_heat_map_distinguishes_true_from_1(tmp_path: Path):
    values: dict[tuple[str, float], list[float]] = {}
    for skip in (True, 1, False, 0, None):
        for lr in (0.1, 0.2):
            values[str(skip), lr] = [0.01 * len(values) + 0.1]
            settings = {"model.skip": skip, "optimizer.lr": lr}
            write_run(tmp_path / f"{skip} {lr}", settings, values[str(skip), lr])
    comparison = compare([tmp_path])
    grid = heat_map(comparison)
    assert grid is not None and len(grid.rows) == 5
    for row, cells in grid.rows:
        means = [None if g is None else comparison.groups[g].mean for g in cells]
        assert means == [values[str(row), lr][0] for lr in (0.1, 0.2)]


def test_paths_of_output_and_caches_are_not_compared(tmp_path: Path):
    for name in ("a", "b"):
        paths = {"ckpt_path": name, "data.cache_dir": name, "logger.save_dir": name, "seed": name}
        write_run(tmp_path / name, paths)
    comparison = compare([tmp_path])
    assert comparison.keys == () and len(comparison.groups) == 1


def test_a_config_group_stands_for_the_keys_it_sets(tmp_path: Path):
    for model, hidden in (("fusion", 256), ("title", 64)):
        for lr in (0.1, 0.2):
            settings = {"model.title.hidden": hidden, "optimizer.lr": lr}
            folder = write_run(tmp_path / f"{model}{lr}", settings, choices={"model": model})
            overrides = yaml.safe_dump([f"model={model}", f"optimizer.lr={lr}"])
            (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    assert compare([tmp_path]).keys == ("model", "optimizer.lr")


def test_runs_without_a_config_are_grouped_by_their_overrides(tmp_path: Path):
    for number, lr in enumerate(("1e-3", "0.01")):
        folder = write_run(tmp_path / str(number), overrides=[f"optimizer.lr={lr}", "seed=3"])
        shutil.rmtree(folder / ".hydra")
    whole = write_run(tmp_path / "whole", {"optimizer.lr": 0.001, "seed": 4})
    (whole / ".hydra" / "hydra.yaml").unlink()
    comparison = compare([tmp_path])
    assert comparison.keys == ("optimizer.lr",)
    assert {group.settings[0]: len(group.runs) for group in comparison.groups} == {
        0.001: 2,
        0.01: 1,
    }


def test_a_repeated_seed_is_noted(tmp_path: Path):
    for name in ("a", "b"):
        write_run(tmp_path / name, {"seed": 1})
    (note,) = compare([tmp_path]).notes
    assert note.startswith("1 run repeats")


def test_ties_share_a_rank(tmp_path: Path):
    for lr, value in ((0.1, 0.5), (0.2, 0.7), (0.3, 0.7), (0.4, 0.6)):
        write_run(tmp_path / str(lr), {"optimizer.lr": lr}, [value])
    ranks = {group.settings[0]: group.rank for group in compare([tmp_path]).groups}
    assert ranks == {0.2: 1, 0.3: 1, 0.4: 3, 0.1: 4}


def test_a_loss_is_better_when_it_is_smaller(tmp_path: Path):
    for lr, value in ((0.1, 0.5), (0.2, 0.7)):
        settings = {"optimizer.lr": lr, "monitor": "val/loss", "monitor_mode": "min"}
        write_run(tmp_path / str(lr), settings, [value, 0.9], monitor_value=value)
    comparison = compare([tmp_path])
    assert (comparison.metric, comparison.mode) == ("val/loss", "min")
    assert [group.settings for group in comparison.groups] == [(0.1,), (0.2,)]
    # the best epoch is the one with the smallest loss, 1 - value
    assert [run.best_epoch for run in comparison.runs] == [2, 2]


def test_different_monitors_are_noted_and_a_metric_can_be_chosen(tmp_path: Path):
    write_run(tmp_path / "a", {"optimizer.lr": 0.1}, [0.5])
    write_run(tmp_path / "b", {"optimizer.lr": 0.2}, [0.6])
    loss = {"optimizer.lr": 0.3, "monitor": "val/loss", "monitor_mode": "min"}
    write_run(tmp_path / "c", loss, [0.7], monitor_value=0.3)
    comparison = compare([tmp_path])
    assert comparison.metric == "val/map_macro" and comparison.keys == ("monitor", "optimizer.lr")
    assert [group.mean for group in comparison.groups] == [0.7, 0.6, 0.5]
    assert any("val/loss in 1" in note for note in comparison.notes)
    chosen = compare([tmp_path], metric="val/f1_micro")
    assert [group.mean for group in chosen.groups] == [0.35, 0.3, 0.25] and chosen.notes == ()
    with pytest.raises(UserError, match="no run has val/f2; there are: val/f1_micro, val/loss"):
        compare([tmp_path], metric="val/f2")
    with pytest.raises(UserError, match="no run has test/f2; there are: test/map_macro"):
        compare([tmp_path], metric="test/f2")
    with pytest.raises(UserError, match="no run has seconds; there are: "):
        compare([tmp_path], metric="seconds")
    comparison = compare([tmp_path], columns=["val/loss", "f1_micro"])
    assert [note for note in comparison.notes if "column" in note] == [
        "The column f1_micro is empty: no run has f1_micro; there are: val/f1_micro, val/loss, "
        "val/map_macro"
    ]


def test_runs_with_different_monitors_are_separate_groups(tmp_path: Path) -> None:
    """The monitor is one key; callbacks that refer to it add no further keys."""
    callbacks = {
        "callbacks.early_stopping": {"monitor": "${monitor}", "mode": "${monitor_mode}"},
        "callbacks.checkpoint": {"monitor": "${monitor}", "mode": "${monitor_mode}"},
    }
    pruning = {"callbacks.pruning": {"monitor": "${monitor}"}}
    loss = {"monitor": "val/loss", "monitor_mode": "min"}
    write_run(tmp_path / "a", {**callbacks, "seed": 0}, [0.5])
    write_run(tmp_path / "b", {**callbacks, **loss, "seed": 1}, [0.1], monitor_value=0.9)
    write_run(tmp_path / "c", {**callbacks, **pruning, "seed": 2}, [0.7])
    comparison = compare([tmp_path], metric="val/map_macro")
    assert comparison.keys == ("monitor",)
    assert [(group.settings, len(group.runs)) for group in comparison.groups] == [
        (("val/map_macro",), 2),
        (("val/loss",), 1),
    ]


def test_lists_of_branches_are_one_key(tmp_path: Path) -> None:
    """The settings of a branch that some runs lack do not become keys."""
    title = {"input": {"kind": "terms", "column": "title"}, "lr_scale": 0.15}
    poster = {"input": {"kind": "pixels", "column": "poster"}, "lr_scale": 1.0}
    for name, branches in (
        ("title", {"title_tfidf": title}),
        ("poster", {"poster_resnet": poster}),
        ("both", {"title_tfidf": title, "poster_resnet": poster}),
    ):
        write_run(tmp_path / name, {"model.branches": branches})
    comparison = compare([tmp_path])
    assert comparison.keys == ("model/branch",)
    assert {group.settings for group in comparison.groups} == {
        ("title_tfidf",),
        ("poster_resnet",),
        ("title_tfidf + poster_resnet",),
    }


# The data that runs are scored on.


@pytest.mark.parametrize("keys", [("a", "a"), ("a", "b"), ("a", None)], ids=str)
def test_movies_that_changed_between_runs_are_noted(keys: tuple[str | None, ...], tmp_path: Path):
    for number, key in enumerate(keys):
        write_run(tmp_path / str(number), {"optimizer.lr": number}, learnt_from=key)
    notes = [note for note in compare([tmp_path]).notes if "have changed between runs" in note]
    assert len(notes) == (keys == ("a", "b"))


def test_each_dataset_has_its_own_ranks(tmp_path: Path):
    for number, (reader, lr) in enumerate([("demo", 1), ("demo", 2), ("ml1m", 1), ("ml1m", 2)]):
        settings = {"data.reader": reader, "optimizer.lr": lr, "data.batch_size": number}
        folder = tmp_path / str(number)
        write_run(folder, settings, [number / 10], choices={"data": reader})
        overrides = yaml.safe_dump([f"data={reader}", f"optimizer.lr={lr}"])
        (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    comparison = compare([tmp_path])
    assert comparison.data_keys == ("data",) and any(
        "different data (data)" in n for n in comparison.notes
    )
    assert [(g.rank, g.runs[0].name) for g in comparison.groups] == [
        (1, "1"), (2, "0"), (1, "3"), (2, "2"),
    ]  # fmt: skip
    assert [group.runs[0].name for group in comparison.best_groups] == ["1", "3"]
    assert group_shades(comparison) == [1.0, 0.0, 1.0, 0.0]
    text = terminal_text(comparison)
    assert f"Best of data=demo: {tmp_path}/1" in text and f"Best of data=ml1m: {tmp_path}/3" in text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param({"data.split_seed": 0}, {"data.split_seed": 1}, False, id="split"),
        pytest.param({"data.folds": 1}, {"data.folds": 5}, False, id="folds"),
        pytest.param({"data.root": "a"}, {"data.root": "b"}, False, id="root"),
        pytest.param({"data.root": "a"}, {"data.root": "./x/../a"}, True, id="spelling"),
        pytest.param({"data.root": "a"}, {"data.root": "/started/here/a"}, True, id="absolute"),
        pytest.param({"data.columns": None}, {"data.columns": "a.csv"}, True, id="columns"),
        pytest.param({"data.batch_size": 8}, {"data.batch_size": 9}, True, id="batch"),
        pytest.param({"data.cache_dir": "a"}, {"data.cache_dir": "b"}, True, id="cache"),
        pytest.param({"data.new": 1}, {}, True, id="missing"),
        pytest.param(
            {"data.genre_separator": None},
            {"data.genre_separator": SEPARATOR},
            True,
            id="default separator",
        ),
        pytest.param(
            {"data.genre_separator": None}, {"data.genre_separator": ","}, False, id="separator"
        ),
    ],
)
def test_which_settings_identify_a_dataset(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], same: bool
):
    for name, settings in (("a", one), ("b", other)):
        folder = write_run(tmp_path / name, {"data.root": "${data.cache_dir}", **settings})
        file = folder / ".hydra" / "hydra.yaml"
        hydra = yaml.safe_load(file.read_text())
        hydra["hydra"]["runtime"]["cwd"] = "/started/here"
        file.write_text(yaml.safe_dump(hydra))
    comparison = compare([tmp_path])
    assert (len({group.dataset for group in comparison.groups}) == 1) is same
    assert any("different data" in note for note in comparison.notes) is not same
    # A folder that is written in two ways does not become a key either.
    differs = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if same and differs == ["data.root"]:
        assert comparison.keys == () and [group.settings for group in comparison.groups] == [()]


def test_relative_paths_are_resolved_before_comparing(tmp_path: Path):
    for number, (cwd, path) in enumerate([("/a", "m.csv"), ("/b", "m.csv"), ("/c", "../b/m.csv")]):
        folder = write_run(tmp_path / str(number), {"data.path": path, "seed": number})
        file = folder / ".hydra" / "hydra.yaml"
        hydra = yaml.safe_load(file.read_text())
        hydra["hydra"]["runtime"]["cwd"] = cwd
        file.write_text(yaml.safe_dump(hydra))
    groups = {group.settings: len(group.runs) for group in compare([tmp_path]).groups}
    assert groups == {("/a/m.csv",): 1, ("../b/m.csv",): 2}


@pytest.mark.parametrize("same", [True, False])
def test_a_test_fraction_has_its_own_ranks_only_if_it_changes_the_movies(
    tmp_path: Path, same: bool
):
    for name, share in (("a", 0.2), ("b", 0.3)):
        movies = "of both" if same else name
        write_run(tmp_path / name, {"data.test_fraction": share}, learnt_from=movies)
    comparison = compare([tmp_path])
    assert [group.settings for group in comparison.groups] == [(0.2,), (0.3,)]
    assert len({group.dataset for group in comparison.groups}) == (1 if same else 2)
    assert any("different data" in note for note in comparison.notes) is not same
