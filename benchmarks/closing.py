"""How much of what multipliers can gain does training close, on prompts that it has not seen, and at what CPU time?

    python benchmarks/closing.py [--only today second …] [--points 0.2,2,2.5 …] [--seeds 1] [--json FILE]
    python benchmarks/closing.py --only wide --points 0,2,0 0,0,2.5 --prompt "a small orange cross on a cyan background"
    python benchmarks/closing.py --constrained 10 [--only …] [--duals nu_pi reweighted]

At fixed multipliers λ (nats per σ of the pretrained chain) what any policy can reach at most is known without training,
from pretrained samples of every prompt:

    closed = (λ'(r − r_0) − KL) / (E_c log Z_c − λ'r_0),    Z_c = E_q[exp(λ'r) | c]

0 for the pretrained model, 1 at the optimum. Gains are paired with the pretrained samples on the same noise, log Z is
jackknifed within every prompt, and ± is the jackknife over prompts, which numerator and denominator share (of a
single prompt the standard error of the numerator). With --prompt that one is trained and judged, on noise that training
has not seen, with the σ of all. With --constrained the middle trial of ``sweeps/threshold_grid.yaml`` is trained from
so many seeds instead. Trials run one after the other, one thread each; CPU seconds are those of training alone.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from embedded_problem import REWARDS, bare, job_of, planned, sampled, start_worker
from environment import child_environment

from orchestrator.plan import PlannedTrial
from trainers.config import TrialJob
from trainers.duality.tilting import Prompts
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, FloatArray, StepRecord, TrialOutcome

POINTS = ((0.2, 2.0, 2.5), (1.0, 1.0, 1.0), (0.0, 3.0, 2.5))
"""λ of saturation, local contrast and CLIP, nats per σ."""
THRESHOLDS = (0.5, 0.5, 0.1)
"""σ, of the constrained trial."""
TODAY: dict[str, dict[str, Any]] = {
    "model": {"pretrained": "embedded", "lora": {"rank": 4}},
    "sampling": {"steps": 8, "rest": 2},
    "training": {"steps": 90, "batch_per_worker": 8, "learning_rate": 3.0e-3, "anneal": 0.4},
}
SECOND: dict[str, dict[str, Any]] = {"sampling": {"steps": 5, "order": 2}}
CALM: dict[str, Any] = {"learning_rate": 1.0e-3, "primal": "clipped_backprop"}
LAYERS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "conv1",
    "conv2",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
]
RANK_16 = {"pretrained": "embedded", "lora": {"rank": 16}}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "today": {},
    "second": SECOND,
    "clipped": SECOND | {"training": {"primal": "clipped_backprop", "primal_parameters": {"limit": 5.0}}},
    "calm": SECOND | {"training": CALM, "model": RANK_16},
    "wide": SECOND
    | {
        "training": CALM | {"primal_parameters": {"limit": 4.0}, "batch_per_worker": 16, "steps": 100},
        "model": {"pretrained": "embedded", "lora": {"rank": 32, "targets": LAYERS}},
    },
    "longer": SECOND | {"training": CALM | {"steps": 160}, "model": RANK_16},
}
"""By name what differs from ``TODAY``; ``longer`` takes about the CPU time of ``today``."""
DUALS = {kind: {"kind": kind, "rate": 0.3, "start": 1.5, "margin": 0.1} for kind in ("nu_pi", "reweighted")}


def sections_of(variant: str) -> dict[str, dict[str, Any]]:
    """Return the sections of a variant's spec."""
    changed = VARIANTS[variant]
    return {
        name: changed.get(name, {})
        if name in {"model", "sampling"} and name in changed
        else values | changed.get(name, {})
        for name, values in TODAY.items()
    }


class Clock(LocalTrialIO):
    """Takes the CPU time at which the last row of the history was logged."""

    trained = 0.0

    def report(self, record: StepRecord) -> None:
        """Take the time."""
        super().report(record)
        self.trained = time.process_time()


def run(job: TrialJob, drawn: Mapping[str, Evaluation]) -> tuple[TrialOutcome, float]:
    """Run a trial in a process of the pool; returns it with the CPU seconds of its training."""
    train = drawn["train"].rewards, drawn["train"].prompts
    began, clock = time.process_time(), Clock(pretrained=drawn["evaluate"].rewards, trained_on=train)
    outcome = run_trial(job, clock)
    evaluation = None if outcome.evaluation is None else bare(outcome.evaluation)
    return replace(outcome, evaluation=evaluation, adapter={}, history=()), clock.trained - began


def closed(outcome: TrialOutcome, drawn: Evaluation, multipliers: FloatArray) -> dict[str, float]:
    """Return ``closed``, its error, the gap in nats and the Lagrangian's gain.

    Args:
        outcome: Of a trial with fixed weights.
        drawn: Pretrained samples of the held-out prompts; they begin with the noise of the evaluation.
        multipliers: ``[m]``, nats per reward unit.
    """
    found = outcome.evaluation
    assert found is not None, outcome.error
    assert found.prompts is not None
    assert drawn.prompts is not None
    free = columns(drawn) @ multipliers
    gains = columns(found) @ multipliers - free[: len(found.kl)] - found.kl
    asked, trained = np.array(drawn.prompts), np.array(found.prompts)
    names = sorted(set(trained.tolist()))

    def of(left: str | None) -> tuple[float, float]:
        kept, known = asked != left, trained != left
        gap, _ = Prompts(asked[kept].tolist(), int(kept.sum())).log_partition(free[kept] - free[kept].mean())
        return float(gains[known].mean()), gap

    gain, gap = of(None)
    shares = np.array([np.divide(*of(name)) for name in names] if len(names) > 1 else [gain / gap])
    error = float(np.sqrt((len(names) - 1) * shares.var()))
    if len(names) == 1:
        error = float(gains.std() / np.sqrt(len(gains)) / gap)
    return {"closed": gain / gap, "error": error, "gap": gap, "gain": gain}


def deviations(drawn: Mapping[str, Evaluation]) -> FloatArray:
    """Return the standard deviations of the rewards on training prompts, ``[m]``."""
    return np.asarray(columns(drawn["train"]).std(axis=0, ddof=1))


def columns(drawn: Evaluation) -> FloatArray:
    """Return rewards ``[n, m]``."""
    return np.stack([drawn.rewards[name] for name in REWARDS], axis=1)


def main() -> None:
    """Run the trials and print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--points", nargs="+", type=_point, default=POINTS, metavar="A,B,C")
    parser.add_argument("--prompt", help="train and judge this one alone")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=512, help="of an evaluation")
    parser.add_argument("--pretrained", type=int, default=4096, help="samples from which log Z comes")
    parser.add_argument("--constrained", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--duals", nargs="+", choices=list(DUALS), default=list(DUALS))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    os.environ.update(child_environment())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_worker) as pool:
        show = constrained if arguments.constrained else at_points
        rows = show(pool, arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def at_points(pool: ProcessPoolExecutor, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print ``closed`` at every point."""
    rows = []
    samples: dict[str, dict[str, Evaluation]] = {}

    def drawn_for(trial: PlannedTrial) -> dict[str, Evaluation]:
        assert trial.config.prompts is not None
        key = trial.config.sampling.model_dump_json() + trial.config.prompts.digest
        if key not in samples:
            samples[key] = pool.submit(sampled, trial.config).result()
        return samples[key]

    print(f"{'training':16} {'λ per σ':>14} {'CPU s':>6} {'KL':>6} {'gains σ':>18} {'gap':>6}  closed")
    for variant in arguments.only:
        for point in arguments.points:
            for seed in range(arguments.seeds):
                # σ is that of all prompts, also where one is trained.
                scale = deviations(drawn_for(trial_of(variant, seed, arguments, point)))
                drawn = drawn_for(trial_of(variant, seed, arguments, point, prompt=arguments.prompt))
                weights = tuple((np.array(point) * deviations(drawn) / scale).tolist())
                job = job_of(trial_of(variant, seed, arguments, weights, prompt=arguments.prompt), drawn)
                outcome, seconds = pool.submit(run, job, drawn).result()
                found = closed(outcome, drawn["evaluate"], np.array(point) / scale)
                rows.append(
                    found
                    | figures(outcome, drawn["evaluate"], scale)
                    | {"training": variant, "seed": seed, "cpu": seconds}
                )
                gains = " ".join(f"{gain:5.2f}" for gain in rows[-1]["gains"])
                at = " ".join(f"{price:g}" for price in point)
                print(
                    f"{variant:16} {at:>14} {seconds:6.0f} {rows[-1]['kl']:6.3f} "
                    f"{gains:>18} {found['gap']:6.2f}  {found['closed']:.3f} ± {found['error']:.3f}",
                    flush=True,
                )
    return rows


def constrained(pool: ProcessPoolExecutor, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Print what constrained trials cost, and whether they meet their thresholds."""
    rows = []
    print(
        f"{'training':16} {'duals':12} {'seed':>4} {'CPU s':>6} {'KL':>6} {'gains σ':>18}  "
        f"{'multipliers per σ':>18}  feasible"
    )
    for variant in arguments.only:
        drawn = None
        for duals in arguments.duals:
            for seed in range(arguments.constrained):
                trial = trial_of(variant, seed, arguments, None, DUALS[duals])
                drawn = drawn or pool.submit(sampled, trial.config).result()
                job = job_of(trial, drawn)
                outcome, seconds = pool.submit(run, job, drawn).result()
                scale = np.array([job.baseline.rewards[name].std for name in REWARDS])
                rows.append(
                    figures(outcome, drawn["evaluate"], scale)
                    | {
                        "training": variant,
                        "duals": duals,
                        "seed": seed,
                        "cpu": seconds,
                        "feasible": outcome.feasible,
                    }
                )
                prices = [outcome.multipliers.get(name, np.nan) for name in REWARDS] * scale
                print(
                    f"{variant:16} {duals:12} {seed:4} {seconds:6.0f} {rows[-1]['kl']:6.3f} "
                    f"{' '.join(f'{gain:5.2f}' for gain in rows[-1]['gains']):>18}  "
                    f"{' '.join(f'{price:5.2f}' for price in prices):>18}  {outcome.feasible}",
                    flush=True,
                )
    return rows


def trial_of(
    variant: str,
    seed: int,
    arguments: argparse.Namespace,
    point: tuple[float, ...] | None,
    duals: dict[str, Any] | None = None,
    prompt: str | None = None,
) -> PlannedTrial:
    """Return a trial with fixed weights, or a constrained one without them."""
    sections = sections_of(variant)
    steps = sections["training"]["steps"]
    constraints = [
        {"reward": name, "at_least": bound, "unit": "sigma"}
        for name, bound in zip(REWARDS, THRESHOLDS, strict=True)
    ]
    return planned(
        weights=None if point is None else dict(zip(REWARDS, point, strict=True)),
        seed=seed,
        constraints=constraints,
        duals=duals or {},
        convergence={"window": steps} if point is not None else {"window": 20, "tolerance": 0.05},
        evaluation={"images": arguments.images, "baseline_images": arguments.pretrained},
        **sections,
        **({} if prompt is None else {"prompts": {name: [prompt] for name in ("train", "evaluate")}}),
    )


def _point(text: str) -> tuple[float, ...]:
    return tuple(float(price) for price in text.split(","))


def figures(outcome: TrialOutcome, drawn: Evaluation, scale: FloatArray) -> dict[str, Any]:
    """Return KL, nats, and gains, σ, paired with the pretrained samples."""
    found = outcome.evaluation
    assert found is not None, outcome.error
    gains = (columns(found) - columns(drawn)[: len(found.kl)]).mean(axis=0) / scale
    return {"kl": float(found.kl.mean()), "gains": gains.tolist()}


if __name__ == "__main__":
    main()
