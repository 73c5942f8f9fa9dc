"""Which of two rounds of a trial is kept, and how far a trial is from its optimum."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from orchestrator.execution.driver import Driver
from orchestrator.execution.trials.rounds import better, continued, distance_of, kept
from orchestrator.execution.trials.trial import failed, record
from orchestrator.frontier.paths import OwnPaths
from orchestrator.results.schema import trial_table
from orchestrator.results.store import SweepStore
from trainers.config import TrialJob
from trainers.testing import gaussian_job
from trainers.types import Evaluation, Interval, TrialOutcome

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = datetime(2026, 1, 3, tzinfo=UTC)


def exact(value: float) -> Interval:
    return Interval(mean=value, low=value, high=value)


def outcome(kl: float, reward: float, *, feasible: bool = True, steps: int = 10) -> TrialOutcome:
    return TrialOutcome(
        status="succeeded",
        error=None,
        feasible=feasible,
        kl=exact(kl),
        kl_estimator="path",
        rewards={"x": exact(reward)},
        violations={"x": 1.0 - reward},
        multipliers={"x": 1.0},
        weights={},
        steps=steps,
        wall_seconds=1.0,
        evaluation=None,
        history=(),
        adapter={"adapter.safetensors": f"{kl}".encode()},
    )


def job(rounds: int = 1) -> TrialJob:
    return gaussian_job({"x": 1.0}).model_copy(update={"rounds": rounds, "continuable": True})


def row(of: TrialOutcome) -> dict[str, Any]:
    found: dict[str, Any] = trial_table(
        job(), of, started_at=NOW, finished_at=NOW, gpu_seconds=3.0
    ).to_pylist()[0]
    return found


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (outcome(0.6, 1.0), outcome(0.7, 1.0), True),
        (outcome(0.7, 1.0), outcome(0.6, 1.0), False),
        (outcome(0.7, 1.2), outcome(0.6, 1.0), True),  # 0.2 more of a reward that costs 1 nat
        (outcome(0.6, 0.9, feasible=False), outcome(0.9, 1.0), False),
        (outcome(0.9, 1.0), outcome(0.6, 0.9, feasible=False), True),
        (failed("memory"), outcome(0.9, 0.8, feasible=False), False),
    ],
)
def test_what_is_better_stays(new: TrialOutcome, old: TrialOutcome, expected: bool) -> None:
    assert better(job().config, new, row(old)) is expected


def test_a_row_gives_way_to_a_better_one_and_says_what_it_was(tmp_path: Any) -> None:
    store = SweepStore(str(tmp_path), "rounds")
    record(job(), outcome(0.7, 1.0), store, started_at=NOW)
    [trial_id] = store.finished()
    record(job(2), outcome(0.6, 1.0, steps=20), SweepStore(str(tmp_path), "rounds"), started_at=LATER)
    assert store.trial(trial_id)["kl"] == 0.7, "a row that was read is not read again"  # type: ignore[index]
    store.reread([trial_id])
    now = store.trial(trial_id)
    assert now is not None
    assert (now["kl"], now["rounds"], now["steps"], now["started_at"]) == (0.6, 2, 20, NOW)
    assert now["notes"] == "trained further from step 10, where its KL was 0.700 nats"
    assert store.adapter(trial_id)["adapter.safetensors"] == b"0.6"

    # What comes to nothing better leaves all of it, and counts as a round.
    record(job(3), outcome(0.8, 1.0, steps=30), SweepStore(str(tmp_path), "rounds"), started_at=LATER)
    store.reread([trial_id])
    last = store.trial(trial_id)
    assert last is not None
    assert {**last, "notes": None, "rounds": 2} == {**now, "notes": None}
    assert last["rounds"] == 3
    assert last["notes"].endswith(
        "trained further in round 3, which is not kept: step 30 came to nothing better"
    )
    assert store.adapter(trial_id)["adapter.safetensors"] == b"0.6"


def test_a_round_that_is_recorded_twice_is_recorded_once(tmp_path: Any) -> None:
    """A trial process may be lost after its row was written: the next attempt evaluates the same state again."""
    store = SweepStore(str(tmp_path), "rounds")
    record(job(), outcome(0.7, 1.0), store, started_at=NOW)
    [trial_id] = store.finished()
    for _ in range(2):
        record(job(2), outcome(0.6, 1.0, steps=20), store, started_at=LATER)
    record(job(2), failed("lost"), store, started_at=LATER)  # by the driver, which has read the first row
    now = store.stored_trial(trial_id)
    assert now is not None
    assert (now["kl"], now["rounds"]) == (0.6, 2)
    assert now["notes"] == "trained further from step 10, where its KL was 0.700 nats"


def test_a_driver_that_comes_after_another_reads_what_was_replaced(tmp_path: Any) -> None:
    store = SweepStore(str(tmp_path), "rounds")
    record(job(), outcome(0.7, 1.0), store, started_at=NOW)
    [trial_id] = store.finished()
    store.save_checkpoint(trial_id, 10, {"state": b""})
    store.reread([trial_id])  # the journal has it
    record(job(2), outcome(0.6, 1.0, steps=20), SweepStore(str(tmp_path), "rounds"), started_at=LATER)
    after = SweepStore(str(tmp_path), "rounds")
    driver = Driver(after, lambda _: None)
    driver.began(1)
    now = after.trial(trial_id)
    assert now is not None
    assert (now["kl"], now["rounds"]) == (0.6, 2)


def test_rows_add_up() -> None:
    before = row(outcome(0.7, 1.0))
    [joined] = continued(
        trial_table(job(2), outcome(0.6, 1.0), started_at=LATER, finished_at=LATER, gpu_seconds=8.0), before
    ).to_pylist()
    # The seconds of a round that goes on from another are those of both: nothing is added.
    assert (joined["started_at"], joined["finished_at"], joined["gpu_seconds"]) == (NOW, LATER, 8.0)
    [same] = kept(job(2), outcome(0.8, 1.0), before, gpu_seconds=8.0).to_pylist()
    assert (same["kl"], same["gpu_seconds"]) == (0.7, 8.0)
    [same] = kept(job(2), failed("out of memory"), before).to_pylist()
    assert same["gpu_seconds"] == 3.0, "what failed does not know what was spent"
    # What a search asked of an adapter was spent also where that is replaced.
    asked = before | {"gpu_seconds": 5.0, "asked_gpu_seconds": 2.0}
    [joined] = continued(
        trial_table(job(2), outcome(0.6, 1.0), started_at=LATER, finished_at=LATER, gpu_seconds=8.0), asked
    ).to_pylist()
    assert (joined["gpu_seconds"], joined["asked_gpu_seconds"]) == (10.0, 2.0)
    [same] = kept(job(2), outcome(0.8, 1.0), asked, gpu_seconds=8.0).to_pylist()
    assert (same["gpu_seconds"], same["asked_gpu_seconds"]) == (10.0, 2.0)
    [same] = kept(job(2), failed("out of memory"), before).to_pylist()
    assert same["gpu_seconds"] == 3.0
    assert same["notes"] == "trained further in round 2, which is not kept: out of memory"


def test_the_distance_of_a_gaussian_is_that_of_its_mean() -> None:
    """Q = N(0, 1), r = x, p = N(m, 1): the optimum of λ is N(λ, 1), and KL(p ‖ p*) = (m − λ)² / 2."""
    rng = np.random.default_rng(0)
    for shift, price in ((1.0, 1.0), (0.4, 1.0), (0.0, 0.8)):
        samples = shift + rng.normal(size=200_000)
        log_ratio = shift * samples - 0.5 * shift**2
        found = OwnPaths.of(samples[:, None], log_ratio, None).distance([price])
        assert found == pytest.approx(0.5 * (shift - price) ** 2, abs=0.01)
        # Few samples of each prompt: deviations from their means are taken together.
        prompts = np.repeat(np.arange(20_000), 10)
        assert OwnPaths.of(samples[:, None], log_ratio, prompts).distance([price]) == pytest.approx(
            found, abs=0.02
        )


def test_two_samples_of_each_prompt_tell_the_distance() -> None:
    """Log weights of variance V within prompts whose means differ: KL(p ‖ p*) = V / 2."""
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(20_000), 2)
    for variance in (0.3, 1.0, 2.0):
        logs = 5.0 * rng.normal(size=20_000)[prompts] + np.sqrt(variance) * rng.normal(size=len(prompts))
        found = OwnPaths.of(np.zeros((len(prompts), 1)), logs, prompts).distance([0.0])
        assert found == pytest.approx(0.5 * variance, rel=0.06)


def test_one_sample_of_each_prompt_tells_the_distance_beside_a_look_at_all() -> None:
    """The same V, of a policy one sample of each prompt is known of, and of one like it eight that share its noise."""
    rng = np.random.default_rng(5)
    prompts = np.tile(np.arange(64), 8)  # in turn, as evaluations have them
    for variance in (0.3, 1.0):
        found, alone = [], []
        for _ in range(200):
            noise = np.sqrt(variance) * rng.normal(size=512)
            logs = 2.0 * rng.normal(size=64)[prompts] + noise
            other = logs + 0.7 + 0.3 * noise + 0.1 * rng.normal(size=512)  # log weights that vary more
            other[70] = np.nan  # a score that could not be had
            zeros = np.zeros((512, 1))
            part = np.column_stack([zeros, -logs])[:64]
            found.append(OwnPaths.of_first(part, np.column_stack([zeros, -other]), prompts).distance([0.0]))
            alone.append(OwnPaths.of(part[:, :1], part[:, 1], prompts[:64]).distance([0.0]))
        assert np.mean(found) == pytest.approx(0.5 * variance, rel=0.15)
        assert np.mean(alone) > 0.5 * variance + 1.0, "means of prompts would count as distance"


def test_a_trial_knows_its_distance_where_its_multipliers_are_known() -> None:
    rng = np.random.default_rng(0)
    samples = 0.4 + rng.normal(size=50_000)
    evaluation = Evaluation(
        kl=np.full(50_000, 0.08),
        rewards={"x": samples},
        seeds=np.arange(50_000),
        log_ratio=0.4 * samples - 0.08,
    )
    import dataclasses  # noqa: PLC0415 - one test's

    whole = dataclasses.replace(outcome(0.08, 0.4), evaluation=evaluation)
    assert distance_of(job(), whole) == pytest.approx(0.5 * 0.6**2, abs=0.02)
    assert distance_of(job(), dataclasses.replace(whole, multipliers={})) is None
    assert distance_of(job(), outcome(0.08, 0.4)) is None
    # Two thresholds on one reward: their prices add up.
    (alone,) = job().config.constraints
    both = (alone, alone.model_copy(update={"name": "floor"}))
    two = job().model_copy(update={"config": job().config.model_copy(update={"constraints": both})})
    shared = dataclasses.replace(whole, multipliers={"x": 0.7, "floor": 0.3})
    assert distance_of(two, shared) == distance_of(job(), whole)
