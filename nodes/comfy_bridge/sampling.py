"""M(z) on a ComfyUI model: the stock sampler forward, the core's sweep backward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ...dno_core import (
    EXACT,
    CoarseMap,
    Coarsening,
    GradientMode,
    Path,
    Step,
    coarse_sigmas,
    ddim_steps,
    flow_steps,
    held_noises,
    noise_count,
    sweep,
)
from ...dno_core.noise_map.graph import Graph
from ...dno_core.noise_map.sampler import kept_steps
from ...dno_core.noise_map.saved import Ledger, Overwritten
from .graphs import CallGraphs
from .hook_frames import HookFrames
from .loading import run_model
from .memory import AUTO, GraphMemory, graph_memory
from .random_states import RandomStates
from .refusals import refuse_unsupported, without_backward
from .scope import NormalInputs, free_control_hints, free_weights, normal_copies
from .width import memory_room, runs_wide

OnCall = Callable[[int], None]
"""Told the cost of the denoiser call that follows, in plain forward calls."""

FORWARD_COST, BACKWARD_COST = 1, 3


class ComfyMap:
    """The noise-to-latent map of one guider, schedule and eta: a WideMap, a ModalMap and a
    KeepingMap of dno_core.

    `on_call` runs before every denoiser call, forward and backward; it may raise to cancel.
    `graphs` says which of their graphs are kept; by default none is.
    """

    def __init__(
        self,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        eta: float,
        latent_image: Tensor,
        denoise_mask: Tensor | None,
        max_denoise: bool,
        on_call: OnCall,
        mode: GradientMode = EXACT,
        graphs: CallGraphs | None = None,
    ) -> None:
        self.mode = mode
        self.graphs = graphs or CallGraphs(guider, GraphMemory())
        self._guider = guider
        self._sigmas = sigmas
        self._extra_args = extra_args
        self._denoise_mask = denoise_mask
        self._eta = eta
        self._latent_image = latent_image
        self._max_denoise = max_denoise
        self._on_call = on_call
        self._sampling = guider.inner_model.model_sampling
        self._masked = comfy.samplers.KSamplerX0Inpaint(guider, sigmas)
        patcher = guider.inner_model.current_patcher
        self._dice = RandomStates(sigmas.device)
        self._replayed = (HookFrames(guider.conds, patcher), self._dice)
        self._wide = runs_wide(guider, latent_image.shape[0])
        self._inputs: AbstractContextManager[Any] = nullcontext()
        self.steps = model_steps(self._sampling, sigmas, eta)
        self._index_of = {id(step.sigma): step.index for step in self.steps}

    def start(self, z0: Tensor) -> Tensor:
        """x_0 = noise_scaling(sigma_0, z_0, latent), by the model's own function."""
        latent = _tiled(self._latent_image, z0.shape[0])
        return self._sampling.noise_scaling(self._sigmas[0], z0, latent, self._max_denoise)

    def forward(self, z: Tensor, latents: tuple[Tensor, ...] = ()) -> Path:
        """Run the stock sampler function, fed with z [N,B,...]; keep the latents it asked about.

        z [N, c B, ...] runs c noises for the B images side by side, where `probe_room` allows.
        `latents` x_0 .. x_m of the last run, if its first noises were the same: this one goes on
        from there.
        """
        return self._run(z, _Recording(self._masked, self._before_step, latents))

    def forward_to_pull(self, z: Tensor, latents: tuple[Tensor, ...] = (), begin: int = 0) -> Path:
        """`forward`, with the graphs of as many denoiser calls kept as there is memory for, of
        those that a pull with this `begin` differentiates."""
        steps, first = len(self.steps), begin + 1 if begin else 0
        wanted = kept_steps(steps, self.mode, steps, first)
        kept = kept_steps(steps, self.mode, self.graphs.keep(len(wanted)), first)
        if not kept:
            return self.forward(z, latents)
        free_loaded_weights()
        free_control_hints(self._guider.conds)
        with self.graphs.care.taken():
            ledger = Ledger()
        graph = partial(self._graph, z[0], ledger)
        keeping = _Keeping(self._masked, self._before_step, latents, kept, graph)
        try:
            with ledger.watching():
                path = self._run(z, keeping)
        except BaseException:
            ledger.close()
            raise
        finally:
            self._masked.noise = None
        self.graphs.note(path)
        return path

    @torch.no_grad()
    def _run(self, z: Tensor, recording: _Recording) -> Path:
        begin = len(recording.latents)
        for state in self._replayed:
            if begin:
                state.go_to(begin)
            else:
                state.begin()
        noises = iter(z[held_noises(self.steps, begin) :])
        options: dict[str, Any] = {}
        if self._eta > 0:
            options = {"eta": self._eta, "noise_sampler": lambda *_: next(noises)}
        recording.cost = FORWARD_COST * (z.shape[1] // self._latent_image.shape[0])
        final = sampler_function(self._eta)(
            recording,
            self.start(z[0]) if recording.begun is None else recording.begun,
            self._sigmas[begin:],
            extra_args=self._inpainting(z[0]),
            disable=True,
            **options,
        )
        self._wide = self._wide and not self._dice.rolled()
        return Path(tuple(recording.latents), final, recording.graphs)

    def _graph(self, z0: Tensor, ledger: Ledger, x: Tensor, index: int) -> Graph:
        """D at one step of a forward run, with its graph as a function of (x, z_0)."""

        def before() -> None:
            self._on_call(BACKWARD_COST)
            self.graphs.begin(kept=True)

        graph = Graph(partial(self._differentiable, index), [x, z0], ledger, before)
        self._masked.noise = z0
        return graph

    def probe_room(self, z: Tensor, wanted: int) -> int:
        """How many noises shaped as z [N,B,...] to run side by side: one where conditioning or
        patches tell the images of a batch apart, or dice are rolled; else `wanted`, or (0) as
        many as there is memory for.
        """
        if not self._wide:
            return 1
        return wanted or memory_room(self._guider, tuple(z.shape[1:]))

    def pull(self, z: Tensor, path: Path, v: Tensor, begin: int = 0) -> Tensor:
        """d objective / d z from v = d objective / d x_T, one denoiser graph at a time; 0 for the
        noises that enter before step `begin` is over."""
        free_loaded_weights()
        free_control_hints(self._guider.conds)
        kept = bool(path.graphs)
        care = self.graphs.care
        try:
            with care.taken():
                pulled = self._sweep(z, path, v, begin)
            if not self.graphs.memory.by_blocks:
                care.passed()
            return pulled
        except Overwritten:
            if not (kept or care.trusts):
                raise
            care.distrust()
        except RuntimeError as error:
            refusal = without_backward(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._masked.noise = None
        path.drop()  # something wrote to what was kept since the forward run: compute it once more
        return self.pull(z, path, v, begin)

    def _sweep(self, z: Tensor, path: Path, v: Tensor, begin: int) -> Tensor:
        return sweep(
            self.denoise,
            self.steps,
            path.latents,
            z[0],
            v,
            self.start,
            self.mode.exact_at(len(self.steps)),
            self.mode.holds,
            jacobian=1.0 if self._denoise_mask is None else self._denoise_mask.square(),
            graphs=path.graphs,
            begin=begin,
        )

    def in_mode(self, mode: GradientMode) -> ComfyMap:
        """The same map whose `pull` follows another gradient mode."""
        other = copy.copy(self)
        other.mode = mode
        return other

    def coarse(self, count: int) -> ComfyMap | CoarseMap:
        """This map in `count` steps of its schedule, for the same noise; itself if it has no more.

        Not to be called between a forward and its pull.
        """
        if count >= len(self.steps):
            return self
        for state in self._replayed:
            state.begin()  # so that passes over the short schedule begin as those over the long one
        sigmas = coarse_sigmas(self._sigmas, count)
        short = ComfyMap(
            self._guider,
            sigmas,
            _on_schedule(self._extra_args, sigmas),
            self._eta,
            self._latent_image,
            self._denoise_mask,
            self._max_denoise,
            self._on_call,
            self.mode,
            self.graphs,
        )
        return CoarseMap(short, Coarsening(self.steps, short.steps))

    def denoise(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        """D(x, sigma), for one of the steps' own sigmas, where its gradient is wanted."""
        self._on_call(BACKWARD_COST)
        self.graphs.begin(kept=False)
        return self._differentiable(self._index_of[id(sigma)], x, z0)

    def _differentiable(self, index: int, x: Tensor, z0: Tensor) -> Tensor:
        """D at a step, as it was in the forward run; once more where the call has shown that a
        patch keeps tensors made in inference mode, or that a block leaks.

        By blocks, only the backward pass would show the first, so it is taken for granted.
        """
        for state in self._replayed:
            state.go_to(index)
        sigmas = self._sigmas[index] * x.new_ones([x.shape[0]])
        if self.graphs.memory.by_blocks:
            self._inputs = NormalInputs()
        with self._inputs, self.graphs.blocks():
            try:
                denoised = self._masked(x, sigmas, **self._inpainting(z0))
            except RuntimeError as error:
                if "Inference tensors" not in str(error) or isinstance(self._inputs, NormalInputs):
                    raise
                denoised = None
        if denoised is None:
            self._inputs = NormalInputs()
        if denoised is None or self.graphs.found_leaks():
            return self._differentiable(index, x, z0)
        self.graphs.measure()
        return denoised

    def _inpainting(self, z0: Tensor) -> dict[str, Any]:
        """Sets what a noise mask mixes in, for z0's number of images; the denoiser's arguments."""
        self._masked.noise = z0
        self._masked.latent_image = _tiled(self._latent_image, z0.shape[0])
        mask = self._denoise_mask
        tiled = None if mask is None else _tiled(mask, z0.shape[0])
        return {**self._extra_args, "denoise_mask": tiled}

    def _before_step(self, index: int, cost: int) -> None:
        self._on_call(cost)
        for state in self._replayed:
            state.pass_by(index)


def _on_schedule(extra_args: dict[str, Any], sigmas: Tensor) -> dict[str, Any]:
    """The sampler's arguments with these sigmas for the patches that look at the schedule."""
    options = extra_args.get("model_options", {})
    inner = {**options.get("transformer_options", {}), "sample_sigmas": sigmas}
    return {**extra_args, "model_options": {**options, "transformer_options": inner}}


def _tiled(values: Tensor, images: int) -> Tensor:
    """[B,...] repeated to [images,...], whole batches one after another."""
    return values.repeat(images // values.shape[0], *[1] * (values.ndim - 1))


class _Recording:
    """The model as a sampler function sees it, which notes every x it is asked about."""

    def __init__(
        self, model: Any, before: Callable[[int, int], None], latents: tuple[Tensor, ...] = ()
    ) -> None:
        """`before` is told of every call: its index and its `cost`. `latents`: those to begin with,
        the last of which is asked about first."""
        self.inner_model = model.inner_model
        self.begun = latents[-1] if latents else None
        self.latents: list[Tensor] = list(latents[:-1])
        self.graphs: dict[int, Graph] = {}
        self.cost = FORWARD_COST
        self._model = model
        self._before = before

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        index = len(self.latents)
        self._before(index, self.cost)
        self.latents.append(x.detach())
        return self._denoised(index, x, sigma, kwargs)

    def _denoised(self, index: int, x: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return self._model(x, sigma, **kwargs)


class _Keeping(_Recording):
    """The same, which keeps the graphs of the calls at the steps `kept`."""

    def __init__(
        self,
        model: Any,
        before: Callable[[int, int], None],
        latents: tuple[Tensor, ...],
        kept: Collection[int],
        graph: Callable[[Tensor, int], Graph],
    ) -> None:
        super().__init__(model, before, latents)
        self._kept = kept
        self._graph = graph

    def _denoised(self, index: int, x: Tensor, sigma: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if index not in self._kept:
            return super()._denoised(index, x, sigma, kwargs)
        graph = self.graphs[index] = self._graph(x, index)
        return graph.value


def sampler_function(eta: float) -> Callable[..., Tensor]:
    """The stock function of that eta: `euler` at 0, else `euler_ancestral`."""
    return k_diffusion.sample_euler if eta == 0 else k_diffusion.sample_euler_ancestral


def stock_sampler(eta: float) -> Any:
    """The stock sampler object whose pictures DNO starts from."""
    if eta == 0:
        return comfy.samplers.ksampler("euler")
    return comfy.samplers.ksampler("euler_ancestral", {"eta": eta})


def model_steps(model_sampling: Any, sigmas: Tensor, eta: float) -> tuple[Step, ...]:
    """The linear form of the steps that the stock function takes for this kind of model."""
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return flow_steps(sigmas, eta, float(getattr(model_sampling, "noise_scale", 1.0)))
    return _as_rounded(ddim_steps(sigmas, eta), sigmas, eta)


def _as_rounded(steps: tuple[Step, ...], sigmas: Tensor, eta: float) -> tuple[Step, ...]:
    """The steps with the coefficients that the stock function computes, in the sigmas' float32.

    From zero SNR (sigma 4,500) the difference is felt. Where sigma falls by more than 4,096 times
    in one step, the sigma that is left before the noise rounds to 0: then the stock function
    takes D as its result, as at the end, and draws no noise.
    """
    rounded: list[Step] = []
    used = 1
    for step, following in zip(steps, sigmas[1:], strict=True):
        down, up = k_diffusion.get_ancestral_step(step.sigma, following, eta)
        if down == 0:
            step = replace(step, a=0.0, b=1.0, c=0.0, noise=None)
        else:
            change = float(down - step.sigma) / float(step.sigma)
            noise = used if eta > 0 else None
            step = replace(step, a=1 + change, b=-change, c=float(up), noise=noise)
            used += noise is not None
        rounded.append(step)
    return tuple(rounded)


def draw_noise(noise: Tensor, steps: tuple[Step, ...], seed: int) -> Tensor:
    """All noises [N,B,C,H,W] of a run, drawn as the stock sampler draws them for the seed.

    `noise` is the starting noise; the others come one after another from a generator on its
    device (ComfyUI's own: seed + 1 on a CPU), whole batches at a time.
    """
    draw = k_diffusion.default_noise_sampler(noise, seed=seed)
    return torch.stack([noise, *(draw(None, None) for _ in range(noise_count(steps) - 1))])


Drive = Callable[
    [ComfyMap, Callable[[Tensor], Tensor], Tensor, Callable[[int], Tensor]],
    Tensor,
]


class NoiseOptimizationSampler(comfy.samplers.Sampler):
    """A sampler object for a guider whose run is a whole optimization.

    `drive(noise_map, to_latent, z, draw)` returns the x_T to hand on; `to_latent` maps an x_T to
    the LATENT it stands for, `draw(seed)` gives the noises of the stock run with another seed.
    `prepare(seed)` gives the starting noise that goes with one. `memory`: the policy for graphs,
    one of memory.POLICIES; `report` is told what it chooses.
    """

    def __init__(
        self,
        eta: float,
        on_call: OnCall,
        drive: Drive,
        prepare: Callable[[int], Tensor],
        mode: GradientMode = EXACT,
        memory: str = AUTO,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._mode = mode
        self._memory = memory
        self._report = report
        self._eta = eta
        self._on_call = on_call
        self._drive = drive
        self._prepare = prepare

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        model = model_wrap.inner_model
        model_wrap.conds = normal_copies(model_wrap.conds)
        _free_latent_format(model)
        free_loaded_weights()
        patcher = model.current_patcher
        memory = graph_memory(self._memory, patcher, list(noise.shape), self._report)
        noise_map = ComfyMap(
            model_wrap,
            normal_copies(sigmas),
            normal_copies(extra_args),
            self._eta,
            normal_copies(latent_image),
            normal_copies(denoise_mask),
            self.max_denoise(model_wrap, sigmas),
            self._on_call,
            self._mode,
            CallGraphs(model_wrap, memory),
        )

        def finish(x: Tensor) -> Tensor:
            return model.model_sampling.inverse_noise_scaling(sigmas[-1], x)

        def to_latent(x: Tensor) -> Tensor:
            return model.process_latent_out(finish(x).to(torch.float32))

        def draw(seed: int) -> Tensor:
            return draw_noise(self._prepare(seed).to(noise), noise_map.steps, seed)

        z = draw_noise(normal_copies(noise), noise_map.steps, extra_args.get("seed") or 0)
        return finish(self._drive(noise_map, to_latent, z, draw))


def free_loaded_weights() -> None:
    """Make the weights of every model in use normal: UNet, ControlNets, VAE, rewards."""
    free_weights(comfy.model_management.loaded_models(only_currently_used=True))


def _free_latent_format(model: Any) -> None:
    latent_format = model.latent_format
    for name, value in vars(latent_format).items():
        if isinstance(value, Tensor) and value.is_inference():
            setattr(latent_format, name, value.clone())


@contextmanager
def guided(guider: Any, model: Any, latent: Tensor) -> Iterator[Any]:
    """The guider on the run's own model, checked for what cannot be differentiated.

    It is a copy; other models it holds are made ready for gradients like the first. ComfyUI leaves
    models and conditioning on a guider after an exception: they are cleaned up always.
    """
    guider = copy.copy(guider)
    guider.model_patcher, guider.model_options = model, model.model_options
    guider.original_conds = normal_copies(guider.original_conds)
    for name, value in vars(guider).items():
        if isinstance(value, comfy.model_patcher.ModelPatcher) and value is not model:
            setattr(guider, name, run_model(value, ()))
    refuse_unsupported(model, guider.original_conds, latent)
    try:
        yield guider
    finally:
        conds, models = getattr(guider, "conds", None), getattr(guider, "loaded_models", None)
        if conds is not None and models is not None:
            comfy.sampler_helpers.cleanup_models(conds, models)
        for name in ("conds", "loaded_models", "inner_model"):
            if hasattr(guider, name):
                delattr(guider, name)
