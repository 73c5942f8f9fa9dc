"""Problems whose least KL is known: its face for the floors above."""

from orchestrator.frontier.problems.chosen import exact_baseline, exact_problem, exact_solver
from orchestrator.frontier.problems.composition import ExactComposition
from orchestrator.frontier.problems.exact import ExactProblem
from orchestrator.frontier.problems.least import SAID, BoundKind, Documents, LeastKL, Optimum

__all__ = [
    "SAID",
    "BoundKind",
    "Documents",
    "ExactComposition",
    "ExactProblem",
    "LeastKL",
    "Optimum",
    "exact_baseline",
    "exact_problem",
    "exact_solver",
]
