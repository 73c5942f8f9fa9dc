"""Which exact problem a trial's model and rewards make, if they make one."""

from orchestrator.frontier.problems.composition import ExactComposition
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.problems.least import LeastKL
from trainers.config import BaselineStatistics, MixtureConfig, TrialConfig


def exact_problem(config: TrialConfig) -> ExactProblem | None:
    """Return the problem of a trial that trains one model, in closed form; None where there is none."""
    mixture = config.model.mixture
    if mixture is None or not ExactProblem.supported(config.rewards):
        return None
    return ExactProblem(mixture, config.rewards)


def exact_composition(config: TrialConfig) -> ExactComposition | None:
    """Return the trial's composition in closed form or by quadrature, if it has one."""
    composition = config.model.composition
    if composition is None or composition.networks:
        return None
    models = {model.name: model.exact for model in composition.models}
    if not ExactComposition.supported(models, composition.direction, config.rewards):
        return None
    return ExactComposition(models, composition.direction, composition.offsets, config.rewards)


def exact_solver(config: TrialConfig) -> LeastKL | None:
    """Return what trials are held against, if the trial's problem or composition has an exact solution."""
    return exact_problem(config) or exact_composition(config)


def exact_baseline(config: TrialConfig) -> BaselineStatistics | None:
    """Return what thresholds refer to where it needs no sampling.

    Those of a composition of mixtures are exact under the equal mixture of all; there is no pretrained one.
    """
    composition = config.model.composition
    if composition is None:
        exact = exact_problem(config)
        return None if exact is None else exact.baseline()
    if not config.rewards:
        return BaselineStatistics(rewards={}, samples=None)
    if composition.networks:
        return None
    parts = [model.exact for model in composition.models]
    pooled = MixtureConfig(
        weights=tuple(weight / len(parts) for part in parts for weight in part.weights),
        means=tuple(mean for part in parts for mean in part.means),
        covariances=tuple(covariance for part in parts for covariance in part.covariances),
    )
    return ExactProblem(pooled, config.rewards).baseline()
