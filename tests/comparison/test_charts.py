"""Charts of a leaderboard: their axes, labels and marks."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.comparison.charts import Mark, curves, parallel
from genre_lightning.comparison.leaderboard import compare
from genre_lightning.comparison.page import render_leaderboard
from tests.comparison.written_runs import write_run


def heights(values: list[Any], log: bool | None = None) -> list[float]:
    """Positions of these values on their axis, from 0 at the bottom to 1 at the top."""
    rows = [(Mark(g, None, None, str(g)), [value], 0.5) for g, value in enumerate(values)]
    drawn = parallel(["key"], "metric", rows, {} if log is None else {"key": log})
    y_by_group = {
        int(group): float(y)
        for group, y in re.findall(r'data-g="(\d+)"[^>]*><path class="curve" d="M\S+ (\S+)C', drawn)
    }
    ys = [y_by_group[g] for g in range(len(values))]
    low, high = max(ys), min(ys)
    return [(low - y) / (low - high) for y in ys]


@pytest.mark.parametrize(
    ("values", "log", "scale"),
    [
        pytest.param([0.1156, 0.5249, 0.5291], None, float, id="random"),
        pytest.param([0.3, 0.5, 0.7], None, float, id="grid"),
        pytest.param([0.05, 0.275, 0.5], None, float, id="even-over-a-decade"),
        pytest.param([1, 5, 11, 12, 13, 14, 15, 16, 17, 18, 30], None, float, id="many"),
        pytest.param([1e-4, 3e-3, 2e-2], None, math.log, id="decades"),
        pytest.param([1e-3, 3e-3, 9e-3], None, math.log, id="even-in-logs"),
        pytest.param([32, 64, 128, 256], None, math.log, id="powers-of-two"),
        pytest.param([0.1, 0.11, 0.2], True, math.log, id="log-scale-of-the-sweep"),
        pytest.param([1e-4, 3e-3, 2e-2], False, float, id="linear-scale-of-the-sweep"),
        pytest.param([-1, 0, 5], True, float, id="not-all-positive"),
    ],
)
def test_numbers_are_placed_by_their_value(values: list[float], log: bool | None, scale: Any):
    low, high = scale(values[0]), scale(values[-1])
    expected = [(scale(value) - low) / (high - low) for value in values]
    assert heights(values, log) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("values", [["a", "b", "d"], [False, True, "x"], [1, "a", "b"]])
def test_names_are_evenly_spaced(values: list[Any]):
    assert heights(values) == pytest.approx([0, 0.5, 1], abs=0.002)


def test_unset_values_are_placed_below_the_numbers():
    positions = heights([None, 0, 0.1, 0.3])
    assert positions[0] == 0 and positions[1] > 0.05
    steps = [positions[2] - positions[1], positions[3] - positions[2]]
    assert steps[1] == pytest.approx(2 * steps[0], abs=0.005)


def test_log_scales_are_read_from_the_sweep(tmp_path: Path):
    for number, lr in enumerate((0.1, 0.11, 0.2)):
        settings = {"optimizer.lr": lr, "model.dropout": lr, "model.width": number}
        write_run(tmp_path / str(number), settings)
    (tmp_path / "sweep.json").write_text(json.dumps({"log_scales": {"optimizer.lr": True}}))
    comparison = compare([tmp_path])
    assert comparison.log_scales == {"optimizer.lr": True}
    page = render_leaderboard(comparison, datetime(2026, 1, 1))
    line = re.findall(r'data-g="1"[^>]*><path class="curve" d="([^"]*)"', page)[-1]
    ends = [float(y) for y in re.findall(r"\S+ (\S+)(?=C|$)", line)]
    assert len(set(ends[:2])) == 2  # the same number on the axes of dropout and lr


def test_names_with_a_common_prefix_stay_distinct():
    names = [f"title_tfidf + poster_{network}" for network in ("resnet", "lite2", "timm")]
    rows = [(Mark(g, None, None, str(g)), [value], 0.5) for g, value in enumerate(names)]
    shown = re.findall(r'class="tick halo"[^>]*>([^<]*)<', parallel(["branch"], "metric", rows))
    assert sorted(shown[:3]) == sorted(names)


def test_long_paths_that_differ_at_the_end_stay_distinct():
    paths = [f"/data/of/all/movies/of/the/archive/{name}/movies.csv" for name in ("old", "new")]
    rows = [(Mark(g, None, None, str(g)), [path], 0.5) for g, path in enumerate(paths)]
    shown = re.findall(r'class="tick halo"[^>]*>([^<]*)<', parallel(["path"], "metric", rows))[:2]
    assert [text[-14:] for text in shown] == ["new/movies.csv", "old/movies.csv"]
    assert max(map(len, shown)) <= 48


def test_runs_of_one_epoch_are_drawn_above_its_tick():
    """At an edge of the chart, half of each ring would be cut off."""
    drawn = curves("m", [(Mark(0, 0, 1.0, "a"), [(1, 0.5)]), (Mark(1, 1, 0.0, "b"), [(1, 0.4)])])
    ticks = re.findall(r'class="tick" x="([\d.]+)"[^>]*anchor="middle">(\d+)<', drawn)
    rings = re.findall(r'class="end" cx="([\d.]+)"', drawn)
    assert [text for _, text in ticks] == ["1"]
    assert set(rings) == {ticks[0][0]}
