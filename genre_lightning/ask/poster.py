"""Posters as they are sent to the server: a JPEG in a data: URL."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass

from PIL import Image

from genre_lightning.errors import UserError
from genre_lightning.inputs.decode import DECODER_VERSION, decode_poster, upright_size
from genre_lightning.movies.movie import PosterFile
from genre_lightning.store import content_key

#: Vision models cut an image into patches of up to 28 pixels a side, and refuse smaller images.
MIN_SIDE = 28
MAX_SIDE = 4096


@dataclass(frozen=True)
class SentPoster:
    """An encoded poster.

    Attributes:
        url: the data: URL.
        digest: hash of the JPEG, 32 hex digits.
    """

    url: str
    digest: str


@dataclass(frozen=True)
class PosterFormat:
    """How posters are sent.

    Attributes:
        side: length of the longer side in pixels; smaller posters are not enlarged.
        quality: JPEG quality, 1 to 95.

    Raises:
        UserError: ``side`` or ``quality`` is out of range.
    """

    side: int = 512
    quality: int = 85

    def __post_init__(self) -> None:
        if type(self.side) is not int or not MIN_SIDE <= self.side <= MAX_SIDE:
            raise UserError(
                f"poster.side={self.side} must be a whole number in {MIN_SIDE}..{MAX_SIDE}"
            )
        if type(self.quality) is not int or not 1 <= self.quality <= 95:
            raise UserError(f"poster.quality={self.quality} must be a whole number in 1..95")

    def fingerprint(self, poster: PosterFile) -> str:
        """32 hex digits that identify the JPEG, computed without reading the poster."""
        name, size, stamp = poster.name, poster.size, poster.stamp
        return content_key("poster", name, size, stamp, self.side, self.quality, DECODER_VERSION)

    def encode(self, data: bytes) -> SentPoster:
        """Decode a poster and encode it as a JPEG, keeping its aspect ratio.

        Raises:
            PosterError: the poster can't be decoded.
        """
        # Raises the reason if it can't be decoded, before its size is read.
        decode_poster(data, MIN_SIDE)
        width, height = upright_size(data)
        scale = min(1.0, self.side / max(width, height))
        size = tuple(max(MIN_SIDE, round(side * scale)) for side in (height, width))
        pixels = decode_poster(data, (size[0], size[1]))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
        jpeg = buffer.getvalue()
        return SentPoster(
            "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii"),
            hashlib.blake2b(jpeg, digest_size=16).hexdigest(),
        )
