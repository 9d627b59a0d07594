"""Which rewards are timed, and how each is made ready: one case a model that a reward may use."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import full_size

Inputs = Callable[[Path], dict[str, Any]]


class Case(NamedTuple):
    """inputs: writes what the reward loads into a folder and returns the inputs of `create`.

    full: a model at its published size with random weights, which takes gigabytes.
    """

    name: str
    reward: str
    inputs: Inputs
    full: bool = False


SKIPPED = {"vlm_judge": "its time is that of the user's own server"}
PRECISION = {"precision": "float32"}


def _defaults(folder: Path) -> dict[str, Any]:
    return {}


def _clip(clip: full_size.Clip, **more: Any) -> Inputs:
    return lambda folder: {
        "model": str(full_size.write_clip(folder / "clip", clip)),
        **PRECISION,
        **more,
    }


def _aesthetic(folder: Path) -> dict[str, Any]:
    clip = full_size.CLIP_L_14
    head = folder / "sac+logos+ava1-l14-linearMSE.pth"
    full_size.write_head(head, "layers.", clip.embedding, full_size.LAION_V2_LAYERS)
    return {"head": str(head), **_clip(clip)(folder)}


def _aesthetic_v25(folder: Path) -> dict[str, Any]:
    vit = full_size.SIGLIP_SO400M
    head = folder / "aesthetic_predictor_v2_5.pth"
    full_size.write_head(head, "scoring_head.", vit.width, full_size.V25_LAYERS)
    tower = full_size.write_siglip_vision(folder / "siglip", vit)
    return {"head": str(head), "model": str(tower), **PRECISION}


def _hps(folder: Path) -> dict[str, Any]:
    file = full_size.write_hps(folder / "HPS_v2.1_compressed.pt", full_size.CLIP_H_14)
    return {"model": str(file), **PRECISION}


def _image_reward(folder: Path) -> dict[str, Any]:
    model = full_size.write_image_reward(folder / "ImageReward", *full_size.BLIP_L_16)
    return {"model": str(model), **PRECISION}


def _mps(folder: Path) -> dict[str, Any]:
    clip, heads, head = full_size.CLIP_H_14, full_size.MPS_HEADS, full_size.MPS_HEAD
    return {"model": str(full_size.write_mps(folder / "MPS", clip, heads, head)), **PRECISION}


def _lpips(family: str) -> Inputs:
    return lambda folder: {"model": str(full_size.write_lpips(folder / "lpips", family))}


def _shift_tolerant(folder: Path) -> dict[str, Any]:
    """The real network, which installs with the package of its authors."""
    package = importlib.util.find_spec("stlpips_pytorch")
    if package is None or package.origin is None:
        raise RuntimeError("install stlpips-pytorch for its weights")
    weights = Path(package.origin).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    return {"model": str(weights)}


def cases() -> dict[str, Case]:
    """By name. A reward that needs no files is one of them without being listed here."""
    from comfyui_dno.rewards import REGISTRY

    listed = [
        Case("clip_score (demo reward)", "clip_score", _defaults),
        Case("clip_similarity (demo reward)", "clip_similarity", _defaults),
        Case("lpips (shift-tolerant AlexNet)", "lpips", _shift_tolerant),
        Case("lpips (AlexNet)", "lpips", _lpips("AlexNet"), full=True),
        Case("lpips (VGG16)", "lpips", _lpips("VGG16"), full=True),
        Case("clip_score (ViT-B/32)", "clip_score", _clip(full_size.CLIP_B_32), full=True),
        Case("clip_score (ViT-L/14)", "clip_score", _clip(full_size.CLIP_L_14), full=True),
        Case("clip_similarity (ViT-L/14)", "clip_similarity", _clip(full_size.CLIP_L_14), True),
        Case("aesthetic (ViT-L/14)", "aesthetic", _aesthetic, full=True),
        Case("aesthetic_v25 (SigLIP so400m)", "aesthetic_v25", _aesthetic_v25, full=True),
        Case("pickscore (ViT-H/14)", "pickscore", _clip(full_size.CLIP_H_14), full=True),
        Case("hps (ViT-H/14)", "hps", _hps, full=True),
        Case("mps (ViT-H/14)", "mps", _mps, full=True),
        Case("image_reward (BLIP-L/16)", "image_reward", _image_reward, full=True),
    ]
    known = {case.reward for case in listed}
    for name, spec in REGISTRY.items():
        needs_files = any(item.kind == "model" for item in spec.inputs)
        if name not in known and not needs_files and name not in SKIPPED:
            listed.append(Case(name, name, _defaults))
    order = list(REGISTRY)
    listed = [case for case in listed if case.reward in REGISTRY]
    listed.sort(key=lambda case: (case.full, order.index(case.reward)))
    return {case.name: case for case in listed}


def left_out() -> dict[str, str]:
    """The rewards without a case, with the reason."""
    from comfyui_dno.rewards import REGISTRY

    known = {case.reward for case in cases().values()}
    missing = {name: "no case makes its files" for name in REGISTRY if name not in known}
    return {**missing, **{name: why for name, why in SKIPPED.items() if name in REGISTRY}}
