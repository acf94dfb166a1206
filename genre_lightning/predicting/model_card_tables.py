"""Tables of a model card: branches, encoders, settings and the checkpoint file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from markupsafe import Markup

from genre_lightning import __version__
from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.files import hash_parts
from genre_lightning.inputs.encoders.spec import EncoderSpec, Hub, Packaged
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.movies.readers import GENERATED_FOLDER_OPTION
from genre_lightning.page.markdown import markdown_table
from genre_lightning.runs.settings import is_path
from genre_lightning.wording import printable

#: Training settings that a card shows; the others are elsewhere on the card, or in the run folder.
SHOWN_SETTINGS = (
    "optimizer.*", "scheduler.*", "loss.*", "training.*", "seed", "monitor", "start_from_priors",
    "label_sets", "data.batch_size", "model.dropout", "model.members", "model.branches.*.lr_scale",
    "model.branches.*.l2", "trainer.precision", "trainer.gradient_clip_val", "number of processes",
)  # fmt: skip


def table_markup(
    header: Sequence[str], rows: Sequence[Sequence[str]], left_aligned: Sequence[str]
) -> Markup:
    """A Markdown table, whose cells may come from an untrusted checkpoint.

    Args:
        header: of the columns.
        rows: a cell for each column; a cell that is not ``Markup`` is shown literally, on one line.
        left_aligned: headers of the left-aligned columns, which hold no numbers.
    """
    shown = [[cell if isinstance(cell, Markup) else one_line(cell) for cell in r] for r in rows]
    return Markup("\n".join(markdown_table(header, shown, left_aligned)))


def one_line(value: Any) -> str:
    """A value as text without line breaks or unprintable characters."""
    return printable(" ".join(str(value).split()))


def branch_table(model: TrainedModel) -> Markup:
    """A row per branch: its column, input, network and number of weights."""
    rows = []
    for name, branch_input in model.inputs.items():
        network = model.network.description["branches"][name]["name"]
        num_weights = sum(
            parameter.numel() for parameter in model.network.branches[name].parameters()
        )
        sizes = ", ".join(
            f"{key} {value}" for key, value in branch_input.network_arguments().items()
        )
        rows.append(
            [
                name,
                branch_input.column,
                f"{branch_input.kind} ({sizes})",
                network,
                f"{num_weights:,}",
            ]
        )
    header = ("branch", "column", "input", "network", "weights")
    return table_markup(header, rows, header[:-1])


@dataclass(frozen=True)
class EncoderRow:
    """A row of the table of encoders; None for values that are not recorded."""

    name: str
    branch: str
    licence: str | None
    sha256: str | None
    source: str


def encoder_rows(model: TrainedModel) -> Iterator[EncoderRow]:
    """The pretrained encoders that the model uses frozen or was fine-tuned from."""
    for name, branch_input in model.inputs.items():
        spec = getattr(branch_input, "spec", None)
        if isinstance(spec, EncoderSpec):
            sha256 = getattr(branch_input, "sha256", None)
            yield EncoderRow(spec.name, name, spec.licence, sha256, _source(spec))
    for name, described in model.network.description["branches"].items():
        encoder = described.get("encoder")
        if isinstance(encoder, str):
            known = ENCODERS.get(encoder)
            licence = None if known is None else known.licence
            yield EncoderRow(encoder, name, licence, None, "fine-tuned, and part of the checkpoint")


def encoder_table(model: TrainedModel) -> Markup | None:
    """The pretrained encoders with their licences and sources; None if the model has none."""
    rows = [
        [
            row.name,
            row.branch,
            row.licence or "not recorded: ask its publisher",
            row.source,
            row.sha256 or "–",
        ]
        for row in encoder_rows(model)
    ]
    header = ("encoder", "branch", "licence", "weights", "SHA-256 of the weights")
    return table_markup(header, rows, header) if rows else None


def _source(spec: EncoderSpec) -> str:
    """The source of an encoder's weights."""
    if isinstance(spec.origin, Packaged):
        return f"the package {spec.origin.package}"
    if isinstance(spec.origin, Hub):
        revision = f" at {spec.origin.revision}" if spec.origin.revision else ""
        return f"{spec.origin.repository} at the Hugging Face hub{revision}"
    return "a file of the model's owner"


def split_table(data: Mapping[str, Any]) -> Markup:
    """The settings for reading and splitting the dataset, as recorded in the checkpoint."""
    # Only the last part of a path: a published card must not reveal its owner's folders.
    shown = [
        (name, Path(str(value)).name if is_path(f"data.{name}") else str(value))
        for name, value in data.items()
        if name not in ("reader", "path", GENERATED_FOLDER_OPTION.get(data.get("reader", "")))
    ]
    return table_markup(("setting", "value"), shown, ("setting", "value"))


def settings_table(training: Any) -> Markup | None:
    """The training settings in :data:`SHOWN_SETTINGS`; None if the checkpoint has none.

    Args:
        training: the checkpoint's entry on its training, unchecked.
    """
    settings = training.get("settings") if isinstance(training, Mapping) else None
    if not isinstance(settings, Mapping):
        return None
    shown = []
    for name, value in settings.items():
        if not isinstance(name, str) or not any(fnmatchcase(name, each) for each in SHOWN_SETTINGS):
            continue
        if name.endswith("._target_"):
            name = name.removesuffix("._target_")
        elif "._" in name:
            continue
        shown.append((name, "none" if value is None else str(value)[:200]))
    return table_markup(("setting", "value"), shown, ("setting", "value"))


def file_table(checkpoint: Path, content: Mapping[str, Any], result: Mapping[str, Any]) -> Markup:
    """The checkpoint file, and the duration and library versions of its training."""
    epoch = content.get("epoch")
    rows = [
        ("file", f"{checkpoint.name}, {checkpoint.stat().st_size / 2**20:.1f} MiB"),
        ("SHA-256", hash_parts([checkpoint])),
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
    return table_markup(("", "what"), [[name, str(value)] for name, value in rows], ("", "what"))
