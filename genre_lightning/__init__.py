"""Movie genres from titles and posters.

Importing this package is fast: :class:`GenrePredictor` and :func:`train`, and PyTorch with them,
are loaded on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genre_lightning.predicting.predictor import GenrePredictor
    from genre_lightning.scripts.from_python import TrainedRun, train

__version__ = "0.2.0"

__all__ = ["GenrePredictor", "TrainedRun", "__version__", "train"]


def __getattr__(name: str) -> object:
    if name == "GenrePredictor":
        from genre_lightning.predicting.predictor import GenrePredictor

        return GenrePredictor
    if name in ("TrainedRun", "train"):
        from genre_lightning.scripts import from_python

        return getattr(from_python, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
