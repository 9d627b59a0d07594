"""How often the held-out judge names fresh samples of the 60 listed things right (top 1 of 60)."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nets
import torch
from sampling import Demo
from train_clip import HERE, features, normalised
from transformers import CLIPModel
from vocabulary import LISTED, STYLES, name_of


class Namer:
    """An image-text model that picks one of the 60 names."""

    def __init__(self, folder: Path):
        self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        names = nets.Tokens()([name_of(slug) for slug in LISTED])
        with torch.no_grad():
            self.names = features(self.model.get_text_features(names))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> list[int]:
        seen = features(self.model.get_image_features(normalised(images)))
        return (seen @ self.names.T).argmax(1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--styles", nargs="*", default=["", *STYLES.values()],
                        help='style words; "" is a prompt without one')  # fmt: skip
    parser.add_argument("--count", type=int, default=4, help="samples a thing and style")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = Demo(args.model)
    namers = {k: Namer(HERE / k) for k in ("judge", "reward")}
    result: dict[str, dict[str, float]] = {}
    wrong: dict[str, list[str]] = {}
    start = time.time()
    for style in args.styles:
        right = dict.fromkeys(namers, 0)
        for index, slug in enumerate(LISTED):
            prompt = name_of(slug) + (f", {style} style" if style else "")
            images = demo.draw(prompt, args.count, args.seed + index, args.steps, args.cfg)
            for key, namer in namers.items():
                found = namer(images)
                right[key] += found.count(index)
                if key == "judge":
                    names = [name_of(LISTED[f]) for f in found if f != index]
                    wrong.setdefault(name_of(slug), []).extend(names)
        total = len(LISTED) * args.count
        result[style or "no style word"] = {k: round(v / total, 3) for k, v in right.items()}
        print(style or "no style word", result[style or "no style word"], flush=True)
    for name, names in sorted(wrong.items(), key=lambda item: -len(item[1]))[:12]:
        print(f"  {name}: {len(names)} wrong, as {sorted(set(names))}")
    print(f"{time.time() - start:.0f} s")
    if args.out:
        note = {k: getattr(args, k) for k in ("count", "steps", "cfg", "seed")}
        text = json.dumps({"top1": result, "settings": note}, indent=1) + "\n"
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
