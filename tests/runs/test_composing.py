"""Composing only once and parsing faster give the results of unpatched Hydra and OmegaConf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import omegaconf._utils
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, read_write
from omegaconf.errors import GrammarParseError

from genre_lightning.errors import UserError
from genre_lightning.runs.composing import (
    avoid_copies_of_defaults,
    cache_parsed_interpolations,
    compose_once,
    exact_decimal_ranges,
    refuse_merged_branches,
    skip_mode_check,
    speed_up_composition,
    use_libyaml,
)

original_load, original_yaml = ConfigLoaderImpl.load_configuration, omegaconf._utils.get_yaml_loader


@pytest.fixture
def hydra(repository: Path) -> Iterator[Hydra]:
    import train  # noqa: F401 - its resolvers

    with initialize_config_dir(str(repository / "conf"), version_base="1.3", job_name="train"):
        found = GlobalHydra.instance().hydra
        assert found is not None
        yield found
    assert ConfigLoaderImpl.load_configuration is original_load
    assert omegaconf._utils.get_yaml_loader is original_yaml


def test_two_branches_of_the_same_package_are_refused(hydra: Hydra, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "branch"
    folder.mkdir(parents=True)
    child = "defaults: [text_tfidf@_here_, _self_]\ninput: {column: plot}\n"
    (folder / "plot.yaml").write_text(f"# @package model.branches.plot\n{child}")
    (folder / "copy.yaml").write_text(f"# @package model.branches.text_tfidf\n{child}")

    def branches(*overrides: str) -> list[str]:
        cfg = compose("train", [f"hydra.searchpath=['file://{tmp_path}']", *overrides])
        return list(cfg.model.branches)

    with refuse_merged_branches():
        # plot inherits the settings of text_tfidf.
        assert branches("model/branch=[text_tfidf,plot]") == ["text_tfidf", "plot"]
        assert branches("model/branch=[copy]") == ["text_tfidf"]
        with pytest.raises(UserError, match=r"text_tfidf and copy would .*branches\.text_tfidf:"):
            branches("model/branch=[text_tfidf,copy]")
        with pytest.raises(UserError, match="title_tfidf and text would be merged"):
            branches("+model/branch@model.branches.title_tfidf=text")


@pytest.fixture
def composed_modes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunMode]]:
    """The run mode of each composition."""
    modes: list[RunMode] = []

    def load(self: Any, config_name: Any, overrides: Any, run_mode: RunMode, **options: Any) -> Any:
        modes.append(run_mode)
        return original_load(self, config_name, overrides, run_mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ConfigLoaderImpl, "load_configuration", load)
        yield modes


def compose_run(hydra: Hydra, overrides: list[str]) -> Any:
    cfg = hydra.compose_config("train", overrides, RunMode.RUN)
    return OmegaConf.to_container(cfg)


RUNS: list[list[str]] = [
    [],
    ["seed=3", "optimizer.lr=0.2", "model=pretrained"],
    ["model/branch=[title_tfidf]", "+callbacks.more.at=2", "~callbacks.early_stopping"],
    ["experiment=fast", "hydra.job.chdir=false", "data.root='a b=c,d'"],
    ["hydra.mode=RUN", "seed=4"],
]


@pytest.mark.parametrize("overrides", RUNS, ids=["none", "values", "groups", "hydra", "mode"])
def test_run_is_composed_once_and_as_by_hydra(
    overrides: list[str], hydra: Hydra, composed_modes: list[RunMode]
) -> None:
    expected = compose_run(hydra, overrides)
    composed_modes.clear()
    with compose_once(), use_libyaml():
        assert hydra.get_mode("train", overrides) == RunMode.RUN
        actual = compose_run(hydra, overrides)
    assert (actual, composed_modes) == (expected, [RunMode.RUN])


def test_composed_configuration_is_not_reused_for_another_run(hydra: Hydra) -> None:
    with compose_once():
        hydra.get_mode("train", ["seed=1"])
        assert compose_run(hydra, ["seed=2"])["seed"] == 2
        hydra.get_mode("train", ["seed=1"])
        first = hydra.compose_config("train", ["seed=1"], RunMode.RUN)
        first.seed = 9
        assert compose_run(hydra, ["seed=1"])["seed"] == 1


def test_sweep_is_left_to_hydra(hydra: Hydra) -> None:
    with compose_once():
        assert hydra.get_mode("train", ["hydra.mode=MULTIRUN", "seed=1,2"]) == RunMode.MULTIRUN
        assert hydra.get_mode("train", ["seed=1,2"]) is None
        with pytest.raises(HydraException, match="Ambiguous value"):
            compose_run(hydra, ["seed=1,2"])


def test_sweep_command_composes_nothing_to_find_its_mode(
    hydra: Hydra, composed_modes: list[RunMode]
) -> None:
    with skip_mode_check():
        # None makes Hydra decide by -m.
        assert hydra.get_mode("train", ["seed=1,2"]) is None
    assert composed_modes == []


@pytest.mark.parametrize("overrides", RUNS, ids=["none", "values", "groups", "hydra", "mode"])
def test_cached_interpolations_resolve_as_before(
    overrides: list[str], hydra: Hydra, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def resolved() -> Any:
        cfg = hydra.compose_config("train", [*overrides, "monitor=val/loss"], RunMode.RUN)
        with read_write(cfg.hydra.runtime):
            cfg.hydra.runtime.output_dir = "runs"
        HydraConfig.instance().set_config(cfg)
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        return OmegaConf.to_container(own, resolve=True)

    expected = resolved()
    assert expected["callbacks"]["checkpoint"]["monitor"] == "val/loss"
    with cache_parsed_interpolations():
        assert resolved() == expected
        assert resolved() == expected


@pytest.mark.parametrize("overrides", RUNS, ids=["none", "values", "groups", "hydra", "mode"])
def test_hydra_composes_the_same_without_copies(overrides: list[str], hydra: Hydra) -> None:
    expected = compose_run(hydra, overrides)
    with avoid_copies_of_defaults():
        actual = [compose_run(hydra, overrides) for _ in range(2)]
    assert actual == [expected, expected]


def test_interpolations_in_defaults_are_resolved(tmp_path: Path) -> None:
    files = {
        "config.yaml": "defaults: [{b: two}, {a: '${b}'}, 'c/${b}_${b}', _self_]\n",
        "a/one.yaml": "x: 1\n",
        "a/two.yaml": "defaults: [{d: one}]\nx: 2\n",
        "a/d/one.yaml": "y: 1\n",
        "b/one.yaml": "x: 1\n",
        "b/two.yaml": "x: 2\n",
        "c/two_two.yaml": "z: 4\n",
        "c/one_one.yaml": "z: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)

    def compose_all() -> list[Any]:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return [
                OmegaConf.to_container(compose("config", overrides))
                for overrides in (["b=one"], ["a=one"], [])
            ]

    expected = compose_all()
    assert [cfg["c"]["z"] for cfg in expected] == [1, 4, 4]
    with avoid_copies_of_defaults():
        assert compose_all() == expected


def test_searchpath_of_one_configuration_does_not_affect_another(tmp_path: Path) -> None:
    (tmp_path / "more" / "e").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("defaults: [_self_]\n")
    (tmp_path / "more" / "e" / "one.yaml").write_text("key: 1\n")
    added = [f"hydra.searchpath=['{tmp_path / 'more'}']", "+e=one"]
    with (
        avoid_copies_of_defaults(),
        initialize_config_dir(str(tmp_path), version_base="1.3"),
    ):
        for _ in range(2):
            assert compose("config", added).e.key == 1
            assert compose("config", added[1:]).e == "one"


def test_cached_interpolation_is_resolved_each_time() -> None:
    with cache_parsed_interpolations():
        cfg = OmegaConf.create({"a": 1, "b": "${a}", "c": "x${.a}${b}"})
        assert (cfg.b, cfg.c) == (1, "x11")
        cfg.a = 2
        assert (cfg.b, cfg.c) == (2, "x22")
        other = OmegaConf.create({"a": [3], "b": "${a}"})
        assert other.b == [3]
        for _ in range(2):
            with pytest.raises(GrammarParseError):
                OmegaConf.create({"a": "${"})


SCALARS = """
floats: [1e-3, 1.5, .5, 1_000.5, -.inf, .nan, 3e8]
whole: [1, 010, 0x1f, 1_000, -3]
words: [yes, no, on, true, null, ~, 2026-11-25, 1:30, "1", '2', a b, "x: y"]
interpolated: ${a.b}
anchors: &one {a: 1}
again: *one
merged: {<<: *one, b: 2}
folded: >
  two
  lines
literal: |
  two
  lines
empty:
"""


def test_libyaml_reads_what_omegaconf_reads(repository: Path) -> None:
    files = sorted((repository / "conf").rglob("*.yaml"))
    assert len(files) > 60
    texts = [SCALARS, *(file.read_text() for file in files)]
    expected = [repr(yaml.load(text, Loader=original_yaml())) for text in texts]
    with use_libyaml():
        fast = omegaconf._utils.get_yaml_loader()
        assert issubclass(fast, yaml.cyaml.CParser)
        assert [repr(yaml.load(text, Loader=fast)) for text in texts] == expected
        assert repr(OmegaConf.create(SCALARS)) == repr(OmegaConf.create(yaml.load(SCALARS, fast)))


def test_libyaml_reads_back_any_text() -> None:
    texts = [
        *("", " ", "a: b", "# c", "yes", "1e3", "08", "null", "~", "'", '"', "a\nb", "Léon 🎬"),
        *("x" * 200, "word " * 50, "[1", "{", "- a", "\t", "?", "!a", "&a", "*a", "%", "${.0}"),
    ]
    numbers = [1, 1.5, 1e-3, float("inf"), True, None]
    cfg = OmegaConf.create({"texts": texts, "numbers": numbers})
    with speed_up_composition():
        assert OmegaConf.create(OmegaConf.to_yaml(cfg)) == cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "found duplicate key a"),
        ("a: [1\n", r"line 2, column 1"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
    ids=["duplicate key", "open bracket", "python object"],
)
def test_libyaml_refuses_what_omegaconf_refuses(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(yaml.YAMLError, match=message):
        OmegaConf.load(file)
    with use_libyaml(), pytest.raises(yaml.YAMLError, match=message) as found:
        OmegaConf.load(file)
    assert str(file) in str(found.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("range(0.1,0.4,0.1)", "0.1 0.2 0.3"),
        ("range(0,0.9,0.3)", "0.0 0.3 0.6"),
        ("range(0.3,0,-0.1)", "0.3 0.2 0.1"),
        ("range(1e-3,4e-3,1e-3)", "0.001 0.002 0.003"),
        ("shuffle(range(1.5,2,0.5))", "1.5"),
        ("range(3)", "0 1 2"),
    ],
)
def test_range_holds_exact_decimals(text: str, expected: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"a={text}"])
    with exact_decimal_ranges():
        assert list(override.sweep_string_iterator()) == expected.split()
