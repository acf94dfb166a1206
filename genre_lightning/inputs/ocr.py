"""The words on a poster, as pretrained networks read them (PP-OCR, by the package rapidocr).

One network finds the lines of text (Liao et al. 2020, "Real-time scene text detection with
differentiable binarization"), another one reads each line (Du et al. 2020, "PP-OCR: A practical
ultra lightweight OCR system"). Their weights come with the package.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genre_lightning.inputs.embedding_cache import content_hash
from genre_lightning.inputs.encoders.gguf_folder import hash_parts
from genre_lightning.inputs.encoders.libraries import find_module, import_library, not_installed
from genre_lightning.inputs.encoders.spec import EncoderError, Packaged
from genre_lightning.inputs.encoders.weights import find_packaged

#: Part of every cache's key: raise it when the same pixels give other words than before.
OCR_VERSION = 1
#: (H, W) at which posters are read: at smaller sizes names in small print are lost.
SIZE = (768, 512)
#: Lines that are less certain than this are left out: most of them are small print, read wrongly.
MIN_SCORE = 0.8
#: Of UTF-8. Lines come from the top, so that what is cut off is mostly the credits at the bottom.
MAX_BYTES = 512
#: What is between two lines.
BETWEEN = ". "

_PACKAGE = "rapidocr"
_WEIGHTS = {
    part: Packaged(_PACKAGE, _PACKAGE, f"models/PP-OCRv6_{part.lower()}_small.onnx")
    for part in ("Det", "Rec")
}
#: Posters whose words are kept.
_KEPT = 64
_opened = threading.local()
_lock = threading.Lock()
_read: OrderedDict[bytes, str] = OrderedDict()


@cache
def ocr_sha256() -> str:
    """The hash of the weights that are installed, which are not opened.

    Raises:
        EncoderError: they are not installed.
    """
    if find_module("onnxruntime") is None:
        raise not_installed("onnxruntime", "ocr")
    return hash_parts(list(_find_weights().values()))


def _find_weights() -> dict[str, Path]:
    """The files of both networks, by the part of rapidocr's configuration."""
    return {part: find_packaged(origin, "ocr") for part, origin in _WEIGHTS.items()}


def read_words(pixels: np.ndarray) -> str:
    """The lines on a poster from the top, joined by ``BETWEEN``.

    Args:
        pixels: (H, W, 3) uint8 RGB of ``SIZE``.

    Returns:
        "" where no line is read with some certainty. The words of the last few posters are kept:
        several branches, and an explanation, ask for the same.

    Raises:
        EncoderError: the package, or what it needs, isn't installed or is damaged.
    """
    digest = content_hash(pixels.tobytes())
    with _lock:
        if digest in _read:
            return _read[digest]
    words = _recognise(pixels)
    with _lock:
        _read[digest] = words
        while len(_read) > _KEPT:
            _read.popitem(last=False)
    return words


def _recognise(pixels: np.ndarray) -> str:
    engine = _engine()
    told = import_library("onnxruntime.capi.onnxruntime_pybind11_state", "ocr")
    try:
        with _denormals_as_zero():
            found = engine(pixels[:, :, ::-1], use_det=True, use_cls=False, use_rec=True)
    except (told.Fail, told.InvalidArgument, told.InvalidGraph, told.InvalidProtobuf) as error:
        # Of opening weights, the first time; those of running a network are the package's own.
        raise EncoderError(
            f"the weights of encoder 'ocr' are damaged ({error}): install {_PACKAGE} again"
        ) from error
    lines = [
        # Plain text, as all that is put between prompts.
        " ".join(line.split())
        for line, score in zip(found.txts or (), found.scores or (), strict=True)
        if score >= MIN_SCORE
    ]
    return BETWEEN.join(lines).encode("utf-8")[:MAX_BYTES].decode("utf-8", "ignore")


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Let this thread's processor take denormal numbers for zero, where it can.

    Two layers of the network that finds lines have 255,000 weights below 1e-38. Many processors
    compute with these a hundred times as slowly: finding lines took 3.5 times as long, for the same
    output. A session of onnxruntime sets this for its whole process, once, when it is made.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _engine() -> Any:
    """What reads, one for each thread: it keeps what it is working on in itself."""
    if not hasattr(_opened, "engine"):
        library = import_library(f"{_PACKAGE}.main", "ocr")
        engine = library.RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.log_level": "critical",
                # Named, or the package would download what it lacks or takes for damaged.
                **{f"{part}.model_path": str(path) for part, path in _find_weights().items()},
                "Det.limit_side_len": min(SIZE),
                # Lines one by one: a batch is padded to its longest line, which costs more.
                "Rec.rec_batch_num": 1,
                "Rec.rec_img_shape": [3, 48, 96],
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
                # Threads read posters side by side, each on one core.
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        _opened.engine = engine
    return _opened.engine
