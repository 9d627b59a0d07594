"""The precision that ComfyUI itself would run a reward's network in."""

from __future__ import annotations

import comfy.model_management
import torch

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def reward_precision(chosen: str) -> str:
    """The chosen one; for "auto", that of ComfyUI's text encoders on the device of rewards.

    float32 on a CPU, and where half precision is slow or broken: a reward's layers, unlike
    ComfyUI's own, do not cast their weights while they run.
    """
    if chosen != "auto":
        return chosen
    management = comfy.model_management
    device = management.get_torch_device()
    if management.is_device_cpu(device):
        return NAMES[torch.float32]
    dtype = management.text_encoder_dtype(device)
    if dtype not in NAMES:  # text encoders in fp8
        dtype = torch.float16
    if dtype == torch.float16 and not management.should_use_fp16(
        device, prioritize_performance=False
    ):
        dtype = torch.float32
    return NAMES[dtype]
