"""Lists of names as terms: the vectorizer's analyzer "item"."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from genre_lightning.inputs.vectorizer import TermVectorizer

CASTS = [
    "Tom Hanks|Tim Allen|Don Rickles",
    "Al Pacino|Robert De Niro|Val Kilmer",
    "Tom Hanks | Robin Wright|TOM HANKS",
    "Robert De Niro|",
    "|",
    "Penélope Cruz|Penelope Cruz|L. Q. Jones|Catherine O'Hara",
]


def make_vectorizer(**overrides: object) -> TermVectorizer:
    settings = {"analyzer": "item", "ngram_range": (1, 1), "decade": False, "vocabulary_size": 32}
    return TermVectorizer(**{**settings, **overrides})  # type: ignore[arg-type]


def matrix(fitted: TermVectorizer, texts: list[str]) -> csr_matrix:
    rows = fitted.transform(texts)
    shape = (len(texts), fitted.vocabulary_size)
    return csr_matrix((rows.weights, rows.indices, rows.indptr), shape=shape)


@pytest.mark.parametrize("sublinear_tf", [False, True])
def test_against_scikit_learn(sublinear_tf: bool) -> None:
    fitted = make_vectorizer(sublinear_tf=sublinear_tf).fit(CASTS)

    def names(text: str) -> list[str]:
        parts = (part.strip().lower() for part in text.split("|"))
        removed = str.maketrans("", "", ".'")
        return [part.translate(removed) for part in parts if part]

    oracle = TfidfVectorizer(analyzer=names, sublinear_tf=sublinear_tf, norm="l2")
    expected = oracle.fit_transform(CASTS)
    columns = oracle.get_feature_names_out()
    assert fitted.terms is not None and sorted(fitted.terms) == sorted(columns)
    order = [fitted.terms.index(name) for name in columns]
    np.testing.assert_allclose(
        matrix(fitted, CASTS).toarray()[:, order], expected.toarray(), rtol=1e-6, atol=1e-7
    )


def test_ngrams_of_items_are_left_out_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    default = TermVectorizer(analyzer="item", decade=False).fit(CASTS)
    assert default.terms == make_vectorizer().fit(CASTS).terms and not recwarn.list


def test_names_are_whole_and_case_and_spaces_do_not_matter() -> None:
    fitted = make_vectorizer().fit(CASTS)
    assert fitted.terms is not None and "tom hanks" in fitted.terms and "tom" not in fitted.terms
    rows = matrix(
        fitted, ["tom  hanks", "Tom Hanks|Nobody Known", "Tom", "Hanks|Tom", ""]
    ).toarray()
    np.testing.assert_array_equal(rows[0], rows[1])
    assert rows[0].any() and not rows[2:].any()


def test_year_in_a_name_is_not_a_decade() -> None:
    fitted = make_vectorizer().fit(["Cast of Heat (1995)|Al Pacino"])
    assert fitted.normalise("Heat (1995)|B")[1] is None


def test_names_are_located_in_the_text() -> None:
    fitted = make_vectorizer().fit(CASTS)
    text = fitted.normalise("Nobody|Al Pacino|Val Kilmer")[0]
    found = [(fitted.name(column), text[start:end]) for column, start, end in fitted.locate(text)]
    assert found == [("al pacino", "al pacino"), ("val kilmer", "val kilmer")]


def test_state_rebuilds_the_vectorizer() -> None:
    fitted = make_vectorizer().fit(CASTS)
    rebuilt = TermVectorizer.from_state_dict(fitted.state_dict())
    assert (matrix(rebuilt, CASTS) != matrix(fitted, CASTS)).nnz == 0


def test_fit_without_any_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no text"):
        make_vectorizer().fit(["|", " | "])
