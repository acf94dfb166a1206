"""A pretrained image network that is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genre_lightning.inputs.encoders import (
    architecture_spec,
    build_image_module,
    open_encoder,
    resolve,
)
from genre_lightning.models.dropout import Dropout


class PosterEncoder(nn.Module):
    """An image encoder of timm with a linear layer on its pooled features.

    It is built without weights; :meth:`load_pretrained` loads those that training starts from. A
    checkpoint then holds all of them.

    Args:
        num_genres: G, the number of logits.
        size: H and W of the posters.
        encoder: a name that :func:`genre_lightning.inputs.encoders.is_image_encoder` takes.
        dropout: probability of zeroing a pooled feature, in [0, 1).
        layer_decay: learning rate of each layer over that of the layer after it, so that the first
            layers, which know most, change least (Clark et al. 2020, "ELECTRA", section 3.2).
        frozen_layers: so many of the first layers keep their weights: their rate is 0.
        encoder_lr: learning rate of the encoder's last layer over that of the linear layer.
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
        self.drop = Dropout(dropout)
        self.head = nn.Linear(int(self.encoder.head_hidden_size), num_genres)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        self.train()  # Lightning leaves the modes as it finds them

    def load_pretrained(self) -> None:
        """Load the encoder's weights, which the user's own configuration names.

        Raises:
            EncoderError: they are not there.
        """
        found = open_encoder(resolve(self.name, trusted=True, size=self.size))
        self.encoder.load_state_dict(found.module.state_dict())

    def lr_scales(self) -> dict[str, float]:
        """The learning rate of each parameter of the encoder over that of the head."""
        from timm.optim import param_groups_layer_decay

        names = {id(parameter): name for name, parameter in self.encoder.named_parameters()}

        def by_name(layer_decay: float) -> dict[str, float]:
            groups = param_groups_layer_decay(self.encoder, layer_decay=layer_decay)
            return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

        # Any decay below 1 tells one layer from the other.
        order = by_name(0.5)
        frozen = sorted(set(order.values()))[: self.frozen_layers]
        return {
            f"encoder.{name}": 0.0 if order[name] in frozen else scale * self.encoder_lr
            for name, scale in by_name(self.layer_decay).items()
        }

    def train(self, mode: bool = True) -> PosterEncoder:
        """Set the mode; BatchNorm keeps the statistics that it was pretrained with."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Score posters.

        Args:
            pixels: (P, 3, H, W) float, normalised as the encoder wants.

        Returns:
            (P, G) logits.
        """
        features: Tensor = self.encoder(pixels)
        logits: Tensor = self.head(self.drop(torch.flatten(features, 1)))
        return logits
