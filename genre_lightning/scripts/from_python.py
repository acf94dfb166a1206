"""``genre_lightning.train``: training as with train.py, but called from Python."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.initialize import initialize_config_dir
from hydra.types import RunMode

from genre_lightning.cores import share_cores
from genre_lightning.errors import UserError
from genre_lightning.movies.split_names import SPLIT_WORDS
from genre_lightning.page.document import render_fragment
from genre_lightning.report.numbers import number
from genre_lightning.runs.ckpt_path import BEST
from genre_lightning.runs.command_line import plain_errors
from genre_lightning.runs.composing import (
    compose_once,
    refuse_merged_branches,
    speed_up_composition,
)
from genre_lightning.runs.config_errors import VERSION_BASE, searchpath_override
from genre_lightning.runs.earlier import add_earlier_overrides
from genre_lightning.runs.naming import key_of, read_overrides
from genre_lightning.runs.quoting import quote_paths, relative_to_cwd
from genre_lightning.scripts import CONF
from genre_lightning.sweeps.jobs import run_once

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from genre_lightning.predicting.predictor import GenrePredictor

#: Message about several runs from Python.
ONE_RUN = (
    "genre_lightning.train trains one run, so call it for each of them, as in "
    'for seed in (0, 1): genre_lightning.train([f"seed={seed}"]); a sweep is a command, '
    "genre-train -m"
)
#: Message about a program that uses Hydra itself.
HYDRA_IN_USE = (
    "genre_lightning.train needs Hydra for itself, and another training in a thread of this "
    "program, @hydra.main or hydra.initialize uses it: train in a process of its own, or, once "
    "that is not needed any more, call hydra.core.global_hydra.GlobalHydra.instance().clear()"
)
#: Labels of the metrics that a notebook shows; ``result`` has all metrics.
SHOWN_METRICS = {
    "map_macro": "mAP, macro",
    "f1_micro": "F1, micro",
    "f1_macro": "F1, macro",
    "precision_micro": "precision, micro",
    "recall_micro": "recall, micro",
}


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A completed training. A notebook shows its scores as a table.

    Attributes:
        folder: the run folder.
        result: content of its ``result.json``.
    """

    folder: Path
    result: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint."""
        return self.folder / BEST

    def predictor(self, device: str = "auto") -> GenrePredictor:
        """Load the trained model for prediction.

        Args:
            device: "cpu", "cuda", ...; "auto" is a GPU if available.
        """
        from genre_lightning.predicting.predictor import GenrePredictor

        return GenrePredictor.from_checkpoint(self.checkpoint, device)

    def __repr__(self) -> str:
        # The whole result would be too long.
        return f"TrainedRun({str(relative_to_cwd(self.folder))!r}, {self.result['status']})"

    def _repr_html_(self) -> str:
        return render_fragment(
            "genre_lightning.scripts",
            "run",
            filters={"number": number},
            folder=relative_to_cwd(self.folder),
            result=self.result,
            metrics=SHOWN_METRICS,
            splits={
                name: self.result[split]
                for split, name in SPLIT_WORDS.items()
                if self.result.get(split)
            },
        )


def train(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> TrainedRun:
    """Train as ``python train.py`` and ``genre-train`` do, in this process.

    The run folder is under ``runs/`` in the current folder, unless ``hydra.run.dir=`` sets another
    one. The calling program's logging is not changed, so no ``train.log`` is written.

    Args:
        overrides: overrides as on the command line, without shell quotes:
            ``["data=manifest", "data.path=movies.csv", "model/branch=[title_tfidf]"]``.
        config_dir: your own folder with further options, such as ``model/branch/mine.yaml``.

    Returns:
        The completed run.

    Raises:
        UserError: an override, the data or another setting can't be used; the message says why.
        TypeError: the overrides are not a list of strings.
        KeyboardInterrupt: Ctrl-C; the run is saved, and ``ckpt_path=FOLDER`` resumes it.
    """
    _check_overrides(overrides)
    share_cores()
    # The script's path depends on whether this is a clone; see scripts/__init__.py.
    script = importlib.import_module("genre_lightning.scripts.train")
    ended: list[TrainedRun] = []
    refused: list[UserError] = []

    def job(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            ended.append(TrainedRun(folder, run_once(cfg, script.train)))
        except UserError as error:
            refused.append(error)  # if raised, Hydra would print its own line about it

    given = add_earlier_overrides(quote_paths(overrides))
    if given[:1] == ["--config-dir"]:
        config_dir = config_dir or given[1]
        given = given[2:]
    if config_dir is not None:
        if not Path(config_dir).is_dir():  # Hydra would ignore it
            raise UserError(f"config_dir={config_dir}: there is no such folder")
        given.append(searchpath_override(config_dir))
    if GlobalHydra.instance().is_initialized():
        raise UserError(HYDRA_IN_USE)
    try:
        with (
            plain_errors(CONF, "train", given),
            speed_up_composition(),
            refuse_merged_branches(),
            compose_once(),
            initialize_config_dir(str(CONF), version_base=VERSION_BASE, job_name="train"),
        ):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            if hydra.get_mode("train", given) == RunMode.MULTIRUN:
                raise UserError(ONE_RUN)
            _refuse_several_values(given)
            hydra.run("train", job, given, with_log_configuration=False)
    except SystemExit as end:
        if end.code == 130:
            raise KeyboardInterrupt from end
        raise
    if refused:
        raise refused[0]
    return ended[0]


def _check_overrides(overrides: Any) -> None:
    """Refuse what is not a list of overrides."""
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise TypeError(f'overrides must be a list of "key=value", not {overrides!r:.100}')
    for override in overrides:
        if not isinstance(override, str):
            raise TypeError(f'overrides must be a list of "key=value", not of {override!r:.100}')
        if override.startswith("-"):
            raise UserError(
                f"{override} is an option of the commands: genre_lightning.train takes overrides, "
                "and config_dir= for a folder of your own; a sweep: genre-train -m"
            )


def _refuse_several_values(overrides: Sequence[str]) -> None:
    """Refuse an override that names several values, as a sweep's does."""
    for override in read_overrides(overrides):
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line} names several values: {ONE_RUN}. "
                f"{key_of(override)}=[a,b] is a list"
            )
