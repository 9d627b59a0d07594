"""MPS's cross attention: the patches of a picture read the words of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class CrossSizes:
    """width: of a token. head: of an attention head; heads: how many; inner: of the MLPs."""

    layers: int
    width: int
    heads: int
    head: int
    inner: int


def read_sizes(state: Mapping[str, Tensor], prefix: str) -> CrossSizes:
    """The sizes, from the shapes of the tensors under `prefix`. Raises KeyError."""
    queries, width = state[f"{prefix}layers.0.0.fn.to_q.weight"].shape
    head = state[f"{prefix}layers.0.0.fn.to_kv.weight"].shape[0] // 2
    names = [name for name in state if name.startswith(prefix) and name.endswith(".to_q.weight")]
    inner = state[f"{prefix}layers.0.0.fn.ff.2.weight"].shape[1]
    return CrossSizes(len(names), width, queries // head, head, inner)


class CrossModel(nn.Module):
    """Layers of: attention to the words beside an MLP, then attention to the patches beside an MLP.

    All heads share one key and one value (Shazeer 2019, 1911.02150); the MLPs are gated (SwiGLU,
    Shazeer 2020, 2002.05202); the patches' attention has rotary positions (2104.09864).
    """

    def __init__(self, sizes: CrossSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossLayer(sizes) for _ in range(sizes.layers))

    def forward(self, patches: Tensor, words: Tensor, read: Tensor) -> Tensor:
        """Patches [B, N, D], words [B, M, D], which of them are read [B, M] -> [B, N, D]."""
        for layer in self.layers:
            patches = layer(patches, words, read)
        return patches


class CrossLayer(nn.Module):
    """Attention to the words, then to the patches, each added to what comes in."""

    def __init__(self, sizes: CrossSizes) -> None:
        super().__init__()
        self.to_words, self.to_patches = WordAttention(sizes), PatchAttention(sizes)

    def forward(self, patches: Tensor, words: Tensor, read: Tensor) -> Tensor:
        patches = patches + self.to_words(patches, words, read)
        mixed: Tensor = patches + self.to_patches(patches)
        return mixed


class WordAttention(nn.Module):
    """x -> attention(LN(x), words) + MLP(LN(x))."""

    def __init__(self, sizes: CrossSizes) -> None:
        super().__init__()
        width, queries = sizes.width, sizes.heads * sizes.head
        self.heads = sizes.heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, queries, bias=False)
        self.to_kv = nn.Linear(width, 2 * sizes.head, bias=False)
        self.to_out = nn.Linear(queries, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * sizes.inner, bias=False),
            SwiGLU(),
            nn.Linear(sizes.inner, width, bias=False),
        )

    def forward(self, x: Tensor, words: Tensor, read: Tensor) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(words).chunk(2, dim=-1)
        query = _split(self.to_q(x), self.heads)
        seen = _attend(query, key, value, read[:, None, None])
        mixed: Tensor = self.to_out(seen) + self.ff(x)
        return mixed


class PatchAttention(nn.Module):
    """x -> attention(LN(x)) + MLP(LN(x)), with rotary positions."""

    def __init__(self, sizes: CrossSizes) -> None:
        super().__init__()
        queries = sizes.heads * sizes.head
        self.heads = sizes.heads
        self.parts = (queries, sizes.head, sizes.head, 2 * sizes.inner)
        self.norm = nn.LayerNorm(sizes.width)
        self.fused_attn_ff_proj = nn.Linear(sizes.width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(queries, sizes.width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(sizes.inner, sizes.width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        seen = _attend(_rotate(_split(query, self.heads)), _rotate(key), value, None)
        mixed: Tensor = self.attn_out(seen) + self.ff_out(inner)
        return mixed


class SwiGLU(nn.Module):
    """(x, gate) -> x silu(gate)."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, read: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)) v: [B, heads, N, d] and [B, M, d] -> [B, N, heads d]."""
    shape = (*query.shape[:2], *key.shape[1:])
    out = F.scaled_dot_product_attention(
        query, key[:, None].expand(shape), value[:, None].expand(shape), attn_mask=read
    )
    return out.transpose(1, 2).flatten(2)


def _rotate(x: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + d/2}) of position n by the angle n base^(-2 i / d)."""
    half = x.shape[-1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)
    speed = ROTARY_BASE ** -(torch.arange(half, device=x.device, dtype=exact) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=exact)[:, None] * speed
    sin, cos = angle.sin().to(x.dtype), angle.cos().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
