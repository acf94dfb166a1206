"""Reader for a generated dataset: composed titles, drawn posters, no network.

It is a test bench for two branches. Half of the genres show only in the title (as a typical word
and, weakly, in the year), the other half only in the poster (as colour and texture), so a model
needs both. As in real data, genres are correlated and imbalanced, some posters are missing, and
some movies show a genre they don't have or hide one they have.

The same seed gives the same titles, genres and drawings on every machine: no fonts or files are
used.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw

from genre_lightning.movies.movie import (
    DataError,
    Movie,
    MovieSet,
    PosterFile,
    without_empty,
)
from genre_lightning.store import content_key, stored_folder
from genre_lightning.wording import counted

# Raise it when the drawing changes, so that posters stored by an earlier version are not used.
DRAWING_VERSION = 1

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi", "Thriller", "Western")
TITLE_GENRES = ("Drama", "Romance", "Thriller", "Western")
POSTER_GENRES = ("Action", "Comedy", "Horror", "Sci-Fi")
# Frequency of each genre, before movies without any get their likeliest one.
FREQUENCY = {
    "Action": 0.24,
    "Comedy": 0.34,
    "Drama": 0.38,
    "Horror": 0.13,
    "Romance": 0.20,
    "Sci-Fi": 0.10,
    "Thriller": 0.18,
    "Western": 0.07,
}
# Correlation of the normal variables whose tails are the genres; other pairs are independent.
CORRELATION = {
    ("Action", "Sci-Fi"): 0.35,
    ("Action", "Thriller"): 0.35,
    ("Horror", "Thriller"): 0.30,
    ("Comedy", "Romance"): 0.25,
    ("Drama", "Romance"): 0.25,
    ("Comedy", "Drama"): -0.30,
    ("Comedy", "Horror"): -0.25,
}
SHOW_PROBABILITY = 0.93  # chance that a movie shows a genre it has
FALSE_SHOW_PROBABILITY = 0.03  # chance that it shows one it doesn't have


def _words(text: str) -> list[str]:
    return text.split()


WORDS = {
    "Drama": _words(
        "Sorrow Silence Mother Winter Letter Orphan Harvest Father Regret Memory Daughter Journey "
        "Promise Teacher Widow Forgiveness"
    ),
    "Romance": _words(
        "Love Kiss Wedding Heart Bride Valentine Sweetheart Honeymoon Darling Embrace Lover Waltz "
        "Passion Bouquet Proposal Romeo"
    ),
    "Thriller": _words(
        "Conspiracy Witness Stranger Ransom Hostage Suspect Alibi Deception Informer Blackmail "
        "Fugitive Cipher Pursuit Betrayal Assassin Evidence"
    ),
    "Western": _words(
        "Gunsmoke Saddle Sheriff Canyon Outlaw Stagecoach Rodeo Cowboy Prairie Mustang Bounty "
        "Lasso Ranch Frontier Marshal Wrangler"
    ),
}
NOUNS = _words(
    "Garden River House Road Summer Window Island Mirror Bridge Morning Station Harbor Street "
    "Mountain Season Circus Tower Ocean Clock Lantern Village Hotel Forest Number Picture Train"
)
ADJECTIVES = _words(
    "Golden Broken Little Quiet Blue Lost Last Hidden Distant Wild Crooked Silver Empty Green "
    "Endless Secret Great Strange Early Crimson Foolish Lucky Burning Long"
)
PLACES = _words(
    "Lisbon Vienna Dakota Havana Normandy Brooklyn Kyoto Málaga Cairo Ohio Bergen Tahiti"
)
NAMES = _words("Anna Walter Josephine Miguel Clara Henry Zoë Arthur Louise Victor Nadia Émile")
# Mean year of a genre's movies: a weak signal, as in real titles.
YEARS = {"Drama": 1976, "Romance": 1968, "Thriller": 1987, "Western": 1955}


def read_demo(
    root: str | Path,
    num_movies: int = 1200,
    seed: int = 0,
    poster_height: int = 256,
    missing_posters: float = 0.1,
    test_fraction: float = 0.2,
) -> MovieSet:
    """Generate movies; their posters are drawn once, in a folder below ``root``, and then reused.

    The last ``test_fraction`` of the movies are the test split, the others train.

    Args:
        root: where the drawn posters are kept.
        num_movies: 20 to 100,000.
        seed: seed of all random draws.
        poster_height: pixels, 32 to 2048; the width is two thirds of it.
        missing_posters: share of the movies without a poster.
        test_fraction: share of the movies in the test split.

    Raises:
        DataError: an option is out of range.
        OSError: the posters can't be written.
    """
    if not 20 <= num_movies <= 100_000:
        raise DataError(f"data.num_movies={num_movies} must lie between 20 and 100,000")
    if not 32 <= poster_height <= 2048:
        raise DataError(f"data.poster_height={poster_height} must lie between 32 and 2048")
    if not 0.0 <= missing_posters <= 1.0:
        raise DataError(f"data.missing_posters={missing_posters} must lie between 0 and 1")
    if not 0.0 < test_fraction < 1.0:
        raise DataError(f"data.test_fraction={test_fraction} must lie between 0 and 1")
    num_test = round(test_fraction * num_movies)
    if not 0 < num_test < num_movies:
        raise DataError(f"data.test_fraction={test_fraction} leaves a split of the demo empty")

    rng = np.random.default_rng([seed, 0])
    labels = draw_labels(rng, num_movies)
    titles = [compose_title(rng, [GENRES[g] for g in np.flatnonzero(row)]) for row in labels]
    with_poster = np.flatnonzero(rng.random(num_movies) >= missing_posters)

    def build(folder: Path) -> None:
        def draw(index: int) -> None:
            genres = [GENRES[g] for g in np.flatnonzero(labels[index])]
            data = draw_poster(np.random.default_rng([seed, 1, index]), genres, poster_height)
            (folder / _poster_name(index)).write_bytes(data)

        # Pillow and most of NumPy release the GIL.
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(draw, with_poster.tolist()):
                pass

    def check(folder: Path) -> str | None:
        existing = set(os.listdir(folder))
        missing = [i for i in with_poster.tolist() if _poster_name(i) not in existing]
        return (
            f"{counted(len(missing), 'poster')} missing, {_poster_name(missing[0])} first"
            if missing
            else None
        )

    key = content_key(
        "demo", DRAWING_VERSION, num_movies, seed, poster_height, float(missing_posters)
    )
    folder = stored_folder(root, "demo", key, build, check)
    posters = {index: PosterFile.at(folder / _poster_name(index)) for index in with_poster.tolist()}
    movies = [
        Movie(
            id=str(index + 1),
            columns=without_empty({"title": titles[index], "poster": posters.get(index)}),
            genres=tuple(GENRES[g] for g in np.flatnonzero(labels[index])),
            split="test" if index >= num_movies - num_test else "train",
            where=f"demo:{index + 1}",
        )
        for index in range(num_movies)
    ]
    return MovieSet(movies, GENRES)


def draw_labels(rng: np.random.Generator, num_movies: int) -> np.ndarray:
    """Correlated labels, (N, G) bool, at least one per row: tails of joint normal variables."""
    covariance = np.eye(len(GENRES))
    for (first, second), value in CORRELATION.items():
        i, j = GENRES.index(first), GENRES.index(second)
        covariance[i, j] = covariance[j, i] = value
    # Cholesky, since the signs of an eigenbasis depend on the linear algebra library.
    normal = rng.standard_normal((num_movies, len(GENRES))) @ np.linalg.cholesky(covariance).T
    threshold = np.array([NormalDist().inv_cdf(1.0 - FREQUENCY[genre]) for genre in GENRES])
    margin = normal - threshold
    labels = margin > 0
    labels[np.arange(num_movies), margin.argmax(axis=1)] = True
    return labels


def compose_title(rng: np.random.Generator, genres: Iterable[str]) -> str:
    """A title in MovieLens' form, ``"Kiss of Vienna, The (1963)"``, that shows TITLE_GENRES."""
    own = [genre for genre in TITLE_GENRES if genre in genres]
    words = [_pick(rng, WORDS[genre]) for genre in _draw_shown_genres(rng, own, TITLE_GENRES)]
    words = [words[i] for i in rng.permutation(len(words))]
    adjective, noun = _pick(rng, ADJECTIVES), _pick(rng, NOUNS)
    name, place = _pick(rng, NAMES), _pick(rng, PLACES)
    if not words:
        forms = [f"{adjective} {noun}", f"{noun} of {place}", f"The {noun}", f"{name}'s {noun}"]
    elif len(words) == 1:
        (word,) = words
        forms = [
            f"{adjective} {word}",
            f"The {word} of {place}",
            f"{name}'s {word}",
            f"A {word} in {place}",
            f"The {adjective} {word}",
        ]
    elif len(words) == 2:
        forms = [f"{words[0]} and {words[1]}", f"The {words[0]}, the {adjective} {words[1]}"]
    else:
        forms = [f"{', '.join(words[:-1])} and {words[-1]}"]
    title = _pick(rng, forms)
    article, _, rest = title.partition(" ")
    if article in ("The", "A"):
        title = f"{rest}, {article}"
    mean = np.mean([YEARS[genre] for genre in own]) if own else 1980.0
    year = int(np.clip(np.rint(mean + 12.0 * rng.standard_normal()), 1919, 2000))
    return f"{title} ({year})"


def draw_poster(rng: np.random.Generator, genres: Iterable[str], height: int) -> bytes:
    """A JPEG, ``height`` x two thirds of it, that shows POSTER_GENRES.

    Comedy is bright and warm with confetti, Action has slanted bars, Sci-Fi has a neon grid with
    rings, and Horror is dark with red running down. Several genres are drawn on top of each other.
    Colours, places and sizes vary, and other shapes are distractors.
    """
    width = height * 2 // 3
    unit = height / 256.0
    shown = _draw_shown_genres(
        rng, [genre for genre in POSTER_GENRES if genre in genres], POSTER_GENRES
    )

    # Sky and ground: a gradient between two colours.
    if "Comedy" in shown:
        ends = np.array([[225, 160, 30], [250, 215, 110]]) + rng.integers(-25, 25, (2, 3))
    else:
        ends = rng.integers(55, 150, (2, 3)) + np.array([0, 0, 25])
    slope = np.linspace(0.0, 1.0, height)[:, None, None]
    background = ends[0] * (1.0 - slope) + ends[1] * slope  # (H, 1, 3)
    canvas = np.repeat(background, width, axis=1).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)

    def random_point() -> tuple[int, int]:
        return int(rng.integers(0, width)), int(rng.integers(0, height))

    def random_colour(low: int, high: int) -> tuple[int, int, int]:
        red, green, blue = rng.integers(low, high, 3).tolist()
        return red, green, blue

    for _ in range(int(rng.integers(2, 6))):  # distractors
        x, y = random_point()
        w, h = (rng.integers(15, 70, 2) * unit).tolist()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=random_colour(40, 190))
    if "Comedy" in shown:
        for _ in range(int(rng.integers(30, 50))):
            (x, y), r = random_point(), float(rng.integers(4, 9)) * unit
            draw.ellipse((x - r, y - r, x + r, y + r), fill=random_colour(120, 256))
    if "Action" in shown:
        step = float(rng.integers(26, 38)) * unit
        slant = height * float(rng.choice([-0.6, 0.6]))
        fill = (235, int(rng.integers(20, 80)), 20)
        for x in np.arange(-height + rng.random() * step, width + height, step).tolist():
            draw.line((x, 0, x + slant, height), fill=fill, width=max(1, round(8 * unit)))
    if "Sci-Fi" in shown:
        neon = (int(rng.integers(0, 60)), int(rng.integers(210, 256)), int(rng.integers(190, 256)))
        step = float(rng.integers(18, 28)) * unit
        thickness = max(1, round(3 * unit))
        for x in np.arange(rng.random() * step, width, step).tolist():
            draw.line((x, 0, x, height), fill=neon, width=thickness)
        for y in np.arange(rng.random() * step, height, step).tolist():
            draw.line((0, y, width, y), fill=neon, width=thickness)
        for _ in range(3):
            (x, y), r = random_point(), float(rng.integers(15, 35)) * unit
            draw.ellipse((x - r, y - r, x + r, y + r), outline=neon, width=2 * thickness)
    if "Horror" in shown:
        image = image.point([int(level * 0.35) for level in range(256)] * 3)
        draw = ImageDraw.Draw(image)
        blood = (int(rng.integers(150, 200)), 0, int(rng.integers(0, 30)))
        for x in np.arange(0.0, width, 16 * unit).tolist():
            half_width, length = 5.5 * unit, float(rng.integers(60, 210)) * unit
            draw.polygon([(x - half_width, 0), (x + half_width, 0), (x, length)], fill=blood)
    title_y = float(rng.choice([0.06, 0.86])) * height  # where a real poster has its lettering
    draw.rectangle(
        (width * 0.1, title_y, width * 0.9, title_y + 16 * unit), fill=random_colour(0, 256)
    )

    grain = rng.integers(-14, 15, (height, width, 1), dtype=np.int16)
    pixels = (np.asarray(image, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _draw_shown_genres(
    rng: np.random.Generator, own: list[str], candidates: tuple[str, ...]
) -> list[str]:
    draws = rng.random(len(candidates))
    return [
        genre
        for genre, draw in zip(candidates, draws, strict=True)
        if draw < (SHOW_PROBABILITY if genre in own else FALSE_SHOW_PROBABILITY)
    ]


def _pick(rng: np.random.Generator, words: list[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _poster_name(index: int) -> str:
    return f"{index + 1}.jpg"
