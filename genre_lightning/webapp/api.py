"""The web API of the page: the model, a movie's genres with the reasons, and heat maps.

Other programs can use it as well. Columns have the same names everywhere.

``GET /api/model``
    Describes the model: ``checkpoint`` (the file's name), ``genres`` (G names), ``activation``,
    ``max_poster_bytes``, ``max_characters``; ``columns``: for each usable column ``name``, ``of``
    ("text" or "poster"), ``long`` (whether its text can have several lines) and ``year`` (whether
    the model uses a year in brackets); ``branches``: for each ``name``, ``column`` and ``label``.

``POST /api/predict``, with a JSON object as the body: texts, and images in base64, by column
    ``columns``: for each column of the model the text, true for an image, or null; ``problems``:
    by column, why it was left out; ``predicted``: names of the genres whose score reaches their
    threshold, highest score first; and ``genres``: for each of the G genres, highest score first,
    ``name``, ``score``, ``threshold``, ``predicted``, and the exact parts of its logit: ``logit`` =
    ``bias`` + the numbers of ``branches`` + ``cooccurrence``, if the model relates the scores of
    all genres. ``explanations``: for each branch that read something, ``kind``: "words", with
    ``text``, ``parts``, each of which has ``text``, ``kind`` ("word" or "year"), ``span`` (its
    characters in the text, or null) and ``adds`` (to the logit of each genre, by name), and
    ``exact`` (whether the parts sum to the branch's part); "heat map", which ``/api/heat`` draws;
    or "none", with the reason in ``problem``. "words" and "heat map" also have ``method``.

``POST /api/heat?branch=NAME&genre=NAME``, with the bytes of an image file as the body
    A PNG: the image overlaid with the heat map of this genre.

Errors have a status of 400 or above and the body ``{"error": {"code": ..., "message": ...}}``;
codes: ``nothing_given``, ``no_branch``, ``text_too_long``, ``too_large``, ``not_an_image``,
``bad_request``, ``unknown_genre``, ``unknown_branch``, ``not_explained``, ``wrong_host``,
``wrong_origin``, ``http`` and ``failed``. With curl:
``curl -d '{"title": "Heat (1995)"}' http://127.0.0.1:7860/api/predict``.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genre_lightning.predicting.predictor import TITLE, missing_columns_message
from genre_lightning.wording import listed

if TYPE_CHECKING:
    from genre_lightning.predicting.predictor import GenrePredictor

MAX_POSTER_BYTES = 16 * 2**20
MAX_CHARACTERS = 20_000

#: Longer side of a heat map in pixels: twice its size on the page, for high-resolution screens.
_PICTURE_SIDE = 512
#: Half of a surrogate pair, as a truncated emoji leaves it, which can't be encoded as UTF-8.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
#: The most texts to embed for explaining one branch; few, as the page waits for the answer.
_MAX_TEXTS = 48


class ApiError(Exception):
    """A request that can't be answered.

    Args:
        status: HTTP status.
        code: for programs, one of those in the module's docstring.
        message: for people.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def max_body_bytes(predictor: GenrePredictor) -> int:
    """Size of the largest valid request: posters in base64, all characters escaped."""
    kinds = list(predictor.model.given_columns.values())
    posters, texts = kinds.count("poster"), kinds.count("text")
    return posters * (-(-MAX_POSTER_BYTES // 3) * 4) + texts * MAX_CHARACTERS * 12 + 2**16


def describe(predictor: GenrePredictor, checkpoint: str) -> dict[str, Any]:
    """The response of ``/api/model``; see the module's docstring."""
    from genre_lightning.explain.parts import branch_labels

    inputs = predictor.model.inputs
    years = {branch_input.column for branch_input in inputs.values() if branch_input.uses_year}
    labels = branch_labels(inputs)
    return {
        "checkpoint": checkpoint,
        "genres": list(predictor.genres),
        "activation": predictor.model.activation,
        "columns": [
            {"name": name, "of": kind, "long": name != TITLE, "year": name in years}
            for name, kind in predictor.model.given_columns.items()
        ],
        "branches": [
            {"name": name, "column": branch_input.column, "label": labels[name]}
            for name, branch_input in inputs.items()
        ],
        "max_poster_bytes": MAX_POSTER_BYTES,
        "max_characters": MAX_CHARACTERS,
    }


def read_movie(predictor: GenrePredictor, body: bytes) -> dict[str, str | bytes]:
    """Parse a request to its non-empty columns: texts and encoded images.

    Raises:
        ApiError: the body is not a JSON object of such columns, or a column is too large.
    """
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "bad_request", "The body is not JSON.") from error
    if not isinstance(given, dict):
        raise ApiError(400, "bad_request", "The body is not a JSON object of columns by name.")
    kinds = predictor.model.given_columns
    movie: dict[str, str | bytes] = {}
    for name, value in given.items():
        if value is None or value == "":
            continue
        texts = [name, value] if isinstance(value, str) and kinds.get(name) != "poster" else [name]
        if any(map(_LONE_SURROGATE.search, texts)):
            message = f"The column {name!a:.100} contains half of a character: enter it again."
            raise ApiError(400, "bad_request", message)
        if not isinstance(value, str):
            raise ApiError(400, "bad_request", f"The column {name:.100} is not a text.")
        if kinds.get(name) == "poster":
            movie[name] = _decode_image(name, value)
            continue
        if len(value) > MAX_CHARACTERS:
            raise ApiError(
                400,
                "text_too_long",
                f"The {name:.100} has {len(value):,} characters; up to {MAX_CHARACTERS:,} are "
                "read.",
            )
        if value.strip():
            movie[name] = value
    return movie


def _decode_image(name: str, text: str) -> bytes:
    """Decode a base64 image of a request.

    Raises:
        ApiError: the text is not base64, or the image is too large.
    """
    try:
        image = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"The {name} is not plain base64, without line breaks and without a data: prefix."
        raise ApiError(400, "bad_request", message) from error
    if len(image) > MAX_POSTER_BYTES:
        raise poster_too_large()
    return image


def poster_too_large() -> ApiError:
    """The error for a poster that is too large."""
    return ApiError(
        413,
        "too_large",
        f"This file is too large: a poster may have up to {MAX_POSTER_BYTES // 2**20} MB.",
    )


def request_too_large(predictor: GenrePredictor) -> ApiError:
    """The error for a request that is larger than any valid one."""
    limit_by_kind = {
        "poster": f"a poster may have up to {MAX_POSTER_BYTES // 2**20} MB",
        "text": f"a text up to {MAX_CHARACTERS:,} characters",
    }
    kinds = predictor.model.given_columns.values()
    limits = listed([limit for kind, limit in limit_by_kind.items() if kind in kinds])
    return ApiError(413, "too_large", f"This request is too large: {limits}.")


def predict_movie(predictor: GenrePredictor, movie: Mapping[str, str | bytes]) -> dict[str, Any]:
    """The response of ``/api/predict``; see the module's docstring.

    Args:
        predictor: of the model.
        movie: texts and encoded images by column, none of them empty.

    Raises:
        ApiError: the request can't be answered.
    """
    from genre_lightning.explain.parts import split_encoded
    from genre_lightning.inputs.encode import encode_items

    model = predictor.model
    kinds = model.given_columns
    _check_given(movie, kinds)
    items, problems = _read_columns(predictor, movie)
    readable = {name: value for name, value in movie.items() if name not in problems}
    if not readable:
        raise ApiError(415, "not_an_image", " ".join(problems.values()))
    active_branches = [branch for branch, item in items.items() if item is not None]
    if not active_branches:  # such as a title without a year, for a model on the year alone
        raise ApiError(400, "nothing_given", f"There is {missing_columns_message(list(kinds))}.")
    # Encoded only once, as a pretrained encoder takes longer than all the rest.
    encoded = encode_items(
        model.inputs, {branch: [item] for branch, item in items.items()}, model.device
    )
    title = movie.get(TITLE)
    prediction = predictor.predict_encoded(title if isinstance(title, str) else None, encoded)
    parts = split_encoded(model, encoded)
    thresholds = predictor.thresholds
    genres = []
    for name, score in prediction.ranked():
        index = predictor.genres.index(name)
        genres.append(
            {
                "name": name,
                "score": score,
                "threshold": thresholds[name],
                "predicted": name in prediction.genres,
                "logit": float(parts.logits[index]),
                "bias": float(parts.bias[index]),
                "branches": {key: float(part[index]) for key, part in parts.branches.items()},
                **parts.cooccurrence_of(index),
            }
        )
    return {
        "columns": {name: _response_value(readable.get(name)) for name in kinds},
        "problems": problems,
        "predicted": list(prediction.genres),
        "genres": genres,
        "explanations": {
            branch: _explain(predictor, branch, readable[model.inputs[branch].column])
            for branch in active_branches
        },
    }


def _check_given(movie: Mapping[str, str | bytes], kinds: Mapping[str, str]) -> None:
    """Refuse a movie without columns, or with one that the model does not look at."""
    for name in movie:
        if name not in kinds:
            known = ", ".join(kinds)
            message = f"This model has no branch for the {name:.100}: it looks at {known}."
            raise ApiError(422, "no_branch", message)
    if not movie:
        raise ApiError(
            400,
            "nothing_given",
            f"There is nothing to predict from yet: {_input_instructions(kinds)}.",
        )


def _input_instructions(kinds: Mapping[str, str]) -> str:
    """What the user can do: "type the title or synopsis or choose the poster"."""
    texts = [name for name, kind in kinds.items() if kind == "text"]
    posters = [name for name, kind in kinds.items() if kind == "poster"]
    instructions = [f"type the {listed(texts, 'or')}"] if texts else []
    instructions += [f"choose the {listed(posters, 'or')}"] if posters else []
    return listed(instructions, "or")


def _response_value(value: str | bytes | None) -> str | bool | None:
    """A column's value in the response: a text, True for a poster, None for a missing value."""
    return True if isinstance(value, bytes) else value


def _read_columns(
    predictor: GenrePredictor, movie: Mapping[str, str | bytes]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a movie's columns.

    Returns:
        By branch, what its input read, None for nothing; and by column, why it can't be read.
    """
    from genre_lightning.errors import InputError
    from genre_lightning.inputs.encode import read_column

    inputs = predictor.model.inputs
    items: dict[str, Any] = dict.fromkeys(inputs)
    problems: dict[str, str] = {}
    for column, value in movie.items():
        try:
            items |= read_column(inputs, column, value)
        except InputError as error:
            is_poster = isinstance(value, bytes)
            prefix = "This file can't be read as a picture" if is_poster else "Left out"
            problems[column] = f"{prefix}: {error}."
    return items, problems


def _explain(predictor: GenrePredictor, branch: str, value: str | bytes) -> dict[str, Any]:
    """The explanation of a branch: words at once; heat maps are requested separately."""
    from genre_lightning.explain.explainer import TextExplanation
    from genre_lightning.explain.table import explain_branch, find_explainer

    explainer = find_explainer(predictor.model, branch)
    if explainer is not None and explainer.gives == "heat map":
        return {"kind": "heat map", "method": explainer.method}
    try:
        explanation = explain_branch(predictor.model, branch, value, _MAX_TEXTS)
    except TypeError as error:
        return {"kind": "none", "problem": f"{error}."}
    assert isinstance(explanation, TextExplanation)
    return {
        "kind": "words",
        "text": explanation.text,
        "method": explanation.method,
        "exact": explanation.exact,
        "parts": [
            {
                "text": part.text,
                "kind": part.kind,
                "span": part.span,
                "adds": dict(zip(predictor.genres, part.contributions.tolist(), strict=True)),
            }
            for part in explanation.parts
        ],
    }


def heat_picture(predictor: GenrePredictor, branch: str, genre: str, image: bytes) -> bytes:
    """The response of ``/api/heat``: a PNG.

    Args:
        predictor: of the model.
        branch: name of a branch that looks at posters.
        genre: name of the genre.
        image: encoded; empty for none.

    Raises:
        ApiError: the request can't be answered.
    """
    from genre_lightning.errors import InputError
    from genre_lightning.explain.explainer import ImageExplanation
    from genre_lightning.explain.pictures import heat_pictures
    from genre_lightning.explain.table import explain_branch

    inputs = predictor.model.inputs
    if genre not in predictor.genres:
        raise ApiError(404, "unknown_genre", f"The model knows no genre {genre!r:.100}.")
    if branch not in inputs or inputs[branch].of != "poster":
        raise ApiError(
            404, "unknown_branch", f"The model has no branch {branch!r:.100} for posters."
        )
    if not image:
        raise ApiError(400, "nothing_given", "There is no image to draw the heat map on.")
    try:
        explanation = explain_branch(predictor.model, branch, image)
        if not isinstance(explanation, ImageExplanation):
            raise TypeError(f"branch {branch} has no heat maps")
        pictures = heat_pictures(explanation, [predictor.genres.index(genre)], _PICTURE_SIDE)
    except InputError as error:
        message = f"This file can't be read as a picture: {error}."
        raise ApiError(415, "not_an_image", message) from error
    except TypeError as error:
        raise ApiError(422, "not_explained", f"{error}.") from error
    png = io.BytesIO()
    pictures[0].save(png, "PNG", compress_level=1)  # fast: it is usually not sent over a network
    return png.getvalue()
