from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from comfyui_dno import rewards
from comfyui_dno.rewards import REGISTRY, RewardError, create, discover, names


def test_the_first_rewards_are_there():
    assert set(names()) >= {"brightness", "clip_score", "colour", "contrast", "darkness"}


def test_every_reward_explains_itself():
    for name, spec in REGISTRY.items():
        assert spec.name == name and spec.label and spec.unit and spec.summary
        for item in spec.inputs:
            assert len(item.tooltip) > 40, f"{name}.{item.name}"
            assert item.name not in ("reward", "prompt")


def test_a_reward_file_dropped_in_is_found(tmp_path, monkeypatch):
    source = """
        from comfyui_dno.rewards.base import Input, PixelReward, Spec

        def create(gain):
            return PixelReward("redness", "0..1", 0.1, lambda x: gain * x[:, 0].mean(dim=(1, 2)))

        SPEC = Spec("redness", "Redness", "0..1", "More red.", create,
                    inputs=(Input("gain", "float", 2.0, "How strong."),))
    """
    (tmp_path / "redness.py").write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.setattr(rewards, "__path__", [*rewards.__path__, str(tmp_path)])
    found = discover()
    assert set(found) == {*REGISTRY, "redness"}
    monkeypatch.setattr(rewards, "REGISTRY", found)
    assert create("redness").name == "redness"


def test_a_broken_reward_file_is_logged_and_leaves_the_others_usable(tmp_path, monkeypatch, caplog):
    (tmp_path / "broken_one.py").write_text("raise ImportError('no such thing')", encoding="utf-8")
    monkeypatch.setattr(rewards, "__path__", [*rewards.__path__, str(tmp_path)])
    assert set(discover()) == set(REGISTRY)
    assert "rewards/broken_one.py was left out" in caplog.text


def test_an_unknown_reward_or_input_is_answered_with_the_known_ones():
    with pytest.raises(RewardError, match='no reward "beauty". Choose one of: brightness'):
        create("beauty")
    with pytest.raises(RewardError, match="has no input strength. It takes: colour"):
        create("colour", strength=2)


def test_importing_the_rewards_loads_no_model_library():
    code = textwrap.dedent("""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location(
            "rewards_alone", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
        module = importlib.util.module_from_spec(spec)
        sys.modules["rewards_alone"] = module
        spec.loader.exec_module(module)
        assert "clip_score" in module.names()
        heavy = {"transformers", "open_clip", "diffusers", "comfy"} & set(sys.modules)
        assert not heavy, heavy
    """)
    folder = next(iter(rewards.__path__))
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
