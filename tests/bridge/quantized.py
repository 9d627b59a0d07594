"""A script: an fp8 linear layer of ComfyUI's in the scope of a run. Argument: ComfyUI's tree."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), sys.argv.pop(1)]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import conftest  # noqa: E402, F401  maps the pack to its import name
import torch  # noqa: E402
from torch import nn  # noqa: E402


def main() -> None:
    import comfy.model_patcher
    import comfy.ops
    from comfy.quant_ops import QuantizedTensor

    from comfyui_dno.dno_core import vjp
    from comfyui_dno.nodes.comfy_bridge.loading import has_quantized_weights
    from comfyui_dno.nodes.comfy_bridge.scope import free_weights, gradient_scope, normal

    with torch.inference_mode():
        operations = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32)
        linear = operations.Linear(32, 16, dtype=torch.float32)
        weight = torch.randn(16, 32)
        layout = "TensorCoreFP8E4M3Layout"
        quantized = QuantizedTensor.from_float(weight, layout, scale="recalculate")
        linear.weight = nn.Parameter(quantized, requires_grad=False)
        linear.bias = nn.Parameter(torch.zeros(16), requires_grad=False)
        linear.layout_type, linear.quant_format = layout, "float8_e4m3fn"
        module = nn.Sequential(linear)
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(module, load_device=cpu, offload_device=cpu)
        assert has_quantized_weights(patcher)
        plain = comfy.model_patcher.ModelPatcher(nn.Linear(2, 2), cpu, cpu)
        assert not has_quantized_weights(plain)
        before = module(torch.ones(2, 32))
        stored = linear.weight._qdata.data_ptr()
        with gradient_scope():
            free_weights([patcher])
            assert isinstance(linear.weight, QuantizedTensor)
            assert linear.weight._qdata.data_ptr() == stored
            assert not linear.weight._qdata.is_inference()
            x, v = torch.randn(4, 32), torch.randn(4, 16)
            pulled = vjp(module, [x], v)[0]
            expected = v @ normal(linear.weight.dequantize())
            torch.testing.assert_close(pulled, expected)
        assert torch.equal(module(torch.ones(2, 32)), before)
    print("right")


main()
