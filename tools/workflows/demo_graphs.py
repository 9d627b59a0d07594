"""Workflows on the demo model: they run anywhere, with nothing to download."""

from __future__ import annotations

from .parts import AMBER, BLUE, GREEN, SAMPLER_SIZE, Graph, Node, curve, group, node, sampling

SAMPLED = {
    "model": (1, "MODEL"),
    "positive": (3, "CONDITIONING"),
    "negative": (4, "CONDITIONING"),
    "latent_image": (5, "LATENT"),
}


def model_and_prompts(prompt: str) -> list[Node]:
    """Nodes 1 to 5: the demo model, the prompt as text and as conditioning, an empty latent."""
    clip = {"clip": (1, "CLIP")}
    return [
        node(1, "DNO_DemoModel", (20, 60), (280, 80)),
        node(2, "PrimitiveStringMultiline", (20, 200), (280, 100), "Prompt", value=prompt),
        node(
            3, "CLIPTextEncode", (340, 60), (280, 90), "Positive", {**clip, "text": (2, "STRING")}
        ),
        node(4, "CLIPTextEncode", (340, 190), (280, 110), "Negative", clip, text=""),
        node(5, "EmptyLatentImage", (340, 350), (280, 110), width=64, height=64, batch_size=1),
    ]


def saved(number: int, source: tuple[int, str], pos: tuple[int, int], name: str) -> list[Node]:
    """Two nodes: enlarge to 512 pixels without smoothing, and save as dno/NAME."""
    x, y = pos
    scale = {"upscale_method": "nearest-exact", "width": 512, "height": 512, "crop": "disabled"}
    return [
        node(number, "ImageScale", (x, y), (260, 130), "Enlarge", {"image": source}, **scale),
        node(
            number + 1,
            "SaveImage",
            (x + 300, y),
            (300, 340),
            f"Save: {name}",
            {"images": (number, "IMAGE")},
            filename_prefix=f"dno/{name}",
        ),
    ]


FIRST_LIGHT_NOTE = """## First light
Press **Run**. The two samplers get the same model, prompt and seed.

- **KSampler** draws its picture once.
- **DNO Sampler** draws the same one first. Then it changes the *noise* that picture came from, a \
little in each iteration, so that the next picture scores higher on the **reward**.

Try another reward in *Reward Loader*, another prompt (*cat face*, *blue heart on yellow*, \
*pig, flat style*), or another seed in both samplers.

The demo model is tiny: it knows a few hundred emoji drawings at 64 x 64 pixels. For your own \
model, put your loader in place of *DNO Demo Model* and an empty latent of your size."""


def first_light() -> Graph:
    settings = sampling(seed=8, steps=10, cfg=3.0)
    kinds = {"sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1.0}
    decode = {"samples": (6, "LATENT"), "vae": (1, "VAE")}
    reward = {"vae": (1, "VAE"), "reward": (10, "reward")}
    climb = {"scheduler": "normal", "denoise": 1.0, "iterations": 20, "learning_rate": 0.02}
    nodes = [
        *model_and_prompts("cat face"),
        node(6, "KSampler", (680, 60), (320, 270), "", SAMPLED, **settings, **kinds),
        node(7, "VAEDecode", (1040, 60), (200, 60), "", decode),
        *saved(8, (7, "IMAGE"), (1280, 60), "before"),
        node(
            10,
            "DNO_RewardLoader",
            (340, 560),
            (280, 150),
            "",
            reward="colour",
            reward__colour="#2f6fd0",
        ),
        node(
            11,
            "DNO_Sampler",
            (680, 500),
            SAMPLER_SIZE,
            "",
            {**SAMPLED, **reward},
            **settings,
            **climb,
        ),
        *saved(12, (11, "image"), (1280, 500), "after"),
        *curve(14, 11, (1980, 500)),
        node(16, "MarkdownNote", (20, 350), (280, 420), "Read me", text=FIRST_LIGHT_NOTE),
    ]
    groups = [
        group("What KSampler draws", (6, 7, 8, 9), BLUE),
        group("What DNO Sampler makes of the same seed", (11, 12, 13), GREEN),
        group("How it climbed", (14, 15), AMBER),
    ]
    return {"nodes": nodes, "groups": groups}


TWO_REWARDS_NOTE = """## Several rewards, and one that only watches
- The first *Reward Loader* pulls the picture towards a **colour**.
- The second scores how well it still matches the **prompt**. Both pull; the weights say how hard.
- The third is a **held-out judge**: another image-text model that nothing is optimized for. If \
its curve falls while the others rise, the picture is gaming its score.

*Probability Regularizer* holds the noise to what Gaussian noise looks like. Switch it off \
and watch the percentile of P(z) fall on the curve.

*Pick Iteration* takes any iteration out of the finished run: change its index and press **Run**; \
the sampler does not start again."""


def two_rewards() -> Graph:
    settings = sampling(seed=5, steps=10, cfg=3.0)
    climb = {"scheduler": "normal", "denoise": 1.0, "iterations": 20, "learning_rate": 0.02}
    prompt = {"reward.prompt": (2, "STRING")}
    mixed = {f"rewards.reward_{i}": (number, "reward") for i, number in enumerate((6, 7, 8))}
    run = {
        **SAMPLED,
        "vae": (1, "VAE"),
        "reward": (9, "reward"),
        "regularizer": (10, "regularizer"),
    }
    judge = {"reward__model": "demo judge (held out)", "watch_only": True}
    title = "Reward Loader: the judge, watched"
    nodes = [
        *model_and_prompts("strawberry"),
        node(6, "DNO_RewardLoader", (680, 60), (320, 180), "Reward Loader: colour", {},
             reward="colour", reward__colour="#2060ff"),
        node(7, "DNO_RewardLoader", (680, 340), (320, 220), "Reward Loader: prompt", prompt,
             reward="clip_score", weight=0.5),
        node(8, "DNO_RewardLoader", (680, 640), (320, 220), title, prompt,
             reward="clip_score", **judge),
        node(9, "DNO_RewardMix", (1060, 60), (240, 110), "", mixed),
        node(10, "DNO_ProbabilityRegularizer", (1060, 240), (300, 130)),
        node(11, "DNO_Sampler", (1420, 60), SAMPLER_SIZE, "", run, **settings, **climb),
        node(12, "DNO_PickIteration", (1800, 60), (260, 300), "Pick Iteration: the start",
             {"trajectory": (11, "trajectory")}, index=0),
        *saved(13, (12, "image"), (2120, 60), "before"),
        *saved(15, (11, "image"), (2120, 480), "after"),
        *curve(17, 11, (2780, 60)),
        node(19, "MarkdownNote", (20, 350), (280, 460), "Read me", text=TWO_REWARDS_NOTE),
    ]  # fmt: skip
    groups = [
        group("What to climb, and what to watch", (6, 7, 8, 9, 10), AMBER),
        group("The run", (11, 12), GREEN),
        group("Before, after, and how it went", (13, 14, 15, 16, 17, 18), BLUE),
    ]
    return {"nodes": nodes, "groups": groups}


BLACK_BOX_NOTE = """## A reward without a gradient
How small a picture's JPEG file is cannot be differentiated. *ZO Gradient Estimator* draws a few \
**probes** in every iteration, pictures with slightly changed noise, and learns from their scores \
which way is up. Each probe costs as much as one plain picture.

- The **held-out judge** only watches whether the picture still shows what the prompt says.
- *Stop Rules* ends the run early if the judge's score falls or the noise gets unlikely.
- *Save Trajectory* keeps the run in a file. *Load Trajectory* brings it back: for Pick Iteration, \
or for the *resume* input of DNO Sampler, to go on with it.

Choose *jpeg_incompressibility* for the opposite: more detail everywhere."""


def black_box() -> Graph:
    settings = sampling(seed=3, steps=10, cfg=3.0)
    climb = {"scheduler": "normal", "denoise": 1.0, "iterations": 15, "learning_rate": 0.03}
    mixed = {f"rewards.reward_{i}": (number, "reward") for i, number in enumerate((6, 7))}
    prompt = {"reward.prompt": (2, "STRING")}
    judge = {"reward__model": "demo judge (held out)", "watch_only": True}
    run = {
        **SAMPLED,
        "vae": (1, "VAE"),
        "reward": (8, "reward"),
        "estimator": (9, "estimator"),
        "stop": (10, "stop"),
    }
    nodes = [
        *model_and_prompts("sunflower on green"),
        node(6, "DNO_RewardLoader", (680, 60), (320, 180), "Reward Loader: a smaller file", {},
             reward="jpeg_compressibility"),
        node(7, "DNO_RewardLoader", (680, 340), (320, 220), "Reward Loader: the judge, watched",
             prompt, reward="clip_score", **judge),
        node(8, "DNO_RewardMix", (1060, 60), (240, 110), "", mixed),
        node(9, "DNO_ZOGradientEstimator", (1060, 240), (300, 280), "", {}, method="hybrid_2"),
        node(10, "DNO_StopRules", (1060, 580), (300, 230)),
        node(11, "DNO_Sampler", (1420, 60), SAMPLER_SIZE, "", run, **settings, **climb),
        node(12, "DNO_PickIteration", (1800, 60), (260, 300), "Pick Iteration: the start",
             {"trajectory": (11, "trajectory")}, index=0),
        node(20, "DNO_SaveTrajectory", (1800, 480), (260, 120), "",
             {"trajectory": (11, "trajectory")}),
        *saved(13, (12, "image"), (2120, 60), "before"),
        *saved(15, (11, "image"), (2120, 480), "after"),
        *curve(17, 11, (2780, 60)),
        node(19, "MarkdownNote", (20, 350), (280, 520), "Read me", text=BLACK_BOX_NOTE),
    ]  # fmt: skip
    groups = [
        group("What to climb, and how", (6, 7, 8, 9, 10), AMBER),
        group("The run", (11, 12, 20), GREEN),
        group("Before, after, and how it went", (13, 14, 15, 16, 17, 18), BLUE),
    ]
    return {"nodes": nodes, "groups": groups}


LIKENESS_NOTE = """## Like this picture
*KSampler* draws a picture that serves as the **reference**; put *Load Image* in its place for one \
of your own.

- **colour_match** pulls the picture's colours towards the reference's, wherever they lie. \
*clip_similarity* pulls towards what the reference shows, *lpips* towards every one of its details.
- The **prompt** pulls as well, so that the picture goes on showing what it says.
- The **held-out judge** only watches. If its curve falls while the others rise, the picture is \
gaming its score.

To change a part of the picture only, connect a mask to *Reward Loader*: the rest is free."""


def likeness() -> Graph:
    settings = sampling(seed=11, steps=10, cfg=3.0)
    kinds = {"sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1.0}
    climb = {"scheduler": "normal", "denoise": 1.0, "iterations": 20, "learning_rate": 0.03}
    mixed = {f"rewards.reward_{i}": (number, "reward") for i, number in enumerate((6, 7, 8))}
    prompt = {"reward.prompt": (2, "STRING")}
    judge = {"reward__model": "demo judge (held out)", "watch_only": True}
    run = {**SAMPLED, "vae": (1, "VAE"), "reward": (9, "reward")}
    reference = {**SAMPLED, "positive": (21, "CONDITIONING")}
    nodes = [
        *model_and_prompts("fish"),
        node(21, "CLIPTextEncode", (680, 60), (300, 110), "What the reference shows",
             {"clip": (1, "CLIP")}, text="sunflower on green"),
        node(20, "KSampler", (680, 220), (300, 270), "Draws the reference", reference,
             **sampling(seed=2, steps=10, cfg=3.0), **kinds),
        node(22, "VAEDecode", (680, 540), (300, 60), "",
             {"samples": (20, "LATENT"), "vae": (1, "VAE")}),
        *saved(23, (22, "IMAGE"), (680, 660), "reference"),
        node(6, "DNO_RewardLoader", (1340, 60), (320, 180), "Reward Loader: its colours",
             {"reward.reference": (22, "IMAGE")}, reward="colour_match"),
        node(7, "DNO_RewardLoader", (1340, 340), (320, 220), "Reward Loader: prompt", prompt,
             reward="clip_score", weight=0.5),
        node(8, "DNO_RewardLoader", (1340, 640), (320, 220), "Reward Loader: the judge, watched",
             prompt, reward="clip_score", **judge),
        node(9, "DNO_RewardMix", (1720, 60), (240, 110), "", mixed),
        node(11, "DNO_Sampler", (2020, 60), SAMPLER_SIZE, "", run, **settings, **climb),
        node(12, "DNO_PickIteration", (2400, 60), (260, 300), "Pick Iteration: the start",
             {"trajectory": (11, "trajectory")}, index=0),
        *saved(13, (12, "image"), (2720, 60), "before"),
        *saved(15, (11, "image"), (2720, 480), "after"),
        *curve(17, 11, (3380, 60)),
        node(19, "MarkdownNote", (20, 350), (280, 520), "Read me", text=LIKENESS_NOTE),
    ]  # fmt: skip
    groups = [
        group("The reference", (20, 21, 22, 23, 24), BLUE),
        group("What to climb, and what to watch", (6, 7, 8, 9), AMBER),
        group("The run", (11, 12), GREEN),
        group("Before, after, and how it went", (13, 14, 15, 16, 17, 18), BLUE),
    ]
    return {"nodes": nodes, "groups": groups}


GRAPHS = {
    "first_light": first_light,
    "two_rewards": two_rewards,
    "black_box": black_box,
    "likeness": likeness,
}
