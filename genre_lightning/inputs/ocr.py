"""The words on a poster, read by pretrained networks (PP-OCR, from the package rapidocr).

One network detects the lines of text (Liao et al. 2020, "Real-time scene text detection with
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

from genre_lightning.files import hash_parts
from genre_lightning.inputs.embedding_cache import content_hash
from genre_lightning.inputs.encoders.libraries import find_module, import_library, not_installed
from genre_lightning.inputs.encoders.spec import EncoderError, Packaged
from genre_lightning.inputs.encoders.weights import find_packaged

#: Part of every cache's key: raise it when the same pixels give different words.
OCR_VERSION = 1
#: (H, W) of the posters that are read; at smaller sizes names in small print are lost.
SIZE = (768, 512)
#: Lines with a lower score are dropped: most of them are misread small print.
MIN_SCORE = 0.8
#: Bytes of UTF-8. Lines are ordered from the top, so mostly the credits at the bottom are cut off.
MAX_BYTES = 512
#: Separates two lines.
LINE_SEPARATOR = ". "

_PACKAGE = "rapidocr"
_WEIGHTS = {
    part: Packaged(_PACKAGE, _PACKAGE, f"models/PP-OCRv6_{part.lower()}_small.onnx")
    for part in ("Det", "Rec")
}
#: Number of posters whose words are kept in memory.
_CACHE_SIZE = 64
_thread_state = threading.local()
_cache_lock = threading.Lock()
_words_cache: OrderedDict[bytes, str] = OrderedDict()


@cache
def ocr_sha256() -> str:
    """Return the hash of the installed weights, without opening the networks.

    Raises:
        EncoderError: the weights or onnxruntime are not installed.
    """
    if find_module("onnxruntime") is None:
        raise not_installed("onnxruntime", "ocr")
    return hash_parts(list(_find_weights().values()))


def _find_weights() -> dict[str, Path]:
    """Return the files of both networks, by their key in rapidocr's configuration."""
    return {part: find_packaged(origin, "ocr") for part, origin in _WEIGHTS.items()}


def read_words(pixels: np.ndarray) -> str:
    """Read the lines on a poster from the top, joined by ``LINE_SEPARATOR``.

    The words of the last few posters are kept in memory, since several branches, and an
    explanation, ask for the same ones.

    Args:
        pixels: (H, W, 3) uint8 RGB of ``SIZE``.

    Returns:
        The words; "" if no line has a sufficient score.

    Raises:
        EncoderError: the package or one of its dependencies isn't installed or is damaged.
    """
    digest = content_hash(pixels.tobytes())
    with _cache_lock:
        if digest in _words_cache:
            return _words_cache[digest]
    words = _recognise(pixels)
    with _cache_lock:
        _words_cache[digest] = words
        while len(_words_cache) > _CACHE_SIZE:
            _words_cache.popitem(last=False)
    return words


def _recognise(pixels: np.ndarray) -> str:
    engine = _engine()
    errors = import_library("onnxruntime.capi.onnxruntime_pybind11_state", "ocr")
    try:
        with _denormals_as_zero():
            result = engine(pixels[:, :, ::-1], use_det=True, use_cls=False, use_rec=True)
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
    ) as error:
        # Raised when the weights are first opened; rapidocr wraps errors of running a network.
        raise EncoderError(
            f"the weights of encoder 'ocr' are damaged ({error}): install {_PACKAGE} again"
        ) from error
    lines = [
        # Single spaces only, as in every other text that is put between prompts.
        " ".join(line.split())
        for line, score in zip(result.txts or (), result.scores or (), strict=True)
        if score >= MIN_SCORE
    ]
    return LINE_SEPARATOR.join(lines).encode("utf-8")[:MAX_BYTES].decode("utf-8", "ignore")


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Flush denormal numbers to zero in this thread, if the processor can.

    Two layers of the detection network have 255,000 weights below 1e-38. Many processors compute
    with these a hundred times as slowly: detection took 3.5 times as long, for the same output.
    onnxruntime's own option is for the whole process, and set once, when a session is created.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _engine() -> Any:
    """Return this thread's OCR engine; an engine holds state while it works."""
    if not hasattr(_thread_state, "engine"):
        library = import_library(f"{_PACKAGE}.main", "ocr")
        engine = library.RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.log_level": "critical",
                # Explicit paths, or the package would download missing or damaged files.
                **{f"{part}.model_path": str(path) for part, path in _find_weights().items()},
                "Det.limit_side_len": min(SIZE),
                # One line at a time: padding a batch to its longest line costs more.
                "Rec.rec_batch_num": 1,
                "Rec.rec_img_shape": [3, 48, 96],
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
                # Threads read posters in parallel, each on one core.
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        _thread_state.engine = engine
    return _thread_state.engine
