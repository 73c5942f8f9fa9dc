"""Budgets in a spec: of GPU-hours, money and time; and what is refused with which words."""

import jsonschema
import pytest
import yaml
from support.searched import SPEC as SEARCHED

from orchestrator.errors import SpecError
from orchestrator.spec.load import dump_spec, json_schema, parse_spec
from orchestrator.spec.records.budgets import budgeted_hours, budgeted_wall, lasting
from orchestrator.spec.records.searches import described, max_trials

SPEC = SEARCHED.replace(", max_trials: 16", "")
GRID = (
    SPEC.replace("search: {kind: certified, tolerance: 0.05}\n", "")
    .replace("{range: [0.05, 0.6]}", "0.6")
    .replace("{range: [+10%, +55%]}", "+55%")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SPEC + "budget: {gpu_hours: 2}\n",
            "counts hours of GPUs, and resources.gpus_per_worker is 0: budget: {wall: 2h} counts time",
        ),
        (SPEC + "budget: {gpu_hours: 0}\n", "must be greater than 0"),
        (SPEC + "budget: {hours: 2}\n", "unknown key 'hours'"),
        (SPEC + "budget: {wall: .inf}\n", "a number must be finite"),
        (SPEC + "budget: {wall: null}\n", "needs gpu_hours, cost or wall"),
        (SPEC + "budget: {}\n", "needs gpu_hours, cost or wall"),
        (
            SPEC + "budget: {cost: 2}\nresources: {gpus_per_worker: 1}\n",
            "budget.cost = 2\n  is counted at a price: write resources.price_per_gpu_hour",
        ),
        *(
            (
                SPEC + f"budget: {{wall: {wrong}}}\n",
                "must be a duration above 0: 90s, 45m, 2h, 1h30m, 1d, or seconds",
            )
            for wrong in ("0", "-5", "soon", "2 hours", "true", "0s", "[2]", "'1:30'", "1h 5", "''")
        ),
        (GRID + "budget: {wall: 2h}\n", "goes with search: {kind: certified}; the search 'grid' runs"),
        (
            GRID + "budget: {gpu_hours: 2}\n",
            "goes with search: {kind: certified}; the search 'grid' runs what is planned",
        ),
    ],
)
def test_a_budget_counts_what_a_certified_search_holds(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert message in str(caught.value)
    assert "budget" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "one mistake is one problem"


def test_within_a_budget_trials_are_not_counted_unless_asked() -> None:
    budgeted = SPEC + "budget: {gpu_hours: 2}\nresources: {gpus_per_worker: 1}\n"
    assert max_trials(parse_spec(budgeted)) == 100
    assert max_trials(parse_spec(budgeted.replace("tolerance: 0.05", "tolerance: 0.05, max_trials: 7"))) == 7


def test_a_cost_is_hours_at_their_price() -> None:
    resources = "resources: {gpus_per_worker: 1, price_per_gpu_hour: 2.5}\n"
    costs = parse_spec(SPEC + "budget: {cost: 10}\n" + resources)
    assert budgeted_hours(costs) == 4.0
    assert "and 4 GPU-hours in all" in next(described(costs))
    assert budgeted_hours(parse_spec(SPEC + "budget: {cost: 10, gpu_hours: 3}\n" + resources)) == 3.0
    assert budgeted_hours(parse_spec(SPEC)) is None


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90),
        ("45m", 2700),
        ("45 min", 2700),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5d", 129600),
        ("1:30:00", 5400),
        ("600", 600),
    ],
)
def test_time_needs_no_gpus_and_is_written_with_its_unit(written: str, seconds: float) -> None:
    spec = parse_spec(SPEC + f"budget: {{wall: {written}}}\n")
    assert budgeted_wall(spec) == seconds
    assert budgeted_hours(spec) is None
    assert max_trials(spec) == 100
    assert budgeted_wall(parse_spec(dump_spec(spec))) == seconds
    assert f"and {lasting(seconds)} in all" in next(described(spec))
    jsonschema.validate(yaml.safe_load(SPEC + f"budget: {{wall: {written}}}\n"), json_schema())


def test_a_budget_may_be_of_several_kinds() -> None:
    spec = parse_spec(SPEC + "budget: {gpu_hours: 3, wall: 2h}\nresources: {gpus_per_worker: 1}\n")
    assert "and 3 GPU-hours in all and 2 h in all" in next(described(spec))
