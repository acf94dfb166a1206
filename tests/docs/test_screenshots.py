"""The screenshots of the documentation: they can be taken, and only of drawn movies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from docs.screenshots import (
    MAX_BYTES,
    WIDTH,
    ScreenshotError,
    check_drawn,
    main,
    shoot_leaderboard,
    take_all,
)
from genre_lightning.checkpoint.model import load_model
from genre_lightning.comparison.command import main as compare
from genre_lightning.runs.result import write_result


def test_screenshots_of_a_trained_model(browser: Browser, trained_run: Path, tmp_path: Path):
    out = tmp_path / "pictures"
    take_all(browser, trained_run / "checkpoints" / "best.ckpt", tmp_path / "it's", out)
    assert sorted(path.name for path in out.iterdir()) == ["demo.png", "gallery.png", "report.png"]
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert picture.width == WIDTH
            assert 500 < picture.height < 1600, path.name
            colours = picture.convert("RGB").getcolors(256)
            assert colours is not None and len(colours) > 20, path.name
        assert path.stat().st_size <= MAX_BYTES


def test_screenshot_of_a_leaderboard(browser: Browser, tmp_path: Path):
    for number, lr in enumerate((0.1, 0.2)):
        run = tmp_path / "sweep" / f"optimizer.lr={lr}"
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "config.yaml").write_text(
            f"monitor: val/loss\nmonitor_mode: min\noptimizer: {{lr: {lr}}}\nseed: 0\n"
        )
        (run / "metrics.csv").write_text(f"epoch,step,val/loss\n0,1,{number + 2}\n1,2,{number}\n")
        write_result(run, {
            "status": "completed", "monitor": "val/loss", "monitor_value": number, "epochs": 2,
            "seconds": 3.0, "seed": 0, "overrides": [f"optimizer.lr={lr}"], "val": {}, "test": {},
        })  # fmt: skip
    with pytest.raises(ScreenshotError, match="genre-compare"):
        shoot_leaderboard(browser, tmp_path / "sweep", tmp_path)
    compare([str(tmp_path / "sweep")])
    shoot_leaderboard(browser, tmp_path / "sweep", tmp_path)
    with Image.open(tmp_path / "leaderboard.png") as picture:
        assert picture.width == WIDTH and picture.height > 500


def test_model_of_other_movies_is_refused(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    check_drawn(model, tiny_checkpoint)
    other = dataclasses.replace(model, data={"reader": "ml1m", "root": "data/ml1m"})
    with pytest.raises(ScreenshotError, match=r"tiny\.ckpt was trained on data=ml1m"):
        check_drawn(other, tiny_checkpoint)


def test_missing_browser_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: no Chromium here")
    assert not (tmp_path / "out").exists()
