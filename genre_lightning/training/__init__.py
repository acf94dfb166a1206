"""Training with Lightning, which is imported here first, without parts that are not used."""

from genre_lightning.lean_imports import load_lightning

load_lightning()
