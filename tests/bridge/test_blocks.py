"""Block by block: the same gradient for a fraction of the memory, and no trace of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_dno.dno_core.noise_map.saved import Ledger

from . import tiny
from .runs import KeepDouble, gradient_errors, inside, request, wavy_reward
from .sabotage import Calls
from .test_gradients import a_mask, a_picture, flux
from .test_gradients_of_patches import PATCHES

DOUBLE = torch.float64
BLOCKS = "recompute blocks"


def control(**changes: Any) -> dict[str, Any]:
    net = tiny.control_net(strength=0.7)
    return {"positive": tiny.conditioning(1, control=net, control_apply_to_uncond=True), **changes}


def attn2_patch(model: Any) -> Any:
    """As IPAdapter: tensors of its own, made in inference mode."""
    scale = torch.rand(1, 1, 1, dtype=DOUBLE) + 0.5
    patched = model.clone()
    patched.set_model_attn2_patch(
        lambda q, k, v, options: (torch.tanh(q) * scale.to(q), k, v * scale.to(v))
    )
    return patched


def borrowing(model: Any) -> Any:
    """A block uses what another has left in a closure: no gradient passes through either."""
    kept: list[Tensor] = []

    def patch(n: Tensor, options: dict[str, Any]) -> Tensor:
        if kept and kept[-1].shape == n.shape:
            return n + kept.pop()
        kept.append(torch.sin(3 * n))
        return n

    patched = model.clone()
    patched.set_model_attn2_output_patch(patch)
    return patched


def freeu(model: Any) -> Any:
    from comfy_extras.nodes_freelunch import FreeU_V2

    return FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


def guidance(model: Any) -> Any:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, 3.0)[0]


def patched(patch: Callable[[Any], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"model": patch(tiny.sd_model(DOUBLE))}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "SD": dict,
    "two images": lambda: {"batch": 2},
    "Flux": lambda: flux(cfg=1.0),
    "ControlNet": control,
    "mask": lambda: {"latent": {"samples": a_picture(), "noise_mask": a_mask()}},
    "LoRA": patched(tiny.lora_model),
    "FreeU_V2": patched(freeu),
    "PAG": patched(guidance),
    "SAG": patched(PATCHES["SAG"]),
    "ToMe": patched(PATCHES["ToMe"]),
    "HyperTile": patched(PATCHES["HyperTile"]),
    "attn2 patch": patched(attn2_patch),
    "a patch that borrows": patched(borrowing),
}


def gradient_of(asked: Any, in_double: bool = True) -> Tensor:
    def work(problem: Any, z: Tensor, to_latent: Any) -> Tensor:
        z = z.double() if in_double else z
        evaluation = problem.evaluate(z, (1.0,), differentiate=True)
        return problem.gradient(z, evaluation, evaluation.image_gradient)

    if not in_double:
        return inside(asked, work)
    with KeepDouble():
        return inside(asked, work)


@pytest.mark.parametrize("name", CASES)
def test_by_blocks_the_gradient_is_that_of_the_whole_call(name: str) -> None:
    changes = CASES[name]()
    made = {"terms": (wavy_reward(),), "steps": 2, **changes}
    whole, by_blocks = (
        gradient_of(request(DOUBLE, graph_memory=policy, **made))
        for policy in ("recompute", BLOCKS)
    )
    assert whole.abs().max() > 0
    torch.testing.assert_close(by_blocks, whole, rtol=1e-9, atol=1e-9 * float(whole.abs().max()))


@pytest.mark.parametrize("name", ["SD", "Flux", "ControlNet"])
def test_by_blocks_the_gradient_is_the_slope(name: str) -> None:
    made = {"terms": (wavy_reward(),), "steps": 2, "graph_memory": BLOCKS, **CASES[name]()}
    errors = gradient_errors(request(DOUBLE, **made), directions=1)
    assert max(errors) < 1e-5, errors


def graph_bytes(monkeypatch: pytest.MonkeyPatch, policy: str, **changes: Any) -> int:
    """The largest graph of a denoiser call, without its weights, by the ledger's own count."""
    from comfyui_dno.nodes.comfy_bridge.memory import GraphMemory

    sizes: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(GraphMemory, "measures", True)
        patch.setattr(GraphMemory, "measured", lambda self, size: sizes.append(size))
        patch.setattr(GraphMemory, "keep", lambda self, calls: 0)
        gradient_of(request(torch.float32, graph_memory=policy, **changes), in_double=False)
    assert len(sizes) == 3
    return max(sizes)


def test_by_blocks_a_graph_is_smaller_by_half_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    single = tiny.control_net(torch.float32, strength=0.7)
    controlled = tiny.conditioning(1, torch.float32, control=single, control_apply_to_uncond=True)
    for changes in ({}, {"positive": controlled}):
        whole = graph_bytes(monkeypatch, "recompute", **changes)
        by_blocks = graph_bytes(monkeypatch, BLOCKS, **changes)
        assert 0 < by_blocks < whole / 2, (by_blocks, whole)


def test_the_watch_finds_the_blocks_that_leak_and_no_others() -> None:
    from comfyui_dno.dno_core.noise_map.recompute import Recomputation
    from comfyui_dno.nodes.comfy_bridge.blocks import blocks_of, runs_foreign_code

    def leaky(patch: Callable[[Any], Any]) -> int:
        made: list[Recomputation] = []
        original = Recomputation.__init__

        def remember(self: Any, *args: Any) -> None:
            original(self, *args)
            made.append(self)

        with pytest.MonkeyPatch.context() as context:
            context.setattr(Recomputation, "__init__", remember)
            model = patch(tiny.sd_model(torch.float32))
            gradient_of(request(model=model, graph_memory=BLOCKS, steps=1), in_double=False)
            assert len(blocks_of(model.model.diffusion_model)) > 8
        return len(made[0]._leaky)

    assert leaky(lambda model: model.clone()) == 0
    assert leaky(attn2_patch) == 0
    assert leaky(PATCHES["ToMe"]) == 0
    assert leaky(PATCHES["SAG"]) == 1, "SAG takes the attention map out of one block"
    assert leaky(borrowing) >= 2
    assert not runs_foreign_code(blocks_of(tiny.sd_model().model.diffusion_model)[0], ((), {}))


def instance_forwards(model: Any) -> list[str]:
    return [name for name, each in model.model.named_modules() if "forward" in vars(each)]


def test_nothing_is_left_on_the_modules_also_after_an_error() -> None:
    model = tiny.sd_model(torch.float32)
    gradient_of(request(model=model, graph_memory=BLOCKS), in_double=False)
    assert instance_forwards(model) == []

    def fail(out: Tensor) -> Tensor:
        raise KeyError("a patch fails")

    broken = Calls(model, 4, fail).model
    with pytest.raises(KeyError, match="a patch fails"):
        gradient_of(request(model=broken, graph_memory=BLOCKS), in_double=False)
    assert instance_forwards(model) == []


def test_a_forward_of_someone_else_on_a_block_is_run_and_put_back() -> None:
    model = tiny.sd_model(torch.float32)
    from comfyui_dno.nodes.comfy_bridge.blocks import blocks_of

    block = blocks_of(model.model.diffusion_model)[0]
    plain, calls = block.forward, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return plain(*args, **kwargs)

    block.forward = counted  # type: ignore[method-assign]
    gradient_of(request(model=model, graph_memory=BLOCKS, steps=1), in_double=False)
    assert vars(block)["forward"] is counted
    assert calls == [False, False, True], "the forward run, the block's, and its recomputation"


def test_an_unknown_network_is_divided_by_its_lists_of_layers() -> None:
    from torch import nn

    from comfyui_dno.nodes.comfy_bridge.blocks import blocks_of

    def layer() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    network = nn.Module()
    network.layers = nn.ModuleList(layer() for _ in range(3))
    network.single = nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])
    network.plain = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    assert blocks_of(network) == list(network.layers)


def test_a_compiled_model_is_left_whole() -> None:
    from comfy.patcher_extension import WrappersMP

    from comfyui_dno.nodes.comfy_bridge.blocks import block_recomputation

    model = tiny.sd_model(torch.float32)
    found: list[Any] = []

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        found.append(block_recomputation(problem.noise_map._guider))

    inside(request(model=model), work)
    compiled = model.clone()
    compiled.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *a, **k: executor(*a, **k)
    )
    inside(request(model=compiled), work)
    assert found[0] is not None and found[1] is None


def test_the_ledger_of_a_call_holds_nothing_after_it() -> None:
    closed: list[Ledger] = []
    original = Ledger.close
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "close", lambda self: (closed.append(self), original(self))[1])
        gradient_of(request(graph_memory=BLOCKS, steps=1), in_double=False)
    assert len(closed) > 8, "one of the call, one of every block"
    assert all(ledger.bytes_saved() == 0 for ledger in closed)
