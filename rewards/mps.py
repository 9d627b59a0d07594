"""MPS: would people like this picture better for this prompt? (Zhang et al. 2024, 2405.14705)."""

from __future__ import annotations

from pathlib import Path

from .base import PRECISION, Input, Reward, Spec
from .files.catalogue import MPS
from .joint import JointReward
from .towers.mps_model import load_mps

NAME = "mps"
UNIT = "logit, 8.5 to 10.3 on average over a model's pictures"
SCALE = 1.8


def create(model: str, precision: str) -> Reward:
    """model: a folder with MPS's weights and the tokenizer of CLIP ViT-H/14."""
    loaded = load_mps(Path(model), NAME, precision)
    return JointReward(loaded, loaded.network, NAME, UNIT, SCALE)


SPEC = Spec(
    NAME,
    "MPS",
    UNIT,
    "A picture that people would like better for the prompt, in looks, details and content.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            MPS.name,
            "The folder in models/dno_rewards/ with MPS's weights (model.safetensors of "
            "RE-N-Y/mpsv1) and the tokenizer files of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.",
            folders=True,
            sources=(MPS,),
        ),
        PRECISION,
    ),
    prompt="The text the picture should show, up to 77 tokens. Wire the same text into CLIP Text "
    "Encode and here; CONDITIONING cannot be read back.",
    group="taste",
    scale_source="estimated: no spread is published; taken as the distance from the weakest to "
    "the strongest of the seven models in Kolors' comparison (8.5 to 10.3)",
    licence="MIT",
)
