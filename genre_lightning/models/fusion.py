"""The network: a title branch and a poster branch whose logits are summed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genre_lightning.models.poster_resnet import PosterResNet
from genre_lightning.models.terms_mlp import TitleMLP

#: How a (B, G) array of logits becomes scores in [0, 1], by the name a checkpoint stores.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: torch.softmax(logits, dim=-1),
}


class Fusion(nn.Module):
    """Sum of the logits of a title branch and a poster branch; either may be absent.

    A movie without a poster gets nothing from the poster branch: its logits are the title's alone.
    So posters come compact, only those that exist, with the batch row each belongs to.

    Args:
        num_genres: G.
        title: maps (indices (L,), offsets (B,), weights (L,)) to (B, G) logits; None for no titles.
        poster: maps (P, 3, H, W) normalised posters to (P, G) logits; None for no posters.

    Raises:
        ValueError: if both branches are None.
    """

    def __init__(self, num_genres: int, title: nn.Module | None, poster: nn.Module | None) -> None:
        super().__init__()
        if title is None and poster is None:
            raise ValueError("a network needs a title branch or a poster branch, or both")
        self.num_genres = num_genres
        self.title = title
        self.poster = poster
        #: Plain data that rebuilds this network; set by :func:`build_network`.
        self.description: dict[str, Any] = {}
        #: (G,) what every movie's logits start from; zero unless training set it. Constant.
        self.prior: Tensor
        self.register_buffer("prior", torch.zeros(num_genres))

    @torch.no_grad()
    def start_from_priors(self, genre_counts: Sequence[int], num_movies: int) -> None:
        """Let the logits start from the log-odds of each genre among the training movies.

        Otherwise the first steps go into learning that most movies lack most genres, and the rare
        genres start from a flood of negatives (Lin et al. 2017, section 3.3). A movie about which
        the branches know nothing, as one without a poster in a poster-only network, then scores as
        often as the genre occurs. The output biases of the branches start from zero.

        Args:
            genre_counts: (G,) training movies that have each genre.
            num_movies: training movies in all.
        """
        counts = torch.tensor(genre_counts, dtype=torch.float32)
        self.prior.copy_(((counts + 0.5) / (num_movies - counts + 0.5)).log())
        for branch in (self.title, self.poster):
            if branch is not None:
                nn.init.zeros_(branch.get_parameter("head.bias"))

    def forward(
        self,
        title_indices: Tensor,
        title_offsets: Tensor,
        title_weights: Tensor,
        posters: Tensor,
        poster_rows: Tensor,
    ) -> Tensor:
        """Score a batch.

        Args:
            title_indices: (L,) int64.
            title_offsets: (B,) int64.
            title_weights: (L,) float32.
            posters: (P, 3, H, W) float, normalised; P <= B.
            poster_rows: (P,) int64, the row in [0, B) of each poster, without repeats.

        Returns:
            (B, G) float32 logits, the sum of the branches' and the prior.
        """
        title, poster = self.branch_logits(
            title_indices, title_offsets, title_weights, posters, poster_rows
        )
        return self.prior + title + poster

    def branch_logits(
        self,
        title_indices: Tensor,
        title_offsets: Tensor,
        title_weights: Tensor,
        posters: Tensor,
        poster_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What each branch adds: two (B, G) float32 arrays, zero where a branch has nothing to say.

        Arguments are those of :meth:`forward`.
        """
        shape = (title_offsets.shape[0], self.num_genres)
        title_logits = torch.zeros(shape, device=title_offsets.device)
        poster_logits = torch.zeros(shape, device=title_offsets.device)
        if self.title is not None:
            title_logits = self.title(title_indices, title_offsets, title_weights).float()
        if self.poster is not None:
            if posters.shape[0] > 0:
                seen = self.poster(posters).float()
                poster_logits = poster_logits.index_add(0, poster_rows, seen)
            else:
                # Distributed training waits for a gradient of every parameter on every rank, also
                # on one whose share of the batch has no poster.
                nothing = sum(parameter.sum() for parameter in self.poster.parameters())
                poster_logits = poster_logits + 0.0 * nothing
        return title_logits, poster_logits


@dataclass(frozen=True)
class BranchType:
    """A kind of branch a network can be built from.

    Attributes:
        factory: the class; its arguments are plain numbers and lists of them.
        limits: inclusive range of each numeric argument. A description can come from a stranger's
            checkpoint, so nothing is built that no honest network needs.
    """

    factory: type[nn.Module]
    limits: Mapping[str, tuple[float, float]]


#: Every branch by the short name that configs and checkpoints use. A new branch is a line here.
BRANCHES: dict[str, BranchType] = {
    "title_mlp": BranchType(
        TitleMLP,
        {
            "vocabulary_size": (1, 1_048_576),
            "hidden": (1, 8192),
            "dropout": (0.0, 0.99),
            "skip": (0, 1),
        },
    ),
    "poster_resnet": BranchType(
        PosterResNet,
        {
            "widths": (1, 4096),
            "blocks": (1, 64),
            "stem_kernel": (1, 16),
            "stem_stride": (1, 16),
            "first_stride": (1, 4),
            "dropout": (0.0, 0.99),
        },
    ),
}

MAX_GENRES = 4096
MAX_PARAMETERS = 500_000_000


def complete_description(
    num_genres: int,
    title: Mapping[str, Any] | None,
    poster: Mapping[str, Any] | None,
    dropout: float | None = None,
) -> dict[str, Any]:
    """Check a network's parts and fill in every default, so that the result alone rebuilds it.

    Args:
        num_genres: G.
        title: ``{"name": a key of BRANCHES, argument: number, ...}``, or None for no such branch.
        poster: the same for the poster branch.
        dropout: dropout of the branches that name none of their own.

    Returns:
        Plain data with the keys ``num_genres``, ``title`` and ``poster``.

    Raises:
        ValueError: naming the key that is unknown, of a wrong type or out of its range.
    """
    if type(num_genres) is not int or not 1 <= num_genres <= MAX_GENRES:
        raise ValueError(
            f"num_genres must be a whole number in 1..{MAX_GENRES}, not {num_genres!r}"
        )
    parts = {"title": title, "poster": poster}
    for key, part in parts.items():
        # Annotations bind no stranger's file.
        if not isinstance(part, (Mapping, type(None))):
            raise ValueError(f"model.{key} must be a mapping or null, not {part!r}")
    return {
        "num_genres": num_genres,
        **{key: _complete_part(key, part, dropout) for key, part in parts.items()},
    }


def _complete_part(
    key: str, part: Mapping[str, Any] | None, dropout: float | None
) -> dict[str, Any] | None:
    if part is None:
        return None
    if "name" not in part:
        raise ValueError(f"model.{key} must be a mapping with a 'name' out of {sorted(BRANCHES)}")
    name = part["name"]
    if not isinstance(name, str) or name not in BRANCHES or not name.startswith(key):
        known = sorted(known for known in BRANCHES if known.startswith(key))
        raise ValueError(f"model.{key}.name is {name!r}; known {key} branches are {known}")
    branch = BRANCHES[name]
    signature = inspect.signature(branch.factory).parameters
    complete: dict[str, Any] = {"name": name}
    for argument, parameter in signature.items():
        if argument == "num_genres":
            continue
        default = parameter.default
        if argument == "dropout" and dropout is not None:
            default = dropout
        complete[argument] = _check(
            f"model.{key}.{argument}", part.get(argument, default), default, branch.limits[argument]
        )
    unknown = sorted(set(part) - set(complete))
    if unknown:
        options = sorted(set(complete) - {"name"})
        raise ValueError(f"model.{key} has no argument {unknown[0]!r}; {name} takes {options}")
    return complete


def _check(key: str, value: Any, default: Any, limits: tuple[float, float]) -> Any:
    """One argument of a branch: of its default's type and inside its limits."""
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 16:
            raise ValueError(f"{key} must be a list of 1 to 16 numbers, not {value!r}")
        return [_check(key, item, default[0], limits) for item in value]
    wanted = (int, float) if isinstance(default, float) else (type(default),)
    if type(value) not in wanted:
        raise ValueError(f"{key} must be a {wanted[-1].__name__}, not {value!r}")
    if not limits[0] <= value <= limits[1]:  # also refuses nan
        raise ValueError(f"{key} is {value!r}, outside {limits[0]}..{limits[1]}")
    return float(value) if isinstance(default, float) else value


def build_network(
    num_genres: int,
    title: Mapping[str, Any] | None = None,
    poster: Mapping[str, Any] | None = None,
    dropout: float | None = None,
) -> Fusion:
    """Build a network from plain data: what ``conf/model`` holds and what a checkpoint stores.

    Arguments are those of :func:`complete_description`.

    Returns:
        A :class:`Fusion` with freshly initialised weights; its ``description`` is the complete
        plain data.

    Raises:
        ValueError: for a bad description, before anything large is allocated.
    """
    description = complete_description(num_genres, title, poster, dropout)
    sketch_network(description)
    network = _assemble(description)
    network.description = description
    return network


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are instead of drawing them.

    On the meta device there is nothing to draw, and asking for it makes PyTorch import its
    compiler, which takes longer than importing PyTorch itself.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Most of torch.nn.init asks here as a whole, the rest for the method it comes down to.
        from_init = getattr(func, "__module__", None) == "torch.nn.init"
        if from_init or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def sketch_network(description: Mapping[str, Any]) -> Fusion:
    """The network of a complete description without memory for its weights (meta device).

    Raises:
        ValueError: it would have more than ``MAX_PARAMETERS`` parameters.
    """
    with torch.device("meta"), _Undrawn():
        sketch = _assemble(description)
    parameters = sum(parameter.numel() for parameter in sketch.parameters())
    if parameters > MAX_PARAMETERS:
        raise ValueError(
            f"the network would have {parameters:,} parameters, over {MAX_PARAMETERS:,}"
        )
    return sketch


def _assemble(description: Mapping[str, Any]) -> Fusion:
    branches: dict[str, nn.Module | None] = {}
    for key in ("title", "poster"):
        part = description[key]
        if part is None:
            branches[key] = None
            continue
        arguments = {name: value for name, value in part.items() if name != "name"}
        factory = BRANCHES[part["name"]].factory
        branches[key] = factory(num_genres=description["num_genres"], **arguments)
    return Fusion(description["num_genres"], branches["title"], branches["poster"])
