"""L-BFGS with an L2 penalty, which takes linear heads to their optimum in a few dozen passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor


@final
class LBFGS(torch.optim.LBFGS):
    """PyTorch's L-BFGS (Liu and Nocedal 1989) with a line search and an L2 penalty.

    The loss of linear heads on fixed vectors is convex, and if all of train fits into one batch its
    optimum is found without a learning rate to tune. This is a logistic regression for all genres
    and branches at once.

    Args:
        params: parameters or parameter groups. A group's ``weight_decay`` is the factor of its
            penalty: half of it times the sum of squares is added to the loss. A group with ``lr`` 0
            is not changed.
        lr: first step that each line search tries; the result hardly depends on it.
        weight_decay: weight decay of groups that do not set it.
        max_iter: iterations per step, each of which evaluates the batch once or a few times.
        history_size: number of past iterations from which the curvature is estimated.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        weight_decay: float = 0.0,
        max_iter: int = 25,
        history_size: int = 20,
    ) -> None:
        trainable: list[Tensor] = []
        self._penalties: list[float] = []
        for item in params:
            group: dict[str, Any] = item if isinstance(item, dict) else {"params": [item]}
            if group.get("lr", lr) > 0:
                trainable += group["params"]
                penalty = float(group.get("weight_decay", weight_decay))
                self._penalties += [penalty] * len(group["params"])
        super().__init__(
            trainable,
            lr=lr,
            max_iter=max_iter,
            history_size=history_size,
            # The loss is a mean over movies and genres, so its gradients are small.
            tolerance_grad=1e-9,
            line_search_fn="strong_wolfe",
        )
        self.defaults["weight_decay"] = weight_decay

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Run up to ``max_iter`` iterations on the loss that ``closure`` computes with gradients.

        Raises:
            RuntimeError: the closure returned no loss.
        """

        def penalized() -> Tensor:
            with torch.enable_grad():
                loss = closure()
            if loss is None:
                raise RuntimeError("L-BFGS needs the loss of each step")
            loss = loss.detach()
            with torch.no_grad():
                for weights, penalty in zip(
                    self.param_groups[0]["params"], self._penalties, strict=True
                ):
                    if penalty and weights.grad is not None:
                        loss = loss + penalty / 2 * weights.square().sum()
                        weights.grad.add_(weights, alpha=penalty)
            return loss

        return super().step(penalized)
