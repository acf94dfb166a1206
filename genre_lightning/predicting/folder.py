"""A folder to publish a model: ONNX graph, tokenizers, weights and model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genre_lightning.checkpoint.model import load_model
from genre_lightning.files import whole_folder
from genre_lightning.predicting.export import export_onnx
from genre_lightning.predicting.input_graph import ExportError
from genre_lightning.predicting.model_card import model_card, write_model_card
from genre_lightning.predicting.weights import export_weights

CARD = "README.md"
GRAPH = "model.onnx"
WEIGHTS = "model.ckpt"


def export_folder(
    checkpoint: str | Path,
    folder: str | Path,
    scores: Sequence[str | Path] = (),
    licence: str | None = None,
) -> list[str]:
    """Write a folder with all that is needed to use a model; completely or not at all.

    Args:
        checkpoint: the file.
        folder: to write; must not exist, or be empty.
        scores: folders that evaluate.py wrote; the ``evaluations`` of
            :func:`genre_lightning.predicting.model_card.model_card`.
        licence: of the model, as an SPDX identifier; None if none is chosen.

    Returns:
        The names of the files: the card ``README.md``, the graph ``model.onnx`` with
        ``model.vocabulary.json`` and a tokenizer for each text encoder, and ``model.ckpt``, the
        checkpoint without what only training needs.

    Raises:
        CheckpointError: ``checkpoint`` is not a checkpoint of this project.
        CardError: one of ``scores`` is damaged, or of another model.
        ExportError: the folder exists and is not empty, or can't be written; or the model can't be
            exported.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ExportError(f"{folder} is there already: name a new folder")
    if not folder.absolute().parent.is_dir():
        raise ExportError(f"{folder}: there is no folder {folder.absolute().parent}")
    try:
        with whole_folder(folder.absolute()) as partial:
            export_weights(checkpoint, partial / WEIGHTS)
            card = model_card(checkpoint, scores, licence, partial / WEIGHTS)
            write_model_card(partial / CARD, card)
            export_onnx(load_model(checkpoint), partial / GRAPH)
            names = sorted(path.name for path in partial.iterdir())
    except OSError as error:
        raise ExportError(f"{folder}: can't be written ({error.strerror or error})") from error
    return names
