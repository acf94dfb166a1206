"""Ask a language model for genres: ``genre-ask model=NAME base_url=URL``; see conf/ask.yaml."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from genre_lightning.runs.checks import check_folder, check_settings
from genre_lightning.runs.command_line import command, exit_on_user_error, folder_of
from genre_lightning.runs.naming import sweep_name, sweep_overrides
from genre_lightning.runs.quoting import shell_command
from genre_lightning.scripts import CONF
from genre_lightning.sweeps.jobs import run_job

if TYPE_CHECKING:
    import numpy as np
    from omegaconf import DictConfig
    from rich.console import Console

    from genre_lightning.ask.answer_file import AnswerFile
    from genre_lightning.ask.question import Questioner
    from genre_lightning.ask.run import Answers
    from genre_lightning.checkpoint.model import TrainedModel
    from genre_lightning.data.datamodule import MovieDataModule
    from genre_lightning.report.evaluation import SplitScores

#: Maximum number of characters of the model's name in a folder's name.
MAX_NAME_CHARACTERS = 60


def ask_folder(model: str | None, overrides: Sequence[str], sweeper: Mapping[str, Any]) -> str:
    """Name of a run's folder: the model, and a hash of all settings that can change an answer.

    The overrides themselves contain characters that need quotes on a command line.
    """
    settings = sweep_name(None, overrides, sweeper)
    digest = hashlib.blake2b(settings.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    name = re.sub(r"[^\w.-]+", "-", str(model or "")).strip("-.")[:MAX_NAME_CHARACTERS]
    return f"{name or 'model'}-{digest}"


# conf/hydra/ask.yaml
OmegaConf.register_new_resolver("ask_folder", ask_folder, replace=True)


def expand_override(override: str) -> str:
    """Expand ``model=NAME`` to ``model.name=NAME``; Hydra would look for a file NAME.yaml."""
    return re.sub(r"^model=", "model.name=", override)


def ask(cfg: DictConfig, folder: Path, result: dict[str, Any]) -> None:
    """Ask about the configured movies and score the answers, filling ``result`` along the way.

    Args:
        cfg: the composed configuration.
        folder: the run folder.
        result: content of ``result.json``.
    """
    check_request(cfg)  # again, for a sweep's jobs, which have the swept settings
    # Imported here, so that --help, --cfg, completion and messages about settings don't wait for
    # PyTorch.
    from rich.console import Console

    from genre_lightning.ask.run import (
        answer_reasons,
        open_answer_file,
        save_questioner,
        unanswered_line,
    )
    from genre_lightning.lean_imports import load_lightning

    load_lightning()

    from genre_lightning.report.evaluation import print_written, write_evaluation
    from genre_lightning.tracking.loggers import log_outcome, open_loggers

    console = Console(markup=False, emoji=False, highlight=False)
    data = open_movies(cfg, console)
    rows = rows_by_split(cfg, data)
    questioner = build_questioner(cfg, data)
    retry_settings = {"ask_again": cfg.ask_again, "again_temperature": cfg.again_temperature}
    save_questioner(folder, questioner, **retry_settings)
    with (
        open_loggers(cfg, folder, result) as loggers,
        open_answer_file(folder, cfg.reuse) as answer_file,
    ):
        answers = ask_splits(cfg, data, rows, questioner, answer_file, console, retry_settings)
        answers_path = store_answers(folder, data, rows, answers, result)
        model, scores = score_splits(cfg, data, rows, questioner, answers, result, console)
        for split, split_rows in rows.items():
            if line := unanswered_line(data.movie_set, split, split_rows, answers):
                console.print(line, soft_wrap=True)
        result["monitor_value"] = result["val"][cfg.monitor.removeprefix("val/")]

        scored = scores[cfg.split]
        write_evaluation(folder, model, data, scored)
        remarks = {"why": answer_reasons(answers, answer_file, rows[cfg.split])}
        report(folder, answers_path, questioner, model, data, scored, remarks, result)
        for logger in loggers:
            logger.log_metrics(logged_values(cfg.monitor, result), step=0)
        log_outcome(loggers, 0, model, data, scores, result, answers_path)
    print_written(folder, console)


class CheckAsking(Callback):
    """Refuses an invalid configuration of genre-ask before a folder is created."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_user_error():
            check_request(config)
            check_folder(folder_of(config, "run"))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with exit_on_user_error():
            overrides = sweep_overrides(config.hydra)
            check_request(config, [key for key, o in overrides.items() if o.is_sweep_override()])
            check_folder(folder_of(config, "sweep"))


def check_request(cfg: DictConfig, swept: Collection[str] = ()) -> None:
    """Refuse a configuration with a missing or invalid setting.

    Args:
        cfg: the composed configuration.
        swept: settings that only the jobs of the sweep will have.

    Raises:
        UserError: a setting is missing or invalid; the message names it.
    """
    from genre_lightning.ask.server import check_url, read_key
    from genre_lightning.errors import UserError

    check_settings(cfg, swept)
    read_key(cfg.api_key_env)
    for name, key, value in (
        ("model", "model.name", cfg.model.name),
        ("base_url", "base_url", cfg.base_url),
    ):
        if value is None and key not in swept:
            raise UserError(
                f"{name} must be given: genre-ask model=NAME base_url=http://127.0.0.1:8000/v1"
            )
    for key in ("concurrency", "longest_wait", "retries", "timeout"):
        if cfg.server[key] is None and f"server.{key}" not in swept:
            raise UserError(f"server.{key} can't be null")
    if cfg.base_url is not None:
        check_url(cfg.base_url)
    if cfg.split not in ("val", "test"):
        raise UserError(f"split={cfg.split} must be val or test")


def open_movies(cfg: DictConfig, console: Console) -> MovieDataModule:
    """Open the dataset without any branch, and print its summary.

    Raises:
        UserError: the dataset can't be used, or lacks a column to show.
    """
    from hydra.utils import instantiate

    from genre_lightning.ask.run import check_shown
    from genre_lightning.data.notes import dataset_summary
    from genre_lightning.errors import UserError

    data: MovieDataModule = instantiate(cfg.data, inputs={}, seed=cfg.seed)
    if data.folds > 1:
        raise UserError("data.folds: a language model is not trained on folds; leave it out")
    data.setup()
    for part in dataset_summary(data):
        console.print(part)
    check_shown(data.movie_set, list(cfg.show))
    return data


def rows_by_split(cfg: DictConfig, data: MovieDataModule) -> dict[str, np.ndarray]:
    """Rows of the movies to ask about, (n,) int64 by split."""
    from genre_lightning.ask.run import choose_rows

    return {
        "val": choose_rows(data.splits["val"], cfg.val_limit),
        "train": choose_rows(data.splits["train"], cfg.train_limit),
        cfg.split: choose_rows(data.splits[cfg.split], cfg.limit),
    }


def build_questioner(cfg: DictConfig, data: MovieDataModule) -> Questioner:
    """Build the questioner, with examples drawn from train."""
    from genre_lightning.ask.poster import PosterFormat
    from genre_lightning.ask.question import Prompt, Questioner
    from genre_lightning.ask.run import draw_examples
    from genre_lightning.ask.server import check_url

    plain = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True))
    prompt, poster = Prompt(**plain["prompt"]), PosterFormat(**plain["poster"])
    examples = draw_examples(
        data.movie_set.movies, data.splits["train"], prompt, plain["show"], poster, cfg.seed
    )
    return Questioner(
        base_url=check_url(cfg.base_url),
        model=str(cfg.model.name),
        genres=data.genres,
        show=plain["show"],
        prompt=prompt,
        examples=examples,
        answers=cfg.answers,
        parameters=plain["parameters"],
        why_max_length=cfg.why_max_length,
        top_logprobs=cfg.top_logprobs,
        poster=poster,
    )


def ask_splits(
    cfg: DictConfig,
    data: MovieDataModule,
    rows: Mapping[str, np.ndarray],
    questioner: Questioner,
    answer_file: AnswerFile,
    console: Console,
    retry_settings: Mapping[str, Any],
) -> Answers:
    """Ask about the movies of all splits, validation first."""
    import numpy as np

    from genre_lightning.ask.run import ServerSettings, ask_rows

    settings = cast("dict[str, Any]", OmegaConf.to_container(cfg.server, resolve=True))
    return ask_rows(
        data.movie_set,
        np.concatenate([rows["val"], *(r for s, r in rows.items() if s != "val")]),
        questioner,
        answer_file,
        ServerSettings(**settings),
        console,
        api_key_env=cfg.api_key_env,
        **retry_settings,
    )


def store_answers(
    folder: Path,
    data: MovieDataModule,
    rows: Mapping[str, np.ndarray],
    answers: Answers,
    result: dict[str, Any],
) -> Path:
    """Write the answers to a file and their cost to ``result``; return the file's path."""
    from genre_lightning.ask.scoring import FILE, save_answers

    ids = [movie.id for movie in data.movie_set.movies]
    save_answers(folder / FILE, ids, answers.scores, data.genres)
    for name in ("prompt_tokens", "completion_tokens", "tokens_per_movie", "seconds_per_movie"):
        result[name] = getattr(answers, name)
    result["unanswered"] = {
        split: sum(row in answers.failed for row in part.tolist()) for split, part in rows.items()
    }
    return folder / FILE


def score_splits(
    cfg: DictConfig,
    data: MovieDataModule,
    rows: Mapping[str, np.ndarray],
    questioner: Questioner,
    answers: Answers,
    result: dict[str, Any],
    console: Console,
) -> tuple[TrainedModel, dict[str, SplitScores]]:
    """Calibrate on validation, score validation and ``cfg.split``, and print the tables.

    Adds the metrics to ``result``.
    """
    from genre_lightning.ask.scoring import fit_calibrated_model, score_answers
    from genre_lightning.report.evaluation import print_genre_table, split_metrics

    model = fit_calibrated_model(questioner, data, rows["val"], answers.scores[rows["val"]])
    scores = {
        split: score_answers(
            model, questioner, data, split, rows[split], answers.scores[rows[split]]
        )
        for split in dict.fromkeys(("val", cfg.split))
    }
    for split, split_scores in scores.items():
        result[split] = split_metrics(model, split_scores)
        print_genre_table(model, split_scores, result[split], console)
    return model, scores


def report(
    folder: Path,
    answers_path: Path,
    questioner: Questioner,
    model: TrainedModel,
    data: MovieDataModule,
    scored: SplitScores,
    remarks: Mapping[str, Mapping[int, str]],
    result: dict[str, Any],
) -> None:
    """Write ``report.html`` about the scored split."""
    from datetime import datetime

    from genre_lightning.files import whole_file
    from genre_lightning.report.page import Origin, render_report

    origin = Origin(
        checkpoint=answers_path,
        command=shell_command("genre-ask", *result["overrides"]),
        created=datetime.now().astimezone(),
        name=questioner.model,
        facts=facts(questioner, result, scored.split),
    )
    html = render_report(model, data, scored, origin, remarks=remarks)
    with whole_file(folder / "report.html") as page:
        page.write(html)


def logged_values(monitor: str, result: Mapping[str, Any]) -> dict[str, float]:
    """Values for the loggers: the monitored value, and the cost per movie."""
    costs = {name: result[name] for name in ("tokens_per_movie", "seconds_per_movie")}
    reported = {name: value for name, value in costs.items() if value is not None}
    return {monitor: result["monitor_value"], **reported}


def facts(questioner: Questioner, result: dict[str, Any], split: str) -> list[tuple[str, str]]:
    """Rows for the top of the report about how the model was asked."""
    rows = [
        ("Server", questioner.base_url),
        ("Shown", ", ".join(questioner.show)),
        ("Asked", f"prompt {questioner.prompt.name}, answers {questioner.answers}"),
    ]
    tokens, seconds = result["tokens_per_movie"], result["seconds_per_movie"]
    cost = [
        *([] if tokens is None else [f"{tokens:,.0f} tokens"]),
        *([] if seconds is None else [f"{seconds:.2f} s"]),
    ]
    if cost:
        rows.append(("A movie takes", ", ".join(cost)))
    count = result["unanswered"][split]
    rows.append(("No answer", f"{count:,}, which count as wrong" if count else "none"))
    return rows


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments in the form that Hydra reads.

    Raises:
        UserError: ``api_key_env`` names no key. Checked before Hydra writes the override down,
            since its value could be the key itself.
    """
    for argument in arguments:
        name, _, variable = argument.lstrip("+").partition("=")
        if name == "api_key_env" and variable not in ("", "null"):
            from genre_lightning.ask.server import read_key

            read_key(variable)
    return [expand_override(argument) for argument in arguments]


@command(CONF, "ask", prepare_arguments)
def main(cfg: DictConfig) -> float | None:
    """Run as a single run or as a job of a sweep; return the monitored value."""
    return run_job(cfg, ask)


if __name__ == "__main__":
    main()
