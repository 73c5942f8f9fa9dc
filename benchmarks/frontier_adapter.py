"""Does one trial answer every threshold of a box at the least KL? Random exact mixtures, one core.

    python benchmarks/frontier_adapter.py [--problems 12] [--first 200] [--answers 50] [--steps 400]
    python benchmarks/frontier_adapter.py --pipeline [--thresholds 9] [--seeds 3] [--work DIR]

Problems take turns of two and three constraints, linear and quadratic rewards, two to five components with unequal
covariances. A box goes from 0.3 of the gains of a random optimum, whose least KL is between 0.4 and 2 nats, to those
gains. Printed per problem: CPU seconds of the trial for the box, of it per constrained trial at the tightest thresholds
with the settings of a sweep (600 steps at most, evaluation included), of one answer; then for random thresholds the KL
over the exact least KL at the thresholds, and over that at the rewards reached, which no policy can be below, and how
many are feasible at one-sided 95 % on held-out samples.

It ends with 1 where the excess is above 0.05 nats in the mean or 0.15 at worst, where over 1 % of answers are
infeasible, or where a box took more than 2 constrained trials.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import frontier_pipeline
import numpy as np
import torch

from orchestrator.frontier.problems.chosen import exact_problem
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.alignment.boxed.stored import open_stored
from trainers.config import TrialConfig, TrialJob
from trainers.evaluate import evaluate
from trainers.models.build import build_policy
from trainers.problem import run_trial
from trainers.rewards.base import build_rewards
from trainers.trial_io import LocalTrialIO
from trainers.types import FloatArray
from trainers.workers.collective import Collective

MEAN, WORST, COMPUTE, FEASIBLE = 0.05, 0.15, 2.0, 0.99
_LOOSEST = 0.3
Result = TypeVar("Result")


def random_box(seed: int, constraints: int, steps: int) -> tuple[TrialJob, TrialJob, ExactProblem]:
    """Draw a problem: the trial for its box, a constrained one at the tightest thresholds, and what is exact."""
    generator = np.random.default_rng((seed, constraints))
    while True:
        count, dimension = int(generator.integers(2, 6)), 2
        roots = 0.45 * generator.normal(size=(count, dimension, dimension))
        document: dict[str, Any] = {
            "name": f"box-{seed}",
            "model": {
                "mixture": {
                    "means": generator.uniform(-2, 2, (count, dimension)).tolist(),
                    "weights": generator.dirichlet(np.full(count, 3.0)).tolist(),
                    "covariances": (roots @ np.swapaxes(roots, 1, 2) + 0.08 * np.eye(dimension)).tolist(),
                }
            },
            "constraints": [
                {"reward": _reward(generator, number % 2 == 0), "name": f"r{number}", "at_least": 0.0}
                for number in range(constraints)
            ],
        }
        problem = exact_problem(_config(document))
        assert problem is not None
        known = problem.baseline().rewards
        top = problem.tilted_means({n: float(generator.uniform(0.3, 2)) / known[n].std for n in known})
        gains = {name: (top[name] - known[name].mean) / known[name].std for name in known}
        if min(gains.values()) > 0.25 and 0.4 <= problem.least_kl(top).kl <= 2.0:
            break
    boxed, single = json.loads(json.dumps(document)), document
    for box, point in zip(boxed["constraints"], single["constraints"], strict=True):
        name = point["name"]
        low = known[name].mean + _LOOSEST * (top[name] - known[name].mean)
        box["at_least"], point["at_least"] = {"range": [low, top[name]]}, top[name]
    boxed |= {"methods": [{"frontier": {"points": 2}}], "training": {"steps": steps}}
    baseline = problem.baseline()
    jobs = [make_job(make_plan(parse_spec(json.dumps(d))).trials[0], baseline) for d in (boxed, single)]
    return jobs[0], jobs[1], problem


def _reward(generator: np.random.Generator, linear: bool) -> dict[str, Any]:
    direction = generator.normal(size=2)
    if linear:
        return {"linear": {"direction": (direction / np.linalg.norm(direction)).tolist()}}
    center, scale = generator.uniform(-1.5, 1.5, 2), float(generator.uniform(0.2, 0.8))
    return {"quadratic": {"center": center.tolist(), "scale": scale}}


def _config(document: dict[str, Any]) -> TrialConfig:
    return make_plan(parse_spec(json.dumps(document))).trials[0].config


def _timed(action: Callable[[], Result]) -> tuple[Result, float]:
    began = time.process_time()
    found = action()
    return found, time.process_time() - began


def _reference(config: TrialConfig) -> dict[str, FloatArray]:
    """Sample the mixture on the noise of evaluations, as a sweep does once."""
    drawn = evaluate(
        build_policy(config, "cpu"),
        build_rewards(config.rewards, None),
        samples=config.evaluation.baseline_images,
        seed=config.evaluation.seed,
        collective=Collective(),
        reference=True,
    )
    return dict(drawn.rewards)


def main() -> None:
    """Run the problems and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--first", type=int, default=200, help="seed of the first problem")
    parser.add_argument("--answers", type=int, default=50, help="random thresholds of each box")
    parser.add_argument("--steps", type=int, help="of a trial for a box; 400, of the pipeline 180")
    parser.add_argument("--pipeline", action="store_true", help="the embedded pipeline: frontier_pipeline.py")
    parser.add_argument("--thresholds", type=int, default=9, help="of the pipeline, over its box")
    parser.add_argument("--seeds", type=int, default=3, help="of the pipeline")
    parser.add_argument(
        "--work", type=Path, default=Path("results/frontier-pipeline"), help="where pieces are kept"
    )
    arguments = parser.parse_args()
    if arguments.pipeline:
        steps = arguments.steps or 180
        sys.exit(frontier_pipeline.main(arguments.work, arguments.thresholds, arguments.seeds, steps))
    arguments.steps = arguments.steps or 400
    torch.set_num_threads(1)
    print(
        "problem  m  least | box s  per single  answer s | excess mean  worst  corner | reached  worst | feasible"
    )
    every, reached, shares, feasible, asked = [], [], [], 0, 0
    for number in range(arguments.problems):
        seed = arguments.first + number
        constraints = 2 + seed % 2
        job, single, problem = random_box(seed, constraints, arguments.steps)
        reference = _reference(job.config)
        one, one_seconds = _timed(lambda: run_trial(single, LocalTrialIO(pretrained=reference)))  # noqa: B023 - now
        whole, seconds = _timed(lambda: run_trial(job, LocalTrialIO(pretrained=reference)))  # noqa: B023 - now
        assert one.status == whole.status == "succeeded", (one.error, whole.error)
        answering = open_stored(job, whole.adapter, reference)
        box = answering.frontier.box
        places = np.random.default_rng(seed).uniform(size=(arguments.answers, constraints))
        places = np.vstack([np.ones(constraints), places])  # the tightest corner too
        excess, own, held, took = [], [], 0, 0.0
        for place in places:
            reply, spent = _timed(lambda: answering.reply(box.loosest + place * (box.tightest - box.loosest)))  # noqa: B023
            took += spent
            answer = reply.answer
            kl, means = answer.kl.mean, {name: found.mean for name, found in answer.rewards.items()}
            excess.append(kl - problem.least_kl(answer.thresholds).kl)
            own.append(kl - problem.least_kl(means).kl)
            held += answer.feasible
        every, reached = [*every, *excess], [*reached, *own]
        feasible, asked = feasible + held, asked + len(places)
        shares.append(seconds / one_seconds)
        print(
            f"{seed:7d} {constraints:2d} {problem.least_kl(job.tightest).kl:6.3f} | {seconds:5.1f} {shares[-1]:11.2f} "
            f"{took / len(places):9.2f} | {np.mean(excess):11.3f} {max(excess):6.3f} {excess[0]:7.3f} | "
            f"{np.mean(own):7.3f} {max(own):6.3f} | {held} of {len(places)}",
            flush=True,
        )
    print(
        f"{asked} answers: excess over the least KL {np.mean(every):.3f} nats in the mean, {max(every):.3f} at worst; "
        f"at the rewards reached {np.mean(reached):.3f} and {max(reached):.3f}; feasible {feasible}; a box took "
        f"{np.mean(shares):.2f} constrained trials, {max(shares):.2f} at most"
    )
    worst = max(*every, *reached)
    mean = max(np.mean(every), np.mean(reached))
    good = mean <= MEAN and worst <= WORST and feasible >= FEASIBLE * asked and max(shares) <= COMPUTE
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
