"""Train the autoencoder on a latent space that is given (latent_space.py).

The decoder learns to draw the picture from disturbed latents, the encoder to find the latents.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import checkpoints
import latent_space
import muon
import nets
import torch
from compose import Composer
from drawings import DATA, load
from torch import nn
from torch.nn import functional

LOG_VARIANCE = -8.0


def widen(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Mix a quarter of the pictures with their neighbours and change contrast and brightness."""
    count = len(images)
    share = torch.rand(count, 1, 1, 1, generator=rng)
    share = share * (torch.rand(count, 1, 1, 1, generator=rng) < 0.25)
    mixed = images * (1 - share) + images.roll(1, 0) * share
    chosen = (torch.rand(count, 1, 1, 1, generator=rng) < 0.5).float()
    gain = 1 + chosen * (torch.rand(count, 3, 1, 1, generator=rng) - 0.5) * 0.8
    offset = chosen * (torch.rand(count, 3, 1, 1, generator=rng) - 0.5) * 0.4
    return ((mixed - 0.5) * gain + 0.5 + offset).clamp(0, 1)


def disturb(latents: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Fine and coarse noise of random strength (at most 0.3) and a scale of 0.9 to 1.12."""
    count, channels = latents.shape[:2]
    strength = torch.rand(count, 1, 1, 1, generator=rng) ** 2 * 0.3
    coarse = torch.randn(count, channels, 4, 4, generator=rng)
    coarse = functional.interpolate(coarse, latents.shape[-2:], mode="bilinear")
    noise = torch.randn(latents.shape, generator=rng) + coarse
    scale = 0.9 + 0.22 * torch.rand(count, 1, 1, 1, generator=rng)
    chosen = torch.rand(count, 1, 1, 1, generator=rng) < 0.3
    return latents * torch.where(chosen, scale, torch.ones(())) + strength * noise


def edges(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences to the right and the lower neighbour."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def draw_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pixels and of their differences."""
    pairs = zip(edges(found), edges(wanted), strict=True)
    return (found - wanted).abs().mean() + sum((f - w).abs().mean() for f, w in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="packages and drawings")
    parser.add_argument("--run", type=Path, default=checkpoints.RUNS)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--cooldown", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    nets.use_comfyui()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = nets.build_vae().to(device)
    space, composer = latent_space.read(), Composer(load(args.data), args.seed)
    optimizer: torch.optim.Optimizer | muon.Both
    if args.optimizer == "muon":
        optimizer = muon.Both([vae], args.lr)
    else:
        optimizer = torch.optim.AdamW(vae.parameters(), args.lr, (0.9, 0.99), weight_decay=0.001)
    average = checkpoints.Average([vae], 0.995)
    path, stop, step = args.run / "vae_state.pt", checkpoints.Stop(), 0
    state = checkpoints.load_state(path)
    if state:
        vae.load_state_dict(state["vae"])
        if state.get("kind", "adamw") == args.optimizer:
            optimizer.load_state_dict(state["optimizer"])
        average.mean, step = [m.to(device) for m in state["mean"]], state["step"]

    def save() -> None:
        checkpoints.save_state(
            {"vae": vae.state_dict(), "mean": average.mean,
             "optimizer": optimizer.state_dict(), "kind": args.optimizer, "step": step}, path
        )  # fmt: skip
        average.swap()
        note = {"step": str(step), "images": str(step * args.batch), "seed": str(args.seed)}
        checkpoints.save_tensors(checkpoints.half(vae), args.run / "vae.safetensors", note)
        average.swap()

    start, seen, drawn, distilled = time.time(), 0, 0.0, 0.0
    while step < args.steps and not stop:
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        images = widen(composer.batch(step, args.batch).images, rng)
        latents = space.encode(images)
        rough = disturb(latents, rng).to(device)
        images, latents = images.to(device), latents.to(device)
        for group in optimizer.param_groups:
            group["lr"] = checkpoints.rate(step, args.lr, 100, args.cooldown, args.steps)
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.decode(rough).float()
            moments = vae.quant_conv(vae.encoder(images * 2 - 1)).float()
        mean, log_variance = moments.chunk(2, 1)
        draw = draw_loss((found + 1) / 2, images)
        distil = (mean - latents).square().mean()
        spread = (log_variance - LOG_VARIANCE).square().mean()
        optimizer.zero_grad(set_to_none=True)
        (draw + distil + 0.01 * spread).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        step, seen = step + 1, seen + 1
        drawn, distilled = drawn + float(draw.detach()), distilled + float(distil.detach())
        if step % 100 == 0:
            speed, now = seen * args.batch / (time.time() - start), time.strftime("%H:%M:%S")
            print(f"{now} step {step} draw {drawn / seen:.4f} distil {distilled / seen:.4f} "
                  f"{speed:.1f} images/s", flush=True)  # fmt: skip
            start, seen, drawn, distilled = time.time(), 0, 0.0, 0.0
        if step % 500 == 0:
            save()
    save()
    print("saved at step", step, flush=True)


if __name__ == "__main__":
    main()
