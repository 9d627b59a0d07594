from __future__ import annotations

import importlib.util
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torchvision import transforms
from transformers import BertTokenizer, BertTokenizerFast

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.towers.blip.tokens import load_tokenizer, tokenise


def neighbour(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"dno_test_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


factory = neighbour("blip_factory")

CAT = Context(("a red cat",))
PROMPTS = ("a red cat", "the photo of a blue dog, on the moon", "moon")
LONG = "a red cat " * 11 + "the dogs, Blue"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factory.write_blip(tmp_path_factory.mktemp("blip") / "ImageReward")


@pytest.fixture
def reward(folder):
    return create("image_reward", model=str(folder), precision="float32")


@pytest.fixture
def own_copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "ImageReward")


@pytest.fixture
def own_reward(own_copy):
    return create("image_reward", model=str(own_copy), precision="float32")


def edit(folder, change):
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "ImageReward.pt")


def part(state, prefix):
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def bert(state, ids, mask, patches, heads, eps=1e-12):
    """BERT with cross-attention, from the equations (Devlin et al. 2018, Li et al. 2022)."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(name, x, source, bias):
        def split(part, y):
            return linear(f"{name}.self.{part}", y).unflatten(-1, (heads, -1)).transpose(1, 2)

        q, k, v = split("query", x), split("key", source), split("value", source)
        weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        mixed = linear(f"{name}.output.dense", (weights @ v).transpose(1, 2).flatten(2))
        return norm(f"{name}.output.LayerNorm", mixed + x)

    padded = torch.where(mask.bool(), 0.0, -10000.0)[:, None, None]
    x = state["embeddings.word_embeddings.weight"][ids]
    x = norm("embeddings.LayerNorm", x + state["embeddings.position_embeddings.weight"][:35])
    for layer in range(factory.TEXT_LAYERS):
        block = f"encoder.layer.{layer}"
        x = attend(f"{block}.attention", x, x, padded)
        x = attend(f"{block}.crossattention", x, patches, 0.0)
        inner = F.gelu(linear(f"{block}.intermediate.dense", x))
        x = norm(f"{block}.output.LayerNorm", linear(f"{block}.output.dense", inner) + x)
    return x


def bert_tokens(folder, prompts):
    """The published tokenisation: transformers' BertTokenizer with BLIP's two words."""
    tokenizer = BertTokenizer.from_pretrained(str(folder))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )


def published_scores(folder, pixels, prompts, image_size=48):
    """ImageReward through timm's ViT, the equations of BERT and transformers' tokenizer."""
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    vision = VisionTransformer(
        img_size=image_size,
        patch_size=factory.PATCH,
        embed_dim=factory.VISION_WIDTH,
        depth=factory.VISION_LAYERS,
        num_heads=factory.VISION_WIDTH // 64,
        num_classes=0,
        global_pool="",
    ).eval()
    vision.load_state_dict(part(state, "blip.visual_encoder."), strict=True)
    tokens = bert_tokens(folder, prompts)
    with torch.no_grad():
        patches = vision(pixels)
        text = part(state, "blip.text_encoder.")
        x = bert(text, tokens.input_ids, tokens.attention_mask, patches, factory.TEXT_HEADS)[:, 0]
        for layer in factory.HEAD:
            x = F.linear(x, state[f"mlp.layers.{layer}.weight"], state[f"mlp.layers.{layer}.bias"])
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_it_scores_as_the_published_network_does_given_equal_pixels(folder, reward):
    images = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    pixels = transforms.functional.normalize(images, MEAN, STD)
    for prompts in (PROMPTS, PROMPTS[::-1], (LONG, "a", "cat")):
        expected = published_scores(folder, pixels, prompts)
        found = reward.score(images, Context(prompts))
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_its_pixels_are_those_of_the_published_transform(tmp_path):
    large = factory.write_blip(tmp_path / "large", image_size=224)
    reward = create("image_reward", model=str(large), precision="float32")
    published = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    seen = []
    hook = reward.model.network.vision.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    for picture in neighbour("pictures").natural_pictures():
        picture = picture.convert("RGB")
        reward.score(transforms.functional.to_tensor(picture)[None], CAT)
        off = (seen.pop()[0] - published(picture)).abs() * torch.tensor(STD).view(3, 1, 1)
        assert off.mean() < 0.5 / 255 and off.max() < 3 / 255
    hook.remove()


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS,
        LONG,
        "",
        "a Ca\u0301t's CAF\u00c9 -- \u732b\u72ac",
        "[DEC] cat [ENC] [SEP] dog [MASK]",
        "\ta \u200bred\ncat" * 9,
    ],
)
def test_its_tokens_are_those_of_transformers_bert_tokenizer(folder, tmp_path, prompt, as_json):
    expected = bert_tokens(folder, [prompt])
    words = len(factory.vocabulary()) + 2
    if as_json:
        tokenizer = BertTokenizerFast.from_pretrained(str(folder))
        tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        folder = tmp_path
    found = tokenise(load_tokenizer(folder, words, "image_reward"), prompt)
    assert found.ids == expected.input_ids[0].tolist()


def test_a_batch_scores_like_its_images_alone(reward, images):
    together = reward.score(images, Context(PROMPTS))
    for image, prompt, score in zip(images, PROMPTS, together, strict=True):
        alone = reward.score(image[None], Context((prompt,)))
        torch.testing.assert_close(alone[0], score, atol=1e-5, rtol=1e-5)


def test_it_reads_the_prompt_and_sees_the_picture(reward, images):
    of_one_prompt = reward.score(images, CAT)
    of_one_picture = reward.score(images[:1].expand(3, -1, -1, -1), Context(PROMPTS))
    assert of_one_prompt.std() > 0.01 and of_one_picture.std() > 0.01


def test_the_gradient_equals_central_differences(own_reward, images, relative_gradient_error):
    own_reward.modules[0].double()
    error = relative_gradient_error(lambda x: own_reward.score(x, Context(PROMPTS)), images)
    assert error < 1e-6


def test_saturated_pixels_keep_their_gradient(reward):
    x = torch.ones(1, 3, 60, 50, requires_grad=True)
    reward.score(x, CAT).sum().backward()
    assert (x.grad[..., 5:55, :] != 0).all()


@pytest.mark.parametrize(
    ("precision", "bound", "alike"), [("float16", 0.01, 0.9999), ("bfloat16", 0.2, 0.998)]
)
def test_half_precision_stays_within_the_stated_bounds_of_float32(
    folder, reward, images, precision, bound, alike
):
    half = create("image_reward", model=str(folder), precision=precision)
    scores, gradients = [], []
    for each in (reward, half):
        x = images.clone().requires_grad_(True)
        score = each.score(x, Context(PROMPTS))
        (gradient,) = torch.autograd.grad(score.sum() * 1e-6, x)  # too small for float16 as it is
        scores.append(score.detach())
        gradients.append(gradient.flatten(1))
    assert scores[1].dtype == torch.float32
    assert scores[0].std() > 3  # what the bounds are to be measured by
    assert (scores[0] - scores[1]).abs().max() < bound
    assert torch.cosine_similarity(*gradients).min() > alike


def test_auto_is_float32_also_for_a_file_in_half_precision(tmp_path, images):
    half = factory.write_blip(tmp_path / "half", dtype=torch.float16)
    found = create("image_reward", model=str(half)).score(images, CAT)
    edit(
        half,
        lambda state: state.update(
            {k: v.float() for k, v in state.items() if v.is_floating_point()}
        ),
    )
    expected = create("image_reward", model=str(half)).score(images, CAT)
    assert torch.equal(found, expected)


def test_a_prompt_over_35_tokens_is_cut_with_a_warning_that_quotes_it(own_reward, images, caplog):
    with caplog.at_level(logging.WARNING, logger="dno"):
        scores = own_reward.score(images, Context((LONG,)))
    assert "35 tokens" in caplog.text and 'Left out: "the dogs, Blue"' in caplog.text
    assert torch.equal(scores, own_reward.score(images, Context(("a red cat " * 11,))))
    own_reward.score(images, Context((LONG,)))
    assert len(caplog.records) == 1


def test_it_is_frozen_and_fit_for_autograd_though_loaded_in_inference_mode(own_copy, images):
    with torch.inference_mode():
        reward = create("image_reward", model=str(own_copy))
        reward.score(images, CAT)
    (network,) = reward.modules
    for module in network.modules():
        assert not module.training
    for tensor in [*network.parameters(), *network.buffers()]:
        assert not tensor.requires_grad and not tensor.is_inference() and not tensor.is_meta
    x = images.clone().requires_grad_(True)
    reward.score(x, CAT).sum().backward()
    assert x.grad.abs().sum() > 0


def test_it_is_loaded_once_while_its_files_stay_the_same(own_copy):
    first = create("image_reward", model=str(own_copy))
    assert create("image_reward", model=str(own_copy)).modules[0] is first.modules[0]
    other = create("image_reward", model=str(own_copy), precision="float16")
    assert other.modules[0] is not first.modules[0]
    (own_copy / "vocab.txt").touch()
    assert create("image_reward", model=str(own_copy)).modules[0] is not first.modules[0]


def test_nan_in_one_image_spoils_that_image_alone(reward, images):
    images[1, 0, 20, 20] = math.nan
    assert reward.score(images, CAT).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("context", [None, Context(), Context(("  ",))])
def test_no_prompt_is_refused(reward, images, context):
    with pytest.raises(RewardError, match="image_reward has no prompt. Connect"):
        reward.score(images, context)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("ImageReward.pt", "ImageReward.pt is missing in .*ImageReward. Put the files"),
        ("med_config.json", "med_config.json is missing in .*ImageReward. Put the files"),
        ("vocab.txt", "neither tokenizer.json nor vocab.txt in .*ImageReward. Put one"),
    ],
)
def test_a_missing_file_is_named(own_copy, file, message):
    (own_copy / file).unlink()
    with pytest.raises(RewardError, match=message):
        create("image_reward", model=str(own_copy))


def test_another_models_weights_are_refused_with_what_they_look_like(own_copy):
    layers = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    head = {}
    for layer, (size_in, size_out) in layers.items():
        head[f"layers.{layer}.weight"] = torch.zeros(size_out, size_in)
        head[f"layers.{layer}.bias"] = torch.zeros(size_out)
    torch.save(head, own_copy / "ImageReward.pt")
    with pytest.raises(RewardError, match="ImageReward.pt looks like .*LAION"):
        create("image_reward", model=str(own_copy))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blip.visual_encoder.cls_token", "cls_token is missing"),
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", "blocks.1.attn.qkv.bias is missing"),
        (
            "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight",
            "layer.1.crossattention.self.key.weight is missing",
        ),
        ("mlp.layers.6.weight", "mlp.layers.6.weight is missing"),
    ],
)
def test_a_missing_tensor_is_named(own_copy, name, message):
    edit(own_copy, lambda state: state.pop(name))
    with pytest.raises(RewardError, match=message):
        create("image_reward", model=str(own_copy))


@pytest.mark.parametrize(
    "name",
    [
        "blip.visual_encoder.blocks.0.attn.q_norm.weight",
        "blip.text_encoder.pooler.dense.weight",
        "mlp.layers.8.weight",
    ],
)
def test_a_tensor_that_the_network_does_not_have_is_named(own_copy, name):
    edit(own_copy, lambda state: state.update({name: torch.ones(4)}))
    with pytest.raises(RewardError, match=f"holds {name}, which image_reward does not have"):
        create("image_reward", model=str(own_copy))


def test_a_tensor_of_another_shape_is_named(own_copy):
    config = json.loads((own_copy / "med_config.json").read_text(encoding="utf-8"))
    config["intermediate_size"] = 20
    (own_copy / "med_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        RewardError, match=r"intermediate.dense.weight is \[64, 48\], not \[20, 48\]"
    ):
        create("image_reward", model=str(own_copy))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_spoilt_config_is_named(own_copy, text):
    (own_copy / "med_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RewardError, match="med_config.json"):
        create("image_reward", model=str(own_copy))


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_a_spoilt_tokenizer_is_named(own_copy, file):
    (own_copy / file).write_text("{", encoding="utf-8")
    with pytest.raises(RewardError, match=f"{file} cannot be read .* Put bert-base-uncased"):
        create("image_reward", model=str(own_copy))


def test_a_tokenizer_of_another_vocabulary_is_refused(own_copy):
    words = (own_copy / "vocab.txt").read_text(encoding="utf-8")
    (own_copy / "vocab.txt").write_text(words + "zebra\n", encoding="utf-8")
    with pytest.raises(RewardError, match="vocab.txt has .* words, the model .*. Put bert-base"):
        create("image_reward", model=str(own_copy))
