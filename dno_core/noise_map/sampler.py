"""The noise-to-sample map M(z): a forward run that keeps its latents, and the backward sweep."""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .gradient_modes import EXACT, GradientMode
from .graph import Graph
from .saved import Ledger
from .steps import Step, noise_count


class Denoiser(Protocol):
    """D(x, sigma): the denoised prediction x0 after guidance.

    `x` [B,C,H,W], `sigma` 0-dim, `z0` [B,C,H,W] the starting noise, which matters only where a
    noise mask mixes it in at every step.
    """

    def __call__(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Path:
    """One forward run: the latents x_0 .. x_{T-1} that the denoiser saw, and x_T.

    `graphs`: those of D at some steps, as functions of (x, z_0), for the first pull to use up.
    """

    latents: tuple[Tensor, ...]
    final: Tensor
    graphs: dict[int, Graph] = field(default_factory=dict, repr=False)

    def drop(self) -> None:
        """Free the graphs that were not used."""
        for graph in self.graphs.values():
            graph.drop()
        self.graphs.clear()


class NoiseMap(Protocol):
    """M(z) up to the latent x_T, with its vector-Jacobian product."""

    def forward(self, z: Tensor) -> Path: ...

    def pull(self, z: Tensor, path: Path, v: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SamplerMap:
    """The map built from a plain denoiser: for notebooks, diffusers models and tests.

    `keep`: how many denoiser graphs a forward run keeps for the pull that follows (the last
    ones). Each saves a denoiser call and takes its memory until then; by default all are
    recomputed, and memory does not grow with the steps.
    """

    denoise: Denoiser
    steps: tuple[Step, ...]
    start: Callable[[Tensor], Tensor]
    mode: GradientMode = EXACT
    keep: int = 0

    def forward(self, z: Tensor, latents: tuple[Tensor, ...] = ()) -> Path:
        return sample(self.denoise, self.steps, z, self.start, latents=latents)

    def forward_to_pull(self, z: Tensor, latents: tuple[Tensor, ...] = (), begin: int = 0) -> Path:
        kept = kept_steps(len(self.steps), self.mode, self.keep, begin + 1 if begin else 0)
        return sample(self.denoise, self.steps, z, self.start, kept, latents)

    def pull(self, z: Tensor, path: Path, v: Tensor, begin: int = 0) -> Tensor:
        exact_at = self.mode.exact_at(len(self.steps))
        return sweep(
            self.denoise,
            self.steps,
            path.latents,
            z[0],
            v,
            self.start,
            exact_at,
            self.mode.holds,
            graphs=path.graphs,
            begin=begin,
        )

    def in_mode(self, mode: GradientMode) -> SamplerMap:
        return replace(self, mode=mode)


def vjp(function: Callable[..., Tensor], inputs: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """Pull v back through `function`, recomputing it: J^T v for every input (zeros if unused, or
    if the function detaches its result).

    The recomputation and the backward both run where tensors saved for backward may be modified
    in place, as diffusion models do: a plain checkpoint would be silently wrong there.
    """
    ledger = Ledger()
    try:
        with ledger.watching():
            return Graph(function, inputs, ledger).pull(v)
    finally:
        ledger.close()


def kept_steps(steps: int, mode: GradientMode, keep: int, begin: int = 0) -> frozenset[int]:
    """The last `keep` of those steps whose J^T v the mode computes, from step `begin` on.

    The sweep meets them first, so their memory is free again for those that it recomputes.
    """
    exact_at = mode.exact_at(steps)
    wanted = sorted(range(begin, steps) if exact_at is None else exact_at - set(range(begin)))
    return frozenset(wanted[max(len(wanted) - keep, 0) :])


@torch.no_grad()
def sample(
    denoise: Denoiser,
    steps: tuple[Step, ...],
    z: Tensor,
    start: Callable[[Tensor], Tensor],
    keep: Collection[int] = (),
    latents: Sequence[Tensor] = (),
) -> Path:
    """Run the sampler on noise z [N,B,C,H,W], N = noise_count(steps); x_0 = start(z_0).

    At the steps `keep` the denoiser's graph is kept. `latents` x_0 .. x_m of a run with the same
    first noises: this one goes on from the last of them. Raises ValueError if z does not hold the N
    noises that the steps use.
    """
    if z.shape[0] != noise_count(steps):
        raise ValueError(
            f"The noise holds {z.shape[0]} tensors and the steps use {noise_count(steps)}. "
            "Draw it for this schedule."
        )
    x = latents[-1] if latents else start(z[0])
    seen = list(latents[:-1])
    graphs: dict[int, Graph] = {}
    ledger = Ledger()
    try:
        with ledger.watching() if keep else nullcontext():
            for step in steps[len(seen) :]:
                seen.append(x)
                if step.index in keep:
                    graph = Graph(partial(_denoise_at, denoise, step.sigma), [x, z[0]], ledger)
                    graphs[step.index], denoised = graph, graph.value
                else:
                    denoised = denoise(x, step.sigma, z[0])
                x = denoised if step.a == 0 and step.c == 0 else step.a * x + step.b * denoised
                if step.noise is not None:
                    x = x + step.c * z[step.noise]
    except BaseException:
        ledger.close()
        raise
    return Path(tuple(seen), x, graphs)


def sweep(
    denoise: Denoiser,
    steps: tuple[Step, ...],
    latents: Sequence[Tensor],
    z0: Tensor,
    v: Tensor,
    start: Callable[[Tensor], Tensor],
    exact_at: Collection[int] | None = None,
    hold: bool = False,
    cut: bool = False,
    jacobian: Tensor | float = 1.0,
    graphs: MutableMapping[int, Graph] | None = None,
    begin: int = 0,
) -> Tensor:
    """Pull v = d objective / d x_T back to every noise; returns dz [N,B,C,H,W] in float32 or wider.

        dz_{i+1} = c_i v;   v <- a_i v + b_i J_i^T v;   dz_0 = start^T v

    One denoiser graph is alive at a time, beside those in `graphs`, by step, which are used up and
    save their recomputation. `exact_at` limits the steps whose J^T v is computed (None: all):
    biased, but free elsewhere. There, with `hold`, the J^T v that was computed last is taken again:
    what it holds of v stays as v moves on where J is a projection, as a denoiser's J nearly is, and
    a + b = 1. Before any was computed, and without `hold`, eps is held constant, which makes J the
    identity. `jacobian` is what then stands for it, number by number: the square of a noise mask,
    which the denoiser applies to what it is given and to what it returns. With `cut` the sweep ends
    at the first of those steps that it meets: the noises before are left with no gradient, as if
    the latent there had been detached. `begin`: the noises that enter before this step is over get
    none either, and what only they need is not computed.
    """
    wide = torch.promote_types(z0.dtype, torch.float32)
    dz = torch.zeros((noise_count(steps), *z0.shape), dtype=wide, device=z0.device)
    v = v.to(wide)
    held: tuple[Tensor, Tensor] | None = None
    for step, x in zip(reversed(steps), reversed(latents), strict=True):
        if step.noise is not None:
            dz[step.noise] = step.c * v
        if begin and step.index == begin:
            dz[0] = 0  # a noise mask mixes it in at every step
            return dz
        if exact_at is None or step.index in exact_at:
            graph = graphs.pop(step.index, None) if graphs else None
            if graph is None:
                jv, direct = vjp_unit(partial(_denoise_at, denoise, step.sigma), [x, z0], v)
            else:
                jv, direct = pull_unit(graph.pull, v)
            dz[0] += step.b * direct
            if hold:
                held = jv, direct / step.sigma
        elif held is not None:
            jv = held[0]
            dz[0] += step.b * step.sigma * held[1]
        elif cut:
            return dz
        else:
            jv = jacobian * v
        v = step.a * v + step.b * jv
    dz[0] += vjp(start, [z0], v.to(z0.dtype))[0]
    return dz


def _denoise_at(denoise: Denoiser, sigma: Tensor, x: Tensor, z0: Tensor) -> Tensor:
    return denoise(x, sigma, z0)


def vjp_unit(function: Callable[..., Tensor], inputs: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """`vjp` in which every image's v is brought to O(1) and back, so that half precision
    does not lose it (exact: J^T v is linear in v). Inputs and v have the batch first; the result
    is in v's dtype, or float32 if that is wider.
    """

    def pull(unit: Tensor) -> list[Tensor]:
        def matching(*leaves: Tensor) -> Tensor:
            return function(*leaves).to(unit)

        return vjp(matching, inputs, unit)

    return pull_unit(pull, v)


def pull_unit(pull: Callable[[Tensor], list[Tensor]], v: Tensor) -> list[Tensor]:
    """What `pull`, linear in v, gives of every image's v at O(1), scaled back: see `vjp_unit`."""
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    scale = wide.flatten(1).abs().amax(1).clamp_min(torch.finfo(wide.dtype).tiny)
    pulled = pull(wide / _spread(scale, wide))
    return [g.to(wide.dtype) * _spread(scale, g).to(g.device) for g in pulled]


def _spread(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (like.ndim - 1))
