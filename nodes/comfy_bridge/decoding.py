"""The VAE's decode as a differentiable function with bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.model import Decoder as ConvDecoder
from comfy.taesd.taesd import TAESD
from comfy.taesd.taesd import Decoder as TinyDecoder
from torch import Tensor, nn

from ...dno_core.noise_map.sampler import vjp_unit
from ...dno_core.noise_map.saved import Care, Overwritten
from .scope import free_weights

Stage = Callable[[Tensor], Tensor]


class BlockDecoder:
    """Latent x_T -> image, image by image; the gradient recomputes the decoder block by block.

    A stored graph of one SDXL decode takes some 8 GB. Here only the blocks' inputs and one
    block's graph are alive. Satisfies dno_core's Decoder.
    """

    def __init__(
        self, vae: Any, to_latent: Callable[[Tensor], Tensor], on_call: Callable[[], None]
    ):
        self._vae = vae
        self._to_latent = to_latent
        self._on_call = on_call
        self._care = Care()
        self._stages = decode_stages(vae.first_stage_model)
        self._clips = vae.latent_dim == 3
        if self._clips:
            self._stages.append(_only_frame)
        self._offset, self._slope = output_range(vae)

    @property
    def dtype(self) -> torch.dtype:
        """In which the decoder computes."""
        return self._vae.vae_dtype

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Image float32 [B,3,H,W] on x's device, nominally in [0,1]: VAE Decode's, not clamped."""
        images = [self._decode(part).to(x.device) for part in x.split(1)]
        return torch.cat(images).float() * self._slope + self._offset

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        free_weights([self._vae.patcher])
        parts = zip(x.split(1), (v * self._slope).split(1), strict=True)
        try:
            with self._care.taken():
                pulled = torch.cat([self._pull(part, part_v) for part, part_v in parts])
        except Overwritten:
            if not self._care.trusts:
                raise
            self._care.distrust()
            return self.pull(x, v)
        self._care.passed()
        return pulled

    def _decode(self, x: Tensor) -> Tensor:
        hidden = self._enter(x)
        for stage in self._stages:
            self._on_call()
            hidden = stage(hidden)
        return hidden

    def _pull(self, x: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = [self._enter(x)]
            for stage in self._stages[:-1]:
                self._on_call()
                inputs.append(stage(inputs[-1]))
        for stage in reversed(self._stages):
            self._on_call()
            v = vjp_unit(stage, [inputs.pop()], v)[0]
        return vjp_unit(self._enter, [x], v)[0]

    def _enter(self, x: Tensor) -> Tensor:
        latent = self._to_latent(x)
        if latent.ndim == 5 and not self._clips:
            latent = latent[:, :, 0]
        return latent.to(device=self._vae.device, dtype=self._vae.vae_dtype)


def vae_decode(vae: Any, samples: Tensor) -> Tensor:
    """IMAGE [B,H,W,3] of a LATENT's samples, as the node VAE Decode gives it."""
    images = vae.decode(samples)
    return images.flatten(0, 1) if images.ndim == 5 else images


def decode_stages(model: nn.Module) -> list[Stage]:
    """The decode of a first-stage model as stages to be run one after another.

    By blocks for ComfyUI's convolutional decoders (SD, SDXL, SD3, Flux) and for sequential ones
    (TAESD); otherwise the whole decode is one stage.
    """
    decoder: Any = getattr(model, "decoder", None)
    plain = getattr(model, "bn", None) is None
    if plain and type(decoder) is ConvDecoder and not decoder.carried:
        entry: Any = getattr(model, "post_quant_conv", None)
        return ([entry] if entry is not None else []) + _conv_stages(decoder)
    if type(model) is TAESD and type(model.taesd_decoder) in (nn.Sequential, TinyDecoder):
        return [_taesd_enter(model), *model.taesd_decoder, lambda h: h.sub(0.5).mul(2)]
    whole: Any = model
    return [lambda z: whole.decode(z)]


def _conv_stages(decoder: Any) -> list[Stage]:
    def finish(h: Tensor) -> Tensor:
        h = decoder.conv_out(nn.functional.silu(decoder.norm_out(h)))
        return torch.tanh(h) if decoder.tanh_out else h

    stages: list[Stage] = [decoder.conv_in]
    stages += [_timeless(decoder.mid.block_1), decoder.mid.attn_1, _timeless(decoder.mid.block_2)]
    for level in reversed(range(decoder.num_resolutions)):
        up = decoder.up[level]
        for index, block in enumerate(up.block):
            stages.append(_timeless(block))
            if len(up.attn):
                stages.append(up.attn[index])
        if level:
            stages.append(up.upsample)
    return [*stages, finish]


def _taesd_enter(model: Any) -> Stage:
    return lambda z: (z - model.vae_shift) * model.vae_scale


def _only_frame(clip: Tensor) -> Tensor:
    """[B,3,1,H,W] -> [B,3,H,W]. Raises ValueError for more frames."""
    if clip.shape[2] != 1:
        raise ValueError(
            f"This VAE makes {clip.shape[2]} frames of one latent, and rewards judge one picture. "
            "Use the VAE of an image model."
        )
    return clip[:, :, 0]


def _timeless(block: nn.Module) -> Stage:
    return lambda h: block(h, None)


def output_range(vae: Any) -> tuple[float, float]:
    """(offset, slope) of the VAE's output map, which is affine with a clamp to [0, 1] at most.

    Raises ValueError where it is anything else.
    """
    probe = torch.tensor([0.25, 0.5, 0.75])
    low, middle, high = vae.process_output(probe.clone().view(1, 1, 3)).flatten().tolist()
    slope = (high - low) / 0.5
    if slope <= 0 or abs(middle - (low + high) / 2) > 1e-6:
        raise ValueError(
            "This VAE maps its output to pixels in a way that is not known here. "
            "Use the VAE of an image model."
        )
    return low - 0.25 * slope, slope
