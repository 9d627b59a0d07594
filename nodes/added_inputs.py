"""Widgets that DNO Sampler was given after its first release.

They come last and are optional: saved workflows keep their values, and API workflows that do not
name them go on working.
"""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..dno_core import DECAYS
from ..dno_core.noise_map.gradient_modes import ModeName
from .comfy_bridge.memory import POLICIES
from .presets import preset_input
from .request import LOOP_DECODERS


def added_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "warmup",
            default=0,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="Iterations over which the learning rate rises to its full value. Raise it "
            "if the first iterations jump. 0 to 5; 0 is off.",
        ),
        io.Combo.Input(
            "decay",
            options=list(DECAYS),
            default=DECAYS[0],
            optional=True,
            advanced=True,
            tooltip="cosine lets the learning rate fall to 0 over all iterations, so that the end "
            "settles; take it with a higher learning rate. constant can be resumed with more "
            "iterations without a jump.",
        ),
        io.Int.Input(
            "screen_seeds",
            default=1,
            min=1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Draw this many seeds first (seed, seed + 1, ...), score them, and start from "
            "the best one of every picture. Each costs one plain run, about a quarter of an "
            "iteration. Raise it where seeds differ much. 1 is off, usually 4 to 16. Not used "
            "when a run is resumed.",
        ),
        io.String.Input(
            "changes",
            default="",
            optional=True,
            advanced=True,
            tooltip="What was changed by hand while a run went on, written here in the workflow of "
            "the saved picture, so that the run repeats itself. Usually empty; clear it to run "
            "without the changes.",
        ),
        preset_input(),
        *_fast_inputs(),
    ]


def _fast_inputs() -> list[Any]:
    """What makes an iteration cheaper: in steps, in the gradient, in the decoder, in memory."""
    return [
        io.Combo.Input(
            "gradient_mode",
            options=list(get_args(ModeName)),
            default="exact",
            optional=True,
            advanced=True,
            tooltip="Where the denoiser is differentiated. exact: at every step. spread k: at "
            "gradient_steps steps, evenly spaced, each standing for those before it; 10 of 50 have "
            "a cosine of 0.9 with the exact direction on the demo model. last k: at the last "
            "gradient_steps steps; one step: at the last; linear: at none, the cheapest. Those "
            "three have 0.1 to 0.4. With check_gradient on, the node says the cosine (but for "
            "linear).",
        ),
        io.Int.Input(
            "gradient_steps",
            default=10,
            min=1,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="How many steps the gradient modes 'spread k' and 'last k' differentiate. "
            "Raise it when the cosine with the exact gradient is low. 5 to 16; from the number of "
            "steps on it is exact. Other modes ignore it.",
        ),
        io.Int.Input(
            "optimize_steps",
            default=0,
            min=0,
            max=1000,
            optional=True,
            advanced=True,
            tooltip="Sampling steps of an iteration. The same noise is drawn in fewer steps while "
            "it is optimized, and the winner once more in all of them: an iteration's time falls "
            "with this number. Raise it when the winner loses much in the last drawing. 0: all "
            "steps; usually a fifth to a half of them.",
        ),
        io.Combo.Input(
            "loop_decoder",
            options=list(LOOP_DECODERS),
            default=LOOP_DECODERS[0],
            optional=True,
            advanced=True,
            tooltip="What decodes the iterations. tiny VAE: TAESD, from models/vae_approx, with a "
            "fraction of the time and memory; the winner is decoded and scored with the full VAE "
            "at the end. Take it when memory is short or decoding is slow.",
        ),
        io.Combo.Input(
            "graph_memory",
            options=list(POLICIES),
            default=POLICIES[0],
            optional=True,
            advanced=True,
            tooltip="What the gradient keeps in memory. store: as much of the forward run as fits, "
            "fastest. recompute: one denoiser call at a time. recompute blocks: one block of it, "
            "slowest and smallest. auto chooses by the free memory and steps down when it runs "
            "out. The picture is the same.",
        ),
        io.Int.Input(
            "finish_iterations",
            default=0,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="With optimize_steps: so many of the last iterations take all steps, so that "
            "the climb ends on the picture that is returned. A third of the iterations gains most "
            "for its time. 0: none; the winner is drawn once in all steps at the end.",
        ),
        io.Int.Input(
            "late_iterations",
            default=0,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="So many of the last iterations move only the noise of the last two fifths of "
            "the steps, and run only those: under half the time, for nearly the same gain. Raise "
            "it until the rest, usually the first 5, no longer settles what the picture shows. "
            "Not used with probes or eta 0.",
        ),
    ]
