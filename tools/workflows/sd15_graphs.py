"""Workflows on Stable Diffusion 1.5; notes say which files, and where."""

from __future__ import annotations

from ...rewards.files.catalogue import LAION_V1, LAION_V2
from .checkpoint_parts import (
    HOW_TO_GET,
    HUB,
    LOADER_SIZE,
    MIX_X,
    PROMPT,
    REWARDS_X,
    SAMPLED,
    TIME,
    checkpoint,
    empty_latent,
    groups,
    mix,
    note,
    results,
    reward_file,
    run,
)
from .parts import BLUE, Graph, Model, group, node, sampling

SD15: Model = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}
CLIP_L14, CLIP_B32 = "clip-vit-large-patch14", "clip-vit-base-patch32"


SD15_AESTHETIC_NOTE = f"""## A more beautiful picture of the same prompt
Press **Run**. *DNO Sampler* first draws the picture that KSampler draws with this seed \
(euler_ancestral). Then it changes the *noise* that picture came from, so that **LAION \
aesthetic** rises. Nothing of the model is trained or changed.

- **CLIPScore** is only *watched*: another model that says whether the picture still shows the \
prompt. If its curve falls while the other rises, the picture is gaming its score.
- Slide over the picture on *DNO Sampler* to compare before and after.

**Change** the prompt, the seed, the checkpoint; *iterations* for a longer climb (10 to 50); \
*learning_rate* down if the curve jumps. To let CLIPScore pull as well, switch *watch_only* off.

**Files**
- **models/checkpoints**: [{SD15["name"]}]({SD15["url"]}), or any other Stable Diffusion 1.5
- **models/dno_rewards**: *{LAION_V2.name}* (*head*, a few MB), the folder *{CLIP_L14}* \
(*model*, 1.7 GB), the folder *{CLIP_B32}* (the watched one, 0.6 GB)

{HOW_TO_GET} If you have OpenAI's ViT-L/14 as a CLIP Vision model, connect it to *clip_vision* \
in place of the folder.

**Time.** {TIME} If memory runs out, open the workflow *low_vram*."""


def sd15_aesthetic() -> Graph:
    nodes = [
        *checkpoint(SD15, "an emperor penguin in fresh snow, soft morning light, photograph",
                    "blurry, deformed"),
        empty_latent(390, 512),
        node(6, "DNO_RewardLoader", (REWARDS_X, 76), LOADER_SIZE, "Reward Loader: beauty", {},
             [reward_file(LAION_V2)], reward="aesthetic", reward__head=LAION_V2.name,
             reward__model=CLIP_L14),
        node(7, "DNO_RewardLoader", (REWARDS_X, 450), LOADER_SIZE, "Reward Loader: watched",
             PROMPT, reward="clip_score", reward__model=CLIP_B32, watch_only=True),
        mix(6, 7),
        *run("DNO_Sampler", {**SAMPLED, "reward": (9, "reward")}, **sampling(8, 20, 5.0),
             scheduler="normal", denoise=1.0, iterations=20, learning_rate=0.03),
        *results(),
        note(SD15_AESTHETIC_NOTE, 570, 460),
    ]  # fmt: skip
    return {"nodes": nodes, "groups": groups((6, 7, 9))}


INPAINT_REWARD_NOTE = f"""## A part of a picture, climbed by itself
Only the rectangle may change: *Set Latent Noise Mask* keeps everything else. The same mask goes \
to both *Reward Loaders*, so that they judge this part alone; the prompt says what *it* shows, not \
the whole picture.

- One CLIP is climbed: the part should show the prompt. A second, trained apart, only watches: if \
its curve falls while the other rises, the picture is gaming its score.

**Change** the picture in *Load Image*. To paint a mask instead of the rectangle: right-click \
*Load Image*, *Open in MaskEditor*, paint, save; then connect its *MASK* to *Set Latent Noise \
Mask* and to both *Reward Loaders* (with nothing painted it is black, and the loaders say so). \
Masks are stretched over the whole picture, so the rectangle's numbers are out of 512 for any size.

*denoise* says how much of what was there may go: 1 forgets it, 0.5 keeps its structure. Any \
reward works in a part: *aesthetic*, *colour*, *pickscore*, ...

**Files**
- **models/checkpoints**: [{SD15["name"]}]({SD15["url"]}); inpainting checkpoints blend better
- **models/dno_rewards**: the folders *{CLIP_L14}* (1.7 GB) and *{CLIP_B32}* (0.6 GB)

{HOW_TO_GET}

**Time.** {TIME}"""


def inpaint_reward() -> Graph:
    side, part = 512, (190, 250)
    mask = (24, "MASK")
    judged = {**PROMPT, "mask": mask}
    nodes = [
        *checkpoint(SD15, "a dress made of sunflowers", "blurry, deformed"),
        node(20, "LoadImage", (380, 400), (300, 360), image="example.png"),
        node(21, "ImageScaleToTotalPixels", (380, 830), (300, 140), "Scale to the model's size",
             {"image": (20, "IMAGE")}, upscale_method="lanczos", megapixels=0.25,
             resolution_steps=64),
        node(22, "SolidMask", (REWARDS_X, 76), (300, 120), "All black", value=0.0, width=side,
             height=side),
        node(23, "SolidMask", (REWARDS_X, 260), (300, 120), "The part: its size", value=1.0,
             width=part[0], height=part[1]),
        node(24, "MaskComposite", (REWARDS_X, 444), (300, 130), "The part: its place",
             {"destination": (22, "MASK"), "source": (23, "MASK")}, x=158, y=205,
             operation="add"),
        node(25, "VAEEncode", (REWARDS_X, 640), (300, 60), "",
             {"pixels": (21, "IMAGE"), "vae": (1, "VAE")}),
        node(26, "SetLatentNoiseMask", (REWARDS_X, 760), (300, 60), "",
             {"samples": (25, "LATENT"), "mask": mask}),
        node(6, "DNO_RewardLoader", (1100, 76), LOADER_SIZE, "Reward Loader: climbed", judged,
             reward="clip_score", reward__model=CLIP_L14),
        node(7, "DNO_RewardLoader", (1100, 450), LOADER_SIZE, "Reward Loader: watched", judged,
             reward="clip_score", reward__model=CLIP_B32, watch_only=True),
        mix(6, 7) | {"pos": [1100, 830]},
        *run("DNO_Sampler", {**SAMPLED, "latent_image": (26, "LATENT"), "reward": (9, "reward")},
             **sampling(5, 20, 6.0), scheduler="normal", denoise=0.9, iterations=20,
             learning_rate=0.03),
        *results(),
        note(INPAINT_REWARD_NOTE, 1080, 460),
    ]  # fmt: skip
    return {
        "nodes": nodes,
        "groups": [
            group("The part that may change", (22, 23, 24, 25, 26), BLUE),
            *groups((6, 7, 9)),
        ],
    }


LOW_VRAM_NOTE = f"""## When memory is short
*ZO Gradient Estimator* with **zo_sgd** differentiates nothing, neither the model nor the VAE nor \
the reward: it needs hardly more memory than a plain picture and the small CLIP of the rewards. It \
draws **probes**, pictures with slightly changed noise, one after the other (*probe_batch* 1), and \
learns from their scores which way is up.

**What it costs.** Time, and a lower climb. An iteration takes as many plain pictures as there are \
probes, and one more; with 16 probes and 10 iterations that is 170, and 16 for the seeds that are \
tried first (*screen_seeds*). *time_limit* ends the run with the iteration in which ten minutes \
have passed, and keeps the best. A real gradient climbs far higher in the same time: if the \
workflow *sd15_aesthetic* runs on your card, take that one.

- **LAION aesthetic v1** and **CLIPScore** read the same small CLIP, which is loaded once. Both \
pull.

**Change** *probes* (more climb more steadily, fewer are faster), *screen_seeds* (the surest gain \
for the time), *time_limit* (0 is none), a smaller picture. *hybrid_2* climbs better from as few \
probes, but does go back through the model, and needs the memory for it.

**Files**
- **models/checkpoints**: [{SD15["name"]}]({SD15["url"]})
- **models/dno_rewards**: *{LAION_V1["b_32"].name}* (*head*, a few kB), the folder *{CLIP_B32}* \
(0.6 GB)

{HOW_TO_GET}"""


def low_vram() -> Graph:
    head = LAION_V1["b_32"]
    nodes = [
        *checkpoint(SD15, "a cosy house in a mushroom, forest clearing, illustration",
                    "blurry, deformed"),
        empty_latent(390, 512),
        node(6, "DNO_RewardLoader", (REWARDS_X, 76), LOADER_SIZE, "Reward Loader: beauty", {},
             [reward_file(head)], reward="aesthetic", reward__head=head.name,
             reward__model=CLIP_B32),
        node(7, "DNO_RewardLoader", (REWARDS_X, 450), LOADER_SIZE, "Reward Loader: prompt",
             PROMPT, reward="clip_score", reward__model=CLIP_B32),
        mix(6, 7),
        node(10, "DNO_ZOGradientEstimator", (MIX_X, 270), (300, 230), "", {}, method="zo_sgd",
             method__probes=16, method__probe_batch=1),
        *run("DNO_Sampler", {**SAMPLED, "reward": (9, "reward"), "estimator": (10, "estimator")},
             **sampling(3, 20, 5.0), scheduler="normal", denoise=1.0, iterations=10,
             learning_rate=0.06, time_limit=600.0, screen_seeds=16),
        *results(),
        note(LOW_VRAM_NOTE, 570, 460),
    ]  # fmt: skip
    return {"nodes": nodes, "groups": groups((6, 7, 9, 10), "What to climb, and how")}


GRAPHS = {
    "sd15_aesthetic": sd15_aesthetic,
    "inpaint_reward": inpaint_reward,
    "low_vram": low_vram,
}
