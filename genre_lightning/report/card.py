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
HEIGHT = 240
_QUALITY = 72
#: Label of the part of a logit that comes from the scores of all genres.
CO_OCCURRENCE = "co-occurrence"
#: Number of words shown of a text, and the least that each adds: less would be displayed as 0.00.
_WORDS = 5
_SHOWN = 0.005
#: Characters shown of a word, as in webapp/page/page.js: text without spaces can have thousands.
_LONG_WORD = 60


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
        nothing_speaks: whether the branch read an image without any evidence for the genre.
    """

    label: str
    absent: bool
    part: float
    words: list[tuple[str, float]]
    other_words: float | None
    heat: str | None
    nothing_speaks: bool


def branch_card(
    label: str,
    present: bool,
    part: float,
    genre: int,
    found: BranchExplanation | None,
    picture: Image.Image | None,
) -> BranchCard:
    """Build the card of one branch.

    Args:
        label: displayed name of the branch.
        present: whether the movie has the branch's column.
        part: what the branch adds to the genre's logit.
        genre: the genre's index.
        found: the branch's explanation; None if there is none.
        picture: thumbnail to lay a heat map over; None for no heat map.
    """
    words: list[tuple[str, float]] = []
    others = heat = None
    nothing_speaks = False
    if isinstance(found, TextExplanation):
        ranked = found.ranked(genre)
        words = [
            (shortened(text, _LONG_WORD), value)
            for text, value in ranked[:_WORDS]
            if abs(value) >= _SHOWN
        ]
        if found.exact:
            others = sum(value for _, value in ranked[len(words) :])
    elif isinstance(found, ImageExplanation) and picture is not None:
        (places,) = found.heat_maps([genre])
        nothing_speaks = not places.any()
        if not nothing_speaks:
            heat = data_uri(overlay_resized(np.asarray(picture), places, picture.size))
    return BranchCard(
        label=label,
        absent=not present,
        part=part,
        words=words,
        other_words=others,
        heat=heat,
        nothing_speaks=nothing_speaks,
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
        pixels = read_poster(image, (HEIGHT, HEIGHT))
        width, height = upright_dimensions(image)
    except (OSError, InputError) as error:
        gone = any(isinstance(each, FileNotFoundError) for each in (error, error.__cause__))
        return None, "poster not there" if gone else "poster unreadable"
    # Very wide or tall images are squeezed so that they don't break the page.
    size = (round(HEIGHT * min(max(width / height, 0.5), 1.0)), HEIGHT)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), ""


def data_uri(image: Image.Image) -> str:
    """Encode the image as a JPEG in a data: URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
