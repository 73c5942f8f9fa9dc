"""Shares of samples come together, rewards that measure nothing are refused, jobs start from the samples."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from orchestrator.errors import SpecError
from orchestrator.execution.sampling import baseline
from orchestrator.execution.sampling.baseline import Jobs, _check, _worthwhile, draw_samples, merged
from orchestrator.execution.trials.trial import absolute, failed
from orchestrator.plan import make_job, make_plan
from orchestrator.results.sample_cache import CachedSamples, SampleCache
from orchestrator.results.schema import samples_table, trial_table
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import parse_spec
from trainers.alignment.start import start_of
from trainers.config import BaselineStatistics
from trainers.problem import statistics
from trainers.types import Evaluation, FloatArray

SPEC = """\
name: demo
model: {pretrained: owner/name}
prompts: {train: [a cat], evaluate: [a dog]}
constraints:
  - {reward: saturation, at_least: 0.5, unit: sigma}
  - {reward: brightness, at_least: 0.25, unit: sigma}
methods: [constrained, {weighted: {weights: equal, scale: 2.0}}]
"""


def evaluation(rewards: dict[str, FloatArray], *, embeddings: FloatArray | None = None) -> Evaluation:
    count = len(next(iter(rewards.values())))
    return Evaluation(
        kl=np.zeros(count),
        rewards=rewards,
        seeds=np.arange(count),
        prompts=("a cat",) * count,
        embeddings=embeddings,
    )


def drawn(count: int = 4096) -> Evaluation:
    rng = np.random.default_rng(0)
    return evaluation({"saturation": rng.normal(0.4, 0.1, count), "brightness": rng.normal(0.5, 0.2, count)})


# ------------------------------------------------------------------------------------------- kept samples


def test_samples_are_used_again_with_their_date_and_drawn_anew_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(parse_spec(SPEC))
    calls = []

    def sample(*_: object) -> tuple[dict[str, Evaluation], None]:
        calls.append(1)
        return {"train": drawn(256), "evaluate": drawn(256)}, None

    monkeypatch.setattr(baseline, "_sample", sample)
    cache, said = SampleCache(str(tmp_path)), io.StringIO()

    def draw(**options: bool) -> CachedSamples:
        console = Console(file=said, width=200)
        config = plan.trials[0].config
        placement: Any = None  # of workers, which the samples of this test need not
        return draw_samples(config, plan.resources, cache, placement, console, **options)

    first = draw()
    again = draw()
    assert len(calls) == 1
    assert again.drawn_at == first.drawn_at
    assert (
        f"using samples drawn on {first.drawn_at:%Y-%m-%d %H:%M} UTC (--fresh samples again)"
        in said.getvalue()
    )
    fresh = draw(fresh=True)
    assert len(calls) == 2
    assert fresh.drawn_at > first.drawn_at
    assert draw().drawn_at == fresh.drawn_at, "they take the place of the old ones"


# ------------------------------------------------------------------------------------------- shares


def test_shares_put_together_are_the_whole() -> None:
    rng = np.random.default_rng(0)
    rewards, embeddings = rng.normal(size=6), rng.normal(size=(6, 2))
    images = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    parts = []
    for rank in range(3):
        mine = np.arange(6) % 3 == rank
        part = evaluation({"saturation": rewards * mine}, embeddings=embeddings * mine[:, None])
        halved = ("halved",) if rank else ()
        parts.append(replace(part, images=images if rank == 0 else None, notes=halved))
    for order in (parts, parts[::-1]):
        whole = merged(order)
        assert np.array_equal(whole.rewards["saturation"], rewards)
        assert whole.embeddings is not None
        assert np.array_equal(whole.embeddings, embeddings)
        assert whole.images is images
        assert whole.notes == ("halved",)
        assert np.array_equal(whole.seeds, np.arange(6))
        assert whole.prompts == ("a cat",) * 6


def test_one_share_without_embeddings_is_itself() -> None:
    whole = merged([drawn()])
    assert np.array_equal(whole.rewards["saturation"], drawn().rewards["saturation"])
    assert whole.embeddings is None
    assert whole.images is None


MIXTURE = """\
name: demo
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints: [{reward: {linear: {direction: [1.0]}}, at_least: 0.5, unit: sigma}]
"""


@pytest.mark.parametrize(
    ("spec", "images", "workers"),
    [(SPEC, 16, 1), (SPEC, 96, 2), (SPEC, 2048, 42), (MIXTURE, 100_000, 1)],
)
def test_few_samples_are_drawn_by_few_workers(spec: str, images: int, workers: int) -> None:
    plan = make_plan(parse_spec(f"{spec}evaluation: {{images: 16, baseline_images: {images}}}\n"))
    assert _worthwhile(plan.base) == workers


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full(8, 0.3), "'saturation' has no spread over 8 samples .* 0.3"),
        (np.array([0.3]), "no spread over 1 samples"),
        (1000.0 + 1e-4 * np.arange(8), "no spread over 8 samples .* beyond rounding"),
        (np.array([0.3, np.nan, np.inf]), "not finite on 2 of 3 samples"),
    ],
)
def test_rewards_that_measure_nothing_are_refused(values: FloatArray, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        _check(evaluation({"saturation": values}))


def test_rewards_that_differ_are_taken() -> None:
    _check(drawn())
    _check(evaluation({"saturation": 1e-9 * np.arange(8)}))  # small, and all of it spread


# ------------------------------------------------------------------------------------------- jobs


def test_jobs_have_absolute_thresholds_and_first_multipliers(tmp_path: Path) -> None:
    plan = make_plan(parse_spec(SPEC, overrides=["duals.start=preview"]))
    samples = {"train": drawn(), "evaluate": drawn(16)}
    baseline = statistics(samples)
    store = SweepStore(str(tmp_path), "demo")
    store.write_baseline(samples_table(plan.trials[0].config, samples), baseline.model_dump(mode="json"), {})

    constrained, weighted = (Jobs(store, baseline)(trial) for trial in plan.trials)
    known = baseline.rewards["saturation"]
    assert constrained.thresholds["saturation"] == pytest.approx(known.mean + 0.5 * known.std)
    assert constrained.start is not None
    assert constrained == start_of(
        make_job(plan.trials[0], baseline), samples["train"].rewards, samples["train"].prompts
    )
    # Independent Gaussians shifted by b σ cost b²/2 nats, so the price of a threshold is about b nats per σ.
    assert constrained.start == pytest.approx([0.5, 0.25], abs=0.1)
    assert weighted.start == ()


def test_jobs_of_an_exact_model_find_their_multipliers_themselves(tmp_path: Path) -> None:
    trial = make_plan(parse_spec(SPEC)).trials[0]
    exact = BaselineStatistics(
        rewards=statistics({"train": drawn(), "evaluate": drawn()}).rewards, samples=None
    )
    assert Jobs(SweepStore(str(tmp_path), "demo"), exact)(trial) == make_job(trial, exact)


def test_rows_for_warm_starts_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(parse_spec(SPEC))
    baseline = statistics({"train": drawn(), "evaluate": drawn(16)})
    store, now = SweepStore(str(tmp_path), "demo"), datetime(2025, 1, 1, tzinfo=UTC)
    jobs, reads = Jobs(store, BaselineStatistics(rewards=baseline.rewards, samples=None)), []
    read = store._tables.of_trials
    monkeypatch.setattr(
        store._tables, "of_trials", lambda folder, ids: (reads.extend(ids), read(folder, ids))[1]
    )
    assert jobs._finished() == []
    for number, trial in enumerate(plan.trials, start=1):
        row = trial_table(make_job(trial, baseline), failed("made to"), started_at=now, finished_at=now)
        store.write_trial(row)
        assert {row["trial_id"] for row in jobs._finished()} == {t.trial_id for t in plan.trials[:number]}
    assert sorted(reads) == sorted(trial.trial_id for trial in plan.trials)


# ------------------------------------------------------------------------------------------- paths


def test_directories_of_a_spec_are_seen_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "sd").mkdir(parents=True)
    (tmp_path / "models" / "head.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    text = SPEC.replace("owner/name", "./models/sd").replace(
        "reward: brightness", "reward: {aesthetic: {model: models/head.safetensors}}"
    )
    config = make_plan(parse_spec(text)).trials[0].config
    seen = absolute(config)
    assert seen.model.pretrained == str(tmp_path / "models" / "sd")
    by_name = {reward.name: reward.parameters for reward in seen.rewards}
    assert by_name["aesthetic"]["model"] == str(tmp_path / "models" / "head.safetensors")
    assert by_name["aesthetic"]["clip"] == "openai/clip-vit-large-patch14", "a hub id stays what it is"
    assert by_name["saturation"] == {"aim": "high"}
    monkeypatch.chdir(tmp_path / "models")
    assert absolute(seen) == seen
    assert absolute(config) == config, "what is not there is left to the error of the one who loads it"
