from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import all as every
from benchmarks.measure import REPOSITORY, alternate, by_turns
from benchmarks.title_layer import dense_terms
from benchmarks.training import build, compose_config, typical_batch
from benchmarks.usual import UsualDataset, usual_network
from genre_lightning.data.batch import MovieBatch
from genre_lightning.data.datamodule import MovieDataModule
from tests.datasets import poster_of
from tests.forking import run_command

KEYS = {"figure", "ratio", "n", "spread", "aim", "unit", "aim_is"}
OWN_ARGUMENTS = {
    "feed": [],
    "harness": ["--epochs", "1"],
    "usual": ["--workers", "0", "--limit", "2"],
    "step": ["--steps", "1"],
    "title_layer": ["--steps", "2"],
}


def last_line(capsys: pytest.CaptureFixture) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def assert_valid_figure(line: dict, n: int) -> None:
    assert set(line) >= KEYS
    assert line["n"] == n
    assert line["figure"] > 0
    assert line["ratio"] > 0
    assert line["aim_is"] in ("at least", "at most")


@pytest.mark.parametrize("name", OWN_ARGUMENTS)
def test_training_benchmarks_end_with_their_figure(
    name: str, tiny_overrides: Callable[..., list[str]], capsys: pytest.CaptureFixture
):
    module = importlib.import_module(f"benchmarks.{name}")
    module.main(["-n", "1", *OWN_ARGUMENTS[name], "--", *tiny_overrides()[1:]])
    assert_valid_figure(last_line(capsys), 1)


@pytest.fixture
def forked_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forks the timed commands with PyTorch imported, since their speed is not tested here."""

    def output_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
        assert command[0] == sys.executable
        done = run_command(command[1:], tmp_path, environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr("benchmarks.measure.output_of", output_of)
    monkeypatch.setattr("benchmarks.scale.output_of", output_of)


@pytest.mark.slow
def test_ask_benchmark(capsys: pytest.CaptureFixture):
    from benchmarks import ask

    ask.main(["-n", "1", "--movies", "24", "--many", "60"])
    line = last_line(capsys)
    assert_valid_figure(line, 1)
    assert line["of_forty"] <= 1.0 and line["encoded"] == 1.0


@pytest.mark.slow
def test_sweep_benchmark(
    forked_commands: None, tiny_overrides: Callable[..., list[str]], capsys: pytest.CaptureFixture
):
    from benchmarks import sweep

    sweep.main(["-n", "1", "--epochs", "1", "--", *tiny_overrides()[1:]])
    line = last_line(capsys)
    assert_valid_figure(line, 1)
    assert line["ratio"] < line["plain_ratio"] > 1


@pytest.mark.slow
def test_costs_benchmark(
    forked_commands: None, tiny_overrides: Callable[..., list[str]], capsys: pytest.CaptureFixture
):
    from benchmarks import costs

    costs.main(["--recipes", "fusion", "-n", "2", "--", *tiny_overrides()[1:]])
    printed = capsys.readouterr().out.splitlines()
    name, *seconds = printed[-2].strip("| ").split(" | ")
    assert name == "fusion" and min(map(float, seconds)) > 0
    line = json.loads(printed[-1])
    assert line["recipe"] == "fusion" and line["n"] == 2
    assert line["figure"] == pytest.approx(float(seconds[1]), abs=0.06)


def test_costs_of_the_full_model_need_columns(capsys: pytest.CaptureFixture):
    from benchmarks import costs

    with pytest.raises(SystemExit):
        costs.main(["--recipes", "title", "full"])
    assert "full needs --columns" in capsys.readouterr().err


def test_cache_benchmark(capsys: pytest.CaptureFixture):
    from benchmarks import cache

    cache.main(["-n", "1", "--posters", "4", "--size", "16"])
    assert_valid_figure(last_line(capsys), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--mmimdb"]], ids=["posters", "mmimdb"])
def test_scale_benchmark(kind: list[str], forked_commands: None, capsys: pytest.CaptureFixture):
    from benchmarks import scale

    scale.main(["-n", "1", "--sizes", "60", *kind])
    line = last_line(capsys)
    assert_valid_figure(line, 1)
    assert line["growth"] == dict.fromkeys(scale.PARTS, 1.0)


@pytest.mark.parametrize("name", every.BENCHMARKS)
def test_every_benchmark_has_help(name: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert stopped.value.code == 0
    assert "-n" in capsys.readouterr().out


def test_runner_lists_every_speed_benchmark():
    others = {"all", "baselines", "limits", "measure", "scores", "text_models", "thresholds"}
    others |= {"columns", "costs", "learning_curve", "soak", "training", "untrained", "__init__"}
    existing = {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")}
    assert set(every.BENCHMARKS) == existing - others


def test_the_table_says_whether_the_aim_is_reached():
    line = {"figure": 1.5, "ratio": 1.2, "n": 3, "spread": 0.1, "unit": "s", "aim": 1.3}
    assert every.reached_aim("start", {**line, "aim_is": "at most"})
    assert not every.reached_aim("start", {**line, "aim_is": "at least"})
    assert not every.reached_aim("first_step", {**line, "aim_is": "at most"})
    assert not every.reached_aim("seed_recipe", {**line, "ratio": None, "aim_is": "at most"})
    row = every.table_row("start", {**line, "aim_is": "at most"})
    assert row.endswith("| 1.5 s | 1.2 | at most 1.3 | yes | 3, 0.1 |")


def test_sides_alternate_and_the_first_round_is_not_counted():
    order = []

    def b() -> float:
        order.append("b")
        return 7.0

    seconds = by_turns({"a": lambda: order.append("a"), "b": b}, 2)
    assert order == ["a", "b"] * 3
    assert seconds["b"] == [7.0, 7.0]
    assert len(seconds["a"]) == 2


def test_failing_command_raises_an_error():
    with pytest.raises(RuntimeError, match="failed:\nthe reason"):
        alternate({"broken": [sys.executable, "-c", "raise SystemExit('the reason')"]}, 1)


def test_timed_commands_import_compiled_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "own.py").write_text("")
    program = f"""
import os, sys
sys.path[0] = {str(folder)!r}
compiled = os.path.exists(__import__("importlib.util").util.find_spec("own").cached)
import own
with open({str(tmp_path / "seen")!r}, "a") as file:
    print(compiled, file=file)
"""
    alternate({"imports": [sys.executable, "-c", program]}, 2)
    # The first round, which compiles, is not counted.
    assert (tmp_path / "seen").read_text().split() == ["False", "True", "True"]
    assert [path.name for path in folder.iterdir()] == ["own.py"]


@pytest.fixture(scope="module")
def tiny(tiny_overrides: Callable[..., list[str]]):
    return build(
        compose_config(
            None,
            tiny_overrides("model.dropout=0", "model.branches.poster_resnet.input.augment=null"),
        )
    )


def prepared_batch(data: MovieDataModule, rows: np.ndarray) -> MovieBatch:
    """The movies of these rows as a prepared batch."""
    (batch,) = data.loader("train", device="cpu").prepare_group([(rows, 0)])
    return batch


def test_typical_batch_has_the_average_share_of_posters(tiny):
    data, _ = tiny
    batch = typical_batch(data, torch.device("cpu"))
    share = (data.features["poster_resnet"].row_index[data.splits["train"]] >= 0).mean()
    assert len(batch) == data.batch_size
    assert abs(len(batch.parts["poster_resnet"]) - share * len(batch)) < 3
    assert len(batch.parts["title_tfidf"]) == len(batch)


def test_the_usual_network_computes_what_ours_does(tiny):
    data, module = tiny
    network = module.network
    batch = prepared_batch(data, data.splits["train"][:16])
    title, poster = batch.parts["title_tfidf"], batch.parts["poster_resnet"]
    usual = usual_network(network, data).eval()
    network.eval()
    with torch.no_grad():
        usual.first.weight.copy_(network.branches["title_tfidf"].embed.weight.T)
        branch_logits = network.branch_logits(batch.parts, len(batch))
        pixels = torch.zeros(len(batch), *poster.numbers["pixels"].shape[1:])
        pixels[poster.rows] = poster.numbers["pixels"]
        seen = torch.zeros(len(batch), dtype=torch.bool)
        seen[poster.rows] = True
        usual_title, usual_poster = usual(dense_terms(title, 256), pixels, seen)
    torch.testing.assert_close(usual_title, branch_logits["title_tfidf"])
    torch.testing.assert_close(usual_poster, branch_logits["poster_resnet"])
    network.train()


def test_the_usual_items_are_the_movies_of_our_batches(tiny):
    data, _ = tiny
    items = UsualDataset(data)
    rows = data.splits["train"]
    batch = prepared_batch(data, rows)
    torch.testing.assert_close(
        torch.stack([items[i]["title"] for i in range(len(rows))]),
        dense_terms(batch.parts["title_tfidf"], 256),
    )
    poster = batch.parts["poster_resnet"]
    position = {int(row): number for number, row in enumerate(poster.rows)}
    for i in range(8):
        assert bool(items[i]["seen"]) == (i in position)
        if i in position:  # other resize filters: similar, not equal
            difference = (items[i]["poster"] - poster.numbers["pixels"][position[i]]).abs().mean()
            assert difference < 0.2


def test_the_usual_way_trains_on_batches_without_a_poster(
    tiny_overrides: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    from benchmarks.usual import usual_epoch

    cfg = compose_config(None, tiny_overrides())
    data, module = build(cfg)
    monkeypatch.setattr("benchmarks.usual.build", lambda cfg: (data, module))
    monkeypatch.setattr(UsualDataset, "poster", lambda self, item: None)
    usual_epoch(cfg, data, 0, 2)()
    assert all(parameter.isfinite().all() for parameter in module.network.parameters())


def test_models_without_the_compared_branch_are_refused(
    tiny_overrides: Callable[..., list[str]], capsys: pytest.CaptureFixture
):
    from benchmarks import title_layer, usual

    for benchmark, model in ((usual, "title"), (title_layer, "poster")):
        with pytest.raises(SystemExit):
            benchmark.main(["-n", "1", "--", *tiny_overrides(model=model)])
        assert "branch" in capsys.readouterr().err


@pytest.mark.slow
def test_variants_of_the_scores_benchmark_compose():
    from benchmarks.scores import ABLATION, BRANCHES, VARIANTS

    for overrides in [*VARIANTS.values(), *ABLATION.values(), *BRANCHES.values()]:
        cfg = compose_config(None, overrides)
        for override in overrides:
            key, _, value = override.partition("=")
            if key == "model/branch":
                assert list(cfg.model.branches) == value.strip("[]").split(",")
            elif key not in ("model", "experiment"):
                written = OmegaConf.merge({"seed": cfg.seed}, OmegaConf.from_dotlist([override]))
                expected = OmegaConf.select(written, key)
                assert OmegaConf.select(cfg, key) == expected, override


def test_made_up_movies_are_read_as_they_were_written(tmp_path: Path):
    from benchmarks.scale import NUM_GENRES, make_movies
    from genre_lightning.movies.manifest import read_manifest

    movies = read_manifest(make_movies(tmp_path, 200))
    assert len(movies.movies) == 200
    assert len(movies.genres) <= NUM_GENRES
    assert all(poster is not None and poster.exists for poster in map(poster_of, movies.movies))
