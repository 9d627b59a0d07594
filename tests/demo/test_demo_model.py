"""The demo model in ComfyUI's stock nodes: it loads, draws, and says what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DEMO = Path(__file__).resolve().parents[2] / "demo"
EASY = (
    "red heart", "blue heart", "green apple", "red apple", "frog", "star", "watermelon", "tomato"
)  # fmt: skip


@pytest.fixture(scope="module")
def loader(comfy: Any) -> Any:
    from comfyui_dno.nodes.comfy_bridge import demo_model

    return demo_model


@pytest.fixture(scope="module")
def demo(loader: Any) -> Any:
    return loader.load_demo_model()


def draw(demo: Any, prompt: str, seed: int = 3, cfg: float = 3.0, steps: int = 10) -> torch.Tensor:
    """What Empty Latent Image, CLIP Text Encode, KSampler and VAE Decode give: [B, H, W, 3]."""
    import nodes

    model, clip, vae = demo
    with torch.inference_mode():
        (latent,) = nodes.EmptyLatentImage().generate(64, 64, 2)
        (positive,) = nodes.CLIPTextEncode().encode(clip, prompt)
        (negative,) = nodes.CLIPTextEncode().encode(clip, "")
        (out,) = nodes.KSampler().sample(
            model, seed, steps, cfg, "euler_ancestral", "normal", positive, negative, latent
        )
        return nodes.VAEDecode().decode(vae, out)[0]


def judge_names(images: torch.Tensor, names: tuple[str, ...]) -> list[int]:
    """The judge's best name for images [B, H, W, 3]."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(DEMO / "judge", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "judge")
    settings = json.loads((DEMO / "judge/preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(settings[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    tokens = tokenizer(list(names), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=(images.movedim(-1, 1) - mean) / std)
    return out.logits_per_image.argmax(1).tolist()


@pytest.mark.parametrize(
    ("file", "megabytes"),
    [("model.safetensors", 16), ("reward/model.safetensors", 8), ("judge/model.safetensors", 8)],
)
def test_the_files_stay_within_their_sizes(file: str, megabytes: int) -> None:
    assert 1e5 < (DEMO / file).stat().st_size <= megabytes * 1e6


def test_stock_nodes_draw_a_picture_of_64_pixels(demo: Any) -> None:
    images = draw(demo, "cat face")
    assert images.shape == (2, 64, 64, 3)
    assert 0 <= images.min() and images.max() <= 1
    assert images.std() > 0.05


def test_the_prompt_and_cfg_change_the_picture(demo: Any) -> None:
    plain, guided = draw(demo, "frog on white", cfg=1.0), draw(demo, "frog on white", cfg=4.0)
    other = draw(demo, "red heart on black", cfg=4.0)
    assert (plain - guided).abs().mean() > 0.01
    assert (other - guided).abs().mean() > 0.1


def test_backgrounds_follow_the_prompt(demo: Any) -> None:
    def corner(prompt: str) -> torch.Tensor:
        return draw(demo, prompt)[:, 1:5, 1:5].mean((0, 1, 2))

    assert corner("star on white").mean() > corner("star on black").mean() + 0.4
    red, _, blue = corner("star on blue")
    assert blue > red + 0.2


def test_samples_are_recognised_by_the_held_out_judge(demo: Any) -> None:
    right = 0
    for index, name in enumerate(EASY):
        right += judge_names(draw(demo, name, seed=20 + index), EASY).count(index)
    assert right >= 11, f"{right} of {2 * len(EASY)}"


def test_the_autoencoder_gives_a_picture_back(demo: Any) -> None:
    images = draw(demo, "watermelon on light blue")
    vae = demo[2]
    with torch.inference_mode():
        latent = vae.encode(images)
        again = vae.decode(latent)
    assert latent.shape == (2, 8, 16, 16)
    assert 0.3 < latent.std() < 3
    error = (again - images).square().mean()
    assert -10 * torch.log10(error) > 24


def test_the_nodes_tokens_are_those_of_transformers(demo: Any) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(DEMO / "tokenizer")
    for text in ("red apple, flat style, on blue", "Jack-o-lantern", "an unknown zeppelin", ""):
        mine = [t for t, _ in demo[1].tokenize(text)["l"][0]]
        wanted = tokenizer(text, padding="max_length", max_length=24)["input_ids"]
        assert mine == wanted


@pytest.mark.parametrize("folder", ["reward", "judge"])
def test_the_image_text_models_share_the_tokenizer(folder: str) -> None:
    for name in ("vocab.json", "merges.txt"):
        assert (DEMO / folder / name).read_bytes() == (DEMO / "tokenizer" / name).read_bytes()


def test_every_listed_name_is_made_of_whole_words(demo: Any) -> None:
    for name in EASY:
        ends = demo[1].tokenize(name)["l"][0]
        used = [t for t, _ in ends if t not in (ends[0][0], ends[-1][0])]
        assert len(used) == len(name.split())


def test_a_lora_by_key_changes_the_unet(demo: Any) -> None:
    model = demo[0].clone()
    key = "diffusion_model.output_blocks.3.0.in_layers.2.weight"
    change = torch.randn(model.model.state_dict()[key].shape)
    assert model.add_patches({key: ("diff", (change,))}, 0.1) == [key]
    patched = draw((model, *demo[1:]), "star on blue")
    assert (patched - draw(demo, "star on blue")).abs().mean() > 1e-3


def test_previews_have_a_colour_for_every_latent_channel(demo: Any) -> None:
    latent_format = demo[0].get_model_object("latent_format")
    assert len(latent_format.latent_rgb_factors) == latent_format.latent_channels == 8
    import latent_preview

    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    )
    with torch.inference_mode():
        images = draw(demo, "tomato on white")
        latents = demo[2].encode(images)
    preview = previewer.decode_latent_to_preview(latents.to(torch.float32))
    small = torch.nn.functional.avg_pool2d(images[:1].movedim(-1, 1), 4)[0]
    shown = torch.from_numpy(np.array(preview)).permute(2, 0, 1) / 255
    assert (shown - small).abs().mean() < 0.08


def test_each_part_can_be_loaded_again_without_paging(demo: Any) -> None:
    model, clip, vae = demo
    for patcher in (model, clip.patcher, vae.patcher):
        build, arguments = patcher.cached_patcher_init
        again = build(*arguments, disable_dynamic=True)
        assert not again.is_dynamic()
        mine, other = patcher.model.state_dict(), again.model.state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_missing_file_is_named(loader: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="missing: .*gone.safetensors. Install the pack again"):
        loader.load_demo_model(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 100, 60_000])
def test_a_cut_file_is_named(loader: Any, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((DEMO / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(RuntimeError, match="damaged: .*cut.safetensors. Delete it"):
        loader.load_demo_model(cut)


def test_the_node_gives_model_clip_and_vae(comfy: Any) -> None:
    from comfyui_dno.nodes.demo_nodes import DemoModel

    schema = DemoModel.define_schema()
    assert schema.node_id == "DNO_DemoModel" and not schema.inputs
    assert [o.io_type for o in schema.outputs] == ["MODEL", "CLIP", "VAE"]
    model, clip, vae = DemoModel.execute().result
    assert model.model.latent_format.latent_channels == vae.latent_channels == 8
    assert clip.tokenize("cat")["l"]
