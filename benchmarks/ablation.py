"""What does each choice cost or bring? Short trials on the embedded pipeline, one choice changed at a time.

    python benchmarks/ablation.py [--only primal rest …] [--steps 60] [--seeds 2] [--json FILE]

Most choices are judged on a problem with fixed weights, where one number ranks them: the Lagrangian
``KL − Σ w_i (r_i − r_i of the pretrained model) / σ_i``, lower is better. It converges fast. The choice about the duals
has a constrained problem. Every trial is evaluated on held-out prompts and the noise of the pretrained model's own
samples; rewards are differences to those, in σ. ± is the standard error over samples, paired; "to base" is the
difference to the row marked with *, paired too where both sampled the same noise. With several seeds columns are
means over them, and "seeds" is the standard deviation of the Lagrangian (of the KL when constrained) from seed to seed.

KLs of samplers with other steps are not comparable as such; their rows say what the same weights buy. σ is that of the
base's own samples wherever it stands: a chain whose law is wider does not get more for it.
Two trials run side by side, one thread each.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from embedded_problem import REWARDS, THRESHOLDS, WEIGHTS, bare, job_of, planned, sampled, start_worker
from environment import child_environment

from orchestrator.plan import PlannedTrial
from trainers.config import TrialConfig, TrialJob
from trainers.duality.lagrangian import KL
from trainers.evaluate import estimate
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, FloatArray, TrialOutcome

Sections = dict[str, dict[str, Any]]
LAGRANGIAN = "lagrangian"
BASE_SAMPLING = {"steps": 8, "rest": 2}
BASE_CHAIN = "8 steps, eta 1"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One value of a choice."""

    choice: str
    label: str
    sections: Sections = field(default_factory=dict)
    """Of the spec, where they differ from the base."""
    constrained: bool = False


def primal(label: str, name: str, **parameters: Any) -> Variant:
    """Return an estimator of the primal gradient."""
    training = {"primal": name, "primal_parameters": parameters}
    return Variant(choice="primal", label=label, sections={"training": training})


def chain(label: str, **sampling: Any) -> Variant:
    """Return a chain of the sampler."""
    return Variant(choice="chain", label=label, sections={"sampling": sampling})


def of(choice: str, section: str, key: str, *values: Any, constrained: bool = False) -> list[Variant]:
    """Return the values of one key of the spec; the first is the base."""
    return [
        Variant(
            choice=choice,
            label=f"{value}" + ("*" if value == values[0] else ""),
            sections={section: {key: value}},
            constrained=constrained,
        )
        for value in values
    ]


VARIANTS = [
    *of("rest", "sampling", "rest", 2, 0, 1, 3),
    *of("reference_gradient", "training", "reference_gradient", True, False),
    primal("reward_backprop*", "reward_backprop"),
    primal("truncated 1", "truncated_backprop", steps=1),
    primal("truncated 3", "truncated_backprop", steps=3),
    primal("truncated random 6", "truncated_backprop", steps=6, random=True),
    primal("low_variance", "low_variance"),
    primal("log_variance", "log_variance"),
    *of("sampling_steps", "sampling", "steps", 8, 6, 12),
    chain("8, leading, rest 2*"),
    chain("7, trailing, rest 1", steps=7, rest=1, spacing="trailing"),
    chain("5, second order", steps=5, rest=1, spacing="trailing", order=2),
    chain("7, second order", steps=7, rest=1, spacing="trailing", order=2),
    *of("learning_rate", "training", "learning_rate", 3e-3, 1e-3, 1e-2),
    *of("paired", "duals", "paired", True, False, constrained=True),
]
CHOICES = list(dict.fromkeys(variant.choice for variant in VARIANTS))


def trial_of(variant: Variant, seed: int, arguments: argparse.Namespace) -> PlannedTrial:
    """Return the trial: a variant that repeats the base has the base's id."""
    steps = arguments.constrained_steps if variant.constrained else arguments.steps
    base: Sections = {
        "sampling": BASE_SAMPLING,
        "training": {
            "steps": steps,
            "batch_per_worker": arguments.batch,
            "primal": "reward_backprop",
            "learning_rate": 3e-3,
        },
        "duals": {},
        "convergence": {"window": steps},  # every trial takes all its steps
        "evaluation": {"images": arguments.images},
    }
    sections = {name: values | variant.sections.get(name, {}) for name, values in base.items()}
    return planned(weights=None if variant.constrained else WEIGHTS, seed=seed, **sections)


def run(job: TrialJob, pretrained: Mapping[str, FloatArray]) -> TrialOutcome:
    """Run a trial, in a process of the pool."""
    outcome = run_trial(job, LocalTrialIO(pretrained=pretrained))
    evaluation = None if outcome.evaluation is None else bare(outcome.evaluation)
    return replace(outcome, evaluation=evaluation, adapter={}, history=())


def run_all(trials: Mapping[str, PlannedTrial]) -> dict[str, tuple[TrialJob, TrialOutcome]]:
    """Sample the pretrained model with every sampler, then run the trials, the long ones first."""
    began, finished = time.monotonic(), {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        chains = {BASE_CHAIN: planned(sampling=BASE_SAMPLING).config}
        chains |= {reference_chain(t.config): t.config for t in trials.values()}
        asked = {chain: pool.submit(sampled, config) for chain, config in chains.items()}
        samples = {chain: task.result() for chain, task in asked.items()}
        progress(began, "sampled the pretrained model")
        tasks: dict[Future[TrialOutcome], TrialJob] = {}
        for trial in sorted(trials.values(), key=work, reverse=True):
            drawn = samples[reference_chain(trial.config)]
            job = job_of(trial, drawn, unit=samples[BASE_CHAIN])
            tasks[pool.submit(run, job, drawn["evaluate"].rewards)] = job
        for task in as_completed(tasks):
            finished[tasks[task].trial_id] = (tasks[task], task.result())
            progress(began, f"{len(finished)} of {len(tasks)} trials")
    return finished


def reference_chain(config: TrialConfig) -> str:
    """Return what the pretrained model's samples depend on: where an adapter rests does not matter to them."""
    return config.sampling.model_copy(update={"rest": 0}).words


def work(trial: PlannedTrial) -> int:
    """Return about how much a trial has to compute."""
    config = trial.config
    passes = 2 if config.method == "weighted" else 3
    return config.training.steps * (passes * config.sampling.steps - config.sampling.rest)


def progress(began: float, text: str) -> None:
    """Say how far it is, beside the table."""
    print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)


# The table -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One variant: columns ``[n]`` of its evaluation, means over the seeds."""

    evaluation: Evaluation | None
    """``rewards`` are differences to the pretrained model in σ, beside the Lagrangian; None where a trial failed."""
    steps: int
    """Of the sampler: its noise."""
    multipliers: Mapping[str, float]
    """Nats per σ."""
    worst: float | None
    """Largest violation of a constrained variant, σ."""
    spread: float | None
    seconds: float
    errors: tuple[str, ...]


def judge(runs: Sequence[tuple[TrialJob, TrialOutcome]]) -> Judged:
    """Put the seeds of a variant together."""
    job = runs[0][0]
    deviations = {name: known.std for name, known in job.baseline.rewards.items()}
    seen = [columns(outcome.evaluation, deviations) for _, outcome in runs if outcome.evaluation is not None]
    errors = tuple(outcome.error for _, outcome in runs if outcome.error)
    weighted = job.config.method == "weighted"
    evaluation, spread = None, None
    if len(seen) == len(runs):
        mean = {name: np.mean([s.rewards[name] for s in seen], axis=0) for name in seen[0].rewards}
        evaluation = replace(seen[0], kl=np.mean([s.kl for s in seen], axis=0), rewards=mean)
        if len(seen) > 1:
            ranked = [(s.rewards[LAGRANGIAN] if weighted else s.kl).mean() for s in seen]
            spread = float(np.std(ranked, ddof=1))
    violations = [
        float(np.mean([outcome.violations[name] / deviations[name] for _, outcome in runs]))
        for name in REWARDS
        if not weighted and evaluation is not None
    ]
    return Judged(
        evaluation=evaluation,
        steps=job.config.sampling.steps,
        multipliers={
            name: float(np.mean([outcome.multipliers[name] * deviations[name] for _, outcome in runs]))
            for name in ([] if weighted else REWARDS)
        },
        worst=max(violations, default=None),
        spread=spread,
        seconds=float(np.mean([outcome.wall_seconds for _, outcome in runs])),
        errors=errors,
    )


def columns(evaluation: Evaluation, deviations: Mapping[str, float]) -> Evaluation:
    """Return an evaluation with rewards as differences to the pretrained model in σ, and the Lagrangian."""
    assert evaluation.reference is not None
    count = len(evaluation.kl)
    gains = {
        name: (evaluation.rewards[name] - evaluation.reference[name][:count]) / deviations[name]
        for name in REWARDS
    }
    value = evaluation.kl - sum(WEIGHTS[name] * gains[name] for name in REWARDS)
    return replace(evaluation, rewards=gains | {LAGRANGIAN: value}, reference=None)


def row(variant: Variant, judged: Judged, base: Judged) -> dict[str, Any]:
    """Return the figures of a variant."""
    found: dict[str, Any] = {"choice": variant.choice, "value": variant.label, "seconds": judged.seconds}
    if judged.evaluation is None:
        return found | {"error": "; ".join(judged.errors)}
    ranked = KL if variant.constrained else LAGRANGIAN
    found |= {
        name: measured(judged.evaluation, name)
        for name in (KL, *REWARDS, *([] if variant.constrained else [LAGRANGIAN]))
    }
    if base.evaluation is not None and judged is not base:
        found["to_base"] = difference(judged, base, ranked)
    found |= {"multipliers": judged.multipliers, "violation": judged.worst, "seeds": judged.spread}
    return found


def difference(judged: Judged, base: Judged, name: str) -> tuple[float, float]:
    """Return how much a column is above the base's, and the standard error."""
    assert judged.evaluation is not None
    assert base.evaluation is not None
    if judged.steps != base.steps:  # other noise
        (one, first), (two, second) = measured(judged.evaluation, name), measured(base.evaluation, name)
        return one - two, float(np.hypot(first, second))
    apart = column(judged.evaluation, name) - column(base.evaluation, name)
    return measured(replace(judged.evaluation, rewards={"apart": apart}), "apart")


def measured(evaluation: Evaluation, name: str) -> tuple[float, float]:
    """Return a mean and its standard error."""
    found = estimate(evaluation, name)
    return found.mean, found.error


def column(evaluation: Evaluation, name: str) -> FloatArray:
    """Return KL, a gain or the Lagrangian, ``[n]``."""
    return evaluation.kl if name == KL else evaluation.rewards[name]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table, one block for each choice."""
    heads = ("KL, nats", *(f"{name}, σ" for name in REWARDS), "Lagrangian", "to base")
    print(
        f"{'':20}"
        + "".join(f"{head:>18}" for head in heads)
        + f"{'seeds':>7}{'s':>6}  multipliers, worst violation"
    )
    for number, line in enumerate(rows):
        if number == 0 or rows[number - 1]["choice"] != line["choice"]:
            print(line["choice"])
        print(f"  {line['value']:18}", end="")
        if "error" in line:
            print(f"  {line['error'][:150]}")
            continue
        for name in (KL, *REWARDS, LAGRANGIAN, "to_base"):
            print(f"{plus_minus(line.get(name)):>18}", end="")
        spread = "-" if line["seeds"] is None else f"{line['seeds']:.3f}"
        print(f"{spread:>7}{line['seconds']:6.0f}", end="")
        if line["multipliers"]:
            found = " ".join(f"{line['multipliers'][name]:.2f}" for name in REWARDS)
            print(f"  {found}, {line['violation']:+.3f} σ", end="")
        print()


def plus_minus(value: tuple[float, float] | None) -> str:
    """Return a mean with its standard error."""
    return "-" if value is None else f"{value[0]:.3f} ± {value[1]:.3f}"


def main() -> None:
    """Run the trials and print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=CHOICES, help="these choices")
    parser.add_argument("--steps", type=int, default=60, help="of a trial with fixed weights")
    parser.add_argument("--constrained-steps", type=int, default=100, help="of a constrained trial")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=512, help="of an evaluation")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    os.environ.update(child_environment())

    variants = [variant for variant in VARIANTS if variant.choice in arguments.only]
    planned_by = [[trial_of(v, seed, arguments) for seed in range(arguments.seeds)] for v in variants]
    finished = run_all({trial.trial_id: trial for trials in planned_by for trial in trials})
    judged = [judge([finished[trial.trial_id] for trial in trials]) for trials in planned_by]
    bases = {v.choice: j for v, j in zip(variants, judged, strict=True) if v.label.endswith("*")}
    rows = [row(v, j, bases[v.choice]) for v, j in zip(variants, judged, strict=True)]
    print(
        f"batch {arguments.batch}, {arguments.seeds} seed(s), {arguments.images} evaluation images; fixed weights "
        f"{WEIGHTS} (nats per σ), {arguments.steps} steps; paired: thresholds {THRESHOLDS} (σ), "
        f"{arguments.constrained_steps} steps"
    )
    show(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
