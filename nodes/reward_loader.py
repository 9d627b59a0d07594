"""Reward Loader: one reward, with the model, prompt, reference and mask that it scores with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
from comfy_api.latest import io

from ..dno_core.objective import Goal, Term
from ..rewards import RewardError, Spec, specs
from ..rewards.heartbeat import beating
from ..rewards.region import limited
from .comfy_bridge.clip_vision import clip_vision_tower
from .comfy_bridge.reward_precision import reward_precision
from .comfy_bridge.transfers import TransferProgress
from .reward_context import context_of
from .reward_models import located, model_path
from .reward_widgets import option
from .types import CATEGORY, REWARD

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
GOALS: tuple[Goal, ...] = ("maximize", "minimize", "target")


class RewardLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        known = specs().values()
        choices = "\n".join(f"- {spec.name}: {spec.summary}" for spec in known)
        return io.Schema(
            node_id="DNO_RewardLoader",
            display_name="Reward Loader",
            category=CATEGORY,
            description="What DNO Sampler should make more of. Combine several with Reward Mix.",
            search_aliases=[
                "dno",
                "score",
                "aesthetic",
                "clip score",
                "pickscore",
                "hps",
                "imagereward",
                "lpips",
                "brightness",
                "objective",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.DynamicCombo.Input(
                    "reward",
                    options=[option(spec) for spec in known],
                    tooltip=f"What is scored:\n{choices}",
                ),
                *_term_inputs(),
                *_later_inputs(),
            ],
            outputs=[REWARD.Output("reward", display_name="reward")],
        )

    @classmethod
    def fingerprint_inputs(cls, reward: dict[str, Any] | None = None, **_: Any) -> list[Any]:
        """Changes when the chosen model's files change."""
        spec = specs().get((reward or {}).get("reward", ""))
        if spec is None or reward is None:
            return []
        chosen = [
            located(item, str(reward[item.name]))
            for item in spec.inputs
            if item.kind == "model" and reward.get(item.name)
        ]
        return [stamp for path in chosen if path is not None for stamp in _stamps(path)]

    @classmethod
    def execute(
        cls,
        reward: dict[str, Any] | None = None,
        weight: float = 1.0,
        goal: Goal = "maximize",
        target: float = 0.0,
        watch_only: bool = False,
        mask: Any = None,
        precision: str = "auto",
    ) -> io.NodeOutput:
        known = specs()
        if not reward or reward.get("reward") not in known:  # ComfyUI lets unknown choices pass
            raise RewardError(
                "Reward Loader: this workflow asks for a reward that is not installed. "
                f"Choose one of: {', '.join(known)}."
            )
        spec = known[reward["reward"]]
        context = context_of(spec, reward.get("prompt"), reward.get("reference"), mask)
        with beating(comfy.model_management.throw_exception_if_processing_interrupted):
            loaded = spec.create(**_values(spec, reward, precision, cls.hidden.unique_id))
        if context.masks is not None:
            loaded = limited(loaded)
        return io.NodeOutput((Term(loaded, weight, goal, target, watch_only, context),))


def _values(
    spec: Spec, given: dict[str, Any], precision: str, node_id: str | None
) -> dict[str, Any]:
    """The inputs as `create` takes them: paths, precisions and towers in place of choices.

    A connected CLIP_VISION stands in for the input named `model`, which is then not looked for.
    """
    has_tower = any(
        item.kind == "clip_vision" and given.get(item.name) is not None for item in spec.inputs
    )
    progress = TransferProgress(node_id)
    values: dict[str, Any] = {}
    for item in spec.inputs:
        value = given.get(item.name, item.default)
        if item.kind == "clip_vision":
            value = None if value is None else clip_vision_tower(value)
        elif item.kind == "precision":
            value = reward_precision(precision)
        elif item.kind == "model" and not (has_tower and item.name == "model"):
            value = model_path(item, str(value), spec.label, progress.report)
        values[item.name] = value
    return values


def _stamps(path: Path) -> list[int]:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    states = [file.stat() for file in files]
    return [number for state in states for number in (state.st_mtime_ns, state.st_size)]


def _term_inputs() -> list[Any]:
    return [
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
    ]


def _later_inputs() -> list[Any]:
    """What came after the first release: last and optional, so saved workflows stay valid."""
    return [
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Limits the reward to the white part of the mask; grey counts partly. The rest "
            "of the picture is free to change, and neither helps nor hurts. Unconnected: the whole "
            "picture. One mask for all pictures, or one for each.",
        ),
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default=PRECISIONS[0],
            optional=True,
            advanced=True,
            tooltip="Number format of the reward's network. auto takes what ComfyUI takes for text "
            "encoders: half precision on a GPU, float32 on a CPU. float32 doubles the memory and "
            "is exact; lower it to float16 or bfloat16 if memory is short. Rewards without a "
            "network ignore it.",
        ),
    ]
