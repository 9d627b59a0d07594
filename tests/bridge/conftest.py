"""Everything here runs as ComfyUI's executor runs it: in-process and under inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from . import tiny


@pytest.fixture(autouse=True)
def executor_mode(comfy: object) -> Iterator[None]:
    """What ComfyUI does around every prompt; models, latents and conditionings are made in it."""
    import comfy.model_management as management

    with torch.inference_mode():
        yield
    management.interrupt_current_processing(False)
    management.unload_all_models()


@pytest.fixture(scope="module")
def models(comfy: object) -> dict[str, Any]:
    """Shared by the runs of a file: a continuation needs the same model and VAE."""
    with torch.inference_mode():
        dtype = torch.float32
        return {
            "model": tiny.sd_model(dtype),
            "vae": tiny.vae(dtype),
            "positive": tiny.conditioning(1, dtype),
            "negative": tiny.conditioning(2, dtype),
        }
