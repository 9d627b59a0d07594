"""The tiny VAE: ComfyUI's own TAESD, found where ComfyUI looks, and only while a run climbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from . import tiny
from .runs import KeepDouble, gradient_errors, request, stock, wavy_reward
from .sabotage import Calls, out_of_memory

TINY = "tiny VAE"
DECODERS = (
    "taesd_decoder", "taesdxl_decoder", "taesd3_decoder", "taef1_decoder", "taef2_decoder",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty models/vae_approx."""
    import folder_paths

    paths, suffixes = folder_paths.folder_names_and_paths["vae_approx"]
    folder_paths.folder_names_and_paths["vae_approx"] = ([str(tmp_path)], suffixes)
    yield tmp_path
    folder_paths.folder_names_and_paths["vae_approx"] = (paths, suffixes)


def write_decoder(path: Path, channels: int = 4) -> Path:
    """A decoder's file as madebyollin's repository has it: the layers by their numbers."""
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    model: Any = tiny.randomize(TAESD(latent_channels=channels), 7, 0.1)
    with torch.no_grad():
        model.taesd_decoder[-1].weight *= 0.05
        model.taesd_decoder[-1].bias.fill_(0.5)
    state = {key: value.clone() for key, value in model.taesd_decoder.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A MODEL with the latent format of that family."""
    import comfy.latent_formats

    model = tiny.sd_model(dtype)
    model.model.latent_format = getattr(comfy.latent_formats, family)()
    return model


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("SD15", "taesd_decoder.safetensors"),
        ("SDXL", "taesdxl_decoder.pth"),
        ("SD3", "taesd3_decoder.safetensors"),
        ("Flux", "taef1_decoder.safetensors"),
    ],
)
def test_it_decodes_as_comfyui_s_previews_do(folder: Path, family: str, file: str) -> None:
    from comfy.taesd.taesd import TAESD

    from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder
    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope, normal_copies
    from comfyui_dno.nodes.comfy_bridge.tiny_vae import tiny_vae

    model = model_of(family)
    latent_format = model.get_model_object("latent_format")
    channels = latent_format.latent_channels
    path = write_decoder(folder / file, channels)
    x0 = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(4))
    preview = TAESD(None, str(path), latent_channels=channels)
    expected = ((preview.decode(x0) + 1) / 2).clamp(0, 1)
    with gradient_scope():
        vae = tiny_vae(model)
        latent = latent_format.process_out(normal_copies(x0))
        image = BlockDecoder(vae, lambda x: x, lambda: None).decode(latent).clamp(0, 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)


def test_a_pair_gives_the_picture_of_the_node_load_vae(folder: Path) -> None:
    import nodes
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    from comfyui_dno.nodes.comfy_bridge.decoding import BlockDecoder
    from comfyui_dno.nodes.comfy_bridge.scope import gradient_scope, normal_copies
    from comfyui_dno.nodes.comfy_bridge.tiny_vae import tiny_vae

    write_decoder(folder / "taesd_decoder.safetensors")
    encoder: Any = tiny.randomize(TAESD(latent_channels=4).taesd_encoder, 8, 0.1)
    save_file(
        {k: v.clone() for k, v in encoder.state_dict().items()},
        folder / "taesd_encoder.safetensors",
    )
    (loaded,) = nodes.VAELoader().load_vae("taesd")
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)) * 5
    expected = loaded.decode(latent).movedim(-1, 1)
    with gradient_scope():
        vae = tiny_vae(model_of("SD15"))
        image = BlockDecoder(vae, lambda x: x, lambda: None).decode(normal_copies(latent))
    assert torch.equal(image.clamp(0, 1), expected)


def test_a_safetensors_file_comes_before_a_pickle(folder: Path) -> None:
    from comfyui_dno.nodes.comfy_bridge.tiny_vae import decoder_file

    write_decoder(folder / "taesd_decoder.pth")
    assert decoder_file("taesd_decoder").name == "taesd_decoder.pth"
    write_decoder(folder / "taesd_decoder.safetensors")
    assert decoder_file("taesd_decoder").name == "taesd_decoder.safetensors"


def test_the_gradient_through_it_is_that_of_central_differences(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_dno.nodes import optimization
    from comfyui_dno.nodes.comfy_bridge.tiny_vae import tiny_vae

    write_decoder(folder / "taesd_decoder.safetensors")
    monkeypatch.setattr(optimization, "tiny_vae", lambda model: tiny_vae(model, torch.float64))
    with KeepDouble():
        asked = request(torch.float64, terms=(wavy_reward(),), loop_decoder=TINY, batch=2)
    assert max(gradient_errors(asked, step=1e-7)) < 1e-5


def run(**changes: Any) -> Any:
    from comfyui_dno.nodes import optimization

    values = {"terms": (wavy_reward(),), "loop_decoder": TINY, "learning_rate": 0.05}
    values["graph_memory"] = "recompute"
    return optimization.run(request(**{**values, **changes}))


def test_a_run_climbs_by_it_and_returns_what_the_full_vae_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nodes

    from comfyui_dno.nodes.comfy_bridge import decoding

    write_decoder(folder / "taesd_decoder.safetensors")
    decoded: list[Tensor] = []
    decode = decoding.BlockDecoder.decode

    def counted(self: Any, x: Tensor) -> Tensor:
        decoded.append(decode(self, x))
        return decoded[-1]

    monkeypatch.setattr(decoding.BlockDecoder, "decode", counted)
    calls, full = Calls(tiny.sd_model(torch.float32), -1), tiny.vae(torch.float32)
    result = run(model=calls.model, vae=full, batch=2, check_gradient=False)
    trajectory, redraw = result.trajectory, result.trajectory.redraw
    assert calls.count == 3 * 3 + 2 * 3, "the full VAE takes the latents that are there"
    assert [image.shape[-1] for image in decoded] == [64, 64, 64, 16, 16]
    assert redraw is not None and trajectory.images[0].shape[1] == 64
    assert torch.equal(redraw.latents[0], trajectory.latents[0])
    assert torch.equal(redraw.latents[1], trajectory.take(trajectory.latents, redraw.winners))
    samples = result.latent["samples"]
    assert torch.equal(result.image, nodes.VAEDecode().decode(full, {"samples": samples})[0])
    assert torch.equal(trajectory.result_images, (result.image * 255).to(torch.uint8))
    first = nodes.VAEDecode().decode(full, stock(request(vae=full, batch=2)))[0]
    assert torch.equal(redraw.images[0], (first * 255).to(torch.uint8))


def test_with_fewer_steps_as_well_both_are_drawn_again(folder: Path) -> None:
    write_decoder(folder / "taesd_decoder.safetensors")
    trajectory = run(steps=4, optimize_steps=2).trajectory
    assert trajectory.redraw is not None
    assert not torch.equal(trajectory.redraw.latents[0], trajectory.latents[0])
    assert trajectory.redraw.images.shape[2:] == (16, 16, 3)
    assert trajectory.meta["loop_decoder"] == TINY and trajectory.meta["optimize_steps"] == 2


def test_what_the_last_iterations_drew_in_all_steps_is_only_decoded_again(folder: Path) -> None:
    write_decoder(folder / "taesd_decoder.safetensors")
    calls = Calls(tiny.sd_model(torch.float32), -1)
    changes = {"model": calls.model, "steps": 4, "optimize_steps": 2, "check_gradient": False}
    trajectory = run(**changes, finish_iterations=1).trajectory
    redraw = trajectory.redraw
    assert [record.steps for record in trajectory.records] == [2, 4, 4]
    assert calls.count == (2 + 4 + 4) + (2 + 4) + 4, "forward runs, sweeps, the first picture"
    assert redraw is not None and redraw.winners[0] > 0
    assert torch.equal(redraw.latents[1], trajectory.take(trajectory.latents, redraw.winners))
    assert not torch.equal(redraw.latents[0], trajectory.latents[0])
    assert redraw.images.shape[2:] == (16, 16, 3) and trajectory.images[2].shape[1] == 64


def test_the_full_vae_is_not_loaded_before_it_is_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    write_decoder(folder / "taesd_decoder.safetensors")
    full = tiny.vae(torch.float32)
    seen: list[bool] = []
    terms = (wavy_reward(),)
    score = terms[0].reward.score

    def looking(images: Tensor, context: Any) -> Tensor:
        seen.append(any(each.model is full.patcher for each in management.current_loaded_models))
        return score(images, context)

    object.__setattr__(terms[0].reward, "score", looking)
    run(vae=full, terms=terms, check_gradient=False)
    assert seen == [False] * 3 + [True] * 2


def test_out_of_memory_with_the_full_vae_leaves_the_loop_s_own_best(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfyui_dno.nodes import redraw

    write_decoder(folder / "taesd_decoder.safetensors")
    monkeypatch.setattr(redraw.FullQuality, "_decoder", lambda *_: out_of_memory(torch.empty(0)))
    result = run()
    trajectory = result.trajectory
    assert trajectory.redraw is None
    assert "could not be drawn again with the full VAE" in trajectory.warnings[-1]
    expected = trajectory.take(trajectory.latents, trajectory.best)
    assert torch.equal(result.latent["samples"], expected)


def test_a_missing_file_is_named_with_its_folder_and_its_source(folder: Path) -> None:
    with pytest.raises(ValueError) as error:
        run()
    for part in ("taesd_decoder.safetensors", str(folder), "madebyollin/taesd", "full VAE"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["taesd_decoder.safetensors", "taesd_decoder.pth"])
@pytest.mark.parametrize("kind", ["other channels", "cut", "not one"])
def test_a_file_that_is_no_such_decoder_is_named(folder: Path, name: str, kind: str) -> None:
    path = write_decoder(folder / name, 16 if kind == "other channels" else 4)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "not one":
        path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="is no tiny VAE for latents of 4 channels") as error:
        run()
    assert str(path) in str(error.value) and "Get it again" in str(error.value)


def test_a_family_without_one_says_so(folder: Path) -> None:
    import comfy.latent_formats

    from comfyui_dno.nodes.comfy_bridge.tiny_vae import FAMILIES, tiny_vae

    for family in ("SC_Prior", "Wan21", "LatentFormat"):
        model = model_of("SD15")
        model.model.latent_format = getattr(comfy.latent_formats, family)()
        with pytest.raises(ValueError, match=rf"no tiny VAE .*\({family}\)\. Set loop_decoder"):
            tiny_vae(model)
    assert set(FAMILIES) == set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_has_the_name_that_comfyui_gives_it(name: str) -> None:
    import comfy.latent_formats

    from comfyui_dno.nodes.comfy_bridge.tiny_vae import FAMILIES

    assert getattr(comfy.latent_formats, FAMILIES[name])().taesd_decoder_name == name
