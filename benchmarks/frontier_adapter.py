"""Does one trial answer every threshold of a box at the least KL? Random exact mixtures, one core.

    python benchmarks/frontier_adapter.py [--problems 12] [--first 200] [--answers 50] [--steps 400]
    python benchmarks/frontier_adapter.py --pipeline [--thresholds 9] [--seeds 3] [--work DIR]
    python benchmarks/frontier_adapter.py --composition [--steps 200] [--alone 100] [--images 256] [--work DIR]

Problems take turns of two and three constraints, linear and quadratic rewards, two to five components with unequal
covariances. A box goes from 0.3 of the gains of a random optimum, whose least KL is between 0.4 and 2 nats, to those
gains. Printed per problem: CPU seconds of the trial for the box, of it per constrained trial at the tightest thresholds
with the settings of a sweep (600 steps at most, evaluation included), of one answer; then for random thresholds the KL
over the exact least KL at the thresholds, and over that at the rewards reached, which no policy can be below, and how
many are feasible at one-sided 95 % on held-out samples.

With ``--composition`` instead: one student for all weights of the adapters of ``sweeps/compose_adapters.yaml``, beside
students trained alone at three weights, and the composition itself; KL to each adapter, and CPU seconds of training and
of one answer. Pieces are stored as with ``--pipeline``.

It ends with 1 where the excess is above 0.05 nats in the mean or 0.15 at worst, where over 1 % of answers are
infeasible, or where a box took more than 2 constrained trials.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import frontier_pipeline
import numpy as np
import torch
import yaml

from orchestrator.frontier.problems.chosen import exact_problem
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import parse_spec
from trainers.alignment.boxed.stored import open_stored
from trainers.composition.networks.paths import PathProduct
from trainers.composition.networks.student import Student
from trainers.composition.networks.trial import NetworkTrial
from trainers.composition.state import Ascent
from trainers.config import TrialConfig, TrialJob
from trainers.evaluate import evaluate
from trainers.models.build import build_policy
from trainers.problem import run_trial
from trainers.rewards.base import build_rewards
from trainers.trial_io import LocalTrialIO
from trainers.types import FloatArray
from trainers.workers.collective import Collective

COMPOSED = Path(__file__).parents[1] / "sweeps" / "compose_adapters.yaml"
ASKED = ((0.5, 0.0, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.2, 0.1, 0.7))
"""Weights of the adapters: about those that are found, equal ones, and others."""
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


def compose(pieces: frontier_pipeline.Pieces, steps: int, alone: int, images: int) -> None:
    """Print how near students for all weights, and for one each, are to every model, and what they took."""
    torch.set_num_threads(1)
    document = yaml.safe_load(COMPOSED.read_text(encoding="utf-8"))
    document |= {"evaluation": {"images": images}, "distillation": {"steps": alone}}
    names = list(document["models"])
    fixed = [{"weighted": {"weights": dict(zip(names, map(float, w), strict=True))}} for w in ASKED]
    document["methods"] = [{"frontier": {"steps": steps}}, *fixed]
    whole, *single = [trial.config for trial in make_plan(parse_spec(json.dumps(document))).trials]

    def student(config: TrialConfig, name: str, weights: FloatArray) -> tuple[Student, float]:
        models = NetworkTrial.build(config, "cpu")
        made = Student.fresh(config, models.chains, models.judges)

        def train() -> dict[str, Any]:
            io = LocalTrialIO()
            made.train(weights, io, Ascent(weights=weights, tilt=np.zeros(0)))
            pieces.files(name, made.chains.student_files)
            return {}

        spent = pieces(f"{name}-trained", train)["cpu"]
        made.chains.load_student({k: v for k, v in pieces.files(name).items() if k.endswith(".safetensors")})
        return made, spent

    def composed(measure: PathProduct, weights: FloatArray) -> dict[str, Any]:
        tilt, seed = np.zeros(measure.judge.count), whole.evaluation.seed
        found = measure(weights, tilt, images, seed, held_out=True)
        return dict(zip(names, found.kl.tolist(), strict=True))

    def told(made: Student, name: str, weights: FloatArray) -> tuple[str, float]:
        found = pieces(
            name,
            lambda: {k: v.mean for k, v in made.answer(weights, lambda _: None).constituents.items()},
        )
        spent = found.pop("cpu")
        return "  ".join(f"{found[model]:6.3f}" for model in names), spent

    one, seconds = student(whole, f"all-{steps}", np.full(len(names), 1 / len(names)))
    print(f"KL to {', '.join(names)}, nats, {images} held-out images")
    trained, took = [], []
    for place, (weights, config) in enumerate(zip(map(np.array, ASKED), single, strict=True)):
        other, spent = student(config, f"alone-{alone}-{place}", weights)
        trained.append(spent)
        measure = PathProduct(other.chains, other.judges, driver="fkc")
        product = pieces(f"composition-{images}-{place}", partial(composed, measure, weights))
        rows = {
            "composition": "  ".join(f"{product[model]:6.3f}" for model in names),
            "alone": told(other, f"alone-{alone}-{images}-{place}", weights)[0],
        }
        rows["for all"], answer = told(one, f"all-{steps}-{images}-{place}", weights)
        took.append(answer)
        for name, row in rows.items():
            print(f"{' '.join(f'{w:.2f}' for w in weights)}  {name:12s} {row}", flush=True)
    print(
        f"CPU seconds: one for all {seconds:.0f} in {steps} steps, alone {np.mean(trained):.0f} in {alone} on average "
        f"({seconds / np.mean(trained):.2f} of them); an answer {np.mean(took):.0f}"
    )


def exact(arguments: argparse.Namespace) -> int:
    """Run random exact problems and print the table; returns 1 where the bars are not met."""
    torch.set_num_threads(1)
    print(
        "problem  m  least | box s  per single  answer s | excess mean  worst  corner | reached  worst | feasible"
    )
    every, reached, shares = list[float](), list[float](), list[float]()
    feasible = asked = 0
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
    return int(not good)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--first", type=int, default=200, help="seed of the first problem")
    parser.add_argument("--answers", type=int, default=50, help="random thresholds of each box")
    parser.add_argument("--steps", type=int, help="of a trial for a box; 400, of the pipeline 150")
    parser.add_argument("--batch", type=int, default=8, help="of a step of the pipeline's trial for a box")
    parser.add_argument("--pipeline", action="store_true", help="the embedded pipeline: frontier_pipeline.py")
    parser.add_argument("--composition", action="store_true", help="all weights of a composition")
    parser.add_argument("--alone", type=int, default=100, help="steps of a student for one weight")
    parser.add_argument("--images", type=int, default=256, help="of an answer of a composition")
    parser.add_argument("--thresholds", type=int, default=9, help="of the pipeline, over its box")
    parser.add_argument("--seeds", type=int, default=3, help="of the pipeline")
    parser.add_argument(
        "--work", type=Path, default=Path("results/frontier-pipeline"), help="where pieces are kept"
    )
    arguments = parser.parse_args()
    if arguments.pipeline:
        trained = {"steps": arguments.steps or 150, "batch_per_worker": arguments.batch}
        sys.exit(frontier_pipeline.main(arguments.work, arguments.thresholds, arguments.seeds, trained))
    if arguments.composition:
        pieces = frontier_pipeline.Pieces(arguments.work)
        compose(pieces, arguments.steps or 200, arguments.alone, arguments.images)
        return
    arguments.steps = arguments.steps or 400
    sys.exit(exact(arguments))


if __name__ == "__main__":
    main()
