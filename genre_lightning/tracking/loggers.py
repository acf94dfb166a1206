"""Loggers besides metrics.csv: opened when a run begins, closed however it ends."""

from __future__ import annotations

import os
import secrets
import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import UserError
from genre_lightning.report.evaluation import SplitScores
from genre_lightning.runs.instantiating import make_parts
from genre_lightning.runs.naming import format_overrides, read_command
from genre_lightning.runs.process import is_first_process
from genre_lightning.runs.quoting import shell_command
from genre_lightning.runs.result import write_result
from genre_lightning.runs.settings import changes_no_result, flat_settings
from genre_lightning.training.callbacks.epoch_log import WANDB_STEP

if TYPE_CHECKING:
    from wandb import Run

#: W&B refuses longer names.
_NAME_LENGTH = 128
#: Seconds after which W&B writes and uploads logged data. With its default of 15, a killed process
#: loses that much of the run.
_FLUSH_SECONDS = 0.1
_UPLOAD_SECONDS = 2.0


class RunLogger(WandbLogger):
    """Lightning's W&B logger for one run of this project.

    Args:
        offline: None follows ``WANDB_MODE`` if it is set, and otherwise goes online if there is an
            account.
        resume: "allow" to continue the W&B run of a resumed training, "never" to start a new one.
        posters: number of validation movies in the table of posters.
        log_checkpoint: whether to upload ``best.ckpt`` as an artifact.
        tags: of the run, one or several.
        arguments: further arguments of ``WandbLogger`` and ``wandb.init``.

    Attributes:
        resumes: whether an earlier attempt at this training has logged to the run.
    """

    def __init__(
        self,
        *,
        offline: bool | None = None,
        resume: str = "allow",
        posters: int = 32,
        log_checkpoint: bool = False,
        tags: str | Sequence[str] | None = None,
        **arguments: Any,
    ) -> None:
        import wandb

        # Not Lightning's `offline`, which sets WANDB_MODE for every later run of the process.
        super().__init__(
            mode=_wandb_mode(offline),
            resume=resume,
            # W&B would take each letter of a single string for a tag.
            tags=[tags] if isinstance(tags, str) else tags,
            settings=wandb.Settings(
                quiet=True,
                show_info=False,
                x_transaction_log_flush_interval=_FLUSH_SECONDS,
                x_file_stream_transmit_interval=_UPLOAD_SECONDS,
            ),
            **arguments,
        )
        del self._wandb_init["anonymous"]  # deprecated, whatever its value
        self.posters = posters
        self.log_checkpoint = log_checkpoint
        self.resumes = False

    def choose_id(self, previous_id: str | None) -> str:
        """Choose the run's id: the configured one, that of the resumed training, or a new one."""
        if self._wandb_init["resume"] == "never":
            previous_id = None
        run_id: str = self._wandb_init["id"] or previous_id or _new_id()
        self.resumes = run_id == previous_id
        self._wandb_init["id"] = run_id
        return run_id

    def begin(self, name: str | None, group: str | None) -> Run:
        """Start or resume the run; ``name`` and ``group`` are used if the config has none.

        Raises:
            UserError: W&B refuses, can't be reached, or has no folder to write into.
        """
        import wandb

        _check_data_folder()
        init_arguments = self._wandb_init
        init_arguments.update(
            name=init_arguments.get("name") or name, group=init_arguments.get("group") or group
        )
        try:
            return self.experiment
        except wandb.Error as error:
            raise UserError(
                f"W&B: {error}; logger.wandb.offline=true logs to the run folder instead"
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row at once, at W&B's step of the same number if it has not passed that yet."""
        run = self.experiment
        if step is None:
            run.log(dict(metrics))
        else:
            run.log({**metrics, WANDB_STEP: step}, step=max(step, run.step), commit=True)

    def finish(self, exit_code: int) -> None:
        """End the run, so that a later run in this process is a separate one."""
        run, self._experiment = self._experiment, None
        if run is None:
            return
        offline = run.offline
        run.finish(exit_code)
        if offline:
            folders = sorted(Path(str(self.save_dir), "wandb").glob(f"offline-run-*-{run.id}"))
            command = shell_command("wandb", "sync", *folders)
            _print_line(f"W&B: logged offline; to upload it: {command}")


def _check_data_folder() -> None:
    """Check now, rather than fail after training, that W&B can write the folder of its tables."""
    from platformdirs import user_data_dir

    folder = Path(os.environ.get("WANDB_DATA_DIR") or user_data_dir("wandb")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(
            f"W&B can't write into {folder}: set the environment variable WANDB_DATA_DIR to a "
            "folder where it can"
        )


def tensorboard_logger(save_dir: str, name: str, version: str = "") -> TensorBoardLogger:
    """Lightning's TensorBoard logger.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "logger=tensorboard needs a package that is not installed: pip install tensorboard"
        )
    return TensorBoardLogger(save_dir, name=name, version=version)


class KeepLoggersOpen(Callback):
    """Keeps Lightning from closing the loggers after training, as the final scores come later."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = []

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        trainer.loggers = []


@contextmanager
def open_loggers(cfg: DictConfig, folder: Path, result: dict[str, Any]) -> Iterator[list[Logger]]:
    """Build the loggers of ``cfg.logger`` and log the configuration.

    Args:
        cfg: the composed configuration.
        folder: the run folder.
        result: the run's result; ``wandb_run_id`` is set and saved in ``result.json`` before W&B
            starts.

    Yields:
        The loggers, for a trainer with :class:`KeepLoggersOpen`. They are closed after the block; a
        W&B run ends as finished, failed or interrupted, like the block.
    """
    loggers = make_parts("logger", cfg.get("logger") or {}, Logger)  # type: ignore[type-abstract]
    exit_code = 1
    try:
        for logger in loggers:
            _begin_logging(logger, cfg, folder, result)
        yield loggers
        exit_code = 0
    except (KeyboardInterrupt, SystemExit):
        exit_code = 255  # as W&B itself reports a Ctrl-C
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, RunLogger):
                logger.finish(exit_code)
            else:
                logger.finalize("failed" if exit_code else "success")


def _begin_logging(logger: Logger, cfg: DictConfig, folder: Path, result: dict[str, Any]) -> None:
    if not is_first_process():
        return
    settings = flat_config(cfg)
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(settings, {f"best/{cfg.monitor}": float("nan")})
    elif isinstance(logger, RunLogger):
        result["wandb_run_id"] = logger.choose_id(result["wandb_run_id"])
        write_result(folder, result)
        run = logger.begin(*_name_and_group(cfg, folder, result["overrides"]))
        run.define_metric(cfg.monitor, step_metric=WANDB_STEP, summary=cfg.monitor_mode)
        logger.log_hyperparams(settings)
    else:
        with warnings.catch_warnings():
            # A resumed run logs all of its earlier rows again.
            warnings.filterwarnings("ignore", message="Experiment logs directory .* not empty")
            logger.log_hyperparams(settings)


def log_outcome(
    loggers: Sequence[Logger],
    step: int,
    model: TrainedModel,
    data: MovieDataModule,
    scores: Mapping[str, SplitScores],
    result: Mapping[str, Any],
    checkpoint: Path,
) -> None:
    """Log the scores of the best checkpoint to every logger, and tables and curves to W&B.

    Args:
        loggers: from :func:`open_loggers`.
        step: the last step of training.
        model: of the best checkpoint.
        data: the data that was scored.
        scores: of "val" and "test".
        result: the run's result, with the metrics of both splits and the monitored value.
        checkpoint: file of the best checkpoint.
    """
    metrics = {
        f"{prefix}/{name}": value
        for prefix, split in (("val_best", "val"), ("test", "test"))
        for name, value in result[split].items()
    }
    for logger in loggers:
        if isinstance(logger, RunLogger):
            from genre_lightning.tracking.wandb_report import log_checkpoint, log_report

            run = logger.experiment
            run.summary.update(metrics)
            log_report(run, model, data, scores["val"], logger.posters)
            if logger.log_checkpoint:
                log_checkpoint(run, checkpoint, metrics)
        else:
            best = {f"best/{result['monitor']}": result["monitor_value"]}
            logger.log_metrics({**metrics, **best}, step=step)
            logger.save()


def flat_config(cfg: DictConfig) -> dict[str, Any]:
    """The configuration without loggers as a flat mapping: ``optimizer.lr``, ``model.dropout``."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("logger", None)
    return {
        name: value
        for name, value in flat_settings(plain).items()
        if name.rpartition(".")[2] not in ("_partial_", "_convert_")
    }


def run_name(overrides: Sequence[str]) -> str | None:
    """Name a run by its overrides, without those that change no result; None if none are left."""
    named = [
        override.lstrip("+~")
        for override in overrides
        if not changes_no_result(override.lstrip("+~").partition("=")[0])
    ]
    return ",".join(sorted(named))[:_NAME_LENGTH] or None


def _name_and_group(
    cfg: DictConfig, folder: Path, overrides: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return name and group; a sweep's job is named by its swept keys, as in the terminal."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or hydra.mode != RunMode.MULTIRUN:
        return run_name(overrides), None
    name = format_overrides(overrides, read_command(folder.parent)["keys"])
    named = OmegaConf.select(cfg, "sweep.name")
    return name[:_NAME_LENGTH] or None, str(named or folder.parent.name)


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _wandb_mode(offline: bool | None) -> str | None:
    import wandb

    if offline is not None:
        return "offline" if offline else "online"
    if os.environ.get("WANDB_MODE") or wandb.login(prompt=False):
        return None  # up to WANDB_MODE or `wandb offline`
    return "offline"


def _print_line(line: str) -> None:
    Console(markup=False, emoji=False, highlight=False).print(line, soft_wrap=True)
