"""Names of all metrics and of their tags, here and nowhere else.

Ray puts ``ray_`` before a name, and adds tags of its own (session, node, worker). Units stand in the name where there
is one unit; rewards, violations and multipliers are in the units of their reward.
"""

from dataclasses import dataclass

EXPORTED = "ray_"
"""What Ray puts before every name."""

SWEEP, TRIAL, METHOD, CONSTRAINT, STATUS = "sweep", "trial", "method", "constraint", "status"

_TRIAL_TAGS = (SWEEP, TRIAL, METHOD)
_CONSTRAINT_TAGS = (*_TRIAL_TAGS, CONSTRAINT)


@dataclass(frozen=True, slots=True)
class Metric:
    """A gauge."""

    name: str
    """As Ray is told."""
    description: str
    """What it is, with its unit."""
    tags: tuple[str, ...]
    """Keys of its tags."""

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return EXPORTED + self.name

    @property
    def recorded(self) -> str:
        """The name of the series without Ray's own tags, which a recording rule makes."""
        return self.name.replace("cdsweep_", "cdsweep:", 1)


STEP = Metric("cdsweep_step", "Optimiser steps done", _TRIAL_TAGS)
KL = Metric("cdsweep_kl_nats", "Path-wise KL to the pretrained model, nats", _TRIAL_TAGS)
KKT_RESIDUAL = Metric(
    "cdsweep_kkt_residual", "Largest of violation, complementary slackness and drift", _TRIAL_TAGS
)
LEARNING_RATE = Metric("cdsweep_learning_rate", "Learning rate of the primal step", _TRIAL_TAGS)
IMAGES_PER_SECOND = Metric("cdsweep_images_per_second", "Images trained on per second", _TRIAL_TAGS)

REWARD = Metric("cdsweep_reward", "Mean reward of the training samples", _CONSTRAINT_TAGS)
VIOLATION = Metric("cdsweep_violation", "Threshold minus reward, met where <= 0", _CONSTRAINT_TAGS)
MULTIPLIER = Metric("cdsweep_multiplier", "Multiplier, nats per unit of its reward", _CONSTRAINT_TAGS)
MODEL_KL = Metric("cdsweep_model_kl_nats", "KL to one model of a composition, nats", _CONSTRAINT_TAGS)

BOUND_GAP = Metric("cdsweep_bound_gap_nats", "How well a certified search knows the least KL, nats", (SWEEP,))
TRIALS = Metric("cdsweep_trials", "Trials of a sweep by status", (SWEEP, STATUS))

OF_TRIALS = (STEP, KL, KKT_RESIDUAL, LEARNING_RATE, IMAGES_PER_SECOND)
"""One value per running trial."""
OF_CONSTRAINTS = (REWARD, VIOLATION, MULTIPLIER, MODEL_KL)
"""One value per running trial and reward, constraint or model."""
OF_SWEEPS = (BOUND_GAP, TRIALS)
"""While the sweep runs."""
ALL = (*OF_TRIALS, *OF_CONSTRAINTS, *OF_SWEEPS)
