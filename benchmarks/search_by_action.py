"""Does it pay to train a trial further? The certified search with and without that choice, the same number of steps.

    python benchmarks/search_by_action.py [--problems 5] [--trials 12] [--steps 20]
    python benchmarks/search_by_action.py --box [--problems 5] [--trials 12] [--steps 200] [--tolerance 0.1]

Random exact problems with two thresholds, as in ``benchmarks/certified_search.py``; every trial is trained, for so few
steps that it ends well short of the optimum of its multipliers. A round of a trial that is trained further counts as a
trial. Printed per problem: the share of 200 random thresholds of the box that mixtures of the trials reach, and the
worst excess over the exact least KL where both searches reach them, nats, from measured rewards and KL.

With ``--box`` the same problems to a tolerance, by trials of full length and by one adapter that is asked instead,
either trained further where its search wants it: what each ran, the gap of its search, its worst excess, and the CPU
time of training, evaluations and answers.
"""

import argparse
import os
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from certified_search import FloatArray, Judge, Setting, draw

from orchestrator.execution.asking import put
from orchestrator.execution.sampling.baseline import Jobs
from orchestrator.execution.trials.ports import StorePort
from orchestrator.execution.trials.rounds import better, distance_of
from orchestrator.execution.trials.trial import record
from orchestrator.frontier.bounds import Bounds, FrontierPoint
from orchestrator.frontier.bounds.trial_points import bounded, points_of
from orchestrator.frontier.trials import Trials
from orchestrator.plan import base_config, constrained_trial, make_job, make_plan
from orchestrator.results.schema import trial_table
from orchestrator.results.store import SweepStore
from orchestrator.search.base import Question, SearchContext
from orchestrator.search.certified import CertifiedSearch, TrialRecord
from orchestrator.search.several import build_search
from orchestrator.spec import SweepSpec, asks_box, dump_spec, parse_spec
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO


@dataclass(kw_only=True)
class Trained:
    """What became of one trial."""

    port: LocalTrialIO = field(default_factory=LocalTrialIO)
    rounds: int = 0
    row: dict[str, object] = field(default_factory=dict)
    point: FrontierPoint | None = None
    before: float | None = None
    """Distance before the last round."""

    @property
    def distance(self) -> float | None:
        """Nats, where it has succeeded."""
        return self.row["distance"] if self.row.get("status") == "succeeded" else None  # type: ignore[return-value]


def spec_of(setting: Setting, **keys: Any) -> SweepSpec:
    """Return the spec of a certified search over the box of a setting; ``keys`` are added."""
    ends = zip(setting.problem.rewards, setting.box.low, setting.box.high, strict=True)
    written = {
        "name": "searched",
        "model": {"mixture": setting.problem.mixture.model_dump(mode="json")},
        "constraints": [
            {
                "reward": {reward.kind: reward.model_dump(mode="json")["parameters"]},
                "name": reward.name,
                "at_least": {"range": [float(low), float(high)]},
                "unit": "absolute",
            }
            for reward, low, high in ends
        ],
        "evaluation": {"images": 8192},
    }
    return parse_spec(yaml.safe_dump(written | keys))


def searched(setting: Setting, *, trials: int, steps: int, rounds: int) -> tuple[list[FrontierPoint], int]:
    """Run the search; returns its models and how many rounds went to trials that had finished."""
    chosen = {"kind": "certified", "tolerance": 1e-3, "max_trials": trials, "rounds": rounds}
    spec = spec_of(setting, search=chosen, training={"steps": steps})
    base, baseline = base_config(spec), setting.problem.baseline()
    search = CertifiedSearch(
        setting.box, setting.pretrained, tolerance=1e-3, max_trials=trials, retries=0, rounds=rounds
    )
    known: dict[tuple[float, ...], Trained] = {}
    again = 0
    while (asked := search.ask()) is not None:
        names = dict(zip(setting.problem.names, asked.tolist(), strict=True))
        trial = known.setdefault(tuple(asked.tolist()), Trained())
        trial.rounds += 1
        again += trial.rounds > 1
        job = make_job(constrained_trial(base, names, seed=0), baseline)
        job = job.model_copy(update={"rounds": trial.rounds, "continuable": rounds > 1})
        outcome = run_trial(job, trial.port)
        trial.before = trial.distance
        now = datetime.now(UTC)
        if trial.rounds == 1 or better(job.config, outcome, trial.row):
            table = trial_table(
                job, outcome, started_at=now, finished_at=now, distance=distance_of(job, outcome)
            )
            [trial.row] = table.to_pylist()
            [trial.point] = points_of(Trials.of(table, job.config), bounded(job.config))
        search.tell(
            TrialRecord(
                thresholds=asked,
                point=trial.point,
                rounds=trial.rounds,
                distance=trial.distance,
                before=trial.before,
            )
        )
    return [trial.point for trial in known.values() if trial.point is not None], again


@dataclass(kw_only=True)
class Driven:
    """What a sweep came to."""

    points: list[FrontierPoint]
    said: str
    """What was run, and the gap of the search."""
    seconds: float
    """Of a core."""


def driven(spec: SweepSpec, setting: Setting) -> Driven:
    """Run a sweep to the end of its search, in this process."""
    baseline, base = setting.problem.baseline(), base_config(spec)
    plan, ports = make_plan(spec), defaultdict[str, LocalTrialIO](LocalTrialIO)
    with tempfile.TemporaryDirectory() as folder:
        store = SweepStore(folder, spec.name)
        store.create(dump_spec(spec), plan.to_json(), baseline.model_dump(mode="json"))
        search = build_search(
            SearchContext(
                spec=spec,
                plan=plan,
                baseline=baseline,
                pretrained={name: (known.mean, 0.0) for name, known in baseline.rewards.items()},
                answers=lambda name: store.answers(name).to_pylist(),
            )
        )
        jobs = Jobs(store, baseline, continuable=search.continues)
        began, ran = time.process_time(), Counter[str]()
        while (trial := search.propose()) is not None:
            if isinstance(trial, Question):
                job = make_job(trial, baseline)
                put(trial.thresholds, job, StorePort(job, store), gpus=0.0)
                search.answered(trial, store.answers(trial.trial_id).to_pylist()[-1])
                continue
            job = jobs(trial)
            ran["trials" if job.rounds == 1 else "rounds more"] += 1
            record(job, run_trial(job, ports[trial.trial_id]), store, started_at=datetime.now(UTC))
            store.reread([trial.trial_id])
            search.observe(trial, store.trial(trial.trial_id))
        seconds, table, gaps = time.process_time() - began, store.answers(), search.table()
        if asks_box(spec):
            ran["answers"] = table.num_rows
        else:
            table = store.trials()
    assert gaps is not None, "of a certified search"
    rewards = np.column_stack([table[f"reward_{name}"].to_numpy() for _, name in bounded(base)])
    points = [
        FrontierPoint(rewards=row, kl=kl) for row, kl in zip(rewards, table["kl"].to_pylist(), strict=True)
    ]
    shown = ", ".join(f"{count} {what}" for what, count in ran.items())
    return Driven(points=points, said=f"{shown}, gap {gaps['gap'][-1].as_py():.3f}", seconds=seconds)


def compare_with_box(setting: Setting, seed: int, asked: argparse.Namespace) -> tuple[float, ...]:
    """Search by trials and by one adapter to the same tolerance; returns excess and seconds of both."""
    usual = {"kind": "certified", "tolerance": asked.tolerance, "max_trials": asked.trials}
    training = {"steps": asked.steps or 200}
    box = {"frontier": {"points": 5, "rounds": asked.rounds}}
    judge = Judge.of(setting, seed, np.inf)
    both = [
        driven(spec_of(setting, search=usual | {"rounds": asked.rounds}, training=training), setting),
        driven(spec_of(setting, search=usual, methods=[box], training=training), setting),
    ]
    costs = [
        Bounds([setting.pretrained, *found.points], setting.box).upper(judge.thresholds) for found in both
    ]
    reached = np.isfinite(costs).all(axis=0)
    excess = [float((cost[reached] - judge.least[reached]).max()) for cost in costs]
    for name, found, worst in zip(("trials", "one adapter"), both, excess, strict=True):
        print(
            f"problem {seed}, {name}: {found.said}, worst excess {worst:.3f} nats, {found.seconds:.0f} s",
            flush=True,
        )
    return (*excess, *(found.seconds for found in both))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first problem, with --box")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, help="of a round: 20, or 200 with --box")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--constraints", type=int, default=2)
    parser.add_argument(
        "--box", action="store_true", help="against one adapter that is asked in place of trials"
    )
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the searches with --box, nats")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.box:
        figures = [
            compare_with_box(draw(seed, asked.constraints, out_of_reach=False), seed, asked)
            for seed in range(asked.first, asked.first + asked.problems)
        ]
        trials, box, by_trials, by_box = np.median(np.array(figures), axis=0)
        print(f"medians: worst excess {trials:.3f} and {box:.3f} nats, {by_trials:.0f} and {by_box:.0f} s")
        return
    worst: list[tuple[float, float]] = []
    for seed in range(asked.problems):
        setting = draw(seed, 2, out_of_reach=False)
        judge = Judge.of(setting, seed, np.inf)
        costs: list[FloatArray] = []
        continued = 0
        for rounds in (1, asked.rounds):
            points, continued = searched(setting, trials=asked.trials, steps=asked.steps or 20, rounds=rounds)
            bare = [FrontierPoint(rewards=point.rewards, kl=point.kl) for point in points]
            costs.append(Bounds([setting.pretrained, *bare], setting.box).upper(judge.thresholds))
        both = np.isfinite(costs[0]) & np.isfinite(costs[1])
        excess = [float((cost[both] - judge.least[both]).max()) for cost in costs]
        reached = [float(np.isfinite(cost).mean()) for cost in costs]
        worst.append((excess[0], excess[1]))
        print(
            f"problem {seed}: thresholds only {excess[0]:.3f} (reached {reached[0]:.0%}), by action {excess[1]:.3f} "
            f"(reached {reached[1]:.0%}), {continued} of {asked.trials} rounds continue a trial",
            flush=True,
        )
    medians = np.median(np.array(worst), axis=0)
    print(f"median worst excess: thresholds only {medians[0]:.3f}, by action {medians[1]:.3f} nats")


if __name__ == "__main__":
    main()
