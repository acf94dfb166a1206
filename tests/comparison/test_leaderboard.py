"""The leaderboard: from run folders as they lie there to the table, the files and the page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import Browser, Page
from rich.console import Console

from genre_lightning.comparison import leaderboard as command
from genre_lightning.comparison.leaderboard import compare, print_leaderboard, write_leaderboard
from genre_lightning.comparison.reading import read_run
from genre_lightning.errors import UserError
from genre_lightning.runs.result import LOCK, write_result
from tests.pages import CONTRAST

HOSTILE = (
    '<script>window.hit=1</script><img src=x onerror="window.hit=1">"&{{ 7 * 7 }}[red]|\x1b[31m'
)
CONFIG: dict[str, Any] = {
    "seed": 0,
    "monitor": "val/map_macro",
    "monitor_mode": "max",
    "ckpt_path": None,
    "data": {"reader": "demo", "batch_size": 32, "cache_dir": "here"},
    "model": {"dropout": 0.4, "title": {"hidden": 256}},
    "optimizer": {"lr": 0.002, "weight_decay": 0.1},
    "trainer": {"max_epochs": 4},
    "logger": {},
}


def write_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    values: Sequence[float] = (0.1, 0.3, 0.2, 0.25),
    *,
    status: str | None = "completed",
    choices: Mapping[str, Any] | None = None,
    **result: Any,
) -> Path:
    """A run folder with these values of val/map_macro by epoch, as training leaves it behind."""
    settings = settings or {}
    config = json.loads(json.dumps(CONFIG))
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    overrides = [f"{key}={value}" for key, value in {**settings, **(choices or {})}.items()]
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(overrides), "utf-8")
    runtime = {
        "hydra": {
            "runtime": {"choices": {"model": "fusion", "hydra": "default", **(choices or {})}}
        }
    }
    (hydra / "hydra.yaml").write_text(yaml.safe_dump(runtime), "utf-8")
    rows = [
        f"{epoch},{8 * epoch + 8},{1.0 - value!r},{value!r},{0.6 - 0.1 * epoch!r}"
        for epoch, value in enumerate(values)
    ]
    head = "epoch,step,val/loss,val/map_macro,train/loss"
    (folder / "metrics.csv").write_text("\n".join([head, *rows, ""]), "utf-8")
    if status is not None:
        told: dict[str, Any] = {
            "status": status,
            "monitor": config["monitor"],
            "seconds": 10.0,
            **result,
        }
        if status == "completed" and values:
            best = max(values)
            told = {
                "monitor_value": best,
                "epochs": len(values),
                "val": {"map_macro": best, "f1_micro": best / 2, "loss": 1 - best},
                "test": {"map_macro": best - 0.01},
                **told,
            }
        write_result(folder, told)
    return folder


def best_of(folder: Path) -> float:
    with (folder / "metrics.csv").open(newline="") as file:
        return max(float(row["val/map_macro"]) for row in csv.DictReader(file))


def printed(comparison: Any, width: int = 100) -> str:
    out = io.StringIO()
    print_leaderboard(comparison, Console(file=out, width=width, force_terminal=True, emoji=False))
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("leaderboard.")
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x 3 settings and two seeds; one run failed, one was killed at once, names are hostile."""
    folder = tmp_path_factory.mktemp("sweep")
    for i, lr in enumerate((3e-4, 1e-3, 3e-3)):
        for j, dropout in enumerate((0.1, 0.3, 0.5)):
            for seed in (0, 1):
                best = 0.2 + 0.03 * (i == 1) + 0.01 * j - 0.004 * (j == 2) + 0.003 * seed * (1 + i)
                values = [best * share for share in (0.5, 0.8, 1.0, 0.95)]
                settings = {"model.dropout": dropout, "optimizer.lr": lr, "seed": seed}
                name = ",".join(f"{key}={value}" for key, value in settings.items())
                if (i, j, seed) == (2, 0, 1):
                    write_run(
                        folder / name, settings, values[:2], status="failed",
                        error=f"RuntimeError: {HOSTILE}\nsecond line",
                    )  # fmt: skip
                elif (i, j, seed) == (2, 2, 1):
                    write_run(folder / name, settings, values[:1], status=None)
                else:
                    write_run(folder / name, settings, values)
    (folder / "sweep.json").write_text("{}")
    return folder


def test_groups_are_ranked_by_the_mean_over_seeds(sweep: Path):
    found = compare([sweep])
    expected: dict[tuple[float, float], list[float]] = {}
    for folder in sweep.iterdir():
        if (folder / "result.json").exists() and "failed" not in (
            folder / "result.json"
        ).read_text():
            parts = dict(part.split("=") for part in folder.name.split(","))
            key = (float(parts["model.dropout"]), float(parts["optimizer.lr"]))
            expected.setdefault(key, []).append(best_of(folder))
    assert found.keys == ("model.dropout", "optimizer.lr") and found.metric == "val/map_macro"
    assert {group.settings: sorted(group.values) for group in found.groups} == {
        key: sorted(values) for key, values in expected.items()
    }
    for group in found.groups:
        values = expected[group.settings]  # type: ignore[index]
        assert group.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
        if len(values) == 2:  # of two values the sample deviation is their distance over sqrt 2
            assert group.sd == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2), rel=1e-9)
        else:
            assert group.sd is None
    means = [group.mean for group in found.groups]
    assert means == sorted(means, reverse=True)  # type: ignore[type-var]
    assert [group.rank for group in found.groups] == list(range(1, 10))
    assert {run.status for run in found.runs} == {"completed", "failed", "interrupted"}


def test_the_terminal_shows_it_within_its_width(sweep: Path):
    text = printed(compare([sweep]), 80)
    lines = text.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("Note:"))]
    assert max(len(line) for line in table if not line.startswith("Best:")) <= 80
    row = next(line for line in lines if re.match(r"│ +1 │", line))
    assert [cell.strip() for cell in row.strip("│").split("│")][:3] == ["1", "0.5", "0.001"]
    assert "1 of 2" in text and "\x1b" not in text
    words = " ".join(text.split())
    assert "failed: dropout=0.1 lr=0.003 seed=1, epochs: 2 of 4, best so far: 0.1672" in words
    assert "[red]" in text and "\\x1b[31m" in text


def test_csv_and_markdown(sweep: Path, tmp_path: Path):
    before = snapshot(sweep)
    found = compare([sweep], columns=["test/map_macro"])
    write_leaderboard(tmp_path / "new" / "out", found)
    assert snapshot(sweep) == before
    rows = read_csv(tmp_path / "new" / "out")
    assert len(rows) == 18
    for row in rows:
        assert float(row["val/map_macro"]) == best_of(sweep / row["run"])
        group = [
            float(r["val/map_macro"])
            for r in rows
            if r["rank"] == row["rank"] and r["status"] == "completed"
        ]
        assert float(row["mean"]) == statistics.fmean(group)
    assert list(rows[0])[:7] == ["rank", "run", "status", "val/map_macro", "mean", "sd", "n"]
    assert float(rows[0]["test/map_macro"]) == pytest.approx(best_of(sweep / rows[0]["run"]) - 0.01)
    failed = next(row for row in rows if row["status"] == "failed")
    assert (
        failed["epochs"] == "2"
        and "second line" in failed["error"]
        and "\x1b" not in failed["error"]
    )
    text = (tmp_path / "new" / "out" / "leaderboard.md").read_text("utf-8")
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 11 and len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script" not in text


def test_test_scores_never_rank_and_appear_on_request_only(sweep: Path, tmp_path: Path):
    write_leaderboard(tmp_path, compare([sweep]))
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.html"):
        assert "test/" not in (tmp_path / name).read_text("utf-8"), name
    asked = compare([sweep], metric="test/map_macro")
    assert asked.metric == "test/map_macro" and any("no longer tested" in n for n in asked.notes)


@pytest.mark.parametrize("same", [("0.001", 1e-3), ("1e-3", 0.001), (1, 1.0), ("1e3", 1000)])
def test_numbers_are_compared_as_numbers(tmp_path: Path, same: tuple[Any, Any]):
    for number, value in enumerate(same):
        write_run(tmp_path / str(number), {"optimizer.lr": value, "seed": number})
    found = compare([tmp_path])
    assert found.keys == () and len(found.groups) == 1 and len(found.groups[0].values) == 2


def test_what_is_true_is_not_one(tmp_path: Path):
    write_run(tmp_path / "a", {"model.skip": True})
    write_run(tmp_path / "b", {"model.skip": 1})
    assert compare([tmp_path]).keys == ("model.skip",)


def test_places_are_no_settings(tmp_path: Path):
    for name in ("a", "b"):
        places = {"ckpt_path": name, "data.cache_dir": name, "logger.save_dir": name, "seed": name}
        write_run(tmp_path / name, places)
    found = compare([tmp_path])
    assert found.keys == () and len(found.groups) == 1


def test_a_config_group_stands_for_the_keys_it_sets(tmp_path: Path):
    for model, hidden in (("fusion", 256), ("title", 64)):
        for lr in (0.1, 0.2):
            settings = {"model.title.hidden": hidden, "optimizer.lr": lr}
            folder = write_run(tmp_path / f"{model}{lr}", settings, choices={"model": model})
            overrides = yaml.safe_dump([f"model={model}", f"optimizer.lr={lr}"])
            (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    assert compare([tmp_path]).keys == ("model", "optimizer.lr")


@pytest.mark.parametrize("wide", [False, True], ids=["found", "none"])
def test_keys_that_do_not_fit_are_left_to_the_files(tmp_path: Path, wide: bool):
    keys = [f"model.a_setting_with_a_name_{k}" for k in range(9)]
    for number in range(3):
        write_run(tmp_path / str(number), dict.fromkeys(keys, number))
    text = printed(compare([tmp_path]), 1000 if wide else 90)
    assert ("No room here" in text) is not wide


def test_where_nothing_has_finished_nothing_has_a_rank(tmp_path: Path):
    write_run(tmp_path / "a", {"optimizer.lr": 0.1}, [0.5], status="failed", error="Error: x")
    write_run(tmp_path / "b", {"optimizer.lr": 0.2}, [], status="failed", error="Error: y")
    found = compare([tmp_path])
    assert [group.rank for group in found.groups] == [None, None]
    assert "Error: y" in printed(found) and "Best:" not in printed(found)
    write_leaderboard(tmp_path, found)
    assert [row["rank"] for row in read_csv(tmp_path)] == ["", ""]


def test_runs_without_a_config_are_told_apart_by_their_overrides(tmp_path: Path):
    for number, lr in enumerate(("1e-3", "0.01")):
        folder = write_run(tmp_path / str(number), overrides=[f"optimizer.lr={lr}", "seed=3"])
        shutil.rmtree(folder / ".hydra")
    whole = write_run(tmp_path / "whole", {"optimizer.lr": 0.001, "seed": 4})
    (whole / ".hydra" / "hydra.yaml").unlink()
    found = compare([tmp_path])
    assert found.keys == ("optimizer.lr",)
    assert {group.settings[0]: len(group.runs) for group in found.groups} == {0.001: 2, 0.01: 1}


def test_a_repeated_seed_is_said(tmp_path: Path):
    for name in ("a", "b"):
        write_run(tmp_path / name, {"seed": 1})
    (note,) = compare([tmp_path]).notes
    assert note.startswith("1 run repeats")


def test_ties_share_a_rank(tmp_path: Path):
    for lr, value in ((0.1, 0.5), (0.2, 0.7), (0.3, 0.7), (0.4, 0.6)):
        write_run(tmp_path / str(lr), {"optimizer.lr": lr}, [value])
    ranks = {group.settings[0]: group.rank for group in compare([tmp_path]).groups}
    assert ranks == {0.2: 1, 0.3: 1, 0.4: 3, 0.1: 4}


def test_a_loss_is_better_when_it_is_smaller(tmp_path: Path):
    for lr, value in ((0.1, 0.5), (0.2, 0.7)):
        own = {"optimizer.lr": lr, "monitor": "val/loss", "monitor_mode": "min"}
        write_run(tmp_path / str(lr), own, [value, 0.9], monitor_value=value)
    found = compare([tmp_path])
    assert (found.metric, found.mode) == ("val/loss", "min")
    assert [group.settings for group in found.groups] == [(0.1,), (0.2,)]
    # the best epoch is the one with the smallest loss, 1 - value
    assert [run.best_epoch for run in found.runs] == [2, 2]


def test_different_monitors_are_said_and_a_metric_can_be_chosen(tmp_path: Path):
    write_run(tmp_path / "a", {"optimizer.lr": 0.1}, [0.5])
    write_run(tmp_path / "b", {"optimizer.lr": 0.2}, [0.6])
    loss = {"optimizer.lr": 0.3, "monitor": "val/loss", "monitor_mode": "min"}
    write_run(tmp_path / "c", loss, [0.7], monitor_value=0.3)
    found = compare([tmp_path])
    assert found.metric == "val/map_macro" and found.keys == ("optimizer.lr",)
    assert [group.mean for group in found.groups] == [0.7, 0.6, 0.5]
    assert any("val/loss in 1" in note for note in found.notes)
    chosen = compare([tmp_path], metric="val/f1_micro")
    assert [group.mean for group in chosen.groups] == [0.35, 0.3, 0.25] and chosen.notes == ()
    with pytest.raises(UserError, match="no run has val/f2; there are: val/f1_micro, val/loss"):
        compare([tmp_path], metric="val/f2")


def test_a_running_run_is_read_while_it_grows(tmp_path: Path):
    folder = write_run(tmp_path / "a", {}, [0.2, 0.1], status="interrupted")
    with (folder / "metrics.csv").open("a") as file:
        file.write("2,24,0.5,0.9")  # cut off within the row
    lock = folder / LOCK
    with FileLock(lock):
        (run,) = compare([folder]).runs
    assert (run.status, run.epochs, run.best_epoch) == ("running", 2, 1)
    assert run.value("val/map_macro") == 0.2 and run.notes == ()
    assert compare([folder]).runs[0].status == "interrupted"


DAMAGE: dict[str, tuple[str, bytes]] = {
    "no JSON": ("result.json", b'{"status": "comp'),
    "other JSON": ("result.json", b"[1, 2]"),
    "no YAML": (".hydra/config.yaml", b"a: [1, 2"),
    "no mapping": (".hydra/config.yaml", b"- 1"),
    "aliases": (".hydra/config.yaml", b"a: &a [1]\nb: [*a, *a]"),
    "no text": (".hydra/overrides.yaml", b"\xff\xfe\x00"),
    "no choices": (".hydra/hydra.yaml", b"hydra: {}"),
    "deep": (".hydra/config.yaml", b"{a: " * 3000 + b"1" + b"}" * 3000),
    "deep JSON": ("result.json", b"[" * 100_000),
    "no row": ("metrics.csv", b"epoch,val/map_macro\nx,0.5\n0,0.3\n"),
    "no table": ("metrics.csv", b"\xff\xfe\x00\n"),
}


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_the_other_runs_are_shown(
    tmp_path: Path, name: str, content: bytes
):
    whole = write_run(tmp_path / "whole", {"optimizer.lr": 0.1})
    damaged = write_run(tmp_path / "damaged", {"optimizer.lr": 0.2})
    (damaged / name).write_bytes(content)
    found = compare([tmp_path])
    (note,) = [note for note in found.notes if str(damaged / name) in note]
    assert {run.folder for run in found.runs} == {whole, damaged}
    assert note in printed(found) or note.replace(" ", "") in printed(found).replace(
        "\n", ""
    ).replace(" ", "")
    assert best_of(whole) in [group.mean for group in found.groups]
    write_leaderboard(tmp_path, found)


def test_only_run_folders_are_taken(tmp_path: Path):
    run = write_run(tmp_path / "deep" / "er" / "run")
    for inner in ("wandb/x", "checkpoints", "csv/version_0"):
        (run / inner).mkdir(parents=True)
        shutil.copy(run / "metrics.csv", run / inner)
    evaluation = tmp_path / "evaluation" / ".hydra"
    evaluation.mkdir(parents=True)
    (evaluation / "config.yaml").write_text("ckpt_path: a.ckpt\nsplit: test\n")
    (evaluation / "overrides.yaml").write_text("- ckpt_path=a.ckpt\n")
    found = compare([tmp_path, run, tmp_path / "deep"])
    assert [each.folder for each in found.runs] == [run]
    assert read_run(evaluation.parent, "evaluation") is None


@pytest.mark.parametrize("present", ["empty", "missing", "evaluation"])
def test_no_run_is_an_error_that_says_what_one_is(
    tmp_path: Path, present: str, capsys: pytest.CaptureFixture[str]
):
    if present == "evaluation":
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "config.yaml").write_text("split: test\n")
        (tmp_path / ".hydra" / "overrides.yaml").write_text("[]\n")
    folder = tmp_path / "none" if present == "missing" else tmp_path
    assert command.main([str(folder)]) == 1
    assert ("is no folder" if present == "missing" else "no run in") in capsys.readouterr().err


def test_the_command_writes_into_a_sweep_and_never_into_a_run(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tree = tmp_path / "sweep"
    shutil.copytree(sweep, tree)
    run = next(folder for folder in tree.iterdir() if folder.is_dir())
    assert command.main([str(run)]) == 0 and not list(tmp_path.rglob("leaderboard.*"))
    assert "Nothing written" in capsys.readouterr().out
    assert command.main([str(tree)]) == 0
    assert {path.name for path in tree.glob("leaderboard.*")} == {
        "leaderboard.csv", "leaderboard.md", "leaderboard.html",
    }  # fmt: skip
    assert not list(run.glob("leaderboard.*"))
    assert command.main([str(run), str(tree), "--out", str(tmp_path / "out")]) == 0
    assert read_csv(tmp_path / "out") == read_csv(tree)


def test_it_needs_neither_torch_nor_lightning(sweep: Path, tmp_path: Path, repository: Path):
    code = (
        "import sys; from genre_lightning.comparison.leaderboard import main;"
        f"assert main([{str(sweep)!r}, '--out', {str(tmp_path)!r}]) == 0;"
        "heavy = {'torch', 'pytorch_lightning', 'numpy', 'hydra', 'omegaconf', 'sklearn', 'PIL'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository, capture_output=True)


def test_real_runs(
    train_here: Callable[[Path, list[str]], dict[str, Any]],
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
):
    expected: dict[float, list[float]] = {}
    for lr in ("1e-3", "0.01"):
        for seed in (0, 1):
            own = [f"optimizer.lr={lr}", f"seed={seed}", "trainer.max_epochs=1"]
            result = train_here(tmp_path / f"{lr},{seed}", tiny_overrides(*own, model="title"))
            expected.setdefault(float(lr), []).append(result["monitor_value"])
    found = compare([tmp_path])
    assert found.keys == ("optimizer.lr",)
    means = {group.settings[0]: group.mean for group in found.groups}
    assert means == {lr: pytest.approx(statistics.fmean(v)) for lr, v in expected.items()}
    assert means[found.groups[0].settings[0]] == max(means.values())  # type: ignore[type-var]
    write_leaderboard(tmp_path, found)
    assert [row["epochs"] for row in read_csv(tmp_path)] == ["1"] * 4


@pytest.fixture(scope="module")
def pages(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Leaderboards: "grid" of the sweep, "many" of 200 runs over three keys, "one" of one run."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = tmp_path_factory.mktemp("hostile")
    shutil.copytree(sweep, hostile / "sweep")
    write_run(
        hostile / "sweep" / "<i>1&",
        {"model.dropout": 0.1, "optimizer.lr": HOSTILE.replace("/", "")},
    )
    many = tmp_path_factory.mktemp("many")
    for number in range(200):
        settings = {
            "optimizer.lr": 10 ** (-4 + number % 37 / 18),
            "model.dropout": number % 11 / 20,
            "model.kind": "ab"[number % 2],
        }
        values = [0.2 + (number * 7919 % 200) / 1000 * epoch / 30 for epoch in range(30)]
        write_run(
            many / f"job{number}", settings, values, status="failed" if number == 7 else "completed"
        )
    one = tmp_path_factory.mktemp("one")
    write_run(one / "run", {}, [0.5])
    for name, source in (("grid", hostile), ("many", many), ("one", one)):
        write_leaderboard(folder / name, compare([source]))
    return {name: folder / name / "leaderboard.html" for name in ("grid", "many", "one")}


@pytest.fixture
def open_page(browser: Browser, pages: dict[str, Path]) -> Iterator[Callable[..., Page]]:
    """Opens a leaderboard, offline; when the test is over nothing may have gone wrong in it."""
    troubles: list[str] = []
    contexts = []

    def open_it(
        name: str = "grid", width: int = 1200, scheme: str = "light", script: bool = True
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 800},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
            offline=True,
            java_script_enabled=script,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    asked: list[str] = []
    yield open_it
    for context in contexts:
        context.close()
    assert troubles == []
    known = {path.as_uri() for path in pages.values()}
    assert [url for url in asked if not url.startswith("data:") and url not in known] == []


def test_browser_shows_it_and_runs_nothing_of_a_run(open_page: Callable[..., Page]):
    page = open_page()
    assert page.evaluate("window.hit") is None
    for name in ("ranking", "curves", "settings", "spread", "unfinished", "runs", "method"):
        assert page.locator(f"h2#{name}").is_visible(), name
    assert page.locator("#ranking-table tbody tr").count() == 10
    assert page.locator(".heat td.cell").count() == 10
    assert page.locator("svg.curves").count() == 3
    assert page.locator("svg.curves.large .run").count() == 19
    assert page.locator(".heat td.best").inner_text().startswith("0.3")
    assert "{{ 7 * 7 }}" in page.locator(".stopped").inner_text()


def test_browser_links_rows_curves_and_cells(open_page: Callable[..., Page]):
    page = open_page()
    lit = "[...new Set([...document.querySelectorAll('.on')].map((each) => each.dataset.g))].join()"
    page.locator("#ranking-table tbody tr").nth(2).hover()
    assert page.evaluate(lit) == "2" and page.locator("svg.curves .run.on").count() == 6
    assert page.locator(".readout").inner_text().startswith("dropout")
    page.locator(".heat td.cell[data-g='4']").click()
    page.mouse.move(0, 0)
    assert page.evaluate(lit) == "4"
    page.locator("#ranking-table tbody tr[data-g='1'] button").focus()
    page.keyboard.press("Enter")
    assert page.locator("#ranking-table button[aria-pressed=true]").count() == 2
    page.keyboard.press("Escape")
    assert page.evaluate(lit) == "" and page.locator(".readout").is_hidden()
    spot = page.evaluate(
        """() => {
          const path = document.querySelector("svg.large .run[data-g='0'] .curve");
          path.scrollIntoView({block: "center"});
          const end = path.getPointAtLength(path.getTotalLength());
          const {x, y} = end.matrixTransform(path.getScreenCTM());
          return [x, y];
        }"""
    )
    page.mouse.move(spot[0] - 3, spot[1])
    assert page.evaluate(lit) == "0"


def test_browser_sorts(open_page: Callable[..., Page]):
    page = open_page("many")
    page.locator("#ranking-table th", has_text="lr").get_by_role("button").click()
    column = page.locator("#ranking-table tbody tr > :nth-child(2)")
    heads = page.locator("#ranking-table thead th").all_inner_texts()
    place = next(i for i, head in enumerate(heads) if head.startswith("lr")) + 1
    column = page.locator(f"#ranking-table tbody tr > :nth-child({place})")
    values = [float(text) for text in column.all_inner_texts()]
    assert values == sorted(values, reverse=True) and len(values) > 150


def test_two_hundred_runs_stay_small(open_page: Callable[..., Page], pages: dict[str, Path]):
    assert pages["many"].stat().st_size < 1_200_000
    page = open_page("many")
    assert (
        page.locator("svg.parallel .run").count() == page.locator("#ranking-table tbody tr").count()
    )
    assert page.locator("svg.curves.large .run").count() == 200


def test_one_run_has_a_page(open_page: Callable[..., Page]):
    page = open_page("one")
    assert page.locator("#ranking-table tbody tr").count() == 1
    assert page.locator("h2#settings").count() == 0 and page.locator("svg.curves").count() == 3


@pytest.mark.parametrize("width", [320, 375, 768])
@pytest.mark.parametrize("name", ["grid", "many"])
def test_browser_never_scrolls_the_page_sideways(
    open_page: Callable[..., Page], name: str, width: int
):
    page = open_page(name, width)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["grid", "many"])
def test_browser_shows_legible_text_by_day_and_night(
    open_page: Callable[..., Page], name: str, scheme: str
):
    page = open_page(name, scheme=scheme)
    assert page.evaluate(CONTRAST) == []


def test_browser_without_scripts_shows_the_same(open_page: Callable[..., Page]):
    page = open_page(script=False)
    assert page.locator("#ranking-table tbody tr").count() == 10
    assert page.locator("button:visible").count() == 0
