"""Every YAML under conf composes, and everything it names can be built."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import genre_lightning.runs.naming  # noqa: F401 - the resolvers

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
#: Groups whose file is one option of train.yaml; what stands alone is composed by itself.
REQUIRED = {"data/manifest": ["data.path=movies.csv"]}
MINIMUM = 24


def composed(name: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def set_output_dir(cfg: DictConfig, folder: Path) -> None:
    """As Hydra does when a job starts."""
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)


def test_none_is_missed() -> None:
    assert len(FILES) >= MINIMUM
    groups = Counter(path.parts[0] for path in FILES if len(path.parts) > 1)
    for group in ("data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks",
                  "logger", "experiment"):  # fmt: skip
        assert groups[group] >= 1, f"no option in conf/{group}"


#: Shared parts: no options of their own, but named in the defaults of every option beside them.
SHARED = [path for path in FILES if path.stem == "base"]


@pytest.mark.parametrize("path", SHARED, ids=str)
def test_shared_parts_are_used(path: Path) -> None:
    for option in sorted((CONF / path).parent.glob("*.yaml")):
        if option.stem != "base":
            assert "base" in OmegaConf.load(option).defaults


@pytest.mark.parametrize("path", [path for path in FILES if path not in SHARED], ids=str)
def test_it_composes_and_builds(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if len(path.parts) == 1 or path.parts[0] == "hydra":
        name = "evaluate" if "evaluate" in path.stem else "train"
        overrides = ["ckpt_path=x.ckpt"] if name == "evaluate" else []
    else:
        name, option = "train", path.with_suffix("").as_posix()
        group, _, choice = option.partition("/")
        overrides = [f"{group}={choice}", *REQUIRED.get(option, [])]
    cfg = composed(name, [*overrides, f"hydra.run.dir={tmp_path}"])
    set_output_dir(cfg, tmp_path)
    if name == "evaluate":
        assert cfg.ckpt_path == "x.ckpt"
        return
    cfg.num_genres = 3
    built = 0
    extra = {"loss": {"genre_counts": [1, 2, 3], "num_movies": 4}}
    for group in ("data", "model", "loss", "optimizer", "scheduler", "trainer", "logger"):
        if cfg[group]:
            if group == "trainer":
                instantiate(cfg.trainer, precision="32-true", accelerator="cpu")
            else:
                instantiate(cfg[group], **extra.get(group, {}))
            built += 1
    for callback in cfg.callbacks.values():
        built += instantiate(callback) is not None
    assert built >= 8
    OmegaConf.resolve(cfg[group])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", 0.5),
        ("optimizer.weight_decay", 0.5),
        ("model.dropout", 0.7),
        ("data.batch_size", 3),
        ("trainer.max_epochs", 2),
        ("seed", 9),
        ("monitor", "val/f1_macro"),
    ],
)
def test_settled_keys_reach_what_they_name(key: str, value: Any, tmp_path: Path) -> None:
    cfg = composed("train", [f"{key}={value}", f"hydra.run.dir={tmp_path}"])
    cfg.num_genres = 3
    set_output_dir(cfg, tmp_path)
    assert OmegaConf.select(cfg, key) == value
    if key == "model.dropout":
        description = instantiate(cfg.model).description
        assert description["title"]["dropout"] == description["poster"]["dropout"] == value
    if key == "monitor":
        assert cfg.callbacks.checkpoint.monitor == cfg.callbacks.early_stopping.monitor == value
