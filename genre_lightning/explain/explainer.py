"""Explanations of a branch, and the interface of the classes that make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.heat import check_genres
from genre_lightning.inputs.encode import encode_items, read_column
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.part import Part
from genre_lightning.models.fusion import num_members
from genre_lightning.models.members import networks_of


@dataclass(frozen=True)
class TextPart:
    """A word of a text, or a title's release year, and its contributions to the logits.

    Attributes:
        text: as written ("Schindler's"), or "released in 1993" for the year.
        kind: "word" or "year".
        span: start and end of its characters in the text; None if normalisation has changed the
            text too much to locate them.
        contributions: (G,) float64, added to the logits.
    """

    text: str
    kind: str
    span: tuple[int, int] | None
    contributions: np.ndarray


@dataclass(frozen=True)
class TextExplanation:
    """The contributions of a text's parts to the logits of a branch.

    Attributes:
        method: name of the method for people, such as "integrated gradients, exact".
        text: as given.
        parts: words, or groups of words, in the order of the text, then the year if the model looks
            at it. Words that the model does not know have contributions of zero.
        exact: whether the parts sum to ``total``.
        total: (G,) float64, the branch's part of the score.
    """

    method: str
    text: str
    parts: tuple[TextPart, ...]
    exact: bool
    total: np.ndarray

    def weighted(self, weights: np.ndarray) -> TextExplanation:
        """Return a copy with all contributions multiplied by (G,) weights."""
        parts = [replace(part, contributions=part.contributions * weights) for part in self.parts]
        return replace(self, parts=tuple(parts), total=self.total * weights)

    def ranked(self, genre: int, count: int | None = None) -> list[tuple[str, float]]:
        """Words and their contributions to a genre, those with the largest magnitude first.

        A word that occurs several times is listed once, with the sum of its contributions. Words
        that add 0 are left out.

        Args:
            genre: index in the model's genres.
            count: the most words to return; None for all.
        """
        spelling: dict[str, str] = {}
        sums: dict[str, float] = {}
        for part in self.parts:
            word = part.text.casefold()
            spelling.setdefault(word, part.text)
            sums[word] = sums.get(word, 0.0) + float(part.contributions[genre])
        ranking = [(spelling[word], value) for word, value in sums.items() if value != 0]
        ranking.sort(key=lambda word: -abs(word[1]))
        return ranking[:count]


@dataclass(frozen=True)
class ImageExplanation:
    """Heat maps of where in an image the evidence for a genre lies.

    Attributes:
        method: name of the method for people, such as "Grad-CAM".
        image: as given; :func:`genre_lightning.explain.pictures.heat_pictures` overlays heat maps
            on it.
        heat_maps: function from K genre indices to (K, H, W) float32 in [0, 1], over the whole
            image resized to H x W. A map of zeros means no evidence for the genre. Raises
            IndexError for a genre that does not exist.
        num_genres: G, of the model.
    """

    method: str
    image: Value
    heat_maps: Callable[[Sequence[int]], np.ndarray]
    num_genres: int

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the maps of all genres instead of the model that computes them."""
        computed = self.heat_maps(range(self.num_genres))
        return {**self.__dict__, "heat_maps": ComputedHeatMaps(computed)}


@dataclass(frozen=True)
class ComputedHeatMaps:
    """Precomputed ``heat_maps`` of an :class:`ImageExplanation`, (G, H, W), without the model."""

    maps: np.ndarray

    def __call__(self, genres: Sequence[int]) -> np.ndarray:
        """The (K, H, W) maps of these genres."""
        check_genres(genres, len(self.maps))
        return self.maps[list(genres)]


BranchExplanation = TextExplanation | ImageExplanation


class Explainer(ABC):
    """Explains the logits of one kind of branch.

    To add an explainer, write a final class with these methods and list it in ``explain/table.py``.

    Attributes:
        method: name of the method for people.
        gives: "words" or "heat map".
    """

    method: ClassVar[str]
    gives: ClassVar[str]

    @abstractmethod
    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray | None:
        """(G,) float64 logits of an uninformative value, such as an empty text.

        They are part of the bias of every movie that has the column. None without such a value.
        """

    @abstractmethod
    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> BranchExplanation | None:
        """Explain the logits of a branch; None if its input finds nothing in the value.

        Args:
            model: in evaluation mode, as returned by ``load_model``.
            branch: name of the branch.
            value: of the branch's column, as passed to the ``read`` of its input, whose errors it
                raises.
            budget: the most values to encode for this explanation, fewer for costly encoders, when
                many explanations are needed; words are then grouped to stay within it. None for the
                explainer's own limit.
        """


def read_columns(model: TrainedModel, columns: Mapping[str, Value | None]) -> dict[str, Any]:
    """Read a movie's columns with the input of each branch; None for an absent column."""
    items: dict[str, Any] = dict.fromkeys(model.inputs)
    for column in model.columns:
        items |= read_column(model.inputs, column, columns.get(column))
    return items


def encode_one(model: TrainedModel, branch: str, item: Any) -> Part:
    """The prepared part of one movie for one branch.

    Args:
        model: of the branch.
        branch: name of the branch.
        item: the result of the ``read`` of the branch's input.
    """
    inputs = {branch: model.inputs[branch]}
    return encode_items(inputs, {branch: [item]}, model.device)[branch]


@torch.inference_mode()
def branch_logits(model: TrainedModel, branch: str, part: Part) -> np.ndarray:
    """(P, G) float64 logits of one branch for a prepared part, by ``model.member`` if it is set."""
    arguments = member_arguments(model, branch, len(part))
    return float64(model.network.branches[branch](**part.numbers, **arguments).float())


def member_arguments(model: TrainedModel, branch: str, num_rows: int) -> dict[str, Tensor]:
    """Arguments with which a branch scores rows by ``model.member`` alone, if that is set."""
    if model.member is None or num_members(model.network.branches[branch]) == 1:
        return {}
    return {"folds": torch.full((num_rows,), model.member, device=model.device)}


def explained_networks(model: TrainedModel, branch: str) -> list[nn.Module]:
    """The networks of a branch whose mean is explained: all, or that of ``model.member`` alone."""
    networks = networks_of(model.network.branches[branch])
    return networks if model.member is None or len(networks) == 1 else [networks[model.member]]


def float64(values: Tensor) -> np.ndarray:
    """Convert a tensor to a float64 array."""
    return np.asarray(values.detach().double().cpu().numpy())
