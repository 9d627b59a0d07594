"""Which gradients are right on this device: attention kernels, precisions, fp8, offload, policies.

In float32 a row passes by central differences; everywhere else by its likeness to the gradient
of the same weights in float32 (or of the fp8 weights in bf16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .families import SD15, Family, model, tiny, vae
from .flux import FLUX, flux_model
from .machine import Machine, out_of_tf32
from .slopes import FINE, likeness, probe
from .timing import Watch, request
from .work import Calls

PIXELS, STEPS = 256, 4
SLOPE_TOLERANCE = 0.05
HALF_TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1}
"""1 - cosine with the gradient in float32: rounding of activations, gathered over four steps."""
SAME_TOLERANCE = 1e-3
"""1 - cosine of two ways to compute the same numbers."""


class Absent(Exception):
    """The check needs what this machine has not got; says what."""


@dataclass(frozen=True)
class Check:
    """A gradient to compute. name: of the row. work: what gives it."""

    name: str
    work: Callable[[], dict[str, Any]]


class Gradients:
    """All checks, on one UNet of SD1.5's size at 256 pixels (or a tiny one)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._family = tiny(SD15) if machine.dry else SD15._replace(pixels=PIXELS)
        self._references: dict[str, Tensor] = {}
        self._vae: Any = None
        self._kept: tuple[Any, Any] | None = None
        out_of_tf32()

    def checks(self) -> Iterator[Check]:
        """In order of value."""
        wide, half = torch.float32, torch.bfloat16
        kernels = ("attention_pytorch", "attention_sub_quad", "attention_split")
        for name in kernels:
            yield self._kernel(name, wide)
        for dtype in (half, torch.float16):
            yield Check(f"precision {_short(dtype)}", partial(self._precision, dtype))
        for policy in ("store", "recompute", "recompute blocks"):
            yield Check(f"graph_memory {policy}", partial(self._policy, policy))
        yield Check("offloaded weights", self._offloaded)
        yield Check("fp8 weights, computed in bf16", self._fp8)
        yield Check("fp8 tensor-core layer", self._fp8_layer)
        yield Check("Flux with in_training", partial(self._flux, training=True))
        yield Check("Flux without in_training", partial(self._flux, training=False))
        for name in kernels[1:]:
            yield self._kernel(name, half)
        for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            yield Check(f"sdpa {backend}", partial(self._sdpa, backend))
        yield self._kernel("attention_xformers", half)
        for name in ("attention_flash", "attention_sage"):
            yield Check(f"{name} switched on", partial(self._switched_on, name))
            yield Check(f"{name} by itself", self._kernel(name, half, may_fail=True).work)

    def _kernel(self, name: str, dtype: torch.dtype, may_fail: bool = False) -> Check:
        """Every attention of the UNet through ComfyUI's function of that name."""

        def work() -> dict[str, Any]:
            function = _attention(name)
            made = self._model(dtype)
            options = made.model_options["transformer_options"]
            options["optimized_attention_override"] = lambda _, *args, **more: function(
                *args, **more
            )
            if dtype != torch.float32:
                return self._compared(made, "float32", HALF_TOLERANCE[dtype], informative=may_fail)
            row = self._differences(made, self._family)
            self._references.setdefault("float32", row.pop("gradient"))
            return row

        return Check(f"{name} {_short(dtype)}", work)

    def _precision(self, dtype: torch.dtype) -> dict[str, Any]:
        return self._compared(self._model(dtype), "float32", HALF_TOLERANCE[dtype])

    def _policy(self, policy: str) -> dict[str, Any]:
        changes = {"graph_memory": policy}
        return self._compared(self._model(torch.bfloat16), "bfloat16", SAME_TOLERANCE, changes)

    def _offloaded(self) -> dict[str, Any]:
        """Two thirds of the weights stay on the CPU, as on a card that is too small."""
        import comfy.model_management
        import comfy.model_patcher

        class Partly(comfy.model_patcher.ModelPatcher):
            def load(self, device_to: Any = None, *args: Any, **kwargs: Any) -> Any:
                kwargs |= {"lowvram_model_memory": self.model_size() // 3, "full_load": False}
                return super().load(device_to, *args, **kwargs)

        cpu = torch.device("cpu")
        resident = self._model(torch.bfloat16, weights_on=cpu)
        expected = self._gradient(resident)
        comfy.model_management.unload_all_models()
        found = self._gradient(Partly(resident.model, self._machine.device, cpu))
        if not resident.model.model_lowvram:
            raise RuntimeError("The weights were all loaded: nothing was offloaded.")
        self._kept = None
        return _judged(likeness(found, expected), SAME_TOLERANCE)

    def _fp8(self) -> dict[str, Any]:
        fp8, half = torch.float8_e4m3fn, torch.bfloat16
        expected = self._gradient(self._model(half, rounded_to=fp8))
        found = self._gradient(self._model(fp8, computed_in=half, rounded_to=fp8))
        return _judged(likeness(found, expected), SAME_TOLERANCE)

    def _fp8_layer(self) -> dict[str, Any]:
        """A quantized linear layer: its backward is that of the dequantised weight."""
        import comfy.ops
        from comfy.quant_ops import QuantizedTensor

        from comfyui_dno.dno_core import vjp
        from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope, normal

        device, half = self._machine.device, torch.bfloat16
        with gradient_scope():
            linear = comfy.ops.mixed_precision_ops(compute_dtype=half).Linear(
                64, 32, dtype=half, device=device
            )
            weight = torch.randn(32, 64, device=device, dtype=half)
            layout = "TensorCoreFP8E4M3Layout"
            quantized = QuantizedTensor.from_float(weight, layout, scale="recalculate")
            linear.weight = torch.nn.Parameter(quantized, requires_grad=False)
            linear.bias = torch.nn.Parameter(torch.zeros_like(weight[:, 0]), requires_grad=False)
            linear.layout_type, linear.quant_format = layout, "float8_e4m3fn"
            x = torch.randn(16, 64, device=device, dtype=half)
            v = torch.randn(16, 32, device=device, dtype=half)
            found = vjp(linear, [x], v)[0].double().cpu()
            expected = (v @ normal(linear.weight.dequantize()).to(half)).double().cpu()
        return _judged(likeness(found, expected), SAME_TOLERANCE)

    def _flux(self, training: bool) -> dict[str, Any]:
        """Blocks that add in place; without the flag they take kernels that have no backward."""
        import comfy.model_management as management

        @contextmanager
        def without() -> Iterator[None]:
            before, management.in_training = management.in_training, False
            try:
                yield
            finally:
                management.in_training = before

        made = flux_model(torch.float32, self._machine.device)
        family = FLUX._replace(pixels=64) if self._machine.dry else FLUX
        decoder = vae(self._machine.device, small=True, channels=16, dtype=torch.float32)
        row = self._differences(
            made, family, None if training else without, decoder, informative=not training
        )
        row.pop("gradient", None)
        return row

    def _sdpa(self, backend: str) -> dict[str, Any]:
        """ComfyUI's order of torch's kernels, set to one of them where that one can."""
        import comfy.ops

        before = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
        if before is None:
            raise Absent("torch chooses its attention kernels itself here")
        from torch.nn.attention import SDPBackend

        comfy.ops.SDPA_BACKEND_PRIORITY = [getattr(SDPBackend, backend), SDPBackend.MATH]
        try:
            return self._precision(torch.bfloat16)
        finally:
            comfy.ops.SDPA_BACKEND_PRIORITY = before

    def _switched_on(self, name: str) -> dict[str, Any]:
        """As with --use-flash-attention: the pack has to step in."""
        import comfy.ldm.modules.attention as attention

        function, before = _attention(name), attention.optimized_attention
        attention.optimized_attention = attention.optimized_attention_masked = function
        try:
            return self._precision(torch.bfloat16)
        finally:
            attention.optimized_attention = attention.optimized_attention_masked = before

    def _model(self, dtype: torch.dtype, **more: Any) -> Any:
        """A clone, with options of its own, of the one model that is on the device at a time."""
        key = dtype, tuple(more.items())
        if self._kept is None or self._kept[0] != key:
            self.clear()
            self._kept = key, model(self._family, dtype, self._machine.device, **more)
        return self._kept[1].clone()

    def clear(self) -> None:
        """Nothing but references in main memory is left."""
        import comfy.model_management

        self._kept = None
        self._machine.begin()
        comfy.model_management.unload_all_models()
        self._machine.begin()

    def _compared(
        self,
        made: Any,
        reference: str,
        tolerance: float,
        changes: dict[str, Any] | None = None,
        informative: bool = False,
    ) -> dict[str, Any]:
        if reference not in self._references:
            plain = self._model(getattr(torch, reference))
            self._references[reference] = self._gradient(plain)
        try:
            found = self._gradient(made, **(changes or {}))
        except Exception as error:
            if not informative:
                raise
            return {"passed": None, "note": f"raises: {error}".splitlines()[0][:200]}
        row = _judged(likeness(found, self._references[reference]), tolerance)
        return {**row, "passed": None} if informative else row

    def _differences(
        self,
        made: Any,
        family: Family,
        around: Any = None,
        decoder: Any = None,
        informative: bool = False,
    ) -> dict[str, Any]:
        try:
            asked = probe(FINE, around)
            self._run(made, family, asked, decoder)
        except Exception as error:
            if not informative:
                raise
            return {"passed": None, "note": f"raises: {error}".splitlines()[0][:200]}
        passed = max(asked.errors.values()) < SLOPE_TOLERANCE
        errors = {f"error_{name}": value for name, value in asked.errors.items()}
        return {
            **errors,
            "passed": None if informative else passed,
            "gradient": asked.gradient,
        }

    def _gradient(self, made: Any, **changes: Any) -> Tensor:
        asked = probe(())
        self._run(made, self._family, asked, **changes)
        return asked.gradient

    def _run(
        self, made: Any, family: Family, estimator: Any, decoder: Any = None, **changes: Any
    ) -> None:
        """One iteration of the node with that estimator. The decoder is in float32."""
        from comfyui_dno.nodes import optimization

        if decoder is None:
            if self._vae is None:
                self._vae = vae(self._machine.device, small=True, dtype=torch.float32)
            decoder = self._vae
        watch = Watch(self._machine, Calls())
        asked = request(family, made, decoder, watch, STEPS, estimator=estimator, **changes)
        reason = optimization.run(asked).trajectory.stop_reason
        if estimator.gradient is None:
            raise RuntimeError(f"The run ended without a gradient: {reason}")


def _attention(name: str) -> Any:
    import comfy.ldm.modules.attention as attention
    import comfy.model_management

    present = {
        "attention_xformers": comfy.model_management.XFORMERS_IS_AVAILABLE,
        "attention_flash": attention.FLASH_ATTENTION_IS_AVAILABLE,
        "attention_sage": attention.SAGE_ATTENTION_IS_AVAILABLE,
    }
    if not present.get(name, True):
        raise Absent(f"{name.removeprefix('attention_')} is not installed")
    if name == "attention_xformers" and not hasattr(attention, "xformers"):
        raise Absent("ComfyUI leaves xformers out here")
    return getattr(attention, name)


def _judged(row: dict[str, float], tolerance: float) -> dict[str, Any]:
    near = abs(row["norm_ratio"] - 1) < max(tolerance, 0.01) ** 0.5
    return {**row, "passed": bool(1 - row["cosine"] < tolerance and near)}


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
