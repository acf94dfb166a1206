"""What an explanation of a branch is, and what can make one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.heat import check_genres
from genre_lightning.inputs.encode import encode_items, read_column
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.part import Part


@dataclass(frozen=True)
class TextPart:
    """A word of a text, or a title's release year, and what it adds.

    Attributes:
        text: as written ("Schindler's"), "released in 1993" for the year.
        kind: "word" or "year".
        span: start and end of its characters in the text; None where normalisation has changed the
            text too much to tell.
        contributions: (G,) float64, added to the logits.
    """

    text: str
    kind: str
    span: tuple[int, int] | None
    contributions: np.ndarray


@dataclass(frozen=True)
class TextExplanation:
    """What each part of a text adds to the logits of its branch.

    Attributes:
        method: how it was found, for people, such as "integrated gradients, exact".
        text: as given.
        parts: words, or groups of them, in their order, then the year where there is one that the
            model looks at. A word that the model does not know is there with zeros.
        exact: whether the parts sum to ``total``.
        total: (G,) float64, the branch's part of the score.
    """

    method: str
    text: str
    parts: tuple[TextPart, ...]
    exact: bool
    total: np.ndarray

    def weighted(self, weights: np.ndarray) -> TextExplanation:
        """The same with all that is added multiplied by (G,) weights."""
        parts = [replace(part, contributions=part.contributions * weights) for part in self.parts]
        return replace(self, parts=tuple(parts), total=self.total * weights)

    def ranked(self, genre: int, count: int | None = None) -> list[tuple[str, float]]:
        """The words that matter most for a genre, for or against it, first.

        A word that occurs several times is listed once, with the sum; one that adds 0 is left out.

        Args:
            genre: its place in the model's genres.
            count: how many; None for all.
        """
        written: dict[str, str] = {}
        added: dict[str, float] = {}
        for part in self.parts:
            word = part.text.casefold()
            written.setdefault(word, part.text)
            added[word] = added.get(word, 0.0) + float(part.contributions[genre])
        found = [(written[word], value) for word, value in added.items() if value != 0]
        found.sort(key=lambda word: -abs(word[1]))
        return found[:count]


@dataclass(frozen=True)
class ImageExplanation:
    """Where in an image the evidence for a genre lies.

    Attributes:
        method: how it is found, for people, such as "Grad-CAM".
        image: as given; heat maps are laid over it by
            :func:`genre_lightning.explain.pictures.heat_pictures`.
        heat_maps: K places of genres to (K, H, W) float32 in [0, 1], over the whole image squeezed
            to H x W. A map of zeros says that nothing speaks for the genre. Raises IndexError where
            there is no such genre.
        num_genres: G, of the model.
    """

    method: str
    image: Value
    heat_maps: Callable[[Sequence[int]], np.ndarray]
    num_genres: int

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the maps of all genres, in place of the model that computes them."""
        computed = self.heat_maps(range(self.num_genres))
        return {**self.__dict__, "heat_maps": ComputedHeatMaps(computed)}


@dataclass(frozen=True)
class ComputedHeatMaps:
    """The ``heat_maps`` of an :class:`ImageExplanation`, (G, H, W), without the model."""

    maps: np.ndarray

    def __call__(self, genres: Sequence[int]) -> np.ndarray:
        """(K, H, W) of these genres."""
        check_genres(genres, len(self.maps))
        return self.maps[list(genres)]


BranchExplanation = TextExplanation | ImageExplanation


class Explainer(ABC):
    """Takes apart what a branch of one kind says.

    To add one: a final class with these methods, and a line in ``explain/table.py``.

    Attributes:
        method: how it does it, for people.
        gives: "words" or "heat map".
    """

    method: ClassVar[str]
    gives: ClassVar[str]

    @abstractmethod
    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray | None:
        """(G,) float64 logits of a value that says nothing, such as an empty text.

        They are part of the bias of every movie that has the column. None for no such value.
        """

    @abstractmethod
    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> BranchExplanation | None:
        """Explain what a branch says of a value; None where its input finds nothing in it.

        Args:
            model: in evaluation mode, as ``load_model`` gives it.
            branch: its name.
            value: of the branch's column, as for the ``read`` of its input, whose errors it raises.
            budget: the most values that may be encoded for it, where many explanations are wanted;
                what can't be told word by word is then told by groups of words. Of encoders that
                cost much, fewer are. None for the explainer's own limit.
        """


def read_columns(model: TrainedModel, columns: Mapping[str, Value | None]) -> dict[str, Any]:
    """By branch, what its input reads in its column; None for a branch whose column is absent."""
    found: dict[str, Any] = dict.fromkeys(model.inputs)
    for column in model.columns:
        found |= read_column(model.inputs, column, columns.get(column))
    return found


def encode_one(model: TrainedModel, branch: str, item: Any) -> Part:
    """The prepared part of one movie for one branch, from what the branch's input read."""
    inputs = {branch: model.inputs[branch]}
    return encode_items(inputs, {branch: [item]}, model.device)[branch]


@torch.inference_mode()
def branch_logits(model: TrainedModel, branch: str, part: Part) -> np.ndarray:
    """(P, G) float64, what one branch says of a prepared part."""
    return float64(model.network.branches[branch](**part.numbers).float())


def float64(values: Tensor) -> np.ndarray:
    """The same numbers as an array of float64."""
    return np.asarray(values.detach().double().cpu().numpy())
