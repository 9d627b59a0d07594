"""Kept graphs and recomputed blocks in the core: the numbers of a whole recomputation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from operator import call
from typing import Any

import pytest
import torch
from core_models import (
    SIGMAS,
    MaskedDenoiser,
    conv_denoiser,
    in_place_denoiser,
    randn,
    small_noise,
    small_problem,
    start_scaled,
    without_overwriting,
)
from torch import Tensor, nn

from comfyui_dno.dno_core import GradientMode, SamplerMap, ddim_steps
from comfyui_dno.dno_core.noise_map.graph import Graph
from comfyui_dno.dno_core.noise_map.recompute import Recomputation
from comfyui_dno.dno_core.noise_map.saved import Ledger, Overwritten, saved_tensors_kept

STEPS = ddim_steps(SIGMAS, 1.0)


class Counted:
    """A denoiser that counts its calls, with and without a graph."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.plain = self.graphs = 0

    def __call__(self, x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.graphs += 1
        else:
            self.plain += 1
        return self.inner(x, sigma, z0)


def masked() -> MaskedDenoiser:
    mask = torch.linspace(0, 1, 4, dtype=torch.float64)
    return MaskedDenoiser(conv_denoiser(), mask, randn(1, 2, 4, 4, seed=4))


DENOISERS: dict[str, Callable[[], Any]] = {
    "plain": conv_denoiser,
    "in place": lambda: in_place_denoiser,
    "masked": masked,
}


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("keep", [1, 3, 9])
def test_kept_graphs_change_no_bit_and_save_their_recomputation(name: str, keep: int) -> None:
    denoiser = Counted(DENOISERS[name]())
    plain = SamplerMap(denoiser, STEPS, start_scaled())
    keeping = replace(plain, keep=keep)
    z, v = randn(5, 1, 2, 4, 4, seed=1), randn(1, 2, 4, 4, seed=2)
    expected_path = plain.forward(z)
    expected = plain.pull(z, expected_path, v)
    denoiser.plain = denoiser.graphs = 0
    path = keeping.forward_to_pull(z)
    kept = min(keep, len(STEPS))
    assert sorted(path.graphs) == list(range(len(STEPS) - kept, len(STEPS)))
    assert (denoiser.plain, denoiser.graphs) == (len(STEPS) - kept, kept)
    assert torch.equal(path.final, expected_path.final) and not path.final.requires_grad
    assert all(map(torch.equal, path.latents, expected_path.latents))
    assert torch.equal(keeping.pull(z, path, v), expected)
    assert denoiser.graphs == len(STEPS), "only the others are computed once more"
    assert path.graphs == {}
    assert torch.equal(keeping.pull(z, path, v), expected), "a second pull recomputes them all"


def test_only_graphs_that_the_mode_needs_are_kept() -> None:
    noise_map = SamplerMap(
        conv_denoiser(), STEPS, start_scaled(), GradientMode("last k", k=2), keep=9
    )
    path = noise_map.forward_to_pull(randn(5, 1, 2, 4, 4))
    assert sorted(path.graphs) == [len(STEPS) - 2, len(STEPS) - 1]
    linear = noise_map.in_mode(GradientMode("linear"))
    assert linear.forward_to_pull(randn(5, 1, 2, 4, 4)).graphs == {}


def test_a_write_after_the_call_does_not_reach_what_its_graph_saved() -> None:
    """As a sampler that adds to x in place, or a later call that writes to a shared buffer."""
    x = randn(3, 4)
    v = randn(3, 4, seed=1)
    expected = v * 3 * x**2
    buffer = x.clone()
    ledger = Ledger()
    with ledger.watching():
        graph = Graph(lambda leaf: leaf**3, [buffer], ledger)
        buffer.mul_(7)
    torch.testing.assert_close(graph.pull(v)[0], expected)


def test_a_write_that_nobody_watched_is_an_error_and_no_wrong_gradient() -> None:
    buffer = randn(3, 4)
    ledger = Ledger()
    with ledger.watching():
        graph = Graph(lambda leaf: leaf**3, [buffer], ledger)
    buffer.mul_(7)
    with pytest.raises(Overwritten, match="written to out of sight"):
        graph.pull(randn(3, 4, seed=1))


def test_a_graph_is_pulled_once_and_is_free_then_or_when_it_is_dropped() -> None:
    for end in (lambda graph: graph.pull(torch.ones(8)), lambda graph: graph.drop()):
        ledger = Ledger()
        with ledger.watching():
            graph = Graph(lambda leaf: (leaf * 2).sin().exp(), [torch.zeros(8)], ledger)
        assert ledger.bytes_saved() > 0
        end(graph)
        assert ledger.bytes_saved() == 0
        with pytest.raises(RuntimeError, match="can be pulled back once"):
            graph.pull(torch.ones(8))


def test_a_failed_pull_frees_the_graph_as_well() -> None:
    def cancelled() -> None:
        raise KeyboardInterrupt

    ledger = Ledger()
    with ledger.watching():
        graph = Graph(lambda leaf: leaf.sin(), [torch.zeros(8)], ledger, cancelled)
    with pytest.raises(KeyboardInterrupt):
        graph.pull(torch.ones(8))
    assert ledger.bytes_saved() == 0


@pytest.mark.parametrize("where", ["decoder", "denoiser"])
def test_an_evaluation_that_fails_or_is_forgotten_keeps_no_graph(where: str) -> None:
    alive: list[weakref.ref[Graph]] = []
    original = Graph.__init__

    def noting(self: Graph, *args: Any) -> None:
        alive.append(weakref.ref(self))
        original(self, *args)

    calls = iter([False] * 4 + [True] * 20)

    def failing(x: Tensor, sigma: Tensor, z0: Tensor) -> Tensor:
        if where == "denoiser" and next(calls):
            raise KeyError("late")
        return conv_denoiser(x.dtype)(x, sigma, z0)

    problem = small_problem(denoise=failing)
    problem = replace(problem, noise_map=replace(problem.noise_map, keep=9))
    if where == "decoder":
        problem = replace(problem, decoder=Broken())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "__init__", noting)
        with pytest.raises(KeyError) as error:
            problem.evaluate(small_noise(2), (1.0,), differentiate=True)
    assert len(alive) >= 3
    assert all(graph is None or graph._ledger.bytes_saved() == 0 for graph in map(call, alive))
    del error
    gc.collect()
    assert all(each() is None for each in alive)


class Broken:
    def decode(self, x: Tensor) -> Tensor:
        raise KeyError("decoder")

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        return v


def test_only_an_evaluation_whose_gradient_is_wanted_keeps_graphs() -> None:
    problem = small_problem()
    problem = replace(problem, noise_map=replace(problem.noise_map, keep=9))
    z = small_noise(2)
    assert problem.evaluate(z, (1.0,)).path.graphs == {}
    evaluation = problem.evaluate(z, (1.0,), differentiate=True)
    assert len(evaluation.path.graphs) == len(problem.noise_map.steps)
    problem.gradient(z, evaluation, evaluation.image_gradient)
    assert evaluation.path.graphs == {}


def test_the_ledger_counts_a_storage_once_and_leaves_weights_out() -> None:
    weight = torch.randn(1000, dtype=torch.float64)
    with saved_tensors_kept() as ledger, torch.enable_grad():
        x = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
        out = (x * weight).sin() * weight
        assert ledger.bytes_saved() == 2 * 8000, "the weight, saved twice, and sin's argument"
        assert ledger.bytes_saved({weight.untyped_storage().data_ptr()}) == 8000
        assert out.requires_grad
    assert ledger.bytes_saved() == 0


class Layer(nn.Module):
    """Writes to its input and to what its own backward needs, as Flux's blocks do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(6, 6, seed=seed) / 2, requires_grad=False)

    def forward(self, x: Tensor, other: Tensor, options: dict[str, Any]) -> tuple[Tensor, Any]:
        gate = torch.sigmoid(other)
        x += torch.tanh(x @ self.weight) * gate
        if options["round"] % 2:
            x += torch.rand(x.shape, generator=None, dtype=x.dtype) * x
        gate.mul_(options["gain"])
        return x, other * gate.sin() + other


class Stack(nn.Module):
    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(seed) for seed in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x, other = x * 2, torch.cos(x)
        options = {"round": 0, "gain": 0.7}
        for layer in self.layers:
            x, other = layer(x, other=other, options=options)
            options["round"] += 1
            options["gain"] *= 0.9
        return x * other


def pulled(stack: Stack, x: Tensor, v: Tensor, blocks: Recomputation | None) -> tuple[Tensor, int]:
    torch.manual_seed(0)
    with saved_tensors_kept() as ledger, torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        if blocks is None:
            out = stack(leaf)
        else:
            with blocks.installed():
                out = stack(leaf)
        size = ledger.bytes_saved()
        torch.rand(3)  # the dice are elsewhere when the blocks run again
        return torch.autograd.grad(out, leaf, v)[0], size


def test_blocks_that_write_to_their_inputs_and_roll_dice_have_the_same_gradient() -> None:
    stack = Stack()
    x, v = randn(4, 6), randn(4, 6, seed=1)
    blocks = Recomputation(stack.layers, lambda module, given: True)
    expected, whole = pulled(stack, x, v, None)
    found, small = pulled(stack, x, v, blocks)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not blocks.found_leaks()
    assert small < whole / 2
    assert all("forward" not in vars(layer) for layer in stack.layers)


def test_without_a_gradient_blocks_run_as_they_are() -> None:
    stack = Stack()
    blocks = Recomputation(stack.layers, lambda module, given: True)
    with blocks.installed(), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recomputation, "_run", lambda *_: pytest.fail("a block was recomputed"))
        stack(randn(4, 6))


class Leaving(nn.Module):
    """Leaves a tensor where others find it, or takes one that was left."""

    def __init__(self, shelf: list[Tensor], leaves: bool) -> None:
        super().__init__()
        self.shelf, self.leaves = shelf, leaves

    def forward(self, x: Tensor) -> Tensor:
        if self.leaves:
            self.shelf.append(torch.sin(x))
            return x * 2
        return x + self.shelf[-1]


def test_tensors_that_pass_a_block_by_are_found() -> None:
    shelf: list[Tensor] = []
    modules = [Leaving(shelf, True), nn.Tanh(), Leaving(shelf, False)]
    blocks = Recomputation(modules, lambda module, given: True)
    x = randn(5)

    def run() -> Tensor:
        shelf.clear()
        with saved_tensors_kept(), torch.enable_grad(), blocks.installed():
            leaf = x.clone().requires_grad_(True)
            out = leaf
            for module in modules:
                out = module(out)
            if not out.requires_grad:
                return torch.full_like(x, torch.nan)
            return torch.autograd.grad(out, leaf, torch.ones_like(out))[0]

    rounds = 0
    while True:
        found, rounds = run(), rounds + 1
        if not blocks.found_leaks():
            break
    expected = 2 * (1 - torch.tanh(2 * x) ** 2) + torch.cos(x)
    torch.testing.assert_close(found, expected)
    assert rounds <= 3 and blocks._leaky == {id(modules[0]), id(modules[2])}


def test_out_of_place_and_in_place_denoisers_agree_where_graphs_are_kept() -> None:
    z, v = randn(5, 1, 2, 4, 4, seed=1), randn(1, 2, 4, 4, seed=2)
    found = []
    for denoiser in (in_place_denoiser, without_overwriting):
        noise_map = SamplerMap(denoiser, STEPS, start_scaled(), keep=9)
        found.append(noise_map.pull(z, noise_map.forward_to_pull(z), v))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
