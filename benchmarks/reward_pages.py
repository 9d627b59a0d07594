"""Fill the help pages of the rewards with what is known elsewhere: files, numbers, inputs, costs.

    python benchmarks/reward_pages.py

Text between the markers of docs/rewards/*.md is written anew, from the rewards' own entries in the
registry and from benchmarks/results; all other text is written by hand and stays.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from checkout import ROOT, map_pack

PAGES = ROOT / "docs" / "rewards"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(page: str, name: str) -> str:
    """The page of the reward `name`, its generated blocks written anew."""

    def written(found: re.Match[str]) -> str:
        text = BLOCKS[found[1]](name).strip()
        return f"<!-- generated: {found[1]} -->\n{text}\n<!-- end -->"

    return BLOCK.sub(written, page)


def index(_: str) -> str:
    """All rewards: what rises, in which unit, what it needs."""
    from comfyui_dno.rewards import REGISTRY

    rows = [
        (
            f"[{name}]({name}.md)",
            spec.label,
            spec.group,
            spec.summary,
            spec.unit,
            ", ".join(needs(spec)) or "nothing",
            "no" if spec.group == "black box" else "yes",
            spec.licence or "no weights",
        )
        for name, spec in REGISTRY.items()
    ]
    head = (
        "name",
        "label",
        "group",
        "what rises",
        "unit",
        "needs",
        "gradient",
        "licence of weights",
    )
    return table(head, rows)


def needs(spec: Any) -> list[str]:
    """What has to be connected or put into models/dno_rewards before the reward can be used."""
    found = ["prompt"] if spec.prompt and spec.needs_prompt else []
    found += ["reference"] if spec.reference else []
    found += [item.name for item in spec.inputs if item.kind == "model"]
    return found + [item.name for item in spec.inputs if item.name == "address"]


def files(name: str) -> str:
    """Every model that can be downloaded, with its files, size, licence and page."""
    from comfyui_dno.rewards.files.missing import readable_size

    rows = [
        (
            f"`{source.name}`" + ("" if _single(source) else "/"),
            ", ".join(f"[{file.name or 'this file'}]({file.url})" for file in source.files),
            readable_size(source.size) if source.size else "not known",
            source.licence,
            f"<{source.page}>",
        )
        for item in _spec(name).inputs
        for source in item.sources
    ]
    if not rows:
        return "No files are needed."
    head = ("in `models/dno_rewards/`", "holds", "size", "licence", "page")
    return table(head, rows)


def unit(name: str) -> str:
    """The unit, what was measured on the demo model, and where the scale comes from."""
    spec = _spec(name)
    lines = [f"- Unit: {spec.unit}.", f"- Spread (`scale`): {_scales(name)}{spec.scale_source}."]
    rows = [
        (label, *(number(found[key]) for key in ("mean", "scale", "least", "greatest")))
        for label, found in _measured(name)
    ]
    if not rows:
        return "\n".join(lines)
    samples = _results("reward_scales")["samples"]
    head = (f"{samples} plain samples of the demo model", "mean", "spread", "least", "greatest")
    return "\n".join(lines) + "\n\n" + table(head, rows)


def climb(name: str) -> str:
    """What climbing it far did on the demo model."""
    result = _results("reward_climbs")
    found = result["rewards"][name]
    inputs = ", ".join(f"{key} `{value}`" for key, value in result["inputs"].get(name, {}).items())
    rows = [
        (
            label,
            number(found[key]["score"]),
            f"{found[key]['gain']:+.1f}",
            f"{found[key]['judge_gain']:+.1f}",
        )
        for label, key in (("first", "first"), ("returned", "returned"), ("last", "last"))
    ]
    prompts = ", ".join(f'"{prompt}"' for prompt in result["prompts"])
    reference = _spec(name).reference and f', [reference](reference.jpg) "{result["reference"]}"'
    return (
        f"Our own run on the demo model: {prompts}{reference}; {found['iterations']} iterations at "
        f"DNO Sampler's defaults{inputs and ', '}{inputs}. Means of the four; gains in the scales "
        f"of the reward and of the demo judge, which was only watched.\n\n"
        + table(("iteration", "score", "gain", "judge"), rows)
        + f"\n\n![First pictures above, last ones below]({name}.jpg)"
    )


def inputs(name: str) -> str:
    """Every socket and widget of the reward, as Reward Loader tells it."""
    spec = _spec(name)
    lines = []
    if spec.prompt:
        needed = "" if spec.needs_prompt else ", optional"
        lines.append(f"- **prompt** (socket{needed}): {spec.prompt}")
    if spec.reference:
        lines.append(f"- **reference** (socket): {spec.reference}")
    for item in spec.inputs:
        facts = ["socket, optional"] if item.kind == "clip_vision" else []
        if item.kind not in ("model", "clip_vision"):
            facts.append(f"default {_shown(item.default)}")
        facts += ["advanced"] if item.advanced else []
        kinds = f" ({', '.join(facts)})" if facts else ""
        lines.append(f"- **{item.name}**{kinds}: {item.tooltip}")
    return "\n".join(lines) or "None of its own."


def cost(name: str) -> str:
    """Time and memory, as benchmarks/rewards.py measured them."""
    result = _results("rewards")
    if name in result["left_out"]:
        return f"Not measured: {result['left_out'][name]}."
    rows = [
        (
            label,
            f"{size} x {size}",
            _time(found["score_ms"]),
            _time(found["gradient_ms"]) if found["gradient_ms"] is not None else "none",
            f"{number(found['weights_mb'])} MiB" if found["weights_mb"] else "none",
            f"{number(found['working_mb'])} MiB",
        )
        for label, sizes in _variants(result["rewards"], name)
        for size, found in sizes.items()
    ]
    head = ("", "picture", "score", "score and gradient", "weights", "working memory")
    network = any(item.kind == "model" for item in _spec(name).inputs)
    random = "; published networks with random weights, which take the same time" if network else ""
    return (
        "One picture in float32 on one thread of a CPU (`python benchmarks/rewards.py --full`"
        f"{random}).\n\n" + table(head, rows)
    )


def licence(name: str) -> str:
    published = _spec(name).licence
    own = "The code here is this pack's own"
    return f"{own}. Of what was published: {published}." if published else f"{own}; no weights."


BLOCKS: dict[str, Callable[[str], str]] = {
    block.__name__: block for block in (index, files, unit, climb, inputs, cost, licence)
}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Three significant digits, without powers of ten."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(f"{abs(value):e}".partition("e")[2]))
    return f"{value:.{digits}f}"


def _scales(name: str) -> str:
    """The constants of the reward's file, or nothing where they depend on its inputs."""
    module = importlib.import_module(f"comfyui_dno.rewards.{name}")
    if hasattr(module, "SCALE"):
        return f"{module.SCALE:g}; "
    each = [f"{value:g} ({label})" for label, value in getattr(module, "SCALES", {}).items()]
    each += [f"{module.OTHER_SCALE:g} (others)"] if hasattr(module, "OTHER_SCALE") else []
    return f"{', '.join(each)}; " if each else ""


def _time(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{number(milliseconds / 1000)} s"
    return f"{number(milliseconds)} ms"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return f"`{value}`" if value else "empty"


def _spec(name: str) -> Any:
    from comfyui_dno.rewards import REGISTRY

    return REGISTRY[name]


def _single(source: Any) -> bool:
    return [file.name for file in source.files] == [""]


def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _variants(rewards: dict[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """(what stands in brackets, entry) of every "name (variant)"; the bare name for no variant."""
    for key, found in rewards.items():
        own, _, variant = key.partition(" (")
        if own == name:
            yield variant[:-1] or name, found


def _measured(name: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Scores of plain samples; those of compressibility are incompressibility's, negative."""
    rewards = _results("reward_scales")["rewards"]
    if name != "jpeg_compressibility":
        kind = "quality " if name.startswith("jpeg") else ""
        for label, found in _variants(rewards, name):
            yield kind + label, found
        return
    for label, found in _variants(rewards, "jpeg_incompressibility"):
        turned = {"least": -found["greatest"], "greatest": -found["least"], "mean": -found["mean"]}
        yield f"quality {label}", {**found, **turned}


def pages() -> dict[str, Path]:
    """The pages by the names of their rewards, and the index, README."""
    return {page.stem: page for page in sorted(PAGES.glob("*.md"))}


def main() -> None:
    map_pack()
    for name, page in pages().items():
        old = page.read_text(encoding="utf-8")
        page.write_text(filled(old, name), encoding="utf-8")


if __name__ == "__main__":
    main()
