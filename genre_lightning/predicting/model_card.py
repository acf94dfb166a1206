"""A model card in Markdown: what a checkpoint was trained on, how it scores, and its limits.

Every number is read: from the checkpoint, from ``result.json`` of its run, from what evaluate.py
wrote. What none of them tells is said to be unknown.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from genre_lightning import __version__
from genre_lightning.checkpoint.card import TRAINING_KEY, read_checkpoint
from genre_lightning.checkpoint.model import TrainedModel, rebuild
from genre_lightning.comparison.ranking import compare_runs
from genre_lightning.comparison.reading import find_runs, is_run_folder, read_run
from genre_lightning.comparison.run import Run, number_or_none
from genre_lightning.files import whole_file
from genre_lightning.inputs.encoders.spec import EncoderSpec, Hub, Packaged
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.movies.readers import BIASES
from genre_lightning.page.markdown import code, in_markdown, markdown_table
from genre_lightning.page.wording import listed, printable
from genre_lightning.predicting.evaluations import (
    PREDICTIONS,
    CardError,
    Evaluation,
    read_evaluation,
)
from genre_lightning.report.numbers import number, span
from genre_lightning.report.overall import METRICS
from genre_lightning.report.statistics import Interval, bootstrap, interval, num_resamples
from genre_lightning.runs.places import BEST
from genre_lightning.runs.result import read_result
from genre_lightning.runs.settings import is_path
from genre_lightning.scoring.metrics import per_genre_metrics

#: A genre of fewer training movies is named among the limits.
FEW_TO_LEARN = 50
#: So is one whose scores come from fewer movies than this.
FEW_TO_SCORE = 20
#: Settings of the training that a card shows; the others are told elsewhere on it, or in the run.
SHOWN = (
    "optimizer.*", "scheduler.*", "loss.*", "training.*", "seed", "monitor", "start_from_priors",
    "label_sets", "data.batch_size", "model.dropout", "model.members", "model.branches.*.lr_scale",
    "model.branches.*.l2", "trainer.precision", "trainer.gradient_clip_val", "number of processes",
)  # fmt: skip
#: Names of metrics at the Hugging Face hub, by how ours begin.
_HUB_METRICS = {
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "map": "mean_average_precision",
}


@dataclass(frozen=True)
class _ScoreRow:
    """One row of a table of scores."""

    label: str
    name: str
    value: float
    interval: Interval | None = None
    seeds: Sequence[float] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.seeds)

    @property
    def sd(self) -> float:
        return statistics.stdev(self.seeds)


@dataclass(frozen=True)
class _ScoreTable:
    """A table of scores, and where they come from."""

    split: str
    num_movies: int | None
    rows: list[_ScoreRow]
    evaluation: Evaluation | None = None
    resamples: int = 0
    seeds: Sequence[Any] = ()


@dataclass(frozen=True)
class _EncoderRow:
    """A row of the table of encoders."""

    name: str
    branch: str
    licence: str | None
    sha256: str | None
    source: str


def model_card(
    checkpoint: Path,
    evaluations: Sequence[Path] = (),
    licence: str | None = None,
    file: str | None = None,
) -> str:
    """The model card of a checkpoint, as Markdown with the YAML that the Hugging Face hub reads.

    Args:
        checkpoint: the file. In a run folder, its ``result.json`` is read, the runs beside it that
            differ by the seed alone, and the evaluations in folders below it.
        evaluations: further folders that evaluate.py wrote.
        licence: of the model, as an identifier of SPDX; None where nobody has chosen one.
        file: what the card calls the checkpoint; None for its own name.

    Raises:
        CheckpointError: it is no checkpoint of this project.
        CardError: one of ``evaluations`` is damaged, or of another model.
    """
    content = read_checkpoint(checkpoint, mmap=True)
    model = rebuild(content)
    run = _run_of(checkpoint)
    found, notes = _find_evaluations(checkpoint, run, evaluations, model)
    result = None if run is None else read_result(run)
    if result is not None and run is not None and checkpoint.name != Path(BEST).name:
        notes.append(f"The scores in {run.name}/result.json are of {BEST}, not of this file.")
        result = {**result, "val": {}, "test": {}, "monitor_value": None}
    scored = list(_score_tables(model, found, result, [] if run is None else _runs_by_seed(run)))
    per_genre = next((table for table in scored if table.evaluation is not None), None)
    counts = model.loss.get("genre_counts")
    name = f"Movie genres from {listed(list(model.columns))}"
    values = {
        "name": name,
        "front": Markup(_front_matter(model, scored, licence, name)),
        "genre_names": model.genres,
        "columns": list(model.columns),
        "use": Markup(_usage(model, file or checkpoint.name)),
        "dataset": _dataset_name(model.data),
        "splitting": _markdown_table(
            ("setting", "value"), _split_settings(model.data), ("setting", "value")
        ),
        "num_train": model.loss.get("num_movies"),
        "has_counts": counts is not None,
        "genres": _genre_table(model, per_genre),
        "per_genre": per_genre,
        "scored": [(table, _render_scores(table)) for table in scored],
        "notes": notes,
        "branches": _branch_table(model),
        "encoders": _encoder_table(model),
        "settings": _settings(content.get(TRAINING_KEY)),
        "result": result or {},
        "facts": _file_facts(checkpoint, content, result or {}),
        "licence": licence,
        "rare": [
            f"{genre} ({count})"
            for genre, count in zip(model.genres, counts or (), strict=counts is not None)
            if count < FEW_TO_LEARN
        ],
        "few_to_learn": FEW_TO_LEARN,
        "stacked": model.network.stacking is not None,
        "related": model.network.relates_genres,
        "label_sets": model.network.label_sets,
        "unsure": _scored_by_few(model, per_genre),
        "few_to_score": FEW_TO_SCORE,
        "bias": BIASES.get(str(model.data.get("reader"))),
        "texts": [name for name, of in model.columns.items() if of == "text"],
    }
    return _render(values)


def _find_evaluations(
    checkpoint: Path, run: Path | None, named: Sequence[Path], model: TrainedModel
) -> tuple[list[Evaluation], list[str]]:
    """The evaluations that the user names, and those beside the checkpoint.

    Returns:
        The evaluations, and a sentence on each one beside the checkpoint that can't be used.

    Raises:
        CardError: one that is named can't be used.
    """
    found = [read_evaluation(folder, model) for folder in named]
    notes: list[str] = []
    resolved = {folder.resolve() for folder in named}
    for folder in _evaluation_folders(checkpoint, run):
        if folder.resolve() in resolved:
            continue
        try:
            found.append(read_evaluation(folder, model))
        except CardError as error:
            # Beside last.ckpt there may well be those of best.ckpt.
            notes.append(f"Left out: {str(error).replace(str(folder.parent), '.')}.")
    return found, notes


def _render(values: Mapping[str, Any]) -> str:
    """The template ``model_card.md.j2`` with these values, without needless blank lines."""
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, finalize=_to_markdown,
    )  # fmt: skip
    environment.filters |= {"code": code, "listed": listed, "split": _split_name}
    template = resources.files("genre_lightning.predicting") / "model_card.md.j2"
    text = environment.from_string(template.read_text("utf-8")).render(values)
    return re.sub(r"\n{3,}", "\n\n", text)


def write_model_card(path: Path, card: str) -> None:
    """Write a card, whole or not at all.

    Raises:
        CardError: it can't be written.
    """
    try:
        with whole_file(path) as file:
            file.write(card)
    except OSError as error:
        raise CardError(f"{path}: can't be written ({error.strerror or error})") from error


def _run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in."""
    run = checkpoint.resolve().parent.parent
    return (
        run if checkpoint.resolve().parent == (run / BEST).parent and is_run_folder(run) else None
    )


def _evaluation_folders(checkpoint: Path, run: Path | None) -> list[Path]:
    """The folders beside a checkpoint that hold predictions."""
    tops = [checkpoint.resolve().parent, *([] if run is None else [run])]
    places = [place for top in tops for place in (top, *sorted(top.iterdir())) if place.is_dir()]
    return [place for place in dict.fromkeys(places) if (place / PREDICTIONS).is_file()]


def _runs_by_seed(run: Path) -> list[Run]:
    """The completed runs beside a run, itself included, that differ from it by the seed alone."""
    this = read_run(run, run.name)
    if this is None or this.monitor is None:
        return []  # too little is left of it: its settings can't be compared
    beside = [path for path in run.parent.iterdir() if path.is_dir() and is_run_folder(path)]
    groups = compare_runs(find_runs(beside)).groups
    (own,) = (group for group in groups if any(each.folder == run for each in group.runs))
    seeds = {each.seed: each for each in own.runs if each.completed}
    seeds |= {each.seed: each for each in own.runs if each.completed and each.folder == run}
    return list(seeds.values()) if len(seeds) > 1 else []


def _score_tables(
    model: TrainedModel,
    evaluations: Sequence[Evaluation],
    result: Mapping[str, Any] | None,
    runs: Sequence[Run],
) -> Iterator[_ScoreTable]:
    """A table for the test split and one for validation, where anything is known of them."""
    for split in ("test", "val", "train"):
        own = (result or {}).get(split) or {}
        # One on the checkpoint's own data is told first.
        mine = sorted(
            (each for each in evaluations if each.split == split),
            key=lambda each: each.other_data is not None,
        )
        told = {
            name: [value for each in runs if (value := each.value(f"{split}/{name}")) is not None]
            for name in METRICS
        }
        complete = bool(runs) and all(len(values) == len(runs) for values in told.values())
        seeds = [each.seed for each in runs] if complete else []
        for evaluation in mine:
            resamples = num_resamples(*evaluation.scores.shape)
            drawn = bootstrap(
                evaluation.scores, evaluation.targets, model.thresholds.numpy(), resamples=resamples
            ).metrics
            here = seeds if evaluation.other_data is None else []
            rows = [
                _ScoreRow(
                    label, name, evaluation.metrics[name],
                    interval(evaluation.metrics[name], drawn[name]), told[name] if here else (),
                )
                for name, label in METRICS.items()
            ]  # fmt: skip
            yield _ScoreTable(split, len(evaluation.scores), rows, evaluation, resamples, here)
        if any(each.other_data is None for each in mine):
            continue
        values = {name: number_or_none(own.get(name)) for name in METRICS}
        rows = [
            _ScoreRow(label, name, value, None, told[name] if seeds else ())
            for name, label in METRICS.items()
            if (value := values[name]) is not None
        ]
        if rows:
            count = number_or_none(own.get("num_movies"))
            yield _ScoreTable(split, None if count is None else int(count), rows, seeds=seeds)


def _render_scores(table: _ScoreTable) -> Markup:
    heads = ["metric", "value"]
    heads += ["95% interval"] if table.evaluation is not None else []
    heads += ["over seeds"] if table.seeds else []
    rows = []
    for row in table.rows:
        cells = [row.label, number(row.value)]
        cells += [span(row.interval)] if row.interval is not None else []
        cells += [f"{number(row.mean)} ± {number(row.sd)}"] if table.seeds else []
        rows.append(cells)
    return _markdown_table(heads, rows, ("metric",))


def _genre_table(model: TrainedModel, table: _ScoreTable | None) -> Markup:
    """Genre by genre: training movies, threshold, and scores where there are predictions."""
    counts, total = model.loss.get("genre_counts"), model.loss.get("num_movies")
    heads = ["genre", "threshold"]
    rows = [
        [genre, number(float(threshold))]
        for genre, threshold in zip(model.genres, model.thresholds, strict=True)
    ]
    if counts is not None:
        heads.append("training movies")
        for row, count in zip(rows, counts, strict=True):
            row.append(f"{count:,} ({count / total:.1%})" if total else f"{count:,}")
    if table is not None and table.evaluation is not None:
        heads += [f"{table.split} movies", "F1", "95% of F1", "average precision", "95% of it"]
        scores, targets = table.evaluation.scores, table.evaluation.targets
        found = per_genre_metrics(
            torch.from_numpy(scores), torch.from_numpy(targets), model.thresholds
        )
        drawn = bootstrap(
            scores, targets, model.thresholds.numpy(), resamples=table.resamples
        ).per_genre
        for g, row in enumerate(rows):
            row.append(f"{int(found['support'][g]):,}")
            for name in ("f1", "ap"):
                value = interval(float(found[name][g]), drawn[name][:, g])
                row += [number(value.value), span(value)]
    return _markdown_table(heads, rows, ("genre",))


def _scored_by_few(model: TrainedModel, table: _ScoreTable | None) -> list[str]:
    if table is None or table.evaluation is None:
        return []
    support = table.evaluation.targets.sum(axis=0).astype(int).tolist()
    return [
        f"{genre} ({count})"
        for genre, count in zip(model.genres, support, strict=True)
        if count < FEW_TO_SCORE
    ]


def _branch_table(model: TrainedModel) -> Markup:
    rows = []
    for name, given in model.inputs.items():
        network = model.network.description["branches"][name]["name"]
        weights = sum(each.numel() for each in model.network.branches[name].parameters())
        gives = ", ".join(f"{key} {value}" for key, value in given.network_arguments().items())
        rows.append([name, given.column, f"{given.kind} ({gives})", network, f"{weights:,}"])
    heads = ("branch", "column", "input", "network", "weights")
    return _markdown_table(heads, rows, heads[:-1])


def _encoder_table(model: TrainedModel) -> Markup | None:
    rows = [
        [
            each.name,
            each.branch,
            each.licence or "not recorded: ask its publisher",
            each.source,
            each.sha256 or "–",
        ]
        for each in _encoder_rows(model)
    ]
    heads = ("encoder", "branch", "licence", "weights", "SHA-256 of the weights")
    return _markdown_table(heads, rows, heads) if rows else None


def _markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]
) -> Markup:
    shown = [[cell if isinstance(cell, Markup) else _one_line(cell) for cell in r] for r in rows]
    return Markup("\n".join(markdown_table(heads, shown, left)))


def _one_line(value: Any) -> str:
    return printable(" ".join(str(value).split()))


def _to_markdown(value: Any) -> str:
    """What the template writes of a value: it may come from an untrusted checkpoint."""
    return value if isinstance(value, Markup) else in_markdown(_one_line(value))


def _encoder_rows(model: TrainedModel) -> Iterator[_EncoderRow]:
    """The pretrained encoders that the model needs, or was trained from."""
    for name, given in model.inputs.items():
        spec = getattr(given, "spec", None)
        if isinstance(spec, EncoderSpec):
            sha256 = getattr(given, "sha256", None)
            yield _EncoderRow(spec.name, name, spec.licence, sha256, _source(spec))
    for name, described in model.network.description["branches"].items():
        encoder = described.get("encoder")
        if isinstance(encoder, str):
            known = ENCODERS.get(encoder)
            licence = None if known is None else known.licence
            yield _EncoderRow(
                encoder, name, licence, None, "trained on, and part of the checkpoint"
            )


def _source(spec: EncoderSpec) -> str:
    if isinstance(spec.origin, Packaged):
        return f"the package {spec.origin.package}"
    if isinstance(spec.origin, Hub):
        revision = f" at {spec.origin.revision}" if spec.origin.revision else ""
        return f"{spec.origin.repository} at the Hugging Face hub{revision}"
    return "a file of whoever trained it"


def _file_facts(checkpoint: Path, content: Mapping[str, Any], result: Mapping[str, Any]) -> Markup:
    """What the file is, and how long and with what it was trained."""
    epoch = content.get("epoch")
    rows = [
        ("file", f"{checkpoint.name}, {checkpoint.stat().st_size / 2**20:.1f} MiB"),
        ("SHA-256", _sha256(checkpoint)),
        ("saved in epoch", epoch + 1 if type(epoch) is int else "not recorded"),
        ("after optimizer steps", content.get("global_step", "not recorded")),
        ("PyTorch Lightning", content.get("pytorch-lightning_version", "not recorded")),
    ]
    numbers = {
        "epochs": "epochs trained",
        "seconds": "seconds trained",
        "num_parameters": "weights",
    }
    rows += [(label, f"{result[name]:,}") for name, label in numbers.items() if result.get(name)]
    versions = result.get("versions")
    if isinstance(versions, Mapping):
        rows += [(f"version of {name}", version) for name, version in versions.items()]
    rows.append(("card made by genre-lightning", __version__))
    return _markdown_table(("", "what"), [[name, str(value)] for name, value in rows], ("", "what"))


def _settings(training: Any) -> Markup | None:
    """What the checkpoint recorded of how it was trained, as far as a card shows it."""
    settings = training.get("settings") if isinstance(training, Mapping) else None
    if not isinstance(settings, Mapping):
        return None
    shown = []
    for name, value in settings.items():
        if not isinstance(name, str) or not any(fnmatchcase(name, each) for each in SHOWN):
            continue
        if name.endswith("._target_"):
            name = name.removesuffix("._target_")
        elif "._" in name:
            continue
        shown.append((name, "none" if value is None else str(value)[:200]))
    return _markdown_table(("setting", "value"), shown, ("setting", "value"))


def _dataset_name(data: Mapping[str, Any]) -> str:
    """Its name: the reader's, and the file's where the reader is told one."""
    reader, path = str(data.get("reader", "unknown")), data.get("path")
    return reader if path is None else f"{reader} ({Path(str(path)).name})"


def _split_settings(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was read and split."""
    # Of a path its last part alone: which folders the owner has is not told with a model.
    return [
        (name, Path(str(value)).name if is_path(f"data.{name}") else str(value))
        for name, value in data.items()
        if name not in ("reader", "path") and not (name == "root" and data.get("reader") == "demo")
    ]


def _usage(model: TrainedModel, file: str) -> str:
    """Three lines of Python that predict."""
    examples = {"title": '["Heat (1995)"]', "poster": 'posters=["heat.jpg"]'}
    arguments = []
    for column, of in model.columns.items():
        value = '["..."]' if of == "text" else '["poster.jpg"]' if of == "poster" else "[vector]"
        plain = f"{column}={value}" if column.isidentifier() else f"**{{{column!r}: {value}}}"
        arguments.append(examples.get(column, plain))
    arguments.sort(key=lambda argument: not argument.startswith("["))
    foreign = sorted({each.name for each in _encoder_rows(model) if each.name not in ENCODERS})
    allowed = f", encoders={foreign!r}" if foreign else ""
    return (
        "from genre_lightning import GenrePredictor\n"
        f"predictor = GenrePredictor.from_checkpoint({file!r}{allowed})\n"
        f"print(predictor.predict({', '.join(arguments)})[0].genres)"
    )


def _front_matter(
    model: TrainedModel, scored: Sequence[_ScoreTable], licence: str | None, name: str
) -> str:
    """The YAML at the top, as the Hugging Face hub reads it."""
    columns = set(model.columns)
    tasks = {"text": "text-classification", "poster": "image-classification"}
    kinds = set(model.columns.values())
    task = tasks.get(next(iter(kinds)), "other") if len(kinds) == 1 else "other"
    front: dict[str, Any] = {} if licence is None else {"license": licence}
    front["library_name"] = "genre-lightning"
    if task != "other":
        front["pipeline_tag"] = task
    front["tags"] = ["movies", "genres", "multi-label-classification", *sorted(columns)]
    front["metrics"] = ["f1", "precision", "recall"]
    first = next((table for table in scored if table.split == "test"), None)
    if first is not None:
        evaluation = first.evaluation
        other = None if evaluation is None else evaluation.other_data
        reader = str(model.data.get("reader", "unknown")) if other is None else other
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": task, "name": "multi-label classification of genres"},
                        "dataset": {
                            "name": _dataset_name(model.data) if other is None else other,
                            "type": reader,
                            "split": "test",
                        },
                        "metrics": [
                            {
                                "type": _HUB_METRICS[row.name.partition("_")[0]],
                                "name": row.label,
                                "value": round(row.value, 4),
                            }
                            for row in first.rows
                        ],
                    }
                ],
            }
        ]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip("\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split_name(split: str) -> str:
    return {"val": "Validation", "test": "Test", "train": "Training"}[split]
