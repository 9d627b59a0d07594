"""ComfyUI's own model patches: the gradient stays right under each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from . import tiny
from .runs import gradient_errors, request, wavy_reward

DOUBLE = torch.float64


def node(module: str, name: str, *values: Any) -> Callable[[Any], Any]:
    """What the node makes of a MODEL."""

    def patched(model: Any) -> Any:
        kind = getattr(__import__(f"comfy_extras.{module}", fromlist=[name]), name)
        if hasattr(kind, "execute"):
            return kind.execute(model, *values)[0]
        return kind().patch(model, *values)[0]

    return patched


PATCHES = {
    "APG without momentum": node("nodes_apg", "APG", 0.8, 5.0, 0.0),
    "CFGNorm": node("nodes_cfg", "CFGNorm", 0.9),
    "CFGZeroStar": node("nodes_cfg", "CFGZeroStar"),
    "EpsilonScaling": node("nodes_eps", "EpsilonScaling", 1.01),
    "FreeU": node("nodes_freelunch", "FreeU", 1.1, 1.2, 0.9, 0.2),
    "FreSca": node("nodes_fresca", "FreSca", 1.0, 1.25, 3),
    "HyperTile": node("nodes_hypertile", "HyperTile", 32, 2, 0, False),
    "Kohya downscale": node(
        "nodes_model_downscale",
        "PatchModelAddDownscale",
        *(3, 2.0, 0.0, 0.35, True, "bilinear", "bilinear"),
    ),
    "Mahiro": node("nodes_mahiro", "Mahiro"),
    "RescaleCFG": node("nodes_model_advanced", "RescaleCFG", 0.7),
    "SAG": node("nodes_sag", "SelfAttentionGuidance", 0.5, 2.0),
    "TCFG": node("nodes_tcfg", "TCFG"),
    "ToMe": node("nodes_tomesd", "TomePatchModel", 0.3),
}


@pytest.mark.parametrize("name", PATCHES)
def test_the_patch_has_the_right_gradient(name: str) -> None:
    asked = request(DOUBLE, terms=(wavy_reward(),), model=tiny.sd_model(DOUBLE), steps=2)
    model = PATCHES[name](asked.model)
    assert model is not asked.model
    errors = gradient_errors(
        request(DOUBLE, terms=asked.terms, model=model, vae=asked.vae, steps=2), directions=1
    )
    assert max(errors) < 1e-5, errors
