"""Batches of movies. This package imports Lightning first, without its unused parts."""

from genre_lightning.lean_imports import load_lightning

load_lightning()
