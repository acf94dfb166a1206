"""The notebook: it runs from top to bottom, and what is stored can be shown to anyone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from docs.notebook import MAX_BYTES, NOTEBOOK, execute, noise
from tests.docs.shell import Shell

#: In parts, for the test that no file names such a folder.
HOME = "/".join(("", "home", "me"))


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook: Any) -> list[tuple[int, str]]:
    """Cells and kinds of their outputs, as shown."""
    return [
        (number, kind)
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", ())
        for kind in sorted(output.get("data", {output.get("name", output.output_type): ""}))
    ]


def scores(notebook: Any) -> list[str]:
    """The mAP on the test split of each run that the notebook shows."""
    return [
        found[1]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if (found := re.search(r"test, \d+ movies</th><td>([\d.]+)<", _html(output)))
    ]


def _html(output: Any) -> str:
    return str(output.get("data", {}).get("text/html", ""))


def test_it_is_stored_with_its_outputs(stored: Any) -> None:
    nbformat.validate(stored)
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for _, kind in outputs(stored)}
    assert {"text/html", "image/png", "text/markdown", "stdout"} <= kinds
    assert len(scores(stored)) == 2


def test_nothing_of_a_machine_is_stored(stored: Any) -> None:
    assert noise(stored) == []
    text = NOTEBOOK.read_text("utf-8")
    assert "stderr" not in text and '"execution": {' not in text


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ({"output_type": "stream", "name": "stdout", "text": f"see {HOME}/x.py"}, HOME),
        ({"output_type": "stream", "name": "stderr", "text": "oh"}, "oh"),
        (
            {
                "output_type": "display_data",
                "data": {"text/html": "<p>UserWarning"},
                "metadata": {},
            },
            "Warning",
        ),
    ],
    ids=["path", "standard error", "warning"],
)
def test_noise_is_found(output: Any, what: str) -> None:
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [nbformat.from_dict(output)]
    (found,) = noise(nbformat.v4.new_notebook(cells=[cell]))
    assert what in found


@pytest.fixture
def forked_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels, and the commands of their cells, find PyTorch and Lightning imported."""
    shell = Shell()
    monkeypatch.setenv("JUPYTER_PATH", str(shell.kernels(tmp_path)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    shell.close()


def test_its_first_cells_run_in_a_kernel_that_python_starts(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``import genre_lightning`` has all to find, and "!" is to find our commands."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first = nbformat.v4.new_notebook(cells=stored.cells[:2])
    first.cells.append(nbformat.v4.new_code_cell("!command -v genre-train\nsys.executable"))
    NotebookClient(first, kernel_name="python3", coalesce_streams=True).execute()
    printed, value = first.cells[-1].outputs
    assert value["data"]["text/plain"] == repr(sys.executable)
    assert Path(printed["text"].strip()) == Path(sys.executable).with_name("genre-train")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_kernels")
def test_it_runs_from_top_to_bottom(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = execute()
    assert noise(made) == []
    assert outputs(made) == outputs(stored)
    for here, there in zip(scores(made), scores(stored), strict=True):
        assert float(here) == pytest.approx(float(there), abs=0.1)
