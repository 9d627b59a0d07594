"""ZO Gradient Estimator: how DNO Sampler finds the way up for a reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..dno_core import Auto, Backpropagation, GradientEstimator, Hybrid1, Hybrid2, ZoSgd
from .types import CATEGORY, ESTIMATOR

AUTO, GRADIENT, HYBRID_2, HYBRID_1, ZO_SGD = "auto", "gradient", "hybrid_2", "hybrid_1", "zo_sgd"
METHODS = (AUTO, GRADIENT, HYBRID_2, HYBRID_1, ZO_SGD)

METHOD_HELP = """auto: the gradient for rewards that have one, hybrid_2 for those that have none. \
Usually right.
gradient: the gradient alone; a reward that has none is refused.
hybrid_2: learns from pictures drawn with slightly changed noise. The best method without a \
gradient; each probe costs one more run of the sampler.
hybrid_1: changes the picture's pixels instead. Probes are nearly free and tell much less.
zo_sgd: never computes a gradient of anything, so it takes the least memory; it needs very many \
probes."""


def probe_inputs(default: Hybrid1 | Hybrid2 | ZoSgd, usual: str, advanced: bool) -> list[io.Input]:
    """How many probes, and how far they go."""
    images = isinstance(default, Hybrid1)
    cost = "one more scoring" if images else "one more run of the sampler"
    moved = "pixels (0 to 1)" if images else "noise"
    far = "0.02 to 0.1" if images else "0.01 to 0.2"
    return [
        io.Int.Input(
            "probes",
            default=default.probes,
            min=1,
            max=4096,
            advanced=advanced,
            tooltip=f"Tries in every iteration, each costing {cost}. Raise it if the reward "
            f"climbs unsteadily, lower it to save time. Usually {usual}.",
        ),
        io.Float.Input(
            "scale",
            default=default.scale,
            min=0.0001,
            max=1.0,
            step=0.005,
            round=False,
            advanced=advanced,
            tooltip=f"Mu: how far a probe moves the {moved}, as a standard deviation. Raise it for "
            "rewards that jump in steps or are rough (file sizes, counts), lower it for smooth "
            f"ones. Usually {far}.",
        ),
    ]


def antithetic_input(default: bool) -> io.Input:
    return io.Boolean.Input(
        "antithetic",
        default=default,
        advanced=True,
        tooltip="Probe in pairs, one step forward and one back. Straighter where the reward is "
        "strongly curved (large scale), but half as many directions for the same cost. An odd "
        f"number of probes is rounded up. Recommended {'on' if default else 'off'}.",
    )


def noise_inputs() -> list[io.Input]:
    """What concerns probes of the noise alone."""
    return [
        io.Boolean.Input(
            "keep_gaussian",
            default=True,
            advanced=True,
            tooltip="Rescale every probe's noise so that it stays Gaussian and its picture one "
            "the model could draw. Recommended on; it matters from a scale of about 0.1.",
        ),
        io.Int.Input(
            "probe_batch",
            default=0,
            min=0,
            max=4096,
            advanced=True,
            tooltip="Probes run side by side; 0 is as many as memory allows. Lower it if other "
            "programs need the memory. If memory runs out, fewer are tried by themselves. "
            "Usually 0.",
        ),
    ]


def hybrid_2_inputs() -> list[io.Input]:
    return [
        *probe_inputs(Hybrid2(), "4 to 32", advanced=False),
        antithetic_input(Hybrid2().antithetic),
        *noise_inputs(),
        io.Combo.Input(
            "combination",
            options=["least squares", "sum"],
            default=Hybrid2().combination,
            advanced=True,
            tooltip="least squares: weighs the probes so that together they explain all gains, "
            "and is usually straighter. sum: as published, to repeat the paper's runs.",
        ),
        io.Combo.Input(
            "scaling",
            options=["fit", "unit"],
            default=Hybrid2().scaling,
            advanced=True,
            tooltip="fit: as long as the gains say, so that weights and the regularizer's "
            "strength mean what they always mean. unit: length 1, as published. Usually fit.",
        ),
    ]


class ZOGradientEstimator(io.ComfyNode):
    """The choice of estimator, as DNO_GRADIENT_ESTIMATOR."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_ZOGradientEstimator",
            display_name="ZO Gradient Estimator",
            category=CATEGORY,
            description="How DNO Sampler finds the way up. It chooses by itself: add this node to "
            "climb a reward that has no gradient with other settings, to save memory, or to treat "
            "any reward as a black box.",
            search_aliases=["dno", "zeroth order", "black box", "gradient free", "jpeg", "spsa"],
            inputs=[
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(
                            AUTO, probe_inputs(Auto().hybrid, "4 to 32", advanced=True)
                        ),
                        io.DynamicCombo.Option(GRADIENT, []),
                        io.DynamicCombo.Option(HYBRID_2, hybrid_2_inputs()),
                        io.DynamicCombo.Option(
                            HYBRID_1,
                            [
                                *probe_inputs(Hybrid1(), "16 to 256", advanced=False),
                                antithetic_input(Hybrid1().antithetic),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            ZO_SGD,
                            [
                                *probe_inputs(ZoSgd(), "32 to 512", advanced=False),
                                antithetic_input(ZoSgd().antithetic),
                                *noise_inputs(),
                            ],
                        ),
                    ],
                    tooltip=METHOD_HELP,
                )
            ],
            outputs=[
                ESTIMATOR.Output(
                    "estimator",
                    display_name="estimator",
                    tooltip="For the estimator socket of DNO Sampler.",
                )
            ],
        )

    @classmethod
    def execute(cls, method: dict[str, Any]) -> io.NodeOutput:
        return io.NodeOutput(estimator(**method))


def estimator(method: str, **widgets: Any) -> GradientEstimator:
    """The core's estimator for the node's widgets. Raises ValueError for an unknown method."""
    if "keep_gaussian" in widgets:
        widgets["gaussian"] = widgets.pop("keep_gaussian")
    if method == AUTO:
        return Auto(replace(Auto().hybrid, **widgets))
    if method == GRADIENT:
        return Backpropagation()
    if method == HYBRID_2:
        return Hybrid2(**widgets)
    if method == HYBRID_1:
        return Hybrid1(**widgets)
    if method == ZO_SGD:
        return ZoSgd(**widgets)
    raise ValueError(  # ComfyUI lets unknown choices of a DynamicCombo pass
        f"ZO Gradient Estimator: the method '{method}' is unknown. "
        f"Choose one of {', '.join(METHODS)}."
    )
