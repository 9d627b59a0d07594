"""Every reward with a model, as an artist loads it: files in models/dno_rewards, a real server.

The files have the published formats; all but ST-LPIPS, which is the real one, are small and random.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from comfyui_dno.dno_core import load_trajectory
from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of
from comfyui_dno.tests.e2e.test_rewards import LOADER, with_reward
from comfyui_dno.tests.harness import ComfyServer, failure, start_server
from comfyui_dno.tests.rewards import blip_factory, clip_factory
from comfyui_dno.tests.rewards.test_aesthetic import PublishedV2, PublishedV25, trained
from comfyui_dno.tests.rewards.test_lpips import published, shift_tolerant_file, write_folder
from comfyui_dno.tests.rewards.test_mps import write_mps

LAION_WIDTH = 768
TEXT, PICTURE = "prompt", "reference"

CASES: dict[str, tuple[str, dict[str, str], str]] = {
    "CLIPScore, a CLIP": ("clip_score", {"model": "small-clip", "template": "auto"}, TEXT),
    "CLIPScore, a SigLIP": ("clip_score", {"model": "small-siglip", "template": "auto"}, TEXT),
    "CLIPScore, an open_clip folder": (
        "clip_score",
        {"model": "small-open-clip", "template": "auto"},
        TEXT,
    ),
    "PickScore": ("pickscore", {"model": "PickScore_v1"}, TEXT),
    "HPS v2": ("hps", {"model": "HPS_v2_compressed.pt", "version": "auto"}, TEXT),
    "HPS v2.1": ("hps", {"model": "HPS_v2.1_compressed.pt", "version": "auto"}, TEXT),
    "ImageReward": ("image_reward", {"model": "ImageReward"}, TEXT),
    "MPS": ("mps", {"model": "MPS"}, TEXT),
    "LAION v2": (
        "aesthetic",
        {"head": "sac+logos+ava1-l14-linearMSE.pth", "model": "wide-clip"},
        "",
    ),
    "LAION v1": ("aesthetic", {"head": "sa_0_4_vit_l_14_linear.pth", "model": "wide-clip"}, ""),
    "aesthetic v2.5": (
        "aesthetic_v25",
        {"head": "aesthetic_predictor_v2_5.pth", "model": "small-siglip"},
        "",
    ),
    "CLIP similarity": ("clip_similarity", {"model": "small-clip"}, PICTURE),
    "LPIPS": ("lpips", {"model": "lpips_alex"}, PICTURE),
    "ST-LPIPS, the real one": ("lpips", {"model": "alex_shift_tolerant.pth"}, PICTURE),
}


def write_wide_clip(folder: Path, width: int = LAION_WIDTH, seed: int = 0) -> None:
    """A small CLIP whose embedding is as wide as that of the LAION heads' own."""
    clip_factory.write_clip(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["projection_dim"] = width
    for half in ("text_config", "vision_config"):
        settings[half]["projection_dim"] = width
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(**settings))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)


def write_models(models: Path) -> None:
    models.mkdir(parents=True)
    for name in ("small-clip", "PickScore_v1"):
        clip_factory.write_clip(models / name)
    # CLIPScore is cut at 0, and with this seed the first picture lies above it
    clip_factory.write_siglip(models / "small-siglip", seed=2)
    clip_factory.write_open_clip_folder(models / "small-open-clip")
    for name in ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"):
        clip_factory.write_hps(models / name)
    blip_factory.write_blip(models / "ImageReward")
    write_mps(clip_factory, models / "MPS")
    write_wide_clip(models / "wide-clip")
    torch.save(
        trained(PublishedV2(LAION_WIDTH)).state_dict(), models / "sac+logos+ava1-l14-linearMSE.pth"
    )
    v1 = trained(nn.Linear(LAION_WIDTH, 1))
    torch.save(v1.state_dict(), models / "sa_0_4_vit_l_14_linear.pth")
    settings = json.loads((models / "small-siglip/config.json").read_text(encoding="utf-8"))
    v25 = trained(PublishedV25(settings["vision_config"]["hidden_size"]))
    torch.save(v25.state_dict(), models / "aesthetic_predictor_v2_5.pth")
    write_folder(models / "lpips_alex", "alex", published("alex"))
    shutil.copy(shift_tolerant_file("alex"), models)


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyServer]:
    with start_server(prepare=lambda base: write_models(base / "models/dno_rewards")) as running:
        yield running


def climbing(workflow: dict[str, Any], case: str) -> dict[str, Any]:
    """First light with that reward, a reference drawn by KSampler, and the trajectory saved."""
    reward, inputs, socket = CASES[case]
    changed = with_reward(workflow, reward, **{f"reward__{k}": v for k, v in inputs.items()})
    node = changed[node_of(changed, LOADER)]["inputs"]
    if socket == TEXT:
        node["reward.prompt"] = "red cat"
    if socket == PICTURE:
        node["reward.reference"] = [node_of(changed, "VAEDecode"), 0]
        changed[node_of(changed, "KSampler")]["inputs"]["seed"] = 77
    changed["saver"] = {
        "class_type": "DNO_SaveTrajectory",
        "inputs": {"trajectory": [node_of(changed, SAMPLER), 2], "filename_prefix": "dno/x"},
    }
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_reward_is_loaded_from_its_files_and_climbed(
    server: ComfyServer, quick: dict[str, Any], case: str
) -> None:
    entry = server.run(climbing(quick, case), timeout=180)
    assert failure(entry) is None
    trajectory = load_trajectory(server.base / "output" / entry["outputs"]["saver"]["dno"][0])
    first, *others = trajectory.records
    assert trajectory.meta["gradient_checked"] and len(others) == 2
    assert all(record.gradient_norm and record.gradient_norm[0] > 0 for record in others)
    assert max(record.scores[0][0] for record in others) > first.scores[0][0]
