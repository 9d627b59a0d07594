"""Pick Iteration and Reward Curve: what a run left behind, without running it again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..dno_core.trajectories.redraw import FIRST
from ..dno_core.trajectories.trajectory import Trajectory
from .chart import WIDTH, draw
from .comfy_bridge.progress import send_text
from .curves import reward_curve
from .recording import record_run
from .types import CATEGORY, TRAJECTORY

BEST = -1


class PickIteration(io.ComfyNode):
    """Any iteration of a run, as latent and image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_PickIteration",
            display_name="Pick Iteration",
            category=CATEGORY,
            description="Any iteration of a DNO Sampler run, without running it again: change the "
            "number and queue, only this node works. Reward Curve shows which one to look at.",
            search_aliases=["dno", "scrub", "trajectory", "frame", "best iteration"],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            inputs=[
                TRAJECTORY.Input(
                    "trajectory", tooltip="The run, from DNO Sampler or Load Trajectory."
                ),
                io.Int.Input(
                    "index",
                    default=BEST,
                    min=BEST,
                    max=1_000_000,
                    tooltip="Which iteration to take. -1: the best one of every image (DNO "
                    "Sampler's own result). 0: the picture that the run started from. Lower it "
                    "when the reward has been overdone, raise it for more effect. Beyond the end, "
                    "the last one is taken. Where a run had fewer steps or the tiny VAE, -1 and 0 "
                    "are drawn at full quality, all others as they were in the run.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The iteration's latent, to decode, upscale or sample further.",
                ),
                io.Image.Output(
                    display_name="image",
                    tooltip="The iteration's image as it was scored, in 8 bits a channel.",
                ),
            ],
        )

    @classmethod
    def execute(cls, trajectory: Trajectory, index: int = BEST) -> io.NodeOutput:
        positions = pick(trajectory, index)
        frames, latents = frames_of(trajectory, index, positions)
        image = frames.to(torch.float32) / 255
        latent = {"samples": latents}
        send_text(described(trajectory, index, positions), cls.hidden.unique_id)
        record_run(cls.hidden, trajectory)
        return io.NodeOutput(latent, image, ui=ui.PreviewImage(image, cls=cls))


class RewardCurve(io.ComfyNode):
    """The curves of a run, as an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_RewardCurve",
            display_name="Reward Curve",
            category=CATEGORY,
            description="A chart of a DNO Sampler run: every reward's score, how likely the noise "
            "stayed (the percentile of P(z)) and the share of burnt-out pixels, iteration by "
            "iteration. Dots mark the best one.",
            search_aliases=["dno", "plot", "chart", "graph", "score", "trajectory", "P(z)"],
            is_output_node=True,
            inputs=[
                TRAJECTORY.Input(
                    "trajectory", tooltip="The run, from DNO Sampler or Load Trajectory."
                ),
                io.Int.Input(
                    "width",
                    default=WIDTH,
                    min=512,
                    max=2048,
                    step=64,
                    advanced=True,
                    tooltip="Width of the chart in pixels; its height follows. 1024 for the "
                    "screen, 2048 for print.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The chart, to preview or save.")
            ],
        )

    @classmethod
    def execute(cls, trajectory: Trajectory, width: int = WIDTH) -> io.NodeOutput:
        image = as_image(draw(reward_curve(trajectory), width))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def pick(trajectory: Trajectory, index: int) -> tuple[int, ...]:
    """For every image the position in the records of iteration `index` (-1: its best).

    Numbers outside of the run give its first or last iteration, so that scrubbing never fails.
    """
    if index == BEST:
        return trajectory.best
    position = index - trajectory.records[0].index
    return (min(max(position, 0), len(trajectory.records) - 1),) * trajectory.batch


def frames_of(
    trajectory: Trajectory, index: int, positions: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Images (uint8 [B,H,W,3]) and latents of that choice; those drawn again where there are."""
    redraw = trajectory.redraw
    if redraw is not None and index == BEST:
        return trajectory.result_images, trajectory.result_latents
    if redraw is not None and not any(positions):
        return redraw.images[FIRST], redraw.latents[FIRST]
    return (
        trajectory.take(trajectory.images, positions),
        trajectory.take(trajectory.latents, positions),
    )


def scores_of(
    trajectory: Trajectory, index: int, positions: tuple[int, ...]
) -> tuple[tuple[float, ...], ...]:
    """Scores [K][B] of the pictures that `frames_of` gives."""
    redraw = trajectory.redraw
    if redraw is not None and index == BEST:
        return redraw.scores
    if redraw is not None and not any(positions):
        return redraw.before
    rows = range(len(trajectory.terms))
    return tuple(
        tuple(trajectory.records[i].scores[k][b] for b, i in enumerate(positions)) for k in rows
    )


def described(trajectory: Trajectory, index: int, positions: tuple[int, ...]) -> str:
    """Which iteration this is, its scores and P(z), as the text on the node."""
    records = [trajectory.records[i] for i in positions]
    taken = sorted({record.index for record in records})
    number = ", ".join(str(i) for i in taken)
    if index == BEST:
        head = f"best iteration: {number}"
    elif index != taken[0]:
        last = trajectory.records[-1].index
        where = "last" if taken[0] == last else "first"
        head = f"iteration {number}, the {where} of this run (there is no iteration {index})"
    else:
        head = f"iteration {number} of {trajectory.records[-1].index}"
    if trajectory.redraw is not None:
        again = index == BEST or not any(positions)
        head += ", drawn at full quality" if again else ", as it was in the run"
    values = scores_of(trajectory, index, positions)
    scores = [
        f"{term.name} {_mean(row):.4g}" for term, row in zip(trajectory.terms, values, strict=True)
    ]
    percentile = 100 * min(record.quantile[b] for b, record in enumerate(records))
    return f"{head}\n{'  '.join(scores)}\nP(z) percentile {percentile:.1f} %"


def as_image(picture: Image.Image) -> Tensor:
    """An RGB picture as ComfyUI's IMAGE: float32 [1,H,W,3] in [0,1]."""
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255).unsqueeze(0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
