"""LPIPS against the packages lpips and stlpips_pytorch, in the file formats an artist has."""

from __future__ import annotations

import importlib
import importlib.util
import math
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.files.catalogue import LPIPS_ALEX, LPIPS_VGG
from comfyui_dno.rewards.region import limited
from comfyui_dno.rewards.towers.lpips_net import load_lpips

NETS = ("alex", "vgg")


def installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"install {package} to test"
    return Path(spec.origin).parent


def shift_tolerant_file(net: str) -> Path:
    """The real pretrained network that the package stlpips-pytorch ships."""
    return installed("stlpips_pytorch") / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"


@pytest.fixture
def published_shift_tolerant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The published ST-LPIPS, without the two packages that it imports for debugging only."""
    installed("stlpips_pytorch")
    for name, attribute in (("IPython", "embed"), ("torchsummary", "summary")):
        if importlib.util.find_spec(name) is None:
            stub = types.ModuleType(name)
            setattr(stub, attribute, None)
            monkeypatch.setitem(sys.modules, name, stub)
    module = importlib.import_module("stlpips_pytorch.stlpips")
    return lambda net: module.LPIPS(net=net, variant="shift_tolerant", verbose=False)


def published(net: str, seed: int = 0) -> Any:
    """lpips's own network: a random trunk (the real one is no package) under its real head."""
    import lpips

    torch.manual_seed(seed)
    return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def write_folder(folder: Path, net: str, model: Any) -> Path:
    """torchvision's file and richzhang's file in one folder, as they are downloaded."""
    source = {"alex": LPIPS_ALEX, "vgg": LPIPS_VGG}[net]
    folder.mkdir(parents=True, exist_ok=True)
    trunk = {
        "features." + name.partition(".")[2]: value
        for name, value in model.net.state_dict().items()
    }
    trunk["classifier.1.weight"] = torch.zeros(4, 4)
    torch.save(trunk, folder / source.files[0].name)
    head = installed("lpips") / "weights" / "v0.1" / f"{net}.pth"
    shutil.copy(head, folder / source.files[1].name)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    root = tmp_path_factory.mktemp("dno_rewards")
    found = {}
    for net in NETS:
        model = published(net)
        found[net] = (write_folder(root / f"lpips_{net}", net, model), model)
    return found


@pytest.fixture
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(11)
    coarse = torch.rand(3, 3, 7, 6, generator=generator)
    smooth = interpolate(coarse, size=(71, 64), mode="bilinear")
    return (0.85 * smooth + 0.15 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1)


def against(model: Path | str, images: Tensor, reference: Tensor) -> Tensor:
    return create("lpips", model=str(model)).score(images, Context(references=reference))


@pytest.mark.parametrize("net", NETS)
def test_a_folder_of_torchvision_s_and_richzhang_s_files_scores_as_the_package(
    net, folders, pictures
):
    folder, model = folders[net]
    reference = pictures.flip(2)[:1]
    with torch.no_grad():
        expected = -model(pictures, reference, normalize=True).flatten()
    torch.testing.assert_close(against(folder, pictures, reference), expected, atol=1e-5, rtol=0)
    assert expected.abs().min() > 1e-3  # the random trunk tells the pictures apart


@pytest.mark.parametrize("net", NETS)
def test_the_gradient_is_the_package_s(net, folders, pictures):
    folder, model = folders[net]
    reference, slopes = pictures.flip(2)[:1], []
    for score in (
        lambda x: against(folder, x, reference).sum(),
        lambda x: -model(x, reference, normalize=True).sum(),
    ):
        x = pictures.clone().requires_grad_(True)
        slopes.append(torch.autograd.grad(score(x), x)[0])
    error = (slopes[0] - slopes[1]).norm() / slopes[1].norm()
    assert error < 1e-4


@pytest.mark.parametrize("net", NETS)
def test_the_real_shift_tolerant_network_scores_as_its_package(
    net, published_shift_tolerant, pictures
):
    model, reference = published_shift_tolerant(net), pictures.flip(2)[:1]
    with torch.no_grad():
        expected = -model(pictures, reference, normalize=True).flatten()
    found = against(shift_tolerant_file(net), pictures, reference)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_one_file_of_the_whole_network_is_read_as_well(tmp_path, folders, pictures):
    folder, model = folders["alex"]
    import safetensors.torch

    state = {name: value.clone() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "whole.safetensors")
    reference = pictures[:1]
    expected = against(folder, pictures, reference)
    assert torch.equal(against(tmp_path / "whole.safetensors", pictures, reference), expected)


def test_with_real_weights_the_same_picture_scores_zero_and_a_blurred_one_nearest(pictures):
    model = shift_tolerant_file("alex")
    own = pictures[:1]
    blurred = avg_pool2d(own, 3, stride=1, padding=1, count_include_pad=False)
    same, near, far = against(model, torch.cat((own, blurred, pictures[1:2])), own).tolist()
    assert same == pytest.approx(0, abs=1e-6)
    assert far < near < same and near > far / 2


def test_the_shift_tolerant_network_forgives_a_shift_by_a_pixel(pictures):
    wide = interpolate(pictures, size=(142, 128), mode="bilinear")
    still, moved = wide[:1, :, :-1, :-1], wide[:1, :, 1:, 1:]
    other = wide[1:2, :, :-1, :-1]
    shift, far = against(shift_tolerant_file("alex"), torch.cat((moved, other)), still).tolist()
    assert shift > far / 4


@pytest.mark.parametrize("name", ["alex", "vgg", "st"])
def test_the_gradient_equals_central_differences_in_float64(
    name, folders, pictures, relative_gradient_error
):
    path = shift_tolerant_file("alex") if name == "st" else folders[name][0]
    reward = create("lpips", model=str(path))
    network = reward.network.double()
    try:
        context = Context(references=pictures[1:2].double())
        small = pictures[:1, :, :40, :40]
        # a ReLU or a maximum that changes sides within a step is a kink: the step is short
        error = relative_gradient_error(lambda x: reward.score(x, context), small, 1e-7)
    finally:
        network.float()
    assert error < 1e-5


def test_a_batch_scores_like_its_images_alone(folders, pictures):
    reference = pictures[1:2]
    together = against(folders["alex"][0], pictures, reference)
    alone = [against(folders["alex"][0], picture[None], reference) for picture in pictures]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


def test_several_references_count_as_their_mean(folders, pictures):
    folder = folders["alex"][0]
    both = against(folder, pictures, pictures[:2])
    each = [against(folder, pictures, pictures[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_a_reference_is_looked_at_once_and_anew_where_it_changed(folders, pictures, monkeypatch):
    reward = create("lpips", model=str(folders["alex"][0]))
    looked: list[int] = []
    features = type(reward.network).features

    def counted(self: Any, images: Tensor) -> list[Tensor]:
        looked.append(len(images))
        return features(self, images)

    monkeypatch.setattr(type(reward.network), "features", counted)
    images, references = pictures[:2], pictures[1:3].clone()
    context = Context(references=references)
    first = reward.score(images, context)
    assert torch.equal(reward.score(images, context), first)
    assert looked == [1, 1, 2, 2], "two references one by one, then the pictures each time"
    references[0] = pictures[0]
    changed = reward.score(images, context)
    assert looked == [1, 1, 2, 2, 1, 1, 2]
    assert changed[0] > first[0]
    smaller = reward.score(images[..., :40, :40], context)
    fresh = create("lpips", model=str(folders["alex"][0]))
    assert torch.equal(smaller, fresh.score(images[..., :40, :40], context))
    assert torch.equal(changed, fresh.score(images, context))


def test_features_that_take_much_memory_are_not_kept(folders, pictures, monkeypatch):
    from comfyui_dno.rewards import lpips

    reward = create("lpips", model=str(folders["alex"][0]))
    context = Context(references=pictures[:1])
    kept = reward.score(pictures, context)
    assert len(reward.seen) == 1
    monkeypatch.setattr(lpips, "KEPT_BYTES", 0)
    reward.seen.clear()
    assert torch.equal(reward.score(pictures, context), kept)
    assert not reward.seen


def test_a_reference_of_another_size_is_resized_to_the_picture():
    model = shift_tolerant_file("alex")
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    image = interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=False).clamp(0, 1)
    large = interpolate(coarse, size=(256, 256), mode="bicubic", align_corners=False).clamp(0, 1)
    assert against(model, image, large).item() > -0.01
    assert against(model, image, large.flip(2)).item() < -0.1


def test_a_masked_score_compares_the_same_place_of_both(pictures):
    reward = create("lpips", model=str(shift_tolerant_file("alex")))
    image = interpolate(pictures[:1], size=(160, 160), mode="bilinear")
    masks = torch.zeros(1, 1, 160, 160)
    masks[..., 40:120, 30:110] = 1
    elsewhere = torch.where(masks > 0, image, image.flip(1))
    context = Context(references=elsewhere, masks=masks)
    assert limited(reward).score(image, context).item() == pytest.approx(0, abs=1e-6)
    assert reward.score(image, Context(references=elsewhere)).item() < -0.1


@pytest.mark.parametrize(("name", "least"), [("alex", 31), ("vgg", 16), ("st", 21), ("stv", 18)])
def test_too_small_a_picture_is_refused_with_the_least_size(name, least, folders):
    path = shift_tolerant_file({"st": "alex", "stv": "vgg"}[name]) if "st" in name else ""
    reward = create("lpips", model=str(path or folders[name][0]))
    picture = torch.rand(1, 3, least, least + 5)
    assert torch.isfinite(reward.score(picture, Context(references=picture.flip(3)))).all()
    small = torch.rand(1, 3, least + 5, least - 1)
    with pytest.raises(RewardError, match=f"at least {least} x {least}"):
        reward.score(small, Context(references=small))
    with pytest.raises(RuntimeError):  # and the network could not have looked at it
        reward.network.features(small)


def test_gradients_are_finite_on_plain_pictures_and_the_reference_itself():
    reward = create("lpips", model=str(shift_tolerant_file("alex")))
    for value in (0.0, 0.5, 1.0):
        x = torch.full((1, 3, 48, 48), value, requires_grad=True)
        reward.score(x, Context(references=torch.rand(1, 3, 48, 48))).sum().backward()
        assert torch.isfinite(x.grad).all()
        same = torch.full((1, 3, 48, 48), value, requires_grad=True)
        reward.score(same, Context(references=same.detach())).sum().backward()
        assert torch.isfinite(same.grad).all()


def test_loaded_and_scored_in_inference_mode_it_can_still_be_climbed(folders, pictures):
    with torch.inference_mode():
        reward = create("lpips", model=str(folders["alex"][0]))
        reference = pictures.flip(2)[:1].clone()
        reward.score(pictures, Context(references=reference))
    x = pictures.clone().requires_grad_(True)
    reward.score(x, Context(references=reference)).sum().backward()
    assert x.grad.abs().sum() > 0


def test_it_is_loaded_once_and_changes_nothing(folders, pictures):
    folder = folders["alex"][0]
    reward, again = (create("lpips", model=str(folder)) for _ in range(2))
    assert reward.modules == again.modules
    assert reward.network is load_lpips(folder, "lpips")
    before = {name: value.clone() for name, value in reward.network.state_dict().items()}
    images, reference = pictures.clone(), pictures.flip(0).clone()
    reward.score(pictures, Context(references=pictures.flip(0)))
    assert torch.equal(images, pictures) and torch.equal(reference, pictures.flip(0))
    assert not any(weight.requires_grad for weight in reward.network.parameters())
    for name, value in reward.network.state_dict().items():
        assert torch.equal(before[name], value)


def test_nan_in_one_picture_spoils_that_one_alone(folders, pictures):
    pictures[1, 0, 3, 3] = math.nan
    scores = against(folders["alex"][0], pictures, torch.rand(1, 3, 71, 64))
    assert scores.isnan().tolist() == [False, True, False]


def test_what_is_no_lpips_is_named(tmp_path, folders, pictures):
    head = installed("lpips") / "weights" / "v0.1" / "alex.pth"
    with pytest.raises(RewardError, match=r"alex\.pth looks like LPIPS linear heads for AlexNet"):
        create("lpips", model=str(head))
    trunk = folders["alex"][0] / LPIPS_ALEX.files[0].name
    with pytest.raises(RewardError, match="looks like torchvision's AlexNet, not like a whole"):
        create("lpips", model=str(trunk))
    shutil.copy(folders["vgg"][0] / LPIPS_VGG.files[0].name, tmp_path / "trunk.pth")
    shutil.copy(head, tmp_path / "alex.pth")
    with pytest.raises(RewardError, match="does not fill the model"):
        create("lpips", model=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match="holds no weights"):
        create("lpips", model=str(tmp_path / "empty"))


def test_a_missing_model_and_a_missing_reference_say_what_to_do(tmp_path, folders, pictures):
    with pytest.raises(RewardError, match="lpips_alex is not in .*Choose 'download lpips_alex"):
        create("lpips", model=str(tmp_path / "lpips_alex"))
    with pytest.raises(RewardError, match="Connect an IMAGE to the reference socket"):
        create("lpips", model=str(folders["alex"][0])).score(pictures, Context())
