"""How servers of rewards are asked: by the protocol of ``served.protocol``, or as two others serve theirs.

``flow_factory``, servers of Flow-Factory's template (X-GenGroup/Flow-Factory, ``reward_server/example_server.py``),
which have one reward each:

    GET  /health   → 200
    POST /compute  {"prompt": [text], "image": [base64 of PNG]} → {"rewards": [number]}

``unirl``, the reward service of UniRL (Tencent-Hunyuan/UniRL, ``unirl-reward-service``), protocol version 1:

    GET  /health   → 200
    GET  /rewards  → {"rewards": [name]}
    POST /score    {"requests": [{"history": [{"text", "image_b64"}], "required_rewards": [name], "metadata"}]}
                   → {"results": [{name: {metric: number}}], "errors": [{name: text}]}

Neither says a version: what the spec says stands for it. Of both, higher is better.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainers.failures import Unscored
from trainers.rewards.served.protocol import (
    Answer,
    Offered,
    Question,
    WrongAnswer,
    is_line,
    listed,
    question_body,
    read_answer,
    read_number,
    read_object,
    read_rewards,
    shortened,
)

UNTOLD = "untold"
"""Version of a reward of which nobody says any."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the spec says of a reward."""

    name: str
    version: str | None = None

    @property
    def told(self) -> str:
        """The version where the server says none."""
        return self.version or UNTOLD


class Dialect(Protocol):
    """Requests and answers."""

    offers: tuple[str, ...]
    """What is got, in turn, to learn which rewards there are; the last answer says it."""
    path: str
    """Where images are sent to."""

    def read_offered(self, data: bytes, asked: Asked) -> dict[str, Offered]:
        """Return the rewards of the server, by name; raises WrongAnswer."""

    def body(self, asked: Asked, questions: Sequence[Question]) -> bytes:
        """Return the request about some images."""

    def read(self, data: bytes, asked: Asked, count: int) -> Answer:
        """Return the scores of so many images; raises WrongAnswer, or Unscored where no other answer will come."""


class Own:
    """The protocol of ``served.protocol``."""

    offers: tuple[str, ...] = ("/health", "/rewards")
    path = "/score"

    def read_offered(self, data: bytes, asked: Asked) -> dict[str, Offered]:  # noqa: ARG002 - others need it
        """See ``Dialect``."""
        return read_rewards(data)

    def body(self, asked: Asked, questions: Sequence[Question]) -> bytes:
        """See ``Dialect``."""
        return question_body(asked.name, questions)

    def read(self, data: bytes, asked: Asked, count: int) -> Answer:  # noqa: ARG002 - others need it
        """See ``Dialect``."""
        return read_answer(data, count)


class FlowFactory:
    """A server of Flow-Factory's template, whose one reward has the name that the spec gives it."""

    offers: tuple[str, ...] = ("/health",)
    path = "/compute"

    def read_offered(self, data: bytes, asked: Asked) -> dict[str, Offered]:  # noqa: ARG002 - it says nothing of it
        """See ``Dialect``."""
        return {asked.name: Offered(name=asked.name, version=asked.told, higher_is_better=True)}

    def body(self, asked: Asked, questions: Sequence[Question]) -> bytes:  # noqa: ARG002 - it has one
        """See ``Dialect``."""
        document = {
            "prompt": [question.prompt for question in questions],
            "image": [base64.b64encode(question.png).decode() for question in questions],
        }
        return json.dumps(document).encode()

    def read(self, data: bytes, asked: Asked, count: int) -> Answer:
        """See ``Dialect``."""
        document = read_object(data)
        if said := document.get("error"):
            raise WrongAnswer(shortened(str(said)))
        scores = listed(document, "rewards", count)
        return Answer(scores=tuple(read_number(value, "rewards") for value in scores), version=asked.told)


class UniRL:
    """UniRL's reward service; a reward of several metrics is called ``REWARD/METRIC``."""

    offers: tuple[str, ...] = ("/health", "/rewards")
    path = "/score"

    def read_offered(self, data: bytes, asked: Asked) -> dict[str, Offered]:
        """See ``Dialect``."""
        names = read_object(data).get("rewards")
        if not isinstance(names, list) or not all(map(is_line, names)):
            raise WrongAnswer("'rewards' is not a list of names")
        if (name := _reward(asked)) in names:
            names = [asked.name, *(other for other in names if other != name)]
        return {n: Offered(name=n, version=asked.told, higher_is_better=True) for n in names}

    def body(self, asked: Asked, questions: Sequence[Question]) -> bytes:
        """See ``Dialect``."""
        requests = [
            {
                "history": [{"text": question.prompt, "image_b64": base64.b64encode(question.png).decode()}],
                "required_rewards": [_reward(asked)],
                "metadata": dict(question.metadata) or None,
            }
            for question in questions
        ]
        return json.dumps({"requests": requests}).encode()

    def read(self, data: bytes, asked: Asked, count: int) -> Answer:
        """See ``Dialect``."""
        document, name = read_object(data), _reward(asked)
        results = listed(document, "results", count)
        errors = listed(document, "errors", count) if document.get("errors") else [{}] * count
        if not all(isinstance(entry, dict) for entry in (*results, *errors)):
            raise WrongAnswer("'results' and 'errors' are lists of objects")
        found = [_metric(result, error, name, asked) for result, error in zip(results, errors, strict=True)]
        return Answer(
            scores=tuple(score for score, _ in found),
            version=asked.told,
            errors=tuple(why for _, why in found),
        )


DIALECTS: Mapping[str, Dialect] = {"cdsweep": Own(), "flow_factory": FlowFactory(), "unirl": UniRL()}
"""By name in a spec."""


def _reward(asked: Asked) -> str:
    return asked.name.partition("/")[0]


def _metric(
    result: Mapping[str, Any], error: Mapping[str, Any], name: str, asked: Asked
) -> tuple[float | None, str | None]:
    """Return a score, or None and why there is none.

    Raises:
        Unscored: the reward has several metrics, and none is chosen; or not the one that is.
    """
    if name in error:
        return None, shortened(str(error[name]))
    metrics = result.get(name)
    if not isinstance(metrics, dict) or not metrics:
        raise WrongAnswer(f"neither a score of {name!r} nor why there is none")
    metric = asked.name.partition("/")[2] or (next(iter(metrics)) if len(metrics) == 1 else name)
    if metric not in metrics:
        choices = shortened(", ".join(f"{name}/{choice}" for choice in metrics))
        raise Unscored(
            f"reward {asked.name!r} of the server has the metrics {choices}: write one as its name"
        )
    return read_number(metrics[metric], name), None
