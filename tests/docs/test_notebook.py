"""The notebook runs from top to bottom, and its stored outputs reveal nothing of a machine."""

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

#: Joined here, since a test checks that no file names a home folder.
HOME = "/".join(("", "home", "me"))


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook: Any) -> list[tuple[int, str]]:
    """The cell and the kind of each output, in order."""
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


def test_notebook_is_stored_with_its_outputs(stored: Any) -> None:
    nbformat.validate(stored)
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for _, kind in outputs(stored)}
    assert {"text/html", "image/png", "text/markdown", "stdout"} <= kinds
    assert len(scores(stored)) == 2


def test_stored_notebook_reveals_nothing_of_a_machine(stored: Any) -> None:
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
    """Forks kernels, and the commands of their cells, with PyTorch and Lightning imported."""
    shell = Shell()
    monkeypatch.setenv("JUPYTER_PATH", str(shell.write_kernel(tmp_path)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    shell.close()


def test_first_cells_run_in_a_kernel_that_is_not_forked(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a kernel has to import the whole package, and "!" has to find our commands."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    first = nbformat.v4.new_notebook(cells=stored.cells[:2])
    first.cells.append(nbformat.v4.new_code_cell("!command -v genre-train\nsys.executable"))
    NotebookClient(first, kernel_name="python3", coalesce_streams=True).execute()
    printed, value = first.cells[-1].outputs
    assert value["data"]["text/plain"] == repr(sys.executable)
    assert Path(printed["text"].strip()) == Path(sys.executable).with_name("genre-train")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_kernels")
def test_notebook_runs_from_top_to_bottom(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    executed = execute()
    assert noise(executed) == []
    assert outputs(executed) == outputs(stored)
    for actual, expected in zip(scores(executed), scores(stored), strict=True):
        assert float(actual) == pytest.approx(float(expected), abs=0.1)
