"""Save Trajectory and Load Trajectory: a run kept in a file."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..dno_core.trajectories.file import (
    SUFFIX,
    TrajectoryFileError,
    load_trajectory,
    save_trajectory,
)
from ..dno_core.trajectories.trajectory import Trajectory
from .comfy_bridge.progress import send_text
from .resume import FIXED, LATER
from .types import CATEGORY, TRAJECTORY

DEFAULT_PREFIX = "dno/run"
NOTHING = f"(no {SUFFIX} file yet)"


class SaveTrajectory(io.ComfyNode):
    """A run, written to ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_SaveTrajectory",
            display_name="Save Trajectory",
            category=CATEGORY,
            description="Keeps a DNO Sampler run in a file of ComfyUI's output folder: every "
            "picture and number, and what it takes to go on with it later. Never overwrites.",
            search_aliases=["dno", "keep run", "checkpoint", "resume", "export trajectory"],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            inputs=[
                TRAJECTORY.Input(
                    "trajectory", tooltip="The run, from DNO Sampler or Load Trajectory."
                ),
                io.String.Input(
                    "filename_prefix",
                    default=DEFAULT_PREFIX,
                    tooltip="Folder and name below ComfyUI's output folder, as in Save Image; a "
                    "number is added. Load Trajectory lists what lies in the folder dno.",
                ),
            ],
            outputs=[
                TRAJECTORY.Output(
                    display_name="trajectory", tooltip="The same run, to wire further."
                )
            ],
        )

    @classmethod
    def execute(
        cls, trajectory: Trajectory, filename_prefix: str = DEFAULT_PREFIX
    ) -> io.NodeOutput:
        path = free_path(filename_prefix)
        save_trajectory(trajectory, path)
        shown = path.relative_to(folder_paths.get_output_directory()).as_posix()
        size = path.stat().st_size / 2**20
        line = f"saved: output/{shown}\niteration 0 to {trajectory.last}, {size:.1f} MB"
        send_text(line, cls.hidden.unique_id)
        return io.NodeOutput(trajectory, ui={**ui.PreviewText(line).as_dict(), "dno": [shown]})


class LoadTrajectory(io.ComfyNode):
    """A run from a file, as DNO Sampler gave it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DNO_LoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description="Reads a run that Save Trajectory has written: to look at it with Pick "
            "Iteration and Reward Curve, or to go on with it in DNO Sampler (resume).",
            search_aliases=["dno", "resume", "continue run", "import trajectory"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list(files()) or [NOTHING],
                    tooltip="The run to read: files of the input folder and of the folder dno in "
                    "the output folder, the newest first. Press R on the page to see new ones.",
                ),
                io.Int.Input(
                    "memory_mb",
                    default=512,
                    min=16,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Main memory for the pictures of the run; beyond it they go to "
                    "ComfyUI's temp folder. Lower it when memory is short.",
                ),
            ],
            outputs=[
                TRAJECTORY.Output(
                    display_name="trajectory",
                    tooltip="The run: for resume, Pick Iteration and Reward Curve.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        try:
            if file is not None:  # None where another node gives the name
                path_of(file)
        except TrajectoryFileError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, memory_mb: int = 512) -> str:
        if file is None:
            return ""
        found = path_of(file).stat()
        return f"{file} {found.st_mtime_ns} {found.st_size}"

    @classmethod
    def execute(cls, file: str, memory_mb: int = 512) -> io.NodeOutput:
        folder = Path(folder_paths.get_temp_directory()) / "dno"
        trajectory = load_trajectory(path_of(file), memory_mb * 2**20, folder)
        send_text(described(trajectory), cls.hidden.unique_id)
        return io.NodeOutput(trajectory)


def free_path(prefix: str) -> Path:
    """A path below the output folder that no file has yet, numbered as Save Image does."""
    output = folder_paths.get_output_directory()
    if Path(prefix).name in ("", "..") or not _is_below(Path(output), Path(output, prefix)):
        raise TrajectoryFileError(
            f"Save Trajectory cannot write to '{prefix}': it is no name below ComfyUI's output "
            "folder. Set filename_prefix to a name like dno/run."
        )
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output)
    while (path := Path(folder, f"{name}_{counter:05}_{SUFFIX}")).exists():
        counter += 1
    return path


def _is_below(folder: Path, path: Path) -> bool:
    """Whether the path lies in the folder, links followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except ValueError:  # a name that no file can have
        return False


def files() -> dict[str, Path]:
    """The trajectory files that can be loaded, by the name they have in the list; newest first."""
    found = {}
    for place, folder in folders().items():
        for path in folder.glob(f"*{SUFFIX}"):
            if path.is_file():
                found[f"{place}{path.name}"] = path
    return dict(sorted(found.items(), key=lambda item: (-item[1].stat().st_mtime_ns, item[0])))


def folders() -> dict[str, Path]:
    """Where runs are looked for, by what stands before the file's name in the list."""
    return {
        "": Path(folder_paths.get_input_directory()),
        "output/dno/": Path(folder_paths.get_output_directory(), "dno"),
    }


def path_of(file: str) -> Path:
    """The path of a name in the list; only those folders can be reached, and nothing below them.

    Raises TrajectoryFileError for any other name.
    """
    name = file.rpartition("/")[2]
    folder = folders().get(file.removesuffix(name))
    plain = name == Path(name).name and "\\" not in name and name.endswith(SUFFIX)
    if folder is None or not plain:
        raise TrajectoryFileError(
            f"'{file}' is no file that Load Trajectory can read. Choose one of its list."
        )
    if not (folder / name).is_file():
        raise TrajectoryFileError(
            f"The trajectory file {file} is not there. Choose another, or save the run again."
        )
    return folder / name


def described(trajectory: Trajectory) -> str:
    """What was loaded, as the text on the node."""
    names = ", ".join(term.name for term in trajectory.terms)
    best = ", ".join(str(i) for i in sorted(set(trajectory.best)))
    size = "x".join(str(side) for side in reversed(trajectory.images[0].shape[1:3]))
    lines = [f"iteration 0 to {trajectory.last}, {trajectory.batch} of {size}, best: {best}"]
    lines.append(f"rewards: {names}")
    meta = trajectory.meta
    shown = [name for name in FIXED if name in meta and meta[name] != LATER.get(name)]
    widgets = [f"{name} {meta[name]}" for name in shown]
    if trajectory.redraw is not None:
        lines.append("the result is drawn at full quality")
    return "\n".join([*lines, ", ".join(widgets)]).strip()
