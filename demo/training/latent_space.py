"""The latent space: 8 principal components of 4x4 patches, centred and partly whitened."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from compose import Composer
from drawings import DATA, load
from safetensors.torch import load_file, save_file
from torch.nn import functional

PATCH, CHANNELS = 4, 8
PATH = Path(__file__).with_name("latent_space.safetensors")


class LatentSpace(NamedTuple):
    """z = (basis . (patch - mean)) / scale, patches of images in [-1, 1].

    basis: [8, 48] orthonormal rows; mean: [48]; scale: [8].
    """

    basis: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents [B, 8, H/4, W/4]."""
        weight = (self.basis / self.scale[:, None]).view(CHANNELS, 3, PATCH, PATCH)
        bias = -(self.basis @ self.mean) / self.scale
        return functional.conv2d(images * 2 - 1, weight, bias, stride=PATCH)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The linear reconstruction of images, unclamped, in [0, 1]."""
        weight = (self.basis * self.scale[:, None]).view(CHANNELS, 3, PATCH, PATCH)
        flat = functional.conv_transpose2d(latents, weight, stride=PATCH)
        mean = self.mean.view(3, PATCH, PATCH).repeat(1, *(s for s in latents.shape[-2:]))
        return (flat + mean + 1) / 2


def fit(images: torch.Tensor) -> LatentSpace:
    """PCA of all patches; component c gets standard deviation ~ eigenvalue^(1/4).

    A common factor makes the variance of a channel 1 on average.
    """
    patches = functional.unfold(images * 2 - 1, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 48)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, basis = values.flip(0), vectors.flip(1).T[:CHANNELS]
    basis = basis * basis.sum(1, keepdim=True).sign()
    top = values[:CHANNELS]
    print("variance kept:", float(top.sum() / values.sum()))
    scale = top**0.25 * top.sqrt().mean().sqrt()
    return LatentSpace(basis.contiguous(), mean, scale)


def read(path: Path = PATH) -> LatentSpace:
    """The committed latent space."""
    return LatentSpace(**load_file(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="packages and drawings")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pictures = Composer(load(args.data), args.seed).batch(0, 4096).images
    space = fit(pictures)
    save_file(space._asdict(), PATH)
    latents = space.encode(pictures)
    print("latent std:", latents.std((0, 2, 3)), "mean:", latents.mean((0, 2, 3)))
    error = (space.decode(latents).clamp(0, 1) - pictures).square().mean((1, 2, 3))
    print("linear PSNR:", float((-10 * error.log10()).mean()))
