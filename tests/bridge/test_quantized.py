"""Models stored in 8 bits: the gradient is that of the weights that they stand for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from .gguf_like import Packed, operations, pack, patcher_class, unpacked
from .runs import iteration_zero, stock, wavy_reward
from .test_families import FAMILIES, asked, right_gradient
from .test_offload import gradient_of
from .tiny_addons import with_lora

NAMES = ["SD1.5", "SD3", "Flux dev"]
FP8 = torch.float8_e4m3fn


def run(name: str, dtype: torch.dtype, model: Any) -> Any:
    return asked(name, dtype, terms=(wavy_reward(),), model=model)


def rebuilt(plain: Any, state: dict[str, Any], dtypes: tuple[Any, Any], **config: Any) -> Any:
    """The plain model built anew for other weights: (storage dtype, compute dtype), a patcher."""
    import comfy.model_patcher

    settings = type(plain.model.model_config)(plain.model.model_config.unet_config)
    settings.unet_config |= plain.model.model_config.unet_config
    settings.set_inference_dtype(*dtypes)
    patcher = config.pop("patcher", comfy.model_patcher.ModelPatcher)
    for key, value in config.items():
        setattr(settings, key, value)
    model = settings.get_model({}, device="cpu")
    model.diffusion_model.load_state_dict(state, strict=False)
    model.diffusion_model.requires_grad_(False).eval()
    cpu = torch.device("cpu")
    return patcher(model, load_device=cpu, offload_device=cpu)


def loaded_with(plain: Any, weights: dict[str, Tensor]) -> Any:
    """The plain model itself, with those weights."""
    plain.model.diffusion_model.load_state_dict(weights, strict=False)
    return plain


def weights_of(plain: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in plain.model.diffusion_model.state_dict().items()}


def fp8_stored(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model as Load Diffusion Model makes it with weight_dtype fp8, and its twin in floats."""
    plain = FAMILIES[name](dtype)["model"]
    rounded = {key: value.to(FP8) for key, value in weights_of(plain).items()}
    stored = rebuilt(plain, rounded, (FP8, dtype))
    assert next(stored.model.diffusion_model.parameters()).dtype == FP8
    return stored, loaded_with(plain, {key: value.to(dtype) for key, value in rounded.items()})


@pytest.mark.parametrize("name", NAMES)
def test_fp8_storage_has_the_gradient_of_the_weights_it_stands_for(name: str) -> None:
    stored, twin = fp8_stored(name, torch.float32)
    expected = gradient_of(run(name, torch.float32, twin))
    got = gradient_of(run(name, torch.float32, stored))
    assert (got - expected).norm() < 1e-4 * expected.norm()


def test_fp8_storage_has_the_right_gradient_and_ksamplers_picture() -> None:
    right_gradient(run("SD1.5", torch.float64, fp8_stored("SD1.5", torch.float64)[0]))
    request = run("SD1.5", torch.float32, fp8_stored("SD1.5", torch.float32)[0])
    assert torch.equal(iteration_zero(request), stock(request)["samples"])


def fp8_scaled(full_precision: bool) -> tuple[Any, Any]:
    """Flux with scaled fp8 weights in its blocks, and its dequantized twin.

    Without full precision the layers round their inputs to fp8 too, as on a GPU that has it.
    """
    from comfy.quant_ops import QuantizedTensor

    plain = FAMILIES["Flux dev"](torch.float32)["model"]
    weights, state = weights_of(plain), {}
    for key, weight in list(weights.items()):
        state[key] = weight
        if "blocks." not in key or weight.ndim != 2:
            continue
        packed = QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout", scale="recalculate")
        layer = key.removesuffix("weight")
        marker = json.dumps({"format": "float8_e4m3fn"}).encode()
        state[key] = packed._qdata
        state[f"{layer}weight_scale"] = packed._params.scale
        state[f"{layer}comfy_quant"] = torch.tensor(list(marker), dtype=torch.uint8)
        weights[key] = packed.dequantize().float()
    dtypes = (torch.float32, torch.float32)
    scaled = rebuilt(plain, state, dtypes, quant_config={"mixed_ops": True})
    quantized = [
        module
        for module in scaled.model.modules()
        if isinstance(getattr(module, "weight", None), QuantizedTensor)
    ]
    assert len(quantized) > 5
    for module in quantized:
        module._full_precision_mm = full_precision
    return scaled, loaded_with(plain, weights)


def test_scaled_fp8_has_the_gradient_of_the_weights_it_stands_for() -> None:
    scaled, twin = fp8_scaled(full_precision=True)
    expected = gradient_of(run("Flux dev", torch.float32, twin))
    got = gradient_of(run("Flux dev", torch.float32, scaled))
    assert (got - expected).norm() < 1e-4 * expected.norm()


def test_fp8_that_rounds_its_inputs_has_nearly_the_gradient_of_its_weights() -> None:
    """Three bits of mantissa in every input: 10 % off, in nearly the same direction."""
    scaled, twin = fp8_scaled(full_precision=False)
    expected = gradient_of(run("Flux dev", torch.float32, twin))
    got = gradient_of(run("Flux dev", torch.float32, scaled))
    assert torch.isfinite(got).all()
    assert (got - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(got, expected)


@pytest.mark.parametrize("full_precision", [True, False])
def test_the_check_is_left_out_only_where_inputs_are_rounded(full_precision: bool) -> None:
    from comfyui_dno.nodes import optimization

    scaled, _ = fp8_scaled(full_precision)
    request = asked("Flux dev", torch.float32, model=scaled, iterations=1)
    torch.testing.assert_close(iteration_zero(request), stock(request)["samples"])
    trajectory = optimization.run(request).trajectory
    assert trajectory.meta.get("gradient_checked", False) == full_precision


def gguf(name: str, dtype: torch.dtype, lora: bool = False) -> tuple[Any, Any]:
    """The model with packed weights, made in inference mode as a prompt does, and its twin."""
    plain = FAMILIES[name](dtype)["model"]
    packed = {key: pack(key, value) for key, value in weights_of(plain).items()}
    assert any(value.kind for value in packed.values())
    stored = rebuilt(
        plain, packed, (dtype, None), custom_operations=operations(), patcher=patcher_class()
    )
    twin = loaded_with(plain, {key: unpacked(value, dtype) for key, value in packed.items()})
    made = (stored, twin)
    return tuple(with_lora(name, model) for model in made) if lora else made  # type: ignore[return-value]


@pytest.mark.parametrize("name", NAMES)
def test_gguf_weights_have_the_gradient_of_the_weights_they_stand_for(name: str) -> None:
    stored, twin = gguf(name, torch.float32)
    expected = gradient_of(run(name, torch.float32, twin))
    got = gradient_of(run(name, torch.float32, stored))
    assert (got - expected).norm() < 1e-4 * expected.norm()


def test_gguf_weights_have_the_right_gradient() -> None:
    right_gradient(run("Flux dev", torch.float64, gguf("Flux dev", torch.float64)[0]))


def test_a_lora_on_gguf_weights_has_the_gradient_of_the_weights_they_stand_for() -> None:
    stored, twin = gguf("Flux dev", torch.float32, lora=True)
    expected = gradient_of(run("Flux dev", torch.float32, twin))
    got = gradient_of(run("Flux dev", torch.float32, stored))
    assert (got - expected).norm() < 1e-4 * expected.norm()
    bare = gradient_of(run("Flux dev", torch.float32, gguf("Flux dev", torch.float32)[0]))
    assert (got - bare).norm() > 1e-2 * bare.norm()


def test_a_run_leaves_gguf_weights_packed() -> None:
    from comfyui_dno.nodes import optimization

    stored, _ = gguf("SD1.5", torch.float32)
    before = {name: bytes_of(value) for name, value in stored.model.named_parameters()}
    request = asked("SD1.5", torch.float32, model=stored, iterations=1)
    assert torch.equal(iteration_zero(request), stock(request)["samples"])
    assert optimization.run(request).trajectory.meta["gradient_checked"]
    after = dict(stored.model.named_parameters())
    assert any(isinstance(value, Packed) and value.kind for value in after.values())
    assert {name: bytes_of(value) for name, value in after.items()} == before


def bytes_of(weight: Any) -> Any:
    kind = getattr(weight, "kind", None), getattr(weight, "packed_shape", None)
    return type(weight), kind, weight.as_subclass(Tensor).contiguous().view(torch.uint8).tolist()


def test_a_normal_twin_of_a_subclass_shares_its_storage_and_attributes() -> None:
    from comfyui_dno.nodes.comfy_bridge.scope import normal

    packed = pack("weight", torch.randn(8, 32))
    packed.patches = ["one"]
    assert packed.is_inference()
    with torch.inference_mode(False):
        twin = normal(packed)
    assert type(twin) is Packed
    assert not twin.is_inference()
    assert (twin.kind, twin.packed_shape, twin.patches) == ("blocks", (8, 32), ["one"])
    assert twin.data_ptr() == packed.data_ptr()
    assert torch.equal(unpacked(twin, torch.float32), unpacked(packed, torch.float32))
