"""The input `year`: the release year as a smooth vector."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from genre_lightning.errors import InputError, UserError
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.table import build_input, input_from_text, state_to_text
from genre_lightning.inputs.year import YearInput

TITLES = ["Alien (1979)", "Heat", "Heat (1995)", None, "1984 (1956)", "Future (2020)", ""]
TRAIN = np.array([0, 1, 2, 3])


def open_vectors(branch_input: YearInput, folder: Path) -> np.ndarray:
    features = branch_input.open(TITLES, TRAIN, Store(folder))
    assert features.row_index.tolist() == [0, -1, 1, -1, 2, 3, -1]
    assert features.dense is not None
    return features.dense


def expected_vector(year: int, first: int, last: int, spacing: int, width: float) -> list[float]:
    """The expected vector of one year, by a plain loop."""
    year = min(max(year, first), last)
    centres, centre = [], first
    while centre < last + spacing:
        centres.append(centre)
        centre += spacing
    bumps = [math.exp(-((year - c) ** 2) / (2 * width * width)) for c in centres]
    length = math.sqrt(sum(b * b for b in bumps))
    return [b / length for b in bumps]


@pytest.mark.parametrize(("spacing", "width"), [(5, 5.0), (1, 2.0), (10, 3), (100, 20.0)])
def test_against_a_plain_loop(spacing: int, width: float, tmp_path: Path) -> None:
    branch_input = YearInput("title", spacing, width)
    vectors = open_vectors(branch_input, tmp_path)
    # Train has 1979 and 1995; years outside this range are clamped to it.
    expected = [expected_vector(y, 1979, 1995, spacing, width) for y in (1979, 1995, 1956, 2020)]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, rtol=1e-6, atol=1e-7)
    assert branch_input.network_arguments() == {"width": len(expected[0])}
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1], vectors[3])


def test_narrow_gaussians_do_not_underflow(tmp_path: Path) -> None:
    branch_input = YearInput("title", spacing=100, width=0.1)
    branch_input.open(["a (1900)", "b (2000)", "c (1949)"], np.arange(3), Store(tmp_path))
    for year in range(1890, 2010):
        (vector,) = branch_input.encode([year])["vectors"].numpy()
        assert np.isfinite(vector).all() and np.linalg.norm(vector) == pytest.approx(1)


def test_near_years_have_similar_vectors(tmp_path: Path) -> None:
    branch_input = YearInput("title")
    branch_input.open(["a (1900)", "b (2000)"], np.arange(2), Store(tmp_path))
    vector, near, far = branch_input.encode([1950, 1952, 1990])["vectors"].numpy()
    assert vector @ near > 0.9 > 0.1 > vector @ far


def test_title_without_a_year_is_read_as_none() -> None:
    branch_input = YearInput("title")
    assert branch_input.read("Heat") is None and branch_input.read("2001: A Space Odyssey") is None
    assert branch_input.read("Heat (1995)") == 1995


def test_train_without_any_year_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column title: no text of train has a year"):
        YearInput("title").open(["Heat", "Alien (1979)"], np.array([0]), Store(tmp_path))


def test_one_year_in_train(tmp_path: Path) -> None:
    branch_input = YearInput("title")
    features = branch_input.open(["Heat (1995)", "Alien (1979)"], np.array([0]), Store(tmp_path))
    np.testing.assert_array_equal(features.dense, [[1.0], [1.0]])


def test_state_rebuilds_the_input(tmp_path: Path) -> None:
    branch_input = YearInput("title", 3, 2.5)
    before = open_vectors(branch_input, tmp_path)
    rebuilt = input_from_text(state_to_text(branch_input))
    features = rebuilt.open(TITLES, np.array([5]), Store(tmp_path))  # a fitted input learns nothing
    np.testing.assert_array_equal(features.dense, before)


def test_input_that_is_not_fitted_is_refused() -> None:
    branch_input = YearInput("title")
    assert not branch_input.fitted
    with pytest.raises(RuntimeError, match="open"):
        branch_input.network_arguments()
    with pytest.raises(ValueError, match="years"):
        input_from_text(state_to_text(branch_input))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("spacing", 0), ("spacing", 5.0), ("spacing", True), ("width", 0), ("width", float("nan"))],
)
def test_invalid_arguments_are_refused_by_key(argument: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"model\.branches\.b\.input\.{argument}"):
        build_input("b", {"kind": "year", "column": "title", argument: value})
