"""ImageReward: would people choose this picture for this prompt? (Xu et al. 2023, 2304.05977)."""

from __future__ import annotations

from pathlib import Path

from .base import PRECISION, Input, Reward, Spec
from .files.catalogue import IMAGE_REWARD
from .joint import JointReward
from .towers.blip.load import load_image_reward

NAME = "image_reward"
UNIT = "standard deviations over ImageReward's own data, about -2.3 to 2"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""score = (head(token [CLS] of the prompt, read beside the picture) - MEAN) / STD."""

SCALE = 1.0


def create(model: str, precision: str) -> Reward:
    """model: a folder with ImageReward.pt, med_config.json and bert-base-uncased's tokenizer."""
    loaded = load_image_reward(Path(model), NAME, precision)
    return JointReward(loaded, loaded.network, NAME, UNIT, SCALE, MEAN, STD)


SPEC = Spec(
    NAME,
    "ImageReward",
    UNIT,
    "A picture that people would choose for the prompt: what it shows first, looks second.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            IMAGE_REWARD.name,
            "The folder in models/dno_rewards/ with ImageReward.pt, med_config.json and "
            "bert-base-uncased's tokenizer (vocab.txt or tokenizer.json). Change it only for "
            "another training of the same network.",
            folders=True,
            sources=(IMAGE_REWARD,),
        ),
        PRECISION,
    ),
    prompt="The text the picture should show, up to 35 tokens (about 25 words). Wire the same text "
    "into CLIP Text Encode and here; CONDITIONING cannot be read back.",
    group="taste",
    scale_source="published: the score is divided by its standard deviation over ImageReward's "
    "own data (Xu et al. 2023)",
    licence="Apache-2.0",
)
