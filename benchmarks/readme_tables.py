"""Write the tables of README.md and docs/benchmarks.md from the committed result files.

    python benchmarks/readme_tables.py

Text between the markers `<!-- generated: NAME -->` and `<!-- end -->` is written anew; all other
text is written by hand and stays. A page need not have all of the blocks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")
BLOCK = re.compile(r"<!-- generated: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)

sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_parts import tables as gpu_tables  # noqa: E402
from gpu_parts.tables import markdown  # noqa: E402

WASTE = {
    "pictures": "a decode and a copy to the CPU after every sampling step",
    "permutations": "100 permutations one by one",
    "texts": "the prompt embedded anew in every iteration",
    "unused_noise": "a noise that no step uses",
    "recomputed": "every step computed twice instead of its graph kept",
}
PARTS = {
    "forward": "a denoiser step forward",
    "recompute_and_pull": "the same step recomputed and pulled back",
    "keep_and_pull": "a step forward with its graph kept, and pulled back",
    "published_step": "published: a step with a gradient checkpoint, forward and backward",
    "decode": "a decode",
    "decode_pull": "its gradient, block by block",
    "published_decode_and_backward": "published: the last decode and its backward",
    "regularizer": "the regularizer and its gradient",
    "p_of_z": "P(z)",
    "published_regularizer": "published: the regularizer and its backward",
}


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def gpu_results() -> list[dict[str, Any]]:
    """Of every GPU that was measured, dry runs left out."""
    found = [load(path.name) for path in sorted(RESULTS.glob("gpu_*.json"))]
    return [result for result in found if not result.get("dry_run", True)]


def three(value: float | None) -> str:
    """Three digits, large numbers whole."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def iteration() -> str:
    """Ours against the published algorithm, by steps and policy."""
    rows = (
        (steps, policy, *(three(found[key]) for key in ("ours_seconds", "published_seconds")),
         f"{found['ratio']:.2f}")
        for steps, policies in load("iteration.json")["steps"].items()
        for policy, found in policies.items()
    )  # fmt: skip
    return markdown(("steps", "graphs", "ours, s", "published, s", "times faster"), rows)


def waste() -> str:
    """What each waste adds to an iteration of the published algorithm."""
    measured = {
        steps: found
        for steps, policies in load("iteration.json")["steps"].items()
        for found in policies.values()
        if "waste_seconds" in found
    }
    head = ["left out", *(f"seconds saved at {steps} steps" for steps in measured)]
    rows = [
        [text, *(f"{found['waste_seconds'][name]:+.3f}" for found in measured.values())]
        for name, text in WASTE.items()
    ]
    return markdown(head, rows)


def full_size() -> str:
    """Iterations at the size of SD1.5, put together from their parts."""
    rows = (
        (steps, *(three(found[f"{name}_seconds"]) for name in ("recompute", "store", "published")),
         *(f"{found[f'ratio_{name}']:.2f}" for name in ("recompute", "store")))
        for steps, found in load("full_size_parts.json")["steps"].items()
    )  # fmt: skip
    head = ("steps", "recompute, s", "store, s", "published, s", "times faster, recompute", "store")
    return markdown(head, rows)


def full_size_parts() -> str:
    """What those iterations are made of."""
    parts = load("full_size_parts.json")["parts_seconds"]
    return markdown(("part", "seconds"), ((PARTS[name], three(parts[name])) for name in PARTS))


def gain() -> str:
    """Seconds to 90 % of the exact mode's gain, arm by arm."""
    head = (
        "way", "s / first iteration", "iterations", "seconds", "times faster", "judge",
        "% of the gain, at the end",
    )  # fmt: skip
    rows = (
        (row["label"], three(row["seconds_an_iteration"]), str(row["iteration"] or "-"),
         three(row["seconds"]), three(row.get("speed_up")), three(row["judge"]),
         f"{100 * row['share_of_all']:.0f}")
        for row in load("time_to_gain.json")["arms"].values()
    )  # fmt: skip
    return markdown(head, rows)


def memory() -> str:
    """Peaks by policy, over steps and over the batch, in MB."""
    result = load("memory.json")
    counts = list(next(iter(result["over_steps"].values()))["mb"])
    sizes = [size for size in next(iter(result["over_batch"].values())) if size != "1"]
    head = [
        "peak MB, graphs",
        *(f"{count} steps" for count in counts),
        f"{counts[-1]} : {counts[0]}",
    ]
    head += [f"batch {size}" for size in sizes]
    return markdown(head, memory_rows(result, counts, sizes))


def memory_rows(result: dict[str, Any], counts: list[str], sizes: list[str]) -> Iterator[list[str]]:
    for policy, found in result["over_steps"].items():
        cells = [three(found["mb"][count]) for count in counts] + [f"{found['ratio']:.2f}"]
        batch = result["over_batch"].get(policy, {})
        yield [policy, *cells, *(three(batch.get(size)) for size in sizes)]


def regularizer() -> str:
    """L_reg and its gradient, SD1.5's 51 noises."""
    cost = load("regularizer.json")["cost"]
    peaks = cost["peak_megabytes"]
    rows = (
        ("the published loop", three(cost["loop_seconds"]), "1", three(peaks["loop"])),
        *(
            (f"ours, {family} permutations", three(cost[f"{family}_seconds"]),
             three(cost[f"ratio_{family}"]), three(peaks[family]))
            for family in ("uniform", "structured")
        ),
    )  # fmt: skip
    return markdown(("", "seconds", "times faster", "peak MB"), rows)


def machines() -> str:
    """Where the numbers of the CPU come from."""
    result = load("iteration.json")
    return f"{result['device']}, torch {result['torch']}, the demo model at {result['pixels']} px."


def gpu() -> str:
    """All tables of every GPU that was measured."""
    return "\n\n".join(gpu_tables.tables(result) for result in gpu_results()) or (
        "No GPU was measured yet: `python run.py bench --gpu` on one does it within 8 minutes."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "iteration": iteration,
    "waste": waste,
    "full-size": full_size,
    "full-size-parts": full_size_parts,
    "gain": gain,
    "memory": memory,
    "regularizer": regularizer,
    "machines": machines,
    "gpu": gpu,
}


def filled(page: str) -> str:
    """The page with its generated blocks written anew; other generators' blocks stay.

    So does a block whose benchmark has no committed result.
    """

    def written(found: re.Match[str]) -> str:
        if found[1] not in BLOCKS:
            return found[0]
        try:
            text = BLOCKS[found[1]]().strip()
        except FileNotFoundError:
            return found[0]
        return f"<!-- generated: {found[1]} -->\n{text}\n<!-- end -->"

    return BLOCK.sub(written, page)


def main() -> None:
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        path.write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
