"""Runs the notebook and stores it with its outputs: ``python -m docs.notebook``.

It runs offline, in a folder of its own, in a new kernel of this Python.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"
#: Seconds for one cell, on a busy machine.
CELL_TIMEOUT = 600
#: More makes a repository heavy, and GitHub slow to show it.
MAX_BYTES = 400_000
#: A path of the machine that it was run on, or a warning, as text of an output.
NOISE = re.compile(r"/(?:home|root|tmp|usr|var|work|Users|private)/[\w.-]+|Warning\b|\bWARN")


def execute() -> Any:
    """The notebook, run from top to bottom.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails; the message has its traceback.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Times and the name of the kernel would change with every run.
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(cwd=str(NOTEBOOK.parent))
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def noise(notebook: Any) -> list[str]:
    """What the outputs should not hold: standard error, warnings and paths of this machine."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                found.append(f"cell {number}: {output['text'][:200]}")
            texts = [output.get("text", ""), *output.get("data", {}).values()]
            for text in texts:
                # Pictures within, which could hold anything.
                plain = re.sub(r"base64,[\w+/=]+", "", text)
                if not re.fullmatch(r"[\w+/=\s]+", plain):
                    found += [f"cell {number}: {match}" for match in NOISE.findall(plain)]
    return found


def main() -> None:
    """Run it, and store it unless its outputs tell of this machine."""
    notebook = execute()
    if found := noise(notebook):
        raise SystemExit("not stored: " + "; ".join(found))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
