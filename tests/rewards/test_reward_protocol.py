"""Rewards of other packs: a list of dicts in any loaded module, without an import of ours."""

from __future__ import annotations

import sys
import types
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.rewards import REGISTRY, Context, RewardError, Spec, create, names, register, specs

Pack = Callable[..., types.ModuleType]


def redness(**changes: Any) -> dict[str, Any]:
    entry = {
        "name": "redness",
        "label": "Redness",
        "unit": "mean red, 0 to 1",
        "summary": "More red.",
        "scale": 0.1,
        "score": lambda images: images[:, 0].mean(dim=(1, 2)),
    }
    return {**entry, **changes}


class Gain:
    """A reward as another pack may write it: it knows nothing of ours."""

    name, unit, scale, differentiable, modules = "gain", "times", 0.2, True, ()

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def score(self, images: torch.Tensor, context: Any = None) -> torch.Tensor:
        return self.gain * images.mean(dim=(1, 2, 3))


def gain(**changes: Any) -> dict[str, Any]:
    inputs = [{"name": "gain", "kind": "float", "default": 2.0, "tooltip": "How strong it is."}]
    entry = redness(name="gain", label="Gain", create=Gain, inputs=inputs)
    for field in ("score", "scale"):
        del entry[field]
    return {**entry, **changes}


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    """Make a loaded package that offers these entries, named as ComfyUI names custom nodes."""

    def make(*entries: Any, name: str = "their-pack") -> types.ModuleType:
        module = types.ModuleType(f"/custom_nodes/{name}")
        module.__file__ = str(Path("/custom_nodes") / name / "__init__.py")
        vars(module)["DNO_REWARDS"] = list(entries)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    yield make


def test_a_function_and_its_scale_are_a_reward(pack: Pack) -> None:
    pack(redness())
    assert "redness" in names()
    reward = create("redness")
    images = torch.rand(2, 3, 4, 5)
    assert torch.equal(reward.score(images, Context()), images[:, 0].mean(dim=(1, 2)))
    assert (reward.scale, reward.differentiable, reward.modules) == (0.1, True, ())
    assert specs()["redness"].group == "pixels"


def test_create_is_called_with_the_inputs(pack: Pack) -> None:
    pack(gain())
    assert create("gain").score(torch.ones(1, 3, 2, 2)).item() == 2.0
    assert create("gain", gain=0.5).score(torch.ones(1, 3, 2, 2)).item() == 0.5


def test_the_order_in_which_packs_are_loaded_does_not_matter(pack: Pack) -> None:
    assert "redness" not in names()
    module = pack(redness())
    assert "redness" in names()
    del sys.modules[module.__name__]
    assert "redness" not in names()


def test_lazy_modules_are_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    monkeypatch.setitem(sys.modules, "lazy_one", Lazy("lazy_one"))
    monkeypatch.setitem(sys.modules, "no_module", None)
    assert names()


def test_a_list_that_two_modules_share_counts_once(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    module = pack(redness())
    pack(name="inner").DNO_REWARDS = module.DNO_REWARDS  # type: ignore[attr-defined]
    assert names().count("redness") == 1 and not caplog.text


def test_a_taken_name_stays_with_the_first_and_the_pack_is_named_once(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    pack(redness(name="brightness"), redness())
    pack(redness(scale=5.0), name="late-pack")
    assert specs()["brightness"] is REGISTRY["brightness"]
    assert create("redness").scale == 0.1
    names()
    assert caplog.text.count('"brightness" of the pack their-pack is left out') == 1
    assert caplog.text.count('"redness" of the pack late-pack is left out') == 1


def with_input(**changes: Any) -> dict[str, Any]:
    item = {"name": "g", "kind": "string", "default": "", "tooltip": "What it does."}
    return gain(inputs=[{**item, **changes}])


def with_source(**changes: Any) -> dict[str, Any]:
    source = {"name": "a.pt", "licence": "MIT", "page": "http://127.0.0.1"}
    source["files"] = [{"url": "http://127.0.0.1/a.pt"}]  # type: ignore[assignment]
    return with_input(kind="model", suffixes=[".pt"], sources=[{**source, **changes}])


BAD = {
    "label is missing or no text": redness(label=""),
    "unit is missing or no text": redness(unit=3),
    "name may hold letters": redness(name="two words"),
    "scale is not a number above 0": redness(scale=0),
    "scale is not a number": redness(scale=float("nan")),
    "needs either create or score": redness(score=None),
    "either create or score.": redness(create=Gain),
    "score is no function": redness(score=1),
    "score takes no inputs": redness(inputs=gain()["inputs"]),
    "differentiable is neither": redness(differentiable="yes"),
    "there is no field sclae": redness(sclae=1),
    "The group 'best' is unknown": redness(group="best"),
    "prompt is no text": redness(prompt=True),
    "inputs is not a list": gain(inputs="gain"),
    "an input is no dict": gain(inputs=["gain"]),
    "an input has no field maximum": gain(inputs=[{"name": "g", "maximum": 1}]),
    "tooltip of an input is missing": gain(inputs=[{"name": "g", "kind": "float"}]),
    "the kind of g is none of": gain(inputs=[{"name": "g", "kind": "slider", "tooltip": "t"}]),
    "the default of g does not fit": gain(inputs=[{"name": "g", "kind": "int", "tooltip": "t"}]),
    "cannot be named 'prompt'": gain(
        inputs=[{"name": "prompt", "kind": "text", "default": "", "tooltip": "t"}]
    ),
    "two inputs have the same name": gain(inputs=gain()["inputs"] * 2),
    "outside its range": gain(inputs=[{**gain()["inputs"][0], "max": 1.0}]),
    "not among its choices": gain(
        inputs=[{"name": "g", "kind": "choice", "default": "c", "tooltip": "t", "choices": ["a"]}]
    ),
    "a source cannot be read": gain(
        inputs=[{"name": "g", "kind": "model", "default": "", "tooltip": "t", "sources": [{}]}]
    ),
    "it is str, not a dict": "redness",
    "needs_prompt is neither": redness(needs_prompt="no"),
    "there is no field 5": {**redness(), 5: 1, "zz": 2},
    "scale is not a number above": redness(scale=10**400),
    "choices of an input: not a list": with_input(kind="choice", choices=5),
    "choices of an input: not all are texts": with_input(kind="choice", choices=["a", 1]),
    "suffixes of an input: not a list": with_input(kind="model", suffixes=".pt"),
    "are not like .pt": with_input(kind="model", suffixes=["pt"]),
    "sources of an input: not a list": with_input(kind="model", sources=5),
    "min of g is no number": with_input(kind="float", default=1.0, min="0"),
    "step of g is no number": with_input(kind="float", default=1.0, step=True),
    "the kind of g is none": with_input(kind=["float"]),
    "the tooltip of g is no text": with_input(tooltip=5),
    "advanced of g is neither": with_input(advanced="yes"),
    "name, licence and page of a source": with_source(name=None),
    "a file of the source a.pt is no dict": with_source(files=["http://127.0.0.1/a.pt"]),
    "url, name and sha256 of a.pt": with_source(files=[{"url": None}]),
    "no number of bytes": with_source(files=[{"url": "http://127.0.0.1/a.pt", "size": "5"}]),
    "no safe file name": with_source(name="../a.pt"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_entry_is_named_with_its_pack_and_field_and_the_others_stay(
    pack: Pack, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    pack(BAD[what], redness(name="sound_one"))
    assert set(names()) == {*REGISTRY, "sound_one"}
    names()
    (line,) = caplog.messages
    assert "of the pack their-pack is left out: " in line and what in line


def test_an_entry_that_cannot_even_be_looked_at_leaves_the_others(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    class Hostile(UserDict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            raise RuntimeError("no keys today")

    pack(Hostile(redness()), redness(name="sound_one"))
    assert set(names()) == {*REGISTRY, "sound_one"}
    names()
    (line,) = caplog.messages
    assert line == "A reward of the pack their-pack is left out: it cannot be read."


def test_what_is_no_list_is_named(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    pack().DNO_REWARDS = redness()  # type: ignore[attr-defined]
    names()
    assert "their-pack: DNO_REWARDS is left out. Make it a list of dicts." in caplog.text


def test_a_source_is_written_as_a_dict(pack: Pack) -> None:
    file = {"url": "http://127.0.0.1/a.pt", "size": 5}
    source = {"name": "a.pt", "files": [file], "licence": "MIT", "page": "http://127.0.0.1"}
    model = {"name": "model", "kind": "model", "default": "a.pt", "tooltip": "The weights."}
    pack(gain(inputs=[{**model, "suffixes": [".pt"], "sources": [source]}]))
    (item,) = specs()["gain"].inputs
    assert item.sources[0].size == 5 and item.suffixes == (".pt",)


NO_REWARDS = {
    "score is missing": {"score": None},
    "scale is not a number": {"scale": "big"},
    "modules is not a tuple": {"modules": [torch.nn.Linear(1, 1)]},
    "differentiable is neither": {"differentiable": None},
    "unit is missing": {"unit": None},
}


@pytest.mark.parametrize("what", NO_REWARDS)
def test_what_create_makes_is_checked_and_its_pack_named(pack: Pack, what: str) -> None:
    def broken(gain: float) -> Any:
        reward = Gain(gain)
        vars(reward).update(NO_REWARDS[what])
        return reward

    pack(gain(create=broken))
    with pytest.raises(RewardError, match=f"gain: create of the pack their-pack .*{what}"):
        create("gain")


def test_a_script_registers_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_registered", {})
    register(Spec("mine", "Mine", "1", "For me.", lambda: Gain(3.0)))
    assert create("mine").score(torch.ones(1, 3, 1, 1)).item() == 3.0
    register(Spec("mine", "Mine", "1", "For me.", lambda: Gain(4.0)))
    assert create("mine").score(torch.ones(1, 3, 1, 1)).item() == 4.0
    with pytest.raises(ValueError, match='There is a reward "contrast" already'):
        register(Spec("contrast", "Mine", "1", "For me.", lambda: Gain(3.0)))
