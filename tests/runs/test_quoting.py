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

#: What means something to a shell, to Hydra or to OmegaConf, between plain letters.
TEXTS = st.text("ab01 =,'\"\\$!`(){}[]:/.~;|*?#é-", min_size=1, max_size=12)


def read(argument: str) -> object:
    """Value in a run's configuration, given this override."""
    value = OverridesParser.create().parse_override(argument).value()
    return OmegaConf.create({"key": value}).key


@given(TEXTS)
def test_hydra_reads_an_override_as_the_text_it_was_made_of(text: str) -> None:
    assume(text != "???")  # of which OmegaConf makes "missing", quoted or not
    assert read(format_override("ckpt_path", text)) == text


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_shell_reads_a_command_as_the_words_it_was_made_of(words: list[str]) -> None:
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
def test_quotes_are_only_where_they_have_to_be(path: str, printed: str) -> None:
    assert shell_command(format_override("ckpt_path", Path(path))) == printed


@pytest.mark.parametrize("value", ["a=0.3,b=1", "a,b", "a b", "[a,b]", "5", "true", "~é", "a'b"])
def test_a_path_that_is_there_is_taken_without_quotes(
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
def test_all_else_stays_as_it_is(argument: str) -> None:
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("value", ["none/a=0.3,b=1", "none a", "none/a,b"])
def test_a_path_that_is_not_there_yet_is_taken_too(value: str) -> None:
    for key in ("ckpt_path", "hydra.run.dir"):
        (argument,) = quote_paths([f"{key}={value}"])
        assert read(argument) == value
