"""What each branch contributes, against plain loops and scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from genre_lightning.explain.parts import branch_labels
from genre_lightning.models.stacking import Stacking
from genre_lightning.report import charts
from genre_lightning.report.branches import (
    branch_section,
    movie_groups,
    score_subsets,
    shown_subsets,
)
from genre_lightning.report.statistics import Bootstrap, bootstrap
from genre_lightning.scoring.thresholds import fit_thresholds

RESAMPLES = 50


def bootstrap_of(case: Any) -> Bootstrap:
    scores, targets = case.scores.scores.numpy(), case.scores.targets.numpy()
    return bootstrap(scores, targets, case.model.thresholds.numpy(), resamples=RESAMPLES, seed=3)


def section(case: Any) -> dict[str, Any]:
    result = branch_section(
        case.model,
        case.scores,
        case.validation,
        bootstrap_of(case),
        range(len(case.model.genres)),
    )
    assert result is not None
    return result


def rows_of(case: Any) -> dict[str, dict[str, Any]]:
    """The rows of each group, by label."""
    return {
        group["name"]: {row["label"]: row for row in group["rows"]}
        for group in section(case)["groups"]
    }


def loop_scores(case: Any, split: Any, branches: tuple[str, ...]) -> np.ndarray:
    """(N, G), in a loop: the sigmoid of the prior plus the logits of these branches."""
    rows = []
    for movie in range(len(split.rows)):
        logits = case.model.network.prior.numpy().astype(np.float64)
        for branch in branches:
            if split.has_column[branch][movie]:
                logits = logits + split.branch_logits[branch][movie].numpy()
        rows.append(1 / (1 + np.exp(-logits)))
    return np.array(rows)


@pytest.mark.parametrize("fixture_name", ["two_branches", "three_branches"])
def test_scores_are_sums_of_each_subset_of_branches(
    fixture_name: str, request: pytest.FixtureRequest
):
    case = request.getfixturevalue(fixture_name)
    names = tuple(case.model.inputs)
    subsets = score_subsets(case.model, case.scores, case.validation)
    alone = {(name,) for name in names}
    all_but = {tuple(other for other in names if other != name) for name in names}
    assert set(subsets) == alone | all_but | {names}
    for branches, subset in subsets.items():
        expected = loop_scores(case, case.scores, branches)
        np.testing.assert_allclose(subset.scores.numpy(), expected, atol=1e-5)


def test_stacking_of_each_movies_fold_is_added_to_each_sum(
    three_branches: Any, monkeypatch: pytest.MonkeyPatch
):
    case, names = three_branches, tuple(three_branches.model.inputs)
    weights = {name: torch.linspace(0.5, 2, 8).view(2, 4) + k for k, name in enumerate(names)}
    stacking = Stacking(weights, torch.linspace(-2, 2, 32).view(2, 4, 4), torch.eye(2, 4))
    monkeypatch.setattr(case.model.network, "stacking", stacking)
    folds = torch.arange(len(case.scores.rows)) % 2
    subsets = score_subsets(case.model, replace(case.scores, folds=folds), case.validation)
    for branches in ((names[0],), names[1:]):
        sums = loop_scores(case, case.scores, branches)
        for row, fold in enumerate(folds.tolist()):
            logits = np.log(sums[row] / (1 - sums[row]))
            logits += stacking.genres[fold].numpy() @ sums[row] + stacking.offsets[fold].numpy()
            for name in branches:
                branch_logits = case.scores.branch_logits[name][row].numpy()
                logits += (weights[name][fold].numpy() - 1) * branch_logits
            subset_scores = subsets[branches].scores[row].numpy()
            np.testing.assert_allclose(subset_scores, 1 / (1 + np.exp(-logits)), atol=1e-4)


def test_thresholds_are_fitted_by_the_method_of_the_model(three_branches: Any):
    case, name = three_branches, next(iter(three_branches.model.inputs))
    model = replace(case.model, threshold_fit={"method": "shared", "micro_weight": 0.4})
    subset = score_subsets(model, case.scores, case.validation)[(name,)]
    assert len(set(subset.thresholds.tolist())) == 1


def test_thresholds_are_fitted_on_movies_that_a_branch_can_read(three_branches: Any):
    case, validation = three_branches, three_branches.validation
    subsets = score_subsets(case.model, case.scores, validation)
    for branches, subset in subsets.items():
        if len(branches) == 3:
            assert torch.equal(subset.thresholds, case.model.thresholds)
            continue
        readable = [
            movie
            for movie in range(len(validation.rows))
            if any(bool(validation.has_column[branch][movie]) for branch in branches)
        ]
        scores = torch.from_numpy(loop_scores(case, validation, branches)[readable]).float()
        expected = fit_thresholds(scores, validation.targets[readable])
        np.testing.assert_allclose(subset.thresholds.numpy(), expected.numpy(), atol=1e-5)
    assert len(fit_thresholds(validation.scores, validation.targets)) == 4


@pytest.mark.parametrize("fixture_name", ["two_branches", "three_branches"])
def test_metrics_of_each_group_agree_with_scikit_learn(
    fixture_name: str, request: pytest.FixtureRequest
):
    case = request.getfixturevalue(fixture_name)
    subsets = score_subsets(case.model, case.scores, case.validation)
    names = tuple(case.model.inputs)
    labels = {"Title alone": "name", "Poster alone": "picture", "Synopsis alone": "plot"}
    checked = 0
    table = rows_of(case)
    for group in movie_groups(case.model, case.scores):
        for label, row in table[group.name].items():
            branches = (labels[label],) if label in labels else names
            if label.startswith("All but "):
                left_out = labels[f"{label[8:].capitalize()} alone"]
                branches = tuple(name for name in names if name != left_out)
            if row["gain"] or (fixture_name, group.name) == ("two_branches", "Without poster"):
                continue
            subset = subsets[branches]
            scores = subset.scores[group.rows].numpy()
            targets = case.scores.targets[group.rows].numpy()
            predicted = scores >= subset.thresholds.numpy()
            occurring = targets.any(axis=0)
            expected = [
                np.mean(
                    [
                        average_precision_score(targets[:, g], scores[:, g])
                        for g in np.flatnonzero(occurring)
                    ]
                ),
                f1_score(targets, predicted, average="macro", zero_division=0),
                f1_score(targets, predicted, average="micro", zero_division=0),
            ]
            actual = [value.value for value in row["values"]]
            np.testing.assert_allclose(actual, expected, atol=1e-5)
            checked += 1
    assert checked == (5 if fixture_name == "two_branches" else 16)


def test_gains_are_paired_differences(three_branches: Any):
    for rows in rows_of(three_branches).values():
        for label, row in rows.items():
            if not row["gain"]:
                continue
            name = label.removeprefix("Gain from ")
            whole = next(r for key, r in rows.items() if "branches" in key or " + " in key)
            without = rows.get(f"All but {name}")
            if without is None:
                (without,) = (
                    r
                    for key, r in rows.items()
                    if key.endswith(" alone") and key != f"{name.capitalize()} alone"
                )
            for gain, a, b in zip(row["values"], whole["values"], without["values"], strict=True):
                assert gain.value == pytest.approx(a.value - b.value)
                # There is no interval if no resample has a gain.
                unchanged = gain.value == 0 and np.isnan(gain.low)
                assert unchanged or gain.low <= gain.value <= gain.high


def test_rows_of_each_group(two_branches: Any, three_branches: Any):
    two = {name: list(rows) for name, rows in rows_of(two_branches).items()}
    assert two == {
        "All movies": ["Title alone", "Title + poster", "Gain from poster"],
        "With poster": [
            "Title alone",
            "Poster alone",
            "Title + poster",
            "Gain from title",
            "Gain from poster",
        ],
        "Without poster": ["Title alone"],
    }
    three = {name: list(rows) for name, rows in rows_of(three_branches).items()}
    everything = [
        "Title alone",
        "Poster alone",
        "Synopsis alone",
        "All but title",
        "All but poster",
        "All but synopsis",
        "All branches",
        "Gain from title",
        "Gain from poster",
        "Gain from synopsis",
    ]
    assert three == {
        "All movies": [row for row in everything if row not in everything[1:3]],
        "With poster and synopsis": everything,
        "Without poster": ["Title alone", "Title + synopsis", "Gain from synopsis"],
        "Without synopsis": ["Title alone", "Title + poster", "Gain from poster"],
    }


def test_many_remaining_branches_have_a_short_label(three_branches: Any):
    """A label with all of their names would be cut off; the score is that of the whole model."""
    case = three_branches
    inputs, has_column = case.model.inputs, case.scores.has_column
    scores = replace(case.scores, has_column={**has_column, "title_more": has_column["name"]})
    labels = branch_labels({**inputs, "title_more": inputs["name"]})
    shown = list(
        shown_subsets(labels, scores, ~has_column["picture"] & has_column["plot"]).labelled
    )
    assert shown == [
        "Name alone",
        "Synopsis alone",
        "title_more alone",
        "All but name",
        "All but synopsis",
        "All but title_more",
        "All branches",
    ]


def test_the_whole_model_keeps_its_thresholds_without_a_column(two_branches: Any):
    """They are those of the checkpoint, not those fitted for the title alone."""
    case = two_branches
    no_poster = ~case.scores.has_column["picture"]
    (row,) = rows_of(case)["Without poster"].values()
    predicted = case.scores.scores[no_poster] >= case.model.thresholds
    expected = f1_score(case.scores.targets[no_poster], predicted, average="macro", zero_division=0)
    assert row["values"][1].value == pytest.approx(expected, abs=1e-5)


def test_a_column_that_no_movie_has(three_branches: Any):
    no_movies = torch.zeros_like(three_branches.scores.has_column["plot"])
    zeros = torch.zeros_like(three_branches.scores.logits)
    scores = replace(
        three_branches.scores,
        has_column={**three_branches.scores.has_column, "plot": no_movies},
        branch_logits={**three_branches.scores.branch_logits, "plot": zeros},
    )
    case = replace(three_branches, scores=scores)
    result = section(case)
    assert [group["name"] for group in result["groups"]] == ["All movies", "Without poster"]
    assert result["chart"] is None and result["chart_movies"] == 0
    assert "All but synopsis" not in rows_of(case)["All movies"]


def test_movies_without_any_column_are_scored_by_the_prior(make_case: Callable[..., Any]):
    case = make_case(["Action", "Comedy", "Drama"], ["picture", "plot"])
    rows = rows_of(case)
    assert list(rows["Without poster"]) == ["Synopsis alone"]
    no_movies = torch.zeros_like(case.scores.has_column["plot"])
    has_column = dict.fromkeys(case.scores.has_column, no_movies)
    bare = replace(case, scores=replace(case.scores, has_column=has_column))
    assert list(rows_of(bare)["All movies"]) == ["Prior alone"]


def test_two_branches_on_one_column_are_one_group(three_branches: Any):
    inputs = dict(three_branches.model.inputs)
    inputs["plot"] = inputs["name"]
    scores = three_branches.scores
    model = replace(three_branches.model, inputs=inputs)
    same = replace(scores, has_column={**scores.has_column, "plot": scores.has_column["name"]})
    groups = movie_groups(model, same)
    assert [group.name for group in groups] == ["All movies", "With poster", "Without poster"]
    # One of the branches can use some values only, such as the one that needs a year in the title.
    groups = movie_groups(model, scores)
    names = ["All movies", "With poster and plot", "Without poster", "Without plot"]
    assert [group.name for group in groups] == names


def test_marks_of_twelve_branches_are_distinct_without_colour() -> None:
    css = (Path(charts.__file__).parent / "report.css").read_text("utf-8")
    marks = set()
    for index in range(12):
        kind = charts.branch_kind(index)
        (rule,) = re.findall(rf"\.mark\.{kind} {{(.*)}}", css)
        shape = str(charts.legend(kind)).replace(f"mark {kind}", "")
        marks.add((shape, "fill: var(--paper)" in rule))
    assert len(marks) == 12
