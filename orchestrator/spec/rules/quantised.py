"""What a pipeline needs, and does without, whose network is held in 4 bits, or whose optimiser keeps 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.extras import missing_package
from orchestrator.spec.text.problems import KeyPath, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec


def quantised_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield what does not go with a quantised network."""
    if spec.model is not None and spec.model.quantise is not None and spec.training.compile:
        rule = "does not go with model.quantise: compiled, products with packed weights have no derivative"
        yield Problem(path=("training", "compile"), rule=rule, value=True)


def missing_quantiser(spec: SweepSpec) -> Iterator[Problem]:
    """Yield what needs a package that is not installed here; a stored sweep can be read without it."""
    rule = missing_package("bitsandbytes", "quantise")
    if rule is None or spec.model is None:
        return
    if spec.model.quantise is not None:
        yield Problem(path=("model", "quantise"), rule=rule, value=spec.model.quantise)
    if spec.training.optimizer == "adam_8bit":
        at: KeyPath = ("training", "optimizer")
        yield Problem(path=at, rule=f"{rule}; adam does without", value=spec.training.optimizer)
