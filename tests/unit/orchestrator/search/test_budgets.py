"""A budget with the exact solver in place of training: it is kept, used as far as trials fit in, also after a crash."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from support.searched import SPEC, TPE, Sweep

from orchestrator.plan import PlannedTrial
from orchestrator.search.base import SearchContext
from orchestrator.search.spending import Spending
from orchestrator.spec.load import parse_spec
from orchestrator.spec.records.models import SweepSpec

ENDLESS = SPEC.replace("tolerance: 0.05, max_trials: 16", "tolerance: 0.0001")
GPUS = "resources: {gpus_per_worker: 1}\n"


@dataclass
class Priced(Sweep):
    """Trials that take an hour, and hold a GPU for as long; a clock of hours that runs with them."""

    slots: int = 1
    hours: float = 0.0
    """That the sweep has been at work."""
    lasts: Mapping[int, float] = field(default_factory=dict)
    """Hours of the trials that take another time, by the order of their end."""
    begun: dict[str, float] = field(default_factory=dict)

    def context(self) -> SearchContext:
        spending = Spending.of(
            self.spec,
            clock=lambda: 3600.0 * self.hours,
            slots=self.slots,
            planned=[trial.trial_id for trial in self.plan.trials],
            finished=self.rows,
        )
        begin = spending.begin

        def noted(trial_id: str) -> None:
            self.begun[trial_id] = self.hours
            begin(trial_id)

        spending.begin = noted  # type: ignore[method-assign] - the driver's clock, told of what it hands out
        return replace(super().context(), spending=spending)

    def trained(self, trial: PlannedTrial) -> dict[str, Any]:
        took = self.lasts.get(len(self.rows), 1.0)
        self.hours = max(self.hours, self.begun[trial.trial_id] + took)
        return {**super().trained(trial), "gpu_seconds": 3600.0 * took, "wall_seconds": 3600.0 * took}


def spec_of(budget: str, *, seeds: str = "[0]", text: str = ENDLESS) -> SweepSpec:
    return parse_spec(text.replace("seeds: [0]", f"seeds: {seeds}") + f"budget: {budget}\n" + GPUS)


@pytest.mark.parametrize("seeds", ["[0]", "[4, 7]"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_gpu_hours_are_not_exceeded_and_used_as_far_as_trials_fit_in(seeds: str, at_once: int) -> None:
    spec = spec_of("{gpu_hours: 6.5}", seeds=seeds)
    sweep = Priced(spec, None)
    search = sweep.drive(at_once=at_once)
    assert len(sweep.started) == 6
    assert "ended: budget" in str(search.note)
    for most in (0, 1, 4):  # a driver that comes after a crash knows what was spent
        broken = Priced(spec, None)
        broken.drive(at_once=at_once, most=most)
        broken.drive(at_once=at_once)
        assert len(set(broken.started)) == 6


def test_until_a_trial_has_ended_gpu_hours_are_not_spent_on_others() -> None:
    sweep = Priced(spec_of("{gpu_hours: 2}"), None)
    assert "ended: budget" in str(sweep.drive(at_once=8).note)
    assert len(sweep.started) == 2


@pytest.mark.parametrize(
    ("seeds", "at_once", "most"),
    # Of three places one waits for the first two trials, before it is known what a setting of two takes.
    [("[0]", 1, 6), ("[0]", 3, 18), ("[4, 7]", 2, 12), ("[4, 7]", 3, 16)],
)
def test_time_is_not_exceeded_and_used_as_far_as_trials_fit_in(seeds: str, at_once: int, most: int) -> None:
    spec = spec_of("{wall: 6.5h}", seeds=seeds)
    sweep = Priced(spec, None, slots=at_once)
    search = sweep.drive(at_once=at_once)
    assert "ended: budget" in str(search.note)
    assert sweep.hours <= 6.5
    assert len(sweep.started) == most
    for crash in (1, 4):  # the clock goes on where it was
        broken = Priced(spec, None, slots=at_once)
        broken.drive(at_once=at_once, most=crash)
        left = set(broken.started) - set(
            broken.rows
        )  # what a crash broke off is run again, from its checkpoint
        broken.drive(at_once=at_once)
        assert all(began <= 5.5 for name, began in broken.begun.items() if name not in left)
        assert most - 2 * at_once <= len(set(broken.started)) <= most


def test_the_longest_trial_is_what_another_may_take() -> None:
    sweep = Priced(spec_of("{wall: 6.5h}"), None, lasts={1: 2.0})
    assert "ended: budget" in str(sweep.drive().note)
    assert sweep.hours == 5.0, "1 + 2 + 1 + 1, and another may take 2"


def test_what_chooses_weights_keeps_to_the_budget_too() -> None:
    text = ENDLESS.replace("  - constrained\n", "  - constrained\n" + TPE)
    for budget in ("{wall: 4h}", "{gpu_hours: 4}"):
        sweep = Priced(spec_of(budget, text=text), None)
        sweep.drive()
        assert 3 <= len(sweep.started) <= 4
        assert {trial.config.method for trial in sweep.plan.trials} == {"constrained", "weighted"}


def test_without_a_budget_everything_is_allowed() -> None:
    spending = Spending(planned=["a"])
    spending.begin("b")
    assert spending.allows(10**6)
    assert not spending.spent(10**6)
