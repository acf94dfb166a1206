"""Heat maps of a poster for branches on a frozen encoder's vector.

The vector holds means over places of the encoder's last features and, with ``stages``, of those of
every stage. The output of a linear layer on the vector is therefore a sum over the places of each
level (class activation maps, Zhou et al. 2016), and the levels are summed. For a network that is
not linear, its gradient at each place is used (HiResCAM, Draelos and Carin 2020).
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
from genre_lightning.explain.explainer import Explainer, ImageExplanation, member_arguments
from genre_lightning.explain.heat import check_genres, scale_heat
from genre_lightning.inputs.embedding import EmbeddingInput
from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.input import Value
from genre_lightning.models.embedding_head import EmbeddingHead

#: Side in pixels of a heat map's cells.
_CELL = 16


@final
class EmbeddedPosterExplainer(Explainer):
    """Explains a branch on embedded posters by heat maps through the encoder."""

    method: ClassVar[str] = "class activation maps of the encoder's levels, summed"
    gives: ClassVar[str] = "heat map"

    def baseline(self, model: TrainedModel, branch: str) -> np.ndarray | None:
        """The logits of the average training vector, if the network has stored it."""
        return average_logits(model, branch)

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> ImageExplanation:
        pixels = model.inputs[branch].read(value)

        def heat_maps(genres: Sequence[int]) -> np.ndarray:
            check_genres(genres, len(model.genres))
            maps = torch.from_numpy(evidence(model, branch, pixels, genres))
            # Averaged over cells, as the first levels give single pixels, for and against the genre
            # side by side.
            height, width = (max(1, side // _CELL) for side in pixels.shape[:2])
            cells = F.adaptive_avg_pool2d(maps[None], (height, width))[0]
            return scale_heat(cells, pixels.shape[:2])

        return ImageExplanation(self.method, value, heat_maps, len(model.genres))


def evidence(
    model: TrainedModel, branch: str, pixels: np.ndarray, genres: Sequence[int]
) -> np.ndarray:
    """Contributions of each place of a poster to the logits of K genres.

    If the network has stored the average training vector, contributions are relative to it: they
    are positive where a place speaks more for a genre than places do on average. If the network is
    linear, without a hidden layer, and the encoder pools by the mean, the contributions sum to the
    branch's part of the score, up to rounding, as the branch itself gets the vector in float16.

    Args:
        model: in evaluation mode.
        branch: name of the branch.
        pixels: (H, W, 3) uint8, as read by the input.
        genres: indices of K genres.

    Returns:
        (K, H, W) float32.

    Raises:
        TypeError: the branch is not an EmbeddingHead on embeddings of posters.
    """
    branch_input, network = model.inputs[branch], model.network.branches[branch]
    if not isinstance(branch_input, EmbeddingInput) or not isinstance(network, EmbeddingHead):
        raise TypeError(f"branch {branch} is no EmbeddingHead on embeddings")
    encoder = branch_input.load()
    if not isinstance(encoder, ImageEncoder):
        raise TypeError(f"the encoder of branch {branch} looks at no posters")
    size = (pixels.shape[0], pixels.shape[1])
    maps = np.zeros((len(genres), *size), dtype=np.float32)
    # Tensors made in inference mode can't have gradients.
    with torch.inference_mode(False), torch.enable_grad():
        features = encoder.feature_map(pixels[None])
        last = features.map.detach().clone().requires_grad_()
        pooled = encoder.head(features._replace(map=last))
        stages = encoder.stage_maps(pixels[None])
        vector = torch.cat([pooled, *(stage.mean(dim=(2, 3)) for stage in stages)], dim=1)
        widths = [pooled.shape[1], *(stage.shape[1] for stage in stages)]
        average = average_vector(network)
        reference = torch.zeros_like(vector[0]) if average is None else average.to(vector.device)
        logits = network(vector.to(model.device), **member_arguments(model, branch, 1))[0]
        for row, genre in enumerate(genres):
            map_gradient, gradient = torch.autograd.grad(
                logits[genre], [last, vector], retain_graph=True
            )
            levels = [(map_gradient * last)[0].sum(0)]
            levels += [
                torch.einsum("c,chw->hw", weights, stage[0]) / stage[0, 0].numel()
                for weights, stage in zip(gradient[0].split(widths)[1:], stages, strict=True)
            ]
            offsets = (gradient[0] * reference).split(widths)
            for level, offset in zip(levels, offsets, strict=True):
                level = level - offset.sum() / level.numel()
                maps[row] += upsample_keeping_sum(level.detach(), size).cpu().numpy()
    return maps


def upsample_keeping_sum(level: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread (h, w) amounts over H x W places by bilinear weights, keeping their sum."""
    rows, columns = (
        _upsampling_matrix(size_in, size_out, level)
        for size_in, size_out in zip(level.shape, size, strict=True)
    )
    return rows @ level @ columns.T


def _upsampling_matrix(size_in: int, size_out: int, like: Tensor) -> Tensor:
    """(many, few) shares in which each of few amounts is spread over many places."""
    unit = torch.eye(size_in, device=like.device, dtype=like.dtype)[None]
    shares = F.interpolate(unit, size_out, mode="linear", align_corners=False)[0].T
    return shares / shares.sum(0)
