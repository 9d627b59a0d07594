"""A run in one file, to keep it and to go on from it later.

A safetensors file. Its metadata names the format and its version; the tensors are

    latents [I,B,C,h,w]   images uint8 [I,B,H,W,3]   best_noise, last_noise [N,B,C,h,w]
    optimizer.<name>      run: uint8, the text of a JSON object (terms, records, best, ...)

and, in version 2, for a run whose result was drawn again

    redraw.latents [2,B,C,h,w]   redraw.images uint8 [2,B,H,W,3]   redraw: uint8, JSON

The JSON lies in a tensor because safetensors limits its header to 100 MB and would escape it; in
one file both are replaced in one move. Numbers come back to the bit. Reading never executes
anything and checks everything.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .atomic import Entry, stacked, whole, write_safetensors
from .checks import (
    Run,
    read_frames,
    read_noise,
    read_state,
    require_consistent,
    require_consistent_redraw,
)
from .frames import DEFAULT_BYTE_CAP, Frames
from .plain import Unfit, from_json, to_json
from .redraw import Redraw, RedrawNumbers
from .trajectory import Trajectory

FORMAT, VERSION = "dno-trajectory", 2
SUFFIX = ".dno.safetensors"
REDRAW = ("redraw", "redraw.latents", "redraw.images")


class TrajectoryFileError(ValueError):
    """A file that could not be written, or that holds no whole trajectory. It is left alone."""


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write the run to `path`, whole or not at all; one frame at a time is read and written.

    Tuples in `meta` come back as lists. Raises TrajectoryFileError where the disk is full or not
    writable (an older file of that name is then untouched), and FileNotFoundError for a frame
    whose temporary file is gone.
    """
    run = Run(**{name.name: getattr(trajectory, name.name) for name in fields(Run)})
    count = len(trajectory.records)
    redraw = trajectory.redraw
    entries = [
        _frames("latents", trajectory.latents, count),
        _frames("images", trajectory.images, count),
        whole("best_noise", trajectory.best_noise),
        whole("last_noise", trajectory.last_noise),
        *(whole(f"optimizer.{name}", state) for name, state in trajectory.optimizer_state.items()),
        whole("run", _text(run)),
        *([] if redraw is None else _redraw_entries(redraw)),
    ]
    try:
        write_safetensors(path, {"format": FORMAT, "version": str(VERSION)}, entries)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TrajectoryFileError(
            f"The trajectory could not be written to {path}: {error.strerror or error}. "
            "Free some space or choose another folder; nothing there was changed."
        ) from error


def _redraw_entries(redraw: Redraw) -> list[Entry]:
    numbers = RedrawNumbers(*(getattr(redraw, item.name) for item in fields(RedrawNumbers)))
    return [
        whole("redraw", _text(numbers)),
        whole("redraw.latents", redraw.latents),
        whole("redraw.images", redraw.images),
    ]


def _text(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(to_json(value)), dtype=torch.uint8)


def _frames(name: str, frames: Frames, count: int) -> Entry:
    return stacked(name, frames[0], count, (frames[index] for index in range(count)))


def load_trajectory(
    path: Path, byte_cap: int = DEFAULT_BYTE_CAP, folder: Path | None = None
) -> Trajectory:
    """Read a run; its frames beyond `byte_cap` go to files in `folder`, as in a run of one's own.

    Raises TrajectoryFileError for anything that is not a whole trajectory.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise TrajectoryFileError(
            f"The trajectory file {path} is not there. Choose another, or save the run again."
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            _require_format(path, file.metadata() or {})
            return _read(file, byte_cap, folder)
    except Unfit as error:
        raise TrajectoryFileError(
            f"{path.name} is damaged: {error}. Save the run again, or choose another file."
        ) from error
    except OSError as error:
        raise TrajectoryFileError(
            f"{path.name} could not be read: {error}. Check the file and the free disk space."
        ) from error
    except SafetensorError as error:
        raise TrajectoryFileError(
            f"{path.name} is cut short, or is no trajectory file ({error}). "
            f"Choose a whole {SUFFIX} file that Save Trajectory has written."
        ) from error


def _require_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise TrajectoryFileError(
            f"{path.name} is a safetensors file of something else than a run. "
            f"Choose a {SUFFIX} file that Save Trajectory has written."
        )
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdigit() and 1 <= int(version[:9])):
        raise Unfit(f"its version is '{version[:20]}'")
    if int(version[:9]) > VERSION:
        raise TrajectoryFileError(
            f"{path.name} was written by a newer version of this pack (format {version[:9]}, "
            f"this one reads {VERSION}). Update the pack."
        )


def _read(file: Any, byte_cap: int, folder: Path | None) -> Trajectory:
    names = set(file.keys())
    state_names = {name for name in names if name.startswith("optimizer.")}
    required = {"run", "latents", "images", "best_noise", "last_noise"}
    if missing := sorted(required - names):
        raise Unfit(f"it has no '{missing[0]}'")
    if unknown := sorted(names - required - state_names - set(REDRAW)):
        raise Unfit(f"it has '{unknown[0]}', which only a newer version of the pack knows")
    run: Run = _parsed(file, "run", Run)
    require_consistent(run)
    count, batch = len(run.records), len(run.best)
    last_noise = read_noise(file, "last_noise", batch)
    best_noise = read_noise(file, "best_noise", batch)
    if best_noise.shape != last_noise.shape:
        raise Unfit("its two noises have different shapes")
    state = {
        name.removeprefix("optimizer."): read_state(file, name, last_noise)
        for name in sorted(state_names)
    }
    latents = Frames(byte_cap // 4, folder)
    for frame in read_frames(file, "latents", count, batch, floating=True):
        latents.append(frame)
    images = Frames(byte_cap - byte_cap // 4, folder)
    for frame in read_frames(file, "images", count, batch, floating=False):
        images.append(frame)
    return Trajectory(
        **{name.name: getattr(run, name.name) for name in fields(Run)},
        latents=latents,
        images=images,
        best_noise=best_noise,
        last_noise=last_noise,
        optimizer_state=state,
        redraw=_read_redraw(file, names & set(REDRAW), run),
    )


def _read_redraw(file: Any, names: set[str], run: Run) -> Redraw | None:
    if not names:
        return None
    if missing := sorted(set(REDRAW) - names):
        raise Unfit(f"it has no '{missing[0]}'")
    numbers: RedrawNumbers = _parsed(file, "redraw", RedrawNumbers)
    require_consistent_redraw(numbers, run)
    batch = len(run.best)
    latents = read_frames(file, "redraw.latents", 2, batch, floating=True)
    images = read_frames(file, "redraw.images", 2, batch, floating=False)
    values = {item.name: getattr(numbers, item.name) for item in fields(RedrawNumbers)}
    return Redraw(**values, latents=torch.stack(list(latents)), images=torch.stack(list(images)))


def _parsed(file: Any, name: str, kind: Any) -> Any:
    text = file.get_tensor(name)
    if text.dtype != torch.uint8 or text.ndim != 1:
        raise Unfit(f"its '{name}' is no text")
    return from_json(kind, text.numpy().tobytes())
