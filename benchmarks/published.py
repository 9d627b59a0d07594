"""The published algorithm of Direct Noise Optimization, waste included: what ours is held against.

Written from what the authors' scripts do (github.com/TZW1998/Direct-Noise-Optimization at
d67386f, dno_stable_diffusion.py), over any denoiser, decoder and reward. One image at a time:
their noise has no batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Denoise = Callable[[Tensor, Tensor], Tensor]
"""D(x [1,C,h,w], sigma 0-dim) -> x0 after guidance, x in sigma space (alpha_bar = 1/(1+sigma^2))"""

LOG_2 = math.log(2)
K, PERMUTATIONS = 4, 100
CLIP, DECAY, LOSS_SCALE = 1.0, 0.01, 8192.0


@dataclass(frozen=True)
class Waste:
    """What the published scripts do beyond their algorithm; all of it, unless switched off.

    pictures: after every sampling step its latent is decoded, copied to the CPU and thrown away.
    permutations: drawn one by one on the CPU; four scalars fetched and a singular value
        decomposition each; off: `regularize`, or no regularizer where none is given.
    texts: the reward embeds its constant prompt in every iteration (calls `forget_texts`).
    unused_noise: a noise that no step uses is optimized, decayed and regularized.
    weight_decay: AdamW's default of 0.01 pulls the noise to 0.
    recomputed: every step's graph is dropped and computed once more; off: all are kept.
    """

    pictures: bool = True
    permutations: bool = True
    texts: bool = True
    unused_noise: bool = True
    weight_decay: bool = True
    recomputed: bool = True

    def without(self, name: str) -> Waste:
        return replace(self, **{name: False})


ALL_WASTE = Waste()
NO_WASTE = Waste(False, False, False, False, False, recomputed=True)
"""Graphs that are dropped and recomputed stay: without them memory grows with the steps."""


class Published:
    """One run of the published algorithm, an optimizer step at a time.

    denoise: see Denoise; called with the members of `sigmas` themselves.
    sigmas: T + 1 0-dim tensors, falling; the last may be 0 (the scripts end at 0.0292).
    decode: x_T [1,C,h,w] -> image [1,3,H,W], nominally in [0,1]; differentiable.
    reward: image -> [1], in units of the objective; differentiable.
    noise: [T,1,C,h,w], the starting noise first; a slot for the unused one is added where wanted.
    gamma: strength of the regularizer (0: none). regularize: noise -> (L_reg, its gradient), what
        stands in for the loop where `waste.permutations` is off.
    forget_texts: makes the reward embed its prompt anew.
    autocast: the type of torch.autocast that the scripts run in by default is float16, with a
        loss scaler; None is their fp32.
    """

    def __init__(
        self,
        denoise: Denoise,
        sigmas: Sequence[Tensor],
        eta: float,
        decode: Callable[[Tensor], Tensor],
        reward: Callable[[Tensor], Tensor],
        noise: Tensor,
        *,
        learning_rate: float = 0.01,
        gamma: float = 1.0,
        permutations: int = PERMUTATIONS,
        waste: Waste = ALL_WASTE,
        regularize: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        forget_texts: Callable[[], None] = lambda: None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if noise.shape[:2] != (len(sigmas) - 1, 1):
            raise ValueError(f"{len(sigmas) - 1} noises of one image are used, not {noise.shape}.")
        self.denoise, self.sigmas, self.eta = denoise, tuple(sigmas), eta
        self._bars = [1 / (1 + float(sigma) ** 2) for sigma in sigmas]
        self.decode, self.reward = decode, reward
        self.gamma, self.permutations, self.waste = gamma, permutations, waste
        self.regularize, self.forget_texts = regularize, forget_texts
        self.autocast = autocast
        if waste.unused_noise:
            noise = torch.cat([noise, torch.randn_like(noise[:1])])
        self.noise = noise.detach().clone().requires_grad_()
        decay = DECAY if waste.weight_decay else 0.0
        self._optimizer = torch.optim.AdamW([self.noise], lr=learning_rate, weight_decay=decay)
        self._scaler = torch.amp.GradScaler(
            noise.device.type, init_scale=LOSS_SCALE, enabled=autocast == torch.float16
        )

    def iteration(self) -> float:
        """One step of the optimizer; the reward before it."""
        reward = self.gradient()
        torch.nn.utils.clip_grad_norm_([self.noise], CLIP)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return reward

    def gradient(self) -> float:
        """Leaves d (-reward + gamma L_reg) / d noise, unscaled, in `noise.grad`; the reward."""
        self._optimizer.zero_grad()
        if self.waste.texts:
            self.forget_texts()
        device = self.noise.device.type
        half = self.autocast is not None
        with torch.enable_grad(), torch.autocast(device, self.autocast, enabled=half):
            image = self.decode(self.sample())
            reward = self.reward(image).mean()
            value = reward.item()
            loss = -reward
            if self.gamma and self.waste.permutations:
                loss = loss + self.gamma * self._regularization()
            self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        if self.gamma and not self.waste.permutations and self.regularize is not None:
            with torch.no_grad():
                assert self.noise.grad is not None
                self.noise.grad += self.gamma * self.regularize(self.noise)[1]
        to_host(image)
        return value

    def sample(self) -> Tensor:
        """x_T of DDIM(eta), every denoiser call a gradient checkpoint.

        x' = sqrt(p) x0 + sqrt(1 - p - s^2) eps + s z,   s = eta sqrt((1-p)/(1-a)) sqrt(1 - a/p)

        with a, p the alpha_bar of this step and the next, x0 the denoised prediction, s = 0 in
        the last step (Song et al. 2021, equations 12 and 16).
        """
        x = self.noise[0]
        last = len(self._bars) - 2
        for index, (a, p) in enumerate(zip(self._bars, self._bars[1:], strict=False)):
            s = self.eta * math.sqrt((1 - p) / (1 - a) * (1 - a / p)) if index < last else 0.0
            x0 = self._denoised(x / math.sqrt(a), self.sigmas[index])
            eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
            x = math.sqrt(p) * x0 + math.sqrt(max(1 - p - s**2, 0.0)) * eps
            if index < last:
                x = x + s * self.noise[index + 1]
            if self.waste.pictures:
                with torch.no_grad():
                    to_host(self.decode(x.detach()))
        return x

    def _regularization(self) -> Tensor:
        return regularization(self.noise.flatten(), [None] * self.permutations)

    def _denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.waste.recomputed:
            return checkpoint(self.denoise, x, sigma, use_reentrant=False)
        return self.denoise(x, sigma)


def to_host(image: Tensor) -> Tensor:
    """The picture as 8-bit numbers [1,H,W,3] on the CPU."""
    on_host = image.detach().cpu().float()
    return (255 * on_host + 0.5).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


def regularization(noise: Tensor, orders: Sequence[Tensor | None]) -> Tensor:
    """L_reg of the flat noise [n], one permutation after another.

    An order that is None is drawn, on the CPU, when its turn comes.
    """
    total = minus_log_bounds(noise)
    for given in orders:
        order = torch.randperm(len(noise)) if given is None else given
        total = total + minus_log_bounds(noise[order]) / len(orders)
    return total


def minus_log_bounds(numbers: Tensor) -> Tensor:
    """-log(p1 / 2) - log(p2 / 2) of one arrangement; four scalars are read."""
    rows = numbers[: len(numbers) // K * K].view(-1, K)
    m = len(rows)
    m1 = torch.linalg.vector_norm(rows.mean(0))
    eye = torch.eye(K, dtype=rows.dtype, device=rows.device)
    m2 = torch.linalg.matrix_norm(rows.T @ rows / m - eye, ord=2)
    over = torch.clamp(torch.sqrt(1 + m2) - 1 - math.sqrt(K / m), min=0)
    log_p1 = torch.clamp(-m * m1**2 / (2 * K), max=-LOG_2)
    log_p2 = torch.clamp(-m * over**2 / 2, max=-LOG_2)
    _ = (m1.item(), m2.item(), log_p1.exp().item(), log_p2.exp().item())
    return -log_p1 - log_p2
