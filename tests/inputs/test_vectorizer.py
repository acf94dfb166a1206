from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from genre_lightning.inputs.titles import normalise_title
from genre_lightning.inputs.vectorizer import DECADES, SparseRows, TermVectorizer

TITLES = [
    "Godfather, The (1972)",
    "2001: A Space Odyssey (1968)",
    "1984 (1984)",
    "Blade Runner (1982)",
    "Seven Samurai (The Magnificent Seven) (Shichinin no samurai) (1954)",
    "M (1931)",
    "Good, the Bad and the Good, The (1994)",
    "Misérables, Les (1995)",
    "Face/Off (1997)",
    "New York, New York, New York (1977)",
    "千と千尋の神隠し (2001)",
    "Schindler's List (1993)",
    "E.T. the Extra-Terrestrial (1982)",
    "Untitled",
    "",
]
UNSEEN = [
    "Godfather Part II, The (1974)",
    "Zyzzyx (1899)",
    "Ω (2040)",
    "the the the the",
    "   ",
    "A",
    *TITLES,
]
ANALYZERS = {
    "word": ("word", (1, 1)),
    "word 1-2": ("word", (1, 2)),
    "word 2-3": ("word", (2, 3)),
    "char 1-3": ("char", (1, 3)),
    "char 3-6": ("char", (3, 6)),
    "char_wb 2-5": ("char_wb", (2, 5)),
    "char_wb 1-1": ("char_wb", (1, 1)),
    "char_wb 4-9": ("char_wb", (4, 9)),
}


def dense(rows: SparseRows, width: int) -> np.ndarray:
    """Densify to (N, V) by the format's definition: columns are sorted and unique."""
    result = np.zeros((len(rows), width), dtype=np.float32)
    for row in range(len(rows)):
        part = slice(rows.indptr[row], rows.indptr[row + 1])
        columns = rows.indices[part].tolist()
        assert columns == sorted(set(columns))
        result[row, columns] = rows.weights[part]
    return result


@pytest.mark.parametrize("sublinear", [True, False], ids=["sublinear", "linear"])
@pytest.mark.parametrize("width", [40, 5000], ids=["all columns used", "fewer terms than columns"])
@pytest.mark.parametrize("name", ANALYZERS)
def test_equals_scikit_learn(name, width, sublinear):
    analyzer, ngrams = ANALYZERS[name]
    vectorizer = TermVectorizer(width, analyzer, ngrams, sublinear, decade=False).fit(TITLES)
    oracle = TfidfVectorizer(
        analyzer=analyzer,
        ngram_range=ngrams,
        max_features=width,
        sublinear_tf=sublinear,
        lowercase=False,
        token_pattern=None,
        tokenizer=str.split if analyzer == "word" else None,
    )
    oracle.fit([normalise_title(title)[0] for title in TITLES])
    for titles in (TITLES, UNSEEN):
        rows = vectorizer.transform(titles)
        expected = oracle.transform([normalise_title(title)[0] for title in titles]).toarray()
        result = dense(rows, width)
        num_terms = expected.shape[1]
        np.testing.assert_allclose(result[:, :num_terms], expected, rtol=1e-6, atol=1e-9)
        assert not result[:, num_terms:].any()
        assert rows.indptr.dtype == np.int64 and rows.indices.dtype == np.int32
        assert rows.weights.dtype == np.float32 and (rows.weights != 0).all()


def test_equals_scikit_learn_on_real_titles(ml1m_root):
    file = next(Path(ml1m_root).rglob("movies_test.dat"), None)
    if file is None:
        pytest.skip("the real movies are a zip here")
    titles = [line.split("::")[1] for line in file.read_text("utf-8").splitlines()]
    vectorizer = TermVectorizer(2000, decade=False).fit(titles[:400])
    oracle = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), max_features=2000, sublinear_tf=True
    )
    texts = [normalise_title(title)[0] for title in titles]
    expected = oracle.fit(texts[:400]).transform(texts).toarray()
    np.testing.assert_allclose(
        dense(vectorizer.transform(titles), 2000), expected, rtol=1e-6, atol=1e-9
    )


def test_chunks_do_not_change_the_result():
    vectorizer = TermVectorizer(100).fit(TITLES)
    many = vectorizer.transform(UNSEEN * 600)
    expected = dense(vectorizer.transform(UNSEEN), 100)
    assert len(many) == len(UNSEEN) * 600
    last = many.take(np.arange(len(many) - len(UNSEEN), len(many)))
    np.testing.assert_array_equal(dense(last, 100), expected)


@pytest.mark.parametrize(
    ("year", "expected"),
    [
        (1990, {1990: 1.0}),
        (1994, {1990: 0.6, 2000: 0.4}),
        (1999, {1990: 0.1, 2000: 0.9}),
        (1915, {1910: 0.5, 1920: 0.5}),
        # Outside the years seen in fit, and outside all centres.
        (1900, {1910: 0.8, 1920: 0.2}),
        (2011, {2000: 0.5, 2010: 0.5}),
        (2095, {2000: 0.5, 2010: 0.5}),
        (None, {}),
    ],
    ids=str,
)
def test_decades(year, expected):
    seen = ["first (1912)", "last (2005)", "other"]
    vectorizer = TermVectorizer(50, decade_weight=2.0).fit(seen)
    title = "first" if year is None else f"first ({year})"
    row = dense(vectorizer.transform([title]), 50)[0]
    weights = dict(zip(DECADES, row[-len(DECADES) :].tolist(), strict=True))
    for centre in DECADES:
        assert weights[centre] == pytest.approx(2.0 * expected.get(centre, 0.0)), centre
    without = TermVectorizer(50 - len(DECADES), decade=False).fit(seen)
    np.testing.assert_array_equal(
        row[: -len(DECADES)], dense(without.transform([title]), 50 - len(DECADES))[0]
    )


@pytest.mark.parametrize(
    ("years", "title", "centre"),
    [
        (["a (1880)", "b (1890)"], "a (1885)", 1910),
        (["a (2080)", "b (2090)"], "a (2085)", 2020),
    ],
)
def test_years_outside_all_decades_count_as_the_nearest_decade(years, title, centre):
    row = dense(TermVectorizer(50).fit(years).transform([title]), 50)[0]
    assert row[50 - len(DECADES) + DECADES.index(centre)] == 0.5
    assert np.count_nonzero(row[-len(DECADES) :]) == 1


def test_decades_are_zero_if_fitted_without_years():
    vectorizer = TermVectorizer(50).fit(["no year", "none"])
    assert not dense(vectorizer.transform(["no year (1990)"]), 50)[:, -len(DECADES) :].any()


def test_transform_learns_nothing():
    vectorizer = TermVectorizer(200).fit(TITLES)
    before = copy.deepcopy(vectorizer.state_dict())
    alone = dense(vectorizer.transform(TITLES[:1]), 200)
    together = dense(vectorizer.transform([*TITLES[:1], "zebra zebra (2019)", "xxx"]), 200)
    np.testing.assert_array_equal(alone[0], together[0])
    assert vectorizer.state_dict() == before


def test_empty_title_and_empty_list():
    vectorizer = TermVectorizer(100).fit(TITLES)
    assert vectorizer.transform(["", "?"]).indptr.tolist() == [0, 0, 0]
    empty = vectorizer.transform([])
    assert len(empty) == 0 and empty.indptr.tolist() == [0]


@pytest.mark.parametrize("titles", [[], ["", "?? (1999)"]], ids=["no titles", "no words"])
def test_fit_without_any_term_is_refused(titles):
    with pytest.raises(ValueError, match="has a term"):
        TermVectorizer(100).fit(titles)


def test_transform_before_fit_is_refused():
    assert not TermVectorizer().fitted
    with pytest.raises(RuntimeError, match="not fitted"):
        TermVectorizer().transform(["a"])


@pytest.mark.parametrize(
    "rows", [[], [0], [3, 1, 3], [14, 4, 0], np.arange(15)[::-1]], ids=["none", *"abcd"]
)
def test_take(rows):
    titles = TermVectorizer(300).fit(TITLES).transform(TITLES)
    taken = titles.take(rows)
    expected = dense(titles, 300)[np.asarray(rows, dtype=np.int64)]
    np.testing.assert_array_equal(dense(taken, 300), expected)


@pytest.mark.parametrize("row", [-1, 15])
def test_take_refuses_rows_out_of_range(row):
    with pytest.raises(IndexError):
        TermVectorizer(300).fit(TITLES).transform(TITLES).take([0, row])


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "not fitted"])
def test_state_survives_json(fitted):
    vectorizer = TermVectorizer(300, "char", (1, 4), False, True, 0.25)
    if fitted:
        vectorizer.fit(TITLES)
    state = json.loads(json.dumps(vectorizer.state_dict()))
    rebuilt = TermVectorizer.from_state_dict(state)
    assert rebuilt.fitted == fitted
    assert rebuilt.settings() == vectorizer.settings()
    assert rebuilt.state_dict() == vectorizer.state_dict()
    if fitted:
        np.testing.assert_array_equal(
            dense(rebuilt.transform(UNSEEN), 300), dense(vectorizer.transform(UNSEEN), 300)
        )


def test_the_state_is_a_copy():
    vectorizer = TermVectorizer(300).fit(TITLES)
    vectorizer.state_dict()["terms"].clear()
    assert vectorizer.transform(TITLES).indptr[-1] > 0


class StrSubclass(str):
    pass


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocabulary_size", 10**9),
        ("vocabulary_size", 5),
        ("vocabulary_size", 40),  # smaller than the number of terms
        ("vocabulary_size", -1),
        ("vocabulary_size", True),
        ("vocabulary_size", 300.0),
        ("vocabulary_size", "300"),
        ("analyzer", "os.system"),
        ("analyzer", ["char"]),
        ("analyzer", StrSubclass("char")),
        ("ngram_range", [1, 10**9]),
        ("ngram_range", [3, 2]),
        ("ngram_range", [0, 2]),
        ("ngram_range", [2]),
        ("ngram_range", [1.0, 2]),
        ("ngram_range", "25"),
        ("sublinear_tf", 1),
        ("decade", "yes"),
        ("decade_weight", 1),
        ("decade_weight", NAN),
        ("decade_weight", INFINITY),
        ("decade_weight", -1.0),
        ("terms", "abc"),
        ("terms", []),
        ("terms", ["a"]),
        ("terms", "numbers"),
        ("terms", "twice"),
        ("terms", "empty"),
        ("terms", "str subclass"),
        ("idf", []),
        ("idf", "nan"),
        ("idf", "infinity"),
        ("idf", "negative"),
        ("idf", "huge"),
        ("idf", "bool"),
        ("idf", "nested"),
        ("years", [1990]),
        ("years", [2000, 1990]),
        ("years", [1990, 10**30]),
        ("years", [1990, 2000, 2010]),
        ("years", [1990.0, 2000.0]),
        ("years", 1990),
        ("version", 2),
        ("version", "1"),
        ("_target_", "os.system"),
    ],
    ids=str,
)
def test_invalid_state_is_refused_by_key(key, value):
    state = TermVectorizer(300).fit(TITLES).state_dict()
    replacements = {
        ("terms", "numbers"): [*range(len(state["terms"]))],
        ("terms", "twice"): [state["terms"][1], *state["terms"][1:]],
        ("terms", "empty"): ["", *state["terms"][1:]],
        ("terms", "str subclass"): [StrSubclass("zz"), *state["terms"][1:]],
        ("idf", "nan"): [NAN, *state["idf"][1:]],
        ("idf", "infinity"): [INFINITY, *state["idf"][1:]],
        ("idf", "negative"): [-1.0, *state["idf"][1:]],
        ("idf", "huge"): [1e300, *state["idf"][1:]],
        ("idf", "bool"): [True, *state["idf"][1:]],
        ("idf", "nested"): [[1.0], *state["idf"][1:]],
    }
    state[key] = replacements.get((key, value), value) if isinstance(value, str) else value
    word = "terms" if key == "vocabulary_size" and value == 40 else key
    with pytest.raises(ValueError, match=word):
        TermVectorizer.from_state_dict(state)


@pytest.mark.parametrize("key", list(TermVectorizer().state_dict()))
def test_state_with_a_missing_key_is_refused_by_key(key):
    state = TermVectorizer(300).fit(TITLES).state_dict()
    del state[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        TermVectorizer.from_state_dict(state)


@pytest.mark.parametrize("state", [None, [], "x", 3], ids=repr)
def test_state_that_is_not_a_mapping_is_refused(state):
    with pytest.raises(ValueError, match="mapping"):
        TermVectorizer.from_state_dict(state)


@pytest.mark.parametrize(
    "settings",
    [
        {"vocabulary_size": 12},
        {"analyzer": "letters"},
        {"ngram_range": (0, 1)},
        {"ngram_range": (2, 1)},
        {"decade_weight": 0.0},
    ],
    ids=str,
)
def test_invalid_settings_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TermVectorizer(**settings)


def test_transform_imports_no_heavy_library():
    state = json.dumps(TermVectorizer(300).fit(TITLES).state_dict())
    program = """
import json, sys
from genre_lightning.inputs.vectorizer import TermVectorizer
vectorizer = TermVectorizer.from_state_dict(json.load(sys.stdin))
assert len(vectorizer.transform(["Heat (1995)"]).indices)
print(*({"torch", "sklearn", "scipy", "pandas"} & set(sys.modules)))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], input=state, capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == []
