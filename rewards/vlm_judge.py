"""VLM judge: a vision-language model answers a question about the picture.

A black box. The model runs in a server of the user's own that speaks the OpenAI chat interface
(llama.cpp, Ollama, LM Studio, vLLM); nothing is asked or sent before its address is given.
P(yes) as a score: VQAScore (Lin et al. 2024, arXiv 2404.01291).
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from .base import Context, Input, Reward, RewardError, RewardUnavailable, Spec, check_images
from .vlm.address import parse_address
from .vlm.answers import Answer, Unreadable, said
from .vlm.endpoint import Endpoint, quote
from .vlm.form import NUMBER, YES_OR_NO, Form

log = logging.getLogger("dno")

NAME = "vlm_judge"
QUESTION = "Does this picture show {prompt}?"
SPREAD = 0.15
"""`scale` as a share of the range: an estimate, for the model is the user's own."""

_REMEMBERED = 256


@dataclass(frozen=True)
class VlmJudge:
    """score = the number the model answers, or its P(yes) / (P(yes) + P(no)).

    Pictures are sent one by one as PNG, in the 8 bits they are saved with. The same picture with
    the same question is asked once.
    """

    endpoint: Endpoint
    question: str
    form: Form
    name: str
    unit: str
    scale: float
    differentiable: bool = False
    modules: tuple[torch.nn.Module, ...] = ()
    known: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict, repr=False)

    @torch.no_grad()
    def score(self, images: Tensor, context: Context | None = None) -> Tensor:
        """[B, 3, H, W] -> [B]; an image that holds NaN gives NaN and is not sent.

        Raises RewardError without the prompt that the question asks for, RewardUnavailable where
        the server fails or its answer cannot be read.
        """
        images = check_images(images, self.name)
        questions = self._questions(context, len(images))
        scores = [
            math.nan if broken else self._judged(picture, question)
            for picture, question, broken in zip(
                (images * 255).clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous().cpu(),
                questions,
                images.isnan().flatten(1).any(1).tolist(),
                strict=True,
            )
        ]
        return torch.tensor(scores, dtype=images.dtype, device=images.device)

    def _questions(self, context: Context | None, count: int) -> list[str]:
        if "{prompt}" not in self.question:
            return [self.question] * count
        prompts = context.prompts if context else ()
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise RewardError(
                f"{self.name} has no prompt, and its question asks for one. Connect a text to the "
                "prompt socket of Reward Loader, or take {prompt} out of question."
            )
        if len(prompts) not in (1, count):
            raise RewardError(
                f"{self.name} has {len(prompts)} prompts for {count} images. "
                "Give one prompt for all images, or one for each."
            )
        asked = [self.question.replace("{prompt}", prompt.strip()) for prompt in prompts]
        return asked if len(asked) == count else asked * count

    def _judged(self, pixels: Tensor, question: str) -> float:
        png = _png(pixels)
        key = (hashlib.sha256(png).hexdigest(), question)
        if key not in self.known:
            self.known[key] = self._ask(png, question)
            if len(self.known) > _REMEMBERED:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key]

    def _ask(self, png: bytes, question: str) -> float:
        """The score; an answer that cannot be read is asked for once more, in stricter words."""
        probabilities = self.form.kind == YES_OR_NO
        question = f"{question}\n{self.form.request}"
        try:
            return self.form.read(self.endpoint.ask(png, question, probabilities))
        except Unreadable as reason:
            log.info("%s: an answer could not be read (%s). Asked again.", self.name, reason)
        answer = self.endpoint.ask(png, f"{question}\n{self.form.reminder}", probabilities)
        try:
            return self.form.read(answer)
        except Unreadable as reason:
            raise self._unreadable(answer, reason) from reason

    def _unreadable(self, answer: Answer, reason: Unreadable) -> RewardUnavailable:
        what = f'{self.name}: the answer "{quote(said(answer))}" cannot be read, {reason}. '
        if answer.cut:
            return RewardUnavailable(
                f"{what}It was cut off: raise max_tokens in Reward Loader, or use a model that "
                "answers without thinking first."
            )
        return RewardUnavailable(
            f"{what}Change question or answer in Reward Loader, or use a model that keeps to "
            "instructions."
        )


def _png(pixels: Tensor) -> bytes:
    """A PNG file of one picture, uint8 [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def create(
    address: str,
    model: str,
    question: str,
    answer: str,
    lowest: float,
    highest: float,
    timeout: float,
    retries: int,
    max_tokens: int,
    allow_remote: bool,
) -> Reward:
    """Raises RewardError for an address that cannot be used and for an empty question or range."""
    model = model.strip()
    name = f"{NAME} ({model})" if model else NAME
    place = parse_address(address, NAME, allow_remote)
    if not question.strip():
        raise RewardError(
            f"{NAME} has no question. Write one into question in Reward Loader, for example: "
            f"{QUESTION}"
        )
    if answer not in (NUMBER, YES_OR_NO):
        raise RewardError(
            f'{NAME}: it cannot read answers of the form "{answer}". '
            f'Choose "{NUMBER}" or "{YES_OR_NO}" as answer in Reward Loader.'
        )
    if answer == YES_OR_NO:
        lowest, highest, unit = 0.0, 1.0, "P(yes), 0 to 1"
    else:
        unit = f"the model's answer, {lowest:g} to {highest:g}"
    if not lowest < highest:
        raise RewardError(
            f"{NAME}: lowest is {lowest:g} and highest is {highest:g}. "
            "Raise highest above lowest in Reward Loader."
        )
    return VlmJudge(
        Endpoint(place, model, name, timeout, retries, max_tokens),
        question.strip(),
        Form(answer, lowest, highest),
        name,
        unit,
        SPREAD * (highest - lowest),
    )


SPEC = Spec(
    NAME,
    "VLM judge",
    "the model's answer (0 to 10 unless changed), or P(yes)",
    "A vision-language model in a server of your own answers a question about the picture. "
    "It has no gradient and is off until you give an address.",
    create,
    inputs=(
        Input(
            "address",
            "string",
            "",
            "Where your OpenAI-compatible server with a vision model listens: "
            "http://127.0.0.1:8080 for llama.cpp, :11434 for Ollama, :1234 for LM Studio, :8000 "
            "for vLLM. Empty: off. Every scored picture is sent there. A key is read from the "
            "environment variable DNO_VLM_API_KEY, never from the workflow.",
        ),
        Input(
            "model",
            "string",
            "",
            "The model's name as the server lists it, for example qwen2.5vl:7b. Ollama needs it; "
            "servers with one model take an empty name. Larger models judge better and slower.",
        ),
        Input(
            "question",
            "text",
            QUESTION,
            "What the model is asked about each picture; {prompt} is replaced by the text at the "
            "prompt socket. How to answer (a number, or yes or no) is added by itself. Ask for "
            "one thing; ask for quality instead when the picture shows the prompt but looks bad.",
        ),
        Input(
            "answer",
            "choice",
            NUMBER,
            "number: the number in the answer, in whole steps with most models. yes or no: how "
            "sure the model is of yes, from 0 to 1, where the server tells token probabilities "
            "(llama.cpp, vLLM do), which climbs better; else 1 for yes and 0 for no.",
            choices=(NUMBER, YES_OR_NO),
        ),
        Input(
            "lowest",
            "float",
            0.0,
            "The worst number the model may answer; a lower one counts as unreadable. Usually 0 "
            "or 1. Not used with yes or no.",
            min=-1000.0,
            max=1000.0,
            step=1.0,
            advanced=True,
        ),
        Input(
            "highest",
            "float",
            10.0,
            "The best number the model may answer; a higher one counts as unreadable. Raise it "
            "for finer steps (100), lower it for small models (5). Not used with yes or no.",
            min=-1000.0,
            max=1000.0,
            step=1.0,
            advanced=True,
        ),
        Input(
            "timeout",
            "float",
            60.0,
            "Seconds that one answer may take. Raise it for large models and for the first "
            "answer while the server still loads; lower it to notice a stuck one sooner. Usually "
            "20 to 300.",
            min=1.0,
            max=3600.0,
            step=1.0,
            advanced=True,
        ),
        Input(
            "retries",
            "int",
            2,
            "How often a question is asked again after a time-out, a lost connection or an error "
            "of the server. Raise it for a busy server; 0 gives up at once. Usually 1 to 3. "
            "A run that has won something ends with its best picture either way.",
            min=0,
            max=10,
            step=1,
            advanced=True,
        ),
        Input(
            "max_tokens",
            "int",
            32,
            "The longest answer in tokens. Raise it (1000 and more) for models that think before "
            "they answer, which is slow; lower it against chatty ones. Usually 8 to 64.",
            min=1,
            max=8192,
            step=1,
            advanced=True,
        ),
        Input(
            "allow_remote",
            "bool",
            False,
            "Lets address be another computer, to which every scored picture is sent. Leave it "
            "off for servers on this computer. The key goes there only if the environment "
            "variable DNO_VLM_API_HOST names it.",
            advanced=True,
        ),
    ),
    prompt="What {prompt} in the question stands for: the text the picture should show. Not "
    "needed for a question without {prompt}.",
    needs_prompt=False,
    group="black box",
    scale_source="estimated: 15 % of the range. Measure your own model's with "
    "python benchmarks/reward_scales.py --reward vlm_judge --pictures FOLDER",
    licence="that of the model you run",
)
