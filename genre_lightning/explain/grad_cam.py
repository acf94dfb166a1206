"""Grad-CAM heat maps of a poster for networks on its pixels (Selvaraju et al. 2017).

The maps show where the evidence lies; their values don't sum to the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import (
    Explainer,
    ImageExplanation,
    encode_one,
    explained_networks,
)
from genre_lightning.explain.heat import check_genres, scale_heat
from genre_lightning.inputs.encoders.feature_map import compute_feature_map, pool_feature_map
from genre_lightning.inputs.input import Value
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.models.poster_resnet import PosterResNet

#: Smallest height and width of the features used for a heat map, if a network has such features.
_MIN_SIDE = 7


@final
class GradCamExplainer(Explainer):
    """Explains a branch on posters by Grad-CAM heat maps.

    Args:
        features_and_logits: function from a network and one prepared poster, (1, 3, H, W), to the
            features (1, C, h, w) for the maps, which require gradients, and the logits (G,)
            computed from them.
    """

    method: ClassVar[str] = "Grad-CAM"
    gives: ClassVar[str] = "heat map"

    def __init__(self, features_and_logits: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.features_and_logits = features_and_logits

    def baseline(self, model: TrainedModel, branch: str) -> None:
        """None, as there is no uninformative poster."""

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> ImageExplanation:
        pixels = model.inputs[branch].read(value)
        networks = explained_networks(model, branch)

        def heat_maps(genres: Sequence[int]) -> np.ndarray:
            # Prepared inside this block: tensors made in inference mode can't have gradients.
            with torch.inference_mode(False), torch.enable_grad():
                prepared = encode_one(model, branch, pixels).numbers["pixels"]
                outputs = [self.features_and_logits(network, prepared) for network in networks]
                return grad_cam(outputs, genres, pixels.shape[:2])

        return ImageExplanation(self.method, value, heat_maps, len(model.genres))


def grad_cam(
    outputs: Sequence[tuple[Tensor, Tensor]], genres: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Grad-CAM: features weighted by how much each channel raises a genre's logit.

    Args:
        outputs: for each network whose logits the branch averages, the features (1, C, h, w), which
            require gradients, and the logits (G,) computed from them.
        genres: indices of K genres.
        size: H and W of the maps.

    Returns:
        (K, H, W) float32 in [0, 1], see :func:`genre_lightning.explain.heat.scale_heat`.

    Raises:
        IndexError: a genre does not exist.
    """
    first_features, logits = outputs[0]
    check_genres(genres, len(logits))
    maps = torch.zeros(len(genres), *first_features.shape[2:])
    for features, logits in outputs:
        for row, genre in enumerate(genres):
            (gradient,) = torch.autograd.grad(logits[genre], features, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            # Summed before negative values are cut off: evidence of one network for a genre can
            # cancel that of another against it.
            maps[row] += (weights * features).sum(1)[0].detach().cpu()
    return scale_heat(maps, size)


def resnet_features(network: PosterResNet, prepared: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits for the :class:`GradCamExplainer` of ``PosterResNet``.

    Takes the features of the deepest block that still has 7 x 7 places, as in the paper's
    networks. The last block can have only 2 x 2, which locates little, and blanking the hot regions
    of its maps lowers the logit less.
    """
    probe, tap = _with_feature_tap(network)
    logits = probe(prepared)[0]
    return tap.features, logits


def encoder_features(network: PosterEncoder, prepared: Tensor) -> tuple[Tensor, Tensor]:
    """Unpooled features and logits for the :class:`GradCamExplainer` of ``PosterEncoder``."""
    with torch.no_grad():
        feature_map = compute_feature_map(network.encoder, prepared, network.name)
    features = feature_map.map.detach().clone().requires_grad_()
    pooled = pool_feature_map(network.encoder, feature_map._replace(map=features))
    return features, network.head(torch.flatten(pooled, 1))[0]


class _FeatureTap(nn.Module):
    """Runs blocks in sequence and keeps the features whose gradients are needed."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks
        self.features = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        with torch.no_grad():
            for block in self.blocks:
                outputs.append(block(outputs[-1] if outputs else x))
        large_enough = [n for n, y in enumerate(outputs) if min(y.shape[2:]) >= _MIN_SIDE]
        chosen = large_enough[-1] if large_enough else 0
        self.features = outputs[chosen].detach().requires_grad_()
        y = self.features
        for block in self.blocks[chosen + 1 :]:
            y = block(y)
        return y


def _with_feature_tap(network: PosterResNet) -> tuple[PosterResNet, _FeatureTap]:
    """A copy of a network with shared weights, whose ``stages`` keep their features.

    A hook on the network itself would also record the calls of other threads.
    """
    tap = _FeatureTap(network.stages)
    probe = copy.copy(network)
    probe.__dict__["_modules"] = {**network._modules, "stages": tap}
    return probe, tap
