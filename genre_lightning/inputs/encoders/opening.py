"""Opening of pretrained encoders, once per process."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from genre_lightning.inputs.encoders.images import ImageEncoder, open_image_encoder
from genre_lightning.inputs.encoders.spec import EncoderSpec, check_sha256
from genre_lightning.inputs.encoders.table import ENCODERS, resolve
from genre_lightning.inputs.encoders.texts import TextEncoder, open_text_encoder
from genre_lightning.inputs.encoders.weights import compute_sha256

_OPEN: dict[tuple[EncoderSpec, str, int | None], ImageEncoder | TextEncoder] = {}
_LOCK = threading.RLock()


def open_encoder(
    encoder: str | EncoderSpec,
    device: str | torch.device = "cpu",
    expected_sha256: str | None = None,
    *,
    random_weights: bool = False,
    seed: int = 0,
) -> ImageEncoder | TextEncoder:
    """Load an encoder, once per process: later calls return the same object.

    Args:
        encoder: the result of :func:`genre_lightning.inputs.encoders.table.resolve` or
            :func:`genre_lightning.inputs.encoders.table.resolve_from_checkpoint`, or a short name.
        device: where the encoder computes.
        expected_sha256: hash of the weights; None to check only the hash in the spec, if any.
        random_weights: use the real architecture with random weights, for tests. The hash is then
            ``random-SEED``.
        seed: of the random weights.

    Raises:
        EncoderError: the encoder is unknown or its weights are not available, a library isn't
            installed, or the weights' hash differs.
    """
    spec = encoder if isinstance(encoder, EncoderSpec) else resolve(encoder)
    device = torch.device(device)
    # The encoder is shared with callers that need gradients, which inference tensors don't support.
    with _LOCK, torch.inference_mode(False):
        # The expected hash and the permission to download don't change the weights.
        key_spec = replace(spec, sha256=None, download=True)
        key = (key_spec, str(device), seed if random_weights else None)
        opened = _OPEN.get(key)
        if opened is None:
            sha256 = f"random-{seed}" if random_weights else compute_sha256(spec)
            # Checked before the libraries are imported, which takes seconds.
            _check_hash(spec, sha256, expected_sha256, random_weights)
            other = _OPEN.get((replace(key_spec, stages=not spec.stages), *key[1:]))
            if isinstance(other, ImageEncoder):
                # Stages change how features are used, not the network, so it is shared.
                opened = ImageEncoder(spec, other.module, sha256, device)
            else:
                build = open_image_encoder if spec.kind == "image" else open_text_encoder
                # Libraries draw random weights before they load any. Without the fork, a training
                # that computes vectors would continue with other random numbers than one that
                # finds them in a cache.
                with torch.random.fork_rng(devices=[]):
                    opened = build(spec, sha256, device, seed if random_weights else None)
            _OPEN[key] = opened
        _check_hash(spec, opened.sha256, expected_sha256, random_weights)
    return opened


def _check_hash(spec: EncoderSpec, actual: str, expected: str | None, random_weights: bool) -> None:
    if expected is not None:
        check_sha256(spec, actual, expected)
    known = ENCODERS.get(spec.name)
    if spec.sha256 is not None and not (random_weights and known and known.sha256 == spec.sha256):
        check_sha256(spec, actual, spec.sha256)
