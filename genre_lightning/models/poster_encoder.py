"""A pretrained image encoder that is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genre_lightning.inputs.encoders.images import build_image_module
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.table import architecture_spec, resolve


class PosterEncoder(nn.Module):
    """An image encoder of timm with a linear layer on its pooled features.

    It is built without pretrained weights; :meth:`load_pretrained` loads those that training starts
    from. A checkpoint holds all weights.

    Args:
        num_genres: G, the number of logits.
        size: H and W of the posters.
        encoder: a name that :func:`genre_lightning.inputs.encoders.table.is_image_encoder` takes.
        dropout: probability of zeroing a pooled feature, in [0, 1).
        layer_decay: learning rate of each layer relative to the next layer's, so that the first
            layers, the most general ones, change least (Clark et al. 2020, "ELECTRA", section 3.2).
        frozen_layers: number of first layers that keep their weights: their learning rate is 0.
        encoder_lr: learning rate of the encoder's last layer relative to the linear layer's.
    """

    def __init__(
        self,
        num_genres: int,
        size: Sequence[int],
        encoder: str,
        dropout: float = 0.3,
        layer_decay: float = 0.7,
        frozen_layers: int = 0,
        encoder_lr: float = 0.1,
    ) -> None:
        super().__init__()
        self.name = encoder
        self.layer_decay = layer_decay
        self.frozen_layers = frozen_layers
        self.encoder_lr = encoder_lr
        self.size = (size[0], size[1])
        self.encoder = build_image_module(architecture_spec(encoder, self.size))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(int(self.encoder.head_hidden_size), num_genres)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        self.train()  # Lightning does not change the modes of modules

    def load_pretrained(self) -> None:
        """Load the encoder's pretrained weights, named by the user's own configuration.

        Raises:
            EncoderError: the weights are not there.
        """
        pretrained = open_encoder(resolve(self.name, trusted=True, size=self.size))
        self.encoder.load_state_dict(pretrained.module.state_dict())

    def lr_scales(self) -> dict[str, float]:
        """Return the learning rate of each encoder parameter relative to the head's."""
        layers = _layers(self.encoder)
        last = max(layers.values())
        layer_of = {
            name: layers.get(name, last)
            for name, parameter in self.encoder.named_parameters()
            if parameter.requires_grad
        }
        frozen = sorted(set(layer_of.values()))[: self.frozen_layers]
        return {
            f"encoder.{name}": 0.0
            if layer in frozen
            else self.layer_decay ** (last - layer) * self.encoder_lr
            for name, layer in layer_of.items()
        }

    def train(self, mode: bool = True) -> PosterEncoder:
        """Set the mode; the encoder's BatchNorm keeps its pretrained statistics."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Score posters.

        Args:
            pixels: (P, 3, H, W) float, normalised as the encoder expects.

        Returns:
            (P, G) logits.
        """
        features: Tensor = self.encoder(pixels)
        logits: Tensor = self.head(self.drop(torch.flatten(features, 1)))
        return logits


def _layers(encoder: Any) -> dict[str, int]:
    """Return the layer of each parameter, as timm counts them from the input on.

    ``timm.optim``, whose import takes 2 seconds, is used only if the network has no groups itself.
    """
    if hasattr(encoder, "group_matcher"):
        from timm.models import group_parameters

        matcher = encoder.group_matcher(coarse=False)
        layers: dict[str, int] = group_parameters(encoder, matcher, reverse=True)
        return layers
    from timm.optim._param_groups import auto_group_layers

    return dict(auto_group_layers(encoder))
