"""Where in a poster a network on its pixels sees evidence: Grad-CAM (Selvaraju et al. 2017).

Heat maps show where the evidence lies and don't add up to anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import Explainer, ImageExplanation, encode_one
from genre_lightning.explain.heat import check_genres, scale_heat
from genre_lightning.inputs.encoders.feature_map import compute_feature_map, pool_feature_map
from genre_lightning.inputs.input import Value
from genre_lightning.models.members import networks_of
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.models.poster_resnet import PosterResNet

#: The least height and width of features from which a heat map is made, where there are any such.
_MIN_SIDE = 7


@final
class GradCamExplainer(Explainer):
    """Heat maps over a poster.

    Args:
        see: a network and one prepared poster, (1, 3, H, W), to the features (1, C, h, w) at which
            the maps are taken, which require gradients, and the logits (G,) computed from them.
    """

    method: ClassVar[str] = "Grad-CAM"
    gives: ClassVar[str] = "heat map"

    def __init__(self, see: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.see = see

    def baseline(self, model: TrainedModel, branch: str) -> None:
        """None: no poster says nothing."""

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> ImageExplanation:
        pixels = model.inputs[branch].read(value)
        networks = networks_of(model.network.branches[branch])

        def heat_maps(genres: Sequence[int]) -> np.ndarray:
            # Prepared here: tensors of inference mode have no gradients.
            with torch.inference_mode(False), torch.enable_grad():
                prepared = encode_one(model, branch, pixels).numbers["pixels"]
                seen = [self.see(network, prepared) for network in networks]
                return grad_cam(seen, genres, pixels.shape[:2])

        return ImageExplanation(self.method, value, heat_maps, len(model.genres))


def grad_cam(
    seen: Sequence[tuple[Tensor, Tensor]], genres: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Grad-CAM: features weighted by how much each channel raises a genre's logit.

    Args:
        seen: of each network of a branch, whose logits are averaged, features (1, C, h, w), which
            require gradients, and the logits (G,) computed from them.
        genres: places of K genres.
        size: H and W of the maps.

    Returns:
        (K, H, W) float32 in [0, 1], see :func:`genre_lightning.explain.heat.scale_heat`.

    Raises:
        IndexError: there is no such genre.
    """
    places, logits = seen[0]
    check_genres(genres, len(logits))
    maps = torch.zeros(len(genres), *places.shape[2:])
    for features, logits in seen:
        for number, genre in enumerate(genres):
            (gradient,) = torch.autograd.grad(logits[genre], features, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            # Summed with its sign: what one network says for a genre another may say against it.
            maps[number] += (weights * features).sum(1)[0].detach().cpu()
    return scale_heat(maps, size)


def see_stages(network: PosterResNet, prepared: Tensor) -> tuple[Tensor, Tensor]:
    """For :class:`GradCamExplainer`, of a ``PosterResNet``.

    Taken at the deepest block of its stages whose features still have 7 x 7 places (as in the
    paper's networks), not at the last one, which may have 2 x 2: those tell little of where, and
    blanking what they call hot lowers the logit less.
    """
    probe, tap = _tapped(network)
    logits = probe(prepared)[0]
    return tap.features, logits


def see_encoder(network: PosterEncoder, prepared: Tensor) -> tuple[Tensor, Tensor]:
    """For :class:`GradCamExplainer`, of a ``PosterEncoder``: before its encoder pools."""
    with torch.no_grad():
        before = compute_feature_map(network.encoder, prepared, network.name)
    features = before.map.detach().clone().requires_grad_()
    pooled = pool_feature_map(network.encoder, before._replace(map=features))
    return features, network.head(torch.flatten(pooled, 1))[0]


class _Tap(nn.Module):
    """Runs blocks one after another, keeping the features from which gradients are wanted."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks
        self.features = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        with torch.no_grad():
            for block in self.blocks:
                outputs.append(block(outputs[-1] if outputs else x))
        fine = [n for n, y in enumerate(outputs) if min(y.shape[2:]) >= _MIN_SIDE]
        chosen = fine[-1] if fine else 0
        self.features = outputs[chosen].detach().requires_grad_()
        y = self.features
        for block in self.blocks[chosen + 1 :]:
            y = block(y)
        return y


def _tapped(network: PosterResNet) -> tuple[PosterResNet, _Tap]:
    """A copy of a network, sharing its weights, whose ``stages`` keep their features.

    A hook on the network itself would also see what other threads run through it.
    """
    tap = _Tap(network.stages)
    probe = copy.copy(network)
    probe.__dict__["_modules"] = {**network._modules, "stages": tap}
    return probe, tap
