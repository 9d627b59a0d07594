"""Stop Rules: when DNO Sampler ends a run before its iterations are used up."""

from __future__ import annotations

from comfy_api.latest import io

from ..dno_core import StopChoice
from .types import CATEGORY, STOP

DEFAULT = StopChoice()


class StopRules(io.ComfyNode):
    """The choice of stop rules, as DNO_STOP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_StopRules",
            display_name="Stop Rules",
            category=CATEGORY,
            description="Ends a run of DNO Sampler before its iterations are used up, as soon as "
            "one of these rules says so. The best iteration so far is returned, and the reason is "
            "written on the sampler.",
            search_aliases=["dno", "early stopping", "patience", "plateau", "target score"],
            inputs=[
                io.Boolean.Input(
                    "untypical",
                    default=DEFAULT.untypical,
                    tooltip="Stop when P(z), of the whole noise or of a single step, has left "
                    "the typical range: from there on the reward rises by cheating. Recommended "
                    "on; off to watch it happen.",
                ),
                io.Boolean.Input(
                    "watched_falls",
                    default=DEFAULT.watched_falls,
                    tooltip="Stop when a reward that is only watched falls while the optimized "
                    "one rises. Recommended on; without a watched reward it does nothing.",
                ),
                io.Float.Input(
                    "drop",
                    default=DEFAULT.drop,
                    min=0.05,
                    max=100.0,
                    step=0.05,
                    tooltip="How far a watched reward may fall below its best, in units of its "
                    "own natural spread. Lower it to stop sooner, raise it if the watched reward "
                    "is noisy. Usually 0.5 to 2.",
                ),
                io.Int.Input(
                    "plateau",
                    default=DEFAULT.plateau,
                    min=0,
                    max=10000,
                    tooltip="Stop when the best picture has not improved for this many "
                    "iterations; 0 is off. Raise it if the climb has flat stretches. Usually 5 "
                    "to 20.",
                ),
                io.Boolean.Input(
                    "target",
                    default=DEFAULT.target is not None,
                    tooltip="Stop when the first optimized reward has reached target_score in "
                    "every picture.",
                ),
                io.Float.Input(
                    "target_score",
                    default=0.0,
                    min=-1_000_000.0,
                    max=1_000_000.0,
                    step=0.01,
                    round=False,
                    tooltip="The score that is enough, in the reward's own unit, as the sampler "
                    "shows it: at or above for maximize, at or below for minimize, this close to "
                    "the aim for target. Only used with target on.",
                ),
                io.Float.Input(
                    "min_gain",
                    default=DEFAULT.min_gain,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    advanced=True,
                    tooltip="What counts as an improvement for plateau, in units of the reward's "
                    "natural spread. Raise it to stop sooner on slow climbs. Usually 0 to 0.2.",
                ),
                io.Int.Input(
                    "patience",
                    default=DEFAULT.patience,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="How many iterations in a row untypical or watched_falls must hold. "
                    "Raise it to let the noise come back, lower it to lose no time. Short dips "
                    "are common at high learning rates: usually 3 to 10.",
                ),
            ],
            outputs=[
                STOP.Output(
                    "stop", display_name="stop", tooltip="For the stop socket of DNO Sampler."
                )
            ],
        )

    @classmethod
    def execute(
        cls, target: bool = False, target_score: float = 0.0, **choices: bool | int | float
    ) -> io.NodeOutput:
        return io.NodeOutput(StopChoice(target=target_score if target else None, **choices))
