"""Weights files, read without running anything that may be inside them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import RewardError
from .contents import looks_like

__all__ = ["looks_like", "read_weights", "wrong_checkpoint"]

_NESTS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")
_PREFIXES = ("module.", "_orig_mod.")
_LONGEST_JSON = 100_000_000  # bytes; the limit of the safetensors library
_NEEDS_CODE = ("Unsupported", "TorchScript", "GLOBAL")


def read_weights(path: Path, reward: str) -> dict[str, Tensor]:
    """The tensors of a safetensors, .pt, .pth, .bin or .ckpt file, by name, on the CPU.

    Told apart by content, not by name; memory-mapped where the format allows. What trainers wrap
    around a state dict ("state_dict", "model", "module.") is taken off. A pickle that would run
    code is refused unread. Raises RewardError naming the file.
    """
    head = _head(path, reward)
    with torch.inference_mode(False):
        state = _torch(path, reward) if _is_pickle(head) else _safetensors(path, reward)
    tensors = _state_dict(state)
    if not tensors:
        raise RewardError(
            f"{reward}: {path} holds no weights by name. "
            "Choose another file in the model widget of Reward Loader."
        )
    return tensors


def wrong_checkpoint(
    path: Path, reward: str, expected: str, state: Mapping[str, Tensor]
) -> RewardError:
    """The error for weights that are not the reward's: what they look like, what to do.

    expected: what it should have been, as in "HPS v2's open_clip weights".
    """
    return RewardError(
        f"{reward}: {path.name} looks like {looks_like(state)}, not like {expected}. "
        "Choose another file in the model widget of Reward Loader."
    )


def _head(path: Path, reward: str) -> bytes:
    """The first bytes of the file; raise RewardError for what cannot hold weights."""
    if path.is_dir():
        raise RewardError(
            f"{reward}: {path} is a folder, not a weights file. "
            "Choose the file in it in the model widget of Reward Loader."
        )
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise RewardError(
            f"{reward}: there is no file {path}. "
            "Put it there, or choose another one in the model widget of Reward Loader."
        ) from None
    except OSError as error:
        raise RewardError(
            f"{reward}: {path} cannot be read ({error.strerror or error}). "
            "Check the file and its permissions."
        ) from error
    found = not_weights(head)
    if found:
        raise RewardError(f"{reward}: {path} is {found}. Delete it and download the file again.")
    if head.startswith(b"GGUF"):
        raise RewardError(
            f"{reward}: {path} is a GGUF file, which rewards cannot use. "
            "Choose a safetensors or PyTorch file in the model widget of Reward Loader."
        )
    return head


def not_weights(head: bytes) -> str:
    """What a file is that begins so, if a failed download left it; "" otherwise."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a weights file"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the weights themselves"
    return ""


def _is_pickle(head: bytes) -> bool:
    """PyTorch's own formats: a zip archive with a pickle in it, or (until 1.6) a bare pickle.

    A safetensors file begins with the length of its JSON, which may look like a pickle's mark.
    """
    json_follows = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _LONGEST_JSON
    return head.startswith((b"PK\x03\x04", b"\x80")) and not json_follows


def _safetensors(path: Path, reward: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _broken(path, reward, error) from error


def _torch(path: Path, reward: str) -> Any:
    try:
        if path.suffix == ".safetensors":  # by which torch.load would read it as what it is not
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, RuntimeError, zipfile.BadZipFile) as error:
        if any(word in str(error) for word in _NEEDS_CODE):
            raise RewardError(
                f"{reward}: {path} is a pickle that could run code, and was not opened. "
                "Use a safetensors file or a plain state dict of the model instead."
            ) from None  # torch's own text advises to read it unsafely
        raise _broken(path, reward, error) from None
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, OSError) as error:
        raise _broken(path, reward, error) from error


def _broken(path: Path, reward: str, error: Exception) -> RewardError:
    reason = type(error).__name__
    if str(error) and not isinstance(error, pickle.UnpicklingError):
        reason = str(error).partition("\n")[0].partition(". ")[0]
    return RewardError(
        f"{reward}: {path} is broken, incomplete or no weights file ({reason}). "
        "Delete it and download the file again, or choose another one."
    )


def _state_dict(state: Any) -> dict[str, Tensor]:
    """The tensors by name in what was saved, without the wrapping."""
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _NESTS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping):
        return {}
    tensors = {
        key: value.detach()
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
