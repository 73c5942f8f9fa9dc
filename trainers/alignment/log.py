"""The rows of a training's history."""

import numpy as np

from trainers.alignment.state import TrainState
from trainers.config import TrialJob
from trainers.duality.lagrangian import KL
from trainers.trial_io import TrialIO
from trainers.types import StepRecord


def log_row(job: TrialJob, state: TrainState, io: TrialIO) -> None:
    """Append and report one row: means over the steps since the last one, if there were any.

    Where thresholds move, violations and multipliers are means over their box, and the Lagrangian is that of
    these means.

    A reward that had no score in any of them is waited for.
    """
    setup, rows = state.setup, state.pending
    names = (KL, *setup.rewards)
    if not all(any(name in row for row in rows) for name in names):
        return
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    earlier = state.history[-1].seconds if state.history else 0.0
    samples = (
        len(rows)
        * job.config.training.batch_per_worker
        * job.config.training.accumulation
        * job.config.workers
    )
    multipliers, lagrangian = setup.dual.multipliers, setup.lagrangian
    if setup.frontier is not None:
        multipliers, lagrangian = setup.frontier.box.mean(multipliers), setup.frontier.middle
    record = StepRecord(
        step=state.step,
        kl=means[KL],
        lagrangian=lagrangian.value(means, multipliers),
        kkt_residual=setup.monitor.residual(),
        learning_rate=float(state.optimizer.param_groups[0]["lr"]),
        seconds=state.seconds,
        images_per_second=samples / max(state.seconds - earlier, 1e-9),
        rewards={name: means[name] for name in setup.rewards},
        violations=lagrangian.violations(means),
        multipliers=lagrangian.prices(multipliers),
    )
    state.history.append(record)
    state.pending = []
    io.report(record)
