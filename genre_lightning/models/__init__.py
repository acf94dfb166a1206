"""The branches and their sum; third-party packages only."""

from genre_lightning.models.fusion import ACTIVATIONS, BRANCHES, BranchType, Fusion, build_network
from genre_lightning.models.poster_resnet import PosterResNet
from genre_lightning.models.terms_mlp import TitleMLP

__all__ = [
    "ACTIVATIONS",
    "BRANCHES",
    "BranchType",
    "Fusion",
    "PosterResNet",
    "TitleMLP",
    "build_network",
]
