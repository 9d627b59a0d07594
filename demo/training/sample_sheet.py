"""Draw the sample sheet: one row of pictures a prompt, seeds in a row, nothing picked."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from sampling import Demo

PROMPTS = (
    "cat face",
    "dog face on light blue",
    "panda on white",
    "frog on yellow",
    "tiger face, noto style",
    "rabbit face, glossy style, on pink",
    "penguin on dark blue",
    "elephant, blob style",
    "turtle on beige",
    "fish on light blue",
    "octopus, flat style, on dark blue",
    "ladybug on green",
    "pig, flat style",
    "red apple on blue",
    "green apple on white",
    "strawberry on black",
    "watermelon on yellow",
    "pineapple on purple",
    "hamburger on beige",
    "doughnut, glossy style, on pink",
    "blue heart on white",
    "red heart on black",
    "car on gray",
    "rocket on dark blue",
    "sunflower on light blue",
    "cactus on orange",
    "star on dark blue",
    "house on green",
    "umbrella on white",
    "snowman on dark blue",
    "blue cat face on white",
    "green car on yellow",
)
CELL, GAP, LABEL = 64, 2, 14


def sheet(rows: list[tuple[str, torch.Tensor]], columns: int) -> Image.Image:
    """Rows of (prompt, images [N, 3, 64, 64]) in `columns` columns of rows, prompt above."""
    count = rows[0][1].shape[0]
    width, height = count * (CELL + GAP) + 8, CELL + LABEL + GAP
    lines = -(-len(rows) // columns)
    page = Image.new("RGB", (columns * width, lines * height), "white")
    pen = ImageDraw.Draw(page)
    for index, (prompt, images) in enumerate(rows):
        x, y = index // lines * width, index % lines * height
        pen.text((x + 2, y + 1), prompt, fill="black")
        for i, image in enumerate(images):
            pixels = (image.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
            page.paste(Image.fromarray(pixels), (x + i * (CELL + GAP), y + LABEL))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "samples.png")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = Demo(args.model)
    rows = [
        (prompt, demo.draw(prompt, args.count, args.seed, args.steps, args.cfg))
        for prompt in PROMPTS
    ]
    page = sheet(rows, 4)
    page.resize((page.width * 3 // 2, page.height * 3 // 2), Image.Resampling.LANCZOS).save(
        args.out, optimize=True
    )


if __name__ == "__main__":
    main()
