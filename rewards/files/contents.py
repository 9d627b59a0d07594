"""What weights are, told from the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Kind:
    """A kind of weights file. all, any: parts of tensor names of which all, or one, must occur.

    Parts that begin with "^" are the beginnings of names. without: parts that must not occur.
    """

    label: str
    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()


_KINDS = (
    _Kind(
        "a LoRA",
        any=(
            ".lora_up.",
            ".lora_down.",
            ".lora_A.",
            ".lora_B.",
            ".lora.up.",
            ".lora.down.",
            "^lora_unet",
            "^lora_te",
            ".hada_w1_a",
            ".lokr_w1",
            "_lora.down.",
        ),
    ),
    _Kind(
        "a ControlNet",
        any=("^control_model.", "controlnet_", "^input_hint_block.", "^zero_convs."),
    ),
    _Kind("a LAION aesthetic v2 head", shapes=(("layers.0.weight", (1024, 768)),)),
    _Kind("an aesthetic v2.5 head", all=("scoring_head.0.weight",)),
    _Kind("an ImageReward model", all=("^blip.visual_encoder.", "^mlp.layers.0.")),
    _Kind("an MPS model", all=("cross_model.", "vision_model.")),
    _Kind("a shift-tolerant LPIPS network", all=("^net.slice1.", "^lin0.", ".filt")),
    _Kind("a whole LPIPS network", all=("^net.slice1.", "^lin0.")),
    _Kind("LPIPS linear heads for AlexNet", shapes=(("lin1.model.1.weight", (1, 192, 1, 1)),)),
    _Kind("LPIPS linear heads for SqueezeNet", all=("^lin0.model.", "^lin6.model.")),
    _Kind("LPIPS linear heads for VGG16", all=("^lin0.model.", "^lin4.model.")),
    _Kind(
        "torchvision's AlexNet",
        all=("^classifier.",),
        shapes=(("features.0.weight", (64, 3, 11, 11)),),
    ),
    _Kind(
        "torchvision's VGG", all=("^classifier.",), shapes=(("features.0.weight", (64, 3, 3, 3)),)
    ),
    _Kind(
        "a Stable Diffusion XL checkpoint",
        all=("^model.diffusion_model.input_blocks.", "^conditioner.embedders."),
    ),
    _Kind(
        "a Stable Diffusion 2.x checkpoint",
        all=("^model.diffusion_model.input_blocks.", "^cond_stage_model.model."),
    ),
    _Kind(
        "a Stable Diffusion 1.x checkpoint",
        all=("^model.diffusion_model.input_blocks.", "^cond_stage_model.transformer."),
    ),
    _Kind("a Flux model", all=("double_blocks.0.", "single_blocks.0.")),
    _Kind("a Flux model", all=("^single_transformer_blocks.", "^transformer_blocks.")),
    _Kind(
        "a Stable Diffusion 3 model",
        any=("joint_blocks.0.", "transformer_blocks.0.attn.add_q_proj."),
    ),
    _Kind(
        "a diffusion UNet",
        any=("input_blocks.0.0.", "^down_blocks.0.attentions.", "^down_blocks.1.attentions."),
    ),
    _Kind("a BLIP model", any=("^visual_encoder.blocks.", "^text_decoder.cls.", "^vision_proj.")),
    _Kind(
        "an open_clip CLIP (ViT-H/14, as HPS v2 is)",
        all=("resblocks.0.",),
        shapes=(("visual.class_embedding", (1280,)), ("token_embedding.weight", (49408, 1024))),
    ),
    _Kind("an open_clip CLIP", all=("^visual.", "token_embedding.weight")),
    _Kind("the image half of an open_clip CLIP", all=("^visual.",)),
    _Kind("a SigLIP model", all=("vision_model.head.", "text_model.head.")),
    _Kind("the image half of a SigLIP", all=("head.probe", "embeddings.patch_embedding.")),
    _Kind(
        "a transformers CLIP (ViT-H/14, as PickScore is)",
        shapes=(
            ("vision_model.embeddings.class_embedding", (1280,)),
            ("text_projection.weight", (1024, 1024)),
        ),
    ),
    _Kind("a transformers CLIP", all=("vision_model.embeddings.", "text_model.embeddings.")),
    _Kind(
        "the image half of a CLIP (a CLIP vision model)",
        all=("embeddings.class_embedding", "embeddings.patch_embedding."),
    ),
    _Kind(
        "a CLIP text encoder",
        all=("embeddings.token_embedding.", "embeddings.position_embedding."),
    ),
    _Kind("a T5 text encoder", all=("^encoder.block.0.layer.0.SelfAttention.",)),
    _Kind("a language model", any=("^model.layers.0.self_attn.", "^language_model.")),
    _Kind("a VAE", all=("decoder.conv_in.", "decoder.conv_out."), without=("diffusion_model.",)),
    _Kind("a textual inversion", any=("^emb_params", "^string_to_param")),
    _Kind("a textual inversion", all=("^clip_g", "^clip_l"), without=(".",)),
    _Kind(
        "an upscaler",
        any=("RDB1.conv1.", ".rdb1.conv1.", "^conv_first.", "^upsample.", "^head.0.weight"),
    ),
)


def looks_like(state: State) -> str:
    """What the weights are, with an article: "a LoRA", "a CLIP text encoder", "unknown weights"."""
    if set(state) == {"weight", "bias"} and state["weight"].ndim == 2 and len(state["bias"]) == 1:
        return _v1_head(state["weight"].shape[1])
    for kind in _KINDS:
        if _is(kind, state):
            return kind.label
    first = ", ".join(list(state)[:3])
    return f"unknown weights ({len(state)} tensors, first {first})" if state else "an empty file"


def _v1_head(width: int) -> str:
    tower = {768: " for ViT-L/14", 512: " for ViT-B/32 or ViT-B/16"}.get(width)
    return f"a LAION aesthetic v1 head{tower}" if tower else f"one linear layer of width {width}"


def _is(kind: _Kind, state: State) -> bool:
    def occurs(part: str) -> bool:
        if part.startswith("^"):
            return any(key.startswith(part[1:]) for key in state)
        return any(part in key for key in state)

    return (
        all(occurs(part) for part in kind.all)
        and (not kind.any or any(occurs(part) for part in kind.any))
        and not any(occurs(part) for part in kind.without)
        and all(key in state and tuple(state[key].shape) == shape for key, shape in kind.shapes)
    )
