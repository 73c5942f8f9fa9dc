"""What trials must come to, whatever dies or is out of reach while they run."""

from pathlib import Path

import torch

from orchestrator.frontier.problems.chosen import exact_problem
from orchestrator.plan import make_job, make_plan
from orchestrator.spec.load import load_spec
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO

Numbers = dict[str, dict[str, float]]
"""Columns of each trial's row by id."""


def undisturbed(spec: Path) -> Numbers:
    """Run every trial in this process, without Ray: the numbers that must come out whatever dies."""
    torch.set_num_threads(1)
    plan = make_plan(load_spec(spec))
    problem = exact_problem(plan.trials[0].config)
    assert problem is not None
    results = {}
    for trial in plan.trials:
        outcome = run_trial(make_job(trial, problem.baseline()), LocalTrialIO())
        assert outcome.kl is not None
        row = {"kl": outcome.kl.mean, "steps": float(outcome.steps)}
        row |= {f"reward_{name}": interval.mean for name, interval in outcome.rewards.items()}
        row |= {f"multiplier_{name}": value for name, value in outcome.multipliers.items()}
        results[trial.trial_id] = row
    return results
