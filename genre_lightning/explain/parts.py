"""Why a model scores a movie so: the score's parts, the title's words, the poster's places.

Logits are summed, so a score splits exactly into what the model says of any movie (bias), what the
title adds and what the poster adds. The title's part splits further, again exactly, into its terms
by Integrated Gradients (Sundararajan et al. 2017, "Axiomatic attribution for deep networks") from
the empty title. Heat maps over the poster are Grad-CAM (Selvaraju et al. 2017): they show where the
evidence lies and don't add up to anything.
"""

from __future__ import annotations

import copy
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.inputs.decode import decode_poster
from genre_lightning.inputs.terms import TitleVectorizer, normalise_title

#: How far parts may be from their sum: rounding of float32 logits.
_TOLERANCE = 1e-4

#: The least height and width of features from which a heat map is made, where there are any such.
_LEAST_PLACES = 7

_ORIENTATION_TAG = 0x0112  # of EXIF

#: Colours of a heat map from cold to hot, evenly spaced: matplotlib's "inferno", whose lightness
#: grows evenly and which colour-blind people read as well.
_INFERNO = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class ScoreParts:
    """What a movie's logits are made of; each (G,) float64.

    Attributes:
        bias: of a movie with an empty title and no poster.
        title: what the title changes; zero without a title.
        poster: what the poster adds; zero without a poster.
    """

    bias: np.ndarray
    title: np.ndarray
    poster: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        """(G,) float64, the sum."""
        return self.bias + self.title + self.poster


@dataclass(frozen=True)
class TitlePart:
    """A word of a title, or its release year, and what it adds.

    Attributes:
        text: as written in the title ("Schindler's"), "released in 1993" for the year.
        kind: "word" or "year".
        span: start and end of its characters in the title; None where normalisation has changed
            the title beyond telling.
        contributions: (G,) float64, added to the logits.
    """

    text: str
    kind: str
    span: tuple[int, int] | None
    contributions: np.ndarray


@dataclass(frozen=True)
class TitleExplanation:
    """What each part of a title adds to the logits, against an empty title.

    Both ``parts`` and ``contributions`` sum to the change of the title branch's logits.

    Attributes:
        title: as given.
        parts: words in their order, then the year where the title has one that the model knows
            about. A word that the vocabulary doesn't know is there with zeros.
        terms: T terms of the vocabulary found in the title; "decade 1990" for the year's.
        contributions: (T, G) float64 of the terms.
        total: (G,) float64, logits of the title less those of the empty title.
    """

    title: str
    parts: tuple[TitlePart, ...]
    terms: tuple[str, ...]
    contributions: np.ndarray
    total: np.ndarray

    def ranked(self, genre: int, count: int | None = None) -> list[TitlePart]:
        """The parts that matter most for a genre, for or against it, first; zeros left out.

        Args:
            genre: its place in the model's genres.
            count: how many; None for all.
        """
        parts = [part for part in self.parts if part.contributions[genre] != 0]
        parts.sort(key=lambda part: -abs(float(part.contributions[genre])))
        return parts[:count]


def score_parts(model: TrainedModel, title: str | None, poster: np.ndarray | None) -> ScoreParts:
    """Split the logits of one movie into bias, title and poster.

    Args:
        model: in evaluation mode, as ``load_model`` gives it.
        title: None or "" for none.
        poster: (H, W, 3) uint8 RGB; resized to the model's size where it has another. None for
            none.

    Raises:
        ValueError: the poster is no such array.
    """
    bias = _float64(model.network.prior)
    title_part = poster_part = np.zeros(len(model.genres))
    with torch.inference_mode():
        if model.network.title is not None:
            empty, whole = _title_logits(model, ["", title or ""])
            bias, title_part = bias + empty, whole - empty
        if model.network.poster is not None and poster is not None:
            pixels = _poster_input(model, poster)
            poster_part = _float64(model.network.poster(pixels).float())[0]
    return ScoreParts(bias, title_part, poster_part)


def title_contributions(model: TrainedModel, title: str) -> TitleExplanation:
    """What each term, word and the year of a title add to the logits, by Integrated Gradients.

    On the straight way from the empty title to this one every hidden unit's input changes linearly,
    so a ReLU switches at most once and the gradients' integral has a closed form: nothing is
    sampled. A term's part is divided among the places where it stands, equally, and there among
    the words it covers, by characters: an n-gram within a word goes to that word alone.

    Raises:
        ValueError: the model has no title branch.
        TypeError: its title branch is of a kind that this can't take apart.
    """
    branch = model.network.title
    if branch is None:
        raise ValueError("this model has no title branch, so no title can be explained")
    if not isinstance(branch, TermsMLP):
        raise TypeError(f"only a TermsMLP can be explained exactly, not {type(branch).__name__}")
    row = model.titles.transform([title])
    columns = row.indices.astype(np.int64)
    with torch.inference_mode():
        contributions = _integrated_gradients(
            branch, torch.from_numpy(columns), torch.from_numpy(row.weights)
        )
        empty, whole = _title_logits(model, ["", title])
    total = whole - empty
    error = float(np.abs(contributions.sum(0) - total).max(initial=0.0))
    if error > _TOLERANCE * max(1.0, float(np.abs(whole).max(initial=0.0))):
        raise RuntimeError(
            f"the parts of the title differ from their sum by {error:.2g}: TermsMLP has changed "
            "and explain.py has not"
        )
    names = [
        f"decade {model.titles.name(column)}"
        if model.titles.is_decade(column)
        else model.titles.name(column)
        for column in columns.tolist()
    ]
    parts = _title_parts(model.titles, title, columns, contributions)
    return TitleExplanation(title, parts, tuple(names), contributions, total)


def poster_heat_maps(model: TrainedModel, poster: np.ndarray, genres: Sequence[int]) -> np.ndarray:
    """Grad-CAM: where in a poster the evidence for each of K genres lies.

    Taken at the deepest block of ``PosterResNet.stages`` whose features still have 7 x 7 places (as
    in the paper's networks), not at the last one, which may have 2 x 2: those tell little of where,
    and blanking what they call hot lowers the logit less. Only evidence for a genre is shown; each
    map is scaled to a maximum of 1, so maps tell places and not amounts (those are in
    :func:`score_parts`). A map of zeros says that nothing speaks for the genre.

    Args:
        model: in evaluation mode, as ``load_model`` gives it.
        poster: (H, W, 3) uint8 RGB, of any size.
        genres: places of K genres in the model's genres.

    Returns:
        (K, H, W) float32 in [0, 1].

    Raises:
        ValueError: the model has no poster branch, or the poster is no such array.
        IndexError: there is no such genre.
    """
    if model.network.poster is None:
        raise ValueError("this model has no poster branch, so no poster can be explained")
    for genre in genres:
        if not 0 <= genre < len(model.genres):
            raise IndexError(f"genre {genre} of {len(model.genres)}")
    height, width = poster.shape[:2]
    if not genres:
        return np.zeros((0, height, width), dtype=np.float32)
    with torch.inference_mode(False), torch.enable_grad():
        probe, tap = _tapped(model.network.poster)
        logits = probe(_poster_input(model, poster))[0]
        maps = []
        for genre in genres:
            (gradient,) = torch.autograd.grad(logits[genre], tap.features, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            maps.append(torch.relu((weights * tap.features).sum(1, keepdim=True)).detach())
        heat = torch.cat(maps).float()
        heat = F.interpolate(heat, (height, width), mode="bilinear", align_corners=False)
        heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    return np.asarray(heat[:, 0].cpu().numpy())


def overlay(poster: np.ndarray, heat: np.ndarray, strength: float = 0.65) -> Image.Image:
    """A poster with a heat map laid over it: where it is cold the poster is seen in dim gray.

    Args:
        poster: (H, W, 3) uint8 RGB.
        heat: (H, W) in [0, 1], one map of :func:`poster_heat_maps`.
        strength: share of the colour where it is hottest, in 0..1.

    Raises:
        ValueError: they differ in size.
    """
    if heat.shape != poster.shape[:2]:
        raise ValueError(f"a heat map of {heat.shape} for a poster of {poster.shape[:2]}")
    place = np.clip(heat, 0.0, 1.0) * (len(_INFERNO) - 1)
    steps = np.arange(len(_INFERNO))
    colours = np.stack([np.interp(place, steps, _INFERNO[:, c]) for c in range(3)], axis=-1)
    pixels = poster.astype(np.float32)
    gray = pixels @ np.array((0.299, 0.587, 0.114), dtype=np.float32)
    share = np.clip(heat, 0.0, 1.0)[..., None]
    base = 0.75 * gray[..., None] * (1 - share) + pixels * share
    alpha = strength * (0.25 + 0.75 * share)
    mixed = base * (1 - alpha) + colours * alpha
    return Image.fromarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8))


def heat_pictures(
    model: TrainedModel,
    poster: bytes | Path | Image.Image,
    genres: Sequence[int],
    side: int = 512,
) -> list[Image.Image]:
    """A poster in its own proportions with each of K genres' heat map laid over it.

    Args:
        model: as for :func:`poster_heat_maps`.
        poster: as for :func:`genre_lightning.inputs.decode.decode_poster`, whose errors it raises.
        genres: places of K genres in the model's genres.
        side: the longer side of the pictures in pixels.

    Returns:
        K RGB pictures.
    """
    pixels = decode_poster(poster, model.poster_size, model.poster_shrink)
    heat = poster_heat_maps(model, pixels, genres)
    # Both are squares here: posters are decoded squashed. The proportions come back at the end.
    shown = decode_poster(poster, side)
    width, height = _proportions(poster)
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = []
    for values in heat:
        big = Image.fromarray(values).resize((side, side), Image.Resampling.BILINEAR)
        picture = overlay(shown, np.asarray(big))
        pictures.append(picture.resize(size, Image.Resampling.LANCZOS))
    return pictures


def _proportions(poster: bytes | Path | Image.Image) -> tuple[int, int]:
    """Width and height of a poster that could be decoded, upright."""
    if isinstance(poster, Image.Image):
        size, exif = poster.size, poster.getexif()
    else:
        with Image.open(io.BytesIO(poster) if isinstance(poster, bytes) else poster) as image:
            size, exif = image.size, image.getexif()
    turned = exif.get(_ORIENTATION_TAG) in (5, 6, 7, 8)
    return (size[1], size[0]) if turned else size


def _float64(values: Tensor) -> np.ndarray:
    return np.asarray(values.double().cpu().numpy())


def _title_logits(model: TrainedModel, titles: Sequence[str]) -> np.ndarray:
    """(B, G) float64 logits of the title branch alone."""
    branch = model.network.title
    if branch is None:
        raise ValueError("this model has no title branch")
    rows = model.titles.transform(titles)
    device = next(branch.parameters()).device
    return _float64(
        branch(
            torch.from_numpy(rows.indices.astype(np.int64)).to(device),
            torch.from_numpy(rows.indptr[:-1]).to(device),
            torch.from_numpy(rows.weights).to(device),
        ).float()
    )


def _poster_input(model: TrainedModel, poster: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, h, w) float32, normalised, on the model's device."""
    if poster.ndim != 3 or poster.shape[2] != 3 or poster.dtype != np.uint8:
        raise ValueError(f"a poster is (H, W, 3) uint8, not {poster.shape} {poster.dtype}")
    side = model.poster_size // model.poster_shrink
    if poster.shape[:2] != (side, side):
        poster = decode_poster(Image.fromarray(poster), model.poster_size, model.poster_shrink)
    device = next(model.network.parameters()).device
    pixels = torch.from_numpy(np.array(poster))[None].permute(0, 3, 1, 2)
    return model.normalise(pixels.to(device))


def _integrated_gradients(branch: TermsMLP, columns: Tensor, weights: Tensor) -> np.ndarray:
    """(T, G) float64 contributions of T columns; see :func:`title_contributions`.

    The branch is ``head(relu(norm(sum of weights * embed)))``, BatchNorm with stored statistics,
    plus, where it has a ``skip``, an embedding bag straight to the logits.
    """
    device = branch.embed.weight.device
    columns = columns.to(device)
    weights = weights.to(device).double()[:, None]
    norm = branch.norm
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("the title branch's BatchNorm keeps no statistics")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    # Each term's share in the input of each hidden unit, and the input of an empty title.
    shares = weights * branch.embed.weight[columns].double() * scale
    start = norm.bias.double() - norm.running_mean.double() * scale
    way = shares.sum(0)
    # Which share of the way from start to start + way a unit is on, its input above zero.
    crossing = torch.where(way != 0, -start / way, torch.zeros_like(way)).clamp(0.0, 1.0)
    on = torch.where(way > 0, 1.0 - crossing, crossing)
    on = torch.where(way == 0, (start > 0).double(), on)
    contributions = (shares * on) @ branch.head.weight.double().T
    if branch.skip is not None:
        contributions = contributions + weights * branch.skip.weight[columns].double()
    return _float64(contributions)


def _title_parts(
    vectorizer: TitleVectorizer, title: str, columns: np.ndarray, contributions: np.ndarray
) -> tuple[TitlePart, ...]:
    """Sum the terms' (T, G) contributions over words and year."""
    text, year = normalise_title(title)
    words = text.split()
    # Number of the word that each character of the text belongs to, -1 for a space.
    owner = np.full(len(text), -1, dtype=np.int64)
    position = 0
    for number, word in enumerate(words):
        owner[position : position + len(word)] = number
        position += len(word) + 1
    place = {column: t for t, column in enumerate(columns.tolist())}
    # How much of each term goes to each word: (T, words), rows of terms sum to 1.
    share = np.zeros((len(columns), len(words)))
    for column, start, end in vectorizer.locate(text):
        covered = owner[start:end]
        covered = covered[covered >= 0]
        if not len(covered):  # a lone space: of the words beside it
            covered = owner[max(start - 1, 0) : end + 1]
            covered = covered[covered >= 0]
        np.add.at(share[place[column]], covered, 1.0 / len(covered))
    counts = share.sum(1, keepdims=True)
    share = np.divide(share, counts, out=np.zeros_like(share), where=counts > 0)
    spans, year_span = _word_spans(title, words)
    parts = [
        TitlePart(word if span is None else title[span[0] : span[1]], "word", span, added)
        for word, span, added in zip(words, spans, share.T @ contributions, strict=True)
    ]
    of_year = [t for t, column in enumerate(columns.tolist()) if vectorizer.is_decade(column)]
    if of_year:
        added = contributions[of_year].sum(0)
        parts.append(TitlePart(f"released in {year}", "year", year_span, added))
    return tuple(parts)


def _word_spans(
    title: str, words: Sequence[str]
) -> tuple[list[tuple[int, int] | None], tuple[int, int] | None]:
    """Where the words of a normalised title, and the year left out of it, stand in the title.

    Found by normalising it character by character. Where that gives other words, as it may in
    scripts whose letters change with their neighbours, nothing is known: None for each.
    """
    found: list[tuple[str, int, int]] = []
    open_word = False
    for index, character in enumerate(title):
        # Of one character, normalise_title gives it, nothing (an apostrophe) or a gap; between two
        # letters the last two can be told apart.
        piece = normalise_title(character)[0]
        if piece:
            if open_word:
                word, start, _ = found[-1]
                found[-1] = (word + piece, start, index + 1)
            else:
                found.append((piece, index, index + 1))
            open_word = True
        elif " " in normalise_title(f"a{character}b")[0]:
            open_word = False
    extra = len(found) - len(words)
    names = [unicodedata.normalize("NFKC", word) for word, _, _ in found]
    # The year is the last part in brackets, so of equal words the last one is it.
    for kept in range(len(words), -1, -1):
        if extra >= 0 and names[:kept] + names[kept + extra :] == list(words):
            spans = [(start, end) for _, start, end in found]
            left_out = spans[kept : kept + extra]
            year = (left_out[0][0], left_out[-1][1]) if left_out else None
            return [*spans[:kept], *spans[kept + extra :]], year
    return [None] * len(words), None


class _Tap(nn.Module):
    """Runs blocks one after another, keeping the features from which gradients are wanted."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks
        self.features = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        with torch.no_grad():
            for block in self.blocks:
                outputs.append(block(outputs[-1] if outputs else x))
        fine = [n for n, y in enumerate(outputs) if min(y.shape[2:]) >= _LEAST_PLACES]
        chosen = fine[-1] if fine else 0
        self.features = outputs[chosen].detach().requires_grad_()
        y = self.features
        for block in self.blocks[chosen + 1 :]:
            y = block(y)
        return y


def _tapped(poster: nn.Module) -> tuple[nn.Module, _Tap]:
    """A copy of the poster branch, sharing its weights, whose ``stages`` keep their features.

    A hook on the branch itself would also see what other threads run through it.
    """
    stages = getattr(poster, "stages", None)
    if not isinstance(stages, nn.Sequential):
        raise TypeError(f"{type(poster).__name__} has no stages to take features from")
    tap = _Tap(stages)
    probe = copy.copy(poster)
    probe.__dict__["_modules"] = {**poster._modules, "stages": tap}
    return probe, tap
