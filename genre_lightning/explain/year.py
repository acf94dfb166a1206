"""Contribution of a title's release year to a branch that looks only at the year."""

from __future__ import annotations

from typing import ClassVar, final

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import (
    Explainer,
    TextExplanation,
    TextPart,
    branch_logits,
    encode_one,
)
from genre_lightning.explain.terms import word_spans
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.titles import normalise_title


@final
class YearExplainer(Explainer):
    """Explains a branch by the year, its only input: the whole part of the branch is the year's."""

    method: ClassVar[str] = "the year alone, exact"
    gives: ClassVar[str] = "words"

    def baseline(self, model: TrainedModel, branch: str) -> None:
        """None, as there is no uninformative year."""

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> TextExplanation | None:
        year = model.inputs[branch].read(value)
        if year is None:
            return None
        total = branch_logits(model, branch, encode_one(model, branch, year))[0]
        _, span = word_spans(value, normalise_title(value)[0].split())
        part = TextPart(f"released in {year}", "year", span, total)
        return TextExplanation(self.method, value, (part,), True, total)
