"""The memory policy of a run: what is kept changes no number, and a run steps down and goes on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import tiny
from .runs import flux_inputs, inside, request, wavy_reward
from .sabotage import Calls, interrupt, out_of_memory
from .test_gradients import a_mask, a_picture

CALLS = 3
GIB = 2**30


def control(dtype: torch.dtype) -> dict[str, Any]:
    net = tiny.control_net(dtype, strength=0.7)
    positive = tiny.conditioning(1, dtype, control=net, control_apply_to_uncond=True)
    return {"positive": positive}


def freeu(dtype: torch.dtype) -> dict[str, Any]:
    from comfy_extras.nodes_freelunch import FreeU_V2

    return {"model": FreeU_V2.execute(tiny.sd_model(dtype), 1.3, 1.4, 0.9, 0.2)[0]}


SINGLE = torch.float32
KEPT: dict[str, Callable[[], dict[str, Any]]] = {
    "SD": dict,
    "Flux": lambda: flux_inputs(SINGLE),
    "ControlNet": lambda: control(SINGLE),
    "FreeU_V2": lambda: freeu(SINGLE),
    "mask": lambda: {"latent": {"samples": a_picture(), "noise_mask": a_mask()}},
    "LoRA": lambda: {"model": tiny.lora_model(tiny.sd_model(SINGLE))},
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_graphs_change_no_bit_of_picture_and_gradient(name: str) -> None:
    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        recomputed = problem.evaluate(z, (1.0,), differentiate=True)
        assert recomputed.path.graphs == {}, "the first sweep measures"
        expected = problem.gradient(z, recomputed, recomputed.image_gradient)
        kept = problem.evaluate(z, (1.0,), differentiate=True)
        assert len(kept.path.graphs) == CALLS
        assert torch.equal(kept.path.final, recomputed.path.final)
        assert all(map(torch.equal, kept.path.latents, recomputed.path.latents))
        found = problem.gradient(z, kept, kept.image_gradient)
        assert kept.path.graphs == {}
        assert expected.abs().max() > 0
        assert torch.equal(found, expected)

    made = {"terms": (wavy_reward(),), **KEPT[name]()}
    inside(request(SINGLE, graph_memory="store", **made), work)


def counted(policy: str, **changes: Any) -> list[int]:
    """Denoiser calls of the iterations of a run."""
    from comfyui_dno.nodes import optimization

    calls = Calls(tiny.sd_model(SINGLE), -1, interrupt)
    made = {"iterations": 3, "check_gradient": False, "cfg": 1.0, **changes}
    optimization.run(request(model=calls.model, graph_memory=policy, **made))
    return [calls.count]


def test_a_run_makes_the_calls_that_its_policy_says() -> None:
    """Four forward runs and three sweeps, of which the first always recomputes."""
    assert counted("recompute") == [4 * CALLS + 3 * CALLS]
    assert counted("recompute blocks") == [4 * CALLS + 3 * CALLS]
    assert counted("store") == counted("auto") == [4 * CALLS + CALLS]


def test_every_policy_gives_the_same_run() -> None:
    from comfyui_dno.nodes import optimization

    runs = [
        optimization.run(request(iterations=3, graph_memory=policy)).trajectory
        for policy in ("recompute", "store", "auto", "recompute blocks")
    ]
    for other in runs[1:3]:
        assert torch.equal(other.last_noise, runs[0].last_noise)
        assert [r.scores for r in other.records] == [r.scores for r in runs[0].records]
    torch.testing.assert_close(runs[3].last_noise, runs[0].last_noise, rtol=1e-4, atol=1e-5)


def test_only_as_many_graphs_are_kept_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfyui_dno.nodes.comfy_bridge import memory

    found: list[tuple[int, int]] = []

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        policy = problem.noise_map.graphs.memory
        first = problem.evaluate(z, (1.0,), differentiate=True)
        problem.gradient(z, first, first.image_gradient)
        room = 2.5 * policy.graph_bytes
        monkeypatch.setattr(memory, "kept_room", lambda device: room)
        second = problem.evaluate(z, (1.0,), differentiate=True)
        ledger = next(iter(second.path.graphs.values()))._ledger
        found.append((len(second.path.graphs), ledger.bytes_saved()))
        weights = problem.noise_map.graphs._weights
        assert ledger.bytes_saved(weights) <= room
        assert sorted(second.path.graphs) == [1, 2], "the sweep meets the last ones first"
        problem.gradient(z, second, second.image_gradient)
        assert ledger.bytes_saved() == 0

    inside(request(graph_memory="store"), work)
    assert found[0][0] == 2


def test_what_does_not_fit_by_the_estimate_runs_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes.comfy_bridge.memory import graph_memory

    model, shape = tiny.sd_model(torch.float16), [1, 4, 64, 64]
    lines: list[str] = []

    def chosen(policy: str, free: float) -> bool:
        monkeypatch.setattr(management, "get_free_memory", lambda device: free)
        made = graph_memory(policy, model, shape, lines.append)
        assert ("block by block" in made.line) == made.by_blocks
        return made.by_blocks

    assert not chosen("auto", 100 * GIB)
    assert chosen("auto", GIB / 4)
    assert not chosen("store", GIB / 4) and not chosen("recompute", GIB / 4)
    assert chosen("recompute blocks", 100 * GIB)
    with pytest.raises(ValueError, match="unknown. Use one of auto, store"):
        chosen("everything", GIB)


@contextmanager
def out_of_memory_in(target: Any, name: str, at: int) -> Iterator[list[int]]:
    """Call number `at` (from 0) of a method raises, once."""
    original, count = getattr(target, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == at + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, failing)
        yield count


@pytest.mark.parametrize("place", ["forward", "pull", "recomputation", "decode", "decoder's pull"])
def test_where_memory_runs_out_the_run_goes_on_and_ends_the_same(place: str) -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder
    from comfyui_dno.nodes.comfy_bridge.graphs import CallGraphs
    from comfyui_dno.nodes.comfy_bridge.progress import Progress
    from comfyui_dno.nodes.comfy_bridge.sampling import ComfyMap

    policy = "recompute" if place == "recomputation" else "store"
    made = {"iterations": 3, "check_gradient": False}
    expected = optimization.run(request(graph_memory=policy, **made)).trajectory
    # the second iteration's: graphs are kept from then on
    target, name, at = {
        "forward": (ComfyMap, "_graph", 1),
        "pull": (CallGraphs, "begin", CALLS + 1),
        "recomputation": (ComfyMap, "denoise", CALLS + 1),
        "decode": (BlockDecoder, "decode", 1),
        "decoder's pull": (BlockDecoder, "pull", 1),
    }[place]
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "remark", lambda self, line: said.append(line))
        with out_of_memory_in(target, name, at) as count:
            result = optimization.run(request(graph_memory=policy, **made)).trajectory
    assert count[0] > at + 1, "it was reached, and gone on from"
    assert len(result.records) == 4 and result.warnings == expected.warnings
    assert "Out of memory" not in result.stop_reason
    told = [line for line in said if "out of memory" in line]
    assert len(told) == 1, said
    if place == "recomputation":
        assert "block by block" in told[0]
        torch.testing.assert_close(result.last_noise, expected.last_noise, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(result.last_noise, expected.last_noise)


def test_half_as_many_graphs_are_kept_after_each_failure() -> None:
    from comfyui_dno.nodes.comfy_bridge.memory import GraphMemory

    said: list[str] = []
    policy = GraphMemory("auto", lambda: 100.0, report=said.append)
    policy.measured(10)
    assert policy.keep(50) == 10 and policy.keep(4) == 4
    assert policy.step_down(pulling=False, kept=10) and policy.keep(50) == 5
    assert policy.step_down(pulling=True, kept=1) and policy.keep(50) == 0
    assert not policy.step_down(pulling=False, kept=0), "a forward run alone has nothing to save"
    assert policy.step_down(pulling=True, kept=0) and policy.by_blocks
    assert not policy.step_down(pulling=True, kept=0), "nothing is left"
    assert len(said) == 4 and all(line.startswith("memory: ") for line in said)


def test_a_run_for_which_nothing_is_left_ends_with_the_best_and_three_remedies() -> None:
    from comfyui_dno.nodes import optimization

    calls = Calls(tiny.sd_model(SINGLE), 3 * CALLS + 1, out_of_memory, on=True)
    asked = request(model=calls.model, iterations=4, check_gradient=False, cfg=1.0)
    trajectory = optimization.run(asked).trajectory
    assert len(trajectory.records) == 2
    assert trajectory.stop_reason.startswith("Out of memory at iteration 2; the best before it")
    remedies = trajectory.stop_reason.rsplit(". Use ", 1)[1]
    assert remedies.count(",") == 2 and "low VRAM" in remedies


def test_a_cancel_frees_kept_graphs() -> None:
    import comfy.model_management as management

    from comfyui_dno.nodes import optimization

    calls = Calls(tiny.sd_model(SINGLE), 2 * CALLS + 2, interrupt)
    with pytest.raises(management.InterruptProcessingException):
        optimization.run(request(model=calls.model, check_gradient=False, graph_memory="store"))
    gc.collect()
    assert [t for t in gc.get_objects() if type(t) is Tensor and t.grad_fn is not None] == []


@pytest.mark.parametrize("trusting", [True, False])
def test_a_write_behind_the_back_of_kept_graphs_makes_them_be_computed_once_more(
    trusting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_dno.dno_core.noise_map.saved import Care

    if not trusting:
        monkeypatch.setattr(Care, "passed", Care.distrust)

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        first = problem.evaluate(z, (1.0,), differentiate=True)
        expected = problem.gradient(z, first, first.image_gradient)
        network = problem.noise_map._guider.inner_model.diffusion_model
        seen: list[Tensor] = []
        hook = network.out.register_forward_pre_hook(lambda module, given: seen.extend(given))
        kept = problem.evaluate(z, (1.0,), differentiate=True)
        hook.remove()
        assert kept.path.graphs
        seen[1].add_(0)  # counted as a write, as a patch's own might be
        care = problem.noise_map.graphs.care
        assert care.trusts is trusting
        found = problem.gradient(z, kept, kept.image_gradient)
        assert torch.equal(found, expected)
        assert not care.trusts

    inside(request(graph_memory="store"), work)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made in here held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._freed, key, size)
        return out

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_of(steps: int, policy: str) -> tuple[int, int]:
    """Peak of a gradient's live bytes, and the bytes of the noise and the latents among them."""

    def work(problem: Any, z: Tensor, to_latent: Any) -> tuple[int, int]:
        first = problem.evaluate(z, (1.0,), differentiate=True)
        problem.gradient(z, first, first.image_gradient)
        with Peak() as measured:
            evaluation = problem.evaluate(z, (1.0,), differentiate=True)
            problem.gradient(z, evaluation, evaluation.image_gradient)
        return measured.peak, 2 * z.numel() * z.element_size()

    return inside(request(steps=steps, graph_memory=policy), work)


def test_memory_does_not_grow_with_the_steps_unless_graphs_are_kept() -> None:
    for policy in ("recompute", "recompute blocks"):
        (few, small), (many, large) = peak_of(5, policy), peak_of(50, policy)
        assert large < 0.2 * few
        assert many - large < 1.1 * (few - small), policy
    assert peak_of(20, "store")[0] > 2 * peak_of(5, "store")[0]


def test_the_bytes_of_a_graph_are_those_that_live_tensors_hold() -> None:
    """The ledger's count against the allocator's, on one call."""

    def work(problem: Any, z: Tensor, to_latent: Any) -> None:
        first = problem.evaluate(z, (1.0,), differentiate=True)
        problem.gradient(z, first, first.image_gradient)
        counted = problem.noise_map.graphs.memory.graph_bytes
        with Peak() as measured:
            kept = problem.evaluate(z, (1.0,), differentiate=True)
            live = measured.live
            kept.path.drop()
            freed = live - measured.live
        assert freed == pytest.approx(CALLS * counted, rel=0.1)

    inside(request(graph_memory="store"), work)
