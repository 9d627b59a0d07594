from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


def write_clip(folder: Path) -> Path:
    factory = Path(__file__).parents[1] / "rewards" / "clip_factory.py"
    spec = importlib.util.spec_from_file_location("dno_test_clip_factory", factory)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_clip(folder)


@pytest.fixture(scope="module")
def rooms(comfy):
    """The node module, and ComfyUI's own modules with our two nodes registered."""
    import execution
    import folder_paths
    import nodes as comfy_nodes
    from comfy_api.latest import io

    from comfyui_dno.nodes import reward_nodes

    caught: list[object] = []

    class Sink(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="DNO_TestSink",
                inputs=[io.Custom("DNO_REWARD").Input("reward")],
                is_output_node=True,
            )

        @classmethod
        def execute(cls, reward):
            caught.append(reward)
            return io.NodeOutput()

    class Text(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="DNO_TestText",
                inputs=[io.String.Input("text")],
                outputs=[io.String.Output()],
            )

        @classmethod
        def execute(cls, text):
            return io.NodeOutput(text)

    ours = {
        "DNO_RewardLoader": reward_nodes.RewardLoader,
        "DNO_RewardMix": reward_nodes.RewardMix,
        "DNO_TestSink": Sink,
        "DNO_TestText": Text,
    }
    for node in ours.values():
        node.GET_SCHEMA()
    before = dict(comfy_nodes.NODE_CLASS_MAPPINGS)
    comfy_nodes.NODE_CLASS_MAPPINGS.update(ours)
    yield SimpleNamespace(
        nodes=reward_nodes, execution=execution, folder_paths=folder_paths, caught=caught
    )
    comfy_nodes.NODE_CLASS_MAPPINGS.clear()
    comfy_nodes.NODE_CLASS_MAPPINGS.update(before)


class Server:
    """What the executor asks of a server."""

    client_id = None
    last_node_id = None

    def __init__(self):
        self.events = []

    def send_sync(self, event, data, sid=None):
        self.events.append((event, data))


@pytest.fixture
def run(rooms):
    """Validate and execute an API prompt; return what reached the sink, or the errors."""

    def execute(prompt):
        rooms.caught.clear()
        valid, error, outputs, node_errors = asyncio.run(
            rooms.execution.validate_prompt("test", prompt, None)
        )
        if not valid:
            return SimpleNamespace(terms=None, refused=node_errors or error, error=None)
        server = Server()
        executor = rooms.execution.PromptExecutor(
            server, cache_args={"ram": 0.0, "ram_inactive": 0.0, "lru": 0}
        )
        executor.execute(prompt, "test", {}, outputs)
        errors = [data for event, data in executor.status_messages if event == "execution_error"]
        return SimpleNamespace(
            terms=rooms.caught[0] if rooms.caught else None,
            refused=None,
            error=errors[0]["exception_message"] if errors else None,
        )

    return execute


def loader(reward, **inputs):
    values = {"reward": reward, "weight": 1.0, "goal": "maximize", "target": 0.0}
    values |= {"watch_only": False} | {k.replace("__", "."): v for k, v in inputs.items()}
    return {"class_type": "DNO_RewardLoader", "inputs": values}


def sink(link):
    return {"class_type": "DNO_TestSink", "inputs": {"reward": link}}


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
    for node in (rooms.nodes.RewardLoader, rooms.nodes.RewardMix):
        for name, _, options in all_inputs(node.INPUT_TYPES()):
            assert len(options.get("tooltip", "")) > 25, f"{node.__name__}.{name}"


def test_the_loader_offers_every_reward_with_its_own_inputs(rooms):
    from comfyui_dno.rewards import REGISTRY

    kind, options = rooms.nodes.RewardLoader.INPUT_TYPES()["required"]["reward"]
    assert kind == "COMFY_DYNAMICCOMBO_V3"
    assert [choice["key"] for choice in options["options"]] == list(REGISTRY)
    by_name = {choice["key"]: choice["inputs"] for choice in options["options"]}
    assert by_name["colour"]["required"]["colour"][0] == "COLOR"
    prompt = by_name["clip_score"]["optional"]["prompt"]
    assert prompt[0] == "STRING" and prompt[1]["forceInput"]
    model = by_name["clip_score"]["required"]["model"][1]
    assert model["options"][:2] == ["demo reward", "demo judge (held out)"]


def test_rare_inputs_are_advanced(rooms):
    required = rooms.nodes.RewardLoader.INPUT_TYPES()["required"]
    advanced = {name for name, (_, options) in required.items() if options.get("advanced")}
    assert advanced == {"goal", "target", "watch_only"}
    assert list(required) == ["reward", "weight", "goal", "target", "watch_only"]


def test_the_schema_is_json(rooms):
    import json

    for node in (rooms.nodes.RewardLoader, rooms.nodes.RewardMix):
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
    assert sorted(rooms.nodes.model_folders()) == ["maker/their-clip", "my-clip"]
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
    before = rooms.nodes.RewardLoader.fingerprint_inputs(reward=chosen)
    assert before == rooms.nodes.RewardLoader.fingerprint_inputs(reward=chosen)
    (models / "my-clip" / "config.json").touch()
    assert before != rooms.nodes.RewardLoader.fingerprint_inputs(reward=chosen)


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
