"""What is shown of one movie: its poster in small, and what each branch says for a genre."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from genre_lightning.errors import InputError
from genre_lightning.explain.explainer import BranchExplanation, ImageExplanation, TextExplanation
from genre_lightning.explain.parts import ScoreParts
from genre_lightning.explain.pictures import lay_over, proportions
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.pixels import read_poster
from genre_lightning.movies.movie import PosterFile
from genre_lightning.wording import shortened

#: Pixels of a thumbnail's height; twice as many as are shown.
HEIGHT = 240
_QUALITY = 72
#: What people call the part of a score that comes from the scores of all genres.
CO_OCCURRENCE = "co-occurrence"
#: Words shown of a text, each of at least so much that two digits tell it from nothing.
_WORDS = 5
_SHOWN = 0.005
#: Characters of a word that are shown, as in webapp/page/page.js: text without a space may have
#: thousands.
_LONG_WORD = 60


@dataclass(frozen=True)
class BranchCard:
    """What a card says of one branch, for one genre.

    Attributes:
        label: what to call the branch.
        absent: the movie lacks the branch's column.
        part: what it adds to the logit; 0 where absent.
        words: of a text, those that add most, and what they add.
        other_words: what the rest of them add; None where words don't sum to the part.
        heat: an image with the places that speak for the genre, a data: URI.
        nothing_speaks: the branch saw an image, and no place in it speaks for the genre.
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
    """What is shown of one branch.

    Args:
        label: what to call it.
        present: whether the movie has its column.
        part: what it adds to the genre's logit.
        genre: the genre's place.
        found: its explanation; None where there is none.
        picture: what a heat map is laid over, a thumbnail; None for no heat map.
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
            heat = data_uri(lay_over(np.asarray(picture), places, picture.size))
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
    """What the scores of all genres add to one, as a branch's; nothing where they add nothing."""
    if parts.cooccurrence is None:
        return []
    return [branch_card(CO_OCCURRENCE, True, float(parts.cooccurrence[genre]), genre, None, None)]


def thumbnail(poster: PosterFile | Value) -> tuple[Image.Image | None, str]:
    """A small picture of a poster, in its own proportions within bounds; None, and why, for none.

    Args:
        poster: of a dataset; or as a user hands it in, see :func:`read_poster`.
    """
    try:
        image = poster.read_bytes() if isinstance(poster, PosterFile) else poster
        pixels = read_poster(image, (HEIGHT, HEIGHT))
        width, height = proportions(image)
    except (OSError, InputError) as error:
        gone = any(isinstance(each, FileNotFoundError) for each in (error, error.__cause__))
        return None, "poster not there" if gone else "poster unreadable"
    # Banners and ribbons are squeezed rather than left to break the page.
    size = (round(HEIGHT * min(max(width / height, 0.5), 1.0)), HEIGHT)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), ""


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG inside of a URI."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
