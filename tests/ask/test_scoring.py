"""Calibrated scores of answers, against scikit-learn; unanswered movies count as wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.metrics import f1_score

from genre_lightning.ask.question import Questioner
from genre_lightning.ask.scoring import fit_calibrated_model, save_answers, score_answers
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.inputs.vectors import read_vectors
from genre_lightning.report.evaluation import SplitScores, split_metrics
from genre_lightning.scoring.thresholds import fit_calibration, fit_thresholds
from tests.ask.asked_movies import make_questioner


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MovieDataModule:
    folder = tmp_path_factory.mktemp("cache")
    module = MovieDataModule(
        "demo", {}, root=str(folder), cache_dir=folder, num_movies=200, poster_height=48
    )
    module.setup()
    return module


@pytest.fixture(scope="module")
def answers(data: MovieDataModule) -> np.ndarray:
    """(N, G) answers better than chance, in whole hundredths; every ninth movie has none."""
    draw = np.random.default_rng(0)
    scores = expit(2.0 * data.labels - 1.5 + draw.normal(size=data.labels.shape)).round(2)
    scores[::9] = np.nan
    return np.asarray(scores, dtype=np.float32)


def score_splits(
    data: MovieDataModule, answers: np.ndarray, kind: str = "json"
) -> tuple[TrainedModel, SplitScores, SplitScores, Questioner]:
    questioner = make_questioner(genres=data.genres, answers=kind)
    val, test = data.splits["val"], data.splits["test"]
    model = fit_calibrated_model(questioner, data, val, answers[val])
    return (
        model,
        score_answers(model, questioner, data, "val", val, answers[val]),
        score_answers(model, questioner, data, "test", test, answers[test]),
        questioner,
    )


def test_saved_answers_are_read_by_the_vectors_input(
    data: MovieDataModule, answers: np.ndarray, tmp_path: Path
) -> None:
    ids = [movie.id for movie in data.movie_set.movies]
    save_answers(tmp_path / "answers.npz", ids, answers, data.genres)
    stored, x = read_vectors(tmp_path / "answers.npz")
    answered = ~np.isnan(answers).any(axis=1)
    assert stored == [movie_id for movie_id, has in zip(ids, answered, strict=True) if has]
    np.testing.assert_array_equal(x, answers[answered])
    with np.load(tmp_path / "answers.npz") as file:
        assert tuple(file["genres"].tolist()) == data.genres


def test_scores_are_the_calibrated_answers(data: MovieDataModule, answers: np.ndarray) -> None:
    model, val, test, _ = score_splits(data, answers)
    rows = {split: data.splits[split] for split in ("val", "test")}
    answered = {split: ~np.isnan(answers[rows[split]]).any(axis=1) for split in rows}
    clipped = {s: answers[rows[s]][answered[s]].clip(0.005, 0.995).astype(np.float64) for s in rows}
    targets = data.labels[rows["val"]][answered["val"]]
    fitted = fit_calibration(clipped["val"], targets)
    expected = expit(fitted.logits(clipped["test"]))
    np.testing.assert_allclose(test.scores[answered["test"]], expected, atol=1e-5)
    assert test.has_column["answers"].tolist() == answered["test"].tolist()
    thresholds = fit_thresholds(val.scores[answered["val"]], torch.from_numpy(targets))
    torch.testing.assert_close(model.thresholds, thresholds)
    # Calibrated: the mean score is the share of positive labels.
    assert val.scores[answered["val"]].mean() == pytest.approx(targets.mean(), abs=0.01)


def test_the_calibration_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(1)
    targets = (draw.random((400, 1)) < 0.3).astype(float)
    scores = expit(1.3 * targets - 0.4 + draw.normal(size=targets.shape))
    fitted = fit_calibration(scores, targets, strength=1e9)
    oracle = LogisticRegression(C=1e6).fit(logit(scores), targets[:, 0])
    expected = oracle.decision_function(logit(scores))
    np.testing.assert_allclose(fitted.logits(scores)[:, 0], expected, atol=5e-3)


def test_a_movie_without_an_answer_counts_as_wrong(
    data: MovieDataModule, answers: np.ndarray
) -> None:
    model, _, test, _ = score_splits(data, answers)
    lacking = ~test.has_column["answers"]
    assert lacking.any() and not test.scores[lacking].any()
    predicted = test.scores >= model.thresholds
    assert not predicted[lacking].any() and predicted[~lacking].any()
    metrics = split_metrics(model, test)
    targets = test.targets.numpy()
    assert metrics["f1_micro"] == pytest.approx(
        f1_score(targets, predicted.numpy(), average="micro", zero_division=0)
    )
    assert metrics["num_movies"] == len(data.splits["test"])
    # The logit is the sum of the prior and the branches, as in any model.
    total = model.network.prior + test.branch_logits["answers"]
    torch.testing.assert_close(total[~lacking], test.logits[~lacking])


def test_probabilities_of_tokens_keep_their_order_near_0_and_1(
    data: MovieDataModule, answers: np.ndarray
) -> None:
    fine = answers.copy()
    rows = data.splits["test"]
    rows = rows[~np.isnan(fine[rows]).any(axis=1)][:3]
    fine[rows, 0] = [1e-5, 1e-4, 1e-3]
    for kind, distinct in (("logprobs", 3), ("json", 1)):
        _, _, test, _ = score_splits(data, fine, kind)
        places = torch.isin(test.rows, torch.from_numpy(rows))
        assert len(set(test.scores[places, 0].tolist())) == distinct


def test_validation_without_answers_is_refused(data: MovieDataModule, answers: np.ndarray) -> None:
    val = data.splits["val"]
    with pytest.raises(UserError, match=r"none of the .* validation movies has an answer"):
        fit_calibrated_model(
            make_questioner(genres=data.genres),
            data,
            val,
            np.full_like(answers[val], np.nan),
        )
