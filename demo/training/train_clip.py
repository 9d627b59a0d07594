"""Train a small image-text model: the demo reward or the held-out judge.

The two differ in architecture, seed and drawings (split by style set), so that the judge can
tell whether a picture that pleases the reward also shows what was asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import latent_space
import muon
import nets
import torch
from captions import caption
from compose import Batch, Composer
from disturb import disturbed
from drawings import DATA, load
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel
from vocabulary import BACKGROUNDS, LISTED, STYLES, name_of

HERE = Path(__file__).parents[1]
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


class Kind(NamedTuple):
    """What tells the two models apart."""

    styles: tuple[str, str]
    vision: dict[str, int]
    text: dict[str, int]
    projection: int
    seed: int


KINDS = {
    "reward": Kind(
        ("noto", "flat"),
        {"patch_size": 8, "hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4},
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        128,
        11,
    ),
    "judge": Kind(
        ("blob", "glossy"),
        {"patch_size": 16, "hidden_size": 224, "num_hidden_layers": 4, "num_attention_heads": 7},
        {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3},
        96,
        12,
    ),
}


def build(kind: Kind) -> CLIPModel:
    """A CLIPModel with random weights for 64 px pictures and the demo tokenizer."""
    vision = {**kind.vision, "intermediate_size": kind.vision["hidden_size"] * 4}
    ends = {k: nets.TEXT[k] for k in ("bos_token_id", "eos_token_id", "vocab_size")}
    text = {
        **kind.text,
        **ends,
        "intermediate_size": kind.text["hidden_size"] * 4,
        "max_position_embeddings": nets.MAX_LENGTH,
        "pad_token_id": nets.TEXT["eos_token_id"],
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**vision, "image_size": 64},
        projection_dim=kind.projection,
        attn_implementation="eager",
    )
    return CLIPModel(config)


class Texts(NamedTuple):
    """Captions and what each of them says: None where it says nothing."""

    captions: list[str]
    slugs: list[str]
    colours: list[str]
    grounds: list[str | None]
    styles: list[str | None]


def texts_for(batch: Batch, kind: Kind, rng: random.Random) -> Texts:
    """One true caption a picture, and one that differs in background or colour word."""
    out = Texts([], [], [], [], [])
    others = [s for s in STYLES.values() if s not in kind.styles]
    for altered in (False, True):
        for i, slug in enumerate(batch.slugs):
            ground, style, colour = batch.backgrounds[i], batch.styles[i], batch.colours[i]
            if altered:
                ground = rng.choice(list(BACKGROUNDS))
                if colour or rng.random() < 0.15:
                    colour = rng.choice(("red", "yellow", "green", "blue", "purple", "pink"))
            # A style word of the other model's drawings is shown as one that says nothing.
            word = rng.choice(others) if rng.random() < 0.2 else style
            line = caption(rng, slug, word, colour, bool(colour), ground)
            out.captions.append(line)
            out.slugs.append(slug)
            out.colours.append(colour)
            named = " on " in line or "background" in line
            out.grounds.append(ground if named else None)
            styled = "style" in line or line.startswith(word)
            out.styles.append(style if styled and word == style else None)
    return out


def agreement(batch: Batch, texts: Texts) -> torch.Tensor:
    """Bool [B, T]: whether nothing that the text says is untrue of the picture."""
    rows = []
    for i, slug in enumerate(batch.slugs):
        rows.append(
            [
                slug == texts.slugs[j]
                and batch.colours[i] == texts.colours[j]
                and texts.grounds[j] in (None, batch.backgrounds[i])
                and texts.styles[j] in (None, batch.styles[i])
                for j in range(len(texts.captions))
            ]
        )
    return torch.tensor(rows)


def contrast(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """-log of the probability that falls on the true columns, mean over rows with any."""
    whole = logits.logsumexp(1)
    hit = logits.masked_fill(~true, -torch.inf).logsumexp(1)
    return (whole - hit)[true.any(1)].mean()


def normalised(images: torch.Tensor) -> torch.Tensor:
    """CLIP's mean and standard deviation taken out of images in [0, 1]."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images - mean) / std


def features(out: Any) -> torch.Tensor:
    """Unit vectors, whether transformers answers with a tensor or with an object."""
    return functional.normalize(getattr(out, "pooler_output", out).float(), dim=-1)


@torch.no_grad()
def names_right(model: CLIPModel, tokens: nets.Tokens, batch: Batch) -> float:
    """Share of pictures of listed things whose best name of the 60 is the true one."""
    model.eval()
    device = model.logit_scale.device
    names = features(model.get_text_features(tokens([name_of(s) for s in LISTED]).to(device)))
    seen = features(model.get_image_features(normalised(batch.images).to(device)))
    best = (seen @ names.T).argmax(1).tolist()
    model.train()
    pairs = [(LISTED[b], s) for b, s in zip(best, batch.slugs, strict=True) if s in LISTED]
    return sum(a == b for a, b in pairs) / len(pairs)


def write(model: CLIPModel, folder: Path, note: dict[str, str]) -> None:
    """Save in the transformers folder format, float16, with tokenizer and image settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = checkpoints.half(model)
    checkpoints.save_tensors(tensors, folder / "model.safetensors", {"format": "pt", **note})
    config = model.config.to_diff_dict()
    config["architectures"] = ["CLIPModel"]
    config["dtype"] = "float16"
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(nets.TOKENIZER / name, folder / name)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    text = json.dumps(settings, indent=1) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--data", type=Path, default=DATA, help="packages and drawings")
    parser.add_argument("--run", type=Path, default=checkpoints.RUNS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    kind = KINDS[args.kind]
    torch.set_num_threads(args.threads)
    torch.manual_seed(kind.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokens, space = build(kind).to(device).train(), nets.Tokens(), latent_space.read()
    drawings = load(args.data)
    composer = Composer(drawings, kind.seed, kind.styles)
    others = tuple(s for s in STYLES.values() if s not in kind.styles)
    tests = {
        "own drawings": Composer(drawings, 99, kind.styles).batch(0, 400),
        "other sets": Composer(drawings, 99, others).batch(0, 400),
    }
    optimizer: torch.optim.Optimizer | muon.Both
    if args.optimizer == "muon":
        optimizer = muon.Both([model], args.lr)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), args.lr, (0.9, 0.98), weight_decay=0.05)
    path, stop, step = args.run / f"{args.kind}_state.pt", checkpoints.Stop(), 0
    state = checkpoints.load_state(path)
    if state:
        model.load_state_dict(state["model"])
        if state.get("kind", "adamw") == args.optimizer:
            optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    count = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{args.kind}: {count:.2f} M parameters, from step {step}", flush=True)

    def save() -> None:
        weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoints.save_state({**weights, "kind": args.optimizer, "step": step}, path)
        note = {"step": str(step), "images": str(step * args.batch), "seed": str(kind.seed)}
        write(model, HERE / args.kind, note)

    start, seen, total = time.time(), 0, 0.0
    while step < args.steps and not stop:
        rng = torch.Generator().manual_seed(kind.seed * 1_000_003 + step)
        batch = composer.batch(step, args.batch)
        texts = texts_for(batch, kind, random.Random(f"{kind.seed} texts {step}"))
        images = normalised(disturbed(batch.images, space, rng)).to(device)
        true = agreement(batch, texts).to(device)
        for group in optimizer.param_groups:
            group["lr"] = checkpoints.rate(step, args.lr, 150, args.steps, args.steps)
        with torch.autocast(device.type, torch.bfloat16):
            looks = model.get_image_features(images)
            means = model.get_text_features(tokens(texts.captions).to(device))
        logits = model.logit_scale.clamp(max=4.0).exp() * features(looks) @ features(means).T
        loss = (contrast(logits, true) + contrast(logits.T, true.T)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen, total = step + 1, seen + 1, total + float(loss.detach())
        if step % 100 == 0:
            speed, now = seen * args.batch / (time.time() - start), time.strftime("%H:%M:%S")
            found = {k: round(names_right(model, tokens, b), 3) for k, b in tests.items()}
            print(f"{now} step {step} loss {total / seen:.4f} {speed:.1f} images/s {found}",
                  flush=True)  # fmt: skip
            start, seen, total = time.time(), 0, 0.0
        if step % 500 == 0:
            save()
    save()
    print("saved at step", step, flush=True)


if __name__ == "__main__":
    main()
