"""The configuration in a run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from genre_lightning.comparison.reading import read_run
from genre_lightning.runs.config import recorded_config


def compose_config(repository: Path, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    with open_dict(cfg):
        HydraConfig.instance().set_config(cfg)
        del cfg.hydra
    return cfg


def recorded_overrides(folder: Path) -> list[str]:
    overrides: list[str] = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    return overrides


def test_recorded_config_is_read_by_a_comparison(repository: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / f".config.yaml.{ended.pid}").write_text("half of")
    cfg = compose_config(repository, ["optimizer.lr=0.125", "loss=focal"])
    with recorded_config(cfg, tmp_path):
        pass
    names = {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert set(os.listdir(tmp_path / ".hydra")) == names
    assert recorded_overrides(tmp_path) == ["optimizer.lr=0.125", "loss=focal"]
    run = read_run(tmp_path, "run")
    assert run is not None and run.has_config and run.notes == ()
    assert run.settings["optimizer.lr"] == 0.125 and run.choices["loss"] == "focal"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_attempt_without_a_new_checkpoint_keeps_the_recorded_configuration(
    error: type[BaseException], repository: Path, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"

    def attempt(rate: str, checkpoint: str | None) -> None:
        overrides = [f"optimizer.lr={rate}"]
        with (
            pytest.raises(error, match=rate),
            recorded_config(compose_config(repository, overrides), tmp_path),
        ):
            assert recorded_overrides(tmp_path) == overrides
            if checkpoint is not None:
                last.parent.mkdir(exist_ok=True)
                last.write_text(checkpoint)
                os.utime(last, ns=(int(checkpoint), int(checkpoint)))
            raise error(rate)

    # The first attempt's configuration stays in any case: it says what was requested.
    for rate, checkpoint, expected in (
        ("0.5", None, "0.5"),
        ("0.25", "1000", "0.25"),
        ("0.75", None, "0.25"),
        ("0.125", "2000", "0.125"),
    ):
        attempt(rate, checkpoint)
        assert recorded_overrides(tmp_path) == [f"optimizer.lr={expected}"]
        run = read_run(tmp_path, "run")
        assert run is not None and run.settings["optimizer.lr"] == float(expected)
