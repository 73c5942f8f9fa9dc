"""What a language model with eyes says of a picture, asked at a chat endpoint of OpenAI's kind.

Temperature is 0. The score is the probability of "yes" against "no", by the log probabilities of the first token, or
the number that the answer begins with.
"""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trainers.failures import Unscored
from trainers.reward_parameters import JudgeParameters
from trainers.rewards.served.protocol import (
    Answer,
    Question,
    WrongAnswer,
    is_line,
    png_of,
    read_object,
    shortened,
)
from trainers.rewards.served.reward import Served, Take

_TOP = 20
"""Most likely tokens of which the log probability is asked: as many as servers give."""
_LEAST = 0.5
"""Probability of yes and no together below which an answer is likely to be neither, such as a refusal."""
_NUMBER = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)(?!\d)")


class Judge(Served):
    """A model's opinion of images and their prompts."""

    def __init__(self, url: str, model: str, **others: Any) -> None:
        """Ask the model about a grey picture, to learn which version answers; others are as in ``JudgeParameters``.

        Raises:
            Unscored: It does not answer, or is another version than the one that is meant.
        """
        self._asked = JudgeParameters(url=url, model=model, **others)
        super().__init__(self._asked, model)
        found: list[Answer] = []
        grey = Question(png=png_of(torch.full((3, 32, 32), 0.5)), prompt="a grey picture", metadata={})
        self._ask([grey], lambda _, answer: found.append(answer))
        self.version = found[0].version
        if self._asked.version not in (None, self.version):
            raise Unscored(
                f"the judge at {self._url} is {self.version!r}, and the spec says version: {self._asked.version}"
            )

    def _identity(self) -> list[str]:
        asked = self._asked
        return [*super()._identity(), asked.question, asked.answer, str(asked.lowest), str(asked.highest)]

    def _ask(self, questions: Sequence[Question], take: Take) -> None:
        self._client.post(
            "/chat/completions",
            [chat_body(self._asked, question) for question in questions],
            lambda number, data: take(number, read_chat(data, self._asked)),
            f"judge {len(questions)} images by {self._name!r}",
        )


def chat_body(asked: JudgeParameters, question: Question) -> bytes:
    """Return the request about one image."""
    picture = f"data:image/png;base64,{base64.b64encode(question.png).decode()}"
    content = [
        {"type": "text", "text": asked.question.replace("{prompt}", question.prompt)},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    yes = asked.answer == "yes"
    document: dict[str, Any] = {
        "model": asked.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 1 if yes else 16,
    }
    return json.dumps(document | ({"logprobs": True, "top_logprobs": _TOP} if yes else {})).encode()


def read_chat(data: bytes, asked: JudgeParameters) -> Answer:
    """Return the score of one image; None where the model refuses, or gives none of the answers that it may.

    Raises:
        WrongAnswer: It is no answer of a chat endpoint, or has no log probabilities.
    """
    document = read_object(data)
    version = document.get("model")
    try:
        choice = document["choices"][0]
        said, refused = choice["message"]["content"] or "", _refused(choice)
        if refused is not None:
            score = None
        elif asked.answer == "yes":
            score = _of_tokens(choice)
        else:
            score = _of_text(said, asked.lowest, asked.highest)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise WrongAnswer("no answer of a chat endpoint, or one without what was asked for") from error
    if not is_line(version) or not isinstance(said, str):
        raise WrongAnswer(
            "no answer of a chat endpoint: 'model' and the content are texts, the first of one line"
        )
    why = None if score is not None else f"the judge answered {shortened(refused or said)!r}"
    return Answer(scores=(score,), version=str(version), errors=(why,))


def _refused(choice: Mapping[str, Any]) -> str | None:
    """Return what is said in place of an answer, by the model or by a filter before it; None where nothing is."""
    if refusal := choice["message"].get("refusal"):
        return str(refusal)
    return "content_filter" if choice.get("finish_reason") == "content_filter" else None


def _of_tokens(choice: Mapping[str, Any]) -> float | None:
    """Return the probability of yes against no by the first token; None where it is likely to be neither."""
    if not choice.get("logprobs"):
        raise WrongAnswer("the judge gives no log probabilities: write answer: number")
    mass = {"yes": 0.0, "no": 0.0}
    for token, chance in _tokens(choice["logprobs"]["content"][0]["top_logprobs"]):
        if token in mass:
            mass[token] += chance
    whole = mass["yes"] + mass["no"]
    return mass["yes"] / whole if whole >= _LEAST else None


def _tokens(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield words and their probabilities; a word is written in several ways."""
    for entry in entries:
        level = entry["logprob"]
        if isinstance(level, bool) or not isinstance(level, int | float) or not level <= 0.01:
            raise WrongAnswer("a log probability is no number, or above 0")
        yield entry["token"].strip().strip(".\"'").lower(), math.exp(level)


def _of_text(said: str, lowest: float, highest: float) -> float | None:
    """Return the number that an answer begins with; None where there is none, or one out of its range."""
    found = _NUMBER.match(said)
    if found is None:
        return None
    value = float(found.group(1))
    return value if lowest <= value <= highest else None
