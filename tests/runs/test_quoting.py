"""Printed commands that can be pasted into a shell, and quoting of paths for Hydra."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from genre_lightning.runs.quoting import format_override, quote_paths, shell_command

#: Characters that are special to a shell, Hydra or OmegaConf, among plain letters.
TEXTS = st.text("ab01 =,'\"\\$!`(){}[]:/.~;|*?#é-", min_size=1, max_size=12)


def read(argument: str) -> object:
    """The value that this override gives in a run's configuration."""
    value = OverridesParser.create().parse_override(argument).value()
    return OmegaConf.create({"key": value}).key


@given(TEXTS)
def test_hydra_reads_back_the_text_of_an_override(text: str) -> None:
    assume(text != "???")  # "missing" to OmegaConf, quoted or not
    assert read(format_override("ckpt_path", text)) == text


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_shell_reads_back_the_words_of_a_command(words: list[str]) -> None:
    assert shlex.split(shell_command(*words)) == words


def test_a_real_shell_and_hydra_together() -> None:
    path = "runs/it's $HOME/optimizer.lr=0.009,x=[a,b] `id`!"
    command = shell_command("printf", "%s", format_override("ckpt_path", path))
    printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert read(printed.stdout) == path


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("runs/first/checkpoints/best.ckpt", "ckpt_path=runs/first/checkpoints/best.ckpt"),
        ("runs/s/a=0.3,b=1", "\"ckpt_path='runs/s/a=0.3,b=1'\""),
        ("my runs/first", "'ckpt_path=my runs/first'"),
    ],
)
def test_only_what_needs_quotes_is_quoted(path: str, printed: str) -> None:
    assert shell_command(format_override("ckpt_path", Path(path))) == printed


@pytest.mark.parametrize("value", ["a=0.3,b=1", "a,b", "a b", "[a,b]", "5", "true", "~é", "a'b"])
def test_existing_path_needs_no_quotes(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / value).mkdir()
    for key in ("ckpt_path", "data.root", "+data.columns", "model.branches.vectors.input.path"):
        (argument,) = quote_paths([f"{key}={value}"])
        assert argument.startswith(f"{key}=") and read(argument) == value


@pytest.mark.parametrize(
    "argument",
    [
        "ckpt_path=last",
        "ckpt_path=null",
        "ckpt_path='a=0.3,b=1'",
        r"ckpt_path=a\=0.3",
        "hydra.run.dir=runs/${now:%Y-%m-%d}",
        "data.path=a.csv,b.csv",  # a sweep
        "data.path=choice(a.csv,b.csv)",
        "model.dropout=0.1,0.2",
        "model/branch=[title_tfidf],[poster_resnet]",
        "~callbacks.early_stopping",
        "--help",
        "-m",
    ],
)
def test_other_arguments_are_unchanged(argument: str) -> None:
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("value", ["none/a=0.3,b=1", "none a", "none/a,b"])
def test_missing_path_needs_no_quotes(value: str) -> None:
    for key in ("ckpt_path", "hydra.run.dir"):
        (argument,) = quote_paths([f"{key}={value}"])
        assert read(argument) == value
