"""Join the trained parts into demo/model.safetensors, with the config in its metadata."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkpoints
import latent_space
import nets
import torch
from safetensors import safe_open

OUT = Path(__file__).parents[1] / "model.safetensors"
PREFIXES = {
    "unet.": "model.diffusion_model.",
    "text.": "cond_stage_model.clip_l.transformer.",
}


def preview_factors(space: latent_space.LatentSpace) -> tuple[list[list[float]], list[float]]:
    """Colour in [-1, 1] of a latent pixel: mean of its 4x4 patch, linear in the channels."""
    basis = (space.basis * space.scale[:, None]).view(latent_space.CHANNELS, 3, -1).mean(-1)
    return basis.tolist(), space.mean.view(3, -1).mean(-1).tolist()


def note(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=checkpoints.RUNS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    tensors = {}
    for name, value in checkpoints.load_file(args.run / "ema.safetensors").items():
        part = name[:5]
        tensors[PREFIXES[part] + name[5:]] = value
    width = nets.TEXT["hidden_size"]
    projection = PREFIXES["text."] + "text_projection.weight"
    tensors[projection] = torch.eye(width, dtype=torch.float16)
    for name, value in checkpoints.load_file(args.run / "vae.safetensors").items():
        tensors["first_stage_model." + name] = value
    factors, bias = preview_factors(latent_space.read())
    config = {
        "unet": nets.UNET,
        "text": nets.TEXT,
        "vae": nets.VAE,
        "latent_rgb_factors": factors,
        "latent_rgb_factors_bias": bias,
        "trained": {
            "model": note(args.run / "ema.safetensors"),
            "vae": note(args.run / "vae.safetensors"),
        },
    }
    checkpoints.save_tensors(tensors, args.out, {"config": json.dumps(config)})
    print(args.out, args.out.stat().st_size / 1e6, "MB", config["trained"])


if __name__ == "__main__":
    main()
