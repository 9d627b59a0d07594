"""The optimizers of the noise: torch's own, with a learning rate that may change while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

OPTIMIZERS = ("adam", "sgd", "unit")

STATE = {"adam": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",), "unit": ()}
"""What each remembers from step to step."""


class NoiseOptimizer:
    """Ascends: Adam without weight decay, SGD with Nesterov momentum 0.9, or steps of unit length.

    Weight decay would by itself shrink the noise out of the typical set. Adam and SGD act number
    by number, so every image of a batch keeps its own moments. A step of "unit" moves the noise
    of every image by the learning rate (a Euclidean length) along its gradient.
    """

    def __init__(self, name: str, z: Tensor) -> None:
        """`z` is copied, never changed. Raises ValueError for an unknown name."""
        self.name = name
        self._parameter = torch.nn.Parameter(z.detach().clone())
        if name == "adam":
            self._inner: torch.optim.Optimizer = torch.optim.Adam(
                [self._parameter], weight_decay=0.0, maximize=True
            )
        elif name == "sgd":
            self._inner = torch.optim.SGD(
                [self._parameter], lr=1.0, momentum=0.9, nesterov=True, maximize=True
            )
        elif name == "unit":
            self._inner = torch.optim.SGD([self._parameter], lr=1.0, maximize=True)
        else:
            raise ValueError(f"The optimizer '{name}' is unknown. Use one of {OPTIMIZERS}.")

    def step(
        self,
        gradient: Tensor,
        learning_rate: float,
        project: Callable[[Tensor], Tensor] = lambda z: z,
        held: Tensor | None = None,
    ) -> Tensor:
        """One ascent step along `gradient`, then `project`; returns a tensor of its own.

        `held`: the first noises, where they are to stay what they are.
        """
        for group in self._inner.param_groups:
            group["lr"] = learning_rate
        if self.name == "unit":
            gradient = unit_per_image(gradient)
        self._parameter.grad = gradient.to(self._parameter)
        self._inner.step()
        self._parameter.grad = None
        self._parameter.data.copy_(project(self._parameter.detach()))
        if held is not None:
            self._parameter.data[: len(held)] = held
        return self._parameter.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """A copy of the moments, by torch's names; empty before the first step.

        Nothing else has to be kept: the learning rate comes anew with every step.
        """
        kept = self._inner.state.get(self._parameter, {})
        return {name: value.clone() for name, value in kept.items() if value is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the moments of `state`, which is copied.

        Raises ValueError where they are another optimizer's, or of noise of another shape.
        """
        expected = STATE[self.name] if state else ()
        shapes = {tuple(value.shape) for value in state.values() if value.ndim}
        if set(state) != set(expected) or not shapes <= {tuple(self._parameter.shape)}:
            raise ValueError(
                f"The saved moments do not fit '{self.name}' on noise of shape "
                f"{list(self._parameter.shape)}. Continue with the optimizer and the size that "
                "the run was begun with."
            )
        groups = self._inner.state_dict()["param_groups"]
        moments = {name: value.clone() for name, value in state.items()}
        self._inner.load_state_dict(
            {"state": {0: moments} if moments else {}, "param_groups": groups}
        )


def clip_per_image(gradient: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Scale the gradient [N,B,...] of every image to a norm of at most `limit`; also its norm [B].

    A limit of 0 leaves it as it is.
    """
    norm = gradient.movedim(1, 0).flatten(1).norm(dim=1)
    if limit <= 0:
        return gradient, norm
    factor = (limit / norm.clamp_min(1e-12)).clamp(max=1.0)
    return gradient * factor.view(1, -1, *[1] * (gradient.ndim - 2)), norm


def unit_per_image(gradient: Tensor) -> Tensor:
    """The gradient [N,B,...] with every image's norm 1; a zero gradient stays zero."""
    norm = gradient.movedim(1, 0).flatten(1).norm(dim=1)
    tiny = torch.finfo(norm.dtype).tiny
    return gradient / norm.clamp_min(tiny).view(1, -1, *[1] * (gradient.ndim - 2))
