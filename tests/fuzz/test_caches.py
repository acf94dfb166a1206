"""Caches whose bytes have changed: built anew, the same numbers as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genre_lightning.inputs.input import Features
from genre_lightning.inputs.terms import TermsFeatures
from tests.fuzz.mutations import mutated, seeds
from tests.kinds import opened, use_fake_encoders


def numbers(features: Features) -> list[np.ndarray]:
    if isinstance(features, TermsFeatures):
        rows = features.rows
        return [features.row_index, rows.indptr, rows.indices, rows.weights]
    assert features.dense is not None
    return [features.row_index, np.array(features.dense)]


@pytest.mark.parametrize("kind", ["terms", "pixels", "embedding"])
def test_damaged_caches_are_built_anew(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_encoders(monkeypatch)
    one = opened(kind, tmp_path)
    wanted, state = numbers(one.features), json.dumps(one.input.state())
    files = sorted(path for path in (tmp_path / "cache").glob("*/*") if path.is_file())
    assert len(files) >= 3
    for seed in seeds(16):
        path = files[seed % len(files)]
        path.write_bytes(mutated(path.read_bytes(), seed))
        again = opened(kind, tmp_path)
        for found, before in zip(numbers(again.features), wanted, strict=True):
            np.testing.assert_array_equal(found, before, err_msg=f"seed {seed}, {path.name}")
        assert json.dumps(again.input.state()) == state, f"seed {seed}, {path.name}"
