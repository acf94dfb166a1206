"""Resuming training exactly where it stopped: what is saved beyond Lightning's state, and when."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from genre_lightning.checkpoint.card import TRAINING_KEY
from genre_lightning.cores import num_cores
from genre_lightning.data.batch import MovieBatch, MovieLoader
from genre_lightning.errors import SettingError
from genre_lightning.runs.process import (
    catch_signals,
    ending_signals,
    is_first_process,
    release_signals,
    stop_callbacks,
    under_slurm,
)
from genre_lightning.runs.result import write_result
from genre_lightning.runs.settings import flat_settings, may_change_on_resume
from genre_lightning.training.callbacks.checkpoint_io import WholeFileIO
from genre_lightning.wording import counted


class Interrupted(SystemExit):
    """A signal ended training, after the current step was finished and saved."""


def run_settings(config: Mapping[str, Any], *, precision: str, world_size: int) -> dict[str, Any]:
    """Return the settings that must not change when a run is resumed, by flat dotted names.

    Args:
        config: plain data, resolved.
        precision: the one in use, to which "auto" was resolved.
        world_size: number of processes that train together.
    """
    settings = {
        name: value
        for name, value in flat_settings(config).items()
        if value != {} and not may_change_on_resume(name)
    }
    return {**settings, "trainer.precision": precision, "number of processes": world_size}


class Resume(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` at the newest state from which a run can resume exactly.

    The trainer must write its checkpoints by :class:`WholeFileIO`.

    The state is saved at the end of each epoch, every ``every_n_steps`` optimizer steps, and at the
    end of the step in which SIGTERM, Ctrl-C or SIGHUP arrives. The signal then ends the run with
    :class:`Interrupted`; the same signal a second time ends it at once. Within ``min_seconds`` of
    the last save (see :class:`WholeFileIO`), only a new best, the last epoch and a signal cause
    another one. Under Slurm, Lightning handles SIGTERM and the signal on which it requeues the job;
    the latter is held back until the end of a step. A state between a batch and the validation
    after it is never saved, since Lightning can't resume from there: a save that is due then is
    made after the validation.

    If the trainer's ``max_steps`` or ``max_time`` ends training in mid-epoch, the state is saved as
    a mid-epoch one, so that with a higher limit the rest of that epoch is trained.

    Every checkpoint, including the best, gets an entry of plain data with what Lightning leaves
    out: for each process, the state of all random generators, the sums behind ``train/loss`` and
    the number of threads; the last metrics; whether training was stopped early; the settings; the
    W&B run.

    Args:
        folder: the run folder.
        result: the future content of ``result.json``; its W&B run is stored as well.
        settings: from :func:`run_settings`.
        every_n_steps: None saves at the end of epochs only.
    """

    def __init__(
        self,
        folder: str | Path,
        result: dict[str, Any],
        settings: Mapping[str, Any],
        every_n_steps: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.result = result
        self.settings = dict(settings)
        self.every_n_steps = every_n_steps
        self.path = self.folder / "checkpoints" / "last.ckpt"
        self.signal: int | None = None
        self._restored: dict[str, Any] | None = None
        self._restored_steps = -1
        self._original_threads: int | None = None
        self._last_saved: tuple[Any, Any] | None = None
        self._handlers: dict[int, Any] = {}
        #: Lightning's handlers that requeue a Slurm job, by signal; empty once one was called.
        self._requeue_handlers: dict[int, Any] = {}
        self._requeue_requested = False
        self._began = time.perf_counter()
        self._seconds = float(result.get("seconds") or 0.0)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        saver = trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and saver.save_weights_only:
            # Lightning would also leave out the score, by which a resumed run recognises the file.
            saver.save_weights_only = False
            _checkpoint_io(trainer).slim = f"{saver.filename}.ckpt"

    # Saving and restoring the state.

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        module: Any = pl_module
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if _is_in_epoch(trainer) and trainer.is_last_batch:
            # In the validation after the last batch: a resumed run has no step left in the epoch
            # for which Lightning would compute it.
            metrics["train/loss"] = float(module.train_loss.compute())
        out_of_time = _is_out_of_time(trainer)
        state = self._process_state(trainer, pl_module)
        states = [state]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        checkpoint[TRAINING_KEY] = entry = {
            "settings": self.settings,
            "wandb_run_id": self.result.get("wandb_run_id"),
            # If time is over, the timer stops a resumed run as well, unless it is given more time.
            "should_stop": trainer.should_stop and not out_of_time,
            "metrics": metrics,
            "processes": states,
        }
        if out_of_time and not trainer.is_last_batch and not _is_in_epoch(trainer):
            # Lightning counts the epoch as done, though it has batches left.
            for count in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
                count["processed"] -= 1
        self._last_saved = _training_position(trainer), entry

    def _process_state(self, trainer: pl.Trainer, module: Any) -> dict[str, Any]:
        version, keys, gauss = random.getstate()
        kind, words, *numbers = np.random.get_state(legacy=True)
        state: dict[str, Any] = {
            "python": [version, list(keys), gauss],
            "numpy": [kind, np.asarray(words).tolist(), *numbers],
            "torch": torch.get_rng_state(),
            "position": _loader(trainer).state_dict(),
            "threads": torch.get_num_threads(),
        }
        device = trainer.strategy.root_device.type
        if device != "cpu":
            state[device] = getattr(torch, device).get_rng_state()
        if not trainer.is_last_batch:
            state["train_loss"] = [float(value) for value in _sums(module)]
        return state

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._restored = checkpoint[TRAINING_KEY]
        self._restored_steps = checkpoint["global_step"]
        still_stopped = _stays_stopped(trainer, checkpoint["callbacks"])
        trainer.should_stop = bool(self._restored["should_stop"]) and still_stopped
        saver = trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint):  # which saves current_score but doesn't load it
            state = checkpoint["callbacks"].get(saver.state_key, {})
            saver.current_score = state.get("current_score")
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        max_epochs = trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs < done:
            raise ValueError(f"it has {done} epochs, and trainer.max_epochs={max_epochs}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._restored is None:
            _check_validates(trainer)
        else:
            self._restore(trainer, pl_module, self._restored)
            self._restored = None
        if trainer.is_global_zero:
            for leftover in self.path.parent.glob(".*.ckpt.*"):  # from a kill while saving
                leftover.unlink()
        self._catch_signals()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why a resumed run trained nothing."""
        if trainer.global_step != self._restored_steps:
            return
        epochs = counted(epochs_done(trainer), "epoch")
        if trainer.should_stop and not _is_out_of_time(trainer):
            reason = (
                f"it was stopped early, after {epochs}; to train on, resume it with "
                "callbacks.early_stopping=null or a larger callbacks.early_stopping.patience"
            )
        else:
            limit = "max_time" if trainer.should_stop else "max_epochs"
            limit = "max_steps" if _is_last_step(trainer) else limit
            reason = f"its {epochs} are done; to train on, resume it with a larger trainer.{limit}"
        if is_first_process():
            print(f"Nothing is left to train in this run: {reason}", flush=True)

    def _restore(self, trainer: pl.Trainer, module: Any, saved: dict[str, Any]) -> None:
        trainer.callback_metrics.update(
            {name: torch.tensor(value) for name, value in saved["metrics"].items()}
        )
        state = saved["processes"][trainer.global_rank]
        # Lightning doesn't do this, since it made the loader earlier, to count the steps.
        _loader(trainer).load_state_dict(state["position"])
        if "train_loss" in state:
            for total, value in zip(_sums(module), state["train_loss"], strict=True):
                total.fill_(value)
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, words, *numbers = state["numpy"]
        np.random.set_state((kind, np.array(words, dtype=np.uint32), *numbers))
        torch.set_rng_state(state["torch"])
        device = trainer.strategy.root_device.type
        if device in state:  # missing if the run was trained on another kind of device
            getattr(torch, device).set_rng_state(state[device])
        # The number of threads determines the order of sums, and so their rounding.
        if "OMP_NUM_THREADS" not in os.environ and "threads" in state:
            self._original_threads = torch.get_num_threads()
            torch.set_num_threads(min(state["threads"], num_cores()))

    # When to save.

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: MovieBatch,
        batch_idx: int,
    ) -> None:
        if not self._validates_next(trainer):
            self._save_between_steps(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # If training is to stop, the epoch ends here, and its end is saved instead.
        if not (trainer.sanity_checking or trainer.should_stop):
            self._save_between_steps(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # If the last step cuts the epoch, its state was saved before Lightning counted it as done.
        is_cut = not trainer.is_last_batch and _is_last_step(trainer)
        training_ends = not is_cut and _is_last_epoch(trainer)
        self._save(trainer, due=not is_cut, training_ends=training_ends, epoch_end=True)

    def _write(self, trainer: pl.Trainer, epoch_end: bool, may_wait: bool) -> bool:
        """Write the state, or link to the best checkpoint if it was just saved at this epoch's end.

        Args:
            may_wait: don't write if ``last.ckpt`` was written less than ``min_seconds`` ago.

        Returns:
            False if nothing was written: a copy of the state would only be replaced later.
        """
        io = _checkpoint_io(trainer)  # writes in the first process alone
        if (
            epoch_end
            and self._last_saved is not None
            and self._last_saved[0] == _training_position(trainer)
        ):
            linked = io.newest is not None and io.newest[1] is self._last_saved[1]
            if linked:
                io.link(self.path)
            if trainer.strategy.broadcast(linked):
                return True
        if may_wait and not trainer.strategy.broadcast(io.is_due(self.path)):
            return False
        trainer.save_checkpoint(self.path, weights_only=False)
        return True

    def _validates_next(self, trainer: pl.Trainer) -> bool:
        """Whether validation comes right after this batch, which is not an epoch's last one."""
        done = trainer.fit_loop.batch_idx + 1
        if trainer.check_val_every_n_epoch is None:
            done = trainer.fit_loop.total_batch_idx + 1
        interval = trainer.val_check_batch
        return False if not interval else done % interval == 0

    def _save_between_steps(self, trainer: pl.Trainer) -> None:
        """Save if due, unless batches wait for an optimizer step or the epoch has no more."""
        done = trainer.fit_loop.batch_idx + 1
        if trainer.is_last_batch or done % trainer.accumulate_grad_batches:
            return
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        self._save(trainer, due=bool(due), training_ends=_is_last_step(trainer))

    def _save(
        self, trainer: pl.Trainer, due: bool, training_ends: bool, epoch_end: bool = False
    ) -> None:
        stop, requeue = self._requests(trainer)
        io = _checkpoint_io(trainer)
        is_required = stop or requeue or training_ends
        if (due or is_required) and self._write(trainer, epoch_end, may_wait=not is_required):
            if is_first_process():
                self._record_progress(trainer, io)
            if stop or requeue:
                io.finish()
        if requeue:
            io.min_seconds = 0.0  # the handler saves, and requeues the job
            (number, handler), *_ = self._requeue_handlers.items()
            self._requeue_requested, self._requeue_handlers = False, {}  # once is enough
            handler(number, None)
        if stop:
            raise Interrupted(128 + (self.signal or signal.SIGTERM))

    def _record_progress(self, trainer: pl.Trainer, io: WholeFileIO) -> None:
        """Write the epochs and seconds so far, once the state that they describe is on disk."""
        seconds = round(self._seconds + time.perf_counter() - self._began, 3)
        self.result["epochs"] = epochs_done(trainer)
        io.run_when_saved(partial(write_result, self.folder, {**self.result, "seconds": seconds}))

    def _requests(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Whether a signal has asked to stop, and whether one has asked to requeue the job.

        Another signal can come at any moment, so each save asks only once.
        """
        stop, requeue = self.signal is not None, self._requeue_requested
        if trainer.world_size > 1:  # a signal to one process stops all, at the same step
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            if self._requeue_handlers:
                requeue = trainer.strategy.reduce_boolean_decision(requeue, all=False)
        return stop, requeue

    # Signals.

    def _catch_signals(self) -> None:
        self._handlers = catch_signals(ending_signals(), self._handle_signal)
        if not self._handlers or not under_slurm():
            return
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            # Lightning would save its own checkpoint at once, in the middle of a step.
            if type(signal.getsignal(number)).__module__.startswith("pytorch_lightning"):
                self._handlers[number] = signal.signal(number, self._request_requeue)
                self._requeue_handlers[number] = self._handlers[number]

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number:
            raise Interrupted(128 + number)
        if self.signal is not None:  # a sweep's Ctrl-C reaches its jobs, and is passed on to them
            return
        self.signal = number
        if is_first_process():
            print("\nstopping after this step; interrupt again to stop at once", flush=True)
            for callback in stop_callbacks:
                callback()

    def _request_requeue(self, number: int, frame: FrameType | None) -> None:
        self._requeue_requested = bool(self._requeue_handlers)

    def _restore_process(self) -> None:
        """Restore the signal handlers and the number of threads."""
        release_signals(self._handlers)
        self._handlers = {}
        if self._original_threads is not None:
            torch.set_num_threads(self._original_threads)
            self._original_threads = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore_process()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore_process()
        if not isinstance(exception, SIGTERMException):
            return
        # Lightning raises it at a step's end if it handles SIGTERM itself, with exit code 0.
        exception.code = 128 + signal.SIGTERM
        if trainer.world_size == 1:
            batches = trainer.fit_loop.batch_idx + 1
            if not trainer.is_last_batch and batches % trainer.accumulate_grad_batches == 0:
                trainer.save_checkpoint(self.path, weights_only=False)


def epochs_done(trainer: pl.Trainer) -> int:
    """Return the number of epochs that are done, even if a run was resumed after its last one.

    The trainer's ``current_epoch`` is one too low then.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


def _stays_stopped(trainer: pl.Trainer, states: Mapping[str, dict[str, Any]]) -> bool:
    """Whether a run that was stopped early stays so: what stopped it is still there, as strict.

    Args:
        trainer: with the callbacks of the run that resumes.
        states: the saved states of callbacks; early stopping gets its new patience, since Lightning
            would go on with the saved one.
    """
    untyped: Any = trainer
    callbacks = {callback.state_key: callback for callback in untyped.callbacks}
    lifted = False
    for key, state in states.items():
        callback = callbacks.get(key)
        if key.startswith("EarlyStopping"):
            had_enough = state["wait_count"] >= state["patience"]
            if callback is not None:
                state["patience"] = callback.patience
            has_enough = callback is not None and state["wait_count"] >= state["patience"]
            lifted |= had_enough and not has_enough
        elif key == "Pruning":
            lifted |= state["pruned"] and callback is None
    return not lifted


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    """Whether training ends with the epoch that has just ended."""
    max_epochs = trainer.max_epochs
    all_done = max_epochs is not None and 0 <= max_epochs <= epochs_done(trainer)
    return trainer.should_stop or all_done or _is_last_step(trainer)


def _is_in_epoch(trainer: pl.Trainer) -> bool:
    """Whether an epoch has begun and not ended; its last batch may be done."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed < progress.ready)


def _is_last_step(trainer: pl.Trainer) -> bool:
    """Whether ``trainer.max_steps`` optimizer steps are done."""
    return 0 <= trainer.max_steps <= trainer.global_step


def _check_validates(trainer: pl.Trainer) -> None:
    """Refuse a ``trainer.max_steps`` that ends a new training before its first validation."""
    batches, every = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if trainer.max_steps < 0 or batches is None:  # None: validation by time
        return

    def steps(count: float) -> int:
        return math.ceil(count / trainer.accumulate_grad_batches)

    per_epoch = trainer.num_training_batches
    # Without `every`, the batches are counted over all epochs.
    epochs, last = divmod(batches - 1, per_epoch) if every is None else (every - 1, batches - 1)
    first = int(epochs) * steps(per_epoch) + steps(last + 1)
    if trainer.max_steps < first:
        raise SettingError(
            f"trainer.max_steps={trainer.max_steps} ends before the first validation, after "
            f"{counted(first, 'step')}, so there would be no best checkpoint: increase it, or "
            "leave it out and set trainer.max_epochs"
        )


def _is_out_of_time(trainer: pl.Trainer) -> bool:
    """Whether ``trainer.max_time`` is over, the same in all processes; collective with a timer."""
    untyped: Any = trainer
    remaining = [timer.time_remaining() for timer in untyped.callbacks if isinstance(timer, Timer)]
    is_over = trainer.should_stop and any(
        seconds is not None and seconds <= 0 for seconds in remaining
    )
    return bool(trainer.strategy.broadcast(is_over)) if remaining else False


def _training_position(trainer: pl.Trainer) -> tuple[int, int]:
    """Return the numbers of optimizer steps and of epochs that are done."""
    return trainer.global_step, epochs_done(trainer)


def _checkpoint_io(trainer: pl.Trainer) -> WholeFileIO:
    return cast("WholeFileIO", trainer.strategy.checkpoint_io)


def _loader(trainer: pl.Trainer) -> MovieLoader:
    return cast("MovieLoader", trainer.train_dataloader)


def _sums(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean = module.train_loss
    return mean.mean_value, mean.weight
