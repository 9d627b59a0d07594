"""The models of the measurement, one at a time on the device, and the runs on them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .cases import Case, Rival
from .families import SD15, SDXL, Family, model, taesd_weights, tiny, vae
from .machine import Machine
from .rival import RUN_HALF, measure_published
from .sheet import Sheet
from .timing import Watch, measure, request
from .work import Calls, Flops, flops_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TINY_DECODERS = ("taesd", "taesdxl")
DRY_STEPS = 4
CLIP_PROMPT = "a red fox in the snow"


class Bench:
    """Holds the model in use: making one with random weights takes seconds, moving it as long."""

    def __init__(self, machine: Machine, sheet: Sheet) -> None:
        self.machine, self._sheet = machine, sheet
        self._key: tuple[str, str] | None = None
        self._parts: tuple[Family, Any, Any] | None = None
        self._clip: Any = None
        self._peaks: dict[str, float] = {}
        self._flops: dict[str, Flops] = {}

    def run(self, case: Case | Rival, seconds: float) -> None:
        """Measure the case and add its row; no iteration begins after `seconds`."""
        parts = self._on_device(case.family, case.precision)
        steps = min(case.steps, DRY_STEPS) if self.machine.dry else case.steps
        if isinstance(case, Rival):
            steps = steps // 2 if self.machine.dry else steps
            autocast = RUN_HALF if case.autocast else None
            found = measure_published(steps, self.machine, parts, seconds, autocast)
            named = {"family": case.family, "steps": case.steps, "precision": case.precision}
            self._sheet.add("published", {**named, "autocast": case.autocast, **found})
            return
        inner, context = self._reward(case.reward)
        found = measure(
            case,
            steps,
            self.machine,
            parts,
            self._flops_of(case.family),
            self.matrix_peak(case.precision),
            seconds,
            inner,
            context,
        )
        self._sheet.add("iterations", {**case.row, **found})

    def matrix_peak(self, precision: str) -> float:
        """FLOP/s."""
        if precision not in self._peaks:
            self._peaks[precision] = self.machine.matrix_peak(DTYPES[precision])
            peaks = {name: value / 1e12 for name, value in self._peaks.items()}
            rows = [
                {"precision": name, "matrix_peak_tflops": value} for name, value in peaks.items()
            ]
            self._sheet.put("matrix_peaks", rows)
        return self._peaks[precision]

    def close(self) -> None:
        """Nothing of ours stays on the device."""
        import comfy.model_management

        self._key = self._parts = self._clip = None
        self.machine.begin()
        comfy.model_management.unload_all_models()
        self.machine.begin()

    def _on_device(self, name: str, precision: str) -> tuple[Family, Any, Any]:
        """Family, MODEL and VAE; made, and warmed up with a short run, unless they are there."""
        if self._key == (name, precision) and self._parts is not None:
            return self._parts
        self.close()
        family = self._family(name)
        device, dry = self.machine.device, self.machine.dry
        made = model(family, DTYPES[precision], device)
        self._parts = family, made, vae(device, small=dry)
        self._key = name, precision
        self._warm_up()
        return self._parts

    def _warm_up(self) -> None:
        """Two steps: the first calls load kernels and pick algorithms."""
        from comfyui_dno.nodes import optimization

        assert self._parts is not None
        watch = Watch(self.machine, Calls())
        optimization.run(request(*self._parts, watch, 2))

    def _family(self, name: str) -> Family:
        family = next(each for each in (SD15, SDXL) if each.name == name)
        return tiny(family) if self.machine.dry else family

    def _flops_of(self, name: str) -> Flops:
        if name not in self._flops:
            self._flops[name] = flops_of(self._family(name), self.machine.dry)
        return self._flops[name]

    def _reward(self, kind: str) -> tuple[Any, Any]:
        if kind == "pixels":
            return None, None
        from comfyui_dno.rewards import Context

        if self._clip is None:
            self._clip = clip_reward(self.machine.dry)
        return self._clip, Context(prompts=(CLIP_PROMPT,))


@cache
def clip_reward(small: bool) -> Any:
    """CLIP score on a CLIP with random weights: ViT-L/14, or a tiny one."""
    from full_size import CLIP_L_14, Clip, Vit, write_clip

    from comfyui_dno.rewards import create

    shape = CLIP_L_14
    if small:
        shape = Clip(Vit(32, 1, 2, 64, 32, 16), Vit(32, 1, 2, 64, 77), 16, "quick_gelu")
    folder = Path(tempfile.mkdtemp(prefix="dno-clip-"))
    return create("clip_score", model=str(write_clip(folder, shape)))


def write_tiny_decoders() -> None:
    """TAESDs with random weights where ComfyUI looks for them, in this run's own base folder."""
    import folder_paths
    from safetensors.torch import save_file

    folder = Path(folder_paths.get_folder_paths("vae_approx")[0])
    folder.mkdir(parents=True, exist_ok=True)
    weights = taesd_weights()
    for part in ("encoder", "decoder"):
        prefix = f"taesd_{part}."
        state = {
            key.removeprefix(prefix): value.contiguous()
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        for name in TINY_DECODERS:
            save_file(state, folder / f"{name}_{part}.safetensors")
