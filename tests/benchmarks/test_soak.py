"""The soak benchmark on four jobs, and its checks on damaged results."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure import REPOSITORY
from benchmarks.soak import SoakError, Sweep, check_jobs, check_leaderboard, main, slope
from tests.forking import Command


def test_slope_is_that_of_least_squares() -> None:
    draw = np.random.default_rng(0)
    values = 800_000 + 3.5 * np.arange(90) + draw.normal(0, 20, 90)
    expected, covariance = np.polyfit(np.arange(90), values, 1, cov=True)
    actual, error = slope(list(values))
    assert actual == pytest.approx(expected[0], rel=1e-6)
    assert error == pytest.approx(covariance[0, 0] ** 0.5, rel=1e-6)


@pytest.mark.slow
def test_a_short_soak(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmarks.soak as soak

    def start(sweep: Sweep) -> Command:
        # The sweep is killed in the middle, so its process may as well be a forked one, which
        # saves its imports: they take longer than the jobs.
        assert sweep.command[0] == sys.executable
        return Command(sweep.command[1:], REPOSITORY, sweep.environment)

    checked: list[Path] = []

    def check_and_damage(sweep: Path) -> None:
        check_leaderboard(sweep)
        checked.append(sweep)
        # Here, as long as the sweep exists: missing runs and wrong ranks are found.
        board = sweep / "leaderboard.csv"
        text = board.read_text()
        head, first, *rest = text.splitlines()
        board.write_text("\n".join([head, *rest]))
        with pytest.raises(SoakError, match="not those of the runs"):
            check_leaderboard(sweep)
        board.write_text("\n".join([head, first.replace("1,", "2,", 1), *rest]))
        with pytest.raises(SoakError, match="has rank 2"):
            check_leaderboard(sweep)
        board.write_text(text)
        (run,) = {path.parent for path in list(sweep.glob("*/result.json"))[:1]}
        (run / ".metrics.csv.12345").touch()
        with pytest.raises(SoakError, match="left half written"):
            check_jobs(sweep, 4, [])
        shutil.rmtree(run)
        with pytest.raises(SoakError, match=r"of 4 jobs \{'completed': 3\}"):
            check_jobs(sweep, 4, [])

    monkeypatch.setattr(Sweep, "_start", start)
    monkeypatch.setattr(soak, "check_leaderboard", check_and_damage)
    main(["--rates", "2", "--seeds", "2", "--kills", "1", "--draw", "1"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert checked and line["jobs"] == 4 and line["kills"] == 1
    assert line["n"] >= 1 and 0.5 < line["ratio"] < 2 and line["files"][0] > 3
