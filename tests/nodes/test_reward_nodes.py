from __future__ import annotations

import gc
import importlib.util
import weakref
from pathlib import Path

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.rewards import REGISTRY, Input, PixelReward, Spec, register
from comfyui_dno.tests.nodes.reward_prompts import loader, sink, value


def write_clip(folder: Path) -> Path:
    factory = Path(__file__).parents[1] / "rewards" / "clip_factory.py"
    spec = importlib.util.spec_from_file_location("dno_test_clip_factory", factory)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_clip(folder)


def all_inputs(info):
    for group in ("required", "optional"):
        for name, (kind, options) in info.get(group, {}).items():
            yield name, kind, options
            for choice in options.get("options", []):
                if isinstance(choice, dict):
                    yield from all_inputs(choice["inputs"])
            if "template" in options:
                yield from all_inputs(options["template"]["input"])


def test_every_input_has_a_tooltip_that_helps(rooms):
    for node in (rooms.RewardLoader, rooms.RewardMix):
        for name, _, options in all_inputs(node.INPUT_TYPES()):
            assert len(options.get("tooltip", "")) > 25, f"{node.__name__}.{name}"


def test_the_loader_offers_every_reward_with_its_own_inputs(rooms):
    kind, options = rooms.RewardLoader.INPUT_TYPES()["required"]["reward"]
    assert kind == "COMFY_DYNAMICCOMBO_V3"
    assert [choice["key"] for choice in options["options"]] == list(REGISTRY)
    by_name = {choice["key"]: choice["inputs"] for choice in options["options"]}
    assert by_name["colour"]["required"]["colour"][0] == "COLOR"
    prompt = by_name["clip_score"]["optional"]["prompt"]
    assert prompt[0] == "STRING" and prompt[1]["forceInput"]
    model = by_name["clip_score"]["required"]["model"][1]
    assert model["options"][:2] == ["demo reward", "demo judge (held out)"]


def test_rare_inputs_are_advanced(rooms):
    info = rooms.RewardLoader.INPUT_TYPES()
    inputs = {**info["required"], **info["optional"]}
    advanced = {name for name, (_, options) in inputs.items() if options.get("advanced")}
    assert advanced == {"goal", "target", "watch_only", "precision"}


def test_saved_workflows_stay_valid_because_inputs_are_only_appended(rooms):
    """Widget values are stored by position, those of the chosen reward among the node's own."""
    info = rooms.RewardLoader.INPUT_TYPES()
    assert list(info["required"]) == ["reward", "weight", "goal", "target", "watch_only"]
    assert list(info["optional"]) == ["mask", "precision"]
    by_name = {
        choice["key"]: choice["inputs"] for choice in info["required"]["reward"][1]["options"]
    }
    widgets = {
        name: [key for key, (kind, _) in inputs["required"].items() if kind != "CLIP_VISION"]
        for name, inputs in by_name.items()
    }
    assert widgets["colour"] == ["colour"]
    assert widgets["clip_score"] == ["model", "template"]
    assert widgets["jpeg_compressibility"] == widgets["jpeg_incompressibility"] == ["quality"]
    assert widgets["brightness"] == widgets["darkness"] == widgets["contrast"] == []


def test_rewards_come_by_group_and_label_and_the_first_runs_without_files(rooms):
    options = rooms.RewardLoader.INPUT_TYPES()["required"]["reward"][1]["options"]
    assert [options[0]["key"], options[1]["key"]] == ["brightness", "colour"]
    groups = ["pixels", "prompt", "taste", "reference", "black box"]
    order = [groups.index(REGISTRY[choice["key"]].group) for choice in options]
    assert order == sorted(order)


def test_the_schema_is_json(rooms):
    import json

    for node in (rooms.RewardLoader, rooms.RewardMix):
        json.dumps(node.GET_NODE_INFO_V1())


def test_a_loaded_reward_is_a_mix_of_one(run):
    done = run({"1": loader("darkness", weight=2.5), "2": sink(["1", 0])})
    (term,) = done.terms
    assert (term.reward.name, term.weight, term.goal) == ("darkness", 2.5, "maximize")
    assert not term.watch
    assert term.reward.score(torch.zeros(2, 3, 8, 8), term.context).tolist() == [1.0, 1.0]


def test_weight_goal_target_and_watch_only_travel_inside_the_reward(run):
    done = run(
        {
            "1": loader("contrast", weight=0.5, goal="target", target=2.5, watch_only=True),
            "2": sink(["1", 0]),
        }
    )
    (term,) = done.terms
    assert (term.weight, term.goal, term.target, term.watch) == (0.5, "target", 2.5, True)


def test_the_inputs_of_a_reward_have_dotted_names_in_the_api_form(run):
    done = run({"1": loader("colour", reward__colour="#0000ff"), "2": sink(["1", 0])})
    blue = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert done.terms[0].reward.score(blue, done.terms[0].context).item() == pytest.approx(1)


def test_a_wrong_colour_gives_the_two_sentences(run):
    done = run({"1": loader("colour", reward__colour="blueish"), "2": sink(["1", 0])})
    assert done.error.strip().startswith('colour: "blueish" is not a colour. Write it as #rrggbb')


@pytest.mark.parametrize("inputs", [{"weight": -1.0}, {"goal": "improve"}, {"weight": "much"}])
def test_values_outside_their_range_are_refused_before_the_run(run, inputs):
    node = loader("brightness")
    node["inputs"] |= inputs
    assert run({"1": node, "2": sink(["1", 0])}).refused


def test_a_reward_that_is_not_installed_gives_the_two_sentences(run):
    done = run({"1": loader("beauty"), "2": sink(["1", 0])})
    assert "a reward that is not installed. Choose one of: brightness" in done.error


@pytest.fixture
def models(rooms, tmp_path, monkeypatch):
    """A models/dno_rewards folder with a CLIP, one in a subfolder, and a folder that is none."""
    write_clip(tmp_path / "my-clip")
    write_clip(tmp_path / "maker" / "their-clip")
    (tmp_path / "notes").mkdir()
    monkeypatch.setitem(
        rooms.folder_paths.folder_names_and_paths, "dno_rewards", ([str(tmp_path)], set())
    )
    return tmp_path


def clip_prompt(model, text="red cat"):
    return {
        "0": {"class_type": "DNO_TestText", "inputs": {"text": text}},
        "1": loader(
            "clip_score", reward__model=model, reward__template="", reward__prompt=["0", 0]
        ),
        "2": sink(["1", 0]),
    }


def test_local_clip_folders_are_offered_and_load(run, rooms, models):
    (item,) = [item for item in REGISTRY["clip_score"].inputs if item.name == "model"]
    assert sorted(rooms.models.found_models(item)) == ["maker/their-clip", "my-clip"]
    done = run(clip_prompt("maker/their-clip"))
    (term,) = done.terms
    assert term.reward.name == "clip_score (their-clip)"
    assert term.context.prompts == ("red cat",)


def test_a_clip_loaded_by_a_node_gives_gradients_outside_inference_mode(run, models):
    (term,) = run(clip_prompt("my-clip")).terms
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.rand(2, 3, 40, 40, requires_grad=True)
        term.reward.score(x, term.context).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_changed_weight_does_not_load_the_network_again(run, models):
    (term,) = run(clip_prompt("my-clip")).terms
    network = weakref.ref(term.reward.modules[0])
    del term
    prompt = clip_prompt("my-clip")
    prompt["1"]["inputs"]["weight"] = 0.5
    run({"1": loader("brightness"), "2": sink(["1", 0])})  # the first output is dropped
    gc.collect()
    (term,) = run(prompt).terms
    assert term.weight == 0.5 and term.reward.modules[0] is network()


@pytest.mark.parametrize("text", [None, "", "   "])
def test_clip_score_without_a_prompt_says_where_to_connect_it(run, models, text):
    prompt = clip_prompt("my-clip", text or "")
    if text is None:
        del prompt["1"]["inputs"]["reward.prompt"]
    done = run(prompt)
    assert "CLIPScore needs to know what the picture should show." in done.error
    assert "Connect a text to its prompt socket." in done.error


def test_a_model_that_is_not_there_is_refused_before_the_run(run, models):
    assert run(clip_prompt("notes")).refused


def test_a_replaced_model_file_changes_the_fingerprint(rooms, models):
    chosen = {"reward": "clip_score", "model": "my-clip", "prompt": None}
    before = rooms.RewardLoader.fingerprint_inputs(reward=chosen)
    assert before == rooms.RewardLoader.fingerprint_inputs(reward=chosen)
    (models / "my-clip" / "config.json").touch()
    assert before != rooms.RewardLoader.fingerprint_inputs(reward=chosen)


def test_a_mix_holds_all_terms_in_order_and_a_mix_of_a_mix_works(run):
    done = run(
        {
            "1": loader("brightness", weight=2.0),
            "2": loader("contrast", goal="minimize"),
            "3": loader("darkness", watch_only=True),
            "4": {
                "class_type": "DNO_RewardMix",
                "inputs": {"rewards.reward_0": ["1", 0], "rewards.reward_1": ["2", 0]},
            },
            "5": {
                "class_type": "DNO_RewardMix",
                "inputs": {"rewards.reward_0": ["3", 0], "rewards.reward_1": ["4", 0]},
            },
            "6": sink(["5", 0]),
        }
    )
    assert [term.reward.name for term in done.terms] == ["darkness", "brightness", "contrast"]
    assert [term.weight for term in done.terms] == [1.0, 2.0, 1.0]
    assert [term.watch for term in done.terms] == [True, False, False]


def test_a_mix_without_a_reward_is_refused_before_the_run(run):
    prompt = {"1": {"class_type": "DNO_RewardMix", "inputs": {}}, "2": sink(["1", 0])}
    assert run(prompt).refused


def test_mixes_in_mixes_hold_any_number_of_rewards(run):
    prompt = {str(i): loader("brightness", weight=1.0 + i) for i in range(60)}
    for mix in range(2):
        links = {f"rewards.reward_{i}": [str(30 * mix + i), 0] for i in range(30)}
        prompt[f"mix {mix}"] = {"class_type": "DNO_RewardMix", "inputs": links}
    both = {"rewards.reward_0": ["mix 0", 0], "rewards.reward_1": ["mix 1", 0]}
    prompt["all"] = {"class_type": "DNO_RewardMix", "inputs": both}
    done = run({**prompt, "sink": sink(["all", 0])})
    assert [term.weight for term in done.terms] == [1.0 + i for i in range(60)]


EVERY_KIND = (
    Input("strength", "float", 0.5, "A number that has a range.", min=0.0, max=2.0, step=0.1),
    Input("count", "int", 3, "A whole number with a range.", min=1, max=9, step=1),
    Input("soft", "bool", True, "A switch that is on at first."),
    Input("word", "string", "cat", "A text of a single line."),
    Input("story", "text", "a\nb", "A text of several lines."),
    Input("manner", "choice", "b", "One of a few given words.", choices=("a", "b")),
    Input("paint", "colour", "#102030", "A colour as #rrggbb."),
    Input("precision", "precision", "auto", "The number format of the network."),
    Input("clip_vision", "clip_vision", None, "A CLIP_VISION in place of the model."),
)


@pytest.fixture
def every_kind(monkeypatch):
    """A registered reward with an input of every kind; the values that reached its `create`."""
    received = {}

    def create(**inputs):
        received.update(inputs)
        return PixelReward("every_kind", "mean", 1.0, lambda images: images.mean(dim=(1, 2, 3)))

    monkeypatch.setattr(rewards, "_registered", {})
    register(
        Spec(
            "every_kind",
            "Every kind",
            "mean",
            "For tests.",
            create,
            EVERY_KIND,
            prompt="What the picture shows.",
            needs_prompt=False,
            reference="The picture to compare with.",
        )
    )
    return received


def test_every_kind_of_input_becomes_its_widget_or_socket(rooms, every_kind):
    options = rooms.RewardLoader.INPUT_TYPES()["required"]["reward"][1]["options"]
    (inputs,) = [choice["inputs"] for choice in options if choice["key"] == "every_kind"]
    kinds = {name: kind for name, kind, _ in all_inputs(inputs)}
    assert kinds == {
        "strength": "FLOAT",
        "count": "INT",
        "soft": "BOOLEAN",
        "word": "STRING",
        "story": "STRING",
        "manner": "COMBO",
        "paint": "COLOR",
        "prompt": "STRING",
        "reference": "IMAGE",
        "clip_vision": "CLIP_VISION",
    }
    assert list(inputs["optional"]) == ["prompt", "reference", "clip_vision"]
    required = inputs["required"]
    assert required["story"][1]["multiline"] and not required["word"][1].get("multiline")
    assert required["manner"][1]["options"] == ["a", "b"]
    assert required["manner"][1]["default"] == "b"


def every_kind_loader(**inputs):
    given = {"strength": 1.5, "count": 2, "soft": False, "word": "dog", "story": "c\nd"}
    given |= {"manner": "a", "paint": "#ffffff"}
    given = {f"reward__{name}": given for name, given in given.items()}
    return loader("every_kind", **given, **inputs)


def test_the_values_reach_create_under_their_names(run, rooms, every_kind):
    rooms.values["picture"] = torch.rand(2, 8, 9, 3)
    prompt = {
        "p": value("picture"),
        "1": every_kind_loader(reward__reference=["p", 0]),
        "2": sink(["1", 0]),
    }
    (term,) = run(prompt).terms
    assert every_kind == {
        "strength": 1.5,
        "count": 2,
        "soft": False,
        "word": "dog",
        "story": "c\nd",
        "manner": "a",
        "paint": "#ffffff",
        "precision": "float32",
        "clip_vision": None,
    }
    references = term.context.references
    assert torch.equal(references, rooms.values["picture"].movedim(-1, 1))
    assert not references.is_inference() and term.context.prompts == ()


def test_a_chosen_precision_reaches_create_and_auto_is_that_of_comfyuis_text_encoders(
    run, rooms, every_kind, monkeypatch
):
    import comfy.model_management as management

    rooms.values["picture"] = torch.rand(1, 8, 8, 3)

    def asked(precision):
        node = every_kind_loader(reward__reference=["p", 0], precision=precision)
        run({"p": value("picture"), "1": node, "2": sink(["1", 0])})
        return every_kind["precision"]

    assert asked("bfloat16") == "bfloat16" and asked("auto") == "float32"
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: True)
    assert asked("auto") == "float16"
    monkeypatch.setattr(management, "text_encoder_dtype", lambda *_: torch.bfloat16)
    assert asked("auto") == "bfloat16"
    monkeypatch.setattr(management, "text_encoder_dtype", lambda *_: torch.float8_e4m3fn)
    assert asked("auto") == "float16"
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: False)
    assert asked("auto") == "float32"


ODD_REFERENCES = {
    "alpha": (torch.rand(1, 8, 8, 4), "has 4 channels"),
    "nan": (torch.full((1, 8, 8, 3), torch.nan), "holds NaN"),
    "empty": (torch.zeros(0, 8, 8, 3), "is empty"),
}


@pytest.mark.parametrize("odd", ODD_REFERENCES)
def test_an_unusable_reference_is_named_with_its_socket(run, rooms, every_kind, odd):
    rooms.values[odd], what = ODD_REFERENCES[odd]
    node = every_kind_loader(reward__reference=["p", 0])
    done = run({"p": value(odd), "1": node, "2": sink(["1", 0])})
    assert done.error.strip().startswith("Reward Loader: the reference of Every kind")
    assert what in done.error and "reference socket" in done.error


def test_a_missing_reference_is_asked_for(run, every_kind):
    done = run({"1": every_kind_loader(), "2": sink(["1", 0])})
    assert "Every kind needs a picture to compare with." in done.error
    assert "Connect one to its reference socket." in done.error


def masked(run, rooms, mask, reward="brightness", **inputs):
    rooms.values["mask"] = mask
    node = loader(reward, mask=["m", 0], **inputs)
    return run({"m": value("mask"), "1": node, "2": sink(["1", 0])})


@pytest.mark.parametrize("batched", [True, False])
def test_a_mask_limits_the_reward_to_its_white_part(run, rooms, batched):
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    (term,) = masked(run, rooms, mask if batched else mask[0]).terms
    assert term.context.masks.shape == (1, 1, 8, 8)
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1
    assert term.reward.score(picture, term.context).item() == pytest.approx(1.0)


def test_a_masked_reward_has_a_gradient_inside_the_mask_only(run, rooms):
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5] = 1
    (term,) = masked(run, rooms, mask, "jpeg_compressibility", reward__quality=95).terms
    assert not term.reward.differentiable
    (term,) = masked(run, rooms, mask, "contrast").terms
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        term.reward.score(x, term.context).sum().backward()
    assert x.grad[:, :, 2:5].abs().amin() > 0
    assert x.grad[:, :, :2].abs().amax() == 0 and x.grad[:, :, 5:].abs().amax() == 0


ODD_MASKS = {
    "black": (torch.zeros(1, 8, 8), "black everywhere"),
    "one black": (torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]), "black everywhere"),
    "nan": (torch.full((1, 8, 8), torch.nan), "holds NaN"),
    "misshaped": (torch.ones(1, 1, 8, 8), r"shape [1, 1, 8, 8]"),
}


@pytest.mark.parametrize("odd", ODD_MASKS)
def test_an_unusable_mask_is_named_with_its_socket(run, rooms, odd):
    mask, what = ODD_MASKS[odd]
    done = masked(run, rooms, mask)
    assert done.error.strip().startswith("Reward Loader: the mask")
    assert what in done.error and "mask socket" in done.error
