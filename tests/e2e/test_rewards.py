"""Rewards on a real server: of another pack, downloaded, refused; each time the server lives on."""

from __future__ import annotations

import copy
import pickle
import shutil
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from comfyui_dno.dno_core import load_trajectory
from comfyui_dno.tests.e2e.conftest import SAMPLER, node_of, with_inputs
from comfyui_dno.tests.e2e.test_bad_input import error_of, is_two_sentences, rejection
from comfyui_dno.tests.harness import ROOT, ComfyServer, failure, start_server
from comfyui_dno.tests.rewards.file_server import FileServer

EXAMPLE = ROOT / "docs" / "example_pack"
LOADER = "DNO_RewardLoader"
BODY = save({"gain": torch.tensor([2.0])})
CHOICE = "download gain.safetensors (MIT)"
SLOW = "download slow.safetensors (MIT)"

PACK = """
    import torch
    from safetensors.torch import load_file

    class NaNImage:
        RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {{"required": {{}}}}

        def make(self):
            return (torch.full((1, 16, 16, 3), float("nan")),)

    NODE_CLASS_MAPPINGS = {{"TestNaNImage": NaNImage}}

    class Gain:
        name, unit, scale, differentiable, modules = "gain", "times", 0.3, True, ()

        def __init__(self, model):
            self.gain = load_file(model)["gain"]

        def score(self, images, context):
            return self.gain.to(images) * images.mean(dim=(1, 2, 3))

    SOURCES = [
        dict(name=name + ".safetensors", files=[dict(url="{url}/" + name, sha256="{sha256}")],
             licence="MIT", page="{url}")
        for name in ("gain", "slow")
    ]
    DNO_REWARDS = [
        dict(name="gain", label="Gain", unit="times", summary="For tests.", create=Gain,
             inputs=[dict(name="model", kind="model", default="gain.safetensors",
                          suffixes=[".safetensors"], sources=SOURCES, tooltip="The gain.")]),
        dict(name="unsound", label="Unsound", unit="times", summary="For tests.", scale=-1,
             score=len),
    ]
"""


class Payload:
    """Unpickled with code allowed, this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    with FileServer() as server:
        server.serve("/gain", BODY)
        server.serve("/slow", BODY, stalls=[len(BODY) // 2])
        yield server


@pytest.fixture(scope="module")
def server(files: FileServer) -> Iterator[ComfyServer]:
    """With the example pack, a pack whose reward can be downloaded, and unfit model files."""
    import hashlib

    def prepare(base: Path) -> None:
        shutil.copytree(EXAMPLE, base / "custom_nodes" / "example-rewards")
        pack = base / "custom_nodes" / "a-pack-that-loads-first"
        pack.mkdir()
        code = textwrap.dedent(PACK).format(
            url=files.url(""), sha256=hashlib.sha256(BODY).hexdigest()
        )
        (pack / "__init__.py").write_text(code, encoding="utf-8")
        models = base / "models" / "dno_rewards"
        models.mkdir(parents=True)
        name = "lora_unet_down_blocks_0_attentions_0_proj_in"
        weights = {f"{name}.lora_down.weight": torch.zeros(4, 8)}
        save_file(
            {**weights, f"{name}.lora_up.weight": torch.zeros(8, 4)}, models / "lora.safetensors"
        )
        (models / "HPS_v2_evil.pt").write_bytes(pickle.dumps(Payload(base / "evil was run")))

    with start_server(prepare=prepare) as running:
        yield running


def with_reward(workflow: dict[str, Any], reward: str, **inputs: Any) -> dict[str, Any]:
    """The workflow climbs another reward; `reward__model` stands for "reward.model"."""
    changed = copy.deepcopy(workflow)
    node = changed[node_of(changed, LOADER)]["inputs"]
    for name in [name for name in node if name.startswith("reward.")]:
        del node[name]
    node["reward"] = reward
    node |= {name.replace("__", "."): value for name, value in inputs.items()}
    return changed


def options_of(server: ComfyServer) -> dict[str, Any]:
    inputs = server.object_info(LOADER)[LOADER]["input"]["required"]
    return {choice["key"]: choice["inputs"] for choice in inputs["reward"][1]["options"]}


def test_rewards_of_other_packs_are_offered_and_unsound_ones_named(server: ComfyServer) -> None:
    options = options_of(server)
    assert {"warmth", "imagenet_class", "gain", "brightness"} <= options.keys()
    assert "unsound" not in options
    assert "golden retriever" in options["imagenet_class"]["required"]["animal"][1]["options"]
    line = 'The reward "unsound" of the pack a-pack-that-loads-first is left out: scale is not'
    assert server.log_text().count(line) == 1
    assert "(IMPORT FAILED)" not in server.log_text()


@pytest.mark.parametrize(
    ("reward", "inputs"),
    [("warmth", {}), ("imagenet_class", {"reward__animal": "goldfish"})],
)
def test_a_reward_of_the_example_pack_is_climbed(
    server: ComfyServer, quick: dict[str, Any], reward: str, inputs: dict[str, Any]
) -> None:
    workflow = with_reward(quick, reward, **inputs)
    workflow["saver"] = {
        "class_type": "DNO_SaveTrajectory",
        "inputs": {"trajectory": [node_of(workflow, SAMPLER), 2], "filename_prefix": "dno/x"},
    }
    entry = server.run(workflow)
    assert failure(entry) is None
    trajectory = load_trajectory(server.base / "output" / entry["outputs"]["saver"]["dno"][0])
    first, *others = trajectory.records
    assert len(others) == 2 and trajectory.meta["gradient_checked"]
    for record in others:
        assert record.gradient_norm is not None and record.gradient_norm[0] > 0
        assert record.scores != first.scores
    assert max(record.scores[0][0] for record in others) > first.scores[0][0]


def test_a_chosen_download_runs_and_is_not_repeated(
    server: ComfyServer, files: FileServer, quick: dict[str, Any]
) -> None:
    model = server.base / "models" / "dno_rewards" / "gain.safetensors"
    missing = error_of(server, with_reward(quick, "gain", reward__model=model.name))
    assert CHOICE in missing and str(model.parent) in missing and not files.requests
    asked = with_reward(quick, "gain", reward__model=CHOICE)
    assert failure(server.run(asked)) is None
    assert model.read_bytes() == BODY
    count = len(files.requests)
    assert count > 0
    assert failure(server.run(with_inputs(asked, LOADER, weight=0.5))) is None
    named = with_reward(quick, "gain", reward__model=model.name)
    assert failure(server.run(named)) is None
    assert len(files.requests) == count


def test_a_stalled_download_is_cancelled_within_seconds_and_resumed(
    server: ComfyServer, files: FileServer, quick: dict[str, Any]
) -> None:
    asked = with_reward(quick, "gain", reward__model=SLOW)
    before = len(files.requests)
    prompt = server.prompt(asked)
    deadline = time.monotonic() + 60
    while len(files.requests) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert not server.is_idle()
    server.interrupt()
    started = time.monotonic()
    assert failure(server.wait(prompt, timeout=20)) == "interrupted"
    assert time.monotonic() - started < 5
    assert failure(server.run(asked)) is None
    assert files.ranges()[-1] == f"bytes={len(BODY) // 2}-"


def with_node(workflow: dict[str, Any], kind: str, **inputs: Any) -> dict[str, Any]:
    """The workflow with one more node, called "extra"."""
    return {**workflow, "extra": {"class_type": kind, "inputs": inputs}}


def test_a_reference_with_an_alpha_channel_is_explained(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    blank = {"width": 16, "height": 16, "batch_size": 1, "color": 0}
    changed = with_node(quick, "EmptyImage", **blank)
    changed["mask"] = {
        "class_type": "SolidMask",
        "inputs": {"value": 1.0, "width": 16, "height": 16},
    }
    changed["both"] = {
        "class_type": "JoinImageWithAlpha",
        "inputs": {"image": ["extra", 0], "alpha": ["mask", 0]},
    }
    message = error_of(server, with_reward(changed, "colour_match", reward__reference=["both", 0]))
    assert "4 channels" in message and "reference socket" in message and is_two_sentences(message)


def test_a_reference_that_is_not_a_number_is_explained(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    changed = with_node(quick, "TestNaNImage")
    message = error_of(server, with_reward(changed, "colour_match", reward__reference=["extra", 0]))
    assert "NaN" in message and "reference socket" in message and is_two_sentences(message)


def test_an_empty_prompt_is_explained(server: ComfyServer, quick: dict[str, Any]) -> None:
    inputs = {"reward__model": "demo reward", "reward__template": "auto", "reward__prompt": "  "}
    message = error_of(server, with_reward(quick, "clip_score", **inputs))
    assert "prompt socket" in message and is_two_sentences(message)


def test_a_black_mask_is_explained(server: ComfyServer, quick: dict[str, Any]) -> None:
    changed = with_node(quick, "SolidMask", value=0.0, width=16, height=16)
    message = error_of(server, with_reward(changed, "brightness", mask=["extra", 0]))
    assert "black everywhere" in message and "mask socket" in message and is_two_sentences(message)


def hps(workflow: dict[str, Any], model: str) -> dict[str, Any]:
    inputs = {"reward__model": model, "reward__version": "v2", "reward__prompt": "a cat"}
    return with_reward(workflow, "hps", **inputs)


def test_a_missing_model_file_is_named(server: ComfyServer, quick: dict[str, Any]) -> None:
    message = error_of(server, hps(quick, "HPS_v2.1_compressed.pt"))
    assert "HPS_v2.1_compressed.pt is not in" in message
    assert "dno_rewards" in message and "huggingface.co" in message and "Traceback" not in message


def test_a_wrong_checkpoint_says_what_it_looks_like(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    message = error_of(server, hps(quick, "lora.safetensors"))
    assert "lora.safetensors looks like a LoRA" in message and is_two_sentences(message)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    message = error_of(server, hps(quick, "HPS_v2_evil.pt"))
    assert "HPS_v2_evil.pt" in message and is_two_sentences(message)
    assert not (server.base / "evil was run").exists()


def test_a_file_that_is_not_offered_is_refused_before_the_run(
    server: ComfyServer, quick: dict[str, Any]
) -> None:
    assert LOADER in rejection(server, hps(quick, "../../comfyui.log"))


def test_after_all_that_a_good_prompt_runs(server: ComfyServer, quick: dict[str, Any]) -> None:
    mask = with_node(quick, "SolidMask", value=1.0, width=64, height=64)
    changed = with_reward(mask, "brightness", mask=["extra", 0])
    assert failure(server.run(with_inputs(changed, SAMPLER, seed=78))) is None
