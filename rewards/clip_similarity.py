"""Likeness to reference pictures in what CLIP sees: content and style, not pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import PRECISION, Context, Input, Reward, Spec, check_images
from .clip_score import DEMO_JUDGE, DEMO_REWARD, chosen_clip
from .files.catalogue import CLIP_B32, CLIP_L14, SIGLIP_SO400M
from .references import references_of, same
from .towers.load import load_image_tower
from .towers.protocols import ImageTower

NAME = "clip_similarity"
UNIT = "cosine, -1 to 1 (the same picture)"
SCALES = {DEMO_REWARD: 0.286, DEMO_JUDGE: 0.234}
OTHER_SCALE = 0.1  # estimated: a usual spread among pictures for web-trained CLIPs


@dataclass(eq=False)
class ClipSimilarity:
    """score = mean over the R reference pictures of cos(picture, reference).

    seen: the last references with their embeddings [R, D], both on the CPU.
    """

    tower: ImageTower = field(repr=False)
    name: str
    scale: float
    unit: str = UNIT
    differentiable: bool = True
    seen: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        return self.tower.modules

    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]. Raises RewardError without a reference picture."""
        images = check_images(images, self.name)
        on_cpu = images.new_empty(0, device="cpu")
        wanted = references_of(context, on_cpu, self.name)
        references = self._embedded(wanted, images.device)
        image = self.tower.image_features(images)
        return (image @ references.to(image).T).mean(dim=-1).to(images)

    def _embedded(self, references: Tensor, device: torch.device) -> Tensor:
        if self.seen is None or not same(self.seen[0], references):
            # Embeddings made in inference mode could not take part in a gradient later.
            with torch.inference_mode(False), torch.no_grad():
                features = self.tower.image_features(references.to(device, copy=True))
                self.seen = (references, features.to("cpu", copy=True))
        return self.seen[1]


def create(model: str, clip_vision: ImageTower | None, precision: str) -> Reward:
    """model: "demo reward", "demo judge (held out)", or the folder of a CLIP or SigLIP."""
    if clip_vision is not None:
        return ClipSimilarity(clip_vision, f"{NAME} (CLIP_VISION)", OTHER_SCALE)
    folder, name = chosen_clip(model, NAME)
    tower = load_image_tower(folder, name, precision)
    return ClipSimilarity(tower, name, SCALES.get(model, OTHER_SCALE))


SPEC = Spec(
    NAME,
    "CLIP similarity",
    UNIT,
    "The picture shows what the reference pictures show, in the same manner.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            DEMO_REWARD,
            "The CLIP or SigLIP that compares. The demo models know only what DNO Demo Model "
            "draws; for other checkpoints put a folder in transformers or open_clip format into "
            "models/dno_rewards/. Not used when clip_vision is connected.",
            choices=(DEMO_REWARD, DEMO_JUDGE),
            folders=True,
            sources=(CLIP_L14, CLIP_B32, SIGLIP_SO400M),
        ),
        Input(
            "clip_vision",
            "clip_vision",
            None,
            "A CLIP_VISION you have already, in place of the model above: connect Load CLIP Vision "
            "with any CLIP, for example the ViT-H of your IP-Adapter. ComfyUI's SigLIP has no "
            "embedding of the whole picture; choose its folder above instead.",
        ),
        PRECISION,
    ),
    reference="One picture or a batch of them that the result should be like. A batch pulls "
    "towards what its pictures have in common; one to four are usual.",
    group="reference",
    scale_source="python benchmarks/reward_scales.py; for other models than the demo's estimated",
    licence="that of the model chosen: CLIP MIT, SigLIP Apache-2.0",
)
