"""PickScore: the picture people would pick for a prompt (Kirstain et al., arXiv 2305.01569)."""

from __future__ import annotations

from pathlib import Path

from .base import PRECISION, Input, Reward, Spec
from .files.catalogue import PICKSCORE
from .preference import PreferenceReward, refuse_other_tower
from .towers.load import load_tower

NAME = "pickscore"
UNIT = "logit, about 18 to 24"
SCALE = 1.4


def create(model: str, precision: str) -> Reward:
    """model: the folder of PickScore_v1, a CLIPModel. score = exp(logit_scale) cos."""
    tower = load_tower(Path(model), NAME, precision)
    refuse_other_tower(tower, NAME)
    return PreferenceReward(tower, tower.logit_scale, NAME, UNIT, SCALE)


SPEC = Spec(
    NAME,
    "PickScore",
    UNIT,
    "The picture that people would pick for the prompt.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            PICKSCORE.name,
            "The PickScore v1 model: a folder in transformers format (config.json, "
            "model.safetensors, tokenizer) in models/dno_rewards/. About 4 GB.",
            folders=True,
            sources=(PICKSCORE,),
        ),
        PRECISION,
    ),
    prompt="The text the picture should show. Wire the same text into CLIP Text Encode and here; "
    "CONDITIONING cannot be read back. PickScore was trained on prompts as people type them.",
    group="taste",
    scale_source="estimated: no spread over samples is published; taken as that of 100 x HPS v2, "
    "tuned from the same CLIP with the same logit scale",
    licence="code MIT",
)
