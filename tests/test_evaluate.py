"""evaluate.py reproduces the metrics of training from the checkpoint alone."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.metrics import average_precision_score, f1_score

from genre_lightning.checkpoint.card import CHECKPOINT_KEY, CheckpointError
from genre_lightning.checkpoint.model import load_model
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.movies.movie import DataError
from genre_lightning.predicting.model_card import model_card
from genre_lightning.report.evaluation import score_split, split_metrics
from genre_lightning.report.overall import METRICS
from tests.forking import run_command
from tests.openmp import openmp_output

Evaluate = Callable[..., dict[str, float]]


@pytest.fixture
def evaluate_here(repository: Path, tmp_path: Path) -> Evaluate:
    """Evaluates in this process; the files go to `tmp_path / "evaluation"`."""

    def run(path: Path, *overrides: str) -> dict[str, float]:
        from evaluate import evaluate

        with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
            cfg = compose("evaluate", [f"ckpt_path={path}", "device=cpu", *overrides])
        return evaluate(cfg, tmp_path / "evaluation")

    return run


def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def read_result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text("utf-8"))
    return result


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_command_in_another_folder(
    trained_run: Path, repository: Path, tmp_path: Path, verbose_openmp: None
) -> None:
    moved = tmp_path / "moved.ckpt"
    shutil.copy(best(trained_run), moved)
    env = {**os.environ, "GENRE_LIGHTNING_CACHE": str(tmp_path / "new cache")}
    # In a forked process; the tests of the terminal and of the package start a new interpreter.
    script = repository / "evaluate.py"
    overrides = ["ckpt_path=moved.ckpt", "hydra.run.dir=out", "device=cpu"]
    done = run_command([script, *overrides], tmp_path, env)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert metrics == read_result(trained_run)["test"]
    for name in ("per_genre.csv", "predictions.csv", "report.html"):
        assert (tmp_path / "out" / name).is_file()
    # The demo movies, created again in another cache, are the same.
    report = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "that the checkpoint was trained on" not in report and ">demo: 120 movies<" in report
    if sys.platform == "linux":  # where PyTorch uses GNU's OpenMP, which prints its settings
        settings = openmp_output(script, overrides, tmp_path, env)
        assert "GOMP_SPINCOUNT = '10000'" in settings


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_match_training(split: str, trained_run: Path, evaluate_here: Evaluate) -> None:
    assert evaluate_here(best(trained_run), f"split={split}") == read_result(trained_run)[split]


def test_same_data_gives_the_same_metrics(trained_run: Path, evaluate_here: Evaluate) -> None:
    again = ["data=demo", "++data.num_movies=120", "++data.poster_height=48"]
    assert evaluate_here(best(trained_run), *again) == read_result(trained_run)["test"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batch_size_does_not_change_the_metrics(
    size: int, trained_run: Path, evaluate_here: Evaluate
) -> None:
    metrics = evaluate_here(best(trained_run), f"batch_size={size}")
    assert metrics == pytest.approx(read_result(trained_run)["test"], abs=1e-5)


def test_the_files_agree_with_scikit_learn(
    trained_run: Path, evaluate_here: Evaluate, tmp_path: Path
) -> None:
    metrics = evaluate_here(best(trained_run))
    model = load_model(best(trained_run))
    rows = table(tmp_path / "evaluation" / "predictions.csv")
    assert list(rows[0]) == ["id", "title", "true", "predicted", "has_poster", *model.genres]
    scores = np.array([[float(row[genre]) for genre in model.genres] for row in rows])
    true, predicted = (
        np.array([[genre in row[column].split("|") for genre in model.genres] for row in rows])
        for column in ("true", "predicted")
    )
    assert len(rows) == metrics["num_movies"] == 24
    near = np.abs(scores - model.thresholds.numpy()) < 1e-6
    np.testing.assert_array_equal(predicted | near, (scores >= model.thresholds.numpy()) | near)
    for average in ("micro", "macro", "weighted", "samples"):
        expected = f1_score(true, predicted, average=average, zero_division=0)
        assert metrics[f"f1_{average}"] == pytest.approx(expected, abs=1e-6)
    for row, column in zip(table(tmp_path / "evaluation" / "per_genre.csv"), range(8), strict=True):
        assert row["genre"] == model.genres[column]
        assert int(float(row["support"])) == true[:, column].sum()
        assert float(row["threshold"]) == pytest.approx(float(model.thresholds[column]))
        if true[:, column].any():
            expected = average_precision_score(true[:, column], scores[:, column])
            assert float(row["ap"]) == pytest.approx(expected, abs=1e-4)


def test_a_model_card_says_the_same_as_the_report(
    trained_run: Path, evaluate_here: Evaluate, tmp_path: Path
) -> None:
    metrics = evaluate_here(best(trained_run))
    folder = tmp_path / "evaluation"
    # As Hydra writes it when evaluate.py runs as a command.
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("split: test\ndata: null\n")
    card = model_card(best(trained_run), [folder])
    report = (folder / "report.html").read_text("utf-8")
    text = card.split("### Test split")[1].split("### ")[0]
    for name in ("f1_micro", "f1_macro", "map_macro", "recall_micro"):
        row = rf"\| {re.escape(METRICS[name])} \| ([\d.]+) \| ([\d.]+ to [\d.]+) \|"
        (cells,) = re.findall(row, text)
        assert cells[0] == f"{metrics[name]:.3f}" and cells[1] in report


@pytest.fixture
def manifest(trained_run: Path, tmp_path: Path) -> Callable[[list[str]], Path]:
    """Writes a dataset of other movies with the given genres; a third of them lack a poster."""

    def write(genres: list[str]) -> Path:
        from PIL import Image

        folder = tmp_path / "own"
        folder.mkdir()
        with (folder / "own.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["title", "poster", "genres", "id"])
            for n in range(30):
                Image.new("RGB", (20, 30), (8 * n, 99, 50)).save(folder / f"{n}.png")
                poster = "" if n % 3 == 0 else f"{n}.png"
                rows.writerow([f"Lost Kiss {n} (1970)", poster, genres[n % len(genres)], f"m{n}"])
        return folder / "own.csv"

    return write


def test_other_data_with_genres_in_another_order(
    trained_run: Path, evaluate_here: Evaluate, manifest: Any, tmp_path: Path
) -> None:
    genres = ["Western", "Comedy", "Action"]
    path = manifest(genres)
    metrics = evaluate_here(best(trained_run), "data=manifest", f"data.path={path}")
    assert metrics["num_movies"] == 6
    for row in table(tmp_path / "evaluation" / "predictions.csv"):
        assert row["true"] == genres[int(row["id"][1:]) % 3]
        assert row["has_poster"] == str(int(int(row["id"][1:]) % 3 != 0))
    written = (tmp_path / "evaluation" / "metrics.json").read_text("utf-8")
    json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    by_genre = {row["genre"]: row for row in table(tmp_path / "evaluation" / "per_genre.csv")}
    assert sum(int(float(row["support"])) for row in by_genre.values()) == 6
    assert int(float(by_genre["Drama"]["support"])) == 0


def test_test_split_with_movies_of_training_is_refused(
    trained_run: Path, evaluate_here: Evaluate, manifest: Any, tmp_path: Path
) -> None:
    path = manifest(["Action", "Comedy"])
    checkpoint = torch.load(best(trained_run), weights_only=True)
    card = checkpoint[CHECKPOINT_KEY]
    card["data"] = {"reader": "manifest", "path": str(path)}
    described = tmp_path / "described.ckpt"
    torch.save(checkpoint, described)
    with pytest.raises(DataError, match="it would hold movies that the checkpoint has learnt from"):
        evaluate_here(described)
    assert not (tmp_path / "evaluation").exists()
    card["learnt_from"] = None  # as in older checkpoints
    torch.save(checkpoint, described)
    assert evaluate_here(described)["num_movies"] == 6


def test_a_score_on_named_movies_of_training_is_marked(
    trained_run: Path, evaluate_here: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(best(trained_run))
    data = MovieDataModule.from_description(
        model.data, cache_dir=tmp_path / "cache", inputs=model.inputs
    )
    data.setup()
    path = tmp_path / "copy.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["title", "genres", "split"])
        for movie in data.movie_set.movies:
            rows.writerow([movie.title, "|".join(movie.genres), "test"])
        rows.writerow(["Without Genres", "", "test"])
    metrics = evaluate_here(best(trained_run), "data=manifest", f"data.path={path}")
    learnt = len(data.splits["train"]) + len(data.splits["val"])
    assert metrics["num_learnt_movies"] == learnt
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text("utf-8")) == metrics
    output = " ".join(capsys.readouterr().out.split())
    assert f"note: {learnt} of the 120 movies of test have the title and genres" in output
    assert "note: copy.csv:122, column genres: empty, so the movie is left out" in output
    report = (tmp_path / "evaluation" / "report.html").read_text("utf-8")
    assert f"The model was trained on {learnt} movies of this split" in report


def test_branches_are_not_compared_on_movies_of_training(
    trained_run: Path, evaluate_here: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ["data=demo", "data.num_movies=120", "data.poster_height=48", "gallery=0"]
    compared = {}
    for changed in ([], ["data.split_seed=0", "data.val_fraction=0.3"]):
        evaluate_here(best(trained_run), *demo, *changed)
        output = " ".join(capsys.readouterr().out.split())
        assert ("the report does not compare the branches" in output) is bool(changed)
        report = (tmp_path / "evaluation" / "report.html").read_text("utf-8")
        compared[bool(changed)] = "branch-table" in report
    assert compared == {False: True, True: False}
    with pytest.raises(DataError, match=r"^split=val: .* training \(data\.val_fraction=0\.15 "):
        evaluate_here(best(trained_run), *demo, "data.val_fraction=0.3", "split=val")


def test_ignored_split_setting_is_reported(
    trained_run: Path, evaluate_here: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ["data=demo", "data.num_movies=120", "data.poster_height=48", "gallery=0"]
    for changed in ([], ["data.test_fraction=0.5"]):
        evaluate_here(best(trained_run), *demo, *changed)
        note = "note: data.test_fraction=0.5 is ignored: the dataset says which movies are test"
        assert (note in " ".join(capsys.readouterr().out.split())) is bool(changed)


def test_unknown_genre_is_named(trained_run: Path, evaluate_here: Evaluate, manifest: Any) -> None:
    path = manifest(["Comedy", "Heist"])
    with pytest.raises(DataError, match="genres that the model does not know: Heist"):
        evaluate_here(best(trained_run), "data=manifest", f"data.path={path}")


def test_a_missing_poster_adds_nothing(trained_run: Path, manifest: Any, tmp_path: Path) -> None:
    model = load_model(best(trained_run))
    data = MovieDataModule(
        "manifest", model.inputs, path=str(manifest(["Comedy"])), genres=model.genres,
        cache_dir=tmp_path / "cache", test_fraction=0.5,
    )  # fmt: skip
    data.setup()
    scores = score_split(model, data, "test")
    missing = torch.from_numpy(data.states("poster")[scores.rows.numpy()] != "present")
    assert 0 < missing.sum() < len(missing)
    title, poster = (scores.branch_logits[name] for name in ("title_tfidf", "poster_resnet"))
    assert not poster[missing].any() and poster[~missing].any(dim=1).all()
    assert title.any(dim=1).all() and scores.has_column["title_tfidf"].all()
    assert torch.equal(scores.has_column["poster_resnet"], ~missing)
    # Without a poster, the logits are bit for bit those of the prior and the title.
    prior = model.network.prior
    assert torch.equal(scores.logits[missing], (prior + title)[missing])
    assert torch.equal(scores.logits, prior + title + poster)


def test_a_model_does_not_depend_on_the_order_of_its_genres(
    trained_run: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(best(trained_run), weights_only=True)
    card, state = checkpoint[CHECKPOINT_KEY], checkpoint["state_dict"]
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    card["genres"] = [card["genres"][g] for g in order]
    card["thresholds"] = [card["thresholds"][g] for g in order]
    if card["loss"]["genre_counts"]:
        card["loss"]["genre_counts"] = [card["loss"]["genre_counts"][g] for g in order]
    original = load_model(best(trained_run))
    num_permuted = 0
    for name, value in state.items():
        if any(part in name for part in ("head.", "prior")):
            state[name], num_permuted = value[order], num_permuted + 1
        elif ".skip." in name and value.ndim == 2:
            state[name], num_permuted = value[:, order], num_permuted + 1
    assert num_permuted >= 4
    torch.save(checkpoint, tmp_path / "reordered.ckpt")
    reordered = load_model(tmp_path / "reordered.ckpt")
    metrics = []
    for model in (original, reordered):
        fixed: dict[str, Any] = {"inputs": model.inputs, "genres": model.genres}
        data = MovieDataModule.from_description(model.data, cache_dir=tmp_path / "cache", **fixed)
        data.setup()
        metrics.append(split_metrics(model, score_split(model, data, "test")))
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-5)


def test_missing_checkpoint_is_reported(evaluate_here: Evaluate, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        evaluate_here(tmp_path / "missing.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no checkpoints/best\.ckpt in .*empty"):
        evaluate_here(tmp_path / "empty")


def test_a_run_folder_is_scored_by_its_best_checkpoint(
    trained_run: Path, evaluate_here: Evaluate
) -> None:
    assert evaluate_here(trained_run) == evaluate_here(best(trained_run))


def test_names_are_not_read_as_markup(
    trained_run: Path, evaluate_here: Evaluate, tmp_path: Path, capsys: Any
) -> None:
    checkpoint = torch.load(best(trained_run), weights_only=True)
    genres = checkpoint[CHECKPOINT_KEY]["genres"]
    model = load_model(best(trained_run))
    data = MovieDataModule.from_description(
        model.data, cache_dir=tmp_path / "cache", inputs=model.inputs
    )
    data.setup()
    path = tmp_path / "own.csv"
    renamed = {genre: f"[/{genre}]" for genre in genres}
    checkpoint[CHECKPOINT_KEY]["genres"] = [renamed[genre] for genre in genres]
    torch.save(checkpoint, tmp_path / "markup.ckpt")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["title", "poster", "genres"])
        for movie in data.movie_set.movies:
            rows.writerow([movie.title, "", "|".join(renamed[g] for g in movie.genres)])
    metrics = evaluate_here(tmp_path / "markup.ckpt", "data=manifest", f"data.path={path}")
    assert "[/Comedy]" in capsys.readouterr().out
    assert not any(math.isnan(value) for value in metrics.values())
