"""Predict and explain the genres of one movie."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre_lightning.errors import InputError
from genre_lightning.predicting.arguments import PredictOptions
from genre_lightning.predicting.predictor import POSTER
from genre_lightning.predicting.printing import (
    HEAT_MAP_INFIX,
    CommandError,
    as_json,
    describe_columns,
    note,
    note_ignored_column,
    score_line,
)
from genre_lightning.runs.quoting import shell_command
from genre_lightning.wording import printable

if TYPE_CHECKING:
    from genre_lightning.explain.explainer import ImageExplanation
    from genre_lightning.inputs.input import Input
    from genre_lightning.predicting.asked import MovieAsker
    from genre_lightning.predicting.predictor import GenrePredictor, Prediction

#: The most words of a text that are printed for a genre; JSON has all of them.
_MAX_WORDS = 12


def predict_one(
    predictor: GenrePredictor, options: PredictOptions, movie_asker: MovieAsker | None = None
) -> None:
    """Print the genres of the movie given by the command's options.

    Args:
        predictor: of the model.
        options: of the command.
        movie_asker: asks a language model about the movie; None to ask none.

    Raises:
        CommandError: the model has no branch for any given column, a value can't be read, or a heat
            map can't be written.
    """
    shown_columns = {} if movie_asker is None else movie_asker.shown_columns
    values: dict[str, Any] = _usable_values(
        predictor, options, {**predictor.columns, **shown_columns}
    )
    reason = ""
    try:
        if movie_asker is not None:
            values, reason, problem = movie_asker.with_answer(values)
            if problem:
                note(f"no answer: {problem}")
        (prediction,) = predictor.stream([values])
        explanation = None
        if options.explain:
            explanation = _explain(predictor, prediction, values, options.explain_out)
    except InputError as error:
        raise CommandError(str(error)) from error
    if options.json:
        entry = as_json(predictor, prediction, options.columns)
        if movie_asker is not None:
            entry["why"] = reason or None
        print(json.dumps(entry | ({"explanation": explanation} if explanation else {})))
        return
    print(" + ".join(options.columns.values()))
    if movie_asker is not None and reason:
        print(f"{movie_asker.questioner.model}: {printable(' '.join(reason.split()))}")
    for line in _score_lines(predictor, prediction, explanation):
        print(line)


def _score_lines(
    predictor: GenrePredictor, prediction: Prediction, explanation: Mapping[str, Any] | None
) -> Iterator[str]:
    """A line for each genre, each followed by its reasons if there is an explanation."""
    for genre, _ in prediction.ranked():
        yield score_line(predictor, prediction, genre)
        if explanation is not None and genre in explanation["genres"]:
            for line in _genre_lines(explanation, genre):
                yield f"      {line}"
    if explanation is not None:
        yield from _method_lines(explanation)


def _usable_values(
    predictor: GenrePredictor, options: PredictOptions, kinds: Mapping[str, str]
) -> dict[str, str]:
    """The given columns that are in ``kinds``, which holds each usable column's kind."""
    given = options.columns
    usable = {name: value for name, value in given.items() if name in kinds}
    for name, value in given.items():
        if kinds.get(name) == "id":
            raise CommandError(f"the column {name} is a vector by movie id: it can't be given here")
        # Checked even if the poster is left out, as a mistyped path would go unnoticed.
        if name == POSTER and name not in kinds and not Path(value).exists():
            raise CommandError(f"{value}: can't be read (no such file)")
    if not usable:
        raise CommandError(
            f"{options.checkpoint} has no branch for {', '.join(given)}: "
            f"{describe_columns(predictor)}"
        )
    # A note and not an error, so that the same command works for every model.
    for name in given:
        if name not in kinds:
            note_ignored_column(predictor, name)
    return usable


def _explain(
    predictor: GenrePredictor,
    prediction: Prediction,
    columns: Mapping[str, str],
    folder: Path | None,
) -> dict[str, Any]:
    """Explain the predicted genres, or the three closest to their threshold if there are none.

    Returns:
        ``genres``: for each genre its ``logit``, the sum of ``bias``, the numbers of ``branches``
        and, if the model uses co-occurrence, ``cooccurrence``; and by branch, ``words`` and
        ``heat_maps``, None where no place speaks for the genre. ``methods``: by branch, the
        explanation method. ``exact``: the branches whose words sum to their part. ``labels``: by
        branch, a name for people. ``absent``: the branches whose column was not given.
    """
    from genre_lightning.explain.explainer import ImageExplanation
    from genre_lightning.explain.movie import explain_movie

    model = predictor.model
    names = prediction.explained_genres()
    indices = [predictor.genres.index(name) for name in names]
    explanation = explain_movie(model, columns)
    parts = explanation.parts
    genres: dict[str, dict[str, Any]] = {
        name: {
            "logit": _rounded(parts.logits[index]),
            "bias": _rounded(parts.bias[index]),
            "branches": {key: _rounded(part[index]) for key, part in parts.branches.items()},
            **{key: _rounded(part) for key, part in parts.cooccurrence_of(index).items()},
            "words": {},
            "heat_maps": {},
        }
        for name, index in zip(names, indices, strict=True)
    }
    methods: dict[str, str] = {}
    exact: list[str] = []
    for branch, branch_explanation in explanation.branches.items():
        methods[branch] = branch_explanation.method
        if isinstance(branch_explanation, ImageExplanation):
            start = _heat_map_start(model.inputs, branch, columns, folder)
            files = _save_heat_maps(branch_explanation, start, names, indices)
            for name, path in zip(names, files, strict=True):
                genres[name]["heat_maps"][branch] = path and str(path)
        else:
            if branch_explanation.exact:
                exact.append(branch)
            for name, index in zip(names, indices, strict=True):
                genres[name]["words"][branch] = [
                    {"text": part.text, "adds": _rounded(part.contributions[index])}
                    for part in branch_explanation.parts
                ]
    return {
        "genres": genres,
        "methods": methods,
        "exact": exact,
        "labels": dict(explanation.labels),
        "absent": sorted(explanation.absent),
    }


def _rounded(value: Any) -> float:
    return round(float(value), 6)


def _heat_map_start(
    inputs: Mapping[str, Input], branch: str, columns: Mapping[str, str], folder: Path | None
) -> Path:
    """The folder of a branch's heat maps, by default the poster's, and how their names begin."""
    column = inputs[branch].column
    poster = Path(columns[column])
    # Several branches can look at the same poster: each needs its own file names.
    is_shared = sum(other.column == column for other in inputs.values()) > 1
    return (folder or poster.parent) / (poster.stem + (f".{branch}" if is_shared else ""))


def _save_heat_maps(
    explanation: ImageExplanation, start: Path, names: Sequence[str], indices: Sequence[int]
) -> list[Path | None]:
    """Write the heat maps of K genres to files whose names begin with ``start``.

    Returns:
        The K files; None for a genre without evidence in the picture, whose map would be blank.
    """
    from genre_lightning.explain.pictures import overlay_maps

    paths: list[Path | None] = []
    maps = explanation.heat_maps(indices)  # only once: a pass through the encoder
    pictures = overlay_maps(explanation.image, maps)
    for name, picture, heat in zip(names, pictures, maps, strict=True):
        if not heat.any():
            paths.append(None)
            continue
        # The checkpoint may be untrusted, so a genre's name may be unsafe as a file name.
        slug = re.sub(r"[^\w-]+", "_", name)[:80]
        path = start.with_name(f"{start.name}{HEAT_MAP_INFIX}{slug}.png")
        if path in paths:
            path = start.with_name(f"{start.name}{HEAT_MAP_INFIX}{slug}_{len(paths) + 1}.png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise CommandError(
                f"{path}: can't be written ({error.strerror or error}); "
                "name another folder with --explain-out"
            ) from error
        paths.append(path)
    return paths


def _genre_lines(explanation: Mapping[str, Any], genre: str) -> Iterator[str]:
    entry, labels = explanation["genres"][genre], explanation["labels"]
    terms = [f"bias {entry['bias']:+z.2f}"]
    terms += [
        f"no {labels[name]}" if name in explanation["absent"] else f"{labels[name]} {adds:+z.2f}"
        for name, adds in entry["branches"].items()
    ]
    if "cooccurrence" in entry:
        terms.append(f"co-occurrence {entry['cooccurrence']:+z.2f}")
    yield f"logit {entry['logit']:+z.2f} = {', '.join(terms)}"
    for branch, words in entry["words"].items():
        if words:
            shown = _shown_words(words, is_exact=branch in explanation["exact"])
            yield f"{labels[branch]}: {', '.join(shown)}"
    for branch, path in entry["heat_maps"].items():
        yield (
            f"heat map of {labels[branch]}: {shell_command(path)}"
            if path
            else f"{labels[branch]}: no place speaks for {genre}"
        )


def _shown_words(words: Sequence[Mapping[str, Any]], is_exact: bool) -> list[str]:
    """The words that add or take away most, and the number of the others, with their sum if exact.

    A word that a text has several times is shown once, with its sum.
    """
    sums: dict[str, float] = {}
    for word in words:
        sums[word["text"]] = sums.get(word["text"], 0.0) + word["adds"]
    ranked = sorted(sums.items(), key=lambda word: -abs(word[1]))
    shown = [f"{text} {adds:+z.2f}" for text, adds in ranked[:_MAX_WORDS]]
    if rest := ranked[_MAX_WORDS:]:
        others = f" {sum(adds for _, adds in rest):+z.2f}"
        shown.append(f"{len(rest)} more" + (others if is_exact else ""))
    return shown


def _method_lines(explanation: Mapping[str, Any]) -> Iterator[str]:
    has_cooccurrence = any("cooccurrence" in entry for entry in explanation["genres"].values())
    yield (
        "The logit is the sum of the bias, of what each branch adds, and of co-occurrence: what "
        "the scores of all genres add."
        if has_cooccurrence
        else "The logit is the sum of the bias and of what each branch adds."
    )
    labels = explanation["labels"]
    has_heat_map: dict[str, bool] = {}
    for entry in explanation["genres"].values():
        for branch, path in entry["heat_maps"].items():
            has_heat_map[branch] = has_heat_map.get(branch, False) or path is not None
    for branch, method in explanation["methods"].items():
        if not has_heat_map.get(branch, True):
            continue
        if branch in has_heat_map:
            yield f"{labels[branch]}: the heat map shows where, not how much ({method})"
        elif branch in explanation["exact"]:
            yield f"{labels[branch]}: its words add up to its part ({method})"
        else:
            yield f"{labels[branch]}: its words don't add up to its part ({method})"
