"""Reward Mix: several rewards as one."""

from __future__ import annotations

from comfy_api.latest import io

from ..dno_core.objective import Term
from .types import CATEGORY, REWARD


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
                            "when this one is used. Any number works, and mixes of mixes do; two "
                            "to four rewards are usual.",
                        ),
                        prefix="reward_",
                        min=1,
                        max=100,  # what ComfyUI allows; a mix in a mix holds more
                    ),
                    tooltip="The rewards to combine, any number in any order.",
                )
            ],
            outputs=[REWARD.Output("reward", display_name="reward")],
        )

    @classmethod
    def execute(cls, rewards: dict[str, tuple[Term, ...] | None]) -> io.NodeOutput:
        terms = tuple(term for mix in rewards.values() for term in mix or ())
        return io.NodeOutput(terms)
