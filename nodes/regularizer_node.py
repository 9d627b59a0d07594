"""Probability Regularizer: how strongly DNO Sampler keeps the noise Gaussian."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dno_core.probability.arrangements import FAMILIES
from ..dno_core.probability.norms import NormRegularizer, SphereProjection
from ..dno_core.probability.regularizers import NoRegularizer, PermutationRegularizer, Regularizer
from ..dno_core.probability.spectral import TARGETS, SpectralWhitening
from .types import CATEGORY, REGULARIZER

PERMUTATION, OFF, NORM, SPHERE, SPECTRAL = "permutation", "off", "norm", "sphere", "spectral"
METHODS = (PERMUTATION, OFF, NORM, SPHERE, SPECTRAL)

PAPER = PermutationRegularizer()
"""The paper's regularizer at its recommended strength, which DNO Sampler also takes by itself."""
RENO, WHITENING = NormRegularizer(), SpectralWhitening()

METHOD_HELP = """permutation: the paper's. It holds the noise, in many random orders, to the mean \
and the correlations of Gaussian noise; it hardly pulls while the noise is typical.
off: nothing holds the noise. The reward climbs faster at first, and then by cheating: flat, \
burnt-out or garbled pictures with high scores. Only for seeing that happen, or for very few \
iterations.
norm: ReNO's. It holds only the size of the noise, and sees no pattern in it. Nearly free.
sphere: the size of the noise is set back after every step. As blind as norm, with no strength to \
choose.
spectral: every band of frequencies is held to the power that Gaussian noise has there. It sees \
blur, stripes and blotches. For latents with height and width."""


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
        io.Combo.Input(
            "family",
            options=list(FAMILIES),
            default=PAPER.family,
            optional=True,  # prompts saved before it was there have no value for it
            advanced=True,
            tooltip="structured: whole segments of the noise are permuted. It finds what uniform "
            "orders find and more, many times as fast, and is usually right.\n"
            "uniform: every number by itself, as published. To repeat the paper's runs.",
        ),
    ]


def norm_inputs() -> list[io.Input]:
    """The settings of ReNO's regularizer."""
    return [
        io.Float.Input(
            "strength",
            default=RENO.gamma,
            min=0.0,
            max=100.0,
            step=0.01,
            round=False,
            tooltip="Gamma: how much a wrong size of the noise costs, against a reward that rises "
            "by its own natural spread. Raise it when pictures burn out or wash out; lower it when "
            f"the reward climbs too little. ReNO's is {RENO.gamma:g}, usually 0.001 to 1.",
        )
    ]


def spectral_inputs() -> list[io.Input]:
    """The settings of spectral whitening."""
    return [
        io.Combo.Input(
            "target",
            options=list(TARGETS),
            default=WHITENING.target,
            tooltip="What is whitened in every iteration.\n"
            "step: the noise, after the step. It cannot drift off in any band. Usually this.\n"
            "gradient: the direction of the step, so that no band runs ahead of the others; the "
            "noise itself is free. Milder, and with large learning rates it does not hold.",
        ),
        io.Int.Input(
            "blocks",
            default=WHITENING.blocks,
            min=1,
            max=16,
            advanced=True,
            tooltip="Bands of frequencies, for height and for width. Raise it to catch narrow "
            "patterns; lower it when the reward climbs too little. Small latents get fewer by "
            f"themselves. Recommended {WHITENING.blocks}, usually 2 to 8.",
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
            search_aliases=[
                "dno",
                "gamma",
                "reward hacking",
                "regularization",
                "P(z)",
                "ood",
                "reno",
                "whitening",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(PERMUTATION, permutation_inputs()),
                        io.DynamicCombo.Option(OFF, []),
                        io.DynamicCombo.Option(NORM, norm_inputs()),
                        io.DynamicCombo.Option(SPHERE, []),
                        io.DynamicCombo.Option(SPECTRAL, spectral_inputs()),
                    ],
                    tooltip=METHOD_HELP,
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


def regularizer(method: str, **settings: Any) -> Regularizer:
    """The core's regularizer for the node's widgets. Raises ValueError for an unknown method."""
    if method == OFF:
        return NoRegularizer()
    if method == SPHERE:
        return SphereProjection()
    if method == SPECTRAL:
        return SpectralWhitening(**settings)
    if method not in METHODS:  # ComfyUI lets unknown choices of a DynamicCombo pass
        raise ValueError(
            f"Probability Regularizer: the method '{method}' is unknown. "
            f"Choose {', '.join(METHODS[:-1])} or {METHODS[-1]}."
        )
    if "strength" in settings:
        settings["gamma"] = settings.pop("strength")
    return NormRegularizer(**settings) if method == NORM else PermutationRegularizer(**settings)
