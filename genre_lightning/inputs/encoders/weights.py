"""The weights of pretrained encoders: where they are, how to get them, and their hash."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

from genre_lightning.files import hash_parts
from genre_lightning.inputs.encoders.gguf_folder import gguf_folder
from genre_lightning.inputs.encoders.libraries import find_module, import_library, not_installed
from genre_lightning.inputs.encoders.spec import (
    EncoderError,
    EncoderSpec,
    Gguf,
    Hub,
    Local,
    Packaged,
)
from genre_lightning.inputs.encoders.table import ENCODERS

#: Environment variable with a folder of weights that otherwise come from the hub, by short name:
#: ``mpnet/``, ``clip.safetensors``. For machines without access to the hub.
ENCODERS_FOLDER = "GENRE_LIGHTNING_ENCODERS"


def find_weights(spec: EncoderSpec) -> Path:
    """Return the weights' file or a text encoder's folder, downloading it if that is allowed.

    Raises:
        EncoderError: the weights are not on this machine; the message says what to do.
    """
    origin = spec.origin
    if isinstance(origin, Local):
        path = Path(origin.path)
        if not path.exists():
            raise EncoderError(f"the weights of encoder {spec.name!r} are not at {path}")
        return path
    if isinstance(origin, Packaged):
        return find_packaged(origin, spec.name)
    if isinstance(origin, Gguf):
        parts = _find_parts(spec, origin)
        for library in ("gguf", "accelerate"):
            if find_module(library) is None:
                raise not_installed(library, spec.name)
        import_library("transformers", spec.name)
        return gguf_folder(spec.name, parts, spec.sha256 or hash_parts(parts), origin.blocks)
    return _find_at_hub(spec, origin)


def find_packaged(origin: Packaged, encoder: str) -> Path:
    """Return the weights' file in an installed package, without importing the package.

    Raises:
        EncoderError: the package is not installed, or lacks the file.
    """
    module_spec = find_module(origin.module)
    if module_spec is None or not module_spec.submodule_search_locations:
        raise not_installed(origin.package, encoder)
    path = Path(module_spec.submodule_search_locations[0]) / origin.path
    if not path.exists():
        raise EncoderError(
            f"the package {origin.package} lacks {origin.path}, the weights of encoder "
            f"{encoder!r}: install it again, in the version that constraints.txt names"
        )
    return path


def _find_parts(spec: EncoderSpec, origin: Gguf) -> list[Path]:
    return [find_packaged(part, spec.name) for part in origin.parts]


def _find_at_hub(spec: EncoderSpec, origin: Hub) -> Path:
    """Return a file or folder of the hub: the user's copy, a cached one, or a new download.

    Raises:
        EncoderError: the weights are not on this machine, and downloading is not allowed or fails.
    """
    if spec.name in ENCODERS and (folder := os.environ.get(ENCODERS_FOLDER)):
        path = Path(folder).expanduser() / spec.name
        if origin.file is not None:
            path = path.with_name(spec.name + Path(origin.file).suffix)
        if path.exists():
            return path
    hub = import_library("huggingface_hub", spec.name)
    pinned: dict[str, Any] = {"repo_id": origin.repository, "revision": origin.revision}

    def fetch(local_files_only: bool) -> Path:
        if origin.file is not None:
            return Path(
                hub.hf_hub_download(
                    filename=origin.file, local_files_only=local_files_only, **pinned
                )
            )
        # No code and no pickles: files that these patterns exclude are not even fetched.
        return Path(
            hub.snapshot_download(
                allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"],
                ignore_patterns=["onnx/*", "openvino/*"],
                local_files_only=local_files_only,
                **pinned,
            )
        )

    try:
        return fetch(local_files_only=True)
    except OSError:
        pass
    if not spec.download:
        file = f" {origin.file}" if origin.file else ""
        at = f" --revision {origin.revision}" if origin.revision else ""
        raise EncoderError(
            f"the weights of encoder {spec.name!r} are not on this machine, and a checkpoint can't "
            f"start their download: hf download {origin.repository}{file}{at}"
        )
    try:
        # One request without retries: without a network a download would retry for half a minute.
        url = hub.hf_hub_url(
            filename=origin.file or "modules.json", **{k: v for k, v in pinned.items() if v}
        )
        hub.get_hf_file_metadata(url)
        return fetch(local_files_only=False)
    # The hub's errors are OSErrors, except for a failed connection (an error of its HTTP library)
    # and a file that is not in the repository.
    except (OSError, hub.errors.EntryNotFoundError, *_http_errors()) as error:
        raise EncoderError(
            f"the weights of encoder {spec.name!r} are not on this machine and can't be downloaded "
            f"from {origin.repository} at the Hugging Face hub ({type(error).__name__}): connect "
            f"to it once{_alternatives(spec)}"
        ) from error


def _alternatives(spec: EncoderSpec) -> str:
    """Return the message's part about alternatives to the hub."""
    if spec.name in ENCODERS:
        return f", or name a folder that holds them in {ENCODERS_FOLDER}, see the documentation"
    return ", or pass weights=FILE.safetensors with timm:NAME" if spec.kind == "image" else ""


def _http_errors() -> tuple[type[Exception], ...]:
    """Return the base errors of the HTTP libraries that huggingface_hub can use."""
    errors: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        if find_module(name) is not None:
            errors.append(importlib.import_module(name).HTTPError)
    return tuple(errors)


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of an encoder's weights, 64 hex digits.

    For a file, this is the hash of its content. For a text encoder's folder, it is the hash of the
    lines that ``sha256sum`` prints for its files, sorted by name: weights, tokenizer and settings,
    all of which change the vectors.
    """
    if path.is_file():
        return hash_parts([path])
    lines = [f"{hash_parts([path / name])}  {name}\n" for name in text_files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_sha256(spec: EncoderSpec) -> str:
    """Return the hash of an encoder's weights without opening it, as a key for computed vectors.

    Packaged weights have a known hash; others are read (and downloaded if allowed).
    """
    return spec.sha256 if spec.sha256 is not None else compute_sha256(spec)


def compute_sha256(spec: EncoderSpec) -> str:
    """Return the hash of the weights on this machine; for GGUF, of the file and not the folder."""
    if isinstance(spec.origin, Gguf):
        return hash_parts(_find_parts(spec, spec.origin))
    return hash_weights(find_weights(spec))


def text_files(folder: Path) -> list[str]:
    """Return the names, sorted, of the files in a text encoder's folder that affect its vectors."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    parts = {"", *(str(module.get("path", "")) for module in modules)}
    names = {
        path.relative_to(folder).as_posix()
        for part in parts
        for path in (folder / part).glob("*")
        if path.suffix in (".json", ".txt", ".safetensors", ".model") and path.is_file()
    }
    return sorted(names)
