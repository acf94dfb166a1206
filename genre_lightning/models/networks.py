"""The table of networks, and building a model from a list of branches.

To add a network, write a module and list it here. Its constructor takes ``num_genres``, the
arguments from its input (:meth:`genre_lightning.inputs.input.Input.network_arguments`), and numbers
or lists of numbers; its ``forward`` takes the input's numbers by name; its last layer is called
``head``.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genre_lightning.inputs.encoders.table import is_image_encoder
from genre_lightning.inputs.input import MAX_WIDTH, Input
from genre_lightning.inputs.vectorizer import MAX_VOCABULARY_SIZE
from genre_lightning.models.embedding_head import NORMS, EmbeddingHead
from genre_lightning.models.fusion import Fusion
from genre_lightning.models.members import Ensemble, networks_of
from genre_lightning.models.poster_encoder import PosterEncoder
from genre_lightning.models.poster_resnet import PosterResNet
from genre_lightning.models.terms_linear import TermsLinear
from genre_lightning.models.terms_mlp import TermsMLP

logger = logging.getLogger(__name__)

MAX_GENRES = 4096
MAX_BRANCHES = 64
MAX_MEMBERS = 256
MAX_PARAMETERS = 500_000_000

_BRANCH_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


#: See :class:`NetworkType`.
Limits: TypeAlias = tuple[float, float] | tuple[str, ...] | Callable[[str], bool]


@dataclass(frozen=True)
class NetworkType:
    """A kind of network that a branch can have.

    Attributes:
        factory: the class; its arguments are numbers, lists of numbers, and words. If it has a
            method ``load_pretrained``, this is called once before training.
        takes: what its input must give: "terms", "pixels" or "vectors".
        limits: by argument, its inclusive range, the words it can be, or a function that says
            whether it can be a word. A description can come from an untrusted checkpoint, so only
            sizes that an honest network needs are allowed.
    """

    factory: type[nn.Module]
    takes: str
    limits: Mapping[str, Limits]


#: Every network by the short name that configs and checkpoints use. A new network is a line here.
NETWORKS: dict[str, NetworkType] = {
    "terms_mlp": NetworkType(
        TermsMLP,
        "terms",
        {
            "vocabulary_size": (1, MAX_VOCABULARY_SIZE),
            "hidden": (1, 8192),
            "dropout": (0.0, 0.99),
            "skip": (0, 1),
        },
    ),
    "terms_linear": NetworkType(
        TermsLinear,
        "terms",
        {
            "vocabulary_size": (1, MAX_VOCABULARY_SIZE),
            "input_dropout": (0.0, 0.99),
            "members": (1, MAX_MEMBERS),
        },
    ),
    "poster_resnet": NetworkType(
        PosterResNet,
        "pixels",
        {
            "size": (1, 4096),
            "widths": (1, 4096),
            "blocks": (1, 64),
            "stem_kernel": (1, 16),
            "stem_stride": (1, 16),
            "first_stride": (1, 4),
            "dropout": (0.0, 0.99),
        },
    ),
    "embedding_head": NetworkType(
        EmbeddingHead,
        "vectors",
        {
            "width": (1, MAX_WIDTH),
            "hidden": (0, 8192),
            "norm": NORMS,
            "input_dropout": (0.0, 0.99),
            "dropout": (0.0, 0.99),
            "members": (1, MAX_MEMBERS),
        },
    ),
    "poster_encoder": NetworkType(
        PosterEncoder,
        "pixels",
        {
            "size": (1, 4096),
            "encoder": is_image_encoder,
            "dropout": (0.0, 0.99),
            "layer_decay": (0.01, 1.0),
            "frozen_layers": (0, 1000),
            "encoder_lr": (0.0, 10.0),
        },
    ),
}


def build_network(
    num_genres: int,
    branches: Mapping[str, Mapping[str, Any]],
    inputs: Mapping[str, Input],
    **shared: Any,
) -> Fusion:
    """Build a model from its branches, as ``conf/model`` describes them.

    Args:
        num_genres: G.
        branches: by branch, ``{"name": a key of NETWORKS, argument: number, ...}``, in the order
            in which they are summed.
        inputs: inputs of the same branches; they set the sizes that the networks take.
        shared: arguments for every network that takes them and doesn't set them itself, such as
            ``dropout`` and ``members``; None leaves the network's default.

    Returns:
        A :class:`Fusion` with freshly initialised weights; its ``description`` is the complete
        plain data from which :func:`sketch_network` rebuilds it.

    Raises:
        ValueError: the description is bad; raised before anything large is allocated.
    """
    check_takes(branches, inputs)
    described = {
        name: {**_drop_unused_arguments(name, network), **inputs[name].network_arguments()}
        for name, network in branches.items()
    }
    description = complete_description(num_genres, described, shared)
    check_fit(description, inputs)
    members = {network.get("members", 1) for network in description["branches"].values()} - {1}
    if len(members) > 1:
        raise ValueError(
            f"model.members: the branches have {' and '.join(map(str, sorted(members)))} members; "
            "those that have more than one must have as many, since each one is trained on the sum"
        )
    sketch_network(description)  # refuses too many parameters before allocating them
    network = _assemble(description)
    network.description = description
    for branch in network.branches.values():
        for each in networks_of(branch):
            load_pretrained = getattr(each, "load_pretrained", None)
            if callable(load_pretrained):
                load_pretrained()
    return network


def _drop_unused_arguments(branch: str, network: Mapping[str, Any]) -> dict[str, Any]:
    """Drop arguments of a branch's default network that the chosen one doesn't take.

    They stay in the configuration when the command line only changes the network's name.
    """
    network_type = NETWORKS.get(network.get("name", ""))
    if network_type is None:
        return dict(network)
    unused = [
        argument
        for argument in network
        if argument not in {*network_type.limits, "members"}
        and any(argument in other.limits for other in NETWORKS.values())
    ]
    if unused:
        logger.warning(
            "model.branches.%s: the network %s takes no %s: left out",
            branch,
            network["name"],
            ", ".join(unused),
        )
    return {argument: value for argument, value in network.items() if argument not in unused}


def complete_description(
    num_genres: Any, branches: Any, shared: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check a model's networks and fill in every default, so that the result alone rebuilds them.

    Args:
        num_genres: G.
        branches: by branch, a network's name and arguments, including those from its input.
        shared: as for :func:`build_network`.

    Returns:
        Plain data with the keys ``num_genres`` and ``branches``.

    Raises:
        ValueError: naming the key that is unknown, of the wrong type or out of range.
    """
    if type(num_genres) is not int or not 1 <= num_genres <= MAX_GENRES:
        raise ValueError(
            f"num_genres must be a whole number in 1..{MAX_GENRES}, not {num_genres!r}"
        )
    if not isinstance(branches, dict) or not 1 <= len(branches) <= MAX_BRANCHES:
        raise ValueError(f"a model has 1 to {MAX_BRANCHES} branches by name")
    for name in branches:
        if problem := branch_name_problem(name):
            raise ValueError(
                f"model.branches.{name!s:.100}: not a valid name of a branch: {problem}"
            )
    return {
        "num_genres": num_genres,
        "branches": {
            name: _complete_network(f"model.branches.{name}.network", network, shared or {})
            for name, network in branches.items()
        },
    }


def branch_name_problem(name: Any) -> str | None:
    """Why a branch can't have this name; None if it can."""
    if not isinstance(name, str) or not _BRANCH_NAME.fullmatch(name):
        return "at most 64 letters, digits and _, a letter first"
    if hasattr(nn.ModuleDict, name):  # which refuses the names of its own attributes
        return f"PyTorch uses it itself; choose another, such as {name}_text"
    return None


def check_fit(description: Mapping[str, Any], inputs: Mapping[str, Input]) -> None:
    """Refuse a model whose networks and inputs do not fit together.

    Raises:
        ValueError: naming the branch.
    """
    branches = description["branches"]
    if list(branches) != list(inputs):
        raise ValueError(f"its branches are {', '.join(branches)}, its inputs {', '.join(inputs)}")
    for name, network in branches.items():
        _check_takes(name, network["name"], inputs[name])
        for argument, value in inputs[name].network_arguments().items():
            if network[argument] != value:
                raise ValueError(
                    f"model.branches.{name}: its network is made for {argument} "
                    f"{network[argument]}, and its input gives {value}"
                )


def check_takes(branches: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Input]) -> None:
    """Refuse a network that takes other numbers than its input gives.

    Args:
        branches: see :func:`build_network`, which refuses unknown names.
        inputs: inputs of the same branches; they need not be fitted.

    Raises:
        ValueError: naming the branch.
    """
    for name, network in branches.items():
        if network.get("name") in NETWORKS:
            _check_takes(name, network["name"], inputs[name])


def _check_takes(branch: str, network: str, branch_input: Input) -> None:
    """Refuse a network that takes other numbers than the branch's input gives."""
    takes = NETWORKS[network].takes
    if branch_input.gives != takes:
        fitting = ", ".join(
            name
            for name, network_type in NETWORKS.items()
            if network_type.takes == branch_input.gives
        )
        raise ValueError(
            f"model.branches.{branch}: the network {network} takes {takes}, and the input "
            f"{branch_input.kind} gives {branch_input.gives}; networks of {branch_input.gives}: "
            f"{fitting or 'none'}"
        )


def _complete_network(key: str, network: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return one network's name and all of its arguments, each checked.

    An argument's value comes from ``network``, else from ``shared``, else from the class's default.

    Args:
        key: key of the network in the configuration, for messages.
        network: ``name`` and arguments; can be untrusted.
        shared: as for :func:`build_network`.

    Raises:
        ValueError: naming the key that is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(network, Mapping):
        raise ValueError(f"{key} must be a mapping with a name, not {network!r:.100}")
    name = network.get("name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"{key}.name is {name!r:.100}; there is {', '.join(NETWORKS)}")
    network_type = NETWORKS[name]
    complete: dict[str, Any] = {"name": name}
    for argument, parameter in inspect.signature(network_type.factory).parameters.items():
        if argument == "num_genres":
            continue
        complete[argument] = _complete_argument(key, network, shared, parameter)
    if "members" not in network_type.limits:
        # Ensemble repeats such a network; a single one needs no entry.
        members = network.get("members", shared.get("members") or 1)
        members = _checked_argument(f"{key}.members", members, 1, (1, MAX_MEMBERS))
        if members > 1:
            complete["members"] = members
    unknown = sorted(set(network) - {*complete, "members"})
    if unknown:
        options = sorted(set(complete) - {"name"})
        raise ValueError(f"{key} has no argument {unknown[0]!r:.100}; {name} takes {options}")
    return complete


def _complete_argument(
    key: str, network: Mapping[str, Any], shared: Mapping[str, Any], parameter: inspect.Parameter
) -> Any:
    """Return the value of one argument; arguments and errors as in :func:`_complete_network`."""
    name, argument, default = network["name"], parameter.name, parameter.default
    limits = NETWORKS[name].limits.get(argument)
    if limits is None:
        raise ValueError(f"{key}: NETWORKS[{name!r}] has no range for the argument {argument}")
    if shared.get(argument) is not None:
        default = _checked_argument(f"model.{argument}", shared[argument], default, limits)
    if default is parameter.empty and argument not in network:
        raise ValueError(f"{key}: {name} needs {argument}")
    if default is parameter.empty:  # stands for the expected type alone
        default = (0,) if "Sequence" in str(parameter.annotation) else 0
    return _checked_argument(f"{key}.{argument}", network.get(argument, default), default, limits)


def _checked_argument(key: str, value: Any, default: Any, limits: Limits) -> Any:
    """Check one argument of a network and return it as the class takes it.

    Args:
        key: key of the argument, for messages.
        value: can be untrusted.
        default: the value must have its type; an int can stand for a float.
        limits: see :class:`NetworkType`; for a list, those of each item.

    Raises:
        ValueError: the value has another type or is outside of its limits.
    """
    if callable(limits):
        if type(value) is not str or not limits(value):
            raise ValueError(f"{key} is {value!r:.100}, which is not known")
        return value
    if isinstance(limits[0], str):
        if value not in limits:
            raise ValueError(f"{key} is {value!r:.100}, none of {', '.join(limits)}")
        return value
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 16:
            raise ValueError(f"{key} must be a list of 1 to 16 numbers, not {value!r:.100}")
        return [_checked_argument(key, item, default[0], limits) for item in value]
    allowed_types = (int, float) if isinstance(default, float) else (type(default),)
    if type(value) not in allowed_types:
        type_name = allowed_types[-1].__name__
        article = "an" if type_name == "int" else "a"
        raise ValueError(f"{key} must be {article} {type_name}, not {value!r:.100}")
    if not limits[0] <= value <= limits[1]:  # also refuses nan
        raise ValueError(f"{key} is {value!r}, outside {limits[0]}..{limits[1]}")
    return float(value) if isinstance(default, float) else value


class _SkipInit(TorchFunctionMode):
    """Skips the initialisation of weights.

    On the meta device there is nothing to initialise, and trying to makes PyTorch import its
    compiler, which takes longer than importing PyTorch itself.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Most functions of torch.nn.init are intercepted here, the others by the method they call.
        from_init = getattr(func, "__module__", None) == "torch.nn.init"
        if from_init or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def sketch_network(description: Mapping[str, Any]) -> Fusion:
    """Build the network of a complete description on the meta device, without allocating weights.

    Raises:
        ValueError: the network would have more than ``MAX_PARAMETERS`` parameters.
    """
    with torch.device("meta"), _SkipInit():
        sketch = _assemble(description)
    num_parameters = sum(parameter.numel() for parameter in sketch.parameters())
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"the network would have {num_parameters:,} parameters, over {MAX_PARAMETERS:,}"
        )
    return sketch


def fill_constants(network: Fusion) -> None:
    """Compute the buffers that a sketch still lacks after its weights are loaded, on their device.

    Some image encoders have buffers that follow from the architecture, such as positions within a
    window. Checkpoints do not hold them.
    """
    missing = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    if not missing:
        return
    with torch.random.fork_rng(devices=[]):
        computed = dict(_assemble(network.description).named_buffers())
    for name in missing:
        owner, _, buffer_name = name.rpartition(".")
        value = computed[name].to(network.prior.device)
        network.get_submodule(owner).register_buffer(buffer_name, value, persistent=False)


def _assemble(description: Mapping[str, Any]) -> Fusion:
    """Build the network of a complete description on PyTorch's current default device."""
    branches: dict[str, nn.Module] = {}
    for name, network in description["branches"].items():
        arguments = {key: value for key, value in network.items() if key != "name"}
        network_type = NETWORKS[network["name"]]
        build = partial(network_type.factory, num_genres=description["num_genres"])
        members = 1 if "members" in network_type.limits else arguments.pop("members", 1)
        branches[name] = (
            build(**arguments)
            if members == 1
            else Ensemble([build(**arguments) for _ in range(members)])
        )
    return Fusion(description["num_genres"], branches)
