"""Which parts of ComfyUI's networks run as blocks that are recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.mmdit import JointBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn

from ...dno_core.noise_map.recompute import Recomputation
from .scope import controls_of

BLOCKS = (ResBlock, BasicTransformerBlock, DoubleStreamBlock, SingleStreamBlock, JointBlock)
"""Of SD1, SD2, SDXL, Flux, SD3 and their ControlNets: read, and nothing passes by their inputs and
outputs unless a patch sees to it. Any other network's are the members of its lists of layers of
one class, which are watched."""

FOREIGN = ("patches", "patches_replace", "wrappers", "callbacks", "optimized_attention_override")
"""Entries of transformer_options by which code of others runs inside a block."""

COMPILED = "torch.compile"
"""ComfyUI's key for a compiled network: it divides its graph by itself."""


def block_recomputation(guider: Any) -> Recomputation | None:
    """The blocks of the guider's network and its ControlNets; None where there are none."""
    if _is_compiled(guider):
        return None
    patchers = chain.from_iterable(each.get_models() for each in controls_of(guider.conds))
    networks = [guider.inner_model.diffusion_model, *(patcher.model for patcher in patchers)]
    modules = list(chain.from_iterable(map(blocks_of, dict.fromkeys(networks))))
    return Recomputation(modules, runs_foreign_code) if modules else None


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The network's blocks; where they are nested, the outermost that is called counts."""
    found = dict.fromkeys(each for each in network.modules() if type(each) in BLOCKS)
    for layers in network.modules():
        if isinstance(layers, nn.ModuleList):
            found |= dict.fromkeys(_repeated(layers))
    return [each for each in found if not hasattr(each, "_orig_mod")]  # not those of torch.compile


def runs_foreign_code(module: nn.Module, given: Any) -> bool:
    """Whether a call of the block with these (args, kwargs) may run code that was not read."""
    if type(module) not in BLOCKS:
        return True
    args, kwargs = given
    options = [each for each in (*args, *kwargs.values()) if type(each) is dict]
    return any(each.get(name) for each in options for name in FOREIGN)


def _repeated(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The members that have layers of their own and a sibling of their class."""
    members = list(layers)
    kinds = [type(each) for each in members]
    for each in members:
        if kinds.count(type(each)) > 1 and any(True for _ in each.children()):
            yield each


def _is_compiled(guider: Any) -> bool:
    options = guider.model_options.get("transformer_options", {})
    wrappers = [options.get("wrappers", {}), guider.inner_model.current_patcher.wrappers]
    return any(COMPILED in keyed for each in wrappers for keyed in each.values())
