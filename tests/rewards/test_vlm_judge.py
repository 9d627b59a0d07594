"""A judge behind a chat server: what is sent, how answers are read, how a bad server ends."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comfyui_dno.rewards import Context, RewardError, create
from comfyui_dno.rewards.base import RewardUnavailable
from comfyui_dno.rewards.heartbeat import beating
from comfyui_dno.rewards.vlm import endpoint
from comfyui_dno.rewards.vlm.address import parse_address
from comfyui_dno.rewards.vlm.answers import Answer, Place, Unreadable, number, yes
from comfyui_dno.tests.rewards.chat_server import (
    ChatServer,
    Token,
    completion,
    cut_off,
    drip,
    drip_headers,
    flood,
    hang,
    hang_up,
    judge_brightness,
    say,
    send,
    serving,
)

CAT = Context(prompts=("a cat",))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_REST", 0.01)
    for name in (endpoint.KEY, endpoint.KEY_HOST):
        monkeypatch.delenv(name, raising=False)


def judge(server: ChatServer, **changes: Any) -> Any:
    return create("vlm_judge", **{"address": server.address, "timeout": 20.0} | changes)


def one(images: Tensor) -> Tensor:
    return images[:1]


# What is sent, what comes back


def test_every_picture_is_sent_as_it_is_saved_with_the_question_about_the_prompt(images):
    before = images.clone()
    with serving(judge_brightness) as server:
        reward = judge(server, model=" small-vlm ")
        scores = reward.score(images, CAT)
    eight_bits = (images * 255).to(torch.uint8).movedim(1, -1).numpy()
    assert len(server.asked) == 3
    for asked, pixels in zip(server.asked, eight_bits, strict=True):
        np.testing.assert_array_equal(asked.pixels, pixels)
        assert asked.path == "/v1/chat/completions"
        assert asked.text.startswith("Does this picture show a cat?\n")
        assert "one number from 0 (not at all) to 10" in asked.text
        assert asked.body["model"] == "small-vlm" and asked.body["temperature"] == 0
        assert asked.body["seed"] == server.asked[0].body["seed"]
        assert asked.body["max_tokens"] == 32 and asked.body["stream"] is False
    expected = torch.tensor(eight_bits.mean((1, 2, 3)) / 25.5).float()
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert scores.dtype == torch.float32 and not scores.requires_grad
    assert not reward.differentiable and reward.modules == ()
    assert reward.name == "vlm_judge (small-vlm)" and reward.scale == pytest.approx(1.5)
    assert torch.equal(images, before)


def test_a_batch_is_scored_as_its_images_and_prompts_by_themselves(images):
    prompts = ("a cat", "a dog", "a {prompt}")
    with serving(judge_brightness) as server:
        together = judge(server).score(images, Context(prompts=prompts))
        reward = judge(server)
        apart = [
            reward.score(images[i : i + 1], Context(prompts=prompts[i : i + 1])) for i in range(3)
        ]
    assert torch.equal(together, torch.cat(apart))
    assert [asked.text for asked in server.asked[:3]] == [asked.text for asked in server.asked[3:]]


def test_the_same_picture_with_the_same_question_is_asked_once(images):
    with serving(say("7")) as server:
        reward = judge(server)
        for _ in range(2):
            assert reward.score(images[:2], CAT).tolist() == [7, 7]
        assert len(server.asked) == 2
        reward.score(one(images), Context(prompts=("a dog",)))
        assert len(server.asked) == 3


def test_in_inference_mode_and_with_gradients_on_it_scores_alike(images):
    with serving(judge_brightness) as server:
        reward = judge(server)
        with torch.inference_mode():
            inside = reward.score(one(images), CAT)
        outside = judge(server).score(one(images).requires_grad_(True), CAT)
    assert inside.item() == outside.item() and outside.grad_fn is None


def test_an_image_that_holds_nan_is_not_sent(images):
    images[1, 0, 0, 0] = float("nan")
    with serving(say("7")) as server:
        scores = judge(server).score(images, CAT)
    assert scores.isnan().tolist() == [False, True, False] and len(server.asked) == 2


def test_a_question_without_prompt_needs_none_and_one_with_prompt_does(images):
    with serving(say("7")) as server:
        reward = judge(server, question="Is it sharp?")
        assert reward.score(one(images)).item() == 7
        assert server.asked[0].text.startswith("Is it sharp?\n")
        for context in (None, Context(), Context(prompts=(" ",)), Context(prompts=("a", ""))):
            with pytest.raises(RewardError, match="Connect a text to the prompt socket"):
                judge(server).score(one(images), context)
        with pytest.raises(RewardError, match="2 prompts for 3 images"):
            judge(server).score(images, Context(prompts=("a", "b")))
    assert len(server.asked) == 1


# Addresses and keys


def test_without_an_address_it_is_off():
    with pytest.raises(RewardError, match="vlm_judge is off.*write its address") as raised:
        create("vlm_judge")
    assert not isinstance(raised.value, RewardUnavailable)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("http://127.0.0.1:8080", "/v1/chat/completions"),
        ("http://localhost:11434/", "/v1/chat/completions"),
        (" http://[::1]:8080/v1 ", "/v1/chat/completions"),
        ("https://LOCALHOST/proxy/v1/", "/proxy/v1/chat/completions"),
        ("http://127.0.0.1/v1/chat/completions", "/v1/chat/completions"),
    ],
)
def test_an_address_may_be_the_server_or_its_interface(text, path):
    address = parse_address(text, "judge", allow_remote=False)
    assert address.path == path and address.is_local


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1:8080", "is not the address of a server"),
        ("localhost", "is not the address of a server"),
        ("ftp://127.0.0.1", "is not the address of a server"),
        ("file:///etc/passwd", "is not the address of a server"),
        ("http://127.0.0.1:99999", "is not the address of a server"),
        ("http://127.0.0.1:80 80", "is not the address of a server"),
        ("http://127.0.0.1/a\r\nX-Evil: 1", "is not the address of a server"),
        ("http://", "is not the address of a server"),
        ("http://127.0.0.1/?a=b", "holds a query"),
        ("http://192.168.1.5:8080", "192.168.1.5 is another computer"),
        ("http://localhost.example.com", "localhost.example.com is another computer"),
        ("http://127.0.0.1.example.com", "is another computer"),
        ("http://0x7f.1", "is another computer"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(text, reason):
    with pytest.raises(RewardError, match=reason):
        create("vlm_judge", address=text)


def test_another_computer_is_asked_only_where_that_is_allowed():
    address = parse_address("https://vlm.example.com", "judge", allow_remote=True)
    assert (address.host, address.port, address.secure) == ("vlm.example.com", 443, True)
    assert not address.is_local


@pytest.mark.parametrize(
    ("text", "port"), [("http://[::1]", 80), ("https://[::1]", 443), ("http://[::1]:8080", 8080)]
)
def test_the_end_of_an_ipv6_address_is_not_taken_for_its_port(images, monkeypatch, text, port):
    tried: list[tuple[str, int]] = []

    def connect(where: tuple[str, int], *_: Any) -> None:
        tried.append(where)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", connect)
    with pytest.raises(RewardUnavailable, match="no server listens"):
        create("vlm_judge", address=text, retries=0).score(one(images), CAT)
    assert tried == [("::1", port)]


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
def test_a_name_that_no_computer_can_have_ends_with_a_plain_error(images, host):
    reward = create("vlm_judge", address=f"http://{host}", allow_remote=True, retries=9)
    with pytest.raises(RewardUnavailable, match="the connection to http://a.* failed"):
        reward.score(one(images), CAT)


@pytest.mark.parametrize("where", ["127.0.0.1:1", "example.com", "example.com:99999", "[::"])
def test_a_password_in_the_address_is_refused_and_not_repeated(where):
    with pytest.raises(RewardError, match="user name or a password") as raised:
        create("vlm_judge", address=f"http://me:hunter2@{where}", allow_remote=True)
    assert "hunter2" not in str(raised.value)


def test_the_key_comes_from_the_environment_alone(images, monkeypatch):
    with serving(say("7")) as server:
        judge(server).score(one(images), CAT)
        monkeypatch.setenv(endpoint.KEY, "secret-1")
        judge(server).score(one(images), CAT)
    assert "Authorization" not in server.asked[0].headers
    assert server.asked[1].headers["Authorization"] == "Bearer secret-1"


def test_the_key_goes_to_another_computer_only_where_the_environment_names_it(monkeypatch):
    """A workflow of a stranger's may name any address."""

    def headers() -> dict[str, str]:
        address = parse_address("https://vlm.example.com/v1", "judge", allow_remote=True)
        return endpoint.Endpoint(address, "", "judge", 1, 0, 8)._headers()

    monkeypatch.setenv(endpoint.KEY, "secret-1")
    assert "Authorization" not in headers()
    monkeypatch.setenv(endpoint.KEY_HOST, "other.example.com")
    assert "Authorization" not in headers()
    monkeypatch.setenv(endpoint.KEY_HOST, "VLM.example.com")
    assert headers()["Authorization"] == "Bearer secret-1"


def test_a_key_that_cannot_be_sent_is_not_repeated(images, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, "sec\nret")
    with serving(say("7")) as server:
        with pytest.raises(RewardError, match="cannot have") as raised:
            judge(server).score(one(images), CAT)
    assert "ret" not in str(raised.value).replace("retries", "") and not server.asked


def test_proxies_of_the_environment_play_no_part(images, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with serving(say("7")) as server:
        assert judge(server).score(one(images), CAT).item() == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": " "}, "has no question"),
        ({"answer": "essay"}, 'cannot read answers of the form "essay"'),
        ({"lowest": 10.0}, "lowest is 10 and highest is 10"),
        ({"highest": float("nan")}, "Raise highest above lowest"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, reason):
    with pytest.raises(RewardError, match=reason):
        create("vlm_judge", address="http://127.0.0.1:1", **changes)


# Reading answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        (" 7.5\n", 7.5),
        ("7,5", 7.5),
        ("8/10", 8),
        ("**Score:** 6 out of 10", 6),
        ('{"score": 4}', 4),
        ("I would give it a 9.", 9),
        ("On this scale: 3 / 10", 3),
        ("My rating is 0 out of 10, sorry.", 0),
        ("5. There are 2 cats in it.", 5),
        ("<think>maybe 3, or 4</think>\n6", 6),
        ("10", 10),
    ],
)
def test_the_number_in_an_answer_is_found(text, value):
    assert number(Answer(text), 0, 10) == value


@pytest.mark.parametrize("text", ["-2", "Score: -2", "+1.5"])
def test_a_sign_counts(text):
    assert number(Answer(text), -5, 5) == float(text.split()[-1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no number"),
        ("A cat on a mat.", "no number"),
        ("On a scale from 0 to 10, it is a 7", "more than one number"),
        ("11", "11 is not between 0 and 10"),
        ("-1", "-1 is not between 0 and 10"),
        ("1e9", "no number"),
        ("NaN", "no number"),
        ("<think>well, 7 perhaps, or", "no number"),
        ("9" * 500, "inf is not between"),
    ],
)
def test_an_answer_without_one_clear_number_is_unreadable(text, reason):
    with pytest.raises(Unreadable, match=reason):
        number(Answer(text), 0, 10)


@pytest.mark.parametrize("text", [" " * 10**6, "/" * 10**6, ":" * 10**6, "a:" * 5 * 10**5])
def test_no_answer_takes_long_to_read(text):
    """Each is read in milliseconds; a pattern that goes over it again and again takes hours."""
    with pytest.raises(Unreadable):
        number(Answer(text), 0, 10)
    with pytest.raises(Unreadable):
        yes(Answer(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [("Yes", 1), ("no.", 0), ("**No**, there is no cat; yes, a dog.", 0), ("It is: YES!", 1)],
)
def test_without_probabilities_yes_is_1_and_no_is_0(text, value):
    assert yes(Answer(text)) == value


@pytest.mark.parametrize("text", ["", "Maybe", "I know nothing", "Is it? Well: yes and no"])
def test_neither_yes_nor_no_is_unreadable(text):
    with pytest.raises(Unreadable):
        yes(Answer(text))


def test_the_probability_of_yes_counts_every_spelling_of_yes_and_no():
    likeliest = {"Yes": 0.4, " yes": 0.2, "No": 0.15, "\u2581no": 0.05, "Maybe": 0.1, "not": 0.1}
    tokens = (("\n", {"\n": 1.0}), ("Yes", likeliest), (".", {".": 1.0}))
    places = tuple(
        Place(token, tuple((t, float(np.log(p))) for t, p in found.items()))
        for token, found in tokens
    )
    assert yes(Answer("\nYes.", places=places)) == pytest.approx(0.6 / 0.8)
    assert yes(Answer("<think>Yes?</think>no", places=(*places, Place("no", ((" no", 0.0),))))) == 0


def test_p_yes_is_asked_for_and_read(images):
    tokens = (Token("No", {"No": 0.75, "Yes": 0.25}), Token(".", {".": 1.0}))
    with serving(say("No.", *tokens)) as server:
        reward = judge(server, answer="yes or no")
        assert reward.score(one(images), CAT).item() == pytest.approx(0.25)
    body = server.asked[0].body
    assert body["logprobs"] is True and body["top_logprobs"] == 20
    assert "yes or no" in server.asked[0].text and "number" not in server.asked[0].text
    assert reward.scale == pytest.approx(0.15) and reward.unit == "P(yes), 0 to 1"


def test_a_server_that_refuses_to_tell_probabilities_is_asked_without_from_then_on(images):
    refusal = b'{"error": {"message": "logprobs is not supported"}}'
    with serving(send(400, refusal), say("Yes"), say("No")) as server:
        scores = judge(server, answer="yes or no").score(images[:2], CAT)
    assert scores.tolist() == [1, 0]
    assert ["logprobs" in asked.body for asked in server.asked] == [True, False, False]


@pytest.mark.parametrize(
    "logprobs",
    [[], {"content": None}, {"content": [{"token": "Yes"}]}, {"content": [{"top_logprobs": 1}]}],
)
def test_probabilities_in_another_form_are_as_none(images, logprobs):
    import json

    reply = json.loads(completion("Yes"))
    reply["choices"][0]["logprobs"] = logprobs
    with serving(send(200, json.dumps(reply).encode())) as server:
        assert judge(server, answer="yes or no").score(one(images), CAT).item() == 1


def test_an_answer_in_parts_is_put_together(images):
    body = b'{"choices": [{"message": {"content": [{"type": "text", "text": "8"}]}}]}'
    with serving(send(200, body)) as server:
        assert judge(server).score(one(images), CAT).item() == 8


def test_an_unreadable_answer_is_asked_for_once_more_in_stricter_words(images):
    with serving(say("What a lovely cat!"), say("9")) as server:
        assert judge(server).score(one(images), CAT).item() == 9
    first, second = (asked.text for asked in server.asked)
    assert second.startswith(first) and "one single number between 0 and 10" in second


def test_a_second_unreadable_answer_is_quoted_up_to_200_characters(images):
    text = "Oh\x1b[31m " + "what a cat! " * 100
    with serving(say("No idea"), say(text)) as server:
        with pytest.raises(RewardUnavailable, match='the answer "Oh.*there is no number') as raised:
            judge(server).score(one(images), CAT)
    assert len(server.asked) == 2
    quoted = str(raised.value).split('"')[1]
    assert len(quoted) == 203 and quoted.endswith("...") and "\x1b" not in quoted


def test_an_answer_cut_off_while_thinking_says_what_to_raise(images):
    with serving(say("<think>Let me look at the picture", cut=True)) as server:
        with pytest.raises(RewardUnavailable, match="raise max_tokens"):
            judge(server).score(one(images), CAT)
    with serving(say(None, cut=True)) as server:
        with pytest.raises(RewardUnavailable, match="raise max_tokens"):
            judge(server).score(one(images), CAT)


# Servers that go wrong


def failure(images: Tensor, *acts: Any, **changes: Any) -> tuple[str, int]:
    """The error's text, and how often the server was asked."""
    with serving(*acts) as server:
        with pytest.raises(RewardUnavailable) as raised:
            judge(server, **changes).score(one(images), CAT)
        asked, address = len(server.asked), server.address
    text = str(raised.value)
    assert address in text and text.startswith("vlm_judge: ")
    return text, asked


def test_a_failure_counts_as_a_reward_error_and_as_one_a_run_survives():
    assert issubclass(RewardUnavailable, RewardError) and issubclass(RewardUnavailable, OSError)
    assert str(RewardUnavailable("What. What to do.")) == "What. What to do."


def test_where_no_server_listens_the_address_is_named(images):
    with serving(say("7")) as server:
        address = server.address
    with pytest.raises(RewardUnavailable, match=f"no server listens at {address}. Start it"):
        create("vlm_judge", address=address).score(one(images), CAT)


@pytest.mark.parametrize("act", [hang, drip, drip_headers])
def test_an_endpoint_that_hangs_or_drips_ends_with_the_timeout(images, act):
    text, asked = failure(images, act, timeout=0.5, retries=0)
    assert "gave no whole answer within 0.5 s" in text and asked == 1


def test_a_time_out_is_tried_again(images):
    with serving(hang, hang, say("7")) as server:
        assert judge(server, timeout=0.3, retries=2).score(one(images), CAT).item() == 7
    text, asked = failure(images, hang, timeout=0.2, retries=1)
    assert "gave no whole answer" in text and asked == 2


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("act", [hang, drip, flood, drip_headers])
def test_a_cancel_acts_at_once_and_hangs_up(images, act):
    began = threading.Event()

    def note(handler: Any, question: Any) -> None:
        began.set()
        act(handler, question)

    cancelled_at = []

    def cancel() -> None:
        if began.is_set():
            cancelled_at.append(time.monotonic())
            raise Cancelled

    with serving(note) as server:
        reward = judge(server, timeout=600.0)
        if act is flood:  # ends by itself, before or after the cancel
            with pytest.raises((Cancelled, RewardUnavailable)), beating(cancel):
                reward.score(one(images), CAT)
        else:
            with pytest.raises(Cancelled), beating(cancel):
                reward.score(one(images), CAT)
            assert time.monotonic() - cancelled_at[0] < 1
        assert server.left.wait(5), "the connection is cut, so that the server can stop"
    for thread in threading.enumerate():
        if thread.name == "dno-vlm-judge":
            thread.join(5)
            assert not thread.is_alive()


def test_a_cancel_acts_between_two_tries(images, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_REST", 600.0)
    waits = []

    def cancel() -> None:
        if server.asked:
            waits.append(time.monotonic())
        if len(waits) == 10:
            raise Cancelled

    with serving(send(503)) as server:
        with pytest.raises(Cancelled), beating(cancel):
            judge(server).score(one(images), CAT)
    assert len(server.asked) == 1


@pytest.mark.parametrize("act", [send(500), send(503), send(429), hang_up, cut_off])
def test_what_may_pass_is_tried_again(images, act):
    with serving(act, act, say("7")) as server:
        assert judge(server).score(one(images), CAT).item() == 7
    assert failure(images, act, retries=1)[1] == 2


def test_what_the_server_says_is_passed_on(images):
    body = b'{"error": {"code": 500, "message": "image input is not supported"}}'
    text, asked = failure(images, send(500, body))
    assert 'HTTP 500 ("image input is not supported")' in text and asked == 3


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": "model is required"}', '("model is required"). Check model'),
        (401, b"", "Set the environment variable DNO_VLM_API_KEY"),
        (403, b"no", '("no"). Set the environment variable'),
        (404, b'{"error": {"message": "model not found"}}', '("model not found"). Check address'),
        (418, b"[1, 2]", 'HTTP 418 ("[1, 2]")'),
        (413, b"\xff\x00\x1b[31m", "HTTP 413"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(images, status, body, expected):
    text, asked = failure(images, send(status, body))
    assert expected in text and asked == 1 and text.isprintable()


def test_a_redirect_is_not_followed(images):
    with serving(say("7")) as elsewhere:
        text, asked = failure(images, send(307, Location=elsewhere.address))
        assert f'sends on to "{elsewhere.address}"' in text and "is not followed" in text
        assert asked == 1 and not elsewhere.asked


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html><html><body>It works!</body></html>",
        b"",
        b"null",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": "7"}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": ["7"]}}]}',
        b"[" * 200_000,
        b"\xff\xfe\x00",
    ],
    ids=["html", "empty", "null", "list", "no choice", "text", "int", "parts", "deep", "binary"],
)
def test_what_is_no_chat_answer_is_quoted(images, body):
    text, asked = failure(images, send(200, body))
    assert "did not answer as a chat server does" in text and asked == 1
    assert len(text) < 500 and text.isprintable()


def test_an_answer_without_end_is_dropped(images):
    text, asked = failure(images, flood)
    assert "sent more than 1 MB" in text and asked == 1
