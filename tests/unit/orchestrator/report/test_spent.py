"""What a budget bought, in the terminal, the JSON document and the report."""

from pathlib import Path

import pyarrow as pa
import pytest
from support.searched import SPEC

from orchestrator.report.spent import spent
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import parse_spec

BUDGET = (
    "budget: {gpu_hours: 20, cost: 50, wall: 2h}\nresources: {gpus_per_worker: 1, price_per_gpu_hour: 2.5}\n"
)


class Stored:
    """What is read of a sweep."""

    def __init__(self, gaps: list[float | None]) -> None:
        """With the gap after every setting."""
        self._gaps = gaps

    def seen(self) -> pa.Table:
        methods = [
            "constrained",
            "constrained",
            "weighted",
            "interpolated",
        ]  # the last was measured, not bought
        return pa.table({"gpu_seconds": [3600.0, 5400.0, None, 60.0], "method": methods})

    def journal(self) -> dict[str, float]:
        return {"seconds": 5000.0}

    def bounds(self) -> pa.Table | None:
        return pa.table({"gap": pa.array(self._gaps, pa.float64()), "trials": range(1, 1 + len(self._gaps))})


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        (
            [None, 0.42, 0.2, 0.05],
            "a gap of 0.05 nats: after 2 of them it was 0.42, and the last took 0.15 off.",
        ),
        ([0.42], "bought 3 trials, and a gap of 0.42 nats."),
        ([None], "bought 3 trials."),
        ([], "bought 3 trials."),
    ],
)
def test_what_was_spent_and_what_it_did_to_the_gap(gaps: list[float | None], said: str) -> None:
    text = spent(parse_spec(SPEC + BUDGET), Stored(gaps))  # type: ignore[arg-type]
    assert text is not None
    assert text.startswith(
        "The budget, 2.5 of 20 GPU-hours and 6.25 of 50 to pay and 1.39 h of 2 h, bought 3 trials"
    )
    assert text.endswith(said)


def test_answers_of_an_adapter_that_is_asked_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SPEC.replace("  - constrained\n", "  - frontier: {}\n")
    took = pa.table({"gpu_seconds": [None, 360.0, 720.0]})  # which their trials' rows have
    rows = {"gpu_seconds": [6480.0, 3600.0], "asked_gpu_seconds": [2880.0, 0.0], "method": ["frontier"] * 2}
    monkeypatch.setattr(Stored, "answers", lambda _: took, raising=False)
    monkeypatch.setattr(Stored, "seen", lambda _: pa.table(rows))
    found = spent(parse_spec(text + BUDGET), Stored([0.42]))  # type: ignore[arg-type]
    assert found is not None
    assert found.startswith("The budget, 2.8 of 20 GPU-hours and 7 of 50 to pay")
    assert found.endswith("bought 2 trials and 3 answers, and a gap of 0.42 nats.")


def test_without_a_budget_nothing_is_said(tmp_path: Path) -> None:
    assert spent(parse_spec(SPEC), SweepStore(str(tmp_path), "none")) is None
