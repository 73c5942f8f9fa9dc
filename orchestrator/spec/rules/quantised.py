"""What a pipeline needs, and does without, whose network is held in 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.spec.extras import missing_package
from orchestrator.spec.text.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.spec.records.models import SweepSpec


def quantised_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Yield what does not go with a quantised network."""
    if spec.model is not None and spec.model.quantise is not None and spec.training.compile:
        rule = "does not go with model.quantise: compiled, products with packed weights have no derivative"
        yield Problem(path=("training", "compile"), rule=rule, value=True)


def missing_quantiser(spec: SweepSpec) -> Iterator[Problem]:
    """Yield the problem of a package that is not installed here; a stored sweep can be read without it."""
    if spec.model is None or (kind := spec.model.quantise) is None:
        return
    if rule := missing_package("bitsandbytes", "quantise"):
        yield Problem(path=("model", "quantise"), rule=rule, value=kind)
