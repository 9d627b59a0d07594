"""Two rewards for Direct Noise Optimization, as a ComfyUI pack of their own.

Nothing of that pack is imported: it finds DNO_REWARDS by its name, whichever of the two packs
ComfyUI loads first. Without it this one does nothing.
"""

from . import imagenet_class
from .warmth import warmth

NODE_CLASS_MAPPINGS = {}

DNO_REWARDS = [
    dict(
        name="warmth",
        label="Warmth",
        unit="mean red minus mean blue, -1 (cold) to 1 (warm)",
        summary="A warmer picture: more red and less blue.",
        scale=0.206,
        scale_source="30 plain samples of the demo model, 4 each",
        score=warmth,
    ),
    dict(
        name="imagenet_class",
        label="ImageNet class",
        unit="log-probability, below 0 (0 is certain)",
        summary="The picture shows an animal that a classifier knows.",
        create=imagenet_class.create,
        inputs=[
            dict(
                name="animal",
                kind="choice",
                default="golden retriever",
                choices=list(imagenet_class.CLASSES),
                tooltip="What EfficientNet-Lite0 should see in the picture. It was trained on "
                "photographs, and does not read drawings well.",
            )
        ],
        scale_source="30 plain samples of the demo model, 4 each",
        licence="Apache-2.0",
    ),
]
