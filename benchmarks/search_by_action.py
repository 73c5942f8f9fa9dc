"""Does it pay to train a trial further? The certified search with and without that choice, the same number of steps.

    python benchmarks/search_by_action.py [--problems 5] [--trials 12] [--steps 20]

Random exact problems with two thresholds, as in ``benchmarks/certified_search.py``; every trial is trained, for so few
steps that it ends well short of the optimum of its multipliers. A round of a trial that is trained further counts as a
trial. Printed per problem: the share of 200 random thresholds of the box that mixtures of the trials reach, and the
worst excess over the exact least KL where both searches reach them, nats, from measured rewards and KL.
"""

import argparse
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from certified_search import FloatArray, Judge, Setting, draw

from orchestrator.execution.trials.rounds import better
from orchestrator.execution.trials.trial import distance_of
from orchestrator.frontier.bounds import Bounds, FrontierPoint
from orchestrator.frontier.bounds.trial_points import bounded, points_of
from orchestrator.frontier.trials import Trials
from orchestrator.plan import base_config, constrained_trial, make_job
from orchestrator.results.schema import trial_table
from orchestrator.search.certified import CertifiedSearch, TrialRecord
from orchestrator.spec import parse_spec
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


def searched(setting: Setting, *, trials: int, steps: int, rounds: int) -> tuple[list[FrontierPoint], int]:
    """Run the search; returns its models and how many rounds went to trials that had finished."""
    mixture = setting.problem.mixture
    spec = parse_spec(
        yaml.safe_dump(
            {
                "name": "searched",
                "model": {"mixture": mixture.model_dump(mode="json")},
                "constraints": [
                    {
                        "reward": {reward.kind: reward.model_dump(mode="json")["parameters"]},
                        "name": reward.name,
                        "at_least": {"range": [float(low), float(high)]},
                        "unit": "absolute",
                    }
                    for reward, low, high in zip(
                        setting.problem.rewards, setting.box.low, setting.box.high, strict=True
                    )
                ],
                "search": {"kind": "certified", "tolerance": 1e-3, "max_trials": trials, "rounds": rounds},
                "training": {"steps": steps},
                "evaluation": {"images": 8192},
            }
        )
    )
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


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    worst: list[tuple[float, float]] = []
    for seed in range(asked.problems):
        setting = draw(seed, 2, out_of_reach=False)
        judge = Judge.of(setting, seed, np.inf)
        costs: list[FloatArray] = []
        continued = 0
        for rounds in (1, asked.rounds):
            points, continued = searched(setting, trials=asked.trials, steps=asked.steps, rounds=rounds)
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
