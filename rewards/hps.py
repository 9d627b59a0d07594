"""HPS v2 and v2.1, the Human Preference Score (Wu et al., arXiv 2306.09341)."""

from __future__ import annotations

import re
from pathlib import Path

from .base import PRECISION, Input, Reward, RewardError, Spec
from .files.catalogue import HPS_V2, HPS_V21
from .preference import PreferenceReward, refuse_other_tower
from .towers.open_clip_tower import load_open_clip_file

NAME = "hps"
UNIT = "cosine, about 0.2 to 0.35"
AUTO = "auto"
SCALES = {"v2.1": 0.032, "v2": 0.0147}


def create(model: str, version: str, precision: str) -> Reward:
    """model: HPS_v2.1_compressed.pt or HPS_v2_compressed.pt. score = cos(picture, prompt)."""
    file = Path(model)
    version = version_of(file) if version == AUTO else version
    name = f"{NAME} {version}"
    tower = load_open_clip_file(file, name, precision, longest_side=True)
    refuse_other_tower(tower, name)
    return PreferenceReward(tower, 1.0, name, UNIT, SCALES[version])


def version_of(file: Path) -> str:
    """Which HPS a file holds, by its name: the weights of the two look alike."""
    found = re.search(r"(?:v|hps[_-]?)2(?:[._-]?([01]))?(?!\d)", file.stem.lower())
    if found is None:
        raise RewardError(
            f"{NAME}: the name {file.name} does not tell which version of HPS it is. "
            f"Choose {' or '.join(SCALES)} in the version widget of Reward Loader."
        )
    return "v2.1" if found[1] == "1" else "v2"


SPEC = Spec(
    NAME,
    "HPS v2 / v2.1",
    UNIT,
    "The picture that people would prefer for the prompt, polished and detailed.",
    create,
    inputs=(
        Input(
            "model",
            "model",
            HPS_V21.name,
            "The HPS weights. v2.1 was trained on cleaner data and tells pictures apart more "
            "clearly; v2 is the one in older papers. The scores of the two cannot be compared.",
            suffixes=(".pt", ".safetensors"),
            sources=(HPS_V21, HPS_V2),
        ),
        Input(
            "version",
            "choice",
            AUTO,
            "Which HPS the file holds; it sets the natural spread of the score, which for v2.1 is "
            "twice as wide. auto reads it off the file's name; choose v2.1 or v2 when you have "
            "renamed the file.",
            choices=(AUTO, *SCALES),
            advanced=True,
        ),
        PRECISION,
    ),
    prompt="The text the picture should show. Wire the same text into CLIP Text Encode and here; "
    "CONDITIONING cannot be read back. Scores of different prompts cannot be compared.",
    group="taste",
    scale_source="published: the HPS v2 benchmark's deviation of its groups of 80 samples x "
    "sqrt(80), with that between its four styles (v2: Stable Diffusion 1.4 in the paper; v2.1: "
    "SDXL in OneDiff's benchmark)",
    licence="Apache-2.0",
)
