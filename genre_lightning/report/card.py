"""A movie's card: a thumbnail of its poster, and what each branch adds to a genre's logit."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from genre_lightning.errors import InputError
from genre_lightning.explain.explainer import BranchExplanation, ImageExplanation, TextExplanation
from genre_lightning.explain.parts import ScoreParts
from genre_lightning.explain.pictures import overlay_resized, upright_dimensions
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.pixels import read_poster
from genre_lightning.movies.movie import PosterFile
from genre_lightning.wording import shortened

#: Height of a thumbnail in pixels; about twice the displayed height.
THUMBNAIL_HEIGHT = 240
_JPEG_QUALITY = 72
#: Label of the part of a logit that comes from the scores of all genres.
CO_OCCURRENCE = "co-occurrence"
#: Number of words shown of a text, and the least that each adds: less would be displayed as 0.00.
_MAX_WORDS = 5
_MIN_CONTRIBUTION = 0.005
#: Characters shown of a word, as in webapp/page/page.js: text without spaces can have thousands.
_MAX_WORD_CHARACTERS = 60


@dataclass(frozen=True)
class BranchCard:
    """One branch's contribution to one genre, as shown on a card.

    Attributes:
        label: displayed name of the branch.
        absent: whether the movie lacks the branch's column.
        part: what the branch adds to the logit; 0 if absent.
        words: the words of a text that matter most, with what each adds.
        other_words: what the remaining words add; None if words don't sum to the part.
        heat: data: URI of an image that shows the evidence for the genre; None without one.
        no_evidence: whether the branch read an image without any evidence for the genre.
    """

    label: str
    absent: bool
    part: float
    words: list[tuple[str, float]]
    other_words: float | None
    heat: str | None
    no_evidence: bool


def branch_card(
    label: str,
    present: bool,
    part: float,
    genre: int,
    explanation: BranchExplanation | None,
    picture: Image.Image | None,
) -> BranchCard:
    """Build the card of one branch.

    Args:
        label: displayed name of the branch.
        present: whether the movie has the branch's column.
        part: what the branch adds to the genre's logit.
        genre: the genre's index.
        explanation: the branch's explanation; None if there is none.
        picture: thumbnail to lay a heat map over; None for no heat map.
    """
    words: list[tuple[str, float]] = []
    other_words = heat = None
    no_evidence = False
    if isinstance(explanation, TextExplanation):
        ranked = explanation.ranked(genre)
        words = [
            (shortened(text, _MAX_WORD_CHARACTERS), value)
            for text, value in ranked[:_MAX_WORDS]
            if abs(value) >= _MIN_CONTRIBUTION
        ]
        if explanation.exact:
            other_words = sum(value for _, value in ranked[len(words) :])
    elif isinstance(explanation, ImageExplanation) and picture is not None:
        (heat_map,) = explanation.heat_maps([genre])
        no_evidence = not heat_map.any()
        if not no_evidence:
            heat = data_uri(overlay_resized(np.asarray(picture), heat_map, picture.size))
    return BranchCard(
        label=label,
        absent=not present,
        part=part,
        words=words,
        other_words=other_words,
        heat=heat,
        no_evidence=no_evidence,
    )


def cooccurrence_card(parts: ScoreParts, genre: int) -> list[BranchCard]:
    """Build the card of the co-occurrence part; no card for a model without this part."""
    if parts.cooccurrence is None:
        return []
    return [branch_card(CO_OCCURRENCE, True, float(parts.cooccurrence[genre]), genre, None, None)]


def thumbnail(poster: PosterFile | Value) -> tuple[Image.Image | None, str]:
    """Return a poster's thumbnail and "", or None and the reason why there is none.

    Args:
        poster: a dataset's file, or a user's value, see :func:`read_poster`.
    """
    try:
        image = poster.read_bytes() if isinstance(poster, PosterFile) else poster
        pixels = read_poster(image, (THUMBNAIL_HEIGHT, THUMBNAIL_HEIGHT))
        width, height = upright_dimensions(image)
    except (OSError, InputError) as error:
        is_missing = any(isinstance(cause, FileNotFoundError) for cause in (error, error.__cause__))
        return None, "poster not there" if is_missing else "poster unreadable"
    # Very wide or tall images are squeezed so that they don't break the page.
    size = (round(THUMBNAIL_HEIGHT * min(max(width / height, 0.5), 1.0)), THUMBNAIL_HEIGHT)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), ""


def data_uri(image: Image.Image) -> str:
    """Encode the image as a JPEG in a data: URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
