"""What only a GPU shows: speed and memory at full size, attention kernels, fp8, offload.

    python benchmarks/gpu.py [--minutes 8] [--output DIR]     measure; about 8 minutes at most
    python benchmarks/gpu.py --dry-run                        the same on a CPU, tiny: no numbers
    python benchmarks/gpu.py --table FILE                     the tables of a result, as markdown

Needs an NVIDIA GPU and nothing from the network: the models are ComfyUI's own classes at their
published size with random weights (SD1.5 at 512, SDXL at 1024), made on the GPU. 24 GB show all
of it; on a smaller card what does not fit is listed as a failure and the rest goes on.

It runs in the interpreter that starts it. That one has to hold what ComfyUI itself needs: torch
and torchvision with CUDA, torchaudio, torchsde, numpy, scipy, einops, pillow, psutil, tqdm,
pyyaml, safetensors, transformers, tokenizers, sentencepiece, aiohttp, yarl, requests, pydantic,
pydantic-settings, SQLAlchemy, alembic, av, blake3, filelock, kornia, spandrel, simpleeval,
comfy-aimdo and comfy-kitchen, and open_clip_torch; pytest for the last stage. What is missing is
named before anything starts. ComfyUI's tree is the one that COMFYUI_PATH names, or the
one that the pack lies in, or the one that `python run.py demo` fetched.

Stages, each as far as time allows, in order of value:
    iterations   seconds of an iteration through the node's own path, peak memory of the process
                 (weights included, from the start of the run to its last score), share of the
                 matrix peak; the published algorithm beside it
    gradients    central differences in float32; likeness to them elsewhere
    tests        pytest -m gpu

Memory is torch's own: what a driver keeps for itself (some 0.5 GB) comes on top. With ComfyUI's
main.py the allocator is cudaMallocAsync; here it is torch's. The file gpu_NAME.json in --output is
written after every row, so a run that is ended keeps what it has; it ends itself in time. Exits
with 1 where a target is missed, a gradient is wrong or something failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STAGES = ("iterations", "gradients", "tests")
NEEDED = (
    "torch", "torchvision", "torchaudio", "torchsde", "numpy", "scipy", "einops", "PIL", "psutil",
    "tqdm", "yaml", "safetensors", "transformers", "tokenizers", "sentencepiece", "aiohttp",
    "yarl", "requests", "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "av", "blake3",
    "filelock", "kornia", "spandrel", "simpleeval", "comfy_aimdo", "comfy_kitchen", "open_clip",
)  # fmt: skip
RESERVED = {"iterations": 130.0, "gradients": 70.0, "tests": 5.0}
"""Seconds that a stage leaves to those after it."""
CASE_SECONDS, LEAST_SECONDS = 25.0, 12.0
"""After the first no further iteration of a case begins; with less than the second, no case."""
MARGIN = 4.0
"""Seconds before its end at which a run that hangs is ended."""


def main() -> int:
    given = arguments()
    if given.table:
        from gpu_parts.tables import tables

        print(tables(json.loads(given.table.read_text(encoding="utf-8"))), end="")
        return 0
    _require(given.dry_run)
    seconds = 60 * given.minutes
    faulthandler.dump_traceback_later(
        max(seconds - MARGIN - (time.monotonic() - BEGAN), 1), exit=True
    )
    from checkout import start_comfyui

    start_comfyui(gpu=not given.dry_run)
    import comfyui_version
    import torch
    from gpu_parts.machine import Machine
    from gpu_parts.sheet import Sheet

    machine = Machine(given.dry_run)
    device = machine.description()
    head = {
        "command": "python benchmarks/gpu.py" + (" --dry-run" if given.dry_run else ""),
        "dry_run": given.dry_run,
        "device": device,
        "comfyui": comfyui_version.__version__,
    }
    path = given.output / f"gpu_{re.sub('[^a-z0-9]+', '_', device['name'].lower())}.json"
    path = given.output / "gpu_dry_run.json" if given.dry_run else path
    sheet = Sheet(path, seconds - (time.monotonic() - BEGAN), given.dry_run, head)
    print(f"{device['name']}; results in {path}", flush=True)
    work = {"iterations": iterations, "gradients": gradients, "tests": tests}
    with torch.inference_mode():  # as ComfyUI runs every prompt
        for stage in given.only:
            work[stage](machine, sheet)
    faulthandler.cancel_dump_traceback_later()
    return conclude(sheet)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, no numbers")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a result's tables")
    given = parser.parse_args()
    if given.output is None:
        given.output = Path(tempfile.mkdtemp(prefix="dno-gpu-")) if given.dry_run else RESULTS
    return given


def _require(dry: bool) -> None:
    """End with a sentence that says what is missing and what to do."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"This Python ({sys.executable}) has no {', '.join(missing)}. Start this with the one "
            "that runs your ComfyUI, or install them there."
        )
    import torch

    if not dry and not torch.cuda.is_available():
        sys.exit(
            "torch finds no NVIDIA GPU here. Run this on a machine with one, or add --dry-run to "
            "see that it runs."
        )


def iterations(machine: Any, sheet: Any) -> None:
    """Seconds, memory and matrix share of every case, and of the published algorithm."""
    from gpu_parts.bench import Bench, write_tiny_decoders
    from gpu_parts.cases import cases
    from gpu_parts.targets import targets

    write_tiny_decoders()
    bench = Bench(machine, sheet)
    for case in cases():
        left = sheet.seconds_left - RESERVED["iterations"]
        if left < LEAST_SECONDS:
            sheet.skip("iterations", case.name, "no time was left")
            continue
        try:
            bench.run(case, min(CASE_SECONDS, left))
        except Exception as error:
            sheet.fail("iterations", case.name, error)
            bench.close()
        sheet.put("targets", targets(sheet.content))
        _say(case.name, sheet)
    bench.close()


def gradients(machine: Any, sheet: Any) -> None:
    """Every check of gpu_parts.gradients, each on models of its own."""
    from gpu_parts.gradients import Absent, Gradients

    work = Gradients(machine)
    for check in work.checks():
        if sheet.seconds_left - RESERVED["gradients"] < LEAST_SECONDS / 2:
            sheet.skip("gradients", check.name, "no time was left")
            continue
        try:
            sheet.add("gradients", {"name": check.name, **check.work()})
        except Absent as absent:
            sheet.skip("gradients", check.name, str(absent))
        except Exception as error:
            sheet.fail("gradients", check.name, error)
            work.clear()
        _say(check.name, sheet)
    work.clear()


def tests(machine: Any, sheet: Any) -> None:
    """The tests that are marked gpu, in a process of their own."""
    from checkout import ROOT

    marked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *marked]
    left = sheet.seconds_left - RESERVED["tests"]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "COMFYUI_PATH": str(_tree())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=max(left, 1),
        )
    except subprocess.TimeoutExpired as error:
        sheet.fail("tests", "pytest -m gpu", error)
        return
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    row = {"passed": done.returncode == 0, "summary": lines[-1] if lines else ""}
    row["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if done.returncode and not row["failed"]:
        row["failed"] = (done.stderr.splitlines() or lines)[-3:]
    sheet.put("tests", row)
    _say(f"pytest -m gpu: {row['summary']}", sheet)


def _tree() -> Path:
    from comfyui_dno.launcher import comfyui

    return next(comfyui.places())


def conclude(sheet: Any) -> int:
    """Print what was found; 1 if anything is not as it should be."""
    from gpu_parts.tables import tables

    result = sheet.content
    sheet.write()
    if not result["dry_run"]:
        print("\n" + tables({"targets": [], **result}))
    for row in result["skipped"]:
        print(f"skipped: {row['name']} ({row['reason']})")
    for row in result["failures"]:
        print(f"FAILED: {row['name']}: {row['error']}")
    checks = [*result.get("targets", []), *result.get("gradients", [])]
    verdicts = [row.get("met", row.get("passed")) for row in checks]
    verdicts.append(result.get("tests", {}).get("passed"))
    return int(bool(result["failures"]) or False in verdicts)


def _say(name: str, sheet: Any) -> None:
    print(f"{sheet.seconds_left:4.0f} s left  {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
