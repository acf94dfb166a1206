"""Check every number of the model card against the checkpoint, result.json and scikit-learn."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from scipy.special import logit
from sklearn.metrics import average_precision_score, f1_score

from genre_lightning.checkpoint.model import load_model
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.inputs.year import YearInput
from genre_lightning.models import networks
from genre_lightning.movies.readers import BIASES, READERS
from genre_lightning.predicting.command import main
from genre_lightning.predicting.evaluations import CardError
from genre_lightning.predicting.model_card import MIN_TRAINING_MOVIES, model_card
from genre_lightning.predicting.predictor import GenrePredictor
from tests.kinds import use_fake_encoders
from tests.pictures import NOISE, encoded

MakeCheckpoint = Callable[..., Path]


def hub_data(card: str) -> Any:
    """The metadata that the Hugging Face hub reads from a card."""
    return ModelCard(card).data


def section(card: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    marks = heading.partition(" ")[0]
    (found,) = re.findall(
        rf"^{re.escape(heading)}.*?(?=^#{{1,{len(marks)}}} |\Z)", card, re.DOTALL | re.MULTILINE
    )
    return str(found)


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """The tables of a text: rows by their first cell, cells by column header."""
    found: list[dict[str, dict[str, str]]] = []
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
            found.append({})
        elif set(cells[0]) - set("-:"):
            found[-1][cells[0]] = dict(zip(header, cells, strict=True))
    return found


def write_evaluation(
    folder: Path,
    checkpoint: Path,
    seed: int = 0,
    separator: str = "|",
    absent: Sequence[str] = (),
    **overrides: Any,
) -> np.ndarray:
    """Write an evaluation of 40 movies as evaluate.py does; return its scores and targets.

    No movie has a genre in ``absent``.
    """
    model = load_model(checkpoint)
    generator = np.random.default_rng(seed)
    shape = (40, len(model.genres))
    targets = generator.random(shape) < 0.35
    targets[:, [model.genres.index(genre) for genre in absent]] = False
    scores = np.clip(generator.normal(0.3, 0.15, shape) + 0.15 * targets, 0, 1).round(6)
    scores = scores.astype(np.float32)
    predicted = scores >= model.thresholds.numpy()
    (folder / ".hydra").mkdir(parents=True)
    config = {"split": "test", "data": None, **overrides}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        columns = ["genre title" if genre == "title" else genre for genre in model.genres]
        table.writerow(["id", "title", "true", "predicted", *columns])
        for n in range(shape[0]):
            names = [
                separator.join(g for g, on in zip(model.genres, mask[n], strict=True) if on)
                for mask in (targets, predicted)
            ]
            table.writerow([n, f"Mov\u2028ie {n}", *names, *(f"{x:.6f}" for x in scores[n])])
    averages = ("micro", "macro", "samples", "weighted")
    metrics = {
        f"f1_{a}": f1_score(targets, predicted, average=a, zero_division=0) for a in averages
    }
    for name in ("precision", "recall"):
        hits = (targets & predicted).sum(0)
        total = (predicted if name == "precision" else targets).sum(0)
        metrics[f"{name}_micro"] = hits.sum() / total.sum()
        metrics[f"{name}_macro"] = (hits / np.maximum(total, 1)).mean()
    has_positives = targets.any(axis=0)
    for average in ("micro", "macro"):
        metrics[f"map_{average}"] = average_precision_score(
            targets[:, has_positives] if average == "macro" else targets,
            scores[:, has_positives] if average == "macro" else scores,
            average=average,
        )
    (folder / "metrics.json").write_text(json.dumps({k: float(v) for k, v in metrics.items()}))
    return np.stack([scores, targets.astype(np.float32)])


def test_scores_have_bootstrap_intervals(tiny_checkpoint: Path, tmp_path: Path):
    checkpoint = tmp_path / "tiny.ckpt"
    shutil.copy(tiny_checkpoint, checkpoint)
    scores, targets = write_evaluation(tmp_path / "scored", checkpoint)
    card = model_card(checkpoint)
    (table,) = tables(section(card, "### Test split"))
    assert "40 movies" in card and "1,000 bootstrap resamples" in card and "over seeds" not in card
    predicted = scores >= load_model(checkpoint).thresholds.numpy()
    # The basic bootstrap as a plain loop, with its own random draws.
    truth, generator = targets > 0, np.random.default_rng(99)
    value = f1_score(truth, predicted, average="micro")
    drawn = []
    for _ in range(4000):
        rows = generator.integers(40, size=40)
        hits, total = (truth & predicted)[rows].sum(), truth[rows].sum() + predicted[rows].sum()
        drawn.append(2 * hits / total)
    low, high = 2 * value - np.quantile(drawn, [0.975, 0.025])
    row = table["F1, micro"]
    assert row["value"] == f"{value:.3f}"
    assert [float(end) for end in row["95% interval"].split(" to ")] == pytest.approx(
        [low, high], abs=0.012
    )
    assert table["mAP, macro"]["value"] == f"{average_precision_score(truth, scores):.3f}"
    (genres,) = tables(section(card, "## Genres and thresholds"))
    assert list(genres) == ["Action", "Comedy", "Drama", "Horror"]
    for g, (name, threshold) in enumerate(
        zip(genres, ("0.300", "0.500", "0.400", "0.200"), strict=True)
    ):
        row = genres[name]
        assert row["threshold"] == threshold
        assert row["test movies"] == str(int(truth[:, g].sum()))
        assert row["F1"] == f"{f1_score(truth[:, g], predicted[:, g]):.3f}"
        ap = average_precision_score(truth[:, g], scores[:, g])
        assert row["average precision"] == f"{ap:.3f}"
        low, high = (logit(float(end)) for end in row["95% of it"].split(" to "))
        assert (low + high) / 2 == pytest.approx(logit(ap), abs=0.02)
    hub = hub_data(card)
    assert {(r.metric_name, r.metric_value) for r in hub.eval_results} >= {
        ("F1, micro", round(value, 4))
    }
    assert "Genres scored on fewer than 20 movies" in card


def test_a_genre_that_no_movie_has_is_not_scored(tiny_checkpoint: Path, tmp_path: Path):
    checkpoint = tmp_path / "tiny.ckpt"
    shutil.copy(tiny_checkpoint, checkpoint)
    write_evaluation(tmp_path / "scored", checkpoint, absent=["Horror"])
    (genres,) = tables(section(model_card(checkpoint), "## Genres and thresholds"))
    row = genres["Horror"]
    assert row["test movies"] == "0"
    assert row["F1"] == row["average precision"] == "–"
    assert row["95% of F1"] == row["95% of it"] == ""


HEADER = "id,title,true,predicted,Action,Comedy,Drama,Horror\n"


def test_an_evaluation_of_another_model_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path):
    checkpoint = make_checkpoint(poster=None)
    write_evaluation(tmp_path / "scored", checkpoint)
    changed = torch.load(checkpoint, weights_only=True)
    changed["genre_lightning"]["thresholds"] = [0.1, 0.2, 0.3, 0.35]
    other = tmp_path / "other.ckpt"
    torch.save(changed, other)
    with pytest.raises(CardError, match=r"predictions\.csv: its predictions are not at the thresh"):
        model_card(other, [tmp_path / "scored"])
    # An evaluation found beside the checkpoint is left out, and the card says so.
    card = model_card(other)
    assert "Not scored" in card and "Left out: ./scored/predictions.csv" in card
    changed["genre_lightning"]["genres"] = ["Action", "Comedy", "Drama", "War"]
    torch.save(changed, other)
    with pytest.raises(CardError, match="genres are not those"):
        model_card(other, [tmp_path / "scored"])


def test_genres_may_contain_a_separator_or_be_named_like_a_column(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
):
    checkpoint = make_checkpoint(poster=None)
    changed = torch.load(checkpoint, weights_only=True)
    changed["genre_lightning"]["genres"] = ["Sci|Fi", "title", "Drama", "Horror"]
    torch.save(changed, checkpoint)
    write_evaluation(tmp_path / "scored", checkpoint, separator=";")
    assert "40 movies" in model_card(str(checkpoint), [str(tmp_path / "scored")])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("predictions.csv", None, "is not there"),
        ("metrics.json", "{", "can't be read"),
        ("metrics.json", '{"f1_micro": 0.9}', "evaluate the checkpoint again"),
        (".hydra/config.yaml", "split: [1]", "names no split"),
        ("predictions.csv", f"{HEADER}1,a,,,x,0,0,0\n", "row 2"),
        ("predictions.csv", f"{HEADER}1,a,,,nan,0,0,0\n", "0..1"),
    ],
    ids=["missing", "json", "other metrics", "split", "not a number", "nan"],
)  # fmt: skip
def test_a_damaged_evaluation_is_named(
    tiny_checkpoint: Path, tmp_path: Path, file: str, text: str | None, message: str
):
    write_evaluation(tmp_path / "scored", tiny_checkpoint)
    damaged = tmp_path / "scored" / file
    damaged.unlink()
    if text is not None:
        damaged.write_text(text)
    with pytest.raises(CardError, match=message) as caught:
        model_card(tiny_checkpoint, [tmp_path / "scored"])
    assert str(damaged) in str(caught.value) and "\n" not in str(caught.value)


def test_a_card_without_an_exported_graph_does_not_mention_one(tiny_checkpoint: Path):
    card = model_card(tiny_checkpoint)
    assert "onnx" not in card
    assert "A movie may lack some of these columns.\n\nTrained with Genre Lightning." in card


def test_an_evaluation_on_other_data_is_labelled(tiny_checkpoint: Path, tmp_path: Path):
    write_evaluation(tmp_path / "scored", tiny_checkpoint, data={"reader": "ml1m", "root": "x"})
    card = model_card(tiny_checkpoint, [tmp_path / "scored"])
    assert "These movies are not from the model's own dataset, but from: ml1m." in card


@pytest.mark.parametrize("licence", ["", " ", "mit\nor so", "mit\u2028"], ids=repr)
@pytest.mark.parametrize("command", ["card", "export"])
def test_a_blank_or_multiline_licence_is_refused(
    command: str,
    licence: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "new"
    arguments = [command, str(tiny_checkpoint), "--out", str(out), "--licence", licence]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and not out.exists()
    assert "argument --licence: " in capsys.readouterr().err


def test_a_runs_card_has_its_numbers(trained_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["card", str(trained_run), "--licence", "mit"]) == 0
    card = capsys.readouterr().out
    result = json.loads((trained_run / "result.json").read_text("utf-8"))
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    entry = content["genre_lightning"]
    for split, name in (("test", "Test"), ("val", "Validation")):
        text = section(card, f"### {name} split")
        assert f"{result[split]['num_movies']} movies" in text and "Without intervals" in text
        (table,) = tables(text)
        assert table["F1, micro"]["value"] == f"{result[split]['f1_micro']:.3f}"
        assert table["mAP, macro"]["value"] == f"{result[split]['map_macro']:.3f}"
    (genres,) = tables(section(card, "## Genres and thresholds"))
    counts, total = entry["loss"]["genre_counts"], entry["loss"]["num_movies"]
    assert f"Trained on {total} movies." in card
    for name, count, threshold in zip(entry["genres"], counts, entry["thresholds"], strict=True):
        assert genres[name]["training movies"] == f"{count} ({100 * count / total:.1f}%)"
        assert genres[name]["threshold"] == f"{threshold:.3f}"
        assert (f"{name} ({count})" in section(card, "## Limits")) is (count < MIN_TRAINING_MOVIES)
    facts, settings = tables(section(card, "## Training"))
    assert facts["SHA-256"]["what"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert facts["version of torch"]["what"] == result["versions"]["torch"]
    assert settings["optimizer.lr"]["value"] == str(
        content["training_state"]["settings"]["optimizer.lr"]
    )
    (branches,) = tables(section(card, "## Branches"))
    titles = sum(
        value.numel()
        for name, value in content["state_dict"].items()
        if ".title_tfidf." in name and "running" not in name and "num_batches" not in name
    )
    assert branches["title_tfidf"]["weights"] == f"{titles:,}"
    assert "None: no pretrained weights are needed." in card
    assert "The dataset has a licence of its own." in card
    assert hub_data(card).license == "mit" and "\nmit.\n" in card
    # The card reveals no path of the training machine.
    assert str(trained_run.parent) not in card and "/" not in section(card, "## Data and split")


def test_the_last_checkpoint_has_no_scores(trained_run: Path):
    card = model_card(trained_run / "checkpoints" / "last.ckpt")
    assert "Not scored" in card and "of checkpoints/best.ckpt, not of this file" in card
    assert hub_data(card).eval_results is None


def test_scores_of_several_seeds_have_mean_and_deviation(trained_run: Path, tmp_path: Path):
    values = {0: 0.4, 1: 0.5, 2: 0.8}
    # A run with other settings and a failed run don't count.
    for name, seed, lr, status in (
        ("seed=0", 0, 0.1, "completed"),
        ("seed=1", 1, 0.1, "completed"),
        ("seed=2", 2, 0.1, "completed"),
        ("other", 7, 0.5, "completed"),
        ("failed", 8, 0.1, "failed"),
    ):
        run = tmp_path / name
        shutil.copytree(trained_run, run)
        result = json.loads((run / "result.json").read_text("utf-8"))
        result |= {"seed": seed, "status": status}
        result["test"]["f1_micro"] = values.get(seed, 0.1)
        (run / "result.json").write_text(json.dumps(result))
        config = {"seed": seed, "optimizer": {"lr": lr}, "monitor": result["monitor"]}
        (run / ".hydra").mkdir(exist_ok=True)
        (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    text = section(model_card(tmp_path / "seed=1" / "checkpoints" / "best.ckpt"), "### Test split")
    mean = sum(values.values()) / 3
    sd = math.sqrt(sum((value - mean) ** 2 for value in values.values()) / 2)
    assert "3 training runs that differ only in the seed (0, 1, 2)" in " ".join(text.split())
    (table,) = tables(text)
    assert table["F1, micro"] == {
        "metric": "F1, micro", "value": "0.500", "over seeds": f"{mean:.3f} ± {sd:.3f}",
    }  # fmt: skip


def test_a_run_with_missing_files_has_a_card(trained_run: Path, tmp_path: Path):
    run = tmp_path / "copied"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("metrics.csv", "checkpoints/best.ckpt"):
        shutil.copy(trained_run / name, run / name)
    assert "Not scored" in model_card(run / "checkpoints" / "best.ckpt")


HEAD = {"name": "embedding_head", "members": 2}


def _year() -> YearInput:
    branch_input = YearInput("title")
    branch_input.years = (1979, 2001)
    return branch_input


def _vectors() -> VectorsInput:
    branch_input = VectorsInput("vectors.npz")
    branch_input.width = 5
    return branch_input


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "title": lambda: {"poster": None},
    "poster": lambda: {"title": None, "loss": "cross_entropy"},
    "fusion": lambda: {},
    "pretrained": lambda: {
        "poster": None,
        "more": {
            "poster_lite0": (EmbeddingInput("poster", "lite0", size=[32, 32]), HEAD),
            "synopsis_minilm": (EmbeddingInput("synopsis", "minilm"), HEAD),
        },
    },
    "finetuned": lambda: {
        "title": None,
        "poster": None,
        "more": {
            "poster_timm": (PixelsInput(size=32), {"name": "poster_encoder", "encoder": "lite0"})
        },
    },
    "others": lambda: {
        "more": {"year": (_year(), HEAD), "own": (_vectors(), HEAD)},
        "stacking": True,
    },
    "sets": lambda: {"label_sets": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_a_card(
    kind: str, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
):
    use_fake_encoders(monkeypatch)
    checkpoint = make_checkpoint(**KINDS[kind]())
    card = model_card(checkpoint)
    model = load_model(checkpoint)
    (branches,) = tables(section(card, "## Branches"))
    assert list(branches) == list(model.inputs)
    for name, branch_input in model.inputs.items():
        assert branches[name]["column"] == branch_input.column
        assert branches[name]["network"] in networks.NETWORKS
    related = "the scores of all genres" in section(card, "## Branches")
    assert related == (kind in ("others", "sets"))
    assert ("one of the 5 sets of genres" in section(card, "## Branches")) == (kind == "sets")
    encoders = tables(section(card, "## Encoders"))
    expected = {"pretrained": {"lite0", "minilm"}, "finetuned": {"lite0"}}.get(kind, set())
    assert {name for table in encoders for name in table} == expected
    for table in encoders:
        for name, row in table.items():
            assert row["licence"] == ENCODERS[name].licence
            sha256 = row["SHA-256 of the weights"]
            assert sha256 == ("–" if kind == "finetuned" else ENCODERS[name].sha256)
    assert "Not scored" in card and "does not hold the settings" in card
    assert "does not record on how many movies" in card
    tags = hub_data(card).tags
    assert set(model.columns) <= set(tags)
    (use,) = [block for block in card.split("```") if block.startswith("python\n")]
    compile(use.removeprefix("python\n"), "card", "exec")
    assert len(use.strip().splitlines()) == 4


def test_the_usage_example_runs(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_checkpoint, "tiny.ckpt")
    Path("heat.jpg").write_bytes(encoded(NOISE, "JPEG"))
    card = model_card(Path("tiny.ckpt"))
    lines = card.split("```python\n")[1].split("```")[0]
    exec(lines, {})  # noqa: S102 - our own three lines
    shown = ast.literal_eval(capsys.readouterr().out)
    expected = GenrePredictor.from_checkpoint("tiny.ckpt").predict(
        ["Heat (1995)"], posters=["heat.jpg"]
    )
    assert shown == expected[0].genres


def test_untrusted_names_are_escaped(make_checkpoint: MakeCheckpoint):
    checkpoint = make_checkpoint(poster=None)
    content = torch.load(checkpoint, weights_only=True)
    bad = ["<script>alert(1)</script>", "a | b", "[x](http://example.org)", "`c` *d* {{ 7 * 7 }}"]
    content["genre_lightning"]["genres"] = bad
    content["genre_lightning"]["data"]["reader"] = "demo\n# Heading\n{% raw %}"
    torch.save(content, checkpoint)
    card = model_card(checkpoint)
    assert (
        "<script" not in card
        and "\n# Heading" not in card
        and "](http" not in card.replace("\\](", "")
    )
    assert "7 \\* 7" in card and "49" not in section(card, "## Genres and thresholds")
    (genres,) = tables(section(card, "## Genres and thresholds"))
    assert len(genres) == 4
    yaml.safe_load(card.split("---\n")[1])


def test_a_model_of_one_genre_is_described_as_such(make_checkpoint: MakeCheckpoint):
    checkpoint = make_checkpoint(poster=None)
    content = torch.load(checkpoint, weights_only=True)
    assert "Predicts which of 4 genres a movie has, from" in model_card(checkpoint)
    entry = content["genre_lightning"]
    for name, value in content["state_dict"].items():
        if "head" in name or "prior" in name:
            content["state_dict"][name] = value[:1]
    entry |= {"genres": ["a | b"], "thresholds": entry["thresholds"][:1]}
    entry["network"]["num_genres"] = 1
    torch.save(content, checkpoint)
    assert "Predicts whether a movie has the genre a \\| b, from its title." in model_card(
        checkpoint
    )


@pytest.mark.parametrize("stacking", [False, True])
def test_every_table_has_a_blank_line_before_it(make_checkpoint: MakeCheckpoint, stacking: bool):
    lines = model_card(make_checkpoint(stacking=stacking, label_sets=stacking)).splitlines()
    separators = [row for row, line in enumerate(lines) if line.startswith("| ---")]
    assert len(separators) >= 4
    assert [lines[row - 2] for row in separators] == [""] * len(separators)


def test_the_card_is_written_to_a_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "card.md"
    assert main(["card", str(tiny_checkpoint), "--out", str(out)]) == 0
    assert out.read_text("utf-8") == model_card(tiny_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert main(["card", str(tiny_checkpoint), "--out", str(tmp_path / "no" / "card.md")]) == 1
    assert "can't be written" in capsys.readouterr().err


def test_every_builtin_dataset_has_a_note_on_bias():
    assert set(BIASES) == set(READERS) - {"manifest"}
