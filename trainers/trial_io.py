"""The port of a trial to the outside: reports, checkpoints, the place among the workers.

A trial runs the same in a plain process (``LocalTrialIO``), in a Ray Tune actor and in the workers of a
Ray Train job; only the implementation of this protocol differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trainers.types import FloatArray, StepRecord

Sampled = tuple[Mapping[str, FloatArray], Sequence[str] | None]
"""Rewards of samples, ``[n]`` each, and their prompts; None of a model without."""


class TrialIO(Protocol):
    """What a trial may ask of its surroundings. Every worker holds one."""

    @property
    def rank(self) -> int:
        """Number of this worker, from 0; rank 0 reports and saves."""

    @property
    def world_size(self) -> int:
        """How many workers share each optimiser step."""

    @property
    def device(self) -> str:
        """Where this worker's networks compute, in torch's words: ``cpu``, ``cuda:0``."""

    def sampled(self) -> Sampled | None:
        """Return what the pretrained model came to on training prompts, or None if it was not sampled."""

    def report(self, record: StepRecord) -> None:
        """Publish a logged step. Called by every rank with the same record."""

    def save(self, step: int, files: dict[str, bytes], history: Sequence[StepRecord]) -> None:
        """Make ``files`` the checkpoint of ``step``, all or nothing, and publish the history so far.

        Called by every rank; rank 0's files count.
        """

    def restore(self) -> dict[str, bytes] | None:
        """Return the files of the newest complete checkpoint, or None."""

    def initial(self) -> Mapping[str, bytes] | None:
        """Return the files of the adapter to begin with, or None to begin with the pretrained model."""

    def reference(self, of: str = "evaluate") -> Mapping[str, FloatArray] | None:
        """Return the pretrained model's rewards on the evaluation noise, ``[N]`` each, or None if it was not sampled.

        The first are those of the evaluation's own samples. Of a composition ``of`` may be one of the sets of
        ``composition.networks.alone``: a model sampled alone.
        """


@dataclass(kw_only=True)
class LocalTrialIO:
    """A port for plain processes and tests: keeps records and the last checkpoint in memory."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    records: list[StepRecord] = field(default_factory=list)
    checkpoint: dict[str, bytes] | None = None
    pretrained: Mapping[str, FloatArray] | None = None
    adapter: Mapping[str, bytes] | None = None
    alone: Mapping[str, Mapping[str, FloatArray]] = field(default_factory=dict)
    trained_on: Sampled | None = None

    def sampled(self) -> Sampled | None:
        """Return ``trained_on``."""
        return self.trained_on

    def report(self, record: StepRecord) -> None:
        """Append the record to ``records``."""
        self.records.append(record)

    def save(self, step: int, files: dict[str, bytes], history: Sequence[StepRecord]) -> None:  # noqa: ARG002 - the protocol's signature
        """Keep the files."""
        self.checkpoint = dict(files)

    def restore(self) -> dict[str, bytes] | None:
        """Return the files saved last."""
        return self.checkpoint

    def initial(self) -> Mapping[str, bytes] | None:
        """Return ``adapter``."""
        return self.adapter

    def reference(self, of: str = "evaluate") -> Mapping[str, FloatArray] | None:
        """Return ``pretrained``, or what is in ``alone``."""
        return self.pretrained if of == "evaluate" else self.alone.get(of)
