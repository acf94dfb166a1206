"""The features of a timm image network before pooling, and the pooling as a separate step.

Heat maps need both steps: each feature belongs to a part of the poster, and pooled vectors do not.
timm's networks have three layouts of features, see :func:`_layout`; here features are always
(P, C, h, w).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from genre_lightning.inputs.encoders.spec import TOKEN_STAGES, EncoderError


class FeatureMap(NamedTuple):
    """The features of P posters before pooling.

    Attributes:
        map: (P, C, h, w) float32, C features of each of h x w parts of the poster.
        prefix: (P, n, C) float32, tokens that belong to no part, such as a class token; None if
            there are none.
    """

    map: Tensor
    prefix: Tensor | None = None


def compute_feature_map(module: nn.Module, posters: Tensor, name: str) -> FeatureMap:
    """Compute an image network's features before pooling.

    For a convolutional network these are the features of its last layer. For a vision transformer
    whose output is its class token, they are the input of the last block, since the last block's
    outputs for other tokens do not affect the result.

    Args:
        module: the network.
        posters: (P, 3, H, W) float32, normalised.
        name: the encoder's name, for messages.

    Raises:
        EncoderError: the architecture has no such map.
    """
    if not _reads_class_token(module):
        return _to_feature_map(module, module.forward_features(posters), name)  # type: ignore[operator]
    captured: list[Tensor] = []
    last_block = module.get_submodule("blocks")[-1]  # type: ignore[index]
    hook = last_block.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        module.forward_features(posters)  # type: ignore[operator]
    finally:
        hook.remove()
    return _to_feature_map(module, captured[0], name)


def pool_feature_map(module: nn.Module, features: FeatureMap) -> Tensor:
    """Compute the network's output, (P, D) float32, from :func:`compute_feature_map`'s result.

    Gradients reach the features.
    """
    hidden = features.map
    if _layout(module) == "NHWC":
        hidden = hidden.permute(0, 2, 3, 1)
    elif _layout(module) == "NLC":
        hidden = hidden.flatten(2).transpose(1, 2)
        if features.prefix is not None:
            hidden = torch.cat([features.prefix, hidden], dim=1)
    if _reads_class_token(module):
        hidden = module.get_submodule("blocks")[-1](hidden)  # type: ignore[index]
        hidden = module.get_submodule("norm")(hidden)
    vectors: Tensor = module.forward_head(hidden)  # type: ignore[operator]
    return vectors


def compute_stages(module: nn.Module, posters: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Compute the features of every stage of a network.

    Args:
        module: the network.
        posters: (P, 3, H, W) float32, normalised.

    Returns:
        The last features, for the network's ``forward_head``; and (P, C, h, w) of each stage, from
        the first to the last.
    """
    indices = TOKEN_STAGES if _layout(module) == "NLC" else None
    last, stages = module.forward_intermediates(posters, indices=indices)  # type: ignore[operator]
    return last, list(stages)


def _layout(module: nn.Module) -> str:
    """Return the layout of the features: NCHW, NHWC or NLC (tokens)."""
    if hasattr(module, "num_prefix_tokens"):
        return "NLC"
    return str(getattr(module, "output_fmt", "NCHW"))


def _reads_class_token(module: nn.Module) -> bool:
    """Whether the output is computed from the class token alone, as some transformers do."""
    return getattr(module, "global_pool", None) == "token"


def _to_feature_map(module: nn.Module, features: Tensor, name: str) -> FeatureMap:
    """Convert features in the network's layout to a map."""
    if _layout(module) == "NHWC":
        features = features.permute(0, 3, 1, 2)
    if _layout(module) != "NLC":
        if features.ndim != 4:
            raise EncoderError(f"the encoder {name!r} has no feature map to draw on a poster")
        return FeatureMap(features)
    num_prefix = int(module.num_prefix_tokens)  # type: ignore[arg-type]
    grid = module.get_submodule("patch_embed").grid_size
    if type(module).__name__ != "VisionTransformer" or features.shape[1] != num_prefix + (
        grid[0] * grid[1]  # type: ignore[index]
    ):
        raise EncoderError(f"the encoder {name!r} has no feature map to draw on a poster")
    patch_map = features[:, num_prefix:].transpose(1, 2).unflatten(2, tuple(grid))  # type: ignore[arg-type]
    return FeatureMap(patch_map, features[:, :num_prefix] if num_prefix else None)
