"""The report: from the scores of a split to one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.data.description import same_source
from genre_lightning.data.leakage import num_learnt_movies
from genre_lightning.explain.table import find_explainer
from genre_lightning.files import hash_parts
from genre_lightning.movies.split_names import SPLIT_WORDS
from genre_lightning.page.document import render_page
from genre_lightning.report import charts
from genre_lightning.report.branches import branch_section
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.report.gallery import make_gallery
from genre_lightning.report.numbers import number, signed, span
from genre_lightning.report.overall import overall_section
from genre_lightning.report.per_genre import calibration, curves, genre_pairs, genre_table
from genre_lightning.report.statistics import bootstrap, num_resamples
from genre_lightning.runs.result import package_versions
from genre_lightning.wording import counted

#: Most genres with a chart each, and in the square of pairs, so that the page stays legible.
MAX_PANELS = 40
MAX_PAIRED_GENRES = 28
#: Default number of movies in each list of the gallery.
GALLERY_SIZE = 6


@dataclass(frozen=True)
class Origin:
    """Where a report comes from, as shown on it.

    Attributes:
        checkpoint: the checkpoint file; for a language model, the file of its answers.
        command: the command that makes the report again.
        created: when the report was made.
        name: what scored the movies; "" for the file's name.
        facts: further (name, value) pairs for the top of the page.
    """

    checkpoint: Path
    command: str
    created: datetime
    name: str = ""
    facts: Sequence[tuple[str, str]] = ()

    @property
    def scorer(self) -> str:
        """Displayed name of what scored the movies."""
        return self.name or self.checkpoint.name


def render_report(
    model: TrainedModel,
    data: MovieDataModule,
    scores: SplitScores,
    origin: Origin,
    validation: SplitScores | None = None,
    remarks: Mapping[str, Mapping[int, str]] | None = None,
    gallery: int = GALLERY_SIZE,
) -> str:
    """Render the report as one HTML file that needs no network.

    Args:
        model: the model that was scored.
        data: set up, with the model's genres.
        scores: from :func:`genre_lightning.report.evaluation.score_split`.
        origin: of the report.
        validation: scores of the validation split, to fit thresholds for each branch alone; None to
            skip the comparison of branches.
        remarks: further texts of the gallery by heading, then by the movie's index in the dataset.
        gallery: movies in each list of the gallery; 0 for no gallery.
    """
    model_bootstrap = bootstrap(
        scores.scores.numpy(),
        scores.targets.numpy(),
        model.thresholds.numpy(),
        resamples=num_resamples(*scores.scores.shape),
    )
    support = scores.targets.sum(dim=0).long().numpy()
    by_support = np.argsort(-support, kind="stable")
    panels = by_support[:MAX_PANELS]
    return render_page(
        "genre_lightning.report",
        "report",
        styles=["card.css"],
        filters={
            "counted": counted,
            "number": number,
            "signed": signed,
            "span": span,
            "legend_mark": charts.legend,
        },
        facts=_facts(model, data, scores, origin),
        caution=_warning(model, data, scores.split),
        split=SPLIT_WORDS[scores.split],
        num_movies=len(scores.rows),
        resamples=model_bootstrap.resamples,
        seed=model_bootstrap.seed,
        origin=origin,
        versions=package_versions(),
        activation=model.activation,
        overall=overall_section(model, data, scores, model_bootstrap),
        genres=genre_table(model, scores, model_bootstrap, by_support),
        curves=curves(model, scores, panels),
        calibration=calibration(model, scores, panels),
        pairs=genre_pairs(model, scores, by_support[:MAX_PAIRED_GENRES]),
        branches=branch_section(model, scores, validation, model_bootstrap, panels.tolist()),
        branch_names=list(model.inputs),
        stacked=model.network.stacking is not None,
        related=model.network.relates_genres,
        num_genres=len(model.genres),
        max_panels=MAX_PANELS,
        max_paired_genres=MAX_PAIRED_GENRES,
        gallery=make_gallery(model, data, scores, gallery, remarks) if gallery else None,
        methods=_methods(model, list(model.inputs) if gallery else []),
    )


def _methods(model: TrainedModel, branches: Sequence[str]) -> dict[str, list[str]]:
    """Methods that explain these branches, by their kind of output: "words" or "heat map"."""
    methods: dict[str, list[str]] = {"words": [], "heat map": []}
    for explainer in (find_explainer(model, branch) for branch in branches):
        if explainer is not None and explainer.method not in methods[explainer.gives]:
            methods[explainer.gives].append(explainer.method)
    return methods


def _facts(
    model: TrainedModel, data: MovieDataModule, scores: SplitScores, origin: Origin
) -> list[tuple[str, str]]:
    digest = hash_parts([origin.checkpoint])[:12]
    source = data.source()
    location = Path(source.get("root") or source.get("path") or data.reader).name
    name = data.reader if location == data.reader else f"{data.reader} ({location})"
    return [
        ("Movies", f"{len(scores.rows):,}, the {SPLIT_WORDS[scores.split]} split"),
        ("Data set", f"{name}: {counted(len(data.movie_set.movies), 'movie')}"),
        ("Genres", f"{len(model.genres)}; {float(scores.targets.sum(1).mean()):.2f} a movie"),
        *(
            (column[:1].upper() + column[1:], _column_fact(data, scores, column))
            for column in model.given_columns
        ),
        ("Model", origin.name or " + ".join(model.inputs)),
        *origin.facts,
        (
            "Answers" if origin.name else "Checkpoint",
            f"{origin.checkpoint.name}, SHA-256 {digest}…",
        ),
        ("Made", origin.created.strftime("%Y-%m-%d %H:%M %Z").strip()),
    ]


def _column_fact(data: MovieDataModule, scores: SplitScores, column: str) -> str:
    """Count the movies that have a column: "18 present, 5 missing, 1 unreadable"."""
    states = data.states(column)[scores.rows.numpy()]
    counts = {state: int((states == state).sum()) for state in ("missing", "unreadable")}
    return f"{len(states) - sum(counts.values()):,} present" + "".join(
        f", {count:,} {state}" for state, count in counts.items() if count
    )


def _warning(model: TrainedModel, data: MovieDataModule, split: str) -> str:
    if split == "train":
        return "The model was trained on movies of a training split: these numbers flatter it."
    if split == "val":
        return (
            "The thresholds, and the best epoch, are chosen on the validation split in training. "
            "Where these are the same movies, as they are unless other data was named, the numbers "
            "flatter the model; the test split gives fair ones."
        )
    if count := num_learnt_movies(data, split, model.learnt_from, model.learnt_movies):
        return (
            f"The model was trained on {counted(count, 'movie')} of this split, by title and "
            "genres: these numbers flatter it."
        )
    trained_on_same_movies = model.learnt_from in (None, data.learnt_from)
    if not trained_on_same_movies or not same_source(data.source(), model.data):
        return "This is not the data, or not the split, that the checkpoint was trained on."
    return ""
