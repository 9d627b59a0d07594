"""The VLM judge as an artist loads it."""

from __future__ import annotations

import pytest
import torch

from comfyui_dno.rewards import REGISTRY
from comfyui_dno.tests.nodes.reward_prompts import loader, sink
from comfyui_dno.tests.rewards.chat_server import judge_brightness, serving


def judge(**changes):
    """A Reward Loader with every widget of the judge at its default, but for the changes."""
    inputs = {item.name: item.default for item in REGISTRY["vlm_judge"].inputs} | changes
    return loader("vlm_judge", **{f"reward__{name}": value for name, value in inputs.items()})


def test_it_is_off_until_an_address_is_given(run):
    done = run({"1": judge(), "2": sink(["1", 0])})
    assert "vlm_judge is off: it has no server to ask. Start an OpenAI-compatible" in done.error


def test_the_prompt_socket_is_free_to_be_used(run):
    grey = torch.full((1, 3, 16, 16), 0.5)
    text = {"class_type": "DNO_TestText", "inputs": {"text": "a cat"}}
    with serving(judge_brightness) as server:
        asked = judge(address=server.address, question="Is it {prompt}?", prompt=["3", 0])
        done = run({"1": asked, "2": sink(["1", 0]), "3": text})
        (term,) = done.terms
        assert term.reward.score(grey, term.context).item() == pytest.approx(127 / 25.5, abs=1e-3)
        done = run({"1": judge(address=server.address, question="Is it?"), "2": sink(["1", 0])})
        (term,) = done.terms
        term.reward.score(grey, term.context)
    assert [asked.text.splitlines()[0] for asked in server.asked] == ["Is it a cat?", "Is it?"]


def test_another_computer_is_refused_until_it_is_allowed(run):
    address = "http://vlm.example.com:8080"
    done = run({"1": judge(address=address), "2": sink(["1", 0])})
    assert "vlm.example.com is another computer" in done.error
    done = run({"1": judge(address=address, allow_remote=True), "2": sink(["1", 0])})
    assert done.error is None and len(done.terms) == 1
