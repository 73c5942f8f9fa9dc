"""Rewards that servers give: black boxes, whose scores come over HTTP."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from math import isnan, nan, sqrt
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from trainers.config import PromptsConfig
from trainers.failures import Unscored
from trainers.reward_parameters import HttpParameters, ServedParameters
from trainers.rewards.images import checked
from trainers.rewards.served.client import Client
from trainers.rewards.served.dialects import DIALECTS, Asked, Dialect
from trainers.rewards.served.protocol import Answer, Offered, Question, png_of

Take = Callable[[int, Answer], None]

_KEPT = 2**17
"""Scores; each is a number and its key."""
_FEWEST = 64
"""Images from which a share of missing scores is one; among fewer as many may be missing as of these."""
_Score = tuple[float, float]
"""And its standard error: noise that another question about the same image would answer with; NaN: not known."""
_known: OrderedDict[str, _Score] = OrderedDict()
"""Of images, prompts and versions, for all rewards of this process."""


class Served:
    """What rewards that servers give have in common: images of 8 bits, a cache, scores that may be missing."""

    differentiable = False

    def __init__(self, asked: ServedParameters, name: str) -> None:
        """Take what is asked of whom, and what messages call it.

        Raises:
            ValueError: the patience of the environment is no number of seconds.
        """
        self.missing = asked.missing
        self.counts = (0, 0)
        """Scores that could not be had, and those that were asked for."""
        self.why_missing: str | None = None
        """What the server said last of a score that it has not."""
        self.noise = torch.zeros(0)
        """Standard errors of the scores that were given last, ``[batch]``, NaN where none is known."""
        self.version = ""
        """Of the reward, which stays the same."""
        self._url, self._name, self._repeats = asked.url, name, asked.repeats
        self._client = Client(asked.url, timeout=asked.timeout, concurrency=asked.concurrency)
        self._metadata: Mapping[str, Mapping[str, str]] = {}

    def describe(self, prompts: PromptsConfig) -> None:
        """Learn what the files of prompts say of them, which servers are told."""
        self._metadata = metadata_of(prompts)

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Score images ``[batch, 3, h, w]`` in [0, 1], rounded to 8 bits; NaN where the server has no score.

        Raises:
            Unscored: The server does not answer, answers wrongly, has become another version, or lacks too many scores.
        """
        images, texts = checked(samples), prompts or [""] * len(samples)
        questions = [
            Question(png=png_of(image), prompt=text, metadata=self._metadata.get(text, {}))
            for image, text in zip(images, texts, strict=True)
        ]
        keys = [question.key(self._identity()) for question in questions]
        found = {key: _known[key] for key in keys if key in _known}
        asked = {key: question for key, question in zip(keys, questions, strict=True) if key not in found}
        order, said = list(asked), {key: list[_Score]() for key in asked}

        def take(first: int, answer: Answer) -> None:
            self._must_be_same(answer.version)
            self.why_missing = next(filter(None, answer.errors), self.why_missing)
            errors = answer.standard_errors or (None,) * len(answer.scores)
            for place, (score, error) in enumerate(zip(answer.scores, errors, strict=True), start=first):
                said[order[place % len(order)]].append((_or_nan(score), _or_nan(error)))

        if asked:
            self._ask(list(asked.values()) * self._repeats, take)
            found.update({key: _mean(scores) for key, scores in said.items()})
            self._count([found[key][0] for key in order])
        _keep(found)
        scores = torch.tensor([found[key] for key in keys], dtype=torch.float32).reshape(-1, 2)
        self.noise = scores[:, 1]
        return scores[:, 0].to(samples.device)

    def _identity(self) -> list[str]:
        """Return what a score depends on beside its question, as texts."""
        often = [] if self._repeats == 1 else [f"{self._repeats} times"]
        return [self._url, self._name, self.version, *often]

    def _ask(self, questions: Sequence[Question], take: Take) -> None:
        """Ask, and let ``take`` hear the number of the first question of each answer, and the answer."""
        raise NotImplementedError

    def _count(self, scores: Sequence[float]) -> None:
        """Count scores that were asked for.

        Raises:
            Unscored: Too many are missing, of all so far.
        """
        gone, asked = self.counts
        gone, asked = gone + sum(map(isnan, scores)), asked + len(scores)
        self.counts = gone, asked
        if gone > self.missing * max(asked, _FEWEST):
            why = f": {self.why_missing}" if self.why_missing else ", and does not say why"
            raise Unscored(
                f"the reward server at {self._url} has no score of {self._name!r} for {gone} of {asked} images, and at "
                f"most a share of {self.missing:g} may be missing{why}"
            )

    def _must_be_same(self, version: str) -> None:
        if version != self.version:
            raise Unscored(
                f"the reward server at {self._url} has become another: it scored {self._name!r} by version "
                f"{self.version!r}, and now by {version!r}; scores of two versions do not compare. Serve the first one "
                "again, or begin another sweep"
            )


class Http(Served):
    """The score that a server gives, by one of ``served.dialects``."""

    def __init__(self, url: str, name: str, batch: int = 16, **others: Any) -> None:
        """Ask the server for its rewards; other parameters are those of ``HttpParameters``.

        Raises:
            Unscored: It does not answer, has no such reward or another version of it, or lower is better.
        """
        asked = HttpParameters(url=url, name=name, batch=batch, **others)
        super().__init__(asked, name)
        self._batch, self._dialect = batch, DIALECTS[asked.dialect]
        self._asked = Asked(name=name, version=asked.version)
        self.version = self._offered(asked.version)

    def _ask(self, questions: Sequence[Question], take: Take) -> None:
        size = self._batch
        groups = [questions[first : first + size] for first in range(0, len(questions), size)]
        self._client.post(
            self._dialect.path,
            [self._dialect.body(self._asked, group) for group in groups],
            lambda number, data: take(
                number * size, self._dialect.read(data, self._asked, len(groups[number]))
            ),
            f"score {len(questions)} images by {self._name!r}",
        )

    def _offered(self, meant: str | None) -> str:
        """Return the version that the server has.

        Raises:
            Unscored: See ``__init__``.
        """
        server = f"the reward server at {self._url}"
        rewards = offered(self._client, self._dialect, self._asked)
        if self._name not in rewards:
            near = get_close_matches(self._name, rewards, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            has = ", ".join(sorted(rewards)) or "none"
            raise Unscored(f"{server} has no reward {self._name!r}{hint}; it has: {has}")
        found = rewards[self._name]
        if not found.higher_is_better:
            raise Unscored(
                f"{server} says that of {self._name!r} lower is better, and of a reward higher is: let it serve the "
                "negative"
            )
        if meant is not None and found.version != meant:
            raise Unscored(
                f"{server} has version {found.version!r} of {self._name!r}, and the spec says version: {meant}"
            )
        return found.version


def offered(client: Client, dialect: Dialect, asked: Asked) -> dict[str, Offered]:
    """Return the rewards of a server, which says that it is well.

    Raises:
        Unscored: It does not answer, or wrongly.
    """
    return client.get(dialect.offers, lambda data: dialect.read_offered(data, asked), "ask for its rewards")


def metadata_of(prompts: PromptsConfig) -> dict[str, dict[str, str]]:
    """Return the metadata of every prompt by its text: of one that stands several times, what these agree on."""
    found: dict[str, dict[str, set[str | None]]] = {}
    for texts, columns in (
        (prompts.train, prompts.train_metadata),
        (prompts.evaluate, prompts.evaluate_metadata),
    ):
        for name, values in columns.items():
            for text, value in zip(texts, values, strict=True):
                found.setdefault(text, {}).setdefault(name, set()).add(value)
    return {
        text: {
            name: value
            for name, values in columns.items()
            if len(values) == 1 and (value := next(iter(values))) is not None
        }
        for text, columns in found.items()
    }


def _mean(scores: Sequence[_Score]) -> _Score:
    """Return the mean of the scores that there are of an image, NaN where there is none, and its standard error.

    Several tell by their spread how noisy they are; of one the server may.
    """
    known = [pair for pair in scores if not isnan(pair[0])]
    if not known:
        return nan, nan
    values = [value for value, _ in known]
    error = stdev(values) if len(values) > 1 else known[0][1]
    return sum(values) / len(values), error / sqrt(len(values))


def _or_nan(score: float | None) -> float:
    return nan if score is None else score


def _keep(found: Mapping[str, _Score]) -> None:
    """Remember scores, the last used ones longest; one that is missing may be had another time."""
    for key, score in found.items():
        if isnan(score[0]):
            continue
        _known[key] = score
        _known.move_to_end(key)
    while len(_known) > _KEPT:
        _known.popitem(last=False)
