"""Batches of movies. Lightning is imported here first, and lean."""

from genre_lightning.lean_imports import load_lightning

load_lightning()
