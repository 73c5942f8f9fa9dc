"""A judge at a chat endpoint: what it is asked, and which of its answers are scores."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.reward_servers import Reply, answering

from orchestrator.errors import SpecError
from orchestrator.plan import make_plan
from orchestrator.spec.load import parse_spec
from trainers.failures import Unscored
from trainers.patience import VARIABLE
from trainers.rewards.served import reward as module
from trainers.rewards.served.judge import Judge
from trainers.rewards.served.protocol import image_of
from trainers.testing import check_reward


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv("CDSWEEP_REWARD_TOKEN", raising=False)
    module._known.clear()


def chat(answer: Callable[[torch.Tensor, str], dict[str, Any]], asked: list[Any] | None = None) -> Reply:
    """Speak the API: ``answer`` sees image and text."""

    def reply(path: str, question: dict[str, Any]) -> bytes:
        assert path == "/v1/chat/completions"
        if asked is not None:
            asked.append(question)
        text, picture = question["messages"][0]["content"]
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        choice = {"index": 0, "finish_reason": "stop"} | answer(image_of(data), text["text"])
        return json.dumps({"object": "chat.completion", "model": "eye-1", "choices": [choice]}).encode()

    return reply


def tokens(**chances: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
    content = [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]
    return {"message": {"role": "assistant", "content": top[0]["token"]}, "logprobs": {"content": content}}


def said(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}, "logprobs": None}


def pictures() -> torch.Tensor:
    return torch.linspace(0.1, 0.9, 4)[:, None, None, None].expand(4, 3, 8, 8).contiguous()


def test_the_score_is_the_probability_of_yes() -> None:
    def brightness(image: torch.Tensor, _: str) -> dict[str, Any]:
        bright = float(image.mean())
        return tokens(Yes=0.4 * bright, yes=0.4 * bright, No=0.8 * (1 - bright), perhaps=0.2)

    asked: list[Any] = []
    with answering(chat(brightness, asked)) as url:
        judge = Judge(url=f"{url}/v1", model="eye")
        assert judge.version == "eye-1"
        check_reward(judge, pictures(), ["a", "b", "c", "d"])
        scores = judge(pictures(), ["a", "b", "c", "d"])
    torch.testing.assert_close(scores, (pictures()[:, 0, 0, 0] * 255).round() / 255)
    question = asked[-1]
    assert (question["model"], question["temperature"], question["max_tokens"]) == ("eye", 0, 1)
    assert question["logprobs"]
    texts = {each["messages"][0]["content"][0]["text"] for each in asked}
    assert "Does this picture show the following? d\nAnswer with one word, yes or no." in texts


def test_a_rubric_number_is_read_within_its_range() -> None:
    answers = {"a": "7", "b": "8.5/10", "c": "ten", "d": "11", "a grey picture": "1"}
    with answering(chat(lambda _, text: said(answers[text]))) as url:
        judge = Judge(url=f"{url}/v1", model="eye", question="{prompt}", answer="number")
        scores = judge(pictures(), list("abcd"))
    torch.testing.assert_close(scores, torch.tensor([7.0, 8.5, math.nan, math.nan]), equal_nan=True)
    assert judge.counts == (2, 4)
    assert judge.why_missing in {"the judge answered 'ten'", "the judge answered '11'"}


def filtered(content: str | None, **message: Any) -> dict[str, Any]:
    return {"message": {"content": content} | message, "logprobs": None, "finish_reason": "content_filter"}


@pytest.mark.parametrize("answer", ["yes", "number"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (tokens(maybe=0.9), "maybe"),
        (tokens(I=0.98, Yes=2e-5, no=1e-9), "I"),  # what is left of yes and no in a refusal says nothing
        (filtered(None), "content_filter"),
        (filtered("", refusal="I cannot judge that.") | {"finish_reason": "stop"}, "I cannot judge that."),
    ],
)
def test_what_is_no_answer_to_the_question_is_missing(answer: str, said: dict[str, Any], why: str) -> None:
    with answering(chat(lambda *_: said)) as url:
        judge = Judge(url=f"{url}/v1", model="eye", answer=answer)
        assert judge(pictures(), list("abcd")).isnan().all()
    assert judge.why_missing == f"the judge answered {why!r}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said("yes"), "gives no log probabilities: write answer: number"),
        ({"message": {}}, "no answer of a chat endpoint"),
        ({"message": {"content": "yes"}, "logprobs": {"content": []}}, "no answer of a chat endpoint"),
        (
            tokens(yes=0.5) | {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": 3}]}]}},
            "above 0",
        ),
    ],
)
def test_what_is_no_answer_is_one_clear_message(answer: dict[str, Any], message: str) -> None:
    with answering(chat(lambda *_: answer)) as url, pytest.raises(Unscored, match=re.escape(message)):
        Judge(url=f"{url}/v1", model="eye")


def test_another_version_is_refused() -> None:
    message = "is 'eye-1', and the spec says version: eye-2"
    with answering(chat(lambda *_: tokens(yes=0.5))) as url, pytest.raises(Unscored, match=message):
        Judge(url=f"{url}/v1", model="eye", version="eye-2")


def test_model_and_question_are_what_a_trial_is_known_by_and_the_address_is_not() -> None:
    def trial(parameters: str) -> str:
        spec = (
            "name: demo\nmodel: {pretrained: embedded}\ntraining: {primal: log_variance}\n"
            f"constraints: [{{reward: {{judge: {parameters}}}, name: sight, at_least: 0.5}}]\n"
        )
        return make_plan(parse_spec(spec)).trials[0].trial_id

    known = trial("{url: 'http://a:1/v1', model: eye}")
    assert trial("{url: 'https://b/v1/', model: eye, concurrency: 9, missing: 0.2, timeout: 5.0}") == known
    for other in (
        "{url: 'http://a:1/v1', model: ear}",
        "{url: 'http://a:1/v1', model: eye, version: '2'}",
        "{url: 'http://a:1/v1', model: eye, question: 'Is it?'}",
        "{url: 'http://a:1/v1', model: eye, answer: number}",
    ):
        assert trial(other) != known
    for wrong, message in (
        ("{url: 'ftp://a', model: eye}", "must be the address of a server"),
        ("{url: 'http://me:secret@a', model: eye}", "must hold no credentials"),
        ("{url: 'http://a', model: eye, lowest: 3.0, highest: 2.0}", "must be above lowest (3)"),
        ("{url: 'http://a'}", "the key 'model' is required"),
    ):
        with pytest.raises(SpecError, match=re.escape(message)):
            trial(wrong)
