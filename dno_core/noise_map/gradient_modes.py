"""Gradient modes: at which sampling steps the denoiser is differentiated, from exact to free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

if TYPE_CHECKING:
    from .sampler import NoiseMap
    from .steps import Step

ModeName = Literal["exact", "spread k", "last k", "one step", "linear"]


@dataclass(frozen=True)
class GradientMode:
    """Where the sweep computes J^T v, J = dD/dx, and what stands for it at every other step.

    | mode       | J^T v is computed at           | elsewhere | precedent                       |
    |------------|--------------------------------|-----------|---------------------------------|
    | "exact"    | every step                     |           | DNO (arXiv 2405.18881)          |
    | "spread k" | k evenly spaced steps          | held      | ours                            |
    | "last k"   | the last k steps               | v         | DRaFT-K (arXiv 2309.17400)      |
    | "one step" | one step, `at` of the way      | v         | SDO (arXiv 2505.07477)          |
    | "linear"   | no step: no denoiser backward  | v         | BIRD (arXiv 2405.19572) for z_0 |

    Held: the J^T v of the last step at which it was computed, which follows it in time. v: eps is
    held constant, J = I. All but the first are biased. k: at least 1, used by "spread k" and
    "last k". at: in [0, 1], used by "one step"; 0 is the first step, 1 the last. Raises ValueError
    otherwise.
    """

    name: ModeName = "exact"
    k: int = 3
    at: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(ModeName):
            raise ValueError(
                f"The gradient mode '{self.name}' is unknown. Use one of {get_args(ModeName)}."
            )
        if self.k < 1:
            raise ValueError(f"A gradient at {self.k} steps is none. Ask for at least 1.")
        if not 0.0 <= self.at <= 1.0:
            raise ValueError(f"The one step lies at {self.at}. Use a value from 0 to 1.")

    @property
    def holds(self) -> bool:
        """Whether J^T v is held, and not v taken for it, where it is not computed."""
        return self.name == "spread k"

    def exact_at(self, steps: int) -> frozenset[int] | None:
        """The steps of a run of `steps` whose J^T v is computed; None for all of them."""
        if self.name == "exact":
            return None
        if self.name == "spread k":
            k = min(self.k, steps)
            return frozenset(steps - 1 - index * steps // k for index in range(k))
        if self.name == "last k":
            return frozenset(range(max(steps - self.k, 0), steps))
        if self.name == "one step":
            return frozenset({round(self.at * (steps - 1))})
        return frozenset()

    def biased(self, steps: int) -> bool:
        """Whether J^T v is left out at some of so many steps: else it is the gradient itself."""
        return self.costs(steps) < steps

    def costs(self, steps: int) -> int:
        """How many recomputations of the denoiser, each with a backward, a gradient takes."""
        exact_at = self.exact_at(steps)
        return steps if exact_at is None else len(exact_at)


EXACT = GradientMode()


@runtime_checkable
class ModalMap(Protocol):
    """A NoiseMap whose `pull` follows a gradient mode. Maps that are none are exact."""

    @property
    def mode(self) -> GradientMode: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...

    def in_mode(self, mode: GradientMode) -> NoiseMap:
        """The same map with another mode; paths of either can be pulled back by both."""
        ...
