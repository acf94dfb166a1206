"""The scikit-learn text models that serve as baselines: TF-IDF and logistic regression.

Legend: N titles, V columns, G genres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from genre_lightning.inputs.vectorizer import TermVectorizer

FEATURES: dict[str, Callable[[], TermVectorizer]] = {
    "word": lambda: TermVectorizer(analyzer="word", ngram_range=(1, 1), decade=False),
    "char": lambda: TermVectorizer(analyzer="char_wb", ngram_range=(2, 5), decade=False),
    "char + decade": lambda: TermVectorizer(analyzer="char_wb", ngram_range=(2, 5), decade=True),
}


def title_features(
    name: str, fit_on: Sequence[str], *others: Sequence[str]
) -> tuple[csr_matrix, ...]:
    """Sparse (N, V) features of each list of titles, fitted on the first alone."""
    vectorizer = FEATURES[name]().fit(fit_on)
    result = []
    for titles in (fit_on, *others):
        sparse = vectorizer.transform(titles)
        result.append(
            csr_matrix(
                (sparse.weights, sparse.indices, sparse.indptr),
                shape=(len(titles), vectorizer.vocabulary_size),
            )
        )
    return tuple(result)


def regression_scores(
    features: csr_matrix, labels: np.ndarray, others: Sequence[csr_matrix], c: float
) -> list[np.ndarray]:
    """Probabilities (N, G) float32 for each of ``others``: one logistic regression per genre.

    Args:
        features: (N, V) of the training titles.
        labels: (N, G) multi-hot. A genre that all or no titles have is predicted as 1 or 0.
        others: features to score.
        c: inverse strength of the L2 penalty.
    """
    scores = [np.empty((other.shape[0], labels.shape[1]), dtype=np.float32) for other in others]
    for g in range(labels.shape[1]):
        share = labels[:, g].mean()
        if share in (0, 1):
            for column in scores:
                column[:, g] = share
            continue
        model = LogisticRegression(C=c, solver="liblinear").fit(features, labels[:, g])
        for column, other in zip(scores, others, strict=True):
            column[:, g] = model.predict_proba(other)[:, 1]
    return scores
