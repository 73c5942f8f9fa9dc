"""How close do trained trials come to the exact frontier? Random mixtures, default training settings, one core.

    python benchmarks/mixture_frontier.py [--problems 12] [--first 100] [--dimension 2] [--primal log_variance]
        [--duals nu_pi --rate 0.3 --start 0] [--flow]

Each problem has two to five components with unequal covariances, a linear and a quadratic reward, and
thresholds whose least KL is between 0.2 and 2 nats. Printed per problem: the trial's KL over the exact least
KL at the rewards it reached, its averaged multipliers against the exact ones at the thresholds, and seconds.
"""

import argparse
import json
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from orchestrator.frontier.problems.chosen import exact_problem
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import PlannedTrial, make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.config import SamplingConfig
from trainers.diffusion.schedule import Levels
from trainers.models import mixture_policy
from trainers.models.mixture import MixtureModel
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO


def random_problem(
    seed: int, dimension: int, primal: str = "log_variance", duals: Mapping[str, Any] | None = None
) -> tuple[PlannedTrial, ExactProblem]:
    """Draw mixtures, rewards and thresholds until the least KL is between 0.2 and 2 nats."""
    generator = np.random.default_rng(seed)
    while True:
        count = int(generator.integers(2, 6))
        roots = 0.45 * generator.normal(size=(count, dimension, dimension))
        direction = generator.normal(size=dimension)
        weights = generator.dirichlet(np.full(count, 3.0))
        document = {
            "name": f"random-{seed}",
            "training": {"primal": primal},
            "duals": dict(duals or {}),
            "model": {
                "mixture": {
                    "weights": weights.tolist(),
                    "means": generator.uniform(-2, 2, (count, dimension)).tolist(),
                    "covariances": (roots @ np.swapaxes(roots, 1, 2) + 0.08 * np.eye(dimension)).tolist(),
                }
            },
            "constraints": [
                {
                    "reward": {"linear": {"direction": (direction / np.linalg.norm(direction)).tolist()}},
                    "name": "right",
                    "at_least": 0.0,
                },
                {
                    "reward": {
                        "quadratic": {
                            "center": generator.uniform(-1.5, 1.5, dimension).tolist(),
                            "scale": float(generator.uniform(0.2, 0.8)),
                        }
                    },
                    "name": "near",
                    "at_least": -1.0,
                },
            ],
        }
        problem = exact_problem(_only_trial(document).config)
        assert problem is not None
        baseline = problem.baseline().rewards
        prices = {name: float(generator.uniform(0, 2)) / baseline[name].std for name in ("right", "near")}
        means = problem.tilted_means(prices)
        kl = sum(prices[name] * means[name] for name in prices) - problem.log_partition(prices)
        if 0.2 <= kl <= 2.0 and all(means[name] > baseline[name].mean for name in prices):
            for constraint in document["constraints"]:
                constraint["at_least"] = means[constraint["name"]]
            return _only_trial(document), problem


def _only_trial(document: dict) -> PlannedTrial:
    return make_plan(parse_spec(json.dumps(document))).trials[0]


def main() -> None:
    """Run the problems and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--first", type=int, default=100, help="seed of the first problem")
    parser.add_argument("--dimension", type=int, default=2)
    parser.add_argument("--primal", default="log_variance", help="estimator of the primal gradient")
    parser.add_argument("--duals", default="ascent", help="dual optimiser")
    parser.add_argument("--rate", type=float, default=0.1, help="of the dual optimiser")
    parser.add_argument(
        "--start", type=float, help="every first multiplier, nats per σ; by default previewed"
    )
    parser.add_argument("--flow", action="store_true", help="chains of rectified flow, x = (1 − s) x_0 + s ε")
    arguments = parser.parse_args()
    if arguments.flow:
        times = np.linspace(1.0, 1e-3, SamplingConfig().steps + 1)
        mixture_policy.MixtureModel = partial(MixtureModel, levels=Levels.flow(times))
    duals = {"kind": arguments.duals, "rate": arguments.rate}
    if arguments.start is not None:
        duals["start"] = arguments.start
    torch.set_num_threads(1)

    print("problem parts steps     KL /least feasible     multipliers          exact  error     s")
    ratios, errors, seconds, feasible = [], [], [], 0
    for seed in range(arguments.first, arguments.first + arguments.problems):
        trial, problem = random_problem(seed, arguments.dimension, arguments.primal, duals)
        job = make_job(trial, problem.baseline())
        began = time.monotonic()
        outcome = run_trial(job, LocalTrialIO())
        took = time.monotonic() - began
        assert outcome.kl is not None, outcome.error
        least = problem.least_kl({name: reward.mean for name, reward in outcome.rewards.items()}).kl
        exact = problem.least_kl(job.thresholds).multipliers
        names = ("right", "near")
        judged = [abs(outcome.multipliers[n] / exact[n] - 1) for n in names if exact[n] > 0.5]
        ratios.append(outcome.kl.mean / least)
        errors += judged
        seconds.append(took)
        feasible += bool(outcome.feasible)
        found = " ".join(f"{outcome.multipliers[n]:6.2f}" for n in names)
        right = " ".join(f"{exact[n]:6.2f}" for n in names)
        worst = f"{max(judged):6.1%}" if judged else "     -"
        print(
            f"{seed:7d} {len(trial.config.model.exact.weights):5d} {outcome.steps:5d} {outcome.kl.mean:6.3f} "
            f"{ratios[-1]:6.3f} {outcome.feasible!s:>8}  {found:>14} {right:>14} {worst} {took:5.1f}",
            flush=True,
        )
    print(
        f"KL / least KL: median {np.median(ratios):.3f}, worst {max(ratios):.3f}; multipliers above 0.5: median error "
        f"{np.median(errors):.1%}, worst {max(errors):.1%}; feasible {feasible} of {len(ratios)}; "
        f"seconds: median {np.median(seconds):.1f}, worst {max(seconds):.1f}"
    )


if __name__ == "__main__":
    main()
