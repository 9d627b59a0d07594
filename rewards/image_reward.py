"""ImageReward: would people choose this picture for this prompt? (Xu et al. 2023, 2304.05977)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .base import Context, Input, Reward, Spec, check_images
from .files.catalogue import IMAGE_REWARD
from .towers.blip.load import ImageRewardModel, load_image_reward
from .towers.texts import prompts_for

NAME = "image_reward"
UNIT = "standard deviations over ImageReward's own data, about -2.3 to 2"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
SCALE = 1.0


@dataclass(frozen=True)
class ImageReward:
    """score = (head(token [CLS] of the prompt, read beside the picture) - mean) / std."""

    model: ImageRewardModel = field(repr=False)
    name: str = NAME
    unit: str = UNIT
    scale: float = SCALE
    differentiable: bool = True

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.model.network,)

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a prompt for every image."""
        images = check_images(images, self.name)
        prompts = prompts_for(self.name, context, len(images))
        return ((self.model(images, prompts) - MEAN) / STD).to(images)


def create(model: str, precision: str) -> Reward:
    """model: a folder with ImageReward.pt, med_config.json and bert-base-uncased's tokenizer."""
    return ImageReward(load_image_reward(Path(model), NAME, precision))


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
        Input(
            "precision",
            "precision",
            "auto",
            "The number format the model computes in. auto follows ComfyUI; float32 when the last "
            "digits count, float16 or bfloat16 to halve its memory (1.8 GB in float32).",
            advanced=True,
        ),
    ),
    prompt="The text the picture should show, up to 35 tokens (about 25 words). Wire the same text "
    "into CLIP Text Encode and here; CONDITIONING cannot be read back.",
    group="taste",
    scale_source="published: the score is divided by its standard deviation over ImageReward's "
    "own data (Xu et al. 2023)",
    licence="Apache-2.0",
)
