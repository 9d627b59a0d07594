"""What the workflows on checkpoints have in common: their columns, and words of their notes."""

from __future__ import annotations

from typing import Any

from ...rewards.files.source import Source
from .parts import AMBER, BLUE, GREEN, SAMPLER_SIZE, Model, Node, curve, group, node

HUB = "https://huggingface.co"
SAMPLED = {
    "model": (1, "MODEL"),
    "positive": (3, "CONDITIONING"),
    "negative": (4, "CONDITIONING"),
    "latent_image": (5, "LATENT"),
}
PROMPT = {"reward.prompt": (2, "STRING")}
REWARDS_X, MIX_X, RUN_X, RESULTS_X = 740, 1140, 1500, 2220
LOADER_SIZE = (340, 200)


def reward_file(source: Source) -> Model:
    """A reward's model of one file, as properties.models has it."""
    return {"name": source.name, "url": source.files[0].url, "directory": "dno_rewards"}


def checkpoint(model: Model, prompt: str, negative: str | None = "") -> list[Node]:
    """Nodes 1 to 4: the checkpoint, the prompt as text and as conditioning. No negative: None."""
    clip = {"clip": (1, "CLIP")}
    nodes = [
        node(1, "CheckpointLoaderSimple", (20, 76), (320, 120), "", {}, [model],
             ckpt_name=model["name"]),
        node(2, "PrimitiveStringMultiline", (20, 250), (320, 120), "Prompt", value=prompt),
        node(3, "CLIPTextEncode", (380, 76), (300, 90), "Positive",
             {**clip, "text": (2, "STRING")}),
    ]  # fmt: skip
    if negative is not None:
        nodes.append(
            node(4, "CLIPTextEncode", (380, 220), (300, 120), "Negative", clip, text=negative)
        )
    return nodes


def empty_latent(y: int, side: int) -> Node:
    """Node 5."""
    return node(5, "EmptyLatentImage", (380, y), (300, 110), width=side, height=side, batch_size=1)


def note(text: str, y: int, height: int) -> Node:
    """Node 19. No code spans: Nodes 2.0 shows them blue on blue."""
    return node(19, "MarkdownNote", (20, y), (660, height), "Read me", text=text)


def mix(*members: int) -> Node:
    """Node 9."""
    inputs = {f"rewards.reward_{i}": (number, "reward") for i, number in enumerate(members)}
    return node(9, "DNO_RewardMix", (MIX_X, 76), (300, 110), "", inputs)


def run(kind: str, inputs: dict[str, tuple[int, str]], **widgets: Any) -> list[Node]:
    """Nodes 11 and 12: a DNO sampler, and Pick Iteration at the start of its run."""
    wired = {**inputs, "vae": (1, "VAE")}
    picked = {"trajectory": (11, "trajectory")}
    return [
        node(11, kind, (RUN_X, 76), SAMPLER_SIZE, "", wired, **widgets),
        node(12, "DNO_PickIteration", (RUN_X + 380, 76), (280, 330), "Pick Iteration: the start",
             picked, index=0),
    ]  # fmt: skip


def results() -> list[Node]:
    """Nodes 13 to 16: before, after and the curve, saved."""
    before, after = {"images": (12, "image")}, {"images": (11, "image")}
    size = (420, 480)
    return [
        node(13, "SaveImage", (RESULTS_X, 76), size, "Save: before", before,
             filename_prefix="dno/before"),
        node(14, "SaveImage", (RESULTS_X + 460, 76), size, "Save: after", after,
             filename_prefix="dno/after"),
        *curve(15, 11, (RESULTS_X, 620)),
    ]  # fmt: skip


def groups(aims: tuple[int, ...], title: str = "What to climb, and what to watch") -> list[Any]:
    return [
        group(title, aims, AMBER),
        group("The run", (11, 12), GREEN),
        group("Before, after, and how it went", (13, 14, 15, 16), BLUE),
    ]


HOW_TO_GET = """Choose the *download* line of the same name in the widget, once: it is fetched \
when you press Run, and stays. Or put the file or folder there yourself."""
TIME = """An iteration takes as long as about four plain pictures, since the way back through all \
steps is computed as well; once the first is done, the sampler tells seconds an iteration and the \
time left. You can pause it, move the weights, or stop and keep the best at any time."""
