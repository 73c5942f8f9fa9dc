"""How many trained trials does a frontier need? The certified search, a grid, and Optuna on weights, all trained.

    python benchmarks/certified_training.py [--side 9] [--trials 24] [--samplers tpe nsga2 gp] [--processes 2]

The problem, the box and the defaults of ``sweeps/certified_exact.yaml``: a Gaussian mixture with two thresholds, whose
least KL is known. ``benchmarks/certified_search.py`` judges the same methods by exact optima on many problems; here
every trial is a training run, with its noise and its excess, so one problem and one seed is what a few hours of a core
allow. Figures are as there: worst excess over 200 random thresholds of the box, of single trials of the grid, and of
mixtures; a trial that was found feasible counts as meeting its thresholds.
"""

import argparse
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


import numpy as np
import optuna
import torch
from certified_search import SAMPLERS, FloatArray, Judge, Setting, on_weights

from orchestrator.frontier.bounds.bounds import Box, FrontierPoint
from orchestrator.frontier.bounds.trial_points import bounded, points_of
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.trials import Trials
from orchestrator.plan import PlannedTrial, base_config, constrained_trial, make_job, weighted_trial
from orchestrator.results.schema import trial_table
from orchestrator.search.certified import CertifiedSearch, TrialRecord
from orchestrator.spec.load import load_spec
from trainers.config import TrialConfig
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO

LEVELS = (0.1, 0.05)
"""Nats."""
COUNTS = (4, 6, 12, 20)
"""Trials after which the worst excess is printed."""
SPEC = Path(__file__).parents[1] / "sweeps" / "certified_exact.yaml"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedSetting(Setting):
    """One problem whose trials are trained."""

    base: TrialConfig

    def tilted(self, multipliers: FloatArray) -> FrontierPoint:
        """Train with fixed weights, nats per reward unit."""
        per_sigma = dict(zip(self.problem.names, (multipliers * self.box.spread).tolist(), strict=True))
        return self._trained(weighted_trial(self.base, per_sigma, seed=0))

    def trial(self, thresholds: FloatArray) -> FrontierPoint:
        """Train under thresholds."""
        names = [constraint.name for constraint in self.base.constraints]
        return self._trained(
            constrained_trial(self.base, dict(zip(names, thresholds.tolist(), strict=True)), seed=0)
        )

    def _trained(self, trial: PlannedTrial) -> FrontierPoint:
        job = make_job(trial, self.problem.baseline())
        began = time.monotonic()
        outcome = run_trial(job, LocalTrialIO())
        now = datetime.now(UTC)
        row = trial_table(job, outcome, started_at=now, finished_at=now, gpu_seconds=0.0, kl_least=None)
        [point] = points_of(Trials.of(row, job.config), bounded(job.config))
        assert point is not None, "training a small mixture does not fail"
        print(
            f"  {job.config.method} {point.rewards.round(3).tolist()} KL {point.kl:.3f}, feasible {outcome.feasible}, "
            f"{outcome.steps} steps, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        return point


def setting() -> TrainedSetting:
    """Return the problem of ``sweeps/certified_exact.yaml``."""
    spec = load_spec(str(SPEC), [])
    base = base_config(spec)
    problem = ExactProblem(base.model.exact, base.rewards)
    statistics = problem.baseline().rewards
    names = [constraint.target for constraint in base.constraints]
    assert list(problem.names) == names, "rewards stand in the order of their thresholds"
    ends = [constraint.at_least for constraint in spec.constraints]  # type: ignore[union-attr]
    mean = np.array([statistics[name].mean for name in names])
    return TrainedSetting(
        problem=problem,
        box=Box(
            low=np.array([end.low for end in ends]),  # type: ignore[union-attr]
            high=np.array([end.high for end in ends]),  # type: ignore[union-attr]
            spread=np.array([statistics[name].std for name in names]),
        ),
        pretrained=FrontierPoint.pretrained(mean),
        base=base,
    )


def certified(problem: TrainedSetting, trials: int) -> list[FrontierPoint]:
    """Trials of the search."""
    search = CertifiedSearch(problem.box, problem.pretrained, tolerance=1e-3, max_trials=trials)
    points: list[FrontierPoint] = []
    while (asked := search.ask()) is not None:
        points.append(problem.trial(asked))
        gap = search.tell(TrialRecord(thresholds=asked, point=points[-1]))
        print(f"    estimated gap {gap.gap:.3f} nats", flush=True)
    return points


def trained(name: str, trials: int, side: int) -> list[FrontierPoint]:
    """Trials of one method, or of one row of the grid (``grid 0``, ``grid 1``, ...), in a process of their own."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    problem = setting()
    if name == "certified":
        return certified(problem, trials)
    if name in SAMPLERS:
        return list(on_weights(problem, SAMPLERS[name](0), trials))
    axis = np.linspace(0, 1, side)
    row = axis[int(name.removeprefix("grid "))]
    return [problem.trial(problem.box.unscaled(np.array([row, place]))) for place in axis.tolist()]


def main() -> None:
    """Train every method's trials and print what each needs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=9, help="levels of the grid; 0 leaves it out")
    parser.add_argument("--trials", type=int, default=24, help="of the certified search and of each sampler")
    parser.add_argument("--samplers", nargs="*", default=["tpe", "nsga2", "gp"], choices=SAMPLERS)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    problem = setting()
    judge = Judge.of(problem, 0, np.inf)
    rows = [f"grid {index}" for index in range(arguments.side)]
    names = ["certified", *arguments.samplers]
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = {
            name: pool.submit(trained, name, arguments.trials, arguments.side) for name in [*names, *rows]
        }
        found = {name: future.result() for name, future in futures.items()}
    grid = [point for name in rows for point in found[name]]
    targets = {f"{level:g} nats": level for level in LEVELS}
    if grid:
        targets |= {"grid alone": judge.alone(grid), "grid mixed": judge.mixed(grid)}
        print(
            f"\nworst excess of the {len(grid)} trials of the grid: alone {targets['grid alone']:.3f} nats, "
            f"mixed {targets['grid mixed']:.3f} nats"
        )
    print("worst excess, nats, after so many trials; trials to each level")
    print(
        f"{'':>10}" + "".join(f"{count:>8}" for count in COUNTS) + "".join(f"{name:>12}" for name in targets)
    )
    for name in names:
        after = "".join(f"{judge.mixed(found[name][:count]):8.3f}" for count in COUNTS)
        needed = [judge.needed(found[name], target) for target in targets.values()]
        shown = [f"{count:.0f}" if np.isfinite(count) else f"> {len(found[name])}" for count in needed]
        print(f"{name:>10}{after}" + "".join(f"{count:>12}" for count in shown))


if __name__ == "__main__":
    main()
