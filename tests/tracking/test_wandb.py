"""What W&B logs, read back from its client's offline files and from a local server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from omegaconf import OmegaConf

from genre_lightning.checkpoint.card import TRAINING_KEY
from genre_lightning.errors import UserError
from genre_lightning.tracking.loggers import RunLogger, open_loggers
from genre_lightning.tracking.wandb_report import movie_table
from genre_lightning.training.module import DivergedError
from tests.forking import Command, run_command

Train = Callable[[Path, list[str]], dict[str, Any]]
Overrides = Callable[..., list[str]]
WANDB = Path(sys.executable).with_name("wandb")


class Record:
    """An offline run as `wandb leet inspect --json` prints it."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("*.wandb")
        inspected = subprocess.run(
            [WANDB, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True
        )
        records = [json.loads(line) for line in inspected.stdout.splitlines()]

        def get(kind: str) -> list[Any]:
            return [record[kind] for record in records if record["type"] == kind]

        self.run = get("run")[0]
        self.config = {k: v for part in get("config") for k, v in part.get("update", {}).items()}
        self.history = [part["item"] for part in get("history")]
        self.epochs = [row for row in self.history if "train/loss" in row]
        self.summary = {k: v for part in get("summary") for k, v in part.get("update", {}).items()}
        self.metrics = {metric.get("name"): metric for metric in get("metric")}
        self.artifacts = get("artifact")
        self.exit_code = get("exit")[0].get("exit_code", 0) if get("exit") else None

    @property
    def steps(self) -> list[int]:
        return [row["trainer/global_step"] for row in self.epochs]


def offline_folders(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def only_record(folder: Path) -> Record:
    (run,) = offline_folders(folder)
    return Record(run)


# One process, two jobs of a sweep.


@pytest.fixture(scope="module")
def two_jobs(
    train_here: Train, tiny_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, dict[str, Any]]]:
    sweep = tmp_path_factory.mktemp("runs") / "dropout and lr"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"keys": ["optimizer.lr"]}))
    jobs = []
    for lr in ("0.001", "0.002"):
        folder = sweep / f"optimizer.lr={lr}"
        overrides = [
            "logger=wandb",
            "logger.wandb.tags=[tiny,demo]",
            "logger.wandb.log_checkpoint=true",
            "logger.wandb.posters=5",
            "model.dropout=0.3",
            f"optimizer.lr={lr}",
            "hydra.mode=MULTIRUN",
            f"hydra.sweep.dir={sweep}",
        ]
        jobs.append((folder, train_here(folder, tiny_overrides(*overrides))))
    return jobs


@pytest.mark.slow
def test_each_job_is_a_run_with_its_own_config(two_jobs: list[Any]) -> None:
    records = [only_record(folder) for folder, _ in two_jobs]
    assert [record.config["optimizer.lr"] for record in records] == [1e-3, 2e-3]
    assert [record.run["run_id"] for record in records] == [
        result["wandb_run_id"] for _, result in two_jobs
    ]
    assert records[0].run["run_id"] != records[1].run["run_id"]
    for record, (folder, result) in zip(records, two_jobs, strict=True):
        assert record.config["model.dropout"] == 0.3
        assert record.config["data.reader"] == "demo" and record.config["num_genres"] > 1
        assert not any(name.startswith("logger") for name in record.config)
        assert record.run["run_group"] == "dropout and lr"
        assert record.run["job_type"] == "train" and record.run["project"] == "genre-lightning"
        assert record.run["tags"] == ["tiny", "demo"]
        assert record.run["display_name"] == folder.name
        assert record.exit_code == 0
        assert (
            json.loads((folder / "result.json").read_text())["wandb_run_id"]
            == (result["wandb_run_id"])
        )
        for name in ("best", "last"):
            saved = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            assert saved[TRAINING_KEY]["wandb_run_id"] == result["wandb_run_id"]
    assert wandb.run is None


@pytest.mark.slow
def test_history_and_summary(two_jobs: list[Any]) -> None:
    folder, result = two_jobs[0]
    record = only_record(folder)
    assert [row["epoch"] for row in record.epochs] == [0, 1]
    assert record.metrics["val/map_macro"]["summary"] == {"max": True}
    assert record.metrics["val/map_macro"]["step_metric"] == "trainer/global_step"
    best = max(row["val/map_macro"] for row in record.epochs)
    assert record.summary["val/map_macro"]["max"] == pytest.approx(best)
    assert best == pytest.approx(result["monitor_value"])
    for prefix, split in (("val_best", "val"), ("test", "test")):
        for name, value in result[split].items():
            assert record.summary[f"{prefix}/{name}"] == pytest.approx(value)


@pytest.mark.slow
def test_tables_curves_and_checkpoint(two_jobs: list[Any]) -> None:
    folder, result = two_jobs[0]
    record = only_record(folder)
    (run,) = offline_folders(folder)
    report = record.history[-1]

    def table(key: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((run / "files" / report[f"{key}.path"]).read_text())
        return content

    artifacts = {artifact["name"]: artifact for artifact in record.artifacts}
    (staged,) = (
        a
        for name, a in artifacts.items()
        if name.startswith(f"run-{result['wandb_run_id']}-val_bestposters")
    )
    files = {entry["path"]: Path(entry["local_path"]) for entry in staged["manifest"]["contents"]}
    posters = json.loads(files["val_best/posters.table.json"].read_text())
    genres = table("val_best/genres")
    assert posters["columns"][:4] == ["poster", "title", "true", "predicted"]
    names = [row[0] for row in genres["data"]]
    assert posters["columns"][4:] == names and len(posters["data"]) == 5
    assert genres["columns"] == ["genre", "f1", "precision", "recall", "ap", "support", "threshold"]
    thresholds = [row[-1] for row in genres["data"]]
    for image, title, true, predicted, *scores in posters["data"]:
        assert image["_type"] == "image-file"
        assert files[image["path"]].read_bytes()[:2] == b"\xff\xd8"  # a JPEG
        assert title and set(filter(None, true.split(", "))) <= set(names)
        above = [n for n, s, t in zip(names, scores, thresholds, strict=True) if s >= t]
        assert predicted == ", ".join(above)
    mean = sum(row[1] for row in genres["data"]) / len(names)
    assert mean == pytest.approx(result["val"]["f1_macro"])

    curves = table("val_best/precision_recall_table")["data"]
    labels = {label for _, label, _ in curves}
    occurring = {row[0] for row in genres["data"] if row[5] > 0}
    assert labels == {"micro"} | occurring
    area = previous = 0.0
    for recall, _, precision in (row for row in curves if row[1] == "micro"):
        area += (recall - previous) * precision
        previous = recall
    assert previous == 1 and area == pytest.approx(result["val"]["map_micro"])

    model = artifacts[f"model-{result['wandb_run_id']}"]
    assert model["type"] == "model" and set(model["aliases"]) == {"best", "latest"}
    (entry,) = model["manifest"]["contents"]
    assert entry["path"] == "best.ckpt"
    assert Path(entry["local_path"]).read_bytes() == (folder / "checkpoints/best.ckpt").read_bytes()
    assert json.loads(model["metadata"])["test/f1_micro"] == result["test"]["f1_micro"]


def test_the_movie_table_has_the_columns_that_the_model_reads(three_branches: Any) -> None:
    case = three_branches
    table = movie_table(case.model, case.data, case.scores, 5)
    genres = list(case.model.genres)
    assert table.columns == ["poster", "title", "synopsis", "true", "predicted", *genres]
    assert len(table.data) == 5
    movies = {movie.title: movie for movie in case.data.movie_set.movies if movie.split == "test"}
    indices = {int(row): index for index, row in enumerate(case.scores.rows)}
    for image, title, synopsis, true, predicted, *scores in table.data:
        movie = movies[title]
        index = indices[case.data.movie_set.movies.index(movie)]
        assert isinstance(image, wandb.Image) and synopsis == movie.value("synopsis")
        assert true == ", ".join(genre for genre in genres if genre in movie.genres)
        assert scores == case.scores.scores[index].tolist()
        above = [n for n, s, t in zip(genres, scores, case.model.thresholds, strict=True) if s >= t]
        assert predicted == ", ".join(above)


@pytest.mark.parametrize(
    ("branches", "columns"),
    [(["name"], ["title"]), (["picture"], ["poster", "title"]), (["plot"], ["title", "synopsis"])],
)
def test_the_movie_table_always_has_the_title(
    make_case: Callable[..., Any], branches: list[str], columns: list[str]
) -> None:
    case = make_case(["Action", "Comedy", "Drama"], branches)
    table = movie_table(case.model, case.data, case.scores, 100)
    assert table.columns[:-5] == columns
    assert len(table.data) == int(case.scores.has_column[branches[0]].sum())


def test_the_movie_table_shows_incomplete_movies_if_none_is_complete(three_branches: Any) -> None:
    no_movies = torch.zeros_like(three_branches.scores.has_column["plot"])
    scores = replace(
        three_branches.scores, has_column={**three_branches.scores.has_column, "plot": no_movies}
    )
    table = movie_table(three_branches.model, three_branches.data, scores, 100)
    assert len(table.data) == 24
    # Four movies have no poster, one a missing file, and one a damaged file.
    assert sum(row[0] is None for row in table.data) == 6


# How a run ends and is resumed.


@pytest.mark.slow
def test_a_failed_run_ends_with_an_error_code(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("logger=wandb", "optimizer.lr=1e30", model="title")
    with pytest.raises(DivergedError):
        train_here(tmp_path, overrides)
    record = only_record(tmp_path)
    assert record.exit_code == 1 and wandb.run is None
    assert not any(name.startswith("test/") for name in record.summary)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 255), (SystemExit(143), 255), (OSError("full"), 1)]
)
def test_exit_code_of_interrupted_and_failed_runs(
    error: BaseException, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    cfg = OmegaConf.create(
        {
            "monitor": "val/loss",
            "monitor_mode": "min",
            "logger": {
                "wandb": {
                    "_target_": "genre_lightning.tracking.loggers.RunLogger",
                    "save_dir": str(folder),
                    "project": "p",
                    "offline": True,
                }
            },
        }
    )
    folder.mkdir()
    result: dict[str, Any] = {"wandb_run_id": "abc12345", "overrides": ["seed=1"]}
    with pytest.raises(type(error)), open_loggers(cfg, folder, result) as opened:
        opened[0].log_metrics({"val/loss": 2.0}, step=3)
        raise error
    record = only_record(folder)
    assert record.exit_code == code and record.run["run_id"] == "abc12345"
    assert record.run["display_name"] == "seed=1" and record.metrics["val/loss"]["summary"] == {
        "min": True
    }
    (run,) = offline_folders(folder)
    assert f"wandb sync '{run}'" in capsys.readouterr().out
    assert os.environ["WANDB_MODE"] == "offline"  # set for the tests, and unchanged


@pytest.mark.parametrize(
    ("offline", "environment", "account", "mode"),
    [
        (None, None, False, "offline"),
        (None, None, True, None),
        (None, "online", False, None),
        (None, "disabled", True, None),
        (True, "online", True, "offline"),
        (False, "offline", False, "online"),
    ],
)
def test_online_or_offline(
    offline: bool | None,
    environment: str | None,
    account: bool,
    mode: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr(wandb, "login", lambda prompt: account)
    logger = RunLogger(save_dir=str(tmp_path), project="p", offline=offline)
    assert logger._wandb_init["mode"] == mode


@pytest.mark.parametrize("tags", ["mine", ["mine"]], ids=["one", "list"])
def test_a_single_tag_is_not_split_into_letters(tags: Any, tmp_path: Path) -> None:
    logger = RunLogger(save_dir=str(tmp_path), project="p", offline=True, tags=tags)
    assert logger._wandb_init["tags"] == ["mine"]


def test_an_unwritable_data_folder_is_refused_before_training(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "file" / "wandb"))
    with pytest.raises(UserError, match=r"can't write into .*wandb: set .*WANDB_DATA_DIR to"):
        train_here(tmp_path / "run", tiny_overrides("logger=wandb", model="title"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unreachable_server_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**arguments: Any) -> None:
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", fail)
    logger = RunLogger(save_dir=str(tmp_path), project="p", offline=False)
    logger.choose_id(None)
    with pytest.raises(UserError, match=r"no answer.*logger\.wandb\.offline=true"):
        logger.begin(None, None)


@pytest.mark.parametrize(
    ("resume", "configured", "earlier", "resumes"),
    [
        ("allow", None, None, False),
        ("allow", None, "earlier1", True),
        ("allow", "mine", "earlier1", False),
        ("never", None, "earlier1", False),
    ],
)
def test_which_run_is_resumed(
    resume: str, configured: str | None, earlier: str | None, resumes: bool, tmp_path: Path
) -> None:
    logger = RunLogger(save_dir=str(tmp_path), project="p", resume=resume, id=configured)
    chosen = logger.choose_id(earlier)
    assert logger.resumes == resumes and (chosen == earlier) == resumes
    assert chosen == (configured or chosen) and len(chosen) >= 4


# Killed runs.


def clean_environment(variables: dict[str, str]) -> dict[str, str]:
    """The environment without this process's W&B service, which child processes would share."""
    return {**{k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}, **variables}


def run_and_kill(
    repository: Path,
    folder: Path,
    overrides: list[str],
    epochs: int,
    env: dict[str, str],
    count_uploaded: Callable[[], int] | None = None,
) -> None:
    """Run train.py and kill it after this many epochs.

    With ``count_uploaded``, which counts the epochs on a server, the process is first stopped until
    all of them are there, since W&B uploads every few seconds.
    """
    arguments = [repository / "train.py", f"hydra.run.dir={folder}", *overrides]
    process = Command(arguments, folder.parent, clean_environment(env))
    metrics = folder / "metrics.csv"
    try:
        deadline = time.monotonic() + 240
        while not metrics.exists() or len(metrics.read_text().splitlines()) <= epochs:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if count_uploaded is not None:
            saved = stop_after_saving(process, folder)
            while count_uploaded() < saved:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def stop_after_saving(process: Command, folder: Path) -> int:
    """Stop the process when last.ckpt has all logged epochs, and return their number."""
    while True:
        process.stop()
        logged = len((folder / "metrics.csv").read_text().splitlines()) - 1
        saved: int = json.loads((folder / "result.json").read_text())["epochs"]
        if logged == saved:
            return saved
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


#: Slow enough to be killed midway, and for W&B to write each epoch before the next.
EPOCHS = 8
LONG = ("logger=wandb", f"trainer.max_epochs={EPOCHS}", "callbacks.early_stopping=null",
        "++callbacks.slow._target_=tests.running.SlowEpochs")  # fmt: skip


@pytest.fixture(scope="module")
def killed_and_resumed(
    repository: Path,
    train_here: Train,
    tiny_overrides: Overrides,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "run"
    overrides = tiny_overrides(*LONG)
    run_and_kill(repository, folder, overrides, 2, {"WANDB_MODE": "offline"})
    shutil.copytree(folder, folder.with_name("as killed"))
    train_here(folder, [*overrides, f"ckpt_path={folder}/checkpoints/last.ckpt"])
    return folder


@pytest.mark.slow
def test_a_killed_run_resumes_in_the_same_wandb_run(killed_and_resumed: Path) -> None:
    folder = killed_and_resumed
    first, second = (Record(run) for run in offline_folders(folder))
    result = json.loads((folder.with_name("as killed") / "result.json").read_text())
    assert first.run["run_id"] == second.run["run_id"] == result["wandb_run_id"]
    assert result["status"] == "interrupted"
    assert first.exit_code is None and second.exit_code == 0
    # Together they have every epoch, and the same values of the epochs that both have.
    rows = {row["epoch"]: row for row in first.epochs}
    for row in second.epochs:
        if row["epoch"] in rows:
            assert row["val/loss"] == rows[row["epoch"]]["val/loss"]
        rows[row["epoch"]] = row
    assert len(first.epochs) + len(second.epochs) <= EPOCHS + 1
    missing = set(range(EPOCHS)) - set(rows)
    # W&B writes logged data every tenth of a second; a killed process can lose that much.
    assert len(missing) <= 1, missing


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_keeps_its_id(
    killed_and_resumed: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    killed = json.loads((killed_and_resumed.with_name("as killed") / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(killed))
    result = train_here(tmp_path, tiny_overrides("logger=wandb", model="title"))
    assert result["wandb_run_id"] == killed["wandb_run_id"]
    assert only_record(tmp_path).run["run_id"] == killed["wandb_run_id"]


@pytest.mark.slow
def test_a_run_resumed_in_another_folder_keeps_its_id(
    killed_and_resumed: Path, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    last = killed_and_resumed.with_name("as killed") / "checkpoints" / "last.ckpt"
    overrides = tiny_overrides(*LONG, f"ckpt_path={last}")
    result = train_here(tmp_path, overrides)
    record = only_record(tmp_path)
    assert record.run["run_id"] == result["wandb_run_id"]
    assert (
        result["wandb_run_id"]
        == only_record(killed_and_resumed.with_name("as killed")).run["run_id"]
    )
    last_step = torch.load(last, weights_only=True)["global_step"]
    assert min(record.steps) > last_step


# A local server.


class Server:
    """An openwandb; its licence (CC BY-NC 4.0) lets tests start it, but not us depend on it."""

    def __init__(self, url: str, database: Path) -> None:
        self.url = url
        self.database = database
        self.env = {
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": "local" + "0" * 40,
            "WANDB_MODE": "online",
        }

    def query(self, sql: str, *values: Any) -> list[Any]:
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as connection:
            return connection.execute(sql, values).fetchall()

    def epochs(self, run_id: str) -> list[int]:
        """The steps of the epochs that a run has logged."""
        rows = self.query(
            "SELECT step FROM metrics WHERE run_id = ? AND key = 'train/loss' ORDER BY step", run_id
        )
        return [step for (step,) in rows]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    command = os.environ.get("GENRE_LIGHTNING_OPENWANDB") or shutil.which("openwandb")
    if command is None:
        pytest.skip(
            "no openwandb: install it (pip install openwandb==0.5.25) in an environment of its "
            "own and name its command in GENRE_LIGHTNING_OPENWANDB"
        )
    folder = tmp_path_factory.mktemp("openwandb")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder],
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            yield Server(f"http://127.0.0.1:{port}", folder / "openwandb.db")
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.slow
def test_a_killed_run_resumes_in_the_same_wandb_run_online(
    server: Server, repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = [*tiny_overrides(*LONG, model="title"), "logger.wandb.name=killed and resumed"]
    folder = tmp_path / "run"

    def count_uploaded() -> int:
        return sum(
            len(server.epochs(run_id)) for (run_id,) in server.query("SELECT run_id FROM runs")
        )

    run_and_kill(repository, folder, overrides, 2, server.env, count_uploaded)
    time.sleep(1)
    before = server.query("SELECT run_id, state FROM runs")
    (run_id,) = (row[0] for row in before)
    assert json.loads((folder / "result.json").read_text())["wandb_run_id"] == run_id
    resumed = run_command(
        [repository / "train.py", *overrides, f"hydra.run.dir={folder}",
         f"ckpt_path={folder}/checkpoints/last.ckpt"],
        tmp_path, clean_environment(server.env),
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    ((final_run_id, name, state, summary),) = server.query(
        "SELECT run_id, display_name, state, summary_json FROM runs"
    )
    assert (final_run_id, name, state) == (run_id, "killed and resumed", "finished")
    result = json.loads((folder / "result.json").read_text())
    assert json.loads(summary)["test/f1_micro"] == pytest.approx(result["test"]["f1_micro"])
    steps = server.epochs(run_id)
    assert sorted(set(steps)) == steps, "no epoch twice"
    assert len(steps) >= EPOCHS - 1


@pytest.mark.slow
def test_synced_folders_of_a_killed_run_are_one_run(
    server: Server, killed_and_resumed: Path
) -> None:
    folders = offline_folders(killed_and_resumed)
    env = clean_environment(server.env)
    subprocess.run([WANDB, "sync", *folders], env=env, check=True, capture_output=True)
    run_id = json.loads((killed_and_resumed / "result.json").read_text())["wandb_run_id"]
    assert len(server.query("SELECT * FROM runs WHERE run_id = ?", run_id)) == 1
    steps = server.epochs(run_id)
    assert steps == sorted(step for folder in folders for step in Record(folder).steps)
    assert len(set(steps)) >= EPOCHS - 1
