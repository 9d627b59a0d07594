"""Train the UNet and the text encoder together (v-prediction, classifier-free guidance)."""

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

DROP_CAPTION = 0.1


def loss_on(
    unet: nn.Module, text: nn.Module, latents: torch.Tensor, tokens: torch.Tensor,
    timesteps: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Mean squared error of v = (noise - sigma z) / sqrt(1 + sigma^2), per picture [B].

    The network sees (z + sigma noise) / sqrt(1 + sigma^2) and the discrete timestep, as in
    ComfyUI's V_PREDICTION.
    """
    s = sigma.view(-1, 1, 1, 1)
    alpha = (1 + s * s).rsqrt()
    with torch.autocast(latents.device.type, torch.bfloat16):
        context = nets.encode_text(text, tokens)
        noisy = (latents + s * noise) * alpha
        options = dict(nets.ATTENTION)
        v = unet(noisy, timesteps.float(), context=context, transformer_options=options)
    return (v.float() - (noise - s * latents) * alpha).square().mean((1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="packages and drawings")
    parser.add_argument("--run", type=Path, default=checkpoints.RUNS)
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--cooldown", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--aligned", action="store_true",
                        help="drawings of one size, shifted by whole latent pixels")  # fmt: skip
    parser.add_argument("--start", type=Path, default=None,
                        help="weights (checkpoints/*.safetensors) for a new run")  # fmt: skip
    parser.add_argument("--save-every", type=int, default=500)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    nets.use_comfyui()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet, text = nets.build_unet().to(device), nets.build_text().to(device)
    text.text_projection.requires_grad_(False)
    sigmas, tokens = nets.sigmas().to(device), nets.Tokens()
    space, composer = (
        latent_space.read(),
        Composer(load(args.data), args.seed, aligned=args.aligned),
    )
    if args.start:
        for name, module in (("unet.", unet), ("text.", text)):
            weights = checkpoints.load_file(args.start).items()
            part = {k.removeprefix(name): v.float() for k, v in weights if k.startswith(name)}
            module.load_state_dict(part)
    trained = [p for m in (unet, text) for p in m.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer | muon.Both
    if args.optimizer == "muon":
        optimizer = muon.Both([unet, text], args.lr)
    else:
        optimizer = torch.optim.AdamW(trained, args.lr, (0.9, 0.99), weight_decay=0.01)
    average = checkpoints.Average([unet, text], args.ema)
    path, stop, step = args.run / "state.pt", checkpoints.Stop(), 0
    state = checkpoints.load_state(path)
    if state:
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        if state.get("kind", "adamw") == args.optimizer:
            optimizer.load_state_dict(state["optimizer"])
        average.mean, step = [m.to(device) for m in state["mean"]], state["step"]
    print(f"{sum(p.numel() for p in trained) / 1e6:.2f} M parameters, from step {step}", flush=True)

    def save() -> None:
        weights = {"unet": unet.state_dict(), "text": text.state_dict(), "mean": average.mean}
        kept = {"optimizer": optimizer.state_dict(), "kind": args.optimizer, "step": step}
        checkpoints.save_state({**weights, **kept}, path)
        average.swap()
        ema = checkpoints.half(unet, "unet.") | checkpoints.half(text, "text.")
        average.swap()
        raw = checkpoints.half(unet, "unet.") | checkpoints.half(text, "text.")
        note = {"step": str(step), "images": str(step * args.batch), "seed": str(args.seed)}
        checkpoints.save_tensors(ema, args.run / "ema.safetensors", note)
        checkpoints.save_tensors(raw, args.run / "raw.safetensors", note)

    start, seen, total = time.time(), 0, 0.0
    while step < args.steps and not stop:
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        batch = composer.batch(step, args.batch)
        drop = torch.rand(args.batch, generator=rng) < DROP_CAPTION
        captions = ["" if d else c for c, d in zip(batch.captions, drop, strict=True)]
        # Stratified timesteps: one in each 1/B of the range, so that a batch's loss varies less.
        spread = (torch.arange(args.batch) + torch.rand(args.batch, generator=rng)) / args.batch
        timesteps = (spread * 1000).long().clamp(max=999).to(device)
        latents = space.encode(batch.images)
        noise = torch.randn(latents.shape, generator=rng).to(device)
        for group in optimizer.param_groups:
            group["lr"] = checkpoints.rate(step, args.lr, 300, args.cooldown, args.steps)
        loss = loss_on(
            unet, text, latents.to(device), tokens(captions).to(device), timesteps, noise,
            sigmas[timesteps],
        ).mean()  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(step)
        step, seen, total = step + 1, seen + 1, total + float(loss.detach())
        if step % 100 == 0 or step == args.steps:
            speed = seen * args.batch / (time.time() - start)
            now = time.strftime("%H:%M:%S")
            print(f"{now} step {step} images {step * args.batch} loss {total / seen:.4f} "
                  f"{speed:.1f} images/s", flush=True)  # fmt: skip
            start, seen, total = time.time(), 0, 0.0
        if step % args.save_every == 0:
            save()
    save()
    print("saved at step", step, flush=True)


if __name__ == "__main__":
    main()
