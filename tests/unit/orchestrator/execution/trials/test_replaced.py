"""What a further round of a trial leaves takes the place of what it had as one, wherever its process is killed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.execution.driver import Driver
from orchestrator.execution.sweep import _begin
from orchestrator.execution.trials.rounds import charged
from orchestrator.execution.trials.trial import record
from orchestrator.plan import make_job, make_plan
from orchestrator.results import layout
from orchestrator.results.files import Files
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics, TrialJob
from trainers.types import Answer, Evaluation, Interval, TrialOutcome

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0]}}, name: x, at_least: {range: [0.4, 2.0]}}
methods: [frontier: {rounds: 3}]
"""
BASELINE = BaselineStatistics(rewards={"x": RewardStatistics(mean=0.0, std=1.0)}, samples=None)
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def job(rounds: int = 1) -> TrialJob:
    [trial] = make_plan(parse_spec(SPEC)).trials
    return make_job(trial, BASELINE).model_copy(update={"rounds": rounds, "continuable": True})


def outcome(kl: float) -> TrialOutcome:
    """All of what it leaves has the KL in it, and is of an adapter with this name."""
    exact = Interval(mean=kl, low=kl, high=kl)
    met = Interval(mean=2.0, low=2.0, high=2.0)
    found = Evaluation(
        kl=np.full(4, kl),
        rewards={"x": np.full(4, 2.0)},
        seeds=np.arange(4),
        images=np.full((1, 4, 4, 3), round(100 * kl), dtype=np.uint8),
    )
    told: dict[str, Any] = {"kl": exact, "rewards": {"x": met}, "violations": {"x": 0.0}, "feasible": True}
    told |= {"multipliers": {"x": 1.0}, "evaluation": found}
    name = f"{kl}".encode()
    return TrialOutcome(
        status="succeeded",
        error=None,
        kl_estimator="path",
        weights={},
        steps=10,
        wall_seconds=1.0,
        history=(),
        answers=tuple(Answer(thresholds={"x": bound}, images=4, **told) for bound in (0.4, 2.0)),
        adapter={"control.safetensors": name, "multipliers.json": name},
        **told,
    )


def shades(store: SweepStore, path: str) -> int:
    import io  # noqa: PLC0415 - one function's

    from PIL import Image  # noqa: PLC0415 - the same

    data = store.read_file(path)
    assert data is not None
    return int(np.asarray(Image.open(io.BytesIO(data))).max())


def told(store: SweepStore) -> set[float]:
    """KLs in all that a reader finds of the trial: one, or things of two rounds are mixed."""
    name = job().trial_id
    row = store.trial(name)
    assert row is not None
    found = {row["kl"], *store.answers(name)["kl"].to_pylist(), *store.evaluations(name)["kl"].to_pylist()}
    assert store.answers(name) == store.answers()
    assert store.evaluations(name) == store.evaluations()
    assert store.answers(name).num_rows == 2
    found |= {float(data) for file, data in store.adapter(name).items() if file != "README.md"}
    kept = store.beside_round(name)
    images = [layout.image(name, kept), *(layout.answer_image(name, place, kept) for place in range(2))]
    return found | {shades(store, path) / 100 for path in images}


def kill_after(changes: int, patch: pytest.MonkeyPatch, *verbs: str) -> None:
    """Have the process end where files are changed in one of these ways once more than so often."""
    left = [changes]
    for verb in verbs:
        change = getattr(Files, verb)

        def until_killed(files: Files, *arguments: Any, change: Callable[..., None] = change) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            change(files, *arguments)

        patch.setattr(Files, verb, until_killed)


@pytest.mark.parametrize("writes", range(10))
def test_a_round_that_is_killed_anywhere_leaves_all_of_one_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    store = SweepStore(str(tmp_path), "killed")
    record(job(), outcome(0.75), store, started_at=NOW)
    with monkeypatch.context() as patch:
        kill_after(writes, patch, "write")
        try:
            record(job(2), outcome(0.5), SweepStore(str(tmp_path), "killed"), started_at=NOW)
        except KeyboardInterrupt:
            assert writes < 9, "no more is written"
    assert told(SweepStore(str(tmp_path), "killed")) in ({0.75}, {0.5})
    # The next attempt finishes it, and the one after the next finds room.
    record(job(2), outcome(0.5), SweepStore(str(tmp_path), "killed"), started_at=NOW)
    assert told(SweepStore(str(tmp_path), "killed")) == {0.5}
    record(job(3), outcome(0.25), SweepStore(str(tmp_path), "killed"), started_at=NOW)
    after = SweepStore(str(tmp_path), "killed")
    assert told(after) == {0.25}
    row = after.stored_trial(job().trial_id)
    assert row is not None
    assert "not kept" not in row["notes"]


def test_what_was_replaced_goes_with_the_next_look_of_the_driver(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "whole")
    record(job(), outcome(0.75), store, started_at=NOW)
    name = job().trial_id
    store.save_checkpoint(name, 10, {"state": b""})
    first = {path for path in tree(tmp_path) if name in path and "checkpoints" not in path}
    store.reread([name])
    store.trials()
    record(job(2), outcome(0.5), SweepStore(str(tmp_path), "whole"), started_at=NOW)
    record(job(3), outcome(0.9), SweepStore(str(tmp_path), "whole"), started_at=NOW)  # which is not kept
    assert told(store) == {0.75}, "who has read the row has what belongs to it"
    reader = SweepStore(str(tmp_path), "whole")
    assert told(reader) == {0.5}
    after = SweepStore(str(tmp_path), "whole")
    Driver(after, lambda _: None).began(1)
    assert told(after) == told(reader) == {0.5}
    left = {path for path in tree(tmp_path) if name in path and "checkpoints" not in path}
    assert left == first, "under the trial's own name"
    row = after.stored_trial(name)
    assert row is not None
    assert (row["adapter"], row["beside_round"]) == (f"adapters/{name}", None)
    assert after.beside() == []


@pytest.mark.parametrize("writes", range(14))
def test_a_driver_that_is_killed_while_a_round_takes_its_place_leaves_all_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    store = SweepStore(str(tmp_path), "whole")
    record(job(), outcome(0.75), store, started_at=NOW)
    record(job(2), outcome(0.5), store, started_at=NOW)
    kill_after(writes, monkeypatch, "write", "remove")
    with pytest.raises(KeyboardInterrupt):
        store.settle(job().trial_id)
    monkeypatch.undo()
    assert told(SweepStore(str(tmp_path), "whole")) == {0.5}
    after = SweepStore(str(tmp_path), "whole")
    Driver(after, lambda _: None).began(1)
    assert told(after) == {0.5}
    assert not [path for path in tree(tmp_path) if "round-2" in path]


def test_a_driver_that_comes_after_another_reads_what_questions_took(tmp_path: Path) -> None:
    """Of a trial that is trained once there is nothing that it would go on from."""
    store = SweepStore(str(tmp_path), "whole")
    once = job().model_copy(update={"continuable": False})
    record(once, outcome(0.75), store, started_at=NOW)
    store.reread([once.trial_id])  # the journal has it
    before = store.stored_trial(once.trial_id)
    assert before is not None
    SweepStore(str(tmp_path), "whole").replace_trial(charged(once.config, before, 36.0))
    after = SweepStore(str(tmp_path), "whole")
    Driver(after, lambda _: None).began(1)
    [row] = after.trials().to_pylist()
    assert (row["gpu_seconds"], row["asked_gpu_seconds"]) == (36.0, 36.0)


def test_bounds_of_an_adapter_that_was_replaced_are_not_kept(tmp_path: Path) -> None:
    """A driver may be killed between the row of a round and what that says of the frontier."""
    spec = parse_spec(SPEC + "search: {kind: certified, tolerance: 0.02, max_trials: 12}\n")
    plan, store = make_plan(spec), SweepStore(str(tmp_path), "whole")
    store.create(dump_spec(spec), plan.to_json(), BASELINE.model_dump(mode="json"))

    def known() -> Any:
        fresh = SweepStore(str(tmp_path), "whole")
        search = _begin(plan, Driver(fresh, lambda _: None), BASELINE, spec)
        assert search.table() == fresh.bounds()
        return fresh.bounds()

    record(job(), outcome(0.75), store, started_at=NOW)
    first = known()
    assert first.num_rows == 2
    record(job(2), outcome(0.5), SweepStore(str(tmp_path), "whole"), started_at=NOW)
    assert known() != first


def tree(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_a_round_in_vain_leaves_what_there_is(tmp_path: Path) -> None:
    store = SweepStore(str(tmp_path), "whole")
    record(job(), outcome(0.75), store, started_at=NOW)
    record(job(2), replace(outcome(0.9), steps=20), store, started_at=NOW)
    assert told(store) == {0.75}
    record(job(3), outcome(0.5), store, started_at=NOW)
    assert told(store) == {0.5}, "what is replaced here is read again here"
