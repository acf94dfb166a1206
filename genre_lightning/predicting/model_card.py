"""A model card in Markdown: what a checkpoint was trained on, how it scores, and its limits.

Every number comes from the checkpoint, from ``result.json`` of its run, or from an evaluation by
evaluate.py. The card says so where a value is not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from genre_lightning.checkpoint.card import TRAINING_KEY, read_checkpoint
from genre_lightning.checkpoint.model import TrainedModel, rebuild
from genre_lightning.comparison.ranking import compare_runs
from genre_lightning.comparison.reading import find_runs, is_run_folder, read_run
from genre_lightning.comparison.run import Run
from genre_lightning.files import whole_file
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.movies.readers import BIASES
from genre_lightning.movies.split_names import SPLIT_WORDS
from genre_lightning.page.markdown import code, escape_markdown
from genre_lightning.predicting.evaluations import (
    PREDICTIONS,
    CardError,
    Evaluation,
    read_evaluation,
)
from genre_lightning.predicting.model_card_scores import (
    MIN_SCORED_MOVIES,
    ScoreTable,
    genre_table,
    rare_genres,
    rarely_scored_genres,
    score_tables,
    scores_markup,
)
from genre_lightning.predicting.model_card_tables import (
    branch_table,
    encoder_rows,
    encoder_table,
    file_table,
    one_line,
    settings_table,
    split_table,
)
from genre_lightning.runs.ckpt_path import BEST
from genre_lightning.runs.result import read_result
from genre_lightning.wording import listed

#: Genres with fewer training movies are named among the limits.
MIN_TRAINING_MOVIES = 50
#: Names of metrics on the Hugging Face hub, by the prefix of ours.
_HUB_METRICS = {
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "map": "mean_average_precision",
}


def model_card(
    checkpoint: str | Path,
    evaluations: Sequence[str | Path] = (),
    licence: str | None = None,
    published: Path | None = None,
) -> str:
    """The model card of a checkpoint, as Markdown with YAML front matter for the Hugging Face hub.

    Args:
        checkpoint: the file. If it is in a run folder, the card also uses the run's
            ``result.json``, the runs beside it that differ only in the seed, and the evaluations in
            the run folder.
        evaluations: further folders that evaluate.py wrote.
        licence: of the model, as an SPDX identifier; None if none is chosen.
        published: the copy of the checkpoint that is published with the card and the ONNX files;
            None if the checkpoint itself is, without ONNX.

    Raises:
        CheckpointError: ``checkpoint`` is not a checkpoint of this project.
        CardError: one of ``evaluations`` is damaged, or of another model.
    """
    checkpoint, further = Path(checkpoint), [Path(folder) for folder in evaluations]
    content = read_checkpoint(checkpoint, mmap=True)
    model = rebuild(content)
    run = _find_run_folder(checkpoint)
    scored_evaluations, notes = _find_evaluations(checkpoint, run, further, model)
    result = {} if run is None else _read_own_result(run, checkpoint, notes)
    all_tables = list(
        score_tables(model, scored_evaluations, result, [] if run is None else _runs_by_seed(run))
    )
    per_genre = next((table for table in all_tables if table.evaluation is not None), None)
    counts = model.loss.get("genre_counts")
    name = f"Movie genres from {listed(list(model.columns))}"
    file = published or checkpoint
    values = {
        "name": name,
        "front_matter": Markup(_front_matter(model, all_tables, licence, name)),
        "genre_names": model.genres,
        "columns": list(model.columns),
        "use": Markup(_usage(model, file.name)),
        "has_graph": published is not None,
        "dataset": _dataset_name(model.data),
        "splitting": split_table(model.data),
        "num_train": model.loss.get("num_movies"),
        "has_counts": counts is not None,
        "genres": genre_table(model, per_genre),
        "per_genre": per_genre,
        "scored": [(table, scores_markup(table)) for table in all_tables],
        "split_words": SPLIT_WORDS,
        "notes": notes,
        "branches": branch_table(model),
        "encoders": encoder_table(model),
        "settings": settings_table(content.get(TRAINING_KEY)),
        "result": result,
        "facts": file_table(file, content, result),
        "licence": licence,
        "rare_genres": rare_genres(model.genres, counts or (), MIN_TRAINING_MOVIES),
        "min_training_movies": MIN_TRAINING_MOVIES,
        "stacked": model.network.stacking is not None,
        "relates_genres": model.network.relates_genres,
        "label_sets": model.network.label_sets,
        "rarely_scored": rarely_scored_genres(model, per_genre),
        "min_scored_movies": MIN_SCORED_MOVIES,
        "bias": BIASES.get(str(model.data.get("reader"))),
        "texts": [name for name, of in model.columns.items() if of == "text"],
    }
    return _render(values)


def _find_evaluations(
    checkpoint: Path, run: Path | None, named_folders: Sequence[Path], model: TrainedModel
) -> tuple[list[Evaluation], list[str]]:
    """Read the evaluations that the user names and those beside the checkpoint.

    Returns:
        The evaluations, and a note on each evaluation beside the checkpoint that can't be used.

    Raises:
        CardError: a named evaluation can't be used.
    """
    usable = [read_evaluation(folder, model) for folder in named_folders]
    notes: list[str] = []
    resolved = {folder.resolve() for folder in named_folders}
    for folder in _evaluation_folders(checkpoint, run):
        if folder.resolve() in resolved:
            continue
        try:
            usable.append(read_evaluation(folder, model))
        except CardError as error:
            # Not an error: the folders beside last.ckpt can hold evaluations of best.ckpt.
            notes.append(f"Left out: {str(error).replace(str(folder.parent), '.')}.")
    return usable, notes


def _render(values: Mapping[str, Any]) -> str:
    """Render the template ``model_card.md.j2``, without repeated blank lines."""
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, finalize=_to_markdown,
    )  # fmt: skip
    environment.filters |= {"code": code, "listed": listed}
    template = resources.files("genre_lightning.predicting") / "model_card.md.j2"
    text = environment.from_string(template.read_text("utf-8")).render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def write_model_card(path: Path, card: str) -> None:
    """Write a card, completely or not at all.

    Raises:
        CardError: the file can't be written.
    """
    try:
        with whole_file(path) as file:
            file.write(card)
    except OSError as error:
        raise CardError(f"{path}: can't be written ({error.strerror or error})") from error


def _find_run_folder(checkpoint: Path) -> Path | None:
    """The run folder of a checkpoint; None if it is not in one."""
    run = checkpoint.resolve().parent.parent
    return (
        run if checkpoint.resolve().parent == (run / BEST).parent and is_run_folder(run) else None
    )


def _read_own_result(run: Path, checkpoint: Path, notes: list[str]) -> Mapping[str, Any]:
    """Read the run's ``result.json``, without its scores if they are not of this checkpoint.

    Empty if there is none; a note is added for scores that are left out.
    """
    result = read_result(run) or {}
    if not result or checkpoint.name == Path(BEST).name:
        return result
    notes.append(f"The scores in {run.name}/result.json are of {BEST}, not of this file.")
    return {**result, "val": {}, "test": {}, "monitor_value": None}


def _evaluation_folders(checkpoint: Path, run: Path | None) -> list[Path]:
    """The folders beside a checkpoint, or in its run folder, that hold predictions."""
    parents = [checkpoint.resolve().parent, *([] if run is None else [run])]
    folders = [
        folder
        for parent in parents
        for folder in (parent, *sorted(parent.iterdir()))
        if folder.is_dir()
    ]
    return [folder for folder in dict.fromkeys(folders) if (folder / PREDICTIONS).is_file()]


def _runs_by_seed(run: Path) -> list[Run]:
    """The completed runs beside a run, itself included, that differ from it only in the seed."""
    own_run = read_run(run, run.name)
    if own_run is None or own_run.monitor is None:
        return []  # too little of the run is left to compare its settings
    siblings = [path for path in run.parent.iterdir() if path.is_dir() and is_run_folder(path)]
    groups = compare_runs(find_runs(siblings)).groups
    (own_group,) = (group for group in groups if any(each.folder == run for each in group.runs))
    seeds = {each.seed: each for each in own_group.runs if each.completed}
    seeds |= {each.seed: each for each in own_group.runs if each.completed and each.folder == run}
    return list(seeds.values()) if len(seeds) > 1 else []


def _to_markdown(value: Any) -> str:
    """Escape a value for the template, as it may come from an untrusted checkpoint."""
    return value if isinstance(value, Markup) else escape_markdown(one_line(value))


def _dataset_name(data: Mapping[str, Any]) -> str:
    """The reader's name, with that of the dataset's file if the settings have one."""
    reader, path = str(data.get("reader", "unknown")), data.get("path")
    return reader if path is None else f"{reader} ({Path(str(path)).name})"


def _usage(model: TrainedModel, file: str) -> str:
    """Example code for prediction, three lines of Python."""
    examples = {"title": '["Heat (1995)"]', "poster": 'posters=["heat.jpg"]'}
    arguments = []
    for column, of in model.columns.items():
        value = '["..."]' if of == "text" else '["poster.jpg"]' if of == "poster" else "[vector]"
        plain = f"{column}={value}" if column.isidentifier() else f"**{{{column!r}: {value}}}"
        arguments.append(examples.get(column, plain))
    arguments.sort(key=lambda argument: not argument.startswith("["))
    unlisted = sorted({each.name for each in encoder_rows(model) if each.name not in ENCODERS})
    allowed = f", encoders={unlisted!r}" if unlisted else ""
    return (
        "from genre_lightning import GenrePredictor\n"
        f"predictor = GenrePredictor.from_checkpoint({file!r}{allowed})\n"
        f"print(predictor.predict({', '.join(arguments)})[0].genres)"
    )


def _front_matter(
    model: TrainedModel, all_tables: Sequence[ScoreTable], licence: str | None, name: str
) -> str:
    """The YAML front matter, in the format of the Hugging Face hub."""
    tasks = {"text": "text-classification", "poster": "image-classification"}
    kinds = set(model.columns.values())
    task = tasks.get(next(iter(kinds)), "other") if len(kinds) == 1 else "other"
    front: dict[str, Any] = {} if licence is None else {"license": licence}
    front["library_name"] = "genre-lightning"
    if task != "other":
        front["pipeline_tag"] = task
    front["tags"] = ["movies", "genres", "multi-label-classification", *sorted(model.columns)]
    front["metrics"] = ["f1", "precision", "recall"]
    test_table = next((table for table in all_tables if table.split == "test"), None)
    if test_table is not None:
        front["model-index"] = [{"name": name, "results": [_hub_result(model, test_table, task)]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip("\n")


def _hub_result(model: TrainedModel, table: ScoreTable, task: str) -> dict[str, Any]:
    """The scores on the test split as an entry of the hub's ``model-index``.

    Args:
        model: the scored model.
        table: of the test split.
        task: the hub's name for the model's task.
    """
    other_data = None if table.evaluation is None else table.evaluation.other_data
    return {
        "task": {"type": task, "name": "multi-label classification of genres"},
        "dataset": {
            "name": _dataset_name(model.data) if other_data is None else other_data,
            "type": str(model.data.get("reader", "unknown")) if other_data is None else other_data,
            "split": "test",
        },
        "metrics": [
            {
                "type": _HUB_METRICS[row.name.partition("_")[0]],
                "name": row.label,
                "value": round(row.value, 4),
            }
            for row in table.rows
        ],
    }
