"""What every reward costs: time and memory of a score, of a gradient, and of its preprocessing.

    python benchmarks/rewards.py [--full] [--missing] [--only NAME ...] [--sizes 512 1024]
    python benchmarks/rewards.py --quick

One picture, one thread of a CPU, float32. Time is process time, the median of `--repeats`; a
process of its own measures each reward. A score is what a black box is asked for; a gradient is
score and backward; preprocessing is what stands before the network (resize, crop, normalise),
forward and backward. Texts and references are embedded once a run and left out. `--full` adds the
published models at their size with random weights, up to 4 GB each. `--missing` measures only what
the result file has not. Results go to benchmarks/results/rewards.json; `--quick` (one size, one
repeat) only prints, unless an --output is given.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from checkout import ROOT, map_pack, start_comfyui
from reward_cases import Case, cases, left_out
from torch import Tensor

RESULTS = ROOT / "benchmarks" / "results" / "rewards.json"
PROMPT = "a red fox in the snow"
DEMO = "demo model"
SIZES, REPEATS = (512, 1024), 3


def picture(size: int, seed: int) -> Tensor:
    """[1, 3, S, S] in [0, 1] with the spectrum of a smooth photograph: amplitude frequency^-1.5,
    more of it in the grey than in the colours.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.fft.rfft2(torch.randn(4, size, size, generator=generator))
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    frequency = (rows.square() + columns.square()).sqrt().clamp(1 / size)
    noise[:, 0, 0] = 0
    waves = torch.fft.irfft2(noise / frequency**1.5)
    grey, *colours = waves / waves.std((1, 2), keepdim=True)
    return (0.5 + 0.2 * grey + 0.05 * torch.stack(colours))[None].clamp(0, 1)


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """Median process time of a run: what other programs take of the machine does not count."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - began))
    return statistics.median(taken)


def measure(case: Case, size: int, repeats: int) -> dict[str, float | None]:
    """Times in ms, memory in MB (2^20 bytes); None where a reward has no such part."""
    from comfyui_dno.rewards import Context, create

    images, reference = picture(size, 0), picture(size, 1)
    context = Context(prompts=(PROMPT,), references=reference)
    with tempfile.TemporaryDirectory() as folder:
        reward = create(case.reward, **case.inputs(Path(folder)))
        reward.score(images, context)  # embeds the texts

        def score() -> None:
            with torch.no_grad():
                reward.score(images, context)

        def gradient() -> None:
            leaf = images.clone().requires_grad_(True)
            torch.autograd.grad(reward.score(leaf, context).sum(), leaf)

        work = gradient if reward.differentiable else score
        working = peak_of(work)
        found: dict[str, float | None] = {
            "score_ms": milliseconds(score, repeats),
            "gradient_ms": milliseconds(gradient, repeats) if reward.differentiable else None,
            "preprocessing_ms": preprocessing_time(score, images, repeats),
            "weights_mb": sum(map(weight_bytes, reward.modules)) / 2**20,
            "working_mb": working,
        }
    whole, part = found["gradient_ms"], found["preprocessing_ms"]
    found["preprocessing_share"] = part / whole if whole and part else None
    return found


def preprocessing_time(score: Callable[[], Any], images: Tensor, repeats: int) -> float | None:
    """Of the preprocessing that this call to `score` does; None if it does none."""
    from comfyui_dno.rewards.towers.preprocessing import preprocess

    settings = preprocessing_in(score)
    if settings is None:
        return None

    def forward_and_backward() -> None:
        leaf = images.clone().requires_grad_(True)
        torch.autograd.grad(preprocess(leaf, settings).sum(), leaf)

    return milliseconds(forward_and_backward, repeats)


def preprocessing_in(score: Callable[[], Any]) -> Any:
    """The Preprocessing that `score` hands to `preprocess`, wherever in the pack it calls it."""
    from comfyui_dno.rewards.towers.preprocessing import preprocess

    seen: list[Any] = []

    def noting(images: Tensor, settings: Any) -> Tensor:
        seen.append(settings)
        return preprocess(images, settings)

    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("comfyui_dno.") and vars(module).get("preprocess") is preprocess
    ]
    for module in users:
        module.preprocess = noting  # type: ignore[attr-defined]
    try:
        score()
    finally:
        for module in users:
            module.preprocess = preprocess  # type: ignore[attr-defined]
    return seen[0] if seen else None


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in module.parameters())


def peak_of(work: Callable[[], Any]) -> float | None:
    """Megabytes that `work` takes at its peak above what is there before; Linux only."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        work()
        return None
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps would hide what is taken anew
    before = _resident("VmRSS")
    reset.write_text("5", encoding="utf-8")  # the peak starts anew from here
    work()
    return max(0, _resident("VmHWM") - before) / 2**10


def _resident(field: str) -> int:
    """kB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def demo_forward(repeats: int) -> float:
    """Milliseconds of the demo model's 10 steps at its size (128 x 128, cfg 3)."""
    start_comfyui()
    from reward_scales import plain_samples

    with torch.inference_mode():
        samples = plain_samples(["fox"] * (repeats + 1), 1)
        next(samples)  # loads the model
        return milliseconds(lambda: next(samples), repeats)


def apart(name: str, size: int, repeats: int) -> Any:
    """What a process of its own measures; raises CalledProcessError with what it wrote."""
    command = [sys.executable, __file__, "--one", name]
    command += ["--sizes", str(size), "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    return {key: rounded(part) for key, part in value.items()} if isinstance(value, dict) else value


def line(name: str, size: str, found: dict[str, Any], demo: float) -> str:
    gradient, share, working = (
        found[key] for key in ("gradient_ms", "preprocessing_share", "working_mb")
    )
    cells = [
        f"{name:32}{size:>5}{found['score_ms']:>10.4g}",
        f"{gradient:>10.4g}" if gradient else f"{'-':>10}",
        f"{share:>8.1%}" if share else f"{'-':>8}",
        f"{(gradient or found['score_ms']) / demo:>8.2g}",
        f"{found['weights_mb']:>9.0f}",
        f"{working:>9.0f}" if working is not None else f"{'-':>9}",
    ]
    return "".join(cells)


HEADER = (
    f"{'reward':32}{'size':>5}{'score':>10}{'gradient':>10}{'pre':>8}{'demo':>8}"
    f"{'weights':>9}{'working':>9}\n{'':37}{'ms':>10}{'ms':>10}{'share':>8}{'runs':>8}"
    f"{'MB':>9}{'MB':>9}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="published models too, random weights")
    parser.add_argument("--missing", action="store_true", help="only what the file has not")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rewards or cases by name")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--quick", action="store_true", help="one size, one repeat, print only")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    map_pack()
    torch.set_num_threads(1)
    if given.one == DEMO:
        print(json.dumps(demo_forward(given.repeats)))
        return
    if given.one:
        print(json.dumps(measure(cases()[given.one], given.sizes[0], given.repeats)))
        return
    sizes, repeats = ([512], 1) if given.quick else (given.sizes, given.repeats)
    output = given.output or (None if given.quick else RESULTS)
    old = json.loads(output.read_text(encoding="utf-8")) if output and output.is_file() else {}
    wanted = [
        case
        for case in cases().values()
        if (given.full or not case.full)
        and (not given.only or {case.name, case.reward} & set(given.only))
    ]
    result = {
        "command": "python benchmarks/rewards.py --full",
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "demo_forward_ms": rounded(apart(DEMO, 0, repeats)),
        "rewards": old.get("rewards", {}),
        "left_out": left_out(),
    }
    print(f"The demo model's 10 steps: {result['demo_forward_ms']:.0f} ms\n{HEADER}")
    for case in wanted:
        rows = result["rewards"].setdefault(case.name, {})
        for size in map(str, sizes):
            if not (given.missing and size in rows):
                try:
                    rows[size] = rounded(apart(case.name, int(size), repeats))
                except RuntimeError as error:
                    print(f"{case.name:32}{size:>5}  failed: {error}")
                    continue
                if output is not None:
                    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(line(case.name, size, rows[size], result["demo_forward_ms"]), flush=True)
    for name, reason in result["left_out"].items():
        print(f"{name}: left out, {reason}")


if __name__ == "__main__":
    main()
