"""Workflows on SDXL and its few-step kin; notes say which files, and where."""

from __future__ import annotations

from ...rewards.files.catalogue import HPS_V21
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
from .parts import Graph, Model, node, sampling

SDXL: Model = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/"
    "sd_xl_base_1.0.safetensors",
    "directory": "checkpoints",
}
SDXL_TURBO: Model = {
    "name": "sd_xl_turbo_1.0_fp16.safetensors",
    "url": f"{HUB}/stabilityai/sdxl-turbo/resolve/main/sd_xl_turbo_1.0_fp16.safetensors",
    "directory": "checkpoints",
}


SDXL_PICKSCORE_NOTE = f"""## SDXL: what people would pick
*DNO Sampler* climbs **PickScore**, which learnt from the choices people made between pictures of \
the same prompt. **HPS v2.1**, trained on other people's choices, is *watched* only: a held-out \
judge that shows whether the picture really gets better.

*Stop Rules* ends the run when the watched score has fallen while PickScore rose, or when the \
noise is no longer one that the model would draw. The best picture so far is kept.

**Change** the prompt and the seed; the *drop* of Stop Rules (lower it to stop sooner); \
*iterations*; or let HPS pull as well: switch its *watch_only* off, and set *weight* to say how \
hard.

**Files**
- **models/checkpoints**: [{SDXL["name"]}]({SDXL["url"]}), or any other SDXL (16-bit weights)
- **models/dno_rewards**: the folder *PickScore_v1* (3.9 GB), *{HPS_V21.name}* (2.0 GB)

{HOW_TO_GET}

**Time and memory.** {TIME} All three models and the way back through one step have to fit. If \
they do not: delete the watched loader, or make the picture smaller (768), or take *low VRAM* in \
the sampler's *preset*."""


def sdxl_pickscore() -> Graph:
    nodes = [
        *checkpoint(SDXL, "a butterfly on a thistle, meadow at dawn, macro photograph, fine detail",
                    "blurry, deformed"),
        empty_latent(390, 1024),
        node(6, "DNO_RewardLoader", (REWARDS_X, 76), LOADER_SIZE, "Reward Loader: climbed",
             PROMPT, reward="pickscore", reward__model="PickScore_v1"),
        node(7, "DNO_RewardLoader", (REWARDS_X, 450), LOADER_SIZE, "Reward Loader: watched",
             PROMPT, [reward_file(HPS_V21)], reward="hps", reward__model=HPS_V21.name,
             watch_only=True),
        mix(6, 7),
        node(10, "DNO_StopRules", (MIX_X, 270), (300, 230)),
        *run("DNO_Sampler", {**SAMPLED, "reward": (9, "reward"), "stop": (10, "stop")},
             **sampling(21, 20, 5.0), scheduler="normal", denoise=1.0, iterations=20,
             learning_rate=0.03),
        *results(),
        note(SDXL_PICKSCORE_NOTE, 570, 460),
    ]  # fmt: skip
    return {"nodes": nodes, "groups": groups((6, 7, 9, 10))}


FEW_STEP_NOTE = f"""## A few-step model, composed from parts
SDXL-Turbo draws a picture in a single step, so an iteration is short. *DNO Sampler (Advanced)* \
takes guider, sigmas and noise from ComfyUI's own nodes, in the place of SamplerCustomAdvanced; \
LoRA, ControlNet and other guiders go in the same way.

The recipe is that of **ReNO** (Eyring et al. 2024): *ImageReward* and *HPS v2.1* are climbed \
together, optimizer *sgd* with learning rate 5 and *gradient_clip* 0.1, its own regularizer \
(*norm*), 50 iterations. ReNO counts HPS five times; weights here count natural spreads, so the \
same is 0.16. **PickScore**, which ReNO climbs with a small weight too, is watched here, so that \
something independent says how it goes.

**Change** the prompt and *noise_seed*; *steps* of SDTurboScheduler (1 to 4: more detail, longer); \
*iterations*. ImageReward alone spoils pictures: keep HPS beside it. For Turbo's own guidance \
leave *Basic Guider*; a model that needs cfg takes *CFG Guider*.

**Files**
- **models/checkpoints**: [{SDXL_TURBO["name"]}]({SDXL_TURBO["url"]}) (its licence limits \
commercial use), or another few-step model
- **models/dno_rewards**: the folder *ImageReward* (1.8 GB), *{HPS_V21.name}* (2.0 GB), the folder \
*PickScore_v1* (3.9 GB; delete its loader to save memory)

{HOW_TO_GET}

**Time.** {TIME}"""


def few_step() -> Graph:
    parts = {"noise": (20, "NOISE"), "guider": (21, "GUIDER"), "sigmas": (22, "SIGMAS")}
    nodes = [
        *checkpoint(SDXL_TURBO, "a red rocket standing in a field of sunflowers, storybook "
                    "illustration", negative=None),
        empty_latent(220, 512),
        node(6, "DNO_RewardLoader", (REWARDS_X, 76), LOADER_SIZE, "Reward Loader: ImageReward",
             PROMPT, reward="image_reward", reward__model="ImageReward"),
        node(7, "DNO_RewardLoader", (REWARDS_X, 440), LOADER_SIZE, "Reward Loader: HPS v2.1",
             PROMPT, [reward_file(HPS_V21)], reward="hps", reward__model=HPS_V21.name,
             weight=0.16),
        node(8, "DNO_RewardLoader", (REWARDS_X, 830), LOADER_SIZE, "Reward Loader: watched",
             PROMPT, reward="pickscore", reward__model="PickScore_v1", watch_only=True),
        mix(6, 7, 8),
        node(10, "DNO_ProbabilityRegularizer", (MIX_X, 290), (300, 110), "", {}, method="norm"),
        node(20, "RandomNoise", (MIX_X, 500), (300, 90), noise_seed=4,
             control_after_generate="fixed"),
        node(21, "BasicGuider", (MIX_X, 650), (300, 60), "",
             {"model": (1, "MODEL"), "conditioning": (3, "CONDITIONING")}),
        node(22, "SDTurboScheduler", (MIX_X, 770), (300, 90), "", {"model": (1, "MODEL")},
             steps=1, denoise=1.0),
        *run("DNO_SamplerAdvanced",
             {**parts, "latent_image": (5, "LATENT"), "reward": (9, "reward"),
              "regularizer": (10, "regularizer")},
             iterations=50, learning_rate=5.0, optimizer="sgd", gradient_clip=0.1),
        *results(),
        note(FEW_STEP_NOTE, 440, 460),
    ]  # fmt: skip
    return {
        "nodes": nodes,
        "groups": groups((6, 7, 8, 9, 10, 20, 21, 22), "What to climb, and what to draw with"),
    }


GRAPHS = {"sdxl_pickscore": sdxl_pickscore, "few_step": few_step}
