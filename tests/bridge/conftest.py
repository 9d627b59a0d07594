"""Everything here runs as ComfyUI's executor runs it: in-process and under inference mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def executor_mode(comfy: object) -> Iterator[None]:
    """What ComfyUI does around every prompt; models, latents and conditionings are made in it."""
    import comfy.model_management as management

    with torch.inference_mode():
        yield
    management.interrupt_current_processing(False)
    management.unload_all_models()
