"""Every YAML under conf composes, and everything it names can be built."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

import genre_lightning.genre_ask
import genre_lightning.runs.naming  # noqa: F401 - the resolvers
from genre_lightning.ask.poster import PosterFormat
from genre_lightning.ask.question import Prompt, Questioner
from genre_lightning.ask.run import ServerSettings
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.input import Input
from genre_lightning.inputs.table import INPUTS, build_input
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models.networks import NETWORKS, NetworkType, build_network
from genre_lightning.runs.composing import speed_up_composition
from tests.kinds import use_fake_encoders
from train import configured_branches

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
#: Further overrides that an option requires.
REQUIRED = {
    "data/manifest": ["data.path=movies.csv"],
    "data/mmimdb": ["data.root=mmimdb"],
    "ask": ["base_url=http://127.0.0.1:8000/v1", "model.name=m"],
    "model/branch/answers": ["model.branches.answers.path=answers.npz"],
    "model/branch/text": ["model.branches.text.input.column=cast"],
    "model/branch/text_gemma": ["model.branches.text_gemma.input.column=cast"],
    "model/branch/text_tfidf": ["model.branches.text_tfidf.input.column=cast"],
    "model/branch/vectors": ["model.branches.vectors.input.path=vectors.npz"],
}
MINIMUM = 67
#: `model/branch` takes a list, so each of its files is composed as a list of one.
BRANCHES = [path for path in FILES if path.parts[:2] == ("model", "branch")]
#: Shared parts: not options, but in the defaults of every option of their folder.
SHARED = [path for path in FILES if path.stem == "base"]


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_encoders(monkeypatch)


def compose_cfg(name: str, overrides: list[str]) -> DictConfig:
    # Faster composition, as in the commands.
    with speed_up_composition(), initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def set_output_dir(cfg: DictConfig, folder: Path) -> None:
    """Sets the output folder, as Hydra does when a job starts."""
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)


def learn(branch_input: Input) -> None:
    """Sets what the input would learn from data and weights, which are absent here."""
    if isinstance(branch_input, YearInput):
        branch_input.years = branch_input.years or (1950, 2000)
    elif isinstance(branch_input, (VectorsInput, EmbeddingInput)):
        branch_input.width = branch_input.width or 4


def describe(cfg: DictConfig) -> dict[str, Any]:
    """Descriptions of a configuration's branches, as in a checkpoint, built without data."""
    branches = configured_branches(cfg)
    inputs = {name: build_input(name, branch.input) for name, branch in branches.items()}
    for branch_input in inputs.values():
        if isinstance(branch_input, (VectorsInput, YearInput, EmbeddingInput)):
            learn(branch_input)
    networks = {name: branch.network for name, branch in branches.items()}
    shared = {key: cfg.model[key] for key in ("dropout", "members")}
    network = build_network(3, networks, inputs, **shared)
    descriptions: dict[str, Any] = network.description["branches"]
    return descriptions


def test_all_config_files_are_found() -> None:
    assert len(FILES) >= MINIMUM and len(BRANCHES) >= 20
    groups = Counter(path.parts[0] for path in FILES if len(path.parts) > 1)
    for group in ("data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks",
                  "logger", "experiment", "sweep", "hydra", "prompt"):  # fmt: skip
        assert groups[group] >= 1, f"no option in conf/{group}"
    for option in REQUIRED:
        assert Path(f"{option}.yaml") in FILES


@pytest.mark.parametrize("path", SHARED, ids=str)
def test_shared_parts_are_used(path: Path) -> None:
    for option in sorted((CONF / path).parent.glob("*.yaml")):
        if option.stem != "base":
            assert "base" in OmegaConf.load(option).defaults


@pytest.mark.parametrize("path", [path for path in FILES if path not in SHARED], ids=str)
def test_config_composes_and_builds(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    option = path.with_suffix("").as_posix()
    group, _, choice = option.rpartition("/")
    if len(path.parts) == 1 or path.parts == ("hydra", path.name):
        name = path.stem if path.stem in ("ask", "evaluate") else "train"
        overrides = ["ckpt_path=x.ckpt"] if name == "evaluate" else []
        overrides += REQUIRED["ask"] if path.parts == ("hydra", "ask.yaml") else []
    elif group == "prompt":
        name, overrides = "ask", [f"prompt={choice}", *REQUIRED["ask"]]
    elif path in BRANCHES:
        name, overrides = "train", [f"{group}=[{choice}]"]
    else:
        name, overrides = "train", [f"{group}={choice}"]
    overrides += REQUIRED.get(option, [])
    cfg = compose_cfg(name, [*overrides, f"hydra.run.dir={tmp_path}"])
    set_output_dir(cfg, tmp_path)
    if name == "evaluate":
        assert cfg.ckpt_path == "x.ckpt"
        return
    if name == "ask":
        own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        plain: Any = OmegaConf.to_container(own, resolve=True)
        instantiate(cfg.data, inputs={})
        ServerSettings(**plain["server"]).connect("http://127.0.0.1/v1", None)
        prompt, poster = Prompt(**plain["prompt"]), PosterFormat(**plain["poster"])
        assert prompt.name == (choice if group == "prompt" else "zero_shot")
        Questioner(
            base_url=cfg.base_url, model=cfg.model.name, genres=["Drama"], show=plain["show"],
            prompt=prompt, answers=cfg.answers, parameters=plain["parameters"], poster=poster,
        )  # fmt: skip
        return
    cfg.num_genres = 3
    built = 0
    extra: dict[str, dict[str, Any]] = {
        "loss": {"genre_counts": [1, 2, 3], "num_movies": 4},
        "data": {"inputs": {}},
    }
    for group in ("data", "loss", "optimizer", "scheduler", "trainer", "logger"):
        if cfg[group]:
            if group == "trainer":
                instantiate(cfg.trainer, precision="32-true", accelerator="cpu")
            else:
                instantiate(cfg[group], **extra.get(group, {}))
            built += 1
    for callback in cfg.callbacks.values():
        built += instantiate(callback) is not None
    names = list(describe(cfg))
    assert names and built >= 7
    if path in BRANCHES:
        assert names == [path.stem]
        if "finetune" in cfg.model.branches[path.stem]:
            cfg.model.branches[path.stem].finetune = True
            assert list(describe(cfg)) == names
    OmegaConf.resolve(cfg[group])


@pytest.mark.parametrize("path", BRANCHES, ids=str)
def test_branch_config_has_the_arguments_of_its_input_and_network(path: Path) -> None:
    text = (CONF / path).read_text()
    assert text.startswith(f"# @package model.branches.{path.stem}\n")
    branch = OmegaConf.to_container(OmegaConf.load(CONF / path))
    assert isinstance(branch, dict) and branch.pop("lr_scale") >= 0
    branch.pop("path", None)  # an argument of the input, see read_branches
    assert branch.pop("l2", 1.0) >= 0
    forms = [branch]
    if "finetune" in branch:
        assert set(branch) == {"encoder", "finetune", "frozen", "finetuned"}
        forms = [branch["frozen"], branch["finetuned"]]
    for form in forms:
        assert set(form) == {"input", "network"}
        kind, name = form["input"].pop("kind"), form["network"].pop("name")
        assert set(form["input"]) <= set(inspect.signature(INPUTS[kind]).parameters)
        # All arguments, so that users see what can be set, except those that the input provides
        # and those that `model` sets for every branch.
        provided = {"vocabulary_size", "size", "width", "encoder", "dropout", "members"}
        assert set(form["network"]) == set(NETWORKS[name].limits) - provided


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
        ("data.columns", "columns.csv"),
    ],
)
def test_common_overrides_take_effect(key: str, value: Any, tmp_path: Path) -> None:
    cfg = compose_cfg("train", [f"{key}={value}", f"hydra.run.dir={tmp_path}"])
    cfg.num_genres = 3
    set_output_dir(cfg, tmp_path)
    assert OmegaConf.select(cfg, key) == value
    if key == "model.dropout":
        assert [network["dropout"] for network in describe(cfg).values()] == [value, value]
    if key == "monitor":
        assert cfg.callbacks.checkpoint.monitor == cfg.callbacks.early_stopping.monitor == value
    if key == "data.columns":
        data = instantiate(cfg.data, inputs={})
        assert isinstance(data, MovieDataModule) and data.columns == value


# Lists of branches.


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["title_tfidf", "poster_resnet"]),
        (["model=title"], ["title_tfidf"]),
        (["model=poster"], ["poster_resnet"]),
        (["model=original"], ["title_words", "poster_original"]),
        (
            ["model=pretrained"],
            [
                *("title_linear", "title_year", "title_minilm", "title_gemma", "poster_lite2"),
                *("poster_text_tfidf", "poster_text_gemma"),
            ],
        ),
        (["experiment=seed"], ["title_words", "poster_original"]),
        (["model/branch=[poster_resnet,title_tfidf]"], ["poster_resnet", "title_tfidf"]),
        (["model/branch=[synopsis_tfidf]"], ["synopsis_tfidf"]),
        (["model=title", "model/branch=[title_words,title_tfidf]"], ["title_words", "title_tfidf"]),
        (
            ["model/branch=[title_tfidf,poster_resnet,synopsis_tfidf]"],
            ["title_tfidf", "poster_resnet", "synopsis_tfidf"],
        ),
        (["model.branches.poster_resnet=null"], ["title_tfidf"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_branches_keep_the_order_of_the_list(overrides: list[str], names: list[str]) -> None:
    assert list(describe(compose_cfg("train", overrides))) == names


def test_branch_defined_on_the_command_line() -> None:
    cfg = compose_cfg(
        "train",
        [
            "model=title",
            "+model.branches.cast={input: {kind: terms, column: cast}, network: {name: terms_mlp}}",
        ],
    )
    assert list(describe(cfg)) == ["title_tfidf", "cast"]


class PosterHead(nn.Module):
    """Another network for posters."""

    def __init__(self, num_genres: int, size: Sequence[int], hidden: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(hidden, num_genres)


def test_switching_the_network_warns_of_dropped_arguments(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "terms_other", NETWORKS["terms_mlp"])
    cfg = compose_cfg("train", ["model.branches.title_tfidf.network.name=terms_other"])
    assert describe(cfg)["title_tfidf"]["name"] == "terms_other" and not caplog.messages
    # The learning-rate scale belongs to the branch and stays.
    assert configured_branches(cfg)["title_tfidf"].lr_scale == 0.15
    # The ResNet's arguments stay in the configuration but are not passed to the network.
    limits = {"size": (1, 4096), "hidden": (1, 9)}
    monkeypatch.setitem(NETWORKS, "pixels_mlp", NetworkType(PosterHead, "pixels", limits))
    cfg = compose_cfg("train", ["model.branches.poster_resnet.network.name=pixels_mlp"])
    assert describe(cfg)["poster_resnet"] == {"name": "pixels_mlp", "size": [32, 32], "hidden": 4}
    assert caplog.messages == [
        "model.branches.poster_resnet: the network pixels_mlp takes no "
        "widths, blocks, stem_kernel, stem_stride, first_stride: left out"
    ]


@pytest.mark.parametrize(
    ("sweep", "jobs"),
    [
        (
            ["model/branch=[title_tfidf],[poster_resnet],[title_tfidf,poster_resnet]"],
            [["title_tfidf"], ["poster_resnet"], ["title_tfidf", "poster_resnet"]],
        ),
        (["model=title,fusion", "seed=0"], [["title_tfidf"], ["title_tfidf", "poster_resnet"]]),
    ],
    ids=["branch lists", "models"],
)
def test_a_sweep_over_lists_composes(sweep: list[str], jobs: list[list[str]]) -> None:
    parsed = OverridesParser.create().parse_overrides(sweep)
    (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    assert [list(describe(compose_cfg("train", list(job)))) for job in batch] == jobs
