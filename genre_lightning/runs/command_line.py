"""Command-line entry points: arguments, early checks, and errors shown without a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genre_lightning.errors import UserError
from genre_lightning.files import FULL_DISK_ERRNOS, full_disk
from genre_lightning.runs.checks import check_data, check_folder, check_settings
from genre_lightning.runs.ckpt_path import best_checkpoint, last_checkpoint, starting_point
from genre_lightning.runs.composing import (
    compose_once,
    exact_decimal_ranges,
    list_usable_options,
    refuse_merged_branches,
    skip_mode_check,
    speed_up_composition,
)
from genre_lightning.runs.config_errors import VERSION_BASE, explain_error
from genre_lightning.runs.ending import script_command
from genre_lightning.runs.naming import sweep_overrides
from genre_lightning.runs.quoting import quote_paths, shell_command

#: "1" makes Hydra raise the errors that it would print, and shows all tracebacks.
FULL_ERROR = "HYDRA_FULL_ERROR"

#: Launchers whose jobs can run on machines with other files.
REMOTE_LAUNCHERS = (".SlurmLauncher", ".RayLauncher")

#: Cleanup at the end of a command, also after an error. Hydra calls its callbacks at the end of a
#: sweep only if nothing was raised.
at_end = ExitStack()


# In the examples of --help: ``python train.py``, or genre-train of an installed wheel.
OmegaConf.register_new_resolver(
    "script", lambda name: shell_command(*script_command(name)), replace=True
)


class Refused(SystemExit):
    """A user error raised in a Hydra callback, as a SystemExit.

    Hydra turns exceptions in its callbacks into warnings, but not a SystemExit.
    """

    def __init__(self, error: UserError) -> None:
        super().__init__(f"error: {error}")
        self.error = error


@contextmanager
def plain_errors(conf: str | Path, config: str, arguments: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's errors about an override or a configuration into a :class:`UserError`.

    Args:
        conf: the configuration's folder.
        config: the configuration's name in that folder.
        arguments: the command's arguments.
    """
    try:
        yield
    except Refused as refused:
        raise refused.error from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_error(error, conf, config, arguments)) from error
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        raise UserError(
            "a group of the configuration is one of its files or a list of them, not null or a "
            "number: leave the override out, or name a file, such as scheduler=constant for one "
            "learning rate or logger=none for no logger"
        ) from error


def command(
    conf: str | Path,
    config: str,
    prepare: Callable[[Sequence[str]], list[str]] = list,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a command from a function, like ``hydra.main``, with one-sentence errors.

    ``HYDRA_FULL_ERROR=1`` shows the traceback. As with ``hydra.main``, calling the command with a
    configuration just calls the function.

    Args:
        conf: the configuration's folder.
        config: the configuration's name in that folder.
        prepare: turns the given arguments, with paths already quoted for Hydra, into those that
            Hydra gets.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        main = hydra.main(version_base=VERSION_BASE, config_path=str(conf), config_name=config)(
            function
        )

        @functools.wraps(function)
        def run(cfg: DictConfig | None = None) -> Any:
            if cfg is not None:
                return function(cfg)
            original_arguments, full_error = sys.argv[1:], os.environ.get(FULL_ERROR)
            os.environ[FULL_ERROR] = "1"  # so that errors are raised here instead of printed
            try:
                sys.argv[1:] = prepare(quote_paths(_move_overrides_first(original_arguments)))
                options = {argument for argument in sys.argv[1:] if argument.startswith("-")}
                patch: Callable[[], AbstractContextManager[None]]
                patch = nullcontext if options else compose_once
                if options & {"-m", "--multirun"}:
                    patch = skip_mode_check
                if options & {"-h", "--help"}:
                    patch = list_usable_options
                with (
                    plain_errors(conf, config, sys.argv[1:]),
                    speed_up_composition(),
                    patch(),
                    exact_decimal_ranges(),
                    refuse_merged_branches(),
                    at_end,
                ):
                    main()
            except UserError as error:
                if full_error == "1" and error.__cause__ is not None:
                    raise
                raise SystemExit(f"error: {error}") from None
            except KeyboardInterrupt:
                if full_error == "1":
                    raise
                raise SystemExit(130) from None
            except BrokenPipeError:
                # The reader has closed the pipe. Without this Python would report it again at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(1) from None
            except OSError as error:
                if error.errno not in FULL_DISK_ERRNOS:
                    raise
                path = Path(str(error.filename or "."))  # a file of Hydra or a library
                raise SystemExit(f"error: {full_disk(path, error)}") from None
            finally:
                sys.argv[1:] = original_arguments
                os.environ.pop(FULL_ERROR)
                if full_error is not None:
                    os.environ[FULL_ERROR] = full_error

        return run

    return decorate


def _move_overrides_first(arguments: Sequence[str]) -> list[str]:
    """Put overrides before options, since Hydra refuses ``model=title -m seed=1,2``."""
    options = list(arguments)
    parsed = get_args_parser().parse_intermixed_args(options)
    modes = [f"--{name}" for name in ("run", "multirun", "cfg", "info") if getattr(parsed, name)]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other: leave one out")
    for override in parsed.overrides:
        options.remove(override)
    return [*parsed.overrides, *options]


class CheckTraining(Callback):
    """Refuses an invalid configuration of train.py before a folder is created."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_user_error():
            check_settings(config)
            folder = folder_of(config, "run")
            check_folder(folder)
            start = starting_point(config.ckpt_path, folder)
            if start is not None:
                _check_file(last_checkpoint(start, folder))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_user_error():
            overrides = sweep_overrides(config.hydra)
            swept = [key for key, override in overrides.items() if override.is_sweep_override()]
            check_settings(config, swept)
            if not config.hydra.launcher._target_.endswith(REMOTE_LAUNCHERS):
                check_data(config.data, swept)
            check_folder(folder_of(config, "sweep"))


class CheckEvaluation(Callback):
    """Refuses an invalid configuration of evaluate.py before a folder is created."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_user_error():
            check_settings(config)
            check_folder(folder_of(config, "run"))
            _check_file(best_checkpoint(config.ckpt_path))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the command on a :class:`UserError` in a callback."""
    try:
        yield
    except UserError as error:
        raise Refused(error) from None


def _check_file(checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: there is no such file")


def folder_of(config: DictConfig, kind: str) -> Path:
    """The folder that Hydra will write to; ``kind`` is "run" or "sweep"."""
    HydraConfig.instance().set_config(config)  # as Hydra does, to resolve ${hydra:...}
    return Path(config.hydra[kind].dir)
