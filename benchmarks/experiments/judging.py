"""What no method sees: the held-out judge's score, and how far a picture is from plain ones.

Judge and reward model are both the demo's, learnt from drawings of the same things: other drawing
styles, another architecture and seed, but no independent taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfyui_dno.rewards.clip_score import DEMO_JUDGE, ClipScore, create

from .cases import Case
from .files import write_atomically
from .setting import Bench, Lab, climbed

PLAIN_SAMPLES = 16
NEAREST = 3
PLAIN_SEED = 1_000_000


class Judge:
    """Scores pictures [B,3,H,W] in [0,1] against plain samples, which `folder` keeps."""

    def __init__(self, lab: Lab, folder: Path, samples: int = PLAIN_SAMPLES) -> None:
        reward = create(DEMO_JUDGE, "auto")
        assert isinstance(reward, ClipScore)
        self._reward = reward
        self._lab = lab
        self._folder = folder
        self._samples = samples
        self._plain: dict[str, Tensor] = {}

    def prepare(self, cases: Sequence[Case]) -> None:
        """Draw the plain samples that are missing: not possible at a bench, where a run is on."""
        for case in cases:
            self._references(case.prompt)

    @torch.no_grad()
    def scores(self, images: Tensor, cases: Sequence[Case]) -> Tensor:
        """The judge's CLIPScore [B], in units of its spread over plain samples."""
        (term,) = climbed("clip_score", cases, model=DEMO_JUDGE, template="auto")
        return self._reward.score(images, term.context) / self._reward.scale

    @torch.no_grad()
    def distances(self, images: Tensor, cases: Sequence[Case]) -> Tensor:
        """Distance [B] to the plain samples of the prompt, 1 being that of a plain sample.

        Mean cosine distance, in the judge's image embedding, to the 3 nearest of 16 plain samples,
        divided by the mean of the same over the plain samples among themselves.
        """
        features = self._reward.tower.image_features(images)
        found = [
            _to_nearest(feature[None], self._references(case.prompt))[0]
            for feature, case in zip(features, cases, strict=True)
        ]
        return torch.stack(found)

    def _references(self, prompt: str) -> Tensor:
        """Embeddings [16,D] of plain samples, drawn once and kept."""
        if prompt not in self._plain:
            path = self._folder / f"{prompt.replace(' ', '_')}_{self._samples}.safetensors"
            if not path.is_file():
                features = self._draw(prompt)
                write_atomically(path, lambda part: save_file({"features": features}, part))
            self._plain[prompt] = load_file(path)["features"]
        return self._plain[prompt]

    def _draw(self, prompt: str) -> Tensor:
        cases = [Case(prompt, PLAIN_SEED + index) for index in range(self._samples)]

        def work(bench: Bench) -> Tensor:
            final = bench.noise_map.forward(bench.z).final
            images = bench.decoder.decode(final).clamp(0, 1)
            return self._reward.tower.image_features(images)

        terms = climbed("clip_score", cases)
        return self._lab.at_bench(cases, terms, work).contiguous()


def _to_nearest(features: Tensor, plain: Tensor) -> Tensor:
    """Of features [B,D]: mean distance to the nearest plain ones, in units of plain [16,D]."""
    among = 1 - plain @ plain.T
    among.fill_diagonal_(torch.inf)
    unit = _nearest(among).mean()
    return _nearest(1 - features @ plain.T) / unit


def _nearest(distances: Tensor) -> Tensor:
    count = min(NEAREST, distances.shape[1] - 1)
    return distances.topk(count, dim=1, largest=False).values.mean(1)
