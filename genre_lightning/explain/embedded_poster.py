"""Where in a poster a branch on a frozen encoder's vector sees evidence.

The vector holds means over places of what the encoder sees: its last features and, with ``stages``,
those of every stage. So what a linear layer says of the vector is a sum over places, at each level
(class activation maps, Zhou et al. 2016), and the levels are summed. Of a network that is not
linear in them the gradient is taken, place by place (HiResCAM, Draelos and Carin 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.average import average_logits, average_vector
from genre_lightning.explain.explainer import Explainer, ImageExplanation
from genre_lightning.explain.heat import check_genres, scale_heat
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.input import Value
from genre_lightning.models.embedding_head import EmbeddingHead

#: Side in pixels of the squares of a poster that are shown as one place.
_CELL = 16


@final
class EmbeddedPosterExplainer(Explainer):
    """Heat maps over a poster, through its encoder."""

    method: ClassVar[str] = "class activation maps of the encoder's levels, summed"
    gives: ClassVar[str] = "heat map"

    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray | None:
        """The logits of the average vector of train, where the network knows it."""
        return average_logits(model, branch)

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> ImageExplanation:
        pixels = model.inputs[branch].read(value)

        def heat_maps(genres: Sequence[int]) -> np.ndarray:
            check_genres(genres, len(model.genres))
            found = torch.from_numpy(evidence(model, branch, pixels, genres))
            # The first levels tell single pixels, for and against side by side.
            height, width = (max(1, side // _CELL) for side in pixels.shape[:2])
            cells = F.adaptive_avg_pool2d(found[None], (height, width))[0]
            return scale_heat(cells, pixels.shape[:2])

        return ImageExplanation(self.method, value, heat_maps, len(model.genres))


def evidence(
    model: TrainedModel, branch: str, pixels: np.ndarray, genres: Sequence[int]
) -> np.ndarray:
    """What each place of a poster adds to the logits of K genres.

    Against the average vector of train where the network knows it: a place adds where it says more
    for a genre than places do on average. Where the network is linear, without a hidden layer, and
    the encoder pools by the mean, the sum over all places is the branch's part of the score; but
    for rounding, since the branch itself sees the vector in float16.

    Args:
        model: in evaluation mode.
        branch: its name.
        pixels: (H, W, 3) uint8, as the input reads them.
        genres: places of K genres.

    Returns:
        (K, H, W) float32.
    """
    branch_input, network = model.inputs[branch], model.network.branches[branch]
    if not isinstance(branch_input, EmbeddingInput) or not isinstance(network, EmbeddingHead):
        raise TypeError(f"branch {branch} is no EmbeddingHead on embeddings")
    encoder = branch_input.load()
    if not isinstance(encoder, ImageEncoder):
        raise TypeError(f"the encoder of branch {branch} looks at no posters")
    size = (pixels.shape[0], pixels.shape[1])
    found = np.zeros((len(genres), *size), dtype=np.float32)
    # Tensors of inference mode have no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        features = encoder.feature_map(pixels[None])
        last = features.map.detach().clone().requires_grad_()
        pooled = encoder.head(features._replace(map=last))
        stages = encoder.stage_maps(pixels[None])
        vector = torch.cat([pooled, *(stage.mean(dim=(2, 3)) for stage in stages)], dim=1)
        widths = [pooled.shape[1], *(stage.shape[1] for stage in stages)]
        average = average_vector(network)
        usual = torch.zeros_like(vector[0]) if average is None else average.to(vector.device)
        logits = network(vector.to(model.device))[0]
        for number, genre in enumerate(genres):
            at_places, gradient = torch.autograd.grad(
                logits[genre], [last, vector], retain_graph=True
            )
            levels = [(at_places * last)[0].sum(0)]
            levels += [
                torch.einsum("c,chw->hw", weights, stage[0]) / stage[0, 0].numel()
                for weights, stage in zip(gradient[0].split(widths)[1:], stages, strict=True)
            ]
            offsets = (gradient[0] * usual).split(widths)
            for level, offset in zip(levels, offsets, strict=True):
                level = level - offset.sum() / level.numel()
                found[number] += spread_out(level.detach(), size).cpu().numpy()
    return found


def spread_out(level: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) amounts spread over H x W places as bilinear interpolation does; the sum stays."""
    rows, columns = (
        _spreading(few, many, level) for few, many in zip(level.shape, size, strict=True)
    )
    return rows @ level @ columns.T


def _spreading(few: int, many: int, like: Tensor) -> Tensor:
    """(many, few), to which places each of a few goes and with what share of it."""
    unit = torch.eye(few, device=like.device, dtype=like.dtype)[None]
    shares = F.interpolate(unit, many, mode="linear", align_corners=False)[0].T
    return shares / shares.sum(0)
