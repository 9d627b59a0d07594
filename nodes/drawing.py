"""What a run draws its pictures with: model, guidance, schedule and the source of its noise."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.model_patcher
import comfy.sample
import comfy.samplers
from torch import Tensor


class Drawing(Protocol):
    """The inputs of a stock sampler but for latent and sampler function."""

    @property
    def model(self) -> Any: ...
    @property
    def seed(self) -> int: ...
    @property
    def meta(self) -> dict[str, Any]:
        """What a trajectory says of it; a resumed run must have the same (JSON values)."""
        ...

    def sigmas(self, eta: float) -> Tensor:
        """The schedule [N+1], falling to 0."""
        ...

    def noise(self, latent: dict[str, Any], seed: int) -> Tensor:
        """The starting noise that goes with another seed, shaped as the LATENT's samples."""
        ...

    def guider(self) -> Any:
        """A guider on the untouched model; it may be changed."""
        ...


@dataclass(frozen=True)
class KSamplerDrawing:
    """Everything by the widgets of KSampler, which has the same names."""

    model: Any
    positive: Any
    negative: Any
    seed: int
    steps: int
    cfg: float
    scheduler: str
    denoise: float

    @property
    def meta(self) -> dict[str, Any]:
        names = ("seed", "steps", "cfg", "scheduler", "denoise")
        return {name: getattr(self, name) for name in names}

    def sigmas(self, eta: float) -> Tensor:
        """The schedule that the stock KSampler takes for the same widgets. Raises ValueError."""
        stock = comfy.samplers.KSampler(
            self.model,
            steps=self.steps,
            device=self.model.load_device,
            sampler="euler" if eta == 0 else "euler_ancestral",
            scheduler=self.scheduler,
            denoise=self.denoise,
            model_options=self.model.model_options,
        )
        if len(stock.sigmas) < 2:
            raise ValueError("With denoise 0 there is nothing to sample. Set denoise above 0.")
        return stock.sigmas

    def noise(self, latent: dict[str, Any], seed: int) -> Tensor:
        return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))

    def guider(self) -> Any:
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(self.cfg)
        return guider


@dataclass(frozen=True)
class GuiderDrawing:
    """A GUIDER, SIGMAS and NOISE, as SamplerCustomAdvanced takes them."""

    given: Any
    given_sigmas: Tensor
    given_noise: Any

    @property
    def model(self) -> Any:
        """The guider's model, with the options of the guider where it has its own."""
        patcher, options = self.given.model_patcher, self.given.model_options
        if options is not patcher.model_options:
            patcher = patcher.clone()
            patcher.model_options = comfy.model_patcher.create_model_options_clone(options)
        return patcher

    @property
    def seed(self) -> int:
        return int(getattr(self.given_noise, "seed", 0))

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "steps": len(self.given_sigmas) - 1,
            "sigmas": [float(sigma) for sigma in self.given_sigmas],
            "guider": type(self.given).__name__,
        }

    def sigmas(self, eta: float) -> Tensor:
        """The SIGMAS as given. Raises ValueError where they are no whole way down to 0."""
        sigmas = self.given_sigmas
        if len(sigmas) < 2:
            raise ValueError(
                "The sigmas input of DNO Sampler (Advanced) holds no step. Connect a scheduler "
                "with at least one step, and denoise above 0."
            )
        if float(sigmas[-1]) != 0 or bool((sigmas[1:] >= sigmas[:-1]).any()):
            raise ValueError(
                "The sigmas input of DNO Sampler (Advanced) must fall from step to step and end "
                "at 0: a reward cannot judge a noisy picture. Connect the whole schedule, or the "
                "low half of Split Sigmas."
            )
        return sigmas

    def noise(self, latent: dict[str, Any], seed: int) -> Tensor:
        """As the NOISE draws it. Raises ValueError for one that draws none."""
        source = self.given_noise
        if seed != self.seed:
            source = copy.copy(source)
            source.seed = seed
        noise = source.generate_noise(latent)
        if not noise.any():
            raise ValueError(
                "The noise input of DNO Sampler (Advanced) gives no noise, and noise is what is "
                "optimized. Connect Random Noise instead of Disable Noise."
            )
        return noise

    def guider(self) -> Any:
        return copy.copy(self.given)
