"""The gallery of a report: which movies to show, and what is said of each."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.explain.parts import (
    overlay,
    poster_heat_maps,
    score_parts,
    title_contributions,
)
from genre_lightning.inputs.decode import FORMATS, PosterError, decode_poster
from genre_lightning.movies.movie import PosterFile
from genre_lightning.report.evaluation import SplitScores

#: Pixels of a thumbnail's height; twice as many as the page shows.
_HEIGHT = 240
_QUALITY = 72
_ORIENTATION_TAG = 0x0112
_EPS = 1e-6
#: Words shown of a title, each of at least so much that two digits tell it from nothing.
_WORDS = 5
_SHOWN = 0.005
#: A card shows the true, the predicted and this many of the likeliest genres.
_LIKELIEST = 3


@dataclass(frozen=True)
class Pick:
    """A movie for the gallery.

    Attributes:
        index: its place in the split's scores.
        genre: the genre that it is shown for.
    """

    index: int
    genre: int


def margins(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(N, G) float64: how far each score lies above its threshold, in logits."""

    def logit(share: np.ndarray) -> np.ndarray:
        share = np.clip(share.astype(np.float64), _EPS, 1 - _EPS)
        difference: np.ndarray = np.log(share) - np.log1p(-share)
        return difference

    return logit(scores) - logit(thresholds)


def most_confident(
    scores: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    count: int,
    per_genre: int = 2,
) -> dict[str, list[Pick]]:
    """The predictions farthest on the right or the wrong side of their thresholds, in logits.

    Args:
        scores: (N, G) float32 in [0, 1].
        targets: (N, G) zeros and ones.
        thresholds: (G,) float32.
        count: movies in each list, each movie once.
        per_genre: movies that a list shows for the same genre, so that one does not fill it.

    Returns:
        "right": every genre as it should be, ordered by the least sure of those predicted;
        "invented": a genre predicted that the movie does not have; "missed": the reverse.
    """
    truth = np.asarray(targets) > 0
    predicted = scores >= thresholds
    margin = margins(scores, thresholds)

    exact = np.flatnonzero((truth == predicted).all(axis=1) & predicted.any(axis=1))
    least_sure = np.where(predicted[exact], margin[exact], np.inf)
    genre = least_sure.argmin(axis=1)
    cells = {"right": (exact, genre, least_sure.min(axis=1, initial=np.inf))}
    for name, mask in (("invented", predicted & ~truth), ("missed", truth & ~predicted)):
        rows, columns = np.nonzero(mask)
        cells[name] = (rows, columns, np.abs(margin[rows, columns]))
    return {name: _spread(*parts, count, per_genre) for name, parts in cells.items()}


def _spread(
    rows: np.ndarray, genres: np.ndarray, sureness: np.ndarray, count: int, per_genre: int
) -> list[Pick]:
    picks: list[Pick] = []
    shown: Counter[int] = Counter()
    seen: set[int] = set()
    for place in np.argsort(-sureness, kind="stable"):
        row, genre = int(rows[place]), int(genres[place])
        if row not in seen and shown[genre] < per_genre:
            seen.add(row)
            shown[genre] += 1
            picks.append(Pick(row, genre))
        if len(picks) == count:
            break
    return picks


@dataclass(frozen=True)
class GenreScore:
    """A genre on a card; ``verdict`` is "hit", "invented", "missed" or "" for rightly left out."""

    genre: str
    score: float
    threshold: float
    verdict: str


@dataclass(frozen=True)
class Explanation:
    """The parts of one genre's logit; None where the model has no such branch."""

    logit: float
    bias: float
    title: float | None
    poster: float | None
    words: list[tuple[str, float]]
    other_words: float


@dataclass(frozen=True)
class Card:
    """What the gallery says of one movie; images are data: URIs, None where there is none.

    ``nothing_speaks`` is True where a poster was seen and no place in it speaks for the genre.
    """

    title: str
    genre: str
    score: float
    threshold: float
    true_genres: list[str]
    genres: list[GenreScore]
    poster: str | None
    no_poster: str
    heat: str | None
    nothing_speaks: bool
    explanation: Explanation


def make_card(model: TrainedModel, data: MovieDataModule, scores: SplitScores, pick: Pick) -> Card:
    """Gather what is shown of a picked movie: its poster, scores and the parts of its logit."""
    row = int(scores.rows[pick.index])
    movie = data.movie_set.movies[row]
    values, truth = scores.scores[pick.index].numpy(), scores.targets[pick.index].numpy() > 0
    thresholds = model.thresholds.numpy()
    predicted = values >= thresholds
    shown = truth | predicted
    order = np.argsort(-values, kind="stable").tolist()
    for g in order[:_LIKELIEST]:
        shown[g] = True
    verdicts = {(True, True): "hit", (False, True): "invented", (True, False): "missed"}
    seen = _seen_by_model(data, row)
    heat, nothing_speaks = None, False
    poster, reason = (None, "no poster") if movie.poster is None else thumbnail(movie.poster)
    if seen is not None and model.network.poster is not None and poster is not None:
        (place,) = poster_heat_maps(model, seen, [pick.genre])
        nothing_speaks = not place.any()
        if not nothing_speaks:
            heat = overlay(seen, place).resize(poster.size, Image.Resampling.BICUBIC)
    return Card(
        title=movie.title,
        genre=model.genres[pick.genre],
        score=float(values[pick.genre]),
        threshold=float(thresholds[pick.genre]),
        true_genres=[model.genres[g] for g in np.flatnonzero(truth)],
        genres=[
            GenreScore(
                model.genres[g],
                float(values[g]),
                float(thresholds[g]),
                verdicts.get((bool(truth[g]), bool(predicted[g])), ""),
            )
            for g in order
            if shown[g]
        ],
        poster=None if poster is None else data_uri(poster),
        no_poster=reason,
        heat=None if heat is None else data_uri(heat),
        nothing_speaks=nothing_speaks,
        explanation=explain_genre(model, movie.title, seen, pick.genre),
    )


def explain_genre(
    model: TrainedModel, title: str, poster: np.ndarray | None, genre: int
) -> Explanation:
    """Split one genre's logit into bias, title and poster, and the title's part into its words.

    Args:
        model: on any device.
        title: as the dataset writes it.
        poster: (H, W, 3) uint8 as the model sees it, None for none.
        genre: its place in the model's genres.
    """
    parts = score_parts(model, title, poster)
    words: list[tuple[str, float]] = []
    others = 0.0
    if isinstance(model.network.title, TermsMLP):
        ranked = title_contributions(model, title).ranked(genre)
        added = [(part.text, float(part.contributions[genre])) for part in ranked]
        words = [(text, value) for text, value in added[:_WORDS] if abs(value) >= _SHOWN]
        others = sum(value for _, value in added[len(words) :])
    return Explanation(
        logit=float(parts.logits[genre]),
        bias=float(parts.bias[genre]),
        title=None if model.network.title is None else float(parts.title[genre]),
        poster=None if model.network.poster is None else float(parts.poster[genre]),
        words=words,
        other_words=others,
    )


def _seen_by_model(data: MovieDataModule, row: int) -> np.ndarray | None:
    if data.posters is None or data.posters.row[row] < 0:
        return None
    return np.array(data.posters.images[data.posters.row[row]])


def thumbnail(poster: PosterFile) -> tuple[Image.Image | None, str]:
    """A small picture in the poster's own proportions, or None and why there is none."""
    try:
        data = poster.read_bytes()
        pixels = decode_poster(data, _HEIGHT)
        width, height = _upright_size(data)
    except FileNotFoundError:
        return None, "poster not there"
    except (OSError, PosterError):
        return None, "poster unreadable"
    # Banners and ribbons are squeezed rather than left to break the page.
    proportion = min(max(width / height, 0.5), 1.0)
    size = (round(_HEIGHT * proportion), _HEIGHT)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), ""


def _upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image that ``decode_poster`` has read, as it is seen upright."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        try:
            turned = image.getexif().get(_ORIENTATION_TAG) in (5, 6, 7, 8)
        except Exception:  # noqa: BLE001 - on a damaged block Pillow's reader raises anything
            turned = False
        return (image.height, image.width) if turned else (image.width, image.height)


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG inside of a URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def make_gallery(
    model: TrainedModel, data: MovieDataModule, scores: SplitScores, count: int
) -> dict[str, list[Card]]:
    """The cards of each list of :func:`most_confident`."""
    picks = most_confident(
        scores.scores.numpy(), scores.targets.numpy(), model.thresholds.numpy(), count
    )
    return {
        name: [make_card(model, data, scores, pick) for pick in chosen]
        for name, chosen in picks.items()
    }
