"""Scores on a model card: overall for each split, and per genre."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.comparison.run import Run, number_or_none
from genre_lightning.predicting.evaluations import Evaluation
from genre_lightning.predicting.model_card_tables import table_markup
from genre_lightning.report.numbers import number, span
from genre_lightning.report.overall import METRICS
from genre_lightning.report.statistics import (
    Interval,
    ap_interval,
    bootstrap,
    interval,
    num_resamples,
    percentile_interval,
)
from genre_lightning.scoring.metrics import per_genre_metrics

#: Genres scored on fewer movies are named among the limits.
MIN_SCORED_MOVIES = 20


@dataclass(frozen=True)
class ScoreRow:
    """One row of a table of scores.

    Attributes:
        label: of the metric, for people.
        name: of the metric.
        value: in [0, 1].
        interval: over the movies; None without predictions to resample.
        seeds: the values of runs that differ only in the seed; empty for none.
    """

    label: str
    name: str
    value: float
    interval: Interval | None = None
    seeds: Sequence[float] = ()

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.seeds)

    @property
    def sd(self) -> float:
        """Sample standard deviation over the seeds."""
        return statistics.stdev(self.seeds)


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores and their source.

    Attributes:
        split: the scored split.
        num_movies: in the split; None if not known.
        rows: one for each metric.
        evaluation: source of the scores; None for the run's ``result.json``.
        resamples: number of bootstrap resamples for the intervals.
        seeds: of the runs whose values are the rows' ``seeds``.
    """

    split: str
    num_movies: int | None
    rows: list[ScoreRow]
    evaluation: Evaluation | None = None
    resamples: int = 0
    seeds: Sequence[Any] = ()


def score_tables(
    model: TrainedModel,
    evaluations: Sequence[Evaluation],
    result: Mapping[str, Any],
    runs: Sequence[Run],
) -> Iterator[ScoreTable]:
    """Yield tables of the test, validation and training splits that have scores.

    Args:
        model: the scored model.
        evaluations: of this model. Those on its own data come before those on other data.
        result: of the model's run, or empty; used for a split without an evaluation on the
            model's own data.
        runs: that differ only in the seed; empty for none.
    """
    for split in ("test", "val", "train"):
        by_seed = {
            name: [value for each in runs if (value := each.value(f"{split}/{name}")) is not None]
            for name in METRICS
        }
        complete = bool(runs) and all(len(values) == len(runs) for values in by_seed.values())
        over_seeds = _SeedScores([each.seed for each in runs], by_seed) if complete else _NO_SEEDS
        of_split = [each for each in evaluations if each.split == split]
        own_data = [each for each in of_split if each.other_data is None]
        for evaluation in own_data:
            yield _evaluated_table(model, evaluation, over_seeds)
        for evaluation in of_split:
            if evaluation.other_data is not None:
                yield _evaluated_table(model, evaluation, _NO_SEEDS)
        if not own_data:
            table = _recorded_table(split, result.get(split) or {}, over_seeds)
            if table.rows:
                yield table


@dataclass(frozen=True)
class _SeedScores:
    """The scores on a split of runs that differ only in the seed.

    Attributes:
        seeds: of the runs; empty unless all runs have all scores.
        values: by metric name, one value per run; empty unless all runs have all scores.
    """

    seeds: Sequence[Any]
    values: Mapping[str, Sequence[float]]


_NO_SEEDS = _SeedScores((), {})


def _evaluated_table(
    model: TrainedModel, evaluation: Evaluation, over_seeds: _SeedScores
) -> ScoreTable:
    """The scores of an evaluation, with intervals over its movies."""
    resamples = num_resamples(*evaluation.scores.shape)
    resampled = bootstrap(
        evaluation.scores, evaluation.targets, model.thresholds.numpy(), resamples=resamples
    ).metrics
    rows = [
        ScoreRow(
            label,
            name,
            evaluation.metrics[name],
            interval(evaluation.metrics[name], resampled[name]),
            over_seeds.values.get(name, ()),
        )
        for name, label in METRICS.items()
    ]
    return ScoreTable(
        evaluation.split, len(evaluation.scores), rows, evaluation, resamples, over_seeds.seeds
    )


def _recorded_table(split: str, recorded: Mapping[str, Any], over_seeds: _SeedScores) -> ScoreTable:
    """The scores of a split in the run's ``result.json``, without values that are not numbers."""
    rows = [
        ScoreRow(label, name, value, None, over_seeds.values.get(name, ()))
        for name, label in METRICS.items()
        if (value := number_or_none(recorded.get(name))) is not None
    ]
    count = number_or_none(recorded.get("num_movies"))
    return ScoreTable(split, None if count is None else int(count), rows, seeds=over_seeds.seeds)


def scores_markup(table: ScoreTable) -> Markup:
    """The table in Markdown, with columns for the intervals and the seeds if these are known."""
    header = ["metric", "value"]
    header += ["95% interval"] if table.evaluation is not None else []
    header += ["over seeds"] if table.seeds else []
    rows = []
    for row in table.rows:
        cells = [row.label, number(row.value)]
        cells += [span(row.interval)] if row.interval is not None else []
        cells += [f"{number(row.mean)} ± {number(row.sd)}"] if table.seeds else []
        rows.append(cells)
    return table_markup(header, rows, ("metric",))


def genre_table(model: TrainedModel, table: ScoreTable | None) -> Markup:
    """A row per genre: threshold, training movies, and the scores of an evaluation if given."""
    counts, total = model.loss.get("genre_counts"), model.loss.get("num_movies")
    header = ["genre", "threshold"]
    rows = [
        [genre, number(float(threshold))]
        for genre, threshold in zip(model.genres, model.thresholds, strict=True)
    ]
    if counts is not None:
        header.append("training movies")
        for row, count in zip(rows, counts, strict=True):
            row.append(f"{count:,} ({count / total:.1%})" if total else f"{count:,}")
    if table is not None and table.evaluation is not None:
        header += [f"{table.split} movies", "F1", "95% of F1", "average precision", "95% of it"]
        scores, targets = table.evaluation.scores, table.evaluation.targets
        per_genre = per_genre_metrics(
            torch.from_numpy(scores), torch.from_numpy(targets), model.thresholds
        )
        resamples = bootstrap(
            scores, targets, model.thresholds.numpy(), resamples=table.resamples
        ).per_genre
        for g, row in enumerate(rows):
            support = int(per_genre["support"][g])
            row.append(f"{support:,}")
            for name in ("f1", "ap"):
                # NaN shows as a dash if no movie has the genre, as in the report.
                score = float(per_genre[name][g]) if support else math.nan
                resampled = resamples[name][:, g]
                value = (
                    ap_interval(score, resampled, len(scores))
                    if name == "ap"
                    else percentile_interval(score, resampled)
                )
                row += [number(value.value), span(value)]
    return table_markup(header, rows, ("genre",))


def rarely_scored_genres(model: TrainedModel, table: ScoreTable | None) -> list[str]:
    """The genres scored on few movies, each with the number of movies."""
    if table is None or table.evaluation is None:
        return []
    support = table.evaluation.targets.sum(axis=0).astype(int).tolist()
    return rare_genres(model.genres, support, MIN_SCORED_MOVIES)


def rare_genres(genres: Sequence[str], counts: Sequence[int], minimum: int) -> list[str]:
    """The genres with fewer than ``minimum`` movies, each with its number; none without counts."""
    pairs = zip(genres, counts, strict=bool(counts))
    return [f"{genre} ({count})" for genre, count in pairs if count < minimum]
