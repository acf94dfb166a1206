from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import predict_batch
from benchmarks.untrained import draw_posters, write_checkpoint
from genre_lightning.checkpoint.model import load_model
from genre_lightning.inputs.pixels import PixelsInput


def test_untrained_model_has_the_configured_sizes(tmp_path: Path):
    model = load_model(write_checkpoint(tmp_path / "model.ckpt"))
    assert len(model.genres) == 18
    titles, posters = model.inputs["title_tfidf"], model.inputs["poster_resnet"]
    assert titles.network_arguments() == {"vocabulary_size": 8192}
    assert isinstance(posters, PixelsInput) and posters.size == (256, 256)
    assert list(model.network.branches) == ["title_tfidf", "poster_resnet"]


def test_drawn_posters_are_like_real_ones(tmp_path: Path):
    paths = draw_posters(tmp_path / "posters", 3)
    assert len(set(paths)) == 3
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.size) == ("JPEG", (300, 448))
        assert 20_000 < path.stat().st_size < 45_000


def test_predict_batch_ends_with_its_figure(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    draw_posters(tmp_path / "posters", 6)
    arguments = ["--checkpoint", str(tiny_checkpoint), "--folder", str(tmp_path / "posters")]
    predict_batch.main([*arguments, "-n", "2", "--device", "cpu", "--workers", "2"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"figure", "ratio", "n", "spread", "aim", "plain_ratio"} <= set(line)
    assert line["figure"] > 0
    assert line["n"] == 2
