"""DNO Sampler as ComfyUI sees it: its inputs, a run through the executor, what it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from comfyui_dno import rewards
from comfyui_dno.dno_core import Term, Trajectory
from comfyui_dno.tests.bridge import tiny

NODE_ID = "12:7"
"""As inside a subgraph."""

WIDGETS = [
    "seed",
    "steps",
    "cfg",
    "scheduler",
    "denoise",
    "iterations",
    "learning_rate",
    "eta",
    "optimizer",
    "gradient_clip",
    "check_gradient",
    "time_limit",
    "memory_mb",
    "warmup",
    "decay",
    "screen_seeds",
    "changes",
    "preset",
    "gradient_mode",
    "gradient_steps",
    "optimize_steps",
    "loop_decoder",
    "graph_memory",
    "finish_iterations",
    "late_iterations",
]
"""In this order saved workflows store their values: new widgets go to the end, none may move."""

SUMMARY = {
    "reward",
    "reward_before",
    "reward_after",
    "scores",
    "iterations",
    "best_iteration",
    "seconds",
    "p_z_before",
    "p_z_after",
    "p_z_percentile_before",
    "p_z_percentile_after",
    "stop_reason",
    "warnings",
}


@pytest.fixture(scope="module")
def sampler(comfy: object) -> Any:
    from comfyui_dno.nodes import sampler_node

    sampler_node.Sampler.GET_SCHEMA()
    return sampler_node.Sampler


def schema_inputs(sampler: Any) -> dict[str, Any]:
    info = sampler.INPUT_TYPES()
    return {**info["required"], **info.get("optional", {})}


def test_the_inputs_come_in_ksamplers_order(sampler: Any) -> None:
    import nodes

    theirs = list(nodes.KSampler.INPUT_TYPES()["required"])
    ours = list(sampler.INPUT_TYPES()["required"])
    shared = [name for name in theirs if name in ours]
    assert set(theirs) - set(shared) == {"sampler_name"}
    assert ours[: len(shared)] == shared


def test_shared_inputs_take_ksamplers_values(sampler: Any) -> None:
    import nodes

    theirs = nodes.KSampler.INPUT_TYPES()["required"]
    ours = sampler.INPUT_TYPES()["required"]
    for name in ("seed", "denoise", "cfg"):
        for key in ("min", "max"):
            assert ours[name][1][key] == theirs[name][1][key]
    assert ours["scheduler"][1]["options"] == theirs["scheduler"][0]
    assert ours["seed"][1]["control_after_generate"]


def test_widgets_are_only_ever_appended(sampler: Any) -> None:
    sockets = {
        "MODEL",
        "CONDITIONING",
        "LATENT",
        "VAE",
        "DNO_REWARD",
        "DNO_REGULARIZER",
        "DNO_STOP",
        "DNO_TRAJECTORY",
        "DNO_GRADIENT_ESTIMATOR",
    }
    inputs = schema_inputs(sampler)
    widgets = [name for name, spec in inputs.items() if spec[0] not in sockets]
    assert widgets[: len(WIDGETS)] == WIDGETS


def test_every_input_and_output_has_a_tooltip_that_helps(sampler: Any) -> None:
    for name, (_, options) in schema_inputs(sampler).items():
        tooltip = options.get("tooltip", "")
        assert len(tooltip) > 20, name
        assert tooltip.endswith("."), name
    schema = sampler.GET_SCHEMA()
    assert all(output.tooltip for output in schema.outputs)
    assert [output.display_name for output in schema.outputs] == ["latent", "image", "trajectory"]
    assert schema.display_name == "DNO Sampler"
    assert schema.node_id == "DNO_Sampler"
    assert "ksampler" in schema.search_aliases


def test_rare_inputs_are_advanced(sampler: Any) -> None:
    inputs = schema_inputs(sampler)
    advanced = {name for name, (_, options) in inputs.items() if options.get("advanced")}
    assert advanced >= {"optimizer", "gradient_clip", "check_gradient", "time_limit", "memory_mb"}
    assert advanced.isdisjoint({"iterations", "learning_rate", "reward", "vae", "seed", "steps"})


def test_defaults_of_the_widgets_are_those_of_a_request(sampler: Any) -> None:
    from comfyui_dno.nodes.request import Request

    inputs = schema_inputs(sampler)
    for name, field in Request.__dataclass_fields__.items():
        if name in inputs and isinstance(field.default, (int, float, str)):
            assert inputs[name][1]["default"] == field.default, name


class Server:
    """What the executor and the pack ask of ComfyUI's server."""

    def __init__(self) -> None:
        self.client_id: str | None = "browser-1"
        self.last_node_id: str | None = None
        self.last_prompt_id = "prompt-1"
        self.events: list[tuple[Any, Any, Any]] = []
        self.texts: list[tuple[str, str, str | None]] = []

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.events.append((event, data, sid))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.texts.append((text, node_id, sid))

    def named(self, event: str) -> list[Any]:
        return [data for name, data, _ in self.events if name == event]


@pytest.fixture
def graph(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A graph of three nodes run by ComfyUI's executor: test models, DNO Sampler, a sink."""
    import comfy.model_management
    import comfy.utils
    import execution
    import nodes
    from comfy_api.latest import io

    from comfyui_dno.nodes import stop_node
    from comfyui_dno.nodes.comfy_bridge import progress
    from comfyui_dno.nodes.types import REWARD, TRAJECTORY

    found = SimpleNamespace(server=Server(), bars=[], outputs=None, models={}, terms=None)
    found.terms = (Term(rewards.create("brightness")),)

    class Source(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            kinds = [io.Model, io.Conditioning, io.Conditioning, io.Latent, io.Vae]
            outputs = [*(kind.Output() for kind in kinds), REWARD.Output()]
            return io.Schema(node_id="DNO_TestSource", inputs=[], outputs=outputs)

        @classmethod
        def execute(cls) -> io.NodeOutput:
            dtype = torch.float32
            model = found.models.get("wrap", lambda model: model)(tiny.sd_model(dtype))
            return io.NodeOutput(
                model,
                tiny.conditioning(1, dtype),
                tiny.conditioning(2, dtype),
                {"samples": torch.zeros(2, *tiny.LATENT)},
                tiny.vae(dtype),
                found.terms,
            )

    class Sink(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            inputs = [io.Latent.Input("latent"), io.Image.Input("image")]
            return io.Schema(
                node_id="DNO_TestSamplerSink",
                inputs=[*inputs, TRAJECTORY.Input("trajectory")],
                is_output_node=True,
            )

        @classmethod
        def execute(cls, latent: Any, image: Any, trajectory: Any) -> io.NodeOutput:
            found.outputs = SimpleNamespace(latent=latent, image=image, trajectory=trajectory)
            return io.NodeOutput()

    ours = {
        "DNO_TestSource": Source,
        "DNO_TestSamplerSink": Sink,
        "DNO_Sampler": sampler,
        "DNO_StopRules": stop_node.StopRules,
    }
    for name, node in ours.items():
        node.GET_SCHEMA()
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    monkeypatch.setattr(progress, "prompt_server", lambda: found.server)
    from comfyui_dno.nodes import recovery

    monkeypatch.setattr(recovery, "prompt_server", lambda: found.server)
    hook = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: found.bars.append(
            (value, total, preview, node_id)
        )
    )

    def run(more: dict[str, Any] | None = None, **widgets: Any) -> Any:
        links = ("model", "positive", "negative", "latent_image", "vae", "reward")
        values = {name: spec[1].get("default") for name, spec in schema_inputs(sampler).items()}
        values = {name: value for name, value in values.items() if value is not None}
        values |= {"seed": 5, "steps": 3, "cfg": 3.0, "scheduler": "normal", "iterations": 2}
        values |= {"learning_rate": 0.02, **widgets}
        values |= {name: ["1", index] for index, name in enumerate(links)}
        prompt = {
            **(more or {}),
            "1": {"class_type": "DNO_TestSource", "inputs": {}},
            NODE_ID: {"class_type": "DNO_Sampler", "inputs": values},
            "3": {
                "class_type": "DNO_TestSamplerSink",
                "inputs": {
                    name: [NODE_ID, index]
                    for index, name in enumerate(("latent", "image", "trajectory"))
                },
            },
        }
        valid, error, outputs, node_errors = asyncio.run(
            execution.validate_prompt("test", prompt, None)
        )
        assert valid, (error, node_errors)
        executor = execution.PromptExecutor(
            found.server, cache_args={"ram": 0.0, "ram_inactive": 0.0, "lru": 0}
        )
        executor.execute(prompt, "prompt-1", {"client_id": "browser-1"}, outputs)
        found.status = {event: data for event, data in executor.status_messages}
        return found

    found.run = run
    yield found
    comfy.utils.set_progress_bar_global_hook(hook)
    comfy.model_management.interrupt_current_processing(False)
    comfy.model_management.unload_all_models()


def ui_of(server: Server) -> dict[str, Any]:
    (data,) = [data for data in server.named("executed") if data["node"] == NODE_ID]
    return data["output"]


def test_a_run_through_the_executor_gives_latent_image_and_trajectory(graph: Any) -> None:
    found = graph.run()
    assert "execution_success" in found.status, found.status
    out = found.outputs
    assert out.latent["samples"].shape == (2, 4, 8, 8)
    assert out.image.shape == (2, 16, 16, 3)
    assert isinstance(out.trajectory, Trajectory)
    assert len(out.trajectory.records) == 3
    assert out.trajectory.meta["seed"] == 5


def test_the_node_shows_its_pictures_and_its_numbers(graph: Any) -> None:
    found = graph.run()
    shown = ui_of(found.server)
    assert len(shown["images"]) == 2
    (numbers,) = shown["dno"]
    assert set(numbers) >= SUMMARY
    assert numbers["iterations"] == 2
    assert numbers["reward"] == "brightness"
    trajectory = found.outputs.trajectory
    first = sum(trajectory.records[0].scores[0]) / 2
    assert numbers["reward_before"] == pytest.approx(first)
    best = [trajectory.records[i].scores[0][b] for b, i in enumerate(trajectory.best)]
    assert numbers["reward_after"] == pytest.approx(sum(best) / 2)
    assert numbers["reward_after"] >= numbers["reward_before"]
    assert 0 < numbers["p_z_after"] <= 1
    assert 0 <= numbers["p_z_percentile_after"] <= 100
    assert numbers["best_iteration"] == list(trajectory.best)
    json.dumps(shown)


def test_with_0_iterations_the_numbers_are_there_too(graph: Any) -> None:
    (numbers,) = ui_of(graph.run(iterations=0).server)["dno"]
    assert set(numbers) >= SUMMARY
    assert numbers["reward_before"] == numbers["reward_after"]
    assert numbers["iterations"] == 0


def test_text_progress_and_previews_reach_the_node_that_runs(graph: Any) -> None:
    found = graph.run()
    texts = [text for text, node, sid in found.server.texts]
    assert {node for _, node, _ in found.server.texts} == {NODE_ID}
    assert {sid for _, _, sid in found.server.texts} == {"browser-1"}
    for index in range(3):
        (line,) = [text for text in texts if text.startswith(f"iteration {index}/2")]
        assert "brightness" in line
        assert "P(z) percentile" in line
        assert "best:" in line
    assert {node for *_, node in found.bars} == {NODE_ID}
    previews = [preview for _, _, preview, _ in found.bars if preview is not None]
    assert len(previews) == 3, "the scored picture of every iteration, and no other"
    kind, picture, size = previews[0]
    assert kind == "JPEG"
    assert picture.size[0] == 2 * picture.size[1], "two pictures side by side"
    values = [value for value, *_ in found.bars]
    assert values == sorted(values)
    assert all(value <= total for value, total, *_ in found.bars)


def test_a_forecast_is_shown_before_the_first_iteration(graph: Any) -> None:
    texts = [text for text, *_ in graph.run().server.texts]
    first = next(i for i, text in enumerate(texts) if text.startswith("iteration 0"))
    assert first > 0
    assert any(" s" in text for text in texts[:first])


def test_the_preview_is_the_picture_that_was_scored(graph: Any) -> None:
    import numpy as np
    from PIL import Image

    found = graph.run()
    previews = [preview for _, _, preview, _ in found.bars if preview is not None]
    for index, (_, picture, _) in enumerate(previews):
        strip = np.concatenate(list(found.outputs.trajectory.images[index].numpy()), axis=1)
        shrunk = picture.resize(strip.shape[1::-1], Image.Resampling.NEAREST)
        assert (np.asarray(shrunk) == strip).all()


def interrupting(at: int) -> Callable[[Any], Any]:
    from comfyui_dno.tests.bridge.sabotage import Calls, interrupt

    return lambda model: Calls(model, at, interrupt).model


def test_after_a_cancel_the_best_is_shown_on_the_node(graph: Any) -> None:
    from pathlib import Path

    import folder_paths

    graph.models["wrap"] = interrupting(4)
    found = graph.run(check_gradient=False)
    assert "execution_interrupted" in found.status
    shown = ui_of(found.server)["images"]
    assert len(shown) == 2
    for image in shown:
        assert image["type"] == "temp"
        assert (Path(folder_paths.get_temp_directory()) / image["filename"]).is_file()
    assert "is kept on this node" in found.server.texts[-1][0]


def test_an_error_reaches_the_node_in_two_sentences(graph: Any) -> None:
    graph.terms = (Term(rewards.create("brightness"), watch=True),)
    found = graph.run()
    message = found.status["execution_error"]["exception_message"].strip()
    assert message.startswith("Every reward is only watched")
    assert message.count(". ") == 1
    assert found.status["execution_error"]["node_id"] == NODE_ID


def test_widgets_that_came_later_need_not_be_in_an_api_workflow(sampler: Any) -> None:
    assert {"warmup", "decay", "screen_seeds"} <= set(sampler.INPUT_TYPES()["optional"])


def test_a_stop_rule_ends_the_run_and_its_reason_is_told(graph: Any) -> None:
    rules = {"untypical": True, "watched_falls": True, "drop": 1.0, "plateau": 0}
    rules |= {"target": True, "target_score": -1.0, "min_gain": 0.05, "patience": 1}
    more = {"9": {"class_type": "DNO_StopRules", "inputs": rules}}
    found = graph.run(more, stop=["9", 0], iterations=5)
    assert "execution_success" in found.status, found.status
    assert len(found.outputs.trajectory.records) == 1
    (numbers,) = ui_of(found.server)["dno"]
    assert numbers["stop_reason"] == "'brightness' has reached its target of -1"
    last = found.server.texts[-1][0]
    assert last.endswith("Ended: 'brightness' has reached its target of -1.")


def test_the_reason_is_told_too_when_all_iterations_are_done(graph: Any) -> None:
    assert "\nEnded: all 2 iterations done." in graph.run().server.texts[-1][0]


def test_screening_shows_its_seeds_moves_the_bar_and_tells_what_it_chose(graph: Any) -> None:
    found = graph.run(screen_seeds=4, check_gradient=False)
    texts = [text for text, *_ in found.server.texts]
    told = [text for text in texts if text.startswith("screening")]
    assert told == [f"screening seed {i}/4" for i in (1, 2, 3, 4)]
    assert texts.index(told[-1]) < next(i for i, t in enumerate(texts) if t.startswith("iteration"))
    assert len([preview for _, _, preview, _ in found.bars if preview is not None]) == 4 + 3
    value, total, *_ = found.bars[-1]
    calls = 3
    assert value == total == (4 + 3) * calls + 2 * 3 * calls
    (numbers,) = ui_of(found.server)["dno"]
    assert numbers["screened_seeds"] == found.outputs.trajectory.meta["screened_seeds"]
    assert set(numbers["screened_seeds"]) <= {5, 6, 7, 8}
    first, second = numbers["screened_seeds"]
    assert f"Started from seed {first}, {second}." in texts[-1]
    assert "screened_seeds" not in graph.run().outputs.trajectory.meta


def test_the_learning_rate_follows_its_schedule(graph: Any) -> None:
    trajectory = graph.run(iterations=4, warmup=1, decay="cosine").outputs.trajectory
    rates = [record.settings.learning_rate for record in trajectory.records]
    assert rates == pytest.approx([0.01, 0.02, 0.015, 0.005, 0.0])


def test_a_check_without_a_verdict_is_told_once(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_dno.dno_core import check

    monkeypatch.setattr(check, "verify_gradient", lambda *_: 0.9)
    texts = [text for text, *_ in graph.run().server.texts]
    told = [text for text in texts if "could not be checked" in text]
    assert len(told) == 1
    assert told[0].startswith("iteration 1/2")


def test_unconnected_the_papers_regularizer_runs_at_full_strength(graph: Any) -> None:
    trajectory = graph.run().outputs.trajectory
    assert {record.settings.gamma for record in trajectory.records} == {1.0}
    penalties = [record.penalty for record in trajectory.records[1:]]
    assert all(value > 0 for row in penalties for value in row)
