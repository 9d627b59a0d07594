"""Direct Noise Optimization for ComfyUI.

Optimizes the noise of a diffusion run by gradient, so that the picture climbs a reward. Inside
ComfyUI `comfy_entrypoint` offers the nodes; elsewhere `dno_core` and `rewards` stand alone.
"""

from __future__ import annotations

import logging
from typing import Any

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The pack's extension, for ComfyUI's loader."""
    try:
        from .nodes.extension import DNOExtension
    except Exception:
        # ComfyUI logs one line without a traceback for a pack that fails to load.
        logging.getLogger("dno").exception("Direct Noise Optimization could not be loaded")
        raise
    return DNOExtension()
