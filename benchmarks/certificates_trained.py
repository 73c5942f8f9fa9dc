"""Do certified bounds hold of trials that are trained, and stop too early? By the trainers, on a mixture.

    python benchmarks/certificates_trained.py [--thresholds 3] [--images 2048] [--samples 131072]

The problem of ``sweeps/certified_exact.yaml``: trials at thresholds of its box with 10, 30 and 100 % of the steps and,
at the first of them, half the width. Bounds of ``frontier.paths`` from their evaluations and as many samples of the
pretrained model are held against the least KL of the sampler's own law, which a preview from many more of its samples
tells to about 0.01 nats: a coarse chain's law is not quite the mixture. Some minutes of one core.
"""

import argparse
import itertools
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from certified_training import SPEC

from orchestrator.frontier.paths import Gaps, PathSamples
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.sampled.preview import preview
from orchestrator.frontier.sampled.samples import pretrained_samples
from orchestrator.plan import base_config, constrained_trial, make_job
from orchestrator.spec.load import load_spec
from trainers.config import TrialConfig
from trainers.problem import run_trial, sample_pretrained
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation

SHARES = (0.1, 0.3, 1.0)
PLACES = ((0.7, 0.5), (0.4, 0.8), (0.9, 0.2))
"""Shares of the box."""


def source(drawn: Evaluation, count: int) -> PathSamples:
    """The first samples of an evaluation; antithetic neighbours are one unit."""
    return PathSamples(
        rewards=np.column_stack([values[:count] for values in drawn.rewards.values()]),
        log_ratio=None if drawn.log_ratio is None or not drawn.kl.any() else drawn.log_ratio[:count],
        path_kl=None if drawn.log_ratio is None or not drawn.kl.any() else drawn.kl[:count],
        units=np.arange(count) // 2,
    )


def trained(config: TrialConfig, thresholds: dict[str, float], share: float, width: float) -> Evaluation:
    """Train at thresholds with a share of the steps and of the width."""
    training = config.training.model_copy(
        update={"steps": int(share * config.training.steps), "width": int(width * config.training.width)}
    )
    planned = constrained_trial(config.model_copy(update={"training": training}), thresholds, seed=0)
    job = make_job(planned, ExactProblem(config.model.exact, config.rewards).baseline())
    began = time.monotonic()
    outcome = run_trial(job, LocalTrialIO())
    assert outcome.evaluation is not None, "training a small mixture does not fail"
    reached = {name: round(float(values.mean()), 3) for name, values in outcome.evaluation.rewards.items()}
    print(
        f"  {share:.0%} of the steps, width {training.width}: {reached}, KL {outcome.evaluation.kl.mean():.3f}, "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    return outcome.evaluation


def main() -> None:
    """Train, and print a line for each row of thresholds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--thresholds", type=int, default=3, choices=range(1, len(PLACES) + 1))
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=131072)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spec = load_spec(str(SPEC), [])
    config = base_config(spec)
    evaluation = {"images": arguments.images, "baseline_images": arguments.samples}
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=evaluation)})
    ends = [constraint.at_least for constraint in spec.constraints]  # type: ignore[union-attr]
    rows = np.array(
        [
            [end.low + share * (end.high - end.low) for end, share in zip(ends, place, strict=True)]  # type: ignore[union-attr]
            for place in PLACES[: arguments.thresholds]
        ]
    )
    own = sample_pretrained(config)["evaluate"]
    sources = [source(own, 2 * arguments.images)]
    names = [constraint.name for constraint in config.constraints]
    for place, row in enumerate(rows.tolist()):
        thresholds = dict(zip(names, row, strict=True))
        print(f"thresholds {thresholds}", flush=True)
        for share, width in [(share, 1.0) for share in SHARES] + ([(1.0, 0.5)] if place == 0 else []):
            sources.append(source(trained(config, thresholds, share, width), arguments.images))
    everything = pretrained_samples(
        np.column_stack(list(own.rewards.values())), units=np.arange(len(own.kl)) // 2, replicates=100
    )
    gaps = Gaps(sources)
    print(
        f"{'thresholds':24}{'lower':>8}{'least':>8}{'±':>7}{'upper':>8}{'ESS':>7}{'k':>7}{'few':>8}{'training':>9}{'rest':>7}"
    )
    for row in (
        *rows,
        *(0.5 * (first + second) for first, second in itertools.combinations(rows, 2)),
    ):
        found = gaps.at(row)
        [least] = preview(everything, row[None])
        figures = found.proof.lower, least.kl, 0.5 * (least.kl_high - least.kl_low), found.mixed.upper
        print(
            f"{np.round(row, 3).tolist()!s:24}{figures[0]:8.3f}{figures[1]:8.3f}{figures[2]:7.3f}{figures[3]:8.3f}"
            f"{found.proof.ess:7.0f}{found.proof.pareto_k:7.2f}{found.few_trials:8.3f}{found.training:9.3f}{found.rest:7.3f}"
        )


if __name__ == "__main__":
    main()
