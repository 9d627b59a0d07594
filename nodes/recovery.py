"""After a cancel or a failure: the best picture stays on the node."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import folder_paths
from PIL import Image

from ..dno_core import Trajectory
from .comfy_bridge.progress import prompt_server, send_text

log = logging.getLogger("dno")


def keep_best(trajectory: Trajectory, node_id: str | None, what: str) -> list[str]:
    """Save the best image of a run without a result to the temp folder, and show it on its node.

    `what` happened to it: "cancelled" or "failed". Returns the file names, one an image. Where no
    page queued the prompt none is told: to all of them would be to strangers as well.
    """
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    images = trajectory.result_images
    names = []
    for image in images:
        name = f"dno_{what}_{uuid.uuid4().hex[:12]}.png"
        Image.fromarray(image.numpy()).save(folder / name)
        names.append(name)
    log.info("%s; the best so far is in %s: %s", what, folder, ", ".join(names))
    server = prompt_server()
    if server is not None and server.client_id is not None and node_id is not None:
        shown = [{"filename": name, "subfolder": "", "type": "temp"} for name in names]
        message = {
            "node": node_id,
            "display_node": node_id,
            "output": {"images": shown},
            "prompt_id": getattr(server, "last_prompt_id", None),
        }
        server.send_sync("executed", message, server.client_id)
        best = ", ".join(str(i) for i in sorted(set(trajectory.best)))
        line = f"{what.capitalize()}. The best so far (iteration {best}) is kept on this node."
        send_text(line, node_id)
    return names
