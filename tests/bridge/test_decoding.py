"""The decode by blocks: VAE Decode's picture, its exact gradient, in a bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from . import tiny
from .runs import KeepDouble

VAES: dict[str, Callable[[torch.dtype], Any]] = {
    "AutoencoderKL": tiny.vae,
    "AutoencoderKL with attention": lambda dtype: tiny.vae(dtype, attn_resolutions=[16]),
    "AutoencodingEngine of Flux": tiny.flux_vae,
    "TAESD": tiny.taesd_vae,
    "unknown": lambda dtype: tiny.vae_around(unknown_autoencoder(), dtype),
}


class UnknownAutoencoder(torch.nn.Module):
    """A first-stage model of a kind that nobody has met."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.ConvTranspose2d(4, 3, 2, 2)

    def decode(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z)).mul_(0.5)


def unknown_autoencoder() -> torch.nn.Module:
    return tiny.randomize(UnknownAutoencoder(), 7)


def made(name: str, dtype: torch.dtype) -> tuple[Any, Any, Tensor]:
    """A VAE, its BlockDecoder and two latents, in the scope of a run."""
    from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder

    vae = VAES[name](dtype)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, vae.latent_channels, 8, 8, generator=generator, dtype=dtype)
    return vae, BlockDecoder(vae, lambda x: x, lambda: None), x


@pytest.mark.parametrize("name", VAES)
def test_the_picture_is_vae_decodes(name: str) -> None:
    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope, normal_copies

    vae, decoder, x = made(name, torch.float32)
    expected = torch.cat([vae.decode(part) for part in x.split(1)]).movedim(-1, 1)
    torch.testing.assert_close(expected, vae.decode(x).movedim(-1, 1))
    with gradient_scope():
        image = decoder.decode(normal_copies(x))
    assert expected.std() > 0.01
    assert torch.equal(image.clamp(0, 1), expected)


@pytest.mark.parametrize("name", VAES)
def test_the_gradient_is_that_of_central_differences(name: str) -> None:
    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope, normal_copies

    with KeepDouble():
        vae, decoder, x = made(name, torch.float64)
        with gradient_scope():
            x = normal_copies(x)
            generator = torch.Generator().manual_seed(5)
            weight = torch.randn(decoder.decode(x).shape, generator=generator, dtype=x.dtype)
            gradient = decoder.pull(x, weight)
            assert torch.equal(decoder.pull(x, weight), gradient), "a stage changed its input"
            for _ in range(3):
                # a longer step crosses the kinks of ReLUs
                step = 1e-7 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
                rise = ((decoder.decode(x + step) - decoder.decode(x - step)) * weight).sum() / 2
                usual = gradient.norm() * step.norm() / x.numel() ** 0.5
                assert abs(rise - (gradient * step).sum()) < 1e-5 * usual


@pytest.mark.parametrize(
    "name", ["AutoencoderKL", "AutoencodingEngine of Flux", "TAESD"], ids=lambda n: n.split()[0]
)
def test_known_decoders_go_by_blocks(name: str) -> None:
    from comfyui_dno.nodes.comfy_bridge.decoding import decode_stages

    assert len(decode_stages(VAES[name](torch.float32).first_stage_model)) > 8


def test_an_unknown_decoder_is_one_stage() -> None:
    from comfyui_dno.nodes.comfy_bridge.decoding import decode_stages

    assert len(decode_stages(unknown_autoencoder())) == 1


def peak_bytes(work: Callable[[], Any], folder: Path) -> int:
    """The most memory alive at a time during `work`, above what was there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    marks = sorted(
        (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
        for event in events
        if event["name"] == "[memory]"
    )
    before = marks[0][1] - marks[0][2]
    return max(total for _, total, _ in marks) - before


def test_the_gradient_needs_a_fraction_of_the_memory_of_a_stored_graph(tmp_path: Path) -> None:
    from comfyui_dno.dno_core.noise_map.sampler import vjp
    from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder
    from comfyui_dno.nodes.comfy_bridge.scope import free_weights, gradient_scope

    vae = tiny.vae(torch.float32, ch_mult=[1, 2, 2], num_res_blocks=2)
    with gradient_scope():
        x = torch.randn(1, 4, 24, 24)
        weight = torch.randn(1, 3, 96, 96)
        decoder = BlockDecoder(vae, lambda x: x, lambda: None)
        free_weights([vae.patcher])
        whole: list[Tensor] = []
        stored = peak_bytes(
            lambda: whole.extend(vjp(vae.first_stage_model.decode, [x], weight)), tmp_path
        )
        pulled: list[Tensor] = []
        by_blocks = peak_bytes(lambda: pulled.append(decoder.pull(x, 2 * weight)), tmp_path)
    torch.testing.assert_close(pulled[0], whole[0], rtol=1e-3, atol=1e-4)
    assert by_blocks < 0.5 * stored, f"{by_blocks / 2**20:.1f} of {stored / 2**20:.1f} MiB"


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0), (0.5, 0.5)),
        (lambda image: image, (0.0, 1.0)),
        (lambda image: image.clamp(0.0, 1.0), (0.0, 1.0)),
    ],
)
def test_the_output_range_of_a_vae_is_found(process: Any, expected: tuple[float, float]) -> None:
    from comfyui_dno.nodes.comfy_bridge.decoding import output_range

    vae = tiny.vae(torch.float32)
    vae.process_output = process
    assert output_range(vae) == pytest.approx(expected)


@pytest.mark.parametrize("process", [torch.sigmoid, lambda image: 1 - image, torch.sqrt])
def test_a_vae_with_an_unknown_output_map_is_refused(process: Any) -> None:
    from comfyui_dno.nodes.comfy_bridge.decoding import output_range

    vae = tiny.vae(torch.float32)
    vae.process_output = process
    with pytest.raises(ValueError, match="Use the VAE of an image model"):
        output_range(vae)
