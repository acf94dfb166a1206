"""Opening a pretrained encoder, once a process."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from genre_lightning.inputs.encoders.images import ImageEncoder, open_image_encoder
from genre_lightning.inputs.encoders.spec import EncoderSpec, check_sha256
from genre_lightning.inputs.encoders.table import ENCODERS, resolve
from genre_lightning.inputs.encoders.texts import TextEncoder, open_text_encoder
from genre_lightning.inputs.encoders.weights import found_sha256

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
    """Load an encoder, once a process: the same one is given back to whoever asks again.

    Args:
        encoder: what :func:`genre_lightning.inputs.encoders.table.resolve` or
            :func:`genre_lightning.inputs.encoders.table.trust_from_checkpoint` gave, or a
            short name.
        device: where it computes.
        expected_sha256: of the weights; None for those of the table, if it names any.
        random_weights: the real architecture with random weights, for tests. Its hash is
            ``random-SEED``.
        seed: of the random weights.

    Raises:
        EncoderError: see there; or a library isn't installed, or the weights' hash is another one.
    """
    spec = encoder if isinstance(encoder, EncoderSpec) else resolve(encoder)
    device = torch.device(device)
    # Kept for others, some of whom want gradients: tensors of inference mode have none.
    with _LOCK, torch.inference_mode(False):
        # Who asks, and for which hash, doesn't change what the weights are.
        same = replace(spec, sha256=None, download=True)
        key = (same, str(device), seed if random_weights else None)
        opened = _OPEN.get(key)
        if opened is None:
            sha256 = f"random-{seed}" if random_weights else found_sha256(spec)
            # Before the libraries are imported, which takes seconds.
            _check_hash(spec, sha256, expected_sha256, random_weights)
            other = _OPEN.get((replace(same, stages=not spec.stages), *key[1:]))
            if isinstance(other, ImageEncoder):
                # The same network: what is made of its features is not its matter.
                opened = ImageEncoder(spec, other.module, sha256, device)
            else:
                build = open_image_encoder if spec.kind == "image" else open_text_encoder
                # Libraries draw weights before they read them: a training that has to compute
                # vectors would go on with other random numbers than one that finds them.
                with torch.random.fork_rng(devices=[]):
                    opened = build(spec, sha256, device, seed if random_weights else None)
            _OPEN[key] = opened
        _check_hash(spec, opened.sha256, expected_sha256, random_weights)
    return opened


def _check_hash(spec: EncoderSpec, found: str, expected: str | None, random_weights: bool) -> None:
    if expected is not None:
        check_sha256(spec, found, expected)
    table = ENCODERS.get(spec.name)
    if spec.sha256 is not None and not (random_weights and table and table.sha256 == spec.sha256):
        check_sha256(spec, found, spec.sha256)
