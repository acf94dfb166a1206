"""A notebook's view of a prediction: one movie's card, as self-contained HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genre_lightning.inputs.input import Value
from genre_lightning.page.document import render_fragment
from genre_lightning.report.card import (
    BranchCard,
    branch_card,
    cooccurrence_card,
    data_uri,
    thumbnail,
)
from genre_lightning.report.numbers import digits_beside, number, signed

if TYPE_CHECKING:
    from PIL import Image

    from genre_lightning.explain.explainer import BranchExplanation
    from genre_lightning.explain.movie import MovieExplanation


@dataclass(frozen=True)
class Reason:
    """The reason for a genre's score: its logit is the sum of ``bias`` and ``branches``.

    The last entry of ``branches`` is co-occurrence, if the model uses it.
    """

    genre: str
    logit: float
    bias: float
    branches: list[BranchCard]


def card_html(
    title: str | None,
    problem: str | None,
    predicted: Sequence[str],
    scores: Sequence[tuple[str, float]],
    thresholds: Mapping[str, float],
    poster: Value | None,
    explanation: MovieExplanation | None,
    explained: Sequence[str],
) -> str:
    """A prediction as a card: poster, scores with thresholds, and the reasons if explained.

    Args:
        title: of the movie.
        problem: why a column, or the whole movie, was left out; None if nothing was.
        predicted: the predicted genres.
        scores: of all genres, in the order to show them.
        thresholds: of all genres.
        poster: of the movie; None without one.
        explanation: of the scores; None without one.
        explained: the genres whose reasons are shown.
    """
    picture, no_poster = (None, "") if poster is None else thumbnail(poster)
    reasons = []
    methods: Mapping[str, BranchExplanation] = {}
    if explanation is not None:
        reasons = [_reason(explanation, genre, picture) for genre in explained]
        methods = explanation.branches
    return render_fragment(
        "genre_lightning.predicting",
        "prediction",
        styles=["card.css"],
        filters={"digits_beside": digits_beside, "number": number, "signed": signed},
        title=title or "",
        problem=problem,
        predicted=predicted,
        scores=scores,
        thresholds=thresholds,
        poster=None if picture is None else data_uri(picture),
        no_poster=no_poster,
        reasons=reasons,
        methods=list(dict.fromkeys(branch.method for branch in methods.values())),
    )


def _reason(explanation: MovieExplanation, genre: str, picture: Image.Image | None) -> Reason:
    genre_index = explanation.genres.index(genre)
    return Reason(
        genre,
        float(explanation.parts.logits[genre_index]),
        float(explanation.parts.bias[genre_index]),
        [
            branch_card(
                label,
                branch not in explanation.absent,
                float(explanation.parts.branches[branch][genre_index]),
                genre_index,
                explanation.branches.get(branch),
                picture,
            )
            for branch, label in explanation.labels.items()
        ]
        + cooccurrence_card(explanation.parts, genre_index),
    )
