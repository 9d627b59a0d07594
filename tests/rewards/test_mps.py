from __future__ import annotations

import logging
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.towers.mps_model import CONDITION

PROMPTS = ("red cat", "blue dog on red", "apple 7")
CAT = Context(("red cat",))
WIDTH, HEADS, HEAD, INNER, LAYERS, LIMIT = 64, 4, 6, 24, 4, 12
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_config(words):
    """CLIP ViT-H/14's settings at a small size: 16 heads in both halves, gelu."""
    half = {"num_attention_heads": 16, "num_hidden_layers": 2, "hidden_act": "gelu"}
    ids = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    return CLIPConfig(
        text_config={
            **half,
            **ids,
            "vocab_size": words,
            "hidden_size": 64,
            "intermediate_size": 40,
            "max_position_embeddings": LIMIT,
            "projection_dim": WIDTH,
        },
        vision_config={
            **half,
            "hidden_size": 48,
            "intermediate_size": 56,
            "image_size": 42,
            "patch_size": 14,
            "projection_dim": WIDTH,
        },
        projection_dim=WIDTH,
    )


def cross_state(generator):
    def random(size_out, size_in):
        return torch.randn(size_out, size_in, generator=generator) * 1.5 / size_in**0.5

    state = {}
    for layer in range(LAYERS):
        to_words, to_patches = (f"layers.{layer}.{part}.fn." for part in (0, 1))
        for block in (to_words, to_patches):
            state[f"{block}norm.weight"] = 1 + 0.3 * torch.randn(WIDTH, generator=generator)
            state[f"{block}norm.bias"] = torch.zeros(WIDTH)
        state[f"{to_words}to_q.weight"] = random(HEADS * HEAD, WIDTH)
        state[f"{to_words}to_kv.weight"] = random(2 * HEAD, WIDTH)
        state[f"{to_words}to_out.weight"] = random(WIDTH, HEADS * HEAD)
        state[f"{to_words}ff.0.weight"] = random(2 * INNER, WIDTH)
        state[f"{to_words}ff.2.weight"] = random(WIDTH, INNER)
        state[f"{to_patches}rotary_emb.inv_freq"] = 10000 ** -(torch.arange(0, HEAD, 2) / HEAD)
        fused = HEADS * HEAD + 2 * HEAD + 2 * INNER
        state[f"{to_patches}fused_attn_ff_proj.weight"] = random(fused, WIDTH)
        state[f"{to_patches}attn_out.weight"] = random(WIDTH, HEADS * HEAD)
        state[f"{to_patches}ff_out.1.weight"] = random(WIDTH, INNER)
    return state


def write_mps(clip_factory, folder, dtype=torch.float32):
    """The published port's folder: model.safetensors of the whole module, and the tokenizer."""
    clip_factory.write_clip(folder)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    torch.manual_seed(0)
    clip = CLIPModel(clip_config(len(tokenizer_of(folder))))
    for name, parameter in clip.named_parameters():
        if parameter.ndim > 1:  # words that differ, so that the condition reads some of them only
            torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else 0.12)
    state = {f"mps.model.{name}": tensor for name, tensor in clip.state_dict().items()}
    state["mps.model.text_model.embeddings.position_ids"] = torch.arange(LIMIT)[None]
    for name, tensor in cross_state(torch.Generator().manual_seed(1)).items():
        state[f"mps.cross_model.{name}"] = tensor
    save_file(
        {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()},
        folder / "model.safetensors",
    )
    return folder


def tokenizer_of(folder):
    kind = getattr(transformers, "CLIPTokenizerFast", None) or transformers.CLIPTokenizer
    return kind.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(clip_factory, tmp_path_factory):
    return write_mps(clip_factory, tmp_path_factory.mktemp("mps") / "MPS")


@pytest.fixture
def reward(folder):
    return create("mps", model=str(folder), precision="float32")


@pytest.fixture
def own_copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "MPS")


@pytest.fixture
def own_reward(own_copy):
    return create("mps", model=str(own_copy), precision="float32")


def turned(x):
    """Rotary positions as the multiplication of complex numbers (Su et al. 2021, eq. 13)."""
    half = x.shape[-1] // 2
    speed = 1 / 10000 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angle = torch.outer(torch.arange(len(x)), speed)
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), dim=-1)


def cross_attention(state, patches, words, bias):
    """One picture: patches [N, D], words [M, D], what is added to the likeness with them [M]."""

    def gated(x):
        value, gate = x.chunk(2, dim=-1)
        return value * gate * torch.sigmoid(gate)

    def attended(queries, key, value, bias):
        heads = []
        for query in queries.chunk(HEADS, dim=-1):
            query, keys = (turned(query), turned(key)) if bias is None else (query, key)
            scores = query @ keys.T / math.sqrt(HEAD) + (0 if bias is None else bias)
            heads.append(scores.softmax(dim=-1) @ value)
        return torch.cat(heads, dim=-1)

    for layer in range(LAYERS):
        for part in (0, 1):
            w = {
                name.split(".fn.")[1]: tensor
                for name, tensor in state.items()
                if name.startswith(f"mps.cross_model.layers.{layer}.{part}.")
            }
            x = F.layer_norm(patches, (WIDTH,), w["norm.weight"])
            if part == 0:
                key, value = (words @ w["to_kv.weight"].T).chunk(2, dim=-1)
                seen = attended(x @ w["to_q.weight"].T, key, value, bias) @ w["to_out.weight"].T
                inner = gated(x @ w["ff.0.weight"].T) @ w["ff.2.weight"].T
            else:
                fused = x @ w["fused_attn_ff_proj.weight"].T
                q, key, value, inner = fused.split((HEADS * HEAD, HEAD, HEAD, 2 * INNER), dim=-1)
                seen = attended(q, key, value, None) @ w["attn_out.weight"].T
                inner = gated(inner) @ w["ff_out.1.weight"].T
            patches = patches + seen + inner
    return patches


@torch.no_grad()
def published_scores(folder, pixels, prompts):
    """MPS as its evaluation scores, one picture at a time; and what share of words is read."""
    state = load_file(folder / "model.safetensors")
    tokenizer = tokenizer_of(folder)
    clip = CLIPModel(clip_config(len(tokenizer))).eval()
    own = {k.removeprefix("mps.model."): t for k, t in state.items() if k.startswith("mps.model.")}
    own.pop("text_model.embeddings.position_ids")
    clip.load_state_dict(own, strict=True)

    def words(text):
        ids = tokenizer(
            text, max_length=LIMIT, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        out = clip.text_model(input_ids=ids)
        return clip.text_projection(out[0])[0], clip.text_projection(out[1])[0]

    condition, _ = words(CONDITION)
    scores, shares = [], []
    for picture, prompt in zip(pixels, prompts, strict=True):
        text, whole = words(prompt)
        likeness = (condition @ text.T).max(dim=0).values
        read = likeness / likeness.max() > 0.3
        bias = torch.where(read, 0.0, -math.inf)
        patches = clip.visual_projection(clip.vision_model(pixel_values=picture[None])[0])[0]
        seen = cross_attention(state, patches, text, bias)[0]
        scores.append(clip.logit_scale.exp() * F.cosine_similarity(seen, whole, dim=0))
        shares.append(read.float().mean())
    return torch.stack(scores), torch.stack(shares)


def test_it_scores_as_the_published_evaluation_does_given_equal_pixels(folder, reward):
    images = torch.rand(3, 3, 42, 42, generator=torch.Generator().manual_seed(1))
    pixels = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for prompts in (PROMPTS, PROMPTS[::-1], ("photo", "cat " * 30, "a")):
        expected, read = published_scores(folder, pixels, prompts)
        assert expected.std() > 0.1 and (read < 1).any() and (read > 0).all()
        found = reward.score(images, Context(prompts))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_its_pixels_are_those_of_clips_processor(reward, folder):
    seen = []
    hook = reward.model.network.clip.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    size = {"height": 42, "width": 42}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 42}, crop_size=size)
    for index, (height, width) in enumerate([(61, 47), (200, 131), (42, 300)]):
        generator = torch.Generator().manual_seed(index)
        image = (torch.rand(1, 3, height, width, generator=generator) * 255).round() / 255
        reward.score(image, CAT)
        expected = processor(images=(image[0] * 255).byte(), return_tensors="pt").pixel_values
        off = (seen.pop() - expected).abs() * torch.tensor(STD).view(3, 1, 1)
        assert off.mean() < 0.5 / 255 and off.max() < 3 / 255
    hook.remove()


def test_a_plain_state_dict_of_the_published_module_is_read_as_well(own_copy, reward, images):
    state = load_file(own_copy / "model.safetensors")
    (own_copy / "model.safetensors").unlink()
    plain = {name.removeprefix("mps."): tensor for name, tensor in state.items()}
    torch.save(plain, own_copy / "MPS_overall_checkpoint.pth")
    found = create("mps", model=str(own_copy), precision="float32").score(images, CAT)
    assert torch.equal(found, reward.score(images, CAT))


def test_the_published_pickle_of_a_whole_module_is_refused(own_copy):
    (own_copy / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), own_copy / "MPS_overall_checkpoint.pth")
    with pytest.raises(RewardError, match="MPS_overall_checkpoint.pth.* code"):
        create("mps", model=str(own_copy))


def test_a_batch_scores_like_its_images_alone(reward, images):
    together = reward.score(images, Context(PROMPTS))
    for image, prompt, score in zip(images, PROMPTS, together, strict=True):
        alone = reward.score(image[None], Context((prompt,)))
        torch.testing.assert_close(alone[0], score, atol=1e-5, rtol=1e-5)


def test_the_gradient_equals_central_differences(own_reward, images, relative_gradient_error):
    own_reward.score(images, Context(PROMPTS))  # transformers 4 reads no text in float64
    own_reward.modules[0].double()
    error = relative_gradient_error(lambda x: own_reward.score(x, Context(PROMPTS)), images)
    assert error < 5e-6  # that of the differences, which falls with the square of their step


@pytest.mark.parametrize(
    ("precision", "bound", "alike"), [("float16", 0.02, 0.9999), ("bfloat16", 0.2, 0.995)]
)
def test_half_precision_stays_within_the_stated_bounds_of_float32(
    folder, reward, images, precision, bound, alike
):
    half = create("mps", model=str(folder), precision=precision)
    scores, gradients = [], []
    for each in (reward, half):
        x = images.clone().requires_grad_(True)
        score = each.score(x, Context(PROMPTS))
        (gradient,) = torch.autograd.grad(score.sum() * 1e-6, x)  # too small for float16 as it is
        scores.append(score.detach())
        gradients.append(gradient.flatten(1))
    assert scores[1].dtype == torch.float32
    assert scores[0].std() > 0.5  # what the bounds are to be measured by
    assert (scores[0] - scores[1]).abs().max() < bound
    assert torch.cosine_similarity(*gradients).min() > alike


def test_texts_are_read_once(own_reward, images, monkeypatch):
    calls = []
    network = own_reward.model.network
    original = network.words
    monkeypatch.setattr(network, "words", lambda ids: calls.append(1) or original(ids))
    for _ in range(3):
        own_reward.score(images, Context(PROMPTS))
    assert len(calls) == len(PROMPTS) + 1


def test_a_prompt_over_the_limit_is_cut_with_a_warning_that_quotes_it(own_reward, images, caplog):
    with caplog.at_level(logging.WARNING, logger="dno"):
        own_reward.score(images, CAT)
        assert not caplog.records  # nor for the words of the condition
        own_reward.score(images, Context(("cat " * 10 + "dog apple",)))
    assert "12 tokens" in caplog.text and 'Left out: "dog apple"' in caplog.text


def test_it_is_frozen_and_fit_for_autograd_though_loaded_in_inference_mode(own_copy, images):
    with torch.inference_mode():
        reward = create("mps", model=str(own_copy))
        reward.score(images, CAT)
    (network,) = reward.modules
    assert not any(module.training for module in network.modules())
    for tensor in [*network.parameters(), *network.buffers()]:
        assert not tensor.requires_grad and not tensor.is_inference() and not tensor.is_meta
    x = images.clone().requires_grad_(True)
    reward.score(x, CAT).sum().backward()
    assert x.grad.abs().sum() > 0


def test_it_is_loaded_once_while_its_files_stay_the_same(own_copy):
    first = create("mps", model=str(own_copy))
    assert create("mps", model=str(own_copy)).modules[0] is first.modules[0]
    (own_copy / "model.safetensors").touch()
    assert create("mps", model=str(own_copy)).modules[0] is not first.modules[0]


def test_nan_in_one_image_spoils_that_image_alone(reward, images):
    images[1, 0, 20, 20] = math.nan
    assert reward.score(images, CAT).isnan().tolist() == [False, True, False]


def test_no_prompt_is_refused(reward, images):
    with pytest.raises(RewardError, match="mps has no prompt. Connect"):
        reward.score(images, Context(("",)))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer"])
def test_a_missing_file_is_named(own_copy, file):
    names = (
        ["model.safetensors"] if file == "model.safetensors" else ["tokenizer.json", "vocab.json"]
    )
    for name in names:
        (own_copy / name).unlink(missing_ok=True)
    with pytest.raises(RewardError, match=f"{names[0]} is missing in .*MPS. Put the files"):
        create("mps", model=str(own_copy))


@pytest.mark.parametrize(
    "name",
    [
        "mps.model.visual_projection.weight",
        "mps.model.text_model.final_layer_norm.bias",
        "mps.cross_model.layers.3.1.fn.attn_out.weight",
        "mps.cross_model.layers.0.0.fn.ff.2.weight",
    ],
)
def test_a_missing_tensor_is_named(own_copy, name):
    state = load_file(own_copy / "model.safetensors")
    del state[name]
    save_file(state, own_copy / "model.safetensors")
    with pytest.raises(RewardError, match=f"{name}( is)? missing"):
        create("mps", model=str(own_copy))


def test_a_plain_clip_is_refused_with_what_it_looks_like(clip_factory, own_copy):
    clip = clip_factory.write_clip(own_copy.parent / "clip")
    shutil.copy(clip / "model.safetensors", own_copy / "model.safetensors")
    with pytest.raises(RewardError, match="model.safetensors looks like .*CLIP.*, not like MPS's"):
        create("mps", model=str(own_copy))


def test_a_spoilt_tokenizer_is_named(own_copy):
    (own_copy / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(RewardError, match="the tokenizer in .*MPS cannot be read"):
        create("mps", model=str(own_copy))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_logit_scale_is_exact_in_every_precision(folder, precision):
    found = create("mps", model=str(folder), precision=precision).model.logit_scale
    state = load_file(folder / "model.safetensors")
    assert found == pytest.approx(float(state["mps.model.logit_scale"].double().exp()), rel=1e-6)
