"""ComfyUI's CLIP_VISION as a tower of a reward: the user's own model, differentiable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn

from ...rewards import RewardError
from ...rewards.towers.preprocessing import Preprocessing, clip_preprocessing, preprocess
from ...rewards.towers.tower import unit

NODE = "Reward Loader"


class _Network(nn.Module):
    """Stands for the CLIP_VISION's weights among a reward's modules, with the patcher they have."""

    def __init__(self, patcher: Any) -> None:
        super().__init__()
        self.dno_patcher = patcher


@dataclass(frozen=True)
class ClipVisionTower:
    """An ImageTower on the weights, and under the patcher, of a CLIP_VISION."""

    label: str
    width: int
    network: _Network
    preprocessing: Preprocessing

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length embeddings [B, D] of images [B, 3, H, W] in [0, 1]; differentiable."""
        patcher = self.network.dno_patcher
        pixels = preprocess(images.to(patcher.current_loaded_device()), self.preprocessing)
        return unit(embedding(patcher.model, pixels)).to(images.device)


_towers: WeakKeyDictionary[Any, ClipVisionTower] = WeakKeyDictionary()


def clip_vision_tower(clip_vision: Any) -> ClipVisionTower:
    """The tower of a CLIP_VISION, made once. Raises RewardError where it has no embedding."""
    tower = _towers.get(clip_vision)
    if tower is None:
        _require_embedding(clip_vision)
        tower = _towers[clip_vision] = ClipVisionTower(
            label="the connected CLIP_VISION",
            width=int(clip_vision.model.visual_projection.weight.shape[0]),
            network=_Network(_resident_patcher(clip_vision)),
            preprocessing=replace(
                clip_preprocessing(clip_vision.image_size),
                mean=tuple(clip_vision.image_mean),
                std=tuple(clip_vision.image_std),
            ),
        )
    return tower


def _require_embedding(clip_vision: Any) -> None:
    kind = getattr(clip_vision, "model_type", "of an unknown kind")
    if "siglip" in str(kind):
        raise RewardError(
            f"{NODE}: ComfyUI loads SigLIP without the layer that makes one embedding of a "
            "picture. Unplug clip_vision and choose the SigLIP folder in the model widget."
        )
    projection = getattr(clip_vision.model, "visual_projection", None)
    if kind != "clip_vision_model" or not isinstance(projection, nn.Module):
        raise RewardError(
            f"{NODE}: the connected CLIP_VISION ({kind}) is no CLIP with an image embedding. "
            "Connect a CLIP vision model such as CLIP ViT-L/14 or ViT-H/14."
        )


def embedding(model: Any, pixels: Tensor) -> Tensor:
    """Image embeddings [B, D] of preprocessed pixels: ComfyUI's CLIPVisionModelProjection.

    Its own forward adds to the tensors that the backward pass needs, in place; and flash or sage
    attention would have no right gradient.
    """
    vision = model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    attention = comfy.ldm.modules.attention.attention_pytorch
    for layer in vision.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), None, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.visual_projection(vision.post_layernorm(x[:, 0, :]))


def _resident_patcher(clip_vision: Any) -> Any:
    """The CLIP_VISION's patcher; where dynamic VRAM streams its weights, one on a copy of them.

    ComfyUI's loader does not say how such a model is loaded another time, so there is no delegate.
    """
    patcher = clip_vision.patcher
    if not patcher.is_dynamic():
        return patcher
    with torch.inference_mode(False), torch.no_grad():
        weights = {
            name: value.detach().to("cpu", copy=True)
            for name, value in clip_vision.model.state_dict().items()
        }
        model = type(clip_vision.model)(
            clip_vision.config, clip_vision.dtype, torch.device("cpu"), comfy.ops.manual_cast
        )
        model.load_state_dict(weights)
        model.requires_grad_(False).eval()
    return comfy.model_patcher.ModelPatcher(
        model, load_device=patcher.load_device, offload_device=patcher.offload_device
    )
