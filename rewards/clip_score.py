"""CLIPScore: does the picture show the prompt? (Hessel et al. 2021, arXiv 2104.08718)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .base import Context, Input, Reward, RewardError, Spec, check_images, clamp_straight_through
from .clip_model import Clip, image_features, load_clip, text_features

NAME = "clip_score"
UNIT = "2.5 x cosine, 0 (unrelated) to 2.5"
WEIGHT = 2.5
TEMPLATE = "A photo depicts "  # the paper's, for CLIPs trained on captions from the web
AUTO = "auto"

DEMO_REWARD = "demo reward"
DEMO_JUDGE = "demo judge (held out)"
DEMO_FOLDERS = {DEMO_REWARD: "reward", DEMO_JUDGE: "judge"}
SCALES = {DEMO_REWARD: 0.247, DEMO_JUDGE: 0.311}
OTHER_SCALE = 0.08  # not measured here: a usual spread of CLIPScore with a web-trained CLIP


@dataclass(frozen=True)
class ClipScore:
    """score = 2.5 max(cos(image, template + prompt), 0), its gradient that of 2.5 cos."""

    clip: Clip = field(repr=False)
    name: str
    scale: float
    template: str
    unit: str = UNIT
    differentiable: bool = True

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return (self.clip.model,)

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a prompt for every image."""
        images = check_images(images, self.name)
        prompts = self._prompts(context, len(images))
        image = image_features(self.clip, images)
        text = text_features(self.clip, tuple(self.template + prompt for prompt in prompts))
        cosine = (image * text.to(image)).sum(dim=-1)
        # Below 0 the value stands still, but the climb has to start somewhere.
        return clamp_straight_through(WEIGHT * cosine, 0.0).to(images)

    def _prompts(self, context: Context | None, count: int) -> tuple[str, ...]:
        prompts = context.prompts if context else ()
        if not any(prompt.strip() for prompt in prompts):
            raise RewardError(
                f"{self.name} has no prompt. Connect the text that the picture should show "
                "to the prompt socket of Reward Loader."
            )
        if len(prompts) not in (1, count):
            raise RewardError(
                f"{self.name} has {len(prompts)} prompts for {count} images. "
                "Give one prompt for all images, or one for each."
            )
        return prompts if len(prompts) == count else prompts * count


def create(model: str, template: str) -> Reward:
    """model: "demo reward", "demo judge (held out)", or a folder in CLIPModel format."""
    demo = DEMO_FOLDERS.get(model)
    folder = Path(__file__).parent.parent / "demo" / demo if demo else Path(model)
    name = f"{NAME} ({model if demo else folder.name})"
    if template.strip().lower() == AUTO:
        template = "" if demo else TEMPLATE
    return ClipScore(load_clip(folder, name), name, SCALES.get(model, OTHER_SCALE), template)


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
            "draws; for other checkpoints put a CLIP folder in transformers format (config.json, "
            "model.safetensors, tokenizer) into models/dno_rewards/.",
            choices=(DEMO_REWARD, DEMO_JUDGE),
            folders=True,
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
    ),
    prompt="The text the picture should show. Wire the same text into CLIP Text Encode and here; "
    "CONDITIONING cannot be read back.",
    group="prompt",
)
