"""The model widgets of Reward Loader: what they offer, and the path that a choice stands for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import folder_paths

from ..rewards import Input, RewardError
from ..rewards.files.download import download
from ..rewards.files.missing import choice_source, download_choice, locate, missing

FOLDER_TYPE = "dno_rewards"
DEEPEST = 3
Report = Callable[[int, int], None]


def roots() -> list[Path]:
    """models/dno_rewards, and what extra_model_paths.yaml names under dno_rewards."""
    if FOLDER_TYPE not in folder_paths.folder_names_and_paths:
        return []
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER_TYPE)]


def found_models(item: Input) -> dict[str, Path]:
    """The files and folders in the model folders that may be meant for this input, by name.

    A folder is offered if it holds a config file, or a file with one of the input's suffixes;
    what lies inside a model folder is not offered as a file.
    """
    found: dict[str, Path] = {}
    for root in roots():
        for folder, files in _walk(root):
            is_model = any(name.endswith("config.json") for name in files)
            fitting = [name for name in files if Path(name).suffix.lower() in item.suffixes]
            if folder != root and item.folders and (is_model or fitting):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
            if is_model and folder != root:
                continue
            for name in fitting:
                found.setdefault((folder / name).relative_to(root).as_posix(), folder / name)
    return found


def _walk(root: Path, depth: int = 0) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files), links followed, down to a depth that ends all loops."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    shown = [root / entry.name for entry in entries if not entry.name.startswith(".")]
    yield root, [path.name for path in shown if os.path.isfile(path)]
    if depth < DEEPEST:
        for path in shown:
            if os.path.isdir(path):
                yield from _walk(path, depth + 1)


def model_options(item: Input) -> list[str]:
    """Built-in choices, known models whether present or not, other models, downloads.

    Names of known models stay, so that a workflow saved on another machine stays valid.
    """
    names = [*item.choices, *(source.name for source in item.sources)]
    names += [name for name in found_models(item) if name not in names]
    return names + [download_choice(source) for source in item.sources if source.files]


def located(item: Input, value: str) -> Path | None:
    """Where the chosen model lies, or None if it is built in or not there."""
    if value in item.choices:
        return None
    source = choice_source(value, item.sources)
    for known in item.sources:
        if known.files and (known.name == value or known is source):
            there = locate(known, roots())
            if there is not None:
                return there
    return found_models(item).get(value)


def model_path(item: Input, value: str, label: str, report: Report) -> str:
    """The choice as `create` takes it: a path, or a built-in choice as it is.

    A download choice is downloaded first, if it is not there yet. Raises RewardError for a model
    that is missing: its name, its folder, its source.
    """
    if value in item.choices:
        return value
    there = located(item, value)
    if there is not None:
        return str(there)
    folders = roots()
    if not folders:
        raise RewardError(
            "Reward Loader: ComfyUI knows no folder for rewards. Restart ComfyUI; if that does "
            "not help, install the pack again."
        )
    source = choice_source(value, item.sources)
    if source is not None:
        return str(download(source, folders[0], report))
    known = next((source for source in item.sources if source.name == value), None)
    raise missing(known, value, folders[0], label)
