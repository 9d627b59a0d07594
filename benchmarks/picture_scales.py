"""The spread of any reward over a folder of pictures, beside the `scale` that it ships."""

from __future__ import annotations

import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def pictures_in(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        sys.exit(f"{folder} holds {len(found)} pictures ({', '.join(sorted(SUFFIXES))}); give two.")
    return found


def read_prompts(file: Path, pictures: Iterable[Path]) -> dict[str, str]:
    """Prompts by file name, from lines of a name, a tab and the prompt; exits if one is missing."""
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        name, tab, prompt = line.partition("\t")
        if line.strip() and not tab:
            sys.exit(f"{file}, line {number}: write the file name, a tab and the prompt.")
        found[name] = prompt.strip()
    without = [picture.name for picture in pictures if not found.get(picture.name)]
    if without:
        sys.exit(f"{file} has no prompt for {without[0]} (and {len(without) - 1} others).")
    return found


def read_picture(file: Path) -> Tensor:
    """[1, 3, H, W] in [0, 1]."""
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2).float() / 255


def spread(scores: Mapping[str, float], prompts: Mapping[str, str]) -> dict[str, float | None]:
    """Standard deviation of the scores: of all, and within a prompt (pooled over the prompts with
    more than one picture; None where there are none).
    """
    groups = defaultdict(list)
    for name, score in scores.items():
        if name in prompts:
            groups[prompts[name]].append(score)
    several = [group for group in groups.values() if len(group) > 1]
    within = sum((len(group) - 1) * statistics.variance(group) for group in several)
    freedom = sum(len(group) - 1 for group in several)
    return {
        "scale": statistics.stdev(scores.values()),
        "within_prompt": (within / freedom) ** 0.5 if freedom else None,
        "mean": statistics.mean(scores.values()),
        "least": min(scores.values()),
        "greatest": max(scores.values()),
    }


@torch.no_grad()
def scored(
    reward: Any, pictures: list[Path], prompts: Mapping[str, str], reference: Path | None
) -> dict[str, float]:
    """The score of every picture by file name."""
    from comfyui_dno.rewards import Context

    device = next(
        (weight.device for module in reward.modules for weight in module.parameters()), ""
    )
    references = read_picture(reference).to(device or "cpu") if reference else None
    scores = {}
    for done, picture in enumerate(pictures, 1):
        prompt = prompts.get(picture.name)
        context = Context((prompt,) if prompt else (), references)
        scores[picture.name] = reward.score(
            read_picture(picture).to(device or "cpu"), context
        ).item()
        print(f"\r{done}/{len(pictures)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return scores


def report(
    name: str,
    inputs: dict[str, Any],
    folder: Path,
    prompts_file: Path | None,
    reference: Path | None,
    device: str,
) -> None:
    """Print the spread of the reward called name over the pictures in folder."""
    from comfyui_dno.rewards import RewardError, create, specs

    torch.set_num_threads(os.cpu_count() or 1)
    pictures = pictures_in(folder)
    prompts = read_prompts(prompts_file, pictures) if prompts_file else {}
    try:
        reward = create(name, **inputs)
        for module in reward.modules:
            module.to(device)
        scores = scored(reward, pictures, prompts, reference)
    except RewardError as error:
        sys.exit(str(error))
    print(f"{reward.name} ({reward.unit}) over {len(scores)} pictures")
    for key, value in spread(scores, prompts).items():
        print(f"  {key:15}" + ("-" if value is None else f"{value:.4g}"))
    print(f"  {'shipped scale':15}{reward.scale:.4g} ({specs()[name].scale_source})")
