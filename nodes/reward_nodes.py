"""Reward Loader and Reward Mix: what DNO Sampler climbs, as a tuple of terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..dno_core.objective import Goal, Term
from ..rewards import REGISTRY, Context, Input, RewardError, Spec, create
from .types import CATEGORY, REWARD

FOLDER_TYPE = "dno_rewards"
GOALS: tuple[Goal, ...] = ("maximize", "minimize", "target")


def model_folders() -> dict[str, Path]:
    """The models in models/dno_rewards/: every folder with a config.json, by relative name."""
    if FOLDER_TYPE not in folder_paths.folder_names_and_paths:
        return {}
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER_TYPE)):
        for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
            found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def widget(item: Input) -> io.Input:
    """The widget for one input of a reward."""
    shared: dict[str, Any] = {
        "default": item.default,
        "tooltip": item.tooltip,
        "advanced": item.advanced or None,
    }
    numbers: dict[str, Any] = {"min": item.min, "max": item.max, "step": item.step}
    if item.kind == "float":
        return io.Float.Input(item.name, **shared, **numbers)
    if item.kind == "int":
        return io.Int.Input(item.name, **shared, **numbers)
    if item.kind == "colour":
        return io.Color.Input(item.name, **shared)
    if item.kind == "string":
        return io.String.Input(item.name, **shared)
    folders = model_folders() if item.kind == "model" else {}
    return io.Combo.Input(item.name, options=[*item.choices, *folders], **shared)


def option(spec: Spec) -> io.DynamicCombo.Option:
    """A reward with its own inputs, as one choice of Reward Loader."""
    inputs = [widget(item) for item in spec.inputs]
    if spec.prompt:
        inputs.insert(
            0, io.String.Input("prompt", optional=True, force_input=True, tooltip=spec.prompt)
        )
    return io.DynamicCombo.Option(spec.name, inputs)


def prompt_context(spec: Spec, prompt: str | None) -> Context:
    """The prompt as a reward's context; raises RewardError where one is needed and missing."""
    if not spec.prompt:
        return Context()
    if not prompt or not prompt.strip():
        raise RewardError(
            f"Reward Loader: {spec.label} needs to know what the picture should show. "
            "Connect a text to its prompt socket."
        )
    return Context(prompts=(prompt,))


class RewardLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = "\n".join(f"- {spec.name}: {spec.summary}" for spec in REGISTRY.values())
        return io.Schema(
            node_id="DNO_RewardLoader",
            display_name="Reward Loader",
            category=CATEGORY,
            description="What DNO Sampler should make more of. Combine several with Reward Mix.",
            search_aliases=["dno", "score", "aesthetic", "clip score", "brightness", "objective"],
            inputs=[
                io.DynamicCombo.Input(
                    "reward",
                    options=[option(spec) for spec in REGISTRY.values()],
                    tooltip=f"What is scored:\n{choices}",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    round=False,
                    tooltip="How much this reward counts beside others and beside the probability "
                    "regularizer. Every reward is measured in units of its own natural spread, so "
                    "1 means the same for all. Raise it when this reward hardly moves, lower it "
                    "when it takes over. Usually 0.2 to 5.",
                ),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default="maximize",
                    advanced=True,
                    tooltip="maximize: more of it. minimize: less of it. target: as near as "
                    "possible to the target below.",
                ),
                io.Float.Input(
                    "target",
                    default=0.0,
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    round=False,
                    advanced=True,
                    tooltip="The score to hit when the goal is target, in the reward's own unit "
                    "(Reward Curve shows it). Not used otherwise.",
                ),
                io.Boolean.Input(
                    "watch_only",
                    default=False,
                    advanced=True,
                    tooltip="Score every iteration with this reward and show its curve, but do "
                    "not optimize it. A watched reward that falls while the optimized one rises "
                    "is the sign that the picture is gaming its score.",
                ),
            ],
            outputs=[REWARD.Output("reward", display_name="reward")],
        )

    @classmethod
    def fingerprint_inputs(cls, reward: dict[str, Any] | None = None, **_: Any) -> list[int]:
        """Changes when the chosen model's files change."""
        folders = model_folders()
        chosen = [folders[value] for value in (reward or {}).values() if str(value) in folders]
        return [file.stat().st_mtime_ns for folder in chosen for file in sorted(folder.iterdir())]

    @classmethod
    def execute(
        cls,
        reward: dict[str, Any] | None = None,
        weight: float = 1.0,
        goal: Goal = "maximize",
        target: float = 0.0,
        watch_only: bool = False,
    ) -> io.NodeOutput:
        if not reward or reward.get("reward") not in REGISTRY:  # ComfyUI lets unknown choices pass
            raise RewardError(
                "Reward Loader: this workflow asks for a reward that is not installed. "
                f"Choose one of: {', '.join(REGISTRY)}."
            )
        spec = REGISTRY[reward["reward"]]
        context = prompt_context(spec, reward.get("prompt"))
        folders = model_folders()
        inputs = {item.name: reward[item.name] for item in spec.inputs if item.name in reward}
        for item in spec.inputs:
            if item.kind == "model" and inputs.get(item.name) in folders:
                inputs[item.name] = str(folders[inputs[item.name]])
        term = Term(create(spec.name, **inputs), weight, goal, target, watch_only, context)
        return io.NodeOutput((term,))


class RewardMix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_RewardMix",
            display_name="Reward Mix",
            category=CATEGORY,
            description="Several rewards at once. Each keeps the weight and goal of its own Reward "
            "Loader; DNO Sampler climbs their sum.",
            search_aliases=["dno", "combine rewards", "weighted rewards", "multi objective"],
            inputs=[
                io.Autogrow.Input(
                    "rewards",
                    template=io.Autogrow.TemplatePrefix(
                        input=REWARD.Input(
                            "reward",
                            tooltip="A Reward Loader, or another Reward Mix. A new socket appears "
                            "when this one is used. Two to four rewards are usual.",
                        ),
                        prefix="reward_",
                        min=1,
                        max=20,
                    ),
                    tooltip="The rewards to combine, in any order.",
                )
            ],
            outputs=[REWARD.Output("reward", display_name="reward")],
        )

    @classmethod
    def execute(cls, rewards: dict[str, tuple[Term, ...] | None]) -> io.NodeOutput:
        terms = tuple(term for mix in rewards.values() for term in mix or ())
        return io.NodeOutput(terms)
