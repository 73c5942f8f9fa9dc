"""From a job to its Lagrangian."""

from trainers.config import TrialJob
from trainers.duality.constraint import Constraint
from trainers.duality.lagrangian import KL, Lagrangian


def build_lagrangian(job: TrialJob) -> Lagrangian:
    """Return objective and constraints in absolute units, scaled by the pretrained model's deviations."""
    config, known = job.config, job.baseline.rewards
    constraints = tuple(
        Constraint(
            name=c.name,
            quantity=KL if c.kind == "kl" else c.target,
            sign=1.0 if c.kind == "kl" else -1.0,
            bound=job.thresholds[c.name],
            scale=1.0 if c.kind == "kl" else known[c.target].std,
            margin=0.0 if c.kind == "kl" else config.duals.margin,
            allowance=config.evaluation.allowance(
                c.kind, bound=job.thresholds[c.name], std=1.0 if c.kind == "kl" else known[c.target].std
            ),
        )
        for c in config.constraints
    )
    objective = KL if config.objective.kind == "kl" else config.objective.target
    return Lagrangian(
        objective=objective,
        objective_scale=1.0 if objective == KL else known[objective].std,
        constraints=constraints,
        fixed={name: weight / known[name].std for name, weight in config.weights.items()},
    )
