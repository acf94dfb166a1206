"""Where in a poster a ``PosterEncoder`` sees evidence: Grad-CAM (Selvaraju et al. 2017).

Taken at the last features before the encoder pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import numpy as np
import torch

from genre_lightning.checkpoint.model import TrainedModel
from genre_lightning.explain.explainer import Explainer, ImageExplanation, encode_one
from genre_lightning.explain.pixels import grad_cam
from genre_lightning.inputs.encoders import places_seen, pool_places
from genre_lightning.inputs.input import Value
from genre_lightning.models.poster_encoder import PosterEncoder


@final
class PosterEncoderExplainer(Explainer):
    """Heat maps over a poster."""

    method: ClassVar[str] = "Grad-CAM"
    gives: ClassVar[str] = "heat map"

    def baseline(self, model: TrainedModel, branch: str) -> None:
        """None: no poster says nothing."""

    def explain(
        self, model: TrainedModel, branch: str, value: Value, budget: int | None = None
    ) -> ImageExplanation:
        pixels = model.inputs[branch].read(value)
        network = model.network.branches[branch]
        if not isinstance(network, PosterEncoder):
            raise TypeError(f"branch {branch} is no PosterEncoder")

        def heat_maps(genres: Sequence[int]) -> np.ndarray:
            # Prepared here: tensors of inference mode have no gradients.
            with torch.inference_mode(False), torch.enable_grad():
                prepared = encode_one(model, branch, pixels).numbers["pixels"]
                with torch.no_grad():
                    seen = places_seen(network.encoder, prepared, network.name)
                features = seen.map.detach().clone().requires_grad_()
                pooled = pool_places(network.encoder, seen._replace(map=features))
                logits = network.head(torch.flatten(pooled, 1))[0]
                return grad_cam(logits, features, genres, pixels.shape[:2])

        return ImageExplanation(self.method, value, heat_maps)
