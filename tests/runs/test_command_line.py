"""User errors are one sentence, before PyTorch is imported and before a folder is created."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from genre_lightning.errors import SettingError, UserError
from genre_lightning.runs.checks import check_data, check_settings
from genre_lightning.runs.config_errors import explain_error
from genre_lightning.scoring.names import MONITORED
from tests.forking import run_command

#: Runs scripts, read as a list of names and arguments, and prints how each one ends.
DRIVER = """
import importlib, json, sys
sys.path.insert(0, {repository!r})
for name, arguments in json.loads(sys.stdin.read()):
    sys.argv = [name + ".py", *arguments]
    try:
        importlib.import_module(name).main()
        message = "it runs"
    except SystemExit as end:
        message = str(end.code)
    print(json.dumps(message))
print(json.dumps("torch" in sys.modules))
"""

MISTAKES = {
    "optimizer.lr=abc": "optimizer.lr=abc must be a number above 0",
    "optimizer.lr=-1": "optimizer.lr=-1 must be a number above 0",
    "optimizer.lr=nan": "optimizer.lr=nan must be a number above 0",
    "optimizer.weight_decay=-1": "optimizer.weight_decay=-1 must be a number of at least 0",
    "seed=-1": "seed=-1 must be a whole number from 0 to 2**32 - 1",
    "data.batch_size=0": "data.batch_size=0 must be a whole number of at least 1, or null",
    "data.device_resident=1": "data.device_resident=1 must be auto, true or false",
    "checkpoint_in_background=1": "checkpoint_in_background=1 must be auto, true or false",
    "data.batch_size=2.5": "data.batch_size=2.5 must be a whole number of at least 1, or null",
    "trainer.max_epochs=abc": "trainer.max_epochs=abc must be a whole number of at least 1",
    "trainer.max_epochs=0": "trainer.max_epochs=0 must be a whole number of at least 1",
    "+trainer.limit_val_batches=0": "trainer.limit_val_batches=0 must be a number above 0",
    "+trainer.limit_train_batches=0.0": "trainer.limit_train_batches=0.0 must be a number above 0",
    "+trainer.val_check_interval=0": "trainer.val_check_interval=0 must be above 0",
    "+trainer.check_val_every_n_epoch=99": "=99 with trainer.max_epochs=10 never validates",
    "+trainer.fast_dev_run=true": "must be false; a quick look is trainer.max_epochs=1 +trainer.li",
    "+trainer.limit_test_batches=2": "can't be set: the test split is always scored whole",
    "+trainer.logger=false": "trainer.logger can't be set: loggers are logger=NAME",
    "+trainer.callbacks=[]": "trainer.callbacks can't be set: callbacks are +callbacks.NAME.",
    "training.micro_weight=2": "training.micro_weight=2 must be a number from 0 to 1",
    "training.stacking=3": "training.stacking=3 must be true or false",
    "label_sets=1": "label_sets=1 must be true or false",
    "model.dropout=1.5": "model.dropout=1.5 must be a number from 0 to less than 1",
    "monitor=val/f1": "monitor=val/f1 is not a validation metric; did you mean val/f1_m",
    "monitor=val/loss": "add monitor_mode=min",
    "data=manifest data.path=none.csv seed=1,2 -m": "data.path=none.csv: there is no such file",
    "data=ml1m loss=bce,focal -m": "data/ml1m: there is no such file or folder; data.download=true",
    "data.columns=none.csv seed=1,2 -m": "data.columns=none.csv: there is no such file",
    "data=manifest": "data.path has to be given: data.path=...",
    "callbacks.checkpoint=null": "callbacks.checkpoint can't be left out",
    "callbacks.checkpoint.monitor=val/loss": "monitor=val/loss can't be set: set monitor",
    "callbacks.checkpoint.mode=min": "mode=min can't be set: set monitor_mode",
    "callbacks.checkpoint.save_top_k=3": "save_top_k=3 can't be set: a run keeps best.ckpt",
    "callbacks.checkpoint.dirpath=/x": "dirpath=/x can't be set: set hydra.run.dir",
    "callbacks.early_stopping.monitor=val/los": "did you mean val/loss?",
    "callbacks.early_stopping.monitor=val/loss": "add callbacks.early_stopping.mode=min",
    "+callbacks.es._target_=pytorch_lightning.callbacks.EarlyStopping +callbacks.es.monitor=x": (
        "callbacks.es.monitor=x is not a validation metric"
    ),
    "hydra.sweep.subdir=x${seed} optimizer.lr=1,2 seed=1,2 -m": (
        "gives jobs the same folder, such as optimizer.lr=1 and optimizer.lr=2: leave it out, or"
    ),
    "hydra.sweep.subdir=${hydra:job.num} sweep=optuna": "subdir can't be set with sweep=optuna",
    "model/branch=[title_tfidf],[title_linear] model.branches.title_tfidf.network.hidden=8 -m": (
        "no setting model.branches.title_tfidf.network.hidden with all of model/branch="
    ),
    "callbacks.early_stopping=5": "callbacks.early_stopping must have a _target_, the class",
    "+callbacks.lrf._target_=pytorch_lightning.callbacks.LearningRateFinder": (
        "callbacks.lrf: LearningRateFinder has no learning rate to set here: find one by a sweep"
    ),
    "+callbacks.a._target_=pytorch_lightning.callbacks.LearningRateMonitor": (
        "callbacks.a: LearningRateMonitor writes to a logger, and there is none: add logger=csv"
    ),
    "+callbacks.b._target_=pytorch_lightning.callbacks.BatchSizeFinder": "set data.batch_size",
    "+callbacks.a._target_=pytorch_lightning.callbacks.StochasticWeightAveraging": (
        "use pytorch_lightning.callbacks.EMAWeightAveraging"
    ),
    "+callbacks.mine.word=x": "callbacks.mine must have a _target_, the class",
    "+logger.mine.word=x": "logger.mine must have a _target_, the class",
    "~loss": "loss can't be left out of a training",
    "training=null": "training can't be left out of a training",
    "experiment=null": "a group of the configuration is one of its files",
    "scheduler=null": "leave the override out, or name a file, such as scheduler=constant",
    "scheduler.warmup_fraction=2": "scheduler.warmup_fraction=2 must be a number from 0 to 1",
    "trainer.precision=64": "trainer.precision=64 must be auto, 32-true, 16-mixed or bf16-mixed",
    "+trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0 must be a whole",
    "optimizer.lrr=1": "there is no setting optimizer.lrr; did you mean optimizer.lr?",
    "trainer.max_steps=7": "did you mean trainer.max_epochs? +trainer.max_steps=... adds one",
    "optimzer.lr=1": "there is no setting optimzer.lr; did you mean optimizer.lr?",
    "optimzer=adam": "there is no setting optimzer; did you mean optimizer?",
    "model/brnch=[title_tfidf]": "there is no setting model/brnch; did you mean model/branch?",
    "optimizer=adamx": "optimizer=adamx: there is no such option; did you mean adam",
    "data=foo": "data=foo: there is no such option. There are demo, manifest, ml1m, mmimdb",
    "model/branch=[title_tfid]": "did you mean title_tfidf?",
    "hydra.run.dri=x": "did you mean hydra.run.dir?",
    "lr=1e-3": "there is no setting lr; did you mean optimizer.lr?",
    "dropout=0.3": "there is no setting dropout; did you mean model.dropout?",
    "data.path=movies.csv": "no setting data.path here, but data=manifest has it",
    "data=manifest data.root=x": "here, but data=demo, data=ml1m and data=mmimdb have it",
    "zzz=1": "there is no setting zzz; --help shows all",
    "model.recipe.zzz=1": "lr, weight_decay, batch_size, max_epochs, hidden, input_dropout",
    "num_genres=5": "num_genres can't be set: it is the number of genres in the data",
    "num_genres=3,4 -m": "num_genres can't be set: it is the number of genres in the data",
    "+foo=5": "nothing reads the setting foo: leave it out",
    "+foo=1,2 -m": "nothing reads the setting foo: leave it out",
    "+foo=interval(0,1) sweep=optuna": "nothing reads the setting foo: leave it out",
    "optimizer.lr=${nope}": "optimizer.lr: Interpolation key 'nope' not found",
    "+lr=1": "nothing reads the setting lr; did you mean optimizer.lr?",
    "+model.dropot=0.2": "nothing reads the setting model.dropot; did you mean model.dropout?",
    "+model.foo.bar=1,2 -m": "nothing reads the setting model.foo: leave it out",
    "model.branches.title_tfidf.zzz=1": "title_tfidf.zzz; model.branches.title_tfidf has input",
    "model=title model.branches.poster_resnet.a=1 model.branches.poster_resnet.b=1": (
        "no setting model.branches.poster_resnet.a; model.branches has title_tfidf, and +model"
    ),
    "optimizer.lr=1,2": "optimizer.lr=1,2 names several values: -m sweeps over them",
    "seed={": "seed={ can't be read: an override is key=value",
    "ckpt_path=none.ckpt": "none.ckpt: there is no such file",
    "ckpt_path=last": "ckpt_path=last: no run under ",
    "hydra.run.dir=file/run": "file is not a folder: name another folder",
}
EVALUATIONS = {
    "": "ckpt_path has to be given: ckpt_path=...",
    "ckpt_path=none.ckpt": "none.ckpt: there is no such file",
    "split=tset": "split=tset must be train, val or test; did you mean test?",
    "batch_size=0": "batch_size=0 must be a whole number of at least 1",
    "gallery=-1": "gallery=-1 must be a whole number of at least 0",
    "data.path=movies.csv": "no setting data.path here, but data=manifest has it",
    "model=title": "model is not a setting of this command; --help shows all",
    "splt=val": "there is no setting splt; did you mean split?",
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """The message of each mistake, all made in one process, which must not import PyTorch."""
    repository = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "file").write_text("")
    calls = [("train", mistake.split()) for mistake in MISTAKES]
    calls += [
        (
            "evaluate",
            [mistake, *(["ckpt_path=file"] if "ckpt" not in mistake else [])] if mistake else [],
        )
        for mistake in EVALUATIONS
    ]
    env = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(repository=str(repository))],
        input=json.dumps(calls), capture_output=True, text=True, cwd=folder, env=env,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    *ends, imported_torch = map(json.loads, done.stdout.splitlines())
    assert not imported_torch and [path.name for path in folder.iterdir()] == ["file"]
    names = [("train", mistake) for mistake in MISTAKES] + [
        ("evaluate", mistake) for mistake in EVALUATIONS
    ]
    return dict(zip(names, ends, strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_mistake_is_one_sentence(
    mistake: str, messages: dict[tuple[str, str], str]
) -> None:
    text = messages["train", mistake]
    assert text.startswith("error: ") and MISTAKES[mistake] in text and "\n" not in text


@pytest.mark.parametrize(
    "overrides",
    [
        ["+width=0.1", "model.dropout=${width}"],
        ["+model.width=0.1", "training.branch_loss=${model.width}"],
        ["+all.width=0.1", "model.dropout=${oc.select:all.width}"],
        ["+name=x", "hydra.run.dir=runs/${name}"],
        ["+more=mine"],
        ["+callbacks.a._target_=pytorch_lightning.callbacks.LearningRateMonitor", "logger=csv"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_added_settings_that_something_reads_are_accepted(
    overrides: list[str], repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    overrides = [f"hydra.searchpath=['{tmp_path}']", *overrides]
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        check_settings(compose("train", overrides, return_hydra_config=True))


def test_an_experiment_outside_the_global_package_is_refused(
    repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 3\n")
    overrides = [f"hydra.searchpath=['{tmp_path}']", "experiment=mine"]
    with (
        initialize_config_dir(str(repository / "conf"), version_base="1.3"),
        pytest.raises(SettingError, match=r"# @package _global_: .* such as experiment\.seed"),
    ):
        check_settings(compose("train", overrides, return_hydra_config=True))


def test_groups_of_the_user_can_be_swept(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for seed in ("-1", "-2"):  # refused by the jobs
        text = f"# @package _global_\nseed: {seed}\n"
        (tmp_path / "more" / f"s{seed}.yaml").write_text(text)
    for folder in (["--config-dir", "."], ["hydra.searchpath=['file://.']"]):
        done = run_command(
            [repository / "train.py", "-m", "+more=s-1,s-2", *folder, "model=title"], tmp_path
        )
        assert "seed=-1 must be" in done.stdout and "2 failed" in done.stdout, done.stderr


def test_sweep_is_not_refused_for_files_that_it_makes_or_overrides() -> None:
    check_data({"reader": "demo", "root": "none", "columns": None}, ["seed"])
    check_data({"reader": "ml1m", "root": "none", "download": True}, ["seed"])
    check_data({"reader": "manifest", "path": "none.csv"}, ["data.path"])
    check_data({"reader": "ml1m", "root": "none", "download": False}, ["data"])


#: Six sets of four genres, joined by another separator than the default.
PAIRS = ("A;B", "A;C", "A;D", "B;C", "B;D", "C;D")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("title,poster\nAlien,\n", "movies.csv:1: the header has no column genres"),
        (
            "title,poster,genres\n" + "".join(f"{pair},,{pair}\n" for pair in PAIRS),
            "genre_separator=';'",
        ),
        ('title,genres\nAlien,Horror\nBrazil,"[\'Co"\n', "movies.csv:3, column genres: \"['Co"),
    ],
)
def test_sweep_over_a_bad_csv_is_refused_once(
    table: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("movies.csv").write_text(table)
    data = {"reader": "manifest", "path": "movies.csv", "genre_separator": None}
    with pytest.raises(UserError, match=re.escape(message)):
        check_data(data, ["seed"])
    check_data(data, ["data.genre_separator"])  # each job has its own separator


@pytest.mark.parametrize("reader", ["manifest", "ml1m"])
def test_sweep_with_a_bad_file_of_columns_is_refused_once(reader: str, tmp_path: Path) -> None:
    movies, more = tmp_path / "movies.csv", tmp_path / "more.csv"
    movies.write_text("title,poster,genres\nAlien,,Horror\n")
    more.write_text("movie,synopsis\n2,text\n")
    place = {"path" if reader == "manifest" else "root": str(movies)}
    with pytest.raises(UserError, match=r"more\.csv:1: the header has no column id"):
        check_data({"reader": reader, **place, "columns": str(more)}, ["seed"])


COUNTS = (
    "limit", "val_limit", "server.concurrency", "server.give_up_after", "server.max_requests",
    "server.max_tokens", "server.requests_per_minute", "server.tokens_per_minute",
)  # fmt: skip


@pytest.mark.parametrize("key", [*COUNTS, "train_limit", "server.retries", "server.timeout"])
def test_numbers_of_genre_ask_out_of_range_are_refused(key: str) -> None:
    mistakes = [-1, "9", True] + [0] * (key in (*COUNTS, "server.timeout"))
    for mistake in mistakes + [1.5] * (key != "server.timeout"):
        cfg = OmegaConf.create()
        OmegaConf.update(cfg, key, mistake)
        with pytest.raises(SettingError, match=rf"^{key}={mistake} must be a "):
            check_settings(cfg)


@pytest.mark.parametrize("mistake", EVALUATIONS)
def test_evaluation_mistake_is_one_sentence(
    mistake: str, messages: dict[tuple[str, str], str]
) -> None:
    text = messages["evaluate", mistake]
    assert text.startswith("error: ") and EVALUATIONS[mistake] in text and "\n" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        "model=title --cfg job seed=3",
        "--cfg job model=title seed=3",
        "model=title seed=3 -c job",
        "model=title --config-dir more --cfg job seed=3",
    ],
)
def test_options_are_accepted_anywhere(arguments: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shown = run_command([repository / "train.py", *arguments.split()], tmp_path)
    assert shown.returncode == 0, shown.stderr
    cfg = OmegaConf.create(shown.stdout)
    assert cfg.seed == 3 and list(cfg.model.branches) == ["title_tfidf"]


def test_help_lists_only_what_can_be_chosen(repository: Path, tmp_path: Path) -> None:
    branches = tmp_path / "more" / "model" / "branch"
    branches.mkdir(parents=True)
    (branches / "mine.yaml").write_text("{}")
    shown = run_command([repository / "train.py", "--help", "--config-dir", "more"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    groups = shown.stdout.partition("(group=option):\n\n")[2].partition("\n\n")[0]
    assert max(map(len, groups.splitlines())) <= 80
    lists = dict(line.split(": ") for line in groups.replace("\n  ", " ").splitlines())
    assert set(lists) == {
        "callbacks", "data", "experiment", "logger", "loss", "model", "model/branch",
        "optimizer", "scheduler", "sweep", "trainer",
    }  # fmt: skip
    assert lists["data"] == "demo, manifest, ml1m, mmimdb"
    assert "mine" in lists["model/branch"].split(", ")


@pytest.mark.parametrize(
    "folder",
    [["--config-dir", "of my own"], ["-cd", "of my own"], ["hydra.searchpath=['file://{}']"]],
    ids=lambda words: words[0].partition("=")[0],
)
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (["model/branch=[mime]"], "model/branch=mime: there is no such option; did you mean mine?"),
        (["model/branch=[mine]", "model.branches.mine.input.colum=x"], "mine.input.column?"),
        (["model/branch=[mine]", "model.branches.mne.lr_scale=2"], "branches.mine.lr_scale?"),
        # With a second mistake, which also prevents the composition.
        (["model/branch=[mine]", "model.branches.mine.l22=2", "sed=1"], "mine.l2?"),
    ],
)
def test_options_in_a_folder_of_the_user_are_suggested(
    mistake: list[str],
    message: str,
    folder: list[str],
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    mine = tmp_path / "of my own" / "model" / "branch" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    text = (repository / "conf" / "model" / "branch" / "title_linear.yaml").read_text()
    mine.write_text(text.replace("branches.title_linear", "branches.mine"))
    options = [word.format(tmp_path / "of my own") for word in folder]
    done = run_command([repository / "train.py", *mistake, *options], tmp_path)
    assert done.returncode == 1 and message in done.stderr, done.stderr


def test_multirun_and_cfg_exclude_each_other(repository: Path, tmp_path: Path) -> None:
    ended = run_command([repository / "train.py", "-m", "seed=1,2", "--cfg", "job"], tmp_path)
    expected = "error: --multirun and --cfg exclude each other: leave one out"
    assert ended.returncode == 1 and ended.stderr.strip() == expected


def test_monitored_names_are_the_metrics_of_validation() -> None:
    import torch

    from genre_lightning.scoring.metrics import genre_metrics

    metrics = genre_metrics(torch.rand(4, 3), torch.eye(4, 3), torch.full((3,), 0.5))
    assert {f"val/{name}" for name in (*metrics, "loss")} == set(MONITORED)


def test_option_of_a_missing_extra_names_what_to_install(repository: Path) -> None:
    """The error is the one that Hydra raises if the extra is not installed."""
    error = MissingConfigException("Could not find 'hydra/launcher/submitit_slurm'")
    assert explain_error(error, repository / "conf", "train", []) == (
        "hydra/launcher=submitit_slurm needs a package that is not installed: "
        'pip install "genre-lightning[slurm]"'
    )


def test_sweeper_without_its_settings_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # it would add the traceback
    arguments = ["-m", "hydra/sweeper=optuna", "seed=1,2"]
    done = run_command([repository / "train.py", *arguments], tmp_path)
    expected = "error: hydra/sweeper=optuna gets its settings from sweep=optuna: use that instead"
    assert done.returncode == 1 and done.stderr.rstrip().endswith(expected)
