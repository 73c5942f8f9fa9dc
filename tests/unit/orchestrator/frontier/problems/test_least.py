"""Whatever a trial is held against answers one question, and whoever asks does not know who answers."""

import numpy as np
import pytest
from support.models.compositions import SPEC, THRESHOLD, plan_of
from support.reported import SPEC as ONE_MODEL

from orchestrator.frontier.paths import PathSamples
from orchestrator.frontier.problems import quadrature
from orchestrator.frontier.problems.chosen import exact_composition, exact_solver
from orchestrator.frontier.problems.least import LeastKL
from orchestrator.frontier.sampled.predicted import PredictedProblem
from orchestrator.plan import make_plan
from orchestrator.spec.load import parse_spec


def solvers() -> dict[str, LeastKL]:
    """One of every kind."""
    rng = np.random.default_rng(0)
    exact = exact_solver(make_plan(parse_spec(ONE_MODEL)).trials[0].config)
    composed = exact_solver(plan_of(SPEC + THRESHOLD).trials[0].config)
    assert exact is not None
    assert composed is not None
    samples = PathSamples(rewards=rng.normal(size=(4000, 1)))
    return {
        "exact": exact,
        "composed": composed,
        "predicted": PredictedProblem(sources=(samples,), names=("up",), scale=np.ones(1)),
    }


@pytest.mark.parametrize("name", ["exact", "composed", "predicted"])
def test_tighter_thresholds_never_cost_less_and_the_impossible_is_said_to_be(name: str) -> None:
    solver = solvers()[name]
    reward = "right" if name == "exact" else "up"
    kls = [solver.least_kl({reward: at}).kl for at in (0.2, 0.5, 0.8)]
    assert kls == sorted(kls)
    assert np.isfinite(kls).all()
    out_of_reach = solver.least_kl({reward: 1e6})
    assert not out_of_reach.reachable
    assert out_of_reach.kl == np.inf


def test_kinds_and_what_is_drawn_against_a_reward() -> None:
    told = {name: (solver.kind, solver.word, solver.line) for name, solver in solvers().items()}
    assert told == {
        "exact": ("proven", "exact least KL", True),
        "composed": ("proven", "exact least maximum", False),
        "predicted": ("estimated", "predicted least KL", False),
    }


def test_what_quadrature_cannot_tell_is_not_said_to_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    config = plan_of(SPEC.replace("reverse", "forward")).trials[0].config
    exact = exact_composition(config)
    assert exact is not None
    monkeypatch.setattr(quadrature, "POINT_LIMIT", 1)
    found = exact.least_kl({})
    assert found.reachable
    assert np.isnan(found.kl)


def test_how_sure_a_lower_bound_is() -> None:
    found = solvers()
    least, kind = found["exact"].proven({"right": 0.5})
    assert kind == "proven"
    assert least == pytest.approx(found["exact"].least_kl({"right": 0.5}).kl)
    assert found["exact"].proven({"right": 1e6}) is None
    least, kind = found["predicted"].proven({"up": 0.5})
    assert kind == "95%"
    assert 0.08 < least < 0.125
