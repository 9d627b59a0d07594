from __future__ import annotations

import logging

import pytest
import torch

from comfyui_dno.rewards import Context, RewardError
from comfyui_dno.rewards.towers.load import load_tower
from comfyui_dno.rewards.towers.texts import TextMemory, cosine_scores, prompts_for


@pytest.fixture(params=["clip", "clip without tokenizer files", "siglip", "open_clip", "hps"])
def tower(request, clip_factory, tmp_path):
    if request.param == "siglip":
        return load_tower(clip_factory.write_siglip(tmp_path / "model"), "test")
    if request.param == "open_clip":
        return load_tower(clip_factory.write_open_clip_folder(tmp_path / "model"), "test")
    if request.param == "hps":
        return load_tower(clip_factory.write_hps(tmp_path / "model"), "test")
    with_files = request.param == "clip"
    return load_tower(clip_factory.write_clip(tmp_path / "model", tokenizer=with_files), "test")


def test_a_text_over_the_token_limit_is_cut_once_with_a_warning_that_quotes_it(tower, caplog):
    (limit,) = {tower.tokenize("cat " * 200).limit}
    read = limit - (1 if "Siglip" in type(tower.modules[0]).__name__ else 2)
    with caplog.at_level(logging.WARNING, logger="dno"):
        long = tower.text_features(("cat " * read + "dog apple",))
    assert 'Left out: "dog apple".' in caplog.text
    assert f"the {limit} tokens that model reads" in caplog.text
    assert torch.equal(long, tower.text_features(("cat " * read,)))
    tower.text_features(("cat " * read + "dog apple",))
    assert len(caplog.records) == 1


def test_text_features_are_unit_vectors_on_the_cpu_without_a_gradient(tower):
    found = tower.text_features(("cat", "blue dog", "cat"))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found.device.type == "cpu" and not found.requires_grad and not found.is_inference()
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_each_text_is_computed_once(tower, monkeypatch):
    calls = []
    original = tower.embed_texts
    monkeypatch.setattr(tower, "embed_texts", lambda ids: calls.append(1) or original(ids))
    for _ in range(3):
        tower.text_features(("cat", "dog", "cat"))
    assert len(calls) == 2


def test_the_least_recently_used_text_is_forgotten_first():
    memory, calls = TextMemory(kept=2), []

    def compute(text):
        calls.append(text)
        return torch.tensor([float(len(text))])

    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        assert memory((text,), compute).item() == len(text)
    assert calls == ["a", "bb", "ccc", "bb"]
    many = tuple("x" * n for n in range(1, 6))  # more at once than are kept
    assert memory(many, compute)[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_cosine_scores_are_those_of_each_picture_with_its_text(tower, images):
    texts = ("cat", "dog", "apple")
    scores = cosine_scores(tower, images, texts)
    both = tower.image_features(images) @ tower.text_features(texts).T
    torch.testing.assert_close(scores, both.diagonal())


def test_one_prompt_serves_all_images_and_several_serve_one_each():
    assert prompts_for("test", Context(("cat",)), 3) == ("cat",) * 3
    assert prompts_for("test", Context(("cat", "dog")), 2) == ("cat", "dog")


@pytest.mark.parametrize("context", [None, Context(), Context(("",)), Context(("cat", " "))])
def test_no_prompt_is_refused_with_the_way_out(context):
    with pytest.raises(RewardError, match="test has no prompt. Connect .* prompt socket"):
        prompts_for("test", context, 2)


def test_prompts_that_do_not_match_the_images_are_refused():
    with pytest.raises(RewardError, match="2 prompts for 3 images. Give one"):
        prompts_for("test", Context(("cat", "dog")), 3)
