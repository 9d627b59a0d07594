"""What a running node tells the artist: progress bar, the scored image, a line of text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from torch import Tensor

log = logging.getLogger("dno")

PREVIEW_SIZE = 512


class Progress:
    """Counts denoiser calls, checks for cancel at each, and reports.

    The run is planned in plain forward calls; a backward call counts as several. `checks` are
    called wherever a cancel is looked for, and may raise too. Without `previews` no picture is
    sent: the client shows them by other means.
    """

    def __init__(self, node_id: str | None, previews: bool = True) -> None:
        self.checks: tuple[Callable[[], None], ...] = ()
        self.previews = previews
        self._node_id = node_id
        self._bar: Any = None
        self._done = 0.0
        self._total = 1.0
        self._begun = time.perf_counter()
        self._forecast = ""
        self._remark = ""

    def plan(self, total: float, forecast: str) -> None:
        """Set how many calls the run will make; the bar starts and the forecast is shown.

        Its time follows once two denoiser calls have been made.
        """
        self._total = max(total, 1.0)
        self._forecast = forecast
        self.text(forecast)
        self._bar = comfy.utils.ProgressBar(int(self._total), node_id=self._node_id)
        self._begun = time.perf_counter()

    def call(self) -> None:
        """Before every denoiser call or decoder block: raise if the user cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        for check in self.checks:
            check()

    def waited(self, seconds: float) -> None:
        """Leave a pause out of the forecast."""
        self._begun += seconds

    def step(self, cost: int) -> None:
        """Before every denoiser call: `call`, and the bar moves on by its cost."""
        self.call()
        if self._forecast and (left := self.seconds_left) is not None:
            self._forecast = f"{self._forecast}\nabout {left:.0f} s"
            log.info(self._forecast.replace("\n", "; "))
            self.text(self._forecast)
            self._forecast = ""
        self._done += cost
        if self._bar is not None:
            self._bar.update_absolute(min(int(self._done), int(self._total)))

    @property
    def seconds_left(self) -> float | None:
        """Forecast from the calls so far; None before the second."""
        spent = time.perf_counter() - self._begun
        if self._done < 2:
            return None
        return spent / self._done * max(self._total - self._done, 0)

    def show(self, images: Tensor) -> None:
        """Send uint8 images [B,H,W,3] as the preview: a strip of at most four."""
        if self._bar is not None and self.previews:
            preview = ("JPEG", strip(images), PREVIEW_SIZE)
            self._bar.update_absolute(min(int(self._done), int(self._total)), None, preview)

    def text(self, line: str) -> None:
        """Write a line on the node, where there is a server; under it the last remark."""
        send_text("\n".join(filter(None, [line, self._remark])), self._node_id)

    def remark(self, line: str) -> None:
        """Say how the run goes on from now: it stays on the node, until there is another."""
        log.info(line)
        self._remark = line
        self.text(self._forecast)


def strip(images: Tensor, most: int = 4) -> Image.Image:
    """uint8 images [B,H,W,3] side by side, small ones enlarged without smoothing."""
    row = images[:most]
    joined = Image.fromarray(row.permute(1, 0, 2, 3).flatten(1, 2).contiguous().numpy())
    factor = max(1, 256 // row.shape[1])
    size = (joined.width * factor, joined.height * factor)
    return joined.resize(size, Image.Resampling.NEAREST) if factor > 1 else joined


def send_text(line: str, node_id: str | None) -> None:
    """Write a line of text on a node of the client that queued the prompt."""
    server = prompt_server()
    if server is not None and node_id is not None:
        server.send_progress_text(line, node_id, server.client_id)


def prompt_server() -> Any:
    """ComfyUI's server, or None outside of one (tests, scripts)."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)
