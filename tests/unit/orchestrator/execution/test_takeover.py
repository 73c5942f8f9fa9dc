"""Results of an equal trial of another sweep: all comes along that this sweep would have made of it."""

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.execution.takeover import take_over
from orchestrator.execution.trials.rounds import charged
from orchestrator.execution.trials.trial import record
from orchestrator.plan import PlannedTrial, make_job, make_plan
from orchestrator.report.sweep import read_plan
from orchestrator.results import layout
from orchestrator.results.schema import answers_table
from orchestrator.results.store import SweepStore
from orchestrator.results.tables import joined
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.adapters.files import LOOKS
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Answer, Interval, TrialOutcome

SPEC = """
name: NAME
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.4, 2.0]}}
methods: [frontier: {}]
"""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)


SEARCH = "search: {kind: certified, tolerance: 0.02, max_trials: 12}\n"


def begun(storage: Path, *texts: str) -> tuple[PlannedTrial, list[SweepStore]]:
    """Sweeps of the same trial, each with its own search."""
    stores = []
    for name, text in zip(("first", "second"), texts, strict=True):
        spec = parse_spec(text.replace("NAME", name))
        plan = make_plan(spec)
        stores.append(SweepStore(str(storage), name))
        stores[-1].create(dump_spec(spec), plan.to_json(), BASELINE.model_dump(mode="json"))
    [trial] = plan.trials
    return trial, stores


def outcome(*bounds: float) -> TrialOutcome:
    met = Interval(mean=0.5, low=0.5, high=0.5)
    told = {"multipliers": {"x": 0.5}, "kl": met, "rewards": {"x": met}, "violations": {"x": -0.1}}
    answers = tuple(
        Answer(thresholds={"x": bound}, feasible=True, images=8, **told)  # type: ignore[arg-type]
        for bound in bounds
    )
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=True,
        kl_estimator="path",
        weights={},
        steps=1,
        wall_seconds=1.0,
        evaluation=None,
        history=(),
        answers=answers,
        adapter={"control.safetensors": b"network"},
        **told,  # type: ignore[arg-type]
    )


def taken(trial: PlannedTrial, store: SweepStore) -> str:
    said = io.StringIO()
    take_over(read_plan(store), store, BASELINE, Console(file=said))
    assert ("taken over" in said.getvalue()) == (store.stored_trial(trial.trial_id) is not None)
    return said.getvalue()


def test_answers_and_their_images_come_along(tmp_path: Path) -> None:
    trial, (first, second) = begun(tmp_path, SPEC, SPEC)
    record(make_job(trial, BASELINE), outcome(0.4, 0.45), first, started_at=datetime.now(UTC))
    for place in range(2):
        first.write_file(layout.answer_image(trial.trial_id, place), f"picture {place}".encode())
    assert "taken over from first: 1 equal trials" in taken(trial, second)
    assert second.adapter(trial.trial_id)["control.safetensors"] == b"network"
    assert second.answers(trial.trial_id) == first.answers(trial.trial_id)
    assert [second.read_file(layout.answer_image(trial.trial_id, place)) for place in range(2)] == [
        b"picture 0",
        b"picture 1",
    ]


@pytest.mark.parametrize("search", ["", SEARCH], ids=["plain", "searched"])
def test_what_another_search_asked_stays_there(tmp_path: Path, search: str) -> None:
    """An adapter that is trained once is the same; where it was asked, a search of this sweep would have chosen."""
    trial, (first, second) = begun(tmp_path, SPEC + SEARCH, SPEC + search)
    job = make_job(trial, BASELINE)
    record(job, outcome(0.4, 2.0), first, started_at=datetime.now(UTC), gpus=1.0)
    design, row = first.answers(trial.trial_id), first.stored_trial(trial.trial_id)
    assert row is not None
    first.replace_trial(charged(trial.config, row, 5.0))
    asked = answers_table(job, outcome(1.0).answers, [None], took={"wall_seconds": 5.0, "gpu_seconds": 5.0})
    first.write_answers(trial.trial_id, joined([design, asked]))
    first.write_adapter(trial.trial_id, {LOOKS: b"looks"})
    for place in range(3):
        first.write_file(layout.answer_image(trial.trial_id, place), b"picture")
    taken(trial, second)
    assert second.answers(trial.trial_id) == design
    assert [second.read_file(layout.answer_image(trial.trial_id, place)) for place in (1, 2)] == [
        b"picture",
        None,
    ]
    assert set(first.adapter(trial.trial_id)) - set(second.adapter(trial.trial_id)) == {LOOKS}
    here = second.stored_trial(trial.trial_id)
    assert here is not None
    assert (here["gpu_seconds"], here["asked_gpu_seconds"] or 0.0) == (1.0, 0.0)


ROUNDS = SPEC.replace("{}", "{rounds: 2}")


@pytest.mark.parametrize(
    ("there", "here", "rounds", "expected"),
    [
        ("", "", 2, True),
        ("", "", 1, False),  # it was left before its last round
        (SEARCH, "", 2, False),  # its second round leaned where the search had asked
        (SEARCH, "", 1, False),
        ("", SEARCH, 2, False),  # the search says whether there is a second one
        ("", SEARCH, 1, False),  # it could not go on from there
        (SEARCH, SEARCH, 2, False),
    ],
    ids=lambda value: "searched" if value == SEARCH else str(value),
)
def test_rounds_are_taken_over_where_no_search_has_a_say_in_them(
    tmp_path: Path, there: str, here: str, rounds: int, expected: bool
) -> None:
    trial, (first, second) = begun(tmp_path, ROUNDS + there, ROUNDS + here)
    for number in range(1, rounds + 1):
        job = make_job(trial, BASELINE).model_copy(update={"rounds": number})
        record(job, outcome(0.4, 2.0), first, started_at=datetime.now(UTC))
    taken(trial, second)
    assert (second.stored_trial(trial.trial_id) is not None) is expected
    if expected:
        assert second.answers(trial.trial_id) == first.answers(trial.trial_id)
        assert second.adapter(trial.trial_id) == first.adapter(trial.trial_id) != {}
