"""The pictures of the documentation can be taken, and only of drawn movies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from docs.screenshots import MAX_BYTES, WIDTH, ScreenshotError, check_drawn, main, take_all
from genre_lightning.checkpoint import load_model


def test_three_pictures_of_a_trained_model(browser: Browser, trained_run: Path, tmp_path: Path):
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


def test_a_model_of_other_movies_is_refused(tiny_checkpoint: Path):
    model = load_model(tiny_checkpoint)
    check_drawn(model, tiny_checkpoint)
    other = dataclasses.replace(model, data={"reader": "ml1m", "root": "data/ml1m"})
    with pytest.raises(ScreenshotError, match=r"tiny\.ckpt was trained on data=ml1m"):
        check_drawn(other, tiny_checkpoint)


def test_without_a_browser_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: no Chromium here")
    assert not (tmp_path / "out").exists()
