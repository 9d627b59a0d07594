"""Aesthetic Predictor V2.5: as LAION's, on SigLIP, trained on more kinds of pictures (2024)."""

from __future__ import annotations

from pathlib import Path

from .affine_head import HeadReward, fold, layers_in, tower_for
from .base import PRECISION, Input, Reward, Spec
from .files.catalogue import AESTHETIC_V25, SIGLIP_SO400M
from .files.checkpoint import read_weights, wrong_checkpoint

NAME = "aesthetic_v25"
UNIT = "points, 1 to 10; above 5.5 is very good"
LAYERS = tuple(f"scoring_head.{index}" for index in (0, 2, 4, 6, 8))
SCALE = 0.8


def create(head: str, model: str, precision: str) -> Reward:
    """head: aesthetic_predictor_v2_5.pth. model: the folder of SigLIP so400m at 384 pixels."""
    file = Path(head)
    state = read_weights(file, NAME)
    layers = layers_in(state, LAYERS)
    if layers is None:
        raise wrong_checkpoint(file, NAME, "the head of Aesthetic Predictor V2.5", state)
    affine = fold(layers)
    tower = tower_for(affine, file, model, None, NAME, precision)
    return HeadReward(tower, affine, NAME, UNIT, SCALE)


SPEC = Spec(
    NAME,
    "Aesthetic v2.5",
    UNIT,
    "Pictures that people rate beautiful, illustrations as well as photographs.",
    create,
    inputs=(
        Input(
            "head",
            "model",
            AESTHETIC_V25.name,
            "The small file that turns an embedding into points: aesthetic_predictor_v2_5.pth. Its "
            "licence is AGPL-3.0.",
            suffixes=(".pth", ".pt", ".safetensors"),
            sources=(AESTHETIC_V25,),
        ),
        Input(
            "model",
            "model",
            SIGLIP_SO400M.name,
            "The SigLIP whose embeddings the head reads: the folder siglip-so400m-patch14-384. No "
            "other fits. A CLIP_VISION of it cannot be used: ComfyUI leaves out the layer that "
            "makes one embedding of a picture.",
            folders=True,
            sources=(SIGLIP_SO400M,),
        ),
        PRECISION,
    ),
    group="taste",
    scale_source="estimated: no spread is published; the norm of the head's folded weights x the "
    "spread that LAION's heads have for each unit of theirs",
    licence="head AGPL-3.0; SigLIP Apache-2.0",
)
