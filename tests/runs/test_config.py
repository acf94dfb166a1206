"""The configuration in a run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from genre_lightning.comparison.reading import read_run
from genre_lightning.runs.config import write_config


def test_what_is_written_is_what_a_comparison_reads(repository: Path, tmp_path: Path) -> None:
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        cfg = compose("train", ["optimizer.lr=0.125", "loss=focal"], return_hydra_config=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / f".config.yaml.{ended.pid}").write_text("half of")
    with open_dict(cfg):
        HydraConfig.instance().set_config(cfg)
        del cfg.hydra
    write_config(cfg, tmp_path)
    names = {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert set(os.listdir(tmp_path / ".hydra")) == names
    overrides = yaml.safe_load((tmp_path / ".hydra" / "overrides.yaml").read_text())
    assert overrides == ["optimizer.lr=0.125", "loss=focal"]
    run = read_run(tmp_path, "run")
    assert run is not None and run.has_config and run.notes == ()
    assert run.settings["optimizer.lr"] == 0.125 and run.choices["loss"] == "focal"
