"""train.py end to end: what a run writes, how it ends and how it is resumed."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from genre_lightning.checkpoint.card import CHECKPOINT_KEY, CheckpointError
from genre_lightning.checkpoint.model import load_model
from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.errors import SettingError, UserError
from genre_lightning.report.evaluation import score_split
from genre_lightning.runs.config_errors import searchpath_override
from genre_lightning.scoring.losses import BCELoss
from genre_lightning.training.module import DivergedError
from tests.forking import Command

Train = Callable[[Path, list[str]], dict[str, Any]]
Overrides = Callable[..., list[str]]

METRICS = {
    *(
        f"{name}_{average}{suffix}"
        for name in ("f1", "precision", "recall")
        for average in ("micro", "macro")
        for suffix in ("", "_at_0.5")
    ),
    "f1_samples",
    "f1_weighted",
    "f1_samples_at_0.5",
    "f1_weighted_at_0.5",
    "map_macro",
    "map_micro",
    "loss",
}


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


def start_train(repository: Path, overrides: list[str], cwd: Path) -> Command:
    """Starts train.py in a folder, as a user does."""
    env = {**os.environ}
    env.pop("HYDRA_FULL_ERROR", None)
    return Command([repository / "train.py", *overrides], cwd, env)


def test_run_writes_checkpoints_metrics_and_result(trained_run: Path) -> None:
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "result.json"):
        assert (trained_run / name).is_file()
    result = read_result(trained_run)
    assert result["status"] == "completed" and result["monitor"] == "val/map_macro"
    assert result["epochs"] == 2 and result["seed"] == 0
    assert result["train_samples_per_second"] > 0 and result["seconds"] > 0
    model = load_model(trained_run / "checkpoints" / "best.ckpt")
    assert result["num_parameters"] == sum(p.numel() for p in model.network.parameters())
    for split in ("val", "test"):
        assert set(result[split]) >= METRICS
        assert all(isinstance(value, (int, float)) for value in result[split].values())
    assert result["test"]["num_movies"] == 24
    # The scores are those of the epoch with the best monitored value.
    with (trained_run / "metrics.csv").open(newline="") as file:
        best = max(float(row["val/map_macro"]) for row in csv.DictReader(file))
    assert result["monitor_value"] == pytest.approx(best)
    assert result["val"]["map_macro"] == pytest.approx(best)


@pytest.mark.slow
def test_ctrl_c_prints_a_command_that_resumes(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("callbacks.early_stopping=null", model="title")
    process = start_train(repository, [*overrides, "trainer.max_epochs=100000"], tmp_path)
    try:
        deadline = time.monotonic() + 240
        while not (found := list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    folder = found[0].parent.parent
    result = read_result(folder)
    assert result["status"] == "interrupted" and result["test"] == {}
    epochs = torch.load(found[0], weights_only=True)["epoch"] + 1
    # The command resumes in the same folder, despite the later time, and with the same settings.
    first_line, command = output.splitlines()[-2:]
    assert first_line == "Interrupted. To resume it:" and shlex.split(command)[-1].endswith(
        folder.name
    )
    process = start_train(
        repository, [*shlex.split(command)[2:], f"trainer.max_epochs={epochs}"], tmp_path
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = read_result(folder)
    assert result["status"] == "completed" and result["epochs"] == epochs
    assert result["attempts"] == 2 and set(result["test"]) >= METRICS
    assert list(tmp_path.glob("runs/*/*")) == [folder]


def test_folder_of_another_run_is_refused_and_unchanged(
    repository: Path, trained_run: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("of the run that is there")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    process = start_train(
        repository, [f"hydra.run.dir={folder}", *tiny_overrides("optimizer.lr=0.123")], tmp_path
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and f"error: {folder} holds a run already" in errors
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_hostile_checkpoint_is_not_resumed(
    repository: Path, trained_run: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/marker",)

    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["callbacks"]["x"] = Payload()
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    overrides = ["hydra.run.dir=run", "ckpt_path=hostile.ckpt", *tiny_overrides()]
    process = start_train(repository, overrides, tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: hostile.ckpt: refused: it names code" in errors
    assert "Traceback" not in errors and "weights_only=False" not in errors
    assert not (tmp_path / "marker").exists()
    result = read_result(tmp_path / "run")
    assert result["status"] == "failed" and "hostile.ckpt" in result["error"]
    assert not (tmp_path / "run" / "checkpoints").exists()


# The tests below train in this process, since importing takes longer than training.


def test_the_same_seed_gives_the_same_result(
    train_here: Train, tiny_overrides: Overrides, trained_run: Path, tmp_path: Path
) -> None:
    first = read_result(trained_run)
    same = train_here(tmp_path / "same", tiny_overrides())
    other = train_here(tmp_path / "other", tiny_overrides("seed=1"))
    for key in ("val", "test", "monitor_value", "num_parameters"):
        assert same[key] == first[key]
    assert other["test"]["loss"] != first["test"]["loss"]
    one, two, three = (
        load_model(folder / "checkpoints" / "best.ckpt").network.state_dict()
        for folder in (trained_run, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_single_branch_model_reads_only_its_column(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    cache = f"data.cache_dir={tmp_path}/cache"
    result = train_here(tmp_path / "title", tiny_overrides(cache, model="title"))
    assert result["test"] and not list((tmp_path / "cache").glob("posters-*"))
    result = train_here(tmp_path / "poster", tiny_overrides(cache, model="poster"))
    assert result["test"] and list((tmp_path / "cache").glob("posters-*"))
    network = load_model(tmp_path / "poster" / "checkpoints" / "best.ckpt").network
    assert list(network.branches) == ["poster_resnet"]


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "asymmetric"])
def test_other_losses(loss: str, train_here: Train, tiny_overrides: Overrides, tmp_path: Path):
    overrides = tiny_overrides(f"loss={loss}", "loss.class_weight=sqrt", model="title")
    if loss == "cross_entropy":
        overrides.remove("loss.class_weight=sqrt")
    result = train_here(tmp_path, overrides)
    assert result["status"] == "completed" and result["val"]["loss"] > 0


def test_divergence_is_reported(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"not finite in epoch 1.*optimizer\.lr"):
        train_here(tmp_path, tiny_overrides("optimizer.lr=1e30"))
    assert read_result(tmp_path)["status"] == "failed"
    assert not list(tmp_path.rglob("best*.ckpt"))


def test_out_of_memory_suggests_a_smaller_batch(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pebibyte, which PyTorch's allocator refuses on any machine.
    monkeypatch.setattr(BCELoss, "forward", lambda *args: torch.empty(1 << 50))
    with pytest.raises(UserError, match=r"full, training on cpu: lower data\.batch_size \(it"):
        train_here(tmp_path, tiny_overrides())
    assert read_result(tmp_path)["status"] == "failed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.reader=nothing", "no reader 'nothing'"),
        ("++data.nothing=1", "no option 'nothing'"),
        ("data.val_fraction=0", "val_fraction"),
        ("model.branches.title_tfidf.network.name=os.system", "os.system"),
        ("model.branches.title_tfidf.network.hiden=8", "no argument 'hiden'"),
        ("model.branches.title_tfidf.input.kind=os.system", "os.system"),
        ("model.branches.title_tfidf.input.column=cast", "'cast', which no movie"),
        ("model.branches.title_tfidf.input.analyzer=letters", "analyzer: 'letters'"),
        ("model.branches.title_tfidf.lr_scale=-1", "lr_scale=-1"),
        ("model.branches.title_tfidf.lr_scale=0", "nothing to train"),
        ("model.branches.title_tfidf=null", "no branch"),
        ("data.columns=none.csv", "can't read none.csv"),
        ("training.thresholds=nothing", "nothing"),
        ("data.batch_size=1", "BatchNorm of title_tfidf needs at least 2 movies"),
        ("+optimizer.foo=1", "optimizer: AdamW.*foo"),
        ("scheduler.warmup_fraction=abc", "scheduler: "),
        ("trainer.precision=abc", "trainer: .*abc"),
        ("+training.foo=1", "argument 'foo'"),
        ("+trainer.limit_train_batches=0", "there is no best checkpoint"),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_bad_option_fails(
    override: str, message: str, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        plus = "++" if override.split("=")[0].endswith("hiden") else ""
        train_here(tmp_path, tiny_overrides("++data.num_movies=30", plus + override, model="title"))
    result = read_result(tmp_path)
    assert result["status"] == "failed" and re.search(message, result["error"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_impossible_trainer_is_refused_before_reading_data(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("data.columns=none.csv", "trainer.accelerator=gpu", model="title")
    with pytest.raises(SettingError, match="trainer: No supported gpu"):
        train_here(tmp_path, overrides)


def test_mismatched_network_is_refused_before_caches_are_built(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    overrides = [f"data.cache_dir={cache}", "model.branches.poster_resnet.network.name=terms_mlp"]
    with pytest.raises(UserError, match="poster_resnet: the network terms_mlp takes terms"):
        train_here(tmp_path / "run", tiny_overrides(*overrides))
    assert not list(cache.glob("posters-*"))


def test_schedule_without_total_steps_is_refused(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    step = ("scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.step_size=2")
    overrides = tiny_overrides("scheduler=constant", *step, model="title")
    with pytest.raises(UserError, match=r"StepLR.* A schedule takes the optimizer and total_steps"):
        train_here(tmp_path, overrides)


# Resuming.


def resume(path: Path, *more: str) -> list[str]:
    return [f"ckpt_path={path}", "trainer.max_epochs=3", *more]


def test_run_resumes_in_another_folder(
    train_here: Train, tiny_overrides: Overrides, trained_run: Path, tmp_path: Path
) -> None:
    # The best checkpoint so far is in the old folder, so this run saves the best of its own epochs.
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    (name,) = (key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint"))
    checkpoint["callbacks"][name]["best_model_score"] = torch.tensor(2.0)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    result = train_here(tmp_path / "run", tiny_overrides(*resume(tmp_path / "last.ckpt")))
    assert result["status"] == "completed" and set(result["test"]) >= METRICS
    assert result["epochs"] == 3 and 0 < result["monitor_value"] <= 1
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]


@pytest.mark.parametrize("path", ["{victim}", "{folder}/checkpoints/..", "{folder}/result.json"])
def test_resuming_deletes_no_file_named_by_the_checkpoint(
    path: str, train_here: Train, tiny_overrides: Overrides, trained_run: Path, tmp_path: Path
) -> None:
    # Lightning deletes the previous best checkpoint, and takes its path from the resumed one.
    folder, victim = tmp_path / "run", tmp_path / "victim.ckpt"
    shutil.copytree(trained_run, folder)
    victim.write_text("precious")
    name = path.format(victim=victim, folder=folder)
    last = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint"))
    worst = torch.tensor(-1.0)
    checkpoint["callbacks"][key].update(
        dirpath=str(folder / "checkpoints"),
        best_model_path=name,
        best_model_score=worst,
        kth_best_model_path=name,
        kth_value=worst,
        last_model_path=name,
        best_k_models={name: worst},
    )
    torch.save(checkpoint, last)
    train_here(folder, tiny_overrides(*resume(last)))
    assert victim.read_text() == "precious"
    for file in ("result.json", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (folder / file).is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.branches.title_tfidf.network.hidden=16",
            r"its network differs.*title_tfidf\.hidden: 8 there, 16 here",
        ),
        ("data.split_seed=1", r"its inputs differ.*title_tfidf"),
        (
            "model.branches.title_tfidf.input.vocabulary_size=300",
            r"its inputs differ.*vocabulary_size: 256 there, 300 here",
        ),
        (
            "model.branches.poster_resnet.input.size=48",
            r"inputs differ.*size: \[32, 32\] there",
        ),
        ("model=title", r"its inputs differ.*poster_resnet"),
    ],
    ids=lambda value: value.partition("=")[0] if "=" in value else "",
)
def test_checkpoint_of_another_model_is_not_resumed(
    override: str, message: str, train_here: Train, tiny_overrides: Overrides,
    trained_run: Path, tmp_path: Path,
) -> None:  # fmt: skip
    path = trained_run / "checkpoints" / "last.ckpt"
    model = "title" if override == "model=title" else "fusion"
    more = [] if model == "title" else [override]
    with pytest.raises(CheckpointError, match=message) as caught:
        train_here(tmp_path, tiny_overrides(*resume(path), *more, model=model))
    assert str(path) in str(caught.value)


def test_run_is_not_resumed_on_other_movies(
    train_here: Train, tiny_overrides: Overrides, trained_run: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint[CHECKPOINT_KEY]["learnt_from"] = "0" * 32
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="its movies of train and validation are not those"):
        train_here(tmp_path / "run", tiny_overrides(*resume(path)))


@pytest.mark.parametrize("changed", ["vectors", "plot", "poster", "test movie"])
def test_run_is_not_resumed_on_changed_content(
    changed: str, train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    rows = [
        f"{number},Title {number % 7},{number}.png,{'AB'[number % 2]},plot {number % 5},{split}"
        for number, split in enumerate(["train"] * 40 + ["val"] * 10 + ["test"] * 10)
    ]
    for number in range(60):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    table, vectors = tmp_path / "movies.csv", tmp_path / "mine.csv"

    def write(plot: str = "plot", number: int = 1, test_plot: str = "plot") -> None:
        lines = list(rows)
        lines[3], lines[59] = rows[3].replace("plot", plot), rows[59].replace("plot", test_plot)
        table.write_text("\n".join(["id,title,poster,genres,synopsis,split", *lines]))
        values = [f"{row},{number if row == 3 else 0},{row % 3}" for row in range(60)]
        vectors.write_text("\n".join(["id,a,b", *values]))

    overrides = [
        "model/branch=[synopsis_tfidf,poster_resnet,vectors]",
        *(each for each in tiny_overrides(model="poster") if each[:6] not in ("model=", "++data")),
        "model.branches.synopsis_tfidf.input.vocabulary_size=64",
        f"model.branches.vectors.input.path={vectors}",
        "data=manifest", f"data.path={table}",
    ]  # fmt: skip
    write()
    run = tmp_path / "run"
    train_here(run, [*overrides, "trainer.max_epochs=1"])
    more = [*overrides, "trainer.max_epochs=2", f"ckpt_path={run}/checkpoints/last.ckpt"]
    if changed == "test movie":  # does not affect training
        write(test_plot="story")
        assert train_here(run, more)["epochs"] == 2
        return
    if changed == "poster":
        Image.new("RGB", (90, 80)).save(tmp_path / "3.png")
    # The changed plot has the same words, so the vocabulary stays the same.
    write("plot plot" if changed == "plot" else "plot", 2 if changed == "vectors" else 1)
    sources = {"vectors": f"{vectors}, which the branch vectors", "plot": "the column synopsis"}
    with pytest.raises(CheckpointError, match=sources.get(changed, "the column poster")) as caught:
        train_here(run, more)
    assert "has changed since for movies of train or validation" in str(caught.value)


def test_resuming_with_fewer_epochs_is_refused(
    train_here: Train, tiny_overrides: Overrides, trained_run: Path, tmp_path: Path
) -> None:
    path = trained_run / "checkpoints" / "last.ckpt"
    overrides = tiny_overrides(f"ckpt_path={path}", "trainer.max_epochs=1")
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt: can't resume from it: it has 2 epochs.*max_epochs=1"
    ):
        train_here(tmp_path, overrides)


def bad_optimizer(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["param_groups"][0]["params"] = [0]


def bad_loops(checkpoint: dict[str, Any]) -> None:
    checkpoint["loops"] = {"fit_loop": {"epoch_progress": "x"}}


def bad_schedule(checkpoint: dict[str, Any]) -> None:
    checkpoint["lr_schedulers"] = [1]


def bad_version(checkpoint: dict[str, Any]) -> None:
    checkpoint["pytorch-lightning_version"] = "not one"


def no_state(checkpoint: dict[str, Any]) -> None:
    del checkpoint["optimizer_states"]


@pytest.mark.parametrize("change", [bad_optimizer, bad_loops, bad_schedule, bad_version, no_state])
def test_malformed_training_state_is_refused(
    change: Callable[[dict[str, Any]], None], train_here: Train, tiny_overrides: Overrides,
    trained_run: Path, tmp_path: Path,
) -> None:  # fmt: skip
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=r"odd\.ckpt"):
        train_here(tmp_path / "run", tiny_overrides(*resume(tmp_path / "odd.ckpt")))


# Half of the demo's genres show only in the title, the other half only in the poster.


@pytest.mark.slow
def test_the_sum_beats_either_branch(train_here: Train, tmp_path: Path) -> None:
    small = [
        "++data.num_movies=600",
        "++data.poster_height=48",
        "data.batch_size=32",
        "trainer.max_epochs=4",
        "trainer.accelerator=cpu",
        "callbacks.progress_bar=null",
        "++trainer.enable_progress_bar=false",
    ]
    tiny = {
        "title": ["model.branches.title_tfidf.input.vocabulary_size=2048"],
        "poster": [
            "model.branches.poster_resnet.input.size=32",
            "model.branches.poster_resnet.input.pool=1",
            "model.branches.poster_resnet.network.widths=[8,16,32,64]",
        ],
    }
    tiny["fusion"] = tiny["title"] + tiny["poster"]
    scores = {}
    for model in ("fusion", "title", "poster"):
        overrides = [f"model={model}", *small, *tiny[model]]
        scores[model] = train_here(tmp_path / model, overrides)["test"]
    for metric in ("map_macro", "f1_macro", "f1_micro"):
        alone = max(scores["title"][metric], scores["poster"][metric])
        assert scores["fusion"][metric] > alone + 0.08, metric


def test_checkpoint_describes_its_dataset(trained_run: Path) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(trained_run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        described = checkpoint[CHECKPOINT_KEY]["data"]
        assert described["reader"] == "demo" and described["num_movies"] == 120


# Lists of branches.


@pytest.fixture
def synopses(tmp_path: Path) -> Path:
    """A CSV with synopses, which name the genres, of every second movie of the tiny demo."""
    from genre_lightning.movies.demo import read_demo

    cache = os.environ["GENRE_LIGHTNING_CACHE"]
    movies = read_demo(cache, num_movies=120, poster_height=48).movies
    path = tmp_path / "columns.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "synopsis"])
        for movie in movies[::2]:
            table.writerow([movie.id, f"a story of {' and '.join(movie.genres)}"])
    return path


def with_synopses(synopses: Path, *more: str) -> list[str]:
    """Overrides that add a synopsis branch; half of the movies have no synopsis."""
    return [
        f"data.columns={synopses}",
        "model/branch=[title_tfidf,poster_resnet,synopsis_tfidf]",
        "model.branches.synopsis_tfidf.input.vocabulary_size=64",
        *more,
    ]


def test_user_column_becomes_a_branch(
    train_here: Train, tiny_overrides: Overrides, synopses: Path, tmp_path: Path
) -> None:
    overrides = tiny_overrides(*with_synopses(synopses))
    result = train_here(tmp_path / "run", overrides)
    assert result["status"] == "completed" and set(result["test"]) >= METRICS
    model = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert list(model.network.branches) == ["title_tfidf", "poster_resnet", "synopsis_tfidf"]
    assert model.columns == {"title": "text", "poster": "poster", "synopsis": "text"}
    assert model.data["columns"] == str(synopses.resolve())
    # The synopsis branch adds exactly 0 to movies without a synopsis.
    data = MovieDataModule.from_description(
        model.data, inputs=model.inputs, cache_dir=os.environ["GENRE_LIGHTNING_CACHE"]
    )
    data.setup()
    scores = score_split(model, data, "test")
    has = scores.has_column["synopsis_tfidf"]
    assert 0 < has.sum() < len(has)
    assert has.tolist() == (data.states("synopsis")[scores.rows] == "present").tolist()
    logits = scores.branch_logits["synopsis_tfidf"]
    assert not logits[~has].any() and logits[has].any(dim=1).all()
    others = model.network.total(
        {name: part for name, part in scores.branch_logits.items() if name != "synopsis_tfidf"}
    )
    assert torch.equal(scores.logits[~has], others[~has])


def test_unread_column_is_reported_with_overrides_that_add_a_branch(
    train_here: Train,
    tiny_overrides: Overrides,
    synopses: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = tiny_overrides(f"data.columns={synopses}")
    train_here(tmp_path / "without", overrides)
    printed = " ".join(capsys.readouterr().out.split())
    note = r"no branch reads the column synopsis\. To add one: (\S+) (\S+)"
    match = re.search(note, printed)
    assert match
    train_here(tmp_path / "with", [*overrides, *match.groups()])
    assert "no branch reads" not in capsys.readouterr().out
    model = load_model(tmp_path / "with" / "checkpoints" / "best.ckpt")
    assert list(model.network.branches) == ["title_tfidf", "poster_resnet", "synopsis"]
    assert model.inputs["synopsis"].column == "synopsis"


def test_branches_keep_the_order_of_the_list(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("model/branch=[poster_resnet,title_tfidf]")
    train_here(tmp_path, overrides)
    network = load_model(tmp_path / "checkpoints" / "best.ckpt").network
    assert list(network.branches) == ["poster_resnet", "title_tfidf"]
    assert list(network.description["branches"]) == ["poster_resnet", "title_tfidf"]


def test_two_branches_read_the_same_column(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides(
        "model/branch=[title_tfidf,title_words]",
        "model.branches.title_words.input.vocabulary_size=64",
        "model.branches.title_words.network.hidden=4",
        model="title",
    )
    result = train_here(tmp_path, overrides)
    model = load_model(tmp_path / "checkpoints" / "best.ckpt")
    assert result["status"] == "completed" and model.columns == {"title": "text"}
    assert [branch_input.column for branch_input in model.inputs.values()] == ["title", "title"]


def test_switching_the_network_drops_arguments_it_does_not_take(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from genre_lightning.models import networks

    small = type("Small", (networks.TermsMLP,), {})
    terms_mlp = networks.NETWORKS["terms_mlp"]
    limits = {name: limit for name, limit in terms_mlp.limits.items() if name != "skip"}

    def build(num_genres: int, vocabulary_size: int, hidden: int = 4, dropout: float = 0.5) -> Any:
        return small(num_genres, vocabulary_size, hidden, dropout)

    with pytest.MonkeyPatch.context() as patch:
        network_type = networks.NetworkType(build, "terms", limits)  # type: ignore[arg-type]
        patch.setitem(networks.NETWORKS, "terms_small", network_type)
        override = "model.branches.title_tfidf.network.name=terms_small"
        train_here(tmp_path, tiny_overrides(override, model="title"))
        assert "model.branches.title_tfidf: the network terms_small takes no skip: left out" in (
            caplog.text
        )
        network = load_model(tmp_path / "checkpoints" / "best.ckpt").network
    assert network.description["branches"]["title_tfidf"]["name"] == "terms_small"


def test_users_checkpoint_callback_does_not_choose_the_best_epoch(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    (tmp_path / "own" / "callbacks").mkdir(parents=True)
    (tmp_path / "own" / "callbacks" / "first.yaml").write_text(
        "defaults: [_self_, default]\n"
        "every:\n"
        "  _target_: pytorch_lightning.callbacks.ModelCheckpoint\n"
        "  dirpath: ${hydra:runtime.output_dir}/every\n"
        "  save_top_k: -1\n"
        "  monitor: val/loss\n"
    )
    own = [searchpath_override(tmp_path / "own"), "callbacks=first"]
    result = train_here(tmp_path / "run", tiny_overrides(*own, model="title"))
    assert len(list((tmp_path / "run" / "every").iterdir())) == 2
    assert result["best_checkpoint"] == "checkpoints/best.ckpt"
    rows = (tmp_path / "run" / "metrics.csv").open(newline="")
    best = max(float(row["val/map_macro"]) for row in csv.DictReader(rows))
    assert result["monitor_value"] == result["val"]["map_macro"] == pytest.approx(best, abs=1e-6)


def test_monitored_value_is_computed_on_all_validation_movies(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    part = ["data.batch_size=8", "+trainer.limit_val_batches=1"]
    result = train_here(tmp_path, tiny_overrides(*part, model="title"))
    model = load_model(tmp_path / "checkpoints" / "best.ckpt")
    data = MovieDataModule.from_description(
        model.data, inputs=model.inputs, cache_dir=os.environ["GENRE_LIGHTNING_CACHE"],
        genres=model.genres,
    )  # fmt: skip
    data.setup()
    scores = score_split(model, data, "val")
    targets, probabilities = scores.targets.numpy(), scores.scores.numpy()
    genres = [genre for genre in range(targets.shape[1]) if targets[:, genre].any()]
    expected = [average_precision_score(targets[:, g], probabilities[:, g]) for g in genres]
    assert len(targets) > 8
    assert result["monitor_value"] == pytest.approx(sum(expected) / len(genres), abs=1e-4)


@pytest.mark.parametrize(
    "off", ["callbacks.progress_bar=null", "trainer.enable_progress_bar=false"]
)
def test_training_without_a_progress_bar(
    off: str, train_here: Train, tiny_overrides: Overrides, tmp_path: Path, capfd: Any
) -> None:
    no_bar = ("callbacks.progress_bar=null", "++trainer.enable_progress_bar=false")
    overrides = [each for each in tiny_overrides(model="title") if each not in no_bar]
    train_here(tmp_path, [*overrides, off])
    out, err = capfd.readouterr()
    assert "Epoch" not in out + err and "it/s" not in out + err


def test_limit_below_one_batch_is_refused_in_one_sentence(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("+trainer.limit_train_batches=0.01", model="title")
    with pytest.raises(SettingError, match=r"^trainer: .*0\.01 \* \d+ < 1"):
        train_here(tmp_path, overrides)


def test_validation_after_more_batches_than_an_epoch_has_is_refused(
    train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = tiny_overrides("+trainer.val_check_interval=1000", model="title")
    with pytest.raises(
        SettingError, match=r"^trainer\.val_check_interval=1000 is more than the \d+"
    ):
        train_here(tmp_path, overrides)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["+trainer.accumulate_grad_batches=4", "+trainer.check_val_every_n_epoch=2"],
        ["+trainer.val_check_interval=7", "+trainer.accumulate_grad_batches=3"],
        ["+trainer.val_check_interval=13", "+trainer.check_val_every_n_epoch=null"],
    ],
    ids=" ".join,
)
def test_max_steps_before_the_first_validation_is_refused(
    more: list[str], train_here: Train, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    def train_for(steps: int, folder: Path) -> dict[str, Any]:
        few = [f"+trainer.max_steps={steps}", "trainer.max_epochs=-1", "data.batch_size=8", *more]
        return train_here(folder, tiny_overrides(*few, model="title"))

    with pytest.raises(SettingError, match=r"max_steps=1 ends before the first valid") as refused:
        train_for(1, tmp_path / "refused")
    assert not (tmp_path / "refused" / "checkpoints" / "last.ckpt").exists()
    first = int(str(refused.value).partition(" steps")[0].split()[-1])
    with pytest.raises(SettingError, match=f"after {first} steps"):
        train_for(first - 1, tmp_path / "refused")
    assert train_for(first, tmp_path / "trained")["best_checkpoint"] == "checkpoints/best.ckpt"
