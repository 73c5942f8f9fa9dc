"""Several trials of one base in one process, each as it would be alone, to the last bit.

Their policies share the frozen network, with an adapter for each. What they ask of it in training is asked in one call
(``models.layers.policy_rows``), and their gradients are found in one backward pass: rows and adapters of different
trials have nothing to do with one another. All else, from noise and images to the steps of the optimisers, each does
itself.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainers.config import ModelConfig, TrialConfig
from trainers.hosts.alone import Host
from trainers.hosts.meeting import Meeting
from trainers.models.base import Policy
from trainers.models.build import build_policy
from trainers.models.compiled import Network
from trainers.models.families.base import Conditions
from trainers.models.layers.trained_lora import Adapter, act_beside_reference
from trainers.models.pipeline import Parts, load_parts
from trainers.models.pipeline_policy import Beside, PipelinePolicy

_LAST = math.inf
"""Place of a backward pass: nobody is behind any more."""


_Answer = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a trial asks of the network."""

    adapter: Adapter
    latents: Tensor
    level: Tensor
    conditions: Conditions

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Of all that is asked with."""
        return self.latents.shape, *(value.shape for value in self.conditions.named().values())


class Pack:
    """What the trials of a process share."""

    def __init__(self) -> None:
        """Begin without any."""
        self._meeting = Meeting()
        self._base: tuple[ModelConfig, str, str] | None = None
        self._parts: Parts | None = None
        self._numbers = itertools.count()
        self._adapters: dict[str, Adapter] = {}
        self._tried: dict[tuple[Any, ...], bool] = {}

    @contextmanager
    def trial(self) -> Iterator[Host]:
        """Run a trial in this thread within the block; it has its turns."""
        member = _Member(self, f"packed-{next(self._numbers):08d}")
        with self._meeting.seat():
            try:
                yield member
            finally:
                self._remove(member.name)

    def policy(self, config: TrialConfig, device: str, name: str) -> Policy:
        """Return the policy of a trial, its adapter as it would be alone.

        Raises:
            ValueError: model or adapter cannot be used, or the trial has another base than the others.
        """
        base = (config.model.model_copy(update={"lora": None}), config.training.precision, device)
        if self._parts is None:
            training = config.training
            self._parts = load_parts(config.model, training.precision, device, offload=training.offload)
            self._base = base
        if base != self._base:
            raise ValueError(f"resources.pack: {base} is another base than {self._base} of the others")
        policy = build_policy(config, device, beside=Beside(parts=self._parts, name=name, join=self._joined))
        assert isinstance(policy, PipelinePolicy), "a mixture has no network to share: refused at plan"
        self._adapters[name] = policy.trained
        self._restore()
        return policy

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of its trial."""
        self._meeting.ask("backward", _LAST, loss, _backward)

    def _joined(self, adapter: Adapter, network: Network, *, paired: bool | None) -> Network:
        """Return a network that is asked together with the other trials', where gradients are wanted.

        Args:
            adapter: Of the one that asks.
            network: That all share.
            paired: How the adapter acts beside the reference; None where it rests.
        """

        def answer(asked: Sequence[_Asked]) -> Sequence[_Answer]:
            together = len(asked) == 1 or self._same(network, asked, paired=paired)
            groups = [asked] if together else [[one] for one in asked]
            return [found for group in groups for found in _answers(network, group, paired=paired)]

        def ask(latents: Tensor, level: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
            if not torch.is_grad_enabled():
                return network(latents, level, conditions)
            asked = _Asked(adapter=adapter, latents=latents, level=level, conditions=conditions)
            key = (paired, float(level), *asked.shapes)
            found: _Answer = self._meeting.ask(key, -float(level), asked, answer)
            return found

        return ask

    def _same(self, network: Network, asked: Sequence[_Asked], *, paired: bool | None) -> bool:
        """Whether all rows in one call are what they are in a call for each, to the last bit; tried once per shape.

        Kernels are chosen by the sizes of what they compute, and some round otherwise than others.
        """
        gated = tuple(one.adapter.form is not None for one in asked)
        shape = (paired, gated, *asked[0].shapes)
        if shape not in self._tried:
            # With adapters that do something: those of fresh trials would show no difference.
            with _drawn(asked) as drawn:
                whole = _slopes(network, drawn, paired=paired)
                parts = [_slopes(network, [one], paired=paired)[0] for one in drawn]
            self._tried[shape] = all(
                torch.equal(one, other)
                for mine, others in zip(whole, parts, strict=True)
                for one, other in zip(mine, others, strict=True)
            )
        return self._tried[shape]

    def _remove(self, name: str) -> None:
        """Take an adapter off the network, if there is one."""
        if self._adapters.pop(name, None) is None or self._parts is None:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".* was active which is now deleted"
            )  # which act is set anew
            self._parts.network.delete_adapters(name)
        self._restore()

    def _restore(self) -> None:
        """Train all adapters: peft trains the one that was added last, or that is left."""
        for adapter in self._adapters.values():
            for parameter in adapter.parameters().values():
                parameter.requires_grad = True


class _Member(Host):
    """A trial's place in the pack."""

    def __init__(self, pack: Pack, name: str) -> None:
        self.name = name
        self._pack = pack

    def policy(self, config: TrialConfig, device: str) -> Policy:
        return self._pack.policy(config, device, self.name)

    def backward(self, loss: Tensor) -> None:
        self._pack.backward(loss)


@torch.enable_grad()
def _answers(network: Network, asked: Sequence[_Asked], *, paired: bool | None) -> list[_Answer]:
    """Return what the network says to each, of one call."""
    adapters = [one.adapter for one in asked]
    if paired is None:
        adapters[0].switch(on=False)
    else:
        act_beside_reference(adapters, paired=paired)
    conditions = Conditions.joined([one.conditions for one in asked], torch.cat)
    output, shift = network(torch.cat([one.latents for one in asked]), asked[0].level, conditions)
    output, shift = _Whole.apply(output, shift)  # type: ignore[no-untyped-call] # torch's
    shifts = shift.chunk(len(asked)) if shift.ndim else [shift] * len(asked)
    return list(zip(output.chunk(len(asked)), shifts, strict=True))


class _Whole(torch.autograd.Function):
    """The identity; no gradient passes before all have come, as where everything after was made by the same thread."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        """Return the values."""
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ARG004 - torch's
        """Return the gradients."""
        return gradients


@contextmanager
def _drawn(asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
    """Put random numbers in place of latents, and for the length of a block of adapters."""
    generator = torch.Generator().manual_seed(0)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    held = [parameter for one in asked for parameter in one.adapter.parameters().values()]
    before = [parameter.detach().clone() for parameter in held]
    for parameter in held:  # by `data`: passes that wait for their gradients find all as it was
        parameter.data.copy_(0.1 * normal(parameter))
    try:
        yield [replace(one, latents=normal(one.latents)) for one in asked]
    finally:
        for parameter, value in zip(held, before, strict=True):
            parameter.data.copy_(value)


def _slopes(network: Network, asked: Sequence[_Asked], *, paired: bool | None) -> list[list[Tensor]]:
    """Return of each what the network says, and the gradients of some function of it."""
    apart = [replace(one, latents=one.latents.detach().requires_grad_()) for one in asked]
    answers = _answers(network, apart, paired=paired)
    weights = torch.linspace(-1.0, 1.0, answers[0][0].numel(), device=answers[0][0].device)
    values = [(weights.view_as(found) * (found + shift).square()).sum() for found, shift in answers]
    sources = [[one.latents, *([] if paired is None else one.adapter.parameters().values())] for one in apart]
    gradients = iter(torch.autograd.grad(values, [source for each in sources for source in each]))
    return [
        [*(part.detach() for part in answer), *itertools.islice(gradients, len(each))]
        for answer, each in zip(answers, sources, strict=True)
    ]


def _backward(losses: Sequence[Tensor]) -> Sequence[None]:
    """Add the gradients of all losses: of each to the parameters of its own trial, no others are in it."""
    torch.autograd.backward(list(losses))
    return [None] * len(losses)
