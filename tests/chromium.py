"""Where the browser of the browser tests is."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Path of a Chromium-like browser, or None. DNO_CHROMIUM overrides."""
    for name in (os.environ.get("DNO_CHROMIUM", ""), *NAMES):
        if name and (found := shutil.which(name)):
            return found
    return None
