"""Muon: momentum whose matrices are made orthogonal, for hidden weights; AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

COEFFICIENTS = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))  # fmt: skip
"""(a, b, c) of each step of the odd polynomial a x + b x^3 + c x^5 that drives x to 1."""


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About U V^T of the singular value decomposition, for a batch of matrices [N, R, C]."""
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in COEFFICIENTS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def is_hidden(name: str, weight: torch.Tensor) -> bool:
    """Whether a weight is a matrix (or convolution) between hidden layers."""
    edge = name.startswith(("input_blocks.0.", "out.", "encoder.conv_in.", "decoder.conv_out."))
    edge = edge or "embedding" in name
    return weight.ndim >= 2 and not edge


class Muon(torch.optim.Optimizer):
    """w -= lr * 0.2 sqrt(max(R, C)) * orthogonal(momentum), so that lr is like AdamW's."""

    def __init__(self, weights: list[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for shape, weights in shapes.items():
                pushes = []
                for p in weights:
                    kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    kept.lerp_(p.grad, 1 - group["momentum"])
                    pushes.append(p.grad.lerp(kept, group["momentum"]).flatten(1))
                turned = orthogonal(torch.stack(pushes)).float()
                scale = 0.2 * max(turned.shape[-2:]) ** 0.5
                for p, change in zip(weights, turned, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(change.view(shape), alpha=-group["lr"] * scale)


class Both:
    """Muon for the hidden weights and AdamW for the others, as one optimizer."""

    def __init__(self, modules: list[nn.Module], lr: float):
        named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
        hidden = [p for n, p in named if is_hidden(n, p)]
        rest = [p for n, p in named if not is_hidden(n, p)]
        self.parts = (
            Muon(hidden, lr),
            torch.optim.AdamW(rest, lr, (0.9, 0.99), weight_decay=0.01),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])
