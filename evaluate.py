"""Score a checkpoint: ``python evaluate.py ckpt_path=FILE [split=val] [data=ml1m ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from genre_lightning.cores import set_threads, share_cores
from genre_lightning.garbage import freeze_imports
from genre_lightning.runs.command_line import command

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: The folder beside this file, which is also installed as genre-evaluate.
CONF = Path(__file__).resolve().with_name("conf")


def evaluate(cfg: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Rebuild the model from the checkpoint alone, score the split, and write metrics and report.

    Args:
        cfg: the composed configuration of conf/evaluate.yaml.
        folder: where files are written.
        overrides: overrides of the command line, shown in the report.

    Returns:
        The metrics.
    """
    with freeze_imports():
        from datetime import datetime

        import torch
        from hydra.utils import instantiate
        from rich.console import Console

        from genre_lightning.checkpoint.model import load_model
        from genre_lightning.data.datamodule import MovieDataModule
        from genre_lightning.data.leakage import changed_data_notes, contains_training_movies
        from genre_lightning.data.notes import (
            empty_branch_notes,
            ignored_setting_notes,
            poster_notes,
            random_split_notes,
        )
        from genre_lightning.errors import UserError
        from genre_lightning.files import whole_file
        from genre_lightning.inputs.encoders.table import trust_encoders
        from genre_lightning.predicting.predictor import find_device
        from genre_lightning.report.evaluation import (
            print_genre_table,
            print_written,
            score_split,
            write_evaluation,
        )
        from genre_lightning.report.page import Origin, render_report
        from genre_lightning.runs.ckpt_path import best_checkpoint
        from genre_lightning.runs.ending import script_command
        from genre_lightning.runs.quoting import format_override, relative_to_cwd, shell_command

    set_threads()
    trust_encoders(cfg.encoders)
    device = find_device(cfg.device)
    torch.set_float32_matmul_precision("high")
    checkpoint = best_checkpoint(cfg.ckpt_path)
    model = load_model(checkpoint, device)
    arguments: dict[str, Any] = {
        "inputs": model.inputs,
        "genres": model.genres,
        "cache_dir": cfg.cache_dir,
    }
    data = (
        MovieDataModule.from_description(model.data, **arguments)
        if cfg.get("data") is None
        else instantiate(cfg.data, **arguments)
    )
    data.setup()
    if not len(data.splits[cfg.split]):
        raise UserError(f"split={cfg.split}: no movie of the dataset is in it")
    training_data = (model.data, model.learnt_from, model.learnt_movies)
    notes = [*data.movie_set.notes, *changed_data_notes(data, cfg.split, *training_data)]
    scores = score_split(model, data, cfg.split, device, cfg.batch_size)
    metrics = write_evaluation(folder, model, data, scores)
    validation = scores if cfg.split == "val" else None
    if validation is None and len(model.inputs) > 1 and len(data.splits["val"]):
        # Validation scores are needed to compare the branches fairly.
        if contains_training_movies(data, "val", *training_data):
            notes.append(
                "the report does not compare the branches: val is not drawn as in training, and "
                "contains movies that the model was trained on; split=val says what to do"
            )
        else:
            validation = score_split(model, data, "val", device, cfg.batch_size)
    # "last", or the best run of a sweep, is another checkpoint later.
    again = [override for override in overrides if not override.startswith("ckpt_path=")]
    again.insert(0, format_override("ckpt_path", relative_to_cwd(checkpoint)))
    origin = Origin(
        checkpoint=checkpoint,
        command=shell_command(*script_command("evaluate"), *again),
        created=datetime.now().astimezone(),
    )
    html = render_report(model, data, scores, origin, validation, gallery=cfg.gallery)
    with whole_file(folder / "report.html") as file:
        file.write(html)
    console = Console(markup=False, emoji=False)  # names are shown as they are
    console.print(f"checkpoint: {shell_command(relative_to_cwd(checkpoint))}", soft_wrap=True)
    print_genre_table(model, scores, metrics, console)
    notes += empty_branch_notes(data) + poster_notes(data, cfg.split)
    if cfg.get("data") is not None:
        notes += ignored_setting_notes(data) + random_split_notes(data, cfg.split)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    print_written(folder, console)
    return metrics


@command(CONF, "evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate, and write into the run folder that Hydra created."""
    from genre_lightning.errors import UserError
    from genre_lightning.runs.config import write_config

    share_cores()
    try:
        run = HydraConfig.get()
        folder = Path(run.runtime.output_dir)
        write_config(cfg, folder)
        evaluate(cfg, folder, run.overrides.task)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
