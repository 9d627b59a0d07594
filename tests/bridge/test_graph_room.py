"""The estimate of a graph's memory, against the ledger's count on networks of full size.

They live on the device "meta": all shapes, no numbers, no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core.noise_map import saved
from comfyui_dno.dno_core.noise_map.recompute import Recomputation
from comfyui_dno.dno_core.noise_map.saved import Ledger

HALF = torch.float16

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "adm_in_channels": None,
    "legacy": False,
}
SDXL = {
    **SD15,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SDXL.pop("num_heads")
SD3 = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
    "qk_norm": None,
    "x_block_self_attn_layers": [],
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FAMILIES: dict[str, tuple[dict[str, Any], str, tuple[int, int], int, int]] = {
    "SD15": (SD15, "BaseModel", (77, 768), 0, 64),
    "SDXL": (SDXL, "BaseModel", (77, 2048), 2816, 128),
    "SD3": (SD3, "SD3", (154, 4096), 2048, 64),
    "Flux": (FLUX, "Flux", (256, 4096), 768, 64),
}
"""Configuration, class, text features, pooled features, latent size of the picture."""


class Fused(torch.autograd.Function):
    """What a fused attention saves for backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def fused_attention(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **how: Any) -> Any:
    if not how.get("skip_reshape"):
        q, k, v = (x.view(len(x), x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = Fused.apply(q, k, v)
    return out if how.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


def network(name: str) -> Any:
    import comfy.model_base
    import comfy.supported_models

    options, kind, *_ = FAMILIES[name]
    config = getattr(comfy.supported_models, name)(dict(options))
    config.unet_config["dtype"] = HALF
    config.set_inference_dtype(HALF, None)
    model = getattr(comfy.model_base, kind)(config, device="meta")
    return model.requires_grad_(False)


class Patcher:
    """As much of a ModelPatcher as the estimate asks for."""

    def __init__(self, model: Any) -> None:
        self.model = model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_estimate_is_what_the_ledger_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes.comfy_bridge.blocks import blocks_of
    from comfyui_dno.nodes.comfy_bridge.graph_room import block_room, plain_room

    monkeypatch.setattr(saved, "_storage", lambda tensor: tensor.untyped_storage()._cdata)
    monkeypatch.setattr(management, "in_training", True)
    monkeypatch.setattr(management, "pytorch_attention_flash_attention", lambda: True)
    _, _, text, pooled, size = FAMILIES[name]
    with torch.inference_mode(False), torch.device("meta"):
        model = network(name)
        net = model.diffusion_model
        shape = [1, model.latent_format.latent_channels, size, size]
        weights = {each.untyped_storage()._cdata for each in (*net.parameters(), *net.buffers())}

        def call(x: Tensor) -> Tensor:
            given = {"context": torch.empty(2, *text, dtype=HALF)}
            if pooled:
                given["y"] = torch.empty(2, pooled, dtype=HALF)
            if name == "Flux":
                given["guidance"] = torch.empty(2, dtype=HALF)
            options = {"optimized_attention_override": fused_attention}
            return net(x, torch.empty(2, dtype=HALF), transformer_options=options, **given)

        whole, _ = graph_of(call, shape, weights)
        blocks = Recomputation(blocks_of(net), lambda module, given: False)

        def by_blocks(x: Tensor) -> Tensor:
            with blocks.installed():
                return call(x)

        kept, at_work = graph_of(by_blocks, shape, weights)
        assert not blocks.found_leaks()
        plain, divided = plain_room(Patcher(model), shape), block_room(Patcher(model), shape)
    assert plain / 1.25 < whole <= plain, (whole, plain)
    assert divided / 6 < kept + at_work <= divided, (kept, at_work, divided)
    assert kept + at_work < whole / 3


def graph_of(
    call: Callable[[Tensor], Tensor], shape: list[int], weights: set[int]
) -> tuple[int, int]:
    """Bytes of the graph of a call for two prompts, and of the largest block's in its backward."""
    ledgers: list[Ledger] = []
    at_work = [0]
    begin, grad = Ledger.__init__, torch.autograd.grad

    def beginning(self: Ledger) -> None:
        begin(self)
        ledgers.append(self)

    def inside_a_block(*args: Any, **kwargs: Any) -> Any:
        if ledgers:
            at_work.append(ledgers[-1].bytes_saved(weights))
        return grad(*args, **kwargs)

    ledger = Ledger()
    try:
        with pytest.MonkeyPatch.context() as patch, torch.enable_grad(), ledger.watching():
            patch.setattr(Ledger, "__init__", beginning)
            patch.setattr(torch.autograd, "grad", inside_a_block)
            with ledger.saving():
                x = torch.empty(2, *shape[1:], dtype=HALF, device="meta", requires_grad=True)
                out = call(x)
            size = ledger.bytes_saved(weights)
            grad(out, x, torch.empty_like(out))
    finally:
        ledger.close()
    return size, max(at_work)
