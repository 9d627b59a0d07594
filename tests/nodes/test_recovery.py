"""What is kept of a run without a result, and who is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comfyui_dno.tests.nodes.synthetic_run import synthetic_run


@pytest.mark.parametrize("client", [None, "browser-1"])
def test_only_the_page_that_queued_a_cancelled_run_is_shown_its_picture(
    comfy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: str | None
) -> None:
    from comfyui_dno.nodes import recovery

    told: list[tuple[str, str | None]] = []
    server = SimpleNamespace(
        client_id=client, send_sync=lambda event, data, sid=None: told.append((event, sid))
    )
    monkeypatch.setattr(recovery, "prompt_server", lambda: server)
    monkeypatch.setattr(recovery, "send_text", lambda line, node_id: None)
    monkeypatch.setattr(recovery.folder_paths, "get_temp_directory", lambda: str(tmp_path))
    names = recovery.keep_best(synthetic_run(), "3", "cancelled")
    assert [path.name for path in tmp_path.iterdir()] == names
    assert told == ([("executed", client)] if client else [])
