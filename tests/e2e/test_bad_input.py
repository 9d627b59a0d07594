"""Bad input ends in an error a user can act on, and the server lives on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.harness import ROOT, ComfyServer, Rejected, failure, start_server


def rejection(server: ComfyServer, workflow: dict[str, Any]) -> str:
    with pytest.raises(Rejected) as caught:
        server.prompt(workflow)
    assert server.is_alive()
    return str(caught.value)


def error_of(server: ComfyServer, workflow: dict[str, Any]) -> str:
    """The message of a run that must fail; the server must take the next prompt after it."""
    message = failure(server.run(workflow, timeout=120))
    assert message is not None, "the run was expected to fail"
    assert server.is_alive() and server.is_idle()
    return message


def is_two_sentences(message: str) -> bool:
    """`node: what happened. What to do.` without a traceback; a file name may hold dots."""
    text = message.split(": ", 1)[1].strip()
    sentences = re.split(r"[.!?](?:\s+|$)", text)
    return "Traceback" not in text and 2 <= len([s for s in sentences if s.strip()]) <= 3


def test_without_a_vae_the_node_is_named(server: ComfyServer, quick: dict[str, Any]) -> None:
    text = rejection(server, with_inputs(quick, SAMPLER, vae=None))
    assert SAMPLER in text and "vae" in text


def test_without_a_reward_the_node_is_named(server: ComfyServer, quick: dict[str, Any]) -> None:
    text = rejection(server, with_inputs(quick, SAMPLER, reward=None))
    assert SAMPLER in text and "reward" in text


def test_negative_iterations_are_refused(server: ComfyServer, quick: dict[str, Any]) -> None:
    text = rejection(server, with_inputs(quick, SAMPLER, iterations=-1))
    assert "iterations" in text


def test_a_latent_of_the_wrong_channels_is_explained(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    latent = {
        "latent_tensor": torch.ones(1, 5, 16, 16),
        "latent_format_version_0": torch.tensor([]),
    }
    save_file(latent, server.base / "input" / "five_channels.latent")
    quick["wrong"] = {"class_type": "LoadLatent", "inputs": {"latent": "five_channels.latent"}}
    message = error_of(server, with_inputs(quick, SAMPLER, latent_image=["wrong", 0]))
    assert "5 channels" in message and is_two_sentences(message)


def test_nan_from_the_model_is_explained(server: ComfyServer, quick: dict[str, Any]) -> None:
    """An enormous prompt weight overflows the conditioning."""
    quick["huge"] = {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "(cat:1e38)", "clip": clip_of(quick)},
    }
    message = error_of(server, with_inputs(quick, SAMPLER, positive=["huge", 0]))
    assert is_two_sentences(message)


def test_an_unknown_reward_is_explained(server: ComfyServer, quick: dict[str, Any]) -> None:
    changed = with_inputs(quick, "DNO_RewardLoader", reward="no_such_reward")
    try:
        message = error_of(server, changed)
    except Rejected as refused:
        message = str(refused)
    assert "reward" in message.lower()


def test_only_watched_rewards_are_explained(server: ComfyServer, quick: dict[str, Any]) -> None:
    message = error_of(server, with_inputs(quick, "DNO_RewardLoader", watch_only=True))
    assert is_two_sentences(message)


def test_after_all_that_the_server_still_draws(server: ComfyServer, quick: dict[str, Any]) -> None:
    assert failure(server.run(with_inputs(quick, SAMPLER, seed=77))) is None


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_demo_file_is_named(damage: str, quick: dict[str, Any], tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "training", "benchmarks")
    shutil.copytree(ROOT, pack, ignore=left_out)
    model = pack / "demo" / "model.safetensors"
    if damage == "missing":
        model.unlink()
    else:
        model.write_bytes(model.read_bytes()[:100_000])
    with start_server(pack=pack) as server:
        message = error_of(server, quick)
    assert "model.safetensors" in message and is_two_sentences(message)


def clip_of(workflow: dict[str, Any]) -> list[Any]:
    return list(workflow[node_of(workflow, "CLIPTextEncode")]["inputs"]["clip"])
