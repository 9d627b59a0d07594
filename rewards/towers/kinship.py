"""Whether a tower can be the one that a head was trained on; its width does not tell."""

from __future__ import annotations

from torch import nn

from .protocols import ImageTower


def unlike_openai_clip(tower: ImageTower, patch: int | None) -> str:
    """What shows that the tower is not OpenAI's CLIP with that patch size; "" if nothing does.

    OpenAI's CLIPs have the activation quick_gelu, and retrainings of the same size, LAION's among
    them, do not. Nothing shows in a tower whose layers are not among its modules.
    """
    layers = [layer for module in tower.modules for layer in module.modules()]
    names = {type(layer).__name__.lower() for layer in layers}
    if any("gelu" in name for name in names) and not any("quickgelu" in name for name in names):
        return "it lacks the activation of OpenAI's CLIPs (quick_gelu)"
    found = next((layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv2d)), patch)
    if patch is not None and found != patch:
        return f"its patches have {found} pixels a side, not {patch}"
    return ""
