"""LAION's aesthetic predictors: how much people liked such pictures (laion.ai, 2022)."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from .affine_head import HeadReward, fold, layers_in, tower_for
from .base import PRECISION, Input, Reward, Spec
from .files.catalogue import CLIP_B32, CLIP_L14, LAION_V1, LAION_V2
from .files.checkpoint import read_weights, wrong_checkpoint
from .towers.kinship import unlike_openai_clip
from .towers.protocols import ImageTower

log = logging.getLogger("dno")

NAME = "aesthetic"
UNIT = "LAION points, about 1 to 10"
LAYERS = {
    "v2": ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7"),
    "v1": ("",),
}
EXPECTED = "LAION's linear heads (sac+logos+ava1-l14-linearMSE.pth, sa_0_4_vit_..._linear.pth)"
SCALES = {"v2": 0.52, "v1": 1.05}


def create(head: str, model: str, clip_vision: ImageTower | None, precision: str) -> Reward:
    """head: the file of a LAION v2 or v1 head. model: the folder of the CLIP it was trained on."""
    file = Path(head)
    state = read_weights(file, NAME)
    for version, names in LAYERS.items():
        layers = layers_in(state, names)
        if layers:
            affine = fold(layers)
            tower = tower_for(affine, file, model, clip_vision, NAME, precision)
            _warn_of_another_training(tower, file)
            return HeadReward(tower, affine, f"{NAME} {version}", UNIT, SCALES[version])
    raise wrong_checkpoint(file, NAME, EXPECTED, state)


def patch_size(file: Path) -> int | None:
    """That of the CLIP a published head was trained on, from the head's name; None if unknown."""
    found = re.search(r"(?<![a-z])[lb][-_]?(14|16|32)(?!\d)", file.stem.lower())
    return int(found[1]) if found else None


def _warn_of_another_training(tower: ImageTower, file: Path) -> None:
    """Say aloud that the points mean nothing, where another CLIP of the right width shows."""
    why = unlike_openai_clip(tower, patch_size(file))
    if why:
        log.warning(
            "%s: %s does not look like the CLIP that %s was trained on: %s. Its points would mean "
            "nothing; choose OpenAI's CLIP in the model widget of Reward Loader.",
            NAME,
            tower.label,
            file.name,
            why,
        )


SPEC = Spec(
    NAME,
    "LAION aesthetic",
    UNIT,
    "Pictures of the kind that people rated beautiful.",
    create,
    inputs=(
        Input(
            "head",
            "model",
            LAION_V2.name,
            "The small file that turns an embedding into points. sac+logos+ava1-l14-linearMSE.pth "
            "is LAION v2, the usual one, for CLIP ViT-L/14. The sa_0_4_vit_..._linear.pth files "
            "are v1, each for the CLIP in its name; they spread wider and like paintings more.",
            suffixes=(".pth", ".pt", ".safetensors"),
            sources=(LAION_V2, *LAION_V1.values()),
        ),
        Input(
            "model",
            "model",
            CLIP_L14.name,
            "The CLIP whose embeddings the head reads: OpenAI's clip-vit-large-patch14 for v2 and "
            "v1 l_14, clip-vit-base-patch32 for v1 b_32, clip-vit-base-patch16 for v1 b_16. "
            "Another CLIP of the same size gives meaningless points. Not used when clip_vision is "
            "connected.",
            folders=True,
            sources=(CLIP_L14, CLIP_B32),
        ),
        Input(
            "clip_vision",
            "clip_vision",
            None,
            "A CLIP_VISION you have already, in place of the model above: connect Load CLIP Vision "
            "with OpenAI's ViT-L/14. Usually left free.",
        ),
        PRECISION,
    ),
    group="taste",
    scale_source="published: a normal fit to LAION's counts of scored web pictures (v2: 600 M of "
    "2.3 G above 5 and 12 M above 6; v1: 120 M of 5.85 G above 7 and 8 M above 8); samples of one "
    "model may spread less",
    licence="heads Apache-2.0 (v2), MIT (v1); CLIP MIT",
)
