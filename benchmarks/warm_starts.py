"""Does a trial that begins at its nearest finished neighbour need fewer steps? The embedded pipeline, one process.

    python benchmarks/warm_starts.py [--steps 70]

Six combinations of thresholds as in ``sweeps/threshold_grid.yaml``, local contrast rising. Cold, each begins at the
pretrained model and the default multipliers; warm, all but the first begin with adapter and multipliers of the
one before (``training.warm_start``). Printed are the first logged steps at which the KKT residual, over its window of
20 steps, is at most each level.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from embedded_problem import job_of, planned, sampled, start_worker

from orchestrator.execution.trials.warm import nearest
from trainers.config import TrialJob
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import TrialOutcome

WINDOW = 20
CONTRASTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LEVELS = (0.4, 0.3, 0.2)
"""KKT residuals, σ and nats."""


def main() -> None:
    """Train eleven trials and print the steps that they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=70)
    steps: int = parser.parse_args().steps
    start_worker()
    trials = [
        planned(
            constraints=[
                {"reward": "saturation", "at_least": 0.5, "unit": "sigma"},
                {"reward": "local_contrast", "at_least": contrast, "unit": "sigma"},
                {"reward": "clip", "at_least": 0.1, "unit": "sigma"},
            ],
            sampling={"steps": 8, "rest": 2},
            training={"steps": steps, "batch_per_worker": 8, "learning_rate": 3.0e-3, "anneal": 0.4},
            duals={"kind": "nu_pi", "rate": 0.3, "start": 1.5, "margin": 0.05},
            convergence={"window": WINDOW, "tolerance": 1.0e-9},
            evaluation={"images": 64, "baseline_images": 1024, "every": 2},
        )
        for contrast in CONTRASTS
    ]
    samples = sampled(trials[0].config)
    jobs = [job_of(trial, samples) for trial in trials]

    cold = [run_trial(job, LocalTrialIO()) for job in jobs]
    warm = cold[:1]
    for job in jobs[1:]:
        found = nearest(job, [_row(j, o) for j, o in zip(jobs, warm, strict=False)])
        assert found is not None, "an earlier trial has finished"
        source = warm[[j.trial_id for j in jobs].index(found.trial_id)]
        begun = job.model_copy(update={"start": found.multipliers, "base": found.trial_id})
        warm.append(run_trial(begun, LocalTrialIO(adapter=source.adapter)))

    print(
        f"{'contrast, σ':>12}  {'':5}"
        + "".join(f"{f'residual {level}':>14}" for level in LEVELS)
        + "   KL at the end"
    )
    totals = {"cold": [0] * len(LEVELS), "warm": [0] * len(LEVELS)}
    for index, contrast in enumerate(CONTRASTS):
        for name, outcomes in (("cold", cold), ("warm", warm)):
            taken = [_steps_to(outcomes[index], level, steps) for level in LEVELS]
            totals[name] = [total + step for total, step in zip(totals[name], taken, strict=True)]
            kl = outcomes[index].kl
            end = "" if kl is None else f"{kl.mean:.3f}"
            print(f"{contrast:12.1f}  {name:5}" + "".join(f"{step:14d}" for step in taken) + f"   {end:>13}")
    for name, total in totals.items():
        print(f"{'all six':>12}  {name:5}" + "".join(f"{step:14d}" for step in total))
    saved = [1.0 - w / c for w, c in zip(totals["warm"], totals["cold"], strict=True)]
    print(f"{'saved':>12}  {'':5}" + "".join(f"{share:14.0%}" for share in saved))


def _steps_to(outcome: TrialOutcome, level: float, steps: int) -> int:
    """Return the first logged step with a residual of at most ``level`` over a full window, or all steps."""
    full = (record for record in outcome.history if record.step >= WINDOW)
    return next((record.step for record in full if record.kkt_residual <= level), steps)


def _row(job: TrialJob, outcome: TrialOutcome) -> dict[str, object]:
    """Return what a row of results says of a trial."""
    row: dict[str, object] = {
        "trial_id": job.trial_id,
        "method": job.config.method,
        "seed": job.config.seed,
        "status": outcome.status,
    }
    row |= {f"threshold_{name}": bound for name, bound in job.thresholds.items()}
    return row | {f"multiplier_{name}": value for name, value in outcome.multipliers.items()}


if __name__ == "__main__":
    main()
