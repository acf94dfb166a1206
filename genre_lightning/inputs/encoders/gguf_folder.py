"""Conversion of a language model from a GGUF file to a folder that sentence-transformers reads.

GGUF is llama.cpp's format. transformers takes long to read such a file, at every load, so this
module converts it once and stores the result.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import shutil
import struct
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, BinaryIO

import torch

from genre_lightning.errors import UserError
from genre_lightning.files import hash_parts
from genre_lightning.store import DEFAULT_CACHE_DIR, content_key, stored_folder

logger = logging.getLogger(__name__)

#: Part of the keys of the folder and of its vectors: raise it when the same file gives a folder
#: with different vectors.
FOLDER_VERSION = 1
#: Part of the folder's key alone: raise it when the folder changes but its vectors do not.
FOLDER_LAYOUT = 2
#: Maximum tokens of a chunk. Most plots are shorter.
_MAX_TOKENS = 512
_WEIGHTS = "model.safetensors"


def gguf_folder(name: str, parts: Sequence[Path], sha256: str, blocks: int | None) -> Path:
    """Return a model's folder, building it first if needed.

    The folder is stored with the caches (``GENRE_LIGHTNING_CACHE``). Weights are float16, whatever
    their quantisation. A text's vector is the mean over its tokens, weighted by position, since
    later tokens have seen more of the text (Muennighoff 2022, SGPT), followed by the last token's
    vector.

    Args:
        name: of the encoder.
        parts: of the GGUF file, in order.
        sha256: of the whole file, see :func:`genre_lightning.files.hash_parts`.
        blocks: number of the network's blocks that are kept, from the first; None for all.

    Raises:
        UserError: the file's hash differs.
        CacheError: the folder can't be written.
    """

    def build(folder: Path) -> None:
        if (actual := hash_parts(parts)) != sha256:
            raise UserError(f"{parts[0]} and its other parts: SHA-256 {actual}, not {sha256}")
        logger.info("reading the encoder %s for the first time: up to half a minute", name)
        _build(folder, parts, blocks)

    key = content_key(FOLDER_VERSION, FOLDER_LAYOUT, sha256, blocks)
    cache_dir = os.environ.get("GENRE_LIGHTNING_CACHE", DEFAULT_CACHE_DIR)
    return stored_folder(cache_dir, f"encoder_{name}", key, build)


def _build(folder: Path, parts: Sequence[Path], blocks: int | None) -> None:
    transformers = importlib.import_module("transformers")
    safetensors = importlib.import_module("safetensors.torch")
    whole, network = folder / "whole.gguf", folder / "network.gguf"
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, 2**20)
    write_without_vocabulary(whole, network)
    # transformers draws progress bars here, which can't be switched off.
    with redirect_stderr(io.StringIO()):
        model = transformers.AutoModel.from_pretrained(
            folder,
            gguf_file=network.name,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
        tokenizer = _read_tokenizer(whole, model.config.model_type)
    whole.unlink()
    network.unlink()
    _save_tokenizer(tokenizer, folder)
    config = model.config
    num_blocks = config.num_hidden_layers if blocks is None else blocks
    config.num_hidden_layers = num_blocks
    # Models with several kinds of blocks list the kind of each.
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_blocks]
    # With this setting transformers would read the weights as a GGUF file again.
    del config.quantization_config
    config.save_pretrained(folder)
    dropped = tuple(f"layers.{number}." for number in range(num_blocks, len(model.layers)))
    state = {
        key: tensor.to(torch.float16).contiguous()
        for key, tensor in model.state_dict().items()
        if not key.startswith(dropped)
    }
    safetensors.save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    _write_json(
        folder / "modules.json",
        [
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for number, (path, kind) in enumerate(modules)
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": _MAX_TOKENS})
    (folder / "1_Pooling").mkdir()
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "embedding_dimension": config.hidden_size,
            "pooling_mode": ["weightedmean", "lasttoken"],
        },
    )


def _read_tokenizer(whole: Path, model_type: str) -> Any:
    tokenizer_class = importlib.import_module("transformers").AutoTokenizer
    arguments = {"gguf_file": whole.name, "local_files_only": True, "trust_remote_code": False}
    try:
        # Given the model's type, transformers doesn't also read the network's settings.
        return tokenizer_class.from_pretrained(whole.parent, tokenizer_type=model_type, **arguments)
    except ValueError:  # transformers has no tokenizer of that type
        return tokenizer_class.from_pretrained(whole.parent, **arguments)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer in the form that transformers opens fastest.

    If the settings name a model's class, transformers parses ``tokenizer.json`` and rebuilds the
    same tokenizer; if they list no added tokens, it reads the file again to find them. Opening
    Gemma's 262,144 tokens then takes 2.7 s of a core instead of 1.3.
    """
    tokenizer.save_pretrained(folder)
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": tokenizer.padding_side,
        "added_tokens_decoder": {token.pop("id"): token for token in added},
    }
    _write_json(path, settings)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


#: Bytes of a value by its type: integers, floating-point numbers and booleans.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9


def write_without_vocabulary(whole: Path, network: Path) -> None:
    """Copy a GGUF file without its lists of tokens, keeping their number.

    transformers reads a network and its settings some 20 seconds faster from the copy, since it
    would parse the lists, which have an entry for each token, without using them.
    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    with whole.open("rb") as file, network.open("wb") as out:
        magic, version, num_tensors, num_settings = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version < 2:
            raise UserError(f"{whole}: not a GGUF file of version 2 or 3")
        settings: dict[bytes, bytes] = {}
        architecture, num_tokens, alignment = b"", 0, 32
        for _ in range(num_settings):
            name = _read_string(file)
            start = file.tell()
            (kind,) = struct.unpack("<I", file.read(4))
            length = _skip_value(file, kind)
            end = file.tell()
            if kind == _ARRAY and name.startswith(b"tokenizer."):
                if name == b"tokenizer.ggml.tokens":
                    num_tokens = length
                continue
            file.seek(start)
            settings[name] = file.read(end - start)
            if name == b"general.architecture":
                architecture = settings[name][12:]
            if name == b"general.alignment":
                (alignment,) = struct.unpack_from("<I", settings[name], 4)
        # Without this setting transformers would count the tokens, which the copy lacks.
        settings.setdefault(architecture + b".vocab_size", struct.pack("<II", _UINT32, num_tokens))
        start = file.tell()
        for _ in range(num_tensors):
            _read_string(file)
            (dimensions,) = struct.unpack("<I", file.read(4))
            file.seek(8 * dimensions + 4 + 8, os.SEEK_CUR)
        end = file.tell()
        file.seek(start)
        out.write(struct.pack("<4sIQQ", magic, version, num_tensors, len(settings)))
        for name, value in settings.items():
            out.write(struct.pack("<Q", len(name)) + name + value)
        out.write(file.read(end - start))
        # In both files, the offsets of tensors count from here.
        file.seek(-end % alignment, os.SEEK_CUR)
        out.write(bytes(-out.tell() % alignment))
        shutil.copyfileobj(file, out, 2**20)


def _read_string(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length)


def _skip_value(file: BinaryIO, kind: int) -> int:
    """Skip a value and return an array's number of items, or 1 for other types."""
    if kind == _STRING:
        _read_string(file)
    elif kind == _ARRAY:
        item_kind, length = struct.unpack("<IQ", file.read(12))
        if item_kind in _SIZES:
            file.seek(_SIZES[item_kind] * length, os.SEEK_CUR)
        else:
            for _ in range(length):
                _skip_value(file, item_kind)
        return int(length)
    else:
        file.seek(_SIZES[kind], os.SEEK_CUR)
    return 1
