"""How many FLOPs an iteration has: those of one call, counted once, times the calls it made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from .families import DDCONFIG, SMALL_VAE, Family, base_model, config_of

META = torch.device("meta")
GUIDED = 2  # positive and negative prompt, in one batch


class Flops(NamedTuple):
    """Of one guided denoiser call and of one decode: forward, and backward to their input."""

    call: float
    call_backward: float
    decode: float
    decode_backward: float

    def iteration(self, plain: int, with_graph: int, recomputed_blocks: bool) -> float:
        """plain: calls without a graph; with_graph: calls with one, whose backward follows.

        recomputed_blocks: those backwards run the forward once more, block by block. The decoder
        is run for the picture, and once more for its gradient.
        """
        graph = self.call * (2 if recomputed_blocks else 1) + self.call_backward
        decodes = 2 * self.decode + self.decode_backward
        return plain * self.call + with_graph * graph + decodes


class Calls:
    """Counts the calls of a network; `plain` and `with_graph`."""

    def __init__(self) -> None:
        self.plain = 0
        self.with_graph = 0

    @contextmanager
    def counted(self, network: torch.nn.Module) -> Iterator[Calls]:
        handle = network.register_forward_pre_hook(self._note)
        try:
            yield self
        finally:
            handle.remove()

    def _note(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.with_graph += 1
        else:
            self.plain += 1

    def seen(self) -> tuple[int, int]:
        return self.plain, self.with_graph


@torch.inference_mode(False)
def flops_of(family: Family, small_vae: bool) -> Flops:
    """Counted on the meta device: no weights, no time."""
    network = base_model(config_of(family, torch.float32), META).diffusion_model
    side = family.pixels // 8
    x = torch.empty(GUIDED, 4, side, side, device=META)
    arguments: dict[str, Any] = {
        "context": torch.empty(GUIDED, family.tokens, family.context, device=META),
        "transformer_options": {"optimized_attention_override": _pytorch_attention},
    }
    adm = family.unet["adm_in_channels"]
    if adm is not None:
        arguments["y"] = torch.empty(GUIDED, adm, device=META)
    times = torch.empty(GUIDED, device=META)
    call = _forward_and_backward(lambda leaf: network(leaf, times, **arguments), x)
    decoder = _decoder(small_vae)
    decode = _forward_and_backward(decoder.decode, torch.empty(1, 4, side, side, device=META))
    return Flops(*call, *decode)


def parameters_of(family: Family) -> int:
    """Numbers in the family's UNet, as ComfyUI builds it."""
    network = base_model(config_of(family, torch.float16), META).diffusion_model
    return sum(parameter.numel() for parameter in network.parameters())


def _decoder(small: bool) -> Any:
    """A VAE on the meta device, whose attention does not ask how much memory is free."""
    import comfy.ldm.models.autoencoder
    from comfy.ldm.modules.diffusionmodules.model import pytorch_attention

    ddconfig = {**DDCONFIG, **(SMALL_VAE if small else {})}
    with META:
        made = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=ddconfig, embed_dim=4)
    made.decoder.mid.attn_1.optimized_attention = pytorch_attention
    return made


def _pytorch_attention(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def _forward_and_backward(function: Any, x: torch.Tensor) -> tuple[float, float]:
    leaf = x.requires_grad_(True)
    with torch.enable_grad():
        with FlopCounterMode(display=False) as forward:
            out = function(leaf)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(out, leaf, torch.empty_like(out))
    return float(forward.get_total_flops()), float(backward.get_total_flops())
