"""Sample the demo model through ComfyUI's stock sampler, outside a server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nets
import torch

LOADER = Path(__file__).parents[2] / "nodes" / "comfy_bridge" / "demo_model.py"


class Demo:
    """The demo model as the pack's own loader gives it."""

    def __init__(self, path: Path | None = None):
        nets.use_comfyui()
        spec = importlib.util.spec_from_file_location("demo_model", LOADER)
        assert spec is not None and spec.loader is not None
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        self.model, self.clip, self.vae = loader.load_demo_model(path or loader.WEIGHTS)

    def encode(self, prompt: str) -> Any:
        """What CLIP Text Encode gives."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt), show_pbar=False)

    @torch.inference_mode()
    def draw(
        self, prompt: str, count: int, seed: int, steps: int = 25, cfg: float = 3.0,
        sampler: str = "euler_ancestral",
    ) -> torch.Tensor:  # fmt: skip
        """Images [count, 3, 64, 64] in [0, 1], as stock KSampler and VAE Decode make them."""
        import comfy.sample

        empty = torch.zeros(count, 8, 16, 16)
        noise = comfy.sample.prepare_noise(empty, seed)
        latents = comfy.sample.sample(
            self.model, noise, steps, cfg, sampler, "normal", self.encode(prompt),
            self.encode(""), empty, seed=seed, disable_pbar=True,
        )  # fmt: skip
        return self.vae.decode(latents).movedim(-1, 1)
