"""The batched probability regularizer against a plain loop over permutations: time, memory, power.

    python benchmarks/regularizer.py [--numbers 835584] [--permutations 100] [--repeats 3]
    python benchmarks/regularizer.py --power | --quick

All compute L_reg and its gradient of the same noise on one thread. The loop is the published
algorithm: every permutation drawn on the CPU, four scalars fetched, a singular value
decomposition for the norm, autograd for the gradient. Against it stand uniform permutations
(the same ones; drawn anew by each, and handed ready to both) and structured ones. Memory is the
peak of a process of its own. `--power`: how often planted deviations are found by P(z) under
either family. Results go to benchmarks/results/regularizer.json; `--quick` (few numbers) only
prints, unless an --output is given.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import detection  # noqa: E402
from benchmarks.published import regularization  # noqa: E402
from dno_core.probability.arrangements import (  # noqa: E402
    FAMILIES,
    Arrangements,
    arrangements,
    lowest_log_p,
    permutation_penalty,
)
from dno_core.probability.permutations import Permutations  # noqa: E402
from dno_core.probability.typicality import MEASURE_SEED, NULL_DRAWS, Typicality  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "regularizer.json"
K = 4
CPU = torch.device("cpu")

SIZES = {
    "mean shift": (0.03, 0.035, 0.04),
    "scale": (0.035, 0.04, 0.045),
    "correlation inside a row": (0.16, 0.18, 0.2),
    "correlation along one permutation": (0.16, 0.18, 0.2),
    "correlation at a lag": (0.2, 0.3, 0.4),
    "heavy tails": (1.25, 1.5, 2.0),
    "slow drift": (0.2, 0.3),
}
QUICK_NUMBERS = 20_480
POWER_NUMBERS, POWER_DRAWS, POWER_NULL = 8_192, 2_000, 10_000


def loop_penalty(z: Tensor, orders: Sequence[Tensor | None]) -> tuple[float, Tensor]:
    """L_reg of noise z [n] and its gradient, one permutation after another.

    An order that is None is drawn when its turn comes.
    """
    leaf = z.clone().requires_grad_()
    total = regularization(leaf, orders)
    total.backward()
    assert leaf.grad is not None
    return total.item(), leaf.grad


def same_orders(permuted: Permutations) -> list[Tensor]:
    """The permutations as the loop reads them: k numbers of a row side by side, int64."""
    whole = permuted.n // K * K
    orders = torch.cat(list(permuted.chunks(1)))[:, :whole]
    return [order.view(K, -1).T.flatten().long() for order in orders]


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median process time of a run: what other programs take of the machine does not count."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def noise(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0))


def times(n: int, b: int, repeats: int) -> dict[str, Any]:
    z = noise(n)

    def made(family: Any, keep: bool = False) -> Arrangements:
        return arrangements(family, n, K, b, 1, CPU, keep)

    def ours(permuted: Arrangements) -> tuple[Tensor, Tensor]:
        return permutation_penalty(z[None], K, permuted)

    kept = made("uniform", keep=True)
    assert isinstance(kept, Permutations)
    orders = same_orders(kept)
    value, gradient = ours(kept)
    expected, slope = loop_penalty(z, orders)
    error = float((gradient[0] - slope).norm() / slope.norm())
    assert abs(float(value) - expected) < 1e-3 and error < 1e-2, (float(value), expected, error)

    loop = seconds(lambda: loop_penalty(z, [None] * b), repeats)
    loop_handed = seconds(lambda: loop_penalty(z, orders), repeats)
    handed = seconds(lambda: ours(kept), repeats)
    drawn = seconds(lambda: ours(made("uniform")), repeats)
    structured = seconds(lambda: ours(made("structured")), repeats)
    return {
        "loop_seconds": loop,
        "loop_handed_seconds": loop_handed,
        "uniform_seconds": drawn,
        "uniform_handed_seconds": handed,
        "structured_seconds": structured,
        "ratio_uniform": loop / drawn,
        "ratio_uniform_handed": loop_handed / handed,
        "ratio_structured": loop / structured,
        "uniform_gradient_relative_difference": error,
        "awake_share": float(
            torch.cat([found.awake().flatten() for found in kept.statistics(z[None], K)])
            .float()
            .mean()
        ),
    }


def measuring(repeats: int) -> dict[str, float]:
    """P(z) of SD1.5's 50 noises at 512 x 512, all together and each by itself."""
    z = torch.randn(50, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    first = seconds(lambda: Typicality()(z), 1)
    typicality = Typicality()
    typicality(z)
    return {
        "p_of_z_first_seconds": first,
        "p_of_z_null_draws": NULL_DRAWS,
        "p_of_z_seconds": seconds(lambda: typicality(z), 5 * repeats),
    }


def peak(family: str, n: int, b: int) -> int:
    """Peak resident bytes of this process after L_reg and its gradient, or before ("nothing")."""
    z = noise(n)
    if family == "loop":
        loop_penalty(z, [None] * b)
    elif family == "P(z)":
        z = z[: n // 16_384 * 16_384].view(-1, 1, 4, 64, 64)
        Typicality()(z)
    elif family != "nothing":
        permutation_penalty(z[None], K, arrangements(family, n, K, b, 1, CPU))  # type: ignore[arg-type]
    status = Path("/proc/self/status")
    if status.is_file():  # Linux' ru_maxrss would count what the parent had in use
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def memory(n: int, b: int) -> dict[str, int]:
    """Peak megabytes above a process that holds torch and the noise."""
    found = {}
    for family in ("nothing", *FAMILIES, "loop", "P(z)"):
        command = [sys.executable, __file__, "--peak", family]
        command += ["--numbers", str(n), "--permutations", str(b)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[family] = int(done.stdout)
    base = found.pop("nothing")
    return {family: round((used - base) / 2**20) for family, used in found.items()}


def power(n: int, b: int) -> dict[str, Any]:
    detectors = {}
    for family in FAMILIES:
        permuted = arrangements(family, n, K, b, MEASURE_SEED, CPU, keep=True)

        def detector(z: Tensor, permuted: Arrangements = permuted) -> Tensor:
            return lowest_log_p(z, K, permuted)

        detectors[family] = (detector, detection.rows_of(permuted, n))
    return {
        "numbers": n,
        "permutations": b,
        "draws": POWER_DRAWS,
        "null_draws": POWER_NULL,
        "false_alarms": detection.FALSE_ALARMS,
        "found": detection.table(detectors, SIZES, n, POWER_DRAWS, POWER_NULL),
    }


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=835_584, help="SD1.5, 51 noises")
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--power", action="store_true", help="detection rates instead of times")
    parser.add_argument("--quick", action="store_true", help="few numbers, one repeat, print only")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    n, b, repeats = given.numbers, given.permutations, given.repeats
    if given.quick:
        n, b, repeats = QUICK_NUMBERS, 10, 1
    if given.peak:
        print(peak(given.peak, n, b))
        return
    output = given.output or (None if given.quick else RESULTS)
    result = json.loads(output.read_text(encoding="utf-8")) if output and output.is_file() else {}
    if given.power:
        result["power"] = power(POWER_NUMBERS, b)
    else:
        result["cost"] = {
            "numbers": n,
            "permutations": b,
            "torch": torch.__version__,
            "machine": platform.machine(),
            **times(n, b, repeats),
            **measuring(repeats),
            "peak_megabytes": memory(n, b),
        }
    result = rounded(result)
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
