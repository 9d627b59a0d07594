"""Networks filled from a file's own names, with nothing left out unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..base import RewardError

Network = TypeVar("Network", bound=torch.nn.Module)

_COMPUTED = (".position_ids", ".inv_freq")  # buffers that hold no training


def filled(
    make: Callable[[], Network],
    state: Mapping[str, Tensor],
    name_in_file: Callable[[str], str],
    dtype: torch.dtype,
    path: Path,
    reward: str,
) -> Network:
    """The network of `make`, frozen, on the CPU, in dtype, with the tensors of `state`.

    name_in_file: what a tensor of the network is called in the file. Raises RewardError where a
    tensor is missing or has another shape. Tensors that the network does not have are not looked
    at: see `check_used`.
    """
    # ComfyUI calls nodes in inference mode, whose tensors autograd refuses for ever.
    with torch.inference_mode(False), torch.no_grad():
        with torch.device("meta"):  # a random start would take longer than the reading
            network = make()
        tensors: dict[str, Tensor] = {}
        for name, tensor in network.state_dict().items():
            found = state.get(name_in_file(name))
            if found is None or found.shape != tensor.shape:
                raise _unfit(name_in_file(name), found, tensor.shape, path, reward)
            tensors[name] = found
        network = network.to(dtype).to_empty(device="cpu")
        for name, buffer in network.named_buffers():
            if name.rpartition(".")[2] == "position_ids":  # what transformers does not save
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        network.load_state_dict(tensors)
    return network.requires_grad_(False).eval()


def check_used(
    network: torch.nn.Module,
    state: Mapping[str, Tensor],
    name_in_file: Callable[[str], str],
    prefix: str,
    path: Path,
    reward: str,
) -> None:
    """Raise RewardError if the file holds tensors under `prefix` that the network does not have."""
    known = {name_in_file(name) for name in network.state_dict()}
    for name in state:
        if name.startswith(prefix) and name not in known and not name.endswith(_COMPUTED):
            raise RewardError(
                f"{reward}: {path} holds {name}, which {reward} does not have. "
                "Choose another model in Reward Loader."
            )


def _unfit(
    name: str, found: Tensor | None, expected: torch.Size, path: Path, reward: str
) -> RewardError:
    what = (
        f"{name} is missing"
        if found is None
        else f"{name} is {list(found.shape)}, not {list(expected)}"
    )
    return RewardError(
        f"{reward}: {path} does not fill the model; {what}. "
        "Download it again, or choose another model in Reward Loader."
    )
