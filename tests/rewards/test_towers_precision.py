"""Half precision: near float32 in score and gradient, however small the gradient is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from comfyui_dno.rewards.towers import precision
from comfyui_dno.rewards.towers.load import load_image_tower, load_tower
from comfyui_dno.rewards.towers.open_clip_tower import load_open_clip_file
from comfyui_dno.tests.rewards.pictures import as_images, natural_pictures

DEMO = Path(__file__).parents[2] / "demo"
BOUNDS = {"float16": (0.002, 0.9999, 0.002), "bfloat16": (0.02, 0.999, 0.02)}
"""Of the docstring: distance of unit embeddings, cosine of gradients, relative error of norms."""


@pytest.fixture(scope="module")
def photographs():
    pictures = [as_images(picture) for picture in natural_pictures()[:5]]
    return torch.cat([F.interpolate(each, (72, 88), mode="area") for each in pictures])


def gradients(tower, images, weights=1.0):
    """d sum(weights * cos(image, a fixed direction)) / d images."""
    way = torch.randn(tower.width, generator=torch.Generator().manual_seed(4))
    x = images.clone().requires_grad_(True)
    scores = tower.image_features(x) @ (way / way.norm())
    (gradient,) = torch.autograd.grad((weights * scores).sum(), x)
    return gradient


def cosines(a, b):
    a, b = (F.normalize(each.double().flatten(1), dim=1, eps=1e-30) for each in (a, b))
    return (a * b).sum(dim=1)


@pytest.mark.parametrize("model", ["reward", "judge"])
@pytest.mark.parametrize("name", BOUNDS)
def test_embeddings_and_gradients_stay_within_the_stated_bounds(name, model, photographs):
    distance, cosine, norm = BOUNDS[name]
    full = load_image_tower(DEMO / model, "test", "float32")
    half = load_image_tower(DEMO / model, "test", name)
    off = half.image_features(photographs) - full.image_features(photographs)
    assert off.norm(dim=1).max() < distance
    found, expected = gradients(half, photographs), gradients(full, photographs)
    assert cosines(found, expected).min() > cosine
    norms = found.flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert (norms - 1).abs().max() < norm


def test_a_gradient_too_small_for_float16_arrives_all_the_same(photographs):
    tower = load_image_tower(DEMO / "reward", "test", "float16")
    usual = gradients(tower, photographs)
    for weight in (1e-6, 1e-12, 1e6):
        found = gradients(tower, photographs, weight)
        torch.testing.assert_close(found / weight, usual, rtol=2e-3, atol=2e-3 * usual.abs().max())


def test_without_magnifying_such_a_gradient_vanishes(photographs, monkeypatch):
    monkeypatch.setattr(
        "comfyui_dno.rewards.towers.tower.through",
        lambda network, pixels, dtype: network(pixels.to(dtype)).float(),
    )
    tower = load_image_tower(DEMO / "reward", "test", "float16")
    full = load_image_tower(DEMO / "reward", "test", "float32")
    assert gradients(tower, photographs, 1e-6).abs().max() == 0
    lost = gradients(tower, photographs, 1e-4)
    assert cosines(lost, gradients(full, photographs, 1e-4)).min() < 0.9


def test_each_image_of_a_batch_has_its_own_factor(photographs):
    tower = load_image_tower(DEMO / "reward", "test", "float16")
    weights = torch.tensor([1.0, 1e-9, 1e9, 0.0, 1e-3])
    together = gradients(tower, photographs, weights)
    for index, weight in enumerate(weights):
        alone = gradients(tower, photographs[index][None], weight)[0]
        torch.testing.assert_close(together[index], alone, rtol=2e-3, atol=2e-3 * float(weight))
    assert (together[3] == 0).all() and together.isfinite().all()


def test_nan_in_the_gradient_of_one_image_stays_there(photographs):
    tower = load_image_tower(DEMO / "reward", "test", "float16")
    weights = torch.tensor([1.0, float("nan"), 1.0, float("inf"), 1.0])
    found = gradients(tower, photographs, weights)
    assert found.isfinite().flatten(1).all(1).tolist() == [True, False, True, False, True]


def test_one_picture_may_be_embedded_several_times_and_differentiated_twice(photographs):
    tower = load_image_tower(DEMO / "reward", "test", "float16")
    x = photographs.clone().requires_grad_(True)
    features, other = tower.image_features(x), tower.image_features(x.flip(-1))
    score = (features[:, 0] + other[:, 1]).sum()
    (first,) = torch.autograd.grad(score, x, retain_graph=True)
    (second,) = torch.autograd.grad(1e-7 * score, x)
    full = load_image_tower(DEMO / "reward", "test", "float32")
    y = photographs.clone().requires_grad_(True)
    expected = full.image_features(y)[:, 0].sum() + full.image_features(y.flip(-1))[:, 1].sum()
    (wanted,) = torch.autograd.grad(expected, y)
    assert cosines(first, wanted).min() > 0.999
    assert cosines(second, wanted).min() > 0.999
    assert (second.norm() / (1e-7 * wanted.norm()) - 1).abs() < 0.01


def test_magnifying_is_exact_where_nothing_is_rounded():
    """A network that multiplies by powers of two: its gradient must come out to the last bit."""
    x = torch.rand(3, 3, 4, 4).requires_grad_(True)
    seen = []

    def network(pixels):
        pixels.register_hook(lambda gradient: seen.append(gradient))
        return (pixels * 0.5).flatten(1)

    weights = torch.tensor([[2.0**-30], [2.0**20], [1.0]])
    (gradient,) = torch.autograd.grad(
        (precision.through(network, x, torch.float16) * weights).sum(), x
    )
    assert torch.equal(gradient, (0.5 * weights).view(3, 1, 1, 1).expand_as(x))
    assert (seen[0].abs().flatten(1).amax(1) == precision.PEAK / 2).all()


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_all_weights_and_buffers_are_in_the_precision_asked_for(clip_factory, tmp_path, name):
    towers = [
        load_tower(clip_factory.write_clip(tmp_path / "clip"), "test", name),
        load_tower(clip_factory.write_siglip(tmp_path / "siglip"), "test", name),
        load_tower(clip_factory.write_open_clip_folder(tmp_path / "open_clip"), "test", name),
        load_open_clip_file(clip_factory.write_hps(tmp_path / "hps.pt"), "test", name),
    ]
    for tower in towers:
        found = tower.image_features(torch.rand(1, 3, 32, 32))
        text = tower.text_features(("cat",))
        assert found.dtype == text.dtype == torch.float32
        (model,) = tower.modules
        dtypes = {each.dtype for each in [*model.parameters(), *model.buffers()]}
        assert {each for each in dtypes if each.is_floating_point} == {precision.DTYPES[name]}


def sharded(clip_factory, folder):
    """A CLIP whose weights lie in several files with an index."""
    whole = clip_factory.write_clip(folder)
    model = CLIPModel.from_pretrained(whole)
    (whole / "model.safetensors").unlink()
    model.save_pretrained(whole, max_shard_size="20KB")
    assert (whole / "model.safetensors.index.json").is_file()
    return whole


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "write",
    [
        lambda factory, path: factory.write_clip(path / "clip"),
        lambda factory, path: factory.write_clip(path / "pickle", safetensors=False),
        lambda factory, path: sharded(factory, path / "sharded"),
        lambda factory, path: factory.write_siglip(path / "siglip"),
        lambda factory, path: factory.write_open_clip_folder(path / "open_clip"),
        lambda factory, path: factory.write_hps(path / "hps.pt"),
    ],
)
def test_the_logit_scale_keeps_its_digits(clip_factory, tmp_path, name, write):
    path = write(clip_factory, tmp_path)
    full, half = load_tower(path, "test", "float32"), load_tower(path, "test", name)
    assert half.logit_scale == pytest.approx(full.logit_scale, rel=1e-6)


def test_auto_keeps_a_half_precision_file_as_it_is_until_it_is_used_on_a_cpu(
    clip_factory, tmp_path
):
    folder = clip_factory.write_clip(tmp_path / "half", dtype=torch.float16)
    tower = load_tower(folder, "test")
    (model,) = tower.modules
    assert next(model.parameters()).dtype == torch.float16
    with torch.inference_mode():
        tower.image_features(torch.rand(1, 3, 40, 40))
    assert next(model.parameters()).dtype == torch.float32
    assert not any(each.is_inference() for each in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", BOUNDS)
def test_on_a_gpu_half_precision_agrees_with_float32(name, photographs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which is no float32
    distance, cosine, _ = BOUNDS[name]
    full = load_image_tower(DEMO / "reward", "test", "float32")
    half = load_image_tower(DEMO / "reward", "test", name)
    images = photographs.to("cuda")
    full.modules[0].to("cuda")
    half.modules[0].to("cuda")
    try:
        off = half.image_features(images) - full.image_features(images)
        assert off.norm(dim=1).max() < distance
        way = torch.randn(full.width, generator=torch.Generator().manual_seed(4)).to("cuda")
        found = []
        for tower in (half, full):
            x = images.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad((1e-7 * tower.image_features(x) @ way).sum(), x)
            found.append(gradient.cpu())
        assert cosines(*found).min() > cosine
    finally:
        full.modules[0].to("cpu")
        half.modules[0].to("cpu")
