"""Damaged caches are rebuilt with the same numbers as before."""

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
def test_damaged_caches_are_rebuilt(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_encoders(monkeypatch)
    original = opened(kind, tmp_path)
    expected, state = numbers(original.features), json.dumps(original.input.state())
    files = sorted(path for path in (tmp_path / "cache").glob("*/*") if path.is_file())
    assert len(files) >= 3
    for seed in seeds(16):
        path = files[seed % len(files)]
        path.write_bytes(mutated(path.read_bytes(), seed))
        rebuilt = opened(kind, tmp_path)
        for actual, array in zip(numbers(rebuilt.features), expected, strict=True):
            np.testing.assert_array_equal(actual, array, err_msg=f"seed {seed}, {path.name}")
        assert json.dumps(rebuilt.input.state()) == state, f"seed {seed}, {path.name}"
