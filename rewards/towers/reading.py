"""Whatever goes wrong while a model is read, said with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..base import RewardError
from .folder import broken

_PACKAGES = {"open_clip": "open_clip_torch"}  # where pip's name is another


@contextmanager
def reading(path: Path, reward: str) -> Iterator[None]:
    """Raise RewardError in place of what the libraries raise for a spoilt model or for themselves.

    For files that were cut or edited they raise anything, down to a bare Exception.
    """
    try:
        yield
    except (RewardError, MemoryError):
        raise
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise RewardError(
            f"{reward}: {path.name} needs the Python package {package}, which cannot be imported "
            f"({error}). Install {_PACKAGES.get(package, package)} into ComfyUI's Python, or "
            "choose another reward."
        ) from error
    except Exception as error:
        raise broken(path, reward, error) from error
