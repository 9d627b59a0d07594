"""Probability Regularizer: how strongly DNO Sampler keeps the noise Gaussian."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dno_core.regularizers import NoRegularizer, PermutationRegularizer, Regularizer
from .types import CATEGORY, REGULARIZER

PERMUTATION = "permutation"
OFF = "off"
PAPER = PermutationRegularizer()
"""The paper's regularizer at its recommended strength, which DNO Sampler also takes by itself."""


def permutation_inputs() -> list[io.Input]:
    """The settings of the paper's regularizer."""
    return [
        io.Float.Input(
            "strength",
            default=PAPER.gamma,
            min=0.0,
            max=100.0,
            step=0.05,
            round=False,
            tooltip="Gamma: how much unlikely noise costs, against a reward that rises by its own "
            "natural spread (so it means the same for every reward of weight 1). Raise it when "
            "P(z) leaves the typical range or pictures burn out; lower it when the reward climbs "
            f"too little although P(z) stays typical. Recommended {PAPER.gamma:g}, usually 0.1 to "
            "10.",
        ),
        io.Int.Input(
            "k",
            default=PAPER.k,
            min=2,
            max=64,
            advanced=True,
            tooltip="Noise numbers looked at together: their means and their correlations are "
            "held to what Gaussian noise has. Higher sees correlations between more numbers at "
            "once, but its bounds are looser and let more pass. Lower it for tiny latents. "
            f"Recommended {PAPER.k}, usually 2 to 16.",
        ),
        io.Int.Input(
            "permutations",
            default=PAPER.permutations,
            min=0,
            max=1000,
            advanced=True,
            tooltip="Random orders in which the noise is tested in every iteration, besides its "
            "own. Raise it when structure creeps into the picture although P(z) looks fine; lower "
            f"it to save time at large sizes. Recommended {PAPER.permutations}, usually 20 to 200.",
        ),
    ]


class ProbabilityRegularizer(io.ComfyNode):
    """The choice of regularizer, as DNO_REGULARIZER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_ProbabilityRegularizer",
            display_name="Probability Regularizer",
            category=CATEGORY,
            description="Keeps the optimized noise Gaussian, so that the picture stays one that "
            "the model could have drawn. DNO Sampler uses the recommended one by itself: add this "
            "node to change its strength or to switch it off.",
            search_aliases=["dno", "gamma", "reward hacking", "regularization", "P(z)", "ood"],
            inputs=[
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(PERMUTATION, permutation_inputs()),
                        io.DynamicCombo.Option(OFF, []),
                    ],
                    tooltip="permutation: the paper's. It holds the noise, in many random orders, "
                    "to the mean and the correlations of Gaussian noise; it hardly pulls while "
                    "the noise is typical.\n"
                    "off: nothing holds the noise. The reward climbs faster at first, and then by "
                    "cheating: flat, burnt-out or garbled pictures with high scores. Only for "
                    "seeing that happen, or for very few iterations.",
                )
            ],
            outputs=[
                REGULARIZER.Output(
                    "regularizer",
                    display_name="regularizer",
                    tooltip="For the regularizer socket of DNO Sampler.",
                )
            ],
        )

    @classmethod
    def execute(cls, method: dict[str, Any]) -> io.NodeOutput:
        return io.NodeOutput(regularizer(**method))


def regularizer(
    method: str,
    strength: float = PAPER.gamma,
    k: int = PAPER.k,
    permutations: int = PAPER.permutations,
) -> Regularizer:
    """The core's regularizer for the node's widgets. Raises ValueError for an unknown method."""
    if method == OFF:
        return NoRegularizer()
    if method != PERMUTATION:  # ComfyUI lets unknown choices of a DynamicCombo pass
        raise ValueError(
            f"Probability Regularizer: the method '{method}' is unknown. "
            f"Choose {PERMUTATION} or {OFF}."
        )
    return PermutationRegularizer(gamma=strength, k=k, permutations=permutations)
