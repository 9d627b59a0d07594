"""A graph of our reward nodes, run by ComfyUI's own executor in this process."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def rooms(comfy):
    """The node module, and ComfyUI's own modules with our two nodes registered."""
    import execution
    import folder_paths
    import nodes as comfy_nodes
    from comfy_api.latest import io

    from comfyui_dno.nodes import reward_loader, reward_mix, reward_models

    caught: list[object] = []
    values: dict[str, object] = {}

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

    class Value(io.ComfyNode):
        """Gives what a test has put under a name: an IMAGE, a MASK, a CLIP_VISION."""

        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="DNO_TestValue",
                inputs=[io.String.Input("key")],
                outputs=[io.AnyType.Output()],
            )

        @classmethod
        def execute(cls, key):
            return io.NodeOutput(values[key])

    ours = {
        "DNO_RewardLoader": reward_loader.RewardLoader,
        "DNO_RewardMix": reward_mix.RewardMix,
        "DNO_TestSink": Sink,
        "DNO_TestText": Text,
        "DNO_TestValue": Value,
    }
    for node in ours.values():
        node.GET_SCHEMA()
    before = dict(comfy_nodes.NODE_CLASS_MAPPINGS)
    comfy_nodes.NODE_CLASS_MAPPINGS.update(ours)
    yield SimpleNamespace(
        RewardLoader=reward_loader.RewardLoader,
        RewardMix=reward_mix.RewardMix,
        models=reward_models,
        execution=execution,
        folder_paths=folder_paths,
        caught=caught,
        values=values,
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
