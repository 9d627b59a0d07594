"""Fetch the four drawing sets from the package registry and render them to a cache."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from vocabulary import FIXED_COLOUR, HUES, STYLES, THINGS

SIZE = 64
DATA = Path(__file__).with_name("data")
RENDER_SIZES = (52, 56, 60)
PACKAGES = {
    "noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "fluent-emoji": ("1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "fluent-emoji-flat": (
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
}
"""Drawing set -> (version, sha256 of the package file) of @iconify-json/<set>."""


class Drawings(NamedTuple):
    """Rendered drawings; V variants are the drawing itself and its hue-turned copies.

    rgba: uint8 [V, len(RENDER_SIZES), 64, 64, 4], colour premultiplied by alpha, centred.
    slug, style: int [V], indices into THINGS and STYLES.
    colour: the colour word of each variant ("" where none fits) and whether it was turned.
    """

    rgba: np.ndarray
    slug: np.ndarray
    style: np.ndarray
    colour: list[str]
    turned: np.ndarray


def fetch(name: str, folder: Path) -> dict[str, Any]:
    """Return icons.json of one drawing set, packed by npm and checked against its sha256."""
    version, digest = PACKAGES[name]
    path = folder / f"iconify-json-{name}-{version}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = f"@iconify-json/{name}@{version}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(f"{path} has sha256 {found}, not {digest}. Delete it and try again.")
    with tarfile.open(path) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def render(icons: dict[str, Any], slug: str, size: int) -> np.ndarray | None:
    """One drawing as straight-alpha uint8 [size, size, 4], or None if the set lacks it."""
    import resvg_py

    icon = icons["icons"].get(slug)
    if icon is None or icon.get("hidden"):
        return None
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{size}" height="{size}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.array(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def centred(rgba: np.ndarray) -> np.ndarray:
    """Straight alpha [s, s, 4] -> premultiplied alpha in the middle of [64, 64, 4]."""
    colour = rgba[..., :3].astype(np.float32) * (rgba[..., 3:].astype(np.float32) / 255)
    canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
    at = (SIZE - rgba.shape[0]) // 2
    canvas[at : at + rgba.shape[0], at : at + rgba.shape[1], :3] = colour.round()
    canvas[at : at + rgba.shape[0], at : at + rgba.shape[1], 3] = rgba[..., 3]
    return canvas


def to_hsv(rgb: np.ndarray) -> np.ndarray:
    """RGB in [0, 1] -> hue in degrees, saturation, value; any shape [..., 3]."""
    high, low = rgb.max(-1), rgb.min(-1)
    span = np.maximum(high - low, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.where(
        high == r, (g - b) / span % 6, np.where(high == g, (b - r) / span + 2, (r - g) / span + 4)
    )
    saturation = (high - low) / np.maximum(high, 1e-6)
    return np.stack([hue * 60, saturation, high], -1)


def to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Inverse of to_hsv."""
    hue, saturation, value = hsv[..., 0] / 60, hsv[..., 1], hsv[..., 2]
    k = (np.array([5.0, 3.0, 1.0]) + hue[..., None]) % 6
    fall = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * fall)


def main_colour(rgba: np.ndarray) -> tuple[str, float, float]:
    """(colour word or "", dominant hue in degrees, share of the drawing that is colourful)."""
    pixels = rgba.reshape(-1, 4).astype(np.float32) / 255
    pixels = pixels[pixels[:, 3] > 0.5]
    hsv = to_hsv(pixels[:, :3])
    vivid = (hsv[:, 1] > 0.3) & (hsv[:, 2] > 0.2)
    share = float(vivid.mean()) if len(hsv) else 0.0
    if share < 0.3:
        return "", 0.0, share
    hue, weight = hsv[vivid, 0], hsv[vivid, 1] * hsv[vivid, 2]
    bins = np.bincount((hue / 10).astype(int) % 36, weight, 36)
    smooth = bins + np.roll(bins, 1) + np.roll(bins, -1)
    peak = int(smooth.argmax()) * 10 + 5
    near = np.abs((hue - peak + 180) % 360 - 180) < 25
    offset = ((hue[near] - peak + 180) % 360 - 180) * weight[near]
    dominant = float((peak + offset.sum() / max(weight[near].sum(), 1e-6)) % 360)
    if weight[near].sum() < 0.6 * weight.sum():
        return "", dominant, share
    value, saturation = float(hsv[vivid][near, 2].mean()), float(hsv[vivid][near, 1].mean())
    return colour_word(dominant, saturation, value), dominant, share


def colour_word(hue: float, saturation: float, value: float) -> str:
    """The word for a colour given as hue in degrees, saturation and value in [0, 1]."""
    if (hue < 32 or hue > 315) and saturation < 0.52 and value > 0.75:
        return "pink"
    if 12 <= hue < 45 and value < 0.72:
        return "brown"
    edges = ((14, "red"), (40, "orange"), (66, "yellow"), (165, "green"), (255, "blue"))
    for edge, word in (*edges, (298, "purple"), (342, "pink")):
        if hue < edge:
            return word
    return "red"


def turn(rgba: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate every hue of a straight-alpha drawing."""
    hsv = to_hsv(rgba[..., :3].astype(np.float32) / 255)
    hsv[..., 0] = (hsv[..., 0] + degrees) % 360
    rgb = (to_rgb(hsv) * 255).round().clip(0, 255).astype(np.uint8)
    return np.concatenate([rgb, rgba[..., 3:]], -1)


def build(folder: Path) -> Drawings:
    """Render every thing in every style, with its hue-turned copies."""
    rows, slugs, styles, colours, turned = [], [], [], [], []
    for style, name in enumerate(STYLES):
        icons = fetch(name, folder)
        for index, slug in enumerate(THINGS):
            sizes = [render(icons, slug, size) for size in RENDER_SIZES]
            if sizes[0] is None:
                continue
            word, hue, share = main_colour(sizes[-1])
            copies = [(word, 0.0)]
            if slug not in FIXED_COLOUR and share >= 0.3:
                away = {w: (h - hue + 180) % 360 - 180 for w, h in HUES.items()}
                copies += [(w, d) for w, d in away.items() if abs(d) > 38 and w != word]
            for copy, (copy_word, degrees) in enumerate(copies):
                rows.append(np.stack([centred(turn(s, degrees)) for s in sizes]))
                slugs.append(index)
                styles.append(style)
                colours.append(copy_word)
                turned.append(copy > 0)
    return Drawings(
        np.stack(rows), np.array(slugs), np.array(styles), colours, np.array(turned, bool)
    )


def load(folder: Path) -> Drawings:
    """The rendered drawings, from the cache file in folder or made now."""
    cache = folder / "drawings.npz"
    if not cache.exists():
        made = build(folder)
        np.savez(cache, **made._asdict())
    with np.load(cache) as data:
        fields = {key: data[key] for key in Drawings._fields}
    fields["colour"] = fields["colour"].tolist()
    return Drawings(**fields)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="packages and drawings")
    drawings = load(parser.parse_args().data)
    print(len(drawings.slug), "variants of", int((~drawings.turned).sum()), "drawings")
