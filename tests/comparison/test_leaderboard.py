"""The leaderboard in the terminal and in its files."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.cells import unguard
from genre_lightning.comparison.leaderboard import compare, write_leaderboard
from tests.comparison.written_runs import best_of, read_csv, snapshot, terminal_text, write_run


def test_the_table_fits_into_the_terminal(sweep: Path):
    text = terminal_text(compare([sweep]), 80)
    lines = text.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("Note:"))]
    assert max(len(line) for line in table if not line.startswith("Best:")) <= 80
    row = next(line for line in lines if re.match(r"│ +1 │", line))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    best = max(map(best_of, sweep.glob("model.dropout=0.5,optimizer.lr=0.001,*")))
    assert cells[0] == "1" and cells[1].startswith("model.") and "…" in cells[1]
    assert cells[2:4] == ["0.5", "0.001"] and abs(float(cells[4]) - best) < 0.01
    assert "1 of 2" in text and "\x1b" not in text
    words = " ".join(text.split())
    assert "failed: dropout=0.1 lr=0.003 seed=1, epochs: 2 of 4, best so far: 0.1672" in words
    assert "[red]" in text and "\\x1b[31m" in text


def test_a_requested_metric_is_kept_when_other_columns_are_dropped(sweep: Path):
    text = terminal_text(compare([sweep], columns=["test/map_macro"]), 80)
    (headings,) = [line for line in text.splitlines() if "rank" in line and "┃" in line]
    assert "test/map_macro" in headings and "epochs" not in headings
    assert "leaderboard's files: " in text and "files: test/map_macro" not in text


def test_csv_and_markdown(sweep: Path, tmp_path: Path):
    before = snapshot(sweep)
    comparison = compare([sweep], columns=["test/map_macro"])
    write_leaderboard(tmp_path / "new" / "out", comparison)
    assert snapshot(sweep) == before
    rows = read_csv(tmp_path / "new" / "out")
    assert len(rows) == 18
    for row in rows:
        assert float(row["val/map_macro"]) == best_of(sweep / row["run"])
        group = [float(r["val/map_macro"]) for r in rows if r["rank"] == row["rank"]]
        if row["status"] == "completed":
            assert float(row["mean"]) == statistics.fmean(group)
        else:  # even if its group has a rank
            assert [row[name] for name in ("rank", "mean", "sd", "n")] == [""] * 4
    assert list(rows[0])[:7] == ["rank", "run", "status", "val/map_macro", "mean", "sd", "n"]
    assert float(rows[0]["test/map_macro"]) == pytest.approx(best_of(sweep / rows[0]["run"]) - 0.01)
    failed = next(row for row in rows if row["status"] == "failed")
    assert (
        failed["epochs"] == "2"
        and "second line" in failed["error"]
        and "\x1b" not in failed["error"]
    )
    text = (tmp_path / "new" / "out" / "leaderboard.md").read_text("utf-8")
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 11 and len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script" not in text


def test_only_numbers_are_aligned_to_the_right(tmp_path: Path):
    for loss, lr in (("bce", 0.1), ("focal_loss", 0.01)):
        write_run(tmp_path / loss, {"loss.name": loss, "optimizer.lr": lr}, [lr])
    comparison = compare([tmp_path])
    write_leaderboard(tmp_path, comparison)
    headings, alignments, *_ = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (tmp_path / "leaderboard.md").read_text("utf-8").splitlines()
        if line.startswith("|")
    ]
    left = {h for h, a in zip(headings, alignments, strict=True) if a == "---"}
    assert left == {"run", "loss.name"} and {"rank", "lr"} < set(headings)
    assert "│ bce        │" in terminal_text(comparison)


def test_test_scores_are_used_on_request_only(sweep: Path, tmp_path: Path):
    write_leaderboard(tmp_path, compare([sweep]))
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.html"):
        assert "test/" not in (tmp_path / name).read_text("utf-8"), name
    tested = compare([sweep], metric="test/map_macro")
    assert tested.metric == "test/map_macro" and any("no longer tested" in n for n in tested.notes)


def test_columns_that_are_kept_in_80_characters(tmp_path: Path):
    names = [f"a_run_with_quite_a_long_name_{k}" for k in range(3)]
    for number, name in enumerate(names):
        settings = {
            "optimizer.lr": 10.0**-number, "optimizer.weight_decay": number, "model.crop": number,
            "model.a_long_name_of_a_key": number, "zzz.same_where_it_ended": 7,
        }  # fmt: skip
        write_run(tmp_path / name, settings, [0.1 + number / 10])
    write_run(tmp_path / "failed", {"zzz.same_where_it_ended": 8}, [], status="failed", error="E")
    text = terminal_text(compare([tmp_path]), 80)
    rows = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    headings = next(line for line in text.splitlines() if "rank" in line)
    assert all(name in headings for name in ("run", " lr ", "val/map_macro"))
    assert "same_where_it_ended" not in headings
    best = [cell.strip() for cell in rows[0]]
    assert best[0] == "1" and best[1].startswith("a_run") and best[1].endswith("_2")
    assert "0.01" in best and "0.3000" in best
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("│"))


def test_the_path_of_the_best_run_is_quoted_for_a_shell(tmp_path: Path):
    write_run(tmp_path / "branch=[a,b] x=1" / "run")
    (line,) = [each for each in terminal_text(compare([tmp_path])).splitlines() if "Best" in each]
    label, place = shlex.split(line)
    assert (label, Path(place)) == ("Best:", tmp_path / "branch=[a,b] x=1" / "run")


@pytest.mark.parametrize("wide", [False, True], ids=["dropped", "kept"])
def test_keys_that_do_not_fit_are_dropped_with_a_note(tmp_path: Path, wide: bool):
    keys = [f"model.a_setting_with_a_name_{k}" for k in range(9)]
    for number in range(3):
        write_run(tmp_path / str(number), dict.fromkeys(keys, number))
    text = terminal_text(compare([tmp_path]), 1000 if wide else 90)
    assert ("No room here" in text) is not wide


def test_data_settings_are_dropped_last(tmp_path: Path):
    for number in range(4):
        settings = {"data.path": f"{number % 2}.csv"}
        choices = {"model": f"a_model_with_a_long_name_{number // 2}"}
        write_run(tmp_path / str(number), settings, choices=choices)
    text = terminal_text(compare([tmp_path]), 50)
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    assert [row[3].strip() for row in rows] == ["0.csv", "0.csv", "1.csv", "1.csv"]
    assert "the leaderboard's files: model, " in " ".join(text.split())


def test_unfinished_runs_have_no_rank(tmp_path: Path):
    write_run(tmp_path / "a", {"optimizer.lr": 0.1}, [0.5], status="failed", error="Error: x")
    write_run(tmp_path / "b", {"optimizer.lr": 0.2}, [], status="failed", error="Error: y")
    comparison = compare([tmp_path])
    assert [group.rank for group in comparison.groups] == [None, None]
    assert "Error: y" in terminal_text(comparison) and "Best:" not in terminal_text(comparison)
    write_leaderboard(tmp_path, comparison)
    assert [row["rank"] for row in read_csv(tmp_path)] == ["", ""]


@pytest.mark.slow
def test_real_runs(
    train_here: Callable[[Path, list[str]], dict[str, Any]],
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
):
    expected: dict[float, list[float]] = {}
    for lr in ("1e-3", "0.01"):
        for seed in (0, 1):
            args = [f"optimizer.lr={lr}", f"seed={seed}", "trainer.max_epochs=1"]
            result = train_here(tmp_path / f"{lr},{seed}", tiny_overrides(*args, model="title"))
            expected.setdefault(float(lr), []).append(result["monitor_value"])
    comparison = compare([tmp_path])
    assert comparison.keys == ("optimizer.lr",)
    means = {group.settings[0]: group.mean for group in comparison.groups}
    assert means == {lr: pytest.approx(statistics.fmean(v)) for lr, v in expected.items()}
    assert means[comparison.groups[0].settings[0]] == max(means.values())  # type: ignore[type-var]
    write_leaderboard(tmp_path, comparison)
    assert [row["epochs"] for row in read_csv(tmp_path)] == ["1"] * 4


def test_cells_of_the_csv_are_never_formulas(tmp_path: Path) -> None:
    write_run(tmp_path / "=1+1", {"optimizer.lr": 0.1})
    write_run(tmp_path / "@SUM", {"optimizer.lr": 0.2}, status="failed", error="-cmd|' /C calc'!A0")
    write_leaderboard(tmp_path / "out", compare([tmp_path]))
    rows = read_csv(tmp_path / "out")
    assert {row["run"] for row in rows} == {"'=1+1", "'@SUM"}
    assert {unguard(row["run"]) for row in rows} == {"=1+1", "@SUM"}
    assert "'-cmd|' /C calc'!A0" in {row["error"] for row in rows}
