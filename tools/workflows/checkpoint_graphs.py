"""Workflows on checkpoints that the user has or downloads; notes say which files, and where."""

from __future__ import annotations

from typing import Any

from ...rewards.files.catalogue import HPS_V21, LAION_V1, LAION_V2
from ...rewards.files.source import Source
from .parts import (
    AMBER,
    BLUE,
    GREEN,
    SAMPLER_SIZE,
    Graph,
    Model,
    Node,
    curve,
    group,
    node,
    sampling,
)

HUB = "https://huggingface.co"
SD15: Model = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
    "v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}
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
CLIP_L14, CLIP_B32 = "clip-vit-large-patch14", "clip-vit-base-patch32"
SAMPLED = {
    "model": (1, "MODEL"),
    "positive": (3, "CONDITIONING"),
    "negative": (4, "CONDITIONING"),
    "latent_image": (5, "LATENT"),
}
PROMPT = {"reward.prompt": (2, "STRING")}
REWARDS_X, MIX_X, RUN_X, RESULTS_X = 740, 1140, 1500, 2220
LOADER_SIZE = (340, 200)


def reward_file(source: Source) -> Model:
    """A reward's model of one file, as properties.models has it."""
    return {"name": source.name, "url": source.files[0].url, "directory": "dno_rewards"}


def checkpoint(model: Model, prompt: str, negative: str | None = "") -> list[Node]:
    """Nodes 1 to 4: the checkpoint, the prompt as text and as conditioning. No negative: None."""
    clip = {"clip": (1, "CLIP")}
    nodes = [
        node(1, "CheckpointLoaderSimple", (20, 76), (320, 120), "", {}, [model],
             ckpt_name=model["name"]),
        node(2, "PrimitiveStringMultiline", (20, 250), (320, 120), "Prompt", value=prompt),
        node(3, "CLIPTextEncode", (380, 76), (300, 90), "Positive",
             {**clip, "text": (2, "STRING")}),
    ]  # fmt: skip
    if negative is not None:
        nodes.append(
            node(4, "CLIPTextEncode", (380, 220), (300, 120), "Negative", clip, text=negative)
        )
    return nodes


def empty_latent(y: int, side: int) -> Node:
    """Node 5."""
    return node(5, "EmptyLatentImage", (380, y), (300, 110), width=side, height=side, batch_size=1)


def note(text: str, y: int, height: int) -> Node:
    """Node 19. No code spans: Nodes 2.0 shows them blue on blue."""
    return node(19, "MarkdownNote", (20, y), (660, height), "Read me", text=text)


def mix(*members: int) -> Node:
    """Node 9."""
    inputs = {f"rewards.reward_{i}": (number, "reward") for i, number in enumerate(members)}
    return node(9, "DNO_RewardMix", (MIX_X, 76), (300, 110), "", inputs)


def run(kind: str, inputs: dict[str, tuple[int, str]], **widgets: Any) -> list[Node]:
    """Nodes 11 and 12: a DNO sampler, and Pick Iteration at the start of its run."""
    wired = {**inputs, "vae": (1, "VAE")}
    picked = {"trajectory": (11, "trajectory")}
    return [
        node(11, kind, (RUN_X, 76), SAMPLER_SIZE, "", wired, **widgets),
        node(12, "DNO_PickIteration", (RUN_X + 380, 76), (280, 330), "Pick Iteration: the start",
             picked, index=0),
    ]  # fmt: skip


def results() -> list[Node]:
    """Nodes 13 to 16: before, after and the curve, saved."""
    before, after = {"images": (12, "image")}, {"images": (11, "image")}
    size = (420, 480)
    return [
        node(13, "SaveImage", (RESULTS_X, 76), size, "Save: before", before,
             filename_prefix="dno/before"),
        node(14, "SaveImage", (RESULTS_X + 460, 76), size, "Save: after", after,
             filename_prefix="dno/after"),
        *curve(15, 11, (RESULTS_X, 620)),
    ]  # fmt: skip


def groups(aims: tuple[int, ...], title: str = "What to climb, and what to watch") -> list[Any]:
    return [
        group(title, aims, AMBER),
        group("The run", (11, 12), GREEN),
        group("Before, after, and how it went", (13, 14, 15, 16), BLUE),
    ]


HOW_TO_GET = """Choose the *download* line of the same name in the widget, once: it is fetched \
when you press Run, and stays. Or put the file or folder there yourself."""
TIME = """An iteration takes as long as about four plain pictures, since the way back through all \
steps is computed as well; once the first is done, the sampler tells seconds an iteration and the \
time left. You can pause it, move the weights, or stop and keep the best at any time."""


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
    "sdxl_pickscore": sdxl_pickscore,
    "few_step": few_step,
    "inpaint_reward": inpaint_reward,
    "low_vram": low_vram,
}
