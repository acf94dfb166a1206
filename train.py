"""Train a genre model: ``python train.py [overrides]``; see conf/train.yaml for every option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from genre_lightning.cores import set_threads
from genre_lightning.garbage import freeze_imports
from genre_lightning.runs.ckpt_path import run_directory
from genre_lightning.runs.command_line import command
from genre_lightning.runs.earlier import add_earlier_overrides
from genre_lightning.runs.instantiating import make_parts, setting_errors
from genre_lightning.runs.process import hold_signals, is_first_process
from genre_lightning.sweeps.jobs import run_job, shared_by_jobs

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from genre_lightning.data.datamodule import MovieDataModule
    from genre_lightning.models.branches import Branch
    from genre_lightning.training.callbacks.checkpoint_io import WholeFileIO
    from genre_lightning.training.module import GenreModule

#: The folder beside this file, which is also installed as genre-train.
CONF = Path(__file__).resolve().with_name("conf")
# For conf/hydra/default.yaml: the folder of the run to resume.
OmegaConf.register_new_resolver("run_folder", run_directory, use_cache=True, replace=True)


def configured_branches(cfg: DictConfig) -> dict[str, Branch]:
    """The configured branches by name."""
    from genre_lightning.models.branches import read_branches

    branches = cfg.model.get("branches")  # an empty list of branches leaves no key
    plain = {} if branches is None else OmegaConf.to_container(branches, resolve=True)
    return read_branches(cast("dict[str, Any]", plain))


def make_data(cfg: DictConfig) -> MovieDataModule:
    """Seed all random generators, then build and set up the configured data module."""
    from hydra.utils import instantiate

    from genre_lightning.lean_imports import load_lightning

    load_lightning()
    from pytorch_lightning import seed_everything

    from genre_lightning.data.sharing import SharedData
    from genre_lightning.models.networks import check_takes

    seed_everything(cfg.seed, verbose=False)
    branches = configured_branches(cfg)
    with setting_errors("data"):
        input_configs = {name: branch.input for name, branch in branches.items()}
        settings = cast("dict[str, Any]", OmegaConf.to_container(cfg.data, resolve=True))
        shared: SharedData = shared_by_jobs().setdefault("data", SharedData())
        inputs = shared.inputs(settings, input_configs)
        data: MovieDataModule = instantiate(cfg.data, inputs=inputs, seed=cfg.seed)
    with setting_errors("model"):  # before spending minutes on computing vectors or words
        check_takes({name: branch.network for name, branch in branches.items()}, inputs)
    shared.open(data)
    return data


def make_module(cfg: DictConfig, data: MovieDataModule) -> GenreModule:
    """Build the network, loss and optimizer for these data, and fill in ``cfg.num_genres``."""
    import torch
    from hydra.utils import instantiate

    from genre_lightning.models.batch_norm import check_batch_size
    from genre_lightning.models.label_sets import LabelSets
    from genre_lightning.models.networks import build_network
    from genre_lightning.training.module import GenreModule

    torch.set_float32_matmul_precision("high")
    cfg.num_genres = len(data.genres)
    branches = configured_branches(cfg)
    counts = {
        "genre_counts": data.genre_counts().tolist(),
        "num_movies": len(data.splits["train"]),
    }
    with setting_errors("model"):
        network = build_network(
            cfg.num_genres,
            {name: branch.network for name, branch in branches.items()},
            data.inputs,
            dropout=cfg.model.dropout,
            members=cfg.model.members,
        )
    check_batch_size(network.branches, data.train_batch_size())
    if cfg.start_from_priors:
        network.start_from_priors(**counts)
    if cfg.label_sets:
        network.label_sets = LabelSets.from_targets(*data.train_labels())
    with setting_errors("loss"):
        loss = instantiate(cfg.loss, **counts)
    with setting_errors("training"):
        return GenreModule(
            network,
            loss,
            instantiate(cfg.optimizer),
            instantiate(cfg.scheduler),
            inputs=data.describe(),
            folds=data.folds if data.validates_by_folds else 1,
            lr_scales={name: branch.lr_scale for name, branch in branches.items()},
            l2={name: branch.l2 for name, branch in branches.items()},
            num_movies=counts["num_movies"],
            **cfg.training,
        )


def trains_on_gpu(cfg: DictConfig) -> bool:
    """Whether the configured trainer will choose a GPU."""
    import torch

    return cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def chosen_precision(cfg: DictConfig) -> str:
    """The trainer's precision; "auto" is bfloat16 on a GPU and float32 on a CPU."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    return "bf16-mixed" if trains_on_gpu(cfg) else "32-true"


def saves_in_background(cfg: DictConfig) -> bool:
    """Whether checkpoints are written while training continues; "auto" means only on a GPU.

    On a CPU the writing thread and the training share the cores, so nothing is gained.
    """
    setting = cfg.checkpoint_in_background
    return trains_on_gpu(cfg) if setting == "auto" else bool(setting)


def make_checkpoint_io(cfg: DictConfig) -> WholeFileIO:
    """Build the plugin that writes the checkpoints."""
    from genre_lightning.training.callbacks.checkpoint_io import WholeFileIO

    # No delay if the user has limited how many steps can be lost.
    seconds = 0.0 if cfg.checkpoint_every_n_steps else float(cfg.checkpoint_min_seconds)
    return WholeFileIO(saves_in_background(cfg), seconds)


def train(cfg: DictConfig, folder: Path, result: dict[str, Any]) -> None:
    """Fit the configured model and score its best checkpoint, filling ``result`` along the way.

    Args:
        cfg: the composed configuration.
        folder: the run folder.
        result: content of ``result.json``.
    """
    # Imported here, so that --help, --cfg and completion don't wait for PyTorch.
    with hold_signals(), freeze_imports():
        from genre_lightning.lean_imports import load_lightning

        load_lightning()
        from hydra.utils import instantiate
        from pytorch_lightning import Callback
        from pytorch_lightning.callbacks import ProgressBar
        from rich.console import Console

        from genre_lightning.checkpoint.card import TRAINING_KEY
        from genre_lightning.checkpoint.model import load_model
        from genre_lightning.checkpoint.resuming import check_resumable, copy_best
        from genre_lightning.data.notes import dataset_summary
        from genre_lightning.errors import UserError
        from genre_lightning.report.evaluation import print_genre_table, score_split, split_metrics
        from genre_lightning.runs.ckpt_path import last_checkpoint
        from genre_lightning.runs.settings import may_change_on_resume
        from genre_lightning.tracking.loggers import KeepLoggersOpen, log_outcome, open_loggers
        from genre_lightning.training.callbacks.epoch_log import EpochLog
        from genre_lightning.training.callbacks.history import History
        from genre_lightning.training.callbacks.pruning import Pruning
        from genre_lightning.training.callbacks.resume import Resume, epochs_done, run_settings
        from genre_lightning.training.fit_errors import clear_fit_errors

    # Names of genres and files must not be interpreted as markup.
    console = Console(markup=False, emoji=False, quiet=not is_first_process())
    result["threads"] = set_threads()
    # Before the data, whose vectors can take minutes, so that mistakes are reported at once. The
    # callback for best.ckpt comes first: Lightning, and we, take the best epoch from the first one.
    parts = {"checkpoint": cfg.callbacks.checkpoint, **cfg.callbacks}
    callbacks = make_parts("callbacks", parts, Callback)
    if not cfg.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    precision = chosen_precision(cfg)
    history = History(folder)
    with setting_errors("trainer"):
        trainer = instantiate(
            cfg.trainer,
            precision=precision,
            callbacks=[history, EpochLog(history), *callbacks],
            logger=False,  # see open_loggers
            # If there is none, Lightning must not add its own.
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            plugins=[make_checkpoint_io(cfg)],
        )
    data = make_data(cfg)
    for part in dataset_summary(data):
        console.print(part)
    module = make_module(cfg, data)
    network = module.network
    result["learnt_from"] = module.inputs["learnt_from"]
    result["num_parameters"] = sum(parameter.numel() for parameter in network.parameters())
    settings = run_settings(
        cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True)),
        precision=precision,
        world_size=trainer.num_nodes * trainer.num_devices,
    )
    ckpt_path = None
    if cfg.ckpt_path is not None:
        ckpt_path = last_checkpoint(cfg.ckpt_path, folder)
        checkpoint = check_resumable(
            ckpt_path, module.inputs, network, settings, may_change_on_resume
        )
        result["wandb_run_id"] = result["wandb_run_id"] or checkpoint[TRAINING_KEY]["wandb_run_id"]
        if is_first_process():
            copy_best(checkpoint, ckpt_path, folder / "checkpoints")
    resume = Resume(folder, result, settings, cfg.checkpoint_every_n_steps)
    trainer.callbacks += [resume, KeepLoggersOpen()]
    with open_loggers(cfg, folder, result) as loggers:
        trainer.loggers = loggers
        with clear_fit_errors(trainer, history, cfg.data.batch_size, ckpt_path):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)

        best = trainer.checkpoint_callback.best_model_path
        result["epochs"] = epochs_done(trainer)
        result["pruned"] = any(isinstance(c, Pruning) and c.pruned for c in callbacks)
        result["train_samples_per_second"] = history.samples_per_second
        if not best:
            raise UserError(
                "no epoch was validated, so there is no best checkpoint: trainer.max_steps and "
                "trainer.max_time must leave room for a whole epoch, or for as many as "
                "trainer.check_val_every_n_epoch"
            )
        result["best_checkpoint"] = str(Path(best).relative_to(folder))
        if not trainer.is_global_zero:
            return
        # Scored as by evaluate.py: from the file alone, in float32.
        device = trainer.strategy.root_device
        model = load_model(best, device)
        scores = {split: score_split(model, data, split, device) for split in ("val", "test")}
        for split, split_scores in scores.items():
            result[split] = split_metrics(model, split_scores)
            print_genre_table(model, split_scores, result[split], console)
        # Over the whole split, even if training validated on a part of it.
        result["monitor_value"] = result["val"][cfg.monitor.removeprefix("val/")]
        log_outcome(loggers, trainer.global_step, model, data, scores, result, Path(best))


@command(CONF, "train", add_earlier_overrides)
def main(cfg: DictConfig) -> float | None:
    """Run one training, alone or as a job of a sweep; return the monitored value."""
    return run_job(cfg, train)


if __name__ == "__main__":
    main()
