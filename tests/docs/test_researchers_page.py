"""The page for researchers: its Python runs as it stands, on tiny networks for diffusers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "researchers.md").read_text(encoding="utf-8")
BEFORE = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import conftest
"""
TINY_PIPELINE = """
import types, torch, diffusers
torch.manual_seed(0)
unet = diffusers.UNet2DConditionModel(
    sample_size=16, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=4,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4,
)
vae = diffusers.AutoencoderKL(
    block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, latent_channels=4,
)
scheduler = diffusers.PNDMScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
)
pipe = types.SimpleNamespace(
    unet=unet, vae=vae, scheduler=scheduler, to=lambda device: None,
    encode_prompt=lambda *given: (torch.randn(1, 6, 8), torch.randn(1, 6, 8)),
)
diffusers.StableDiffusionPipeline.from_pretrained = lambda name: pipe
"""
REPORT = """
import json
print(json.dumps([[float(v) for v in scores] for scores in curve]))
"""


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run(code: str, folder: Path) -> str:
    script = folder / "page.py"
    script.write_text(BEFORE + code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_notebook_run_climbs_is_saved_and_goes_on(tmp_path: Path) -> None:
    first, second = blocks()[:2]
    curve = json.loads(run(first + second + REPORT, tmp_path).splitlines()[-1])
    assert len(curve) == 13
    assert all(end > start for start, end in zip(curve[0], curve[-1], strict=True))
    assert (tmp_path / "colour.dno.safetensors").is_file()


def test_cheap_runs_report_their_cosine_and_are_redrawn_on_the_full_schedule(
    tmp_path: Path,
) -> None:
    first, (cheap,) = blocks()[0], [block for block in blocks() if "CoarseMap" in block]
    *_, cosine, start, end = run(first + cheap, tmp_path).splitlines()
    for value in json.loads(cosine.removeprefix("cosine with the exact gradient")):
        assert 0 < value < 1
    before, after = (json.loads(line.removeprefix("redrawn")) for line in (start, end))
    assert all(now > was for was, now in zip(before, after, strict=True))


def test_the_diffusers_pipeline_climbs(tmp_path: Path) -> None:
    (block,) = (block for block in blocks() if "StableDiffusionPipeline" in block)
    lines = run(TINY_PIPELINE + block, tmp_path).splitlines()
    scores = [float(line.split("[")[1].rstrip("]")) for line in lines]
    assert len(scores) == 4
    assert scores[-1] > scores[0]


def test_rewards_are_made_limited_and_run_in_half_precision(tmp_path: Path) -> None:
    (block,) = (block for block in blocks() if "limited" in block)
    out = run(block, tmp_path)
    assert "pickscore" in out and "dtype" not in out


def test_the_numbers_of_the_toy_are_those_of_its_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "toy.json").read_text(encoding="utf-8"))
    found = results["targets"]
    for text in (f"{found['start']:.3f}", f"{found['end']:.3f}"):
        assert text in PAGE
    assert f"{found['share_of_published_gain']:.0%}".replace("%", " %") in PAGE


def test_every_command_of_the_page_is_there() -> None:
    scripts = set(re.findall(r"python (benchmarks/\w+\.py)", PAGE))
    assert len(scripts) >= 5
    assert not [script for script in scripts if not (ROOT / script).is_file()]
