"""Training one model in several processes: how many, and starting them on this machine.

The processes of a run are started by torchrun, which ends all of them once one has failed. Each
executes the entry script with the job's exact configuration, so that a job of a sweep and a single
run are started alike.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from genre_lightning.errors import UserError
from genre_lightning.files import FullDiskError
from genre_lightning.runs.process import raise_on_signals
from genre_lightning.runs.result import read_result, write_result

#: Environment variable, set in the processes that :func:`run_in_processes` starts.
SPAWNED_VARIABLE = "GENRE_LIGHTNING_PROCESS"


class ProcessError(UserError):
    """A process of a run has failed; the message is that of the first one to fail."""


def processes_to_start(trainer: Mapping[str, Any]) -> int:
    """Return how many processes to start for a trainer; 0 if this process trains by itself.

    Args:
        trainer: ``cfg.trainer``. Processes are started for a strategy named "ddp...", one for each
            of ``devices``, unless torchrun or Slurm's srun has started them already.

    Raises:
        UserError: some belong on other machines, where only torchrun or srun can start them.
    """
    if not str(trainer.get("strategy", "")).startswith("ddp") or _has_distributed_launcher():
        return 0
    if trainer.get("num_nodes", 1) > 1:
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: start the run on every machine, by "
            "torchrun or by srun, as conf/trainer/ddp_nodes.yaml shows"
        )
    devices = trainer["devices"]
    if isinstance(devices, int) and devices > 0:
        return devices
    # Imported only here: the process that starts others doesn't need Lightning otherwise.
    from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator

    on_gpu = trainer["accelerator"] != "cpu" and CUDAAccelerator.is_available()
    accelerator: Any = CUDAAccelerator if on_gpu else CPUAccelerator
    if devices == "auto":
        return int(accelerator.auto_device_count())
    return len(accelerator.get_parallel_devices(accelerator.parse_devices(devices)))


def _has_distributed_launcher() -> bool:
    under_srun = int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ
    return "RANK" in os.environ or under_srun


def is_spawned_process() -> bool:
    """Whether this process was started by :func:`run_in_processes`."""
    return SPAWNED_VARIABLE in os.environ


def check_distributed_launch(job: Any) -> None:
    """Refuse a job that processes started by torchrun or srun can't run together.

    Args:
        job: ``HydraConfig.get()``.

    Raises:
        UserError: they would write to different folders, or run the same sweep several times.
    """
    if not _has_distributed_launcher() or is_spawned_process():
        return
    if job.mode == RunMode.MULTIRUN:
        raise UserError(
            "a sweep starts the processes of its jobs by itself: run it without torchrun and srun"
        )
    if not any(override.startswith("hydra.run.dir=") for override in job.overrides.hydra):
        raise UserError(
            "the processes of a run share its folder: set hydra.run.dir=FOLDER, since by default "
            "each process would name its own folder after its start time"
        )


def run_in_processes(
    count: int, script: str | Path, cfg: DictConfig, folder: Path
) -> dict[str, Any]:
    """Run this job in ``count`` processes on this machine, and wait until all have ended.

    Every process calls the entry script's main function with ``cfg``, under this process's
    ``HydraConfig``. On Ctrl-C and SIGTERM the processes save and end; if this process is killed,
    they end as well.

    Args:
        count: number of processes.
        script: the entry script, decorated by ``hydra.main``.
        cfg: the job's configuration, without Hydra's own.
        folder: the run folder, in which the first process records the run.

    Returns:
        The recorded result.

    Raises:
        ProcessError: a process has failed, which ended all; ``result.json`` names the error.
    """
    job = copy.deepcopy(cfg)
    with open_dict(job):
        job.hydra = HydraConfig.get()
    # Slurm's variables would make Lightning take the processes for tasks of srun.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    with TemporaryDirectory() as temporary:
        job_file, error_file = Path(temporary) / "job.pickle", Path(temporary) / "error.json"
        job_file.write_bytes(pickle.dumps(job))
        env |= {SPAWNED_VARIABLE: "1", "TORCHELASTIC_ERROR_FILE": str(error_file)}
        agent = subprocess.Popen(
            [
                *(sys.executable, "-m", "genre_lightning.sweeps.torchrun", "--standalone"),
                # By default torchrun makes a log folder that it does not remove.
                *(f"--nproc-per-node={count}", f"--log-dir={temporary}/logs"),
                *("-m", __name__, str(script), str(job_file)),
            ],
            env=env,
            # Never written to: it closes when this process ends, which the others notice.
            stdin=subprocess.PIPE,
            stdout=sys.stdout,  # can be a file by now
            stderr=sys.stderr,
            # Ctrl-C reaches this process alone, which passes it on as SIGTERM.
            start_new_session=True,
        )
        with raise_on_signals():
            try:
                status = agent.wait()
            except BaseException:
                agent.terminate()
                agent.wait()  # a second signal ends this, and then the processes at once
                raise
            finally:
                assert agent.stdin is not None
                agent.stdin.close()
                agent.wait()  # it writes into the temporary folder
        result = read_result(folder) or {}
        if status != 0:
            error = _first_error(error_file)
            with suppress(FullDiskError):  # which the error may already report
                write_result(folder, {**result, "status": "failed", "error": error})
            raise ProcessError(error)
        return result


def _first_error(file: Path) -> str:
    """Return the message of the process that failed first, as torchrun recorded it."""
    if not file.is_file():
        return "a process of the run was killed or ended without a message; see its output"
    return str(json.loads(file.read_text("utf-8"))["message"]["message"])


def main() -> None:
    """Run the entry script's main function with the given configuration, as torchrun executes it.

    An error is recorded for torchrun, and so for the process that started it. If that process ends,
    this one ends, too.
    """
    script, job_file = sys.argv[1:]
    threading.Thread(target=_exit_with_parent, args=(Path(job_file).parent,), daemon=True).start()
    job = pickle.loads(Path(job_file).read_bytes())  # noqa: S301 - written by run_in_processes
    setup_globals()
    if job.hydra.mode == RunMode.RUN:  # a sweep's job already has all output in its log
        configure_log(job.hydra.job_logging, job.hydra.verbose)
    HydraConfig.instance().set_config(job)
    cfg = copy.deepcopy(job)
    with open_dict(cfg):
        del cfg["hydra"]
    runpy.run_path(script)["main"](cfg)


def _exit_with_parent(temporary: Path) -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would be held when the interpreter ends
    shutil.rmtree(temporary, ignore_errors=True)  # of the starter, which may have been killed
    os._exit(1)


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(main)()
    except UserError:  # recorded, and reported by the process that started this one
        raise SystemExit(1) from None
