"""MPS: would people like this picture better for this prompt? (Zhang et al. 2024, 2405.14705)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .base import Context, Input, Reward, Spec, check_images
from .files.catalogue import MPS
from .towers.mps_model import MpsModel, load_mps
from .towers.texts import prompts_for

NAME = "mps"
UNIT = "logit, 8.5 to 10.3 on average over a model's pictures"
SCALE = 1.8


@dataclass(frozen=True)
class MpsReward:
    """score = exp(logit scale) cos(prompt, picture read beside the prompt)."""

    model: MpsModel = field(repr=False)
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
        return self.model(images, prompts_for(self.name, context, len(images))).to(images)


def create(model: str, precision: str) -> Reward:
    """model: a folder with MPS's weights and the tokenizer of CLIP ViT-H/14."""
    return MpsReward(load_mps(Path(model), NAME, precision))


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
        Input(
            "precision",
            "precision",
            "auto",
            "The number format the model computes in. auto follows ComfyUI; float32 when the last "
            "digits count, float16 or bfloat16 to halve its memory (4.4 GB in float32).",
            advanced=True,
        ),
    ),
    prompt="The text the picture should show, up to 77 tokens. Wire the same text into CLIP Text "
    "Encode and here; CONDITIONING cannot be read back.",
    group="taste",
    scale_source="estimated: no spread is published; taken as the distance from the weakest to "
    "the strongest of the seven models in Kolors' comparison (8.5 to 10.3)",
    licence="MIT",
)
