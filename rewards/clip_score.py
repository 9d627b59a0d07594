"""CLIPScore: does the picture show the prompt? (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .base import PRECISION, Context, Input, Reward, Spec, check_images, clamp_straight_through
from .files.catalogue import CLIP_B32, CLIP_L14, SIGLIP_SO400M
from .towers.load import load_tower
from .towers.protocols import ImageTextTower
from .towers.texts import cosine_scores, prompts_for

NAME = "clip_score"
UNIT = "2.5 x cosine, 0 (unrelated) to 2.5"
WEIGHT = 2.5
TEMPLATE = "A photo depicts "  # the paper's, for CLIPs trained on captions from the web
AUTO = "auto"

DEMO_REWARD = "demo reward"
DEMO_JUDGE = "demo judge (held out)"
DEMO_FOLDERS = {DEMO_REWARD: "reward", DEMO_JUDGE: "judge"}
SCALES = {DEMO_REWARD: 0.247, DEMO_JUDGE: 0.311}
OTHER_SCALE = 0.08
SCALE_SOURCE = (
    "demo models: python benchmarks/reward_scales.py; others: estimated, since none is published: "
    "2.5 x 0.03, a usual spread of the cosine between a picture and its prompt"
)


@dataclass(frozen=True, eq=False)
class ClipScore:
    """score = 2.5 max(cos(image, template + prompt), 0), its gradient that of 2.5 cos."""

    tower: ImageTextTower = field(repr=False)
    name: str
    scale: float
    template: str
    unit: str = UNIT
    differentiable: bool = True

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.tower.modules

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a prompt for every image."""
        images = check_images(images, self.name)
        prompts = prompts_for(self.name, context, len(images))
        texts = tuple(self.template + prompt for prompt in prompts)
        # Below 0 the value stands still, but the climb has to start somewhere.
        return clamp_straight_through(WEIGHT * cosine_scores(self.tower, images, texts), 0.0)


def chosen_clip(model: str, reward: str) -> tuple[Path, str]:
    """The folder that a model widget's value stands for, and the reward's name with that model."""
    demo = DEMO_FOLDERS.get(model)
    if demo is not None:
        return Path(__file__).parent.parent / "demo" / demo, f"{reward} ({model})"
    return Path(model), f"{reward} ({Path(model).name})"


def create(model: str, template: str = AUTO, precision: str = AUTO) -> Reward:
    """model: "demo reward", "demo judge (held out)", or the folder of a CLIP or SigLIP."""
    folder, name = chosen_clip(model, NAME)
    if template.strip().lower() == AUTO:
        template = "" if model in DEMO_FOLDERS else TEMPLATE
    tower = load_tower(folder, name, precision)
    return ClipScore(tower, name, SCALES.get(model, OTHER_SCALE), template)


SPEC = Spec(
    NAME,
    "CLIPScore",
    UNIT,
    "The picture shows what the prompt says.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            DEMO_REWARD,
            "The image-text model that judges. The demo models know only what DNO Demo Model "
            "draws; for other checkpoints choose a CLIP or SigLIP: a folder in the format of "
            "transformers or open_clip in models/dno_rewards/. Larger ones judge better and take "
            "longer; a second one, watched only, shows what the first is fooled by.",
            choices=(DEMO_REWARD, DEMO_JUDGE),
            folders=True,
            sources=(CLIP_B32, CLIP_L14, SIGLIP_SO400M),
        ),
        Input(
            "template",
            "string",
            AUTO,
            "Text put in front of the prompt before it is judged. auto: 'A photo depicts ' as in "
            "the CLIPScore paper, nothing for the demo models, which know bare captions. Change "
            "it for drawings ('A drawing of ') or other languages; leave it empty for none.",
            advanced=True,
        ),
        PRECISION,
    ),
    prompt="The text the picture should show. Wire the same text into CLIP Text Encode and here; "
    "CONDITIONING cannot be read back.",
    group="prompt",
    scale_source=SCALE_SOURCE,
    licence="CLIP: MIT; SigLIP: Apache-2.0; others as their page says",
)
