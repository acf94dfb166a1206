"""A sweep shared by the tests of comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.comparison.written_runs import HOSTILE, write_run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x 3 settings, two seeds; a run failed with a hostile error, another was killed early."""
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
